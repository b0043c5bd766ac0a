"""Tests of the data set table and of reading prepared data sets."""

import dataclasses
import json
import pathlib
import time

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from supcon.data.sources import datasets
from supcon.data.sources import faults
from supcon.data.views import policies
from tests.data import fakes

_IMAGE = tfds.features.Image(shape=(4, 4, 3), encoding_format='png')
_ONE_EXAMPLE = [(0, {'image': np.zeros([4, 4, 3], np.uint8), 'label': 0})]

pytestmark = pytest.mark.usefixtures('no_network')


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
  path = tmp_path_factory.mktemp('data')
  fakes.write_cifar10(path, num_train=40, num_test=13, image_size=20)
  fakes.write_imagenet(
    path, num_train=24, num_validation=7, num_classes=9, num_shards=3
  )
  return str(path)


def _error(*args):
  """Returns the one-line message with which loading fails, at once."""

  def wait(seconds):
    raise AssertionError(f'it waits for {seconds} s')

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(time, 'sleep', wait)
    with pytest.raises(ValueError) as error:
      datasets.load(*args)
  message = str(error.value)
  assert '\n' not in message
  return message


def _records(dataset, is_train):
  """Returns [(encoded image, label), ...]."""
  with tf.Graph().as_default(), tf.compat.v1.Session() as session:
    records = dataset.records(is_train)
    assert [spec.shape.rank for spec in records.element_spec] == [0, 0]
    assert [spec.dtype for spec in records.element_spec] == [
      tf.string,
      tf.int32,
    ]
    record = tf.compat.v1.data.make_one_shot_iterator(records).get_next()
    found = []
    while True:
      try:
        found.append(session.run(record))
      except tf.errors.OutOfRangeError:
        return found


def test_sizes_are_read_from_disk(data_dir):
  cifar10 = datasets.load('cifar10', data_dir)
  assert cifar10.num_train_examples == cifar10.num_examples(True) == 40
  assert cifar10.num_eval_examples == cifar10.num_examples(False) == 13
  assert cifar10.num_classes == 10
  assert cifar10.class_names == fakes.CIFAR10_NAMES
  assert cifar10.image_shape == (20, 20)

  imagenet = datasets.load('imagenet', data_dir)
  assert imagenet.num_train_examples == 24
  assert imagenet.num_eval_examples == 7
  assert imagenet.num_classes == 9
  assert imagenet.class_names[8] == 'n00000008'
  assert imagenet.image_shape is None  # They differ.


def test_digits_prepare_themselves(tmp_path):
  dataset = datasets.load('digits', str(tmp_path / 'not' / 'there'))
  assert dataset.num_train_examples == 1437
  assert dataset.num_eval_examples == 360
  assert dataset.class_names == tuple('0123456789')
  assert dataset.image_shape == (8, 8)


def test_table_says_what_no_data_set_can_tell():
  flips = {name: info.flips for name, info in datasets.INFOS.items()}
  assert flips == {'imagenet': True, 'cifar10': True, 'digits': False}
  # 2 x 0.4914 - 1 = -0.0172 and 2 x 0.2023 = 0.4046 on the [-1, 1] scale.
  cifar10 = datasets.INFOS['cifar10']
  assert cifar10.mean == (-0.0172, -0.0356, -0.107)
  assert cifar10.std == (0.4046, 0.3988, 0.402)
  assert datasets.INFOS['imagenet'].mean is None
  assert datasets.INFOS['digits'].std is None
  found = {
    name: info.autoaugment_policy for name, info in datasets.INFOS.items()
  }
  assert found == {
    'imagenet': policies.IMAGENET_POLICY,
    'cifar10': policies.CIFAR10_POLICY,
    'digits': policies.IMAGENET_POLICY,
  }


