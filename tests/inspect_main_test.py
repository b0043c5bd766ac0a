"""End-to-end tests: main.py --mode=inspect_data, as a user runs it."""

import json
import sys

import numpy as np
from PIL import Image
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from supcon.reports import lettering
from tests import command
from tests.data import fakes

_FLAGS = {
  'mode': 'inspect_data',
  'input_fn': 'digits',
  'batch_size': 32,
  'image_size': 16,
  'augmentation_type': 'SIMCLR',
  'crop_area_range': '0.5,1.0',
  'label_noise_prob': 0.5,
}


def _json(path):
  return json.loads(path.read_text())


@pytest.fixture(name='inspected', scope='module')
def fixture_inspected(tmp_path_factory):
  """A directory that held a run before, of which the data were inspected.

  The checkpoint could not be read.
  """
  directory = tmp_path_factory.mktemp('inspected')
  model_dir = directory / 'the model'
  model_dir.mkdir()
  for name, text in {
    'checkpoint': 'model_checkpoint_path: "model.ckpt-7"',
    'model.ckpt-7.index': 'no checkpoint',
    'model.ckpt-7.data-00000-of-00001': 'no checkpoint',
    'hparams.json': '{"compact": "bs=31"}',
    'labels.txt': 'a\nb\n',
    'result.json': '{}',
    'events.out.tfevents.1.host': 'events',
  }.items():
    (model_dir / name).write_text(text)
  before = command.contents(directory)
  # By default --use_tpu is on, and no TPU is there.
  finished = command.succeed(
    {**_FLAGS, 'data_dir': directory / 'data', 'model_dir': model_dir},
    directory,
  )
  return model_dir, before, finished


@pytest.mark.slow
def test_nothing_of_the_run_is_touched(inspected):
  model_dir, before, _ = inspected
  after = command.contents(model_dir.parent)
  for path, content in before.items():
    assert after[path] == content, path
  others = [
    path
    for path in set(after) - set(before)
    # What --input_fn=digits prepares, and the output of the process.
    if not path.startswith('data/') and path.count('/') > 0
  ]
  assert all(path.startswith('the model/inspect_data/') for path in others)
  names = sorted(path.rpartition('/')[-1] for path in others)
  assert names[0] == 'contact_sheet.png'
  assert names[1].startswith('events.out.tfevents.')
  assert names[2:] == ['hparams.json', 'inspect_data.json', 'labels.txt']


@pytest.mark.slow
def test_what_the_user_is_told(inspected):
  model_dir, _, finished = inspected
  directory = model_dir / 'inspect_data'
  assert f'in full in {directory}/hparams.json, other than' in finished.stderr
  assert (
    'WARNING: --batch_size=32 now; model_dir was begun with 31' in finished.log
  )
  lines = finished.stdout.splitlines()
  speed = _json(directory / 'inspect_data.json')['speed']
  assert lines[1].startswith(f'{speed["examples_per_second"]:.0f} images/s, ')
  words = [line.split() for line in lines]
  for name, part in speed['parts'].items():
    assert [
      *name.split(),
      f'{part["core_milliseconds_per_example"]:.3f}',
      '+-',
      f'{part["spread"]:.3f}',
      f'{part["share"]:.1%}',
    ] in words
  # Digits are not mirrored.
  assert 'flip' not in speed['parts']
  assert 'color jitter, grayscale' in speed['parts']
  (row, *_) = _json(directory / 'inspect_data.json')['contact_sheet']['rows']
  assert ['row', 'class', 'example', 'size', 'where'] in words
  assert any(
    line[:2] == ['0', row['class']] and line[-1] == row['where'].split()[-1]
    for line in words
    if line
  )
  assert f'Contact sheet: {directory}/contact_sheet.png' in lines
  # The path holds a space.
  command_line = f"{sys.executable} -m tensorboard.main --logdir '{directory}'"
  assert f'TensorBoard: {command_line}' in lines


@pytest.mark.slow
def test_what_the_user_is_shown(inspected):
  model_dir, _, _ = inspected
  directory = model_dir / 'inspect_data'
  sheet = _json(directory / 'inspect_data.json')['contact_sheet']
  assert len(sheet['rows']) == 16 and len(sheet['columns']) == 5
  for row in sheet['rows']:
    assert (row['height'], row['width']) == (8, 8)
    assert row['where'].startswith(f'record {row["example"]} ')
  # Half of the labels are drawn anew.
  assert any(
    row['class'] != row['class_before_label_noise'] for row in sheet['rows']
  )
  picture = np.array(Image.open(directory / 'contact_sheet.png'))
  # Pixels are enlarged 6 times, and rows are 6 apart, below a line of titles.
  # On the left two digits of 12 pixels, 4 apart, in a margin of 12; then the
  # name of the class with a margin of 12; then columns with gaps of 24, 6, 24,
  # 6 and 24 after them.
  title = lettering.line('class', 160)
  name = lettering.line('(was 8)', 160)
  height = title.shape[0] + 6 + 16 * (96 + 6)
  width = 12 + 28 + 12 + name.shape[1] + 12 + 5 * 96 + 84
  assert picture.shape[0] == height
  # Digits need not be equally wide.
  assert abs(picture.shape[1] - width) <= 4
  (events,) = directory.glob('events.out.tfevents.*')
  tags = [
    value.tag
    for event in tf.compat.v1.train.summary_iterator(str(events))
    for value in event.summary.value
  ]
  assert tags == ['contact_sheet'] + [
    f'row_{row["row"]:02d}/{row["class"]}' for row in sheet['rows']
  ]


def test_mistakes_end_in_one_line(tmp_path):
  in_the_way = tmp_path / 'in_the_way'
  in_the_way.mkdir()
  (in_the_way / 'inspect_data').write_text('a file')

  def examples():
    for i in range(12):
      image = np.full([8, 8, 3], 20 * i, np.uint8)
      name = f'{i}.png'
      yield name, {'image': b'no image' if i == 5 else image, 'label': i % 2}

  features = tfds.features.FeaturesDict(
    {
      'image': tfds.features.Image(encoding_format='png'),
      'label': tfds.features.ClassLabel(num_classes=2),
    }
  )
  splits = {'train': examples(), 'test': examples()}
  fakes.write('cifar10', '3.0.2', features, splits, tmp_path / 'spoilt')
  flags = {**_FLAGS, 'model_dir': tmp_path / 'model'}
  spoilt = {**flags, 'data_dir': tmp_path / 'spoilt', 'input_fn': 'cifar10'}
  digits = {**flags, 'data_dir': tmp_path / 'data'}
  cases = [
    ({**digits, 'model_dir': in_the_way}, 2, 'cannot be written'),
    ({**digits, 'model_dir': ''}, 2, '--model_dir is empty'),
    ({**digits, 'batch_size': 2048}, 2, 'give at most 1437'),
    ({**digits, 'augmentation_type': 'NONE'}, 2, 'augmentation_type'),
    # Nobody looks at all images of a set that others have looked at.
    ({**spoilt, 'batch_size': 4, 'num_images': 12}, 1, 'cannot be used: '),
  ]
  finished = command.run_many([flags for flags, _, _ in cases], tmp_path)
  for (_, returncode, words), ended in zip(cases, finished, strict=True):
    assert ended.returncode == returncode, ended.stderr
    assert words in ended.stderr.splitlines()[-1], ended.stderr
    assert 'Traceback' not in ended.stderr
