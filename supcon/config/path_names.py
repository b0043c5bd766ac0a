"""Paths given by users: expands them, and rejects those that cannot work."""

import os

from supcon.config import safe_text

# Characters of a shell pattern, which TensorFlow also treats as one. It looks
# up a checkpoint by its name as a pattern, so such a name finds nothing, or
# finds (and deletes) the files of others.
_PATTERN_CHARACTERS = '*?[\\'


def expanded(path: str) -> str:
  """Returns a path with a leading `~` or `~user` expanded.

  A shell does not expand it in --flag=~/path.

  Raises:
    ValueError: If the user does not exist.
  """
  home = os.path.expanduser(path)
  if home == path and path.startswith('~'):
    user = path.split('/')[0]
    raise ValueError(
      f'{safe_text.printable(path)}: there is no home directory {user}; give '
      f'the whole path, or ./{safe_text.printable(path)} if that is its name.'
    )
  return home


def pattern_in(path: str) -> str:
  """Returns the first character that makes a path a pattern; '' if none."""
  return next((char for char in path if char in _PATTERN_CHARACTERS), '')


def control_fault(path: str | None) -> str | None:
  """Returns why a path cannot be printed in one line of a log; None if it can.

  It holds control characters such as line breaks, or is not UTF-8.
  """
  if path and safe_text.has_controls(path):
    return (
      'holds characters that cannot be written in one line of UTF-8; take '
      'another name'
    )
  return None


def pattern_fault(path: str) -> str | None:
  """Returns why TensorFlow would not find what it has written; None if it does.

  It would take the path for a pattern.
  """
  if char := pattern_in(path):
    return (
      f'holds the character {char}: TensorFlow takes it for a pattern and '
      'would not find what it has written there; take a name without '
      f'{" ".join(_PATTERN_CHARACTERS)}'
    )
  return None
