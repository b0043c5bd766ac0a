"""End-to-end tests: a model is evaluated on corrupted images of both layouts.

Corruptions at severity 1 change nothing here, so that the error is that of
clean images; at severity 2 red, green and blue change places.
"""

import csv
import io
import json
import types

import numpy as np
from PIL import Image
import pytest

from supcon.data.sources import datasets
from tests import command
from tests.data import fakes

_CORRUPTIONS = ('brightness', 'fog')
# Their positions are not those in the model: labels have to be known by name.
_CLASSES = ('deer', 'ship', 'truck')

_TRAIN = {
  'mode': 'train',
  'use_tpu': False,
  'input_fn': 'cifar10',
  'image_size': 32,
  'eval_crop_method': 'CROP_THEN_RESIZE',
  'crop_padding': 0,
  'crop_area_range': '0.8,1.0',
  'augmentation_type': 'IDENTITY',
  'batch_size': 20,
  'eval_batch_size': 8,
  'projection_head_layers': '8',
  'stop_gradient_before_classification_head': False,
  'stage_1_epochs': 6,
  'stage_1_warmup_epochs': 0,
  'stage_1_base_learning_rate': 1.0,
  'stage_1_optimizer': 'MOMENTUM',
  'stage_1_cross_entropy_loss_weight': 1.0,
  'stage_2_epochs': 0,
}


def _corrupted(image, severity):
  return image if severity == 1 else np.roll(image, 1, axis=-1)


def _write_folders(root, images, labels, classes):
  for corruption in _CORRUPTIONS:
    for severity in (1, 2):
      for number, (image, label) in enumerate(zip(images, labels)):
        if label in classes:
          directory = root / corruption / str(severity) / label
          directory.mkdir(parents=True, exist_ok=True)
          image = Image.fromarray(_corrupted(image, severity))
          image.save(directory / f'{number}.png')
  (root / 'README.txt').write_text('Not an image.')
  return root


def _json(path):
  return json.loads(path.read_text())


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
  directory = tmp_path_factory.mktemp('robustness')
  data_dir, model_dir = directory / 'data', directory / 'model'
  fakes.write_cifar10(data_dir, num_train=60, num_test=20)
  dataset = datasets.load('cifar10', str(data_dir))
  encoded, labels = zip(*dataset.records(False).as_numpy_iterator())
  images = np.stack([Image.open(io.BytesIO(each)) for each in encoded])
  arrays = directory / 'arrays'
  arrays.mkdir()
  fakes.write_cifar10_corrupted(
    data_dir,
    arrays,
    {(c, s): _corrupted(images, s) for c in _CORRUPTIONS for s in (1, 2)},
    labels,
  )
  names = [fakes.CIFAR10_NAMES[label] for label in labels]
  folders = _write_folders(directory / 'my set', images, names, _CLASSES)
  use = {'use_tpu': False, 'model_dir': model_dir, 'data_dir': data_dir}
  measure = {
    **use,
    'mode': 'robustness',
    'corruptions': 'tfds:cifar10_corrupted',
  }
  mistakes = _mistakes(directory, measure, folders, images[0])
  jobs = {
    'train': {**_TRAIN, 'data_dir': data_dir, 'model_dir': model_dir},
    'tfds': measure,
    'again': measure,
    'folder': {**measure, 'corruptions': folders},
    'embed': {
      **use,
      'mode': 'embed',
      'input_fn': 'tfds:cifar10_corrupted/fog_2',
      'train_split': 'test',
      'output': directory / 'fog_2.npz',
    },
    **{name: flags for name, (flags, _) in mistakes.items()},
  }
  done = command.run_many(jobs.values(), directory, is_small=True)
  return types.SimpleNamespace(
    directory=directory,
    model_dir=model_dir,
    mistakes=mistakes,
    done=dict(zip(jobs, done)),
  )


def _mistakes(directory, measure, folders, image):
  """Returns {name: (flags, words that the line must hold)}."""

  def write(*names):
    path = directory.joinpath('wrong', *names)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)

  write('gap', 'fog', '1', 'cat', '1.png')
  write('gap', 'fog', '2', 'cat', '1.png')
  write('gap', 'snow', '2', 'cat', '1.png')
  write('layout', 'blur', 'fog', '1', 'cat', '1.png')
  write('classes', 'fog', '1', 'cat', '1.png')
  write('classes', 'fog', '1', 'unicorn', '1.png')
  write('fewer', 'fog', '1', 'cat', '1.png')
  write('fewer', 'fog', '1', 'dog', '1.png')
  write('fewer', 'fog', '2', 'cat', '1.png')
  (directory / 'wrong' / 'no images' / 'fog' / '1' / 'cat').mkdir(parents=True)

  def of(name, *words):
    flags = {**measure, 'corruptions': directory / 'wrong' / name}
    return flags, words

  return {
    'without_corruptions': (
      {**measure, 'corruptions': ''},
      ['--mode=robustness', '--corruptions'],
    ),
    'another_mode': (
      {**measure, 'mode': 'predict', 'images': 'a'},
      ['--corruptions', '--mode=robustness'],
    ),
    'nothing_prepared': (
      {**measure, 'corruptions': 'tfds:imagenet2012_corrupted'},
      ['imagenet2012_corrupted', '--data_dir', 'download_and_prepare'],
    ),
    'no_directory': of('none', 'not a directory', 'CORRUPTION/SEVERITY/CLASS'),
    'gap': of('gap', 'snow/1', '2 corruptions x 2 severities'),
    'layout': of('layout', 'blur/fog', 'CORRUPTION/SEVERITY/CLASS'),
    'classes': of('classes', 'unicorn', 'airplane', '10 classes'),
    'fewer_classes': of('fewer', 'fog/2 lacks', 'dog'),
    'no_images': of('no images', 'fog/1/cat', 'no images'),
    'untrained_classifier': (
      {
        **measure,
        'corruptions': folders,
        'checkpoint': directory / 'model' / 'model.ckpt-0',
      },
      ['classifier', 'model.ckpt-0', 'has not been trained'],
    ),
    'no_clean_images': (
      {**measure, 'data_dir': directory / 'wrong', 'corruptions': folders},
      ['--data_dir', 'cifar10'],
    ),
    'no_checkpoint': (
      {**measure, 'checkpoint': directory / 'model' / 'model.ckpt-7'},
      ['model.ckpt-7', 'does not exist'],
    ),
  }