@pytest.mark.parametrize(
  'name, data_dir, called',
  [
    ('imagenet', 'data', 'ImageNet (ILSVRC 2012)'),
    ('cifar10', None, 'CIFAR-10'),
    ('tfds:cifar10', None, 'CIFAR-10'),
    ('digits', 'data', 'Optical Recognition of Handwritten Digits (UCI)'),
    ('tfds:mnist:3.*.*', 'data', 'mnist (TensorFlow Datasets)'),
    # Of folders of images the directory has a name; not the way to it.
    ('folder', '/home/somebody/pets/', 'folder pets'),
    ('folder', None, ''),
  ],
)
def test_what_people_call_it(name, data_dir, called):
  assert datasets.called(name, data_dir) == called


@pytest.mark.parametrize('name', ['cifar10', 'imagenet'])
def test_records_are_encoded_and_in_one_order(name, data_dir):
  dataset = datasets.load(name, data_dir)
  signature = {'cifar10': b'\x89PNG', 'imagenet': b'\xff\xd8\xff'}[name]
  for is_train in (True, False):
    records = _records(dataset, is_train)
    assert len(records) == dataset.num_examples(is_train)
    assert len({image for image, _ in records}) == len(records)
    assert all(image.startswith(signature) for image, _ in records)
    labels = sorted(label for _, label in records)
    assert labels == sorted(
      i % dataset.num_classes for i in range(len(records))
    )
    assert _records(dataset, is_train) == records
    # They and a few bytes of overhead each are what is in the files.
    num_bytes = sum(len(image) for image, _ in records)
    assert num_bytes < dataset.num_bytes(is_train) < 1.3 * num_bytes


def test_limit_applies_to_training_alone(data_dir):
  everything = datasets.load('cifar10', data_dir)
  dataset = datasets.load('cifar10', data_dir, max_train_examples=10)
  assert dataset.num_train_examples == 10
  assert dataset.num_eval_examples == 13
  assert _records(dataset, True) == _records(everything, True)[:10]
  # 10 of 40 examples.
  assert dataset.num_bytes(True) == everything.num_bytes(True) // 4


@pytest.mark.parametrize('limit', [-1, 0, 40, 41])
def test_limit_beyond_the_set_is_none(limit, data_dir):
  assert datasets.load('cifar10', data_dir, limit).num_train_examples == 40


def test_default_data_dir_is_that_of_tfds(data_dir, tmp_path, monkeypatch):
  monkeypatch.setenv('TFDS_DATA_DIR', data_dir)
  assert datasets.load('cifar10', None).num_train_examples == 40
  monkeypatch.delenv('TFDS_DATA_DIR')
  monkeypatch.setenv('HOME', str(tmp_path))
  assert f'{tmp_path}/tensorflow_datasets does not' in _error('cifar10', None)


def test_newest_matching_version_is_taken(tmp_path):
  # 3.10.0 is newer than 3.9.0, whatever the alphabet says.
  for version, size in (('3.9.0', 11), ('3.10.0', 12), ('4.0.0', 13)):
    fakes.write_cifar10(tmp_path, size, 2, image_size=4, version=version)
  (tmp_path / 'cifar10' / '3.11.0').mkdir()  # A copy that has only begun.
  (tmp_path / 'cifar10' / 'incomplete.XY_3.12.0').mkdir()
  assert datasets.load('cifar10', str(tmp_path)).num_train_examples == 12


def test_unknown_name_lists_the_choices(data_dir):
  assert _error('mnist', data_dir) == (
    '--input_fn=mnist is unknown; choose one of imagenet, cifar10, digits, '
    'tfds:NAME[/CONFIG][:VERSION] for what TFDS has prepared, or folder for '
    'folders of images.'
  )


def test_missing_data_dir(tmp_path):
  missing = str(tmp_path / 'missing')
  message = _error('cifar10', missing)
  assert message.startswith(f'--data_dir={missing} does not exist; ')
  assert f"tfds.builder('cifar10:3.*.*', data_dir='{missing}')" in message


