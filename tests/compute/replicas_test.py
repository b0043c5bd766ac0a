"""Tests of `replicas`: one device, tf.distribute, and the ops for a TPU.

What the ops for a TPU compute is tested where they run, in tests/tpu.
"""

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.compiler.xla import xla_data_pb2
from tensorflow.python.tpu import tpu_function

from supcon import losses
from supcon.compute import replicas
from supcon.config import enums
from tests import golden
from tests import graphs
from tests import mirrored

tf1 = tf.compat.v1

# --- One replica --------------------------------------------------------------


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


def test_exact_matmul():
  # 1 * 3 + 2 * 4 = 11 and 1 * 5 + 2 * 6 = 17.
  a, b = tf.constant([[1.0, 2.0]]), tf.constant([[3.0, 4.0], [5.0, 6.0]])
  for transpose, left in [(False, a), (True, tf.transpose(a))]:
    np.testing.assert_array_equal(
      replicas.exact_matmul(left, b, transpose, transpose_b=True), [[11, 17]]
    )


# --- A GPU that multiplies in TF32 --------------------------------------------


def _rounded_to_tf32(x):
  """Rounds to 11 significant bits, as such a GPU reads its operands."""
  mantissas, exponents = np.frexp(x)
  return np.ldexp(np.round(mantissas * 2.0**11) / 2.0**11, exponents)


@pytest.fixture(name='gpu')
def _gpu(monkeypatch):
  """Has TensorFlow see a GPU, and multiply as it does."""
  matmul = tf.matmul

  def rounding(a, b, **options):
    a, b = (
      tf.numpy_function(_rounded_to_tf32, [x], tf.float32) for x in (a, b)
    )
    return matmul(a, b, **options)

  monkeypatch.setattr(tf.config, 'list_physical_devices', lambda _: ['GPU:0'])
  monkeypatch.setattr(tf, 'matmul', rounding)
  return rounding


def _unit_rows(count, seed):
  x = np.random.RandomState(seed).normal(size=[count, 64]).astype(np.float32)
  return x / np.linalg.norm(x, axis=1, keepdims=True)


@pytest.mark.parametrize('transpose_a', [False, True])
@pytest.mark.parametrize('transpose_b', [False, True])
def test_products_are_exact_where_a_gpu_rounds(gpu, transpose_a, transpose_b):
  a, b = _unit_rows(20, 0), _unit_rows(30, 1)
  exact = a.astype(np.float64) @ b.astype(np.float64).T
  rounded = gpu(tf.constant(a), tf.constant(b), transpose_b=True)
  assert np.abs(rounded - exact).max() > 5e-5
  found = replicas.exact_matmul(
    tf.constant(a.T if transpose_a else a),
    tf.constant(b if transpose_b else b.T),
    transpose_a,
    transpose_b,
  )
  np.testing.assert_allclose(found, exact, atol=5e-7)


@pytest.mark.parametrize('has_gpu', [False, True])
@pytest.mark.parametrize('is_allowed', [False, True])
def test_products_are_split_where_tf32_is_on(monkeypatch, has_gpu, is_allowed):
  devices = ['GPU:0'] if has_gpu else []
  monkeypatch.setattr(tf.config, 'list_physical_devices', lambda _: devices)
  monkeypatch.setattr(
    tf.config.experimental,
    'tensor_float_32_execution_enabled',
    lambda: is_allowed,
  )
  with tf.Graph().as_default() as graph:
    a, b = (
      tf1.placeholder(tf.float32, [2, 3]),
      tf1.placeholder(tf.float32, [4, 3]),
    )
    products = replicas.exact_matmul(a, b, transpose_b=True)
    assert products.shape == [2, 4]
  count = sum(op.type == 'MatMul' for op in graph.get_operations())
  assert count == (3 if has_gpu and is_allowed else 1)


# --- tf.distribute ------------------------------------------------------------


@pytest.mark.parametrize('count', [2, 3])
def test_replicas_are_told_apart(count):
  def build():
    assert replicas.num_replicas() == count
    return tf.convert_to_tensor(replicas.replica_id())

  assert mirrored.run(build, count) == list(range(count))


