"""What pretraining on some classes is worth for others, and what it costs.

  python -m tests.benchmarks.transfer [--seeds 5]

An encoder is pretrained with SupCon on the digits 0 to 4. Of the digits 5 to 9
it then gets 10 images each, drawn anew for each seed, in three ways:
scripts/finetune.sh, scripts/linear_eval.sh, and the network of finetune.sh
trained from scratch; the first and the last at three learning rates. Accuracy
is that on all test images of 5 to 9.

Last, linear evaluation of the whole training set of 0 to 4 is timed with
embeddings that are computed once and with such that are computed in each step.
With --seeds 0 this is all.
"""

import argparse
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent

_IMAGES_PER_CLASS = 10
_RATES = (0.1, 0.5, 2.0)
_COMMON = {
  'use_tpu': False,
  'mode': 'train_then_eval',
  'input_fn': 'folder',
  'random_flip': False,
  'export_formats': 'saved_model',
  'summary_interval_steps': 10000,
  'save_interval_steps': 10000,
}
# One batch is all there is.
_FEW = {
  'batch_size': 5 * _IMAGES_PER_CLASS,
  'stage_1_epochs': 100,
  'stage_1_warmup_epochs': 5,
}
_SCRIPTS = {
  'pretrain': '"${SUPCON[@]}" "${DIGITS[@]}"',
  'scratch': (
    '"${DIGITS[@]}" "${CROSS_ENTROPY[@]}" --stage_1_weight_decay=1e-4'
    ' --stage_1_learning_rate_decay=COSINE'
  ),
}


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--seeds', type=int, default=5)
  seeds = parser.parse_args().seeds
  with tempfile.TemporaryDirectory() as directory:
    _measure(pathlib.Path(directory), seeds)


def _measure(directory, num_seeds):
  from supcon.data.sources import datasets

  dataset = datasets.load('digits', str(directory / 'tfds'))
  known, accuracies = directory / 'known', {}
  _write(dataset, known, range(5), None)
  for seed in range(num_seeds):
    few = directory / f'few{seed}'
    _write(dataset, few, range(5, 10), np.random.RandomState(seed))
    runs = directory / f'runs{seed}'
    pretrained = runs / 'pretrained'
    flags = {**_COMMON, 'seed': seed}
    _run('pretrain', {**flags, 'data_dir': known, 'model_dir': pretrained})
    flags = {**_network(), **flags, 'data_dir': few}
    found = {}
    scripts = ROOT / 'scripts'
    for name, script, reference, rates in (
      ('finetune', scripts / 'finetune.sh', pretrained, _RATES),
      ('linear_eval', scripts / 'linear_eval.sh', pretrained, (5.0,)),
      ('scratch', 'scratch', None, _RATES),
    ):
      for rate in rates:
        found[f'{name}, rate {rate}'] = _accuracy(
          script,
          {
            **flags,
            **_FEW,
            'model_dir': runs / f'{name}{rate}',
            'stage_1_base_learning_rate': rate,
          },
          reference,
        )
    for name, accuracy in found.items():
      accuracies.setdefault(name, []).append(accuracy)
    print(f'seed {seed}:', {k: f'{v:.2f}' for k, v in found.items()})
  if not num_seeds:
    pretrained = directory / 'pretrained'
    flags = {**_COMMON, 'data_dir': known, 'model_dir': pretrained}
    _run('pretrain', {**flags, 'stage_1_epochs': 6})
  else:
    print(f'\nTop-1 in percent of 5 to 9, {num_seeds} seeds:')
  for name, values in accuracies.items():
    print(
      f'  {name:18} {np.mean(values):6.2f} +- {np.std(values):.2f}  '
      f'({min(values):.2f} to {max(values):.2f})'
    )
  _time_linear_eval(directory, known, pretrained)


def _time_linear_eval(directory, known, pretrained):
  """Prints images per second of linear evaluation, in turns."""
  speeds = {'once': [], 'in each step': []}
  for turn in range(3):
    for name in speeds:
      main = ROOT / 'main.py'
      if name != 'once':
        main = ROOT / 'tests' / 'always_embedding_main.py'
      log = _run(
        ROOT / 'scripts' / 'linear_eval.sh',
        {
          **_network(),
          **_COMMON,
          'mode': 'train',
          'data_dir': known,
          'model_dir': directory / f'timed {name} {turn}',
          'batch_size': 128,
          'stage_1_epochs': 30,
        },
        pretrained,
        main,
      )
      speeds[name].append(float(re.findall(r'(\d+) images/s', log)[-1]))
  medians = {name: np.median(values) for name, values in speeds.items()}
  print('\nLinear evaluation, images/s with embeddings that are computed')
  for name, value in medians.items():
    print(f'  {name:14} {value:8.0f}  of {speeds[name]}')
  print(f'  ratio          {medians["once"] / medians["in each step"]:8.1f}')


def _network():
  """Returns the flags of DIGITS that say what the network sees and is."""
  listed = subprocess.run(
    ['bash', '-c', 'source scripts/configs.sh; printf "%s\n" "${DIGITS[@]}"'],
    cwd=ROOT,
    check=True,
    capture_output=True,
    text=True,
  ).stdout.split()
  flags = dict(flag[2:].split('=', 1) for flag in listed)
  return {
    name: value
    for name, value in flags.items()
    if not name.startswith('stage_') and name != 'input_fn'
  }


def _write(dataset, directory, classes, random):
  """Writes images of some classes, a folder each.

  Args:
    dataset: The digits.
    directory: Becomes the data_dir.
    classes: Which digits.
    random: Draws the few training images; None takes all.
  """
  for split, is_train in (('train', True), ('val', False)):
    by_class = {label: [] for label in classes}
    for encoded, label in dataset.records(is_train).as_numpy_iterator():
      if label in by_class:
        by_class[label].append(encoded)
    for label, images in by_class.items():
      if is_train and random:
        chosen = random.permutation(len(images))[:_IMAGES_PER_CLASS]
        images = [images[i] for i in chosen]
      folder = directory / split / str(label)
      folder.mkdir(parents=True)
      for number, encoded in enumerate(images):
        (folder / f'{number}.png').write_bytes(encoded)


def _accuracy(script, flags, reference=None):
  _run(script, flags, reference)
  result = json.loads((flags['model_dir'] / 'result.json').read_text())
  return 100 * result['metrics']['top_1_accuracy']


def _run(script, flags, reference=None, main=None):
  """Runs a script, or the groups of flags of that name; returns the log."""
  arguments = [f'--{name}={value}' for name, value in flags.items()]
  environment = {**os.environ, 'PYTHON': sys.executable}
  if script in _SCRIPTS:
    text = f'source scripts/configs.sh; run_main {_SCRIPTS[script]} "$@"'
    command = ['bash', '-c', text, 'bash', *arguments]
  else:
    command = [str(script), str(reference), *arguments]
  if main:
    text = f'shift; exec {sys.executable} {main} "$@"'
    environment['PYTHON'] = str(flags['model_dir']) + '.sh'
    pathlib.Path(environment['PYTHON']).write_text(f'#!/bin/bash\n{text}\n')
    os.chmod(environment['PYTHON'], 0o755)
  done = subprocess.run(
    command, cwd=ROOT, env=environment, capture_output=True, text=True
  )
  if done.returncode:
    raise SystemExit(done.stderr)
  return done.stderr


if __name__ == '__main__':
  main()
