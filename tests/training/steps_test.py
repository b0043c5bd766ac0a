"""Tests of supcon.training.steps."""

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.tpu import tpu_function

from supcon.compute import replicas
from supcon.config import enums
from supcon.training import stages
from supcon.training import steps
from tests import mirrored
from tests.training import scalar_model

tf1 = tf.compat.v1

# --- Steps that are made ------------------------------------------------------


def test_a_step_counts_one():
  _, after = scalar_model.train(
    scalar_model.no_loss, scalar_model.MOMENTUM, start_step=2
  )
  assert after['global_step'] == 3


@pytest.mark.parametrize(
  'number, step, rate', [(1, 0, 0.0), (1, 1, 0.25), (1, 3, 0.5), (2, 1, 0.25)]
)
def test_an_optimizer_reads_the_rate_of_the_step(number, step, rate):
  # From rest, momentum makes a first step of rate * gradient = rate * 1.
  _, after = scalar_model.train(
    scalar_model.encoder_kernel,
    scalar_model.MOMENTUM,
    scalar_model.MOMENTUM,
    number=number,
    start_step=step + 4 * (number - 1),
  )
  assert after[scalar_model.KERNEL] == 4.0 - rate


@pytest.mark.parametrize(
  'number, step, rate',
  [
    (1, 0, 0.25),
    (1, 1, 0.5),
    # The next step is stage 2's.
    (1, 3, 0.0),
    (2, 0, 0.25),
    # There is no next step: the rate is stage 2's beyond its end.
    (2, 3, 0.5),
  ],
)
def test_lars_reads_the_rate_of_the_next_step(number, step, rate):
  # Trust ratio 0.001 * |4| / |1|: the step is rate * 0.004 * 1. The kernel is
  # adapted though its coefficient of weight decay is 0.
  _, after = scalar_model.train(
    scalar_model.encoder_kernel,
    scalar_model.LARS,
    scalar_model.LARS,
    number=number,
    start_step=step + 4 * (number - 1),
  )
  np.testing.assert_allclose(
    4.0 - after[scalar_model.KERNEL], rate * 0.004, atol=5e-7
  )


def test_lars_decays_what_is_switched_on():
  # The gradient is 0, so only decay moves: g = 0.25 * w, trust ratio
  # 0.001 * |w| / |0.25 * w| = 0.004, step rate * 0.004 * 0.25 * w, and rate is
  # 0.25 at the step after the first.
  stage_1 = {
    **scalar_model.LARS,
    'weight_decay': 0.25,
    'use_encoder_weight_decay': True,
    'use_projection_head_weight_decay': False,
    'use_classification_head_weight_decay': True,
  }
  decayed = {scalar_model.KERNEL, 'Model/ClassificationHead/kernel'}
  biases = {scalar_model.BIAS, 'Model/ClassificationHead/bias'}
  for include_bias in (False, True):
    before, after = scalar_model.train(
      scalar_model.no_loss, stage_1, include_bias=include_bias
    )
    moved = {name for name in before if before[name] != after[name]}
    expected = decayed | biases if include_bias else decayed
    assert {name for name in moved if 'LARS' not in name} == (
      expected
      | {'global_step', scalar_model.MOVING_MEAN, scalar_model.MOVING_VARIANCE}
    )
    for name in expected:
      np.testing.assert_allclose(
        after[name], before[name] * (1 - 0.25 * 0.001), rtol=1e-6
      )


def test_variables_that_the_loss_does_not_reach_get_a_gradient_of_zero():
  # RMSProp's mean square, 1 at first, then decays by 0.9 a step.
  _, after = scalar_model.train(
    scalar_model.encoder_kernel, scalar_model.RMSPROP, num_steps=3
  )
  slot = 'RMSPropOptimizer_stage1'
  np.testing.assert_allclose(
    after[f'{scalar_model.BIAS}/{slot}'], 0.9**3, rtol=1e-6
  )
  np.testing.assert_allclose(
    after[f'{scalar_model.GAMMA}/{slot}'], [0.9**3], rtol=1e-6
  )
  assert after[scalar_model.BIAS] == 2.0
  # Its own gradient of 1 keeps it at 0.9 * 1 + 0.1 * 1^2 = 1.
  np.testing.assert_allclose(
    after[f'{scalar_model.KERNEL}/{slot}'], 1.0, rtol=1e-6
  )


def test_a_velocity_goes_on_without_a_gradient():
  # v' = 0.9 * 2 = 1.8 at a rate of 0.5: the bias goes from 2 to 1.1.
  slot = f'{scalar_model.BIAS}/MomentumOptimizer_stage1'
  _, after = scalar_model.train(
    scalar_model.encoder_kernel,
    scalar_model.MOMENTUM,
    start_step=2,
    start_values={slot: 2.0},
  )
  np.testing.assert_allclose(after[slot], 1.8, rtol=1e-6)
  np.testing.assert_allclose(after[scalar_model.BIAS], 1.1, rtol=1e-6)


