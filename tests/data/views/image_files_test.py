"""Tests of supcon.data.views.image_files; Pillow says what files show."""

import io
import struct
import zlib

import numpy as np
from PIL import Image
from PIL import ImageOps
import pytest
import tensorflow as tf

from supcon.data.views import image_files
from supcon.data.views import image_ops

_ORIENTATION = 0x112


def _noise(height, width, seed=0):
  levels = np.random.RandomState(seed).randint(0, 256, (height, width, 3))
  return levels.astype(np.uint8)


def _encoded(image, kind, **options):
  file = io.BytesIO()
  image.save(file, kind, **options)
  return file.getvalue()


_readable = tf.function(
  image_files.readable, [tf.TensorSpec([], tf.string)], autograph=False
)


def _decoded(data):
  return image_ops.decode(_readable(data)).numpy()


def _seen_by_pillow(data):
  return np.asarray(Image.open(io.BytesIO(data)).convert('RGB'))


def _refusal(data):
  """Returns the message with which a file is refused."""
  with pytest.raises(tf.errors.InvalidArgumentError) as error:
    _decoded(data)
  return error.value.message


# --- Turned -------------------------------------------------------------------


def _picture():
  """16 x 24 pixels without any symmetry, which JPEG hardly changes."""
  return Image.fromarray(_noise(2, 3)).resize((24, 16), Image.BILINEAR)


def _of_camera(orientation, **options):
  exif = Image.Exif()
  exif[_ORIENTATION] = orientation
  return _encoded(_picture(), 'JPEG', exif=exif, quality=95, **options)


def _turned_by_pillow(stored, orientation):
  image = Image.fromarray(stored)
  image.getexif()[_ORIENTATION] = orientation
  return np.asarray(ImageOps.exif_transpose(image))


@pytest.mark.parametrize('orientation', range(1, 9))
def test_orientations_are_pillows(orientation):
  encoded = _of_camera(orientation)
  stored = tf.io.decode_jpeg(encoded).numpy()
  expected = _turned_by_pillow(stored, orientation)
  assert expected.shape[0] == (16 if orientation < 5 else 24)
  np.testing.assert_array_equal(_decoded(encoded), expected)


@pytest.mark.parametrize('decode_whole', [True, False])
@pytest.mark.parametrize('orientation', range(1, 9))
def test_windows_are_those_of_the_upright_image(orientation, decode_whole):
  encoded = _readable(_of_camera(orientation))
  upright = image_ops.decode(encoded).numpy()
  windows = [(1, 2, 3, 5), (4, 0, 12, 7), (0, 0, *upright.shape[:2])]

  def choose(shape):
    assert shape.numpy().tolist() == [*upright.shape[:2]]
    return [tf.constant(window) for window in windows]

  crops = image_ops.decode_crops(encoded, choose, decode_whole)
  for found, (top, left, height, width) in zip(crops, windows, strict=True):
    expected = upright[top : top + height, left : left + width].astype(int)
    assert found.shape == expected.shape
    # Alone, the border of a window has its chroma smoothed otherwise.
    tolerance = 0 if decode_whole else 16
    assert np.abs(found.numpy() - expected).max() <= tolerance


def test_files_that_are_upright_are_not_touched():
  for data in (
    _of_camera(1),
    _encoded(_picture(), 'JPEG'),
    _encoded(_picture(), 'PNG'),
    _encoded(_picture(), 'GIF'),
    _encoded(_picture(), 'BMP'),
    b'',
    b'\xff\xd8',
    b'some text',
  ):
    assert _readable(data).numpy() == data
    assert image_files.turn_of(tf.constant(data)).numpy() == 0


def test_what_is_not_made_readable_is_decoded_as_it_is_stored():
  # As records of TFDS are.
  encoded = _of_camera(6)
  np.testing.assert_array_equal(
    image_ops.decode(tf.constant(encoded)), tf.io.decode_jpeg(encoded)
  )


def _exif(entries, order='<', offset=8):
  """The segment of EXIF with (tag, type, value as it is stored)."""
  tiff = {'<': b'II*\0', '>': b'MM\0*'}.get(order, b'XX*\0')
  order = order if order in '<>' else '<'
  tiff += struct.pack(order + 'I', offset) + bytes(offset - 8)
  tiff += struct.pack(order + 'H', len(entries))
  for tag, kind, value in entries:
    tiff += struct.pack(order + 'HHI', tag, kind, 1) + value.ljust(4, b'\0')
  return _segment(0xE1, b'Exif\0\0' + tiff)


def _segment(marker, data):
  return struct.pack('>BBH', 0xFF, marker, len(data) + 2) + data


def _with_segments(*segments):
  plain = _encoded(_picture(), 'JPEG')
  return plain[:2] + b''.join(segments) + plain[2:]


_SIX = [(_ORIENTATION, 3, b'\6\0')]
_SIX_REVERSED = [(_ORIENTATION, 3, b'\0\6')]
_JFIF = _segment(0xE0, b'JFIF\0\1\1\1\0\1\0\1\0\0')