def test_sum_and_mean():
  def build():
    x = tf.stack([tf.cast(replicas.replica_id(), tf.float32), 6.0])
    y = replicas.sum(tf.cast(x, tf.int32))
    return replicas.sum(x), replicas.mean(x), y

  for total, mean, integers in mirrored.run(build, 3):
    np.testing.assert_array_equal(total, [3, 18])
    np.testing.assert_array_equal(mean, [1, 6])
    np.testing.assert_array_equal(integers, [3, 18])
    assert integers.dtype == np.int32


@pytest.mark.parametrize('dtype', ['float32', 'float64', 'int32', 'int64'])
def test_gather_keeps_order_and_dtype(dtype):
  def build():
    first = 10 * replicas.replica_id()
    return replicas.gather(tf.cast([[first, 1], [first, 2]], dtype))

  for found in mirrored.run(build, 3):
    np.testing.assert_array_equal(
      found, [[0, 1], [0, 2], [10, 1], [10, 2], [20, 1], [20, 2]]
    )
    assert found.dtype == dtype


def test_gather_of_bool():
  def build():
    return replicas.gather(tf.equal([replicas.replica_id(), 0], 1))

  for found in mirrored.run(build, 2):
    assert found.tolist() == [False, False, True, False]


def test_gather_keeps_a_nan_where_it_is():
  def build():
    index = tf.cast(replicas.replica_id(), tf.float32)
    return replicas.gather(tf.reshape(0.0 / index, [1]))

  for found in mirrored.run(build, 2):
    np.testing.assert_array_equal(found, [np.nan, 0])


def _gradients():
  """Gradients of each replica's loss through each function.

  On replica r = 0, 1: x = [r + 1], loss (r + 1) * sum(f(x) * [1, 10]), where
  only gather(x) has two elements.
  """
  factor = tf.cast(replicas.replica_id() + 1, tf.float32)

  def gradient(function):
    x = tf.reshape(tf.identity(factor), [1])
    y = function(x)
    loss = factor * tf.reduce_sum(y * tf.constant([1.0, 10.0])[: y.shape[0]])
    return tf.gradients(loss, x)[0]

  return [
    gradient(f) for f in (replicas.sum, replicas.mean, replicas.gather)
  ] + [gradient(lambda x: replicas.sum(replicas.sum(x) ** 2))]


def test_gradients_are_those_of_the_sum_of_all_losses():
  # Replica 0 weighs by 1, replica 1 by 2, so what both use has gradient 3; half
  # of it through the mean. The gathered elements have 3 * 1 and 3 * 10.
  # Last: the sum over 2 replicas of s^2, s = 1 + 2; 3 * 2 * 2 * 3 = 36.
  first, second = mirrored.run(_gradients, 2)
  np.testing.assert_array_equal(first, [[3], [1.5], [3], [36]])
  np.testing.assert_array_equal(second, [[3], [1.5], [30], [36]])


def test_gradients_stay_in_their_replica():
  # tf.gradients must not find the variables of the others.
  def build():
    variable = tf1.get_variable('v', initializer=2.0, use_resource=True)
    x = replicas.sum(variable * 3.0)
    return tf.gradients(replicas.mean(x**2), variable)[0]

  # x = 6 + 6. Both replicas' losses are x^2, and each v moves x by 3:
  # 2 * (2 * 12) * 3 = 144.
  assert mirrored.run(build, 2) == [144, 144]


def test_updates_follow_the_mean_of_the_gradients():
  def build():
    v = tf1.get_variable('v', initializer=[0.0], use_resource=True)
    step = tf1.train.get_or_create_global_step()
    gradient = tf.reshape(tf.cast(replicas.replica_id(), tf.float32), [1])
    update = replicas.apply_mean_gradients(
      tf1.train.GradientDescentOptimizer(1.0), [(gradient, v)], step
    )
    with tf.control_dependencies([update]):
      return v.read_value(), tf.identity(step)

  # Gradients 0, 1, 2: their mean is 1. Two steps.
  for value, step in mirrored.run(build, 3, steps=2):
    assert value == pytest.approx([-2])
    assert step == 2


def test_outside_of_a_replica_is_refused():
  with tf.Graph().as_default():
    strategy = tf.distribute.MirroredStrategy(['/cpu:0', '/cpu:1'])
    with strategy.scope():
      for function in (replicas.sum, replicas.mean, replicas.gather):
        with pytest.raises(ValueError, match='inside one of its replicas'):
          function(tf.ones([2]))


# --- The contrastive loss -----------------------------------------------------

