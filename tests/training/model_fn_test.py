"""Tests of supcon.training.model_fn.

The training step is compared with the published one in parity_test.py.
"""

import dataclasses
import zlib

import numpy as np
import pytest
import tensorflow as tf

from supcon import enums
from supcon import hparams
from supcon.data import image_ops
from supcon.models import contrastive
from supcon.training import hooks
from supcon.training import model_fn
from supcon.training import stages
from tests import golden

tf1 = tf.compat.v1
ModeKeys = tf1.estimator.ModeKeys

_NUM_CLASSES = 7
_SIDE = 8
_TEMPERATURE = 0.5
_SMOOTHING = 0.1

_STAGE = hparams.Stage(
  epochs=2,
  warmup_epochs=0.0,
  base_learning_rate=16.0,
  optimizer=enums.Optimizer.MOMENTUM,
  contrastive_loss_weight=2.0,
  cross_entropy_loss_weight=0.5,
  weight_decay=0.01,
)
_PARAMS = hparams.HParams(
  batch_size=4,
  architecture=hparams.Architecture(
    encoder_depth=18,
    encoder_width=1 / 16,
    first_conv_kernel_size=3,
    first_conv_stride=1,
    use_initial_max_pool=False,
    projection_head_layers=(8, 4),
  ),
  loss=hparams.Losses(
    contrastive=hparams.ContrastiveLoss(temperature=_TEMPERATURE),
    cross_entropy=hparams.CrossEntropyLoss(label_smoothing=_SMOOTHING),
  ),
  stage_1=_STAGE,
  stage_2=dataclasses.replace(_STAGE, contrastive_loss_weight=0.0),
  input_data=hparams.InputData(
    preprocessing=hparams.Preprocessing(
      image_size=_SIDE,
      augmentation_type=enums.AugmentationType.SIMCLR,
      defer_blurring=False,
    )
  ),
)


def _function(params=_PARAMS, stage=1, **changes):
  run = stages.plan(params, 8)
  arguments = {
    'params': params,
    'run': run,
    'stage': run.stages[stage - 1],
    'num_classes': _NUM_CLASSES,
    'num_eval_examples': 1,
    'model_dir': 'unused',
    'summary_interval_steps': 1,
    'use_tpu': False,
    'reference_checkpoint': None,
    'train_batch_norm': True,
  }
  return model_fn.ModelFn(**{**arguments, **changes})


def _random_value(name, shape):
  """A value of a variable by the rule of the golden README."""
  x = np.random.RandomState(zlib.crc32(name.encode())).randn(*shape)
  kind = name.rpartition('/')[-1]
  if kind == 'moving_variance':
    return np.exp(0.2 * x)
  if kind == 'gamma':
    return 1 + 0.1 * x
  if kind == 'kernel':
    return x * np.sqrt(2 / np.prod(shape[:-1]))
  return 0.1 * x


@pytest.fixture(scope='module', name='checkpoint')
def _checkpoint(tmp_path_factory):
  """A checkpoint of the model, moving statistics and all."""
  with tf.Graph().as_default():
    model = contrastive.ContrastiveModel(_PARAMS.architecture, _NUM_CLASSES)
    shapes = {v.op.name: v.shape.as_list() for v in model.variables}
  prefix = str(tmp_path_factory.mktemp('checkpoint') / 'model.ckpt-0')
  tf.raw_ops.SaveV2(
    prefix=prefix,
    tensor_names=list(shapes),
    shape_and_slices=[''] * len(shapes),
    tensors=[
      tf.constant(_random_value(name, shape), tf.float32)
      for name, shape in shapes.items()
    ],
  )
  return prefix


def _restore(session, checkpoint):
  """Initialises all variables, those of the model from the checkpoint."""
  session.run(
    [
      tf1.global_variables_initializer(),
      tf1.local_variables_initializer(),
    ]
  )
  names = tf.train.load_checkpoint(checkpoint).get_variable_to_shape_map()
  in_it = [v for v in tf1.global_variables() if v.op.name in names]
  assert len(in_it) == len(names)
  tf1.train.Saver(in_it).restore(session, checkpoint)


def _examples(count, seed=0, side=_SIDE):
  """Returns two-view images [count, side, side, 6] and labels [count]."""
  rng = np.random.RandomState(seed)
  images = rng.uniform(-1, 1, [count, side, side, 6]).astype(np.float32)
  return images, rng.randint(0, _NUM_CLASSES, count).astype(np.int32)


# --- Evaluation ---------------------------------------------------------------


