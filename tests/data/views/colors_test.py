"""Tests of supcon.data.views.colors."""

import functools

import numpy as np
import pytest
import tensorflow as tf

from supcon.data.views import colors
from tests import golden

_VALUES = 'preprocessing.npz'
_CASES = 'preprocessing.json'

_EFFECTS = ['brightness', 'contrast', 'saturation', 'hue']
_NONE = [colors.NO_EFFECT] * 4

_compiled_or_not = pytest.mark.parametrize('jit_compile', [False, True])
_both_variants = pytest.mark.parametrize('use_pytorch', [False, True])


def _noise(*shape, seed=0):
  return np.random.RandomState(seed).randint(0, 256, shape).astype(np.uint8)


def _all_kinds_of_colors():
  """Greys, what has one or two equal or extreme channels, and noise."""
  greys = np.arange(256, dtype=np.uint8)[:, np.newaxis].repeat(3, axis=1)
  steps = np.uint8([0, 1, 2, 127, 128, 253, 254, 255])
  grid = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(-1, 3)
  pixels = np.concatenate([greys, grid, _noise(64 * 64 - 768, 3)])
  return pixels.reshape(64, 64, 3)


def _difference(actual, expected):
  """The largest difference, in float64: uint8 would wrap around."""
  assert tuple(actual.shape) == tuple(expected.shape)
  return np.abs(np.float64(actual) - np.float64(expected)).max()


@functools.cache
def _jitter_function(sides, use_pytorch, jit_compile):
  """Of one image: each is traced and compiled but once."""

  def jitter(image, values, order):
    planes = colors.to_planes(image)
    planes = colors.jitter(planes, colors.Jitter(values, order), use_pytorch)
    return colors.interleave(colors.to_levels(planes), sides)

  signature = [
    tf.TensorSpec([*sides, 3], tf.uint8),
    tf.TensorSpec([4], tf.float32),
    tf.TensorSpec([4], tf.int32),
  ]
  return tf.function(jitter, signature, jit_compile=jit_compile)


def _jitter(image, values, order, use_pytorch, jit_compile):
  function = _jitter_function(image.shape[:2], use_pytorch, jit_compile)
  return function(image, np.float32(values), np.int32(order)).numpy()


@functools.cache
def _jitter_each_function(sides, use_pytorch, jit_compile):
  """Of a batch whose size is unknown."""

  def jitter(images, values, orders):
    planes = colors.to_planes(images)
    changes = colors.Jitter(values, orders)
    planes = colors.jitter_each(planes, changes, use_pytorch)
    return colors.interleave(colors.to_levels(planes), sides)

  signature = [
    tf.TensorSpec([None, *sides, 3], tf.uint8),
    tf.TensorSpec([None, 4], tf.float32),
    tf.TensorSpec([None, 4], tf.int32),
  ]
  return tf.function(jitter, signature, jit_compile=jit_compile)


def _jitter_each(images, values, orders, use_pytorch, jit_compile):
  function = _jitter_each_function(images.shape[1:3], use_pytorch, jit_compile)
  return function(images, np.float32(values), np.int32(orders)).numpy()


# ------------------------------------------------------------------- planes


@_compiled_or_not
def test_planes_hold_one_channel_after_the_other(jit_compile):
  image = np.uint8([[[0, 51, 255], [1, 2, 3]], [[4, 5, 6], [7, 8, 9]]])
  to_planes = tf.function(colors.to_planes, jit_compile=jit_compile)
  expected = [[0, 1, 4, 7], [51, 2, 5, 8], [255, 3, 6, 9]]
  planes = to_planes(image)
  assert planes.dtype == tf.float32
  np.testing.assert_allclose(planes, np.array(expected) / 255, rtol=1e-6)
  # Of floats the fractions are dropped.
  floats = np.float32(image) + np.float32([0.0, 0.5, 0.996])
  np.testing.assert_array_equal(to_planes(floats), planes)


@_compiled_or_not
def test_every_level_comes_back_from_planes(jit_compile):
  def there_and_back(image):
    planes = colors.to_planes(image)
    return colors.interleave(colors.to_levels(planes), image.shape[-3:-1])

  function = tf.function(there_and_back, jit_compile=jit_compile)
  image = np.arange(256 * 3).reshape(16, 16, 3).astype(np.uint8)
  np.testing.assert_array_equal(function(image), image)
  np.testing.assert_array_equal(function(np.float32(image) + 0.999), image)
  images = _noise(2, 5, 4, 7, 3)
  np.testing.assert_array_equal(function(images), images)


