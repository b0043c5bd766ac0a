"""Files on this machine or on an object store.

TensorFlow is imported only for the latter, because --mode=status and
--mode=compare should answer at once.
"""

import glob
import json
import os
import sys

# What parsing raises if a file holds something else.
MALFORMED = (
  ArithmeticError,
  AttributeError,
  LookupError,
  RecursionError,
  TypeError,
  ValueError,
)


def read_json(path: str) -> dict:
  """Returns the object in a JSON file; empty if missing or malformed.

  Raises:
    OSError, tf.errors.OpError: If it cannot be read.
  """
  try:
    value = json.loads(read(path))
  except (ValueError, RecursionError):
    return {}
  return value if isinstance(value, dict) else {}


def read(path: str) -> str:
  """Returns the text of a file; '' if it is missing.

  Raises:
    ValueError: If it is not UTF-8.
    OSError, tf.errors.OpError: If it cannot be read.
  """
  if not is_remote(path):
    try:
      with open(path, encoding='utf-8') as file:
        return file.read()
    except (FileNotFoundError, NotADirectoryError):
      return ''
  import tensorflow as tf

  try:
    with tf.io.gfile.GFile(path) as file:
      return file.read()
  except tf.errors.NotFoundError:
    return ''


def write(path: str, text: str) -> None:
  """Writes a file, and makes its directory.

  Raises:
    OSError, tf.errors.OpError: If it cannot be written.
  """
  if not is_remote(path):
    os.makedirs(os.path.dirname(path) or '.', exist_ok=True)
    with open(path, 'w', encoding='utf-8') as file:
      file.write(text)
    return
  import tensorflow as tf

  with tf.io.gfile.GFile(path, 'w') as file:
    file.write(text)


def matches(pattern: str) -> list[str]:
  """Returns the paths that match a shell pattern, sorted.

  Raises:
    OSError, tf.errors.OpError: If a directory cannot be read.
  """
  if not is_remote(pattern):
    return sorted(glob.glob(pattern))
  import tensorflow as tf

  return sorted(path.rstrip('/') for path in tf.io.gfile.glob(pattern))


def to_json(value) -> str:
  """Returns the text of a JSON file."""
  return json.dumps(value, indent=2) + '\n'


def errors() -> tuple[type[Exception], ...]:
  """Returns the errors that reading and writing files may raise."""
  tensorflow = sys.modules.get('tensorflow')
  return (OSError, tensorflow.errors.OpError) if tensorflow else (OSError,)


def is_remote(path: str) -> bool:
  """Whether a path is on an object store, such as gs://bucket."""
  return '://' in path
