"""Tests of supcon.training.model_fn.

The training step is compared with the published one in parity_test.py.
"""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from supcon import losses
from supcon.compute import tpu_estimator
from supcon.config import enums
from supcon.config import hparams
from supcon.data.views import image_ops
from supcon.models import contrastive
from supcon.serving import trained_models
from supcon.training import hooks
from supcon.training import stages
from tests import golden
from tests import graphs
from tests import model_functions
from tests.tpu import cases
from tests.tpu import offline
from tests.tpu import program

tf1 = tf.compat.v1
ModeKeys = tpu_estimator.ModeKeys

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
    contrastive=hparams.ContrastiveOptions(temperature=_TEMPERATURE),
    cross_entropy=hparams.CrossEntropyOptions(label_smoothing=_SMOOTHING),
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
  return model_functions.make(
    params, run, run.stages[stage - 1], _NUM_CLASSES, **changes
  )


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
      tf.constant(golden.variable(name, shape))
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
  """Returns images [count, 2, side, side, 3] in two views, labels [count]."""
  rng = np.random.RandomState(seed)
  images = rng.uniform(-1, 1, [count, 2, side, side, 3]).astype(np.float32)
  return images, rng.randint(0, _NUM_CLASSES, count).astype(np.int32)


# --- Evaluation ---------------------------------------------------------------


def _evaluate(checkpoint, images, labels, batch_size, function, garbage=None):
  """Evaluates in batches, as the estimator does off TPU.

  Args:
    checkpoint: Prefix.
    images: [N, 2, side, side, 3].
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
    batch_losses = []
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
      batch_losses.append(loss)
    result = session.run({tag: value for tag, (value, _) in metrics.items()})
  return {**result, 'loss': np.mean(batch_losses)}


@pytest.fixture(scope='module', name='predict')
def _predict(checkpoint):
  """From single views [N, side, side, 3] to what the model says of them."""
  graph = tf.Graph()
  with graph.as_default():
    images = tf1.placeholder(tf.float32, [None, _SIDE, _SIDE, 3])
    model = contrastive.ContrastiveModel(_PARAMS.architecture, _NUM_CLASSES)
    outputs = trained_models.named(model(images, training=False))
    session = tf1.Session()
    _restore(session, checkpoint)
  yield lambda views: session.run(outputs, {images: views})
  session.close()


def _weight_decay(checkpoint):
  """Returns 0.01 * sum of v^2/2 of encoder and projection head."""
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
  result = np.zeros([batch, num_views])
  for i in range(batch):
    for v in range(num_views):
      others = [
        (j, w)
        for j in range(batch)
        for w in range(num_views)
        if (j, w) != (i, v)
      ]
      denominator = sum(np.exp(similarities[(i, v, *jw)]) for jw in others)
      result[i, v] = -np.mean(
        [
          similarities[i, v, j, w] - np.log(denominator)
          for j, w in others
          if labels[j] == labels[i]
        ]
      )
  return _TEMPERATURE * result.mean(axis=1)


def _expected(predict, checkpoint, images, labels, batch_size):
  """Returns metrics and loss, computed with NumPy from the model's outputs."""
  first, second = map(predict, np.moveaxis(images, 1, 0))
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
      np.testing.assert_allclose(
        actual[tag], value, rtol=2e-5, atol=1e-6, err_msg=tag
      )


@pytest.mark.parametrize('batch_size', [1, 4, 11, 16])
def test_every_example_counts_once_whatever_the_batch(
  checkpoint, predict, batch_size
):
  images, labels = _examples(11)
  function = _function(num_eval_examples=11)
  actual = _evaluate(checkpoint, images, labels, batch_size, function)
  expected = _expected(predict, checkpoint, images, labels, batch_size)
  assert 0 < expected['top_5_accuracy'] < 1
  _check_metrics(actual, expected)


def test_it_does_not_matter_what_the_padding_holds(checkpoint, predict):
  images, labels = _examples(5, seed=1)
  function = _function(num_eval_examples=5)
  actual = _evaluate(checkpoint, images, labels, 8, function, garbage=3.0)
  _check_metrics(actual, _expected(predict, checkpoint, images, labels, 8))


