"""From hyper-parameters to the function that makes an image's views.

A view is a pure function of (image, seed, view index). The views of an example
are stacked on channels, [side, side, 3 * views].

All chance is here, on the host: a view that is to be blurred on the accelerator
leaves with its sigma, and `image_ops.gaussian_blur` is then called by the
model.
"""

from collections.abc import Callable
import functools
from typing import NamedTuple

import tensorflow as tf

from supcon import enums
from supcon.data import augment
from supcon.data import image_ops

_JITTER_PROBABILITY = 0.8
_GRAYSCALE_PROBABILITY = 0.2

# RandAugment as in the published results.
_RANDAUGMENT_LAYERS = 2
_STACKED_RANDAUGMENT_MAGNITUDE = 10


class _View(NamedTuple):
  """How one view is made.

  Attributes:
    window: From the image's shape to the window that has to be decoded.
    finish: From that window, uint8 [h, w, 3], to the view, uint8 [side, side,
      3], and the sigma of its blur, a float32 scalar.
  """

  window: Callable
  finish: Callable


# ------------------------------------------------------------ training views


def _simclr(image, seed, params, policy):
  """Color jitter, grayscale, warp, blur, https://arxiv.org/abs/2002.05709."""
  del policy
  jitter_seed, last_seed = tf.unstack(tf.random.split(seed))
  image = _color_jitter(image, jitter_seed, params)
  return _grayscale_warp_blur(image, last_seed, params)


def _auto_augment(image, seed, params, policy):
  """A policy of AutoAugment, which has its own magnitudes."""
  del params
  return augment.auto_augment(image, seed, policy), tf.constant(0.0)


def _rand_augment(image, seed, params, policy):
  """RandAugment at the magnitude given."""
  del policy
  image = augment.rand_augment(
    image, seed, _RANDAUGMENT_LAYERS, params.augmentation_magnitude
  )
  return image, tf.constant(0.0)


def _stacked_rand_augment(image, seed, params, policy):
  """RandAugment within SimCLR's, https://arxiv.org/abs/2005.10243.

  The magnitude given is that of the color jitter, as published.
  """
  del policy
  jitter_seed, augment_seed, last_seed = tf.unstack(tf.random.split(seed, 3))
  image = _color_jitter(image, jitter_seed, params)
  image = augment.rand_augment(
    image, augment_seed, _RANDAUGMENT_LAYERS, _STACKED_RANDAUGMENT_MAGNITUDE
  )
  return _grayscale_warp_blur(image, last_seed, params)


def _color_jitter(image, seed, params):
  apply_seed, jitter_seed = tf.unstack(tf.random.split(seed))
  jitter = functools.partial(
    image_ops.color_jitter,
    strength=params.augmentation_magnitude,
    use_pytorch=params.use_pytorch_color_jitter,
    seed=jitter_seed,
  )
  return image_ops.random_apply(jitter, _JITTER_PROBABILITY, image, apply_seed)


def _grayscale_warp_blur(image, seed, params):
  """Returns the image and the sigma of its blur."""
  gray_seed, apply_seed, warp_seed, blur_seed = tf.unstack(
    tf.random.split(seed, 4)
  )
  image = image_ops.random_apply(
    image_ops.grayscale, _GRAYSCALE_PROBABILITY, image, gray_seed
  )
  if params.warp_probability > 0:
    warp = functools.partial(image_ops.random_warp, seed=warp_seed)
    image = image_ops.random_apply(
      warp, params.warp_probability, image, apply_seed
    )
  return image, image_ops.random_blur_sigma(params.blur_probability, blur_seed)


def _identity(image, seed, params, policy):
  """Crop and flip alone: the blur belongs to SimCLR's augmentations."""
  del seed, params, policy
  return image, tf.constant(0.0)


# What follows crop and flip: a function of (image, seed, hyper-parameters,
# policy of AutoAugment) to (image, sigma).
_AUGMENTATIONS = {
  enums.AugmentationType.SIMCLR: _simclr,
  enums.AugmentationType.AUTOAUGMENT: _auto_augment,
  enums.AugmentationType.RANDAUGMENT: _rand_augment,
  enums.AugmentationType.STACKED_RANDAUGMENT: _stacked_rand_augment,
  enums.AugmentationType.IDENTITY: _identity,
}

