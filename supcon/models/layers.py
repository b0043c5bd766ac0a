"""Layers that own their variables, and the tree that they form.

A module makes all its variables when it is constructed, without any input, and
makes only ops when it is called. So it can be called several times, and the
names and shapes of a model are known before anything is computed. The names are
those of the published checkpoints.

Activations are NHWC, float32 or bfloat16. Variables are always float32.
"""

import collections
from collections.abc import Iterable
from collections.abc import Mapping
import contextlib
import contextvars
import enum
from typing import NamedTuple

import tensorflow as tf
from tensorflow.python.tpu import tpu_function
from tensorflow.python.util import _pywrap_util_port

from supcon.compute import replicas

tf1 = tf.compat.v1

_MOVING_AVERAGE_MOMENTUM = 0.9
_EPSILON = 1e-5


class Role(enum.Enum):
  """The role of a variable, which weight decay and LARS depend on."""

  KERNEL = 'kernel'
  BIAS = 'bias'
  BATCH_NORM = 'batch norm'  # gamma, beta and the moving statistics.


class Activation(NamedTuple):
  """A tensor of the encoder, with its number of values per image."""

  height: int
  width: int
  channels: int

  @property
  def size(self) -> int:
    return self.height * self.width * self.channels


class BatchStatistic(NamedTuple):
  """A statistic of a batch, and the moving average that follows it."""

  moving: tf.Variable  # float32 [C].
  value: tf.Tensor  # float32 [C], without gradient.


def move_averages(statistics: Iterable[BatchStatistic]) -> list[tf.Operation]:
  """Builds the ops that update moving statistics with those of a batch.

  The ops are made here and not where the batch is normalised, so that they can
  be inside a tf.cond. This also matters on TPU, where an op runs as soon as it
  exists, whether or not anything depends on it.
  """
  return [
    moving.assign_sub((moving - value) * (1 - _MOVING_AVERAGE_MOMENTUM))
    for moving, value in statistics
  ]


# What layers compute with instead of their variables, {variable.ref(): tensor}.
# The replicas of a strategy run in threads of their own.
_SUBSTITUTES = contextvars.ContextVar('substitutes', default=None)


@contextlib.contextmanager
def substituted(values: Mapping):
  """Lets modules that are called meanwhile compute with other weights.

  Args:
    values: {variable.ref(): tensor in its place}.
  """
  token = _SUBSTITUTES.set(values)
  try:
    yield
  finally:
    _SUBSTITUTES.reset(token)


# Whether all batch norms use the statistics of the global batch.
_SYNCHRONISED = contextvars.ContextVar('synchronised', default=False)


@contextlib.contextmanager
def synchronised():
  """Lets modules use the batch statistics of all replicas meanwhile."""
  token = _SYNCHRONISED.set(True)
  try:
    yield
  finally:
    _SYNCHRONISED.reset(token)


def _value(variable):
  """Returns the tensor that a layer computes with."""
  return (_SUBSTITUTES.get() or {}).get(variable.ref(), variable)


