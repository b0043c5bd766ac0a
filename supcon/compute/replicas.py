"""How many replicas there are, and what they do together.

The only module that knows. Losses and models speak of the global batch through
these functions; on one device they are 1, 0 and the identity.

Replicas are the cores of a TPU, inside a model_fn of TPUEstimator, or those of
a synchronous tf.distribute strategy, in graph mode. They run the same program
and share a global batch, in the order of their ids. What is minimised is the
mean of their losses, so a gradient that arrives in one replica counts for all:
the gradient of `sum` is the sum of all replicas' gradients, and so on.
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
  """Returns which replica this is, from 0: an int; on TPU an int32 scalar."""
  if num_replicas() == 1:
    return 0
  if _is_on_tpu():
    # What tf.distribute says here is 0 on every core.
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
    # To each core a copy. It moves half the bytes of a sum of zero-padded
    # blocks, and is differentiable as it is.
    copies = tf.tile(x, [count] + [1] * (x.shape.rank - 1))
    return tpu_ops.all_to_all(
      copies, concat_dimension=0, split_dimension=0, split_count=count
    )
  is_mine = tf.reshape(
    tf.equal(tf.range(count), replica_id()), [count] + [1] * x.shape.rank
  )
  # Not a product with 0 or 1, which would spread a NaN over all blocks.
  blocks = tf.where(is_mine, x[tf.newaxis], tf.zeros([], x.dtype))
  return sum(tf.reshape(blocks, [-1, *x.shape[1:]]))


def inner_products(a, b):
  """Returns a b^T in full float32 precision on every platform.

  A TPU multiplies float32 matrices in bfloat16 unless it is told otherwise, and
  would then exchange features between its cores in bfloat16 as well. A recent
  GPU rounds what it multiplies to the 11 bits of TF32.

  Args:
    a: float32 [A, D].
    b: float32 [B, D].

  Returns:
    float32 [A, B].
  """
  if _is_on_tpu():
    contract = _product_on_tpu
  elif a.dtype == tf.float32 and _rounds_to_tf32():
    contract = _product_in_tf32
  else:
    return tf.matmul(a, b, transpose_b=True)

  @tf.custom_gradient  # XlaDot has none, nor have the bits of a number.
  def product(a, b):
    def gradient(upstream):
      return contract(upstream, 1, b, 0), contract(upstream, 0, a, 0)

    return contract(a, 1, b, 1), gradient

  return product(a, b)


def apply_mean_gradients(optimizer, gradients_and_variables, global_step):
  """Updates variables alike on all replicas, by the mean of their gradients.

  Args:
    optimizer: tf.compat.v1.train.Optimizer.
    gradients_and_variables: Pairs of a dense gradient, that of this replica's
      loss, and a variable.
    global_step: Variable to increment.

  Returns:
    The op.
  """
  count = num_replicas()
  if count > 1:
    # Under a strategy, apply_gradients takes the sum itself.
    total = sum if _is_on_tpu() else tf.identity
    gradients_and_variables = [
      (total(gradient / count), variable)
      for gradient, variable in gradients_and_variables
    ]
  return optimizer.apply_gradients(gradients_and_variables, global_step)


def update_if(predicate, update, changed):
  """Changes variables where a predicate holds, and leaves them alone elsewhere.

  Args:
    predicate: Bool scalar, the same on all replicas.
    update: Called without arguments, on each replica; returns the op.
    changed: The variables that it changes.

  Returns:
    The op.
  """
  if _is_on_tpu():
    # XLA takes the choice into the loop that updates a variable: it costs
    # nothing there, whereas a conditional would keep the two apart.
    before = [variable.read_value() for variable in changed]
    # One op for all of them: every op that follows has an edge from it.
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
  # This is what tf.cond does. It cannot be called here: replicas meet in an
  # update, and would meet each in a branch of its own.
  switch = tf.raw_ops.Switch(data=predicate, pred=predicate)
  with tf.control_dependencies([tf.identity(switch.output_true)]):
    updated = update()
  with tf.control_dependencies([updated]):
    done = tf.identity(switch.output_true)
  return tf.raw_ops.Merge(inputs=[done, switch.output_false]).output.op


def once(function):
  """Calls a function once for all replicas of a tf.distribute strategy.

  There variables are whole: of all replicas, under the names that they have in
  a checkpoint. Elsewhere it is simply called.

  Args:
    function: Called without arguments.

  Returns:
    What it returns.
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

  ReplicaContext.all_reduce would do but for graph mode: there tf.gradients, on
  its way from one replica to its variables, finds those of the others.
  """

  def on_all(strategy, values):
    (total,) = strategy.extended.batch_reduce_to(
      tf.distribute.ReduceOp.SUM, [(values, values)]
    )
    return total

  @tf.custom_gradient
  def total(x):
    # The barrier keeps the walk that custom_gradient does out of the others.
    reduced = tf.stop_gradient(_replica_context().merge_call(on_all, args=(x,)))
    return reduced, _strategy_sum

  return total(x)


def _product_on_tpu(a, a_axis, b, b_axis):
  """Contracts one axis of each matrix at the highest precision there is."""
  dimensions = xla_data_pb2.DotDimensionNumbers(
    lhs_contracting_dimensions=[a_axis], rhs_contracting_dimensions=[b_axis]
  )
  highest = xla_data_pb2.PrecisionConfig.HIGHEST
  precision = xla_data_pb2.PrecisionConfig(operand_precision=[highest] * 2)
  return xla.dot_general(a, b, dimensions, precision)


def _rounds_to_tf32():
  """Whether matrices of float32 may be multiplied in TF32."""
  return bool(
    tf.config.list_physical_devices('GPU')
    and tf.config.experimental.tensor_float_32_execution_enabled()
  )


def _product_in_tf32(a, a_axis, b, b_axis):
  """Contracts one axis of each matrix, exactly to about 2^-21.

  The switch for TF32 is that of the whole program, whose convolutions want it.
  So each number is split into what TF32 keeps of it and the rest, and only the
  product of the two rests, at most 2^-22 of the whole, is left out.
  """

  def multiply(a, b):
    return tf.matmul(a, b, transpose_a=a_axis == 0, transpose_b=b_axis == 1)

  (a, a_rest), (b, b_rest) = map(_split_for_tf32, (a, b))
  return multiply(a_rest, b) + multiply(a, b_rest) + multiply(a, b)


def _split_for_tf32(x):
  """Returns the first 11 bits of each number, and what is left of it."""
  bits = tf.bitwise.bitwise_and(tf.bitcast(x, tf.int32), ~0x1FFF)
  first = tf.bitcast(bits, tf.float32)
  return first, x - first
