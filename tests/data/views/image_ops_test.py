"""Tests of supcon.data.views.image_ops."""

import numpy as np
import pytest
import tensorflow as tf

from supcon.data.views import image_ops
from tests import golden

_VALUES = 'preprocessing.npz'
_CASES = 'preprocessing.json'


def _noise(*shape, seed=0):
  return np.random.RandomState(seed).randint(0, 256, shape).astype(np.uint8)


def _difference(actual, expected):
  """The largest difference, in float64: uint8 would wrap around."""
  assert tuple(actual.shape) == tuple(expected.shape)
  actual = np.asarray(tf.cast(actual, tf.float64))
  return np.abs(actual - np.asarray(expected, np.float64)).max()


def _sample(function, n, seed=17):
  """Stacks function(seed) over `n` seeds; one graph, not `n` eager calls."""
  dataset = tf.data.Dataset.range(n).map(
    lambda index: function(tf.stack([index, seed])), num_parallel_calls=2
  )
  return next(iter(dataset.batch(n))).numpy()


# ----------------------------------------------------------------- windows


def test_center_square_and_center_window_match_golden():
  for case in golden.json(_CASES)['center_crop_window']:
    shape = tf.constant([case['height'], case['width']])
    if 'crop_frac' in case:
      window = image_ops.center_square_window(shape, case['crop_frac'])
    else:
      window = image_ops.center_window(shape, [case['crop_dim']] * 2)
    top, left, _, height, width, _ = case['window']
    assert window.numpy().tolist() == [top, left, height, width], case


def test_center_window_gives_the_odd_pixel_to_top_and_left():
  # (7 - 4 + 1) // 2 = 2 rows above, 1 below; (9 - 4 + 1) // 2 = 3 and 2.
  window = image_ops.center_window(tf.constant([7, 9]), [4, 4])
  assert window.numpy().tolist() == [2, 3, 4, 4]


def test_center_fraction_window_has_equal_margins():
  # (64 - 64 * 8/9) / 2 = 3.56 -> 3 above and below; (33 - 29.33) / 2 -> 1.
  window = image_ops.center_fraction_window(tf.constant([64, 33]), 32 / 36)
  assert window.numpy().tolist() == [3, 1, 58, 31]


def test_center_windows_of_one_pixel_hold_it():
  one = tf.constant([1, 1])
  for window in (
    image_ops.whole_window(one),
    image_ops.center_square_window(one, 0.5),
    image_ops.center_fraction_window(one, 0.5),
  ):
    assert window.numpy().tolist() == [0, 0, 1, 1]


def _assert_same_share(count, golden_count, n, golden_n, what):
  """Two shares of counted events agree within 4 standard errors."""
  share = (count + golden_count) / (n + golden_n)
  error = np.sqrt(share * (1 - share) * (1 / n + 1 / golden_n))
  difference = abs(count / n - golden_count / golden_n)
  assert difference <= 4 * error, (what, count / n, golden_count / golden_n)


def _assert_same_mean(values, golden_mean, golden_n, what):
  """Two means agree within 4 standard errors; both samples spread alike."""
  error = np.std(values) * np.sqrt(1 / len(values) + 1 / golden_n)
  assert abs(np.mean(values) - golden_mean) <= 4 * error, (
    what,
    np.mean(values),
    golden_mean,
    error,
  )


def _crop_windows(shape, area_range, n):
  return _sample(
    lambda seed: image_ops.random_crop_window(
      tf.constant(shape), area_range, seed
    ),
    n,
  )


