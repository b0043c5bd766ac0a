"""Tests of positions: where a step is, by one plan and by another."""

import pytest

from supcon.config import hparams
from supcon.training import positions
from supcon.training import stages

# 3 steps an epoch: stage 1 ends with step 2 x 3 = 6, stage 2 with 3 x 3 = 9.
_PLAN = positions.Counting(48, 16, (2, 1))
# 30 / 16 = 1.875 steps an epoch: floor(3.75) = 3 and floor(5.625) = 5.
_FEWER = positions.Counting(30, 16, (2, 1))
# 1.5 steps an epoch: 3 and floor(4.5) = 4.
_LARGER = positions.Counting(48, 32, (2, 1))


def _counting(**changes):
  return positions.Counting(
    **{'num_examples': 48, 'batch_size': 16, 'epochs': (2, 1), **changes}
  )


def test_ends():
  assert _PLAN.ends == (6, 9) and _PLAN.last_step == 9
  assert _FEWER.ends == (3, 5)
  assert _LARGER.ends == (3, 4)
  # Those of the plan that is trained.
  params = hparams.HParams(batch_size=16)
  for number, epochs in ((1, 13), (2, 8)):
    params = params.replace(f'stage_{number}.epochs', epochs)
    params = params.replace(f'stage_{number}.warmup_epochs', 0.0)
  for examples in (16, 29, 30, 47, 1437):
    found = positions.of(params, examples).ends
    plan = stages.plan(params, examples)
    assert found == tuple(stage.stop_step for stage in plan.stages)


@pytest.mark.parametrize('step', [1, 3, 6, 9])
@pytest.mark.parametrize('now', [_FEWER, _LARGER])
def test_another_number_of_steps_an_epoch_moves_all_steps(step, now):
  assert positions.is_moved(_PLAN, now, step)
  assert not positions.is_moved(_PLAN, now, 0)  # Nothing is done yet.


@pytest.mark.parametrize(
  'epochs, step, expected',
  [
    # A later end moves nothing, also of a stage that is complete.
    ((2, 5), 9, False),
    ((2, 5), 4, False),
    ((5, 1), 4, False),
    ((5, 1), 6, False),
    # But stage 2 has begun with step 6, where stage 1 would be still.
    ((5, 1), 7, True),
    # An earlier end, as long as it is ahead.
    ((1, 1), 3, False),
    ((1, 1), 4, True),
    ((2, 0), 6, False),
    ((2, 0), 7, True),
    ((2, 0), 9, True),
    # The same steps in other stages.
    ((1, 2), 6, True),
    ((3, 0), 9, True),
  ],
)
def test_other_lengths(epochs, step, expected):
  assert positions.is_moved(_PLAN, _counting(epochs=epochs), step) == expected


def test_twice_the_images_in_twice_the_batch_moves_nothing():
  now = _counting(num_examples=96, batch_size=32)
  assert not positions.is_moved(_PLAN, now, 7)


@pytest.mark.parametrize(
  'now, step, expected',
  [
    # Stage 2 has not begun, stage 1 is complete.
    (_FEWER, 6, 3),
    (_LARGER, 6, 3),
    (_FEWER, 9, 5),
    # Epoch 1 of stage 1: round(1 x 1.875) = 2 and round(1.5) = 2.
    (_FEWER, 3, 2),
    (_LARGER, 3, 2),
    # Epoch 2/3 of stage 2: 3 + round(2/3 x 1.875) = 4; 3 + round(1) = 4.
    (_FEWER, 8, 4),
    (_LARGER, 8, 4),
    # Epoch 1/3 of stage 2, which begins with step 3 x 3 = 9 now.
    (_counting(epochs=(3, 1)), 7, 10),
    # A longer stage 1 is not complete any more: epoch 2 of it is step 6.
    (_counting(epochs=(3, 1)), 6, 6),
    # A shorter stage has come to its end.
    (_counting(epochs=(1, 1)), 5, 3),
    (_counting(epochs=(2, 0)), 8, 6),
    # Half the batch, twice the steps: epoch 1/3 of stage 2 is step 12 + 2.
    (_counting(batch_size=8), 7, 14),
  ],
)
def test_stage_and_epoch_stay(now, step, expected):
  assert positions.moved_step(_PLAN, now, step) == expected


def test_in_words():
  assert positions.place(_PLAN, 6) == 'step 6 of 9, epoch 2.00 of 2 of stage 1'
  assert positions.place(_PLAN, 8) == 'step 8 of 9, epoch 0.67 of 1 of stage 2'
  now = positions.Counting(30, 32, (2, 3))
  assert positions.what_moves(_PLAN, now) == (
    'training examples: 30 instead of 48, --batch_size: 32 instead of 16, '
    '--stage_2_epochs: 3 instead of 1'
  )
