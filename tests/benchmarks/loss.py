"""Times the contrastive loss, forward and backward, against others.

  python tests/benchmarks/loss.py [--batch B ...] [--threads N] [--only NAME]

Baselines:

  products   the three matrix products that no implementation can do without:
             the similarities, and their gradients to anchors and contrasts
  one tile   our loss with all anchors in one tile, a dense matrix of all pairs
  tiles      our loss with tiles of 128 anchors, whose slopes are computed again
             for the backward pass, as for very large batches
  textbook   the equations as usually written, in TensorFlow
  pytorch    the same in PyTorch
  metric learning
             SupConLoss of pytorch-metric-learning

All run in one process, in turns, so that a busy machine slows all; the figures
are medians, and the ratios are what to compare. With --peaks, the peak memory
stands beside them: that of a process of its own, above what it held before
(Linux only). Loss and gradient of moderate batches are compared with those of
float64, as relative errors.
"""

import argparse
import importlib.util
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
_FORCED_TILE = 128
# A float64 reference beyond would take too much memory.
_LARGEST_REFERENCE = 2048


def textbook_loss(features, labels):
  """The equations as usually written, differentiated.

  Labels compared in pairs, float masks over all pairs of views,
  log-probabilities of all pairs, automatic differentiation.
  """
  z = tf.concat(tf.unstack(features, axis=1), axis=0)
  is_alike = tf.cast(tf.equal(labels[:, None], labels[None]), z.dtype)
  is_alike = tf.tile(is_alike, [_VIEWS] * 2)
  is_other = 1 - tf.eye(z.shape[0], dtype=z.dtype)
  is_positive = is_alike * is_other
  logits = tf.matmul(z, z, transpose_b=True) / _TEMPERATURE
  logits -= tf.stop_gradient(tf.reduce_max(logits, axis=1, keepdims=True))
  total = tf.reduce_sum(tf.exp(logits) * is_other, axis=1, keepdims=True)
  log_ratio = logits - tf.math.log(total)
  loss = -tf.reduce_sum(is_positive * log_ratio, axis=1)
  loss *= _TEMPERATURE / tf.reduce_sum(is_positive, axis=1)
  return tf.reduce_mean(tf.reshape(loss, [_VIEWS, -1]), axis=0)


def pytorch_loss(torch, features, labels):
  """The same in PyTorch."""
  z = torch.cat(torch.unbind(features, dim=1), dim=0)
  is_alike = (labels[:, None] == labels[None]).float().repeat(_VIEWS, _VIEWS)
  is_other = 1 - torch.eye(len(z))
  is_positive = is_alike * is_other
  logits = z @ z.T / _TEMPERATURE
  logits = logits - logits.max(dim=1, keepdim=True).values.detach()
  total = (torch.exp(logits) * is_other).sum(dim=1, keepdim=True)
  log_ratio = logits - torch.log(total)
  loss = -(is_positive * log_ratio).sum(dim=1) / is_positive.sum(dim=1)
  return _TEMPERATURE * loss.mean()


def _of_tensorflow(loss_of):
  """Returns a maker of steps: features, labels -> function, see `_STEPS`."""

  def make(features, labels):
    @tf.function
    def step(features, labels):
      loss = tf.reduce_mean(loss_of(features, labels))
      return loss, tf.gradients(loss, features)[0]

    features, labels = tf.constant(features), tf.constant(labels)
    return lambda: [x.numpy() for x in step(features, labels)]

  return make


def _ours(tile_size):
  return _of_tensorflow(
    lambda features, labels: losses.contrastive_loss(
      features,
      labels,
      temperature=_TEMPERATURE,
      tile_size=tile_size(features.shape[0] * _VIEWS),
    )
  )


def _products(features, labels):
  del labels
  z = tf.reshape(tf.constant(features), [-1, _DIMS])

  @tf.function
  def step(z):
    similarities = tf.matmul(z, z, transpose_b=True)
    return (
      tf.matmul(similarities, z),
      tf.matmul(similarities, z, transpose_a=True),
    )

  return lambda: [x.numpy() for x in step(z)]


def _of_pytorch(loss_of):
  def make(features, labels):
    import torch

    torch.set_num_threads(
      tf.config.threading.get_intra_op_parallelism_threads()
    )
    features = torch.tensor(features, requires_grad=True)
    labels = torch.tensor(labels)

    def step():
      features.grad = None
      loss = loss_of(torch, features, labels)
      loss.backward()
      return loss.item(), features.grad.numpy()

    return step

  return make


