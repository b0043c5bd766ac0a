"""Tests of supcon.training.stages.

Most of them train a model of seven scalars, so that every number can be had by
hand; the published checkpoints need the real ones.
"""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.tpu import tpu_function

from supcon import enums
from supcon import hparams
from supcon import replicas
from supcon.models import contrastive
from supcon.models import layers
from supcon.training import stages
from tests import flag_parsing
from tests import golden
from tests import mirrored
from tests import model_functions

tf1 = tf.compat.v1


# --- The plan -----------------------------------------------------------------


def _params(stage_1=None, stage_2=None, batch_size=4):
  """Returns HParams; the stages without warm-up, changed as asked for."""

  def changed(stage, changes):
    return dataclasses.replace(stage, **{'warmup_epochs': 0.0, **changes})

  defaults = hparams.HParams()
  return dataclasses.replace(
    defaults,
    batch_size=batch_size,
    stage_1=changed(defaults.stage_1, stage_1 or {}),
    stage_2=changed(defaults.stage_2, stage_2 or {}),
  )


def _plan(epochs_1, epochs_2, num_examples):
  params = _params({'epochs': epochs_1}, {'epochs': epochs_2})
  return stages.plan(params, num_examples)


def test_plan_lays_the_stages_end_to_end():
  # 10 examples in batches of 4 are 2.5 steps per epoch: stage 1 ends after
  # 1 * 2.5 = 2 steps, stage 2 after (1 + 2) * 2.5 = 7.
  params = _params({'epochs': 1}, {'epochs': 2})
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
  params = _params({'epochs': 1}, {'epochs': 3, 'warmup_epochs': 2.9})
  with pytest.raises(ValueError, match='--stage_2_warmup_epochs=2.9'):
    stages.plan(params, 4)


def test_only_the_stage_of_the_step_has_a_rate():
  # 1 step per epoch; rates scale with the batch, 4 / 256.
  flat = {'learning_rate_decay': enums.DecayType.NO_DECAY}
  params = _params(
    {'epochs': 2, 'base_learning_rate': 64.0, **flat},
    {'epochs': 1, 'base_learning_rate': 128.0, **flat},
  )
  run = stages.plan(params, 4)
  with tf.Graph().as_default(), tf1.Session() as session:
    step = tf1.placeholder(tf.int64, [])
    rates = run.learning_rates(step)
    actual = [session.run(rates, {step: value}) for value in range(3)]
  assert actual == [(1, 0), (1, 0), (0, 2)]


# --- A model that can be computed by hand -------------------------------------


class _Part(layers.Module):
  """x * kernel + bias, with batch norm if asked for."""

  def __init__(self, parent, name, kernel, bias, has_norm=False):
    super().__init__(parent, name)
    self.kernel = self._scalar(layers.Role.KERNEL, 'kernel', kernel)
    self.bias = self._scalar(layers.Role.BIAS, 'bias', bias)
    self.norm = None
    if has_norm:
      self.norm = layers.BatchNorm(self, 1, synchronised=True, gamma=7.0)

  def forward(self, x, training):
    x = x * self.kernel + self.bias
    return self.norm(x, training) if self.norm else x

  def _scalar(self, role, name, value):
    return self._add_variable(role, name, [], tf1.initializers.constant(value))


class _Model(layers.Module):
  """Two heads on an encoder, as in contrastive.ContrastiveModel.

  Sums of v^2/2 over kernels, and over kernels and biases:
    encoder          4^2/2 = 8     8 + 2^2/2 = 10
    projection head  2^2/2 = 2     2 + 6^2/2 = 20
    classifier       6^2/2 = 18   18 + 8^2/2 = 50
  The batch norm's gamma, 7, would add 24.5 if it counted.
  """

  def __init__(self):
    super().__init__(None, 'Model')
    self.encoder = _Part(self, 'Encoder', 4.0, 2.0, has_norm=True)
    self.projection_head = _Part(self, 'ProjectionHead', 2.0, 6.0)
    self.classification_head = _Part(self, 'ClassificationHead', 6.0, 8.0)

  def forward(self, x, training):
    """Returns what the two losses depend on, of x [B, 1]."""
    embedding = self.encoder(x, training)
    return (
      self.projection_head(embedding, training),
      self.classification_head(tf.stop_gradient(embedding), training),
    )


