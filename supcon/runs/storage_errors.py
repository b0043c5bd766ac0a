"""Describes errors of files in one line."""

import errno
import os
import re
import shutil

import tensorflow as tf

from supcon.config import safe_text
from supcon.runs import checkpoint_files

# Newer versions of TensorFlow name the data set in which a function failed.
_OF_DATA_SET = re.compile(
  r'Error in user-defined function passed to \S+ transformation with iterator: '
  r'\S+: '
)


def reason(error: Exception) -> str:
  """Returns in one line what went wrong, without TensorFlow's op."""
  is_ours = not isinstance(error, tf.errors.OpError)
  message = str(error) if is_ours else error.message
  message = message.removeprefix('Graph execution error:')
  message = _OF_DATA_SET.sub('', message)
  # The place where the op was created comes first.
  message = re.split(r"^Node: '.*'$", message, flags=re.MULTILINE)[-1]
  line = message.strip().split('\n')[0]
  line = re.sub(r'\{\{.*?\}\}|\[\[.*|\[Op:.*|assertion failed:', '', line)
  line = re.sub(r'[\[\]]', '', line).strip().rstrip('.')
  return safe_text.one_line(line)


# --- Where nothing can be written ---------------------------------------------

_REMEDIES = {  # By the errno of a failed write.
  errno.ENOSPC: 'make room',
  errno.EDQUOT: 'make room, or have your quota raised',
  errno.EFBIG: 'raise the limit (ulimit -f), or take another file system',
  errno.EROFS: 'mount the file system for writing',
  errno.EIO: 'look after the disk',
}
_FAILED = re.compile(
  rf'([^\n]+); ({"|".join(map(re.escape, map(os.strerror, _REMEDIES)))})'
)
_ERRNO = {os.strerror(number): number for number in _REMEDIES}
# Maps a file that the saver writes to the checkpoint that it belongs to.
_PART = re.compile(rf'({checkpoint_files.NAME})(_temp/|\.(data-|index|meta)).*')


def explain_failed_write(error: BaseException) -> str | None:
  """Explains a failed write to a disk that is full or faulty.

  Args:
    error: An error of TensorFlow or Python.

  Returns:
    One line about what could not be written and what to do; None for any other
    kind of error.
  """
  text = error.message if isinstance(error, tf.errors.OpError) else str(error)
  if isinstance(error, OSError) and error.errno in _REMEDIES:
    path, number = str(error.filename or 'a file'), error.errno
  elif found := _FAILED.search(text):
    path, number = found[1].strip(), _ERRNO[found[2]]
  else:
    return None
  what = _PART.sub(r'\1', path)
  free = _free_space(path)
  return (
    f'{what} cannot be written ({os.strerror(number)}'
    f'{f", {free} free" if free else ""}). Checkpoints saved before are '
    f'untouched: {_REMEDIES[number]}, and start the same command again, which '
    'continues from the newest one.'
  )


def _free_space(path):
  """Returns the free space for a path, such as '12.3 MB'; '' if unknown."""
  while path and not os.path.isdir(path):
    path = os.path.dirname(path.rstrip('/'))
  return f'{shutil.disk_usage(path).free / 1e6:.1f} MB' if path else ''
