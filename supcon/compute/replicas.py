"""The number of replicas, and the operations that they do together.

This is the only module that knows about replicas. Losses and models refer to
the global batch through these functions; on one device the functions return 1,
0 and their argument.

Replicas are the cores of a TPU, within a model_fn of TPUEstimator, or those of
a synchronous tf.distribute strategy, in graph mode. They run the same program
and share a global batch, in the order of their ids. The mean of their losses is
minimised, so a gradient that arrives in one replica comes from all of them: the
gradient of `sum` is the sum of all replicas' gradients, and so on.
"""

import tensorflow as tf
from tensorflow.compiler.tf2xla.python import xla
from tensorflow.compiler.xla import xla_data_pb2
from tensorflow.python.tpu import tpu_function
from tensorflow.python.tpu.ops import tpu_ops


def num_replicas():
  """Returns the number of replicas that share a global batch, an int."""
  if _is_on_tpu():
    return tpu_function.get_tpu_context().number_of_shards
  return tf.distribute.get_strategy().num_replicas_in_sync


def replica_id():
  """Returns the id of this replica, from 0: an int; on TPU an int32 scalar."""
  if num_replicas() == 1:
    return 0
  if _is_on_tpu():
    # tf.distribute would return 0 on every core here.
    return xla.replica_id()
  return int(tf.get_static_value(_replica_context().replica_id_in_sync_group))


def sum(x):
  """Returns the sum of the replicas' tensors `x`, shaped like `x`.

  Args:
    x: float32 or int32; on TPU also bfloat16, elsewhere any numeric dtype.
  """
  if num_replicas() == 1:
    return x
  if _is_on_tpu():
    return tpu_ops.cross_replica_sum(x)
  return _strategy_sum(x)


def mean(x):
  """Returns the mean of the replicas' float tensors `x`, shaped like `x`."""
  if num_replicas() == 1:
    return x
  return sum(x) / num_replicas()


def gather(x):
  """Concatenates the replicas' tensors in the order of their ids.

  Args:
    x: Tensor [n, ...], numeric or bool; the shape is static, and the same on
      every replica.

  Returns:
    Tensor [num_replicas * n, ...]. Its gradient reaches every replica's `x`.
  """
  if num_replicas() == 1:
    return x
  x = tf.convert_to_tensor(x)
  if x.dtype == tf.bool:
    return tf.cast(gather(tf.cast(x, tf.int32)), tf.bool)
  count = num_replicas()
  if _is_on_tpu():
    # Each core gets a copy. This moves half the bytes of a sum of zero-padded
    # blocks, and it is differentiable.
    copies = tf.tile(x, [count] + [1] * (x.shape.rank - 1))
    return tpu_ops.all_to_all(
      copies, concat_dimension=0, split_dimension=0, split_count=count
    )
  is_mine = tf.reshape(
    tf.equal(tf.range(count), replica_id()), [count] + [1] * x.shape.rank
  )
  # Not a product with 0 or 1, which would spread NaN over all blocks.
  blocks = tf.where(is_mine, x[tf.newaxis], tf.zeros([], x.dtype))
  return sum(tf.reshape(blocks, [-1, *x.shape[1:]]))


def exact_matmul(a, b, transpose_a=False, transpose_b=False):
  """Returns a b in full float32 precision on every platform.

  By default, a TPU multiplies float32 matrices in bfloat16, and then also
  exchanges features between its cores in bfloat16. A recent GPU rounds the
  factors to the 11 bits of TF32.

  Args:
    a: float32 [A, D]; [D, A] if transposed.
    b: float32 [D, B]; [B, D] if transposed.
    transpose_a: Whether to transpose `a` before multiplication.
    transpose_b: Whether to transpose `b` before multiplication.

  Returns:
    float32 [A, B]. Not differentiable: XlaDot and bit operations have no
    gradient.
  """
  if _is_on_tpu():
    multiply = _product_on_tpu
  elif a.dtype == tf.float32 and _rounds_to_tf32():
    multiply = _product_in_tf32
  else:
    multiply = tf.matmul
  return multiply(a, b, transpose_a=transpose_a, transpose_b=transpose_b)


def apply_mean_gradients(optimizer, gradients_and_variables, global_step):
  """Updates variables on all replicas by the mean of their gradients.

  Args:
    optimizer: tf.compat.v1.train.Optimizer.
    gradients_and_variables: Pairs of a dense gradient of this replica's loss,
      and a variable.
    global_step: Variable to increment.

  Returns:
    The op.
  """
  count = num_replicas()
  if count > 1:
    # Under a strategy, apply_gradients itself computes the sum.
    total = sum if _is_on_tpu() else tf.identity
    gradients_and_variables = [
      (total(gradient / count), variable)
      for gradient, variable in gradients_and_variables
    ]
  return optimizer.apply_gradients(gradients_and_variables, global_step)


