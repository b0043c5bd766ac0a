"""Heads: arithmetic in NumPy, variables, initial values."""

import numpy as np
import pytest
import tensorflow as tf

from supcon.models import heads
from supcon.models import layers

tf1 = tf.compat.v1


@pytest.fixture(autouse=True)
def _graph():
  with tf.Graph().as_default():
    tf1.set_random_seed(0)
    yield


def _projection_head(sizes, use_batch_norm=False, use_batch_norm_beta=True):
  return heads.ProjectionHead(
    layers.Module(None, 'Model'),
    5,
    sizes,
    use_batch_norm,
    use_batch_norm_beta,
    synchronised=True,
  )


def _names(variables):
  return [v.op.name[len('Model/') :] for v in variables]


def _fill(session, module):
  """Gives every variable a random value; returns them by name."""
  random = np.random.RandomState(0)
  values = {}
  for v, name in zip(module.variables, _names(module.variables)):
    values[name] = random.uniform(0.5, 1.5, v.shape).astype(np.float32)
    if name.endswith('/kernel'):
      values[name] -= 1
    session.run(v.initializer, {v.initializer.inputs[1]: values[name]})
  return values


_INPUTS = np.random.RandomState(1).randn(4, 5).astype(np.float32)


def test_projection_head_equals_numpy():
  head = _projection_head([7, 6, 3])
  y = head(tf.constant(_INPUTS), training=True)
  with tf1.Session() as session:
    values = _fill(session, head)
    found = session.run(y)
  expected = _INPUTS
  for scope in ('dense', 'dense_1'):
    expected = expected @ values[f'ProjectionHead/{scope}/kernel']
    expected = np.maximum(expected + values[f'ProjectionHead/{scope}/bias'], 0)
  # The last layer has neither bias nor relu.
  expected = expected @ values['ProjectionHead/dense_2/kernel']
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
  assert len(head.biases) == 2
  assert np.any(found < 0)


@pytest.mark.parametrize('use_beta', [True, False])
@pytest.mark.parametrize('training', [True, False])
def test_projection_head_with_batch_norm_equals_numpy(training, use_beta):
  head = _projection_head([7, 3], True, use_beta)
  y = head(tf.constant(_INPUTS), training)
  with tf1.Session() as session:
    values = _fill(session, head)
    found = session.run(y)
  x = _INPUTS @ values['ProjectionHead/dense/kernel']
  norm = 'ProjectionHead/batch_normalization/'
  mean, variance = x.mean(0), x.var(0)
  if not training:
    mean = values[norm + 'moving_mean']
    variance = values[norm + 'moving_variance']
  x = (x - mean) / np.sqrt(variance + 1e-5) * values[norm + 'gamma']
  if use_beta:
    x += values[norm + 'beta']
  expected = np.maximum(x, 0) @ values['ProjectionHead/dense_1/kernel']
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
  assert (norm + 'beta' in values) == use_beta
  assert head.biases == []
  assert len(head.take_batch_statistics()) == (2 if training else 0)


def test_projection_head_of_one_layer_is_linear():
  for use_batch_norm in (True, False):
    with tf.Graph().as_default():
      head = _projection_head([3], use_batch_norm)
      assert _names(head.variables) == ['ProjectionHead/dense/kernel']


def test_projection_kernels_start_small():
  head = _projection_head([1000, 100])
  with tf1.Session() as session:
    session.run(tf1.global_variables_initializer())
    kernels, biases = session.run([head.kernels, head.biases])
  for kernel in kernels:
    assert np.std(kernel) == pytest.approx(0.01, rel=0.05)
    assert np.mean(kernel) == pytest.approx(0, abs=1e-3)
  assert not np.any(biases[0])


def test_classification_head_is_linear():
  head = heads.ClassificationHead(
    layers.Module(None, 'Model'), 5, 3, zero_initialize=False
  )
  assert _names(head.variables) == [
    'ClassificationHead/dense/kernel',
    'ClassificationHead/dense/bias',
  ]
  logits = head(tf.constant(_INPUTS), training=True)
  with tf1.Session() as session:
    kernel, bias = _fill(session, head).values()
    found = session.run(logits)
  np.testing.assert_allclose(found, _INPUTS @ kernel + bias, rtol=1e-5)


@pytest.mark.parametrize('zero_initialize', [True, False])
def test_classifier_starts_at_zero_or_glorot(zero_initialize):
  head = heads.ClassificationHead(
    layers.Module(None, 'Model'), 200, 100, zero_initialize
  )
  with tf1.Session() as session:
    session.run(tf1.global_variables_initializer())
    (kernel,), (bias,) = session.run([head.kernels, head.biases])
  assert not np.any(bias)
  # Glorot: variance 2 / (fan-in + fan-out) = 2 / 300.
  expected = 0 if zero_initialize else np.sqrt(2 / 300)
  assert np.std(kernel) == pytest.approx(expected, rel=0.05)


def test_classifier_starts_uniform():
  head = heads.ClassificationHead(
    layers.Module(None, 'Model'), 300, 200, zero_initialize=False
  )
  with tf1.Session() as session:
    session.run(tf1.global_variables_initializer())
    kernel = session.run(head.kernels[0])
  # Glorot: between -limit and limit, with a variance of 2 / (300 + 200).
  limit = np.sqrt(6 / 500)
  assert 0.999 * limit < np.abs(kernel).max() <= limit
  assert np.var(kernel) == pytest.approx(2 / 500, rel=0.02)
  # The fourth moment of a uniform distribution is 9/5 of the squared variance,
  # that of a normal one 3.
  assert np.mean(kernel**4) / np.var(kernel) ** 2 == pytest.approx(1.8, 0.03)
