"""Makes the views of an image, according to the hyper-parameters.

A view is a pure function of (image, seed, view index).

Views are made in two steps. `train_views` and `eval_views` do the work that is
different for each image: they draw all random numbers, decode, crop and resize.
The rest are changes of pixels for which many images can share a program:
`finish_on_host` does them in the input pipeline, `finish` in the model.
"""

from collections.abc import Callable
import functools
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from supcon.config import enums
from supcon.data.views import colors
from supcon.data.views import crops
from supcon.data.views import image_ops
from supcon.data.views import policies

_FLIP_PROBABILITY = 0.5
_JITTER_PROBABILITY = 0.8
_GRAYSCALE_PROBABILITY = 0.2

# RandAugment as in the published results.
_RANDAUGMENT_LAYERS = 2
_STACKED_RANDAUGMENT_MAGNITUDE = 10


# ------------------------------------------------------------ augmentations


def _auto_augment(image, seed, settings, policy):
  """Applies a policy of AutoAugment, which has its own magnitudes."""
  del settings
  return policies.auto_augment(image, seed, policy)


def _rand_augment(image, seed, settings, policy):
  """Applies RandAugment with the magnitude of the flag."""
  del policy
  return policies.rand_augment(
    image, seed, _RANDAUGMENT_LAYERS, settings.augmentation_magnitude
  )


def _stacked_rand_augment(image, seed, settings, policy):
  """Applies RandAugment as published; the flag's magnitude is the jitter's."""
  del settings, policy
  return policies.rand_augment(
    image, seed, _RANDAUGMENT_LAYERS, _STACKED_RANDAUGMENT_MAGNITUDE
  )


class _Augmentation(NamedTuple):
  """The augmentation after crop and flip.

  Attributes:
    is_simclr: Whether it includes color jitter, grayscale, warp and blur,
      https://arxiv.org/abs/2002.05709.
    policy: The step between color jitter and grayscale, as in
      https://arxiv.org/abs/2005.10243: a function of (image, seed,
      hyper-parameters, policy of AutoAugment); or None.
  """

  is_simclr: bool
  policy: Callable | None


_AUGMENTATIONS = {
  enums.AugmentationType.SIMCLR: _Augmentation(True, None),
  enums.AugmentationType.AUTOAUGMENT: _Augmentation(False, _auto_augment),
  enums.AugmentationType.RANDAUGMENT: _Augmentation(False, _rand_augment),
  enums.AugmentationType.STACKED_RANDAUGMENT: _Augmentation(
    True, _stacked_rand_augment
  ),
  enums.AugmentationType.IDENTITY: _Augmentation(False, None),
}


def _augmentation(settings):
  if settings.augmentation_magnitude <= 0:
    return _AUGMENTATIONS[enums.AugmentationType.IDENTITY]
  return _AUGMENTATIONS[settings.augmentation_type]


# ------------------------------------------------------------------- chance


class _Chance(NamedTuple):
  """The random numbers of V views; row v depends on v alone.

  Attributes:
    window_seeds: int64 [V, 2].
    policy_seeds: int64 [V, 2].
    warp_seeds: int64 [V, 2].
    flip: float32 [V], uniform in [0, 1), like the following ones.
    warp: float32 [V].
    grayscale: float32 [V].
    blur: float32 [V, 2].
    jitter: float32 [V, 6].
  """

  window_seeds: tf.Tensor
  policy_seeds: tf.Tensor
  warp_seeds: tf.Tensor
  flip: tf.Tensor
  warp: tf.Tensor
  grayscale: tf.Tensor
  blur: tf.Tensor
  jitter: tf.Tensor


def _chance(seed, num_views):
  # Two draws for everything, because an op costs as much as 10,000 numbers.
  seeds = tf.random.stateless_uniform(
    [num_views, 4, 2], seed, None, None, tf.int64
  )
  draws = tf.random.stateless_uniform([num_views, 11], seeds[0, 3])
  return _Chance(
    *tf.unstack(seeds[:, :3], axis=1),
    *tf.unstack(draws[:, :3], axis=1),
    blur=draws[:, 3:5],
    jitter=draws[:, 5:],
  )


