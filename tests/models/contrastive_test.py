"""The model against outputs of the published one, and what it promises."""

import collections

import numpy as np
import pytest
import tensorflow as tf

from supcon.config import enums
from supcon.config import hparams
from supcon.models import contrastive
from supcon.models import layers
from tests import golden

tf1 = tf.compat.v1

# --- Published outputs --------------------------------------------------------


def _bool(text):
  return {'True': True, 'False': False}[text]


_FIELDS = {  # flag: (fields of hparams.Architecture, type)
  'resnet_architecture': (
    ['encoder_architecture'],
    enums.EncoderArchitecture.__getitem__,
  ),
  'resnet_depth': (['encoder_depth'], int),
  'resnet_width': (['encoder_width'], float),
  'first_conv_kernel_size': (['first_conv_kernel_size'], int),
  'first_conv_stride': (['first_conv_stride'], int),
  'use_initial_max_pool': (['use_initial_max_pool'], _bool),
  'projection_head_layers': (
    ['projection_head_layers'],
    lambda text: tuple(int(size) for size in text.split(',')),
  ),
  'use_projection_batch_norm': (['projection_head_use_batch_norm'], _bool),
  'use_projection_batch_norm_beta': (
    ['projection_head_use_batch_norm_beta'],
    _bool,
  ),
  'normalize_embedding': (
    ['normalize_projection_head_inputs', 'normalize_classifier_inputs'],
    _bool,
  ),
  'zero_initialize_classifier': (['zero_initialize_classifier'], _bool),
  'stop_gradient_before_classification_head': (
    ['stop_gradient_before_classification_head'],
    _bool,
  ),
  'stop_gradient_before_projection_head': (
    ['stop_gradient_before_projection_head'],
    _bool,
  ),
  'use_global_batch_norm': (['use_global_batch_norm'], _bool),
}


def _architecture(flags):
  """Reads the flags of a golden model; later ones win, others are ignored."""
  values = {}
  for flag in flags:
    name, _, text = flag.lstrip('-').partition('=')
    if name in _FIELDS:
      fields, convert = _FIELDS[name]
      values.update(dict.fromkeys(fields, convert(text)))
  return hparams.Architecture(**values)


def _restore(session, model, case):
  """Gives the model the variables of a golden model."""
  if case['checkpoint']:
    checkpoint = golden.checkpoint(f'models/{case["name"]}/model.ckpt')
    tf1.train.Saver(model.variables).restore(session, checkpoint)
    return
  values = {
    v.initializer.inputs[1]: golden.variable(
      v.op.name, v.shape.as_list(), case['fill_salt']
    )
    for v in model.variables
  }
  session.run([v.initializer for v in model.variables], values)


_Result = collections.namedtuple(
  '_Result', 'case expected variables outputs num_updates after_update'
)
_CASES = golden.json('models/models.json')['models']


@pytest.fixture(
  scope='module', params=_CASES, ids=[case['name'] for case in _CASES]
)
def result(request):
  """Everything that one golden model computes, from one graph."""
  case = request.param
  expected = golden.npz(f'models/{case["name"]}/values.npz')
  images = expected['images_uint8'].astype(np.float32) / 127.5 - 1
  half = len(images) // 2
  two_views = np.concatenate([images[:half], images[half : 2 * half]], axis=-1)
  with tf.Graph().as_default(), tf1.Session() as session:
    model = contrastive.ContrastiveModel(
      _architecture(case['flags']), case['num_classes']
    )
    outputs = {
      'two_view_train': model(tf.constant(two_views), training=True),
      'two_view_eval': model(tf.constant(two_views), training=False),
      'training_false': model(tf.constant(images), training=False),
      'training_true': model(tf.constant(images), training=True),
    }
    updates = layers.move_averages(outputs['training_true'].batch_statistics)
    _restore(session, model, case)
    outputs = session.run({k: v._asdict() for k, v in outputs.items()})
    session.run(updates)
    moving = {v.op.name: v for v in model.variables if not v.trainable}
    return _Result(
      case,
      expected,
      [v.op.name for v in model.variables],
      outputs,
      len(updates),
      session.run(moving),
    )


def _tolerance(case, training):
  """Of max |value|; rounding grows with depth and with batch statistics."""
  depth = _architecture(case['flags']).encoder_depth
  return 1e-3 if training or depth >= 50 else 1e-4


def _assert_near(found, expected, tolerance):
  atol = tolerance * np.abs(expected).max()
  np.testing.assert_allclose(found, expected, rtol=0, atol=atol)


def test_published_variables(result):
  assert result.variables == result.case['variables']


