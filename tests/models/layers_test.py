"""Layers: arithmetic by hand and by loops, variables, moving statistics."""

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.tpu import tpu_function

from supcon.compute import replicas
from supcon.models import layers
from tests import mirrored

tf1 = tf.compat.v1

_EPSILON = 1e-5


@pytest.fixture(autouse=True)
def _graph():
  with tf.Graph().as_default():
    tf1.set_random_seed(0)
    yield


def _root():
  return layers.Module(None, 'Root')


def _run(fetches, values=()):
  """Evaluates `fetches` with variables as initialised, then as `values` say."""
  with tf1.Session() as session:
    session.run(tf1.global_variables_initializer())
    for variable, value in values:
      session.run(variable.initializer, {variable.initializer.inputs[1]: value})
    return session.run(fetches)


def _random(*shape, seed=0):
  return np.random.RandomState(seed).randn(*shape).astype(np.float32)


def _named(module, name):
  (variable,) = [
    v for v in module.variables if v.name.rpartition('/')[-1] == f'{name}:0'
  ]
  return variable


# --- The tree -----------------------------------------------------------------


def test_each_parent_counts_its_parts_for_itself():
  root = _root()
  first = layers.Module(root, 'Block')
  second = layers.Module(root, 'Block')
  parts = [
    layers.Module(root, 'Other'),
    layers.Module(root, 'Block'),
    layers.Module(second, 'Block'),
    layers.Module(first, 'Other'),
  ]
  assert [first.name, second.name] == ['Root/Block', 'Root/Block_1']
  assert [part.name for part in parts] == [
    'Root/Other',
    'Root/Block_2',
    'Root/Block_1/Block',
    'Root/Block/Other',
  ]


def test_a_module_hands_out_the_variables_of_its_parts_by_role():
  root = _root()
  layers.Conv2D(root, 3, 4, 3, 1)
  block = layers.Module(root, 'Block')
  layers.BatchNorm(block, 4, synchronised=True)
  layers.Dense(root, 4, 2, True, tf1.initializers.zeros())

  def names(variables):
    return [v.op.name for v in variables]

  kernels = ['Root/Conv2DFixedPadding/conv2d/kernel', 'Root/dense/kernel']
  norm = 'Root/Block/batch_normalization/'
  trained = [norm + 'gamma', norm + 'beta']
  moving = [norm + 'moving_mean', norm + 'moving_variance']
  biases = ['Root/dense/bias']
  assert names(root.kernels) == kernels
  assert names(root.biases) == biases
  assert names(root.batch_norm_variables) == trained + moving
  assert names(root.variables) == (
    kernels[:1] + trained + moving + kernels[1:] + biases
  )
  assert names(root.trainable_variables) == (
    kernels[:1] + trained + kernels[1:] + biases
  )
  assert names(tf1.trainable_variables()) == names(root.trainable_variables)
  assert names(block.variables) == trained + moving


def test_a_second_call_makes_no_variables():
  conv = layers.Conv2D(_root(), 3, 4, 3, 1)
  x = tf.constant(_random(1, 4, 4, 3))
  outputs = [conv(x, training=True), conv(x, training=False)]
  assert len(tf1.global_variables()) == 1
  first, second = _run(outputs)
  np.testing.assert_array_equal(first, second)


# --- Convolutions -------------------------------------------------------------


def test_a_strided_convolution_pads_one_on_either_side():
  conv = layers.Conv2D(_root(), 1, 1, kernel_size=3, stride=2)
  y = conv(tf.ones([1, 4, 4, 1]), training=False)
  # Windows of a sum start at -1 and 1. The first holds 2 of 4 rows, the second
  # 3: 2 * 2, 2 * 3, 3 * 2, 3 * 3. 'SAME' would start at 0 and 2.
  y = _run(y, [(conv.kernels[0], np.ones([3, 3, 1, 1]))])
  np.testing.assert_array_equal(y[0, :, :, 0], [[4, 6], [6, 9]])