def _metric_learning_loss(torch, features, labels):
  from pytorch_metric_learning import losses as theirs

  z = torch.cat(torch.unbind(features, dim=1), dim=0)
  loss = theirs.SupConLoss(temperature=_TEMPERATURE)
  return _TEMPERATURE * loss(z, labels.repeat(_VIEWS))


# {name: function of features [batch, views, dims] and class ids [batch] that
# returns a function that returns the mean loss and its gradient}.
_STEPS = {
  'ours': _ours(lambda anchors: None),
  'products': _products,
  'one tile': _ours(lambda anchors: anchors),
  'tiles': _ours(lambda anchors: _FORCED_TILE),
  'textbook': _of_tensorflow(textbook_loss),
  'pytorch': _of_pytorch(pytorch_loss),
  'metric learning': _of_pytorch(_metric_learning_loss),
}
_NEEDS = {'pytorch': 'torch', 'metric learning': 'pytorch_metric_learning'}


def _batch(size):
  random = np.random.RandomState(0)
  features = random.randn(size, _VIEWS, _DIMS)
  features /= np.linalg.norm(features, axis=-1, keepdims=True)
  return features.astype(np.float32), random.randint(0, _CLASSES, size)


def print_times(batch, names, repeats, with_peaks):
  features, labels = _batch(batch)
  steps = {name: _STEPS[name](features, labels) for name in names}
  results = {name: run() for name, run in steps.items() if name != 'products'}
  seconds = {name: [] for name in steps}
  for _ in range(repeats):
    for name, run in steps.items():
      start = time.perf_counter()
      run()
      seconds[name].append(time.perf_counter() - start)
  medians = {name: np.median(each) for name, each in seconds.items()}
  exact = None
  if batch <= _LARGEST_REFERENCE:
    exact = _of_tensorflow(textbook_loss)(features.astype(np.float64), labels)()
  expected = exact or results[names[0]]
  print(f'batch {batch} x {_VIEWS} x {_DIMS}')
  for name in names:
    line = f'  {name:15} {1e3 * medians[name]:8.1f} ms'
    line += f', {medians[names[0]] / medians[name]:5.2f} = {names[0]} / this'
    if with_peaks:
      line += f', +{_peak_in_a_process(name, batch)} MiB'
    if name in results:
      errors = [
        np.linalg.norm(found - right) / np.linalg.norm(right)
        for found, right in zip(results[name], expected)
      ]
      # pytorch-metric-learning normalises its inputs again, so its gradient has
      # no part along them.
      compared = errors[: 1 if name == 'metric learning' else 2]
      assert max(compared) < 1e-4, (name, errors)
      if exact:
        line += f', errors {errors[0]:.1e}, {errors[1]:.1e}'
    print(line, flush=True)


def _peak_in_a_process(name, batch):
  return subprocess.run(
    [sys.executable, __file__, '--peak_of', name, '--batch', str(batch)],
    check=True,
    stdout=subprocess.PIPE,
    text=True,
  ).stdout.strip()


def print_peak(name, batch):
  def peak_mib():
    # Not getrusage: its figure is inherited from the parent process.
    status = pathlib.Path('/proc/self/status').read_text()
    return int(status.split('VmHWM:')[1].split()[0]) / 1024

  _STEPS[name](*_batch(8))()  # The libraries' own memory.
  arrays = _batch(batch)
  before = peak_mib()
  _STEPS[name](*arrays)()
  print(f'{peak_mib() - before:.0f}')


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--batch', type=int, nargs='+', default=[256, 1024, 2048])
  parser.add_argument('--threads', type=int, default=os.cpu_count())
  parser.add_argument('--repeats', type=int, default=7)
  parser.add_argument('--only', choices=_STEPS, nargs='+', default=[*_STEPS])
  parser.add_argument('--peaks', action='store_true', help='Measure memory.')
  parser.add_argument('--peak_of', choices=_STEPS, help='Print only its MiB.')
  arguments = parser.parse_args()
  tf.config.threading.set_intra_op_parallelism_threads(arguments.threads)
  tf.config.threading.set_inter_op_parallelism_threads(arguments.threads)
  names = arguments.only
  for name, module in _NEEDS.items():
    if name in names and not importlib.util.find_spec(module):
      print(f'SKIPPED: {name}, because {module} is not installed')
      names = [each for each in names if each != name]
  for batch in arguments.batch:
    if arguments.peak_of:
      print_peak(arguments.peak_of, batch)
    else:
      print_times(batch, names, arguments.repeats, arguments.peaks)


if __name__ == '__main__':
  main()
