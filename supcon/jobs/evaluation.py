"""Evaluates and exports checkpoints: one, or each as it appears.

What was evaluated is recorded, so that nothing is done twice; and the best
checkpoint is kept aside, for the trainer deletes its own as they get old.
"""

from collections.abc import Callable
from collections.abc import Mapping
import contextlib
import math
import time
from typing import Any

from absl import logging
import tensorflow as tf

from supcon import checkpoint_files
from supcon import estimators
from supcon import hparams
from supcon import locks
from supcon import log_files
from supcon import model_dirs
from supcon import retries
from supcon import run_options
from supcon import signals
from supcon import status
from supcon import texts
from supcon.data import faults
from supcon.data import inputs
from supcon.jobs import evaluated
from supcon.jobs import runs
from supcon.serving import exports
from supcon.training import checkpoints

_POLL_SECONDS = 1.0
# What cannot be read and has not changed for so long is damaged.
_STILL_SECONDS = 2.0


# --- One checkpoint -----------------------------------------------------------


def evaluate(run: runs.Run, checkpoint: str) -> dict:
  """Evaluates, exports and records a checkpoint, and keeps it if it is best.

  Killed at any moment, it leaves whole files, and a record only if all the rest
  is there.

  Returns:
    What goes into result.json, unless a later checkpoint was evaluated before.

  Raises:
    checkpoints.NotFiniteError: If a variable or a metric is NaN or infinite.
    faults.BadExampleError: If an image cannot be decoded.
    runs.LostCheckpointError: If the checkpoint is deleted, damaged, or written
      anew meanwhile.
  """
  step = checkpoint_files.step_of(checkpoint)
  logging.info('evaluating %s', checkpoint)
  record, best = evaluated.Record(run), evaluated.Best(run.model_dir)
  with _unchanged(run.model_dir, checkpoint) as fingerprint:
    metrics = _measure(run, checkpoint)
    run.write_facts_of_data()
    candidate = {
      'step': step,
      'top_1': metrics['top_1_accuracy'],
      'fingerprint': fingerprint,
      'data': evaluated.data_of(run),
      'architecture': run.params.to_json()['architecture'],
    }
    is_best = best.would_be(candidate)
    if is_best:
      # Now: the trainer may delete it while it is exported.
      best.hold(checkpoint)
    export = _export(run, checkpoint, metrics)
  result = {
    'metrics': metrics,
    'global_step': step,
    'total_steps': run.plan.total_steps,
    'num_examples': run.dataset.num_eval_examples,
    'num_skipped': run.num_skipped('evaluation'),
    'dataset': run.params.input_data.input_fn,
    'split': run.dataset.evaluation.name,
    'class_names': list(run.dataset.class_names),
    'checkpoint': checkpoint,
    'export': export.path,
    'saved_model': export.saved_model,
    'hub_module': export.hub_module,
  }
  if not record.has_later(step):
    run.model_dir.write_json(model_dirs.RESULT, result)
  if is_best:
    best.replace(candidate, export)
  record.add(step, fingerprint, metrics, export)
  exports.prune(
    run.model_dir.join(model_dirs.EXPORTS),
    export.path,
    run.options.exports_to_keep,
    best.kept_exports,
  )
  logging.info(
    'step %d: top-1 %.4f, top-5 %.4f, contrastive loss %.4f, '
    'cross-entropy %.4f on %d examples%s',
    step,
    *(
      metrics[tag]
      for tag in (
        'top_1_accuracy',
        'top_5_accuracy',
        'loss/contrastive_loss',
        'loss/cross_entropy_loss',
      )
    ),
    run.dataset.num_eval_examples,
    '; the best so far' if is_best else '',
  )
  run.report_skipped('evaluation')
  return result


def last_evaluation(result: Mapping[str, Any]) -> dict[str, Any]:
  """Returns what status.json says of what `evaluate` has returned."""
  return {
    'step': result['global_step'],
    'top_1': result['metrics']['top_1_accuracy'],
    'time': locks.now(),
  }


