"""Session hooks that look after a run: signals, status and lock.

They act between two steps; on TPU, between two loops.
"""

import collections
from collections.abc import Callable
import time
from typing import Protocol

from absl import logging
import tensorflow as tf

from supcon.runs import locks
from supcon.runs import signals
from supcon.runs import status
from supcon.runs import timestamps
from supcon.training import stages

tf1 = tf.compat.v1

_SPEED_SECONDS = 60.0  # Speed is averaged over the last minute.


class StopHook(tf1.train.SessionRunHook):
  """Stops training after the step during which a signal came.

  The estimator saves that step in the same way as the last one.

  Workers compute and save together, so they must stop after the same step,
  whichever of them received the signal. To agree on it, they vote in each step.
  With one worker there is no vote.

  Attributes:
    step: The step after which a signal stopped training; None if none did.
  """

  def __init__(self, deferral: signals.Deferral):
    """Makes the hook.

    Args:
      deferral: Begins with the first step. Before that there is nothing to
        save, and a signal ends the process at once.
    """
    self.step: int | None = None
    self._deferral = deferral
    self._has_stopped = False
    self._ballots = []
    self._votes = None

  def ballot(self) -> tf.Tensor:
    """Returns float32 [], 1 if this worker wants to stop, else 0.

    Each replica calls it in the model_fn.
    """
    self._ballots.append(tf1.placeholder_with_default(0.0, []))
    return self._ballots[-1]

  def count(self, votes: tf.Tensor) -> None:
    """Sets the float32 [] that is positive if any replica's ballot is 1."""
    self._votes = votes

  def begin(self):
    self._step = tf1.train.get_global_step()

  def after_create_session(self, session, coord):
    self._deferral.begin()

  def before_run(self, run_context):
    if self._votes is None:
      return None
    vote = float(signals.received())
    return tf1.train.SessionRunArgs(
      self._votes, {ballot: vote for ballot in self._ballots}
    )

  def after_run(self, run_context, run_values):
    votes = run_values.results
    if signals.received() if self._votes is None else votes > 0:
      self._has_stopped = True
      run_context.request_stop()

  def end(self, session):
    if self._has_stopped:
      self.step = int(session.run(self._step))


class StatusHook(tf1.train.SessionRunHook):
  """Reports the progress of training to a status.Writer."""

  def __init__(
    self,
    writer: status.Writer,
    plan: stages.Plan,
    stage: stages.Stage,
    logs: bool = False,
    clock: Callable[[], float] = time.monotonic,
  ):
    """Makes the hook.

    Args:
      writer: The writer, which determines how often to report.
      plan: The plan of all stages.
      stage: The stage that is trained.
      logs: Whether to log the progress, too; on TPU no other hook can.
      clock: Returns seconds since a fixed moment.
    """
    self._writer = writer
    self._plan = plan
    self._stage = stage
    self._logs = logs
    self._clock = clock
    # (time, step) from the end of the first step, which waits for one-time
    # work.
    self._seen = collections.deque()

  def begin(self):
    self._step = tf1.train.get_global_step()

  def after_run(self, run_context, run_values):
    if not self._seen or self._writer.is_due:
      # Fetched together with the step, it might be that before the update.
      self._tell(int(run_context.session.run(self._step)))

  def end(self, session):
    step = int(session.run(self._step))
    if self._seen and self._seen[-1][1] != step:
      self._tell(step)

  def _tell(self, step):
    speed = self._steps_per_second(step)
    images = speed and round(speed * self._plan.batch_size, 1)
    left = speed and round((self._plan.total_steps - step) / speed)
    if self._logs:
      speed_and_time = ''
      if speed:
        speed_and_time = f'  {images:.0f} images/s  {status.clock(left)} left'
      logging.info(
        'stage %d  step %d of %d%s',
        self._stage.number,
        step,
        self._plan.total_steps,
        speed_and_time,
      )
    self._writer.update(
      state=status.TRAINING,
      stage=self._stage.number,
      step=step,
      total_steps=self._plan.total_steps,
      images_per_second=images,
      seconds_left=left,
    )

  def _steps_per_second(self, step):
    """Returns the recent speed; None at the beginning."""
    now, seen = self._clock(), self._seen
    while len(seen) > 1 and now - seen[1][0] > _SPEED_SECONDS:
      seen.popleft()
    seen.append((now, step))
    begun, first = seen[0]
    return (step - first) / (now - begun) if step > first else None


class Keeper(Protocol):
  """Records what checkpoints were trained with."""

  def before_save(self, step: int) -> None:
    """Called before a checkpoint of this step is saved."""

  def after_save(self, step: int) -> None:
    """Called after it was saved."""


class SaveListener(tf1.train.CheckpointSaverListener):
  """Allows saving only with the lock; informs a writer and a keeper."""

  def __init__(
    self,
    lock: locks.Lock,
    writer: status.Writer,
    model_dir: str,
    keeper: Keeper | None = None,
  ):
    self._lock = lock
    self._writer = writer
    self._model_dir = model_dir
    self._keeper = keeper

  def before_save(self, session, global_step_value):
    self._lock.verify()
    if self._keeper:
      self._keeper.before_save(int(global_step_value))

  def after_save(self, session, global_step_value):
    step = int(global_step_value)
    if self._keeper:
      self._keeper.after_save(step)
    self._writer.update(
      last_checkpoint={
        'path': f'{self._model_dir}/model.ckpt-{step}',
        'step': step,
        'time': timestamps.now(),
      }
    )


class TableListener(tf1.train.CheckpointSaverListener):
  """Makes sure that the table of summaries is written before a checkpoint.

  So the table never lacks a step that a checkpoint includes.
  """

  def __init__(self, write: Callable[[int], None]):
    """Makes the listener.

    Args:
      write: Writes the table; takes the step at which the table must end.
    """
    self._write = write

  def before_save(self, session, global_step_value):
    self._write(int(global_step_value))
