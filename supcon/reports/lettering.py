"""Words in pictures."""

import unicodedata

import numpy as np

from supcon.config import safe_text

# Pixels, about those of an upper-case letter and its margins.
SIZE = 14


def line(text: str, max_width: int) -> np.ndarray | None:
  """Returns how much ink each pixel of a line of text has, in [0, 1].

  Args:
    text: What to write; what cannot be shown is escaped.
    max_width: In pixels. A longer text is cut and ends in three dots.

  Returns:
    float32 [height, width], the height being the same for all texts; None
    without Pillow, which TensorBoard needs, too, since 2.16.
  """
  try:
    from PIL import Image
    from PIL import ImageDraw
    from PIL import ImageFont
  except ImportError:
    return None
  try:
    font = ImageFont.load_default(SIZE)
  except TypeError:  # Before Pillow 10.1.
    font = ImageFont.load_default()
  text = _in_ascii(text)[:max_width]  # No letter is without any pixel.
  shown = text
  while font.getlength(shown) > max_width and text:
    text = text[:-1]
    shown = f'{text}...'
  size = max(int(np.ceil(font.getlength(shown))), 1), SIZE + 6
  image = Image.new('L', size)
  ImageDraw.Draw(image).text((0, 1), shown, fill=255, font=font)
  return np.asarray(image, np.float32) / 255


def _in_ascii(text):
  """Returns a text without accents, and other letters as escapes.

  The font that is there everywhere has no others.
  """
  parts = unicodedata.normalize('NFKD', safe_text.printable(text))
  plain = ''.join(part for part in parts if not unicodedata.combining(part))
  return plain.encode('ascii', 'backslashreplace').decode()