def test_the_loss_is_that_of_the_stage(checkpoint):
  images, labels = _examples(5, seed=1)
  function = _function(stage=2, num_eval_examples=5)
  actual = _evaluate(checkpoint, images, labels, 3, function)
  np.testing.assert_allclose(
    actual['loss'],
    0.5 * actual['loss/cross_entropy_loss'] + _weight_decay(checkpoint),
    rtol=2e-5,
  )


def test_without_labels_only_views_are_positives(checkpoint, predict):
  images, labels = _examples(6, seed=2)
  params = _PARAMS.replace('loss.contrastive.use_labels', False)
  function = _function(params, num_eval_examples=6)
  actual = _evaluate(checkpoint, images, labels, 6, function)
  expected = _expected(predict, checkpoint, images, np.arange(6), 6)
  tag = 'loss/contrastive_loss'
  np.testing.assert_allclose(actual[tag], expected[tag], rtol=2e-5)


def test_every_option_of_the_losses_is_passed_on(monkeypatch):
  options = {
    'temperature': 0.25,
    'contrast_mode': enums.LossContrastMode.ONE_VIEW,
    'summation_location': enums.LossSummationLocation.INSIDE,
    'denominator_mode': enums.LossDenominatorMode.ONE_POSITIVE,
    'positives_cap': 2,
    'scale_by_temperature': False,
  }
  params = _PARAMS
  for name, value in options.items():
    params = params.replace(f'loss.contrastive.{name}', value)
  passed = {}

  def record(name):
    loss = getattr(losses, name)

    def recorded(*args, **kwargs):
      passed[name] = kwargs
      return loss(*args, **kwargs)

    monkeypatch.setattr(losses, name, recorded)

  record('contrastive_loss')
  record('cross_entropy_loss')
  with tf.Graph().as_default():
    images, labels = map(tf.constant, _examples(4))
    features = {'images': images, 'weights': tf.ones([4])}
    _function(params).evaluate(features, labels)
  assert {name: passed['contrastive_loss'][name] for name in options} == options
  assert passed['cross_entropy_loss'] == {'label_smoothing': _SMOOTHING}


# --- Training -----------------------------------------------------------------


def _spec(function, images, labels):
  features = {'images': images, 'blur_sigmas': tf.zeros([len(labels), 2])}
  return function(features, tf.constant(labels), ModeKeys.TRAIN, {})


@pytest.mark.parametrize('train_batch_norm', [False, True])
def test_a_training_step(checkpoint, predict, train_batch_norm):
  images, labels = _examples(4)
  with tf.Graph().as_default(), tf1.Session() as session:
    function = _function(train_batch_norm=train_batch_norm)
    spec = _spec(function, tf.constant(images), labels)
    _restore(session, checkpoint)
    variables = {v.op.name: v for v in tf1.global_variables()}
    before, lone = session.run([variables, spec.host_call[1]])
    # Fetched together with the update, all is as before it.
    _, loss, scalars = session.run(
      [spec.train_op, spec.loss, spec.host_call[1]]
    )
    after = session.run(variables)
  for tag, value in lone.items():
    np.testing.assert_allclose(scalars[tag], value, rtol=1e-6, err_msg=tag)
  assert (scalars['global_step'], after['global_step']) == (0, 1)
  assert loss == scalars['loss']
  np.testing.assert_allclose(
    loss,
    2.0 * scalars['loss/contrastive_loss']
    + 0.5 * scalars['loss/cross_entropy_loss']
    + scalars['weight_decay/stage1_weight_decay_loss'],
    rtol=1e-5,
  )
  # Without batch statistics it is what an evaluation of the batch gives.
  expected = _expected(predict, checkpoint, images, labels, batch_size=4)
  is_as_in_evaluation = np.allclose(loss, expected['loss'], rtol=2e-5)
  assert is_as_in_evaluation == (not train_batch_norm)
  for name, value in before.items():
    is_same = np.array_equal(value, after[name])
    if name.endswith(('/moving_mean', '/moving_variance')):
      assert is_same == (not train_batch_norm), name
    elif name.endswith('/kernel'):
      assert not is_same, name


