"""Tests of `replicas`: one replica works, several are refused aloud."""

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.tpu import tpu_function

from supcon import losses
from supcon import replicas

_CALLS = {
  'num_replicas': replicas.num_replicas,
  'replica_id': replicas.replica_id,
  'sum': lambda: replicas.sum(tf.ones([2])),
  'mean': lambda: replicas.mean(tf.ones([2])),
  'gather': lambda: replicas.gather(tf.ones([2])),
  'contrastive_loss': lambda: losses.contrastive_loss(tf.ones([2, 2, 2])),
}


def _assert_identities():
  assert replicas.num_replicas() == 1
  assert replicas.replica_id() == 0
  x = np.arange(6).reshape([2, 3])
  for function in [replicas.sum, replicas.mean, replicas.gather]:
    np.testing.assert_array_equal(function(x), x)


def test_one_device():
  _assert_identities()


def test_one_tpu_shard():
  with tpu_function.tpu_shard_context(1):
    _assert_identities()


def test_one_device_strategy():
  with tf.distribute.OneDeviceStrategy('/cpu:0').scope():
    _assert_identities()


def test_gather_lets_gradients_through():
  x = tf.constant([1.0, 2.0])
  with tf.GradientTape() as tape:
    tape.watch(x)
    y = tf.reduce_sum(replicas.gather(x) ** 2)
  np.testing.assert_array_equal(tape.gradient(y, x), [2, 4])


@pytest.mark.parametrize('name', _CALLS)
def test_several_tpu_shards_raise(name):
  with tpu_function.tpu_shard_context(8):
    with pytest.raises(NotImplementedError, match='Found 8 replicas') as error:
      _CALLS[name]()
  assert '\n' not in str(error.value)


@pytest.mark.parametrize('name', _CALLS)
def test_several_replicas_in_sync_raise(name):
  with tf.Graph().as_default():
    strategy = tf.distribute.MirroredStrategy(['/cpu:0', '/cpu:1'])
    with strategy.scope():
      with pytest.raises(NotImplementedError, match='Found 2 replicas'):
        _CALLS[name]()