def _evaluate(checkpoint, images, labels, batch_size, function, garbage=None):
  """Evaluates in batches, as the estimator does off TPU.

  Args:
    checkpoint: Prefix.
    images: [N, side, side, 6].
    labels: [N].
    batch_size: The last batch is filled up to it.
    function: A ModelFn.
    garbage: What fills it up: the value of all pixels, or None for zeros.

  Returns:
    The metrics and, as 'loss', the mean of the losses of the batches.
  """
  count = len(images)
  padding = -count % batch_size
  weights = np.append(np.ones(count), np.zeros(padding))
  filling = np.full([padding, *images.shape[1:]], garbage or 0.0)
  images = np.concatenate([images, filling])
  labels = np.append(labels, np.full(padding, 0 if garbage is None else 5))
  with tf.Graph().as_default(), tf1.Session() as session:
    feeds = {
      'images': tf1.placeholder(tf.float32, [batch_size, *images.shape[1:]]),
      'weights': tf1.placeholder(tf.float32, [batch_size]),
      'labels': tf1.placeholder(tf.int32, [batch_size]),
    }
    features = {name: feeds[name] for name in ('images', 'weights')}
    features['blur_sigmas'] = tf.zeros([batch_size, 2])
    spec = function(features, feeds['labels'], ModeKeys.EVAL, None)
    metric_fn, tensors = spec.eval_metrics
    metrics = metric_fn(**tensors)
    _restore(session, checkpoint)
    losses = []
    for start in range(0, len(images), batch_size):
      part = slice(start, start + batch_size)
      loss, _ = session.run(
        [spec.loss, {tag: update for tag, (_, update) in metrics.items()}],
        {
          feeds['images']: images[part],
          feeds['weights']: weights[part],
          feeds['labels']: labels[part],
        },
      )
      losses.append(loss)
    result = session.run({tag: value for tag, (value, _) in metrics.items()})
  return {**result, 'loss': np.mean(losses)}


def _outputs(checkpoint, images):
  """Returns what contrastive_eval says of single views [N, side, side, 3]."""
  with tf.Graph().as_default(), tf1.Session() as session:
    spec = _function()(
      {'images': tf.constant(images)}, None, ModeKeys.PREDICT, {}
    )
    _restore(session, checkpoint)
    return session.run(spec.export_outputs['contrastive_eval'].outputs)


def _weight_decay(checkpoint):
  """Returns 0.01 * sum of v^2/2 over encoder's and projection head's weights."""
  reader = tf.train.load_checkpoint(checkpoint)
  return 0.01 * sum(
    np.sum(reader.get_tensor(name).astype(np.float64) ** 2) / 2
    for name in reader.get_variable_to_shape_map()
    if name.endswith(('/kernel', '/bias'))
    and '/ClassificationHead/' not in name
  )


def _supcon(views, labels):
  """Eq. 2 of the paper for all anchors of a batch, times the temperature.

  Args:
    views: [B, V, P], unit length.
    labels: [B].

  Returns:
    [B]: the mean over an example's views.
  """
  batch, num_views, _ = views.shape
  similarities = np.einsum('ivd,jwd->ivjw', views, views) / _TEMPERATURE
  losses = np.zeros([batch, num_views])
  for i in range(batch):
    for v in range(num_views):
      others = [
        (j, w)
        for j in range(batch)
        for w in range(num_views)
        if (j, w) != (i, v)
      ]
      denominator = sum(np.exp(similarities[(i, v, *jw)]) for jw in others)
      losses[i, v] = -np.mean(
        [
          similarities[i, v, j, w] - np.log(denominator)
          for j, w in others
          if labels[j] == labels[i]
        ]
      )
  return _TEMPERATURE * losses.mean(axis=1)


def _expected(checkpoint, images, labels, batch_size):
  """Returns metrics and loss, computed with NumPy from the model's outputs."""
  first, second = (
    _outputs(checkpoint, view) for view in np.split(images, 2, axis=-1)
  )
  views = np.stack([first['projection'], second['projection']], axis=1)
  contrastive_losses = np.concatenate(
    [
      _supcon(views[i : i + batch_size], labels[i : i + batch_size])
      for i in range(0, len(images), batch_size)
    ]
  )
  logits = first['logits'].astype(np.float64)
  log_softmax = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
  targets = (1 - _SMOOTHING) * np.eye(_NUM_CLASSES)[labels]
  targets += _SMOOTHING / _NUM_CLASSES
  cross_entropies = -np.sum(targets * log_softmax, axis=1)
  ranking = np.argsort(-logits, axis=1)
  return {
    'top_1_accuracy': np.mean(ranking[:, 0] == labels),
    'top_5_accuracy': np.mean(
      np.any(ranking[:, :5] == labels[:, np.newaxis], axis=1)
    ),
    'loss/contrastive_loss': contrastive_losses.mean(),
    'loss/cross_entropy_loss': cross_entropies.mean(),
    'loss': 2.0 * contrastive_losses.mean()
    + 0.5 * cross_entropies.mean()
    + _weight_decay(checkpoint),
  }


