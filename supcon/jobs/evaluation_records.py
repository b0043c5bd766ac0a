"""Records which checkpoints were evaluated, and keeps the best of them.

Evaluations are recorded so that none is done twice. The best checkpoint is
copied aside, because the trainer deletes its own old checkpoints.
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

from supcon.config import run_options
from supcon.config import safe_text
from supcon.jobs import run_state
from supcon.runs import checkpoint_files
from supcon.runs import model_dirs
from supcon.runs import timestamps
from supcon.serving import exports


class Record:
  """eval/evaluated.json: which checkpoints were evaluated, and the results.

  {step: {'fingerprint', 'data', 'metrics', 'export', 'time'}}; `export` is null
  if there is none. A checkpoint has to be evaluated again if its values have
  changed (as after a rollback or a restart from scratch), or if the data of the
  evaluation has changed.
  """

  _KEYS = ('fingerprint', 'data', 'metrics', 'export', 'time')

  def __init__(self, run: run_state.Run):
    self._model_dir = model_dir = run.model_dir
    self._data = run_state.data_of(run)
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
    """Returns the record of a checkpoint, or None.

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
    """Whether a later checkpoint exists that was evaluated before."""
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
    """Records the evaluation of a checkpoint.

    Args:
      step: Its step.
      fingerprint: The fingerprint of its values.
      metrics: The result.
      export: Its export, if any.
      superseded: The export of another checkpoint that is about to be removed.
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


def keep_result(
  model_dir: model_dirs.ModelDir,
  result: Mapping[str, Any],
  evaluated: Mapping[str, Any],
  is_last: bool,
) -> dict[str, Any]:
  """Adds an evaluation to result.json.

  The file holds the last evaluation, and in 'evaluations' all of the run, in
  the order of steps: one for each checkpoint and data.

  Args:
    model_dir: The model_dir of the run.
    result: The evaluation, as the last one.
    evaluated: The same, as one of all. A checkpoint in model_dir is recorded
      without the directory, which may be moved.
    is_last: Whether no later checkpoint was evaluated.

  Returns:
    `result` with the evaluations of the run.
  """
  try:
    before = model_dir.read_json(model_dirs.RESULT) or {}
    kept = [{**each} for each in before.pop('evaluations', [])]
  except (ValueError, AttributeError, TypeError) as error:
    logging.warning(
      'WARNING: %s is damaged (%s); it is written anew',
      model_dir.join(model_dirs.RESULT),
      safe_text.one_line(error),
    )
    before, kept = {}, []
  directory, name = os.path.split(evaluated['checkpoint'])
  if os.path.normpath(directory) == os.path.normpath(model_dir.path):
    evaluated = {**evaluated, 'checkpoint': name}
  kept = [
    each
    for each in kept
    if any(each.get(key) != evaluated[key] for key in ('checkpoint', 'data'))
  ]
  kept.append(dict(evaluated))
  kept.sort(key=lambda each: each.get('global_step', 0))
  result = {**result, 'evaluations': kept}
  model_dir.write_json(
    model_dirs.RESULT,
    result if is_last or not before else {**before, 'evaluations': kept},
  )
  return result


class Best:
  """best/: the checkpoint that is best by --best_metric; the first of equals.

  It is a copy, because the trainer deletes its own old checkpoints. best.json
  records which checkpoint it is and where its export is. Files are added and
  deleted one by one, in an order that keeps a complete checkpoint readable at
  all times.

  A best checkpoint whose value of that metric is unknown gives way to the next
  one that is evaluated.

  Only comparable results compete. best/ holds the best checkpoint on the data
  of the run's own evaluations or, if these are unknown, on the data that was
  evaluated first. The best checkpoint on other data, or of another network, is
  in a directory best-NAME beside it. Checkpoints that can no longer be read are
  set aside.
  """

  _KEYS = ('step', 'top_1', 'fingerprint', 'data', 'architecture', 'export')
  # Whether to delete the export once another one is best; may be missing.
  _TEMPORARY = 'export_goes_with_it'
  # All results of the evaluation; missing in files of older versions.
  _METRICS = 'metrics'

  def __init__(
    self,
    model_dir: model_dirs.ModelDir,
    data: Mapping[str, Any],
    architecture: Any,
    own_data: Mapping[str, Any] | None = None,
    metric: str = run_options.TOP_1,
  ):
    """Finds the best checkpoint so far.

    Args:
      model_dir: The model_dir of the run.
      data: Names the data of the evaluation, see run_state.data_of.
      architecture: The architecture of the model, in JSON.
      own_data: Names the data of the run's own evaluations, if known.
      metric: The metric that decides.
    """
    self._metric = metric
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
    """The NAME in best-NAME/ and eval_NAME/; '' for the run's own data.

    Results that cannot be compared do not share a curve either.
    """
    return os.path.basename(self._dir.path).removeprefix(model_dirs.BEST)[1:]

  def _directory(self, name):
    return model_dirs.ModelDir(self._model_dir.join(name))

  def _name(self):
    """Returns a unique name for the data and network of the evaluation."""
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
        self._METRICS: dict(found.get(self._METRICS, {})),
      }
    except (ValueError, LookupError, TypeError) as error:
      self._warn(f'{model_dirs.BEST_FACTS}: {safe_text.one_line(error)}')
      return None

  def would_be(self, candidate: Mapping[str, Any]) -> bool:
    """Whether a checkpoint is the best one or should replace it.

    Args:
      candidate: 'step', 'top_1', 'fingerprint' and optionally 'metrics', all
        results of the evaluation.
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
    value, least = self._value(candidate), self._value(best)
    if least is None:
      self._warn(f'its {self._metric} is unknown')
      return True
    # Too few examples may leave a metric undefined.
    return is_same or (
      value is not None and run_options.is_better(self._metric, value, least)
    )

  def _value(self, facts):
    known = {run_options.TOP_1: facts['top_1'], **facts.get(self._METRICS, {})}
    return known.get(self._metric)

  def hold(self, checkpoint: str) -> None:
    """Copies a checkpoint aside.

    Raises:
      tf.errors.OpError: If it cannot be read, or the copy is incomplete.
    """
    tf.io.gfile.makedirs(self._dir.path)
    self._remove('held.ckpt-')  # Left over from a job that was killed.
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
    """Makes the checkpoint that was copied aside the best one.

    Args:
      candidate: See `would_be`.
      export: Its export, if any.
      is_only_for_it: Whether the export exists only because the checkpoint is
        the best; it is deleted once another is better.

    Returns:
      The export to delete now, if any.
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
    value, chosen = self._value(self._facts), ''
    if self._metric != run_options.TOP_1 and value is not None:
      chosen = f'{self._metric} {value:.4f}, '
    return f'step {step}, {chosen}top-1 {top_1:.4f}, in {self._dir.path}'

  def _put_unknown_aside(self):
    """Sets aside checkpoints without facts, which cannot be compared."""
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


def best_of(run: run_state.Run) -> Best:
  """Returns the best checkpoint among comparable evaluations of a run."""
  return Best(
    run.model_dir,
    run_state.data_of(run),
    run.params.to_json()['architecture'],
    run.known.evaluation if run.known else None,
    run.options.best_metric,
  )


def kept_exports(model_dir: model_dirs.ModelDir) -> list[str]:
  """Returns the exports of all best checkpoints, which must be kept."""
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
  """Whether two results of data_of() agree on the keys that both have."""
  if not isinstance(first, Mapping) or not isinstance(second, Mapping):
    return first == second
  return all(first[key] == second[key] for key in {*first} & {*second})