@pytest.mark.parametrize(
  'segments, orientation',
  [
    ([_exif(_SIX)], 6),
    ([_exif(_SIX_REVERSED, '>')], 6),
    ([_JFIF, _exif(_SIX)], 6),
    # A profile of colors, a comment, a byte that fills up, notes of others.
    (
      [
        _segment(0xE2, b'ICC_PROFILE\0' + bytes(60000)),
        _segment(0xFE, b'comment'),
        b'\xff',
        _segment(0xE1, b'http://ns.adobe.com/xap/1.0/\0'),
        _exif(_SIX),
      ],
      6,
    ),
    (
      [_exif([(0x10F, 2, b'x'), (_ORIENTATION, 3, b'\3'), (0x110, 2, b'y')])],
      3,
    ),
    ([_exif(_SIX, offset=300)], 6),
    ([_exif([(_ORIENTATION, 4, b'\5')])], 5),  # Four bytes instead of two.
    # What says nothing that holds.
    ([_exif([])], 1),
    ([_exif([(_ORIENTATION, 3, b'\0')])], 1),
    ([_exif([(_ORIENTATION, 3, b'\x09')])], 1),
    ([_exif([(_ORIENTATION, 2, b'6')])], 1),
    ([_exif(_SIX, 'X')], 1),
    ([_segment(0xE1, b'Exif\0\0')], 1),
    ([_segment(0xE1, b'Exif\0\0MM\0*\xff\xff\xff\xff')], 1),
    ([_segment(0xE1, b'Exif\0\0II*\0\xff\xff\xff\x7f')], 1),
    ([_segment(0xE1, b'Exif\0\0II*\0\x08\0\0\0\xff\xff')], 1),
  ],
)
def test_orientation_is_found_where_the_standard_puts_it(segments, orientation):
  data = _with_segments(*segments)
  expected = _turned_by_pillow(tf.io.decode_jpeg(data).numpy(), orientation)
  np.testing.assert_array_equal(_decoded(data), expected)


@pytest.mark.parametrize('length', [2, 3, 4, 6, 12, 20, 30])
def test_a_jpeg_that_is_cut_is_an_error(length):
  with pytest.raises(tf.errors.InvalidArgumentError):
    _decoded(_of_camera(6)[:length])


# --- BMP ----------------------------------------------------------------------

_HEIGHT, _WIDTH = 7, 13  # No side is a multiple of what rows are padded to.


def _bmp(bits, pixels, palette=b'', compression=0, header=40, **options):
  """A BMP as the standards describe it; Pillow writes few kinds of them."""
  height, masks = options.get('height', _HEIGHT), options.get('masks', b'')
  if header == 12:  # OS/2.
    head = struct.pack('<IHHHH', header, _WIDTH, height, 1, bits)
  else:
    sides = struct.pack('<IiiHH', header, _WIDTH, height, 1, bits)
    num_colors = len(palette) // 4
    head = sides + struct.pack(
      '<IIiiII', compression, len(pixels), 0, 0, num_colors, 0
    )
    # Later headers hold the masks, earlier ones are followed by them.
    head += masks.ljust(header - 40, b'\0')
  gap = bytes(options.get('gap', 0))
  begin = 14 + len(head) + len(palette) + len(gap)
  file = struct.pack('<IHHI', begin + len(pixels), 0, 0, begin)
  return b'BM' + file + head + palette + gap + pixels


def _rows(bits):
  stride = (_WIDTH * bits + 31) // 32 * 4
  return np.random.RandomState(bits).bytes(_HEIGHT * stride)


def _palette(num_colors, size=4):
  colors = np.random.RandomState(1).randint(0, 256, (num_colors, size))
  colors[:, 3:] = 0
  return colors.astype(np.uint8).tobytes()