def _check_metrics(actual, expected):
  assert set(actual) == set(expected)
  for tag, value in expected.items():
    if 'accuracy' in tag:
      assert actual[tag] == value, tag
    else:
      np.testing.assert_allclose(actual[tag], value, rtol=2e-5, err_msg=tag)


@pytest.mark.parametrize('batch_size', [1, 3, 5, 11, 16])
def test_every_example_counts_once_whatever_the_batch(checkpoint, batch_size):
  images, labels = _examples(11)
  actual = _evaluate(
    checkpoint,
    images,
    labels,
    batch_size,
    _function(num_eval_examples=11),
  )
  expected = _expected(checkpoint, images, labels, batch_size)
  assert 0 < expected['top_5_accuracy'] < 1
  _check_metrics(actual, expected)


@pytest.mark.parametrize('garbage', [None, 3.0])
def test_padding_changes_nothing(checkpoint, garbage):
  images, labels = _examples(5, seed=1)
  function = _function(num_eval_examples=5)
  whole = _evaluate(checkpoint, images, labels, 5, function)
  padded = _evaluate(
    checkpoint, images, labels, 8, _function(num_eval_examples=5), garbage
  )
  _check_metrics(padded, whole)


def test_the_loss_is_that_of_the_stage(checkpoint):
  images, labels = _examples(5, seed=1)
  actual = _evaluate(
    checkpoint, images, labels, 3, _function(stage=2, num_eval_examples=5)
  )
  np.testing.assert_allclose(
    actual['loss'],
    0.5 * actual['loss/cross_entropy_loss'] + _weight_decay(checkpoint),
    rtol=2e-5,
  )


def test_without_labels_only_views_are_positives(checkpoint):
  images, labels = _examples(6, seed=2)
  params = _PARAMS.replace('loss.contrastive.use_labels', False)
  actual = _evaluate(
    checkpoint, images, labels, 6, _function(params, num_eval_examples=6)
  )
  expected = _expected(checkpoint, images, np.arange(6), 6)
  tag = 'loss/contrastive_loss'
  np.testing.assert_allclose(actual[tag], expected[tag], rtol=2e-5)


@pytest.mark.parametrize(
  'option, value',
  [
    ('contrast_mode', enums.LossContrastMode.ONE_VIEW),
    ('summation_location', enums.LossSummationLocation.INSIDE),
    ('denominator_mode', enums.LossDenominatorMode.ONE_POSITIVE),
    ('positives_cap', 0),
    ('scale_by_temperature', False),
    ('temperature', 0.25),
  ],
)
def test_every_option_of_the_contrastive_loss_is_passed_on(option, value):
  images, _ = _examples(6, seed=3)
  labels = np.array([0, 0, 0, 1, 1, 1], np.int32)

  def loss(params):
    tf1.set_random_seed(1)
    features = {'images': tf.constant(images), 'weights': tf.ones([6])}
    spec = _function(params).evaluate(features, tf.constant(labels))
    return spec.eval_metrics[1]['loss/contrastive_loss']

  changed = _PARAMS.replace(f'loss.contrastive.{option}', value)
  with tf.Graph().as_default(), tf1.Session() as session:
    before = loss(_PARAMS)
    tf1.get_variable_scope().reuse_variables()
    after = loss(changed)
    session.run(tf1.global_variables_initializer())
    before, after = session.run([before, after])
  assert np.max(np.abs(before - after)) > 1e-3


# --- Training -----------------------------------------------------------------


def _spec(function, images, labels):
  features = {
    'images': tf.constant(images),
    'blur_sigmas': tf.zeros([len(images), 2]),
  }
  return function(features, tf.constant(labels), ModeKeys.TRAIN, {})


def _is_moving(name):
  return name.endswith(('/moving_mean', '/moving_variance'))


