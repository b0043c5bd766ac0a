"""Tests of supcon.training.objectives."""

import dataclasses
import logging

import numpy as np
import pytest
import tensorflow as tf

from supcon.config import enums
from supcon.config import fields
from supcon.config import hparams
from supcon.training import hooks
from supcon.training import objectives
from supcon.training import stages
from tests import model_functions
from tests.training import scalar_model

tf1 = tf.compat.v1

# --- Weight decay -------------------------------------------------------------

_NORMS = {  # include_bias: of encoder, projection head, classifier
  False: [8.0, 2.0, 18.0],
  True: [10.0, 20.0, 50.0],
}


def _decay(include_bias, **changes):
  with tf.Graph().as_default(), tf1.Session() as session:
    model = scalar_model.Model()
    loss = objectives.weight_decay_loss(
      scalar_model.make_stage(**changes).params, model, include_bias
    )
    session.run(tf1.global_variables_initializer())
    return session.run(loss)


@pytest.mark.parametrize('include_bias', [False, True])
@pytest.mark.parametrize(
  'decayed',
  [
    # Which of encoder, projection head, classifier.
    (False, False, False),
    (True, False, False),
    (False, True, False),
    (False, False, True),
    (True, True, True),
  ],
)
def test_weight_decay_of_what_is_switched_on(decayed, include_bias):
  switches = dict(zip(scalar_model.SWITCHES, decayed))
  norms = [norm for norm, on in zip(_NORMS[include_bias], decayed) if on]
  actual = _decay(include_bias, weight_decay=0.25, **switches)
  assert actual == 0.25 * sum(norms)


def test_no_weight_decay_in_the_loss_of_lars():
  # LARS decays by itself: see test_lars_decays_what_is_switched_on.
  lars = {'weight_decay': 0.25, 'optimizer': enums.Optimizer.LARS}
  assert _decay(True, **lars) == 0.0
  for optimizer in set(enums.Optimizer) - {enums.Optimizer.LARS}:
    assert _decay(True, weight_decay=0.25, optimizer=optimizer) == 0.25 * 30


def test_a_coefficient_of_0_differentiates_no_weight():
  with tf.Graph().as_default():
    model = scalar_model.Model()
    loss = objectives.weight_decay_loss(
      scalar_model.make_stage(weight_decay=0.0).params, model, True
    )
    assert tf.gradients(loss, model.trainable_variables) == [None] * 8


@pytest.mark.parametrize('include_bias', [False, True])
def test_weight_norms_are_of_every_module(include_bias):
  with tf.Graph().as_default(), tf1.Session() as session:
    norms = scalar_model.Model().weight_norms(include_bias)
    session.run(tf1.global_variables_initializer())
    names = ('Encoder', 'ProjectionHead', 'ClassificationHead')
    assert session.run(norms) == dict(zip(names, _NORMS[include_bias]))


# --- The loss of a stage ------------------------------------------------------


def _losses(contrastive, cross_entropy, **changes):
  """Returns (losses, whether the total's gradient reaches each) as numbers.

  The two losses are multiples of two variables of value 1.
  """
  with tf.Graph().as_default(), tf1.Session() as session:
    model = scalar_model.Model()
    stage = scalar_model.make_stage(**changes).params
    scales = [
      tf1.get_variable(name, initializer=1.0, use_resource=True)
      for name in ('contrastive', 'cross_entropy')
    ]
    losses = objectives.compose(
      stage,
      {
        'contrastive': scales[0] * contrastive,
        'cross_entropy': scales[1] * cross_entropy,
      },
      objectives.weight_decay_loss(stage, model, include_bias=True),
    )
    gradients = tf.gradients(losses['total'], scales)
    is_reached = [gradient is not None for gradient in gradients]
    session.run(tf1.global_variables_initializer())
    return session.run(losses), is_reached


