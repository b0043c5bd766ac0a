"""Tests of supcon.serving.hub_module: a real module, used by hub.Module.

hub_module_test.py has those that need none.
"""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2
import tensorflow_hub as hub

from supcon.models import layers
from supcon.serving import hub_module
from supcon.serving import trained_models
from tests.serving import exported

tf1 = tf.compat.v1

pytestmark = pytest.mark.hub_module

_TAGS = {False: None, True: {'train'}}
_NUM_BATCH_NORMS = 1 + 4 * 2 * 2 + 4  # Stem, blocks of two, shortcuts.


@pytest.fixture(name='path')
def _path(export):
  """Of the module, in a graph of TensorFlow 1."""
  with tf.Graph().as_default():
    yield export.hub_module


def _collection(name):
  return tf1.get_collection(getattr(tf1.GraphKeys, name))


def _images():
  return tf.constant(exported.unit_range(exported.images()))


def _values(module, session):
  return session.run(module.variable_map)


def _assert_same_bits(actual, expected):
  assert set(actual) == set(expected)
  for name, value in actual.items():
    assert value.tobytes() == expected[name].tobytes(), name


def test_what_it_says_of_itself(path):
  spec = hub.load_module_spec(path)
  assert {*spec.get_tags()} == {frozenset(), frozenset({'train'})}
  side = exported.SIDE
  for tags in (None, {'train'}):
    assert sorted(spec.get_signature_names(tags)) == [
      'default',
      'image_classification',
      'image_feature_vector',
    ]
    for name in spec.get_signature_names(tags):
      (info,) = spec.get_input_info_dict(name, tags).items()
      assert info[0] == 'images'
      assert info[1].get_shape().as_list() == [None, side, side, 3]
      assert info[1].dtype == tf.float32
  assert hub.get_num_image_channels(spec) == 3


@pytest.mark.parametrize('training', [False, True])
def test_it_knows_the_size_of_images(path, training):
  module = hub.Module(path, tags=_TAGS[training])
  expected = [exported.SIDE, exported.SIDE]
  assert hub.get_expected_image_size(module) == expected
  # Attached, as the common signature says; not only guessed from the input.
  info = hub.image_util.get_image_module_info(module, required=True)
  size = info.default_image_size
  assert [size.height, size.width] == expected


def test_the_directory_above_says_where_it_is(export, tmp_path):
  # Of a module alone. With a SavedModel there hub.load would not open that.
  hub_module.write_signpost(str(tmp_path), 'hub')
  with pytest.raises(ValueError, match='its TF-Hub module is in hub/'):
    hub.Module(str(tmp_path))
  with pytest.raises(tf.errors.NotFoundError, match='tfhub_module.pb'):
    hub.Module(export.saved_model)


def test_variables_are_those_of_the_checkpoint(path, checkpoint):
  module = hub.Module(path)
  with tf1.Session() as session:
    session.run(tf1.global_variables_initializer())
    _assert_same_bits(_values(module, session), exported.values(checkpoint))


@pytest.mark.parametrize('training', [False, True])
def test_outputs_are_those_of_the_model(path, expected, training):
  module = hub.Module(path, tags=_TAGS[training])
  default = module(_images())
  by_name = module(_images(), as_dict=True)
  classification = module(_images(), signature='image_classification')
  features = module(_images(), signature='image_feature_vector')
  outputs = expected.outputs[training]
  with tf1.Session() as session:
    session.run(tf1.global_variables_initializer())
    found = session.run(by_name)
    assert set(found) == {
      *exported.NAMES,
      'default',
      'normalized_embeddings',
    }
    exported.assert_close({'logits': found.pop('default')}, outputs)
    exported.assert_close(found, outputs)
    for logits in session.run([default, classification]):
      exported.assert_close({'logits': logits}, outputs)
    exported.assert_close(
      {'unnormalized_embeddings': session.run(features)}, outputs
    )


def test_collections_of_a_trainable_module(path, checkpoint):
  module = hub.Module(path, trainable=True, tags={'train'})
  losses = _collection('REGULARIZATION_LOSSES')
  assert len(losses) == 3
  assert not _collection('UPDATE_OPS')
  names = {v.op.name for v in tf1.trainable_variables()}
  assert names == {
    f'module/{name}'
    for name in exported.values(checkpoint)
    if 'moving_' not in name
  }
  for calls in (1, 2):
    module(_images())
    assert len(_collection('UPDATE_OPS')) == calls * 2 * _NUM_BATCH_NORMS
    assert _collection('REGULARIZATION_LOSSES') == losses
  # Encoder, projection head, classifier: sums of v^2/2, without coefficient.
  with tf1.Session() as session:
    session.run(tf1.global_variables_initializer())
    np.testing.assert_allclose(
      session.run(losses),
      exported.norms(exported.values(checkpoint)),
      rtol=1e-5,
    )


