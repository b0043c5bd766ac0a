"""End-to-end tests: main.py and the scripts as a user starts them.

Each run takes seconds, most of them for graphs, so many tests share one. The
network is tiny and learns the digits a little, from cross-entropy, too: whether
an evaluation is right shows best where some answers are.
"""

import json
import math
import os
import re
import shutil
import subprocess
import sys
import types

import numpy as np
import pytest
from tensorboard.backend.event_processing import event_multiplexer
import tensorflow as tf
import tensorflow_datasets as tfds

from supcon.config import hparams
from supcon.data import inputs
from supcon.data.sources import datasets
from supcon.runs import event_files
from tests import command
from tests import flag_parsing
from tests import golden
from tests.data import fakes

_FLAGS = {
  **command.DIGITS,
  **command.RESNET,
  'num_images': 500,
  'stop_gradient_before_classification_head': False,
  'stage_1_epochs': 4,
  'stage_1_warmup_epochs': 0,
  'stage_1_base_learning_rate': 0.3,
  'stage_1_optimizer': 'MOMENTUM',
  'stage_1_cross_entropy_loss_weight': 1.0,
  'stage_2_epochs': 3,
  'stage_2_warmup_epochs': 0,
  'stage_2_base_learning_rate': 3.0,
  'stage_2_optimizer': 'MOMENTUM',
}
_STEPS_PER_EPOCH = 500 / 64
_BOUNDARY = 31  # floor(4 x 500 / 64), where stage 2 begins.
_LAST = 54  # floor(7 x 500 / 64)
_SUMMARY_INTERVAL = 5
_SAVE_INTERVAL = 10
_NUM_TEST = 360


def _read_json(path):
  return json.loads(path.read_text())


def _copy_checkpoints(source, target, steps):
  """Copies some checkpoints and names them as a trainer does, newest last."""
  target.mkdir(exist_ok=True)
  for step in steps:
    for path in source.glob(f'model.ckpt-{step}.*'):
      shutil.copy2(path, target)
  tf.compat.v1.train.update_checkpoint_state(
    str(target),
    f'model.ckpt-{steps[-1]}',
    [f'model.ckpt-{step}' for step in steps],
  )


def _module_variables(checkpoint, module):
  """Returns a module's variables, moving statistics included, without slots."""
  found = {
    name: value
    for name, value in command.variables(checkpoint).items()
    if name.startswith(f'ContrastiveModel/{module}/')
    and 'Optimizer' not in name
  }
  assert found
  return found


def _assert_equal(first, second):
  """Compares {name: array} bit for bit."""
  assert first.keys() == second.keys()
  for name, value in first.items():
    np.testing.assert_array_equal(value, second[name], err_msg=name)


# --- What NumPy makes of the exported model -----------------------------------


def _exported(result):
  """Returns a function of images to {name: array}, of result.json's model."""
  # As a user of TensorFlow 2 loads it: no tags, no options.
  loaded = tf.saved_model.load(result['saved_model'])

  def call(images):
    signature = loaded.signatures['serving_default']
    outputs = signature(**{'input': tf.constant(images, tf.float32)})
    return {name: value.numpy() for name, value in outputs.items()}

  return call


def _images_and_labels(data_dir, name, split):
  """Returns uint8 [N, H, W, 3] and int [N], as TFDS itself decodes them."""
  (directory,) = (data_dir / name).glob('[0-9]*')
  examples = tfds.builder_from_directory(directory).as_dataset(split=split)
  images, labels = zip(
    *((each['image'], each['label']) for each in tfds.as_numpy(examples))
  )
  return np.stack(images), np.stack(labels)


def _log_softmax(logits):
  logits = logits.astype(np.float64)
  logits -= logits.max(axis=-1, keepdims=True)
  return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def _contrastive_loss(projections, classes, temperature):
  """Eq. 2 of https://arxiv.org/abs/2004.11362 times the temperature.

  Args:
    projections: [B, V, D].
    classes: [B]; views of samples with equal ones are positives.
    temperature: Positive.

  Returns:
    float64 [B], the mean over the views of each sample.
  """
  batch, views, _ = projections.shape
  z = projections.astype(np.float64).reshape(batch * views, -1)
  z /= np.linalg.norm(z, axis=1, keepdims=True)
  logits = z @ z.T / temperature
  np.fill_diagonal(logits, -np.inf)  # Nothing is its own positive or negative.
  log_ratio = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
  classes = np.repeat(classes, views)
  is_positive = classes[:, np.newaxis] == classes
  np.fill_diagonal(is_positive, False)
  sums = np.where(is_positive, log_ratio, 0.0).sum(axis=1)
  losses = -temperature * sums / is_positive.sum(axis=1)
  return losses.reshape(batch, views).mean(axis=1)