# Those that blur, with --blur_probability.
_BLURRING = (
  enums.AugmentationType.SIMCLR,
  enums.AugmentationType.STACKED_RANDAUGMENT,
)


def _training_view(seed, index, params, flips, policy):
  augmentation = _AUGMENTATIONS[params.augmentation_type]
  if params.augmentation_magnitude <= 0:
    augmentation = _identity
  view_seed = tf.random.fold_in(seed, tf.constant(index, seed.dtype))
  window_seed, flip_seed, augment_seed = tf.unstack(
    tf.random.split(view_seed, 3)
  )

  def window(shape):
    return image_ops.random_crop_window(
      shape, params.crop_area_range, window_seed
    )

  def finish(image):
    image = image_ops.resize(image, [params.image_size, params.image_size])
    if flips:
      image = image_ops.random_apply(image_ops.flip, 0.5, image, flip_seed)
    return augmentation(image, augment_seed, params, policy)

  return _View(window, finish)


def defers_blurring(params):
  """Whether the model has to blur: else every sigma is 0."""
  return (
    params.defer_blurring
    and params.blur_probability > 0
    and params.augmentation_magnitude > 0
    and params.augmentation_type in _BLURRING
  )


# ---------------------------------------------------------- evaluation crops


class _EvalCrop(NamedTuple):
  """How an evaluation image gets its size.

  Attributes:
    window: From (shape, side, padding) to the window to decode.
    finish: From (that window's image, side, padding) to uint8 [side, side, 3].
  """

  window: Callable
  finish: Callable


def _resize_then_crop(image, side, padding):
  """Shorter side to `side + padding`, then the central square."""
  shape = image_ops.shape_with_shorter_side(tf.shape(image)[:2], side + padding)
  # Truncation may leave the shorter side one pixel short of the crop.
  shape = tf.maximum(shape, side)
  image = image_ops.resize(image, shape)
  return image_ops.crop(image, image_ops.center_window(shape, [side, side]))


def _resize(image, side, padding):
  del padding
  return image_ops.resize(image, [side, side])


def _crop_then_distort(image, side, padding):
  """The central part, whatever its aspect ratio, to a square."""
  window = image_ops.center_fraction_window(
    tf.shape(image)[:2], side / (side + padding)
  )
  return image_ops.resize(image_ops.crop(image, window), [side, side])


def _keep(image, side, padding):
  del side, padding
  return image


def _whole(shape, side, padding):
  del side, padding
  return image_ops.whole_window(shape)


def _center_square(shape, side, padding):
  return image_ops.center_square_window(shape, side / (side + padding))


_EVAL_CROPS = {
  enums.EvalCropMethod.RESIZE_THEN_CROP: _EvalCrop(_whole, _resize_then_crop),
  enums.EvalCropMethod.CROP_THEN_RESIZE: _EvalCrop(_center_square, _resize),
  enums.EvalCropMethod.CROP_THEN_DISTORT: _EvalCrop(_whole, _crop_then_distort),
  enums.EvalCropMethod.IDENTITY: _EvalCrop(_whole, _keep),
}


def check_image_size(params, image_shape):
  """Checks that evaluation images can have the size asked for.

  Args:
    params: hparams.Preprocessing.
    image_shape: The data set's (height, width, ...), None where they vary; or
      None.

  Raises:
    ValueError: If images are to be taken as they are and have another size.
  """
  if params.eval_crop_method != enums.EvalCropMethod.IDENTITY:
    return
  others = ', '.join(
    method.name
    for method in _EVAL_CROPS
    if method != enums.EvalCropMethod.IDENTITY
  )
  height, width = (image_shape or (None, None))[:2]
  if height is None or width is None:
    raise ValueError(
      '--eval_crop_method=IDENTITY takes images as they are, but those of '
      f'this data set vary in size; use one of {others}.'
    )
  if (height, width) != (params.image_size, params.image_size):
    raise ValueError(
      f'--image_size={params.image_size} with --eval_crop_method=IDENTITY '
      f'takes images as they are, but those of this data set are {height}x'
      f'{width}; set that size or use one of {others}.'
    )