def test_random_crop_windows_match_golden_statistics():
  for case in golden.json(_CASES)['statistics']['crop_windows']:
    height, width = case['height'], case['width']
    n, golden_n = 4000, case['n']
    windows = _crop_windows((height, width), case['area_range'], n)
    tops, lefts, heights, widths = windows.T
    assert (tops >= 0).all() and (tops + heights <= height).all()
    assert (lefts >= 0).all() and (lefts + widths <= width).all()

    areas = heights * widths / (height * width)
    log_aspects = np.log(widths / heights)
    _assert_same_mean(areas, case['area_mean'], golden_n, 'area')
    _assert_same_mean(
      log_aspects, case['log_aspect_mean'], golden_n, 'log aspect'
    )
    _assert_same_mean(
      (tops + heights / 2) / height, case['mean_center_y'], golden_n, 'y'
    )
    _assert_same_mean(
      (lefts + widths / 2) / width, case['mean_center_x'], golden_n, 'x'
    )
    # Standard error of a standard deviation s: std((x - mean)^2) / (2 s).
    spread = (areas - areas.mean()) ** 2 / (2 * areas.std())
    _assert_same_mean(
      spread - spread.mean() + areas.std(),
      case['area_std'],
      golden_n,
      'std of area',
    )
    for name, values in (('area', areas), ('log_aspect', log_aspects)):
      bins = case[f'{name}_hist_bins']
      counts, _ = np.histogram(values, bins)
      for low, count, golden_count in zip(bins, counts, case[f'{name}_hist']):
        _assert_same_share(
          count, golden_count, n, golden_n, (name, 'from', low, case)
        )


def test_random_crop_window_reaches_the_whole_area_range():
  # Aspect ratios from 3/4 to 4/3 fit into a 32 x 32 image up to its whole area.
  windows = _crop_windows((32, 32), (0.2, 1.0), 2000)
  areas = windows[:, 2] * windows[:, 3] / 32**2
  assert 0.2 <= areas.min() < 0.25
  assert 0.9 < areas.max() <= 1


@pytest.mark.parametrize('shape', [(1, 1), (1, 500), (500, 1), (2, 3)])
def test_random_crop_window_where_nothing_fits(shape):
  windows = _crop_windows(shape, (0.9, 1.0), 20)
  assert (windows[:, 2:] >= 1).all()
  assert (windows[:, :2] + windows[:, 2:] <= shape).all()


def test_random_crop_window_is_the_central_square_where_none_fits():
  # All of an image of 300 x 500 has an aspect ratio of 1.67, above 1.33. The
  # central square begins (500 - 300) / 2 = 100 pixels from the left.
  for shape, expected in (
    ((300, 500), [0, 100, 300, 300]),
    ((500, 300), [100, 0, 300, 300]),
    ((40, 7), [17, 0, 7, 7]),
  ):
    windows = _crop_windows(shape, (1.0, 1.0), 20)
    assert windows.tolist() == [expected] * 20


def test_random_crop_windows_keep_the_published_aspect_ratios():
  # Windows of 1000 pixels and more: rounding moves a ratio by up to 0.002.
  windows = _crop_windows((3000, 3000), (0.2, 0.4), 2000)
  aspects = windows[:, 3] / windows[:, 2]
  assert 0.748 < aspects.min() < 0.76
  assert 1.31 < aspects.max() < 1.3325


# ------------------------------------------------------ decoding and geometry

_WINDOWS = [(3, 4, 10, 12), (0, 0, 20, 30), (19, 29, 1, 1)]


def _crops(encoded, decode_whole):
  return image_ops.decode_crops(
    encoded,
    lambda shape: [tf.constant(window) for window in _WINDOWS],
    decode_whole,
  )


@pytest.mark.parametrize('decode_whole', [True, False])
@pytest.mark.parametrize('kind', ['png', 'bmp', 'decoded'])
def test_decode_crops_of_lossless_images(kind, decode_whole):
  image = _noise(20, 30, 3)
  encoded = {
    'png': lambda: tf.io.encode_png(image),
    'bmp': lambda: tf.constant(_bmp(image)),
    'decoded': lambda: tf.constant(image),
  }[kind]()
  for cropped, (top, left, height, width) in zip(
    _crops(encoded, decode_whole), _WINDOWS
  ):
    expected = image[top : top + height, left : left + width]
    np.testing.assert_array_equal(cropped, expected)


def _bmp(image):
  """Bytes of an uncompressed 24-bit BMP: rows bottom up, blue first."""
  height, width, _ = image.shape
  padding = -width * 3 % 4
  rows = image[::-1, :, ::-1].reshape(height, -1)
  rows = np.pad(rows, ((0, 0), (0, padding)))
  header = np.array([54 + rows.size, 0, 54, 40, width, height], '<u4').tobytes()
  planes_and_bits = np.array([1, 24], '<u2').tobytes()
  rest = np.array([0, rows.size, 0, 0, 0, 0], '<u4').tobytes()
  return b'BM' + header + planes_and_bits + rest + rows.tobytes()


