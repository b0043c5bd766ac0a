"""Tests of supcon.data.views.augment."""

import re

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


def test_published_contrast_is_relative_to_a_256th_of_the_pixels():
  # 224 * 224 / 256 = 196: 0.5 * 100 + 0.5 * 196 = 148. 32 * 32 / 256 = 4.
  # More than 255 there is not.
  for side, expected in ((224, 148), (32, 52), (300, 177)):
    image = tf.constant(np.full([side, side, 3], 100, np.uint8))
    changed = augment._published_contrast(image, 0.5)
    assert np.unique(changed).tolist() == [expected]


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


# ----------------------------------------------------------------- policies

_POLICIES = {
  'imagenet': augment.IMAGENET_POLICY,
  'cifar10': augment.CIFAR10_POLICY,
}


@pytest.mark.parametrize('name', _POLICIES)
def test_policies_are_25_pairs(name):
  policy = _POLICIES[name]
  assert len(policy.sub_policies) == 25
  for sub_policy in policy.sub_policies:
    assert len(sub_policy) == 2
    for operation, probability, level in sub_policy:
      assert operation in policy.operations
      assert 0 <= probability <= 1
      assert level in range(11)


# The policy v0 of AutoAugment for TPU models: operation, probability and level,
# twice in a line.
_IMAGENET_TABLE = """
  Equalize 0.8 1      ShearY 0.8 4
  Color 0.4 9         Equalize 0.6 3
  Color 0.4 1         Rotate 0.6 8
  Solarize 0.8 3      Equalize 0.4 7
  Solarize 0.4 2      Solarize 0.6 2
  Color 0.2 0         Equalize 0.8 8
  Equalize 0.4 8      SolarizeAdd 0.8 3
  ShearX 0.2 9        Rotate 0.6 8
  Color 0.6 1         Equalize 1.0 2
  Invert 0.4 9        Rotate 0.6 0
  Equalize 1.0 9      ShearY 0.6 3
  Color 0.4 7         Equalize 0.6 0
  Posterize 0.4 6     AutoContrast 0.4 7
  Solarize 0.6 8      Color 0.6 9
  Solarize 0.2 4      Rotate 0.8 9
  Rotate 1.0 7        TranslateY 0.8 9
  ShearX 0.0 0        Solarize 0.8 4
  ShearY 0.8 0        Color 0.6 4
  Color 1.0 0         Rotate 0.6 2
  Equalize 0.8 4      Equalize 0.0 8
  Equalize 1.0 4      AutoContrast 0.6 2
  ShearY 0.4 7        SolarizeAdd 0.6 7
  Posterize 0.8 2     Solarize 0.6 10
  Solarize 0.6 8      Equalize 0.6 1
  Color 0.8 6         Rotate 0.4 5
"""

# Table 7 of https://arxiv.org/abs/1805.09501.
_CIFAR10_TABLE = """
  Invert 0.1 7        Contrast 0.2 6
  Rotate 0.7 2        TranslateX 0.3 9
  Sharpness 0.8 1     Sharpness 0.9 3
  ShearY 0.5 8        TranslateY 0.7 9
  AutoContrast 0.5 8  Equalize 0.9 2
  ShearY 0.2 7        Posterize 0.3 7
  Color 0.4 3         Brightness 0.6 7
  Sharpness 0.3 9     Brightness 0.7 9
  Equalize 0.6 5      Equalize 0.5 1
  Contrast 0.6 7      Sharpness 0.6 5
  Color 0.7 7         TranslateX 0.5 8
  Equalize 0.3 7      AutoContrast 0.4 8
  TranslateY 0.4 3    Sharpness 0.2 6
  Brightness 0.9 6    Color 0.2 8
  Solarize 0.5 2      Invert 0.0 3
  Equalize 0.2 0      AutoContrast 0.6 0
  Equalize 0.2 8      Equalize 0.6 4
  Color 0.9 9         Equalize 0.6 6
  AutoContrast 0.8 4  Solarize 0.2 8
  Brightness 0.1 3    Color 0.7 0
  Solarize 0.4 5      AutoContrast 0.9 3
  TranslateY 0.9 9    TranslateY 0.7 9
  AutoContrast 0.9 2  Solarize 0.8 3
  Equalize 0.8 8      Invert 0.1 3
  TranslateY 0.7 9    AutoContrast 0.9 1
"""

# What RandAugment chooses from, in the words of the paper, and how strong each
# is at level 10.
_RANDAUGMENT_STRENGTHS = {
  'AutoContrast': 0,
  'Equalize': 0,
  'Invert': 0,
  'Rotate': 30,
  'Posterize': 4,
  'Solarize': 0,  # 256 in 8 bits.
  'Color': 1.9,
  'Contrast': 1.9,
  'Brightness': 1.9,
  'Sharpness': 1.9,
  'ShearX': 0.3,
  'ShearY': 0.3,
  'TranslateX': 100,
  'TranslateY': 100,
  'Cutout': 40,
  'SolarizeAdd': 110,
}


