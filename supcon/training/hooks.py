"""Session hooks of training: progress, and a stop at NaN."""

import collections
import math
import statistics
import time

from absl import logging
import tensorflow as tf

from supcon.runs import log_files
from supcon.runs import timestamps
from supcon.training import objectives
from supcon.training import stages
from supcon.training import steps

tf1 = tf.compat.v1

_STEPS_TO_TIME = 50


class NanLossError(RuntimeError):
  """The loss, a gradient or a variable is no longer finite.

  Attributes:
    reason: Which of them, when and where, in words.
    step: The step that failed: the global step before its update.
  """

  def __init__(self, reason: str, step: int | None = None):
    super().__init__(
      f'{reason}. Checkpoints saved before are untouched; try a lower learning '
      'rate or a longer warm-up.'
    )
    self.reason = reason
    self.step = step


class BrokenVariableError(NanLossError):
  """Raised before saving; of several machines, only the saving one raises."""


class ProgressHook(tf1.train.SessionRunHook):
  """Logs the progress of training, at most once every few seconds."""

  def __init__(
    self,
    plan: stages.Plan,
    stage: stages.Stage,
    step: tf.Tensor,
    scalars: dict[str, tf.Tensor],
    seconds: float = 5.0,
  ):
    """Makes the hook.

    Args:
      plan: The plan of all stages.
      stage: The stage that is trained.
      step: The global step before the update.
      scalars: The training summaries by tag.
      seconds: Minimum time between two lines, except for the last of a stage.
    """
    self._plan = plan
    self._stage = stage
    self._fetches = {
      'step': step,
      'losses': {
        name: scalars[objectives.tag(name)]
        for name in (objectives.TOTAL, *objectives.TERMS)
      },
      'decay': scalars[f'weight_decay/stage{stage.number}_weight_decay_loss'],
      'rate': scalars[f'stage_{stage.number}_learning_rate'],
    }
    self._seconds = seconds
    # Speed is measured from the end of the first step, which waits for the
    # input pipeline and for one-time work.
    self._first = None
    self._last = None
    self._step_seconds = collections.deque(maxlen=_STEPS_TO_TIME)
    self._logged = -math.inf

  def before_run(self, run_context):
    return tf1.train.SessionRunArgs(self._fetches)

  def after_run(self, run_context, run_values):
    now, values = time.time(), run_values.results
    if self._first is None:
      self._first = (now, values['step'])
    else:
      last_time, last_step = self._last
      steps = max(values['step'] - last_step, 1)
      self._step_seconds.append((now - last_time) / steps)
    self._last = (now, values['step'])
    is_last = values['step'] + 1 >= self._stage.stop_step
    if now - self._logged < self._seconds and not is_last:
      return
    self._logged = now
    # Log files drop some PROGRESS lines, but never the last one of a stage.
    extra = None if is_last else log_files.PROGRESS
    logging.info('%s', self._line(now, **values), extra=extra)

  def _line(self, now, step, losses, decay, rate):
    done = step + 1
    parts = [
      f'{weight:g} x {objectives.in_words(name)} {losses[name]:.4f}'
      for name, weight in self._stage.params.loss_weights.items()
    ]
    parts.append(f'weight decay {decay:.4f}')
    line = (
      f'stage {self._stage.number}  step {done} of {self._plan.total_steps}  '
      f'epoch {done / self._plan.steps_per_epoch:.1f}  loss '
      f'{losses[objectives.TOTAL]:.4f} '
      f'({", ".join(parts)})  rate {rate:.4g}'
    )
    first_time, first_step = self._first
    if step == first_step:
      return line
    per_second = (step - first_step) / (now - first_time)
    # The median: after a few steps, the slowest step dominates the mean.
    left = statistics.median(self._step_seconds) * (
      self._stage.stop_step - done
    )
    return (
      f'{line}  {per_second * self._plan.batch_size:.0f} images/s  '
      f'{timestamps.duration(left)} left in this stage'
    )


class NanHook(tf1.train.SessionRunHook):
  """Stops training at a step that was not applied, and says why.

  Pass it to train() itself: the hooks of a TPUEstimatorSpec run after the
  estimator's own hook, which stops at NaN without reporting the losses.
  """

  def watch(
    self,
    stage: stages.Stage,
    health: steps.Health,
    memory: tf.Variable | None,
  ) -> None:
    """Sets what to watch; to be called while the graph is built.

    Args:
      stage: The stage that is trained.
      health: The health of each step.
      memory: The variable that keeps the first bad report, on TPU, where no
        hook can see a step; None elsewhere.
    """
    self._stage = stage
    self._health = health
    self._memory = memory

  def begin(self):
    self._step = tf1.train.get_global_step()
    if self._memory is not None:
      self._kept = self._memory.read_value()

  def before_run(self, run_context):
    if self._memory is None:
      return tf1.train.SessionRunArgs(self._health.report)

  def after_run(self, run_context, run_values):
    report = run_values.results
    if self._memory is not None:
      report = run_context.session.run(self._kept)
    shares = self._health.shares_in(report)
    what = _in_words(self._health.subjects, shares)
    if not what:
      return
    # The failed step was not counted.
    step = int(run_context.session.run(self._step))
    parts = ', '.join(
      f'{name} {value:g}'
      for name, value in self._health.losses_in(report).items()
    )
    raise NanLossError(
      f'NaN or infinite at step {step}, stage {self._stage.number}: {what}; '
      f'loss parts: {parts}',
      step,
    )


class NanListener(tf1.train.CheckpointSaverListener):
  """Refuses to save variables that are NaN or infinite.

  An update, or a square in a slot, may overflow although the gradients are
  finite.
  """

  def watch(self, stage: stages.Stage) -> None:
    """Sets the stage that is trained; to be called while the graph is built."""
    self._stage = stage

  def begin(self):
    # With several machines, moving statistics can only be read by all of them
    # together. The batch statistics that they follow are checked in every step.
    self._broken = {
      v.op.name: tf.reduce_any(~tf.math.is_finite(v.read_value()))
      for v in tf1.global_variables()
      if v.dtype.is_floating
      and v.synchronization != tf.VariableSynchronization.ON_READ
    }

  def before_save(self, session, global_step_value):
    broken = [name for name, bad in session.run(self._broken).items() if bad]
    if broken:
      step = int(global_step_value) - 1
      raise BrokenVariableError(
        f'NaN or infinite after step {step}, stage {self._stage.number}, whose '
        f'loss and gradients were not: {len(broken)} of {len(self._broken)} '
        f'variables (the first is {broken[0]})',
        step,
      )


def _in_words(subjects, are_bad):
  """Returns the bad subjects in words; '' if there are none."""
  names = collections.defaultdict(list)
  for subject, is_bad in zip(subjects, are_bad):
    if is_bad:
      names[subject.kind].append(subject.name)
  totals = collections.Counter(subject.kind for subject in subjects)
  return ' and '.join(
    f'{kind} {len(of)} of {totals[kind]} variables (the first is {of[0]})'
    if of[0]
    else kind
    for kind, of in names.items()
  )