def update_if(predicate, update, changed):
  """Changes variables if a predicate is true, and leaves them alone otherwise.

  Args:
    predicate: Bool scalar, the same on all replicas.
    update: Called without arguments on each replica; returns the op.
    changed: The variables that it changes.

  Returns:
    The op.
  """
  if _is_on_tpu():
    # XLA fuses the selection into the loop that updates a variable, where it
    # costs nothing. A conditional would keep the two apart.
    before = [variable.read_value() for variable in changed]
    # A single op for all of them, since every later op gets an edge from it.
    with tf.control_dependencies([tf.group(before)]):
      updated = update()
    with tf.control_dependencies([updated]):
      return tf.group(
        [
          variable.assign(
            tf.where(predicate, variable.read_value(), value), read_value=False
          )
          for variable, value in zip(changed, before)
        ]
      )
  # The same as tf.cond, which cannot be used here: replicas meet in an update,
  # and each would wait in a branch of its own.
  switch = tf.raw_ops.Switch(data=predicate, pred=predicate)
  with tf.control_dependencies([tf.identity(switch.output_true)]):
    updated = update()
  with tf.control_dependencies([updated]):
    done = tf.identity(switch.output_true)
  return tf.raw_ops.Merge(inputs=[done, switch.output_false]).output.op


def once(function):
  """Calls a function once for all replicas of a tf.distribute strategy.

  In the function, variables represent all replicas, under the names that they
  have in a checkpoint. Without a strategy the function is simply called.

  Args:
    function: Called without arguments.

  Returns:
    The result of the function.
  """
  call = tf.autograph.experimental.do_not_convert(lambda _: function())
  return _replica_context().merge_call(call)


def _is_on_tpu():
  return tpu_function.get_tpu_context().number_of_shards is not None


def _replica_context():
  context = tf.distribute.get_replica_context()
  if context is None:
    raise ValueError(
      'Found the scope of a tf.distribute strategy, expected to be inside one '
      'of its replicas; call this in the function given to strategy.run, or '
      'in a model_fn.'
    )
  return context


def _strategy_sum(x):
  """Sum over the replicas of a tf.distribute strategy, differentiable.

  ReplicaContext.all_reduce does not work in graph mode: there tf.gradients, on
  its way from one replica to its variables, finds those of other replicas.
  """

  def on_all(strategy, values):
    (total,) = strategy.extended.batch_reduce_to(
      tf.distribute.ReduceOp.SUM, [(values, values)]
    )
    return total

  @tf.custom_gradient
  def total(x):
    # The barrier keeps custom_gradient's graph walk out of other replicas.
    reduced = tf.stop_gradient(_replica_context().merge_call(on_all, args=(x,)))
    return reduced, _strategy_sum

  return total(x)


def _product_on_tpu(a, b, transpose_a, transpose_b):
  """Multiplies at the highest precision."""
  dimensions = xla_data_pb2.DotDimensionNumbers(
    lhs_contracting_dimensions=[int(not transpose_a)],
    rhs_contracting_dimensions=[int(transpose_b)],
  )
  highest = xla_data_pb2.PrecisionConfig.HIGHEST
  precision = xla_data_pb2.PrecisionConfig(operand_precision=[highest] * 2)
  return xla.dot_general(a, b, dimensions, precision)


def _rounds_to_tf32():
  """Whether TensorFlow may multiply float32 matrices in TF32."""
  return bool(
    tf.config.list_physical_devices('GPU')
    and tf.config.experimental.tensor_float_32_execution_enabled()
  )


def _product_in_tf32(a, b, **transpose):
  """Multiplies with errors of about 2^-21.

  The switch for TF32 affects the whole program, and convolutions should use
  TF32. So each number is split into its TF32 part and a remainder, and only the
  product of the two remainders, at most 2^-22 of the whole, is left out.
  """
  (a, a_rest), (b, b_rest) = map(_split_for_tf32, (a, b))
  return (
    tf.matmul(a_rest, b, **transpose)
    + tf.matmul(a, b_rest, **transpose)
    + tf.matmul(a, b, **transpose)
  )


def _split_for_tf32(x):
  """Returns the first 11 bits of each number, and the remainder."""
  bits = tf.bitwise.bitwise_and(tf.bitcast(x, tf.int32), ~0x1FFF)
  first = tf.bitcast(bits, tf.float32)
  return first, x - first
