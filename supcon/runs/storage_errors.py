"""What went wrong with a file, in one line."""

import errno
import os
import re
import shutil

import tensorflow as tf

# In which data set a function failed, as newer versions of TensorFlow say it.
_OF_DATA_SET = re.compile(
  r'Error in user-defined function passed to \S+ transformation with iterator: '
  r'\S+: '
)


def reason(error: tf.errors.OpError) -> str:
  """Returns what TensorFlow says went wrong, without saying in which op."""
  message = error.message.removeprefix('Graph execution error:')
  message = _OF_DATA_SET.sub('', message)
  # Where the op was made comes first.
  message = re.split(r"^Node: '.*'$", message, flags=re.MULTILINE)[-1]
  line = message.strip().split('\n')[0]
  line = re.sub(r'\{\{.*?\}\}|\[\[.*|\[Op:.*|assertion failed:', '', line)
  return re.sub(r'[\[\]]', '', line).strip().rstrip('.')


# --- Where nothing can be written ---------------------------------------------

_REMEDIES = {  # Of a write that failed, as the system names it.
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

# From a file that the saver writes to the checkpoint that it belongs to.
_PART = re.compile(r'(model\.ckpt-[0-9]+)(_temp/|\.(data-|index|meta)).*')


def explain_failed_write(error: BaseException) -> str | None:
  """Explains an error of a write to a disk that is full or ails.

  Args:
    error: Of TensorFlow, or of Python.

  Returns:
    In one line, what could not be written and what to do; None if it is another
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
  """Returns '12.3 MB' of the file system of a path; '' if nobody knows."""
  while path and not os.path.isdir(path):
    path = os.path.dirname(path.rstrip('/'))
  return f'{shutil.disk_usage(path).free / 1e6:.1f} MB' if path else ''
