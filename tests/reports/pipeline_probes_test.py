"""Tests of supcon.reports.pipeline_probes: images that say where they stand."""

from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf

from supcon.data.sources import datasets
from supcon.data.sources import splits
from supcon.reports import pipeline_probes

_NUM_EXAMPLES = 70_002

# The last two have labels 0 and 1, and are a file of their own.
_SHARDS = splits.Shards(
  sizes=(70_000, 2),
  read=lambda shard, skip: tf.data.Dataset.range(skip, 2 * shard),
  parse=lambda number: ('image', tf.cast(number, tf.int32)),
)
_FILES = splits.Files(
  names=lambda: (
    tf.fill([_NUM_EXAMPLES], 'a/b.png'),
    tf.range(_NUM_EXAMPLES) - 70_000,
  ),
  read=lambda name, label: (name, label),
)


def _last_of_shards(storage):
  shard, skip = tf.constant([1, 0], tf.int64)
  return splits.part(storage, shard, skip, 2).map(storage.parse)


def _last_of_files(storage):
  last = tuple(column[-2:] for column in storage.names())
  return tf.data.Dataset.from_tensor_slices(last).map(storage.read)


@pytest.mark.parametrize(
  'storage, last_two',
  [(_SHARDS, _last_of_shards), (_FILES, _last_of_files)],
  ids=['shards', 'files'],
)
def test_a_pixel_says_the_position(storage, last_two):
  dataset = datasets.Dataset(
    info=datasets.INFOS['digits'],
    train=SimpleNamespace(storage=lambda: storage),
    evaluation=None,
    class_names=(),
    image_shape=None,
  )
  numbered = pipeline_probes.numbered_images(dataset)
  pngs, labels = zip(*last_two(numbered.train.storage()))
  images = np.stack([tf.io.decode_png(png) for png in pngs])
  assert images.shape[1:3] == numbered.image_shape == (1, 1)
  pixels = images[:, 0, 0]
  # 70,000 = 1 * 65,536 + 17 * 256 + 112.
  np.testing.assert_array_equal(pixels, [[112, 17, 1], [113, 17, 1]])
  np.testing.assert_array_equal(
    pipeline_probes.positions_in(pixels), [70_000, 70_001]
  )
  np.testing.assert_array_equal(labels, [0, 1])


def test_sizes_are_those_of_images_from_the_whole_set():
  # The n-th image is n + 1 pixels high.
  storage = splits.Files(
    names=lambda: (tf.as_string(tf.range(100)), tf.zeros([100], tf.int32)),
    read=lambda name, label: (
      tf.io.encode_png(
        tf.zeros([tf.strings.to_number(name, tf.int32) + 1, 7, 3], tf.uint8)
      ),
      label,
    ),
  )
  split = SimpleNamespace(num_examples=100, storage=lambda: storage)
  assert pipeline_probes.image_sizes(split, most=4) == [
    (1, 7),
    (26, 7),
    (51, 7),
    (76, 7),
  ]
  assert len(pipeline_probes.image_sizes(split, most=1000)) == 100