def test_the_total_is_the_weighted_sum():
  # Encoder and projection head decay: 0.5 * (10 + 20) = 15. The total is
  # 15 + 2 * 3 + 0.25 * 8 = 23; the parts themselves are without weight.
  losses, is_reached = _losses(
    3.0,
    8.0,
    contrastive_loss_weight=2.0,
    cross_entropy_loss_weight=0.25,
    weight_decay=0.5,
  )
  assert list(losses.items()) == [
    ('total', 23.0),
    ('contrastive', 3.0),
    ('cross_entropy', 8.0),
    ('weight_decay', 15.0),
  ]
  assert is_reached == [True, True]


@pytest.mark.parametrize('broken', [np.nan, np.inf])
def test_a_loss_of_weight_0_reaches_neither_total_nor_gradient(broken):
  losses, is_reached = _losses(
    broken, 8.0, contrastive_loss_weight=0.0, cross_entropy_loss_weight=1.0
  )
  assert (losses['total'], losses['cross_entropy']) == (8.0, 8.0)
  np.testing.assert_equal(losses['contrastive'], np.float32(broken))
  assert is_reached == [False, True]

  losses, is_reached = _losses(
    3.0, broken, contrastive_loss_weight=1.0, cross_entropy_loss_weight=0.0
  )
  assert (losses['total'], losses['contrastive']) == (3.0, 3.0)
  assert is_reached == [True, False]


# --- Another term -------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Stage(hparams.Stage):
  embedding_norm_loss_weight: float = fields.define(0.5, part='encoder')


def _embedding_norm(params, outputs, labels, is_valid):
  del params, labels, is_valid
  norms = tf.reduce_sum(outputs.embedding**2, axis=-1)  # [B, V]
  return tf.reduce_mean(norms, axis=1)


def test_a_term_is_a_row_and_a_field(monkeypatch, caplog):
  monkeypatch.setitem(objectives.TERMS, 'embedding_norm', _embedding_norm)
  stage = _Stage(epochs=2, warmup_epochs=0.0, contrastive_loss_weight=0.0)
  params = hparams.HParams(
    batch_size=2,
    architecture=hparams.Architecture(
      encoder_architecture=enums.EncoderArchitecture.TINY,
      projection_head_layers=(4,),
    ),
    stage_1=stage,
    stage_2=stage,
  )
  run = stages.plan(params, 4)
  tag = 'loss/embedding_norm_loss'
  rng = np.random.RandomState(0)
  views = rng.uniform(-1, 1, [2, 2, 8, 8, 3]).astype(np.float32)
  with tf.Graph().as_default():
    function = model_functions.make(params, run, run.stages[0], 3)
    images = tf1.placeholder(tf.float32, views.shape)
    labels = tf.constant([0, 1])
    features = {'images': images, 'blur_sigmas': tf.zeros([2, 2])}
    spec = function.train(features, labels)
    caplog.set_level(logging.INFO, logger='absl')
    feed = {images: views}
    feeding_hook = tf1.train.FeedFnHook(lambda: feed)
    with tf1.train.SingularMonitoredSession(
      [function.nan_hook, feeding_hook, *spec.training_hooks]
    ) as session:
      # It is logged, and it is trained: the total is half of it, and falls.
      found = [
        session.run([spec.train_op, spec.loss, spec.host_call[1]])[1:]
        for _ in range(3)
      ]
      totals, values = zip(*((loss, scalars[tag]) for loss, scalars in found))
      np.testing.assert_allclose(totals, 0.5 * np.ravel(values), rtol=1e-6)
      assert totals[0] > totals[1] > totals[2]
      assert '0.5 x embedding-norm' in caplog.text
      # It is in the report of a divergence.
      feed[images] = views * np.nan
      with pytest.raises(
        hooks.NanLossError, match='loss parts: .*embedding_norm '
      ):
        session.run(spec.train_op)
  with tf.Graph().as_default():
    function = model_functions.make(params, run, run.stages[0], 3)
    features = {'images': tf.constant(views), 'weights': tf.ones([2])}
    features['blur_sigmas'] = tf.zeros([2, 2])
    metric_fn, tensors = function.evaluate(
      features, tf.constant([0, 1])
    ).eval_metrics
    assert tag in metric_fn(**tensors)  # It is evaluated.
