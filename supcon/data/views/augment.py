"""The operations of AutoAugment and RandAugment.

They are pure functions of (image, strength), and are those of PIL, which both
papers use; `policies` applies them. An image is uint8 [height, width, 3] with
static sides. A strength is a Python number or a scalar tensor. A fill is the
content beyond the border of an image: a grey level, or None for the mirror
image.
"""

import math

import numpy as np
import tensorflow as tf

from supcon.data.views import colors

# The grey that fills empty areas in both papers.
GREY = 128

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
  return blend_with_grey(levels, grey, factor)


def blend_with_grey(levels, grey, factor):
  """Blends float32 levels with one grey level, which may be a tensor."""
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
  levels = tf.bitwise.bitwise_and(_by_row(image) ^ GREY, kept) ^ GREY
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