def _ours(name):
  """Returns 'shear_x' for 'ShearX'; only AutoContrast is one word here."""
  if name == 'AutoContrast':
    return 'autocontrast'
  return re.sub(r'(?<=[a-z])(?=[A-Z])', '_', name).lower()


@pytest.mark.parametrize(
  'policy, table',
  [
    (augment.IMAGENET_POLICY, _IMAGENET_TABLE),
    (augment.CIFAR10_POLICY, _CIFAR10_TABLE),
  ],
  ids=['imagenet', 'cifar10'],
)
def test_policies_are_the_published_tables(policy, table):
  def pair(line):
    words = line.split()
    return tuple(
      (_ours(name), float(probability), int(level))
      for name, probability, level in (words[:3], words[3:])
    )

  expected = [pair(line) for line in table.strip().splitlines()]
  assert list(policy.sub_policies) == expected


def test_operations_of_rand_augment_are_the_published_ones():
  found = {
    name: operation.strength(10)
    for name, operation in augment._RANDAUGMENT_OPERATIONS.items()
  }
  expected = {_ours(n): s for n, s in _RANDAUGMENT_STRENGTHS.items()}
  assert found == pytest.approx(expected)


@pytest.mark.parametrize(
  'operations, operation, level, strength',
  [
    (augment.IMAGENET_POLICY.operations, *row)
    for row in (
      ('shear_y', 4, 0.12),  # 0.4 * 0.3
      ('rotate', 8, 24),  # 0.8 * 30
      ('translate_y', 9, 225),  # 0.9 * 250
      ('color', 0, 0.1),
      ('color', 9, 1.72),  # 0.1 + 0.9 * 1.8
      ('posterize', 6, 2),  # 0.6 * 4 = 2.4
      ('posterize', 2, 1),  # 0.2 * 4 = 0.8, at least 1
      ('solarize', 3, 76),  # 0.3 * 256 = 76.8
      ('solarize', 10, 0),  # 256 modulo 256
      ('solarize_add', 7, 77),  # 0.7 * 110
    )
  ]
  + [
    (augment.CIFAR10_POLICY.operations, *row)
    for row in (
      ('translate_x', 8, 8),  # 0.8 * 10
      ('solarize', 2, 205),  # 256 - 51
      ('posterize', 7, 2),  # 0.7 * 4 = 2.8
    )
  ]
  + [
    (augment._RANDAUGMENT_OPERATIONS, *row)
    for row in (
      ('translate_x', 10, 100),
      ('cutout', 5, 20),
      ('posterize', 10, 4),
      ('posterize', 30, 8),  # An image has no more bits.
      ('sharpness', 15, 2.8),  # 0.1 + 1.5 * 1.8
    )
  ],
)
def test_strengths_of_levels(operations, operation, level, strength):
  actual = operations[operation].strength(level)
  assert actual == pytest.approx(strength)


def _draw(function, image, n):
  """Stacks function(image, seed) over n seeds, as the pipeline computes it."""
  image = tf.constant(image)
  dataset = tf.data.Dataset.range(n).map(
    lambda index: function(image, tf.stack([index, 3])), num_parallel_calls=2
  )
  return next(iter(dataset.batch(n))).numpy()


def _numbered(*chances):
  """Operations that change grey level x to 4 x + their number, from 1 on."""

  def operation(number):
    return lambda image, *_: image * 4 + number

  return {
    str(number): augment._Operation(operation(number), lambda _: 1.0, chance)
    for number, chance in enumerate(chances, start=1)
  }


_NOTHING = augment._Chance.NOTHING


def test_sub_policies_apply_two_operations_in_order():
  policy = augment.Policy(
    sub_policies=(
      (('1', 1.0, 0), ('2', 1.0, 0)),
      (('3', 1.0, 0), ('1', 0.3, 0)),
      (('2', 0.0, 0), ('3', 0.7, 0)),
    ),
    operations=_numbered(_NOTHING, _NOTHING, _NOTHING),
  )
  n = 3000
  results = _draw(
    lambda image, seed: augment.auto_augment(image, seed, policy),
    np.zeros([1, 1, 3], np.uint8),
    n,
  )[:, 0, 0, 0]
  expected = {
    # 4 * 1 + 2.
    6: 1 / 3,
    # 4 * 3 + 1, or the first alone; the latter also from the third.
    13: 0.3 / 3,
    3: 0.7 / 3 + 0.7 / 3,
    0: 0.3 / 3,
  }
  assert set(results) == set(expected)
  for result, probability in expected.items():
    error = np.sqrt(probability * (1 - probability) / n)
    assert abs(np.mean(results == result) - probability) <= 4 * error, result


