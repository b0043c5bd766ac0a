"""Tests of supcon.serving.saved_model: a real export, loaded as users do."""

import io
import pathlib

import numpy as np
from PIL import Image
from PIL import ImageOps
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import fingerprint_pb2
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow.core.protobuf import trackable_object_graph_pb2
from tensorflow.python.saved_model.pywrap_saved_model import fingerprinting
import tensorflow_hub as hub

from supcon.data.views import preprocessing
from supcon.models import contrastive
from supcon.serving import saved_model
from supcon.serving import trained_models
from tests import golden
from tests.serving import exported

tf1 = tf.compat.v1

_SIDE = exported.SIDE
_PARAMS = exported.PARAMS
_GOLDEN = golden.json('signatures.json')
_SIGNATURES = _GOLDEN['signatures']
_IMAGE_SIGNATURES = ('default', 'image_classification', 'image_feature_vector')
_SIZES = {  # As the published facts call them.
  '?': None,
  'D': 512 // 16,
  'P': 6,
  'C': 10,
}


@pytest.fixture(scope='module', name='path')
def _path(export):
  return export.saved_model


@pytest.fixture(scope='module', name='loaded')
def _loaded(path):
  """As TensorFlow 2 loads it; not for tests that train."""
  return tf.saved_model.load(path)


@pytest.fixture(scope='module', name='signatures')
def _signatures(loaded):
  return loaded.signatures


@pytest.fixture(scope='module', name='proto')
def _proto(path):
  proto = saved_model_pb2.SavedModel()
  proto.ParseFromString((pathlib.Path(path) / 'saved_model.pb').read_bytes())
  return proto


def _images(count, seed=0):
  rng = np.random.RandomState(seed)
  return rng.uniform(-1, 1, [count, _SIDE, _SIDE, 3]).astype(np.float32)


def _numpy(outputs):
  return {name: output.numpy() for name, output in outputs.items()}


def _run(signature, images):
  return _numpy(signature(**{saved_model.INPUT: tf.constant(images)}))


def _values(loaded):
  return {v.name.removesuffix(':0'): v.numpy() for v in loaded.variables}


def _assert_same_bits(actual, expected):
  assert set(actual) == set(expected)
  for name, value in actual.items():
    assert value.tobytes() == expected[name].tobytes(), name


def _moving(values):
  return {name: value for name, value in values.items() if 'moving_' in name}


# --- What is in it ------------------------------------------------------------


def test_one_graph_for_everyone(path, proto):
  (graph,) = proto.meta_graphs
  assert [*graph.meta_info_def.tags] == ['serve']
  for name in _SIGNATURES:
    assert graph.signature_def[name].method_name == _GOLDEN['method_name']
  assert (pathlib.Path(path) / 'variables' / 'variables.index').exists()


def test_the_network_is_in_it_once_for_training_and_once_for_inference(proto):
  (graph,) = proto.meta_graphs
  functions = graph.graph_def.library.function
  with_convolutions = [
    function.signature.name
    for function in functions
    if any(node.op == 'Conv2D' for node in function.node_def)
  ]
  assert len(with_convolutions) == 2, with_convolutions
  # Everything else is small: 12 variants of __call__, 8 signatures ...
  assert len(functions) > 20
  # ... and saving and restoring, which know every variable.
  assert not [
    function.signature.name
    for function in functions
    if len(function.node_def) > 200
    and function.signature.name not in with_convolutions
    and not any(
      word in function.signature.name
      for word in ('traced_save', 'traced_restore', 'cond_true')
    )
  ]


def test_nothing_but_reading_and_writing_is_bound_to_a_device(proto):
  (graph,) = proto.meta_graphs
  for function in graph.graph_def.library.function:
    if 'traced' not in function.signature.name:
      assert {node.device for node in function.node_def} <= {''}


def test_published_signatures_are_all_there(signatures):
  assert set(signatures) == {
    *_SIGNATURES,
    *_IMAGE_SIGNATURES,
    saved_model.BYTES_SIGNATURE,
  }


