"""Tests of the data set table and of reading prepared data sets."""

import socket
import time

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from supcon.data import datasets
from tests.data import fakes

_IMAGE = tfds.features.Image(shape=(4, 4, 3), encoding_format='png')
_ONE_EXAMPLE = [(0, {'image': np.zeros([4, 4, 3], np.uint8), 'label': 0})]


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
  path = tmp_path_factory.mktemp('data')
  fakes.write_cifar10(path, num_train=40, num_test=13, image_size=20)
  fakes.write_imagenet(
    path, num_train=24, num_validation=7, num_classes=9, num_shards=3
  )
  return str(path)


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
  def refuse(*args):
    raise AssertionError(f'network access: {args}')

  monkeypatch.setattr(socket.socket, 'connect', refuse)
  monkeypatch.setattr(socket, 'getaddrinfo', refuse)


def _error(*args):
  """Returns the one-line message with which loading fails, at once."""
  start = time.perf_counter()
  with pytest.raises(ValueError) as error:
    datasets.load(*args)
  assert time.perf_counter() - start < 1
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
    '--input_fn=mnist is unknown; choose one of imagenet, cifar10, digits.'
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
  assert "has the splits ['train'], but not 'test'; " in message


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