@pytest.mark.parametrize(
  'output', ('embedding', 'normalized_embedding', 'projection', 'logits')
)
@pytest.mark.parametrize(
  'mode, training',
  [
    ('training_true', True),
    ('training_false', False),
    ('two_view_train', True),
    ('two_view_eval', False),
  ],
)
def test_published_outputs(result, mode, training, output):
  expected = result.expected[f'{mode}/{output}']
  found = result.outputs[mode][output]
  # Published features of two views stand side by side, [B, 2 D].
  found = found.reshape(len(found), -1)
  _assert_near(found, expected, _tolerance(result.case, training))


def test_published_moving_statistics_after_one_pass(result):
  prefix = 'after_update/'
  expected = {
    key[len(prefix) :]: value
    for key, value in result.expected.items()
    if key.startswith(prefix)
  }
  assert result.after_update.keys() == expected.keys()
  assert result.num_updates == result.case['num_update_ops'] == len(expected)
  for name, value in expected.items():
    _assert_near(result.after_update[name], value, 1e-3)


# --- Promises -----------------------------------------------------------------

_SMALL = {
  'encoder_depth': 18,
  'encoder_width': 0.0625,
  'first_conv_kernel_size': 3,
  'first_conv_stride': 1,
  'use_initial_max_pool': False,
  'projection_head_layers': (64, 4),
}
_EMBEDDING_SIZE = 32  # 512 * 0.0625.


def _small_model(**changes):
  tf1.set_random_seed(0)
  return contrastive.ContrastiveModel(
    hparams.Architecture(**{**_SMALL, **changes}), num_classes=5
  )


def _views(num_views, batch=3, size=8):
  random = np.random.RandomState(0)
  shape = [batch, size, size, 3 * num_views]
  return random.uniform(-1, 1, shape).astype(np.float32)


@pytest.mark.parametrize('dtype', [tf.float32, tf.bfloat16])
@pytest.mark.parametrize('num_views', [1, 2, 3])
def test_shapes_and_types(num_views, dtype):
  with tf.Graph().as_default():
    model = _small_model()
    outputs = model(tf.cast(_views(num_views), dtype), training=True)
    assert {v.dtype.base_dtype for v in model.variables} == {tf.float32}
  assert {x.dtype for x in tf.nest.flatten(outputs)} == {tf.float32}
  assert outputs.embedding.shape == [3, num_views, _EMBEDDING_SIZE]
  assert outputs.normalized_embedding.shape == [3, num_views, _EMBEDDING_SIZE]
  assert outputs.projection.shape == [3, num_views, 4]
  assert outputs.logits.shape == [3, 5]


@pytest.mark.parametrize('dtype', [tf.float32, tf.bfloat16])
@pytest.mark.parametrize('num_views', [1, 2, 3])
def test_views_may_have_a_dimension_of_their_own(num_views, dtype):
  stacked = _views(num_views)
  apart = np.stack(np.split(stacked, num_views, axis=-1), axis=1)
  assert apart.shape == (3, num_views, 8, 8, 3)
  with tf.Graph().as_default(), tf1.Session() as session:
    model = _small_model()
    images = tf1.placeholder(dtype, [None, num_views, 8, 8, 3])
    expected, outputs = [
      [model(x, training) for training in (True, False)]
      for x in (tf.cast(stacked, dtype), images)
    ]
    for output, other in zip(*map(tf.nest.flatten, (outputs, expected))):
      assert output.shape[1:] == other.shape[1:]
    session.run(tf1.global_variables_initializer())
    cast = session.run(tf.cast(apart, dtype))
    expected, outputs = session.run([expected, outputs], {images: cast})
  tf.nest.map_structure(np.testing.assert_array_equal, outputs, expected)


def test_features_of_a_view_stand_at_its_place():
  with tf.Graph().as_default(), tf1.Session() as session:
    model = _small_model()
    views = _views(3)
    together = model(tf.constant(views), training=False)
    alone = [
      model(tf.constant(view), training=False)
      for view in np.split(views, 3, axis=-1)
    ]
    session.run(tf1.global_variables_initializer())
    together, alone = session.run([together, alone])
  for field in ('embedding', 'normalized_embedding', 'projection'):
    for index, view in enumerate(alone):
      np.testing.assert_allclose(
        getattr(together, field)[:, index],
        getattr(view, field)[:, 0],
        rtol=1e-4,
        atol=1e-6,
      )
  np.testing.assert_allclose(
    together.logits, alone[0].logits, rtol=1e-4, atol=1e-6
  )
  for field in ('normalized_embedding', 'projection'):
    norms = np.linalg.norm(getattr(together, field), axis=-1)
    np.testing.assert_allclose(norms, 1, rtol=1e-5)


