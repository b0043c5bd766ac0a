"""Tests of supcon.training.metrics."""

import math
import time

import numpy as np
import pytest
from tensorboard.backend.event_processing import event_accumulator
import tensorflow as tf

from supcon.compute import tpu_estimator
from supcon.config import enums
from supcon.config import hparams
from supcon.runs import event_files
from supcon.training import metrics
from supcon.training import stages
from tests import golden
from tests.training import scalar_model

tf1 = tf.compat.v1


# --- Accuracy -----------------------------------------------------------------


def _top_k(labels, logits, k):
  with tf.Graph().as_default(), tf1.Session() as session:
    return session.run(
      metrics.top_k_accuracy(
        tf.constant(labels, tf.int32), tf.constant(logits, tf.float32), k
      )
    )


def _numpy_top_k(labels, logits, k):
  """Sorts the classes of each example, of equal logits the lower one first."""
  best = np.argsort(-logits, axis=1, kind='stable')[:, :k]
  return np.any(best == labels[:, np.newaxis], axis=1).astype(np.float32)


@pytest.mark.parametrize('k', [1, 2, 5, 7, 8])
@pytest.mark.parametrize('num_values', [1, 3, 1000])
def test_top_k_accuracy(k, num_values):
  # Few values make many ties; with one value, all logits are equal.
  rng = np.random.RandomState(k)
  labels = rng.randint(0, 7, 200)
  logits = rng.randint(0, num_values, [200, 7]).astype(np.float32)
  actual = _top_k(labels, logits, k)
  assert actual.dtype == np.float32
  np.testing.assert_array_equal(actual, _numpy_top_k(labels, logits, k))
  if k == 1:
    hits = np.argmax(logits, axis=1) == labels
    np.testing.assert_array_equal(actual, hits)


def test_of_equal_logits_the_lower_class_is_larger():
  logits = [[2.0, 3.0, 3.0, 1.0]] * 4
  assert [*_top_k([0, 1, 2, 3], logits, 1)] == [0, 1, 0, 0]
  assert [*_top_k([0, 1, 2, 3], logits, 2)] == [0, 1, 1, 0]
  assert [*_top_k([0, 1, 2, 3], logits, 3)] == [1, 1, 1, 0]


