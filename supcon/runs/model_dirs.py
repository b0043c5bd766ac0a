"""The layout of a model_dir, and atomic writes to it."""

from collections.abc import Callable
import contextlib
import itertools
import json
import os
from typing import Any

from absl import logging
import tensorflow as tf

from supcon.config import safe_text
from supcon.runs import checkpoint_files
from supcon.runs import retries
from supcon.runs import storage

HPARAMS = 'hparams.json'
RESULT = 'result.json'
# Facts of the data. Every export includes the first two: the names of the
# logits, and how images have to be whitened.
LABELS = 'labels.txt'
WHITENING = 'whitening.json'
BAD_IMAGES = 'bad_images.json'
# The bad images that only an evaluation uses.
EVAL_BAD_IMAGES = 'eval/bad_images.json'
EXPORTS = 'exports'
# The results of --mode=robustness: NAME-STEP.json and .csv.
ROBUSTNESS = 'robustness'
# The directory of the training summaries, and their table. A directory of their
# own, because TensorBoard uses its name as the name of the run, and would call
# model_dir '.'.
TRAIN = 'train'
METRICS = 'metrics.csv'
# What the chief of several machines is about to train, for the others.
ANNOUNCED = 'hparams.json.next'
# The evaluations: {step: {'metrics', 'export', ...}}.
EVALUATED = 'eval/evaluated.json'
# The directory of the checkpoint with the best top-1 accuracy, and its facts.
BEST = 'best'
BEST_FACTS = 'best.json'
# settle() moves damaged checkpoints to directories 1, 2, ... in this one.
DAMAGED = 'damaged'
# Checkpoints of former plans move to directories 1, 2, ... in this one.
FORMER_PLANS = 'former_plans'


def _an_object(value):
  if not isinstance(value, dict):
    raise ValueError(f'it is a {type(value).__name__}')
  return value


