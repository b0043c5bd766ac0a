"""End-to-end tests: what was trained is exported, embedded, asked, transferred.

One small run on the digits is used in every way that there is.
"""

import io
import json
import pathlib
import re
import types

import numpy as np
from PIL import Image
import pytest
import tensorflow as tf

from supcon.data.sources import datasets
from tests import command
from tests import golden

_LAST = 44  # floor(2 x 1437 / 64)
_FINETUNE = command.ROOT / 'scripts' / 'finetune.sh'
_LINEAR_EVAL = command.ROOT / 'scripts' / 'linear_eval.sh'


def _png(image):
  file = io.BytesIO()
  Image.fromarray(image).save(file, 'PNG')
  return file.getvalue()


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
  return tmp_path_factory.mktemp('data')


@pytest.fixture(scope='module')
def images(data_dir):
  """The first test images: (list of the bytes of PNGs, labels)."""
  dataset = datasets.load('digits', str(data_dir))
  records = dataset.records(is_train=False).take(5).as_numpy_iterator()
  encoded, labels = zip(*records)
  return encoded, labels


@pytest.fixture(scope='module')
def trained(tmp_path_factory, data_dir):
  """A classifier that has learnt a little, exported once."""
  directory = tmp_path_factory.mktemp('run')
  model_dir = directory / 'a model'
  flags = {
    **command.DIGITS,
    **command.RESNET,
    'mode': 'train_then_eval',
    'data_dir': data_dir,
    'model_dir': model_dir,
    'stop_gradient_before_classification_head': False,
    'stage_1_epochs': 2,
    'stage_1_warmup_epochs': 0,
    'stage_1_base_learning_rate': 0.3,
    'stage_1_optimizer': 'MOMENTUM',
    'stage_1_cross_entropy_loss_weight': 1.0,
    'stage_2_epochs': 0,
  }
  command.succeed(flags, directory)
  return types.SimpleNamespace(
    directory=directory,
    model_dir=model_dir,
    flags=flags,
    result=json.loads((model_dir / 'result.json').read_text()),
  )


@pytest.fixture(scope='module')
def embedded(trained, data_dir):
  """Test and training split, embedded; {split: arrays}."""
  found = {}
  for split in ('test', 'train'):
    flags = {
      'mode': 'embed',
      'use_tpu': False,
      'model_dir': trained.model_dir,
      'data_dir': data_dir,
      'eval_split': split,
      'output': trained.directory / f'{split}.npz',
    }
    command.succeed(flags, trained.directory)
    with np.load(flags['output'], allow_pickle=False) as file:
      found[split] = dict(file)
  return types.SimpleNamespace(
    **found, index=trained.directory / 'train.npz', flags=flags
  )


# --- Export -------------------------------------------------------------------


class TestExport:
  def test_train_then_eval_exports_both_formats(self, trained):
    export = pathlib.Path(trained.result['export'])
    assert export.parent == trained.model_dir / 'exports'
    assert trained.result['saved_model'] == str(export)
    assert trained.result['hub_module'] == str(export / 'hub')
    for path in (export, export / 'hub'):
      assert (path / 'saved_model.pb').exists()
      names = (path / 'labels.txt').read_text().split()
      assert names == trained.result['class_names']
    card = (export / 'model_card.md').read_text()
    assert str(export.parent) not in card
    assert '360' in card

  def test_model_dir_is_all_it_takes(self, trained):
    before = command.contents(trained.model_dir)
    run = command.succeed(
      {
        'mode': 'export',
        'model_dir': trained.model_dir,
        'export_formats': 'saved_model',
      },
      trained.directory,
    )
    (path,) = re.findall(r'^SavedModel: (.*)$', run.stdout, re.MULTILINE)
    assert not (pathlib.Path(path) / 'hub').exists()
    after = command.contents(trained.model_dir)
    assert {name: after[name] for name in before} == before

    def logits(path):
      model = tf.saved_model.load(path)
      return model(np.linspace(0, 1, 192).reshape(1, 8, 8, 3).astype('f4'))

    np.testing.assert_array_equal(
      logits(path.strip()), logits(trained.result['saved_model'])
    )


# --- Embeddings ---------------------------------------------------------------