def _assert_evaluation_is_right(result, data_dir, params):
  """Compares result.json with NumPy on all images of the test split."""
  metrics = result['metrics']
  exported = _exported(result)
  images, labels = _images_and_labels(data_dir, 'digits', 'test')
  assert images.shape == (_NUM_TEST, 8, 8, 3)
  images = images / np.float32(127.5) - 1  # CROP_THEN_RESIZE 8 to 8 is nothing.
  outputs = exported(images)

  order = np.argsort(-outputs['logits'], axis=1, kind='stable')
  for k in (1, 5):
    is_right = (order[:, :k] == labels[:, np.newaxis]).any(axis=1)
    assert metrics[f'top_{k}_accuracy'] == is_right.sum() / _NUM_TEST
  log_probabilities = _log_softmax(outputs['logits'])
  cross_entropy = -log_probabilities[np.arange(_NUM_TEST), labels].mean()
  assert metrics['loss/cross_entropy_loss'] == pytest.approx(
    cross_entropy, rel=1e-5
  )

  # The second view is augmented, hence the input pipeline's.
  dataset = datasets.load('digits', str(data_dir))
  batches = inputs.eval_input_fn(dataset, params, tf.float32)(
    {'batch_size': 100}
  )
  losses, first_views = [], []
  for features, batch_labels in batches.as_numpy_iterator():
    is_example = features['weights'] > 0
    views = np.moveaxis(features['images'][is_example], 1, 0)
    first_views.append(views[0])
    classes = batch_labels[is_example]
    if not params.loss.contrastive.use_labels:
      classes = np.arange(len(classes))
    projections = [exported(view)['projection'] for view in views]
    losses.append(
      _contrastive_loss(
        np.stack(projections, axis=1),
        classes,
        params.loss.contrastive.temperature,
      )
    )
  assert [len(each) for each in losses] == [100, 100, 100, 60]
  np.testing.assert_allclose(np.concatenate(first_views), images, atol=1e-6)
  assert metrics['loss/contrastive_loss'] == pytest.approx(
    np.concatenate(losses).mean(), rel=1e-4
  )


# --- One run, from nothing to the exported model ------------------------------


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
  """Where the first run prepares the digits."""
  return tmp_path_factory.mktemp('data') / 'made by main.py'


@pytest.fixture(scope='module')
def trained(tmp_path_factory, data_dir):
  """A finished train_then_eval, and what it left."""
  directory = tmp_path_factory.mktemp('trained')
  model_dir = directory / 'a model'
  flags = {
    **_FLAGS,
    'mode': 'train_then_eval',
    'data_dir': data_dir,
    'model_dir': model_dir,
    'summary_interval_steps': _SUMMARY_INTERVAL,
    'save_interval_steps': _SAVE_INTERVAL,
    'max_checkpoints_to_keep': 100,
  }
  # As a user starts it: nothing is imported yet.
  run = command.succeed(flags, directory, is_forked=False)
  return types.SimpleNamespace(
    flags=flags,
    directory=directory,
    model_dir=model_dir,
    run=run,
    result=_read_json(model_dir / 'result.json'),
    params=flag_parsing.parse(command.to_arguments(flags))[1],
    first_loss=_first_losses(model_dir),
  )


def _first_losses(model_dir):
  found = command.summaries(model_dir / 'train')
  return {
    name: found[name][0]
    for name in ('loss', 'loss/contrastive_loss', 'loss/cross_entropy_loss')
  }