def test_the_slots_of_the_other_stage_rest():
  slots = {
    f'{scalar_model.KERNEL}/MomentumOptimizer_stage1': 2.0,
    f'{scalar_model.KERNEL}/MomentumOptimizer_stage2': 3.0,
  }
  for number, expected in ((1, [0.9 * 2 + 1, 3]), (2, [2, 0.9 * 3 + 1])):
    _, after = scalar_model.train(
      scalar_model.encoder_kernel,
      scalar_model.MOMENTUM,
      scalar_model.MOMENTUM,
      number=number,
      start_step=2 + 4 * (number - 1),
      start_values=slots,
    )
    actual = [after[name] for name in slots]
    np.testing.assert_allclose(actual, expected, rtol=1e-6)


@pytest.mark.parametrize('number', [1, 2])
@pytest.mark.parametrize('is_on', [False, True])
def test_batch_norm_moves_by_the_flag_of_its_own_stage(number, is_on):
  flag = 'update_encoder_batch_norm'
  mine, other = (
    {**scalar_model.MOMENTUM, flag: is_on},
    {**scalar_model.MOMENTUM, flag: not is_on},
  )
  _, after = scalar_model.train(
    lambda model, projection, logits: tf.reduce_sum(projection),
    *((mine, other) if number == 1 else (other, mine)),
    number=number,
    start_step=4 * (number - 1),
  )
  # 0 + 0.1 * (10 - 0), 1 + 0.1 * (16 - 1).
  expected = [[1.0], [2.5]] if is_on else [[0.0], [1.0]]
  np.testing.assert_allclose(
    [after[scalar_model.MOVING_MEAN], after[scalar_model.MOVING_VARIANCE]],
    expected,
    rtol=1e-5,
  )


def test_the_classifiers_loss_leaves_the_encoder_alone():
  before, after = scalar_model.train(
    lambda model, projection, logits: tf.reduce_sum(logits**2),
    {**scalar_model.MOMENTUM, 'update_encoder_batch_norm': False},
    start_step=2,
  )
  moved = {name for name in before if before[name] != after[name]}
  assert {name for name in moved if name.endswith(('/kernel', '/bias'))} == {
    'Model/ClassificationHead/kernel',
    'Model/ClassificationHead/bias',
  }


# --- Steps that are not made --------------------------------------------------


def _of_everything(model, projection, logits):
  """A loss that moves every variable and follows the batch."""
  del model
  return tf.reduce_sum(projection**2) + tf.reduce_sum(logits**2)


def _of_a_root(model, projection, logits):
  """A loss of 0 whose gradient is infinite, at a kernel of 4."""
  del projection, logits
  return tf.sqrt(model.encoder.kernel - 4.0)


_NAN = np.array([[1.0], [np.nan]], np.float32)
_HUGE = np.array([[1.0], [1e20]], np.float32)  # Its variance is infinite.

_SUBJECTS = [
  ('the loss', ''),
  ('the gradients of', 'Model/Encoder/kernel'),
  ('the gradients of', 'Model/Encoder/bias'),
  ('the gradients of', 'Model/Encoder/batch_normalization/gamma'),
  ('the gradients of', 'Model/Encoder/batch_normalization/beta'),
  ('the gradients of', 'Model/ProjectionHead/kernel'),
  ('the gradients of', 'Model/ProjectionHead/bias'),
  ('the gradients of', 'Model/ClassificationHead/kernel'),
  ('the gradients of', 'Model/ClassificationHead/bias'),
  ('the batch statistics for', scalar_model.MOVING_MEAN),
  ('the batch statistics for', scalar_model.MOVING_VARIANCE),
]


def _health(loss_of, x, **changes):
  """Returns (losses, what is looked at, what of it is bad)."""
  stage = scalar_model.make_stage(**scalar_model.MOMENTUM, **changes)
  run = stages.plan(scalar_model.make_params({'epochs': 4}), 4)
  with tf.Graph().as_default(), tf1.Session() as session:
    step = tf1.train.get_or_create_global_step()
    _, health = scalar_model.make_step(
      loss_of, tf.constant(x), run, stage, step
    )
    session.run(tf1.global_variables_initializer())
    losses, report = session.run([health.losses, health.report])
    is_good = session.run(health.is_good)
  assert len(report) == 4 + len(health.subjects)
  assert set(report[4:]) <= {0, 1}
  bad = [each for each, bad in zip(health.subjects, report[4:]) if bad]
  assert is_good == (not bad)
  return losses, [*health.subjects], bad


def test_a_good_step_is_good():
  losses, subjects, bad = _health(scalar_model.encoder_kernel, scalar_model.X)
  assert list(losses.values()) == [4.0, 8.0, 12.0, 4.0]
  # Only what the loss reaches.
  assert subjects == [*_SUBJECTS[:2], *_SUBJECTS[-2:]]
  assert bad == []


def test_everything_is_looked_at():
  _, subjects, bad = _health(_of_everything, scalar_model.X)
  assert (subjects, bad) == (_SUBJECTS, [])
  losses, subjects, bad = _health(_of_everything, _NAN)
  assert np.isnan(losses['total']) and losses['weight_decay'] == 4.0
  assert (subjects, bad) == (_SUBJECTS, _SUBJECTS)