class TestEmbed:
  def test_every_example_in_order(self, embedded, data_dir):
    dataset = datasets.load('digits', str(data_dir))
    for split, is_train in (('train', True), ('test', False)):
      labels = [y for _, y in dataset.records(is_train).as_numpy_iterator()]
      found = getattr(embedded, split)
      np.testing.assert_array_equal(found['labels'], labels)
      assert found['ids'].tolist() == [
        f'{split}/{position}' for position in range(len(labels))
      ]
      assert found['class_names'].tolist() == list('0123456789')

  def test_logits_are_those_of_the_evaluation(self, embedded, trained):
    found = embedded.test
    top_1 = np.mean(found['logits'].argmax(axis=1) == found['labels'])
    expected = trained.result['metrics']['top_1_accuracy']
    assert top_1 == pytest.approx(expected, abs=1e-6)

  def test_outputs_are_those_of_the_export(self, embedded, trained, images):
    model = tf.saved_model.load(trained.result['saved_model'])
    serve = model.signatures['serving_bytes']
    outputs = serve(image_bytes=tf.constant(images[0]))
    for name, values in outputs.items():
      if name in embedded.test:
        expected = embedded.test[name][: len(values)]
        scale = np.abs(expected).max()
        np.testing.assert_allclose(values, expected, atol=1e-5 * scale)

  def test_records_hold_the_same(self, embedded, trained):
    path = trained.directory / 'test.tfrecord'
    flags = {**embedded.flags, 'eval_split': 'test', 'output': path}
    command.succeed(flags, trained.directory)
    records = tf.data.TFRecordDataset(str(path)).as_numpy_iterator()
    examples = [tf.train.Example.FromString(record) for record in records]
    features = [example.features.feature for example in examples]
    np.testing.assert_array_equal(
      [f['embedding'].float_list.value for f in features],
      embedded.test['embeddings'],
    )
    assert [f['label'].int64_list.value[0] for f in features] == (
      embedded.test['labels'].tolist()
    )


# --- Predictions --------------------------------------------------------------


class TestPredict:
  def _predict(self, trained, tmp_path, flags, *arguments):
    output = tmp_path / 'predictions.json'
    run = command.succeed(
      {
        'mode': 'predict',
        'model_dir': trained.model_dir,
        'output': output,
        **flags,
      },
      tmp_path,
      first=arguments,
    )
    return run, json.loads(output.read_text())

  def test_says_class_probability_and_neighbours(
    self, trained, embedded, images, tmp_path
  ):
    folder = tmp_path / 'some digits'
    folder.mkdir()
    for number, encoded in enumerate(images[0]):
      (folder / f'{number}.png').write_bytes(encoded)
    (folder / 'broken\n.png').write_bytes(b'nothing')
    flags = {'neighbours': 3, 'index': embedded.index}
    run, found = self._predict(trained, tmp_path, flags, folder)

    logits = embedded.test['logits'][:5].astype(np.float64)
    probabilities = np.exp(logits)
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    cosines = embedded.test['embeddings'][:5] @ embedded.train['embeddings'].T
    lines = run.stdout.splitlines()
    for row, image in enumerate(found['images']):
      best = logits[row].argmax()
      assert image['image'] == str(folder / f'{row}.png')
      assert image['class'] == str(best)
      assert image['probability'] == pytest.approx(
        probabilities[row, best], rel=1e-4
      )
      first, *neighbours = lines[4 * row : 4 * row + 4]
      assert first == (
        f'{folder}/{row}.png\t{best}\t{image["probability"]:.4f}'
      )
      nearest = np.sort(cosines[row])[::-1][:3]
      np.testing.assert_allclose(
        [n['cosine'] for n in image['neighbours']], nearest, atol=1e-5
      )
      for n, line in zip(image['neighbours'], neighbours):
        position = int(n['id'].removeprefix('train/'))
        assert cosines[row, position] == pytest.approx(n['cosine'], abs=1e-5)
        assert n['class'] == str(embedded.train['labels'][position])
        assert n['id'] in line
    # What comes from a name is shown as what it is.
    assert len(lines) == 4 * 5 + 1
    assert lines[-1].startswith(f'{folder}/broken\\n.png cannot be used')
    assert len(found['bad_images']) == 1


