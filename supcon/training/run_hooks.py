"""Session hooks that look after a run: signals, status, lock, other workers.

They act between two steps; on TPU, between two loops.
"""

import collections
from collections.abc import Callable
import time

from absl import logging
import tensorflow as tf

from supcon.runs import checkpoint_files
from supcon.runs import locks
from supcon.runs import signals
from supcon.runs import status
from supcon.runs import timestamps
from supcon.training import facts_keeper
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

  def __init__(self, defer_signals: Callable[[], None]):
    """Makes the hook.

    Args:
      defer_signals: Called before the first step; see signals.deferral. Until
        then there is nothing to save, and a signal ends the process at once.
    """
    self.step: int | None = None
    self._defer_signals = defer_signals
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
    self._defer_signals()

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


class Speed:
  """The speed of late.

  It is measured from the end of the first step, which waits for one-time work.
  """

  def __init__(self, clock: Callable[[], float] = time.monotonic):
    """Begins; `clock` returns seconds since a fixed moment."""
    self._clock = clock
    self._seen = collections.deque()  # (time, step).

  def at(self, step: int) -> float | None:
    """Returns the steps per second up to `step`; None at the beginning."""
    now, seen = self._clock(), self._seen
    while len(seen) > 1 and now - seen[1][0] > _SPEED_SECONDS:
      seen.popleft()
    seen.append((now, step))
    begun, first = seen[0]
    return (step - first) / (now - begun) if step > first else None


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
    self._speed = Speed(clock)
    self._told: int | None = None

  def begin(self):
    self._step = tf1.train.get_global_step()

  def after_run(self, run_context, run_values):
    if self._told is None or self._writer.is_due:
      # Fetched together with the step, it might be that before the update.
      self._tell(int(run_context.session.run(self._step)))

  def end(self, session):
    step = int(session.run(self._step))
    if self._told not in (None, step):
      self._tell(step)

  def _tell(self, step):
    self._told = step
    speed = self._speed.at(step)
    images = speed and round(speed * self._plan.batch_size, 1)
    left = speed and round((self._plan.total_steps - step) / speed)
    if self._logs:
      speed_and_time = ''
      if speed:
        time_left = timestamps.duration(left)
        speed_and_time = f'  {images:.0f} images/s  {time_left} left'
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


class SaveListener(tf1.train.CheckpointSaverListener):
  """Allows saving only with the lock; informs a writer and a keeper."""

  def __init__(
    self,
    lock: locks.Lock,
    writer: status.Writer,
    model_dir: str,
    keeper: facts_keeper.Keeper | None = None,
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
        'path': checkpoint_files.path_of(self._model_dir, step),
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


class ReadingHook(tf1.train.SessionRunHook):
  """Reads the variables that the chief saves, at the same time.

  A checkpoint has the mean of all replicas' moving statistics, which all
  workers have to compute together.
  """

  def __init__(self, save_steps: int):
    """Makes the hook; `save_steps` is the chief's interval."""
    self._timer = tf1.train.SecondOrStepTimer(every_steps=save_steps)

  def begin(self):
    self._step = tf1.train.get_global_step()

  def after_create_session(self, session, coord):
    self._reads = [
      tensor.op
      for op in session.graph.get_operations()
      if op.type == 'SaveV2'
      for tensor in op.inputs
    ]
    self.read(session, session.run(self._step))

  def before_run(self, run_context):
    return tf1.train.SessionRunArgs(self._step)

  def after_run(self, run_context, run_values):
    # The fetched value may be the one before or after the update.
    if self._timer.should_trigger_for_step(run_values.results + 1):
      step = run_context.session.run(self._step)
      if self._timer.should_trigger_for_step(step):
        self.read(run_context.session, step)

  def end(self, session):
    step = session.run(self._step)
    if step != self._timer.last_triggered_step():
      self.read(session, step)

  def read(self, session, step: int) -> None:
    """Runs the reads for a step."""
    self._timer.update_last_triggered_step(step)
    session.run(self._reads)
