"""Tests of supcon.data.views.augment."""

import numpy as np
from PIL import Image
from PIL import ImageEnhance
from PIL import ImageOps
import pytest
import tensorflow as tf

from supcon.data.views import augment

_FILL = 128


def _noise(height, width, low=0, high=256):
  random = np.random.RandomState(height * 1000 + width)
  return random.randint(low, high, (height, width, 3)).astype(np.uint8)


def _smooth(height, width):
  """Neighboring pixels are at most 2 grey levels apart."""
  rows, columns = np.mgrid[:height, :width]
  ramps = [rows + columns, 2 * rows, 255 - 2 * columns]
  return np.clip(np.stack(ramps, axis=-1), 0, 255).astype(np.uint8)


def _flat_and_two_levels():
  image = np.zeros([9, 12, 3], np.uint8)
  image[..., 0] = 77
  image[:4, :, 1] = 100
  image[4:, :, 1] = 101
  return image


_IMAGES = {
  'noise': _noise(47, 33),
  'dull': _noise(64, 80, 90, 140),
  'smooth': _smooth(60, 60),
  'wide': _noise(3, 224),
  'flat': _flat_and_two_levels(),
  'one_pixel': _noise(1, 1),
  'two_rows': _noise(2, 9),
}
_names = pytest.mark.parametrize('name', _IMAGES)


def _difference(actual, expected):
  assert actual.dtype == tf.uint8
  assert actual.shape == expected.shape
  return np.abs(actual.numpy().astype(int) - np.asarray(expected).astype(int))


def _row(*levels):
  """An image of one row, the same in all channels."""
  return tf.constant(np.uint8(levels)[np.newaxis, :, np.newaxis].repeat(3, 2))


def _levels(image):
  """The row back, checked to be the same in all channels."""
  image = image.numpy()
  assert (image == image[..., :1]).all()
  return image[0, :, 0].tolist()


# ----------------------------------------------------------- colors as in PIL


@_names
@pytest.mark.parametrize('function', ['autocontrast', 'equalize', 'invert'])
def test_colors_match_pil(name, function):
  image = _IMAGES[name]
  actual = getattr(augment, function)(tf.constant(image))
  expected = np.array(getattr(ImageOps, function)(Image.fromarray(image)))
  assert _difference(actual, expected).max() <= 1


@_names
@pytest.mark.parametrize('as_tensor', [False, True])
@pytest.mark.parametrize(
  'function, strengths',
  [
    ('posterize', range(1, 9)),
    ('solarize', (0, 1, 100, 255, 256)),
  ],
)
def test_point_operations_match_pil(name, function, strengths, as_tensor):
  image = _IMAGES[name]
  for strength in strengths:
    expected = getattr(ImageOps, function)(Image.fromarray(image), strength)
    if as_tensor:
      strength = tf.constant(strength, tf.float32)
    actual = getattr(augment, function)(tf.constant(image), strength)
    assert _difference(actual, np.array(expected)).max() == 0, strength


@_names
@pytest.mark.parametrize('as_tensor', [False, True])
@pytest.mark.parametrize(
  'function', ['color', 'contrast', 'brightness', 'sharpness']
)
def test_enhancements_match_pil(name, function, as_tensor):
  image = _IMAGES[name]
  enhancer = getattr(ImageEnhance, function.title())(Image.fromarray(image))
  for factor in (0.0, 0.1, 0.37, 1.0, 1.3, 1.9):
    expected = np.array(enhancer.enhance(factor))
    if as_tensor:
      factor = tf.constant(factor)
    actual = getattr(augment, function)(tf.constant(image), factor)
    assert _difference(actual, expected).max() <= 1, factor
    if factor == 1:
      assert _difference(actual, image).max() == 0


def test_posterize_keeps_upper_bits():
  # 183 = 0b10110111; its 3 upper bits are 0b10100000 = 160.
  assert _levels(augment.posterize(_row(183, 31, 255), 3)) == [160, 0, 224]
  assert _levels(augment.posterize(_row(183, 31, 255), 0)) == [0, 0, 0]


def test_solarize_inverts_from_the_threshold_on():
  # 255 - 100 = 155, 255 - 255 = 0.
  image = _row(0, 99, 100, 255)
  assert _levels(augment.solarize(image, 100)) == [0, 99, 155, 0]


def test_solarize_add_brightens_the_dark_half():
  # 127 + 110 = 237; 100 + 200 is cut to 255; from 128 on nothing changes.
  image = _row(0, 100, 127, 128, 255)
  added = augment.solarize_add(image, 110)
  assert _levels(added) == [110, 210, 237, 128, 255]
  assert _levels(augment.solarize_add(image, 200.0))[1] == 255


def test_autocontrast_reaches_black_and_white():
  # (70 - 50) * 255 / 40 = 127.5, truncated.
  assert _levels(augment.autocontrast(_row(50, 70, 90))) == [0, 127, 255]
  assert _levels(augment.autocontrast(_row(50, 50))) == [50, 50]
  spans = [
    _levels(augment.autocontrast(_row(low, high)))
    for low in range(0, 255, 7)
    for high in range(low + 1, 256, 5)
  ]
  assert all(span == [0, 255] for span in spans)


def test_equalize_spreads_frequent_levels():
  # 510 pixels of each of two levels: 510 are darker than the brightest level,
  # thus one grey level per 510 // 255 = 2 pixels, from (0 + 1) // 2 = 0 to
  # (510 + 1) // 2 = 255.
  image = tf.constant(np.repeat(np.uint8([100, 101]), 1530).reshape(2, 510, 3))
  equalized = augment.equalize(image).numpy()
  assert (equalized[0] == 0).all() and (equalized[1] == 255).all()
  # Too few pixels for a grey level each: nothing changes.
  assert _levels(augment.equalize(_row(3, 1, 2))) == [3, 1, 2]


