"""Probes the training pipeline: single examples, and the time of each part.

Only `inputs.train_input_fn` knows how examples are chosen and views are made.
Its behaviour is inferred from its results for other hyper-parameters, and for
images that encode numbers. Everything runs on the CPU.
"""

import dataclasses
from typing import Any

import numpy as np
import tensorflow as tf

from supcon.config import enums
from supcon.config import hparams
from supcon.data import inputs
from supcon.data.sources import datasets
from supcon.data.sources import splits
from supcon.data.views import image_ops

tf1 = tf.compat.v1

# Number of values of three 8-bit channels.
MAX_NUMBERED = 2**24


def session() -> tf1.Session:
  """Returns a session on the CPU, since a GPU may be busy with training."""
  return tf1.Session(config=tf1.ConfigProto(device_count={'GPU': 0}))


def batches(
  dataset: datasets.Dataset, params: hparams.HParams, batch_size: int
) -> tf.data.Dataset:
  """Returns (features, labels) from the first step on; views are float32."""
  input_fn = inputs.train_input_fn(dataset, params, tf.float32)
  return input_fn({'batch_size': batch_size})


def with_preprocessing(
  params: hparams.HParams, **fields: Any
) -> hparams.HParams:
  """Returns a copy with other fields of hparams.Preprocessing."""
  for name, value in fields.items():
    params = params.replace(f'input_data.preprocessing.{name}', value)
  return params


def unaugmented(params: hparams.HParams, **fields: Any) -> hparams.HParams:
  """Returns hyper-parameters with crop, resize, flip and whitening only.

  Args:
    params: The hyper-parameters of the run.
    **fields: Other fields of hparams.Preprocessing.
  """
  return with_preprocessing(
    params,
    augmentation_type=enums.AugmentationType.IDENTITY,
    **fields,
  )


def numbered_images(dataset: datasets.Dataset) -> datasets.Dataset:
  """Returns a data set whose training images encode their positions.

  Each image is a PNG of one pixel. It is read from the same files, in the same
  order and with the same labels as the image that it replaces. It is not
  whitened.
  """
  return dataclasses.replace(
    dataset,
    info=dataclasses.replace(dataset.info, mean=None, std=None),
    train=_Numbered(dataset.train),
    image_shape=(1, 1),
  )


def positions_in(pixels: np.ndarray) -> np.ndarray:
  """Returns the positions that numbered images encode.

  Args:
    pixels: uint8 [N, 3]. With more than MAX_NUMBERED examples they repeat.

  Returns:
    int64 [N].
  """
  return pixels @ [1, 2**8, 2**16]


def examples_at(split, positions):
  """Returns (image, label) as stored, in the order of `positions`.

  Args:
    split: splits.Split.
    positions: A list of integers.
  """
  storage = split.storage()
  if isinstance(storage, splits.Files):
    named = [tf.gather(column, positions) for column in storage.names()]
    return tf.data.Dataset.from_tensor_slices(tuple(named)).map(storage.read)
  positions = np.int64(positions)
  ends = np.cumsum(storage.sizes)
  shards = np.searchsorted(ends, positions, side='right')
  skips = positions - (ends - storage.sizes)[shards]
  stored = tf.data.Dataset.from_tensor_slices((shards, skips)).flat_map(
    lambda shard, skip: splits.part(storage, shard, skip, 1)
  )
  return stored.map(storage.parse)


def image_sizes(split: splits.Split, most: int = 256) -> list[tuple[int, int]]:
  """Returns (height, width) in pixels of some images, evenly spaced.

  Raises:
    tf.errors.OpError: If one of them cannot be decoded.
  """
  count = min(split.num_examples, most)
  positions = [split.num_examples * n // count for n in range(count)]
  with tf.Graph().as_default(), session() as of_cpu:
    sizes = examples_at(split, positions).map(
      lambda image, label: tf.shape(image_ops.decode(image))[:2],
      num_parallel_calls=tf.data.AUTOTUNE,
    )
    iterator = tf1.data.make_initializable_iterator(sizes.batch(count))
    found = iterator.get_next()
    of_cpu.run(iterator.initializer)
    return [tuple(size) for size in of_cpu.run(found).tolist()]


@dataclasses.dataclass(frozen=True)
class _Numbered:
  """A split whose images encode numbers.

  It has the parts of a `splits.Split` that `inputs` uses.
  """

  split: splits.Split

  @property
  def num_examples(self) -> int:
    return self.split.num_examples

  @property
  def num_bytes(self) -> int:
    return self.split.num_bytes

  def records(self) -> tf.data.Dataset:
    return (
      self.split.records()
      .enumerate()
      .map(lambda position, example: _number(position, *example))
    )

  def storage(self) -> splits.Files | splits.Shards:
    storage = self.split.storage()
    return _NUMBERED_STORAGES[type(storage)](storage)


def _numbered_files(files):
  def names():
    names, labels = files.names()
    positions = tf.strings.as_string(tf.range(tf.size(names)))
    return tf.strings.join([positions, names], '/'), labels

  def read(name, label):
    parts = tf.strings.split(name, '/', maxsplit=1)
    position = tf.strings.to_number(parts[0], tf.int64)
    return _number(position, *files.read(parts[1], label))

  return splits.Files(names, read)


def _numbered_shards(shards):
  firsts = np.cumsum((0, *shards.sizes))

  def read(shard, skip):
    first = tf.gather(firsts, shard) + skip
    return shards.read(shard, skip).enumerate(first)

  def parse(position, *stored):
    return _number(position, *shards.parse(*stored))

  return splits.Shards(shards.sizes, read, parse)


_NUMBERED_STORAGES = {
  splits.Files: _numbered_files,
  splits.Shards: _numbered_shards,
}


def _number(position, encoded, label):
  """Returns (PNG of the position, label)."""
  # Adds 0 in a way that no optimizer can remove, so that the file is read.
  number = tf.cast(position, tf.int32)
  number += tf.minimum(tf.strings.length(encoded), 0)
  levels = tf.bitwise.right_shift(number, [0, 8, 16]) % 256
  pixel = tf.reshape(tf.cast(levels, tf.uint8), [1, 1, 3])
  return tf.io.encode_png(pixel), label
