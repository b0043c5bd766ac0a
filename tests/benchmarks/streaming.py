"""Measures memory and start of a run whose record files do not fit in memory.

  python -m tests.benchmarks.streaming

Writes record files of photographs (--mib in all, by default larger than all
windows of the shuffling together) as TFDS does, and reads 200 batches of 64,
SIMCLR, two views of 224, from the midst of an epoch. Prints how long the first
batch takes and the peak of resident memory, TensorFlow included.
"""

import argparse
import io
import os
import pathlib
import resource
import sys
import tempfile
import time

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

import tensorflow as tf  # noqa: E402
import tensorflow_datasets as tfds  # noqa: E402

from supcon.config import enums  # noqa: E402
from supcon.config import hparams  # noqa: E402
from supcon.data import inputs  # noqa: E402
from supcon.data.sources import datasets  # noqa: E402
from tests.benchmarks import input as input_benchmark  # noqa: E402
from tests.data import fakes  # noqa: E402

tf1 = tf.compat.v1

_BATCH_SIZE = 64
_NUM_BATCHES = 200


def _write(data_dir, mib):
  encoded = input_benchmark.jpegs(16)
  count = mib * 2**20 // len(encoded[0])

  def examples(size):
    for index in range(size):
      image = io.BytesIO(encoded[index % len(encoded)])
      yield index, {'image': image, 'label': index % 10}

  features = tfds.features.FeaturesDict(
    {
      'image': tfds.features.Image(encoding_format='jpeg'),
      'label': tfds.features.ClassLabel(num_classes=10),
    }
  )
  splits = {'train': examples(count), 'test': examples(16)}
  fakes.write('photographs', '1.0.0', features, splits, data_dir, num_shards=16)


def main():
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--mib', type=int, default=1536)
  args = parser.parse_args()
  with tempfile.TemporaryDirectory() as data_dir:
    if not os.fork():  # What writing needs is not counted.
      _write(data_dir, args.mib)
      os._exit(0)
    _, status = os.wait()
    if status:
      sys.exit('could not write the record files')
    dataset = datasets.load('tfds:photographs', data_dir)
    print(
      f'{dataset.num_train_examples} images, '
      f'{dataset.train.num_bytes / 2**20:.0f} MiB, '
      f'held: {inputs.holding(dataset).value}'
    )
    params = hparams.HParams(batch_size=_BATCH_SIZE, seed=0)
    for name, value in {
      'augmentation_type': enums.AugmentationType.SIMCLR,
      'apply_whitening': False,
    }.items():
      params = params.replace(f'input_data.preprocessing.{name}', value)
    start_step = dataset.num_train_examples // _BATCH_SIZE // 2
    begun = time.perf_counter()
    with tf.Graph().as_default(), tf1.Session() as session:
      batches = inputs.train_input_fn(dataset, params, tf.float32, start_step)(
        {'batch_size': _BATCH_SIZE}
      )
      iterator = tf1.data.make_initializable_iterator(batches)
      _, labels = iterator.get_next()
      session.run(iterator.initializer)
      session.run(labels)
      print(f'first batch after {time.perf_counter() - begun:.1f} s')
      for _ in range(_NUM_BATCHES):
        session.run(labels)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f'peak resident memory {peak:.2f} GiB after {_NUM_BATCHES} batches')


if __name__ == '__main__':
  main()
