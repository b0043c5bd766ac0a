"""Builds the graphs of TPUEstimator(use_tpu=True) without a TPU or a network.

The estimator is told of a cluster that does not exist, and stopped at the point
where it would connect to it.
"""

from collections.abc import Iterator
import contextlib
import os
import tempfile
from unittest import mock

import tensorflow as tf
from tensorflow.python.tpu import tpu_system_metadata

from supcon.compute import tpu_estimator

tf1 = tf.compat.v1

CORES_PER_HOST = 4


class Cluster(tf.distribute.cluster_resolver.ClusterResolver):
  """Hosts at addresses that nobody calls."""

  task_type = None
  task_id = None
  environment = 'google'
  rpc_layer = 'grpc'

  def __init__(self, num_hosts):
    self._hosts = [f'10.0.0.{host + 1}:8470' for host in range(num_hosts)]

  def cluster_spec(self):
    return tf.train.ClusterSpec({'worker': self._hosts})

  def master(self, task_type=None, task_id=None, rpc_layer=None):
    return f'grpc://{self._hosts[0]}'

  def get_master(self):
    return self.master()

  def get_job_name(self):
    return 'worker'

  def num_accelerators(self, task_type=None, task_id=None, config_proto=None):
    return {'TPU': CORES_PER_HOST}


class _Built(Exception):
  """The graph is there; nothing of it is to be run."""


@contextlib.contextmanager
def no_tpu(num_cores: int) -> Iterator[None]:
  """Lets TPUEstimator believe in a `Cluster` with this many cores."""
  with (
    mock.patch.object(
      tpu_system_metadata, '_query_tpu_system_metadata', _metadata(num_cores)
    ),
    mock.patch.dict(os.environ),
  ):
    tpu_estimator.check_tpu()
    yield


def training_graph(model_fn, input_fn, num_cores, batch_size, steps):
  """Returns the tf.Graph of `steps` training steps in one loop on the TPU.

  Args:
    model_fn: As for TPUEstimator.
    input_fn: Likewise; called for each host, with the batch size of one core.
    num_cores: 1, or a multiple of 4.
    batch_size: Of all cores together.
    steps: Int.
  """
  return _graph(
    lambda estimator: estimator.train(input_fn, steps=steps),
    '_train_with_estimator_spec',
    model_fn,
    num_cores,
    batch_size,
    steps,
  )


def evaluation_graph(model_fn, input_fn, num_cores, batch_size, steps):
  """Like `training_graph`, of an evaluation."""
  return _graph(
    lambda estimator: estimator.evaluate(input_fn, steps=steps),
    '_evaluate_run',
    model_fn,
    num_cores,
    batch_size,
    steps,
  )


def _graph(start, last_call, model_fn, num_cores, batch_size, steps):
  built = []

  def stop(*args, **kwargs):
    del args, kwargs
    built.append(tf1.get_default_graph())
    raise _Built

  with (
    no_tpu(num_cores),
    mock.patch.object(tpu_estimator.Estimator, last_call, stop),
    tempfile.TemporaryDirectory() as model_dir,
  ):
    estimator = _estimator(model_fn, num_cores, batch_size, steps, model_dir)
    try:
      start(estimator)
    except _Built:
      pass
  return built[0]


def _estimator(model_fn, num_cores, batch_size, steps, model_dir):
  per_host_v2 = tpu_estimator.InputPipelineConfig.PER_HOST_V2
  config = tpu_estimator.RunConfig(
    cluster=Cluster(max(num_cores // CORES_PER_HOST, 1)),
    model_dir=model_dir,
    tf_random_seed=1,
    tpu_config=tpu_estimator.TPUConfig(
      iterations_per_loop=steps,
      num_shards=num_cores,
      per_host_input_for_training=per_host_v2,
    ),
  )
  return tpu_estimator.TPUEstimator(
    model_fn=model_fn,
    config=config,
    use_tpu=True,
    train_batch_size=batch_size,
    eval_batch_size=batch_size,
  )


def _metadata(num_cores):
  """Returns what takes the place of the question which devices there are."""
  per_host = min(num_cores, CORES_PER_HOST)

  def query(master, cluster_def=None, query_topology=False):
    del master, cluster_def, query_topology
    return tf.tpu.experimental.TPUSystemMetadata(
      num_cores=num_cores,
      num_hosts=num_cores // per_host,
      num_of_cores_per_host=per_host,
      topology=None,
      devices=(),  # TPUEstimator only shows them.
    )

  return query