def _evaluation_view(params):
  method = _EVAL_CROPS[params.eval_crop_method]
  side, padding = params.image_size, params.crop_padding

  def finish(image):
    image = method.finish(image, side, padding)
    return tf.ensure_shape(image, [side, side, 3]), tf.constant(0.0)

  return _View(
    functools.partial(method.window, side=side, padding=padding), finish
  )


# --------------------------------------------------------------------- views


def train_views(encoded, seed, params, mean, std, flips, policy, dtype):
  """The training views of one example.

  Args:
    encoded: A string scalar, the bytes of an image; or an image that is decoded
      already, uint8 [height, width, 3].
    seed: int32 or int64 [2], the example's own. View v depends on nothing but
      the image, the seed and v.
    params: hparams.Preprocessing.
    mean: The data set's mean color on the scale [-1, 1], three Python floats;
      None if it is not whitened.
    std: Its standard deviation, likewise.
    flips: Whether a mirrored image keeps its label.
    policy: augment.Policy, that of AUTOAUGMENT.
    dtype: Of the images, tf.float32 or tf.bfloat16.

  Returns:
    images: `dtype` [side, side, 3 * views], in [-1, 1] before whitening.
    blur_sigmas: float32 [views], the standard deviation in pixels of the blur
      that is still to be done; 0 for a view that is not to be blurred.
  """
  views = [
    _training_view(seed, index, params, flips, policy)
    for index in range(params.num_views)
  ]
  # One view needs but a part of a JPEG.
  return _assemble(encoded, views, len(views) > 1, params, mean, std, dtype)


def eval_views(encoded, seed, params, mean, std, flips, policy, dtype):
  """The evaluation view of one example, followed by training views.

  View 0 is the evaluation crop, without chance and without blur. Further ones
  are augmented as in training, so that a contrastive loss can be computed.

  Args:
    encoded: As for `train_views`.
    seed: As for `train_views`.
    params: As for `train_views`.
    mean: As for `train_views`.
    std: As for `train_views`.
    flips: As for `train_views`.
    policy: As for `train_views`.
    dtype: As for `train_views`.

  Returns:
    As `train_views`.
  """
  views = [_evaluation_view(params)] + [
    _training_view(seed, index, params, flips, policy)
    for index in range(1, params.num_views)
  ]
  # View 0 must not depend on how many follow: a window of its own is always
  # decoded on its own.
  decode_whole = _EVAL_CROPS[params.eval_crop_method].window is _whole
  return _assemble(encoded, views, decode_whole, params, mean, std, dtype)


def _assemble(encoded, views, decode_whole, params, mean, std, dtype):
  """Makes, stacks, whitens and perhaps blurs the views."""
  crops = image_ops.decode_crops(
    encoded,
    lambda shape: [view.window(shape) for view in views],
    decode_whole,
  )
  images, sigmas = zip(
    *(view.finish(image) for view, image in zip(views, crops))
  )
  if not params.apply_whitening:
    mean = None
  images = [_to_model_input(image, mean, std, dtype) for image in images]
  if not params.defer_blurring:
    images = [_blur(image, sigma) for image, sigma in zip(images, sigmas)]
    sigmas = [tf.zeros_like(sigma) for sigma in sigmas]
  # Faster than tf.concat along so few channels.
  images = tf.transpose(tf.stack(images), [1, 2, 0, 3])
  side = params.image_size
  return tf.reshape(images, [side, side, 3 * len(views)]), tf.stack(sigmas)


def _to_model_input(image, mean, std, dtype):
  image = image_ops.to_model_range(image, dtype)
  return image if mean is None else image_ops.whiten(image, mean, std)


def _blur(image, sigma):
  """Blurs one view; one that is not to be blurred costs nothing.

  This comes after whitening, as it does in the model. The two would commute but
  at the border, beyond which blurred images continue with 0: mid-grey before
  whitening, the mean color after it. So deferring changes the place of the
  computation alone.
  """
  return tf.cond(
    sigma > 0,
    lambda: image_ops.gaussian_blur(image[tf.newaxis], sigma[tf.newaxis])[0],
    lambda: image,
  )
