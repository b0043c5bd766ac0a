"""Color jitter and grayscale.

The functions work on planes, float32 [..., 3, pixels] in [0, 1]: all red
values, then all green, then all blue. So every op runs along pixels, and XLA
turns them into a few passes of vector instructions. On a CPU, hue or saturation
then takes a fifth of the time of TensorFlow's own op, which branches for every
pixel.

The same functions process one image on the host, where `jitter` computes only
the effects that are needed, and a batch on an accelerator, where `jitter_each`
computes all effects and selects.

A factor or offset is a scalar, or a tensor that broadcasts with the planes.
"""

import itertools
from typing import NamedTuple

import numpy as np
import tensorflow as tf

# ITU-R BT.601
LUMA = np.float32([0.2989, 0.587, 0.114])

# SimCLR, https://arxiv.org/abs/2002.05709, appendix A: the ranges of color
# jitter at strength 1.
_JITTER_RANGE = 0.8
_JITTER_HUE_RANGE = 0.2

_ORDERS = np.array(list(itertools.permutations(range(4))), np.int32)

# Replaces an effect in an order.
NO_EFFECT = -1


# ------------------------------------------------------------------- planes


def to_planes(images):
  """Converts grey levels [..., height, width, 3] to planes [..., 3, pixels].

  Args:
    images: uint8, or floats in 0..255 whose fractions are dropped; static
      except for the batch dimension.
  """
  *batch, height, width, _ = images.shape.as_list()
  levels = tf.reshape(images, _known(batch) + [height * width, 3])
  if images.dtype != tf.uint8:
    levels = tf.floor(levels)
  planes = tf.linalg.matrix_transpose(tf.cast(levels, tf.float32))
  return planes * (1 / 255)


def to_levels(planes):
  """Converts planes to grey levels, uint8 of the same shape."""
  return tf.cast(planes * 255 + 0.5, tf.uint8)


def interleave(planes, sides):
  """Converts [..., 3, pixels] of any type to [..., *sides, 3]."""
  *batch, _, _ = planes.shape.as_list()
  images = tf.linalg.matrix_transpose(planes)
  return tf.reshape(images, _known(batch) + [*sides, 3])


def _known(batch):
  return [-1 if length is None else length for length in batch]


def _rounded(planes):
  """Rounds to grey levels, like the published pipeline after each step."""
  return tf.floor(_clip(planes) * 255.5) * (1 / 255)


def _clip(planes):
  return tf.clip_by_value(planes, 0.0, 1.0)


# ------------------------------------------------------------------ effects
#
# Planes stay in [0, 1]. TensorFlow's brightness is an offset, its contrast is
# relative to the mean of each channel, and its saturation acts in HSV space.
# The three effects of torchvision are blends: with black, with the mean luma,
# and with the luma of each pixel.


def _luma(planes):
  return tf.reduce_sum(planes * LUMA[:, np.newaxis], axis=-2, keepdims=True)


def _extremes(planes):
  """Returns the value and the chroma of HSV, and the three channels."""
  channels = tf.split(planes, 3, axis=-2)
  red, green, blue = channels
  value = tf.maximum(tf.maximum(red, green), blue)
  chroma = value - tf.minimum(tf.minimum(red, green), blue)
  return value, chroma, channels


def _tf_brightness(planes, delta):
  return _clip(planes + delta)


def _tf_contrast(planes, factor):
  mean = tf.reduce_mean(planes, axis=-1, keepdims=True)
  return _clip((planes - mean) * factor + mean)


def _tf_saturation(planes, factor):
  # The saturation is chroma / value, at most 1.
  value, chroma, _ = _extremes(planes)
  factor = tf.minimum(factor, value / tf.maximum(chroma, _TINY))
  return value + (planes - value) * factor


def _torch_brightness(planes, factor):
  return _clip(factor * planes)


def _torch_contrast(planes, factor):
  mean = tf.reduce_mean(_luma(planes), axis=-1, keepdims=True)
  return _clip(factor * planes + (1 - factor) * mean)


def _torch_saturation(planes, factor):
  return _clip(factor * planes + (1 - factor) * _luma(planes))


def _hue(planes, delta):
  """Rotates the hue, an angle on the hexagon of HSV, by `delta` turns."""
  value, chroma, (red, green, blue) = _extremes(planes)
  scale = 1 / tf.maximum(chroma, _TINY)
  # Compares the channels with each other, not with the value: XLA may compute a
  # channel twice and round it differently. If two are equal, both formulas
  # agree.
  sextants = tf.where(
    tf.logical_and(red >= green, red >= blue),
    (green - blue) * scale,
    tf.where(
      green >= blue,
      (blue - red) * scale + 2,
      (red - green) * scale + 4,
    ),
  )
  # Each channel falls and rises once around the hexagon: it equals value over
  # two sextants, value - chroma over two, and is linear in between.
  position = sextants + 6 * delta + _HUE_OFFSETS
  position -= 6 * tf.floor(position * (1 / 6))
  fall = tf.minimum(tf.minimum(position, 4 - position), 1.0)
  return value - chroma * tf.maximum(fall, 0.0)


