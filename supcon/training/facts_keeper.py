"""Writes the facts of a run, see `facts`, as its checkpoints are saved."""

from collections.abc import Mapping
import dataclasses
import os

import tensorflow as tf

from supcon.runs import checkpoint_files
from supcon.runs import model_dirs
from supcon.runs import storage
from supcon.training import facts as facts_lib
from supcon.training import positions as counting_lib

# --- Going on -----------------------------------------------------------------


def _write(model_dir, shown, entries):
  """Writes hparams.json with `shown` at its top, unless it is up to date."""
  _write_text(
    model_dir,
    model_dirs.HPARAMS,
    storage.to_json(
      {
        'hparams': shown.params.to_json(),
        'compact': shown.params.serialize(),
        'facts': [entry.to_json() for entry in entries],
      }
    ),
  )


def _write_text(model_dir, name, text):
  if model_dir.read(name) != text:
    model_dir.write(name, text)


class Keeper:
  """Records the facts of the checkpoints that a trainer saves.

  The trainer calls it where training begins, and before and after each save.
  """

  def __init__(
    self,
    model_dir: model_dirs.ModelDir,
    facts: facts_lib.Facts,
    files: Mapping[str, str | None],
  ):
    """Makes a keeper without writing anything.

    Args:
      model_dir: The model_dir of the run.
      facts: The facts of the checkpoints to come.
      files: {name: text} of other files that describe the training; None for
        files that must not exist.
    """
    self._model_dir = model_dir
    self._facts = facts
    self._files = files
    self.begin(None)

  def begin(self, checkpoint: str | None) -> None:
    """Sets the checkpoint that training resumes from; None for a new run."""
    self._is_kept = False
    self._start = -1
    self._before, self._entries = None, ()
    if checkpoint:
      self._start = checkpoint_files.step_of(checkpoint)
      record = facts_lib.Record(self._model_dir)
      self._before = record.find(checkpoint)
      # Entries of later steps belong to checkpoints that no longer count.
      self._entries = tuple(
        entry for entry in record.entries if entry.after_step < self._start
      )
    if self._before != self._facts:
      self._entries += (facts_lib.Entry(self._start, self._facts),)

  def before_save(self, step: int) -> None:
    """Writes the facts of a checkpoint that is about to be saved."""
    if self._is_kept or step <= self._start:
      return
    if self._start < 0:
      # No checkpoint exists yet for which these could be wrong.
      self._write_files()
      _write(self._model_dir, self._facts, self._entries)
    elif self._before:
      _write(self._model_dir, self._before, self._entries)

  def after_save(self, step: int) -> None:
    """Writes the facts of a checkpoint that was saved."""
    if self._is_kept or step <= self._start:
      return
    _write(self._model_dir, self._facts, self._entries)
    self._write_files()
    self._is_kept = True

  def _write_files(self):
    for name, text in self._files.items():
      if text is not None:
        _write_text(self._model_dir, name, text)
      elif self._model_dir.has(name):
        tf.io.gfile.remove(self._model_dir.join(name))


def settle(model_dir: model_dirs.ModelDir) -> None:
  """Brings the top of hparams.json up to date with the newest checkpoint.

  A trainer calls this, because an earlier one may have been killed between two
  writes.
  """
  checkpoint = model_dir.newest()
  if not checkpoint:
    return
  record = facts_lib.Record(model_dir)
  known = record.find(checkpoint)
  if not known or not known.counting:
    return  # Written by an older version.
  shown = model_dir.read_json(model_dirs.HPARAMS)
  if shown.get('compact') != known.params.serialize():
    _write(model_dir, known, record.entries)


def move(
  model_dir: model_dirs.ModelDir,
  known: facts_lib.Facts,
  now: counting_lib.Counting,
) -> str | None:
  """Renumbers the newest checkpoint to its step in another plan.

  The checkpoints of the former plan move to a directory of their own, which is
  a model_dir like any other. If this is killed at any moment, the newest
  checkpoint is complete and the recorded facts are true of it.

  Args:
    model_dir: The model_dir of the run; the caller is its trainer.
    known: The facts of the newest checkpoint.
    now: How its step is to be counted.

  Returns:
    The directory of the former checkpoints; None if the step stays the same.
  """
  checkpoint = model_dir.newest()
  step = checkpoint_files.step_of(checkpoint)
  moved = counting_lib.moved_step(known.counting, now, step)
  to = checkpoint_files.path_of(model_dir.path, moved)
  facts = dataclasses.replace(known, counting=now)
  if to == checkpoint:
    _write(model_dir, known, [facts_lib.Entry(-1, facts)])
    return None
  aside = model_dirs.ModelDir(model_dir.unused(model_dirs.FORMER_PLANS))
  tf.io.gfile.makedirs(aside.path)
  for name in (
    model_dirs.HPARAMS,
    model_dirs.LABELS,
    model_dirs.WHITENING,
    model_dirs.BAD_IMAGES,
  ):
    if (text := model_dir.read(name)) is not None:
      aside.write(name, text)

  def put_aside(path):
    # Copied, not renamed: renaming several files could stop halfway.
    checkpoint_files.copy(path, aside.join(os.path.basename(path)))
    checkpoint_files.remove(path)

  for path in checkpoint_files.on_disk(model_dir.path):
    if path != checkpoint:
      put_aside(path)
  checkpoint_files.copy_as_step(checkpoint, to)
  # Written before the checkpoint that it describes counts, and without effect
  # on the checkpoint before.
  _write(
    model_dir,
    known,
    [
      facts_lib.Entry(-1, known),
      facts_lib.Entry(
        -1, facts, moved_from=checkpoint_files.fingerprint(checkpoint)
      ),
    ],
  )
  model_dir.write(
    checkpoint_files.STATE, checkpoint_files.state_text(model_dir.path, [to])
  )
  put_aside(checkpoint)
  aside.write(
    checkpoint_files.STATE,
    checkpoint_files.state_text(
      aside.path, checkpoint_files.on_disk(aside.path)
    ),
  )
  return aside.path