class TestTrainThenEval:
  """What one run says, and what it leaves."""

  def test_checkpoints(self, trained):
    # At step 0, every 10 steps, at the end of each stage.
    assert command.steps(trained.model_dir) == [0, 10, 20, 30, 31, 41, 51, 54]
    assert command.newest_step(trained.model_dir) == _LAST

  def test_hparams_json(self, trained):
    written = _read_json(trained.model_dir / 'hparams.json')
    assert hparams.parse(written['compact']) == trained.params
    assert written['hparams'] == trained.params.to_json()
    # They are shown, too.
    assert f'--hparams={written["compact"]}' in trained.run.stderr

  def test_result_json(self, trained):
    result = trained.result
    assert result['global_step'] == result['total_steps'] == _LAST
    assert result['num_examples'] == _NUM_TEST
    assert (result['dataset'], result['split']) == ('digits', 'test')
    assert result['checkpoint'] == str(trained.model_dir / 'model.ckpt-54')
    assert result['saved_model'].startswith(
      str(trained.model_dir / 'exports') + os.sep
    )
    published = set(golden.json('summaries.json')['eval']['eval_result_keys'])
    assert published - {'global_step'} <= set(result['metrics'])
    metrics = result['metrics']
    # Stage 2 minimises the cross-entropy alone.
    assert metrics['loss'] == pytest.approx(
      metrics['loss/cross_entropy_loss'], rel=1e-6
    )
    # Something has been learnt, and not everything: else a wrong evaluation
    # could be right by chance.
    assert 0.2 < metrics['top_1_accuracy'] < 0.95

  def test_summary_at_the_end(self, trained):
    top_1 = 100 * trained.result['metrics']['top_1_accuracy']
    assert trained.run.stdout.strip().splitlines() == [
      f'Top-1 {top_1:.2f}% on all 360 digits test images.',
      f'Checkpoint:  {trained.result["checkpoint"]}',
      f'SavedModel:  {trained.result["saved_model"]}',
      f'Hub module:  {trained.result["hub_module"]}',
      f'Metrics:     {trained.model_dir / "result.json"}',
      # The path holds a space.
      f'TensorBoard: {sys.executable} -m tensorboard.main --logdir '
      f"'{trained.model_dir}'",
    ]

  def test_log(self, trained):
    # Nothing but our own lines: no warning of any library.
    for line in trained.run.stderr.splitlines():
      assert re.match(r'\d\d:\d\d:\d\d +\S', line), line
      assert 'WARNING' not in line
    log = trained.run.log
    assert f'stage 1: steps 0 to {_BOUNDARY}' in log
    assert f'stage 2: steps {_BOUNDARY} to {_LAST}' in log
    for stage, step in ((1, 1), (1, _BOUNDARY), (2, _LAST)):
      pattern = (
        rf'stage {stage}  step {step} of {_LAST}  epoch .*loss \d.*'
        r'contrastive \d.*cross-entropy \d.*rate \d'
      )
      assert any(re.match(pattern, line) for line in log), pattern
    assert any(line.startswith('evaluating ') for line in log)

  def test_training_summaries(self, trained):
    found = command.summaries(trained.model_dir / 'train')
    published = golden.json('summaries.json')
    of_estimator = set(published['train_estimator']['tags'])
    assert set(found) == set(published['train']['tags']) | of_estimator
    expected_steps = list(range(0, _LAST, _SUMMARY_INTERVAL))
    for tag in of_estimator - {'loss'}:
      # Of each stage the first step waits for all that is made only once.
      assert sorted(found.pop(tag)) == expected_steps[1:], tag
    for tag, values in found.items():
      assert sorted(values) == expected_steps, tag
    for step in expected_steps:
      number = 1 if step < _BOUNDARY else 2
      value = {tag: values[step] for tag, values in found.items()}
      # Stage 1 minimises both losses, stage 2 the cross-entropy.
      total = value['loss/cross_entropy_loss']
      if number == 1:
        total += value['loss/contrastive_loss']
      assert value['loss'] == pytest.approx(total, rel=1e-6)
      assert value['current_epoch'] == pytest.approx(step / _STEPS_PER_EPOCH)
      # Cosine decay, over floor(4 x 7.8125) and floor(3 x 7.8125) steps.
      start, decay_steps, base = ((0, 31, 0.3), (31, 23, 3.0))[number - 1]
      rate = base * 64 / 256
      rate *= (1 + math.cos(math.pi * (step - start) / decay_steps)) / 2
      assert value[f'stage_{number}_learning_rate'] == pytest.approx(
        rate, abs=1e-6
      )
      assert value[f'stage_{3 - number}_learning_rate'] == 0

  def test_tensorboard_shows_two_runs_with_names(self, trained):
    runs = event_multiplexer.EventMultiplexer()
    runs.AddRunsFromDirectory(str(trained.model_dir))
    assert set(runs.Runs()) == {'train', 'eval'}

  def test_metrics_csv(self, trained):
    found = command.summaries(trained.model_dir / 'train')
    rows = command.table(trained.model_dir / 'metrics.csv')
    assert list(rows) == list(range(0, _LAST, _SUMMARY_INTERVAL))
    for step, row in rows.items():
      stage = 1 if step < _BOUNDARY else 2
      assert row.pop('step') == str(step) and row.pop('stage') == str(stage)
      for column, tag in {
        'epoch': 'current_epoch',
        **event_files.TRAINING_COLUMNS,
      }.items():
        value = found[tag.format(stage=stage)].get(step)
        text = row.pop(column)
        if value is None:
          assert (text, column, step) == ('', 'examples_per_second', 0)
        else:
          assert float(text) == pytest.approx(value, rel=1e-5), column
      assert not row
    (row,) = command.table(trained.model_dir / 'eval/metrics.csv').values()
    # They are for --knn_examples.
    for column in ('knn_k20_t0.07', 'alignment', 'uniformity'):
      assert row.pop(column) == ''
    assert (row.pop('step'), row.pop('stage')) == (str(_LAST), '2')
    assert float(row.pop('epoch')) == pytest.approx(_LAST / _STEPS_PER_EPOCH)
    metrics = trained.result['metrics']
    assert {
      event_files.EVALUATION_COLUMNS[column]: float(text)
      for column, text in row.items()
    } == pytest.approx(metrics, rel=1e-6)

  def test_evaluation_summaries(self, trained):
    found = command.summaries(trained.model_dir / 'eval')
    published = golden.json('summaries.json')['eval']['tags']
    # One of them is a text.
    assert set(found) == set(published) - {'checkpoint_path'}
    for tag, value in trained.result['metrics'].items():
      assert set(found[tag]) == {_LAST}
      assert found[tag][_LAST] == pytest.approx(value, rel=1e-6)

  def test_evaluation_is_that_of_the_exported_model(self, trained, data_dir):
    _assert_evaluation_is_right(trained.result, data_dir, trained.params)

  def test_exported_signatures(self, trained):
    loaded = tf.saved_model.load(trained.result['saved_model'])
    for name, published in golden.json('signatures.json')['signatures'].items():
      outputs = loaded.signatures[name].structured_outputs
      assert set(published['outputs']) <= set(outputs), name
      assert outputs['logits'].shape.as_list() == [None, 10]

  def test_second_run_does_not_train_again(self, trained):
    before = command.contents(trained.model_dir)
    again = command.succeed(trained.flags, trained.directory)
    assert (
      f'model_dir holds step {_LAST} of {_LAST}: nothing is left to train'
      in again.log
    )
    assert not any(line.startswith('stage ') for line in again.log)
    after = command.contents(trained.model_dir)
    for name in before:
      if name.startswith(('model.ckpt', 'checkpoint')):
        assert after[name] == before[name], name
    result = _read_json(trained.model_dir / 'result.json')
    assert result['metrics'] == trained.result['metrics']
    assert result['saved_model'] != trained.result['saved_model']
    assert result['saved_model'] in again.stdout


# --- Killed and continued, with an evaluation beside it -----------------------


@pytest.fixture(scope='module')
def side_by_side(tmp_path_factory, trained):
  """An eval job, beside which training is killed twice and then finishes."""
  directory = tmp_path_factory.mktemp('side_by_side')
  model_dir = directory / 'model'
  flags = {
    **trained.flags,
    'model_dir': model_dir,
    'save_interval_steps': 4,
    # So that checkpoints disappear under the eval job.
    'max_checkpoints_to_keep': 2,
  }
  evaluation_flags = {
    **flags,
    'mode': 'eval',
    'eval_interval_secs': 0,
    'export_formats': 'saved_model',
  }
  with command.Process(evaluation_flags, directory) as evaluation:
    evaluation.wait_until(lambda: 'waiting for a' in evaluation.stderr)
    was_empty = [path.name for path in model_dir.iterdir()] == ['eval']

    flags['mode'] = 'train'
    trainings, killed_at = [], []
    for first_step in (8, 39):
      with command.Process(flags, directory) as training:
        training.wait_until(
          lambda step=first_step: command.newest_step(model_dir) >= step
        )
        trainings.append(training.kill())
      killed_at.append(command.newest_step(model_dir))
    trainings.append(command.succeed(flags, directory))
    evaluation = evaluation.wait()
  return types.SimpleNamespace(
    model_dir=model_dir,
    was_empty=was_empty,
    trainings=trainings,
    killed_at=killed_at,
    evaluation=evaluation,
  )