_MASKS = struct.pack('<IIII', 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
_BMPS = {
  **{
    f'{bits} bits, {name}': _bmp(
      bits,
      _rows(bits),
      _palette(2**bits, 3 if options.get('header') == 12 else 4)
      if bits <= 8
      else b'',
      **options,
    )
    for bits in (1, 4, 8, 24, 32)
    for name, options in {
      'as usual': {},
      'the topmost row first': {'height': -_HEIGHT},
      'header of OS/2': {'header': 12},
      'header of OS/2, version 2': {'header': 64},
      'header of version 4': {'header': 108},
      'header of version 5': {'header': 124},
      'a gap before the pixels': {'gap': 6},
    }.items()
  },
  '8 bits, few colors': _bmp(
    8, bytes(np.arange(16 * _HEIGHT, dtype=np.uint8) % 10), _palette(10)
  ),
  '24 bits, a palette beside': _bmp(24, _rows(24), _palette(16)),
  **{
    f'usual masks, {header}': _bmp(
      32, _rows(32), compression=3, header=header, masks=_MASKS
    )
    for header in (40, 52, 56, 108, 124)
  },
}


@pytest.mark.parametrize('kind', _BMPS)
def test_bmps_are_as_pillow_sees_them(kind):
  np.testing.assert_array_equal(
    _decoded(_BMPS[kind]), _seen_by_pillow(_BMPS[kind])
  )


@pytest.mark.parametrize('width', [1, 8, 31, 32, 33, 40, 64, 65])
def test_rows_of_one_bit_end_with_whole_words(width):
  # Of 32 bits: 33 pixels take two of them, 8 bytes a row.
  pixels = np.random.RandomState(width).rand(3, width) < 0.5
  file = io.BytesIO()
  Image.fromarray(pixels).save(file, 'BMP')
  found = _decoded(file.getvalue())
  expected = np.repeat(255 * pixels[..., np.newaxis], 3, axis=2)
  np.testing.assert_array_equal(found, expected)


def test_bmp_of_two_bits():
  # 0b00_01_10_11, the first pixel in the highest bits; Pillow knows it not.
  palette = np.arange(16, dtype=np.uint8).reshape([4, 4])
  data = _bmp(2, b'\x1b' * 4 * _HEIGHT, palette.tobytes())
  colors = palette[:, 2::-1]
  np.testing.assert_array_equal(
    _decoded(data)[3], colors[np.arange(_WIDTH) % 4]
  )


def _runs(bits):
  """Each pixel is a run of one: so long that other decoders take the bytes."""
  line = b''.join(bytes([1, x % 2**bits]) for x in range(_WIDTH)) + b'\0\0'
  return line * _HEIGHT + b'\0\1'


@pytest.mark.parametrize(
  'data, found',
  [
    (_bmp(8, _runs(8), _palette(256), 1), '8 bits, compression 1 '),
    (_bmp(4, _runs(4), _palette(16), 2), '4 bits, compression 2 '),
    (_bmp(16, _rows(16)), '16 bits, compression 0 '),
    (_bmp(16, _rows(16), header=12), '16 bits, compression 0 '),
    (
      _bmp(16, _rows(16), compression=3, masks=struct.pack('<III', 1, 2, 4)),
      '16 bits, compression 3 ',
    ),
    # Red and blue exchanged.
    (
      _bmp(
        32,
        _rows(32),
        compression=3,
        header=124,
        masks=struct.pack('<IIII', 0xFF, 0xFF00, 0xFF0000, 0xFF000000),
      ),
      '32 bits, compression 3 ',
    ),
    (_bmp(0, _encoded(_picture(), 'JPEG'), compression=4), '0 bits, compr'),
    (_bmp(24, b'', height=0), 'x 0 pixels'),
  ],
)
def test_bmps_that_nobody_decodes_are_refused(data, found):
  message = _refusal(data).replace('[', '').replace(']', '')
  assert f'it is a BMP of {_WIDTH} x ' in message
  assert found in message
  assert 'save it as PNG' in message


@pytest.mark.parametrize('bits', [1, 8, 24])
def test_a_bmp_that_is_cut_is_an_error(bits):
  data = _BMPS[f'{bits} bits, as usual']
  for length in (2, 10, 20, 40, 56, len(data) - 5):
    assert _refusal(data[:length]), length


# --- Too large ----------------------------------------------------------------


def _png_of(width, height):
  def chunk(name, data):
    body = name + data
    return (
      struct.pack('>I', len(data)) + body + struct.pack('>I', zlib.crc32(body))
    )

  header = struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)
  pixels = zlib.compress(b'\0' * 1000)
  return (
    b'\x89PNG\r\n\x1a\n'
    + chunk(b'IHDR', header)
    + chunk(b'IDAT', pixels)
    + chunk(b'IEND', b'')
  )


def _jpeg_of(width, height):
  data = _encoded(_picture(), 'JPEG')
  start = data.index(b'\xff\xc0') + 5
  return data[:start] + struct.pack('>HH', height, width) + data[start + 4 :]


def _gif_of(width, height):
  data = _encoded(_picture(), 'GIF')
  return data[:6] + struct.pack('<HH', width, height) + data[10:]


def _bmp_of(width, height):
  data = _BMPS['8 bits, as usual']
  return data[:18] + struct.pack('<ii', width, height) + data[26:]


@pytest.mark.parametrize('write', [_png_of, _jpeg_of, _gif_of, _bmp_of])
def test_an_image_that_no_memory_holds_is_refused(write):
  message = _refusal(write(60000, 50001))
  assert '50001' in message and '60000' in message
  # 2**27.
  assert 'expected at most 134217728; make it smaller' in message


def test_sizes_that_do_not_fit_into_32_bits_are_refused():
  # 2**16 x 2**16 pixels are 0 modulo 2**32.
  for side in (2**16, 2**31 - 1):
    assert 'expected at most' in _refusal(_png_of(side, side))
  assert 'expected at most' in _refusal(_bmp_of(2**16, -(2**16)))


def test_images_of_large_cameras_are_not_too_large():
  # 11648 x 8736, 102 megapixels: too large are others, which are decoded then.
  message = _refusal(_png_of(11648, 8736))
  assert 'expected at most' not in message
