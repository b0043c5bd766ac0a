"""The design of the published input pipeline, as a baseline to measure against.

An image is decoded in full, as TFDS does it. Then each view is made on its own,
one image at a time: crop, resize, flip, and the augmentation in float32 where
the published one computes so, each random choice a draw of its own, geometric
operations with one more channel that tells image from background. It is written
after the papers and computes what `supcon.data` computes, but for random
numbers and rounding.
"""

import functools
import math

import tensorflow as tf

from supcon.config import enums
from supcon.data.views import policies

tf1 = tf.compat.v1

_LEVEL = 10.0
_GREY = 128


def view(image, kind, side):
  """Returns one view, float32 [side, side, 3] in [-1, 1].

  Args:
    image: uint8 [height, width, 3].
    kind: enums.AugmentationType, without warp, with blur left to the model.
    side: Python int.
  """
  image = random_crop(image)
  image = tf1.image.resize_bilinear(image[tf.newaxis], [side, side])[0]
  image = tf.image.random_flip_left_right(tf.cast(image, tf.uint8))
  image.set_shape([side, side, 3])
  if kind == enums.AugmentationType.AUTOAUGMENT:
    image = _auto_augment(image)
  if kind in _SIMCLR_KINDS:
    image = _maybe(_color_jitter, 0.8, image)
  if kind == enums.AugmentationType.STACKED_RANDAUGMENT:
    image = _rand_augment(image)
  image = tf.image.convert_image_dtype(image, tf.float32)
  if kind in _SIMCLR_KINDS:
    image = _maybe(_grayscale, 0.2, image)
  return image * 2 - 1


def random_crop(image):
  """Returns a random window of an image."""
  begin, size, _ = tf.image.sample_distorted_bounding_box(
    tf.shape(image),
    tf.zeros([1, 0, 4]),
    min_object_covered=0.1,
    aspect_ratio_range=(3 / 4, 4 / 3),
    area_range=(0.08, 1.0),
    max_attempts=100,
    use_image_if_no_bounding_boxes=True,
  )
  return tf.slice(image, begin, size)


_SIMCLR_KINDS = (
  enums.AugmentationType.SIMCLR,
  enums.AugmentationType.STACKED_RANDAUGMENT,
)


def _maybe(function, probability, image):
  return tf.cond(
    tf.random.uniform([]) < probability,
    lambda: function(image),
    lambda: image,
  )


def _chosen(index, functions, image):
  """Passes the image by all functions, one of which is applied."""
  for number, function in enumerate(functions):
    image = tf.cond(
      tf.equal(index, number),
      lambda x=image, f=function: f(x),
      lambda x=image: x,
    )
  return image


# ------------------------------------------------------------------- SimCLR


def _color_jitter(image, strength=0.5):
  span = 0.8 * strength
  effects = [
    lambda x: _clip(tf.image.random_brightness(x, span)),
    lambda x: _clip(tf.image.random_contrast(x, 1 - span, 1 + span)),
    lambda x: _clip(tf.image.random_saturation(x, 1 - span, 1 + span)),
    lambda x: _clip(tf.image.random_hue(x, 0.2 * strength)),
  ]
  order = tf.random.shuffle(tf.range(4))
  image = tf.image.convert_image_dtype(image, tf.float32)
  for position in range(4):
    image = _chosen(order[position], effects, image)
  return tf.image.convert_image_dtype(image, tf.uint8)


def _clip(image):
  return tf.clip_by_value(image, 0.0, 1.0)


def _grayscale(image):
  return tf.tile(tf.image.rgb_to_grayscale(image), [1, 1, 3])


# --------------------------------------- AutoAugment's and RandAugment's ops


def _blend(first, second, factor):
  first, second = tf.cast(first, tf.float32), tf.cast(second, tf.float32)
  blended = first + factor * (second - first)
  return tf.cast(tf.clip_by_value(blended, 0.0, 255.0), tf.uint8)


def _gray(image):
  return tf.image.grayscale_to_rgb(tf.image.rgb_to_grayscale(image))


def _color(image, factor):
  return _blend(_gray(image), image, factor)


