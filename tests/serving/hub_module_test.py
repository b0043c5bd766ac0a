"""Tests of supcon.serving.hub_module: what it writes.

hub_load_test.py and tensorflow_1_test.py use it as others do.
"""

import dataclasses
import pathlib

import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from supcon.serving import hub_module
from tests.serving import exported

_COLLECTIONS = {
  'hub_module_attachments',
  'regularization_losses',
  'trainable_variables',
  'variables',
}


@pytest.fixture(scope='module', name='path')
def _path(model, tmp_path_factory):
  path = tmp_path_factory.mktemp('hub') / 'module'
  hub_module.write(model, str(path))
  return path


@pytest.fixture(scope='module', name='graphs')
def _graphs(path):
  return _meta_graphs(path)


def _meta_graphs(path):
  """Returns {tags: MetaGraphDef}."""
  proto = saved_model_pb2.SavedModel()
  proto.ParseFromString((path / 'saved_model.pb').read_bytes())
  return {tuple(graph.meta_info_def.tags): graph for graph in proto.meta_graphs}


def test_files(path):
  assert set(exported.tree(path)) == {
    'saved_model.pb',
    'tfhub_module.pb',
    'variables/variables.data-00000-of-00001',
    'variables/variables.index',
  }
  # Field 1, an integer: 3, FORMAT_V3.
  assert (path / 'tfhub_module.pb').read_bytes() == b'\x08\x03'


def test_a_signpost_says_where_the_module_is(tmp_path):
  hub_module.write_signpost(str(tmp_path), 'hub')
  text = b'this directory is no module: its TF-Hub module is in hub/'
  # Field 1 is 3, as above; field 2 a string, tagged 18, of 57 bytes.
  assert len(text) == 57
  content = (tmp_path / 'tfhub_module.pb').read_bytes()
  assert content == b'\x08\x03\x12\x39' + text


def test_a_graph_without_tags_and_one_to_train(graphs):
  assert set(graphs) == {(), ('train',)}
  for graph in graphs.values():
    assert set(graph.signature_def) == {
      'default',
      'image_classification',
      'image_feature_vector',
    }
    # What nobody asks for would be in each graph that uses the module.
    assert not {'SaveV2', 'RestoreV2'} & {n.op for n in graph.graph_def.node}
    assert not graph.HasField('saver_def')


def test_only_the_graph_to_train_has_updates(graphs):
  assert set(graphs[()].collection_def) == _COLLECTIONS
  assert set(graphs['train',].collection_def) == {*_COLLECTIONS, 'update_ops'}


@pytest.mark.parametrize(
  'size, attachment',
  [
    # {1: 'image_module_info', 2: {1: {1: 12, 2: 12}}}: strings and messages,
    # tagged 10 and 18, have their length before them, integers are tagged 8 and
    # 16. The key is 17 long, the inner messages 6 and 4.
    (12, b'\x0a\x11image_module_info\x12\x06\x0a\x04\x08\x0c\x10\x0c'),
    # 224 = 1 * 128 + 96 takes two bytes: 96 + 128, for more is to come, and 1.
    (
      224,
      b'\x0a\x11image_module_info\x12\x08\x0a\x06\x08\xe0\x01\x10\xe0\x01',
    ),
  ],
)
def test_the_size_of_images_is_attached(model, tmp_path, size, attachment):
  params = model.params.replace('input_data.preprocessing.image_size', size)
  hub_module.write(dataclasses.replace(model, params=params), str(tmp_path))
  for graph in _meta_graphs(tmp_path).values():
    attached = graph.collection_def['hub_module_attachments']
    assert [*attached.bytes_list.value] == [attachment]
    shape = graph.signature_def['default'].inputs['images'].tensor_shape
    assert [dim.size for dim in shape.dim] == [-1, size, size, 3]


def test_variables_are_those_of_the_checkpoint(path, checkpoint):
  found = exported.values(str(path / 'variables' / 'variables'))
  expected = exported.values(checkpoint)
  assert set(found) == set(expected)
  for name, value in expected.items():
    assert found[name].dtype == value.dtype
    assert found[name].tobytes() == value.tobytes(), name


def test_nothing_of_where_it_was_made(path, graphs, checkpoint):
  for graph in graphs.values():
    assert {node.device for node in graph.graph_def.node} == {''}
  for content in exported.tree(path).values():
    assert str(pathlib.Path(checkpoint).parent).encode() not in content
    assert b'/tmp' not in content


def test_a_device_scope_around_it_is_not_in_it(model, path, tmp_path):
  with tf.Graph().as_default(), tf.device('/job:worker/gpu:7'):
    hub_module.write(model, str(tmp_path))
  assert exported.tree(tmp_path) == exported.tree(path)