@pytest.mark.parametrize('decode_whole', [True, False])
@pytest.mark.parametrize('channels', [1, 2, 4])
def test_decode_crops_of_grey_and_transparent_png(channels, decode_whole):
  image = _noise(20, 30, channels)
  whole = _crops(tf.io.encode_png(image), decode_whole)[1]
  expected = image[..., :3] if channels == 4 else np.tile(image[..., :1], 3)
  np.testing.assert_array_equal(whole, expected)


def test_decode_crops_of_jpeg_matches_the_golden_decoder():
  values = golden.npz(_VALUES)
  names = [name[: -len('/bytes')] for name in values if name.endswith('/bytes')]
  for name in names:
    encoded = tf.constant(values[f'{name}/bytes'].tobytes())
    for decode_whole in (True, False):
      (image,) = image_ops.decode_crops(
        encoded, lambda shape: [image_ops.whole_window(shape)], decode_whole
      )
      np.testing.assert_array_equal(image, values[f'{name}/decoded'])


def test_jpeg_windows_are_the_same_inside_whether_cut_or_decoded_alone():
  rows, columns = np.mgrid[:80, :90]
  image = np.stack([2 * rows, 2 * columns, rows + columns], axis=-1)
  encoded = tf.io.encode_jpeg(image.astype(np.uint8))

  def windows(shape):
    assert shape.numpy().tolist() == [80, 90]
    return [tf.constant([13, 27, 40, 50]), tf.constant([0, 0, 80, 90])]

  cut = image_ops.decode_crops(encoded, windows, decode_whole=True)
  alone = image_ops.decode_crops(encoded, windows, decode_whole=False)
  np.testing.assert_array_equal(cut[1], alone[1])
  np.testing.assert_array_equal(cut[0][2:-2, 2:-2], alone[0][2:-2, 2:-2])


def test_grey_jpeg_has_three_equal_channels():
  encoded = tf.io.encode_jpeg(_noise(20, 30, 1))
  for decode_whole in (True, False):
    whole = _crops(encoded, decode_whole)[1].numpy()
    assert whole.shape == (20, 30, 3)
    np.testing.assert_array_equal(whole, np.tile(whole[..., :1], 3))


def test_resize_matches_golden():
  values = golden.npz(_VALUES)
  for case in golden.json(_CASES)['eval_crop']:
    if case['method'] == 'resize_only':
      size = [case['image_size']] * 2
      resized = image_ops.resize(tf.constant(values[case['image']]), size)
      assert resized.dtype == tf.uint8
      assert _difference(resized, values[case['key']]) <= 1, case


def test_resize_interpolates_from_the_top_left_corner_and_truncates():
  # Twice as wide: columns at 0, 1/2, 1, 3/2 -> 10, 15, 21 and, past the last
  # column, 21; (10 + 21) / 2 = 15.5 is truncated.
  image = np.tile(np.uint8([10, 21])[np.newaxis, :, np.newaxis], (1, 1, 3))
  resized = image_ops.resize(tf.constant(image), [1, 4])
  assert resized[0, :, 0].numpy().tolist() == [10, 15, 21, 21]
  exact = image_ops.interpolate(tf.constant(image), [1, 4])
  assert exact.dtype == tf.float32
  assert exact[0, :, 0].numpy().tolist() == [10, 15.5, 21, 21]


def test_shape_with_shorter_side_matches_golden():
  for case in golden.json(_CASES)['resize_to_min_dim']:
    shape = image_ops.shape_with_shorter_side(
      tf.constant([case['height'], case['width']]), case['target_min_dim']
    )
    assert shape.numpy().tolist() == case['result'][:2], case


def test_flip_mirrors_columns():
  image = _noise(4, 5, 3)
  np.testing.assert_array_equal(image_ops.flip(image), image[:, ::-1])


# ---------------------------------------------------------------------- blur


def _reference_blur(image, sigma):
  """Weighted sums of shifted, zero-padded copies, in float64."""
  side = len(image)
  radius = side // 10 // 2
  offsets = np.arange(-radius, radius + 1)
  weights = np.exp(-(offsets**2) / (2.0 * sigma**2))
  weights /= weights.sum()
  for axis in (0, 1):
    padding = [(0, 0)] * 3
    padding[axis] = (radius, radius)
    padded = np.pad(image.astype(np.float64), padding)
    image = sum(
      weight * np.take(padded, np.arange(side) + shift, axis)
      for shift, weight in enumerate(weights)
    )
  return image


