"""Times the contrastive loss, forward and backward, against a textbook's.

  python tests/benchmarks/loss.py

Both run in the same process, in turns, so that a busy machine slows both; the
figures are medians, and the ratio is the one to compare. Peak memory is that of
a process of its own, above what it held before (Linux only).
"""

import argparse
import os
import pathlib
import subprocess
import sys
import time

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

import numpy as np  # pylint: disable=wrong-import-position
import tensorflow as tf  # pylint: disable=wrong-import-position

from supcon import losses  # pylint: disable=wrong-import-position

_VIEWS, _DIMS, _CLASSES, _TEMPERATURE = 2, 128, 100, 0.1
_REPEATS = 15


def textbook_loss(features, labels):
  """The stated baseline: the equations as usually written, differentiated.

  Labels compared by a product of one-hots, float masks over all pairs of views,
  log-probabilities of all pairs, automatic differentiation.
  """
  views = features.shape[1]
  z = tf.concat(tf.unstack(features, axis=1), axis=0)
  is_alike = tf.tile(tf.matmul(labels, labels, transpose_b=True), [views] * 2)
  is_other = 1 - tf.eye(z.shape[0])
  is_positive = is_alike * is_other
  logits = tf.matmul(z, z, transpose_b=True) / _TEMPERATURE
  logits -= tf.stop_gradient(tf.reduce_max(logits, axis=1, keepdims=True))
  total = tf.reduce_sum(tf.exp(logits) * is_other, axis=1, keepdims=True)
  log_ratio = logits - tf.math.log(total)
  loss = -tf.reduce_sum(is_positive * log_ratio, axis=1)
  loss *= _TEMPERATURE / tf.reduce_sum(is_positive, axis=1)
  return tf.reduce_mean(tf.reshape(loss, [views, -1]), axis=0)


def our_loss(features, labels):
  return losses.contrastive_loss(features, labels, temperature=_TEMPERATURE)


_LOSSES = {'ours': our_loss, 'textbook': textbook_loss}


def step(name, batch):
  """Returns a function that computes one mean loss and its gradient."""
  random = np.random.RandomState(0)
  features = random.randn(batch, _VIEWS, _DIMS)
  features /= np.linalg.norm(features, axis=-1, keepdims=True)
  features = tf.constant(features, tf.float32)
  labels = tf.one_hot(random.randint(0, _CLASSES, batch), _CLASSES)

  @tf.function
  def loss_and_gradient(features, labels):
    loss = tf.reduce_mean(_LOSSES[name](features, labels))
    return loss, tf.gradients(loss, features)[0]

  return lambda: [x.numpy() for x in loss_and_gradient(features, labels)]


def print_times(batch):
  steps = {name: step(name, batch) for name in _LOSSES}
  results = [run() for run in steps.values()]
  np.testing.assert_allclose(results[0][0], results[1][0], rtol=1e-5)
  np.testing.assert_allclose(results[0][1], results[1][1], atol=1e-7)
  seconds = {name: [] for name in steps}
  for _ in range(_REPEATS):
    for name, run in steps.items():
      start = time.perf_counter()
      run()
      seconds[name].append(time.perf_counter() - start)
  ours, textbook = (np.median(seconds[name]) for name in _LOSSES)
  peaks = [
    subprocess.run(
      [sys.executable, __file__, '--peak_of', name, '--batch', str(batch)],
      check=True,
      stdout=subprocess.PIPE,
      text=True,
    ).stdout.strip()
    for name in _LOSSES
  ]
  print(
    f'batch {batch:5d} x {_VIEWS} x {_DIMS}: '
    f'ours {1e3 * ours:6.1f} ms, +{peaks[0]} MiB; '
    f'textbook {1e3 * textbook:6.1f} ms, +{peaks[1]} MiB; '
    f'ratio {ours / textbook:.2f}',
    flush=True,
  )


def print_peak(name, batch):
  def peak_mib():
    # Not getrusage: its figure is inherited from the parent process.
    status = pathlib.Path('/proc/self/status').read_text()
    return int(status.split('VmHWM:')[1].split()[0]) / 1024

  step(name, 8)()  # The libraries' own memory.
  before = peak_mib()
  run = step(name, batch)
  for _ in range(3):
    run()
  print(f'{peak_mib() - before:.0f}')


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--batch', type=int, nargs='+', default=[256, 1024, 2048])
  parser.add_argument('--peak_of', choices=_LOSSES, help='Print only its MiB.')
  arguments = parser.parse_args()
  for batch in arguments.batch:
    if arguments.peak_of:
      print_peak(arguments.peak_of, batch)
    else:
      print_times(batch)


if __name__ == '__main__':
  main()
