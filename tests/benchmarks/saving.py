"""What saving costs of the time of training.

  python -m tests.benchmarks.saving [--steps 3000] [--large_steps 24]

Trains as scripts/quickstart.sh does, with the default --save_interval_steps,
and times each save in that same run: what the session waits for, with the look
for NaN, the lock and status.json. Then ResNet-50 on images of 32 pixels, for a
few steps with a save after each eighth; from its seconds per step and per save
follows what the default interval would cost. Medians; the baseline is the time
of the training of which the saves are a part.
"""

import argparse
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

import tensorflow as tf  # noqa: E402

import main as main_py  # noqa: E402
from supcon.config import run_options  # noqa: E402

_Saver = tf.compat.v1.train.CheckpointSaverHook
_save = _Saver._save  # pylint: disable=protected-access
_EXAMPLES, _BATCH_SIZE = 1437, 128  # Of the digits.
_INTERVAL = run_options.RunOptions.save_interval_steps


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--steps', type=int, default=3000)
  parser.add_argument('--large_steps', type=int, default=24)
  options = parser.parse_args()
  _report('scripts/quickstart.sh', _train(options.steps, _INTERVAL), exact=True)
  large = {
    'resnet_depth': 50,
    'resnet_width': 1,
    'image_size': 32,
    'batch_size': 32,
  }
  _report('ResNet-50, 32 px, batch 32', _train(options.large_steps, 8, **large))


def _train(steps, interval, **changes):
  """Returns [(when a save began, when it ended, step)]."""
  saves = []

  def timed(self, session, step):
    begun = time.monotonic()
    result = _save(self, session, step)
    saves.append((begun, time.monotonic(), int(step)))
    return result

  _Saver._save = timed  # pylint: disable=protected-access
  arguments = subprocess.run(
    [
      'bash',
      '-c',
      'source scripts/configs.sh; printf "%s\\n" "${SUPCON[@]}" "${DIGITS[@]}"',
    ],
    cwd=ROOT,
    check=True,
    capture_output=True,
    text=True,
  ).stdout.split()
  batch_size = changes.get('batch_size', _BATCH_SIZE)
  with tempfile.TemporaryDirectory() as directory:
    flags = {
      'mode': 'train',
      'verbosity': -1,
      'use_tpu': False,
      'data_dir': f'{directory}/data',
      'model_dir': f'{directory}/model',
      'save_interval_steps': interval,
      'stage_1_warmup_epochs': 0,
      'stage_2_epochs': 0,
      'stage_1_epochs': steps * batch_size // _EXAMPLES + 1,
      'batch_size': batch_size,
      **changes,
    }
    arguments += [f'--{name}={value}' for name, value in flags.items()]
    for name in main_py.FLAGS:
      main_py.FLAGS[name].unparse()
    main_py.FLAGS(['main.py', *arguments])
    code = main_py.main(['main.py'])
    assert not code, code
  return saves


def _report(name, saves, exact=False):
  (_, begun, first), *others = saves
  seconds = statistics.median(end - start for start, end, _ in others)
  total = others[-1][1] - begun
  saving = sum(end - start for start, end, _ in others)
  steps = others[-1][2] - first
  per_step = (total - saving) / steps
  share = seconds / (_INTERVAL * per_step + seconds)
  print(
    f'{name}: {steps} steps of {1e3 * per_step:.2f} ms, {len(others)} saves of '
    f'{1e3 * seconds:.0f} ms (median)'
  )
  if exact:
    print(f'  saving took {saving / total:.2%} of the {total:.1f} s')
  print(f'  at one save in {_INTERVAL} steps: {share:.2%}')
  sys.stdout.flush()


if __name__ == '__main__':
  main()
