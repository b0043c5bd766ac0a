"""Records which batches a run skips because training diverged at them.

After divergence, training returns to a checkpoint and takes later batches from
there on: it leaves out the batches that led to the divergence. A file in
model_dir lists all rollbacks in order. The batch of a step follows from that
file and the step alone. So a run that is killed and restarted sees the same
batches as without the interruption, and so does another run that is given the
file.
"""

from collections.abc import Sequence
import dataclasses
import datetime

FILE = 'rollbacks.json'


@dataclasses.dataclass(frozen=True)
class Rollback:
  """A return to a checkpoint.

  Attributes:
    checkpoint_step: The step that training returned to.
    diverged_step: The step that could not be applied.
    skipped: Number of batches left out: those of the steps from
      `checkpoint_step` to `diverged_step`, both included.
    time: The time in UTC, such as 2025-01-31T23:59:59+00:00.
    reason: The reason in words.
  """

  checkpoint_step: int
  diverged_step: int
  skipped: int
  time: str
  reason: str

  def __post_init__(self):
    """Raises ValueError if the values are impossible."""
    steps = (self.checkpoint_step, self.diverged_step, self.skipped)
    if not all(type(number) is int for number in steps):
      raise ValueError(f'{steps} are not three whole numbers')
    if not 0 <= self.checkpoint_step <= self.diverged_step:
      raise ValueError(
        f'nothing leads from step {self.diverged_step} back to step '
        f'{self.checkpoint_step}'
      )
    if self.skipped != self.diverged_step + 1 - self.checkpoint_step:
      raise ValueError(
        f'steps {self.checkpoint_step} to {self.diverged_step} are not '
        f'{self.skipped}'
      )


def offset(rollbacks: Sequence[Rollback], step: int) -> int:
  """Returns how many batches the batch of a step is ahead of the step.

  Every rollback adds to the earlier ones from its checkpoint on. It cancels
  what an earlier rollback said about later steps.

  Args:
    rollbacks: All rollbacks in the order in which they happened.
    step: The global step before an update.
  """
  total, result = 0, 0
  for rollback in rollbacks:
    total += rollback.skipped
    if rollback.checkpoint_step <= step:
      result = total
  return result


class Rollbacks:
  """The rollbacks of a run.

  Attributes:
    all: The rollbacks in order, a tuple.
  """

  def __init__(self, model_dir):
    """Reads the file of the rollbacks.

    Args:
      model_dir: model_dirs.ModelDir.

    Raises:
      ValueError: If the file is malformed.
    """
    self._model_dir = model_dir
    self.all = (
      model_dir.read_json(
        FILE,
        lambda found: tuple(Rollback(**each) for each in found),
        what='list of batches to skip',
      )
      or ()
    )

  @property
  def count(self) -> int:
    return len(self.all)

  @property
  def num_skipped(self) -> int:
    """Number of skipped batches."""
    return sum(rollback.skipped for rollback in self.all)

  def offset(self, step: int) -> int:
    """Returns how many batches the batch of a step is ahead of the step."""
    return offset(self.all, step)

  def until(self, step: int, stop_step: int) -> int:
    """Returns the step up to which batches are consecutive.

    Args:
      step: The step to start from.
      stop_step: The result if all batches up to it are consecutive.
    """
    changes = [
      rollback.checkpoint_step
      for rollback in self.all
      if step < rollback.checkpoint_step < stop_step
      and self.offset(rollback.checkpoint_step) != self.offset(step)
    ]
    return min(changes, default=stop_step)

  def add(
    self,
    checkpoint_step: int,
    diverged_step: int,
    reason: str,
    is_written: bool = True,
  ) -> Rollback:
    """Adds a rollback.

    Args:
      checkpoint_step: See `Rollback`.
      diverged_step: See `Rollback`.
      reason: See `Rollback`.
      is_written: Whether to write it to the file, too. Of several machines that
        train together, one does.

    Raises:
      ValueError: If the checkpoint is not before the step.
    """
    now = datetime.datetime.now(datetime.timezone.utc)
    rollback = Rollback(
      checkpoint_step,
      diverged_step,
      diverged_step + 1 - checkpoint_step,
      now.isoformat(timespec='seconds'),
      reason,
    )
    self.all += (rollback,)
    if is_written:
      self._model_dir.write_json(
        FILE, [dataclasses.asdict(each) for each in self.all]
      )
    return rollback
