"""Times a training step with fused batch norm against one without.

  python tests/benchmarks/train_step.py

ResNet-50 with the CIFAR stem, 32 samples in two views of 32x32: forward,
contrastive loss, backward, momentum, moving statistics. Both graphs live in one
process and take turns, so that a busy machine slows both; the figures are
medians, and the ratio is the one to compare. At least 1.15 is expected on CPU.
"""

import argparse
import os
import pathlib
import sys
import time
from unittest import mock

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402

from supcon import losses  # noqa: E402
from supcon.config import hparams  # noqa: E402
from supcon.models import contrastive  # noqa: E402
from supcon.models import layers  # noqa: E402

tf1 = tf.compat.v1

_VIEWS, _IMAGE_SIZE, _CLASSES = 2, 32, 10


class UnfusedBatchNorm(layers.BatchNorm):
  """The stated baseline: moments, then normalisation, as separate ops."""

  def forward(self, x, training):
    mean, variance = self._moving_mean, self._moving_variance
    if training:
      mean, variance = tf.nn.moments(x, list(range(x.shape.rank - 1)))
      self.record(mean, variance)
    return tf.nn.batch_normalization(
      x, mean, variance, self._beta, self._gamma, 1e-5
    )


_NORMS = {'fused': layers.BatchNorm, 'unfused': UnfusedBatchNorm}


class Step:
  """One training step, in a graph and a session of its own."""

  def __init__(self, norm, depth, batch):
    random = np.random.RandomState(0)
    shape = [batch, _IMAGE_SIZE, _IMAGE_SIZE, 3 * _VIEWS]
    images = random.uniform(-1, 1, shape).astype(np.float32)
    labels = np.eye(_CLASSES, dtype=np.float32)[np.arange(batch) % _CLASSES]
    with tf.Graph().as_default() as graph:
      tf1.set_random_seed(0)
      with mock.patch.object(layers, 'BatchNorm', norm):
        model = contrastive.ContrastiveModel(
          hparams.Architecture(
            encoder_depth=depth,
            first_conv_kernel_size=3,
            first_conv_stride=1,
            use_initial_max_pool=False,
          ),
          _CLASSES,
        )
      # Variables hold the batch: constants would be folded into the graph.
      images = tf1.get_variable('images', initializer=images, trainable=False)
      outputs = model(images.read_value(), training=True)
      loss = tf.reduce_mean(
        losses.contrastive_loss(outputs.projection, labels, 0.1)
      )
      updates = layers.move_averages(outputs.batch_statistics)
      with tf.control_dependencies(updates):
        train = tf1.train.MomentumOptimizer(0.01, 0.9).minimize(loss)
      with tf.control_dependencies([train]):
        self._loss = tf.identity(loss)
      self._session = tf1.Session(graph=graph)
      self._session.run(tf1.global_variables_initializer())

  def __call__(self):
    """Returns the loss before the step, and the seconds that it took."""
    start = time.perf_counter()
    loss = self._session.run(self._loss)
    return loss, time.perf_counter() - start


def main():
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--depth', type=int, default=50)
  parser.add_argument('--batch', type=int, default=32)
  parser.add_argument('--repeats', type=int, default=7)
  args = parser.parse_args()

  steps = {
    name: Step(norm, args.depth, args.batch) for name, norm in _NORMS.items()
  }
  seconds = {name: [] for name in steps}
  for repeat in range(args.repeats + 1):
    for name, step in steps.items():
      loss, duration = step()
      print(f'  {name:8} loss {loss:.5f}  {duration:.2f} s', flush=True)
      if repeat:  # The first step compiles and allocates.
        seconds[name].append(duration)
  for name, times in seconds.items():
    rate = args.batch / np.median(times)
    print(f'{name:8} {rate:6.2f} images/s (of {_VIEWS} views each)')
  # Turn by turn, for the machine may be busier in one than in the next.
  ratios = np.divide(seconds['unfused'], seconds['fused'])
  print(f'ratio    {np.median(ratios):6.2f}')


if __name__ == '__main__':
  main()
