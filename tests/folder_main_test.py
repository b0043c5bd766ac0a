"""End-to-end tests: main.py on a user's own images in folders.

Two classes, told apart by their color, in files of all kinds.
"""

import io
import json
import shutil

import numpy as np
from PIL import Image
import pytest
import tensorflow as tf

from tests import command

_FLAGS = {
  **command.SMALL,
  'mode': 'train_then_eval',
  'use_tpu': False,
  'input_fn': 'folder',
  'projection_head_layers': '16,8',
  'image_size': 16,
  'eval_crop_method': 'CROP_THEN_RESIZE',
  'crop_padding': 0,
  'crop_area_range': '0.5,1.0',
  'augmentation_type': 'IDENTITY',
  'batch_size': 16,
  'eval_batch_size': 8,
  'knn_examples': 0,
  'report_examples': 0,
  'stage_1_epochs': 8,
  'stage_1_warmup_epochs': 0,
  'stage_1_base_learning_rate': 0.3,
  'stage_1_optimizer': 'MOMENTUM',
  'stage_2_epochs': 6,
  'stage_2_warmup_epochs': 0,
  'stage_2_base_learning_rate': 3.0,
  'stage_2_optimizer': 'MOMENTUM',
}
_COLORS = {'dusk': (190, 60, 50), 'meadow': (60, 170, 50)}
_KINDS = ('PNG', 'JPEG', 'BMP', 'GIF')


def _image(color, size, seed):
  noise = np.random.RandomState(seed).randint(-40, 40, (*size, 3))
  return Image.fromarray((np.array(color) + noise).astype(np.uint8))


def _write(directory, num_train=20, num_val=7):
  """Writes images of both classes."""
  for split, count in (('train', num_train), ('val', num_val)):
    for name, color in _COLORS.items():
      folder = directory / split / name
      folder.mkdir(parents=True)
      for i in range(count):
        image = _image(color, (18 + i % 3, 24), seed=i)
        kind = _KINDS[i % len(_KINDS)]
        if kind == 'JPEG' and i % 8 == 1:
          image = image.convert('CMYK')
        image.save(folder / f'{i}.{kind}', kind)
  return directory


def _spoil(directory):
  """Adds two bad training images and a bad evaluation image."""
  jpeg = io.BytesIO()
  _image((9, 99, 199), (20, 24), seed=0).save(jpeg, 'JPEG')
  (directory / 'train' / 'dusk' / 'cut.jpg').write_bytes(jpeg.getvalue()[:-99])
  (directory / 'train' / 'meadow' / 'empty.png').write_bytes(b'')
  (directory / 'val' / 'meadow' / 'page.gif').write_bytes(b'<html>' * 99)


def _json(path):
  return json.loads(path.read_text())


def _last_line(finished):
  return finished.stderr.splitlines()[-1]


@pytest.fixture(name='data_dir', scope='module')
def fixture_data_dir(tmp_path_factory):
  return _write(tmp_path_factory.mktemp('images'))


@pytest.fixture(name='run', scope='module')
def fixture_run(data_dir, tmp_path_factory):
  """A finished run of which the colors were measured."""
  directory = tmp_path_factory.mktemp('run')
  flags = {**_FLAGS, 'data_dir': data_dir, 'model_dir': directory / 'model'}
  finished = command.succeed({**flags, 'measure_whitening': True}, directory)
  return flags, directory, finished


def test_classes_are_learned(run):
  flags, directory, finished = run
  result = _json(directory / 'model' / 'result.json')
  assert result['metrics']['top_1_accuracy'] > 0.9
  # Of two classes both are among the first five.
  assert result['metrics']['top_5_accuracy'] == 1
  assert (result['num_examples'], result['num_skipped']) == (14, 0)
  assert (result['dataset'], result['split']) == ('folder', 'val')
  assert (
    'folder: 40 training examples (split train), 14 evaluation examples '
    '(split val), 2 classes; 2.5 steps per epoch, 35 steps in all'
  ) in finished.log
  assert 'on all 14 folder val images.\n' in finished.stdout


def test_class_names_travel_with_the_model(run):
  _, directory, _ = run
  result = _json(directory / 'model' / 'result.json')
  assert result['class_names'] == ['dusk', 'meadow']
  assert (directory / 'model' / 'labels.txt').read_text() == 'dusk\nmeadow\n'
  (export,) = (directory / 'model' / 'exports').iterdir()
  extra = export / 'assets.extra'
  assert (extra / 'labels.txt').read_text() == 'dusk\nmeadow\n'
  measured = _json(directory / 'model' / 'whitening.json')
  assert _json(extra / 'whitening.json') == {
    name: measured[name] for name in ('mean', 'std')
  }


def test_export_opens(run):
  _, directory, _ = run
  export = sorted((directory / 'model' / 'exports').iterdir())[0]
  model = tf.saved_model.load(str(export))
  images = tf.zeros([3, 16, 16, 3])
  outputs = model.signatures['serving_default'](input=images)
  assert outputs['logits'].shape == [3, 2]