# --- Transfer -----------------------------------------------------------------


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """Two classes of digits as files: 20 and 10 images of each."""
  dataset = datasets.load('digits', str(tmp_path_factory.mktemp('digits')))
  directory = tmp_path_factory.mktemp('transfer')
  for split, is_train, count in (('train', True, 20), ('val', False, 10)):
    wanted = {3: count, 8: count}
    records = dataset.records(is_train).as_numpy_iterator()
    for number, (encoded, label) in enumerate(records):
      if not wanted.get(label):
        continue
      wanted[label] -= 1
      path = directory / split / f'digit {label}' / f'{number}.png'
      path.parent.mkdir(parents=True, exist_ok=True)
      path.write_bytes(encoded)
  return directory


_OF_IMAGES = ('image_size', 'eval_crop_method', 'crop_padding')


def _transfer(script, reference, folder, directory, program=None, **flags):
  flags = {
    # Without those of the encoder and its images, which the reference brings.
    **{k: v for k, v in command.DIGITS.items() if k not in _OF_IMAGES},
    'mode': 'train',
    'input_fn': 'folder',
    'data_dir': folder,
    'model_dir': directory / 'model',
    'batch_size': 20,
    'stage_1_epochs': 4,
    'stage_1_warmup_epochs': 0,
    'random_flip': False,
    **flags,
  }
  if program is None:
    return command.run(flags, directory, program=script, first=[str(reference)])
  # What the script does, with another main.py.
  echo = directory / 'echo.sh'
  echo.write_text('#!/bin/bash\nshift\nprintf "%s\\n" "$@"\n')
  echo.chmod(0o755)
  run = command.succeed(
    flags,
    directory,
    program=script,
    first=[str(reference)],
    PYTHON=str(echo),
  )
  return command.run(
    {}, directory, program=program, first=run.stdout.splitlines()
  )


def _encoder(checkpoint):
  return {
    name: value
    for name, value in command.variables(checkpoint).items()
    if '/Encoder/' in name and 'Optimizer' not in name
  }


class TestTransfer:
  @pytest.mark.slow
  def test_finetune_starts_at_the_hub_module(self, trained, folder, tmp_path):
    run = _transfer(
      _FINETUNE,
      trained.result['hub_module'],
      folder,
      tmp_path,
      mode='train_then_eval',
      export_formats='saved_model',
    )
    assert run.returncode == 0, run.stderr
    reference = _encoder(trained.model_dir)
    first = _encoder(tmp_path / 'model' / 'model.ckpt-0')
    last = _encoder(tmp_path / 'model')
    assert set(first) == set(reference)
    for name, value in reference.items():
      np.testing.assert_array_equal(first[name], value)
    # All of it is trained, and so are its statistics.
    changed = [n for n in last if (last[n] != first[n]).any()]
    assert any(name.endswith('moving_mean') for name in changed)
    assert any(name.endswith('kernel') for name in changed)
    assert any('encoder' in line and 'from' in line for line in run.log)
    result = json.loads((tmp_path / 'model' / 'result.json').read_text())
    assert result['class_names'] == ['digit 3', 'digit 8']

  @pytest.mark.slow
  def test_linear_eval_embeds_once_and_learns_the_same(
    self, trained, folder, tmp_path
  ):
    reference = trained.result['saved_model']
    found = {}
    for name, program in (
      ('once', command.MAIN),
      ('always', command.ROOT / 'tests' / 'always_embedding_main.py'),
    ):
      directory = tmp_path / name
      directory.mkdir()
      run = _transfer(_LINEAR_EVAL, reference, folder, directory, program)
      assert run.returncode == 0, run.stderr
      is_once = any('images once' in line for line in run.log)
      assert is_once == (name == 'once')
      found[name] = command.variables(directory / 'model')
    for name, value in found['always'].items():
      np.testing.assert_array_equal(found['once'][name], value, err_msg=name)
    for name, value in _encoder(trained.model_dir).items():
      np.testing.assert_array_equal(found['once'][name], value, err_msg=name)
    head = 'ContrastiveModel/ClassificationHead/dense/kernel'
    assert np.abs(found['once'][head]).max() > 0.01  # It began with zeros.

  @pytest.mark.slow
  def test_linear_eval_continues(self, trained, folder, tmp_path):
    reference = trained.result['saved_model']
    run = _transfer(_LINEAR_EVAL, reference, folder, tmp_path)
    assert run.returncode == 0, run.stderr
    run = _transfer(_LINEAR_EVAL, reference, folder, tmp_path, stage_1_epochs=6)
    assert run.returncode == 0, run.stderr
    assert command.steps(tmp_path / 'model') == [0, 8, 12]