def test_data_dir_without_the_data_set_says_how_to_prepare_it(tmp_path):
  command = (
    'python -c "import tensorflow_datasets as tfds; '
    f"tfds.builder('cifar10:3.*.*', data_dir='{tmp_path}')"
    '.download_and_prepare()"'
  )
  message = _error('cifar10', str(tmp_path))
  assert message.startswith(f'--data_dir={tmp_path} holds no cifar10:3.*.*; ')
  assert command in message
  message = _error('imagenet', str(tmp_path))
  assert "tfds.builder('imagenet2012:5.*.*'" in message
  assert 'downloads/manual' in message
  assert 'www.tensorflow.org/datasets/catalog/imagenet2012' in message


def test_other_versions_are_named(tmp_path):
  fakes.write_cifar10(tmp_path, 2, 2, image_size=4, version='2.0.0')
  assert 'holds no cifar10:3.*.*, only 2.0.0; ' in _error(
    'cifar10', str(tmp_path)
  )


def test_digits_that_cannot_be_written(tmp_path):
  (tmp_path / 'file').write_text('not a directory')
  message = _error('digits', str(tmp_path / 'file'))
  assert message.startswith(
    f'cannot write digits into --data_dir={tmp_path}/file ('
  )


def test_missing_split(tmp_path):
  features = tfds.features.FeaturesDict(
    {'image': _IMAGE, 'label': tfds.features.ClassLabel(num_classes=2)}
  )
  fakes.write('cifar10', '3.0.2', features, {'train': _ONE_EXAMPLE}, tmp_path)
  message = _error('cifar10', str(tmp_path))
  assert message == (
    f'--eval_split=test is not in {tmp_path}/cifar10/3.0.2, which has the '
    'splits train; give one of them, or a part such as train[:80%].'
  )


@pytest.mark.parametrize(
  'features, found',
  [
    (
      {'image': _IMAGE, 'label': tfds.features.Scalar(np.int64)},
      "'label' is Scalar, but must be a tfds.features.ClassLabel",
    ),
    (
      {
        'image': tfds.features.Tensor(shape=(4, 4, 3), dtype=np.uint8),
        'label': tfds.features.ClassLabel(num_classes=2),
      },
      "'image' is Tensor, but must be a tfds.features.Image",
    ),
  ],
)
def test_wrong_features(features, found, tmp_path):
  fakes.write(
    'cifar10',
    '3.0.2',
    tfds.features.FeaturesDict(features),
    {'train': _ONE_EXAMPLE, 'test': _ONE_EXAMPLE},
    tmp_path,
  )
  assert found in _error('cifar10', str(tmp_path))


# ------------------------------------------- whatever else TFDS has prepared


def _features(num_classes=3, image='image', label='label'):
  return tfds.features.FeaturesDict(
    {
      'id': tfds.features.Text(),
      image: tfds.features.Image(shape=(4, 4, 1), encoding_format='png'),
      label: tfds.features.ClassLabel(num_classes=num_classes),
    }
  )


def _write(data_dir, name='shapes', version='1.0.0', num_shards=1, **sizes):
  """Writes grey images, {split: how many}, example i of class i % 3."""

  def examples(count):
    for i in range(count):
      image = np.full([4, 4, 1], i, np.uint8)
      yield i, {'id': str(i), 'image': image, 'label': i % 3}

  splits = {split: examples(count) for split, count in sizes.items()}
  return fakes.write(name, version, _features(), splits, data_dir, num_shards)


