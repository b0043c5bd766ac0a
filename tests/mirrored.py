"""Runs a function on several replicas: virtual CPU devices of one process."""

import tensorflow as tf

tf1 = tf.compat.v1


def run(function, count, steps=1):
  """Builds `function` on each replica of a MirroredStrategy and runs it.

  Args:
    function: Called in graph mode, once per replica, without arguments; returns
      a structure of tensors. `replicas.replica_id()` tells the replicas apart.
    count: Number of replicas.
    steps: How often to run it, on the same variables.

  Returns:
    What each replica got in the last step: a list of structures of arrays.
  """
  devices = [f'/cpu:{index}' for index in range(count)]
  config = tf1.ConfigProto(device_count={'CPU': count})
  with tf.Graph().as_default(), tf1.Session(config=config) as session:
    strategy = tf.distribute.MirroredStrategy(devices)
    with strategy.scope():
      outputs = strategy.extended.call_for_each_replica(
        tf.autograph.experimental.do_not_convert(function)
      )
      fetches = [
        tf.nest.map_structure(lambda x: _of_replica(x, index), outputs)  # noqa: B023
        for index in range(count)
      ]
      session.run(tf1.global_variables_initializer())
      for _ in range(steps):
        results = session.run(fetches)
  return results


def _of_replica(value, index):
  return getattr(value, 'values', [value] * (index + 1))[index]
