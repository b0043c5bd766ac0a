"""Tests of supcon.serving.saved_model: a real export, loaded as users do."""

import pathlib

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from supcon import devices
from supcon import estimators
from supcon import hparams
from supcon import run_options
from supcon.models import contrastive
from supcon.serving import saved_model
from supcon.training import stages
from tests import golden
from tests import model_functions

tf1 = tf.compat.v1

_NUM_CLASSES = 5
_SIDE = 12
_PARAMS = hparams.HParams(
  batch_size=4,
  architecture=hparams.Architecture(
    encoder_depth=18, encoder_width=1 / 16, projection_head_layers=(8, 6)
  ),
)
_GOLDEN = golden.json('signatures.json')
_SIGNATURES = _GOLDEN['signatures']
_SIZES = {  # As the published facts call them.
  '?': None,
  'D': 512 // 16,
  'P': 6,
  'C': _NUM_CLASSES,
}


@pytest.fixture(scope='module', name='checkpoint')
def _checkpoint(tmp_path_factory):
  with tf.Graph().as_default():
    model = contrastive.ContrastiveModel(_PARAMS.architecture, _NUM_CLASSES)
    shapes = {v.op.name: v.shape.as_list() for v in model.variables}
  values = {
    name: tf.constant(golden.variable(name, shape))
    for name, shape in shapes.items()
  }
  values['global_step'] = tf.constant(3, tf.int64)
  prefix = str(tmp_path_factory.mktemp('model_dir') / 'model.ckpt-3')
  tf.raw_ops.SaveV2(
    prefix=prefix,
    tensor_names=list(values),
    shape_and_slices=[''] * len(values),
    tensors=list(values.values()),
  )
  return prefix


@pytest.fixture(scope='module', name='path')
def _path(checkpoint, tmp_path_factory):
  """Exports the checkpoint as the jobs do; returns where the SavedModel is."""
  model_dir = str(tmp_path_factory.mktemp('export'))
  run = stages.plan(_PARAMS, 40)
  function = model_functions.make(
    _PARAMS,
    run,
    run.stages[1],
    _NUM_CLASSES,
    model_dir=model_dir,
  )
  options = run_options.RunOptions(model_dir=model_dir, use_tpu=False)
  estimator = estimators.build(
    options,
    devices.find(options),
    function,
    train_batch_size=4,
    eval_batch_size=4,
    seed=0,
  )
  exported = estimator.export_saved_model(
    f'{model_dir}/exports',
    saved_model.serving_input_receiver_fn(_SIDE),
    checkpoint_path=checkpoint,
  )
  return exported.decode()


@pytest.fixture(scope='module', name='signatures')
def _signatures(path):
  """The signatures, as TensorFlow 2 finds them without any further argument."""
  loaded = tf.saved_model.load(path)
  # A signature does not keep alive what it was loaded with.
  yield loaded.signatures
  del loaded


def _images(count, seed=0):
  rng = np.random.RandomState(seed)
  return rng.uniform(-1, 1, [count, _SIDE, _SIDE, 3]).astype(np.float32)


def _run(signature, images):
  outputs = signature(**{saved_model.INPUT: tf.constant(images)})
  return {name: output.numpy() for name, output in outputs.items()}


# --- What is in it ------------------------------------------------------------


def test_one_graph_for_everyone(path):
  proto = saved_model_pb2.SavedModel()
  proto.ParseFromString((pathlib.Path(path) / 'saved_model.pb').read_bytes())
  (graph,) = proto.meta_graphs
  assert [*graph.meta_info_def.tags] == ['serve']
  for name in _SIGNATURES:
    assert graph.signature_def[name].method_name == _GOLDEN['method_name']
  assert (pathlib.Path(path) / 'variables' / 'variables.index').exists()


def test_signatures_are_the_published_ones(signatures):
  assert set(signatures) == set(_SIGNATURES)


