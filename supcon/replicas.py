"""How many replicas there are, and what they do together.

The only module that knows. Losses and models speak of the global batch through
these functions; on one device they are 1, 0 and the identity.

So far one replica is all that is supported. On several every function raises,
because a loss that silently turns local is worse than none.
"""

import tensorflow as tf
from tensorflow.python.tpu import tpu_function


def num_replicas():
  """Returns the number of replicas that share a global batch, an int.

  Raises:
    NotImplementedError: If there are several, here and in all functions below.
  """
  _require_one_replica()
  return 1


def replica_id():
  """Returns which replica this is, from 0: an int or an int32 scalar."""
  _require_one_replica()
  return 0


def sum(x):
  """Returns the sum of the replicas' tensors `x`, shaped like `x`."""
  _require_one_replica()
  return x


def mean(x):
  """Returns the mean of the replicas' tensors `x`, shaped like `x`."""
  _require_one_replica()
  return x


def gather(x):
  """Concatenates the replicas' tensors in the order of their ids.

  Args:
    x: Tensor [n, ...] of any dtype; n is the same on every replica.

  Returns:
    Tensor [num_replicas * n, ...]. Its gradient reaches every replica's `x`.
  """
  _require_one_replica()
  return x


def _require_one_replica():
  tpu_shards = tpu_function.get_tpu_context().number_of_shards or 1
  in_sync = tf.distribute.get_strategy().num_replicas_in_sync
  found = max(tpu_shards, in_sync)
  if found > 1:
    raise NotImplementedError(
      f'Found {found} replicas, but only one is supported so far; train on '
      'one TPU core, or on one GPU or CPU without a tf.distribute strategy.'
    )