def _changes(chance, is_augmented, settings):
  """Draws the changes of SimCLR for V views; none if not augmented.

  Args:
    chance: _Chance.
    is_augmented: V booleans.
    settings: hparams.Preprocessing.

  Returns:
    The changes of color, see `train_views`, and float32 [V], the sigmas.
  """
  is_augmented = np.float32(is_augmented)
  jitter = colors.random_jitter(
    chance.jitter,
    _JITTER_PROBABILITY * is_augmented,
    settings.augmentation_magnitude,
    settings.use_pytorch_color_jitter,
  )
  colors_left = {
    'jitter_values': jitter.values,
    'jitter_order': jitter.order,
    'is_gray': chance.grayscale < _GRAYSCALE_PROBABILITY * is_augmented,
  }
  sigmas = image_ops.random_blur_sigma(
    chance.blur, settings.blur_probability * is_augmented
  )
  return colors_left, sigmas


def _maybe(function, probability, draw, image):
  """Applies `function` where `draw` is below `probability`."""
  return tf.cond(draw < probability, lambda: function(image), lambda: image)


# -------------------------------------------------------------------- views


class _View(NamedTuple):
  """How to cut and resize one view.

  Attributes:
    window: A function from the image's shape to the window to decode.
    finish: A function from that window, uint8 [h, w, 3], to [side, side, 3],
      uint8 or float32 in 0..255 whose fractions will be dropped.
    is_augmented: Whether augmentation follows.
  """

  window: Callable
  finish: Callable
  is_augmented: bool


def _training_view(chance, index, settings, flips):
  def window(shape):
    return image_ops.random_crop_window(
      shape, settings.crop_area_range, chance.window_seeds[index]
    )

  def finish(image):
    size = [settings.image_size, settings.image_size]
    image = image_ops.interpolate(image, size)
    if not (flips and settings.random_flip):
      return image
    return _maybe(image_ops.flip, _FLIP_PROBABILITY, chance.flip[index], image)

  return _View(window, finish, True)


def _evaluation_view(settings):
  method = crops.EVAL_CROPS[settings.eval_crop_method]
  side, padding = settings.image_size, settings.crop_padding

  def finish(image):
    image = method.finish(image, side, padding)
    return tf.ensure_shape(image, [side, side, 3])

  return _View(
    functools.partial(method.window, side=side, padding=padding), finish, False
  )


# ---------------------------------------------------- all views of an example


def train_views(encoded, seed, settings, flips, policy):
  """Makes the training views of one example.

  Args:
    encoded: A string scalar, the bytes of an image; or a decoded image, uint8
      [height, width, 3].
    seed: int32 or int64 [2], the example's own. View v depends only on the
      image, the seed and v.
    settings: hparams.Preprocessing.
    flips: Whether a mirrored image keeps its label.
    policy: policies.Policy, the policy of AUTOAUGMENT.

  Returns:
    Features of V unfinished views of side S:
      images: uint8 [V, S, S, 3].
      blur_sigmas: float32 [V], the standard deviation in pixels of the blur
        that is still to be applied; 0 for a view without blur.
    And if changes of color are still to be applied:
      jitter_values: float32 [V, 4], and
      jitter_order: int32 [V, 4], see colors.Jitter.
      is_gray: bool [V].
  """
  chance = _chance(seed, settings.num_views)
  if settings.train_on_eval_views:
    views = [_evaluation_view(settings)] * settings.num_views
    decode_whole = crops.needs_whole(settings)
  else:
    views = [
      _training_view(chance, index, settings, flips)
      for index in range(settings.num_views)
    ]
    decode_whole = len(views) > 1  # A single view needs only a part of a JPEG.
  return _make(encoded, views, chance, decode_whole, settings, policy)


def eval_views(encoded, seed, settings, flips, policy):
  """Makes the evaluation view of one example, then training views.

  View 0 is the evaluation crop, without randomness and without blur. Further
  views are augmented as in training, so that a contrastive loss can be
  computed.

  Args:
    encoded: See `train_views`.
    seed: See `train_views`.
    settings: See `train_views`.
    flips: See `train_views`.
    policy: See `train_views`.

  Returns:
    See `train_views`.
  """
  chance = _chance(seed, settings.num_views)
  views = [_evaluation_view(settings)] + [
    _training_view(chance, index, settings, flips)
    for index in range(1, settings.num_views)
  ]
  decode_whole = crops.needs_whole(settings)
  return _make(encoded, views, chance, decode_whole, settings, policy)