_KERNEL = 'Model/Encoder/kernel'
_BIAS = 'Model/Encoder/bias'
_GAMMA = 'Model/Encoder/batch_normalization/gamma'
_MOVING_MEAN = 'Model/Encoder/batch_normalization/moving_mean'
_MOVING_VARIANCE = 'Model/Encoder/batch_normalization/moving_variance'

_SWITCHES = (
  'use_encoder_weight_decay',
  'use_projection_head_weight_decay',
  'use_classification_head_weight_decay',
)


def _stage(number=1, **changes):
  """Returns stage `number` of two stages of 4 steps each, changed."""
  params = _params({'epochs': 4}, {'epochs': 4})
  field = f'stage_{number}'
  params = dataclasses.replace(
    params, **{field: dataclasses.replace(params.get(field), **changes)}
  )
  run = stages.plan(params, params.batch_size)
  return run.stages[number - 1]


# --- Weight decay -------------------------------------------------------------

_NORMS = {  # include_bias: of encoder, projection head, classifier
  False: [8.0, 2.0, 18.0],
  True: [10.0, 20.0, 50.0],
}


def _decay(include_bias, **changes):
  with tf.Graph().as_default(), tf1.Session() as session:
    model = _Model()
    loss = stages.weight_decay_loss(_stage(**changes), model, include_bias)
    session.run(tf1.global_variables_initializer())
    return session.run(loss)


@pytest.mark.parametrize('include_bias', [False, True])
@pytest.mark.parametrize(
  'decayed',
  [
    # Which of encoder, projection head, classifier.
    (False, False, False),
    (True, False, False),
    (False, True, False),
    (False, False, True),
    (True, True, True),
  ],
)
def test_weight_decay_of_what_is_switched_on(decayed, include_bias):
  switches = dict(zip(_SWITCHES, decayed))
  norms = [norm for norm, on in zip(_NORMS[include_bias], decayed) if on]
  actual = _decay(include_bias, weight_decay=0.25, **switches)
  assert actual == 0.25 * sum(norms)


def test_no_weight_decay_in_the_loss_of_lars():
  # LARS decays by itself: see test_lars_decays_what_is_switched_on.
  lars = {'weight_decay': 0.25, 'optimizer': enums.Optimizer.LARS}
  assert _decay(True, **lars) == 0.0
  for optimizer in set(enums.Optimizer) - {enums.Optimizer.LARS}:
    assert _decay(True, weight_decay=0.25, optimizer=optimizer) == 0.25 * 30


def test_a_coefficient_of_0_differentiates_no_weight():
  with tf.Graph().as_default():
    model = _Model()
    loss = stages.weight_decay_loss(_stage(weight_decay=0.0), model, True)
    assert tf.gradients(loss, model.trainable_variables) == [None] * 8


@pytest.mark.parametrize('include_bias', [False, True])
def test_weight_norms_are_of_every_module(include_bias):
  with tf.Graph().as_default(), tf1.Session() as session:
    norms = stages.weight_norms(_Model(), include_bias)
    session.run(tf1.global_variables_initializer())
    names = ('Encoder', 'ProjectionHead', 'ClassificationHead')
    assert session.run(norms) == dict(zip(names, _NORMS[include_bias]))


# --- The loss of a stage ------------------------------------------------------


