"""Writes tiny data sets in TFDS's own formats, offline, in about a second.

They carry the names, versions, features and encodings of the real ones, so that
whatever reads those reads these. The class decides an image's colour, hence a
model can learn them.
"""

import contextlib
import io
import zlib

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.image_classification import cifar10_corrupted

CIFAR10_NAMES = (
  'airplane',
  'automobile',
  'bird',
  'cat',
  'deer',
  'dog',
  'frog',
  'horse',
  'ship',
  'truck',
)


class _Fake(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """A builder that is told what to write."""

  VERSION = tfds.core.Version('0.0.0')
  name = 'fake'

  def __init__(self, name, version, features, splits, data_dir):
    self.name = name
    self.VERSION = tfds.core.Version(version)
    self._features = features
    self._splits = splits
    super().__init__(data_dir=data_dir)

  def _info(self):
    return tfds.core.DatasetInfo(builder=self, features=self._features)

  def _split_generators(self, dl_manager):
    del dl_manager
    return {name: iter(examples) for name, examples in self._splits.items()}

  def _generate_examples(self):
    raise NotImplementedError('The splits are given.')


def write(name, version, features, splits, data_dir, num_shards=1):
  """Writes a data set.

  Args:
    name: Its TFDS name.
    version: Such as '1.0.0'.
    features: tfds.features.FeaturesDict.
    splits: {split name: iterable of (key, example)}.
    data_dir: Where TFDS keeps its data sets.
    num_shards: Files per split.

  Returns:
    The directory that holds it.
  """
  tfds.disable_progress_bar()
  builder = _Fake(name, version, features, splits, str(data_dir))
  with contextlib.redirect_stdout(io.StringIO()):
    builder.download_and_prepare(
      download_config=tfds.download.DownloadConfig(
        try_download_gcs=False, num_shards=num_shards
      )
    )
  return builder.data_dir


def write_cifar10(
  data_dir, num_train=40, num_test=13, image_size=32, version='3.0.2'
):
  """Writes a 'cifar10': PNG; example i of a split has label i % 10."""

  def examples(split, count):
    for i in range(count):
      name = f'{split}_{i:05d}'
      image = _image(name, i % 10, (image_size, image_size))
      yield name, {'image': image, 'label': i % 10, 'id': name}

  features = tfds.features.FeaturesDict(
    {
      'id': tfds.features.Text(),
      'image': tfds.features.Image(
        shape=(image_size, image_size, 3), encoding_format='png'
      ),
      'label': tfds.features.ClassLabel(names=CIFAR10_NAMES),
    }
  )
  splits = {
    'train': examples('train', num_train),
    'test': examples('test', num_test),
  }
  return write('cifar10', version, features, splits, data_dir)


class _Cifar10Corrupted(
  cifar10_corrupted.Cifar10Corrupted, skip_registration=True
):
  """The builder of TFDS, which finds the published arrays in a directory."""

  name = 'cifar10_corrupted'

  def __init__(self, arrays, **kwargs):
    self._arrays = arrays
    super().__init__(**kwargs)

  def _split_generators(self, dl_manager):
    del dl_manager
    return {'test': self._generate_examples(self._arrays)}


def write_cifar10_corrupted(data_dir, arrays, images, labels):
  """Writes a 'cifar10_corrupted' as TFDS does from the published arrays.

  Args:
    data_dir: Where TFDS keeps its data sets.
    arrays: An empty directory for the arrays.
    images: {(corruption, severity): uint8 [N, 32, 32, 3]}.
    labels: [N].
  """
  np.save(arrays / 'labels.npy', np.tile(labels, 5))
  tfds.disable_progress_bar()
  for (corruption, severity), wanted in images.items():
    stacked = np.zeros([5, *wanted.shape], np.uint8)
    stacked[severity - 1] = wanted
    np.save(arrays / f'{corruption}.npy', stacked.reshape(-1, 32, 32, 3))
    with contextlib.redirect_stdout(io.StringIO()):
      _Cifar10Corrupted(
        str(arrays),
        config=f'{corruption}_{severity}',
        data_dir=str(data_dir),
      ).download_and_prepare(
        download_config=tfds.download.DownloadConfig(try_download_gcs=False)
      )


def write_imagenet(
  data_dir,
  num_train=24,
  num_validation=7,
  num_classes=1000,
  min_size=40,
  max_size=120,
  num_shards=2,
  version='5.1.0',
):
  """Writes an 'imagenet2012': JPEGs of various sizes, several files.

  Example i of a split has label i % num_classes. Both sides of an image are
  between `min_size` and `max_size` pixels.
  """

  def examples(split, count):
    for i in range(count):
      file_name = f'{split}_{i:05d}.JPEG'
      sides = _random(file_name).randint(min_size, max_size + 1, 2)
      yield (
        file_name,
        {
          'image': _image(file_name, i % num_classes, sides),
          'label': i % num_classes,
          'file_name': file_name,
        },
      )

  features = tfds.features.FeaturesDict(
    {
      'image': tfds.features.Image(encoding_format='jpeg'),
      'label': tfds.features.ClassLabel(
        names=[f'n{i:08d}' for i in range(num_classes)]
      ),
      'file_name': tfds.features.Text(),
    }
  )
  splits = {
    'train': examples('train', num_train),
    'validation': examples('validation', num_validation),
  }
  return write('imagenet2012', version, features, splits, data_dir, num_shards)


def _image(name, label, sides):
  """Returns a uint8 [height, width, 3]: the colour of a class, with noise."""
  height, width = sides
  colour = _random(f'class {label}').randint(40, 216, 3)
  noise = _random(name).randint(-40, 40, (height, width, 3))
  return (colour + noise).astype(np.uint8)


def _random(name):
  return np.random.RandomState(zlib.crc32(name.encode()))
