"""Tests of pipeline_costs: the speed, and the cost of each part."""

import dataclasses
import itertools
import json
import math

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from supcon.config import enums
from supcon.data import inputs
from supcon.data.sources import datasets
from supcon.data.sources import folder
from supcon.data.sources import splits
from supcon.reports import pipeline_costs
from tests.data import fakes
from tests.data import pictures

tf1 = tf.compat.v1

_SIMCLR = (
  enums.AugmentationType.SIMCLR,
  enums.AugmentationType.STACKED_RANDAUGMENT,
)
_POLICIES = (
  enums.AugmentationType.AUTOAUGMENT,
  enums.AugmentationType.RANDAUGMENT,
  enums.AugmentationType.STACKED_RANDAUGMENT,
)


@pytest.fixture(name='folders')
def fixture_folders(tmp_path):
  pictures.write_colored(tmp_path)
  return datasets.load('folder', str(tmp_path))


@pytest.fixture(name='photos')
def fixture_photos(tmp_path):
  pictures.write_photos(tmp_path)
  return datasets.load('folder', str(tmp_path))


@pytest.fixture(name='known_costs')
def fixture_known_costs(monkeypatch):
  """Batches say what each example would cost, and costs are what they say."""

  def train_input_fn(dataset, params, dtype):
    options = params.input_data.preprocessing
    kind = options.augmentation_type
    is_simclr = kind in _SIMCLR
    cost = (
      1
      + 2 * (options.image_size > 1)
      # Of images of one size all are held decoded.
      + 4 * (dataset.image_shape is None)
      + 8 * dataset.info.flips
      + 16 * (dataset.info.mean is not None)
      + 32 * is_simclr
      + 64 * (is_simclr and options.warp_probability > 0)
      + 128 * (is_simclr and options.blur_probability > 0)
      + 256 * (kind in _POLICIES)
    )
    features = {'images': tf.zeros([2, 16, 16, 3], dtype), 'cost': float(cost)}
    examples = tf.data.Dataset.from_tensors((features, 0)).repeat()
    return lambda params: examples.batch(params['batch_size'])

  def costs(pipelines, seconds, clock):
    del seconds, clock
    with tf1.Session() as session:
      iterators = [
        tf1.data.make_initializable_iterator(each) for each in pipelines
      ]
      session.run([each.initializer for each in iterators])
      batches = session.run([each.get_next() for each in iterators])
    said = [features['cost'].sum() for features, _ in batches]
    return np.array([said, said])

  monkeypatch.setattr(inputs, 'train_input_fn', train_input_fn)
  monkeypatch.setattr(pipeline_costs, 'core_milliseconds', costs)


def _parts(dataset, **fields):
  speed = pipeline_costs.measure(
    dataset, pictures.params(**fields), seconds=0.01
  )
  return {name: part.milliseconds for name, part in speed.parts.items()}


def test_parts_get_what_they_cost(photos, known_costs):
  parts = _parts(
    pictures.with_whitening(photos),
    augmentation_type=enums.AugmentationType.STACKED_RANDAUGMENT,
    warp_probability=0.5,
  )
  assert parts == {
    'read': 0,
    'overhead': 1,
    'decode': 4,
    'crop and resize': 2,
    'flip': 8,
    'color jitter, grayscale': 32,
    'RandAugment': 256,
    'warp': 64,
    'blur': 128,
    'whiten': 16,
    'batch': 0,
  }
  assert list(parts)[:3] + list(parts)[-2:] == [
    'read',
    'overhead',
    'decode',
    'whiten',
    'batch',
  ]


@pytest.mark.parametrize(
  'name, fields, augmentations',
  [
    ('IDENTITY', {}, {}),
    ('AUTOAUGMENT', {}, {'AutoAugment': 256}),
    ('RANDAUGMENT', {}, {'RandAugment': 256}),
    ('SIMCLR', {}, {'color jitter, grayscale': 32, 'blur': 128}),
    (
      'SIMCLR',
      {'blur_probability': 0.0},
      {'color jitter, grayscale': 32},
    ),
    ('SIMCLR', {'augmentation_magnitude': 0.0}, {}),
  ],
  ids=str,
)
def test_parts_are_those_that_there_are(
  folders, known_costs, name, fields, augmentations
):
  # Of digits, say, which lose their label.
  info = dataclasses.replace(folders.info, flips=False)
  parts = _parts(
    dataclasses.replace(folders, info=info),
    augmentation_type=enums.AugmentationType[name],
    **fields,
  )
  always = {'overhead': 1, 'decode': 4, 'crop and resize': 2}
  assert parts == {'read': 0, **always, **augmentations, 'batch': 0}


@pytest.mark.parametrize('is_held_decoded', [True, False])
def test_images_that_are_held_decoded_are_not_decoded_again(
  tmp_path, known_costs, monkeypatch, is_held_decoded
):
  def examples():
    for number in range(pictures.NUM_COLORED):
      image = np.full([40, 40, 3], pictures.color(number), np.uint8)
      yield number, {'image': image, 'label': number % 3}

  features = tfds.features.FeaturesDict(
    {
      'image': tfds.features.Image(shape=[40, 40, 3], encoding_format='png'),
      'label': tfds.features.ClassLabel(names=pictures.CLASSES),
    }
  )
  splits_ = {'train': examples(), 'test': examples()}
  fakes.write('even', '1.0.0', features, splits_, tmp_path)
  dataset = datasets.load('tfds:even', str(tmp_path))
  if not is_held_decoded:
    # An image takes 3 x 40 x 40 bytes, and much less encoded. The few that are
    # measured would fit, but that is not how the run has them.
    monkeypatch.setattr(pipeline_costs, 'MAX_SAMPLED', 4)
    monkeypatch.setattr(inputs, 'MAX_BYTES_IN_MEMORY', 5 * 4800)
  assert _parts(dataset)['decode'] == (0 if is_held_decoded else 4)