def _losses(contrastive, cross_entropy, **changes):
  """Returns (LossParts, gradients of the total) as numbers.

  The two losses are multiples of two variables of value 1.
  """
  with tf.Graph().as_default(), tf1.Session() as session:
    model = _Model()
    scales = [
      tf1.get_variable(name, initializer=1.0, use_resource=True)
      for name in ('contrastive', 'cross_entropy')
    ]
    parts = stages.loss_parts(
      _stage(**changes),
      model,
      scales[0] * contrastive,
      scales[1] * cross_entropy,
      include_bias=True,
    )
    gradients = tf.gradients(parts.total, scales)
    is_reached = [gradient is not None for gradient in gradients]
    session.run(tf1.global_variables_initializer())
    return session.run(parts), is_reached


def test_the_total_is_the_weighted_sum():
  # Encoder and projection head decay: 0.5 * (10 + 20) = 15. The total is
  # 15 + 2 * 3 + 0.25 * 8 = 23; the parts themselves are without weight.
  parts, is_reached = _losses(
    3.0,
    8.0,
    contrastive_loss_weight=2.0,
    cross_entropy_loss_weight=0.25,
    weight_decay=0.5,
  )
  assert parts == (23.0, 3.0, 8.0, 15.0)
  assert parts._fields == (
    'total',
    'contrastive',
    'cross_entropy',
    'weight_decay',
  )
  assert is_reached == [True, True]


@pytest.mark.parametrize('broken', [np.nan, np.inf])
def test_a_loss_of_weight_0_reaches_neither_total_nor_gradient(broken):
  parts, is_reached = _losses(
    broken, 8.0, contrastive_loss_weight=0.0, cross_entropy_loss_weight=1.0
  )
  assert (parts.total, parts.cross_entropy) == (8.0, 8.0)
  np.testing.assert_equal(parts.contrastive, np.float32(broken))
  assert is_reached == [False, True]

  parts, is_reached = _losses(
    3.0, broken, contrastive_loss_weight=1.0, cross_entropy_loss_weight=0.0
  )
  assert (parts.total, parts.contrastive) == (3.0, 3.0)
  assert is_reached == [True, False]


# --- Training -----------------------------------------------------------------

# Two samples. The encoder's kernel is 4 and its bias 2, so 6 and 14 enter its
# batch norm: their mean is 10, their (biased) variance 4^2 = 16.
_X = np.array([[1.0], [3.0]], np.float32)

# One step per epoch and four in each stage: batch 256, the batch for which
# rates are given, of 256 examples. The rates of both stages are
# 0, 0.25, 0.5, 0.5.
_WARM_UP = {
  'epochs': 4,
  'warmup_epochs': 2.0,
  'base_learning_rate': 0.5,
  'learning_rate_decay': enums.DecayType.NO_DECAY,
}


def _train(*args, num_steps=1, **kwargs):
  """Trains the model by hand, `num_steps` times on _X.

  The other arguments are those of `_states`.

  Returns:
    (variables before, variables after), each {name: value} in the order of
    their creation.
  """
  states = _states([_X] * num_steps, *args, **kwargs)
  return states[0], states[-1]


def _states(
  batches,
  loss_of,
  stage_1,
  stage_2=None,
  number=1,
  start_step=0,
  start_values=None,
  include_bias=True,
):
  """Returns {name: value} of all variables at first and after each step.

  Args:
    batches: What to run the train op on.
    loss_of: From (the model, projection, logits) to a scalar.
    stage_1: Changes of the stage's hyper-parameters.
    stage_2: Likewise.
    number: Of the stage to train.
    start_step: The global step before training.
    start_values: {name of a variable: its value before training}.
    include_bias: Whether biases decay.
  """
  params = _params(
    {**_WARM_UP, **stage_1}, {**_WARM_UP, **(stage_2 or {})}, batch_size=256
  )
  run = stages.plan(params, 256)
  with tf.Graph().as_default(), tf1.Session() as session:
    step = tf1.train.get_or_create_global_step()
    x = tf1.placeholder(tf.float32, _X.shape)
    train_op, _ = _step(
      loss_of, x, run, run.stages[number - 1], step, include_bias
    )
    variables = {v.op.name: v for v in tf1.global_variables()}
    session.run(tf1.global_variables_initializer())
    step.load(start_step, session)
    for name, value in (start_values or {}).items():
      variables[name].load(value, session)
    states = [session.run(variables)]
    for batch in batches:
      session.run(train_op, {x: batch})
      states.append(session.run(variables))
    return states