# --- Checkpoints of the published code ----------------------------------------


@pytest.fixture
def published(tmp_path):
  """The last checkpoint of a run of the published code, and nothing else."""
  configs = golden.json('train_parity/train_parity.json')['configs']
  config = next(
    (c for c in configs if '--stage_2_optimizer=MOMENTUM' in c['flags']), None
  )
  if config is None:
    pytest.skip('no published run ends with MOMENTUM, whose slots are known')
  values = golden.npz(f'train_parity/{config["name"]}/values.npz')
  variables = {
    name.removeprefix('final/'): values[name]
    for name in values
    if name.startswith('final/')
  }
  model_dir = tmp_path / 'published'
  model_dir.mkdir()
  name = f'model.ckpt-{config["steps"]}'
  tf.raw_ops.SaveV2(
    prefix=str(model_dir / name),
    tensor_names=list(variables),
    shape_and_slices=[''] * len(variables),
    tensors=list(map(tf.constant, variables.values())),
  )
  (model_dir / 'checkpoint').write_text(
    f'model_checkpoint_path: "{name}"\nall_model_checkpoint_paths: "{name}"\n'
  )
  return types.SimpleNamespace(
    directory=tmp_path, model_dir=model_dir, config=config, variables=variables
  )


@pytest.mark.slow
def test_published_checkpoints_are_used_as_ours(published, data_dir):
  assert any('Optimizer_stage1' in name for name in published.variables)
  examples = published.config['training_set_size']
  flags = {
    **dict(flag[2:].split('=', 1) for flag in published.config['flags']),
    'use_tpu': False,
    'input_fn': 'digits',
    'data_dir': data_dir,
    'eval_crop_method': 'CROP_THEN_RESIZE',
    'num_images': examples,
    'num_eval_images': 50,
    'model_dir': published.model_dir,
  }
  # Exported: nobody has written down the names of the classes.
  run = command.succeed({**flags, 'mode': 'export'}, published.directory)
  (path,) = re.findall(r'^SavedModel: (.*)$', run.stdout, re.MULTILINE)
  exported = tf.saved_model.load(path)
  by_name = {v.name.removesuffix(':0'): v for v in exported.variables}
  assert len(by_name) > 60
  for name, variable in by_name.items():
    np.testing.assert_array_equal(variable, published.variables[name])

  # Evaluated, where training has ended.
  command.succeed({**flags, 'mode': 'eval'}, published.directory)
  result = json.loads((published.model_dir / 'result.json').read_text())
  assert result['global_step'] == published.config['steps']
  assert result['num_examples'] == 50

  # Continued, slots and all: with a rate of 0 velocities decay, weights move by
  # what they hold.
  command.succeed(
    {
      **flags,
      'mode': 'train',
      'stage_2_epochs': 2,
      'stage_2_base_learning_rate': 0,
    },
    published.directory,
  )
  after = command.variables(published.model_dir)
  steps = after['global_step'] - published.config['steps']
  assert steps == examples // published.config['batch_size']
  assert set(after) == set(published.variables)
  kernel = 'ContrastiveModel/ClassificationHead/dense/kernel'
  slot = f'{kernel}/MomentumOptimizer_stage2'
  assert np.abs(published.variables[slot]).max() > 0
  np.testing.assert_array_equal(
    after[kernel], published.variables[kernel], err_msg='The rate is 0.'
  )
  stem = 'ContrastiveModel/Encoder/Conv2DFixedPadding/conv2d/kernel'
  np.testing.assert_allclose(
    after[f'{stem}/MomentumOptimizer_stage2'],
    published.variables[f'{stem}/MomentumOptimizer_stage2'] * 0.9**steps,
    rtol=1e-5,
  )


# --- Mistakes -----------------------------------------------------------------