@pytest.mark.slow
class TestSideBySide:
  def test_training_continues_in_either_stage(self, side_by_side):
    first, second = side_by_side.killed_at
    assert 0 < first < _BOUNDARY < second < _LAST
    _, continued, last = (training.log for training in side_by_side.trainings)
    for log, step in ((continued, first), (last, second)):
      assert (
        f'model_dir holds step {step} of {_LAST}: training continues there'
        in log
      )
    assert f'stage 1: steps {first} to {_BOUNDARY}' in continued
    assert f'stage 2: steps {second} to {_LAST}' in last
    assert not any(line.startswith('stage 1') for line in last)

  def test_variables_are_those_of_an_unbroken_run(self, side_by_side, trained):
    # Bit for bit, slots included: order and views of the images depend on the
    # step alone, and on one machine the arithmetic is always the same.
    _assert_equal(
      command.variables(side_by_side.model_dir / 'model.ckpt-54'),
      command.variables(trained.model_dir / 'model.ckpt-54'),
    )

  def test_summaries_are_those_of_an_unbroken_run(self, side_by_side, trained):
    broken, unbroken = (
      command.summaries(each.model_dir / 'train')
      for each in (side_by_side, trained)
    )
    for tag, values in unbroken.items():
      if tag not in ('global_step/sec', 'examples/sec'):
        assert broken[tag] == values, tag
    broken, unbroken = (
      command.table(each.model_dir / 'metrics.csv')
      for each in (side_by_side, trained)
    )
    for row in (*broken.values(), *unbroken.values()):
      del row['examples_per_second']
    assert broken == unbroken

  def test_evaluation_waits_for_the_first_checkpoint(self, side_by_side):
    assert side_by_side.was_empty
    log = side_by_side.evaluation.log
    (waiting, *_) = (
      n for n, line in enumerate(log) if line.startswith('waiting for a')
    )
    evaluating = [
      n for n, line in enumerate(log) if line.startswith('evaluating ')
    ]
    assert waiting < min(evaluating)

  def test_evaluation_goes_on_until_the_last_step(self, side_by_side):
    assert side_by_side.evaluation.returncode == 0
    log = side_by_side.evaluation.log
    evaluating = [
      int(line.rsplit('-', 1)[-1])
      for line in log
      if line.startswith('evaluating ')
    ]
    assert evaluating == sorted(set(evaluating))
    done = [
      int(found[1])
      for found in (re.match(r'step (\d+): top-1', line) for line in log)
      if found
    ]
    assert done[0] < _LAST and done[-1] == _LAST
    skipped = [line for line in log if line.endswith('; skipped')]
    assert len(done) + len(skipped) == len(evaluating)
    recorded = command.summaries(side_by_side.model_dir / 'eval')
    # One may have been deleted between its evaluation and its export.
    assert set(done) <= set(recorded['top_1_accuracy']) <= set(evaluating)

  def test_evaluation_is_that_of_the_same_variables(
    self, side_by_side, trained
  ):
    result = _read_json(side_by_side.model_dir / 'result.json')
    assert result['global_step'] == _LAST
    assert result['metrics'] == trained.result['metrics']


def test_eval_of_a_finished_run_outlives_a_deleted_checkpoint(
  tmp_path, trained
):
  model_dir = tmp_path / 'model'
  _copy_checkpoints(trained.model_dir, model_dir, [_BOUNDARY, _LAST])
  flags = {**trained.flags, 'mode': 'eval', 'model_dir': model_dir}
  deleted = model_dir / f'model.ckpt-{_BOUNDARY}'
  with command.Process(flags, tmp_path) as process:
    # The graph is built before the checkpoint is read, which takes a while.
    process.wait_until(lambda: f'evaluating {deleted}' in process.stderr)
    for path in model_dir.glob(f'{deleted.name}.*'):
      path.unlink()
    evaluation = process.wait()
  assert evaluation.returncode == 0, evaluation.stderr
  assert f'{deleted} was deleted by the trainer; skipped' in evaluation.log
  assert 'Traceback' not in evaluation.stderr
  result = _read_json(model_dir / 'result.json')
  assert result['global_step'] == _LAST
  assert result['metrics'] == trained.result['metrics']
  assert sorted(command.summaries(model_dir / 'eval')['loss']) == [_LAST]
  assert not (model_dir / 'hparams.json').exists()


def test_eval_refuses_a_checkpoint_of_another_architecture(tmp_path, trained):
  # It begins before there is a checkpoint, hence cannot know.
  model_dir = tmp_path / 'model'
  flags = {
    **trained.flags,
    'mode': 'eval',
    'model_dir': model_dir,
    'resnet_width': 0.125,
  }
  with command.Process(flags, tmp_path) as process:
    process.wait_until(lambda: 'waiting for a checkpoint' in process.stderr)
    _copy_checkpoints(trained.model_dir, model_dir, [_LAST])
    evaluation = process.wait()
  assert evaluation.returncode not in (0, None), evaluation.stderr
  assert 'Traceback' not in evaluation.stderr
  last_line = evaluation.stderr.splitlines()[-1]
  assert last_line.startswith('main.py: ')
  assert 'another architecture' in last_line
  assert 'ContrastiveModel/Encoder/Conv2DFixedPadding/conv2d/kernel' in (
    last_line
  )
  assert not (model_dir / 'result.json').exists()