@pytest.mark.parametrize('broken', [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize('k', [1, 5])
def test_what_is_not_a_number_is_no_right_answer(k, broken):
  # In the label's own class, in another one, in all of them; and in none.
  logits = [[broken, 1.0], [2.0, broken], [broken, broken], [2.0, 1.0]]
  assert [*_top_k([0, 0, 0, 0], logits, k)] == [0, 0, 0, 1]


# --- Evaluation ---------------------------------------------------------------


def _evaluate(batches):
  """Accumulates batches as an evaluation does.

  Args:
    batches: [(labels [B], logits [B, C], contrastive loss [B], cross-entropy
      [B], weights [B])], with the same B each.

  Returns:
    ({tag: value}, [{tag: value after an update} of each batch]).
  """
  shapes = [np.shape(part) for part in batches[0]]
  with tf.Graph().as_default(), tf1.Session() as session:
    inputs = [tf1.placeholder(tf.int32, shapes[0])]
    inputs += [tf1.placeholder(tf.float32, shape) for shape in shapes[1:]]
    labels, logits, contrastive, cross_entropy, weights = inputs
    losses = {'contrastive': contrastive, 'cross_entropy': cross_entropy}
    metric_fn, tensors = metrics.eval_metrics(labels, logits, losses, weights)
    found = metric_fn(**tensors)
    values = {tag: value for tag, (value, _) in found.items()}
    updates = {tag: update for tag, (_, update) in found.items()}
    assert not tf1.global_variables()  # Nothing to look for in a checkpoint.
    session.run(tf1.local_variables_initializer())
    history = [
      session.run(updates, dict(zip(inputs, batch))) for batch in batches
    ]
    for _ in range(2):  # To look at a value changes nothing.
      result = session.run(values)
    return result, history


def _batch(losses, weights, is_right=None):
  """Returns a batch in which both losses of each example are `losses`."""
  labels = np.zeros(len(losses), np.int32)
  if is_right is None:
    is_right = np.ones(len(losses))
  # Class 1 is ahead of the label's class 0 where the answer is wrong.
  logits = np.stack([np.zeros(len(losses)), 1.0 - 2 * is_right], axis=1)
  return labels, logits, losses, losses, weights


def test_tags_are_the_published_ones():
  published = set(golden.json('summaries.json')['eval']['tags'])
  result, _ = _evaluate([_batch(np.zeros(2), np.ones(2))])
  # The estimator writes these two itself.
  assert set(result) == published - {'loss', 'checkpoint_path'}


@pytest.mark.parametrize('num_examples', [7, 49, 360, 997])
def test_accuracy_is_right_answers_by_examples_to_the_last_bit(num_examples):
  rng = np.random.RandomState(num_examples)
  is_right = rng.randint(0, 2, num_examples).astype(np.float32)
  batch_size = 8
  padding = -num_examples % batch_size
  # Padding that would be right must not count either.
  padded = np.append(is_right, np.ones(padding))
  weights = np.append(np.ones(num_examples), np.zeros(padding))
  result, history = _evaluate(
    [
      _batch(np.zeros(batch_size), weights[i : i + batch_size], part)
      for i in range(0, len(padded), batch_size)
      for part in [padded[i : i + batch_size]]
    ]
  )
  assert result['top_1_accuracy'].dtype == np.float64
  assert result['top_1_accuracy'] == int(is_right.sum()) / num_examples
  assert result['top_5_accuracy'] == 1.0
  assert history[-1] == result
  assert history[0]['top_1_accuracy'] == is_right[:8].mean(dtype=np.float64)


def test_losses_add_up_without_rounding():
  # float32 would lose the small losses beside the large one, and has no more
  # than 7 digits after 50 batches of others.
  rng = np.random.RandomState(0)
  losses = rng.uniform(0, 3, [50, 1000]).astype(np.float32)
  losses[0, 0] = 2.0**30
  result, _ = _evaluate([_batch(part, np.ones(1000)) for part in losses])
  exact = math.fsum(float(loss) for loss in losses.flat) / losses.size
  for tag in ('loss/contrastive_loss', 'loss/cross_entropy_loss'):
    np.testing.assert_allclose(result[tag], exact, rtol=1e-14)


def test_each_tag_has_its_own_values():
  labels, logits = np.array([5, 0]), np.eye(7, dtype=np.float32)[[6, 0]]
  # Label 5 comes after 6 and, of equal logits, 0 to 4: seventh, so in no top 5.
  result, _ = _evaluate(
    [
      (labels, logits, np.array([1.0, 3.0]), np.array([4.0, 8.0]), np.ones(2)),
      (
        np.array([1, 0]),
        logits,
        np.zeros(2),
        np.zeros(2),
        np.array([1.0, 0.0]),
      ),
    ]
  )
  # Three examples: 5 and 1 are behind the 6, of which 1 is third.
  assert result == {
    'top_1_accuracy': 1 / 3,
    'top_5_accuracy': 2 / 3,
    'loss/contrastive_loss': 4 / 3,
    'loss/cross_entropy_loss': 12 / 3,
  }


@pytest.mark.parametrize('broken', [math.nan, math.inf])
def test_padding_does_not_count_whatever_it_holds(broken):
  result, _ = _evaluate(
    [
      _batch(np.array([1.0, 2.0]), np.ones(2), np.array([1, 0])),
      _batch(np.array([6.0, broken]), np.array([1.0, 0.0]), np.array([0, 1])),
      _batch(np.array([broken, broken]), np.zeros(2)),
    ]
  )
  assert result == {
    'top_1_accuracy': 1 / 3,
    'top_5_accuracy': 1.0,
    'loss/contrastive_loss': 3.0,
    'loss/cross_entropy_loss': 3.0,
  }


def test_a_loss_that_is_not_a_number_shows_unless_it_is_padding():
  result, _ = _evaluate([_batch(np.array([1.0, math.nan]), np.ones(2))])
  assert math.isnan(result['loss/contrastive_loss'])


# --- Training summaries -------------------------------------------------------


def test_training_scalars():
  # 2 steps per epoch; base rates are for a batch of 256.
  stage_1 = hparams.Stage(
    epochs=2,
    warmup_epochs=1.0,
    base_learning_rate=64.0,
    weight_decay=0.5,
    use_encoder_weight_decay=True,
    use_projection_head_weight_decay=False,
    use_classification_head_weight_decay=False,
  )
  stage_2 = hparams.Stage(
    epochs=1,
    warmup_epochs=0.0,
    weight_decay=0.25,
    optimizer=enums.Optimizer.RMSPROP,
    use_encoder_weight_decay=False,
    use_projection_head_weight_decay=True,
    use_classification_head_weight_decay=True,
  )
  params = hparams.HParams(batch_size=4, stage_1=stage_1, stage_2=stage_2)
  run = stages.plan(params, 8)
  with tf.Graph().as_default(), tf1.Session() as session:
    model = scalar_model.Model()
    # Classes in the order of their logits: 6, 5, 4, ... Label 4 is third, 1 is
    # sixth, 6 is first.
    logits = tf.tile([tf.range(7.0)], [4, 1])
    scalars = metrics.training_scalars(
      run,
      tf.constant(1, tf.int64),
      model,
      logits,
      tf.constant([4, 1, 6, 6]),
      {
        name: tf.constant(value)
        for name, value in (
          ('total', 1.5),
          ('contrastive', 2.5),
          ('cross_entropy', 3.5),
          ('weight_decay', 4.5),
        )
      },
      include_bias=True,
    )
    assert {s.dtype for s in scalars.values()} == {tf.float32}
    session.run(tf1.global_variables_initializer())
    actual = session.run(scalars)
  published = set(golden.json('summaries.json')['train']['tags'])
  assert set(actual) == published | {'loss'}
  assert actual == {
    'loss': 1.5,
    'loss/contrastive_loss': 2.5,
    'loss/cross_entropy_loss': 3.5,
    'current_epoch': 0.5,
    'top_1_accuracy': 0.5,
    'top_5_accuracy': 0.75,
    'weight_decay/Encoder_weights': 10.0,
    'weight_decay/ProjectionHead_weights': 20.0,
    'weight_decay/ClassificationHead_weights': 50.0,
    'weight_decay/stage1_weight_decay_loss': 5.0,
    'weight_decay/stage2_weight_decay_loss': 17.5,
    # Half of the warm-up to 64 * 4 / 256 = 1.
    'stage_1_learning_rate': 0.5,
    'stage_2_learning_rate': 0.0,
  }


# --- The host call ------------------------------------------------------------


def _summaries(directory):
  """Returns {tag: {step: value}} of the scalars that TensorBoard finds."""
  events = event_accumulator.EventAccumulator(str(directory))
  events.Reload()
  result = {}
  for tag in events.Tags()['scalars']:
    steps = [event.step for event in events.Scalars(tag)]
    assert steps == sorted(set(steps)), tag
    result[tag] = {event.step: event.value for event in events.Scalars(tag)}
  assert not events.Tags()['tensors']
  return result


def _train(
  directory, interval, max_steps, num_replicas=1, start_step=0, hooks=()
):
  """Trains nothing with a TPUEstimator whose host call is tested."""

  def model_fn(features, labels, mode, params):
    del features, labels, params
    step = tf1.train.get_or_create_global_step()
    before_update = tf.identity(step)
    ten_fold = 10.0 * tf.cast(before_update, tf.float32)
    with tf.control_dependencies([ten_fold]):
      train_op = step.assign_add(1)
    calls = [
      metrics.host_call(
        {'ten/fold': ten_fold, 'replica': tf.constant(float(replica))},
        before_update,
        str(directory),
        interval,
        start_step,
      )
      for replica in range(num_replicas)
    ]
    write = calls[0][0]
    # As the estimator hands over what several replicas have.
    tensors = {
      name: tf.concat([tensors[name] for _, tensors in calls], axis=0)
      for name in calls[0][1]
    }
    return tpu_estimator.TPUEstimatorSpec(
      mode=mode,
      loss=tf.constant(0.0),
      train_op=train_op,
      host_call=(write, tensors),
    )

  estimator = tpu_estimator.TPUEstimator(
    model_fn,
    config=tpu_estimator.RunConfig(model_dir=str(directory / 'estimator')),
    use_tpu=False,
    train_batch_size=1,
  )
  estimator.train(
    lambda params: tf.data.Dataset.from_tensors(([0.0], [0.0])).repeat(),
    max_steps=max_steps,
    hooks=hooks,
  )


def test_summaries_are_written_at_the_multiples_of_the_interval(tmp_path):
  _train(tmp_path, interval=3, max_steps=8)
  assert _summaries(tmp_path) == {
    'ten/fold': {0: 0.0, 3: 30.0, 6: 60.0},
    'replica': {0: 0.0, 3: 0.0, 6: 0.0},
  }


def test_a_record_is_in_the_file_as_soon_as_its_step_is_done(tmp_path):
  # Whoever is killed after it has lost nothing of it.
  found = []

  class Reader(tf1.train.SessionRunHook):
    def after_run(self, run_context, run_values):
      found.append([*_summaries(tmp_path).get('ten/fold', {})])

  _train(tmp_path, interval=2, max_steps=4, hooks=[Reader()])
  assert found == [[0], [0], [0, 2], [0, 2]]


def test_training_that_continues_keeps_to_the_multiples(tmp_path):
  _train(tmp_path, interval=2, max_steps=3)
  (file,) = tmp_path.glob('events.out.tfevents.*.v2')
  file.unlink()
  _train(tmp_path, interval=2, max_steps=7, start_step=3)
  assert _summaries(tmp_path)['ten/fold'] == {4: 40.0, 6: 60.0}


def _wait_for_another_second():
  """Event files of one second are sorted by a number as text: 10 before 9."""
  before = int(time.time())
  while int(time.time()) == before:
    time.sleep(0.01)


def test_steps_that_are_done_again_are_recorded_once(tmp_path):
  # Killed after step 8, it continues from the checkpoint of step 5.
  _train(tmp_path, interval=1, max_steps=5)
  _wait_for_another_second()
  _train(tmp_path, interval=1, max_steps=9, start_step=5)
  (checkpoint,) = tmp_path.glob('estimator/model.ckpt-5.index')
  for path in tmp_path.glob('estimator/model.ckpt-9.*'):
    path.unlink()
  (tmp_path / 'estimator' / 'checkpoint').write_text(
    f'model_checkpoint_path: "{checkpoint.stem}"'
  )
  _wait_for_another_second()
  _train(tmp_path, interval=3, max_steps=11, start_step=5)
  steps = {0: 0.0, 1: 10.0, 2: 20.0, 3: 30.0, 4: 40.0, 6: 60.0, 9: 90.0}
  assert _summaries(tmp_path)['ten/fold'] == steps
  # So it is where files are read by us.
  rows = event_files.read(str(tmp_path))
  assert {step: row['ten/fold'] for step, row in rows.items()} == steps


def test_speed_stands_beside_what_the_host_call_writes(tmp_path):
  hook = metrics.SpeedHook(str(tmp_path), batch_size=4, interval_steps=3)
  _train(tmp_path, interval=3, max_steps=8, hooks=[hook])
  found = _summaries(tmp_path)
  # The first step waits for all that is made only once.
  assert [*found['global_step/sec']] == [3, 6]
  for step, speed in found['global_step/sec'].items():
    assert found['examples/sec'][step] == pytest.approx(4 * speed)
    assert found['ten/fold'][step] == 10 * step


def test_a_summary_is_the_mean_over_the_replicas(tmp_path):
  _train(tmp_path, interval=2, max_steps=3, num_replicas=4)
  assert _summaries(tmp_path) == {
    'ten/fold': {0: 0.0, 2: 20.0},
    'replica': {0: 1.5, 2: 1.5},
  }