def test_planes_of_a_batch_of_unknown_size():
  def shapes(images):
    planes = colors.to_planes(images)
    return planes, colors.interleave(planes, [4, 7])

  spec = tf.TensorSpec([None, 4, 7, 3], tf.uint8)
  planes, images = tf.function(shapes, [spec]).get_concrete_function().outputs
  assert planes.shape.as_list() == [None, 3, 28]
  assert images.shape.as_list() == [None, 4, 7, 3]


@_compiled_or_not
def test_planes_are_rounded_to_the_nearest_level(jit_compile):
  planes = np.float32([[100.49, 0], [100.51, 1e-4], [254.9999, 255]]) / 255
  to_levels = tf.function(colors.to_levels, jit_compile=jit_compile)
  levels = to_levels(planes)
  assert levels.dtype == tf.uint8
  assert levels.numpy().tolist() == [[100, 0], [101, 0], [255, 255]]


@_compiled_or_not
@pytest.mark.parametrize('dtype', [tf.uint8, tf.float32, tf.bfloat16])
def test_interleave_undoes_planes(dtype, jit_compile):
  images = tf.cast(_noise(2, 4, 7, 3), dtype)
  planes = tf.stack(
    [tf.reshape(images[..., channel], [2, 28]) for channel in range(3)], axis=1
  )
  interleave = tf.function(
    lambda planes: colors.interleave(planes, [4, 7]), jit_compile=jit_compile
  )
  assert interleave(planes).dtype == dtype
  np.testing.assert_array_equal(interleave(planes), images)
  np.testing.assert_array_equal(interleave(planes[0]), images[0])


# ------------------------------------------------------------------ effects


@_compiled_or_not
def test_single_effects_match_golden(jit_compile):
  values = golden.npz(_VALUES)
  image = values['jitter/image_uint8']
  compared = 0
  for key, expected in values.items():
    if not key.startswith('jitter/tf_'):
      continue
    name, value = key[len('jitter/tf_') :].split('_')
    strengths = [0.0, 1.0, 1.0, 0.0]
    strengths[_EFFECTS.index(name)] = float(value)
    changed = _jitter(image, strengths, range(4), False, jit_compile)
    assert changed.dtype == np.uint8
    # One grey level: these golden values are floats that were not rounded.
    assert _difference(changed, expected * 255) <= 1, key
    compared += 1
  assert compared


@_compiled_or_not
def test_effects_in_any_order_match_golden(jit_compile):
  values = golden.npz(_VALUES)
  for case in golden.json(_CASES)['jitter']:
    assert case['effect_names'] == _EFFECTS
    image, expected = values[case['image']], values[case['key']]
    strengths, order = case['values_by_effect'], case['order']
    variant = case['pytorch_impl']
    changed = _jitter(image, strengths, order, variant, jit_compile)
    assert _difference(changed, expected) <= 1, case
    (changed,) = _jitter_each(
      image[np.newaxis], [strengths], [order], variant, jit_compile
    )
    assert _difference(changed, expected) <= 1, case


_OPERATIONS_OF_TENSORFLOW = [
  lambda image, delta: tf.clip_by_value(image + delta, 0, 1),
  lambda image, factor: tf.clip_by_value(
    tf.image.adjust_contrast(image, factor), 0, 1
  ),
  tf.image.adjust_saturation,
  tf.image.adjust_hue,
]


@_compiled_or_not
@pytest.mark.parametrize(
  'effect, strengths',
  [
    ('brightness', (-0.8, -0.1, 0.3)),
    ('contrast', (0.0, 0.7, 1.8)),
    ('saturation', (0.0, 0.2, 0.9, 1.3, 3.4)),
    ('hue', (-0.5, -0.2, -0.03, 1 / 6, 0.11, 0.5)),
  ],
)
def test_effects_are_those_of_tensorflow(effect, strengths, jit_compile):
  image = _all_kinds_of_colors()
  index = _EFFECTS.index(effect)
  operation = _OPERATIONS_OF_TENSORFLOW[index]
  for strength in strengths:
    values = [0.0, 1.0, 1.0, 0.0]
    values[index] = strength
    expected = operation(np.float32(image) / 255, strength)
    expected = tf.image.convert_image_dtype(expected, tf.uint8).numpy()
    changed = _jitter(image, values, range(4), False, jit_compile)
    assert _difference(changed, expected) <= 1, strength
    assert (changed != expected).mean() < 0.02, strength