def _floats(*shape, seed=0):
  return np.random.RandomState(seed).uniform(-1, 1, shape).astype(np.float32)


@pytest.mark.parametrize('side', [1, 9, 19, 20, 32, 40, 59, 60, 96])
def test_blur_equals_the_sum_of_shifted_images(side):
  images = _floats(3, side, side, 2)
  sigmas = [0.1, 0.9, 2.0]
  blurred = image_ops.gaussian_blur(tf.constant(images), tf.constant(sigmas))
  assert blurred.shape == images.shape
  for actual, image, sigma in zip(blurred, images, sigmas):
    assert _difference(actual, _reference_blur(image, sigma)) <= 1e-6


def test_blur_of_an_impulse_by_hand():
  # Side 20: one pixel to either side, weights w, 1 - 2 w, w with
  # w = e^(-1/2) / (1 + 2 e^(-1/2)) = 0.2741 at sigma 1.
  image = np.zeros([1, 20, 20, 1], np.float32)
  image[0, 0, 7, 0] = 1
  blurred = image_ops.gaussian_blur(tf.constant(image), tf.constant([1.0]))
  blurred = blurred[0, :, :, 0].numpy()
  row = [0.2741, 0.4519, 0.2741]
  np.testing.assert_allclose(blurred[0, 6:9], 0.4519 * np.array(row), atol=1e-4)
  np.testing.assert_allclose(blurred[1, 6:9], 0.2741 * np.array(row), atol=1e-4)
  # What falls beyond the border is lost.
  np.testing.assert_allclose(blurred.sum(), 0.4519 + 0.2741, atol=1e-4)


