"""Prepares image files that TensorFlow's decoders would not show correctly.

`readable` converts a file to one that `image_ops.decode` shows correctly, or
rejects it. Sources of user files call it when they read a file; for data sets
in memory, only once:

- A rotated camera stores the image as it lies on the sensor, and notes its
  rotation in EXIF. `readable` looks up the note once and puts it where it can
  be found quickly: `turn_of` reads it, and `turned` applies it. Records of TFDS
  have no such mark and are decoded as they are stored, as for the published
  results.
- In a BMP, TensorFlow mistakes indices into a palette for grey levels, and any
  32 bits for blue, green, red, alpha.
- A few bytes may declare an image that does not fit into any memory.
"""

import numpy as np
import tensorflow as tf

# Slightly more than a hundred megapixels: 400 MB when decoded.
MAX_PIXELS = 2**27

# The steps that make a stored image upright, for EXIF's orientations 1 to 8:
# swap rows and columns; then mirror top to bottom; then left to right.
_TURNS = np.array(
  [
    [False, False, False],
    [False, False, True],
    [False, True, True],
    [False, True, False],
    [True, False, False],
    [True, False, True],
    [True, True, True],
    [True, True, False],
  ]
)

# The start of a marked JPEG: an application segment, which decoders skip, that
# holds the orientation, 2 to 8.
_MARKED = [
  b'\xff\xd8\xff\xef\x00\x09supcon' + bytes([orientation])
  for orientation in range(2, 9)
]
_MARK_LENGTH = len(_MARKED[0])

# Maximum number of segments before EXIF's. There are rarely more than two, but
# a color profile may take several.
_MAX_SEGMENTS = 300
_ORIENTATION_TAG = 0x112
_SHORT, _LONG = 3, 4  # Types of the tag's value.

# Masks of red, green and blue if 32 bits are blue, green, red, alpha.
_USUAL_MASKS = np.array([0xFF0000, 0xFF00, 0xFF], np.int32)


def readable(encoded: tf.Tensor) -> tf.Tensor:
  """Converts a file so that `image_ops.decode` decodes it correctly.

  Args:
    encoded: A string scalar, the bytes of a file.

  Returns:
    A string scalar: a PNG for a BMP that TensorFlow would misread; a marked
    JPEG for one that has to be turned; otherwise the same bytes. An image of
    more than MAX_PIXELS pixels is an error when the graph runs, and so is a BMP
    of an unsupported kind.
  """
  return tf.case(
    [
      (_starts_with(encoded, start), _aside(function, encoded))
      for start, function in (
        (b'\xff\xd8\xff', _of_jpeg),
        (b'\x89PNG', _of_png),
        (b'BM', _of_bmp),
        (b'GIF8', _of_gif),
      )
    ],
    default=lambda: tf.identity(encoded),
    exclusive=False,
  )


def _aside(function, *inputs):
  """Returns a branch that costs almost nothing if it is not taken.

  Otherwise all its ops are part of the surrounding graph, which has to be told
  about each of them that it is not computed.
  """
  aside = tf.function(
    function,
    autograph=False,
    experimental_attributes={'_noinline': True},
  )
  return lambda: aside(*inputs)


def turn_of(encoded: tf.Tensor) -> tf.Tensor:
  """Returns how to turn the image of a file from `readable`.

  Args:
    encoded: A string scalar, the bytes of a file.

  Returns:
    int32 [], 0 for an upright image; otherwise the argument of `turned`.
  """
  head = tf.strings.substr(encoded, 0, _MARK_LENGTH)
  numbers = tf.range(1, len(_TURNS))
  return tf.reduce_max(tf.where(tf.equal(head, _MARKED), numbers, 0))


def upright_shape(shape, turn):
  """Returns the shape of an image after turning.

  Args:
    shape: int32 [2], height and width as stored.
    turn: int32 [], the result of `turn_of`.
  """
  return tf.where(_steps(turn)[0], shape[::-1], shape)


def stored_window(window, shape, turn):
  """Returns where a window of the turned image is stored.

  Args:
    window: int32 [4], top, left, height and width.
    shape: int32 [2], height and width of the turned image.
    turn: int32 [], the result of `turn_of`.
  """
  steps = _steps(turn)
  begin, size = window[:2], window[2:]
  begin = tf.where(steps[1:], shape - begin - size, begin)
  return tf.where(
    steps[0],
    tf.concat([begin[::-1], size[::-1]], axis=0),
    tf.concat([begin, size], axis=0),
  )


def turned(image, turn):
  """Turns an image, or a window of it, that was decoded as stored.

  Args:
    image: [height, width, channels].
    turn: int32 [], the result of `turn_of`.
  """
  steps = _steps(turn)
  result = tf.transpose(image, tf.where(steps[0], [1, 0, 2], [0, 1, 2]))
  result = tf.reverse(result, tf.boolean_mask([0, 1], steps[1:]))
  return tf.ensure_shape(result, [None, None, image.shape[-1]])


def _steps(turn):
  return tf.gather(_TURNS, turn)