@pytest.mark.parametrize('train_batch_norm', [False, True])
def test_a_training_step(checkpoint, train_batch_norm):
  images, labels = _examples(4)
  with tf.Graph().as_default(), tf1.Session() as session:
    function = _function(train_batch_norm=train_batch_norm)
    spec = _spec(function, images, labels)
    _restore(session, checkpoint)
    scalars = spec.host_call[1]
    variables = {v.op.name: v for v in tf1.global_variables()}
    before, lone_loss = session.run([variables, spec.loss])
    # Fetched together with the update, all is as before it.
    _, loss, scalars = session.run([spec.train_op, spec.loss, scalars])
    after = session.run(variables)
  np.testing.assert_allclose(loss, lone_loss, rtol=1e-6)
  assert (scalars['global_step'], after['global_step']) == (0, 1)
  np.testing.assert_allclose(
    loss,
    2.0 * scalars['loss/contrastive_loss']
    + 0.5 * scalars['loss/cross_entropy_loss']
    + scalars['weight_decay/stage1_weight_decay_loss'],
    rtol=1e-5,
  )
  assert loss == scalars['loss/total_loss']
  expected = _expected(checkpoint, images, labels, batch_size=4)
  is_as_in_evaluation = np.allclose(loss, expected['loss'], rtol=2e-5)
  assert is_as_in_evaluation == (not train_batch_norm)
  for name, value in before.items():
    is_same = np.array_equal(value, after[name])
    if _is_moving(name):
      assert is_same == (not train_batch_norm), name
    if name.endswith('/kernel'):
      assert not is_same, name


def test_off_tpu_training_is_watched():
  images, labels = _examples(4)
  with tf.Graph().as_default():
    spec = _spec(_function(), images, labels)
    kinds = [type(hook) for hook in spec.training_hooks]
    assert kinds == [hooks.NanHook, hooks.ProgressHook]
  with tf.Graph().as_default():
    spec = _spec(_function(use_tpu=True), images, labels)
    assert not spec.training_hooks


def test_a_loss_that_is_not_a_number_stops_training():
  images, labels = _examples(4)
  function = _function()
  with tf.Graph().as_default():
    spec = _spec(function, images * np.float32(np.nan), labels)
    with tf1.train.MonitoredSession(hooks=spec.training_hooks) as session:
      with pytest.raises(hooks.NanLossError, match='at step 0, stage 1; .*nan'):
        session.run(spec.train_op)


def test_the_listener_of_the_model_fn_knows_its_losses(tmp_path):
  images, labels = _examples(4)
  function = _function(stage=2)
  with tf.Graph().as_default():
    spec = _spec(function, images, labels)
    bias = next(
      v
      for v in tf1.trainable_variables()
      if v.op.name.endswith('Head/dense/bias')
    )
    broken = tf1.assign(bias, bias * np.nan)
    saver = tf1.train.CheckpointSaverHook(
      str(tmp_path), save_steps=100, listeners=[function.nan_listener]
    )
    with pytest.raises(
      hooks.NanLossError, match=f'{bias.op.name} .*step 0, stage 2; .*total nan'
    ):
      # Saves at the end.
      with tf1.train.MonitoredSession(hooks=[saver]) as session:
        session.run_step_fn(lambda context: context.session.run(broken))
        session.run(spec.loss)
        session.run(tf1.train.get_global_step().assign_add(7))


def test_warm_start_begins_where_the_reference_ended(checkpoint):
  images, labels = _examples(4)
  params = _PARAMS.replace('warm_start.warm_start_encoder', True)
  reader = tf.train.load_checkpoint(checkpoint)
  with tf.Graph().as_default(), tf1.Session() as session:
    _spec(_function(params, reference_checkpoint=checkpoint), images, labels)
    session.run(tf1.global_variables_initializer())
    variables = session.run({v.op.name: v for v in tf1.global_variables()})
  names = reader.get_variable_to_shape_map()
  assert variables['global_step'] == 0
  for name in names:
    is_same = np.array_equal(variables[name], reader.get_tensor(name))
    assert is_same == name.startswith('ContrastiveModel/Encoder/'), name
  for name in set(variables) - set(names):  # Slots start anew.
    assert not np.any(variables[name])


# --- Mixed precision and blur -------------------------------------------------