def test_a_gradient_is_looked_at_where_the_loss_is_finite():
  losses, _, bad = _health(_of_a_root, scalar_model.X)
  assert losses['total'] == 0
  assert bad == [('the gradients of', 'Model/Encoder/kernel')]


def test_statistics_are_looked_at_if_they_move():
  _, subjects, bad = _health(scalar_model.no_loss, _NAN)
  assert subjects == [_SUBJECTS[0], *_SUBJECTS[-2:]]
  assert bad == _SUBJECTS[-2:]
  assert _health(scalar_model.no_loss, _HUGE)[-1] == _SUBJECTS[-1:]
  _, subjects, bad = _health(
    scalar_model.no_loss, _NAN, update_encoder_batch_norm=False
  )
  assert (subjects, bad) == (_SUBJECTS[:1], [])


def _assert_same_bits(found, expected):
  assert found.keys() == expected.keys()
  for name, value in expected.items():
    assert found[name].tobytes() == value.tobytes(), name


@pytest.mark.parametrize('is_on_tpu', [False, True])
@pytest.mark.parametrize('optimizer', list(enums.Optimizer))
def test_a_bad_step_changes_nothing(optimizer, is_on_tpu):
  if is_on_tpu:
    # The graph of a TPU of one core, which a CPU can run.
    with tpu_function.tpu_shard_context(1):
      _check_bad_steps(optimizer)
  else:
    _check_bad_steps(optimizer)


def _check_bad_steps(optimizer):
  stage = {'optimizer': optimizer, 'weight_decay': 0.25}
  before, one, still, still_one, two = scalar_model.states(
    [scalar_model.X, _NAN, _HUGE, scalar_model.X],
    _of_everything,
    stage,
    stage,
    start_step=1,
  )
  _assert_same_bits(still, one)
  _assert_same_bits(still_one, one)
  # While a good one changes everything.
  steps = [state['global_step'] for state in (before, one, two)]
  assert steps == [1, 2, 3]
  for _, name in _SUBJECTS[1:]:
    assert one[name] != two[name], name


def test_an_infinite_gradient_changes_nothing():
  before, after = scalar_model.train(
    _of_a_root, scalar_model.MOMENTUM, start_step=2, num_steps=2
  )
  _assert_same_bits(after, before)


@pytest.mark.parametrize('bad_replica', [None, 0, 1, 2])
def test_one_bad_replica_holds_all(bad_replica):
  count = 3
  params = scalar_model.make_params(
    {**scalar_model.WARM_UP, **scalar_model.MOMENTUM}, batch_size=256
  )
  run = stages.plan(params, 256)

  def build():
    step = tf1.train.get_or_create_global_step()
    factor = np.nan if replicas.replica_id() == bad_replica else 1.0
    train_op, health = scalar_model.make_step(
      lambda *args: factor * _of_everything(*args),
      tf.constant(scalar_model.X),
      run,
      run.stages[0],
      step,
    )
    assert [*health.subjects] == _SUBJECTS  # By their names in a checkpoint.
    with tf.control_dependencies([train_op]):
      variables = [v.read_value() for v in tf1.trainable_variables()]
      return tf.identity(step), variables, health.report

  for step, variables, report in mirrored.run(build, count, steps=3):
    if bad_replica is None:
      assert step == 3
      np.testing.assert_array_equal(report[4:], 0)
      assert variables[0] != 4.0
      continue
    assert step == 0
    # One of three; what comes through the synchronised batch norm, on all.
    shares = [1 / 3, 1, 1, *[1 / 3] * 6, 0, 0]
    np.testing.assert_allclose(report[4:], shares, rtol=1e-6)
    assert np.isnan(report[0]) and report[3] == 4.0
    found = [value.item() for value in variables]
    assert found == [4.0, 2.0, 7.0, 0.0, 2.0, 6.0, 6.0, 8.0]


def test_the_first_bad_report_is_kept():
  reports = [[5, 0], [6, 0], [7, 1], [8, 0], [9, 1]]
  with tf.Graph().as_default(), tf1.Session() as session:
    report = tf1.placeholder(tf.float32, [5])
    subjects = (steps.Subject('the loss', ''),)
    since, memory, kept = steps.first_bad(
      steps.Health(('total', 'a', 'b', 'c'), subjects, report)
    )
    assert tf1.global_variables() == []  # It is in no checkpoint.
    session.run(tf1.local_variables_initializer())
    found = []
    for total, bad in reports:
      feed = {report: [total, 1, 2, 3, bad]}
      is_good, losses, _ = session.run(
        [since.is_good, since.losses, kept], feed
      )
      found.append((is_good, losses['total']))
    assert found == [(True, 5), (True, 6), (False, 7), (False, 7), (False, 7)]
    np.testing.assert_array_equal(session.run(memory), [7, 1, 2, 3, 1])
