"""The memory: each step against its definition, and what must not move it."""

import itertools

import numpy as np
import pytest
import tensorflow as tf

from supcon import losses
from supcon import pairwise
from supcon.config import enums
from supcon.config import fields
from supcon.config import hparams
from supcon.models import contrastive
from supcon.training import memory
from tests.tpu import cases
from tests.training import training_graph

tf1 = tf.compat.v1

_SIZE = 2 * cases.BATCH_SIZE


def _params(**changes):
  params = cases.params(enums.Optimizer.MOMENTUM)
  for path, value in {
    'memory__memory_size': _SIZE,
    'memory__memory_momentum': 0.75,
    **changes,
  }.items():
    params = params.replace(path.replace('__', '.'), value)
  return params


def _projections(params, values, images):
  """Returns the projections of a model with the given weights, [B, V, P]."""
  with tf.Graph().as_default(), tf1.Session() as session:
    model = contrastive.ContrastiveModel(params.architecture, cases.NUM_CLASSES)
    outputs = model(tf.constant(images), training=True)
    for variable in model.variables:
      variable.load(values[variable.op.name], session)
    return session.run(outputs.projection)


def _is_slow(name):
  return any(f'/{part}/' in name for part in ('Encoder', 'ProjectionHead'))


@pytest.mark.parametrize('use_labels', [True, False])
@pytest.mark.parametrize('momentum', [0.0, 0.75])
def test_each_step_is_the_definition(momentum, use_labels):
  params = _params(
    memory__memory_momentum=momentum,
    loss__contrastive__use_labels=use_labels,
    stage_1__weight_decay=0.0,
    stage_1__cross_entropy_loss_weight=0.0,
  )
  graph = training_graph.TrainingGraph(params)
  batches = cases.batches(1)
  slow, features = {}, np.zeros([0, 8], np.float32)
  ids = np.zeros([0], np.int32)
  for (images, labels), ((before, _), (after, loss)) in zip(
    batches, itertools.pairwise(graph.history(batches))
  ):
    anchors = keys = _projections(params, before, images)
    if momentum:
      slow = {
        name: momentum * slow.get(name, value) + (1 - momentum) * value
        for name, value in before.items()
        if name.startswith('ContrastiveModel/')
        and _is_slow(name)
        and f'Momentum/{name}' in before
      }
      assert slow
      keys = _projections(params, {**before, **slow}, images)
      for name, value in slow.items():
        np.testing.assert_allclose(
          after[f'Momentum/{name}'], value, rtol=1e-5, atol=1e-7, err_msg=name
        )
    empty = _SIZE - len(ids)
    options = params.loss.contrastive
    expected = losses.contrastive_loss(
      anchors,
      labels if use_labels else None,
      temperature=options.temperature,
      summation_location=options.summation_location,
      denominator_mode=options.denominator_mode,
      scale_by_temperature=options.scale_by_temperature,
      keys=keys if momentum else None,
      memory=pairwise.Memory(
        np.pad(features, [(0, empty), (0, 0)]),
        np.pad(ids, (0, empty), constant_values=-1),
      ),
    )
    np.testing.assert_allclose(loss, np.mean(expected), rtol=1e-5)
    features = np.concatenate([keys[:, -1], features])[:_SIZE]
    ids = np.concatenate([labels, ids])[:_SIZE]
    count = len(ids)
    np.testing.assert_allclose(
      after['Memory/features'][:count], features, atol=1e-5
    )
    np.testing.assert_array_equal(after['Memory/labels'][:count], ids)
    assert np.all(after['Memory/labels'][count:] == -1)


def test_moving_statistics_are_those_of_the_anchors():
  with_memory, _ = training_graph.TrainingGraph(_params()).train(
    cases.batches(1)[:1]
  )
  without, _ = training_graph.TrainingGraph(
    _params(memory__memory_size=0)
  ).train(cases.batches(1)[:1])
  names = [name for name in without if '/moving_' in name]
  assert names
  for name in names:
    np.testing.assert_array_equal(with_memory[name], without[name])


def test_a_stage_without_contrastive_loss_leaves_it_alone():
  params = _params(stage_2__contrastive_loss_weight=0.0)
  graph = training_graph.TrainingGraph(params, stage=2)
  (before, _), (after, _) = graph.history(cases.batches(2)[:1])
  names = [name for name in before if memory.is_part(name)]
  assert len(names) > 3
  for name in names:
    np.testing.assert_array_equal(before[name], after[name])


def test_a_bad_step_leaves_it_alone():
  graph = training_graph.TrainingGraph(_params())
  images, labels = cases.batches(1)[0]
  bad = images.copy()
  bad[1] = np.nan
  _, (before, _), (after, _) = graph.history([(images, labels), (bad, labels)])
  for name in before:
    np.testing.assert_array_equal(before[name], after[name], err_msg=name)


def test_micro_batches_have_keys_of_the_same_samples():
  # Without batch statistics there is no other difference.
  found, expected = (
    training_graph.TrainingGraph(
      _params(micro_batch_size=size, architecture__use_global_batch_norm=False),
      train_batch_norm=False,
    ).train(cases.batches(1))
    for size in (8, 0)
  )
  np.testing.assert_allclose(found[1], expected[1], rtol=1e-5)
  for name, value in expected[0].items():
    np.testing.assert_allclose(
      found[0][name], value, rtol=1e-4, atol=1e-5, err_msg=name
    )


@pytest.mark.parametrize(
  'changes, message',
  [
    ({'memory__memory_size': 100}, '--memory_size=100 .* try 128 or 96'),
    ({'memory__memory_size': 10}, 'try 32'),
    ({'memory__memory_size': -32}, '--memory_size=-32 must not be negative'),
    ({'memory__memory_momentum': 1.0}, '--memory_momentum=1.0 must be in'),
    ({'loss__contrastive__positives_cap': 2}, 'do not go together'),
  ],
)
def test_a_memory_that_cannot_be_is_refused(changes, message):
  params = _params(batch_size=32, **changes)
  with pytest.raises(fields.FieldError, match=message):
    params.check()


def test_there_is_none_by_default():
  assert not hparams.HParams().memory.memory_size
