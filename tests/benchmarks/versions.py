"""Times two TensorFlows against each other.

  python -m tests.benchmarks.versions OTHER_PYTHON

The training step of ResNet-50 with the CIFAR stem (32 samples in two views of
32x32) and the input pipeline (500x375 JPEGs, SIMCLR, two views of 224), in a
process of this interpreter and in one of OTHER_PYTHON, which is the baseline.
Both processes live as long as it takes and do their work in turns, so that a
busy machine slows both. Printed are medians, and the median of the ratios turn
by turn: how many times as fast this one is. At least 0.97 is expected.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import time

import numpy as np

_ROOT = pathlib.Path(__file__).resolve().parents[2]
_BATCH = 32
_INPUT_BATCH = 64
_BATCHES = 6


class _Worker:
  """A process that does one piece of work whenever it is asked."""

  def __init__(self, python):
    self._process = subprocess.Popen(
      [python, '-m', 'tests.benchmarks.versions', '--worker'],
      cwd=_ROOT,
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
    )
    self.version = self._read()

  def __call__(self, work):
    """Returns seconds and seconds of one core, per example."""
    self._process.stdin.write(f'{work}\n')
    self._process.stdin.flush()
    return np.array(self._read())

  def _read(self):
    return json.loads(self._process.stdout.readline())


def _serve():
  """What a worker does: reads names of work, writes what each took."""
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
  from supcon.compute import installation

  installation.load()
  import tensorflow as tf

  from supcon.config import enums
  from supcon.models import layers
  from tests.benchmarks import input as input_lib
  from tests.benchmarks import train_step

  batches = iter(
    input_lib.our_batches(
      input_lib.jpegs(64), enums.AugmentationType.SIMCLR, 224, _INPUT_BATCH
    )
  )
  step = train_step.Step(layers.BatchNorm, 50, _BATCH)

  def read():
    for _ in range(2):  # What was made ahead.
      next(batches)
    start = _now()
    for _ in range(_BATCHES):
      next(batches)
    return (_now() - start) / (_BATCHES * _INPUT_BATCH)

  def train():
    start = _now()
    step()
    return (_now() - start) / _BATCH

  works = {'step': train, 'input': read}
  print(json.dumps(tf.__version__), flush=True)
  for line in sys.stdin:
    print(json.dumps(list(works[line.strip()]())), flush=True)


def _now():
  return np.array([time.perf_counter(), time.process_time()])


def main():
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('other', nargs='?', help='the Python of the baseline')
  parser.add_argument('--turns', type=int, default=9)
  parser.add_argument('--output', help='a .json file')
  parser.add_argument('--worker', action='store_true', help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.worker:
    _serve()
    return
  if not args.other:
    parser.error('name the Python of the other environment')
  ours, theirs = _Worker(sys.executable), _Worker(args.other)
  results = {}
  for work in ('step', 'input'):
    for worker in (ours, theirs):
      worker(work)  # The first one compiles and allocates.
    seconds = []
    for _ in range(args.turns):
      seconds.append([ours(work), theirs(work)])
      print('.', end='', flush=True)
    seconds = np.array(seconds)  # [turns, 2, wall and core]
    rates = 1 / np.median(seconds[:, :, 0], axis=0)
    wall, core = np.median(seconds[:, 1] / seconds[:, 0], axis=0)
    print(
      f'\n{work}: TensorFlow {ours.version} {rates[0]:.1f}, {theirs.version} '
      f'{rates[1]:.1f} images/s; {wall:.2f} times as fast, {core:.2f} in time '
      'of the cores'
    )
    results[work] = {
      'versions': [ours.version, theirs.version],
      'images_per_second': list(rates),
      'ratio': wall,
      'core_ratio': core,
    }
  if args.output:
    pathlib.Path(args.output).write_text(json.dumps(results, indent=2) + '\n')


if __name__ == '__main__':
  main()