def _step(loss_of, x, run, stage, step, include_bias=True):
  """Returns (train op, Health) of a step on `x`."""
  model = _Model()
  loss = loss_of(model, *model(x, training=True))
  parts = stages.LossParts(loss, 2.0 * loss, 3.0 * loss, tf.constant(4.0))
  gradients = stages.gradients(model, loss)
  health = stages.health(stage, model, parts, gradients)
  train_op = stages.train_op(
    run, stage, model, gradients, step, include_bias, health.is_good
  )
  return train_op, health


def _no_loss(model, projection, logits):
  del model, projection, logits
  return tf.constant(0.0)


def _encoder_kernel(model, projection, logits):
  """A loss whose gradient is 1 for the encoder's kernel and 0 elsewhere."""
  del projection, logits
  return model.encoder.kernel + 0.0


_MOMENTUM = {'optimizer': enums.Optimizer.MOMENTUM}
_RMSPROP = {'optimizer': enums.Optimizer.RMSPROP}
_LARS = {'optimizer': enums.Optimizer.LARS}


def test_a_step_counts_one():
  _, after = _train(_no_loss, _MOMENTUM, start_step=2)
  assert after['global_step'] == 3


@pytest.mark.parametrize(
  'number, step, rate', [(1, 0, 0.0), (1, 1, 0.25), (1, 3, 0.5), (2, 1, 0.25)]
)
def test_an_optimizer_reads_the_rate_of_the_step(number, step, rate):
  # From rest, momentum makes a first step of rate * gradient = rate * 1.
  _, after = _train(
    _encoder_kernel,
    _MOMENTUM,
    _MOMENTUM,
    number=number,
    start_step=step + 4 * (number - 1),
  )
  assert after[_KERNEL] == 4.0 - rate


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
  _, after = _train(
    _encoder_kernel,
    _LARS,
    _LARS,
    number=number,
    start_step=step + 4 * (number - 1),
  )
  np.testing.assert_allclose(4.0 - after[_KERNEL], rate * 0.004, atol=5e-7)


def test_lars_decays_what_is_switched_on():
  # The gradient is 0, so only decay moves: g = 0.25 * w, trust ratio
  # 0.001 * |w| / |0.25 * w| = 0.004, step rate * 0.004 * 0.25 * w, and rate is
  # 0.25 at the step after the first.
  stage_1 = {
    **_LARS,
    'weight_decay': 0.25,
    'use_encoder_weight_decay': True,
    'use_projection_head_weight_decay': False,
    'use_classification_head_weight_decay': True,
  }
  decayed = {_KERNEL, 'Model/ClassificationHead/kernel'}
  biases = {_BIAS, 'Model/ClassificationHead/bias'}
  for include_bias in (False, True):
    before, after = _train(_no_loss, stage_1, include_bias=include_bias)
    moved = {name for name in before if before[name] != after[name]}
    expected = decayed | biases if include_bias else decayed
    assert {name for name in moved if 'LARS' not in name} == (
      expected | {'global_step', _MOVING_MEAN, _MOVING_VARIANCE}
    )
    for name in expected:
      np.testing.assert_allclose(
        after[name], before[name] * (1 - 0.25 * 0.001), rtol=1e-6
      )


def test_variables_that_the_loss_does_not_reach_get_a_gradient_of_zero():
  # RMSProp's mean square, 1 at first, then decays by 0.9 a step.
  _, after = _train(_encoder_kernel, _RMSPROP, num_steps=3)
  slot = 'RMSPropOptimizer_stage1'
  np.testing.assert_allclose(after[f'{_BIAS}/{slot}'], 0.9**3, rtol=1e-6)
  np.testing.assert_allclose(after[f'{_GAMMA}/{slot}'], [0.9**3], rtol=1e-6)
  assert after[_BIAS] == 2.0
  # Its own gradient of 1 keeps it at 0.9 * 1 + 0.1 * 1^2 = 1.
  np.testing.assert_allclose(after[f'{_KERNEL}/{slot}'], 1.0, rtol=1e-6)