def test_any_prepared_data_set(tmp_path):
  _write(tmp_path, version='1.0.0', train=4, test=2)
  _write(tmp_path, version='1.2.0', train=7, test=5)
  dataset = datasets.load('tfds:shapes', str(tmp_path))
  assert dataset.num_train_examples == 7 and dataset.num_eval_examples == 5
  assert dataset.class_names == ('0', '1', '2')
  assert dataset.image_shape == (4, 4)
  assert dataset.info.flips and dataset.info.mean is None
  assert (dataset.info.train_split, dataset.info.eval_split) == (
    'train',
    'test',
  )
  records = _records(dataset, is_train=True)
  labels = {
    tf.io.decode_png(image).numpy()[0, 0, 0]: label for image, label in records
  }
  assert labels == {i: i % 3 for i in range(7)}
  for version, size in (('1.0.0', 4), ('1.0.*', 4), ('1.*.*', 7)):
    dataset = datasets.load(f'tfds:shapes:{version}', str(tmp_path))
    assert dataset.num_train_examples == size


def test_configs(tmp_path):
  for config in ('large', 'small'):
    _write(tmp_path / config, train=len(config), test=2)
    (tmp_path / 'shapes').mkdir(exist_ok=True)
    (tmp_path / config / 'shapes').rename(tmp_path / 'shapes' / config)
  dataset = datasets.load('tfds:shapes/small:1.0.0', str(tmp_path))
  assert dataset.num_train_examples == 5
  assert _error('tfds:shapes', str(tmp_path)) == (
    f'{tmp_path}/shapes holds the configs large, small; choose one, such as '
    '--input_fn=tfds:shapes/large.'
  )
  # The only one there is need not be named.
  (tmp_path / 'shapes' / 'large').rename(tmp_path / 'elsewhere')
  assert datasets.load('tfds:shapes', str(tmp_path)).num_train_examples == 5
  assert "tfds.builder('shapes/huge:*.*.*'" in _error(
    'tfds:shapes/huge', str(tmp_path)
  )


def test_what_is_known_by_name_is_known_by_tfds_name_too(data_dir, tmp_path):
  dataset = datasets.load('tfds:cifar10', data_dir)
  assert dataset.info.mean == datasets.INFOS['cifar10'].mean
  assert dataset.num_eval_examples == 13
  assert not datasets.load('tfds:digits', str(tmp_path)).info.flips
  _write(tmp_path, name='mnist', train=2, test=2)
  assert not datasets.load('tfds:mnist', str(tmp_path)).info.flips


@pytest.mark.parametrize(
  'others, chosen',
  [
    (['test'], 'test'),
    (['validation'], 'validation'),
    (['validation', 'test', 'extra'], 'test'),
  ],
)
def test_evaluation_split_is_found(others, chosen, tmp_path):
  _write(tmp_path, train=2, **{name: 3 for name in others})
  dataset = datasets.load('tfds:shapes', str(tmp_path))
  assert dataset.info.eval_split == dataset.evaluation.name == chosen


def test_splits_and_parts_of_them_can_be_chosen(tmp_path):
  _write(tmp_path, num_shards=3, train=10, extra=6)
  message = _error('tfds:shapes', str(tmp_path))
  assert message == (
    f'{tmp_path}/shapes/1.0.0: none of test, validation, val is there, only '
    'extra, train; choose with --eval_split, which also takes parts of a split '
    'such as train[:80%] and train[80%:].'
  )
  dataset = datasets.load(
    'tfds:shapes',
    str(tmp_path),
    train_split='train[:80%]+extra',
    eval_split='train[80%:]',
  )
  assert dataset.num_train_examples == 14 and dataset.num_eval_examples == 2
  # 8 of 10 and 6 of 6: no example of the evaluation is among them.
  train, evaluation = (
    _records(dataset, is_train) for is_train in (True, False)
  )
  assert len(train) == 14
  of_train = datasets.load('tfds:shapes', str(tmp_path), eval_split='train')
  in_order = _records(of_train, is_train=True)
  assert train[:8] == in_order[:8] and evaluation == in_order[8:]
  # TFDS does not know how large a part is: 2 of 16 examples.
  whole = of_train.num_bytes(True) + datasets.load(
    'tfds:shapes', str(tmp_path), eval_split='extra'
  ).num_bytes(False)
  assert dataset.num_bytes(False) == whole * 2 // 16

  for name, word in (('dev', 'dev'), ('train[:x]', 'train[:x]')):
    message = _error('tfds:shapes', str(tmp_path), 0, name, 'extra')
    assert message.startswith(f'--train_split={word} is not in {tmp_path}')
    assert 'which has the splits extra, train; ' in message
  message = _error('tfds:shapes', str(tmp_path), 0, 'train', 'extra[:0]')
  assert message.startswith('--eval_split=extra[:0] of ')


