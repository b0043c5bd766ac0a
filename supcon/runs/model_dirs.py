"""What stands where in a model_dir, and how files get there whole."""

import contextlib
import itertools
import json
import os

from absl import logging
import tensorflow as tf

from supcon.runs import checkpoint_files
from supcon.runs import retries

HPARAMS = 'hparams.json'
RESULT = 'result.json'
# What the data are. The first two go with every export: one names the logits,
# the other says how images have to be whitened.
LABELS = 'labels.txt'
WHITENING = 'whitening.json'
BAD_IMAGES = 'bad_images.json'
# Likewise of images of which only an evaluation was.
EVAL_BAD_IMAGES = 'eval/bad_images.json'
EXPORTS = 'exports'
# Where the summaries of training are, and the same as a table. TensorBoard
# names a run after its directory, and would call this one '.' itself.
TRAIN = 'train'
METRICS = 'metrics.csv'
# What the trainer of several machines is about to do, for the others.
ANNOUNCED = 'hparams.json.next'
# What has been evaluated: {step: {'metrics', 'export', ...}}.
EVALUATED = 'eval/evaluated.json'
# A directory with the checkpoint of the best top-1 accuracy, and its facts.
BEST = 'best'
BEST_FACTS = 'best.json'
# What settle() puts aside goes into directories 1, 2, ... of this one.
DAMAGED = 'damaged'
# Likewise with the checkpoints whose steps were counted by another plan.
FORMER_PLANS = 'former_plans'


class ModelDir:
  """A directory with the checkpoints of a run and what belongs to them.

  Attributes:
    path: Local, or on an object store.
  """

  def __init__(self, path: str, attempts: retries.Retries | None = None):
    """Names a directory, which need not be there.

    Args:
      path: Local, or on an object store.
      attempts: Tries again where storage fails for a moment; else that is an
        error at once, for those who come back by themselves.
    """
    self.path = path
    self._attempts = attempts
    # {checkpoint: (what its files were when it was read, what is wrong)}.
    self._looks: dict[str, tuple[tuple, str]] = {}
    self._warned: set[str] = set()

  def join(self, name: str) -> str:
    return os.path.join(self.path, name)

  def has(self, name: str) -> bool:
    return tf.io.gfile.exists(self.join(name))

  def newest(self) -> str | None:
    """Returns the newest checkpoint that is whole, if there is one.

    It is the one that the file `checkpoint` calls newest. If that is damaged,
    or the file is of no use, it is the whole one of the highest step; what is
    damaged is logged, once.
    """
    return self._try(f'looking for checkpoints in {self.path}', self._newest)

  def _newest(self):
    while True:
      state = checkpoint_files.read_state(self.path)
      newest, damaged = self._newest_whole(state)
      # Beside a trainer, what it deletes is not the newest any more.
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

  def newest_step(self) -> int:
    """Returns the step of the newest whole checkpoint; 0 without any."""
    newest = self.newest()
    return checkpoint_files.step_of(newest) if newest else 0

  def _newest_whole(self, state):
    """Returns the newest whole checkpoint, and {damaged one: what is wrong}.

    Those that are older than the newest whole one are not looked at.
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
    """Returns what is wrong with a checkpoint; None if it is whole.

    Its files are read once, and again only if they have changed.
    """
    stamps = checkpoint_files.stamps(checkpoint)
    before, damage = self._looks.get(checkpoint, (None, None))
    if stamps != before:
      damage = checkpoint_files.damage(checkpoint)
      self._looks[checkpoint] = stamps, damage
    return damage

  def settle(self, to_keep: int) -> None:
    """Has TensorFlow continue from the checkpoint that `newest` returns.

    For a trainer that is about to begin. TensorFlow restores what the file
    `checkpoint` calls newest, so that file is written anew if that is damaged,
    or the file is. Since training writes over a damaged checkpoint when it
    reaches its step again, those are put aside, and so is the old file: nothing
    is deleted, but for leftovers of saves that were cut short, which nobody can
    read.

    Args:
      to_keep: How many checkpoints the trainer keeps. Where nobody knows which
        ones it was to delete, those before are left for ever.

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
    """Moves damaged checkpoints to a new directory, copies `checkpoint` there.

    The file itself stays for those who look before the new one is there.
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
    """Returns the first of the paths NAME/1, NAME/2 ... where nothing is."""
    paths = (self.join(os.path.join(name, str(n))) for n in itertools.count(1))
    return next(path for path in paths if not tf.io.gfile.exists(path))

  def _warn_once(self, message):
    if message not in self._warned:
      self._warned.add(message)
      logging.warning('WARNING: %s', message)

  def class_names(self) -> tuple[str, ...] | None:
    """Returns the names of the classes if they are written down."""
    text = self.read(LABELS)
    # Not splitlines(), which ends a line at characters that names may hold.
    if not text:
      return None if text is None else ()
    lines = text.removesuffix('\n').split('\n')
    return tuple(line.rstrip('\r') for line in lines)

  def read_json(self, name: str):
    """Returns what a JSON file holds; None if it is not there.

    Raises:
      ValueError: If it is not JSON.
    """
    try:
      text = self.read(name)
      return None if text is None else json.loads(text)
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
    """Returns the text of a file; None if it is not there."""
    path = self.join(name)

    def read():
      if not tf.io.gfile.exists(path):
        return None
      with tf.io.gfile.GFile(path) as file:
        return file.read()

    return self._try(f'reading {path}', read)

  def _try(self, what, function):
    return self._attempts.call(what, function) if self._attempts else function()


def to_json(value) -> str:
  return json.dumps(value, indent=2) + '\n'
