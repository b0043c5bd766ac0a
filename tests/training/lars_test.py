"""Tests of supcon.training.lars.

The trajectories of the published optimizer are in optimizers_test.py.
"""

import numpy as np
import pytest
import tensorflow as tf

from supcon.training import lars

tf1 = tf.compat.v1


def _update(weight, gradient, velocity, learning_rate=1.0, **changes):
  """Returns `lars_update` as NumPy arrays; `changes` is what a test varies."""
  arguments = dict(
    momentum=0.5,
    weight_decay=0.0,
    eta=0.1,
    classic_momentum=True,
    use_nesterov=False,
    adapt=True,
  )
  arguments.update(changes)
  with tf.Graph().as_default(), tf1.Session() as session:
    return session.run(
      lars.lars_update(
        tf.constant(weight, tf.float64),
        tf.constant(gradient, tf.float64),
        tf.constant(velocity, tf.float64),
        tf.constant(learning_rate, tf.float64),
        **arguments,
      )
    )


def _check(actual, weight, velocity):
  np.testing.assert_allclose(actual[0], weight, rtol=1e-12)
  np.testing.assert_allclose(actual[1], velocity, rtol=1e-12)


# The update, by hand. The weight (3, 4) has norm 5; with eta = 0.1, a direction
# of norm 1 has the trust ratio 0.1 * 5 / 1 = 0.5, one of norm 2 has 0.25.


def test_classic_momentum():
  # v' = 0.5 * (2, 2) + 1 * 0.5 * (0, 1) = (1, 1.5); w' = (3, 4) - v'.
  _check(_update([3, 4], [0, 1], [2, 2]), [2, 2.5], [1, 1.5])


def test_classic_momentum_with_nesterov():
  # v' = (1, 1.5) as above; step = 0.5 * v' + 0.5 * (0, 1) = (0.5, 1.25).
  _check(
    _update([3, 4], [0, 1], [2, 2], use_nesterov=True), [2.5, 2.75], [1, 1.5]
  )


def test_plain_momentum():
  # v' = 0.5 * (2, 0) + (0, 1) = (1, 1). Adapted to v' of norm sqrt(2):
  # w' = (3, 4) - 0.1 * 5 / sqrt(2) * (1, 1).
  step = 0.5 / np.sqrt(2)
  _check(
    _update([3, 4], [0, 1], [2, 0], classic_momentum=False),
    [3 - step, 4 - step],
    [1, 1],
  )


def test_plain_momentum_with_nesterov():
  # v' = 0.5 * (2, -3) + (0, 1) = (1, -0.5); the direction is
  # 0.5 * v' + (0, 1) = (0.5, 0.75), of norm sqrt(0.8125), and w' = (3, 4)
  # - 0.1 * 5 / sqrt(0.8125) * (0.5, 0.75).
  ratio = 0.5 / np.sqrt(0.8125)
  _check(
    _update([3, 4], [0, 1], [2, -3], classic_momentum=False, use_nesterov=True),
    [3 - 0.5 * ratio, 4 - 0.75 * ratio],
    [1, -0.5],
  )


def test_weight_decay_enters_the_trust_ratio():
  # g = (-1.5, 0) + 0.5 * (3, 4) = (0, 2), of norm 2: ratio 0.25,
  # v' = 0.25 * (0, 2) = (0, 0.5).
  _check(
    _update([3, 4], [-1.5, 0], [0, 0], weight_decay=0.5), [3, 3.5], [0, 0.5]
  )


def test_without_adaptation_it_is_momentum():
  # v' = 0.5 * (2, 2) + 0.1 * (0, 1) = (1, 1.1).
  _check(
    _update([3, 4], [0, 1], [2, 2], learning_rate=0.1, adapt=False),
    [2, 2.9],
    [1, 1.1],
  )


@pytest.mark.parametrize('classic_momentum', [True, False])
def test_a_zero_weight_moves_by_the_plain_rate(classic_momentum):
  # The ratio is 1: w' = -0.1 * (0, 1).
  weight, _ = _update(
    [0, 0], [0, 1], [0, 0], 0.1, classic_momentum=classic_momentum
  )
  np.testing.assert_allclose(weight, [0, -0.1])


@pytest.mark.parametrize('use_nesterov', [True, False])
@pytest.mark.parametrize('classic_momentum', [True, False])
def test_a_zero_gradient_at_rest_stays(classic_momentum, use_nesterov):
  actual = _update(
    [3, 4],
    [0, 0],
    [0, 0],
    classic_momentum=classic_momentum,
    use_nesterov=use_nesterov,
  )
  _check(actual, [3, 4], [0, 0])


def test_a_zero_gradient_lets_the_velocity_fade():
  # v' = 0.5 * (2, 2); w' = (3, 4) - (1, 1).
  _check(_update([3, 4], [0, 0], [2, 2]), [2, 3], [1, 1])