def test_every_update_waits_for_what_is_measured():
  # It would go well by chance nearly always, so the graph must say it.
  images, labels = _examples(4)
  with tf.Graph().as_default():
    spec = _spec(_function(), tf.constant(images), labels)
    measured = {tensor.op.inputs[0].op for tensor in spec.host_call[1].values()}
    updates = [
      op
      for op in [spec.train_op, *graphs.ancestors(spec.train_op)]
      if op.type.startswith(('ResourceApply', 'Assign'))
    ]
    assert len(updates) > len(tf1.trainable_variables())
    for update in updates:
      assert measured <= graphs.ancestors(update), update.name


def test_training_is_watched():
  images, labels = _examples(4)
  function = _function(stage=2)
  with tf.Graph().as_default():
    fed = tf1.placeholder(tf.float32, images.shape)
    spec = _spec(function, fed, labels)
    (progress_hook,) = spec.training_hooks
    assert isinstance(progress_hook, hooks.ProgressHook)
    images_of_steps = [images, images, images * np.float32(np.nan)]

    def feed(_):
      return tf1.train.SessionRunArgs([], {fed: images_of_steps[0]})

    feeding_hook = tf1.train.SessionRunHook()
    feeding_hook.before_run = feed
    with tf1.train.SingularMonitoredSession(
      hooks=[function.nan_hook, feeding_hook]
    ) as session:
      raw = session.raw_session()
      variables = {v.op.name: v for v in tf1.global_variables()}
      with pytest.raises(
        hooks.NanLossError, match='stage 2: .*total nan'
      ) as caught:
        while True:
          before = raw.run(variables)
          session.run(spec.train_op)
          images_of_steps.pop(0)
      after = raw.run(variables)
  # No weight, no slot, no moving statistic, and not the step.
  assert caught.value.step == before['global_step'] == 2
  for name, value in before.items():
    assert after[name].tobytes() == value.tobytes(), name


def test_what_is_broken_is_not_saved():
  images, labels = _examples(4)
  function = _function(stage=2)
  with tf.Graph().as_default(), tf1.Session() as session:
    _spec(function, tf.constant(images), labels)
    function.nan_listener.begin()
    session.run(tf1.global_variables_initializer())
    function.nan_listener.before_save(session, 6)
    slot = tf1.global_variables()[-1]
    assert slot.op.name.endswith('/MomentumOptimizer_stage2')
    slot.load(np.full(slot.shape, np.nan), session)
    with pytest.raises(
      hooks.BrokenVariableError, match=f'step 6, stage 2,.* {slot.op.name}'
    ):
      function.nan_listener.before_save(session, 7)


def test_on_tpu_nothing_changes_after_a_bad_step():
  num_cores = 4
  params = cases.params(enums.Optimizer.MOMENTUM)
  function = cases.function(params, 1, use_tpu=True)
  graph = offline.training_graph(
    function,
    cases.input_fn(tf.float32, with_weights=False),
    num_cores,
    cases.BATCH_SIZE,
    cases.STEPS_PER_STAGE,
  )
  with graph.as_default():
    memory = {v.op.name: np.zeros(v.shape) for v in tf1.local_variables()}
    for hook in (function.nan_hook, function.nan_listener):
      hook.begin()  # They have to find their way out of the loop.
  executable = program.Executable(program.lower(graph), num_cores)

  def train(infeed):
    return executable.run(
      {
        **cases.initial_variables(params),
        **memory,
        'tpu_estimator/iterations_per_loop': len(infeed),
      },
      infeed,
    ).variables

  def shares(images, labels):
    return [*zip(np.split(images, num_cores), np.split(labels, num_cores))]

  first, (images, labels), third = cases.batches(1)
  one_step = train([shares(*first)])
  images[-1] = np.nan  # An example of the last core.
  whole_loop = train([shares(*first), shares(images, labels), shares(*third)])

  reports = whole_loop.pop('first_bad_report')
  assert not np.any(one_step.pop('first_bad_report')[0][4:])
  for name, value in one_step.items():
    np.testing.assert_array_equal(whole_loop[name], value, err_msg=name)
  assert [*map(int, whole_loop['global_step'])] == [1] * num_cores
  # What the host sees after three steps is the report on the second one.
  for report in reports:
    assert np.isnan(report[0]) and np.isfinite(report[3])
    assert report[4] == 1  # The loss is bad on all, for batch norm is of all.