def _contrast(image, factor):
  gray = tf.cast(tf.image.rgb_to_grayscale(image), tf.int32)
  mean = tf.reduce_sum(tf.histogram_fixed_width(gray, [0, 255], 256)) / 256
  flat = tf.ones_like(image, tf.float32) * tf.cast(mean, tf.float32)
  flat = tf.cast(tf.clip_by_value(flat, 0.0, 255.0), tf.uint8)
  return _blend(flat, image, factor)


def _brightness(image, factor):
  return _blend(tf.zeros_like(image), image, factor)


def _sharpness(image, factor):
  kernel = tf.constant([[1, 1, 1], [1, 5, 1], [1, 1, 1]], tf.float32) / 13
  kernel = tf.tile(kernel[:, :, tf.newaxis, tf.newaxis], [1, 1, 3, 1])
  smooth = tf.nn.depthwise_conv2d(
    tf.cast(image, tf.float32)[tf.newaxis], kernel, [1, 1, 1, 1], 'VALID'
  )
  smooth = tf.cast(tf.clip_by_value(smooth[0], 0.0, 255.0), tf.uint8)
  padding = [[1, 1], [1, 1], [0, 0]]
  inner = tf.pad(tf.ones_like(smooth), padding)
  smooth = tf.where(tf.equal(inner, 1), tf.pad(smooth, padding), image)
  return _blend(smooth, image, factor)


def _by_channel(function, image):
  channels = [function(image[:, :, index]) for index in range(3)]
  return tf.stack(channels, axis=2)


def _autocontrast(image):
  def stretch(channel):
    low = tf.cast(tf.reduce_min(channel), tf.float32)
    high = tf.cast(tf.reduce_max(channel), tf.float32)

    def scaled():
      scale = 255 / (high - low)
      levels = tf.cast(channel, tf.float32) * scale - low * scale
      return tf.cast(tf.clip_by_value(levels, 0.0, 255.0), tf.uint8)

    return tf.cond(high > low, scaled, lambda: channel)

  return _by_channel(stretch, image)