class Module:
  """A part of a model, which owns variables or other parts.

  Subclasses make variables and parts in `__init__` and build ops in `forward`.

  Attributes:
    name: Full scope of its variables, such as 'ContrastiveModel/Encoder'.
  """

  def __init__(self, parent, name):
    """Adds the module to the tree.

    Args:
      parent: The Module that this is a part of; None for a whole model.
      name: Scope below the parent. Each parent counts equal names: its second
        part of a name becomes NAME_1, its third NAME_2.
    """
    self._variables = []  # Pairs (Role, variable).
    self._parts = []
    self._measured = []  # BatchStatistics.
    self._name_counts = collections.Counter()
    self.name = parent._adopt(self, name) if parent else name

  def __call__(self, x, training):
    """Builds the ops.

    Args:
      x: The input.
      training: Python bool; batch norm uses the statistics of this batch if
        True, and the moving statistics if False. Nothing else depends on it.

    Returns:
      What `forward` returns.
    """
    with tf.name_scope(self.name.rpartition('/')[-1]):
      return self.forward(x, training)

  def forward(self, x, training):
    raise NotImplementedError

  @property
  def variables(self):
    """All variables, in order of creation."""
    return [v for module in self._walk() for _, v in module._variables]

  @property
  def trainable_variables(self):
    return [v for v in self.variables if v.trainable]

  @property
  def kernels(self):
    """Kernels of convolutions and dense layers."""
    return self._variables_of(Role.KERNEL)

  @property
  def biases(self):
    """Biases of dense layers, without the betas of batch norms."""
    return self._variables_of(Role.BIAS)

  @property
  def batch_norm_variables(self):
    """Gammas, betas and moving statistics."""
    return self._variables_of(Role.BATCH_NORM)

  def decayable(self, include_biases):
    """Returns the variables that weight decay may act on."""
    return [*self.kernels, *(self.biases if include_biases else ())]

  def weight_norm(self, include_biases):
    """Returns the sum of v^2/2 over decayable variables, a float32 scalar."""
    return tf.add_n([tf.nn.l2_loss(v) for v in self.decayable(include_biases)])

  def take_batch_statistics(self):
    """Returns and clears the statistics measured since the last call.

    A whole model calls this at the end of each of its calls and returns the
    result.

    Returns:
      A list of BatchStatistic, two for each batch norm and each of its calls
      with training=True.
    """
    taken = []
    for module in self._walk():
      taken += module._measured
      module._measured = []
    return taken

  def _add_variable(
    self, role, name, shape, initializer, trainable=True, **options
  ):
    variable = tf1.get_variable(
      f'{self.name}/{name}',
      shape,
      tf.float32,
      initializer,
      trainable=trainable,
      use_resource=True,
      **options,
    )
    self._variables.append((role, variable))
    return variable

  def _adopt(self, part, name):
    count = self._name_counts[name]
    self._name_counts[name] += 1
    self._parts.append(part)
    return f'{self.name}/{name}' + (f'_{count}' if count else '')

  def _walk(self):
    yield self
    for part in self._parts:
      yield from part._walk()

  def _variables_of(self, role):
    return [
      variable
      for module in self._walk()
      for its_role, variable in module._variables
      if its_role is role
    ]


class Conv2D(Module):
  """Convolution without bias whose padding does not depend on input size.

  A strided convolution pads by an amount that depends on the kernel size only,
  half of it on either side. 'SAME' would put less on the left for even sizes
  than for odd ones.
  """

  def __init__(self, parent, in_channels, out_channels, kernel_size, stride):
    super().__init__(parent, 'Conv2DFixedPadding')
    self._stride = stride
    self._kernel = self._add_variable(
      Role.KERNEL,
      'conv2d/kernel',
      [kernel_size, kernel_size, in_channels, out_channels],
      tf1.initializers.variance_scaling(),
    )

  def forward(self, x, training):
    """Maps [B, H, W, in] to [B, ceil(H / stride), ceil(W / stride), out]."""
    del training
    kernel = tf.cast(_value(self._kernel), x.dtype)
    if self._stride == 1:
      return tf.nn.conv2d(x, kernel, 1, 'SAME')
    x = _pad(x, kernel.shape[0])
    return tf.nn.conv2d(x, kernel, self._stride, 'VALID')