@pytest.mark.parametrize('scale', [1e-3, 1e3])
def test_the_step_does_not_depend_on_the_scale_of_the_gradient(scale):
  _check(_update([3, 4], [0, scale], [2, 2]), [2, 2.5], [1, 1.5])


# The optimizer.


def _variables(**values):
  return [
    tf1.get_variable(
      name, initializer=np.asarray(value, np.float32), use_resource=True
    )
    for name, value in values.items()
  ]


def test_three_steps():
  # One weight, eta 0.1, momentum 0.5, rate 1, no decay: each step is 0.1 * |w|
  # against the gradient, whatever its size.
  #   step 1, w = 8:    v = 0 + 0.1 * 8 = 0.8             w = 7.2
  #   step 2, w = 7.2:  v = 0.5 * 0.8 + 0.72 = 1.12       w = 6.08
  #   step 3, w = 6.08: v = 0.5 * 1.12 - 0.608 = -0.048   w = 6.128
  with tf.Graph().as_default(), tf1.Session() as session:
    (weight,) = _variables(w=[8.0])
    gradient = tf1.placeholder(tf.float32, [1])
    global_step = tf1.train.get_or_create_global_step()
    optimizer = lars.LARSOptimizer(1.0, weight_decay=0.0, momentum=0.5, eta=0.1)
    train_op = optimizer.apply_gradients([(gradient, weight)], global_step)
    velocity = optimizer.get_slot(weight, 'momentum')
    session.run(tf1.global_variables_initializer())
    trajectory = []
    for value in (3.0, 0.01, -5.0):
      session.run(train_op, {gradient: [value]})
      trajectory.append([x[0] for x in session.run([weight, velocity])])
    assert session.run(global_step) == 3
  np.testing.assert_allclose(
    trajectory, [[7.2, 0.8], [6.08, 1.12], [6.128, -0.048]], rtol=1e-5
  )


def _one_step(exclusions):
  """Returns kernel and bias after a step from (3, 4) with gradient (0, 1).

  Weight decay 1 makes g = (3, 5), and plain is what neither decays nor adapts.
  """
  with tf.Graph().as_default(), tf1.Session() as session:
    kernel, bias = _variables(kernel=[3, 4], bias=[3, 4])
    named = {'kernel': kernel, 'bias': bias}
    optimizer = lars.LARSOptimizer(
      1.0,
      weight_decay=1.0,
      eta=0.1,
      **{
        key: [named[name] for name in names]
        for key, names in exclusions.items()
      },
    )
    train_op = optimizer.apply_gradients(
      [(tf.constant([0.0, 1.0]), v) for v in (kernel, bias)]
    )
    session.run(tf1.global_variables_initializer())
    session.run(train_op)
    return session.run([kernel, bias])


_RATIO = 0.5 / np.sqrt(3**2 + 5**2)
_DECAYED_ADAPTED = [3 - 3 * _RATIO, 4 - 5 * _RATIO]
_DECAYED = [3 - 3, 4 - 5]
_ADAPTED = [3, 4 - 0.5]
_PLAIN = [3, 4 - 1]


@pytest.mark.parametrize(
  'exclusions, kernel, bias',
  [
    ({}, _DECAYED_ADAPTED, _DECAYED_ADAPTED),
    # Excluded from decay is, if nothing else is said, from adaptation too.
    ({'exclude_from_weight_decay': ['bias']}, _DECAYED_ADAPTED, _PLAIN),
    (
      {
        'exclude_from_weight_decay': ['bias'],
        'exclude_from_layer_adaptation': ['kernel'],
      },
      _DECAYED,
      _ADAPTED,
    ),
    (
      {
        'exclude_from_weight_decay': ['bias'],
        'exclude_from_layer_adaptation': [],
      },
      _DECAYED_ADAPTED,
      _ADAPTED,
    ),
  ],
)
def test_exclusions_name_variables(exclusions, kernel, bias):
  actual = _one_step(exclusions)
  np.testing.assert_allclose(actual[0], kernel, rtol=1e-6)
  np.testing.assert_allclose(actual[1], bias, rtol=1e-6)


def test_slot_is_named_after_the_variable_and_the_optimizer():
  with tf.Graph().as_default():
    (weight,) = _variables(**{'head/dense/kernel': [1.0]})
    optimizer = lars.LARSOptimizer(1.0, weight_decay=0.0, name='LARS_a')
    optimizer.apply_gradients([(tf.ones([1]), weight)])
    slot = optimizer.get_slot(weight, 'momentum')
    assert slot.op.name == 'head/dense/kernel/LARS_a/Momentum'
    assert slot not in tf1.trainable_variables()
    assert optimizer.get_slot_names() == ['momentum']


def test_a_sparse_gradient_is_an_error():
  with tf.Graph().as_default():
    (table,) = _variables(table=np.ones([4, 2]))
    loss = tf.reduce_sum(tf.gather(table, [1, 3]))
    optimizer = lars.LARSOptimizer(1.0, weight_decay=0.0)
    with pytest.raises(ValueError, match='gradient of table:0 is sparse'):
      optimizer.minimize(loss)