def test_large_batches_are_not_needed(folders, known_costs):
  params = dataclasses.replace(pictures.params(image_size=512), batch_size=30)
  speed = pipeline_costs.measure(folders, params, seconds=0.01)
  # Of 32 MiB; two float32 views of 512 x 512 pixels take 6 MiB.
  assert speed.batch_size == 5


@pytest.mark.parametrize('is_held', [True, False])
def test_reading_is_paid_for_each_example_or_once(
  folders, monkeypatch, is_held
):
  """Of a set that is held in memory it is over before the first step."""
  storage = folder.FolderSplit.storage
  # To read an example takes a millisecond, and nothing else takes any time.
  clock, reads = _clock_of_reads()

  def count(encoded):
    reads.append(encoded)
    return encoded

  def slow(split):
    files = storage(split)

    def read(name, label):
      encoded, label = files.read(name, label)
      return tf.numpy_function(count, [encoded], tf.string), label

    return splits.Files(files.names, read)

  monkeypatch.setattr(folder.FolderSplit, 'storage', slow)
  if not is_held:
    # All are too many, but not the part of them that is held for measuring.
    monkeypatch.setattr(
      pipeline_costs, 'MAX_SAMPLED', pictures.NUM_COLORED // 2
    )
    limit = folders.train.num_bytes * 3 // 4
    monkeypatch.setattr(inputs, 'MAX_BYTES_IN_MEMORY', limit)
  parts = pipeline_costs.measure(
    folders, pictures.params(), seconds=0.05, clock=clock
  ).parts
  if is_held:
    assert parts['read'].milliseconds == 0, parts
  else:
    assert parts['read'].milliseconds > 0.3, parts


def _clock_of_reads():
  """Returns a Clock, and the list of what was read, a millisecond each."""
  reads, looks = [], itertools.count()
  clock = pipeline_costs.Clock(
    # Who waits for time to pass has to look at it a hundred times a second.
    wall=lambda: next(looks) / 100,
    work=lambda: len(reads) / 1000,
  )
  return clock, reads


def test_cores_that_are_busy_and_images_per_second(folders, known_costs):
  # Each look at the time is half a second later, in which three cores work:
  # as long as it takes to look again, one batch of 8 is read.
  looks = []

  def wall():
    looks.append(0.5 * len(looks))
    return looks[-1]

  speed = pipeline_costs.measure(
    folders,
    pictures.params(),
    seconds=0.1,
    clock=pipeline_costs.Clock(wall, lambda: 3 * looks[-1] if looks else 0.0),
  )
  assert speed.windows == (16,) * 5
  assert speed.examples_per_second == 16
  # Five windows of two looks each, and a last look, before which no work is.
  assert speed.busy_cores == pytest.approx(3 * 10 / 11)


def test_what_is_measured_end_to_end(photos):
  """With the real views."""
  params = dataclasses.replace(
    pictures.params(augmentation_type=enums.AugmentationType.SIMCLR),
    batch_size=4,
  )
  speed = pipeline_costs.measure(photos, params, seconds=1.0)
  assert speed.batch_size == 4 and speed.num_views == 2
  assert min(speed.windows) <= speed.examples_per_second <= max(speed.windows)
  assert speed.examples_per_second > 0
  assert speed.first_batch_seconds > 0
  assert speed.busy_cores > 0
  for name, part in speed.parts.items():
    assert part.milliseconds >= 0 and part.spread >= 0, name

  said = json.loads(json.dumps(speed.to_json()))
  assert said['examples_per_second'] == speed.examples_per_second
  assert math.isclose(sum(part['share'] for part in said['parts'].values()), 1)
  assert said['core_milliseconds_per_example'] == pytest.approx(
    sum(
      part['core_milliseconds_per_example'] for part in said['parts'].values()
    )
  )
  lines = speed.describe().splitlines()
  assert lines[0].startswith(
    f'{speed.examples_per_second:.0f} images/s, 2 views of each, with '
  )
  words = [line.split() for line in lines]
  for name, part in speed.parts.items():
    share = part.milliseconds / speed.milliseconds
    assert [
      *name.split(),
      f'{part.milliseconds:.3f}',
      '+-',
      f'{part.spread:.3f}',
      f'{share:.1%}',
    ] in words
  assert ['sum', f'{speed.milliseconds:.3f}'] in words


def test_a_part_is_the_difference_between_pipelines(folders, monkeypatch):
  """In each round, as rounds see other examples and machines other work."""

  def costs(pipelines, seconds, clock):
    del seconds, clock
    # Milliseconds per batch of rounds that differ by more than the parts do.
    rounds = np.float64([[100], [200], [300], [400], [999]])
    return rounds + 8 * np.arange(len(pipelines))

  monkeypatch.setattr(pipeline_costs, 'core_milliseconds', costs)
  speed = pipeline_costs.measure(folders, pictures.params(), seconds=0.1)
  assert speed.batch_size == 8
  # 8 ms for batches of 64, and of 8 at most.
  assert speed.parts['read'] == (8 / 64, 0)
  assert speed.parts['decode'].milliseconds >= 1
  assert speed.parts['decode'] == speed.parts['flip']
  # The median and half of the way from the first quartile to the third.
  assert speed.parts['batch'] == (300 / 8, (400 - 200) / 2 / 8)
