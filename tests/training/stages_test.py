"""Tests of supcon.training.stages."""

import pytest
import tensorflow as tf

from supcon.config import enums
from supcon.training import stages
from tests.training import scalar_model

tf1 = tf.compat.v1


def _plan(epochs_1, epochs_2, num_examples):
  params = scalar_model.make_params({'epochs': epochs_1}, {'epochs': epochs_2})
  return stages.plan(params, num_examples)


def test_plan_lays_the_stages_end_to_end():
  # 10 examples in batches of 4 are 2.5 steps per epoch: stage 1 ends after
  # 1 * 2.5 = 2 steps, stage 2 after (1 + 2) * 2.5 = 7.
  params = scalar_model.make_params({'epochs': 1}, {'epochs': 2})
  run = stages.plan(params, 10)
  assert [stage.params for stage in run.stages] == [*params.stages]
  assert [stage.number for stage in run.stages] == [1, 2]
  assert [(s.start_step, s.stop_step) for s in run.stages] == [(0, 2), (2, 7)]
  assert (run.total_steps, run.steps_per_epoch) == (7, 2.5)
  assert run.batch_size == 4


@pytest.mark.parametrize(
  'epochs, num_examples, numbers',
  [
    # (epochs of the stages), examples: stage of step 0, 1, 2, ... and beyond.
    ((1, 2), 10, [1, 1, 2, 2, 2, 2, 2, 2, 2]),
    ((2, 0), 4, [1, 1, 1, 1]),
    ((0, 2), 4, [2, 2, 2, 2]),
    # 0.75 steps per epoch: stage 1 rounds to none, stage 2 ends at 1.5.
    ((1, 1), 3, [2, 2, 2]),
    # 0.5: stage 1 ends at 1, stage 2 at 1.5 and has no step of its own.
    ((2, 1), 2, [1, 1, 1]),
  ],
)
def test_stage_at(epochs, num_examples, numbers):
  run = _plan(*epochs, num_examples)
  assert [run.stage_at(step).number for step in range(len(numbers))] == numbers


@pytest.mark.parametrize(
  'epochs, num_examples, numbers',
  [
    # As above, of the checkpoints of step 0, 1, 2, ... and beyond.
    ((1, 2), 10, [1, 1, 1, 2, 2, 2, 2, 2, 2]),
    ((2, 0), 4, [1, 1, 1, 1]),
    ((0, 2), 4, [2, 2, 2, 2]),
  ],
)
def test_stage_that_made(epochs, num_examples, numbers):
  run = _plan(*epochs, num_examples)
  found = [run.stage_that_made(step).number for step in range(len(numbers))]
  assert found == numbers


def test_a_plan_without_any_step_is_refused():
  # 1 of 4 examples: (1 + 2) * 0.25 is less than a step.
  with pytest.raises(
    ValueError,
    match='--stage_1_epochs=1 .*--stage_2_epochs=2 .*--batch_size=4 and 1 tr',
  ):
    _plan(1, 2, num_examples=1)


def test_a_warmup_that_does_not_fit_is_refused_by_the_plan():
  params = scalar_model.make_params(
    {'epochs': 1}, {'epochs': 3, 'warmup_epochs': 2.9}
  )
  with pytest.raises(ValueError, match='--stage_2_warmup_epochs=2.9'):
    stages.plan(params, 4)


def test_only_the_stage_of_the_step_has_a_rate():
  # 1 step per epoch; rates scale with the batch, 4 / 256.
  flat = {'learning_rate_decay': enums.DecayType.NO_DECAY}
  params = scalar_model.make_params(
    {'epochs': 2, 'base_learning_rate': 64.0, **flat},
    {'epochs': 1, 'base_learning_rate': 128.0, **flat},
  )
  run = stages.plan(params, 4)
  with tf.Graph().as_default(), tf1.Session() as session:
    step = tf1.placeholder(tf.int64, [])
    rates = run.learning_rates(step)
    actual = [session.run(rates, {step: value}) for value in range(3)]
  assert actual == [(1, 0), (1, 0), (0, 2)]