def _equalize(image):
  def equal(channel):
    channel = tf.cast(channel, tf.int32)
    counts = tf.histogram_fixed_width(channel, [0, 255], nbins=256)
    occurring = tf.boolean_mask(counts, counts > 0)
    step = (tf.reduce_sum(occurring) - occurring[-1]) // 255

    def looked_up():
      table = (tf.cumsum(counts) + step // 2) // step
      table = tf.concat([[0], table[:-1]], 0)
      return tf.gather(tf.clip_by_value(table, 0, 255), channel)

    levels = tf.cond(tf.equal(step, 0), lambda: channel, looked_up)
    return tf.cast(levels, tf.uint8)

  return _by_channel(equal, image)


def _posterize(image, bits):
  shift = tf.cast(8 - bits, tf.uint8)
  return tf.bitwise.left_shift(tf.bitwise.right_shift(image, shift), shift)


def _solarize(image, threshold):
  levels = tf.cast(image, tf.int32)
  return tf.where(levels < threshold, image, 255 - image)


def _solarize_add(image, addition):
  levels = tf.cast(image, tf.int32)
  added = tf.cast(tf.clip_by_value(levels + addition, 0, 255), tf.uint8)
  return tf.where(levels < _GREY, added, image)


def _transform(image, coefficients):
  """Moves pixels; what moves in is grey."""
  height, width, _ = image.shape
  inside = tf.ones([height, width, 1], tf.uint8)
  moved = tf.raw_ops.ImageProjectiveTransformV3(
    images=tf.concat([image, inside], axis=2)[tf.newaxis],
    transforms=tf.cast(tf.stack(coefficients), tf.float32)[tf.newaxis],
    output_shape=[height, width],
    fill_value=0.0,
    interpolation='NEAREST',
  )[0]
  inside = tf.tile(moved[:, :, 3:], [1, 1, 3])
  return tf.where(tf.equal(inside, 0), tf.cast(_GREY, tf.uint8), moved[..., :3])


def _shear_x(image, slope):
  return _transform(image, [1.0, slope, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0])


def _shear_y(image, slope):
  return _transform(image, [1.0, 0.0, 0.0, slope, 1.0, 0.0, 0.0, 0.0])


def _translate_x(image, pixels):
  return _transform(image, [1.0, 0.0, -pixels, 0.0, 1.0, 0.0, 0.0, 0.0])


def _translate_y(image, pixels):
  return _transform(image, [1.0, 0.0, 0.0, 0.0, 1.0, -pixels, 0.0, 0.0])


def _rotate(image, degrees):
  height, width, _ = image.shape
  angle = degrees * (math.pi / 180)
  cos, sin = tf.cos(angle), tf.sin(angle)
  x = ((width - 1) - (cos * (width - 1) - sin * (height - 1))) / 2
  y = ((height - 1) - (sin * (width - 1) + cos * (height - 1))) / 2
  return _transform(image, [cos, -sin, x, sin, cos, y, 0.0, 0.0])


def _cutout(image, half_side):
  height, width, _ = image.shape
  row = tf.random.uniform([], 0, height, tf.int32)
  column = tf.random.uniform([], 0, width, tf.int32)
  half = tf.cast(half_side, tf.int32)
  top, left = tf.maximum(row - half, 0), tf.maximum(column - half, 0)
  bottom = tf.maximum(height - row - half, 0)
  right = tf.maximum(width - column - half, 0)
  hole = tf.zeros([height - top - bottom, width - left - right], image.dtype)
  mask = tf.pad(hole, [[top, bottom], [left, right]], constant_values=1)
  mask = tf.tile(mask[..., tf.newaxis], [1, 1, 3])
  grey = tf.ones_like(image) * tf.cast(_GREY, tf.uint8)
  return tf.where(tf.equal(mask, 0), grey, image)


def _signed(function):
  def moved(image, strength):
    sign = tf.where(tf.random.uniform([]) < 0.5, -1.0, 1.0)
    return function(image, sign * strength)

  return moved


# (function of (image, strength), strength at a level of 0 to 10).
_OPERATIONS = {
  'autocontrast': (lambda image, _: _autocontrast(image), lambda level: 0.0),
  'equalize': (lambda image, _: _equalize(image), lambda level: 0.0),
  'invert': (lambda image, _: 255 - image, lambda level: 0.0),
  'posterize': (_posterize, lambda level: int(level / 10 * 4)),
  'solarize': (_solarize, lambda level: int(level / 10 * 256)),
  'solarize_add': (_solarize_add, lambda level: int(level / 10 * 110)),
  'color': (_color, lambda level: level / 10 * 1.8 + 0.1),
  'contrast': (_contrast, lambda level: level / 10 * 1.8 + 0.1),
  'brightness': (_brightness, lambda level: level / 10 * 1.8 + 0.1),
  'sharpness': (_sharpness, lambda level: level / 10 * 1.8 + 0.1),
  'shear_x': (_signed(_shear_x), lambda level: level / 10 * 0.3),
  'shear_y': (_signed(_shear_y), lambda level: level / 10 * 0.3),
  'translate_x': (_signed(_translate_x), lambda level: level / 10 * 100.0),
  'translate_y': (_signed(_translate_y), lambda level: level / 10 * 100.0),
  'rotate': (_signed(_rotate), lambda level: level / 10 * 30.0),
  'cutout': (_cutout, lambda level: level / 10 * 40.0),
}


def _apply(name, level, image):
  function, strength = _OPERATIONS[name]
  return function(image, strength(level))


def _auto_augment(image):
  """One of 25 sub-policies."""

  def function(sub_policy):
    def augmented(image):
      for name, probability, level in sub_policy:
        image = _maybe(
          functools.partial(_apply, name, level), probability, image
        )
      return image

    return augmented

  sub_policies = policies.IMAGENET_POLICY.sub_policies
  chosen = tf.random.uniform([], 0, len(sub_policies), tf.int32)
  return _chosen(chosen, [function(each) for each in sub_policies], image)


def _rand_augment(image, layers=2):
  functions = [functools.partial(_apply, name, _LEVEL) for name in _OPERATIONS]
  for _ in range(layers):
    chosen = tf.random.uniform([], 0, len(functions) + 1, tf.int32)
    image = _chosen(chosen, functions, image)
  return image