def _make(encoded, views, chance, decode_whole, settings, policy):
  """Makes the views as far as each image needs a program of its own."""
  crops = image_ops.decode_crops(
    encoded,
    lambda shape: [view.window(shape) for view in views],
    decode_whole,
  )
  images = [view.finish(crop) for view, crop in zip(views, crops)]
  augmentation = _augmentation(settings)
  is_augmented = [view.is_augmented for view in views]
  # Changes of color are left for later, except those that have to come first.
  left, sigmas = {}, tf.zeros([len(views)])
  if augmentation.is_simclr:
    left, sigmas = _changes(chance, is_augmented, settings)

  def change_colors(images, names):
    changes = {name: left.pop(name) for name in names if name in left}
    if not changes:
      return [tf.cast(image, tf.uint8) for image in images]
    return _compiled(_change_colors, settings)(images, changes, settings)

  def change_each(function, images, *seeds_or_draws):
    return [
      function(image, *others) if applies else image
      for applies, image, *others in zip(is_augmented, images, *seeds_or_draws)
    ]

  if augmentation.policy:
    images = change_each(
      lambda image, seed: augmentation.policy(image, seed, settings, policy),
      change_colors(images, ('jitter_values', 'jitter_order')),
      tf.unstack(chance.policy_seeds),
    )
  if augmentation.is_simclr and settings.warp_probability > 0:
    images = change_each(
      lambda image, seed, draw: _maybe(
        functools.partial(image_ops.random_warp, seed=seed),
        settings.warp_probability,
        draw,
        image,
      ),
      change_colors(images, tuple(left)),
      tf.unstack(chance.warp_seeds),
      tf.unstack(chance.warp),
    )
  images = [tf.cast(image, tf.uint8) for image in images]
  return {'images': tf.stack(images), 'blur_sigmas': sigmas, **left}


# ---------------------------------------------------------------- finishing


def finish_on_host(features, settings, mean, std, dtype):
  """Finishes views in the input pipeline, one after the other.

  Args:
    features: The features of `train_views` or `eval_views`, each with a leading
      dimension B; other features are passed on. B is static.
    settings: hparams.Preprocessing.
    mean: The mean color to whiten by, on the scale [-1, 1], three Python
      floats; None not to whiten.
    std: Its standard deviation, in the same form.
    dtype: Type of the images, tf.float32 or tf.bfloat16.

  Returns:
    Features as before, of which only the blur may still have to be applied.
    Images are `dtype` [B, V, S, S, 3], in [-1, 1] before whitening.
  """
  views, others = _views_as_examples(features)
  to_model_input = functools.partial(
    _to_model_input,
    mean=mean,
    std=std,
    dtype=dtype,
    half_range=tf.constant(127.5, dtype),
  )
  images = views['images']
  # XLA would not round to bfloat16 between operations.
  is_exact = dtype == tf.float32
  if 'is_gray' in views:
    # The order of the loops makes it fast: all arithmetic runs along planes,
    # and TensorFlow's own transposition follows.
    def planes_of(view):
      planes = _changed_planes(view['images'], view, settings)
      levels = colors.to_levels(planes)
      if not is_exact:
        return levels
      return to_model_input(levels, whiten=_whiten_planes)

    height, width, _ = images.shape[1:]
    signature = tf.TensorSpec(
      [3, height * width], dtype if is_exact else tf.uint8
    )
    planes = _compiled(
      lambda views: tf.map_fn(planes_of, views, fn_output_signature=signature),
      settings,
    )(views)
    images = colors.interleave(planes, [height, width])
  elif is_exact:
    images = _compiled(to_model_input, settings)(images)
  if not is_exact:
    images = to_model_input(images)
  sigmas = views['blur_sigmas']
  if not settings.defer_blurring:
    # After whitening, as in the model. The order matters only at the border,
    # beyond which blurred images are 0: mid-grey before whitening, the mean
    # color after it. So deferring the blur changes only the place of the
    # computation.
    images = tf.map_fn(
      lambda each: _blur(*each),
      (images, sigmas),
      fn_output_signature=tf.TensorSpec(images.shape[1:], dtype),
    )
    sigmas = tf.zeros_like(sigmas)
  finished = {'images': images, 'blur_sigmas': sigmas}
  num_views = features['images'].shape[1]
  return {
    **others,
    **{
      name: tf.reshape(value, [-1, num_views, *value.shape[1:]])
      for name, value in finished.items()
    },
  }