class ModelDir:
  """A directory with the checkpoints of a run and related files.

  Attributes:
    path: A local path, or one on an object store.
  """

  def __init__(self, path: str, attempts: retries.Retries | None = None):
    """Names a directory, which need not exist.

    Args:
      path: A local path, or one on an object store.
      attempts: Retries if storage fails for a moment. Without it such a failure
        is an error at once, for callers that retry by themselves.
    """
    self.path = path
    self._attempts = attempts
    # {checkpoint: (state of its files when it was read, its damage)}.
    self._looks: dict[str, tuple[tuple, str]] = {}
    self._warned: set[str] = set()

  def join(self, name: str) -> str:
    return os.path.join(self.path, name)

  def has(self, name: str) -> bool:
    return tf.io.gfile.exists(self.join(name))

  def newest(self) -> str | None:
    """Returns the newest complete checkpoint, or None.

    It is the newest one according to the file `checkpoint`. If that checkpoint
    is damaged or the file is unusable, it is the complete one of the highest
    step. Damaged checkpoints are logged once.
    """
    return self._try(f'looking for checkpoints in {self.path}', self._newest)

  def _newest(self):
    while True:
      state = checkpoint_files.read_state(self.path)
      newest, damaged = self._newest_whole(state)
      # If a trainer is running, it may have deleted the newest one meanwhile.
      if not damaged or checkpoint_files.read_state(self.path) == state:
        break
    faults = {path: f'is damaged ({why})' for path, why in damaged.items()}
    path = self.join(checkpoint_files.STATE)
    if state.problem and tf.io.gfile.exists(path):
      faults[path] = f'cannot be read ({state.problem})'
    elif not state.newest and (newest or damaged):
      faults[path] = 'is missing'
    instead = f'using {newest}' if newest else 'no checkpoint is whole'
    for path, fault in faults.items():
      self._warn_once(f'{path} {fault}; {instead}')
    return newest

  def _newest_whole(self, state):
    """Returns the newest complete checkpoint, and {damaged one: damage}.

    It does not check checkpoints older than the newest complete one.
    """
    others = {*state.paths, *checkpoint_files.on_disk(self.path)} - {
      state.newest
    }
    candidates = sorted(others, key=checkpoint_files.step_of)
    if state.newest:
      candidates.append(state.newest)
    damaged = {}
    for checkpoint in reversed(candidates):
      damage = self.damage(checkpoint)
      if not damage:
        return checkpoint, damaged
      damaged[checkpoint] = damage
    return None, damaged

  def damage(self, checkpoint: str) -> str | None:
    """Returns the damage of a checkpoint; None if it is complete.

    Its files are read once, and again only if they have changed.
    """
    stamps = checkpoint_files.stamps(checkpoint)
    before, damage = self._looks.get(checkpoint, (None, None))
    if stamps != before:
      damage = checkpoint_files.damage(checkpoint)
      self._looks[checkpoint] = stamps, damage
    return damage

  def settle(self, to_keep: int) -> None:
    """Makes TensorFlow continue from the checkpoint that `newest` returns.

    A trainer calls this before it starts. TensorFlow restores the newest
    checkpoint of the file `checkpoint`, so this rewrites the file if it or that
    checkpoint is damaged. Training would overwrite a damaged checkpoint when it
    reaches its step again, so damaged checkpoints and the old file are moved
    aside. Nothing is deleted except temporary files of interrupted saves, which
    are unreadable.

    Args:
      to_keep: How many checkpoints the trainer keeps. If it is unknown which
        ones it would delete, the earlier ones stay for ever.

    Raises:
      tf.errors.OpError: If a file cannot be renamed or written.
    """
    self._remove_leftovers()
    state = checkpoint_files.read_state(self.path)
    newest, damaged = self._newest_whole(state)
    if newest == state.newest and not state.problem:
      return
    kept = [newest] if newest else []
    listed = {*(state.paths or checkpoint_files.on_disk(self.path))}
    for path in sorted(
      listed - {newest, *damaged}, key=checkpoint_files.step_of, reverse=True
    ):
      if len(kept) < to_keep:
        damage = self.damage(path)
        if damage:
          damaged[path] = damage
        else:
          kept.append(path)
    self._put_aside(damaged)
    if kept:
      kept.reverse()
      self.write(
        checkpoint_files.STATE, checkpoint_files.state_text(self.path, kept)
      )
    elif self.has(checkpoint_files.STATE):
      tf.io.gfile.remove(self.join(checkpoint_files.STATE))

  def _remove_leftovers(self):
    for path in checkpoint_files.leftovers(self.path):
      logging.info('removing %s, left by a save that was cut short', path)
      if tf.io.gfile.isdir(path):
        tf.io.gfile.rmtree(path)
      else:
        tf.io.gfile.remove(path)

  def _put_aside(self, damaged):
    """Moves damaged checkpoints to a new directory; copies `checkpoint` there.

    The file itself stays for readers until the new one is written.
    """
    has_state = self.has(checkpoint_files.STATE)
    if not damaged and not has_state:
      return
    aside = self.unused(DAMAGED)
    tf.io.gfile.makedirs(aside)
    if has_state:
      tf.io.gfile.copy(
        self.join(checkpoint_files.STATE),
        os.path.join(aside, checkpoint_files.STATE),
      )
    for checkpoint in damaged:
      name = os.path.basename(checkpoint)
      checkpoint_files.rename(checkpoint, os.path.join(aside, name))
    logging.info(
      'put aside in %s: %s',
      aside,
      ', '.join(sorted(tf.io.gfile.listdir(aside))),
    )

  def unused(self, name: str) -> str:
    """Returns the first path of NAME/1, NAME/2 ... that does not exist."""
    paths = (self.join(os.path.join(name, str(n))) for n in itertools.count(1))
    return next(path for path in paths if not tf.io.gfile.exists(path))

  def _warn_once(self, message):
    if message not in self._warned:
      self._warned.add(message)
      logging.warning('WARNING: %s', message)

  def class_names(self) -> tuple[str, ...] | None:
    """Returns the names of the classes if they are recorded."""
    text = self.read(LABELS)
    # Not splitlines(), which splits at characters that names may contain.
    if not text:
      return None if text is None else ()
    lines = text.removesuffix('\n').split('\n')
    return tuple(line.rstrip('\r') for line in lines)

  def read_json(
    self,
    name: str,
    parse: Callable[[Any], Any] = _an_object,
    what: str = 'JSON object',
    remedy: str = 'take another --model_dir',
  ):
    """Returns the content of a JSON file; None if it does not exist.

    Args:
      name: The file in this directory.
      parse: Makes the result from the JSON value; by default it must be an
        object, a dict. It may raise any error that malformed values lead to.
      what: What the file should hold, for the error.
      remedy: What to do if it cannot be restored, for the error.

    Raises:
      ValueError: If the file is not JSON, or `parse` raised an error.
    """
    text = self.read(name)
    try:
      return None if text is None else parse(json.loads(text))
    except storage.MALFORMED as error:
      raise ValueError(
        f'{self.join(name)} holds no {what} ({safe_text.one_line(error)}); '
        f'restore it, or {remedy}.'
      ) from error

  def write_json(self, name: str, value) -> None:
    self.write(name, storage.to_json(value))

  def write(self, name: str, text: str) -> None:
    """Writes a temporary file and renames it, so the file is never partial."""
    path = self.join(name)
    self._try(f'writing {path}', lambda: self._write(path, text))

  def _write(self, path, text):
    aside = f'{path}.tmp{os.getpid()}'
    try:
      with tf.io.gfile.GFile(aside, 'w') as file:
        file.write(text)
      tf.io.gfile.rename(aside, path, overwrite=True)
    except tf.errors.OpError:
      with contextlib.suppress(tf.errors.OpError):
        tf.io.gfile.remove(aside)
      raise

  def read(self, name: str) -> str | None:
    """Returns the text of a file; None if it does not exist."""
    path = self.join(name)

    def read():
      if not tf.io.gfile.exists(path):
        return None
      with tf.io.gfile.GFile(path) as file:
        return file.read()

    return self._try(f'reading {path}', read)

  def _try(self, what, function):
    return self._attempts.call(what, function) if self._attempts else function()