class GroupConv2D(Module):
  """Convolution in which each group of outputs sees its own group of inputs."""

  def __init__(
    self, parent, in_channels, out_channels, kernel_size, stride, groups
  ):
    """Makes the kernel.

    Args:
      parent: The Module that this is a part of.
      in_channels: Int, a multiple of `groups`.
      out_channels: Int, a multiple of `groups`.
      kernel_size: Int; height and width.
      stride: Int.
      groups: Int; number of equal slices of the input and output channels.
    """
    super().__init__(parent, 'GroupConv2D')
    self._stride = stride
    self._kernel = self._add_variable(
      Role.KERNEL,
      'kernel',
      [kernel_size, kernel_size, in_channels // groups, out_channels],
      tf1.initializers.variance_scaling(),
    )

  def forward(self, x, training):
    """Maps [B, H, W, in] to [B, ceil(H / stride), ceil(W / stride), out].

    Pads like 'SAME', also when strided, as the published layer does.
    """
    kernel = tf.cast(_value(self._kernel), x.dtype)
    # Outside training, Grappler fuses a convolution with its batch norm, and
    # without oneDNN the fused kernel does not support groups. Depthwise
    # convolutions let an exported model run on every machine.
    if training and has_group_convolution_gradient():
      return tf.nn.conv2d(x, kernel, self._stride, 'SAME')
    return _group_convolution_by_depthwise(x, kernel, self._stride)


class Dense(Module):
  """x W + b, or x W."""

  def __init__(self, parent, in_size, out_size, use_bias, kernel_initializer):
    super().__init__(parent, 'dense')
    self._kernel = self._add_variable(
      Role.KERNEL, 'kernel', [in_size, out_size], kernel_initializer
    )
    self._bias = None
    if use_bias:
      self._bias = self._add_variable(
        Role.BIAS, 'bias', [out_size], tf1.initializers.zeros()
      )

  def forward(self, x, training):
    """Maps [B, in] to [B, out]."""
    del training
    x = tf.matmul(x, tf.cast(_value(self._kernel), x.dtype))
    if self._bias is None:
      return x
    return x + tf.cast(_value(self._bias), x.dtype)


class BatchNorm(Module):
  """Batch normalisation (https://arxiv.org/abs/1502.03167).

  gamma (x - mean) / sqrt(variance + 1e-5) + beta per channel. Training uses the
  mean and biased variance of the batch, otherwise moving averages of momentum
  0.9. The published layer is fused only for local statistics, which affects the
  moving variance: there it follows the unbiased variance, n / (n - 1) times the
  biased one for n values per channel.
  """

  def __init__(self, parent, channels, synchronised, gamma=1.0, use_beta=True):
    """Makes the variables.

    Args:
      parent: The Module that this is a part of.
      channels: Int.
      synchronised: Whether statistics are those of the global batch, over all
        replicas. Even on one replica, this makes the moving variance follow the
        biased variance for rank-4 inputs. For rank-2 inputs it always does.
      gamma: Initial value of gamma; 0 makes the layer output beta at first.
      use_beta: Whether there is a beta; 0 otherwise.
    """
    super().__init__(parent, 'batch_normalization')
    self._synchronised = synchronised

    def add(name, value, **options):
      return self._add_variable(
        Role.BATCH_NORM,
        name,
        [channels],
        tf1.initializers.constant(value),
        **options,
      )

    # Under tf.distribute each replica has its own, and a checkpoint stores
    # their mean.
    moving = dict(
      trainable=False,
      synchronization=tf.VariableSynchronization.ON_READ,
      aggregation=tf.VariableAggregation.MEAN,
    )
    self._gamma = add('gamma', gamma)
    self._beta = add('beta', 0.0) if use_beta else None
    self._moving_mean = add('moving_mean', 0.0, **moving)
    self._moving_variance = add('moving_variance', 1.0, **moving)

  def forward(self, x, training):
    """Normalises [B, H, W, C] or [B, C]."""
    gamma = tf.convert_to_tensor(_value(self._gamma))
    beta = tf.zeros_like(gamma) if self._beta is None else _value(self._beta)
    is_global = self._synchronised or _SYNCHRONISED.get()
    if training and is_global and replicas.num_replicas() > 1:
      y, mean, variance = _normalize_by_global_statistics(
        x, gamma, beta, self._moving_mean
      )
      self.record(mean, variance)
      return y
    is_flat = x.shape.rank == 2
    images = x[:, tf.newaxis, tf.newaxis, :] if is_flat else x
    if training:
      y, mean, variance = tf1.nn.fused_batch_norm(
        images, gamma, beta, epsilon=_EPSILON, is_training=True
      )
      if self._synchronised or is_flat:
        variance = _biased(variance, images)
      self.record(mean, variance)
    else:
      y, _, _ = tf1.nn.fused_batch_norm(
        images,
        gamma,
        beta,
        self._moving_mean,
        self._moving_variance,
        epsilon=_EPSILON,
        is_training=False,
      )
    return tf.reshape(y, tf.shape(x)) if is_flat else y

  def record(self, mean, variance):
    """Records the statistics of a batch, float32 [C] each."""
    self._measured += [
      BatchStatistic(self._moving_mean, mean),
      BatchStatistic(self._moving_variance, variance),
    ]


def _pad(x, kernel_size):
  """Pads height and width by kernel_size - 1, the odd pixel at the end."""
  start = (kernel_size - 1) // 2
  end = kernel_size - 1 - start
  return tf.pad(x, [[0, 0], [start, end], [start, end], [0, 0]])


def has_group_convolution_gradient():
  """Whether tf.nn.conv2d with a grouped kernel has a gradient here.

  XLA, cuDNN and oneDNN support it. TensorFlow's own CPU kernels, which run
  without oneDNN (for example on CPUs without AVX512_VNNI), do not.
  """
  return (
    tpu_function.get_tpu_context().number_of_shards is not None
    or bool(tf.config.list_physical_devices('GPU'))
    or _pywrap_util_port.IsMklEnabled()
  )


def _group_convolution_by_depthwise(x, kernel, stride):
  """A grouped tf.nn.conv2d, built from ops with gradients on every device.

  out[g, o] = sum_i x[g, i] * kernel[i, g, o]: the i-th inputs of all groups
  form one depthwise convolution. It is used only where the native op fails,
  because with it a training step of ResNeXt-50 takes 1.4 times as long under
  oneDNN.

  Args:
    x: [B, H, W, in].
    kernel: [size, size, in / groups, out]; of the type of `x`.
    stride: Int.

  Returns:
    [B, ceil(H / stride), ceil(W / stride), out].
  """
  size, _, group_size, out_channels = kernel.shape
  groups = x.shape[-1] // group_size
  kernel = tf.reshape(
    kernel, [size, size, group_size, groups, out_channels // groups]
  )
  return tf.add_n(
    [
      tf.nn.depthwise_conv2d(
        x[..., i::group_size], kernel[:, :, i], [1, stride, stride, 1], 'SAME'
      )
      for i in range(group_size)
    ]
  )


def _biased(variance, images):
  """Converts the unbiased variance [C] of images [B, H, W, C] to biased."""
  count = _values_per_channel(images)
  return variance * ((count - 1) / count)


def _normalize_by_global_statistics(x, gamma, beta, shift):
  """Batch norm over all replicas, with one collective in each direction.

  The variance is E[(x - shift)^2] - E[x - shift]^2. This needs a single sum
  over the replicas, and cancels badly only if the mean is many standard
  deviations away from the shift.

  Args:
    x: [..., C], this replica's part of the batch.
    gamma: float32 [C].
    beta: float32 [C].
    shift: float32 [C], the same on all replicas and near the mean of `x`. It
      affects the result only through rounding.

  Returns:
    y: Like `x`, normalised. Its gradient is that of the sum of all replicas'
      losses; the gradients of gamma and beta still have to be summed over
      replicas.
    mean, variance: float32 [C], the variance biased. Both without gradient.
  """
  axes = list(range(x.shape.rank - 1))

  @tf.custom_gradient
  def normalize(x, gamma, beta, shift):
    shifted = tf.cast(x, tf.float32) - shift
    local_moments = [
      tf.reduce_mean(values, axes) for values in (shifted, tf.square(shifted))
    ]
    moments = replicas.mean(tf.concat(local_moments, axis=0))
    offset, square = tf.split(moments, 2)
    variance = tf.maximum(square - tf.square(offset), 0.0)
    scale = tf.math.rsqrt(variance + _EPSILON)
    y = (shifted - offset) * (scale * gamma) + beta

    def gradient(upstream, *_):
      upstream = tf.cast(upstream, tf.float32)
      normal = (tf.cast(x, tf.float32) - shift - offset) * scale
      local_sums = tf.concat(
        [
          tf.reduce_sum(upstream, axes),
          tf.reduce_sum(upstream * normal, axes),
        ],
        axis=0,
      )
      beta_gradient, gamma_gradient = tf.split(local_sums, 2)
      # The gradients through the mean and the variance, equal for all values.
      by_mean, by_variance = tf.split(
        replicas.mean(local_sums) / _values_per_channel(x), 2
      )
      x_gradient = upstream - by_mean - normal * by_variance
      x_gradient = tf.cast(x_gradient * (scale * gamma), x.dtype)
      return x_gradient, gamma_gradient, beta_gradient, None

    return (tf.cast(y, x.dtype), shift + offset, variance), gradient

  y, mean, variance = normalize(x, gamma, beta, shift)
  return y, tf.stop_gradient(mean), tf.stop_gradient(variance)


def _values_per_channel(x):
  """Returns the number of values per channel of [..., C], float32 scalar."""
  return tf.cast(tf.size(x) // x.shape[-1], tf.float32)