# --- Other flags --------------------------------------------------------------


@pytest.fixture(scope='module')
def simclr(tmp_path_factory, trained):
  """The same without labels, one epoch of stage 1 alone."""
  directory = tmp_path_factory.mktemp('simclr')
  flags = {
    **trained.flags,
    'model_dir': directory / 'model',
    'use_labels': False,
    'stage_1_epochs': 1,
    'stage_2_epochs': 0,
  }
  command.succeed(flags, directory)
  return types.SimpleNamespace(
    model_dir=flags['model_dir'],
    params=flag_parsing.parse(command.to_arguments(flags))[1],
  )


class TestOtherFlags:
  def test_labels_count_in_the_contrastive_loss_alone(self, simclr, trained):
    # The first step sees the same variables and images.
    first = _first_losses(simclr.model_dir)
    for name, value in trained.first_loss.items():
      is_equal = first[name] == value
      assert is_equal == (name == 'loss/cross_entropy_loss'), name

  def test_evaluation_without_labels(self, simclr, data_dir):
    result = _read_json(simclr.model_dir / 'result.json')
    assert result['global_step'] == result['total_steps'] == 7
    _assert_evaluation_is_right(result, data_dir, simclr.params)
    metrics = result['metrics']
    # The last stage that trained anything decides what is the loss.
    assert metrics['loss'] == pytest.approx(
      metrics['loss/contrastive_loss'] + metrics['loss/cross_entropy_loss'],
      rel=1e-5,
    )

  def test_hparams_string_and_seed(self, tmp_path, trained):
    params = trained.params.replace('seed', 1)
    params = params.replace('stage_1.epochs', 1).replace('stage_2.epochs', 0)
    flags = {
      'mode': 'train',
      'use_tpu': False,
      'data_dir': trained.flags['data_dir'],
      'model_dir': tmp_path / 'model',
      'hparams': params.serialize(),
      # The string replaces them.
      'batch_size': 7,
      'resnet_depth': 50,
      'seed': 2,
    }
    command.succeed(flags, tmp_path)
    written = _read_json(tmp_path / 'model' / 'hparams.json')
    assert written['hparams'] == params.to_json()
    # With the same seed they are equal: see TestSideBySide.
    for name, value in _first_losses(tmp_path / 'model').items():
      assert value != trained.first_loss[name], name


# --- Warm start ---------------------------------------------------------------


@pytest.fixture(scope='module')
def warm_start(tmp_path_factory, trained):
  """A classifier on the encoder of `trained`, begun with it, then without."""
  directory = tmp_path_factory.mktemp('warm_start')
  reference = directory / 'reference'
  _copy_checkpoints(trained.model_dir, reference, [_LAST])
  flags = {
    **command.DIGITS,
    **command.RESNET,
    'augmentation_type': 'SIMCLR',
    'blur_probability': 0,
    'num_images': 500,
    'mode': 'train',
    'data_dir': trained.flags['data_dir'],
    'model_dir': directory / 'model',
    'stage_1_epochs': 1,
    'stage_1_warmup_epochs': 0,
  }
  script = command.ROOT / 'scripts'
  script /= 'train_classification_head_from_pretrained_encoder.sh'
  runs = []
  for epochs in (1, 2):
    flags['stage_1_epochs'] = epochs
    runs.append(
      command.succeed(flags, directory, program=script, first=['reference'])
    )
    shutil.rmtree(reference, ignore_errors=True)
  return types.SimpleNamespace(model_dir=flags['model_dir'], runs=runs)


@pytest.mark.slow
class TestWarmStart:
  def test_encoder_stays_what_the_reference_has(self, warm_start, trained):
    reference = _module_variables(trained.model_dir, 'Encoder')
    assert any(name.endswith('/moving_variance') for name in reference)
    # The second run, to step 15, was without the reference.
    assert command.steps(warm_start.model_dir) == [0, 7, 15]
    for step in (0, 7, 15):
      checkpoint = warm_start.model_dir / f'model.ckpt-{step}'
      _assert_equal(_module_variables(checkpoint, 'Encoder'), reference)

  def test_classifier_alone_is_trained(self, warm_start):
    def changed(module):
      first, last = (
        _module_variables(warm_start.model_dir / f'model.ckpt-{step}', module)
        for step in (0, 15)
      )
      return [name for name in first if (first[name] != last[name]).any()]

    assert changed('ProjectionHead') == []
    assert changed('ClassificationHead') == [
      'ContrastiveModel/ClassificationHead/dense/bias',
      'ContrastiveModel/ClassificationHead/dense/kernel',
    ]

  def test_continues_without_the_reference(self, warm_start):
    log = warm_start.runs[1].log
    assert 'model_dir holds step 7 of 15: training continues there' in log
    assert 'WARNING: --stage_1_epochs=2 now; model_dir was begun with 1' in log


# --- Published scripts on data sets in TFDS's formats -------------------------


def _run_script(name, directory, flags, **environment):
  """Runs a published script with a small network; returns its model_dir."""
  command.succeed(
    {
      'use_tpu': False,
      'mode': 'train_then_eval',
      'model_dir': 'model',  # In the working directory.
      'resnet_depth': 18,
      'resnet_width': 0.0625,
      'image_size': 32,
      'batch_size': 8,
      'eval_batch_size': 8,
      'stage_1_epochs': 2,
      'stage_1_warmup_epochs': 1,
      'stage_2_epochs': 1,
      'stage_2_warmup_epochs': 0,
      **flags,
    },
    directory,
    program=command.ROOT / 'scripts' / f'{name}.sh',
    **environment,
  )
  return directory / 'model'