def test_the_first_signature_is_the_one_to_be_served(path, loaded):
  # Tools that are told none take the first, as TensorFlow loads them ...
  assert next(iter(loaded.signatures)) == 'serving_default'
  # ... or as they are in the file: entries of a map, whose field 1 (10 is its
  # tag), a string with its length before it, is the key.
  content = (pathlib.Path(path) / 'saved_model.pb').read_bytes()
  places = {
    name: content.index(b'\n' + bytes([len(name)]) + name.encode())
    for name in loaded.signatures
  }
  assert min(places, key=places.get) == 'serving_default'


def test_the_file_is_the_one_that_tensorflow_has_written(path):
  # It holds checksums of the graph, the signatures and the whole.
  fingerprint = pathlib.Path(path) / 'fingerprint.pb'
  written = fingerprint_pb2.FingerprintDef.FromString(fingerprint.read_bytes())
  found = fingerprint_pb2.FingerprintDef.FromString(
    fingerprinting.CreateFingerprintDef(path)
  )
  # The others say which TensorFlow wrote it, and when.
  for name in (
    'saved_model_checksum',
    'graph_def_program_hash',
    'signature_def_hash',
    'saved_object_graph_hash',
    'checkpoint_hash',
  ):
    assert getattr(found, name) == getattr(written, name), name


def _entry(key):
  # Field 5, a message: field 1, the key, and field 2, an empty message.
  key = b'\x0a' + bytes([len(key)]) + key + b'\x12\x00'
  return b'\x2a' + bytes([len(key)]) + key


