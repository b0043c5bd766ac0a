"""What stands where in a model_dir, and how files get there whole."""

import json
import os

import tensorflow as tf

from supcon import hparams
from supcon.training import checkpoints

HPARAMS = 'hparams.json'
RESULT = 'result.json'
# What the data are. The first two go with every export: one names the logits,
# the other says how images have to be whitened.
LABELS = 'labels.txt'
WHITENING = 'whitening.json'
BAD_IMAGES = 'bad_images.json'
EXPORTS = 'exports'


class ModelDir:
  """A directory with the checkpoints of a run and what belongs to them.

  Attributes:
    path: Local, or on an object store.
  """

  def __init__(self, path: str):
    self.path = path

  def join(self, name: str) -> str:
    return os.path.join(self.path, name)

  def has(self, name: str) -> bool:
    return tf.io.gfile.exists(self.join(name))

  def newest(self) -> str | None:
    """Returns the newest checkpoint, if there is one."""
    return tf.train.latest_checkpoint(self.path)

  def newest_step(self) -> int:
    """Returns the step of the newest checkpoint; 0 without any."""
    newest = self.newest()
    return checkpoints.step_of(newest) if newest else 0

  def read_hparams(self) -> hparams.HParams | None:
    """Returns the hyper-parameters of what was trained here, if they are known.

    Raises:
      ValueError: If hparams.json holds something else.
    """
    record = self.read_json(HPARAMS)
    if record is None:
      return None
    try:
      return hparams.parse(record['compact'])
    except (KeyError, TypeError, ValueError) as error:
      raise ValueError(
        f'{self.join(HPARAMS)} holds no hyper-parameters ({error}); restore '
        'it, or give all of them as flags.'
      ) from error

  def class_names(self) -> tuple[str, ...] | None:
    """Returns the names of the classes if they are written down."""
    if not self.has(LABELS):
      return None
    return tuple(self._read(LABELS).splitlines())

  def read_json(self, name: str):
    """Returns what a JSON file holds; None if it is not there.

    Raises:
      ValueError: If it is not JSON.
    """
    if not self.has(name):
      return None
    try:
      return json.loads(self._read(name))
    except ValueError as error:
      raise ValueError(
        f'{self.join(name)} is not JSON ({error}); restore it, or take '
        'another --model_dir.'
      ) from error

  def write_json(self, name: str, value) -> None:
    self.write(name, to_json(value))

  def write(self, name: str, text: str) -> None:
    """Writes a file aside and renames it, so that it is always whole."""
    path = self.join(name)
    aside = f'{path}.tmp{os.getpid()}'
    with tf.io.gfile.GFile(aside, 'w') as file:
      file.write(text)
    tf.io.gfile.rename(aside, path, overwrite=True)

  def _read(self, name):
    with tf.io.gfile.GFile(self.join(name)) as file:
      return file.read()


def to_json(value) -> str:
  return json.dumps(value, indent=2) + '\n'
