"""Makes text from outside safe to print in one line of a log."""

import re
from typing import Any
import unicodedata

# Unicode categories that a terminal obeys instead of showing, or cannot
# write: controls, text direction, surrogates, line breaks.
_CONTROLS = ('Cc', 'Cs', 'Zl', 'Zp')
_UNPRINTABLE = (*_CONTROLS, 'Cf')
# Joiners that Persian words and many emoji need.
_JOINERS = '\u200c\u200d'

_SECRETS = (  # (Pattern, replacement).
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
  """Returns a name from data, made safe for one line of a log.

  Characters that would end the line, move the cursor or reverse the text become
  escapes such as `\\n`, `\\x1b` or `\\u202e`.
  """
  return ''.join(
    character.encode('unicode_escape').decode()
    if _is_unprintable(character)
    else character
    for character in name
  )


def has_controls(name: str) -> bool:
  """Whether a name has controls or line breaks, or is not UTF-8."""
  return any(unicodedata.category(c) in _CONTROLS for c in name)


def _is_unprintable(character):
  is_obeyed = unicodedata.category(character) in _UNPRINTABLE
  return is_obeyed and character not in _JOINERS


def without_secrets(text: str) -> str:
  """Returns a text with apparent passwords and keys masked."""
  for pattern, replacement in _SECRETS:
    text = pattern.sub(replacement, text)
  return text


def one_line(text: Any) -> str:
  """Returns a text, or the message of an error, as one line."""
  line = ' '.join(str(text).split())
  if not line and isinstance(text, BaseException):
    return type(text).__name__
  return line


def for_files(text: Any) -> str:
  """Returns a text fit to store: one short plain line without secrets."""
  line = without_secrets(one_line(text))
  if len(line) > _MAX_LENGTH:
    line = line[: _MAX_LENGTH - 3] + '...'
  return printable(line)