@pytest.mark.parametrize('num_layers', [0, 1, 2])
def test_rand_augment_chooses_evenly(num_layers, monkeypatch):
  operations = _numbered(_NOTHING, _NOTHING, _NOTHING)
  monkeypatch.setattr(augment, '_RANDAUGMENT_OPERATIONS', operations)
  n = 2000
  results = _draw(
    lambda image, seed: augment.rand_augment(image, seed, num_layers, 10.0),
    np.zeros([1, 1, 3], np.uint8),
    n,
  )[:, 0, 0, 0]
  # Three operations or none in each layer.
  outcomes = [0]
  for _ in range(num_layers):
    outcomes = outcomes + [
      4 * outcome + number for outcome in outcomes for number in (1, 2, 3)
    ]
  probability = 4.0**-num_layers
  for outcome in set(outcomes):
    expected = outcomes.count(outcome) * probability
    error = np.sqrt(expected * (1 - expected) / n)
    assert abs(np.mean(results == outcome) - expected) <= 4 * error, outcome


def test_rand_augment_has_16_operations():
  assert len(augment._RANDAUGMENT_OPERATIONS) == 16


def test_signs_and_positions_are_random(monkeypatch):
  kept = {
    name: augment._RANDAUGMENT_OPERATIONS[name]
    for name in ('translate_x', 'cutout')
  }
  monkeypatch.setattr(augment, '_RANDAUGMENT_OPERATIONS', kept)
  # At level 0.2, 2 pixels to either side.
  image = np.arange(0, 240, 2, dtype=np.uint8).reshape(1, 40, 3)
  images = _draw(
    lambda image, seed: augment.rand_augment(image, seed, 1, 0.2), image, 1500
  )
  to_the_left = (images[:, :, :38] == image[:, 2:]).all(axis=(1, 2, 3)).mean()
  to_the_right = (images[:, :, 2:] == image[:, :38]).all(axis=(1, 2, 3)).mean()
  # 1 / 3 * 1 / 2.
  error = np.sqrt(1 / 6 * 5 / 6 / 1500)
  assert abs(to_the_left - 1 / 6) <= 4 * error
  assert abs(to_the_right - 1 / 6) <= 4 * error

  # At level 0.25, cutout covers 2 pixels, half of its side 1 to either side of
  # each of 40 centers.
  covered = _draw(
    lambda image, seed: augment.rand_augment(image, seed, 1, 0.25),
    np.zeros([1, 40, 3], np.uint8),
    1500,
  )[:, 0, :, 0]
  counts = (covered == 128).sum(axis=0)
  # 2 of 40 centers cover a pixel, in a third of the images: 25 times. Left of
  # the last pixel lies one center less.
  assert (np.abs(counts[:-1] - 25) <= 4.5 * np.sqrt(25)).all()
  assert counts[-1] < 25 + 4.5 * 5


@pytest.mark.parametrize(
  'function',
  [
    lambda image, seed: augment.auto_augment(
      image, seed, augment.IMAGENET_POLICY
    ),
    lambda image, seed: augment.auto_augment(
      image, seed, augment.CIFAR10_POLICY
    ),
    lambda image, seed: augment.rand_augment(image, seed, 2, 7.0),
  ],
)
def test_every_image_is_another_and_always_the_same(function):
  image = _noise(24, 24)
  images = _draw(function, image, 40)
  assert images.shape == (40, 24, 24, 3) and images.dtype == np.uint8
  np.testing.assert_array_equal(_draw(function, image, 40), images)
  assert len({image.tobytes() for image in images}) > 15
  # Seeds of 32 bits give images, too.
  seed = tf.constant([5, 3], tf.int32)
  assert function(tf.constant(image), seed).shape == (24, 24, 3)


def test_images_of_any_size():
  for shape in ((1, 1), (2, 7), (1, 60), (33, 5)):
    for seed in ([0, 1], [2, 3], [4, 5]):
      image = tf.constant(_noise(*shape))
      for policy in _POLICIES.values():
        augmented = augment.auto_augment(image, seed, policy)
        assert augmented.shape == (*shape, 3)
      assert augment.rand_augment(image, seed, 2, 9.0).shape == (*shape, 3)


def test_only_the_chosen_operation_is_computed():
  def fail(image, strength):
    del strength
    nothing = tf.cast(image, tf.float32) / 0
    return tf.cast(tf.debugging.check_numerics(nothing, 'computed'), tf.uint8)

  failing = augment._Operation(fail, lambda _: 0.0)

  def draw(probability):
    policy = augment.Policy(
      sub_policies=((('fail', probability, 0), ('1', 1.0, 0)),),
      operations={'fail': failing, **_numbered(_NOTHING)},
    )
    return _draw(
      lambda image, seed: augment.auto_augment(image, seed, policy),
      np.zeros([1, 1, 3], np.uint8),
      10,
    )

  assert (draw(0.0) == 1).all()
  with pytest.raises(tf.errors.InvalidArgumentError, match='computed'):
    draw(1.0)
