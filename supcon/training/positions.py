"""Counts the steps of a run: which stage and epoch a step belongs to.

A step is a number of batches. Its meaning follows from the number of examples,
the batch size and the lengths of the stages; if one of these changes, the same
number means another place.
"""

import dataclasses
import itertools

from supcon.config import hparams


@dataclasses.dataclass(frozen=True)
class Counting:
  """The settings that determine the place of a step in a run.

  Attributes:
    num_examples: Size of the training set.
    batch_size: The global batch.
    epochs: Length of each stage in epochs.
  """

  num_examples: int
  batch_size: int
  epochs: tuple[int, ...]

  @property
  def steps_per_epoch(self) -> float:
    return self.num_examples / self.batch_size

  @property
  def ends(self) -> tuple[int, ...]:
    """Last step of each stage, rounded as in schedules.StageSpan."""
    return tuple(
      int(epoch * self.steps_per_epoch)
      for epoch in itertools.accumulate(self.epochs)
    )

  @property
  def last_step(self) -> int:
    return self.ends[-1]


def of(params: hparams.HParams, num_examples: int) -> Counting:
  """Returns how a run with these hyper-parameters counts its steps."""
  return Counting(
    num_examples,
    params.batch_size,
    tuple(stage.epochs for stage in params.stages),
  )


def is_moved(known: Counting, now: Counting, step: int) -> bool:
  """Whether a new counting moves a step to another place.

  A place is a stage and an epoch. A completed stage may become longer, as long
  as no later stage has begun.

  Args:
    known: How the step was counted.
    now: How it would be counted.
    step: Global step of a checkpoint.
  """
  if not step:
    return False
  return (
    step > now.last_step
    or known.steps_per_epoch != now.steps_per_epoch
    or [min(end, step) for end in known.ends]
    != [min(end, step) for end in now.ends]
  )


def what_moves(known: Counting, now: Counting) -> str:
  """Returns the differences in words."""
  return ', '.join(
    f'{name}: {new} instead of {old}'
    for name, old, new in (
      ('training examples', known.num_examples, now.num_examples),
      ('--batch_size', known.batch_size, now.batch_size),
      ('--stage_1_epochs', known.epochs[0], now.epochs[0]),
      ('--stage_2_epochs', known.epochs[1], now.epochs[1]),
    )
    if old != new
  )


def moved_step(known: Counting, now: Counting, step: int) -> int:
  """Returns the step of the new counting at the same stage and epoch.

  A step beyond the new end of its stage moves to that end.

  Args:
    known: How `step` was counted.
    now: How the result is counted.
    step: Global step of a checkpoint.
  """
  starts, new_starts = (0, *known.ends), (0, *now.ends)
  for stage, (start, end) in enumerate(zip(starts, known.ends)):
    if step > end and stage + 1 < len(known.ends):
      continue
    epochs = (step - start) / known.steps_per_epoch
    is_complete = step >= end and now.epochs[stage] <= known.epochs[stage]
    if is_complete or epochs >= now.epochs[stage]:
      return new_starts[stage + 1]
    moved = new_starts[stage] + round(epochs * now.steps_per_epoch)
    return min(moved, new_starts[stage + 1])
  raise AssertionError('There is a last stage.')


def place(counting: Counting, step: int) -> str:
  """Returns the place of a step: 'step 6 of 9, epoch 1.50 of 3 of stage 2'."""
  starts = (0, *counting.ends)
  stage = next(
    (n for n, end in enumerate(counting.ends) if step <= end),
    len(counting.ends) - 1,
  )
  epoch = (step - starts[stage]) / counting.steps_per_epoch
  return (
    f'step {step} of {counting.last_step}, epoch {epoch:.2f} of '
    f'{counting.epochs[stage]} of stage {stage + 1}'
  )