_CROSS_REPLICA = golden.json('cross_replica.json')
_CHOICES = {
  'contrast_mode': enums.LossContrastMode,
  'summation_location': enums.LossSummationLocation,
  'denominator_mode': enums.LossDenominatorMode,
}


def _options(case):
  options = {name: choice[case[name]] for name, choice in _CHOICES.items()}
  for name in ('temperature', 'positives_cap', 'scale_by_temperature'):
    options[name] = case[name]
  return options


@pytest.fixture(scope='module', name='arrays')
def _arrays():
  return golden.npz('cross_replica.npz')


@pytest.mark.parametrize(
  ('case', 'tile_size'),
  [
    *((case, None) for case in _CROSS_REPLICA['cases']),
    *((case, 3) for case in _CROSS_REPLICA['cases'][::4]),
  ],
  ids=lambda each: each['case'] if isinstance(each, dict) else f'tiles_{each}',
)
def test_golden_losses_and_gradients(case, tile_size, arrays):
  name = case['case']
  if not case['finite']:
    pytest.skip('the published value is not finite; see losses_test.py')
  features, labels = (
    arrays.get(f'{name}/{kind}') for kind in ('features', 'labels_onehot')
  )

  def build():
    mine = replicas.replica_id()
    local = tf.identity(tf.constant(features)[mine])
    loss = losses.contrastive_loss(
      local,
      None if labels is None else tf.constant(labels)[mine],
      tile_size=tile_size,
      **_options(case),
    )
    mean = tf.reduce_mean(loss) / replicas.num_replicas()
    return loss, tf.gradients(mean, local)[0]

  results = mirrored.run(build, case['replicas'])
  loss, gradient = (np.stack(part) for part in zip(*results))
  np.testing.assert_allclose(loss, arrays[f'{name}/loss'], rtol=2e-5, atol=2e-6)
  np.testing.assert_allclose(
    gradient, arrays[f'{name}/grad'], rtol=2e-4, atol=1e-7
  )


# --- The ops for a TPU --------------------------------------------------------


def _ops_for_tpu(function):
  """Returns {type: op} of what `function` builds for one of 8 cores."""
  with tf.Graph().as_default() as graph, tpu_function.tpu_shard_context(8):
    assert replicas.num_replicas() == 8
    function()
  return {op.type: op for op in graph.get_operations()}


def test_a_tpu_gathers_by_one_all_to_all():
  def build():
    x = tf.zeros([2, 3])
    assert replicas.gather(x).shape == [16, 3]

  found = _ops_for_tpu(build)
  assert 'CrossReplicaSum' not in found
  assert found['AllToAll'].get_attr('split_count') == 8


def test_on_a_tpu_what_is_kept_is_read_before_the_update():
  # It would go well by chance nearly always, so the graph must say it.
  with tf.Graph().as_default() as graph, tpu_function.tpu_shard_context(1):
    variables = [
      tf1.get_variable(name, [], use_resource=True) for name in ('a', 'b')
    ]
    begin = len(graph.get_operations())
    reads, updates = [], []

    def update():
      new = graph.get_operations()[begin:]
      reads.extend(op for op in new if op.type == 'ReadVariableOp')
      updates.extend(v.assign(1.0, read_value=False) for v in variables)
      return tf.group(updates)

    done = replicas.update_if(tf.constant(False), update, variables)
  assert len(reads) == 2
  for each in updates:
    assert {*reads} <= graphs.ancestors(each)
  # And what is kept is written after the update.
  assert {*updates} <= graphs.ancestors(done)


def test_a_tpu_core_asks_the_hardware_for_its_id():
  assert 'XlaReplicaId' in _ops_for_tpu(replicas.replica_id)


def test_a_tpu_multiplies_in_full_precision():
  def build():
    loss = losses.contrastive_loss(features := tf.zeros([2, 1, 3]))
    (gradient,) = tf.gradients(loss, features)
    assert gradient.shape == [2, 1, 3]
    ops = tf1.get_default_graph().get_operations()
    dots = [op for op in ops if op.type == 'XlaDot']
    assert len(dots) == 3  # The similarities, and a product for each gradient.
    for dot in dots:
      precision = xla_data_pb2.PrecisionConfig.FromString(
        dot.get_attr('precision_config')
      )
      highest = xla_data_pb2.PrecisionConfig.HIGHEST
      assert list(precision.operand_precision) == [highest, highest]

  assert 'MatMul' not in _ops_for_tpu(build)
