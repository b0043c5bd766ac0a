"""Session hooks of training off TPU: progress, and a stop at NaN."""

import math
import time

from absl import logging
import tensorflow as tf

from supcon import log_files
from supcon.training import stages

tf1 = tf.compat.v1


class NanLossError(RuntimeError):
  """The loss, or a variable, is not a finite number any more."""


class ProgressHook(tf1.train.SessionRunHook):
  """Logs where training is, at most every few seconds."""

  def __init__(
    self,
    run: stages.Plan,
    stage: stages.Stage,
    step: tf.Tensor,
    scalars: dict[str, tf.Tensor],
    seconds: float = 5.0,
  ):
    """Makes the hook.

    Args:
      run: The plan of all stages.
      stage: The stage that is trained.
      step: The global step before the update.
      scalars: The training summaries by tag.
      seconds: Lines are at least this far apart, but for the last of a stage.
    """
    self._run = run
    self._stage = stage
    self._fetches = {
      'step': step,
      'total': scalars['loss/total_loss'],
      'contrastive': scalars['loss/contrastive_loss'],
      'cross_entropy': scalars['loss/cross_entropy_loss'],
      'rate': scalars[f'stage_{stage.number}_learning_rate'],
    }
    self._seconds = seconds
    # Speed counts from the end of the first step, which waits for the input
    # pipeline and for everything that is made only once.
    self._first = None
    self._logged = -math.inf

  def before_run(self, run_context):
    return tf1.train.SessionRunArgs(self._fetches)

  def after_run(self, run_context, run_values):
    now, values = time.time(), run_values.results
    if self._first is None:
      self._first = (now, values['step'])
    is_last = values['step'] + 1 >= self._stage.stop_step
    if now - self._logged < self._seconds and not is_last:
      return
    self._logged = now
    # Of the last line of a stage there is only one.
    extra = None if is_last else log_files.PROGRESS
    logging.info('%s', self._line(now, **values), extra=extra)

  def _line(self, now, step, total, contrastive, cross_entropy, rate):
    done = step + 1
    line = (
      f'stage {self._stage.number}  step {done} of {self._run.total_steps}  '
      f'epoch {done / self._run.steps_per_epoch:.1f}  loss {total:.4f} '
      f'(contrastive {contrastive:.4f}, cross-entropy {cross_entropy:.4f})  '
      f'rate {rate:.4g}'
    )
    first_time, first_step = self._first
    if step == first_step:
      return line
    per_second = (step - first_step) / (now - first_time)
    left = (self._stage.stop_step - done) / per_second
    return (
      f'{line}  {per_second * self._run.batch_size:.0f} images/s  '
      f'{_duration(left)} left in this stage'
    )


class NanHook(tf1.train.SessionRunHook):
  """Stops training after a step whose loss is NaN or infinite.

  To be handed to train() itself: the hooks of a TPUEstimatorSpec run after the
  estimator's own, which stops at a NaN without a word on the losses. On TPU,
  where no hook can see a step, it is not told to watch and does nothing.
  """

  def __init__(self):
    self._fetches = None

  def watch(
    self, stage: stages.Stage, step: tf.Tensor, losses: stages.LossParts
  ) -> None:
    """Says what to look at; to be called while the graph is built."""
    self._stage = stage
    self._fetches = (step, losses)

  def before_run(self, run_context):
    return self._fetches and tf1.train.SessionRunArgs(self._fetches)

  def after_run(self, run_context, run_values):
    if not self._fetches:
      return
    step, losses = run_values.results
    if not math.isfinite(losses.total):
      raise NanLossError(_message('the loss', step, self._stage, losses))


class NanListener(tf1.train.CheckpointSaverListener):
  """Refuses to save variables that are NaN or infinite.

  The update of a step has been applied by the time a hook sees its loss, and
  the saver may look at that step first.
  """

  def watch(
    self, stage: stages.Stage, losses: stages.LossParts | None = None
  ) -> None:
    """Says whose losses to report; to be called while the graph is built.

    Args:
      stage: The stage that is trained.
      losses: Its losses; None on TPU, where nobody can ask for them.
    """
    self._stage = stage
    self._losses = losses or ()

  def begin(self):
    self._broken = {
      v.op.name: tf.math.logical_not(
        tf.reduce_all(tf.math.is_finite(v.read_value()))
      )
      for v in tf1.trainable_variables()
    }

  def before_save(self, session, global_step_value):
    broken = [name for name, bad in session.run(self._broken).items() if bad]
    if broken:
      what = f'{broken[0]} (the first of {len(broken)} variables)'
      # The losses of the next batch show which part the broken update hit.
      losses = session.run(self._losses)
      raise NanLossError(_message(what, global_step_value, self._stage, losses))


def _message(what, step, stage, losses):
  parts = ''
  if losses:
    parts = '; loss parts: ' + ', '.join(
      f'{name} {value:g}' for name, value in losses._asdict().items()
    )
  return (
    f'{what} is not a finite number at step {step}, stage {stage.number}'
    f'{parts}. Checkpoints saved before are untouched; try a lower learning '
    'rate or a longer warm-up.'
  )


def _duration(seconds):
  minutes, seconds = divmod(int(seconds + 0.5), 60)
  hours, minutes = divmod(minutes, 60)
  return (
    f'{hours}:{minutes:02}:{seconds:02}' if hours else f'{minutes}:{seconds:02}'
  )
