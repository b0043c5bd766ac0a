"""Steps in micro-batches: what they share with a step in one pass.

That they are those of as many replicas is tested in several_replicas_test.py.
"""

import numpy as np
import pytest

from supcon.config import enums
from tests.tpu import cases
from tests.training import training_graph


def _params(size, **changes):
  params = cases.params(enums.Optimizer.MOMENTUM)
  for path, value in {
    'architecture__use_global_batch_norm': False,
    'micro_batch_size': size,
    **changes,
  }.items():
    params = params.replace(path.replace('__', '.'), value)
  return params


@pytest.mark.parametrize('use_labels', [True, False])
def test_without_batch_statistics_it_is_the_step_of_one_pass(use_labels):
  # With blur in the model: both passes see the same views.
  changes = {
    'loss__contrastive__use_labels': use_labels,
    'input_data__preprocessing__augmentation_type': (
      enums.AugmentationType.SIMCLR
    ),
    'input_data__preprocessing__defer_blurring': True,
  }
  (found, losses), (expected, expected_losses) = (
    training_graph.TrainingGraph(
      _params(size, **changes), with_sigmas=True, train_batch_norm=False
    ).train(cases.batches(1))
    for size in (8, 0)
  )
  np.testing.assert_allclose(losses, expected_losses, rtol=1e-6)
  for name, value in expected.items():
    np.testing.assert_allclose(
      found[name], value, rtol=1e-5, atol=1e-6, err_msg=name
    )


def test_a_single_micro_batch_is_one_pass():
  params = _params(cases.BATCH_SIZE, architecture__use_global_batch_norm=True)
  assert training_graph.TrainingGraph(params).loops() == []


def test_the_second_pass_is_only_for_gradients_that_reach_the_encoder():
  assert len(training_graph.TrainingGraph(_params(8)).loops()) == 2
  frozen = _params(8, stage_2__contrastive_loss_weight=0.0)
  assert frozen.architecture.stop_gradient_before_classification_head
  graph = training_graph.TrainingGraph(frozen, stage=2)
  assert len(graph.loops()) == 1
  variables, _ = graph.train(cases.batches(2))
  moving = 'ContrastiveModel/Encoder/batch_normalization/moving_mean'
  assert np.all(variables[moving])  # It follows the batches.


def test_nan_in_one_micro_batch_holds_the_step():
  graph = training_graph.TrainingGraph(_params(8))
  (images, labels), *_ = cases.batches(1)
  images = images.copy()
  images[20, 0, 0, 0, 0] = np.nan
  before, _ = graph.train([])
  # A relu on CPU hides it from the loss, but the statistics show it.
  after, _ = graph.train([(images, labels)])
  for name, value in before.items():
    np.testing.assert_array_equal(after[name], value, err_msg=name)
