"""Tests of supcon.serving.predictions."""

import numpy as np
import tensorflow as tf

from supcon.compute import tpu_estimator
from supcon.config import hparams
from supcon.models import contrastive
from supcon.serving import predictions
from supcon.serving import trained_models

tf1 = tf.compat.v1

_SIDE = 8
_PARAMS = hparams.HParams(
  architecture=hparams.Architecture(
    encoder_depth=18, encoder_width=1 / 16, projection_head_layers=(8, 6)
  )
).replace(
  'input_data.preprocessing',
  # Whitening is left to the model.
  hparams.Preprocessing(image_size=_SIDE, defer_augmentation=True),
)


def _model(mean=None, std=None):
  return trained_models.TrainedModel(
    params=_PARAMS,
    checkpoint='DIR/model.ckpt-3',
    class_names=('a', 'b', 'c'),
    mean=mean,
    std=std,
  )


def _features(levels):
  count = len(levels)
  return {
    'images': tf.constant(levels[:, np.newaxis]),
    'blur_sigmas': tf.zeros([count, 1]),
    'labels': tf.range(count),
    'weights': tf.ones([count]),
  }


def test_says_what_the_model_says_of_whitened_images():
  levels = np.random.RandomState(0).randint(0, 256, [4, _SIDE, _SIDE, 3])
  mean, std = (0.1, 0.0, -0.2), (0.5, 0.4, 0.3)
  white = (levels / 127.5 - 1 - mean) / std
  with tf.Graph().as_default(), tf1.Session() as session:
    function = predictions.PredictFn(_model(mean, std), tf.float32)
    spec = function(
      _features(levels.astype(np.uint8)),
      None,
      tpu_estimator.ModeKeys.PREDICT,
      {},
    )
    with tf1.variable_scope('', reuse=True):
      model = contrastive.ContrastiveModel(_PARAMS.architecture, 3)
    expected = trained_models.named(
      model(tf.constant(white.astype(np.float32)), training=False)
    )
    session.run(tf1.global_variables_initializer())
    actual, expected = session.run([spec.predictions, expected])
  np.testing.assert_array_equal(actual.pop('labels'), range(4))
  np.testing.assert_array_equal(actual.pop('weights'), np.ones(4))
  assert set(actual) == set(expected)
  for name, value in expected.items():
    scale = np.abs(value).max()
    np.testing.assert_allclose(actual[name], value, atol=1e-5 * scale)


def test_can_start_from_elsewhere():
  started = []
  with tf.Graph().as_default():
    spec = predictions.PredictFn(_model(), tf.float32, started.append)(
      _features(np.zeros([2, _SIDE, _SIDE, 3], np.uint8)),
      None,
      tpu_estimator.ModeKeys.PREDICT,
      {},
    )
    assert not started
    spec.scaffold_fn()
  assert isinstance(started[0], contrastive.ContrastiveModel)