_TINY = 1e-20
_HUE_OFFSETS = np.float32([[5], [3], [1]])

# Brightness, contrast, saturation, hue.
_EFFECTS = (_tf_brightness, _tf_contrast, _tf_saturation, _hue)
_PYTORCH_EFFECTS = (_torch_brightness, _torch_contrast, _torch_saturation, _hue)


# ------------------------------------------------------------- color jitter


class Jitter(NamedTuple):
  """Color jitter of one view, or of a batch of views.

  Attributes:
    values: float32 [..., 4], the strengths of brightness, contrast, saturation
      and hue. 0, 1, 1, 0 (TensorFlow's variant) or 1, 1, 1, 0 (torchvision's)
      does not change an image. Hue is an angle in turns.
    order: int32 [..., 4]: a permutation of 0..3, the effects from first to
      last; or NO_EFFECT four times.
  """

  values: tf.Tensor
  order: tf.Tensor


def random_jitter(draws, probability, strength, use_pytorch):
  """Draws random changes of color in random order.

  Args:
    draws: float32 [..., 6], uniform in [0, 1).
    probability: Float [...], probability of a change.
    strength: Python float > 0. Brightness, contrast and saturation vary by up
      to 0.8 times it, hue by up to 0.2 turns times it.
    use_pytorch: Whether the effects are torchvision's or TensorFlow's.

  Returns:
    Jitter.
  """
  span = _JITTER_RANGE * strength
  hue_span = min(_JITTER_HUE_RANGE * strength, 0.5)
  # A factor below 0 would invert the image.
  low_factor, high_factor = max(1 - span, 0), 1 + span
  low = np.float32([-span, low_factor, low_factor, -hue_span])
  high = np.float32([span, high_factor, high_factor, hue_span])
  if use_pytorch:
    low[0], high[0] = low_factor, high_factor

  values = low + (high - low) * draws[..., :4]
  order = tf.gather(_ORDERS, tf.cast(draws[..., 4] * len(_ORDERS), tf.int32))
  is_changed = draws[..., 5] < probability
  return Jitter(values, tf.where(is_changed[..., tf.newaxis], order, NO_EFFECT))


def jitter(planes, change, use_pytorch):
  """Changes the color of one image; costs nothing if there is no change.

  Args:
    planes: float32 [3, pixels].
    change: Jitter of one view.
    use_pytorch: Whether the effects are torchvision's or TensorFlow's.

  Returns:
    float32 [3, pixels], rounded to grey levels.
  """
  values, order = change

  def apply(effect, index, planes):
    return lambda: effect(planes, values[index])

  def step(position, planes):
    branches = [
      apply(effect, index, planes)
      for index, effect in enumerate(_effects(use_pytorch))
    ]
    return position + 1, tf.switch_case(order[position], branches)

  # A loop, because four copies of its body took 40 times as long to compile.
  num_steps = tf.where(order[0] >= 0, len(_ORDERS[0]), 0)
  _, planes = tf.while_loop(
    lambda position, _: position < num_steps, step, (0, planes)
  )
  return _rounded(planes)


def jitter_each(planes, changes, use_pytorch):
  """Changes the color of each image of a batch.

  Args:
    planes: float32 [batch, 3, pixels].
    changes: Jitter of a batch.
    use_pytorch: Whether the effects are torchvision's or TensorFlow's.

  Returns:
    Like `jitter`, [batch, 3, pixels].
  """
  values, order = changes
  for position in range(len(_ORDERS[0])):
    before = planes
    for index, effect in enumerate(_effects(use_pytorch)):
      value = values[:, index, tf.newaxis, tf.newaxis]
      is_next = tf.equal(order[:, position], index)[:, tf.newaxis, tf.newaxis]
      planes = tf.where(is_next, effect(before, value), planes)
  return _rounded(planes)


def _effects(use_pytorch):
  return _PYTORCH_EFFECTS if use_pytorch else _EFFECTS


# ---------------------------------------------------------------- grayscale


def grayscale(planes, is_gray):
  """Replaces each channel by the luma on grey levels, where `is_gray`.

  Args:
    planes: float32 [..., 3, pixels].
    is_gray: bool [...].

  Returns:
    float32 [..., 3, pixels].
  """
  is_gray = is_gray[..., tf.newaxis, tf.newaxis]
  return tf.where(is_gray, _rounded(_luma(planes)), planes)
