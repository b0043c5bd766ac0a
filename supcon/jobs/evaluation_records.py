"""Which checkpoints were evaluated, and the best of them.

What was evaluated is recorded, so that nothing is done twice; and the best
checkpoint is kept aside, for the trainer deletes its own as they get old.
"""

from collections.abc import Mapping
import contextlib
import hashlib
import json
import os
import re
from typing import Any

from absl import logging
import tensorflow as tf

from supcon.config import safe_text
from supcon.jobs import setup
from supcon.runs import checkpoint_files
from supcon.runs import model_dirs
from supcon.runs import timestamps
from supcon.serving import exports


class Record:
  """eval/evaluated.json: which checkpoints were evaluated, with what result.

  {step: {'fingerprint', 'data', 'metrics', 'export', 'time'}}; `export` is null
  where there is none. A checkpoint counts as another one if it has other
  values, as that of a run that was begun anew or went back, and where it is to
  be evaluated on other data.
  """

  _KEYS = ('fingerprint', 'data', 'metrics', 'export', 'time')

  def __init__(self, run: setup.Run):
    self._model_dir = model_dir = run.model_dir
    self._data = setup.data_of(run)
    try:
      found = model_dir.read_json(model_dirs.EVALUATED) or {}
      self._entries = {
        int(step): {key: entry[key] for key in self._KEYS}
        for step, entry in found.items()
      }
    except (ValueError, AttributeError, LookupError, TypeError) as error:
      path = model_dir.join(model_dirs.EVALUATED)
      logging.warning(
        'WARNING: %s is damaged (%s); it is renamed, and what it recorded is '
        'evaluated again',
        path,
        safe_text.one_line(error),
      )
      tf.io.gfile.rename(path, f'{path}.damaged', overwrite=True)
      self._entries = {}

  def find(self, checkpoint: str) -> Mapping[str, Any] | None:
    """Returns what is recorded of a checkpoint, if it is there and anything is.

    Raises:
      tf.errors.OpError: If the checkpoint cannot be read.
    """
    entry = self._entries.get(checkpoint_files.step_of(checkpoint))
    if not entry or not _is_same(entry['data'], self._data):
      return None
    with contextlib.suppress(tf.errors.NotFoundError):
      if entry['fingerprint'] == checkpoint_files.fingerprint(checkpoint):
        return entry
    return None

  def has_later(self, step: int) -> bool:
    """Whether a later checkpoint is there that was evaluated before."""
    found = checkpoint_files.steps_and_paths(self._model_dir.path)
    return any(
      later > step and self.find(checkpoint)
      for later, checkpoint in found.items()
    )

  def add(
    self,
    step: int,
    fingerprint: str,
    metrics: Mapping[str, float],
    export: exports.Export | None,
    superseded: str | None = None,
  ) -> None:
    """Writes down that a checkpoint was evaluated.

    Args:
      step: Its step.
      fingerprint: Of its values.
      metrics: What was found.
      export: What was written of it, if anything.
      superseded: The export of another one, which is going to be removed.
    """
    for entry in self._entries.values():
      if superseded and entry['export'] == superseded:
        entry['export'] = None
    self._entries[step] = {
      'fingerprint': fingerprint,
      'data': self._data,
      'metrics': metrics,
      'export': export and export.path,
      'time': timestamps.now(),
    }
    path = self._model_dir.join(model_dirs.EVALUATED)
    tf.io.gfile.makedirs(os.path.dirname(path))
    self._model_dir.write_json(
      model_dirs.EVALUATED, dict(sorted(self._entries.items()))
    )