@_compiled_or_not
def test_blends_of_torchvision_by_hand(jit_compile):
  # Lumas: 0.2989 * 200 + 0.587 * 100 + 0.114 * 50 = 124.18; of the grey pixel
  # 0.9999 * 60 = 59.994; their mean is 92.087. Levels x are rounded by dropping
  # the fraction of x * 255.5 / 255, as published.
  image = np.uint8([[[200, 100, 50], [60, 60, 60]]])
  for values, expected in (
    # 1.5 * 200 is cut to 255.
    ([1.5, 1, 1, 0], [[255, 150, 75], [90, 90, 90]]),
    ([0.0, 1, 1, 0], [[0, 0, 0], [0, 0, 0]]),
    # 0.5 * (200, 100, 50, 60) + 0.5 * 92.087 = 146.04, 96.04, 71.04, 76.04.
    ([1, 0.5, 1, 0], [[146, 96, 71], [76, 76, 76]]),
    # 2 * (200, 100, 50) - 92.087 = 307.9, 107.9, 7.9; 2 * 60 - 92.087 = 27.9.
    ([1, 2.0, 1, 0], [[255, 108, 7], [27, 27, 27]]),
    # 0.5 * (200, 100, 50) + 0.5 * 124.18 = 162.09, 112.09, 87.09.
    ([1, 1, 0.5, 0], [[162, 112, 87], [60, 60, 60]]),
    # A third of a turn: red becomes green, green blue, blue red.
    ([1, 1, 1, 1 / 3], [[50, 200, 100], [60, 60, 60]]),
  ):
    changed = _jitter(image, values, range(4), True, jit_compile)
    assert changed[0].tolist() == expected, values


# ------------------------------------------------------------- color jitter


def _random_changes(n, use_pytorch, seed):
  """Strong ones, and every third of them none."""
  random = np.random.RandomState(seed)
  low, high = [-0.8, 0, 0, -0.5], [0.8, 2.4, 2.4, 0.5]
  if use_pytorch:
    low[0], high[0] = 0, 2.4
  values = random.uniform(low, high, [n, 4])
  orders = np.stack([random.permutation(4) for _ in range(n)])
  orders[::3] = _NONE
  return values, orders