def test_warm_start_begins_where_the_reference_ended(checkpoint):
  images, labels = _examples(4)
  params = _PARAMS.replace('warm_start.warm_start_encoder', True)
  function = _function(params, reference_checkpoint=checkpoint)
  with tf.Graph().as_default(), tf1.Session() as session:
    _spec(function, tf.constant(images), labels).scaffold_fn()
    session.run(tf1.global_variables_initializer())
    variables = session.run({v.op.name: v for v in tf1.global_variables()})
  reader = tf.train.load_checkpoint(checkpoint)
  names = reader.get_variable_to_shape_map()
  for name in names:
    is_same = np.array_equal(variables[name], reader.get_tensor(name))
    assert is_same == name.startswith('ContrastiveModel/Encoder/'), name
  for name in set(variables) - set(names):  # Slots and step start anew.
    assert not np.any(variables[name])


# --- Mixed precision and blur -------------------------------------------------


def test_a_bfloat16_encoder_gives_float32_losses(checkpoint, predict):
  images, labels = _examples(4)
  with tf.Graph().as_default() as graph, tf1.Session() as session:
    features = {
      'images': tf.constant(images),
      'weights': tf.ones([4]),
    }
    function = _function(num_eval_examples=4, dtype=tf.bfloat16)
    spec = function.evaluate(features, tf.constant(labels))
    dtypes = [
      op.outputs[0].dtype
      for op in graph.get_operations()
      if op.type == 'Conv2D'
    ]
    # 17 convolutions and 4 in shortcuts: all there are.
    assert dtypes == [tf.bfloat16] * 21
    assert {v.dtype for v in tf1.global_variables()} == {tf.float32}
    assert spec.loss.dtype == tf.float32
    assert {t.dtype for t in spec.eval_metrics[1].values()} == {tf.float32}
    _restore(session, checkpoint)
    loss = session.run(spec.loss)
  expected = _expected(predict, checkpoint, images, labels, batch_size=4)
  np.testing.assert_allclose(loss, expected['loss'], rtol=0.05)


def test_training_on_tpu():
  images, labels = _examples(4)
  with tf.Graph().as_default():
    function = _function(use_tpu=True, dtype=tf.bfloat16)
    spec = _spec(function, tf.cast(tf.constant(images), tf.bfloat16), labels)
    assert {v.dtype for v in tf1.trainable_variables()} == {tf.float32}
    assert spec.loss.dtype == tf.float32
    scalars = dict(spec.host_call[1])
    assert scalars.pop('global_step').dtype == tf.int64
    assert {scalar.dtype for scalar in scalars.values()} == {tf.float32}
    # No hook can look into the loop on the device.
    assert not spec.training_hooks


# Blur needs 20 pixels for a kernel that reaches to the next pixel.
_BLUR_SIDE = 20


def _losses_of_examples(checkpoint, batches, is_deferred):
  """Returns {loss: [B]} of an evaluation of each (images, labels, sigmas)."""
  params = _PARAMS.replace(
    'input_data.preprocessing.defer_blurring', is_deferred
  )
  count = len(batches[0][1])
  with tf.Graph().as_default(), tf1.Session() as session:
    inputs = [
      tf1.placeholder(tf.float32, [count, 2, _BLUR_SIDE, _BLUR_SIDE, 3]),
      tf1.placeholder(tf.int32, [count]),
      tf1.placeholder(tf.float32, [count, 2]),
    ]
    images, labels, sigmas = inputs
    features = {
      'images': images,
      'blur_sigmas': sigmas,
      'weights': tf.ones([count]),
    }
    tensors = _function(params).evaluate(features, labels).eval_metrics[1]
    tensors = {
      name: tensors[f'loss/{name}_loss']
      for name in ('contrastive', 'cross_entropy')
    }
    _restore(session, checkpoint)
    return [session.run(tensors, dict(zip(inputs, each))) for each in batches]