def test_exporting_calls_share_variables_and_take_any_batch():
  with tf.Graph().as_default(), tf1.Session() as session:
    model = _small_model()
    variables = tf1.global_variables()
    images = tf1.placeholder(tf.float32, [None, 8, 8, 3])
    outputs = [model(images, training) for training in (True, False)]
    assert tf1.global_variables() == variables == model.variables
    session.run(tf1.global_variables_initializer())
    for batch in (2, 4):
      for found in session.run(outputs, {images: _views(1, batch)}):
        assert found.embedding.shape == (batch, 1, _EMBEDDING_SIZE)
        assert found.logits.shape == (batch, 5)


def test_moving_statistics_stay_unless_updates_run():
  with tf.Graph().as_default(), tf1.Session() as session:
    model = _small_model(projection_head_use_batch_norm=True)
    outputs = model(tf.constant(_views(2)), training=True)
    updates = layers.move_averages(outputs.batch_statistics)
    moving = [v for v in model.batch_norm_variables if not v.trainable]
    session.run(tf1.global_variables_initializer())
    initial = session.run(moving)
    session.run(outputs)
    for one, other in zip(initial, session.run(moving)):
      np.testing.assert_array_equal(one, other)
    session.run(updates)
    for one, other in zip(initial, session.run(moving)):
      assert np.any(one != other)
  assert len(updates) == len(moving)
  own = [model.encoder, model.projection_head, model.classification_head]
  assert sum(len(module.batch_norm_variables) for module in own) == len(
    model.batch_norm_variables
  )


@pytest.mark.parametrize('stop', [True, False])
@pytest.mark.parametrize(
  'field, output, head',
  [
    (
      'stop_gradient_before_projection_head',
      'projection',
      'projection_head',
    ),
    (
      'stop_gradient_before_classification_head',
      'logits',
      'classification_head',
    ),
  ],
)
def test_gradients_stop_where_asked(field, output, head, stop):
  others = {
    'stop_gradient_before_projection_head': False,
    'stop_gradient_before_classification_head': False,
  }
  with tf.Graph().as_default():
    model = _small_model(**{**others, field: stop})
    outputs = model(tf.constant(_views(2)), training=True)
    loss = tf.reduce_sum(getattr(outputs, output))
    variables = model.encoder.trainable_variables
    gradients = tf.gradients(loss, variables)
    assert [g is None for g in gradients] == [stop] * len(variables)
    own = getattr(model, head).trainable_variables
    assert all(g is not None for g in tf.gradients(loss, own))


@pytest.mark.parametrize('normalize', [True, False])
@pytest.mark.parametrize(
  'field, output',
  [
    ('normalize_projection_head_inputs', 'projection'),
    ('normalize_classifier_inputs', 'logits'),
  ],
)
def test_heads_see_the_inputs_that_are_asked_for(field, output, normalize):
  others = {
    'normalize_projection_head_inputs': not normalize,
    'normalize_classifier_inputs': not normalize,
  }
  with tf.Graph().as_default(), tf1.Session() as session:
    model = _small_model(**{**others, field: normalize})
    images = tf.constant(_views(1))
    outputs = model(images, training=False)
    seen = outputs.normalized_embedding if normalize else outputs.embedding
    heads = {
      'projection': lambda x: tf.math.l2_normalize(
        model.projection_head(x, training=False), axis=-1
      ),
      'logits': lambda x: model.classification_head(x, training=False),
    }
    expected = heads[output](seen[:, 0])
    session.run(tf1.global_variables_initializer())
    # A bias tells unit length from any other, also behind the L2 norm.
    for bias in model.biases:
      session.run(
        bias.initializer, {bias.initializer.inputs[1]: [0.01] * bias.shape[0]}
      )
    found, expected = session.run([getattr(outputs, output), expected])
  found = found.reshape(expected.shape)
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_images_that_are_not_views_are_refused():
  with tf.Graph().as_default():
    model = _small_model()
    for shape in ([2, 8, 8, 4], [2, 3, 8, 8, 4], [2, 3, 8, 8, 6]):
      with pytest.raises(ValueError, match=f'{shape[-1]} channels'):
        model(tf.zeros(shape), training=False)


@pytest.mark.parametrize('num_views', [1, 2, 3])
def test_embeddings_mean_the_same_as_their_images(num_views):
  with tf.Graph().as_default(), tf1.Session() as session:
    model = _small_model()
    outputs = model(tf.constant(_views(num_views)), training=False)
    again = model.of_embeddings(outputs.embedding, training=False)
    session.run(tf1.global_variables_initializer())
    outputs, again = session.run([outputs._asdict(), again._asdict()])
  for name, value in outputs.items():
    np.testing.assert_allclose(again[name], value, rtol=1e-5, atol=1e-6)