@_both_variants
@_compiled_or_not
def test_jitter_of_a_batch_is_that_of_each_image(jit_compile, use_pytorch):
  n = 60
  images = np.stack(
    [
      image
      for seed in range(n // 3)
      for image in (
        _noise(16, 16, 3, seed=seed),
        _noise(16, 16, 3, seed=seed) // 16 + 90,  # Dull.
        _all_kinds_of_colors()[:16, seed : seed + 16],
      )
    ]
  )
  for seed in range(2):
    # Shifted by one: another kind of image stays as it is.
    images = np.roll(images, 1, axis=0)
    values, orders = _random_changes(n, use_pytorch, seed)
    together = _jitter_each(images, values, orders, use_pytorch, jit_compile)
    assert together.dtype == np.uint8
    one_by_one = np.stack(
      [
        _jitter(*each, use_pytorch, jit_compile)
        for each in zip(images, values, orders)
      ]
    )
    assert _difference(together, one_by_one) <= 1
    assert (together != one_by_one).mean() < 1e-3
    is_changed = (orders != _NONE).any(axis=1)
    for found in (together, one_by_one):
      np.testing.assert_array_equal(found[~is_changed], images[~is_changed])
      assert (found != images).any(axis=(1, 2, 3))[is_changed].all()


@_both_variants
def test_jitter_does_not_depend_on_the_compiler(use_pytorch):
  image = _all_kinds_of_colors()
  for values, order in zip(*_random_changes(12, use_pytorch, seed=3)):
    plain, compiled = [
      _jitter(image, values, order, use_pytorch, jit_compile)
      for jit_compile in (False, True)
    ]
    assert _difference(plain, compiled) <= 1
    assert (plain != compiled).mean() < 1e-3


@_compiled_or_not
def test_neutral_values_leave_every_level(jit_compile):
  image = _all_kinds_of_colors()
  for use_pytorch, values in ((False, [0, 1, 1, 0]), (True, [1, 1, 1, 0])):
    for order in ([0, 1, 2, 3], [3, 1, 0, 2]):
      changed = _jitter(image, values, order, use_pytorch, jit_compile)
      np.testing.assert_array_equal(changed, image)


def test_the_order_matters():
  # Brighter, then half the color: (255, 51, 51) doubled is (255, 102, 102), of
  # which the luma is 147.7. (255 + 147.7) / 2 = 201.4 and (102 + 147.7) / 2 =
  # 124.9. Half the color first: the luma is 111.97, (255 + 111.97) / 2 = 183.5
  # and (51 + 111.97) / 2 = 81.5; doubled, 255 and 163.
  image = np.uint8([[[255, 51, 51]]])
  values = [2.0, 1.0, 0.5, 0.0]
  brightness_first = _jitter(image, values, [0, 1, 2, 3], True, False)
  color_first = _jitter(image, values, [3, 2, 1, 0], True, False)
  assert brightness_first.tolist() == [[[201, 125, 125]]]
  assert color_first.tolist() == [[[255, 163, 163]]]


def _draw(n, *shape, seed=5):
  return tf.random.stateless_uniform([n, *shape, 6], [seed, 1])


@_compiled_or_not
@_both_variants
@pytest.mark.parametrize('strength', [0.5, 1.0, 3.0])
def test_each_value_is_drawn_from_its_range(strength, use_pytorch, jit_compile):
  n = 4000
  random_jitter = tf.function(
    functools.partial(
      colors.random_jitter,
      probability=0.75,
      strength=strength,
      use_pytorch=use_pytorch,
    ),
    jit_compile=jit_compile,
  )
  values, orders = [tensor.numpy() for tensor in random_jitter(_draw(n))]
  assert values.dtype == np.float32 and orders.dtype == np.int32
  span = 0.8 * strength
  factor = (max(1 - span, 0), 1 + span)
  hue = min(0.2 * strength, 0.5)
  ranges = [
    factor if use_pytorch else (-span, span),
    factor,
    factor,
    (-hue, hue),
  ]
  for column, (low, high) in zip(values.T, ranges):
    tolerance = 1e-6 * (high - low)
    assert low - tolerance <= column.min()
    assert column.max() <= high + tolerance
    # The mean of a uniform distribution, within 4 standard errors.
    error = (high - low) / np.sqrt(12 * n)
    assert abs(column.mean() - (low + high) / 2) <= 4 * error
    assert np.ptp(column) > 0.99 * (high - low)
  # sqrt(0.75 * 0.25 / 4000) = 0.0068
  is_changed = (orders != _NONE).any(axis=1)
  assert abs(is_changed.mean() - 0.75) <= 4 * 0.0068
  # Each of the 24 orders comes 0.75 * 4000 / 24 = 125 +- 11 times.
  assert (np.sort(orders[is_changed], axis=1) == range(4)).all()
  _, counts = np.unique(orders[is_changed], axis=0, return_counts=True)
  assert len(counts) == 24
  assert np.abs(counts - 125).max() <= 4 * 11
  # All is independent: the values, the first effect, and if there is one.
  correlations = np.corrcoef(values.T) - np.eye(4)
  assert np.abs(correlations).max() <= 4 / np.sqrt(n)
  for column in values.T:
    with_change = np.corrcoef(column, is_changed)[0, 1]
    assert abs(with_change) <= 4 / np.sqrt(n)
    with_first = np.corrcoef(column[is_changed], orders[is_changed, 0])[0, 1]
    assert abs(with_first) <= 4 / np.sqrt(is_changed.sum())


@_compiled_or_not
def test_probability_is_that_of_each_view(jit_compile):
  random_jitter = tf.function(
    lambda draws: colors.random_jitter(
      draws, np.float32([0.0, 0.8, 1.0]), 1.0, False
    ),
    jit_compile=jit_compile,
  )
  values, orders = random_jitter(_draw(1000, 3))
  assert values.shape == [1000, 3, 4] and orders.shape == [1000, 3, 4]
  never, often, always = (orders.numpy() >= 0).all(axis=-1).mean(axis=0)
  assert (never, always) == (0, 1)
  # sqrt(0.8 * 0.2 / 1000) = 0.0126
  assert abs(often - 0.8) <= 4 * 0.0126


@_compiled_or_not
def test_the_least_and_the_largest_draw(jit_compile):
  draws = np.zeros([2, 6], np.float32)
  draws[1, :5] = np.nextafter(np.float32(1), np.float32(0))
  random_jitter = tf.function(
    lambda draws: colors.random_jitter(draws, 1.0, 1.0, False),
    jit_compile=jit_compile,
  )
  values, orders = random_jitter(draws)
  expected = [[-0.8, 0.2, 0.2, -0.2], [0.8, 1.8, 1.8, 0.2]]
  np.testing.assert_allclose(values, expected, rtol=1e-6)
  assert orders.numpy().tolist() == [[0, 1, 2, 3], [3, 2, 1, 0]]


@_both_variants
def test_jitter_of_a_grey_image_changes_its_brightness(use_pytorch):
  # It has no hue and no saturation, and contrast is relative to its only level.
  n, level, strength = 1000, 100, 0.5
  images = np.full([n, 2, 2, 3], level, np.uint8)
  values, orders = colors.random_jitter(_draw(n), 1.0, strength, use_pytorch)
  jittered = _jitter_each(images, values, orders, use_pytorch, True)
  jittered = jittered.astype(int)
  assert (jittered == jittered[:, :1, :1, :1]).all()
  # 0.8 * 0.5 = 0.4: of this level, or of the largest.
  span = 0.4 * (level if use_pytorch else 255)
  low, high = max(level - span, 0), level + span
  assert low - 1 <= jittered.min() <= low + 3
  assert high - 3 <= jittered.max() <= high + 1


# ---------------------------------------------------------------- grayscale


def _grayscale(images, is_gray, jit_compile):
  def grayscale(images, is_gray):
    planes = colors.grayscale(colors.to_planes(images), is_gray)
    return colors.interleave(colors.to_levels(planes), images.shape[-3:-1])

  function = tf.function(grayscale, jit_compile=jit_compile)
  return function(tf.constant(images), tf.constant(is_gray)).numpy()


@_compiled_or_not
def test_grayscale_matches_golden(jit_compile):
  values = golden.npz(_VALUES)
  image, expected = values['jitter/image_uint8'], values['gray/out']
  gray = _grayscale(image, True, jit_compile)
  assert gray.dtype == np.uint8
  assert _difference(gray, expected) <= 1
  np.testing.assert_array_equal(_grayscale(image, False, jit_compile), image)
  batch = _grayscale(
    np.stack([image, image, image]), [False, True, False], jit_compile
  )
  np.testing.assert_array_equal(batch, [image, gray, image])


@_compiled_or_not
def test_luma_by_hand(jit_compile):
  # 0.2989 * 200 + 0.587 * 120 + 0.114 * 60 = 137.06. Of a pixel of one level x
  # 0.9999 x, of which the published rounding makes x again.
  image = np.uint8([[[200, 120, 60], [0, 0, 0], [128, 128, 128], [255] * 3]])
  gray = _grayscale(image, True, jit_compile)[0]
  assert gray.tolist() == [[137] * 3, [0] * 3, [128] * 3, [255] * 3]
  # 0.2989 * 217 * 255.5 / 255 = 64.99, where a weight of 0.299 makes 65.01.
  gray = _grayscale(np.uint8([[[217, 0, 0]]]), True, jit_compile)[0]
  assert gray.tolist() == [[64] * 3]


@_compiled_or_not
def test_levels_are_rounded_between_jitter_and_grayscale(jit_compile):
  # As the published pipeline does: half the color of (3, 0, 0), luma 0.9, is
  # (1.95, 0.45, 0.45), rounded (1.95, 0.45, 0.45) * 255.5 / 255 -> (1, 0, 0),
  # of which the luma is 0.3 -> 0. Unrounded it would be 0.9 * 255.5 / 255 -> 0;
  # at (7, 0, 0): luma 2.09, (4.55, 1.05, 1.05) -> (4, 1, 1), luma 1.9 -> 1.
  # Unrounded 2.09 -> 2.
  def change(image):
    planes = colors.to_planes(image)
    jitter = colors.Jitter(
      tf.constant([1.0, 1.0, 0.5, 0.0]), tf.constant([0, 1, 2, 3])
    )
    planes = colors.jitter(planes, jitter, use_pytorch=True)
    planes = colors.grayscale(planes, tf.constant(True))
    return colors.interleave(colors.to_levels(planes), image.shape[:2])

  function = tf.function(change, jit_compile=jit_compile)
  changed = function(np.uint8([[[3, 0, 0], [7, 0, 0]]]))
  assert changed[0].numpy().tolist() == [[0] * 3, [1] * 3]