def _measure(run, checkpoint):
  """Returns {name: value} of all metrics, which are numbers."""
  options, params, dataset = run.options, run.params, run.dataset
  with tf.Graph().as_default():
    network = run.trained_model(checkpoint).build()
    checkpoints.require_finite(network.variables, checkpoint)
  step = checkpoint_files.step_of(checkpoint)
  # The stage whose update made this checkpoint; at step 0, the first one.
  estimator = estimators.build(
    options,
    run.devices,
    run.model_fn(run.plan.stage_at(max(step - 1, 0))),
    train_batch_size=params.batch_size,
    eval_batch_size=params.eval.batch_size,
    seed=params.seed,
  )
  # To look at one checkpoint is quicker than to look for a bad image.
  with (
    faults.naming(dataset.evaluation),
    _unchanged(run.model_dir, checkpoint),
  ):
    metrics = estimator.evaluate(
      inputs.eval_input_fn(dataset, params, run.dtype),
      steps=math.ceil(dataset.num_eval_examples / params.eval.batch_size),
      checkpoint_path=checkpoint,
    )
  metrics = {
    name: float(value)
    for name, value in sorted(metrics.items())
    if name != 'global_step'
  }
  broken = {name: x for name, x in metrics.items() if not math.isfinite(x)}
  if broken:
    found = ', '.join(f'{name} is {value}' for name, value in broken.items())
    raise checkpoints.NotFiniteError(
      f'{found} in the evaluation of {checkpoint}, whose variables are finite; '
      'see --mode=embed for the first image of which that comes, and go back '
      'to an earlier checkpoint.'
    )
  return metrics


def _export(run, checkpoint, metrics):
  """Exports a checkpoint; older exports stay, also if they are too many."""
  dataset = run.dataset
  return exports.write(
    run.trained_model(checkpoint),
    run.model_dir.join(model_dirs.EXPORTS),
    run.options.export_formats,
    0,
    {
      'dataset': run.params.input_data.input_fn,
      'train_split': dataset.train.name,
      'eval_split': dataset.evaluation.name,
      'num_train_examples': dataset.num_train_examples,
      'num_eval_examples': dataset.num_eval_examples,
      'total_steps': run.plan.total_steps,
      'metrics': metrics,
    },
  )


@contextlib.contextmanager
def _unchanged(model_dir, checkpoint):
  """Yields the fingerprint of a checkpoint that is to stay as it is.

  It may be deleted once it is not read any more.

  Raises:
    runs.LostCheckpointError: If it changes, in place of what came of that.
  """
  before = checkpoint_files.stamps(checkpoint)
  try:
    fingerprint = checkpoint_files.fingerprint(checkpoint)
    yield fingerprint
    with contextlib.suppress(tf.errors.NotFoundError):
      if checkpoint_files.fingerprint(checkpoint) != fingerprint:
        raise runs.LostCheckpointError(f'{checkpoint} {_REPLACED}')
  except (ValueError, tf.errors.OpError) as error:
    loss = _loss(model_dir, checkpoint, before)
    if not loss:
      raise
    raise runs.LostCheckpointError(f'{checkpoint} {loss}') from error


_REPLACED = 'was written anew meanwhile'


def _loss(model_dir, checkpoint, before):
  """Returns what has become of a checkpoint; '' if its files are the same."""
  if not checkpoint_files.stamp(f'{checkpoint}.index'):
    return 'was deleted by the trainer'
  if problem := model_dir.problem(checkpoint):
    return f'is damaged ({problem})'
  return _REPLACED if checkpoint_files.stamps(checkpoint) != before else ''


# --- One after the other ------------------------------------------------------