def test_ids_are_the_same_in_every_part_of_a_split(tmp_path):
  _write(tmp_path, num_shards=3, train=10, test=6)

  def examples(split_name):
    """Returns {id: image}."""
    dataset = datasets.load('tfds:shapes', str(tmp_path), 0, split_name)
    images = [image for image, _ in _records(dataset, is_train=True)]
    ids = [dataset.train.example_id(i) for i in range(len(images))]
    assert len(set(ids)) == len(ids)
    return dict(zip(ids, images))

  train, test = examples('train'), examples('test')
  assert list(train) == [f'train/{i}' for i in range(10)]
  assert list(test) == [f'test/{i}' for i in range(6)]
  # Of 10 the last 2 and the first 4, of 6 the middle: files begin at 0, 3, 7
  # and 0, 2, 4.
  part = examples('train[80%:]+test[1:4]+train[:4]')
  assert list(part) == [
    *('train/8', 'train/9', 'test/1', 'test/2', 'test/3'),
    *('train/0', 'train/1', 'train/2', 'train/3'),
  ]
  assert part.items() <= {**train, **test}.items()

  split = datasets.load('tfds:shapes', str(tmp_path), 0, 'train[80%:]+test')
  rest = split.train.select([1, 2, 5])
  ids = [rest.example_id(i) for i in range(3)]
  assert ids == ['train/9', 'test/0', 'test/3']
  assert rest.select([2]).example_id(0) == 'test/3'


def test_features_are_those_of_supervised_learning(tmp_path):
  features = _features(image='photo', label='species')
  example = {'id': '', 'photo': np.zeros([4, 4, 1], np.uint8), 'species': 2}
  splits = {name: [(0, example)] for name in ('train', 'test')}
  directory = fakes.write('birds', '1.0.0', features, splits, tmp_path)
  assert "feature 'image' is missing, but must be" in _error(
    'tfds:birds', str(tmp_path)
  )
  info = pathlib.Path(directory) / 'dataset_info.json'
  text = json.loads(info.read_text())
  text['supervisedKeys'] = {
    'tuple': {'items': [{'featureKey': 'photo'}, {'featureKey': 'species'}]}
  }
  info.write_text(json.dumps(text))
  dataset = datasets.load('tfds:birds', str(tmp_path))
  assert [label for _, label in _records(dataset, True)] == [2]


@pytest.mark.parametrize('name', ['tfds:', 'tfds:/', 'tfds', 'folders'])
def test_unknown_names(name, tmp_path):
  assert _error(name, str(tmp_path)).startswith(
    f'--input_fn={name} is unknown; choose one of imagenet, '
  )


def test_wrong_version(tmp_path):
  assert _error('tfds:shapes:1.x', str(tmp_path)) == (
    "--input_fn=tfds:shapes:1.x: '1.x' is not a version; expected one "
    'such as 3.0.2 or 3.*.*.'
  )


# ----------------------------------------------------------- damaged records


def _shards(data_dir, split):
  return sorted(pathlib.Path(data_dir).glob(f'*-{split}.tfrecord*'))