@pytest.mark.parametrize('size', [4, 5])
@pytest.mark.parametrize('kernel_size', [1, 2, 3, 7])
@pytest.mark.parametrize('stride', [1, 2, 3])
def test_a_convolution_shrinks_by_its_stride(size, kernel_size, stride):
  conv = layers.Conv2D(_root(), 2, 3, kernel_size, stride)
  y = conv(tf.zeros([1, size, size, 2]), training=False)
  expected = -(-size // stride)
  assert y.shape == [1, expected, expected, 3]


def _group_convolution(x, kernel, groups, stride, upstream):
  """Output and gradients of sum(output * upstream), by loops."""
  size, _, group_size, out_channels = kernel.shape
  batch, height, width, _ = x.shape
  out_height, out_width = -(-height // stride), -(-width // stride)
  top = max((out_height - 1) * stride + size - height, 0) // 2
  left = max((out_width - 1) * stride + size - width, 0) // 2
  y = np.zeros([batch, out_height, out_width, out_channels])
  dx, dkernel = np.zeros(x.shape), np.zeros(kernel.shape)
  for b, h, w, out, i, j, c in np.ndindex(*y.shape, size, size, group_size):
    row, column = h * stride - top + i, w * stride - left + j
    if not (0 <= row < height and 0 <= column < width):
      continue
    channel = out // (out_channels // groups) * group_size + c
    y[b, h, w, out] += x[b, row, column, channel] * kernel[i, j, c, out]
    dx[b, row, column, channel] += upstream[b, h, w, out] * kernel[i, j, c, out]
    dkernel[i, j, c, out] += upstream[b, h, w, out] * x[b, row, column, channel]
  return y, dx, dkernel


@pytest.mark.parametrize('stride', [1, 2])
@pytest.mark.parametrize('native', [True, False])
def test_group_convolution_equals_loops(monkeypatch, native, stride):
  if native and not layers.has_group_convolution_gradient():
    pytest.skip('oneDNN is off: no gradient of a grouped tf.nn.conv2d on CPU')
  monkeypatch.setattr(layers, 'has_group_convolution_gradient', lambda: native)
  groups, x = 3, _random(2, 4, 5, 6)
  layer = layers.GroupConv2D(_root(), 6, 9, 3, stride, groups)
  (kernel,) = layer.kernels
  assert kernel.shape == [3, 3, 2, 9]
  value = _random(3, 3, 2, 9, seed=1)
  images = tf1.placeholder_with_default(x, x.shape)
  y = layer(images, training=True)
  upstream = _random(*y.shape, seed=2)
  gradients = tf.gradients(tf.reduce_sum(y * upstream), [images, kernel])
  found = _run([y, *gradients], [(kernel, value)])
  expected = _group_convolution(x, value, groups, stride, upstream)
  for one, other in zip(found, expected):
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


def test_exported_group_convolutions_run_on_every_machine(monkeypatch):
  monkeypatch.setattr(layers, 'has_group_convolution_gradient', lambda: True)
  layer = layers.GroupConv2D(_root(), 6, 9, 3, 1, groups=3)
  x = tf.constant(_random(2, 4, 5, 6))
  outputs = [layer(x, training=False)]
  ops = tf1.get_default_graph().get_operations()
  assert 'Conv2D' not in {op.type for op in ops}
  outputs.append(layer(x, training=True))
  np.testing.assert_allclose(*_run(outputs), rtol=1e-4, atol=1e-5)


def test_kernels_start_with_variance_one_over_fan_in():
  root = _root()
  kernels = _run(
    [
      layers.Conv2D(root, 64, 128, 3, 1).kernels[0],
      layers.GroupConv2D(root, 128, 128, 3, 1, groups=8).kernels[0],
    ]
  )
  # Fan-in 3 * 3 * 64 = 576 and 3 * 3 * 128 / 8 = 144.
  assert np.std(kernels[0]) == pytest.approx(1 / 24, rel=0.05)
  assert np.std(kernels[1]) == pytest.approx(1 / 12, rel=0.05)


# --- Dense --------------------------------------------------------------------


def test_dense():
  dense = layers.Dense(_root(), 2, 1, True, tf1.initializers.zeros())
  values = [(dense.kernels[0], [[2.0], [3.0]]), (dense.biases[0], [10.0])]
  # 5 * 2 + 7 * 3 + 10 = 41.
  y = dense(tf.constant([[5.0, 7.0]]), training=False)
  assert _run(y, values) == [[41]]


# --- Batch norm ---------------------------------------------------------------


def _filled(norm):
  """Values unlike the initial ones for all variables of a batch norm."""
  return [
    (v, 1.5 + 0.1 * _random(*v.shape, seed=seed))
    for seed, v in enumerate(norm.variables)
  ]


@pytest.mark.parametrize('synchronised', [True, False])
@pytest.mark.parametrize('shape', [(4, 3, 2, 5), (6, 5)])
def test_batch_norm_in_training_equals_numpy(shape, synchronised):
  norm = layers.BatchNorm(_root(), 5, synchronised)
  x = 2 + 3 * _random(*shape)
  values = _filled(norm)
  old = {v.op.name.rpartition('/')[-1]: value for v, value in values}
  images = tf1.placeholder_with_default(x, x.shape)
  y = norm(images, training=True)
  with tf.control_dependencies([y]):
    updates = layers.move_averages(norm.take_batch_statistics())
  assert len(updates) == 2
  with tf.control_dependencies(updates):
    moving = [
      _named(norm, name).read_value()
      for name in ('moving_mean', 'moving_variance')
    ]
  y, (moving_mean, moving_variance) = _run([y, moving], values)

  rows = x.reshape(-1, 5).astype(np.float64)
  mean, biased = rows.mean(0), rows.var(0)
  expected = (x - mean) / np.sqrt(biased + _EPSILON) * old['gamma'] + old[
    'beta'
  ]
  np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4)
  # The fused layer that was published follows the unbiased variance; it serves
  # images with local statistics only.
  is_biased = synchronised or len(shape) == 2
  unbiased = biased * len(rows) / (len(rows) - 1)
  np.testing.assert_allclose(
    moving_mean, 0.9 * old['moving_mean'] + 0.1 * mean, rtol=1e-5
  )
  np.testing.assert_allclose(
    moving_variance,
    0.9 * old['moving_variance'] + 0.1 * (biased if is_biased else unbiased),
    rtol=1e-5,
  )


@pytest.mark.parametrize('shape', [(4, 3, 2, 5), (6, 5)])
def test_batch_norm_outside_training_uses_the_moving_statistics(shape):
  norm = layers.BatchNorm(_root(), 5, synchronised=True)
  x = _random(*shape)
  values = _filled(norm)
  gamma, beta, mean, variance = (value for _, value in values)
  y = _run(norm(tf.constant(x), training=False), values)
  expected = (x - mean) / np.sqrt(variance + _EPSILON) * gamma + beta
  np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
  assert norm.take_batch_statistics() == []


@pytest.mark.parametrize('shape', [(3, 2, 2, 2), (4, 2)])
def test_gradient_of_batch_norm_equals_differences(shape):
  norm = layers.BatchNorm(_root(), 2, synchronised=True)
  x = _random(*shape)
  weights = _random(*shape, seed=1)
  images = tf1.placeholder(tf.float32, shape)
  loss = tf.reduce_sum(norm(images, training=True) * weights)
  gradient = tf.gradients(loss, images)[0]

  def loss_at(value):  # With gamma 1 and beta 0.
    rows = value.reshape(-1, 2)
    y = (value - rows.mean(0)) / np.sqrt(rows.var(0) + _EPSILON)
    return np.sum(y * weights)

  expected = np.zeros(shape)
  for index in np.ndindex(*shape):
    step = np.zeros(shape)
    step[index] = 1e-5
    expected[index] = (loss_at(x + step) - loss_at(x - step)) / 2e-5
  with tf1.Session() as session:
    session.run(tf1.global_variables_initializer())
    found = session.run(gradient, {images: x})
  np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


def test_batch_norm_without_beta_and_with_gamma_zero():
  norm = layers.BatchNorm(_root(), 2, True, gamma=0.0, use_beta=False)
  names = [v.op.name.rpartition('/')[-1] for v in norm.variables]
  assert names == ['gamma', 'moving_mean', 'moving_variance']
  x = tf.constant(_random(2, 3, 3, 2))
  for training in (True, False):
    np.testing.assert_array_equal(_run(norm(x, training)), np.zeros(x.shape))


def test_updates_exist_only_once_asked_for():
  norm = layers.BatchNorm(_root(), 2, True)
  before = len(tf1.get_default_graph().get_operations())
  norm(tf.constant(_random(2, 3, 3, 2)), training=True)
  ops = tf1.get_default_graph().get_operations()[before:]
  assert not [op for op in ops if op.type.startswith('Assign')]
  assert not tf1.get_collection(tf1.GraphKeys.UPDATE_OPS)


def test_statistics_are_those_of_each_call_since_they_were_taken():
  norm = layers.BatchNorm(_root(), 1, True)

  def taken():
    moving = [statistic.moving for statistic in norm.take_batch_statistics()]
    assert (
      moving == [v for v in norm.variables if not v.trainable][: len(moving)]
    )
    return len(moving)

  norm(tf.fill([2, 1, 1, 1], 10.0), training=True)
  norm(tf.fill([2, 1, 1, 1], 30.0), training=False)
  assert taken() == 2
  assert taken() == 0
  norm(tf.fill([2, 1, 1, 1], 20.0), training=True)
  with tf.control_dependencies(
    layers.move_averages(norm.take_batch_statistics())
  ):
    mean = _named(norm, 'moving_mean').read_value()
  # 0.9 * 0 + 0.1 * 20 = 2.
  assert _run(mean) == pytest.approx([2])


def test_updates_can_stand_inside_a_condition():
  norm = layers.BatchNorm(_root(), 1, True)
  norm(tf.fill([2, 1, 1, 1], 10.0), training=True)
  wanted = tf1.placeholder(tf.bool, [])
  statistics = norm.take_batch_statistics()
  update = tf1.cond(
    wanted,
    lambda: tf.group(*layers.move_averages(statistics)),
    lambda: tf.no_op(),
  )
  mean = _named(norm, 'moving_mean')
  with tf1.Session() as session:
    session.run(tf1.global_variables_initializer())
    session.run(update, {wanted: False})
    assert session.run(mean) == [0]
    session.run(update, {wanted: True})
    assert session.run(mean) == pytest.approx([1])


def test_batch_norm_takes_a_batch_of_unknown_size():
  norm = layers.BatchNorm(_root(), 2, True)
  images = tf1.placeholder(tf.float32, [None, 1, 1, 2])
  norm(images, training=True)
  with tf.control_dependencies(
    layers.move_averages(norm.take_batch_statistics())
  ):
    variance = _named(norm, 'moving_variance').read_value()
  with tf1.Session() as session:
    session.run(tf1.global_variables_initializer())
    found = session.run(variance, {images: [[[[0, 1]]], [[[4, 1]]]]})
  # Biased variance of 0 and 4 is 4: 0.9 * 1 + 0.1 * 4 = 1.3; 0.9 * 1 + 0.
  np.testing.assert_allclose(found, [1.3, 0.9], rtol=1e-6)


# --- Batch norm on several replicas -------------------------------------------


def _train_batch_norm(x, weights, synchronised, start):
  """One step of a batch norm on this replica's share of a batch.

  Args:
    x: float32 [B, ..., C], the global batch.
    weights: Like `x`. The loss is the sum of y^2 weights.
    synchronised: As in BatchNorm.
    start: Where the moving mean starts.

  Returns:
    Tensors: y, gradients of the loss with respect to x, gamma and beta, and the
    moving mean and variance after the update.
  """
  norm = layers.BatchNorm(_root(), x.shape[-1], synchronised)
  share = len(x) // replicas.num_replicas()
  begin = replicas.replica_id() * share
  local = tf.identity(tf.constant(x)[begin : begin + share])
  assignment = _named(norm, 'moving_mean').assign(tf.fill([x.shape[-1]], start))
  with tf.control_dependencies([assignment]):
    y = norm(local, training=True)
  weights = tf.constant(weights)[begin : begin + share]
  loss = tf.reduce_sum(y**2 * weights)
  gradients = tf.gradients(loss, [local, *norm.trainable_variables])
  with tf.control_dependencies([y]):
    updates = layers.move_averages(norm.take_batch_statistics())
  with tf.control_dependencies(updates):
    moving = [v.read_value() for v in norm.variables if not v.trainable]
  return {
    'y': y,
    'of x': gradients[0],
    'of variables': tf.stack(gradients[1:]),
    'moving': tf.stack(moving),
  }


@pytest.mark.parametrize('start', [0.0, 3.0])
@pytest.mark.parametrize('count', [2, 4])
@pytest.mark.parametrize('shape', [(8, 3, 2, 5), (8, 5)])
def test_synchronised_batch_norm_is_that_of_one_device(shape, count, start):
  x, weights = 3 + 2 * _random(*shape), _random(*shape, seed=1)

  def step():
    return _train_batch_norm(x, weights, synchronised=True, start=start)

  expected = _run(step())
  found = mirrored.run(step, count)
  for name in ('y', 'of x'):
    together = np.concatenate([one[name] for one in found])
    np.testing.assert_allclose(together, expected[name], rtol=1e-4, atol=1e-5)
  # The sum over replicas is left to the optimizer.
  total = sum(one['of variables'] for one in found)
  np.testing.assert_allclose(
    total, expected['of variables'], rtol=1e-4, atol=1e-4
  )
  for one in found:
    np.testing.assert_allclose(one['moving'], expected['moving'], rtol=1e-5)


def test_local_batch_norm_sees_its_own_replica_only():
  x, weights = 3 + 2 * _random(6, 2, 2, 5), _random(6, 2, 2, 5, seed=1)
  found = mirrored.run(
    lambda: _train_batch_norm(x, weights, synchronised=False, start=0.0), 2
  )
  for one, share in zip(found, np.split(x, 2)):
    rows = share.reshape(-1, 5)
    expected = (share - rows.mean(0)) / np.sqrt(rows.var(0) + _EPSILON)
    np.testing.assert_allclose(one['y'], expected, rtol=1e-4, atol=1e-5)
    moving = [0.1 * rows.mean(0), 0.9 + 0.1 * rows.var(0, ddof=1)]
    np.testing.assert_allclose(one['moving'], moving, rtol=1e-4)


def test_a_checkpoint_holds_the_mean_of_local_moving_statistics(tmp_path):
  x = np.float32([[1.0], [1.0], [5.0], [5.0]]).reshape(4, 1, 1, 1)

  def build():
    found = _train_batch_norm(x, x, synchronised=False, start=0.0)
    return found['moving']

  config = tf1.ConfigProto(device_count={'CPU': 2})
  strategy = tf.distribute.MirroredStrategy(['/cpu:0', '/cpu:1'])
  with tf1.Session(config=config) as session, strategy.scope():
    moving = strategy.extended.call_for_each_replica(build)
    saver = tf1.train.Saver()
    session.run(tf1.global_variables_initializer())
    session.run(moving.values)
    path = saver.save(session, str(tmp_path / 'model'))
  name = 'Root/batch_normalization/moving_mean'
  # 0.9 * 0 + 0.1 * 1 and 0.9 * 0 + 0.1 * 5: 0.3 on average.
  assert tf.train.load_variable(path, name) == pytest.approx([0.3])


@pytest.mark.parametrize('far', [0.0, 10.0])
def test_variance_does_not_cancel_where_the_mean_is_far_from_zero(far):
  # The moving mean is the shift: at 0 the variance is a difference of numbers
  # near 1e6, known to 0.06 each; close by it is exact.
  x = np.float32(1000 + _random(8, 4, 4, 3))
  found = mirrored.run(
    lambda: _train_batch_norm(x, x, synchronised=True, start=1000.0 + far), 2
  )
  expected = x.reshape(-1, 3).astype(np.float64).var(0)
  for one in found:
    variance = (one['moving'][1] - 0.9) / 0.1
    np.testing.assert_allclose(variance, expected, rtol=1e-3)


@pytest.mark.parametrize('shape', [(4, 3, 3, 5), (4, 5)])
def test_synchronised_batch_norm_has_one_collective_each_way(shape):
  x = _random(*shape)
  with tpu_function.tpu_shard_context(2):
    _train_batch_norm(x, x, synchronised=True, start=0.0)
  ops = tf1.get_default_graph().get_operations()
  collectives = [op for op in ops if op.type == 'CrossReplicaSum']
  assert [op.inputs[0].shape for op in collectives] == [[10], [10]]


def test_a_variance_that_rounds_below_zero_is_none():
  # Each channel has one value, 150 times: as a difference of means of squares
  # its variance is up to 0.06 on either side of 0, and a root of what is below
  # would be NaN.
  x = np.tile(np.linspace(100, 1000, 64, dtype=np.float32), [6, 5, 5, 1])
  found = mirrored.run(
    lambda: _train_batch_norm(x, x, synchronised=True, start=0.0), 2
  )
  for one in found:
    assert np.all(np.isfinite(one['y']))
    assert np.all((one['moving'][1] - 0.9) / 0.1 >= -1e-6)


def test_an_even_kernel_has_the_odd_one_of_the_padding_at_the_end():
  # Of size 4 there are 3: 1 before and 2 after. At stride 2 the outputs see the
  # rows -1 to 2 and 1 to 4, so that row 2 is seen by both, row 0 by the first.
  conv = layers.Conv2D(_root(), 1, 1, 4, 2)
  images = np.zeros([2, 4, 4, 1], np.float32)
  images[0, 2, 2] = images[1, 0, 0] = 1
  y = conv(tf.constant(images), training=True)
  (found,) = _run([y], [(conv.kernels[0], np.ones([4, 4, 1, 1]))])
  np.testing.assert_array_equal(found[0, :, :, 0], [[1, 1], [1, 1]])
  np.testing.assert_array_equal(found[1, :, :, 0], [[1, 0], [0, 0]])


# --- Where variables start ----------------------------------------------------


@pytest.mark.parametrize(
  'make',
  [
    # 9 x 16 inputs of each output.
    lambda: layers.Conv2D(_root(), 16, 64, 3, 1),
    lambda: layers.GroupConv2D(_root(), 64, 128, 3, 1, groups=4),
  ],
  ids=['conv', 'group conv'],
)
def test_kernels_start_by_their_number_of_inputs(make):
  (kernel,) = make().kernels
  with tf1.Session() as session:
    session.run(tf1.global_variables_initializer())
    values = session.run(kernel)
  # Truncated at two deviations of a normal distribution that is so much wider
  # that its deviation is 1 / sqrt(144) all the same. The estimate's own error
  # is below 1% with more than 9,000 values.
  deviation = 1 / 12
  assert np.std(values) == pytest.approx(deviation, rel=0.04)
  assert np.mean(values) == pytest.approx(0, abs=4 * deviation / 96)
  largest = np.abs(values).max()
  assert largest == pytest.approx(2 * deviation / 0.87962566, rel=0.02)


@pytest.mark.parametrize('gamma', [None, 0.0, 0.5])
def test_batch_norm_starts_with_the_identity_or_as_asked_for(gamma):
  options = {} if gamma is None else {'gamma': gamma}
  norm = layers.BatchNorm(_root(), 3, True, **options)
  with tf1.Session() as session:
    session.run(tf1.global_variables_initializer())
    values = session.run(norm.variables)
  # gamma, beta, moving mean and variance.
  expected = [1.0 if gamma is None else gamma, 0.0, 0.0, 1.0]
  for value, number in zip(values, expected, strict=True):
    np.testing.assert_array_equal(value, [number] * 3)


# --- bfloat16 -----------------------------------------------------------------


@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize('native', [True, False])
def test_bfloat16_activations_of_float32_variables(
  monkeypatch, training, native
):
  monkeypatch.setattr(layers, 'has_group_convolution_gradient', lambda: native)
  root = _root()
  x = _random(4, 6, 6, 4)

  def net(x):
    y = x
    for layer in parts[:3]:
      y = layer(y, training)
    return parts[3](tf.reduce_mean(y, [1, 2]), training)

  parts = [
    layers.Conv2D(root, 4, 8, 3, 2),
    layers.GroupConv2D(root, 8, 8, 3, 1, groups=4),
    layers.BatchNorm(root, 8, True),
    layers.Dense(root, 8, 2, True, tf1.initializers.ones()),
  ]
  assert {v.dtype.base_dtype for v in root.variables} == {tf.float32}
  half, full = net(tf.cast(x, tf.bfloat16)), net(tf.constant(x))
  assert half.dtype == tf.bfloat16
  half, full = _run([tf.cast(half, tf.float32), full])
  # bfloat16 has 8 significant bits; features are of order 1, eight are added.
  np.testing.assert_allclose(half, full, atol=0.1)