def test_bfloat16_images_give_float32_losses(checkpoint):
  images, labels = _examples(4)
  function = _function(num_eval_examples=4)
  with tf.Graph().as_default(), tf1.Session() as session:
    features = {
      'images': tf.cast(tf.constant(images), tf.bfloat16),
      'weights': tf.ones([4]),
    }
    spec = function.evaluate(features, tf.constant(labels))
    tensors = spec.eval_metrics[1]
    is_bfloat16 = [
      op.type
      for op in tf1.get_default_graph().get_operations()
      if op.type == 'Conv2D' and op.outputs[0].dtype == tf.bfloat16
    ]
    assert len(is_bfloat16) == 20  # 17 convolutions and 3 shortcuts: all.
    assert {v.dtype for v in tf1.global_variables()} == {tf.float32}
    assert spec.loss.dtype == tf.float32
    assert {tensor.dtype for tensor in tensors.values()} == {tf.float32}
    _restore(session, checkpoint)
    loss = session.run(spec.loss)
  expected = _expected(checkpoint, images, labels, batch_size=4)['loss']
  np.testing.assert_allclose(loss, expected, rtol=0.1)

  with tf.Graph().as_default():
    features['images'] = tf.zeros([4, _SIDE, _SIDE, 6], tf.bfloat16)
    features['blur_sigmas'] = tf.zeros([4, 2])
    spec = _function().train(features, tf.constant(labels))
    assert spec.loss.dtype == tf.float32
    scalars = dict(spec.host_call[1])
    assert scalars.pop('global_step').dtype == tf.int64
    assert {scalar.dtype for scalar in scalars.values()} == {tf.float32}


# Blur needs 20 pixels for a kernel that reaches to the next pixel.
_BLUR_SIDE = 20


def _losses_of_blurred(checkpoint, images, labels, sigmas, is_deferred):
  """Returns the losses of each example, {tag: [B]}, in an evaluation."""
  params = _PARAMS.replace(
    'input_data.preprocessing.defer_blurring', is_deferred
  )
  with tf.Graph().as_default(), tf1.Session() as session:
    features = {
      'images': tf.constant(images),
      'blur_sigmas': tf.constant(sigmas, tf.float32),
      'weights': tf.ones([len(images)]),
    }
    spec = _function(params).evaluate(features, tf.constant(labels))
    _restore(session, checkpoint)
    tensors = spec.eval_metrics[1]
    return session.run(
      {
        name: tensors[f'loss/{name}_loss']
        for name in ('contrastive', 'cross_entropy')
      }
    )


def test_deferred_blur_is_done_where_the_features_say_so(checkpoint):
  images, labels = _examples(3, side=_BLUR_SIDE)
  sigmas = [[0.0, 0.0], [1.5, 0.0], [0.0, 0.8]]
  with tf.Graph().as_default(), tf1.Session() as session:
    blurred = images.copy()
    for example, view in ((1, 0), (2, 1)):
      channels = slice(3 * view, 3 * view + 3)
      blurred[example, ..., channels] = session.run(
        image_ops.gaussian_blur(
          tf.constant(images[example : example + 1, ..., channels]),
          tf.constant([sigmas[example][view]]),
        )
      )[0]
  assert np.max(np.abs(images - blurred)) > 0.1

  def losses(images, sigmas, is_deferred):
    return _losses_of_blurred(checkpoint, images, labels, sigmas, is_deferred)

  expected = losses(blurred, np.zeros([3, 2]), is_deferred=False)
  actual = losses(images, sigmas, is_deferred=True)
  for name, values in expected.items():
    np.testing.assert_allclose(actual[name], values, rtol=1e-5)

  # Nothing is blurred where every sigma is 0, or where blurring is not left to
  # the model.
  plain = losses(images, np.zeros([3, 2]), is_deferred=False)
  for sharp in (
    losses(images, np.zeros([3, 2]), is_deferred=True),
    losses(images, sigmas, is_deferred=False),
  ):
    for name, values in plain.items():
      np.testing.assert_allclose(sharp[name], values, rtol=1e-6)
  # The test can tell: the logits are those of view 0.
  is_other = np.abs(plain['cross_entropy'] - actual['cross_entropy']) > 1e-4
  assert [*is_other] == [False, True, False]
  assert np.all(np.abs(plain['contrastive'] - actual['contrastive']) > 1e-4)


# --- Export -------------------------------------------------------------------


def test_serving_signatures_are_the_published_ones():
  published = golden.json('signatures.json')['signatures']
  with tf.Graph().as_default():
    images = tf1.placeholder(tf.float32, [None, _SIDE, _SIDE, 3])
    spec = _function()({'images': images}, None, ModeKeys.PREDICT, {})
    assert set(spec.export_outputs) == set(published)
    for name, signature in published.items():
      outputs = spec.export_outputs[name].outputs
      assert set(outputs) == set(signature['outputs'])
      assert {o.dtype for o in outputs.values()} == {tf.float32}
    default = spec.export_outputs['serving_default'].outputs
    evaluation = spec.export_outputs['contrastive_eval'].outputs
    for name, tensor in default.items():
      assert tensor is evaluation[name] is spec.predictions[name]
      assert (
        tensor is not spec.export_outputs['contrastive_train'].outputs[name]
      )
