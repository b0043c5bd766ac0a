"""Tests of supcon.data.views.preprocessing."""

import ast
import dataclasses
import functools
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from supcon.config import enums
from supcon.config import hparams
from supcon.data import inputs
from supcon.data.views import colors
from supcon.data.views import crops
from supcon.data.views import image_ops
from supcon.data.views import policies
from supcon.data.views import preprocessing
from tests import golden

tf1 = tf.compat.v1

_VALUES = 'preprocessing.npz'
_CASES = 'preprocessing.json'
_MEAN, _STD = (-0.0172, -0.0356, -0.107), (0.4046, 0.3988, 0.402)

_POLICY = policies.IMAGENET_POLICY

_SIMCLR = enums.AugmentationType.SIMCLR
_IDENTITY = enums.AugmentationType.IDENTITY
_AUTO = enums.AugmentationType.AUTOAUGMENT
_RAND = enums.AugmentationType.RANDAUGMENT
_STACKED = enums.AugmentationType.STACKED_RANDAUGMENT
_ALL = tuple(enums.AugmentationType)


def _params(**changes):
  defaults = dict(
    augmentation_type=_SIMCLR, augmentation_magnitude=1.0, image_size=32
  )
  return hparams.Preprocessing(**{**defaults, **changes})


def _image(height, width, seed=0):
  """A smooth image: neighboring pixels are alike, channels are not."""
  random = np.random.RandomState(seed)
  rows, columns = np.mgrid[:height, :width]
  down, across = random.uniform(0.05, 0.3, [2, 1, 1, 3])
  rows, columns = rows[..., np.newaxis], columns[..., np.newaxis]
  waves = np.sin(rows * down + columns * across)
  return ((waves + 1) * 127).astype(np.uint8)


_ENCODED = tf.TensorSpec([], tf.string)
_DECODED = tf.TensorSpec([None, None, 3], tf.uint8)


@functools.cache
def _function(make, image_spec, seed_dtype, params, mean, std, dtype):
  """What the pipeline does to one example, traced and compiled but once."""

  def function(encoded, seed):
    features = make(encoded, seed, params, True, _POLICY)
    batch = {name: value[tf.newaxis] for name, value in features.items()}
    batch = preprocessing.finish_on_host(batch, params, mean, std, dtype)
    return {name: value[0] for name, value in batch.items()}

  signature = [image_spec, tf.TensorSpec([2], seed_dtype)]
  return tf.function(function, signature, autograph=False)


def _views(
  image,
  seed,
  params,
  make=preprocessing.train_views,
  dtype=tf.float32,
  mean=None,
  std=None,
):
  """The views of one image or of its bytes: dtype [V, ...], float32 [V]."""
  seed = tf.convert_to_tensor(seed)
  spec = _ENCODED if isinstance(image, bytes) else _DECODED
  function = _function(make, spec, seed.dtype, params, mean, std, dtype)
  features = function(image, seed)
  assert features.keys() == {'images', 'blur_sigmas'}
  return features['images'], features['blur_sigmas']


def _unfinished(
  image, n, params, make=preprocessing.train_views, flips=True, policy=_POLICY
):
  """A data set of the features of one image under n seeds."""
  image = tf.constant(image)
  return tf.data.Dataset.range(n).map(
    lambda index: make(image, tf.stack([index, 5]), params, flips, policy),
    num_parallel_calls=2,
  )


def _draw(image, n, params, flips=True, policy=_POLICY):
  """The views of one image under n seeds: float32 [n, V, ...], [n, V]."""
  batches = inputs.in_batches(
    _unfinished(image, n, params, flips=flips, policy=policy),
    n,
    functools.partial(
      preprocessing.finish_on_host,
      settings=params,
      mean=None,
      std=None,
      dtype=tf.float32,
    ),
  )
  features = next(iter(batches))
  return features['images'].numpy(), features['blur_sigmas'].numpy()


def _levels(images):
  """Back to 0..255, exactly: images of the pipeline lie on grey levels."""
  return np.round((np.asarray(images) + 1) * 127.5).astype(int)


def _differ(images, others):
  """For each example, whether its views are other ones."""
  # By levels: the last bit may depend on what else is compiled.
  return (_levels(images) != _levels(others)).any(axis=(1, 2, 3, 4))


# ---------------------------------------------------------- evaluation crops


def _golden_image(values, case):
  image = values[case['image']]
  return image.tobytes() if case.get('encoded') else image


def _eval_params(case, **changes):
  return _params(
    eval_crop_method=enums.EvalCropMethod[case['method']],
    image_size=case['image_size'],
    crop_padding=case['crop_padding'],
    **changes,
  )


def _evaluate(image, params):
  """View 0, uint8."""
  features = preprocessing.eval_views(
    tf.constant(image), tf.constant([0, 0]), params, True, _POLICY
  )
  return features['images'][0].numpy()


def _golden_eval_crops():
  return [
    case
    for case in golden.json(_CASES)['eval_crop']
    if case['method'] in enums.EvalCropMethod.__members__ and 'image' in case
  ]


@pytest.mark.parametrize('num_views', [1, 2])
def test_eval_crops_match_golden(num_views):
  values = golden.npz(_VALUES)
  for case in _golden_eval_crops():
    if case['error'] or (num_views > 1 and not case.get('encoded')):
      continue  # Views share nothing but the decoding.
    levels = _evaluate(
      _golden_image(values, case), _eval_params(case, num_views=num_views)
    )
    expected = values[case['key']].astype(int)
    assert np.abs(levels - expected).max() <= 1, case