def _mistakes(trained, folder, directory):
  """Yields (flags, words that the line must hold)."""
  use = {'model_dir': trained.model_dir, 'use_tpu': False}
  nothing = directory / 'nothing'
  nothing.mkdir()
  output = directory / 'out.npz'
  index = directory / 'index.npz'
  np.savez(index, embeddings=np.eye(3, dtype=np.float32))
  pickled = directory / 'pickled.npz'
  np.savez(pickled, embeddings=np.array([{}, {}], dtype=object))
  picture = directory / 'picture.png'
  picture.write_bytes(_png(np.zeros([9, 9, 3], np.uint8)))
  predict = {**use, 'mode': 'predict', 'images': picture}
  train = {
    **command.DIGITS,
    **command.RESNET,
    'input_fn': 'folder',
    'data_dir': folder,
    'batch_size': 20,
    'model_dir': directory / 'model',
    'warm_start_encoder': True,
  }
  module = trained.result['hub_module']
  return {
    'no_checkpoint': (
      {**use, 'mode': 'export', 'model_dir': nothing},
      [f'--model_dir={nothing}', 'no checkpoint'],
    ),
    'unknown_format': (
      {**use, 'mode': 'export', 'export_formats': 'hub,onnx'},
      ['onnx', 'saved_model, hub', 'none'],
    ),
    'nothing_to_export': (
      {**use, 'mode': 'export', 'export_formats': 'none'},
      ['--export_formats=none', 'nothing to do', 'saved_model, hub'],
    ),
    'formats_and_none': (
      {**use, 'mode': 'export', 'export_formats': 'hub,none'},
      ['hub,none', 'none alone'],
    ),
    'another_architecture': (
      {**use, 'mode': 'export', 'resnet_depth': 34},
      ['--resnet_depth', '18', '34'],
    ),
    'no_output': ({**use, 'mode': 'embed'}, ['--output']),
    'unknown_ending': (
      {**use, 'mode': 'embed', 'output': 'x.csv'},
      ['x.csv', '.npz', '.tfrecord'],
    ),
    'no_data': (
      {**use, 'mode': 'embed', 'input_fn': 'cifar10', 'output': output},
      ['cifar10'],
    ),
    'no_images': ({**use, 'mode': 'predict'}, ['--images']),
    'images_not_there': (
      {**use, 'mode': 'predict', 'images': directory / 'none.png'},
      ['none.png'],
    ),
    'images_of_the_wrong_size': (
      {**predict, 'eval_crop_method': 'IDENTITY'},
      ['picture.png', '9x9', '8x8', 'RESIZE_THEN_CROP'],
    ),
    'neighbours_without_index': ({**predict, 'neighbours': 1}, ['--index']),
    'index_of_another_size': (
      {**predict, 'neighbours': 1, 'index': index},
      [str(index), '3', '32'],
    ),
    'index_with_pickles': (
      {**predict, 'neighbours': 1, 'index': pickled},
      [str(pickled)],
    ),
    'arguments_elsewhere': (
      {'mode': 'train', 'model_dir': directory / 'x', 'images': 'a'},
      ['--images'],
    ),
    'handle_that_does_not_resolve': (
      {**train, 'reference_ckpt': 'https://localhost:1/module/1'},
      ['https://localhost:1/module/1'],
    ),
    'module_of_another_depth': (
      {**train, 'reference_ckpt': module, 'resnet_depth': 34},
      [module, '18', '34', '--resnet_depth=18'],
    ),
    'module_of_another_width': (
      {**train, 'reference_ckpt': module, 'resnet_width': 0.125},
      [module, '--resnet_width=0.0625'],
    ),
    'classifier_of_other_classes': (
      {**train, 'reference_ckpt': module, 'warm_start_classifier': True},
      [module, '10 classes', '2', '--warm_start_classifier'],
    ),
  }


def test_mistakes_end_in_one_line(trained, folder, tmp_path):
  mistakes = _mistakes(trained, folder, tmp_path)
  before = command.contents(trained.model_dir)
  runs = command.run_many([flags for flags, _ in mistakes.values()], tmp_path)
  for (name, (_, words)), run in zip(mistakes.items(), runs):
    assert run.returncode == 2, (name, run.stderr)
    *log, line = run.stderr.splitlines()
    assert line.startswith('main.py: error: '), (name, run.stderr)
    assert 'Traceback' not in run.stderr, name
    for word in words:
      assert word in line, (name, word, line)
    assert run.seconds < 60
  assert command.contents(trained.model_dir) == before