class Best:
  """best/: the checkpoint of the best top-1 accuracy; of equals, the first.

  It is a copy, since the trainer deletes its own as they get old. best.json
  says which one it is and where its export is. Files come and go one by one, in
  an order in which there always is a whole checkpoint to be read.

  What cannot be compared is not worse: best/ is of the data of the run's own
  evaluations, or where nobody knows them, of those that came first; the best
  one of other data, or of another network, is beside it in a directory
  best-NAME. What cannot be read any more is put aside.
  """

  _KEYS = ('step', 'top_1', 'fingerprint', 'data', 'architecture', 'export')
  # Whether the export goes when another one is the best; may be missing.
  _TEMPORARY = 'export_goes_with_it'

  def __init__(
    self,
    model_dir: model_dirs.ModelDir,
    data: Mapping[str, Any],
    architecture: Any,
    own_data: Mapping[str, Any] | None = None,
  ):
    """Finds the best one so far.

    Args:
      model_dir: Of the run.
      data: What is evaluated, see runs.data_of.
      architecture: Of the model, in JSON.
      own_data: What the run's own evaluations are of, if that is known.
    """
    self._model_dir = model_dir
    self._damage = model_dir.damage  # It remembers what it has read.
    self._like = {'data': data, 'architecture': architecture}
    self._dir = self._directory(model_dirs.BEST)
    self._facts = self._read()
    if self._facts:
      is_here = self._is_like(self._facts)
    else:
      is_here = not own_data or _is_same(own_data, data)
    if not is_here:
      self._dir = self._directory(f'{model_dirs.BEST}-{self._name()}')
      self._facts = self._read()

  @property
  def name(self) -> str:
    """What ends the names of best-NAME/ and eval_NAME/; '' for the run's own.

    Evaluations that cannot be compared are not in one curve either.
    """
    return os.path.basename(self._dir.path).removeprefix(model_dirs.BEST)[1:]

  def _directory(self, name):
    return model_dirs.ModelDir(self._model_dir.join(name))

  def _name(self):
    """Returns a name of what is evaluated that nothing else has."""
    data = self._like['data']
    words = re.sub(r'[^a-zA-Z0-9]+', '_', f'{data["dataset"]}_{data["split"]}')
    text = json.dumps(self._like, sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()
    return f'{words.strip("_")[:40]}-{digest[:8]}'

  def _is_like(self, facts):
    return facts['architecture'] == self._like['architecture'] and _is_same(
      facts['data'], self._like['data']
    )

  def _read(self):
    try:
      found = self._dir.read_json(model_dirs.BEST_FACTS)
      return found and {
        **{key: found[key] for key in self._KEYS},
        self._TEMPORARY: found.get(self._TEMPORARY, False),
      }
    except (ValueError, LookupError, TypeError) as error:
      self._warn(f'{model_dirs.BEST_FACTS}: {safe_text.one_line(error)}')
      return None

  def would_be(self, candidate: Mapping[str, Any]) -> bool:
    """Whether a checkpoint is the best one, or is to take its place.

    Args:
      candidate: 'step', 'top_1' and 'fingerprint', evaluated as this is.
    """
    best = self._facts
    if not best:
      return True
    if problem := self._damage(self._checkpoint(best['step'])):
      self._warn(problem)
      return True
    is_same = all(
      best[key] == candidate[key] for key in ('step', 'fingerprint')
    )
    return is_same or candidate['top_1'] > best['top_1']

  def hold(self, checkpoint: str) -> None:
    """Copies a checkpoint aside.

    Raises:
      tf.errors.OpError: If it cannot be read, or the copy is not whole.
    """
    tf.io.gfile.makedirs(self._dir.path)
    self._remove('held.ckpt-')  # Of a job that was killed.
    held = self._held(checkpoint_files.step_of(checkpoint))
    checkpoint_files.copy(checkpoint, held)
    if damage := checkpoint_files.damage(held):
      raise tf.errors.DataLossError(
        None, None, f'{held}, a copy of {checkpoint}, is not whole: {damage}'
      )

  def replace(
    self,
    candidate: Mapping[str, Any],
    export: exports.Export | None,
    is_only_for_it: bool = False,
  ) -> str | None:
    """Puts the checkpoint that is held in the place of the best one.

    Args:
      candidate: See `would_be`.
      export: What was written of it, if anything.
      is_only_for_it: Whether the export is there only because the checkpoint is
        the best one, and goes when another is.

    Returns:
      The export that is to go now, if there is one.
    """
    before = self._facts or {}
    superseded = before.get('export') if before.get(self._TEMPORARY) else None
    if not self._facts:
      self._put_unknown_aside()
    checkpoint = self._checkpoint(candidate['step'])
    checkpoint_files.rename(self._held(candidate['step']), checkpoint)
    self._dir.write(
      checkpoint_files.STATE,
      checkpoint_files.state_text(self._dir.path, [checkpoint]),
    )
    self._facts = {
      **candidate,
      **self._like,
      'export': export and export.path,
      self._TEMPORARY: is_only_for_it,
    }
    self._dir.write_json(
      model_dirs.BEST_FACTS,
      {
        **self._facts,
        'saved_model': export and export.saved_model,
        'hub_module': export and export.hub_module,
        'checkpoint': checkpoint,
        'time': timestamps.now(),
      },
    )
    self._remove('model.ckpt-', but=checkpoint_files.files(checkpoint))
    return superseded

  def describe(self) -> str:
    """Returns 'step 10, top-1 0.9000, in DIR/best'; '' if there is none."""
    if not self._facts:
      return ''
    step, top_1 = self._facts['step'], self._facts['top_1']
    return f'step {step}, top-1 {top_1:.4f}, in {self._dir.path}'

  def _put_unknown_aside(self):
    """Keeps checkpoints of which no facts are left: nobody can compare them."""
    found = checkpoint_files.on_disk(self._dir.path)
    if not found:
      return
    aside = self._model_dir.unused(model_dirs.DAMAGED)
    tf.io.gfile.makedirs(aside)
    for path in found:
      checkpoint_files.rename(path, os.path.join(aside, os.path.basename(path)))
    logging.info('put aside in %s: what %s held', aside, self._dir.path)

  def _remove(self, start, but=()):
    for name in tf.io.gfile.listdir(self._dir.path):
      path = self._dir.join(name)
      if name.startswith(start) and path not in but:
        tf.io.gfile.remove(path)

  def _checkpoint(self, step):
    return self._dir.join(f'model.ckpt-{step}')

  def _held(self, step):
    return self._dir.join(f'held.ckpt-{step}')

  def _warn(self, problem):
    logging.warning(
      'WARNING: what %s holds does not count any more (%s)',
      self._dir.path,
      problem,
    )


def best_of(run: setup.Run) -> Best:
  """Returns the best of what can be compared with evaluations of a run."""
  return Best(
    run.model_dir,
    setup.data_of(run),
    run.params.to_json()['architecture'],
    run.known.evaluation if run.known else None,
  )


def kept_exports(model_dir: model_dirs.ModelDir) -> list[str]:
  """Returns the exports of all best checkpoints: they are not to be deleted."""
  if not tf.io.gfile.isdir(model_dir.path):
    return []
  names = (name.rstrip('/') for name in tf.io.gfile.listdir(model_dir.path))
  found = []
  for name in names:
    if name == model_dirs.BEST or name.startswith(f'{model_dirs.BEST}-'):
      path = os.path.join(name, model_dirs.BEST_FACTS)
      with contextlib.suppress(ValueError, AttributeError):
        found.append((model_dir.read_json(path) or {}).get('export'))
  return [export for export in found if isinstance(export, str)]


def _is_same(first, second):
  """Whether two data_of() are of the same, as far as both say."""
  if not isinstance(first, Mapping) or not isinstance(second, Mapping):
    return first == second
  return all(first[key] == second[key] for key in {*first} & {*second})