def _starts_with(encoded, start):
  return tf.equal(tf.strings.substr(encoded, 0, len(start)), start)


def _part(encoded, begin, count):
  """Returns a part of the file, a string []; shorter at its end."""
  # Beyond the end, substr would raise an error that quotes the file.
  begin = tf.clip_by_value(begin, 0, tf.strings.length(encoded))
  return tf.strings.substr(encoded, begin, count)


def _bytes_at(encoded, begin, count):
  """Returns int32 [count], 0 beyond the end of the file."""
  piece = _part(encoded, begin, count)
  # decode_raw cannot return 0 bytes.
  found = tf.io.decode_raw(piece, tf.uint8, fixed_length=tf.maximum(count, 1))
  return tf.cast(found, tf.int32)[:count]


def _number(digits, is_little=True):
  """Converts bytes, int32 [..., n], to int32 [...]; static n, at most 4."""
  weights = np.array([1, 2**8, 2**16, 2**24])[: digits.shape[-1]]
  weights = tf.where(is_little, weights.astype(np.int32), weights[::-1])
  return tf.reduce_sum(digits * tf.cast(weights, tf.int32), axis=-1)


def _checked(encoded, height, width):
  """Returns the file; it is an error if its image is too large."""
  pixels = tf.cast(tf.abs(height), tf.int64) * tf.cast(tf.abs(width), tf.int64)
  check = tf.debugging.Assert(
    pixels <= MAX_PIXELS,
    [
      'it says that it has',
      height,
      'x',
      width,
      f'pixels; expected at most {MAX_PIXELS}; make it smaller',
    ],
  )
  with tf.control_dependencies([check]):
    return tf.identity(encoded)


def _of_png(encoded):
  header = _bytes_at(encoded, 16, 8)
  width, height = tf.unstack(
    _number(tf.reshape(header, [2, 4]), is_little=False)
  )
  return _checked(encoded, height, width)


def _of_gif(encoded):
  header = _bytes_at(encoded, 6, 4)
  width, height = tf.unstack(_number(tf.reshape(header, [2, 2])))
  return _checked(encoded, height, width)


# -------------------------------------------------------------------- JPEG


def _of_jpeg(encoded):
  height, width, _ = tf.unstack(tf.io.extract_jpeg_shape(encoded))
  turn = _orientation(encoded) - 1

  def marked():
    rest = tf.strings.substr(encoded, 2, tf.strings.length(encoded) - 2)
    return tf.strings.join([tf.gather([b'', *_MARKED], turn), rest])

  encoded = _checked(encoded, height, width)
  return tf.cond(turn > 0, marked, lambda: tf.identity(encoded))


def _orientation(encoded):
  """Returns the EXIF orientation of a JPEG; int32 [], 1 to 8.

  It is 1, upright, if it is missing or violates the standard.
  """
  # Most files begin with the 18 bytes of JFIF, and no other application segment
  # follows. Walking through segments takes five times as long.
  head = _bytes_at(encoded, 2, 20)
  is_jfif = tf.equal(head[1], 0xE0) & tf.equal(head[3], 16)
  marker = tf.where(is_jfif, head[19], head[1])
  return tf.cond(
    _may_precede_exif(marker), _aside(_walk, encoded), lambda: tf.constant(1)
  )


def _may_precede_exif(marker):
  """Whether a segment is for applications, a comment, or padding."""
  return (marker >= 0xE0) & (marker <= 0xEF) | (marker >= 0xFE)


def _walk(encoded):
  """Returns the `_orientation` of a file that may have one."""

  def head_at(position):
    """Returns marker, length and first bytes of a segment."""
    return _bytes_at(encoded, position, 10)

  def is_exif(head):
    expected = np.frombuffer(b'\xff\xe1__Exif\0\0', np.uint8).astype(np.int32)
    is_equal = tf.equal(head, expected)
    return tf.reduce_all(is_equal[:2]) & tf.reduce_all(is_equal[4:])

  def may_precede(_, head):
    is_skipped = _may_precede_exif(head[1]) & ~is_exif(head)
    return tf.equal(head[0], 0xFF) & is_skipped

  def following(position, head):
    length = 2 + _number(head[2:4], is_little=False)
    position += tf.where(tf.equal(head[1], 0xFF), 1, length)
    return position, head_at(position)

  begin = tf.constant(2)
  position, head = tf.while_loop(
    may_precede,
    following,
    [begin, head_at(begin)],
    maximum_iterations=_MAX_SEGMENTS,
  )
  return tf.cond(
    is_exif(head), lambda: _noted(encoded, position + 10), lambda: 1
  )


