"""Files on this machine or on an object store.

TensorFlow is imported only for the latter, because --mode=status should answer
at once.
"""

import json
import sys


def read_json(path: str) -> dict:
  """Returns the object in a JSON file; empty if missing or malformed.

  Raises:
    OSError, tf.errors.OpError: If it cannot be read.
  """
  try:
    value = json.loads(_read(path))
  except (ValueError, RecursionError):
    return {}
  return value if isinstance(value, dict) else {}


def _read(path):
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