def _result(runs, name):
  return _json(runs.model_dir / 'robustness' / f'{name}-18.json')


def test_every_corruption_of_tfds_is_measured(runs):
  assert runs.done['train'].returncode == 0, runs.done['train'].stderr
  assert runs.done['tfds'].returncode == 0, runs.done['tfds'].stderr
  found = _result(runs, 'cifar10_corrupted')
  assert list(found['evaluations']) == [
    'clean',
    *(f'{c}/{s}' for c in _CORRUPTIONS for s in (1, 2)),
  ]
  assert {each['n'] for each in found['evaluations'].values()} == {20}
  clean = found['evaluations']['clean']['error']
  assert clean < 0.7  # It has learned something.
  with np.load(runs.directory / 'fog_2.npz') as file:
    rolled = np.mean(file['logits'].argmax(axis=1) != file['labels'])
  assert rolled != clean
  for corruption in _CORRUPTIONS:
    for severity, error in ((1, clean), (2, rolled)):
      each = found['evaluations'][f'{corruption}/{severity}']
      assert each['error'] == pytest.approx(error), (corruption, severity)
  summary = found['summary']
  assert summary['mean_error'] == pytest.approx((clean + rolled) / 2)
  assert summary['severities']['1']['error'] == pytest.approx(clean)
  assert summary['mce'] is None and 'ImageNet' in summary['mce_note']


def test_what_was_done_is_not_repeated(runs):
  assert runs.done['again'].returncode == 0, runs.done['again'].stderr
  assert any(
    'of which 5 were done before' in line for line in runs.done['again'].log
  )
  assert not any('1 of 5' in line for line in runs.done['again'].log)
  # The table is printed again.
  assert runs.done['again'].stdout == runs.done['tfds'].stdout


def test_progress_and_table(runs):
  log, text = runs.done['tfds'].log, runs.done['tfds'].stdout
  assert any(line.startswith('3 of 5: brightness/2: error') for line in log)
  assert any('frost' in line and 'not prepared' in line for line in log)
  found = _result(runs, 'cifar10_corrupted')['evaluations']
  (row,) = [line.split() for line in text.splitlines() if 'fog' in line]
  errors = [100 * found[f'fog/{severity}']['error'] for severity in (1, 2)]
  assert row[:4] == ['fog', *(f'{e:.2f}' for e in (*errors, np.mean(errors)))]
  path = runs.model_dir / 'robustness' / 'cifar10_corrupted-18.csv'
  with path.open(newline='') as file:
    rows = list(csv.DictReader(file))
  assert [row['corruption'] for row in rows] == [
    *('clean', 'brightness', 'brightness', 'fog', 'fog')
  ]
  assert float(rows[4]['error']) == found['fog/2']['error']


def test_classes_of_folders_are_known_by_name(runs):
  assert runs.done['folder'].returncode == 0, runs.done['folder'].stderr
  found = _result(runs, 'my_set')['evaluations']
  with np.load(runs.directory / 'fog_2.npz') as file:
    names = [fakes.CIFAR10_NAMES[label] for label in file['labels']]
    wrong = file['logits'].argmax(axis=1) != file['labels']
  error = np.mean([w for w, name in zip(wrong, names) if name in _CLASSES])
  for corruption in _CORRUPTIONS:
    assert found[f'{corruption}/2']['n'] == 6
    assert found[f'{corruption}/2']['error'] == pytest.approx(error)
  assert any('3 of the 10 classes' in line for line in runs.done['folder'].log)


def test_mistakes_end_in_one_line(runs):
  for name, (_, words) in runs.mistakes.items():
    run = runs.done[name]
    assert run.returncode == 2, (name, run.stderr)
    line = run.stderr.splitlines()[-1]
    assert line.startswith('main.py: error: '), (name, run.stderr)
    assert 'Traceback' not in run.stderr, name
    for word in words:
      assert word in line, (name, word, line)


def test_nothing_else_of_the_run_is_written(runs):
  names = {path.name for path in runs.model_dir.iterdir()}
  assert 'robustness' in names and 'eval' not in names
  assert sorted(p.name for p in (runs.model_dir / 'robustness').iterdir()) == [
    *(f'cifar10_corrupted-18.{ending}' for ending in ('csv', 'json')),
    *(f'my_set-18.{ending}' for ending in ('csv', 'json')),
  ]