def test_updates_move_the_statistics_as_training_does(path, expected):
  module = hub.Module(path, trainable=True, tags={'train'})
  logits = module(_images())
  with tf1.Session() as session:
    session.run(tf1.global_variables_initializer())
    session.run(logits)  # Alone it moves nothing.
    session.run(_collection('UPDATE_OPS'))
    for name, value in _values(module, session).items():
      np.testing.assert_allclose(
        value, expected.moved[name], rtol=1e-4, atol=1e-5, err_msg=name
      )


def test_frozen_it_has_nothing_to_train_and_nothing_changes(path, checkpoint):
  module = hub.Module(path)
  outputs = module(_images(), as_dict=True)
  for name in ('REGULARIZATION_LOSSES', 'UPDATE_OPS', 'TRAINABLE_VARIABLES'):
    assert not _collection(name), name
  with tf1.Session() as session:
    session.run(tf1.global_variables_initializer())
    for _ in range(2):
      session.run(outputs)
    _assert_same_bits(_values(module, session), exported.values(checkpoint))


def test_trained_with_frozen_statistics(path):
  # Without the tag: weights and their norms, but batch norm in inference mode.
  module = hub.Module(path, trainable=True)
  module(_images())
  assert len(_collection('REGULARIZATION_LOSSES')) == 3
  assert not _collection('UPDATE_OPS')
  assert tf1.trainable_variables()


def test_learns_digits(path, checkpoint):
  images, labels = exported.digits_to_learn()
  module = hub.Module(path, trainable=True, tags={'train'})
  loss = tf1.losses.sparse_softmax_cross_entropy(
    labels, module(tf.constant(images))
  )
  total = loss + 0.01 * tf.add_n(_collection('REGULARIZATION_LOSSES'))
  with tf.control_dependencies(_collection('UPDATE_OPS')):
    train_op = tf1.train.GradientDescentOptimizer(0.5).minimize(total)
  # Training stops the gradient of logits at the classifier, for the sake of the
  # contrastive loss; here it reaches the encoder.
  variables = tf1.trainable_variables()
  gradients = tf1.gradients(loss, variables)
  for variable, gradient in zip(variables, gradients):
    in_projection_head = 'ProjectionHead' in variable.name
    assert (gradient is None) == in_projection_head, variable.name
  with tf1.Session() as session:
    session.run(tf1.global_variables_initializer())
    losses = [session.run([loss, train_op])[0] for _ in range(10)]
    after = _values(module, session)
  assert losses[-1] < 0.8 * losses[0], losses
  for name, value in exported.values(checkpoint).items():
    assert np.any(value != after[name]), name


# --- What tensorflow_hub would have written -----------------------------------


def _write_by_tensorflow_hub(model, path):
  """Writes the module as tensorflow_hub 0.15 does."""

  def build(training):
    size = model.image_size
    network = model.build()
    images = tf1.placeholder(tf.float32, [None, size, size, 3], 'images')
    raw = network(model.from_unit_range(images), training)
    outputs = trained_models.named(raw)
    norms = network.weight_norms(model.params.loss.include_bias_in_weight_decay)
    for norm in norms.values():
      tf1.add_to_collection('regularization_losses', norm)
    for update in layers.move_averages(raw.batch_statistics):
      tf1.add_to_collection('update_ops', update.op)
    for name, keys in trained_models.IMAGE_SIGNATURES.items():
      named = {output: outputs[key] for output, key in keys.items()}
      hub.add_signature(name, inputs={'images': images}, outputs=named)
    info = hub.ImageModuleInfo()
    info.default_image_size.height = size
    info.default_image_size.width = size
    hub.attach_image_module_info(info)

  hub.create_module_spec(
    build,
    tags_and_args=[
      (set(), {'training': False}),
      ({'train'}, {'training': True}),
    ],
  ).export(path, checkpoint_path=model.checkpoint)


def test_it_is_what_tensorflow_hub_writes(model, tmp_path):
  params = model.params.replace('input_data.preprocessing.image_size', 224)
  model = dataclasses.replace(model, params=params)
  ours, theirs = tmp_path / 'ours', tmp_path / 'theirs'
  hub_module.write(model, str(ours))
  _write_by_tensorflow_hub(model, str(theirs))
  files = exported.tree(ours), exported.tree(theirs)
  assert set(files[0]) == set(files[1])
  assert files[0]['tfhub_module.pb'] == files[1]['tfhub_module.pb']
  # Messages, for maps have no order in the file.
  protos = []
  for each in files:
    protos.append(saved_model_pb2.SavedModel())
    protos[-1].ParseFromString(each['saved_model.pb'])
  assert protos[0] == protos[1]
  ours, theirs = (
    exported.values(str(path / 'variables' / 'variables'))
    for path in (ours, theirs)
  )
  _assert_same_bits(ours, theirs)