def finish(features, settings, mean, std, dtype):
  """Finishes views in the model, all at once.

  Args:
    features: The features of `finish_on_host`; or with --defer_augmentation,
      its arguments. B need not be static.
    settings: See `finish_on_host`.
    mean: See `finish_on_host`.
    std: See `finish_on_host`.
    dtype: See `finish_on_host`.

  Returns:
    `dtype` [B, V, S, S, 3], the images that the encoder sees.
  """
  views, _ = _views_as_examples(features)
  images = views['images']
  if settings.defer_augmentation:
    if 'is_gray' in views:
      images = _change_colors_at_once(views, settings)
    images = _to_model_input(images, mean, std, dtype)
  if defers_blurring(settings):
    images = image_ops.gaussian_blur(images, views['blur_sigmas'])
  images = tf.cast(images, dtype)  # Off TPU, they come in float32.
  return tf.reshape(images, [-1, *features['images'].shape[1:]])


def defers_blurring(settings):
  """Whether the model has to blur; otherwise every sigma is 0."""
  return (
    (settings.defer_blurring or settings.defer_augmentation)
    and settings.blur_probability > 0
    and _augmentation(settings).is_simclr
  )


_OF_VIEWS = (
  'images',
  'blur_sigmas',
  'jitter_values',
  'jitter_order',
  'is_gray',
)


def _views_as_examples(features):
  """Returns features of B V views from [B, V, ...], and the others."""
  views, others = {}, {}
  for name, value in features.items():
    if name in _OF_VIEWS:
      views[name] = tf.reshape(value, [-1, *value.shape[2:]])
    else:
      others[name] = value
  return views, others


def _compiled(function, settings):
  """Returns `function`, compiled by XLA if the flags say so."""
  if not settings.compile_augmentation:
    return function
  return tf.function(function, jit_compile=True, autograph=False)


def _change_colors(images, changes, settings):
  """Applies `_change_color` to a list of V images, by changes [V, ...]."""
  return [
    _change_color(
      image, {name: change[view] for name, change in changes.items()}, settings
    )
    for view, image in enumerate(images)
  ]


def _change_color(image, changes, settings):
  """Changes the color of one image on the host.

  Args:
    image: [S, S, 3], uint8, or float32 in 0..255.
    changes: Dict of the changes to apply, see `train_views`.
    settings: hparams.Preprocessing.

  Returns:
    uint8 [S, S, 3].
  """
  planes = _changed_planes(image, changes, settings)
  return colors.interleave(colors.to_levels(planes), image.shape[:2])


def _changed_planes(image, changes, settings):
  """Like `_change_color`, but returns planes."""
  planes = colors.to_planes(image)
  if 'jitter_order' in changes:
    jitter = colors.Jitter(changes['jitter_values'], changes['jitter_order'])
    planes = colors.jitter(planes, jitter, settings.use_pytorch_color_jitter)
  if 'is_gray' in changes:
    planes = colors.grayscale(planes, changes['is_gray'])
  return planes


def _change_colors_at_once(views, settings):
  """Changes the colors of a batch: uint8 [B, S, S, 3]."""
  images = views['images']
  planes = colors.to_planes(images)
  if 'jitter_order' in views:
    changes = colors.Jitter(views['jitter_values'], views['jitter_order'])
    planes = colors.jitter_each(
      planes, changes, settings.use_pytorch_color_jitter
    )
  planes = colors.grayscale(planes, views['is_gray'])
  return colors.interleave(colors.to_levels(planes), images.shape[1:3])


def _to_model_input(
  images,
  mean,
  std,
  dtype,
  half_range=127.5,
  whiten=image_ops.whiten,
):
  """Converts grey levels to `dtype`, whitened unless `mean` is None."""
  images = image_ops.to_model_range(images, dtype, half_range)
  return images if mean is None else whiten(images, mean, std)


def _whiten_planes(planes, mean, std):
  """Applies image_ops.whiten to float32 [..., 3, pixels]."""
  mean, std = np.float32([mean, std])[..., np.newaxis]
  return (planes - mean) / std


def _blur(image, sigma):
  """Blurs one view; a view without blur costs nothing."""
  return tf.cond(
    sigma > 0,
    lambda: image_ops.gaussian_blur(image[tf.newaxis], sigma[tf.newaxis])[0],
    lambda: image,
  )
