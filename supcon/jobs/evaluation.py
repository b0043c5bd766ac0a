"""Evaluates and exports checkpoints: one, or each new one as it appears.

Evaluations are recorded so that none is done twice. The best checkpoint is
copied aside, because the trainer deletes its own old checkpoints.
"""

from collections.abc import Callable
from collections.abc import Mapping
import contextlib
import dataclasses
import math
import os
import shlex
import sys
import time
from typing import Any

from absl import logging
import tensorflow as tf

from supcon.config import hparams
from supcon.config import run_options
from supcon.config import safe_text
from supcon.data import inputs
from supcon.data.sources import faults
from supcon.jobs import announcing
from supcon.jobs import checked_runs
from supcon.jobs import evaluation_records
from supcon.jobs import representation
from supcon.jobs import run_state
from supcon.jobs import stopping
from supcon.runs import checkpoint_files
from supcon.runs import event_files
from supcon.runs import locks
from supcon.runs import log_files
from supcon.runs import model_dirs
from supcon.runs import retries
from supcon.runs import sessions
from supcon.runs import signals
from supcon.runs import status
from supcon.runs import storage
from supcon.runs import timestamps
from supcon.serving import exports
from supcon.training import checkpoints
from supcon.training import estimators
from supcon.training import facts
from supcon.training import objectives

_POLL_SECONDS = 1.0
# A checkpoint that cannot be read and has not changed for this long is damaged.
_STILL_SECONDS = 2.0
# A trainer that extends a finished run may start this much later than the
# evaluation.
_TRAINER_SECONDS = 60.0


# --- One checkpoint -----------------------------------------------------------


def evaluate(
  run: run_state.Run, checkpoint: str, exports_if_best: bool = False
) -> dict:
  """Evaluates, exports and records a checkpoint; keeps it if it is the best.

  If killed at any moment, it leaves only complete files, and a record only if
  everything else is complete.

  Args:
    run: The run, which determines directories and data.
    checkpoint: Checkpoint prefix.
    exports_if_best: Whether to export only if the checkpoint is the best so
      far; that export is deleted once another is better. Otherwise the
      checkpoint is always exported.

  Returns:
    The content of result.json, unless a later checkpoint was evaluated before.

  Raises:
    checkpoints.NotFiniteError: If a variable or a metric is NaN or infinite.
    faults.BadExampleError: If an image cannot be decoded.
    stopping.LostCheckpointError: If the checkpoint is deleted, damaged or
      overwritten in the meantime.
  """
  step = checkpoint_files.step_of(checkpoint)
  logging.info('evaluating %s', checkpoint)
  record = evaluation_records.Record(run)
  run = run.as_trained(checkpoint)
  best = evaluation_records.best_of(run)
  if not best.name and not record.has_later(step):
    sessions.record(
      run.model_dir.join(os.path.dirname(model_dirs.EVALUATED)),
      run.known.params if run.known else run.params,
      is_last_step=step == _total_steps(run, checkpoint),
    )
  with _unchanged(run.model_dir, checkpoint) as fingerprint:
    metrics = _measure(run, checkpoint, best.name)
    run.skipped.keep()
    candidate = {
      'step': step,
      'top_1': metrics['top_1_accuracy'],
      'metrics': metrics,
      'fingerprint': fingerprint,
    }
    is_best = best.would_be(candidate)
    if is_best:
      # Copy it now: the trainer may delete it during the export.
      best.hold(checkpoint)
    result = {
      'metrics': metrics,
      'global_step': step,
      'total_steps': _total_steps(run, checkpoint),
      'num_examples': run.dataset.num_eval_examples,
      'num_skipped': run.skipped.count('evaluation'),
      'dataset': run.params.input_data.input_fn,
      'split': run.dataset.evaluation.name,
    }
    export = None
    if run.options.formats and (is_best or not exports_if_best):
      export = _export(run, checkpoint, result)
  evaluated = {
    **result,
    'fingerprint': fingerprint,
    'data': run_state.data_of(run),
    'time': timestamps.now(),
  }
  result |= {
    'class_names': list(run.class_names),
    'checkpoint': checkpoint,
    'fingerprint': fingerprint,
    'data': evaluated['data'],
    'export': export and export.path,
    'saved_model': export and export.saved_model,
    'hub_module': export and export.hub_module,
  }
  if run.dataset.class_names != run.class_names:
    result['class_names_of_data'] = list(run.dataset.class_names)
  is_last = run.options.eval_once or not record.has_later(step)
  result = evaluation_records.keep_result(
    run.model_dir, result, {'checkpoint': checkpoint, **evaluated}, is_last
  )
  superseded = None
  if is_best:
    superseded = best.replace(candidate, export, exports_if_best)
    if superseded and not _is_in(run.model_dir, superseded):
      superseded = None  # This is a copy of the run that owns it.
  directory = os.path.normpath(os.path.dirname(checkpoint))
  if directory == os.path.normpath(run.model_dir.path):
    record.add(step, fingerprint, metrics, export, superseded)
  if superseded:
    exports.remove(superseded)
  if export:
    exports.prune(
      run.model_dir.join(model_dirs.EXPORTS),
      export.path,
      run.options.exports_to_keep,
      evaluation_records.kept_exports(run.model_dir),
    )
  logging.info(
    'step %d: top-1 %.4f, top-5 %.4f, %s on %d examples%s',
    step,
    metrics['top_1_accuracy'],
    metrics['top_5_accuracy'],
    ', '.join(
      f'{objectives.in_words(name)} loss {metrics[objectives.tag(name)]:.4f}'
      for name in objectives.TERMS
    ),
    run.dataset.num_eval_examples,
    '; the best so far' if is_best else '',
  )
  run.skipped.report('evaluation', run.dataset, run.output)
  return result


