"""AutoAugment and RandAugment.

The operations come first. They are pure functions of (image, strength), and are
those of PIL, which both papers use. The policies follow: they determine which
operations are applied, how strongly and how often.

AutoAugment: https://arxiv.org/abs/1805.09501, RandAugment:
  https://arxiv.org/abs/1909.13719. An image is uint8 [height, width, 3] with
  static sides. A strength is a Python number or a scalar tensor. A fill is the
  content beyond the border of an image: a grey level, or None for the mirror
  image.
https://arxiv.org/abs/1909.13719. An image is uint8 [height, width, 3] with
static sides. A strength is a Python number or a scalar tensor. A fill is what
lies beyond the border of an image: a grey level, or None for its mirror image.
"""

from collections.abc import Callable
import enum
import math
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from supcon.data.views import colors

# The grey that fills empty areas in both papers.
_GREY = 128

# PIL's sharpness blurs with weights 1 around a center of 5, over 13. This is
# the image minus the blurred image.
_DETAIL = np.full([3, 3], -1 / 13, np.float32)
_DETAIL[1, 1] = 8 / 13


# ------------------------------------------------------------------- colors
#
# Arithmetic on whole images takes a quarter of the time of tf.where or of a
# table look-up, so these are used only where arithmetic is impossible. Images
# are handled as rows of channel values [width * 3], because broadcasting over
# the three channels alone is slow.


def invert(image):
  """Returns the negative of `image`."""
  return 255 - image


def posterize(image, bits):
  """Keeps the upper `bits` (0 to 8) of each grey level and clears the others.

  Args:
    image: uint8 [height, width, 3].
    bits: int32 scalar or Python int.

  Returns:
    uint8 [height, width, 3].
  """
  mask = 256 - tf.bitwise.left_shift(1, 8 - tf.cast(bits, tf.int32))
  return tf.bitwise.bitwise_and(image, tf.cast(mask, tf.uint8))


def solarize(image, threshold):
  """Inverts pixels >= `threshold`, a grey level from 0 to 256."""
  is_inverted = tf.cast(image, tf.float32) >= tf.cast(threshold, tf.float32)
  return tf.bitwise.bitwise_xor(image, 255 * tf.cast(is_inverted, tf.uint8))


def solarize_add(image, addition):
  """Adds `addition` >= 0 grey levels to pixels darker than 128."""
  levels = tf.cast(image, tf.float32)
  is_dark = tf.cast(levels < 128, tf.float32)
  return _truncate(levels + is_dark * tf.cast(addition, tf.float32))


def brightness(image, factor):
  """Blends with black: 0 gives black, 1 the image, more is brighter."""
  return _truncate(tf.cast(image, tf.float32) * factor)


def contrast(image, factor):
  """Blends with the mean luma: 0 gives grey, 1 the image, more contrast."""
  levels = tf.cast(image, tf.float32)
  mean = tf.reduce_mean(_by_row(levels), axis=0)
  mean = tf.reduce_mean(tf.reshape(mean, [-1, 3]), axis=0)
  grey = tf.round(tf.reduce_sum(mean * colors.LUMA))
  return _blend_with_grey(levels, grey, factor)


def _blend_with_grey(levels, grey, factor):
  return _truncate(levels * factor + (1 - factor) * grey)


def color(image, factor):
  """Blends with each pixel's luma: 0 gives greys, 1 the image, more color."""
  levels = tf.cast(image, tf.float32)
  # The blend is one product of each pixel with a matrix.
  to_luma = np.tile(colors.LUMA[:, np.newaxis], 3)
  matrix = factor * np.eye(3, dtype=np.float32) + (1 - factor) * to_luma
  return _truncate(tf.tensordot(levels, matrix, axes=1))


