"""Paths as users give them: what they stand for, which ones are refused."""

import os

from supcon.config import safe_text

# What a shell would take for a pattern, and TensorFlow does too: it looks for a
# checkpoint by its name as a pattern, which finds nothing or, to be deleted,
# those of others.
_PATTERN_CHARACTERS = '*?[\\'


def expanded(path: str) -> str:
  """Returns a path with `~` or `~user` at its start replaced.

  A shell does not do so in --flag=~/path.

  Raises:
    ValueError: If there is no such user.
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


def check(flag: str, path: str) -> None:
  """Checks that a path can stand in a line of a log.

  Raises:
    ValueError: If it holds new lines and the like, or is not UTF-8.
  """
  if safe_text.has_controls(path):
    raise ValueError(
      f'--{flag}={safe_text.printable(path)} holds characters that cannot be '
      'written in one line of UTF-8; take another name.'
    )


def check_no_pattern(flag: str, path: str) -> None:
  """Checks a path by which TensorFlow looks for files that it has written.

  Raises:
    ValueError: If TensorFlow would take it for a pattern.
  """
  if char := pattern_in(path):
    raise ValueError(
      f'--{flag}={path} holds the character {char}: TensorFlow takes it for a '
      'pattern and would not find what it has written there; take a name '
      f'without {" ".join(_PATTERN_CHARACTERS)}.'
    )
