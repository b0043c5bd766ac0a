"""Draws text."""

import unicodedata

import numpy as np

from supcon.config import safe_text

# In pixels, about the height of an upper-case letter with its margins.
SIZE = 14


def line(text: str, max_width: int) -> np.ndarray | None:
  """Returns the amount of ink in each pixel of a line, in [0, 1].

  Args:
    text: The text; characters that cannot be shown are escaped.
    max_width: In pixels. A longer text is cut and ends in three dots.

  Returns:
    float32 [height, width], with the same height for all texts; None without
    Pillow, which TensorBoard also needs since 2.16.
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
  text = _in_ascii(text)[:max_width]  # Every letter has a pixel.
  shown = text
  while font.getlength(shown) > max_width and text:
    text = text[:-1]
    shown = f'{text}...'
  size = max(int(np.ceil(font.getlength(shown))), 1), SIZE + 6
  image = Image.new('L', size)
  ImageDraw.Draw(image).text((0, 1), shown, fill=255, font=font)
  return np.asarray(image, np.float32) / 255


def _in_ascii(text):
  """Returns a text without accents, and with other letters escaped.

  The font that is always available has no others.
  """
  parts = unicodedata.normalize('NFKD', safe_text.printable(text))
  plain = ''.join(part for part in parts if not unicodedata.combining(part))
  return plain.encode('ascii', 'backslashreplace').decode()