def sharpness(image, factor):
  """Blends with the blurred image: 0 gives that, 1 the image, more is sharper.

  Args:
    image: uint8 [height, width, 3].
    factor: float32 scalar or Python float, >= 0.

  Returns:
    uint8 [height, width, 3]. Border pixels do not change.
  """
  height, width, _ = image.shape.as_list()
  if min(height, width) < 3:
    return image
  levels = tf.cast(image, tf.float32)[tf.newaxis]
  kernel = np.tile(_DETAIL[:, :, np.newaxis, np.newaxis], [1, 1, 3, 1])
  detail = tf.nn.depthwise_conv2d(levels, kernel, [1, 1, 1, 1], 'VALID')
  detail = tf.pad(detail, [[0, 0], [1, 1], [1, 1], [0, 0]])
  return _truncate(levels + (factor - 1) * detail)[0]


def autocontrast(image):
  """Stretches the grey levels of each channel to 0..255.

  Args:
    image: uint8 [height, width, 3].

  Returns:
    uint8 [height, width, 3]. A constant channel does not change.
  """
  _, width, _ = image.shape.as_list()
  levels = _by_row(tf.cast(image, tf.float32))

  def extreme(reduce):
    per_column = tf.reshape(reduce(levels, axis=0), [width, 3])
    return reduce(per_column, axis=0)

  low, high = extreme(tf.reduce_min), extreme(tf.reduce_max)
  is_flat = tf.equal(low, high)
  low = tf.tile(tf.where(is_flat, 0.0, low), [width])
  span = tf.tile(tf.where(is_flat, 255.0, high), [width]) - low
  # The division comes last, so that the highest level becomes exactly 255.
  stretched = (levels - low) * 255 / span
  return tf.reshape(tf.cast(stretched, tf.uint8), image.shape)