def test_a_velocity_goes_on_without_a_gradient():
  # v' = 0.9 * 2 = 1.8 at a rate of 0.5: the bias goes from 2 to 1.1.
  slot = f'{_BIAS}/MomentumOptimizer_stage1'
  _, after = _train(
    _encoder_kernel, _MOMENTUM, start_step=2, start_values={slot: 2.0}
  )
  np.testing.assert_allclose(after[slot], 1.8, rtol=1e-6)
  np.testing.assert_allclose(after[_BIAS], 1.1, rtol=1e-6)


def test_the_slots_of_the_other_stage_rest():
  slots = {
    f'{_KERNEL}/MomentumOptimizer_stage1': 2.0,
    f'{_KERNEL}/MomentumOptimizer_stage2': 3.0,
  }
  for number, expected in ((1, [0.9 * 2 + 1, 3]), (2, [2, 0.9 * 3 + 1])):
    _, after = _train(
      _encoder_kernel,
      _MOMENTUM,
      _MOMENTUM,
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
  mine, other = {**_MOMENTUM, flag: is_on}, {**_MOMENTUM, flag: not is_on}
  _, after = _train(
    lambda model, projection, logits: tf.reduce_sum(projection),
    *((mine, other) if number == 1 else (other, mine)),
    number=number,
    start_step=4 * (number - 1),
  )
  # 0 + 0.1 * (10 - 0), 1 + 0.1 * (16 - 1).
  expected = [[1.0], [2.5]] if is_on else [[0.0], [1.0]]
  np.testing.assert_allclose(
    [after[_MOVING_MEAN], after[_MOVING_VARIANCE]], expected, rtol=1e-5
  )


def test_the_classifiers_loss_leaves_the_encoder_alone():
  before, after = _train(
    lambda model, projection, logits: tf.reduce_sum(logits**2),
    {**_MOMENTUM, 'update_encoder_batch_norm': False},
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
  ('the batch statistics for', _MOVING_MEAN),
  ('the batch statistics for', _MOVING_VARIANCE),
]


def _health(loss_of, x, **changes):
  """Returns (LossParts, what is looked at, what of it is bad)."""
  stage = _stage(**_MOMENTUM, **changes)
  run = stages.plan(_params({'epochs': 4}), 4)
  with tf.Graph().as_default(), tf1.Session() as session:
    step = tf1.train.get_or_create_global_step()
    _, health = _step(loss_of, tf.constant(x), run, stage, step)
    session.run(tf1.global_variables_initializer())
    losses, report = session.run([health.losses, health.report])
    is_good = session.run(health.is_good)
  assert len(report) == 4 + len(health.subjects)
  assert set(report[4:]) <= {0, 1}
  bad = [each for each, bad in zip(health.subjects, report[4:]) if bad]
  assert is_good == (not bad)
  return losses, [*health.subjects], bad


def test_a_good_step_is_good():
  losses, subjects, bad = _health(_encoder_kernel, _X)
  assert losses == (4.0, 8.0, 12.0, 4.0)
  # Only what the loss reaches.
  assert subjects == [*_SUBJECTS[:2], *_SUBJECTS[-2:]]
  assert bad == []


def test_everything_is_looked_at():
  _, subjects, bad = _health(_of_everything, _X)
  assert (subjects, bad) == (_SUBJECTS, [])
  losses, subjects, bad = _health(_of_everything, _NAN)
  assert np.isnan(losses.total) and losses.weight_decay == 4.0
  assert (subjects, bad) == (_SUBJECTS, _SUBJECTS)


def test_a_gradient_is_looked_at_where_the_loss_is_finite():
  losses, _, bad = _health(_of_a_root, _X)
  assert losses.total == 0
  assert bad == [('the gradients of', 'Model/Encoder/kernel')]


def test_statistics_are_looked_at_if_they_move():
  _, subjects, bad = _health(_no_loss, _NAN)
  assert subjects == [_SUBJECTS[0], *_SUBJECTS[-2:]]
  assert bad == _SUBJECTS[-2:]
  assert _health(_no_loss, _HUGE)[-1] == _SUBJECTS[-1:]
  _, subjects, bad = _health(_no_loss, _NAN, update_encoder_batch_norm=False)
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
  before, one, still, still_one, two = _states(
    [_X, _NAN, _HUGE, _X], _of_everything, stage, stage, start_step=1
  )
  _assert_same_bits(still, one)
  _assert_same_bits(still_one, one)
  # While a good one changes everything.
  steps = [state['global_step'] for state in (before, one, two)]
  assert steps == [1, 2, 3]
  for _, name in _SUBJECTS[1:]:
    assert one[name] != two[name], name


def test_an_infinite_gradient_changes_nothing():
  before, after = _train(_of_a_root, _MOMENTUM, start_step=2, num_steps=2)
  _assert_same_bits(after, before)


@pytest.mark.parametrize('bad_replica', [None, 0, 1, 2])
def test_one_bad_replica_holds_all(bad_replica):
  count = 3
  params = _params({**_WARM_UP, **_MOMENTUM}, batch_size=256)
  run = stages.plan(params, 256)

  def build():
    step = tf1.train.get_or_create_global_step()
    factor = np.nan if replicas.replica_id() == bad_replica else 1.0
    train_op, health = _step(
      lambda *args: factor * _of_everything(*args),
      tf.constant(_X),
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
    subjects = (stages.Subject('the loss', ''),)
    since, memory, kept = stages.first_bad(stages.Health(subjects, report))
    assert tf1.global_variables() == []  # It is in no checkpoint.
    session.run(tf1.local_variables_initializer())
    found = []
    for total, bad in reports:
      feed = {report: [total, 1, 2, 3, bad]}
      is_good, losses, _ = session.run(
        [since.is_good, since.losses, kept], feed
      )
      found.append((is_good, losses.total))
    assert found == [(True, 5), (True, 6), (False, 7), (False, 7), (False, 7)]
    np.testing.assert_array_equal(session.run(memory), [7, 1, 2, 3, 1])


# --- Slots --------------------------------------------------------------------


@pytest.mark.parametrize(
  'first, second',
  [
    *((choice, choice) for choice in enums.Optimizer),
    (enums.Optimizer.LARS, enums.Optimizer.RMSPROP),
    (enums.Optimizer.ADAM, enums.Optimizer.NESTEROV),
  ],
)
def test_both_stages_make_the_slots_of_both(first, second):
  optimizers = {'optimizer': first}, {'optimizer': second}
  in_1, in_2 = (
    list(_train(_no_loss, *optimizers, number=number, num_steps=0)[0])
    for number in (1, 2)
  )
  assert in_1 == in_2
  per_kernel = {  # Slots that an optimizer makes of a variable.
    enums.Optimizer.RMSPROP: 2,
    enums.Optimizer.MOMENTUM: 1,
    enums.Optimizer.LARS: 1,
    enums.Optimizer.ADAM: 2,
    enums.Optimizer.NESTEROV: 1,
  }
  slots = [name for name in in_1 if name.startswith(f'{_KERNEL}/')]
  assert len(slots) == per_kernel[first] + per_kernel[second]


@pytest.mark.parametrize(
  'number, slots', [(1, {'Adam', 'Adam_1'}), (2, {'Adam_2', 'Adam_3'})]
)
def test_stage_1_has_the_first_of_equal_names(number, slots):
  # The names of Adam's slots do not say the stage, only their order does.
  adam = {'optimizer': enums.Optimizer.ADAM}
  before, after = _train(
    _encoder_kernel, adam, adam, number=number, start_step=4 * (number - 1)
  )
  moved = {
    name.rpartition('/')[-1]
    for name in before
    if name.startswith(f'{_KERNEL}/') and before[name] != after[name]
  }
  assert moved == slots


def _listings():
  """Returns the scripts for which all tensors of a checkpoint are listed."""
  prefix = 'training_checkpoint_'
  found = golden.path('variables').glob(f'{prefix}*.tsv')
  return sorted(listing.stem[len(prefix) :] for listing in found)


@pytest.mark.parametrize('script', _listings())
def test_variables_of_a_published_training_checkpoint(script):
  listing = golden.path(f'variables/training_checkpoint_{script}.tsv')
  rows = [line.split('\t') for line in listing.read_text().splitlines()[1:]]
  published = {
    (name, tuple(int(size) for size in shape.split(',') if size), flag == '1')
    for _, name, shape, _, flag in rows
  }
  num_classes = next(
    shape[-1]
    for name, shape, _ in published
    if name == 'ContrastiveModel/ClassificationHead/dense/kernel'
  )
  flags = golden.json('scripts.json')['scripts'][script]['flags']
  _, params = flag_parsing.parse([f'--{k}={v}' for k, v in flags.items()])
  run = stages.plan(params, 10 * params.batch_size)
  function = model_functions.make(
    params,
    run,
    run.stages[0],
    num_classes,
  )
  side = params.input_data.preprocessing.image_size
  with tf.Graph().as_default():
    features = {
      'images': tf.zeros([2, 2, side, side, 3]),
      'blur_sigmas': tf.zeros([2, 2]),
    }
    function.train(features, tf.constant([0, 1]))
    ours = {
      (v.op.name, tuple(v.shape), v.trainable) for v in tf1.global_variables()
    }
  assert ours == published


# --- Slots of what no loss reaches --------------------------------------------


@pytest.mark.parametrize('stops_projection', [False, True])
@pytest.mark.parametrize('stops_classifier', [False, True])
def test_unreached_slots_are_those_without_a_gradient(
  stops_projection, stops_classifier
):
  # Stage 1 decays the encoder alone; stage 2 decays inside the optimizer.
  params = _params(
    {
      'optimizer': enums.Optimizer.MOMENTUM,
      'weight_decay': 0.1,
      'use_encoder_weight_decay': True,
      'use_projection_head_weight_decay': False,
      'cross_entropy_loss_weight': 0.0,
    },
    {
      'optimizer': enums.Optimizer.LARS,
      'weight_decay': 0.1,
      'contrastive_loss_weight': 0.0,
      'cross_entropy_loss_weight': 1.0,
    },
  )
  architecture = dataclasses.replace(
    params.architecture,
    encoder_depth=18,
    encoder_width=1 / 16,
    stop_gradient_before_projection_head=stops_projection,
    stop_gradient_before_classification_head=stops_classifier,
  )
  run = stages.plan(params, 100)
  with tf.Graph().as_default():
    model = contrastive.ContrastiveModel(architecture, 3)
    names = stages.unreached_slots(
      run, model, tf1.train.get_or_create_global_step(), True, architecture
    )
    outputs = model(tf.zeros([2, 2, 8, 8, 3]), training=True)
    expected = set()
    for stage, loss, slot in zip(
      run.stages,
      (outputs.projection, outputs.logits),
      ('MomentumOptimizer_stage1', 'LARSOptimizer_stage2/Momentum'),
    ):
      total = tf.reduce_sum(loss)
      total += stages.weight_decay_loss(stage, model, include_bias=True)
      gradients = stages.gradients(model, total)
      expected |= {
        f'{variable.op.name}/{slot}'
        for variable, gradient in zip(model.trainable_variables, gradients)
        if gradient is None
      }
  assert names == expected
  kernel = 'ContrastiveModel/Encoder/Conv2DFixedPadding/conv2d/kernel'
  assert f'{kernel}/MomentumOptimizer_stage1' not in names  # It decays.
  in_2 = f'{kernel}/LARSOptimizer_stage2/Momentum'
  assert (in_2 in names) == stops_classifier