class EvaluateEach:
  """--mode=eval: evaluates each checkpoint, up to that of the last step."""

  def __init__(
    self,
    options: run_options.RunOptions,
    params: hparams.HParams,
    sleep: Callable[[float], None] = signals.sleep,
  ):
    """Checks all that can be checked now.

    Args:
      options: Checked RunOptions.
      params: Checked HParams.
      sleep: What waits between two looks at model_dir.
    """
    self._run = runs.Run(options, params)
    self._model_dir = self._run.model_dir
    self._sleep = sleep
    self._is_compared = bool(self._model_dir.newest())
    # What there was at the last look, and whether there is nothing more to it.
    self._look = None
    self._is_settled = False
    # Checkpoints that are not evaluated: their files, and since when those are
    # as they are, in seconds of time.monotonic().
    self._pending: dict[str, tuple[tuple, float]] = {}
    self._said: set[str] = set()  # Which ones are damaged.
    self._is_waiting = False
    # In seconds of time.monotonic(): the beginning of the last evaluation, and
    # the last sign of a trainer.
    self._begun = -math.inf
    self._sign = time.monotonic()

  def announce(self) -> None:
    """Says what is going to be done.

    Raises:
      ValueError: If nothing can be written.
    """
    path = self._model_dir.path
    with contextlib.ExitStack() as stack:
      stack.enter_context(
        log_files.keep(self._model_dir.join(log_files.EVALUATOR))
      )
      self._writer = stack.enter_context(
        status.Writer(
          model_dirs.ModelDir(path), status.EVALUATOR, explain=runs.reason
        )
      )
      try:
        self._writer.begin(
          status.WAITING, total_steps=self._run.plan.total_steps
        )
      except locks.storage_errors() as error:
        raise ValueError(
          f'--model_dir={path} cannot be used ({texts.one_line(error)}); name '
          'another directory.'
        ) from error
      self._run.announce()
      self._held = stack.pop_all()  # Until the end of run().

  def run(self) -> None:
    """Waits for checkpoints and evaluates them.

    Raises:
      checkpoints.MismatchError: If one is of another model.
      checkpoints.NotFiniteError: If one, or a metric, is NaN or infinite.
      faults.BadExampleError: If an image cannot be decoded.
      runs.TrainerGoneError: If no trainer was there for --eval_timeout_secs.
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
      record = evaluated.Record(self._run)
      pending = [path for path in found.values() if not record.find(path)]
      following = self._following(pending)
      last = found.get(self._run.plan.total_steps)
      if following:
        self._evaluate_in_time(following, is_over=bool(last))
        return False
      if not self._is_settled:
        self._sleep(_POLL_SECONDS)
        return False
      if last and (entry := record.find(last)):
        self._say_end(entry)
        return True
    self._wait(found)
    return False

  def _following(self, pending):
    """Returns the first checkpoint that can be evaluated, if there is one.

    What cannot be read may still be in the making: it counts as damaged once it
    has stayed the same for some time.
    """
    now = time.monotonic()
    before, self._pending = self._pending, {}
    for path in pending:
      files = checkpoint_files.stamps(path)
      known, since = before.get(path, (None, now))
      self._pending[path] = files, since if files == known else now
    for path, (_, since) in self._pending.items():
      problem = self._model_dir.problem(path)
      if not problem:
        return path
      if now - since < _STILL_SECONDS:
        return None
      line = f'{path} is damaged ({problem}); skipped'
      if line not in self._said:
        self._said.add(line)
        logging.warning('WARNING: %s', line)
    self._is_settled = True
    return None

  def _evaluate_in_time(self, checkpoint, is_over):
    """Evaluates a checkpoint, unless the last evaluation was a moment ago.

    Args:
      checkpoint: Checkpoint prefix.
      is_over: Whether training is over, so that there is nothing to wait for.
    """
    run = self._run
    pause = self._begun + run.options.eval_interval_secs - time.monotonic()
    if pause > 0 and not is_over:
      self._sleep(min(pause, _POLL_SECONDS))
      return
    self._is_waiting = False
    self._begun = time.monotonic()
    if not self._is_compared:
      # Restoring would adopt the shapes of the checkpoint without a word.
      run.check_checkpoints()
      self._is_compared = True
    step = checkpoint_files.step_of(checkpoint)
    self._writer.write(state=status.EVALUATING, step=step)
    try:
      result = evaluate(run, checkpoint)
      self._writer.update(last_evaluation=last_evaluation(result))
    except runs.LostCheckpointError as error:
      logging.info('%s; skipped', error)
    # The trainer may have been there all the time.
    self._sign = time.monotonic()

  def _wait(self, found):
    """Waits a little.

    Raises:
      runs.TrainerGoneError: If it has waited too long.
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
        raise runs.TrainerGoneError(
          f'no trainer was there and no checkpoint came to {path} for '
          f'{timeout} s; start both again to go on.'
        )
    self._sleep(_POLL_SECONDS)

  def _say_end(self, entry):
    """Says that the last step was evaluated."""
    run = self._run
    if self._begun == -math.inf:
      logging.info(
        'step %d, the last one, was evaluated before, on %s: top-1 %.4f; '
        'nothing is left to do',
        run.plan.total_steps,
        entry['time'],
        entry['metrics']['top_1_accuracy'],
      )
    if best := evaluated.Best(self._model_dir).describe():
      logging.info('the best: %s', best)