# --------------------------------------------------------- geometry as in PIL


def _affine(image, matrix):
  return np.array(
    Image.fromarray(image).transform(
      image.shape[1::-1],
      Image.Transform.AFFINE,
      matrix,
      fillcolor=(_FILL,) * 3,
    )
  )


@_names
@pytest.mark.parametrize('as_tensor', [False, True])
def test_shear_and_translate_match_pil(name, as_tensor):
  image = _IMAGES[name]
  convert = tf.constant if as_tensor else float
  for slope in (-0.3, -0.12, 0.0, 0.03, 0.27):
    sheared = augment.shear_x(tf.constant(image), convert(slope), _FILL)
    expected = _affine(image, (1, slope, 0, 0, 1, 0))
    assert _difference(sheared, expected).max() == 0, slope
    sheared = augment.shear_y(tf.constant(image), convert(slope), _FILL)
    expected = _affine(image, (1, 0, 0, slope, 1, 0))
    assert _difference(sheared, expected).max() == 0, slope
  for pixels in (-250.0, -9.0, 0.0, 2.5, 4.0, 100.0):
    moved = augment.translate_x(tf.constant(image), convert(pixels), _FILL)
    expected = _affine(image, (1, 0, pixels, 0, 1, 0))
    assert _difference(moved, expected).max() == 0, pixels
    moved = augment.translate_y(tf.constant(image), convert(pixels), _FILL)
    expected = _affine(image, (1, 0, 0, 0, 1, pixels))
    assert _difference(moved, expected).max() == 0, pixels


@pytest.mark.parametrize('as_tensor', [False, True])
@pytest.mark.parametrize('degrees', [-30.0, -7.0, 0.0, 3.0, 21.0, 90.0])
def test_rotate_matches_pil(degrees, as_tensor):
  convert = tf.constant if as_tensor else float
  for name, image in _IMAGES.items():
    expected = np.array(
      Image.fromarray(image).rotate(degrees, fillcolor=(_FILL,) * 3)
    )
    rotated = augment.rotate(tf.constant(image), convert(degrees), _FILL)
    difference = _difference(rotated, expected)
    # A pixel between two may be either of them.
    assert np.mean(difference > 0) <= 0.02, name
    if name == 'smooth' and abs(degrees) <= 30:
      # No pixel that comes from the border: 60 - 2 * 14 are left.
      assert difference[14:-14, 14:-14].max() <= 2


def test_translate_fills_or_mirrors():
  image = _row(10, 20, 30, 40)
  move = augment.translate_x
  assert _levels(move(image, 1, _FILL)) == [20, 30, 40, 128]
  assert _levels(move(image, -2, _FILL)) == [128, 128, 10, 20]
  assert _levels(move(image, 1, None)) == [20, 30, 40, 40]
  assert _levels(move(image, -2, None)) == [20, 10, 10, 20]
  # Mirrored again and again: 6 to the left is 2 back on the way back.
  assert _levels(move(image, 6, None)) == [20, 10, 10, 20]
  assert _levels(move(image, 8, None)) == [10, 20, 30, 40]


@pytest.mark.parametrize('pixels', [-25, -7, -1, 3, 13, 30])
def test_mirrored_borders_are_symmetric_padding(pixels):
  image = _noise(13, 11)
  padded = np.pad(image, [[40, 40], [40, 40], [0, 0]], mode='symmetric')
  down = augment.translate_y(tf.constant(image), pixels, None)
  start = 40 + pixels
  expected = padded[start : start + 13, 40:51]
  assert _difference(down, expected).max() == 0
  across = augment.translate_x(tf.constant(image), pixels, None)
  expected = padded[40:53, start : start + 11]
  assert _difference(across, expected).max() == 0


def test_mirrored_and_filled_agree_inside():
  image = _noise(40, 40, high=100)  # Nothing is 128.
  for function, strength in (
    (augment.shear_x, 0.2),
    (augment.shear_y, -0.2),
    (augment.rotate, 17.0),
  ):
    filled = function(tf.constant(image), strength, _FILL).numpy()
    mirrored = function(tf.constant(image), strength, None).numpy()
    is_inside = filled != _FILL
    assert 0.7 < is_inside.mean() < 1
    assert (filled[is_inside] == mirrored[is_inside]).all()
    assert mirrored.max() < 100


def test_rotate_by_a_quarter_turns_counterclockwise():
  image = _noise(20, 20)
  rotated = augment.rotate(tf.constant(image), 90.0, _FILL)
  # Half a pixel from the border float32 may fall to either side.
  expected = np.rot90(image)
  assert _difference(rotated, expected)[1:-1, 1:-1].max() == 0


@pytest.mark.parametrize(
  'half_side, center', [(0, (0.5, 0.5)), (2, (0.0, 0.99)), (3, (0.4, 0.6))]
)
def test_cutout_covers_a_square(half_side, center):
  image = _noise(10, 15)
  expected = image.copy()
  row, column = int(10 * center[0]), int(15 * center[1])
  for y in range(max(row - half_side, 0), min(row + half_side, 10)):
    for x in range(max(column - half_side, 0), min(column + half_side, 15)):
      expected[y, x] = 128
  for convert in (int, lambda size: tf.constant(size, tf.float32)):
    cut = augment.cutout(
      tf.constant(image), convert(half_side), tf.constant(center)
    )
    assert _difference(cut, expected).max() == 0


def test_large_cutout_leaves_nothing():
  for center in ((0.0, 0.0), (0.99, 0.99)):
    cut = augment.cutout(tf.constant(_noise(32, 32)), 40, tf.constant(center))
    assert (cut.numpy() == 128).all()