@pytest.mark.slow
def test_cifar10(tmp_path):
  # 40 training images: 5 steps an epoch.
  data_dir = tmp_path / 'data'
  fakes.write_cifar10(data_dir, num_test=13)
  model_dir = _run_script(
    'supcon_cifar10_resnet50',
    tmp_path,
    # Exports compute in float32, so the evaluation has to do so, too.
    {'data_dir': data_dir, 'allow_mixed_precision': False},
  )
  assert command.steps(model_dir) == [0, 10, 15]
  checkpoints = [model_dir / f'model.ckpt-{n}' for n in (0, 10, 15)]
  # Stage 1 trains encoder and projection head, stage 2 the classifier alone:
  # there moving statistics stay as well.
  for module, trained_in in (
    ('Encoder', 1),
    ('ProjectionHead', 1),
    ('ClassificationHead', 2),
  ):
    values = [_module_variables(each, module) for each in checkpoints]
    for stage in (1, 2):
      if stage == trained_in:
        with pytest.raises(AssertionError):
          _assert_equal(values[stage - 1], values[stage])
      else:
        _assert_equal(values[stage - 1], values[stage])

  result = _read_json(model_dir / 'result.json')
  assert result['num_examples'] == 13
  images, labels = _images_and_labels(data_dir, 'cifar10', 'test')
  images = images / 127.5 - 1  # IDENTITY crop; then whitening.
  images = (images - [-0.0172, -0.0356, -0.107]) / [0.4046, 0.3988, 0.402]
  result['saved_model'] = str(tmp_path / result['saved_model'])
  logits = _exported(result)(images)['logits']
  assert logits.shape == (13, 10)
  metrics = result['metrics']
  assert (
    metrics['top_1_accuracy'] == (logits.argmax(axis=1) == labels).sum() / 13
  )
  cross_entropy = -_log_softmax(logits)[np.arange(13), labels].mean()
  assert metrics['loss/cross_entropy_loss'] == pytest.approx(
    cross_entropy, rel=1e-5
  )


@pytest.mark.slow
def test_imagenet(tmp_path):
  # 24 training images: 3 steps an epoch. As many classes as the data set has.
  data_dir = tmp_path / 'data'
  fakes.write_imagenet(data_dir, num_validation=7, num_classes=12)
  model_dir = _run_script(
    'supcon_imagenet_resnet50',
    tmp_path,
    {'augmentation_type': 'SIMCLR'},
    TFDS_DATA_DIR=str(data_dir),
  )
  assert command.steps(model_dir) == [0, 6, 9]
  params = hparams.parse(_read_json(model_dir / 'hparams.json')['compact'])
  preprocessing = params.input_data.preprocessing
  assert preprocessing.defer_blurring and preprocessing.blur_probability == 0.5

  names = set(command.variables(model_dir))
  kernel = 'ContrastiveModel/ClassificationHead/dense/kernel'
  for slot in (
    'LARSOptimizer_stage1/Momentum',
    'RMSPropOptimizer_stage2',
    'RMSPropOptimizer_stage2_1',
  ):
    assert f'{kernel}/{slot}' in names
  result = _read_json(model_dir / 'result.json')
  assert (result['dataset'], result['split']) == ('imagenet', 'validation')
  assert result['num_examples'] == 7
  assert 7 * result['metrics']['top_1_accuracy'] in range(8)
  assert all(math.isfinite(each) for each in result['metrics'].values())
  result['saved_model'] = str(tmp_path / result['saved_model'])
  outputs = _exported(result)(np.zeros([2, 32, 32, 3]))
  assert outputs['logits'].shape == (2, 12)


# --- A loss that is not a number ----------------------------------------------


def _checkpoint_bytes(model_dir, step):
  """Returns what makes up a checkpoint, without the graph beside it."""
  files = [*model_dir.glob(f'model.ckpt-{step}.data-*')]
  files.append(model_dir / f'model.ckpt-{step}.index')
  return {path.name: path.read_bytes() for path in files}


@pytest.mark.parametrize(
  'stage, begun_with, save_interval',
  [
    (1, 0, 1000),
    (2, _BOUNDARY, 1),  # The saver runs at the very step of the NaN.
  ],
)
def test_stops_at_nan(tmp_path, trained, stage, begun_with, save_interval):
  model_dir = tmp_path / 'model'
  before = None
  if begun_with:
    _copy_checkpoints(trained.model_dir, model_dir, [begun_with])
    # But for the graph beside it: the same variables are saved as training
    # begins.
    before = _checkpoint_bytes(model_dir, begun_with)
  flags = {
    **trained.flags,
    'model_dir': model_dir,
    'save_interval_steps': save_interval,
    f'stage_{stage}_base_learning_rate': 1e30,
  }
  run = command.run(flags, tmp_path)

  assert run.returncode == 1, run.stderr
  assert run.stdout == ''
  assert 'Traceback' not in run.stderr
  *_, last_line = run.stderr.splitlines()
  found = re.fullmatch(
    r'main.py: stopped: NaN or infinite at step (\d+), stage (\d): .*; '
    r'loss parts: total \S+, contrastive \S+, cross_entropy \S+, '
    r'weight_decay 0\. .*',
    last_line,
  )
  assert found, last_line
  # The first update makes huge variables, the second one breaks them.
  assert begun_with < int(found[1]) <= begun_with + 4
  assert int(found[2]) == stage
  assert re.search(r'\b(nan|inf)\b', last_line)

  # What was there is there still, byte for byte, and nothing broken is.
  if begun_with:
    assert _checkpoint_bytes(model_dir, begun_with) == before
  _assert_equal(
    command.variables(model_dir / f'model.ckpt-{begun_with}'),
    command.variables(trained.model_dir / f'model.ckpt-{begun_with}'),
  )
  for step in command.steps(model_dir):
    checkpoint = model_dir / f'model.ckpt-{step}'
    for name, value in command.variables(checkpoint).items():
      assert np.isfinite(value).all(), (step, name)
  assert command.newest_step(model_dir) in command.steps(model_dir)
  assert not (model_dir / 'result.json').exists()