@pytest.mark.parametrize('name', sorted(_SIGNATURES))
def test_input_and_outputs_are_the_published_ones(signatures, name):
  published_input = _GOLDEN['input']
  positional, inputs = signatures[name].structured_input_signature
  assert positional == ()
  assert set(inputs) == {published_input['key']}
  spec = inputs[published_input['key']]
  assert spec.dtype == published_input['dtype']
  assert spec.shape.as_list() == [
    _SIDE if size == 'image_size' else size for size in published_input['shape']
  ]
  outputs = signatures[name].structured_outputs
  assert {key: spec.shape.as_list() for key, spec in outputs.items()} == {
    key: [_SIZES[size] for size in shape]
    for key, shape in _SIGNATURES[name]['outputs'].items()
  }
  assert {spec.dtype.name for spec in outputs.values()} == {
    _GOLDEN['output_dtype']
  }


# --- What it computes ---------------------------------------------------------


@pytest.mark.parametrize('name', sorted(_SIGNATURES))
def test_any_number_of_images(signatures, name):
  for count in (1, 5):
    outputs = _run(signatures[name], _images(count))
    assert {output.shape[0] for output in outputs.values()} == {count}
    assert all(np.all(np.isfinite(output)) for output in outputs.values())


def test_serving_default_is_contrastive_eval(signatures):
  default = _run(signatures['serving_default'], _images(3))
  for name, value in _run(signatures['contrastive_eval'], _images(3)).items():
    np.testing.assert_array_equal(default[name], value)


def test_only_contrastive_train_depends_on_the_batch(signatures):
  images = _images(4)
  expected = {'contrastive_eval': False, 'contrastive_train': True}
  for name, depends in expected.items():
    all_four = _run(signatures[name], images)
    two = _run(signatures[name], images[:2])
    for output, value in two.items():
      differs = np.max(np.abs(all_four[output][:2] - value)) > 1e-3
      assert differs == depends, (name, output)


def test_embeddings_and_projections_have_unit_length(signatures):
  for signature in signatures.values():
    outputs = _run(signature, _images(3))
    raw = outputs['unnormalized_embeddings']
    length = np.linalg.norm(raw, axis=1, keepdims=True)
    assert np.all(np.abs(length - 1) > 0.01)
    np.testing.assert_allclose(outputs['embeddings'], raw / length, rtol=1e-5)
    np.testing.assert_allclose(
      np.linalg.norm(outputs['projection'], axis=1), np.ones(3), rtol=1e-5
    )


@pytest.mark.parametrize('training', [False, True])
def test_outputs_are_those_of_the_model(checkpoint, signatures, training):
  images = _images(6, seed=1)
  with tf.Graph().as_default(), tf1.Session() as session:
    model = contrastive.ContrastiveModel(_PARAMS.architecture, _NUM_CLASSES)
    outputs = model(tf.constant(images), training)
    tf1.train.Saver(model.variables).restore(session, checkpoint)
    expected = session.run(outputs)
  name = 'contrastive_train' if training else 'contrastive_eval'
  actual = _run(signatures[name], images)
  for output, value in (
    ('embeddings', expected.normalized_embedding[:, 0]),
    ('unnormalized_embeddings', expected.embedding[:, 0]),
    ('projection', expected.projection[:, 0]),
    ('logits', expected.logits),
  ):
    scale = np.max(np.abs(value))
    np.testing.assert_allclose(actual[output], value, atol=1e-5 * scale)


def test_a_view_means_the_same_as_in_an_evaluation(checkpoint, signatures):
  views = [_images(4, seed=2), _images(4, seed=3)]
  with tf.Graph().as_default(), tf1.Session() as session:
    model = contrastive.ContrastiveModel(_PARAMS.architecture, _NUM_CLASSES)
    outputs = model(tf.constant(np.concatenate(views, axis=-1)), training=False)
    tf1.train.Saver(model.variables).restore(session, checkpoint)
    expected = session.run(outputs)
  first, second = (_run(signatures['contrastive_eval'], view) for view in views)
  np.testing.assert_allclose(
    [first['projection'], second['projection']],
    np.moveaxis(expected.projection, 1, 0),
    atol=1e-5,
  )
  np.testing.assert_allclose(
    first['logits'],
    expected.logits,
    atol=1e-5 * np.max(np.abs(expected.logits)),
  )