def equalize(image):
  """Makes the grey levels of each channel about equally frequent.

  Args:
    image: uint8 [height, width, 3].

  Returns:
    uint8 [height, width, 3]. A constant channel does not change.
  """
  height, width, _ = image.shape.as_list()
  # Indices into three consecutive histograms or tables of 256 entries.
  channel_starts = np.tile(np.int32([0, 256, 512]), width)
  entries = _by_row(tf.cast(image, tf.int32)) + channel_starts
  counts = tf.raw_ops.DenseBincount(
    input=tf.reshape(entries, [-1]),
    size=3 * 256,
    weights=tf.constant([], tf.int32),
  )
  counts = tf.reshape(counts, [3, 256])
  up_to = tf.cumsum(counts, axis=1)
  # Number of pixels darker than the brightest level that occurs.
  darker = tf.reduce_max(
    tf.where(up_to < height * width, up_to, 0), axis=1, keepdims=True
  )
  step = darker // 255
  table = (up_to - counts + step // 2) // tf.maximum(step, 1)
  table = tf.where(step > 0, tf.minimum(table, 255), tf.range(256))
  table = tf.reshape(tf.cast(table, tf.uint8), [-1])
  # tf.gather is slower: it copies byte by byte.
  equalized = tf.gather_nd(table, entries[..., tf.newaxis])
  return tf.reshape(equalized, image.shape)


def _by_row(image):
  height, width, _ = image.shape.as_list()
  return tf.reshape(image, [height, width * 3])


def _truncate(levels):
  """Converts float32 to uint8 like PIL: clips, and drops fractions."""
  clipped = tf.raw_ops.ClipByValue(
    t=levels, clip_value_min=0.0, clip_value_max=255.0
  )
  return tf.cast(clipped, tf.uint8)


# ----------------------------------------------------------------- geometry


def shear_x(image, slope, fill):
  """Moves each row to the left, by `slope` pixels more than the one above."""
  height, width, _ = image.shape.as_list()
  rows, columns = _pixel_centers(height, width)
  return _sample(image, rows, columns + _fixed_point(slope) * rows, fill)


def shear_y(image, slope, fill):
  """Moves each column up, by `slope` pixels more than the one before."""
  height, width, _ = image.shape.as_list()
  rows, columns = _pixel_centers(height, width)
  return _sample(image, rows + _fixed_point(slope) * columns, columns, fill)


def translate_x(image, pixels, fill):
  """Moves `image` to the left."""
  height, width, _ = image.shape.as_list()
  rows, columns = _pixel_centers(height, width)
  return _sample(image, rows, columns + pixels, fill)


def translate_y(image, pixels, fill):
  """Moves `image` up."""
  height, width, _ = image.shape.as_list()
  rows, columns = _pixel_centers(height, width)
  return _sample(image, rows + pixels, columns, fill)


def rotate(image, degrees, fill):
  """Rotates `image` counterclockwise around its center."""
  height, width, _ = image.shape.as_list()
  rows, columns = _pixel_centers(height, width)
  rows, columns = rows - height / 2, columns - width / 2
  radians = degrees * (math.pi / 180)
  cosine, sine = tf.cos(radians), tf.sin(radians)
  return _sample(
    image,
    (cosine * rows + height / 2) + sine * columns,
    (cosine * columns + width / 2) - sine * rows,
    fill,
  )


def cutout(image, half_side, center):
  """Covers a square with grey, https://arxiv.org/abs/1708.04552.

  Args:
    image: uint8 [height, width, 3].
    half_side: Half the side of the square in pixels.
    center: float32 [2] in [0, 1), the square's center: the fraction of the
      image above it, and the fraction to its left. The square may extend beyond
      the image.

  Returns:
    uint8 [height, width, 3].
  """
  height, width, _ = image.shape.as_list()
  half_side = tf.cast(half_side, tf.float32)

  def is_kept(length, center):
    distances = np.arange(length, dtype=np.float32) - tf.floor(center * length)
    return (distances < -half_side) | (distances >= half_side)

  rows = is_kept(height, center[0])[:, tf.newaxis]
  columns = tf.repeat(is_kept(width, center[1]), 3)
  kept = 255 * tf.cast(rows | columns, tf.uint8)
  # Where `kept` is 0, the result is 0 xor grey.
  levels = tf.bitwise.bitwise_and(_by_row(image) ^ _GREY, kept) ^ _GREY
  return tf.reshape(levels, image.shape)


def _pixel_centers(height, width):
  """Returns float32 [height, 1] and [1, width]: 0.5, 1.5 and so on."""
  rows = np.arange(height, dtype=np.float32) + 0.5
  columns = np.arange(width, dtype=np.float32) + 0.5
  return rows[:, np.newaxis], columns[np.newaxis]


def _fixed_point(slope):
  """Rounds to 16 bits like PIL, which decides ties between two pixels."""
  return tf.round(slope * 2.0**16) / 2.0**16


def _sample(image, rows, columns, fill):
  """Looks up the nearest pixels.

  Args:
    image: uint8 [height, width, 3].
    rows: float32 [height or 1, width or 1], the source row in `image` of each
      pixel of the result. Pixel 0 covers 0 to 1.
    columns: The source columns, in the same form.
    fill: The content beyond the border: a grey level, or None to mirror.

  Returns:
    uint8 [height, width, 3].
  """
  height, width, _ = image.shape.as_list()
  if fill is None:
    locate, stride = _mirrored, width
  else:
    locate, stride = _in_frame, width + 2
    frame = [[1, 1], [1, 1], [0, 0]]
    image = tf.pad(image, frame, constant_values=fill)
  indices = locate(rows, height) * stride + locate(columns, width)
  pixels = tf.reshape(image, [-1, 3])
  return tf.gather_nd(pixels, indices[..., tf.newaxis])


def _mirrored(positions, length):
  """Returns indices of an axis that is mirrored beyond its ends."""
  period = 2 * length
  positions -= period * tf.floor(positions / period)
  positions = length - tf.abs(length - positions)
  return tf.minimum(tf.cast(positions, tf.int32), length - 1)


def _in_frame(positions, length):
  """Returns indices of an axis with one extra, endless pixel at each end."""
  # Shifted before the cast, because the cast rounds toward 0.
  positions = tf.raw_ops.ClipByValue(
    t=positions + 1, clip_value_min=0.0, clip_value_max=length + 1.0
  )
  return tf.cast(positions, tf.int32)


# --------------------------------------------------------------- operations


class _Chance(enum.Enum):
  """The part of an operation that is random, besides whether to apply it."""

  NOTHING = 0
  SIGN = 1  # The sign of the strength.
  POSITION = 2


class _Operation(NamedTuple):
  """An operation in a policy.

  Attributes:
    function: A function (image, strength) -> image; with a random position,
      (image, strength, float32 [2] in [0, 1)) -> image.
    strength: A function from the level of a policy, 0 to 10, to the strength.
    chance: The part of it that is random.
  """

  function: Callable
  strength: Callable[[float], float]
  chance: _Chance = _Chance.NOTHING


def _times(largest):
  """Strengths proportional to the level; `largest` at level 10."""
  return lambda level: level / 10 * largest


def _whole(largest):
  """Like `_times`, rounded down."""
  return lambda level: int(level / 10 * largest)


def _factor(level):
  return level / 10 * 1.8 + 0.1


def _bits(level):
  # With 0 bits nothing of the image would be left.
  return min(max(int(level / 10 * 4), 1), 8)


def _threshold(level):
  # Published as 8 bits, where 256 wraps to 0: level 10 inverts the whole image.
  return int(level / 10 * 256) % 256


def _operations(translation, fill):
  """Returns the operations by name.

  Args:
    translation: The distance in pixels at level 10.
    fill: The content that moves in from beyond the border.
  """

  def plain(function):
    return _Operation(lambda image, _: function(image), lambda _: 0.0)

  def moving(function, strength):
    return _Operation(
      lambda image, amount: function(image, amount, fill),
      strength,
      _Chance.SIGN,
    )

  return {
    'autocontrast': plain(autocontrast),
    'equalize': plain(equalize),
    'invert': plain(invert),
    'posterize': _Operation(posterize, _bits),
    'solarize': _Operation(solarize, _threshold),
    'solarize_add': _Operation(solarize_add, _whole(110)),
    'color': _Operation(color, _factor),
    'contrast': _Operation(contrast, _factor),
    'brightness': _Operation(brightness, _factor),
    'sharpness': _Operation(sharpness, _factor),
    'shear_x': moving(shear_x, _times(0.3)),
    'shear_y': moving(shear_y, _times(0.3)),
    'translate_x': moving(translate_x, _times(translation)),
    'translate_y': moving(translate_y, _times(translation)),
    'rotate': moving(rotate, _times(30)),
    'cutout': _Operation(cutout, _whole(40), _Chance.POSITION),
  }


def _published_contrast(image, factor):
  """Blends with the grey level (number of pixels) / 256.

  The published RandAugment does this, although the paper means the mean luma.
  At 224 pixels the level is 196, a light grey.
  """
  height, width, _ = image.shape.as_list()
  grey = min(height * width // 256, 255)
  return _blend_with_grey(tf.cast(image, tf.float32), grey, factor)


def _apply(image, operations, index, strength, draws):
  """Applies one operation; the others cost nothing.

  Args:
    image: uint8 [height, width, 3].
    operations: List of _Operation.
    index: int32 scalar, the index of the operation; their number for none.
    strength: float32 scalar, before a random sign.
    draws: float32 [3], uniform in [0, 1).

  Returns:
    uint8 [height, width, 3].
  """
  signed = tf.where(draws[0] < 0.5, -strength, strength)
  arguments = {
    _Chance.NOTHING: [strength],
    _Chance.SIGN: [signed],
    _Chance.POSITION: [strength, draws[1:]],
  }

  def branch(operation):
    return lambda: operation.function(image, *arguments[operation.chance])

  branches = [branch(operation) for operation in operations]
  return tf.switch_case(index, [*branches, lambda: image])


# -------------------------------------------------------------- AutoAugment


class Policy(NamedTuple):
  """A policy of AutoAugment.

  Attributes:
    sub_policies: Each consists of two operations (operation, probability,
      level), applied one after the other. One is chosen per image.
    operations: The operations by name.
  """

  sub_policies: tuple
  operations: dict[str, _Operation]


# The policy of the published results, 'v0' of the authors' TPU models. (Table 9
# of the paper differs.) The mirror image moves in from the border, and the
# distances are long: 250 pixels at level 10.
IMAGENET_POLICY = Policy(
  sub_policies=(
    (('equalize', 0.8, 1), ('shear_y', 0.8, 4)),
    (('color', 0.4, 9), ('equalize', 0.6, 3)),
    (('color', 0.4, 1), ('rotate', 0.6, 8)),
    (('solarize', 0.8, 3), ('equalize', 0.4, 7)),
    (('solarize', 0.4, 2), ('solarize', 0.6, 2)),
    (('color', 0.2, 0), ('equalize', 0.8, 8)),
    (('equalize', 0.4, 8), ('solarize_add', 0.8, 3)),
    (('shear_x', 0.2, 9), ('rotate', 0.6, 8)),
    (('color', 0.6, 1), ('equalize', 1.0, 2)),
    (('invert', 0.4, 9), ('rotate', 0.6, 0)),
    (('equalize', 1.0, 9), ('shear_y', 0.6, 3)),
    (('color', 0.4, 7), ('equalize', 0.6, 0)),
    (('posterize', 0.4, 6), ('autocontrast', 0.4, 7)),
    (('solarize', 0.6, 8), ('color', 0.6, 9)),
    (('solarize', 0.2, 4), ('rotate', 0.8, 9)),
    (('rotate', 1.0, 7), ('translate_y', 0.8, 9)),
    (('shear_x', 0.0, 0), ('solarize', 0.8, 4)),
    (('shear_y', 0.8, 0), ('color', 0.6, 4)),
    (('color', 1.0, 0), ('rotate', 0.6, 2)),
    (('equalize', 0.8, 4), ('equalize', 0.0, 8)),
    (('equalize', 1.0, 4), ('autocontrast', 0.6, 2)),
    (('shear_y', 0.4, 7), ('solarize_add', 0.6, 7)),
    (('posterize', 0.8, 2), ('solarize', 0.6, 10)),
    (('solarize', 0.6, 8), ('equalize', 0.6, 1)),
    (('color', 0.8, 6), ('rotate', 0.4, 5)),
  ),
  operations=_operations(translation=250, fill=None),
)

# Table 7 of the paper.
CIFAR10_POLICY = Policy(
  sub_policies=(
    (('invert', 0.1, 7), ('contrast', 0.2, 6)),
    (('rotate', 0.7, 2), ('translate_x', 0.3, 9)),
    (('sharpness', 0.8, 1), ('sharpness', 0.9, 3)),
    (('shear_y', 0.5, 8), ('translate_y', 0.7, 9)),
    (('autocontrast', 0.5, 8), ('equalize', 0.9, 2)),
    (('shear_y', 0.2, 7), ('posterize', 0.3, 7)),
    (('color', 0.4, 3), ('brightness', 0.6, 7)),
    (('sharpness', 0.3, 9), ('brightness', 0.7, 9)),
    (('equalize', 0.6, 5), ('equalize', 0.5, 1)),
    (('contrast', 0.6, 7), ('sharpness', 0.6, 5)),
    (('color', 0.7, 7), ('translate_x', 0.5, 8)),
    (('equalize', 0.3, 7), ('autocontrast', 0.4, 8)),
    (('translate_y', 0.4, 3), ('sharpness', 0.2, 6)),
    (('brightness', 0.9, 6), ('color', 0.2, 8)),
    (('solarize', 0.5, 2), ('invert', 0.0, 3)),
    (('equalize', 0.2, 0), ('autocontrast', 0.6, 0)),
    (('equalize', 0.2, 8), ('equalize', 0.6, 4)),
    (('color', 0.9, 9), ('equalize', 0.6, 6)),
    (('autocontrast', 0.8, 4), ('solarize', 0.2, 8)),
    (('brightness', 0.1, 3), ('color', 0.7, 0)),
    (('solarize', 0.4, 5), ('autocontrast', 0.9, 3)),
    (('translate_y', 0.9, 9), ('translate_y', 0.7, 9)),
    (('autocontrast', 0.9, 2), ('solarize', 0.8, 3)),
    (('equalize', 0.8, 8), ('invert', 0.1, 3)),
    (('translate_y', 0.7, 9), ('autocontrast', 0.9, 1)),
  ),
  operations={
    **_operations(translation=10, fill=_GREY),
    # In this policy, a higher level inverts more pixels.
    'solarize': _Operation(solarize, lambda level: 256 - _whole(256)(level)),
  },
)


def auto_augment(image, seed, policy):
  """Applies a random sub-policy.

  Args:
    image: uint8 [height, width, 3].
    seed: int32 or int64 [2].
    policy: Policy.

  Returns:
    uint8 [height, width, 3].
  """
  # Arrays [sub-policies, 2]; one row is chosen.
  names, probabilities, levels = np.moveaxis(
    np.array(policy.sub_policies, object), 2, 0
  )
  used = sorted(set(names.flat))
  operations = [policy.operations[name] for name in used]
  indices = np.vectorize(used.index)(names).astype(np.int32)
  strengths = np.vectorize(
    lambda name, level: float(policy.operations[name].strength(level))
  )(names, levels)

  choice_seed, draw_seed = tf.unstack(tf.random.split(seed))
  choice = tf.random.stateless_uniform(
    [], choice_seed, maxval=len(names), dtype=tf.int32
  )
  draws = tf.random.stateless_uniform([2, 4], draw_seed)
  is_applied = draws[:, 0] < _row(probabilities, choice)
  indices = tf.where(is_applied, tf.gather(indices, choice), len(operations))
  strengths = _row(strengths, choice)
  for step in range(2):
    image = _apply(
      image, operations, indices[step], strengths[step], draws[step, 1:]
    )
  return image


def _row(table, index):
  return tf.gather(table.astype(np.float32), index)


# -------------------------------------------------------------- RandAugment

# As in the published results. Distances in pixels do not depend on the size of
# the image: at 32 pixels and level 10, cutout covers everything.
_RANDAUGMENT_OPERATIONS = {
  **_operations(translation=100, fill=None),
  'contrast': _Operation(_published_contrast, _factor),
}


def rand_augment(image, seed, num_layers, magnitude):
  """Applies random operations of the same level, one after the other.

  Each operation is one of the 16 or none, all with equal probability.

  Args:
    image: uint8 [height, width, 3].
    seed: int32 or int64 [2].
    num_layers: Python int, number of operations.
    magnitude: Python float > 0, the level of all operations; 10 is strong.

  Returns:
    uint8 [height, width, 3].
  """
  operations = list(_RANDAUGMENT_OPERATIONS.values())
  strengths = tf.constant(
    [float(operation.strength(magnitude)) for operation in operations] + [0.0]
  )
  choice_seed, draw_seed = tf.unstack(tf.random.split(seed))
  choices = tf.random.stateless_uniform(
    [num_layers], choice_seed, maxval=len(operations) + 1, dtype=tf.int32
  )
  draws = tf.random.stateless_uniform([num_layers, 3], draw_seed)
  for step in range(num_layers):
    image = _apply(
      image,
      operations,
      choices[step],
      tf.gather(strengths, choices[step]),
      draws[step],
    )
  return image