def _noted(encoded, begin):
  """Returns the orientation in the EXIF data at `begin`."""
  byte_order = _bytes_at(encoded, begin, 2)
  is_little = tf.reduce_all(tf.equal(byte_order, ord('I')))
  is_known = is_little | tf.reduce_all(tf.equal(byte_order, ord('M')))

  def number(digits):
    return _number(digits, is_little)

  directory = begin + number(_bytes_at(encoded, begin + 4, 4))
  count = number(_bytes_at(encoded, directory, 2))
  entries = _bytes_at(encoded, directory + 2, 12 * count)
  # [tag, type, number of values, value]
  entries = tf.reshape(entries, [-1, 12])
  kinds = number(entries[:, 2:4])
  values = tf.where(
    tf.equal(kinds, _SHORT),
    number(entries[:, 8:10]),
    tf.where(tf.equal(kinds, _LONG), number(entries[:, 8:12]), 0),
  )
  is_one = tf.equal(number(entries[:, :2]), _ORIENTATION_TAG)
  found = tf.reduce_max(tf.where(is_one, values, 0))
  is_valid = is_known & (found >= 1) & (found <= len(_TURNS))
  return tf.where(is_valid, found, 1)


# --------------------------------------------------------------------- BMP


def _of_bmp(encoded):
  """Returns a PNG for a BMP that TensorFlow would decode incorrectly."""
  head = _bytes_at(encoded, 0, 66)
  pixels = _number(head[10:14])
  header_size = _number(head[14:18])
  # The header of OS/2 is short: 12 bytes, with sides of 16 bits.
  is_short = tf.equal(header_size, 12)
  width, height, bits, compression = tf.unstack(
    tf.where(
      is_short,
      [_number(head[18:20]), _number(head[20:22]), _number(head[24:26]), 0],
      [
        _number(head[18:22]),
        _number(head[22:26]),
        _number(head[28:30]),
        _number(head[30:34]),
      ],
    )
  )
  # Bit fields in the usual order.
  masks = _number(tf.reshape(head[54:66], [3, 4]))
  is_usual = tf.equal(compression, 3) & tf.equal(bits, 32)
  is_usual &= tf.reduce_all(tf.equal(masks, _USUAL_MASKS))
  has_palette = tf.reduce_any(tf.equal(bits, [1, 2, 4, 8]))
  has_colors = tf.equal(bits, 24) | tf.equal(bits, 32)
  is_known = tf.equal(compression, 0) & (has_palette | has_colors) | is_usual
  check = tf.debugging.Assert(
    is_known & (width > 0) & (height != 0),
    [
      'it is a BMP of',
      width,
      'x',
      height,
      'pixels of',
      bits,
      'bits, compression',
      compression,
      '(1 and 2 are RLE); expected 1, 2, 4, 8, 24 or 32 bits, compression 0; '
      'save it as PNG',
    ],
  )
  with tf.control_dependencies([check]):
    encoded = _checked(encoded, height, width)

  def rewritten():
    bytes_per_color = tf.where(is_short, 3, 4)
    begin = 14 + header_size  # Start of the palette.
    end = tf.minimum(pixels, begin + bytes_per_color * 2**bits)
    num_colors = tf.maximum(end - begin, 0) // bytes_per_color
    rows = _bmp_rows(encoded, pixels, height, width * bits)
    image = tf.cond(
      has_palette,
      lambda: tf.gather(
        _colors(encoded, begin, num_colors, bytes_per_color),
        _indices(rows, bits, width),
      ),
      lambda: _colors_of_rows(rows, bits // 8, width),
    )
    return tf.io.encode_png(image)

  return tf.cond(has_palette | is_short, rewritten, lambda: encoded)


def _bmp_rows(encoded, begin, height, bits_per_row):
  """Returns uint8 [height, bytes per row], topmost row first."""
  stride = (bits_per_row + 31) // 32 * 4
  rows = _part(encoded, begin, tf.abs(height) * stride)
  rows = tf.reshape(tf.io.decode_raw(rows, tf.uint8), [tf.abs(height), stride])
  # The lowest row is stored first, unless the height is negative.
  return tf.cond(height > 0, lambda: rows[::-1], lambda: rows)


def _colors(encoded, begin, count, size):
  """Returns the palette, uint8 [count, 3]."""
  colors = _bytes_at(encoded, begin, count * size)
  colors = tf.reshape(colors, [count, size])
  # Blue, green, red, and possibly a byte without meaning.
  return tf.cast(colors[:, 2::-1], tf.uint8)


def _indices(rows, bits, width):
  """Returns int32 [height, width], the palette index of each pixel."""
  # A byte holds several pixels, the first one in its highest bits.
  shifts = tf.range(8 - bits, -1, -bits)
  rows = tf.cast(rows, tf.int32)[..., tf.newaxis]
  rows = tf.bitwise.right_shift(rows, shifts)
  rows = tf.bitwise.bitwise_and(rows, tf.bitwise.left_shift(1, bits) - 1)
  height, stride, per_byte = tf.unstack(tf.shape(rows))
  return tf.reshape(rows, [height, stride * per_byte])[:, :width]


def _colors_of_rows(rows, bytes_per_pixel, width):
  """Returns uint8 [height, width, 3] from rows of colors."""
  height = tf.shape(rows)[0]
  rows = rows[:, : width * bytes_per_pixel]
  return tf.reshape(rows, [height, width, bytes_per_pixel])[..., 2::-1]
