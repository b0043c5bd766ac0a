"""Tests of the embedded data set."""

import socket

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from supcon.data.sources import digits


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
  path = tmp_path_factory.mktemp('digits')
  digits.prepare(str(path))
  return path


@pytest.fixture(scope='module')
def splits(data_dir):
  """{split: (images [N, 8, 8, 3], labels [N])} as TFDS reads them."""
  builder = tfds.builder_from_directory(str(data_dir / 'digits' / '1.0.0'))
  return {
    name: next(
      iter(builder.as_dataset(name, batch_size=2000, as_supervised=True))
    )
    for name in ('train', 'test')
  }


def test_file_holds_the_published_digits():
  images, labels = digits.arrays()
  assert images.shape == (1797, 8, 8) and images.dtype == np.uint8
  assert images.min() == 0 and images.max() == 16
  assert labels.shape == (1797,) and labels.dtype == np.uint8
  # The counts that the source states for its test part.
  counts = [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
  np.testing.assert_array_equal(np.bincount(labels), counts)
  # The first image, a zero.
  np.testing.assert_array_equal(images[0, 0], [0, 0, 5, 13, 9, 1, 0, 0])
  np.testing.assert_array_equal(images[0, 3], [0, 4, 12, 0, 0, 8, 8, 0])
  assert labels[0] == 0


def test_attribution_lies_beside_the_file():
  text = digits._FILE.with_name('digits_LICENSE.md').read_text()
  for words in (
    'E. Alpaydin and C. Kaynak',
    'Optical Recognition of Handwritten Digits',
    'CC BY 4.0',
    'https://creativecommons.org/licenses/by/4.0/',
    '10.24432/C50P49',
    'scikit-learn',
  ):
    assert words in text


def test_every_fifth_image_is_a_test_image(splits):
  images, labels = digits.arrays()
  is_test = np.arange(1797) % 5 == 0
  assert (~is_test).sum() == 1437 and is_test.sum() == 360
  for name, of_split in (('train', ~is_test), ('test', is_test)):
    found_images, found_labels = splits[name]
    assert found_images.shape == (of_split.sum(), 8, 8, 3)
    np.testing.assert_array_equal(
      np.bincount(found_labels), np.bincount(labels[of_split])
    )
    # TFDS stores examples in an order of its own: compare sorted.
    ink = np.rint(images[of_split] / 16 * 255).astype(np.uint8)
    expected = np.column_stack([labels[of_split], ink.reshape([-1, 64])])
    for channel in range(3):
      grey = found_images[..., channel].numpy().reshape([-1, 64])
      found = np.column_stack([found_labels, grey])
      np.testing.assert_array_equal(
        found[np.lexsort(found.T)], expected[np.lexsort(expected.T)]
      )


def test_info_names_source_and_licence(data_dir):
  info = tfds.builder_from_directory(str(data_dir / 'digits' / '1.0.0')).info
  assert info.full_name == 'digits/1.0.0'
  assert info.features['label'].num_classes == 10
  assert 'CC BY 4.0' in str(info.redistribution_info.license)
  assert 'Alpaydin' in info.citation


def test_prepares_in_graph_mode(tmp_path):
  with tf.Graph().as_default():
    digits.prepare(str(tmp_path / 'new' / 'directory'))
  path = tmp_path / 'new' / 'directory' / 'digits' / '1.0.0'
  assert (path / 'dataset_info.json').exists()


def test_prepares_quietly_and_without_a_network(tmp_path, capfd, monkeypatch):
  def refuse(*args):
    raise AssertionError(f'network access: {args}')

  monkeypatch.setattr(socket.socket, 'connect', refuse)
  monkeypatch.setattr(socket, 'getaddrinfo', refuse)
  digits.prepare(str(tmp_path))
  assert capfd.readouterr() == ('', '')


def test_leaves_a_prepared_set_alone(tmp_path):
  digits.prepare(str(tmp_path))
  file = tmp_path / 'digits' / '1.0.0' / 'dataset_info.json'
  before = file.stat()
  digits.prepare(str(tmp_path))
  assert file.stat() == before


def test_two_may_prepare_at_the_same_time(tmp_path, monkeypatch):
  # While the first one writes, the second one starts and finishes.
  generate = digits.Digits._generate_examples

  def generate_late(builder, test):
    monkeypatch.setattr(digits.Digits, '_generate_examples', generate)
    digits.prepare(str(tmp_path))
    assert (tmp_path / 'digits' / '1.0.0').exists()
    yield from generate(builder, test)

  monkeypatch.setattr(digits.Digits, '_generate_examples', generate_late)
  digits.prepare(str(tmp_path))
  # One whole data set, and nothing half-written beside it.
  assert [path.name for path in (tmp_path / 'digits').iterdir()] == ['1.0.0']
  builder = tfds.builder_from_directory(str(tmp_path / 'digits' / '1.0.0'))
  assert len(list(builder.as_dataset('train'))) == 1437


def test_failure_to_write_is_an_error(tmp_path):
  (tmp_path / 'file').write_text('not a directory')
  with pytest.raises(OSError):
    digits.prepare(str(tmp_path / 'file'))


def test_damaged_set_is_an_error(tmp_path):
  (tmp_path / 'digits' / '1.0.0').mkdir(parents=True)
  with pytest.raises(OSError, match='1.0.0 is incomplete, delete it'):
    digits.prepare(str(tmp_path))