# --- Bad input ----------------------------------------------------------------


@pytest.fixture(scope='module')
def without_tensorflow(tmp_path_factory):
  """Variables of an environment in which TensorFlow cannot be imported."""
  directory = tmp_path_factory.mktemp('without_tensorflow')
  for name in ('tensorflow', 'tensorflow_datasets'):
    (directory / f'{name}.py').write_text('raise ImportError("not yet")\n')
  return {'PYTHONPATH': str(directory)}


def test_help_needs_no_tensorflow(tmp_path, without_tensorflow):
  run = command.run({}, tmp_path, first=['--help'], **without_tensorflow)
  assert run.returncode == 0 and run.stderr == ''
  for flag in golden.json('flags.json')['flags']:
    name = re.sub('^stage_[12]_', 'stage_N_', flag['name'])
    assert re.search(rf'^  --{name}\b', run.stdout, re.M), flag


def test_help_can_be_looked_at_in_part(tmp_path):
  ran = subprocess.Popen(
    [sys.executable, str(command.MAIN), '--help'],
    cwd=tmp_path,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  ran.stdout.close()  # As `| head` does, here before the first line.
  assert ran.stderr.read() == ''
  assert ran.wait() == 0


def _assert_refused(returncode, stdout, stderr, words):
  """One line on stderr that holds all the words, and exit code 2."""
  assert returncode == 2, stderr
  assert stdout == ''
  assert stderr.count('\n') == 1 and stderr.endswith('\n'), stderr
  assert stderr.startswith('main.py: error: ')
  for word in words:
    assert word in stderr


@pytest.mark.parametrize(
  'flags, words',
  [
    ({'nonsense': 1}, ['nonsense']),
    (
      {'augmentation_type': 'FOO'},
      ['--augmentation_type=FOO', 'SIMCLR', 'IDENTITY'],
    ),
    ({'stage_1_optimizer': 'SGD'}, ['--stage_1_optimizer=SGD', 'LARS']),
    ({'mode': 'test'}, ['--mode=test', 'train_then_eval']),
    ({'batch_size': 'many'}, ['--batch_size=many']),
    ({'batch_size': 0}, ['--batch_size=0', 'positive']),
    ({'batch_size': -64}, ['--batch_size=-64', 'positive']),
    ({'eval_batch_size': 0}, ['--eval_batch_size=0', 'positive']),
    (
      {'stage_1_epochs': 3, 'stage_1_warmup_epochs': 3},
      ['--stage_1_warmup_epochs=3', '--stage_1_epochs=3'],
    ),
    ({'stage_2_epochs': -1}, ['--stage_2_epochs=-1']),
    (
      {'stage_1_epochs': 0, 'stage_2_epochs': 0},
      ['--stage_1_epochs=0', '--stage_2_epochs=0'],
    ),
    ({'positives_cap': 3}, ['--positives_cap=3', '2 views']),
    ({'resnet_depth': 20}, ['--resnet_depth=20', '18', '200']),
    ({'crop_area_range': '0.5,wide'}, ['--crop_area_range', 'wide']),
    ({'hparams': 'bs=4,foo=1'}, ['--hparams', "'foo'"]),
    ({'model_dir': ''}, ['--model_dir is empty']),
    ({'use_tpu': True}, ['--use_tpu=True', '--tpu_name', '--use_tpu=False']),
    ({'num_gpus': -2}, ['--num_gpus=-2']),
    (
      {'reference_ckpt': 'somewhere'},
      ['--reference_ckpt=somewhere', '--warm_start_encoder'],
    ),
    ({'warm_start_encoder': True}, ['--reference_ckpt is empty']),
    (
      {
        'stop_gradient_before_classification_head': True,
        'stage_1_contrastive_loss_weight': 0,
      },
      ['stage 1', '--stop_gradient_before_classification_head=False'],
    ),
  ],
  ids=lambda each: ' '.join(each) if isinstance(each, dict) else '',
)
def test_refuses_flags_without_tensorflow(
  tmp_path, without_tensorflow, flags, words
):
  flags = {**_FLAGS, 'mode': 'train', 'model_dir': 'model', **flags}
  run = command.run(flags, tmp_path, **without_tensorflow)
  _assert_refused(run.returncode, run.stdout, run.stderr, words)
  assert not (tmp_path / 'model').exists()


# What is only known once files have been looked at. Each case: its flags, and
# words of its line. NAME in braces stands for a path of `refusals`.
_REFUSALS = {
  'batch_above_data_set': (
    {'batch_size': 501},
    ['--batch_size=501', '500 training examples', '--num_images=500'],
  ),
  'warm_up_that_rounding_makes_too_long': (
    # 1.99 epochs are 15.5 steps of 15.6.
    {'stage_1_epochs': 2, 'stage_1_warmup_epochs': 1.99},
    ['--stage_1_warmup_epochs=1.99', '--stage_1_epochs=2'],
  ),
  'image_size_that_the_crop_cannot_give': (
    {'eval_crop_method': 'IDENTITY', 'image_size': 16},
    ['--image_size=16', 'IDENTITY', '8x8', 'RESIZE_THEN_CROP'],
  ),
  'data_set_unknown': (
    {'input_fn': 'mnist'},
    ['--input_fn=mnist', 'imagenet', 'cifar10', 'digits'],
  ),
  'data_dir_that_does_not_exist': (
    {'input_fn': 'cifar10', 'data_dir': '{nowhere}'},
    ['--data_dir={nowhere}', 'cifar10:3.*.*', 'download_and_prepare()'],
  ),
  'data_dir_that_cannot_be_made': (
    {'data_dir': '{file}'},
    ['--data_dir={file}', 'directory'],
  ),
  'tpu_that_is_not_here': (
    {'use_tpu': True, 'tpu_name': 'local'},
    ["TPU 'local'", 'no TPU core', '--use_tpu=False'],
  ),
  'tpu_without_its_storage': (
    {'use_tpu': True, 'tpu_name': 'none-of-that-name'},
    ['--model_dir=', 'local', 'gs://', '--use_tpu=False'],
  ),
  'batch_that_replicas_do_not_divide': (
    {'num_replicas': 3},
    ['--batch_size=64', '3 CPU devices', 'try 63 or 66'],
  ),
  'more_gpus_than_there_are': (
    {'num_gpus': 1000},
    ['--num_gpus=1000', 'at most'],
  ),
  'model_dir_of_a_shallower_network': (
    {'model_dir': '{trained}', 'resnet_depth': 34},
    ['{trained}', 'ContrastiveModel/Encoder/BlockGroup0/ResidualBlock_2/'],
  ),
  'model_dir_of_a_narrower_network': (
    {'model_dir': '{trained}', 'resnet_width': 0.125},
    [
      '{trained}',
      'ContrastiveModel/Encoder/Conv2DFixedPadding/conv2d/kernel',
      '[3, 3, 3, 4]',
      '[3, 3, 3, 8]',
    ],
  ),
  'model_dir_of_another_network_in_eval': (
    {'model_dir': '{trained}', 'resnet_depth': 34, 'mode': 'eval'},
    ['{trained}', 'ContrastiveModel/Encoder/BlockGroup0/ResidualBlock_2/'],
  ),
  'model_dir_of_another_optimizer': (
    {'model_dir': '{trained}', 'stage_2_optimizer': 'LARS'},
    ['{trained}', 'LARSOptimizer_stage2'],
  ),
  'model_dir_that_is_a_file': (
    {'model_dir': '{file}'},
    ['--model_dir={file}'],
  ),
  'reference_that_does_not_exist': (
    {'reference_ckpt': '{nowhere}', 'warm_start_encoder': True},
    ['--reference_ckpt={nowhere}', 'does not exist'],
  ),
  'reference_without_a_checkpoint': (
    {'reference_ckpt': '{empty}', 'warm_start_encoder': True},
    ['--reference_ckpt={empty}', 'no checkpoint'],
  ),
  'reference_that_is_no_checkpoint': (
    {'reference_ckpt': '{file}', 'warm_start_encoder': True},
    ['--reference_ckpt={file}'],
  ),
  'reference_that_lacks_variables': (
    {
      'reference_ckpt': '{trained}',
      'warm_start_projection_head': True,
      'projection_head_layers': '16,8,4',
    },
    [
      '--reference_ckpt={trained}',
      'ContrastiveModel/ProjectionHead/dense_1/bias',
      'ContrastiveModel/ProjectionHead/dense_2/kernel',
      '--ignore_missing_checkpoint_vars',
    ],
  ),
  'reference_of_another_architecture': (
    {
      'reference_ckpt': '{trained}',
      'warm_start_encoder': True,
      'resnet_width': 0.125,
    },
    ['ContrastiveModel/Encoder/Conv2DFixedPadding/conv2d/kernel'],
  ),
}


@pytest.fixture(scope='module')
def refusals(tmp_path_factory, trained):
  """All of `_REFUSALS` in one process."""
  directory = tmp_path_factory.mktemp('refusals')
  paths = {
    'trained': trained.model_dir,
    'nowhere': directory / 'nowhere',
    'empty': directory / 'empty',
    'file': directory / 'file',
  }
  paths['empty'].mkdir()
  paths['file'].write_text('This is no checkpoint and no directory.\n')

  def flags(name):
    return {
      **trained.flags,
      'mode': 'train',
      'model_dir': directory / name,
      **{
        flag: str(value).format(**paths)
        for flag, value in _REFUSALS[name][0].items()
      },
    }

  before = command.contents(trained.model_dir)
  runs = command.run_many([flags(name) for name in _REFUSALS], directory)
  return types.SimpleNamespace(
    directory=directory,
    paths=paths,
    runs=dict(zip(_REFUSALS, runs)),
    before=before,
    after=command.contents(trained.model_dir),
  )


class TestRefusals:
  @pytest.mark.parametrize('name', _REFUSALS)
  def test_is_one_line(self, refusals, name):
    run = refusals.runs[name]
    words = [word.format(**refusals.paths) for word in _REFUSALS[name][1]]
    _assert_refused(run.returncode, run.stdout, run.stderr, words)
    assert not (refusals.directory / name).exists()

  @pytest.mark.parametrize('name', _REFUSALS)
  def test_is_quick(self, refusals, name):
    # Above all, no download is tried again and again: that takes minutes.
    assert refusals.runs[name].seconds < 60

  def test_nothing_is_overwritten(self, refusals):
    assert refusals.after == refusals.before


def test_refuses_a_data_dir_without_the_data_set(tmp_path):
  # In a process of its own: nothing that TensorFlow writes shows up either.
  flags = {**_FLAGS, 'input_fn': 'imagenet', 'data_dir': tmp_path}
  flags |= {'model_dir': 'model', 'mode': 'train_then_eval'}
  run = command.run(flags, tmp_path, is_forked=False)
  words = [f'--data_dir={tmp_path}', 'imagenet2012', 'download_and_prepare()']
  _assert_refused(run.returncode, run.stdout, run.stderr, words)
  assert run.seconds < 60
  assert not (tmp_path / 'model').exists()