def test_blur_matches_golden():
  # The golden kernels belong to sides of up to 224 but were applied to images
  # and impulses of other sizes, so they are applied here around the centre of
  # a large enough black image of the right side.
  values = golden.npz(_VALUES)
  for case in golden.json(_CASES)['blur']:
    side, key = case['side_length'], case['key']
    sigma = tf.constant([case['sigma']], tf.float32)
    impulse = np.zeros([1, side, side, 1], np.float32)
    impulse[0, side // 2, side // 2] = 1
    blurred = image_ops.gaussian_blur(tf.constant(impulse), sigma)[0, :, :, 0]
    response = values[f'{key}/impulse_response']
    reach = min(len(response) // 2, side // 2 - 1)
    around = slice(side // 2 - reach, side // 2 + reach + 1)
    middle = slice(len(response) // 2 - reach, len(response) // 2 + reach + 1)
    assert np.count_nonzero(response[len(response) // 2]) <= case['kernel_size']
    assert (
      _difference(blurred[around, around], response[middle, middle]) <= 1e-5
    ), case
    image = values[f'{key}/image']
    if len(image) <= side:
      # Zeros around an image are its zero padding.
      start = (side - len(image)) // 2
      inside = slice(start, start + len(image))
      padded = np.zeros([1, side, side, 3], np.float32)
      padded[0, inside, inside] = image
      blurred = image_ops.gaussian_blur(tf.constant(padded), sigma)[0]
      expected = values[f'{key}/image_out']
      assert _difference(blurred[inside, inside], expected) <= 1e-5, case


def test_blur_of_a_golden_batch():
  # All were blurred with one sigma, which is not recorded: some sigma in the
  # range gives the golden images. It is looked for ever more closely.
  values = golden.npz(_VALUES)
  images = values['blur_batch/images']
  expected = values['blur_batch/probability_one']

  def errors(sigmas):
    blurred = [
      image_ops.gaussian_blur(
        tf.constant(images), tf.fill([len(images)], np.float32(sigma))
      )
      for sigma in sigmas
    ]
    return [np.abs(each.numpy() - expected).max() for each in blurred]

  low, high = 0.1, 2.0
  for _ in range(6):
    sigmas = np.linspace(low, high, 21)
    found = errors(sigmas)
    best = int(np.argmin(found))
    low, high = sigmas[max(best - 1, 0)], sigmas[min(best + 1, 20)]
  assert min(found) <= 1e-5
  np.testing.assert_array_equal(
    image_ops.gaussian_blur(tf.constant(images), tf.zeros([len(images)])),
    values['blur_batch/probability_zero'],
  )


@pytest.mark.parametrize('dtype', [tf.float32, tf.bfloat16])
@pytest.mark.parametrize('jit_compile', [False, True])
def test_blur_leaves_images_with_sigma_zero_exactly(jit_compile, dtype):
  blur = tf.function(image_ops.gaussian_blur, jit_compile=jit_compile)
  images = tf.cast(_floats(3, 40, 40, 3), dtype)
  blurred = blur(images, tf.constant([0.0, 1.0, 0.0]))
  assert blurred.dtype == dtype
  for index in (0, 2):
    assert _difference(blurred[index], tf.cast(images[index], tf.float64)) == 0
  expected = _reference_blur(tf.cast(images[1], tf.float32).numpy(), 1.0)
  # bfloat16 rounds values up to 1 by at most 2^-9.
  tolerance = 1e-6 if dtype == tf.float32 else 2**-9 + 1e-6
  assert _difference(blurred[1], expected) <= tolerance


@pytest.mark.parametrize('side', [9, 32])
def test_blur_of_a_batch_of_unknown_size(side):
  blur = tf.function(image_ops.gaussian_blur).get_concrete_function(
    tf.TensorSpec([None, side, side, 3], tf.float32),
    tf.TensorSpec([None], tf.float32),
  )
  assert blur.structured_outputs.shape.as_list() == [None, side, side, 3]


def test_blur_needs_square_images():
  with pytest.raises(ValueError, match=r'\[batch, side, side, channels\]'):
    image_ops.gaussian_blur(tf.zeros([1, 20, 30, 3]), tf.zeros([1]))


def test_random_blur_sigma():
  draws = tf.random.stateless_uniform([4000, 2], [17, 0])
  sigmas = image_ops.random_blur_sigma(draws, 0.3).numpy()
  assert sigmas.shape == (4000,) and sigmas.dtype == np.float32
  blurred = sigmas[sigmas > 0]
  # sqrt(0.3 * 0.7 / 4000) = 0.0072
  assert abs(len(blurred) / 4000 - 0.3) <= 4 * 0.0072
  assert 0.1 <= blurred.min() <= 0.12 and 1.98 <= blurred.max() <= 2.0
  # Uniform in 0.1..2: mean 1.05, standard deviation 1.9 / sqrt(12) = 0.548.
  assert abs(blurred.mean() - 1.05) <= 4 * 0.548 / np.sqrt(len(blurred))


def test_random_blur_sigma_by_hand():
  # Each view has its probability; 0.1 + 1.9 * 0.5 = 1.05. Draws are below 1.
  largest = np.nextafter(np.float32(1), np.float32(0))
  sigmas = image_ops.random_blur_sigma(
    tf.constant([[[0.0, 0.5], [0.29, 0.0], [0.3, 0.5], [largest, 0.5]]]),
    np.float32([0.0, 0.3, 0.3, 1.0]),
  )
  np.testing.assert_allclose(sigmas, [[0, 0.1, 0, 1.05]], rtol=1e-6)


# ---------------------------------------------------------------------- warp


def _constant_moves(down, right):
  moves = np.float32([down, right])[:, np.newaxis, np.newaxis]
  return tf.constant(np.tile(moves, [1, 4, 4]))


def test_warp_by_nothing_changes_nothing():
  for shape in ((1, 1), (2, 9), (17, 30)):
    image = _noise(*shape, 3)
    warped = image_ops.warp(tf.constant(image), _constant_moves(0, 0))
    assert _difference(warped, image) == 0


def test_warp_by_whole_pixels_moves_and_repeats_the_border():
  image = _noise(10, 12, 3)
  warped = image_ops.warp(tf.constant(image), _constant_moves(2, -1))
  padded = np.pad(image, [[0, 2], [1, 0], [0, 0]], mode='edge')
  assert _difference(warped, padded[2:, :12]) == 0


def test_warp_interpolates():
  # 10 + 0.25 * (20 - 10) = 12.5, rounded up; the last has no pixel after it.
  image = np.uint8([10, 20, 40])[np.newaxis, :, np.newaxis].repeat(3, axis=2)
  warped = image_ops.warp(tf.constant(image), _constant_moves(0, 0.25))
  assert warped[0, :, 1].numpy().tolist() == [13, 25, 40]


def test_warp_matches_loops():
  height, width = 13, 22
  image = _noise(height, width, 3)
  random = np.random.RandomState(1)
  moves = random.uniform(-3, 3, [2, 3, 4]).astype(np.float32)

  def weights(position, last, num_points):
    """Of the points around a pixel: 3 t^2 - 2 t^3 between two of them."""
    place = position * (num_points - 1) / last
    before = min(int(place), num_points - 2)
    t = place - before
    after = 3 * t**2 - 2 * t**3
    found = np.zeros(num_points)
    found[before : before + 2] = [1 - after, after]
    return found

  expected = np.zeros([height, width, 3])
  for y in range(height):
    for x in range(width):
      down = weights(y, height - 1, 3)
      across = weights(x, width - 1, 4)
      row = np.clip(y + down @ moves[0] @ across, 0, height - 1)
      column = np.clip(x + down @ moves[1] @ across, 0, width - 1)
      for i in (int(row), int(row) + 1):
        for j in (int(column), int(column) + 1):
          share = (1 - abs(row - i)) * (1 - abs(column - j))
          if share > 0:
            expected[y, x] += share * image[i, j]
  warped = image_ops.warp(tf.constant(image), tf.constant(moves))
  assert _difference(warped, expected) <= 0.51


def test_random_warps_are_small_smooth_and_differ():
  # Each pixel holds its own row and column.
  side = 100
  rows, columns = np.mgrid[:side, :side]
  image = np.uint8(np.stack([rows, columns, 0 * rows], axis=-1))
  image = tf.constant(image)
  warped = _sample(lambda seed: image_ops.random_warp(image, seed), 200)
  moves = warped[..., :2].astype(int) - image[..., :2].numpy().astype(int)
  # 0.05 * 100 pixels, and half a grey level.
  assert 4 <= np.abs(moves).max() <= 5
  assert (np.abs(moves).max(axis=(1, 2, 3)) >= 2).all()
  assert np.abs(moves.mean(axis=(0, 1, 2))).max() < 0.5
  # Smooth, and pixels stay in their order.
  for axis, channel in ((1, 0), (2, 1)):
    steps = np.diff(warped[..., channel].astype(int), axis=axis)
    assert steps.min() >= 0 and steps.max() <= 2
  assert len({image.tobytes() for image in warped}) == 200


@pytest.mark.parametrize('shape', [(1, 1), (1, 40), (32, 2), (15, 31)])
def test_random_warp_of_any_size(shape):
  image = tf.constant(_noise(*shape, 3))
  warped = image_ops.random_warp(image, tf.constant([1, 2]))
  assert warped.shape == image.shape and warped.dtype == tf.uint8


# --------------------------------------------------------------- value ranges


def test_conversions_match_golden():
  values = golden.npz(_VALUES)
  levels = tf.constant(values['convert/uint8'])
  for dtype, key, tolerance in (
    (tf.float32, 'convert/uint8_to_float32', 1e-6),
    (tf.bfloat16, 'convert/uint8_to_bfloat16_as_float32', 0),
    (tf.float16, 'convert/uint8_to_float16', 0),
  ):
    converted = image_ops.to_model_range(levels, dtype)
    assert converted.dtype == dtype
    assert _difference(converted, values[key]) <= tolerance, key
  back = image_ops.to_grey_levels(tf.constant(values['convert/float32']))
  assert back.dtype == tf.uint8
  assert _difference(back, values['convert/float32_to_uint8']) <= 1


def test_to_grey_levels_saturates():
  # Blur may overshoot by a rounding error: (1 + 1.001) * 127.5 = 255.1.
  levels = image_ops.to_grey_levels(tf.constant([-1.001, -1.0, 0.0, 1.001]))
  assert levels.numpy().tolist() == [0, 0, 127, 255]


def test_whiten_by_hand():
  image = tf.constant([[[1.0, 0.5, -1.0], [0.0, 0.0, 0.0]]])
  whitened = image_ops.whiten(image, (0.0, 0.5, 1.0), (0.5, 1.0, 2.0))
  # (1 - 0) / 0.5, (0.5 - 0.5) / 1, (-1 - 1) / 2; then of a mid-grey pixel.
  np.testing.assert_array_equal(
    whitened, [[[2.0, 0.0, -1.0], [0.0, -0.5, -0.5]]]
  )