@pytest.mark.parametrize(
  'keys, ordered',
  [
    ([b'a', b'bb', b'ccc'], [b'bb', b'a', b'ccc']),
    ([b'bb', b'a'], [b'bb', b'a']),
    ([b'a', b'ccc'], [b'a', b'ccc']),
    ([], []),
  ],
)
def test_a_signature_is_put_first(keys, ordered):
  # Before and after them fields 1, of 300 bytes, and 9, of 4 bytes; around the
  # graph, field 2, are an integer, 300 = 172 - 128 + 2 * 128, and 8 bytes.
  before = b'\x0a\xac\x02' + b'\x2a' * 300
  after = b'\x4d' + b'\x2a' * 4

  def content(keys):
    graph = before + b''.join(map(_entry, keys)) + after
    length = bytes([len(graph) % 128 + 128, len(graph) // 128])
    return b'\x08\xac\x02\x12' + length + graph + b'\x19' + b'\x12' * 8

  found = saved_model.with_signature_first(content(keys), 'bb')
  assert found == content(ordered)


def _assert_outputs_are_published(signature, outputs):
  specs = signature.structured_outputs
  assert {key: spec.shape.as_list() for key, spec in specs.items()} == {
    key: [_SIZES[size] for size in shape] for key, shape in outputs.items()
  }
  assert {spec.dtype.name for spec in specs.values()} == {
    _GOLDEN['output_dtype']
  }


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
  _assert_outputs_are_published(signatures[name], _SIGNATURES[name]['outputs'])


def test_input_and_outputs_of_encoded_images(signatures):
  signature = signatures['serving_bytes']
  _, inputs = signature.structured_input_signature
  assert set(inputs) == {'image_bytes'}
  assert inputs['image_bytes'].dtype == tf.string
  assert inputs['image_bytes'].shape.as_list() == [None]
  _assert_outputs_are_published(
    signature, _SIGNATURES['serving_default']['outputs']
  )


@pytest.mark.parametrize('name', _IMAGE_SIGNATURES)
def test_common_signatures_take_images(signatures, name):
  _, inputs = signatures[name].structured_input_signature
  assert set(inputs) == {'images'}
  assert inputs['images'].shape.as_list() == [None, _SIDE, _SIDE, 3]
  assert inputs['images'].dtype == tf.float32


def test_variables_have_their_names_in_file_and_in_memory(
  path, loaded, checkpoint
):
  expected = exported.values(checkpoint)
  _assert_same_bits(_values(loaded), expected)
  assert {v.name.removesuffix(':0') for v in loaded.trainable_variables} == {
    name for name in expected if 'moving_' not in name
  }
  reader = tf.train.load_checkpoint(f'{path}/variables/variables')
  graph = trackable_object_graph_pb2.TrackableObjectGraph()
  graph.ParseFromString(reader.get_tensor('_CHECKPOINTABLE_OBJECT_GRAPH'))
  in_file = {
    attribute.full_name: reader.get_tensor(attribute.checkpoint_key)
    for node in graph.nodes
    for attribute in node.attributes
  }
  _assert_same_bits(in_file, expected)


# --- What signatures compute --------------------------------------------------


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
  for name in _SIGNATURES:
    outputs = _run(signatures[name], _images(3))
    raw = outputs['unnormalized_embeddings']
    length = np.linalg.norm(raw, axis=1, keepdims=True)
    assert np.all(np.abs(length - 1) > 0.01)
    np.testing.assert_allclose(outputs['embeddings'], raw / length, rtol=1e-5)
    np.testing.assert_allclose(
      np.linalg.norm(outputs['projection'], axis=1), np.ones(3), rtol=1e-5
    )


@pytest.mark.parametrize('name', sorted(_SIGNATURES))
def test_outputs_are_those_of_the_model(signatures, expected, name):
  outputs = _run(signatures[name], exported.model_input(exported.images()))
  assert set(outputs) == set(exported.NAMES)
  exported.assert_close(outputs, expected.outputs[name == 'contrastive_train'])


def test_a_view_means_the_same_as_in_an_evaluation(checkpoint, signatures):
  views = [_images(4, seed=2), _images(4, seed=3)]
  with tf.Graph().as_default(), tf1.Session() as session:
    model = contrastive.ContrastiveModel(_PARAMS.architecture, 10)
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


def test_common_signatures_are_the_model_on_the_unit_range(
  signatures, expected
):
  images = tf.constant(exported.unit_range(exported.images()))
  outputs = expected.outputs[False]
  default = _numpy(signatures['default'](images=images))
  exported.assert_close({'logits': default.pop('default')}, outputs)
  assert set(default) == {*exported.NAMES, 'normalized_embeddings'}
  exported.assert_close(default, outputs)
  for name, output in (
    ('image_classification', 'logits'),
    ('image_feature_vector', 'unnormalized_embeddings'),
  ):
    found = _numpy(signatures[name](images=images))
    assert set(found) == {'default'}
    exported.assert_close({output: found['default']}, outputs)


def _encoded(pixels, kind):
  file = io.BytesIO()
  image = Image.fromarray(pixels)
  if kind == 'palette':
    image.quantize(16).save(file, 'BMP')
  else:
    image.save(file, kind)
  return file.getvalue()


def _files():
  """Returns image files of several kinds and sizes."""
  rng = np.random.RandomState(5)
  kinds = ('JPEG', 'PNG', 'BMP', 'GIF', 'palette')
  sizes = ((40, 31), (17, 17), (12, 50), (9, 8), (23, 30))
  return [
    _encoded(rng.randint(0, 256, [*size, 3]).astype(np.uint8), kind)
    for kind, size in zip(kinds, sizes)
  ]


def test_encoded_images_are_seen_as_in_an_evaluation(signatures):
  files = _files()
  # A palette is for Pillow to look up: TensorFlow cannot.
  with Image.open(io.BytesIO(files[-1])) as image:
    looked_up = _encoded(np.array(image.convert('RGB')), 'PNG')
  options = _PARAMS.input_data.preprocessing
  views = [
    preprocessing.eval_views(
      tf.constant(file), tf.constant([7, index]), options, True, None
    )
    for index, file in enumerate([*files[:-1], looked_up])
  ]
  batch = tf.nest.map_structure(lambda *values: tf.stack(values), *views)
  assert batch['images'].shape == [5, 2, _SIDE, _SIDE, 3]
  seen = preprocessing.finish_on_host(
    batch, options, exported.MEAN, exported.STD, tf.float32
  )
  expected = _run(signatures['contrastive_eval'], seen['images'][:, 0])
  actual = signatures['serving_bytes'](image_bytes=tf.constant(files))
  exported.assert_close(_numpy(actual), expected)


def test_photos_of_a_turned_camera_are_seen_upright(signatures):
  # Grey, since a decoder smooths chroma beyond the border of a window.
  levels = np.random.RandomState(6).randint(0, 256, (5, 7))
  stored = Image.fromarray(levels.astype(np.uint8)).resize((40, 31))
  photos, upright = [], []
  for orientation in range(1, 9):
    exif = Image.Exif()
    exif[0x112] = orientation
    file = io.BytesIO()
    stored.save(file, 'JPEG', exif=exif)
    photos.append(file.getvalue())
    image = Image.fromarray(tf.io.decode_jpeg(photos[-1]).numpy()[..., 0])
    image.getexif()[0x112] = orientation
    image = np.asarray(ImageOps.exif_transpose(image))
    upright.append(_encoded(image, 'PNG'))
  found, expected = (
    _numpy(signatures['serving_bytes'](image_bytes=tf.constant(files)))
    for files in (photos, upright)
  )
  exported.assert_close(found, expected)
  # They are eight images.
  assert len(np.unique(expected['logits'][:, 0])) == 8


# --- Called -------------------------------------------------------------------


def _all_outputs(loaded, training):
  images = exported.unit_range(exported.images())
  return {
    name: loaded(images, training=training, output=name).numpy()
    for name in trained_models.OUTPUTS
  }


def test_call_returns_what_is_asked_for(loaded, expected):
  outputs = _all_outputs(loaded, training=False)
  assert set(outputs) == {*exported.NAMES, 'normalized_embeddings'}
  exported.assert_close(outputs, expected.outputs[False])
  together = _numpy(
    loaded(exported.unit_range(exported.images()), output='all')
  )
  assert set(together) == set(outputs)
  exported.assert_close(together, expected.outputs[False])
  # Logits unless asked for something else, as the common signature demands.
  images = exported.unit_range(exported.images())
  np.testing.assert_array_equal(loaded(images).numpy(), outputs['logits'])


def test_call_in_training_moves_the_statistics_each_time(path, expected):
  loaded = tf.saved_model.load(path)
  images = exported.unit_range(exported.images())
  exported.assert_close(
    {'logits': loaded(images, training=True).numpy()}, expected.outputs[True]
  )
  moved = _values(loaded)
  for name, value in moved.items():
    np.testing.assert_allclose(
      value, expected.moved[name], rtol=1e-4, atol=1e-5, err_msg=name
    )
  exported.assert_close(
    _all_outputs(loaded, training=True), expected.outputs[True]
  )
  for name, value in _moving(_values(loaded)).items():
    assert np.any(value != moved[name]), name


def test_nothing_else_changes_any_variable(loaded, checkpoint):
  images = tf.constant(exported.unit_range(exported.images()))
  _all_outputs(loaded, training=False)
  for name in _SIGNATURES:  # Also contrastive_train.
    _run(loaded.signatures[name], _images(4))
  for name in _IMAGE_SIGNATURES:
    loaded.signatures[name](images=images)
  loaded.signatures['serving_bytes'](image_bytes=tf.constant(_files()))
  hub.KerasLayer(loaded)(images, training=True)  # It is not trainable.
  _assert_same_bits(_values(loaded), exported.values(checkpoint))


def test_regularization_losses_are_scaled(loaded, checkpoint):
  # 0.01 is the weight decay of stage 2; stage 1 has no epochs.
  losses = [loss().numpy() for loss in loaded.regularization_losses]
  norms = exported.norms(exported.values(checkpoint))
  assert len(losses) == 3
  np.testing.assert_allclose(losses, 0.01 * np.array(norms), rtol=1e-5)


def test_what_is_saved_again_is_the_same(path, expected, tmp_path):
  tf.saved_model.save(
    first := tf.saved_model.load(path), tmp_path, first.signatures
  )
  loaded = tf.saved_model.load(str(tmp_path))
  images = exported.unit_range(exported.images())
  exported.assert_close(
    {name: loaded(images, output=name).numpy() for name in exported.NAMES},
    expected.outputs[False],
  )
  exported.assert_close(
    _numpy(loaded.signatures['default'](images=tf.constant(images))),
    {
      **expected.outputs[False],
      'default': expected.outputs[False]['logits'],
    },
  )
  assert len(loaded.regularization_losses) == 3
  exported.assert_close(
    {'logits': loaded(images, training=True).numpy()}, expected.outputs[True]
  )


# --- Trained further ----------------------------------------------------------


def test_gradient_tape_learns_digits(path, checkpoint):
  loaded = tf.saved_model.load(path)
  variables = loaded.trainable_variables
  images, labels = exported.digits_to_learn()
  optimizer = tf.keras.optimizers.legacy.SGD(0.5)

  @tf.function
  def step():
    with tf.GradientTape() as tape:
      logits = loaded(images, training=True)
      loss = tf.reduce_mean(
        tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
      )
      total = loss + tf.add_n([each() for each in loaded.regularization_losses])
    gradients = tape.gradient(total, variables)
    optimizer.apply_gradients(zip(gradients, variables))
    return loss, dict(enumerate(gradients))

  first, gradients = step()
  before = exported.values(checkpoint)
  for index, variable in enumerate(variables):
    name = variable.name.removesuffix(':0')
    # What is left without weight decay is what comes from the logits. Training
    # stops it at the classifier, for the sake of the contrastive loss; here it
    # reaches the encoder.
    rest = gradients[index].numpy()
    if name.endswith(('/kernel', '/bias')):
      rest = rest - np.float32(0.01) * before[name]
    is_reached = exported.of_module(name) != 'ProjectionHead'
    assert (np.max(np.abs(rest)) > 1e-6) == is_reached, name
  losses = [first.numpy(), *(step()[0].numpy() for _ in range(9))]
  assert losses[-1] < 0.8 * losses[0], losses
  for name, value in _values(loaded).items():
    assert np.any(value != before[name]), name


def _train_by_keras(backbone, learning_rate):
  """Returns the cross-entropy on digits, epoch by epoch."""
  tf.keras.utils.set_random_seed(0)
  images, labels = exported.digits_to_learn()
  model = tf.keras.Sequential([backbone, tf.keras.layers.Dense(10)])
  model.compile(
    tf.keras.optimizers.legacy.SGD(learning_rate),
    tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    metrics=[
      tf.keras.metrics.SparseCategoricalCrossentropy(
        'cross_entropy', from_logits=True
      )
    ],
  )
  history = model.fit(images, labels, batch_size=64, epochs=8, verbose=0)
  return history.history['cross_entropy']


def test_keras_learns_digits_on_a_backbone(path, checkpoint):
  backbone = hub.KerasLayer(
    path, trainable=True, arguments={'output': 'unnormalized_embeddings'}
  )
  norms = exported.norms(exported.values(checkpoint))
  np.testing.assert_allclose(
    sum(loss.numpy() for loss in backbone.losses), 0.01 * sum(norms), rtol=1e-5
  )
  losses = _train_by_keras(backbone, 0.02)
  assert losses[-1] < 0.8 * losses[0], losses
  before = _moving(exported.values(checkpoint))
  after = _moving(_values(backbone.resolved_object))
  assert after
  for name, value in after.items():
    assert np.any(value != before[name]), name


def test_keras_leaves_a_frozen_backbone_alone(path, checkpoint):
  backbone = hub.KerasLayer(
    path, arguments={'output': 'unnormalized_embeddings'}
  )
  losses = _train_by_keras(backbone, 0.02)
  assert losses[-1] < losses[0], losses
  _assert_same_bits(
    _values(backbone.resolved_object), exported.values(checkpoint)
  )
