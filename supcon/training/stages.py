"""The stages of a run, each with losses, an optimizer and a schedule.

No code depends on the name of a stage: a `Plan` maps a step to its stage, and
the training graph is built for that stage. The graph contains only what the
stage needs. For example, a loss of weight 0 is not in it, nor is the backward
pass through the encoder if no loss needs it.
"""

import dataclasses
from typing import NamedTuple

import tensorflow as tf

from supcon.config import hparams
from supcon.training import schedules


class Stage(NamedTuple):
  """One stage and the steps that it spans."""

  params: hparams.Stage
  span: schedules.StageSpan

  @property
  def number(self) -> int:
    """Counted from 1, as in flags and names of slots."""
    return self.span.number

  @property
  def start_step(self) -> int:
    return self.span.start_step

  @property
  def stop_step(self) -> int:
    return self.span.stop_step


@dataclasses.dataclass(frozen=True)
class Plan:
  """The stages of a run on a training set of known size."""

  stages: tuple[Stage, ...]
  batch_size: int
  steps_per_epoch: float

  @property
  def total_steps(self) -> int:
    return self.stages[-1].stop_step

  def stage_at(self, step: int) -> Stage:
    """Returns the stage whose update goes from `step` to `step` + 1.

    After the last step, it is the last stage that trained.
    """
    trained = [s for s in self.stages if s.start_step < s.stop_step]
    for stage in trained:
      if step < stage.stop_step:
        return stage
    return trained[-1]

  def stage_that_made(self, step: int) -> Stage:
    """Returns the stage whose update made the checkpoint of a step.

    The checkpoint at the end of a stage belongs to that stage, not to the next
    one. The checkpoint of step 0 belongs to the first stage that trains.
    """
    return self.stage_at(max(step - 1, 0))

  def learning_rates(self, step: tf.Tensor) -> tuple[tf.Tensor, ...]:
    """Returns each stage's float32 rate at `step`; 0 outside its own steps."""
    return schedules.learning_rates(
      step,
      [stage.params for stage in self.stages],
      [stage.span for stage in self.stages],
      self.batch_size,
    )


def plan(params: hparams.HParams, num_examples: int) -> Plan:
  """Returns the stages of a run over `num_examples` training examples.

  Raises:
    ValueError: If there is no step, or a warm-up does not fit into its stage.
  """
  spans = schedules.stage_spans(params.stages, num_examples, params.batch_size)
  result = Plan(
    stages=tuple(map(Stage, params.stages, spans)),
    batch_size=params.batch_size,
    steps_per_epoch=num_examples / params.batch_size,
  )
  if result.total_steps == 0:
    raise ValueError(
      f'--stage_1_epochs={params.stage_1.epochs} and --stage_2_epochs='
      f'{params.stage_2.epochs} make no step with --batch_size='
      f'{params.batch_size} and {num_examples} training examples.'
    )
  with tf.Graph().as_default():
    result.learning_rates(tf.constant(0, tf.int64))  # Raises.
  return result
