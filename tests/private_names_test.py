"""What is used of TensorFlow though it is not public.

A new TensorFlow that has moved or changed any of it fails here, by its name.
"""

import ast
import importlib

import numpy as np
import pytest
import tensorflow as tf

from tests import command

tf1 = tf.compat.v1

# {module: names}, all that the code and its tests take.
_NAMES = {
  'tensorflow.compiler.tf2xla.python.xla': ['dot_general', 'replica_id'],
  'tensorflow.compiler.xla.xla_data_pb2': [
    'DotDimensionNumbers',
    'PrecisionConfig',
  ],
  'tensorflow.core.protobuf.fingerprint_pb2': ['FingerprintDef'],
  'tensorflow.core.protobuf.saved_model_pb2': ['SavedModel'],
  'tensorflow.core.protobuf.trackable_object_graph_pb2': [
    'TrackableObjectGraph'
  ],
  'tensorflow.python.client.device_lib': ['list_local_devices'],
  'tensorflow.python.framework.config': [
    'disable_op_determinism',
    'enable_op_determinism',
  ],
  'tensorflow.python.pywrap_mlir': ['import_graphdef'],
  'tensorflow.python.saved_model.pywrap_saved_model.fingerprinting': [
    'CreateFingerprintDef'
  ],
  'tensorflow.python.tpu.ops.tpu_ops': ['all_to_all', 'cross_replica_sum'],
  'tensorflow.python.tpu.tpu_function': [
    'get_tpu_context',
    'tpu_shard_context',
  ],
  'tensorflow.python.tpu.tpu_system_metadata': [
    '_query_tpu_system_metadata',
  ],
  'tensorflow.python.training.checkpoint_state_pb2': ['CheckpointState'],
  'tensorflow.python.util._pywrap_util_port': ['IsMklEnabled'],
}

_PRIVATE = ('tensorflow.python', 'tensorflow.compiler', 'tensorflow.core')


@pytest.mark.parametrize(
  'module, name', [(m, name) for m, names in _NAMES.items() for name in names]
)
def test_tensorflow_has(module, name):
  assert hasattr(importlib.import_module(module), name)


def _private_imports():
  """Returns the private modules that the code and its tests import."""
  found = set()
  for directory in ('supcon', 'tests'):
    for path in (command.ROOT / directory).rglob('*.py'):
      for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
          names = [f'{node.module}.{alias.name}' for alias in node.names]
        elif isinstance(node, ast.Import):
          names = [alias.name for alias in node.names]
        else:
          continue
        found.update(name for name in names if name.startswith(_PRIVATE))
  return found


def test_the_list_is_complete():
  assert _private_imports() == set(_NAMES)


def test_the_number_of_tpu_cores_is_that_of_the_context():
  from tensorflow.python.tpu import tpu_function

  assert tpu_function.get_tpu_context().number_of_shards is None
  with tpu_function.tpu_shard_context(8):
    assert tpu_function.get_tpu_context().number_of_shards == 8


def test_a_dot_keeps_its_precision_and_a_replica_its_number():
  from tensorflow.compiler.tf2xla.python import xla
  from tensorflow.compiler.xla import xla_data_pb2

  highest = xla_data_pb2.PrecisionConfig.HIGHEST
  with tf.Graph().as_default() as graph:
    a = tf1.placeholder(tf.float32, [2, 3])
    dot = xla.dot_general(
      a,
      a,
      xla_data_pb2.DotDimensionNumbers(
        lhs_contracting_dimensions=[1], rhs_contracting_dimensions=[1]
      ),
      xla_data_pb2.PrecisionConfig(operand_precision=[highest] * 2),
    )
    assert dot.shape == [2, 2]
    xla.replica_id()
  (node,) = [node for node in graph.as_graph_def().node if 'Dot' in node.op]
  config = xla_data_pb2.PrecisionConfig.FromString(
    node.attr['precision_config'].s
  )
  assert list(config.operand_precision) == [highest] * 2
  assert 'XlaReplicaId' in [op.type for op in graph.get_operations()]


def test_collectives_of_tpu_cores_have_gradients():
  from tensorflow.python.tpu import tpu_function
  from tensorflow.python.tpu.ops import tpu_ops

  with tf.Graph().as_default() as graph, tpu_function.tpu_shard_context(4):
    x = tf1.placeholder(tf.float32, [4, 3])
    total = tpu_ops.cross_replica_sum(x)
    parts = tpu_ops.all_to_all(
      x, concat_dimension=0, split_dimension=0, split_count=4
    )
    assert tf1.gradients([total, parts], x)[0].shape == [4, 3]
  kinds = [op.type for op in graph.get_operations()]
  assert kinds.count('CrossReplicaSum') == kinds.count('AllToAll') == 2


def test_estimators_write_to_the_writer_that_is_cached(tmp_path):
  cache = tf1.summary.FileWriterCache
  with tf.Graph().as_default():
    writer = tf1.summary.FileWriter(str(tmp_path / 'elsewhere'))
  cache._cache['model'] = writer
  try:
    assert cache.get('model') is writer
  finally:
    del cache._cache['model']


def test_determinism_can_be_turned_on_and_off():
  from tensorflow.python.framework import config

  config.enable_op_determinism()
  try:
    with tf.Graph().as_default(), pytest.raises(RuntimeError, match='seed'):
      tf1.Session().run(tf1.random_uniform([]))
  finally:
    config.disable_op_determinism()
  with tf.Graph().as_default():
    assert 0 <= tf1.Session().run(tf1.random_uniform([])) < 1


def test_the_file_checkpoint_is_what_the_protobuf_says(tmp_path):
  from google.protobuf import text_format
  from tensorflow.python.training import checkpoint_state_pb2

  with tf.Graph().as_default(), tf1.Session() as session:
    tf1.get_variable('x', initializer=np.float32(1))
    session.run(tf1.global_variables_initializer())
    tf1.train.Saver().save(session, str(tmp_path / 'model.ckpt'), 3)
  state = text_format.Parse(
    (tmp_path / 'checkpoint').read_text(),
    checkpoint_state_pb2.CheckpointState(),
  )
  assert state.model_checkpoint_path.endswith('model.ckpt-3')