def test_deferred_blur_is_done_where_the_features_say_so(checkpoint):
  images, labels = _examples(3, side=_BLUR_SIDE)
  none = np.zeros([3, 2], np.float32)
  sigmas = none.copy()
  sigmas[1, 0], sigmas[2, 1] = 1.5, 0.8  # (example, view)
  blurred = images.copy()
  for example, view in ((1, 0), (2, 1)):
    blurred[example, view] = image_ops.gaussian_blur(
      tf.constant(images[example, view : view + 1]),
      tf.constant(sigmas[example, view : view + 1]),
    )[0]

  expected, plain, not_left_to_the_model = _losses_of_examples(
    checkpoint,
    [(blurred, labels, none), (images, labels, none), (images, labels, sigmas)],
    is_deferred=False,
  )
  actual, all_sharp = _losses_of_examples(
    checkpoint,
    [(images, labels, sigmas), (images, labels, none)],
    is_deferred=True,
  )
  for name in ('contrastive', 'cross_entropy'):
    np.testing.assert_allclose(actual[name], expected[name], rtol=1e-5)
    np.testing.assert_allclose(all_sharp[name], plain[name], rtol=1e-6)
    np.testing.assert_array_equal(not_left_to_the_model[name], plain[name])
  # The losses can tell; the logits are those of view 0.
  is_other = np.abs(plain['cross_entropy'] - actual['cross_entropy']) > 1e-4
  assert [*is_other] == [False, True, False]
  assert np.all(np.abs(plain['contrastive'] - actual['contrastive']) > 1e-4)


@pytest.mark.parametrize('dtype', [tf.float32, tf.bfloat16])
def test_what_is_left_to_the_model_is_done_before_the_encoder(
  monkeypatch, dtype
):
  mean, std = (0.1, -0.2, 0.3), (0.4, 0.5, 0.6)
  params = _PARAMS.replace('input_data.preprocessing.defer_augmentation', True)
  seen = []
  call = contrastive.ContrastiveModel.__call__

  def recording(model, x, training):
    seen.append(x)
    return call(model, x, training)

  monkeypatch.setattr(contrastive.ContrastiveModel, '__call__', recording)
  rng = np.random.RandomState(3)
  images = rng.randint(0, 256, [3, 2, _SIDE, _SIDE, 3]).astype(np.uint8)
  with tf.Graph().as_default(), tf1.Session() as session:
    features = {
      'images': tf.constant(images),
      'blur_sigmas': tf.zeros([3, 2]),
      # Brightness of TensorFlow's jitter: half of the largest level more.
      'jitter_values': tf.broadcast_to([0.5, 1.0, 1.0, 0.0], [3, 2, 4]),
      'jitter_order': tf.constant(
        [[[-1] * 4, [0, 1, 2, 3]], [[-1] * 4] * 2, [[3, 2, 1, 0], [-1] * 4]]
      ),
      'is_gray': tf.constant([[False, False], [False, True], [False, False]]),
      'weights': tf.ones([3]),
    }
    function = _function(params, mean=mean, std=std, dtype=dtype)
    function.evaluate(features, tf.constant([0, 1, 2]))
    (x,) = seen
    assert x.dtype == dtype
    x = session.run(tf.cast(x, tf.float32))
  expected = images.astype(float)
  for example, view in ((0, 1), (2, 0)):
    brighter = expected[example, view] + 127.5
    expected[example, view] = np.minimum(brighter, 255)
  luma = expected[1, 1] @ [0.2989, 0.587, 0.114]
  expected[1, 1] = luma[..., np.newaxis]
  expected = (expected / 127.5 - 1 - mean) / std
  # One grey level; and what bfloat16 rounds, of values up to 4.
  tolerance = 2 / 255 / min(std) + (1e-5 if dtype == tf.float32 else 2**-5)
  assert np.abs(x - expected).max() <= tolerance