def test_later_runs_keep_to_what_was_measured(run):
  flags, directory, _ = run
  model_dir = directory / 'model'
  path = model_dir / 'whitening.json'
  text = path.read_text()
  measured = json.loads(text)
  assert measured['num_images'] == 40 and measured['image_size'] == 16
  # Both colors are equally frequent, (190 + 60) / 2 = 125 of red and
  # (60 + 170) / 2 = 115 of green; the noise is -0.5 on average.
  np.testing.assert_allclose(
    measured['mean'],
    [124.5 / 127.5 - 1, 114.5 / 127.5 - 1, 49.5 / 127.5 - 1],
    atol=0.03,
  )
  before = _json(model_dir / 'result.json')['metrics']
  # Without the flag as well: the model knows no other images.
  labels = model_dir / 'labels.txt'
  labels.write_text('dawn\nmeadow\n')
  finished = command.succeed({**flags, 'mode': 'eval'}, directory)
  assert path.read_text() == text
  assert _json(model_dir / 'result.json')['metrics'] == before
  assert (
    'WARNING: the class that was dawn when model_dir was begun is dusk now'
  ) in finished.log
  # An evaluation changes nothing that a training has written.
  assert labels.read_text() == 'dawn\nmeadow\n'
  # What the file says counts.
  path.write_text(json.dumps({**measured, 'mean': [5.0, 5.0, 5.0]}))
  command.succeed(
    {**flags, 'mode': 'eval', 'measure_whitening': True}, directory
  )
  assert _json(model_dir / 'result.json')['metrics'] != before
  # Without it, it is too late.
  path.unlink()
  (finished,) = command.run_many(
    [{**flags, 'measure_whitening': True}], directory
  )
  assert finished.returncode == 2
  assert _last_line(finished).startswith(
    'main.py: error: --measure_whitening comes too late: '
  )


def test_mistakes_end_in_one_line_before_any_work(data_dir, tmp_path):
  spoilt = _write(tmp_path / 'spoilt', 4, 2)
  _spoil(spoilt)
  empty_class = _write(tmp_path / 'empty_class', 4, 2)
  (empty_class / 'train' / 'night').mkdir()
  one_class = _write(tmp_path / 'one_class', 20, 2)
  for path in one_class.glob('*/dusk'):
    shutil.rmtree(path)
  cases = [
    ({'data_dir': spoilt, 'batch_size': 4}, ' cannot be used: '),
    ({'data_dir': empty_class}, '/train/night holds no images'),
    ({'data_dir': one_class}, 'has one class only, meadow'),
    ({'data_dir': data_dir, 'batch_size': 41}, 'larger than the 40 training'),
    ({'data_dir': tmp_path / 'none'}, '/none is not a directory'),
    ({'data_dir': tmp_path}, 'none of train is there'),
    ({}, '--input_fn=folder needs --data_dir'),
    ({'data_dir': data_dir, 'eval_split': 'dev'}, '--eval_split=dev is not in'),
    ({'data_dir': data_dir, 'input_fn': 'tfds:x'}, 'holds no x:*.*.*'),
  ]
  model_dir = tmp_path / 'model'
  finished = command.run_many(
    [{**_FLAGS, **flags, 'model_dir': model_dir} for flags, _ in cases],
    tmp_path,
  )
  for (_, words), ended in zip(cases, finished, strict=True):
    assert ended.returncode == 2, ended.stderr
    assert _last_line(ended).startswith('main.py: error: ')
    assert words in _last_line(ended)
    assert 'Traceback' not in ended.stderr
  # The file is named.
  assert f'error: {spoilt}/train/' in _last_line(finished[0])
  assert '2 of 10 images are bad' in _last_line(finished[0])
  assert not model_dir.exists()


def test_bad_images_are_skipped_and_counted(tmp_path):
  data_dir = _write(tmp_path / 'images')
  _spoil(data_dir)
  model_dir = tmp_path / 'model'
  flags = {
    **_FLAGS,
    'data_dir': data_dir,
    'model_dir': model_dir,
    'skip_bad_images': True,
    'stage_1_epochs': 1,
    'stage_2_epochs': 0,
  }
  finished = command.succeed(flags, tmp_path)
  assert any(
    line.startswith('folder: 40 training examples (split train), 14 evaluation')
    for line in finished.log
  )
  for count, split in ((2, 'train'), (1, 'val')):
    assert (
      f'WARNING: {count} bad images of split {split} were skipped; {model_dir}/'
      'bad_images.json lists them'
    ) in finished.log
  result = _json(model_dir / 'result.json')
  assert (result['num_examples'], result['num_skipped']) == (14, 1)
  found = _json(model_dir / 'bad_images.json')
  assert sorted(found['train']['bad_images']) == [
    f'{data_dir}/train/dusk/cut.jpg',
    f'{data_dir}/train/meadow/empty.png',
  ]
  assert found['evaluation']['bad_images'] == [
    f'{data_dir}/val/meadow/page.gif'
  ]
  # They are not looked for again.
  again = command.succeed({**flags, 'mode': 'eval'}, tmp_path)
  assert not any('looked at' in line for line in again.log)
  assert _json(model_dir / 'result.json')['metrics'] == result['metrics']


def test_image_that_breaks_on_the_way_is_named(tmp_path):
  data_dir = _write(tmp_path / 'images', 8, 2)
  flags = {
    **_FLAGS,
    'mode': 'train',
    'data_dir': data_dir,
    'model_dir': tmp_path / 'model',
    'stage_1_epochs': 1,
    'stage_2_epochs': 0,
  }
  command.succeed(flags, tmp_path)
  # As many as before: else the run would go on by another plan.
  bad = data_dir / 'train' / 'dusk' / '0.PNG'
  bad.write_bytes(bad.read_bytes()[:99])
  finished = command.run({**flags, 'stage_1_epochs': 3}, tmp_path)
  assert finished.returncode == 1
  line = _last_line(finished)
  assert line.startswith(f'main.py: stopped: {bad} cannot be used: ')
  assert line.endswith(
    '; delete what is bad, or skip it with --skip_bad_images.'
  )
  assert 'Traceback' not in finished.stderr
  # The checkpoint is what it was.
  assert command.newest_step(tmp_path / 'model') == 1