def test_eval_crops_where_the_published_ones_fail():
  """Deviation: truncation left 15 of 16 rows, and there was an exception."""
  values = golden.npz(_VALUES)
  failed = [case for case in _golden_eval_crops() if case['error']]
  for case in failed:
    image = _golden_image(values, case)
    levels = _evaluate(image, _eval_params(case, num_views=1))
    side = case['image_size']
    height, width = image.shape[:2]
    assert case['method'] == 'RESIZE_THEN_CROP' and case['crop_padding'] == 0
    scale = side / min(height, width)
    shape = [
      max(int(round(length * scale, 6)), side) for length in (height, width)
    ]
    resized = image_ops.resize(tf.constant(image), shape).numpy()
    top, left = [(length - side + 1) // 2 for length in shape]
    expected = resized[top : top + side, left : left + side].astype(int)
    assert np.abs(levels - expected).max() <= 1, case


def test_resize_then_crop_of_47_x_90_to_16():
  # 47 * float32(16 / 47) = 15.999999; 90 * 16 / 47 = 30.6 -> 30, and the crop
  # begins (30 - 16 + 1) // 2 = 7 columns in.
  image = _image(47, 90)
  case = {'method': 'RESIZE_THEN_CROP', 'image_size': 16, 'crop_padding': 0}
  levels = _evaluate(image, _eval_params(case, num_views=1))
  resized = image_ops.resize(tf.constant(image), [16, 30]).numpy()
  np.testing.assert_array_equal(levels, resized[:, 7:23])


@pytest.mark.parametrize('method', ['RESIZE_THEN_CROP', 'CROP_THEN_RESIZE'])
@pytest.mark.parametrize('padding', [0, 5, 32])
def test_eval_crops_of_every_size(method, padding):
  case = {'method': method, 'image_size': 7, 'crop_padding': padding}
  params = _eval_params(case, num_views=1)
  shapes = [(side, other) for side in range(1, 60, 2) for other in (side, 60)]
  image = tf.constant(_image(60, 60))
  dataset = tf.data.Dataset.from_tensor_slices(shapes).map(
    lambda shape: preprocessing.eval_views(
      image[: shape[0], : shape[1]],
      tf.constant([0, 0]),
      params,
      True,
      _POLICY,
    )['images']
  )
  assert len(list(dataset)) == len(shapes)


def _resized_whole(image, side, padding):
  """RESIZE_THEN_CROP, without any regard for memory."""
  shape = image_ops.shape_with_shorter_side(
    tf.constant(image.shape[:2]), side + padding
  )
  window = image_ops.center_window(shape, [side, side])
  return image_ops.crop(image_ops.resize(tf.constant(image), shape), window)


@pytest.mark.parametrize(
  'shape, tolerance',
  [
    # Up to 16 times as long as wide, nothing is cut off.
    *[((height, width), 0) for height, width in ((5, 80), (80, 5), (31, 496))],
    # Of 5 x 201, (201 - 80 + 1) // 2 = 61 columns on either side; scaled by
    # 10 / 5, each begins at a whole pixel of the result.
    *[((height, width), 1) for height, width in ((5, 81), (5, 201), (302, 5))],
    *[((height, width), 1) for height, width in ((1, 3000), (3001, 1))],
  ],
)
def test_thin_images_are_cropped_where_whole_ones_would_be(shape, tolerance):
  image = _image(*shape)
  case = {'method': 'RESIZE_THEN_CROP', 'image_size': 8, 'crop_padding': 2}
  levels = _evaluate(image, _eval_params(case, num_views=1))
  expected = _resized_whole(image, 8, 2).numpy().astype(int)
  assert np.abs(levels - expected).max() <= tolerance


@pytest.mark.parametrize('shape', [(1, 900000), (450000, 2)])
@pytest.mark.parametrize(
  'method', ['RESIZE_THEN_CROP', 'CROP_THEN_RESIZE', 'CROP_THEN_DISTORT', None]
)
def test_thin_images_take_little_memory(method, shape):
  """No tensor is much larger than the image itself, and the crop.

  Resized as a whole, the first would take 36 x 36 x 900000 x 12 bytes.
  """
  case = {'image_size': 32, 'crop_padding': 4}
  params = _eval_params({**case, 'method': method or 'RESIZE_THEN_CROP'})
  make = preprocessing.eval_views if method else preprocessing.train_views
  png = tf.io.encode_png(np.zeros([*shape, 3], np.uint8)).numpy()
  with tf.Graph().as_default(), tf1.Session() as session:
    encoded = tf1.placeholder(tf.string, [])
    features = make(encoded, tf.constant([0, 0]), params, True, _POLICY)
    trace = tf1.RunMetadata()
    session.run(
      features,
      {encoded: png},
      tf1.RunOptions(trace_level=tf1.RunOptions.FULL_TRACE),
      trace,
    )
  sizes = [
    output.tensor_description.allocation_description.requested_bytes
    for device in trace.step_stats.dev_stats
    for node in device.node_stats
    for output in node.output
  ]
  # The decoded image is there, so the trace is of the right graph.
  assert 2700000 <= max(sizes) <= 2700000 + 16 * 36 * 36 * 12


def _example(image, seed, params, make=preprocessing.train_views):
  """The features of one example, as NumPy arrays."""
  features = make(tf.constant(image), tf.constant(seed), params, True, _POLICY)
  return {name: value.numpy() for name, value in features.items()}


def test_eval_view_ignores_seed_and_number_of_views():
  encoded = tf.io.encode_jpeg(_image(90, 70)).numpy()
  for method in ('RESIZE_THEN_CROP', 'CROP_THEN_RESIZE', 'CROP_THEN_DISTORT'):
    case = {'method': method, 'image_size': 32, 'crop_padding': 8}
    one, two, three = [
      _example(
        encoded,
        seed,
        _eval_params(case, num_views=num_views, blur_probability=1.0),
        preprocessing.eval_views,
      )
      for seed, num_views in (([0, 1], 1), ([0, 1], 2), ([2, 3], 3))
    ]
    for features in (one, two, three):
      np.testing.assert_array_equal(features['images'][0], one['images'][0])
      assert features['blur_sigmas'][0] == 0
      assert (features['blur_sigmas'][1:] > 0).all()
    assert (two['images'][1] != three['images'][1]).any()


@pytest.mark.parametrize('kind', _ALL)
def test_eval_view_is_not_augmented(kind):
  image = _image(60, 50)
  params = _params(
    augmentation_type=kind,
    warp_probability=1.0,
    blur_probability=1.0,
    num_views=1,
  )
  plain = _evaluate(image, _params(augmentation_type=_IDENTITY))
  for seed in ([0, 1], [2, 3]):
    features = _example(image, seed, params, preprocessing.eval_views)
    np.testing.assert_array_equal(features['images'][0], plain)
    assert features['blur_sigmas'][0] == 0


@pytest.mark.parametrize('kind', [_SIMCLR, _STACKED])
def test_further_views_in_evaluation_are_training_views(kind):
  image, seed = _image(40, 50), [3, 4]
  params = _params(augmentation_type=kind, num_views=3)
  trained = _example(image, seed, params)
  evaluated = _example(image, seed, params, preprocessing.eval_views)
  assert trained.keys() == evaluated.keys()
  for name, values in trained.items():
    np.testing.assert_array_equal(evaluated[name][1:], values[1:], name)


def test_identity_crop_keeps_pixels_and_refuses_other_sizes():
  case = {'method': 'IDENTITY', 'image_size': 32, 'crop_padding': 4}
  params = _eval_params(case, num_views=1)
  image = _image(32, 32)
  np.testing.assert_array_equal(_evaluate(image, params), image)
  with pytest.raises(tf.errors.InvalidArgumentError):
    _evaluate(tf.io.encode_png(_image(32, 33)).numpy(), params)


def test_what_is_random_shares_no_seeds(monkeypatch):
  seeds = []

  def record(kind):
    def leave_alone(image, seed, *_):
      seeds.append((kind, *seed.numpy().tolist()))
      return image

    return leave_alone

  monkeypatch.setattr(image_ops, 'random_warp', record('warp'))
  monkeypatch.setattr(policies, 'rand_augment', record('policy'))
  window = image_ops.random_crop_window

  def random_crop_window(shape, area_range, seed):
    seeds.append(('window', *seed.numpy().tolist()))
    return window(shape, area_range, seed)

  monkeypatch.setattr(image_ops, 'random_crop_window', random_crop_window)
  _example(
    _image(40, 50),
    [3, 4],
    _params(
      augmentation_type=enums.AugmentationType.STACKED_RANDAUGMENT,
      warp_probability=1.0,
      num_views=2,
    ),
  )
  kinds = [kind for kind, *_ in seeds]
  assert sorted(kinds) == ['policy'] * 2 + ['warp'] * 2 + ['window'] * 2
  assert len({tuple(seed) for _, *seed in seeds}) == 6


# -------------------------------------------------- value range and whitening


def _whiten_in_a_dataset(image, case, **changes):
  """Finishes an image in tf.data, where the pipeline runs.

  Elsewhere a graph optimizer makes a division by a constant a product with its
  rounded inverse, which is another result in bfloat16.
  """
  is_whitened = case['apply_whitening']
  colors = (case['mean'], case['std']) if is_whitened else (None, None)
  params = _params(
    eval_crop_method=enums.EvalCropMethod.IDENTITY,
    image_size=image.shape[0],
    num_views=1,
    **changes,
  )
  features = _example(image, [0, 0], params, preprocessing.eval_views)
  batches = tf.data.Dataset.from_tensors(features).batch(1, True)
  batches = batches.map(
    lambda features: preprocessing.finish_on_host(
      features, params, *colors, tf.as_dtype(case['dtype'])
    )
  )
  return next(iter(batches))['images'][0, 0]


@pytest.mark.parametrize(
  'kind, is_compiled', [(_IDENTITY, True), (_SIMCLR, False)]
)
def test_whitening_matches_golden(kind, is_compiled):
  values = golden.npz(_VALUES)
  for case in golden.json(_CASES)['whitening']:
    images = _whiten_in_a_dataset(
      values[case['image']],
      case,
      augmentation_type=kind,
      compile_augmentation=is_compiled,
    )
    assert images.dtype == tf.as_dtype(case['dtype'])
    difference = np.abs(tf.cast(images, tf.float32) - values[case['key']])
    assert difference.max() <= 1e-5, case


@pytest.mark.parametrize('changes_colors', [False, True])
def test_every_level_becomes_exactly_the_published_float(changes_colors):
  # XLA would multiply by 1 / 127.5, which is inexact: 255 became 1.0000001.
  levels = np.arange(256, dtype=np.uint8)
  features = {
    'images': np.repeat(levels, 3).reshape(1, 1, 16, 16, 3),
    'blur_sigmas': np.zeros([1, 1], np.float32),
  }
  if changes_colors:
    features['is_gray'] = np.zeros([1, 1], bool)
  params = _params(image_size=16)
  dataset = tf.data.Dataset.from_tensors(features).map(
    lambda features: preprocessing.finish_on_host(
      features, params, None, None, tf.float32
    )
  )
  images = next(iter(dataset))['images'].numpy()
  expected = np.float32(levels) / np.float32(127.5) - np.float32(1)
  np.testing.assert_array_equal(images.reshape(256, 3)[:, 0], expected)


def test_every_view_is_whitened():
  image = _image(40, 50)
  plain, _ = _views(image, [1, 2], _params())
  whitened, _ = _views(image, [1, 2], _params(), mean=_MEAN, std=_STD)
  expected = (plain - np.float32(_MEAN)) / np.float32(_STD)
  np.testing.assert_allclose(whitened, expected, atol=1e-5)


# ------------------------------------------------------------ training views


def _golden_options(options):
  """Hyper-parameters from strings such as 'AugmentationType.SIMCLR'."""
  parsed = {}
  for name, value in options.items():
    if name == 'augmentation_type':
      parsed[name] = enums.AugmentationType[value.split('.')[-1]]
    else:
      parsed[name] = ast.literal_eval(value)
  return parsed


def _statistics(images, bins):
  """name -> per-image terms [n, ...] of which the statistic is the mean."""
  pixels = images.reshape(len(images), -1, 3).astype(np.float64)
  image_means = pixels.mean(axis=1)
  mean = image_means.mean(axis=0)
  std = pixels.std(axis=(0, 1))
  # A standard deviation s, linearized: the mean of s + (x^2 - s^2) / (2 s).
  squares = ((pixels - mean) ** 2).mean(axis=1)
  mean_squares = (image_means - mean) ** 2
  std_of_means = image_means.std(axis=0)
  chroma = np.ptp(pixels, axis=2).max(axis=1)
  return {
    'channel_mean': image_means,
    'channel_std': std + (squares - std**2) / (2 * std),
    'std_of_image_means': std_of_means
    + (mean_squares - std_of_means**2) / (2 * std_of_means),
    'gray_fraction': (chroma < 1e-6).astype(np.float64),
    'mean_abs_horizontal_gradient': np.abs(np.diff(images, axis=2)).mean(
      axis=(1, 2, 3)
    ),
    'value_hist': np.stack(
      [np.histogram(image, bins)[0] / image.size for image in images]
    ),
  }


def _rounded_as_published(images):
  """Levels x as 2 x / 255 - 1: some of them are borders of the histograms.

  Compiled, the last bit may be another one.
  """
  levels = tf.constant(_levels(images).astype(np.uint8))
  rounded = image_ops.to_model_range(levels, tf.float32).numpy()
  assert np.abs(images - rounded).max() <= 1e-6
  return rounded


def test_training_views_match_golden_statistics():
  image = golden.npz('preprocessing_stats_image.npz')['image']
  compared = 0
  for case in golden.json(_CASES)['statistics']['train_augmentation']:
    options = _golden_options(case['options'])
    if options.get('warp_probability'):
      continue
    if not options.get('defer_blurring', True):
      # Deviation: these were blurred with the kernel of 224 pixels.
      continue
    images, _ = _draw(image, 2000, _params(num_views=1, **options))
    images = _rounded_as_published(images[:, 0])
    assert images.min() >= case['min'] - 1e-6
    assert images.max() <= case['max'] + 1e-6
    statistics = _statistics(images, case['value_hist_bins'])
    for name, terms in statistics.items():
      actual, expected = terms.mean(axis=0), np.asarray(case[name])
      # Standard error of the difference of two samples that spread alike.
      error = terms.std(axis=0) * np.sqrt(1 / len(images) + 1 / case['n'])
      assert (np.abs(actual - expected) <= 4 * error + 1e-9).all(), (
        case['name'],
        name,
        actual,
        expected,
        error,
      )
    compared += 1
  assert compared


def test_flips_only_where_they_keep_the_label():
  # The whole image, so that only the flip is random; columns get brighter.
  image = np.tile(np.arange(32, dtype=np.uint8)[:, np.newaxis], (32, 1, 3))
  params = _params(
    augmentation_type=_IDENTITY, crop_area_range=(1.0, 1.0), num_views=1
  )
  images, _ = _draw(image, 2000, params, flips=True)
  flipped = np.mean(images[:, 0, 0, 0, 0] > images[:, 0, 0, -1, 0])
  # sqrt(0.5 * 0.5 / 2000) = 0.0112
  assert abs(flipped - 0.5) <= 4 * 0.0112
  images, _ = _draw(image, 200, params, flips=False)
  assert (images == images[0]).all()
  # Nor where nobody wants them.
  params = dataclasses.replace(params, random_flip=False)
  images, _ = _draw(image, 200, params, flips=True)
  assert (images == images[0]).all()


def test_crops_resize_and_flip_alone_without_augmentation():
  # Of an image with one color every view is that color.
  image = np.full([40, 50, 3], (10, 120, 250), np.uint8)
  off = [(kind, magnitude) for kind in _ALL for magnitude in (0.0, -1.0)]
  for kind, magnitude in [(_IDENTITY, 1.0), *off]:
    params = _params(
      augmentation_type=kind,
      augmentation_magnitude=magnitude,
      blur_probability=1.0,
      warp_probability=1.0,
    )
    images, sigmas = _draw(image, 50, params)
    assert (_levels(images) == [10, 120, 250]).all()
    assert (sigmas == 0).all()


@pytest.mark.parametrize('use_pytorch', [False, True])
def test_how_often_colors_change(use_pytorch):
  color = (200, 120, 60)
  image = np.full([32, 32, 3], color, np.uint8)
  params = _params(use_pytorch_color_jitter=use_pytorch, num_views=1)
  images, _ = _draw(image, 2000, params)
  pixels = _levels(images)[:, 0, 0, 0]
  # Neither jitter nor grayscale: 0.2 * 0.8.
  unchanged = (pixels == color).all(axis=1).mean()
  assert abs(unchanged - 0.16) <= 4 * np.sqrt(0.16 * 0.84 / 2000)
  # Grayscale alone, 0.2 * 0.2, or by chance after jitter: luma 0.2989 * 200 +
  # 0.587 * 120 + 0.114 * 60 = 137.
  gray = (pixels == 137).all(axis=1).mean()
  assert abs(gray - 0.04) <= 4 * np.sqrt(0.04 * 0.96 / 2000) + 0.005


def test_magnitude_scales_color_jitter():
  image = np.full([40, 40, 3], (200, 120, 60), np.uint8)
  weak, medium, strong = [
    _draw(image, 300, _params(augmentation_magnitude=magnitude))[0]
    for magnitude in (0.01, 0.3, 1.0)
  ]
  assert weak.std() < medium.std() < strong.std()
  # 0.8 * 0.01 * 255 = 2 levels of brightness, and little more for the rest.
  levels = _levels(weak)[:, 0, 0, 0]
  is_colored = np.ptp(levels, axis=1) > 0
  assert np.abs(levels[is_colored] - [200, 120, 60]).max() <= 10


def _magnitudes_differ(kind, image, seeds):
  """For each seed, whether the view is another one at half the magnitude."""
  views = [
    _draw(
      image,
      seeds,
      _params(
        augmentation_type=kind, augmentation_magnitude=magnitude, num_views=1
      ),
    )[0]
    for magnitude in (1.0, 0.5)
  ]
  return _differ(*views)


def test_what_the_magnitude_changes():
  image = _image(60, 50)
  assert not _magnitudes_differ(_AUTO, image, 40).any()
  assert _magnitudes_differ(_RAND, image, 40).mean() > 0.5
  # Where there is color jitter, thus in 0.8 of the views, unless RandAugment or
  # grayscale hides it.
  error = np.sqrt(0.8 * 0.2 / 100)
  share = _magnitudes_differ(_STACKED, image, 100).mean()
  assert 0.6 <= share <= 0.8 + 4 * error


def test_stacked_randaugment_is_randaugment_of_jittered_images():
  # At hardly any jitter, views that are not gray are RandAugment's at 10.
  image = np.full([32, 32, 3], (200, 120, 60), np.uint8)
  stacked, _ = _draw(
    image,
    500,
    _params(
      augmentation_type=_STACKED, augmentation_magnitude=1e-6, num_views=1
    ),
  )
  rand, _ = _draw(
    image,
    500,
    _params(augmentation_type=_RAND, augmentation_magnitude=10.0, num_views=1),
  )
  stacked_pixels = _levels(stacked)[:, 0, 16, 16]
  stacked_colors = {tuple(color) for color in stacked_pixels}
  rand_colors = {tuple(color) for color in _levels(rand)[:, 0, 16, 16]}
  colored = {color for color in stacked_colors if len(set(color)) > 1}
  assert len(colored & rand_colors) > 20
  is_gray = (np.ptp(stacked_pixels, axis=-1) == 0).mean()
  # 1 - 0.8 * (16 / 17)^2 = 0.29: grayscale, or all covered by cutout.
  assert abs(is_gray - 0.29) <= 4 * np.sqrt(0.29 * 0.71 / 500)


def test_the_data_set_chooses_the_policy():
  image = _image(32, 32)
  params = _params(augmentation_type=_AUTO, num_views=1)

  imagenet, again, cifar10 = (
    _draw(image, 5, params, policy=policy)[0]
    for policy in (
      policies.IMAGENET_POLICY,
      policies.IMAGENET_POLICY,
      policies.CIFAR10_POLICY,
    )
  )
  assert (again == imagenet).all()
  assert (cifar10 != imagenet).any()


@pytest.mark.parametrize('kind', _ALL)
def test_who_warps_and_blurs(kind):
  image = _image(60, 50)
  options = dict(augmentation_type=kind, blur_probability=1.0, num_views=1)
  plain, sigmas = _draw(image, 20, _params(**options))
  warped, _ = _draw(image, 20, _params(warp_probability=1.0, **options))
  is_warped = _differ(plain, warped)
  if kind in (_SIMCLR, _STACKED):
    assert (sigmas > 0).all()
    assert is_warped.mean() > 0.5  # What cutout covers looks the same.
  else:
    assert (sigmas == 0).all()
    assert not is_warped.any()
  for changes, expected in (
    ({}, kind in (_SIMCLR, _STACKED)),
    ({'defer_blurring': False}, False),
    (
      {'defer_blurring': False, 'defer_augmentation': True},
      kind in (_SIMCLR, _STACKED),
    ),
    ({'blur_probability': 0.0}, False),
    ({'augmentation_magnitude': 0.0}, False),
    ({'augmentation_magnitude': 0.0, 'defer_augmentation': True}, False),
  ):
    params = _params(**{'augmentation_type': kind, **changes})
    assert preprocessing.defers_blurring(params) == expected, changes


def test_how_often_views_are_warped():
  image = _image(40, 50)
  options = dict(augmentation_magnitude=1e-6, num_views=1)
  plain, _ = _draw(image, 1000, _params(**options))
  warped, _ = _draw(image, 1000, _params(warp_probability=0.3, **options))
  share = _differ(plain, warped).mean()
  assert abs(share - 0.3) <= 4 * np.sqrt(0.3 * 0.7 / 1000)


@pytest.mark.parametrize('probability', [0.0, 0.5, 1.0])
def test_each_view_has_its_own_blur(probability):
  params = _params(blur_probability=probability, num_views=2)
  _, sigmas = _draw(_image(32, 32), 1000, params)
  assert sigmas.shape == (1000, 2)
  shares = (sigmas > 0).mean(axis=0)
  error = np.sqrt(probability * (1 - probability) / 1000)
  assert np.abs(shares - probability).max() <= 4 * error
  if 0 < probability < 1:
    # Independent views: both are blurred in a quarter of the examples.
    both = (sigmas > 0).all(axis=1).mean()
    assert abs(both - 0.25) <= 4 * np.sqrt(0.25 * 0.75 / 1000)


@pytest.mark.parametrize('dtype', [tf.float32, tf.bfloat16])
@pytest.mark.parametrize('side', [32, 64])
def test_blurring_here_equals_blurring_later(side, dtype):
  n = 8
  later = _params(image_size=side, compile_augmentation=False)
  here = dataclasses.replace(later, defer_blurring=False)
  left = next(iter(_unfinished(_image(90, 70), n, later).batch(n)))
  options = (_MEAN, _STD, dtype)
  sharp = _finish_on_host(later, *options)(left)
  blurred = _finish_on_host(here, *options)(left)
  is_blurred = left['blur_sigmas'].numpy() > 0
  np.testing.assert_array_equal(sharp['blur_sigmas'], left['blur_sigmas'])
  assert not blurred['blur_sigmas'].numpy().any()
  assert blurred['images'].dtype == sharp['images'].dtype == dtype
  sharp_images, blurred_later, blurred_here, finished = (
    tf.cast(images, tf.float32).numpy()
    for images in (
      sharp['images'],
      _finish(later, *options, jit_compile=False)(sharp),
      blurred['images'],
      _finish(here, *options, jit_compile=False)(blurred),
    )
  )
  # At most one rounding apart; whitened values reach 3.
  tolerance = 1e-5 if dtype == tf.float32 else 2**-6
  assert np.abs(blurred_here - blurred_later).max() <= tolerance
  np.testing.assert_array_equal(finished, blurred_here)
  change = np.abs(blurred_here - sharp_images).max(axis=(2, 3, 4))
  assert (change[~is_blurred] == 0).all() and (change[is_blurred] > 0).all()
  assert change.max() > 0.05


def test_what_happens_as_often_as_in_the_published_pipeline():
  # The whole image, whose columns get brighter.
  n = 4000
  image = np.zeros([8, 8, 3], np.uint8)
  image[..., 0] = np.arange(100, 108)
  params = _params(
    image_size=8,
    crop_area_range=(1.0, 1.0),
    num_views=1,
    blur_probability=hparams.Preprocessing.blur_probability,
  )
  features = next(iter(_unfinished(image, n, params).batch(n)))
  images = features['images'].numpy().astype(int)[:, 0]
  is_flipped = images[:, 0, 0, 0] > images[:, 0, -1, 0]
  order = features['jitter_order'].numpy()[:, 0]
  is_jittered = (order != colors.NO_EFFECT).all(axis=1)
  is_blurred = features['blur_sigmas'].numpy()[:, 0] > 0
  for key, happens in (
    ('flip_probability', is_flipped),
    ('random_apply_0.8', is_jittered),
    ('jitter_applied_probability_observed', is_jittered),
    ('blur_changed_fraction_observed', is_blurred),
  ):
    # Of how many draws that is a share is not listed; three decimals: 1000.
    expected, share = golden.json(_CASES)['statistics'][key], happens.mean()
    error = np.sqrt(expected * (1 - expected) * (1 / 1000 + 1 / n))
    assert abs(share - expected) <= 4 * error, (key, share, expected)


# ----------------------------------------------- what is left to the model

# One grey level on the scale [-1, 1], and how often a value may differ by it
# where a compiler or the order of operations rounds otherwise.
_LEVEL = 2 / 255
_RARELY = 0.01


@functools.cache
def _finish(params, mean, std, dtype, jit_compile):
  return tf.function(
    lambda features: preprocessing.finish(features, params, mean, std, dtype),
    jit_compile=jit_compile,
    autograph=False,
  )


@functools.cache
def _finish_on_host(params, mean, std, dtype):
  return tf.function(
    lambda features: preprocessing.finish_on_host(
      features, params, mean, std, dtype
    ),
    autograph=False,
  )


def _assert_same(actual, expected, std, dtype, num_levels=1):
  """Equal but for rounding, of levels here and there and of bfloat16."""
  assert actual.dtype == dtype and actual.shape == expected.shape
  actual, expected = (
    tf.cast(images, tf.float32).numpy() for images in (actual, expected)
  )
  # Whitened values reach 4, blurred ones are rounded twice.
  rounding = 1e-5 if dtype == tf.float32 else 2**-5
  level = num_levels * _LEVEL / min(std or [1])
  difference = np.abs(actual - expected)
  assert difference.max() <= level + rounding
  assert (difference > rounding).mean() <= _RARELY


_LEFT_COLORS = {'jitter_values', 'jitter_order', 'is_gray'}


@pytest.mark.parametrize(
  'kind, changes, left',
  [
    (_SIMCLR, {}, _LEFT_COLORS),
    (_SIMCLR, {'blur_probability': 0.0}, _LEFT_COLORS),
    # What follows needs the colors.
    (_SIMCLR, {'warp_probability': 0.1}, set()),
    (_STACKED, {}, {'is_gray'}),
    (_STACKED, {'warp_probability': 0.1}, set()),
    (_AUTO, {}, set()),
    (_RAND, {'warp_probability': 0.1}, set()),
    (_IDENTITY, {}, set()),
    (_SIMCLR, {'augmentation_magnitude': 0.0}, set()),
    (_STACKED, {'augmentation_magnitude': 0.0}, set()),
  ],
)
@pytest.mark.parametrize('make', ['train_views', 'eval_views'])
def test_what_is_left_to_be_done(make, kind, changes, left):
  params = _params(augmentation_type=kind, num_views=3, **changes)
  make = getattr(preprocessing, make)
  features = _example(_image(32, 32), [1, 2], params, make)
  expected = {
    'images': ((3, 32, 32, 3), np.uint8),
    'blur_sigmas': ((3,), np.float32),
    'jitter_values': ((3, 4), np.float32),
    'jitter_order': ((3, 4), np.int32),
    'is_gray': ((3,), bool),
  }
  assert {
    name: (value.shape, value.dtype) for name, value in features.items()
  } == {name: expected[name] for name in {'images', 'blur_sigmas', *left}}


def test_what_is_left_undone_is_not_done():
  image = _image(40, 50)
  features = next(iter(_unfinished(image, 30, _params()).batch(30)))
  crops = _params(augmentation_type=_IDENTITY)
  crops = next(iter(_unfinished(image, 30, crops).batch(30)))
  np.testing.assert_array_equal(features['images'], crops['images'])


_CASES_OF_FINISHING = [
  # Augmentation, torchvision's jitter, warp probability, evaluation.
  (_SIMCLR, False, 0.0, False),
  (_SIMCLR, True, 0.0, True),
  (_SIMCLR, True, 0.5, False),
  (_STACKED, False, 0.0, True),
  (_AUTO, False, 0.0, False),
]


@pytest.mark.parametrize(
  'kind, use_pytorch, warp_probability, is_eval', _CASES_OF_FINISHING
)
def test_the_model_finishes_as_the_host_does(
  kind, use_pytorch, warp_probability, is_eval
):
  n = 64
  params = _params(
    augmentation_type=kind,
    use_pytorch_color_jitter=use_pytorch,
    warp_probability=warp_probability,
    num_views=2,
  )
  make = preprocessing.eval_views if is_eval else preprocessing.train_views
  examples = _unfinished(_image(40, 50), n, params, make)
  left = next(iter(examples.batch(n)))
  deferred = dataclasses.replace(params, defer_augmentation=True)
  if 'jitter_order' in left:  # All that can be left is there.
    is_jittered = (left['jitter_order'].numpy() >= 0).all(axis=-1)
    assert {True, False} == {*is_jittered.ravel()}
    assert {True, False} == {*left['is_gray'].numpy().ravel()}
  images = []
  for mean, std, dtype, jit_compile in (
    (None, None, tf.float32, True),
    (_MEAN, _STD, tf.float32, False),
    (_MEAN, _STD, tf.bfloat16, False),
  ):
    options = (mean, std, dtype)
    on_host = _finish_on_host(params, *options)(left)
    assert on_host.keys() == {'images', 'blur_sigmas'}
    np.testing.assert_array_equal(on_host['blur_sigmas'], left['blur_sigmas'])
    expected = _finish(params, *options, jit_compile)(on_host)
    found = _finish(deferred, *options, jit_compile)(left)
    _assert_same(found, expected, std, dtype)
    images.append(expected.numpy())
  # Whitening happens, once.
  assert np.abs(images[0]).max() <= 1 + 1e-6
  whitened = (images[0] - np.float32(_MEAN)) / np.float32(_STD)
  is_sharp = left['blur_sigmas'].numpy() == 0
  np.testing.assert_allclose(images[1][is_sharp], whitened[is_sharp], atol=1e-5)


@pytest.mark.parametrize('kind', [_SIMCLR, _STACKED])
def test_finishing_does_something(kind):
  n = 100
  params = _params(augmentation_type=kind, defer_augmentation=True, num_views=1)
  left = next(iter(_unfinished(_image(40, 50), n, params).batch(n)))
  finish = _finish(params, None, None, tf.float32, jit_compile=False)
  finished = finish(left).numpy()
  is_blurred = left['blur_sigmas'].numpy() > 0
  is_gray = left['is_gray'].numpy()
  is_changed = is_blurred | is_gray
  if kind == _SIMCLR:
    is_changed |= (left['jitter_order'].numpy() >= 0).all(axis=-1)
  plain = left['images'].numpy() / np.float32(127.5) - 1
  is_other = (np.abs(finished - plain) > 1e-5).any(axis=(2, 3, 4))
  assert (is_other <= is_changed).all()
  # Grayscale changes no grey image, of which RandAugment makes some.
  assert (is_other == is_changed).mean() > (0.99 if kind == _SIMCLR else 0.9)
  has_colors = (np.ptp(finished, axis=4) > 1e-5).any(axis=(2, 3))
  assert not has_colors[is_gray].any()
  # Jitter may leave no color, RandAugment often does.
  assert has_colors[~is_gray].mean() > (0.9 if kind == _SIMCLR else 0.7)
  # And one at a time: without sigmas, jitter and grayscale all is as it came.
  nothing = dict(left, is_gray=tf.zeros_like(left['is_gray']))
  nothing['blur_sigmas'] = tf.zeros_like(left['blur_sigmas'])
  if kind == _SIMCLR:
    order = left['jitter_order']
    nothing['jitter_order'] = tf.fill(order.shape, colors.NO_EFFECT)
  np.testing.assert_allclose(finish(nothing), plain, atol=1e-6)


@pytest.mark.parametrize('use_pytorch', [False, True])
def test_view_0_of_an_evaluation_stays_without_chance(use_pytorch):
  image, n = _image(60, 50), 20
  params = _params(
    use_pytorch_color_jitter=use_pytorch,
    blur_probability=1.0,
    defer_augmentation=True,
  )
  examples = _unfinished(image, n, params, preprocessing.eval_views)
  left = next(iter(examples.batch(n)))
  assert (left['jitter_order'][:, 0].numpy() == colors.NO_EFFECT).all()
  assert not left['is_gray'][:, 0].numpy().any()
  assert (left['blur_sigmas'][:, 0].numpy() == 0).all()
  assert (left['blur_sigmas'][:, 1].numpy() > 0).all()
  finished = _finish(params, _MEAN, _STD, tf.float32, jit_compile=False)(left)
  expected = (_evaluate(image, params) / 127.5 - 1 - _MEAN) / _STD
  for view in finished[:, 0]:
    np.testing.assert_allclose(view, expected, atol=1e-5)


@pytest.mark.parametrize(
  'kind, use_pytorch, warp_probability, dtype',
  [
    (_SIMCLR, False, 0.0, tf.float32),
    (_SIMCLR, True, 0.0, tf.float32),
    (_SIMCLR, True, 0.0, tf.bfloat16),
    (_SIMCLR, False, 0.5, tf.float32),
    (_STACKED, True, 0.0, tf.float32),
  ],
)
def test_compiled_equals_not_compiled(
  kind, use_pytorch, warp_probability, dtype
):
  n = 100
  image = _image(40, 50)
  finished = []
  for is_compiled in (True, False):
    params = _params(
      augmentation_type=kind,
      use_pytorch_color_jitter=use_pytorch,
      warp_probability=warp_probability,
      num_views=1,
      defer_blurring=False,
      compile_augmentation=is_compiled,
    )
    left = next(iter(_unfinished(image, n, params).batch(n)))
    features = _finish_on_host(params, _MEAN, _STD, dtype)(left)
    finished.append(features['images'])
  # RandAugment multiplies by up to 1.9 what rounding of the jitter has moved by
  # a level.
  _assert_same(*finished, _STD, dtype, 2 if kind is _STACKED else 1)


@pytest.mark.parametrize('dtype', [tf.float32, tf.bfloat16])
def test_an_example_is_finished_alike_in_any_batch(dtype):
  params = _params(defer_blurring=False)
  left = next(iter(_unfinished(_image(40, 50), 12, params).batch(12)))
  finish = _finish_on_host(params, _MEAN, _STD, dtype)
  together = finish(left)['images']
  for size in (1, 4):
    parts = [
      finish({name: value[i : i + size] for name, value in left.items()})
      for i in range(0, 12, size)
    ]
    parts = tf.concat([part['images'] for part in parts], axis=0)
    np.testing.assert_array_equal(parts, together)


@pytest.mark.parametrize('use_pytorch', [False, True])
@pytest.mark.parametrize('is_deferred', [False, True])
def test_finishing_gives_numbers_to_padding(is_deferred, use_pytorch):
  # Features of zeros fill up the last batch of an evaluation.
  params = _params(
    use_pytorch_color_jitter=use_pytorch,
    defer_augmentation=is_deferred,
    compile_augmentation=False,
  )
  specs = _unfinished(_image(32, 32), 1, params).batch(3, True).element_spec
  zeros = {
    name: tf.zeros(spec.shape, spec.dtype) for name, spec in specs.items()
  }
  options = (_MEAN, _STD, tf.float32)
  if not is_deferred:
    zeros = _finish_on_host(params, *options)(zeros)
  finished = _finish(params, *options, jit_compile=True)(zeros)
  assert np.isfinite(finished).all()


def test_finishing_on_the_host_passes_others_on():
  params = _params()
  left = next(iter(_unfinished(_image(32, 32), 3, params).batch(3, True)))
  weights = tf.constant([1.0, 1.0, 0.0])
  options = (None, None, tf.float32)
  finished = _finish_on_host(params, *options)({**left, 'weights': weights})
  np.testing.assert_array_equal(finished.pop('weights'), weights)
  expected = _finish_on_host(params, *options)(left)
  tf.nest.map_structure(np.testing.assert_array_equal, finished, expected)


@pytest.mark.parametrize('kind', [_SIMCLR, _STACKED])
def test_the_model_takes_any_batch_and_draws_nothing(kind):
  params = _params(augmentation_type=kind, defer_augmentation=True)
  specs = _unfinished(_image(32, 32), 1, params).batch(4).element_spec
  assert specs['images'].shape.as_list() == [None, 2, 32, 32, 3]
  for dtype in (tf.float32, tf.bfloat16):
    finish = _finish(params, _MEAN, _STD, dtype, jit_compile=False)
    graph = finish.get_concrete_function(specs)
    assert graph.structured_outputs.shape.as_list() == [None, 2, 32, 32, 3]
    assert graph.structured_outputs.dtype == dtype
    ops = _ops(graph.graph.as_graph_def())
    assert not [op for op in ops if 'Random' in op or 'PyFunc' in op]
    # An accelerator computes the same for every image.
    assert not [op for op in ops if op.endswith(('Case', 'If', 'While'))]


# ---------------------------------------------------- reproducibility, shapes


def test_choices_are_independent():
  # Of each other, and of those of the other view. Columns get brighter, so that
  # flips can be seen; a window is told by the level that is its first.
  n = 4000
  image = np.tile(
    np.arange(0, 256, 4, dtype=np.uint8)[:, np.newaxis], (64, 1, 3)
  )
  params = _params(image_size=8, crop_area_range=(0.1, 0.2))
  left = next(iter(_unfinished(image, n, params).batch(n)))
  levels = left['images'][:, :, 0, :, 0].numpy().astype(int)
  choices = {
    'flip': levels[..., 0] > levels[..., -1],
    'window': levels.min(axis=-1),
    'jitter': (left['jitter_order'].numpy() >= 0).all(axis=-1),
    'first effect': left['jitter_order'][..., 0].numpy() == 3,
    'brightness': left['jitter_values'][..., 0].numpy(),
    'hue': left['jitter_values'][..., 3].numpy(),
    'gray': left['is_gray'].numpy(),
    'blur': left['blur_sigmas'].numpy() > 0,
    'sigma': np.maximum(left['blur_sigmas'].numpy(), 1.05),
  }
  names = [(name, view) for name in choices for view in (0, 1)]
  correlations = np.corrcoef([choices[name][:, view] for name, view in names])
  for i, one in enumerate(names):
    for j, other in enumerate(names[:i]):
      are_one = {one[0], other[0]} in (
        {'blur', 'sigma'},
        {'jitter', 'first effect'},
      )
      if one[1] != other[1] or not are_one:
        assert abs(correlations[i, j]) <= 4.5 / np.sqrt(n), (one, other)


@pytest.mark.parametrize('kind', _ALL)
def test_same_seed_same_view_bit_for_bit(kind):
  encoded = tf.io.encode_jpeg(_image(90, 70)).numpy()
  params = _params(augmentation_type=kind, warp_probability=0.5, num_views=1)
  images, sigmas = _draw(encoded, 20, params)
  images_again, sigmas_again = _draw(encoded, 7, params)
  np.testing.assert_array_equal(images_again, images[:7])
  np.testing.assert_array_equal(sigmas_again, sigmas[:7])


def test_seeds_and_views_differ():
  image = _image(90, 70)
  views = []
  for seed in ([0, 0], [0, 1], [1, 0], [7, 8]):
    images, _ = _views(image, seed, _params(num_views=3))
    views += tf.unstack(images)
  for index, view in enumerate(views):
    for other in views[:index]:
      assert np.abs(view - other).max() > 0.01


@pytest.mark.parametrize(
  'kind, warp_probability, dtype',
  [
    (_SIMCLR, 0.0, np.int32),
    (_SIMCLR, 1.0, np.int64),
    *((kind, 0.0, np.int64) for kind in _ALL),
  ],
)
def test_a_view_does_not_depend_on_how_many_there_are(
  kind, warp_probability, dtype
):
  image = _image(90, 70)
  two, four = [
    _example(
      image,
      dtype([7, 8]),
      _params(
        augmentation_type=kind,
        num_views=num_views,
        warp_probability=warp_probability,
      ),
    )
    for num_views in (2, 4)
  ]
  assert two.keys() == four.keys()
  for name, values in two.items():
    np.testing.assert_array_equal(values, four[name][:2], name)


@pytest.mark.parametrize('make', ['train_views', 'eval_views'])
@pytest.mark.parametrize(
  'shape', [(1, 1), (1, 9), (300, 2), (31, 33), (32, 32), (100, 40)]
)
@pytest.mark.parametrize('form', ['jpeg', 'png', 'decoded'])
def test_images_of_any_size(form, shape, make):
  image = _image(*shape)
  encode = {
    'jpeg': tf.io.encode_jpeg,
    'png': tf.io.encode_png,
    'decoded': tf.constant,
  }[form]
  images, sigmas = _views(
    encode(image).numpy(),
    [1, 2],
    _params(image_size=24, crop_padding=8),
    getattr(preprocessing, make),
  )
  assert images.shape == (2, 24, 24, 3)
  assert sigmas.shape == (2,)
  assert np.abs(images).max() <= 1 + 1e-6


def _graph(make, spec, params, dtype=tf.float32):
  """The traced graph of a pipeline's function, with what it calls."""
  return _function(
    getattr(preprocessing, make), spec, tf.int64, params, _MEAN, _STD, dtype
  ).get_concrete_function()


def _shapes_and_types(features):
  return {
    name: (tensor.shape.as_list(), tensor.dtype)
    for name, tensor in features.items()
  }


@pytest.mark.parametrize(
  'kind, defer, dtype, num_views',
  [
    (_SIMCLR, True, tf.float32, 1),
    (_SIMCLR, False, tf.float32, 2),
    (_SIMCLR, True, tf.bfloat16, 2),
    (_SIMCLR, False, tf.bfloat16, 2),
    (_AUTO, True, tf.float32, 2),
    (_RAND, True, tf.bfloat16, 1),
    (_STACKED, False, tf.bfloat16, 2),
    (_IDENTITY, True, tf.float32, 2),
  ],
)
@pytest.mark.parametrize('make', ['train_views', 'eval_views'])
def test_shapes_and_types_are_static(make, kind, defer, dtype, num_views):
  params = _params(
    augmentation_type=kind,
    image_size=40,
    num_views=num_views,
    defer_blurring=defer,
    warp_probability=0.5,
  )
  for spec in (_ENCODED, _DECODED):
    features = _graph(make, spec, params, dtype).structured_outputs
    assert _shapes_and_types(features) == {
      'images': ([num_views, 40, 40, 3], dtype),
      'blur_sigmas': ([num_views], tf.float32),
    }


def _ops(graph_def, function_names=None):
  """The types of all operations, or of those in some functions.

  What these call is included.
  """
  functions = {f.signature.name: f for f in graph_def.library.function}
  nodes = [] if function_names else list(graph_def.node)
  waiting = list(function_names or functions)
  seen = set()
  while waiting:
    name = waiting.pop()
    if name in seen:
      continue
    seen.add(name)
    nodes_of_function = functions[name].node_def
    nodes += nodes_of_function
    for node in nodes_of_function:
      for value in node.attr.values():
        called = [value.func, *value.list.func]
        waiting += [each.name for each in called if each.name]
  return {node.op for node in nodes}


def _compiled_ops(graph_def):
  """The types of operations that XLA compiles."""
  names = [
    function.signature.name
    for function in graph_def.library.function
    if function.attr['_XlaMustCompile'].b
  ]
  return _ops(graph_def, names) if names else set()


@pytest.mark.parametrize(
  'kind, use_pytorch, is_compiled, sign',
  [
    # An operation that the search must find in a branch.
    (_SIMCLR, True, True, 'StatelessCase'),
    (_SIMCLR, False, True, 'StatelessCase'),
    (_SIMCLR, False, False, 'StatelessCase'),
    (_AUTO, False, True, 'DenseBincount'),
    (_RAND, False, True, 'DepthwiseConv2dNative'),
    (_STACKED, False, True, 'DepthwiseConv2dNative'),
  ],
)
@pytest.mark.parametrize('make', ['train_views', 'eval_views'])
def test_no_python_and_no_stateful_chance_in_the_graph(
  make, kind, use_pytorch, is_compiled, sign
):
  params = _params(
    augmentation_type=kind,
    use_pytorch_color_jitter=use_pytorch,
    defer_blurring=False,
    warp_probability=0.5,
    compile_augmentation=is_compiled,
  )
  graph_def = _graph(make, _ENCODED, params).graph.as_graph_def()
  ops = _ops(graph_def)
  assert 'StatelessRandomUniformV2' in ops
  assert sign in ops
  assert not [op for op in ops if 'PyFunc' in op]
  chance = {op for op in ops if 'Random' in op or 'Distorted' in op}
  assert all(op.startswith('Stateless') for op in chance)
  # Colors are what is compiled; all chance is drawn before.
  compiled_ops = _compiled_ops(graph_def)
  assert bool(compiled_ops) == is_compiled
  if is_compiled:
    changes_colors = kind in (_SIMCLR, _STACKED)
    assert ('StatelessCase' in compiled_ops) == changes_colors
    assert not compiled_ops & chance


_PROGRAM_OF_TENSORFLOW_1 = """
import sys
import numpy as np
import tensorflow.compat.v1 as tf
from supcon.config import enums
from supcon.config import hparams
from supcon.data.views import policies
from supcon.data.views import preprocessing

tf.disable_v2_behavior()
tf.enable_v2_tensorshape()
encoded, saved = sys.argv[1:3]
mean, std = (0.0, 0.1, 0.2), (0.4, 0.5, 0.6)
views = {}
for kind in map(enums.AugmentationType, sys.argv[3:]):
  params = hparams.Preprocessing(
    augmentation_type=kind,
    image_size=32,
    num_views=2,
    defer_blurring=False,
    defer_augmentation=kind == enums.AugmentationType.SIMCLR,
  )
  batches = tf.data.Dataset.from_tensors(
    (open(encoded, 'rb').read(), np.int64([7, 8]))
  ).map(
    lambda encoded, seed: preprocessing.eval_views(
      encoded, seed, params, True, policies.IMAGENET_POLICY
    )
  ).batch(1, drop_remainder=True)
  if not params.defer_augmentation:
    batches = batches.map(
      lambda features: preprocessing.finish_on_host(
        features, params, mean, std, tf.float32
      )
    )
  features = tf.data.make_one_shot_iterator(batches).get_next()
  views[kind.name] = preprocessing.finish(
    features, params, mean, std, tf.float32
  )[0]
with tf.Session() as session:
  np.savez(saved, **session.run(views))
"""


def test_views_under_the_behavior_of_tensorflow_1(tmp_path):
  # Training runs under it: control flow is another.
  kinds = (_AUTO, _STACKED, _SIMCLR)
  encoded = tf.io.encode_jpeg(_image(60, 50)).numpy()
  (tmp_path / 'image.jpeg').write_bytes(encoded)
  subprocess.run(
    [
      sys.executable,
      '-c',
      _PROGRAM_OF_TENSORFLOW_1,
      tmp_path / 'image.jpeg',
      tmp_path / 'views.npz',
      *(kind.value for kind in kinds),
    ],
    cwd=pathlib.Path(__file__).parents[3],
    check=True,
  )
  views = np.load(tmp_path / 'views.npz')
  for kind in kinds:
    expected, _ = _views(
      encoded,
      np.int64([7, 8]),
      _params(
        augmentation_type=kind,
        augmentation_magnitude=0.5,
        num_views=2,
        defer_blurring=False,
      ),
      preprocessing.eval_views,
      mean=(0.0, 0.1, 0.2),
      std=(0.4, 0.5, 0.6),
    )
    _assert_same(tf.constant(views[kind.name]), expected, [0.4], tf.float32)


# ------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
  'image_shape, message',
  [
    ((32, 32, 3), None),
    ((28, 28, 1), '28x28'),
    ((32, 40, 3), '32x40'),
    ((None, None, 3), 'it is not known whether'),
    (None, 'it is not known whether'),
  ],
)
def test_check_image_size(image_shape, message):
  keep = _params(eval_crop_method=enums.EvalCropMethod.IDENTITY, image_size=32)
  for method in enums.EvalCropMethod:
    params = dataclasses.replace(keep, eval_crop_method=method)
    if message is None or method != enums.EvalCropMethod.IDENTITY:
      crops.check_image_size(params, image_shape)
      continue
    with pytest.raises(ValueError, match=message) as error:
      crops.check_image_size(params, image_shape)
    assert '\n' not in str(error.value)
    assert 'RESIZE_THEN_CROP' in str(error.value)


@pytest.mark.parametrize(
  'sizes, message',
  [
    (
      [(28, 28)] * 3,
      r'have one size \(the 3 that were looked at are of 28x28\)',
    ),
    ([(28, 28)], r'have one size \(the 1 that were looked at are of 28x28\)'),
    # 20 * 30 < 25 * 25 < 21 * 32 pixels.
    ([(25, 25), (20, 30), (21, 32)], 'vary in size, from 20x30 to 21x32;'),
  ],
)
def test_of_sizes_nothing_is_said_that_was_not_seen(sizes, message):
  keep = _params(eval_crop_method=enums.EvalCropMethod.IDENTITY, image_size=28)
  with pytest.raises(ValueError, match=message) as error:
    crops.check_image_size(keep, None, lambda: sizes)
  assert ('vary' in str(error.value)) == ('vary' in message)
