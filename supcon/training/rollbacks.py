"""Which batches a run skips because training diverged at them.

Training that has diverged goes back to a checkpoint, and from its step on takes
later batches: those that led to the divergence are left out. A file in
model_dir says so of every rollback, in their order. Which batch a step takes
follows from that file and the step alone: a run that is killed and starts again
sees what it would have seen, and so does another run that is given the file.
"""

from collections.abc import Sequence
import dataclasses
import datetime

FILE = 'rollbacks.json'


@dataclasses.dataclass(frozen=True)
class Rollback:
  """A way back.

  Attributes:
    checkpoint_step: The step that training went back to.
    diverged_step: The step that could not be made.
    skipped: How many batches are left out: those of the steps from
      `checkpoint_step` to `diverged_step`, both included.
    time: When, in UTC, such as 2025-01-31T23:59:59+00:00.
    reason: What was found, in words.
  """

  checkpoint_step: int
  diverged_step: int
  skipped: int
  time: str
  reason: str

  def __post_init__(self):
    """Raises ValueError if it cannot have happened."""
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
  """Returns by how much the batch that a step takes is later than the step.

  Every rollback adds to those before it, from its checkpoint on; what an
  earlier one said of later steps then holds no more.

  Args:
    rollbacks: In the order in which they happened.
    step: The global step before an update.
  """
  total, result = 0, 0
  for rollback in rollbacks:
    total += rollback.skipped
    if rollback.checkpoint_step <= step:
      result = total
  return result


class Rollbacks:
  """Those of a run.

  Attributes:
    all: Rollbacks in their order, a tuple.
  """

  def __init__(self, model_dir):
    """Reads them.

    Args:
      model_dir: model_dirs.ModelDir.

    Raises:
      ValueError: If the file holds something else.
    """
    self._model_dir = model_dir
    found = model_dir.read_json(FILE)
    try:
      self.all = tuple(Rollback(**each) for each in found or ())
    except (TypeError, ValueError) as error:
      raise ValueError(
        f'{model_dir.join(FILE)} does not say which batches to skip ({error}); '
        'restore it, or take another --model_dir.'
      ) from error

  @property
  def count(self) -> int:
    return len(self.all)

  @property
  def num_skipped(self) -> int:
    """How many batches were skipped."""
    return sum(rollback.skipped for rollback in self.all)

  def offset(self, step: int) -> int:
    """Returns by how much the batch that a step takes is later than it."""
    return offset(self.all, step)

  def until(self, step: int, stop_step: int) -> int:
    """Returns up to which step batches follow one another.

    Args:
      step: Where to begin.
      stop_step: What is returned if they do so up to there.
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
      diverged_step: Likewise.
      reason: Likewise.
      is_written: Whether into the file, too; of several machines that train
        together, one writes it.

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
