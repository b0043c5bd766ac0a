"""Texts from elsewhere, as they can stand in a line of a log."""

import re
from typing import Any
import unicodedata

# Categories of characters that a terminal does not show but obeys, or cannot
# write: controls, marks of direction, halves of a character, new lines.
_CONTROLS = ('Cc', 'Cs', 'Zl', 'Zp')
_UNPRINTABLE = (*_CONTROLS, 'Cf')
# Marks without which Persian words and many emoji fall apart.
_JOINERS = '\u200c\u200d'

_SECRETS = (  # What to look for, what to write instead.
  (re.compile(r'://[^/\s@]+@'), '://***@'),  # A name and password in a URL.
  (re.compile(r'(?i)\b(bearer|basic)\s+[\w.~+/=-]{8,}'), r'\1 ***'),
  (
    re.compile(
      r'(?i)((?:token|secret|password|signature|credential|api_?key)\w*'
      r'["\']?\s*[=:]\s*["\']?)[^\s"\'&,;]+'
    ),
    r'\1***',
  ),
)

_MAX_LENGTH = 500


def printable(name: str) -> str:
  """Returns a name that comes from data as it can stand in a line of a log.

  Whatever would end the line, move the cursor or turn the text around is
  replaced by its escape, such as `\\n`, `\\x1b` or `\\u202e`.
  """
  return ''.join(
    character.encode('unicode_escape').decode()
    if _is_unprintable(character)
    else character
    for character in name
  )


def has_controls(name: str) -> bool:
  """Whether a name holds what ends a line or steers a terminal, or no UTF-8."""
  return any(unicodedata.category(c) in _CONTROLS for c in name)


def _is_unprintable(character):
  is_obeyed = unicodedata.category(character) in _UNPRINTABLE
  return is_obeyed and character not in _JOINERS


def without_secrets(text: str) -> str:
  """Returns a text without what looks like a password or a key."""
  for pattern, replacement in _SECRETS:
    text = pattern.sub(replacement, text)
  return text


def one_line(text: Any) -> str:
  """Returns a text, or what an error says, in one line."""
  line = ' '.join(str(text).split())
  if not line and isinstance(text, BaseException):
    return type(text).__name__
  return line


def for_files(text: Any) -> str:
  """Returns a text as it may be kept: one line, plain, not long, no secrets."""
  line = without_secrets(one_line(text))
  if len(line) > _MAX_LENGTH:
    line = line[: _MAX_LENGTH - 3] + '...'
  return printable(line)