def test_record_file_cut_in_half_is_named(tmp_path):
  directory = _write(tmp_path, num_shards=3, train=30, test=3)
  path = _shards(directory, 'train')[1]
  data = path.read_bytes()
  path.write_bytes(data[: len(data) // 2])
  message = _error('tfds:shapes', str(tmp_path))
  assert message.startswith(f'{path} is damaged (')
  assert message.endswith('); prepare the data set again.')
  # Cut between two records: half of the ten are there. A record is its length
  # in 8 bytes, 4 bytes of check sum, itself, 4 bytes of check sum.
  end = 0
  for _ in range(5):
    end += 16 + int.from_bytes(data[end : end + 8], 'little')
  path.write_bytes(data[:end])
  assert _error('tfds:shapes', str(tmp_path)) == (
    f'{path} holds 5 records instead of 10; prepare the data set again.'
  )
  path.write_bytes(b'')
  assert f'{path} is missing or empty; ' in _error('tfds:shapes', str(tmp_path))
  path.unlink()
  assert f'{path} is missing or empty; ' in _error('tfds:shapes', str(tmp_path))
  # Splits that are not in use do not matter.
  datasets.load('tfds:shapes', str(tmp_path), 0, 'test', 'test')


def test_damage_that_no_size_tells(tmp_path):
  directory = _write(tmp_path, num_shards=3, train=30, test=3)
  path = _shards(directory, 'train')[2]
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 1
  path.write_bytes(bytes(data))
  dataset = datasets.load('tfds:shapes', str(tmp_path))
  assert f'{path} is damaged (' in dataset.train.damage()
  assert dataset.evaluation.damage() is None
  assert faults.explain(dataset.train) == dataset.train.damage()
  with pytest.raises(ValueError, match='is damaged'):
    faults.find(dataset.train)


def test_bad_records_are_found_and_left_out(tmp_path):
  def examples(count):
    for i in range(count):
      # What TFDS takes for a PNG is not looked into.
      image = np.full([4, 4, 3], i, np.uint8)
      yield i, {'image': image, 'label': 2 if i in (5, 17) else i % 2}

  features = tfds.features.FeaturesDict(
    {'image': _IMAGE, 'label': tfds.features.ClassLabel(num_classes=3)}
  )
  splits = {'train': examples(20), 'test': examples(3)}
  directory = fakes.write('pair', '1.0.0', features, splits, tmp_path, 3)
  # Now class 2 is none any more.
  (pathlib.Path(directory) / 'label.labels.txt').unlink(missing_ok=True)
  path = pathlib.Path(directory) / 'features.json'
  path.write_text(path.read_text().replace('"3"', '"2"'))
  dataset = datasets.load('tfds:pair', str(tmp_path))
  assert dataset.num_classes == 2

  everything = dataset.train
  bad = faults.find(everything)
  assert len(bad) == 2
  line = faults.explain(everything)
  assert line == (
    f'record {bad[0]} (counted from 0 as they are read) of split train in '
    f'{directory} cannot be used: the label is not one of 0 to 1, it is 2; '
    'delete what is bad, or skip it with --skip_bad_images.'
  )
  rest = faults.without(everything, bad)
  assert rest.num_examples == 18 and rest.fingerprint != everything.fingerprint
  dataset = dataclasses.replace(dataset, train=rest)
  values = [
    int(tf.io.decode_png(image)[0, 0, 0])
    for image, _ in _records(dataset, True)
  ]
  assert sorted(values) == sorted(set(range(20)) - {5, 17})
  # Positions are those of the stored records.
  assert rest.where(bad[0]) == everything.where(bad[0] + 1)
  assert faults.find(rest) == []


def test_formats_without_an_order_are_refused(tmp_path):
  directory = _write(tmp_path, train=2, test=2)
  info = pathlib.Path(directory) / 'dataset_info.json'
  text = json.loads(info.read_text())
  text['fileFormat'] = 'array_record'
  info.write_text(json.dumps(text))
  assert _error('tfds:shapes', str(tmp_path)) == (
    f'{directory} was prepared as array_record, but only tfrecord can be read '
    "in order; prepare it again with file_format='tfrecord'."
  )