def _is_in(model_dir, export):
  """Whether an export belongs to this run."""
  directory = model_dir.join(model_dirs.EXPORTS)
  return os.path.normpath(os.path.dirname(export)) == os.path.normpath(
    directory
  )


def last_evaluation(result: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the summary of an evaluation's result for status.json."""
  return {
    'step': result['global_step'],
    'top_1': result['metrics']['top_1_accuracy'],
    'data': f'{result["dataset"]} {result["split"]}',
    'time': timestamps.now(),
  }


def summarize(
  run: run_state.Run, result: Mapping[str, Any], report: str | None = None
) -> None:
  """Prints the paths of all results for the user.

  Args:
    run: The run.
    result: The last evaluation, as in result.json.
    report: The path of the report, if there is one.
  """
  top_1 = result['metrics']['top_1_accuracy']
  skipped = result['num_skipped']
  is_part = run.params.input_data.max_eval_samples
  places = {
    'Checkpoint': result['checkpoint'],
    'SavedModel': result['saved_model'],
    'Hub module': result['hub_module'],
    'Metrics': run.model_dir.join(model_dirs.RESULT),
    'Report': report,
    'TensorBoard': shlex.join(
      [sys.executable, '-m', 'tensorboard.main', '--logdir', run.model_dir.path]
    ),
  }
  print(
    f'\nTop-1 {100 * top_1:.2f}% on {"the first" if is_part else "all"} '
    f'{result["num_examples"]} '
    f'{result["dataset"]} {result["split"]} images'
    f'{f" ({skipped} bad ones skipped)" if skipped else ""}.'
  )
  for name, place in places.items():
    if place:
      print(f'{name + ":":<13}{place}')
  sys.stdout.flush()


def _measure(run, checkpoint, name):
  """Returns {name: value} of all metrics; the values are numbers.

  Args:
    run: run_state.Run.
    checkpoint: Checkpoint prefix.
    name: Name of the data: summaries go to eval_NAME. The run's own data has
      the name '', and its summaries go to eval.
  """
  options, params, dataset = run.options, run.params, run.dataset
  with tf.Graph().as_default():
    network = run.trained_model(checkpoint).build()
    checkpoints.require_finite(network.variables, checkpoint)
  step = checkpoint_files.step_of(checkpoint)
  estimator = estimators.build(
    options,
    run.devices,
    run.model_fn(run.plan.stage_that_made(step)),
    train_batch_size=params.batch_size,
    eval_batch_size=params.eval.batch_size,
    seed=params.seed,
  )
  directory = estimator.eval_dir(name)
  # A job that was killed may have evaluated it before.
  later = event_files.restart(directory, step)
  later.pop(step, None)
  # Checking one checkpoint is faster than searching for a bad image.
  with (
    faults.naming(dataset.evaluation),
    _unchanged(run.model_dir, checkpoint),
  ):
    metrics = estimator.evaluate(
      inputs.eval_input_fn(dataset, params, run.devices.image_dtype(run.dtype)),
      steps=math.ceil(dataset.num_eval_examples / params.eval.batch_size),
      checkpoint_path=checkpoint,
      name=name or None,
    )
    of_embeddings = representation.measure(run, checkpoint)
  event_files.add(directory, {step: of_embeddings, **later})
  plan = run.plan
  run.model_dir.write(
    os.path.join(os.path.basename(directory), model_dirs.METRICS),
    event_files.table(
      event_files.read(directory),
      event_files.EVALUATION_COLUMNS,
      lambda step: (
        step / plan.steps_per_epoch,
        plan.stage_at(max(step - 1, 0)).number,
      ),
    ),
  )
  metrics = {
    name: float(value)
    for name, value in sorted({**metrics, **of_embeddings}.items())
    if name != 'global_step'
  }
  broken = {name: x for name, x in metrics.items() if not math.isfinite(x)}
  if broken:
    found = ', '.join(f'{name} is {value}' for name, value in broken.items())
    raise checkpoints.NotFiniteError(
      f'{found} in the evaluation of {checkpoint}, whose variables are finite; '
      'use --mode=embed to find the first image that causes it, and go back to '
      'an earlier checkpoint.'
    )
  return metrics


def _total_steps(run, checkpoint):
  """Returns the last step of the run that a checkpoint belongs to."""
  if run.known and run.known.counting:
    return run.known.counting.last_step
  step = checkpoint_files.step_of(checkpoint)
  return max(step, last_step(run.model_dir, checkpoint, run.plan.total_steps))


def _export(run, checkpoint, result):
  """Exports a checkpoint; keeps older exports, however many there are."""
  return exports.write(
    _exported_model(run, checkpoint),
    run.model_dir.join(model_dirs.EXPORTS),
    run.options.formats,
    0,
    {**run.training_facts(), **facts_of_evaluation(result)},
  )


def _exported_model(run, checkpoint):
  model = run.trained_model(checkpoint)
  if run.known:
    # Evaluation and training may use different images.
    model = dataclasses.replace(model, params=run.known.params)
  return model


def describe_export(
  run: run_state.Run, result: Mapping[str, Any], metrics: Mapping[str, float]
) -> None:
  """Adds metrics to the description of the export of an evaluation, if any.

  Args:
    run: The run, as the checkpoint was trained.
    result: What `evaluate` has returned.
    metrics: The other metrics of the same checkpoint.
  """
  if result['export']:
    found = facts_of_evaluation(result)
    found['metrics'] = {**found['metrics'], **metrics}
    exports.describe(
      exports.Export(
        result['export'], result['saved_model'], result['hub_module']
      ),
      _exported_model(run, result['checkpoint']),
      {**run.training_facts(), **found},
    )


def facts_of_evaluation(result: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the facts of an evaluation for an export, from result.json."""
  return {
    'eval_dataset': result['dataset'],
    'eval_split': result['split'],
    'num_eval_examples': result['num_examples'],
    'total_steps': result['total_steps'],
    'metrics': result['metrics'],
  }


@contextlib.contextmanager
def _unchanged(model_dir, checkpoint):
  """Yields the fingerprint of a checkpoint that must not change meanwhile.

  It may be deleted once it is no longer read.

  Raises:
    stopping.LostCheckpointError: If it changes; this replaces any error that
      the change has caused.
  """
  before = checkpoint_files.stamps(checkpoint)
  try:
    fingerprint = checkpoint_files.fingerprint(checkpoint)
    yield fingerprint
    with contextlib.suppress(tf.errors.NotFoundError):
      if checkpoint_files.fingerprint(checkpoint) != fingerprint:
        raise stopping.LostCheckpointError(f'{checkpoint} {_REPLACED}')
  except (ValueError, tf.errors.OpError) as error:
    loss = _loss(model_dir, checkpoint, before)
    if not loss:
      raise
    raise stopping.LostCheckpointError(f'{checkpoint} {loss}') from error


_REPLACED = 'was written anew meanwhile'


def _loss(model_dir, checkpoint, before):
  """Returns how a checkpoint has changed; '' if its files are the same."""
  if not checkpoint_files.stamp(f'{checkpoint}.index'):
    return 'was deleted by the trainer'
  if damage := model_dir.damage(checkpoint):
    return f'is damaged ({damage})'
  return _REPLACED if checkpoint_files.stamps(checkpoint) != before else ''


class EvaluateOnce:
  """--mode=eval --eval_once: evaluates one existing checkpoint."""

  def __init__(self, options: run_options.RunOptions, params: hparams.HParams):
    """Checks everything that can be checked before the job starts.

    Raises:
      ValueError: If there is no checkpoint, or any other check fails.
    """
    model_dir = model_dirs.ModelDir(options.model_dir)
    if not options.checkpoint and not model_dir.newest():
      raise ValueError(
        f'--model_dir={options.model_dir} holds no checkpoint to be evaluated; '
        'name a directory in which a model was trained, or leave out '
        '--eval_once to wait for one.'
      )
    self._run = checked_runs.prepare(options, params)
    self._checkpoint = self._run.checkpoint

  def announce(self) -> None:
    """Logs what the job will do.

    Raises:
      ValueError: If nothing can be written.
    """
    self._held, self._writer = _begin(
      self._run,
      status.EVALUATING,
      checkpoint_files.step_of(self._checkpoint),
      self._run.plan.total_steps,
    )

  def run(self) -> None:
    """Evaluates the checkpoint.

    Raises:
      faults.BadExampleError: If an image cannot be decoded.
      stopping.LostCheckpointError: If it is deleted or damaged in the meantime.
    """
    trying = retries.Retries(
      sleep=signals.sleep, tell=lambda: self._writer.add(retries=1)
    )
    with self._held:
      result = trying.call(
        f'evaluating {self._checkpoint}',
        lambda: evaluate(self._run, self._checkpoint),
      )
      self._writer.update(last_evaluation=last_evaluation(result))
      summarize(self._run, result)


def prepare(options: run_options.RunOptions, params: hparams.HParams):
  """Returns the job of --mode=eval."""
  return (EvaluateOnce if options.eval_once else EvaluateEach)(options, params)


def _begin(run, state, step, total_steps):
  """Opens the log and the status of an evaluation.

  Returns:
    An ExitStack that closes them, and a status.Writer.

  Raises:
    ValueError: If they cannot be written.
  """
  path = run.model_dir.path
  with contextlib.ExitStack() as stack:
    stack.enter_context(log_files.keep(run.model_dir.join(log_files.EVALUATOR)))
    writer = stack.enter_context(
      status.Writer(
        model_dirs.ModelDir(path), status.EVALUATOR, explain=stopping.why
      )
    )
    try:
      writer.begin(state, step, total_steps)
    except storage.errors() as error:
      raise ValueError(
        f'--model_dir={path} cannot be used ({safe_text.one_line(error)}); '
        'name another directory.'
      ) from error
    announcing.announce(run)
    return stack.pop_all(), writer


# --- One after the other ------------------------------------------------------


def last_step(
  model_dir: model_dirs.ModelDir, newest: str | None, announced: int
) -> int:
  """Returns the last step of a run, as recorded by the run itself.

  The running trainer knows it best; without one, the record of the newest
  checkpoint decides; without that, the last word of a trainer that has
  finished.

  Args:
    model_dir: The model_dir of the run.
    newest: Its newest checkpoint, possibly incomplete; None if there is none.
    announced: The last step according to the flags, used if no record exists.
  """
  trainer = status.read(model_dir.path) or status.Status()
  holder = locks.read(model_dir.path)
  is_there = holder and holder.is_alive() and holder.process == trainer.process
  if is_there and not trainer.has_ended and trainer.total_steps:
    return trainer.total_steps
  known = facts.find(model_dir, newest)
  if known and known.counting:
    return known.counting.last_step
  step = checkpoint_files.step_of(newest) if newest else None
  is_done = trainer.state == status.DONE and step is not None
  if is_done and trainer.step == trainer.total_steps == step:
    return step
  return announced


class EvaluateEach:
  """--mode=eval: evaluates each checkpoint up to the last step's."""

  def __init__(
    self,
    options: run_options.RunOptions,
    params: hparams.HParams,
    sleep: Callable[[float], None] = signals.sleep,
  ):
    """Checks everything that can be checked before the job starts.

    Args:
      options: Checked RunOptions.
      params: Checked HParams.
      sleep: Waits between two looks at model_dir.
    """
    self._run = checked_runs.prepare(options, params)
    self._model_dir = self._run.model_dir
    self._sleep = sleep
    self._is_compared = bool(self._run.checkpoint)
    # What the last look found, and whether nothing is left to do about it.
    self._look = None
    self._is_settled = False
    # Checkpoints not yet evaluated: their files, and the time of
    # time.monotonic() since which the files have not changed, in seconds.
    self._pending: dict[str, tuple[tuple, float]] = {}
    self._said: set[str] = set()  # Damaged checkpoints that were reported.
    self._is_waiting = False
    # Start of the last evaluation, and the last sign of a trainer, in seconds
    # of time.monotonic().
    self._begun = -math.inf
    self._sign = self._started = time.monotonic()

  def announce(self) -> None:
    """Logs what the job will do.

    Raises:
      ValueError: If nothing can be written.
    """
    self._held, self._writer = _begin(
      self._run, status.WAITING, 0, self._run.plan.total_steps
    )

  def run(self) -> None:
    """Waits for checkpoints and evaluates them.

    Raises:
      checkpoints.MismatchError: If one belongs to another model.
      checkpoints.NotFiniteError: If one, or a metric, is NaN or infinite.
      faults.BadExampleError: If an image cannot be decoded.
      stopping.TrainerGoneError: If there was no trainer for
        --eval_timeout_secs.
    """
    trying = retries.Retries(
      sleep=self._sleep, tell=lambda: self._writer.add(retries=1)
    )
    with self._held:
      while True:
        try:
          if self._is_done():
            return
          trying.succeeded()
        except retries.TRANSIENT_ERRORS as error:
          trying.wait(f'evaluating what is in {self._model_dir.path}', error)

  def _is_done(self):
    """Evaluates a checkpoint or waits a little; returns whether all is done."""
    self._writer.update(state=status.WAITING)
    found = checkpoint_files.steps_and_paths(self._model_dir.path)
    look = (
      found,
      checkpoint_files.stamp(self._model_dir.join(checkpoint_files.STATE)),
      *map(checkpoint_files.stamps, self._pending),
    )
    if look != self._look:
      self._look, self._is_settled = look, False
      self._sign = time.monotonic()
    if not self._is_settled:
      record = evaluation_records.Record(self._run)
      last_step = self._last_step(found)
      last = found.get(last_step)
      pending = [
        path
        for path in found.values()
        if not self._has_been_done(record.find(path), path == last)
      ]
      following = self._following(pending)
      self._writer.update(total_steps=last_step)
      if following:
        self._evaluate_in_time(following, last)
        return False
      if not self._is_settled:
        self._sleep(_POLL_SECONDS)
        return False
      if last and (entry := record.find(last)):
        if self._expects_trainer(last_step):
          self._is_settled = False  # It may soon report another last step.
          return False
        self._say_end(last_step, entry)
        return True
    self._wait(found)
    return False

  def _has_been_done(self, entry, is_last):
    """Whether a checkpoint is done, given its entry in the record.

    A new plan may have made it the last checkpoint after its evaluation.
    """
    if not entry:
      return False
    is_exported = is_last and bool(self._run.options.formats)
    return bool(entry['export']) or not is_exported

  def _last_step(self, found):
    """Returns the last step of the run whose checkpoints are `found`."""
    newest = found[max(found)] if found else None
    return last_step(self._model_dir, newest, self._run.plan.total_steps)

  def _expects_trainer(self, last_step):
    """Waits a little if the flags extend a run that has finished.

    If both jobs start together, the trainer may appear a little later.
    """
    announced = self._run.announced_last_step
    seconds = self._run.options.eval_timeout_secs or _TRAINER_SECONDS
    is_over = time.monotonic() - self._started > min(seconds, _TRAINER_SECONDS)
    if announced <= last_step or is_over:
      return False
    if not self._is_waiting:
      logging.info(
        'the run ends with step %d, but these flags end with step %d: waiting '
        'a moment for a trainer',
        last_step,
        announced,
      )
    self._is_waiting = True
    self._sleep(_POLL_SECONDS)
    return True

  def _following(self, pending):
    """Returns the first checkpoint that can be evaluated, or None.

    A checkpoint that cannot be read may still be in the process of being
    written. It counts as damaged once it has stopped changing for some time.
    """
    now = time.monotonic()
    before, self._pending = self._pending, {}
    for path in pending:
      files = checkpoint_files.stamps(path)
      known, since = before.get(path, (None, now))
      self._pending[path] = files, since if files == known else now
    for path, (_, since) in self._pending.items():
      damage = self._model_dir.damage(path)
      if not damage:
        return path
      if now - since < _STILL_SECONDS:
        return None
      line = f'{path} is damaged ({damage}); skipped'
      if line not in self._said:
        self._said.add(line)
        logging.warning('WARNING: %s', line)
    self._is_settled = True
    return None

  def _evaluate_in_time(self, checkpoint, last):
    """Evaluates a checkpoint, unless the last evaluation was too recent.

    Args:
      checkpoint: Checkpoint prefix.
      last: The last checkpoint of the run, if it exists; training has then
        finished and there is no need to wait.
    """
    run = self._run
    pause = self._begun + run.options.eval_interval_secs - time.monotonic()
    if pause > 0 and not last:
      self._sleep(min(pause, _POLL_SECONDS))
      return
    self._is_waiting = False
    self._begun = time.monotonic()
    if not self._is_compared:
      # Restoring would silently adopt the shapes of the checkpoint.
      checked_runs.check_checkpoint(run, checkpoint)
      self._is_compared = True
      # A checkpoint exists now, so its facts can be read.
      run = self._run = run.as_trained(checkpoint)
    step = checkpoint_files.step_of(checkpoint)
    self._writer.write(state=status.EVALUATING, step=step)
    try:
      is_every = run.options.export_checkpoints == 'all'
      result = evaluate(
        run,
        checkpoint,
        exports_if_best=not (is_every or checkpoint == last),
      )
      self._writer.update(last_evaluation=last_evaluation(result))
    except stopping.LostCheckpointError as error:
      logging.info('%s; skipped', error)
    # The trainer may have been running all the time.
    self._sign = time.monotonic()

  def _wait(self, found):
    """Waits a little.

    Raises:
      stopping.TrainerGoneError: If there was no trainer for
        --eval_timeout_secs.
    """
    path, timeout = self._model_dir.path, self._run.options.eval_timeout_secs
    if not self._is_waiting:
      after = f' after step {max(found)}' if found else ''
      logging.info('waiting for a checkpoint%s in %s', after, path)
    self._is_waiting = True
    if timeout:
      holder = locks.read(path)
      if holder and holder.is_alive():
        self._sign = time.monotonic()
      elif time.monotonic() - self._sign > timeout:
        raise stopping.TrainerGoneError(
          f'found no trainer and no new checkpoint in {path} for {timeout} s; '
          'start both jobs again to continue.'
        )
    self._sleep(_POLL_SECONDS)

  def _say_end(self, last_step, entry):
    """Logs that the last step was evaluated."""
    run = self._run
    if self._begun == -math.inf:
      logging.info(
        'step %d, the last one, was evaluated before, on %s: top-1 %.4f; '
        'nothing is left to do',
        last_step,
        entry['time'],
        entry['metrics']['top_1_accuracy'],
      )
    if best := evaluation_records.best_of(run).describe():
      logging.info('the best: %s', best)
