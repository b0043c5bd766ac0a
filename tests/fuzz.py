"""Random flags, damaged checkpoints and damaged data against main.py.

  python -m tests.fuzz [--flags 2000] [--checkpoints 500] [--data 500] \
    [--seed 0] [--processes 2]

Whatever is thrown at it, main.py has to end within a minute, with exit code 0
or with one line that says what is wrong; no traceback may reach the user, and
nothing may be written outside the model_dir. Networks are of two convolutions
and runs of a few steps: what is tried is all that surrounds them.

Prints what was tried and what came of it; exit code 1 if that did not hold.
"""

import argparse
import collections
import contextlib
import json
import os
import pathlib
import queue
import random
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time

import hparams_flags
from supcon import hparams
from supcon import run_options

_ROOT = pathlib.Path(__file__).resolve().parent.parent
_TIMEOUT_SECONDS = 60
_MOST_RUNS = 50

# Of a user who did nothing wrong.
_BASE = {
  'use_tpu': False,
  'input_fn': 'digits',
  'data_dir': 'data',
  'image_size': 8,
  'eval_crop_method': 'CROP_THEN_RESIZE',
  'crop_padding': 0,
  'num_images': 24,
  'num_eval_images': 12,
  'batch_size': 8,
  'eval_batch_size': 8,
  'projection_head_layers': '8',
  'stage_1_epochs': 1,
  'stage_1_warmup_epochs': 0,
  'stage_2_epochs': 0,
  'stage_2_warmup_epochs': 0,
  'resnet_depth': 18,
  # Whoever waits for a checkpoint that nobody will write waits for ever.
  'eval_timeout_secs': 1,
  'eval_interval_secs': 0,
  # What takes long to build, and is tried where a flag asks for it.
  'export_formats': 'saved_model',
  'augmentation_type': 'IDENTITY',
  'blur_probability': 0,
  'compile_augmentation': False,
}
# Ends within the minute, whatever else is asked for.
_WORDS = (
  '',
  ' ',
  '0',
  '1',
  '-1',
  '3',
  '0.5',
  '1e-9',
  '1e30',
  'nan',
  'inf',
  '-inf',
  'True',
  'no',
  'None',
  'a',
  'data',
  '..',
  '/',
  '/nowhere/at/all',
  'gs://no-such-bucket-of-ours/x',
  'x' * 5000,
  '\N{SNOWMAN}',
  '%s%n{}',
  '1,2,3',
  ',',
  '[1]',
  'train[:50%]',
  'test[:3]',
  'folder',
  'tfds:mnist',
  'tfds:../../x',
  '$(id)',
  '--help',
)
# Nothing outside of runs/ is to change.
_DIRECTORIES = (
  '',
  '/proc/nothing',
  '/dev/null',
  '/dev/null/model',
  'gs://no-such-bucket-of-ours/x',
  'runs/' + 'x' * 5000,
  'runs/\N{SNOWMAN} %s%n{}',
)
# Would take longer than a fuzzer has, for good reasons: downloads, and runs
# that were asked for.
_LEFT_ALONE = (
  'tpu_name',
  'master',
  'gcp_project',
  'tpu_zone',
  'use_tpu',
  'has_summary_interval',  # It is no flag.
)

# Runs main.py for each line of arguments, as a user would see it.
_WORKER = """
import json, os, sys, tempfile, traceback
sys.path.insert(0, %r)
os.environ['TF_CPP_MIN_LOG_LEVEL'] = '3'
from absl import app
from supcon.models import resnet
from tests.tpu import cases
resnet.Encoder = cases.SmallEncoder
import main

def run(arguments):
  for name in main.FLAGS:
    main.FLAGS[name].unparse()
  try:
    app.run(main.main, ['main.py', *arguments], main._parse_flags)
  except SystemExit as end:
    return end.code or 0
  except BaseException:
    traceback.print_exc()
    return 1

answers = os.fdopen(os.dup(1), 'w')
for line in sys.stdin:
  with tempfile.TemporaryFile('w+', errors='replace') as out:
    os.dup2(out.fileno(), 1)
    os.dup2(out.fileno(), 2)
    code = run(json.loads(line))
    sys.stdout.flush()
    sys.stderr.flush()
    out.seek(0)
    print(json.dumps([code, out.read()]), file=answers, flush=True)
"""


class _Worker:
  """A process that runs one main.py after the other.

  But not too many: TensorFlow keeps something of each.
  """

  def __init__(self, directory):
    self._directory = directory
    self._process = None
    self._num_runs = 0

  def run(self, arguments):
    """Returns (exit code, what it printed); code None if it did not end."""
    if self._process is None or self._process.poll() is not None:
      self._start()
    self._num_runs += 1
    if self._num_runs > _MOST_RUNS:
      self.stop()
      self._start()
    try:
      self._process.stdin.write(json.dumps(arguments) + '\n')
      self._process.stdin.flush()
      line = self._lines.get(timeout=_TIMEOUT_SECONDS)
    except (OSError, queue.Empty):
      self.stop()
      return None, f'no end within {_TIMEOUT_SECONDS} s'
    if not line:
      code = self._process.wait()
      self.stop()
      return code, f'the process is gone, exit code {code}'
    return json.loads(line)

  def _start(self):
    self._process = subprocess.Popen(
      [sys.executable, '-c', _WORKER % str(_ROOT)],
      cwd=self._directory,
      env={**os.environ, 'HOME': str(self._directory / 'home')},
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=subprocess.DEVNULL,
      text=True,
    )
    self._lines = queue.Queue()
    process, lines = self._process, self._lines

    def read():
      for line in process.stdout:
        lines.put(line)
      lines.put('')

    threading.Thread(target=read, daemon=True).start()
    # TensorFlow's import is not what is timed.
    self._process.stdin.write('["--no_such_flag"]\n')
    self._process.stdin.flush()
    self._lines.get(timeout=600)

  def stop(self):
    if self._process:
      self._process.kill()
      self._process.wait()
      self._process = None
      self._num_runs = 0


# --- What is tried ------------------------------------------------------------


def _random_flags(rng, number, directory):
  """Returns the arguments of a run with a few flags that are anything."""
  flags = {
    **_BASE,
    'mode': rng.choice(run_options.MODES),
    'model_dir': f'runs/flags{number}',
  }
  if flags['mode'] in ('eval', 'export', 'embed', 'predict', 'status'):
    shutil.copytree(directory / 'trained', directory / flags['model_dir'])
  flags['output'] = f'runs/flags{number}.npz' if rng.random() < 0.8 else ''
  if flags['mode'] == 'predict':
    flags['images'] = rng.choice(('data', 'pictures', 'nothing'))
  table = hparams_flags.hparams_flags()
  names = [
    name
    for name in [*table, *vars(run_options.RunOptions())]
    if name not in _LEFT_ALONE and name != 'mode'
  ]
  for name in rng.sample(names, rng.choice((0, 1, 1, 1, 2, 2, 3, 5))):
    if name in ('model_dir', 'data_dir'):
      flags[name] = rng.choice((*_DIRECTORIES, flags[name]))
    else:
      flags[name] = _value(rng, name, table)
  if rng.random() < 0.05:
    flags['hparams'] = rng.choice((*_WORDS, 'bs=8,d=18', 'bs=8,ea=r9'))
  arguments = [f'--{name}={value}' for name, value in flags.items()]
  if rng.random() < 0.05:
    arguments.insert(rng.randrange(len(arguments)), rng.choice(_WORDS))
  return arguments


def _value(rng, name, table):
  if rng.random() < 0.15:
    return rng.choice(_WORDS)
  if name not in table:
    default = getattr(run_options.RunOptions(), name)
  else:
    default = hparams.HParams().get(table[name][0][0])
  if isinstance(default, bool):
    return rng.choice(('True', 'False'))
  if hasattr(default, 'name'):
    return rng.choice([member.name for member in type(default)])
  if name.endswith('epochs') or name.endswith('secs'):
    return rng.choice((0, 1, 2, -1, 0.5))
  if name in ('image_size', 'num_views', 'first_conv_stride', 'resnet_width'):
    return rng.choice((1, 2, 3, 0.5, 8, 9, 0))
  if name == 'projection_head_layers':
    return rng.choice(('4', '4,4', '0', '1'))
  if isinstance(default, int):
    return rng.choice((0, 1, 2, 5, 7, 8, 16, 24, 25, -3, 10**6))
  if isinstance(default, float):
    return rng.choice((0, 0.1, 0.5, 1, 2, 1e6, -1))
  return rng.choice(_WORDS)


def _damaged_checkpoint(rng, number, directory):
  """Damages a copy of a training directory; returns the arguments."""
  model_dir = directory / 'runs' / f'checkpoint{number}'
  shutil.copytree(directory / 'trained', model_dir)
  files = sorted(
    path
    for path in model_dir.iterdir()
    if path.name.startswith(('model.ckpt', 'checkpoint', 'hparams', 'labels'))
  )
  for path in rng.sample(files, rng.randint(1, 3)):
    _damage(rng, path)
  mode = rng.choice(('train', 'eval', 'train_then_eval', 'export', 'predict'))
  flags = {**_BASE, 'mode': mode, 'model_dir': f'runs/checkpoint{number}'}
  if mode == 'predict':
    flags['images'] = 'pictures'
  if rng.random() < 0.3:
    flags.update(
      mode='train',
      model_dir=f'runs/warm{number}',
      reference_ckpt=f'runs/checkpoint{number}',
      warm_start_encoder=True,
    )
  elif mode.startswith('train'):
    flags['stage_2_epochs'] = 2
  return [f'--{name}={value}' for name, value in flags.items()]


def _damaged_data(rng, number, directory):
  """Damages a copy of a data set; returns the arguments."""
  is_folder = rng.random() < 0.5
  data_dir = directory / 'runs' / f'data{number}'
  shutil.copytree(directory / ('pictures' if is_folder else 'data'), data_dir)
  files = sorted(path for path in data_dir.rglob('*') if path.is_file())
  for path in rng.sample(files, min(len(files), rng.randint(1, 4))):
    _damage(rng, path)
  flags = {
    **_BASE,
    'mode': rng.choice(('train', 'train_then_eval', 'eval', 'embed')),
    'data_dir': f'runs/data{number}',
    'model_dir': f'runs/of_data{number}',
    'skip_bad_images': rng.random() < 0.5,
    'num_images': 0,
    'num_eval_images': 0,
    'batch_size': 4,
  }
  if is_folder:
    flags['input_fn'] = 'folder'
  else:
    flags.update(batch_size=256, eval_batch_size=256)
  if flags['mode'] in ('eval', 'embed'):
    shutil.copytree(directory / 'trained', directory / flags['model_dir'])
    flags['output'] = f'runs/data{number}.npz'
  if rng.random() < 0.3:
    flags['measure_whitening'] = True
  return [f'--{name}={value}' for name, value in flags.items()]


def _damage(rng, path):
  """Does something to a file that disks, networks and people do."""
  data = path.read_bytes()
  kind = rng.choice(('cut', 'zero', 'flip', 'remove', 'garbage', 'empty'))
  if kind == 'cut':
    data = data[: rng.randrange(len(data) + 1)]
  elif kind == 'zero':
    begin = rng.randrange(len(data) + 1)
    data = data[:begin] + bytes(len(data) - begin)
  elif kind == 'flip':
    changed = bytearray(data)
    for _ in range(rng.randint(1, 20)):
      if changed:
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    data = bytes(changed)
  elif kind == 'garbage':
    data = rng.randbytes(rng.randrange(2000))
  elif kind == 'empty':
    data = b''
  if kind == 'remove':
    path.unlink()
  else:
    path.write_bytes(data)


_KINDS = {
  'flags': _random_flags,
  'checkpoints': _damaged_checkpoint,
  'data': _damaged_data,
}


# --- What has to hold ---------------------------------------------------------


def _verdict(code, text):
  """Returns what is wrong with how a run ended; '' if nothing is."""
  if code is None:
    return 'hangs'
  if 'Traceback' in text:
    return 'traceback'
  if code not in (0, 1, 2, 10, 11, 69, 75):
    return f'exit code {code}'
  lines = text.splitlines()
  if '--help' in text or 'Try --help' in text or '--[no]' in text:
    return ''  # Help was asked for.
  if code in (1, 2) and not any(
    line.startswith(('main.py: error: ', 'main.py: stopped: ', 'failed', 'no '))
    for line in lines
  ):
    return 'no line that says why'
  return ''


def _outside(directory):
  """Returns {path: (time, size)} of all that no run may change."""
  found = {}
  for top, _, names in os.walk(directory):
    path = pathlib.Path(top)
    if path.relative_to(directory).parts[:1] in (('runs',), ('home',)):
      continue
    for name in names:
      status = (path / name).lstat()
      found[str(path / name)] = (status.st_mtime_ns, status.st_size)
  return found


def _prepare(directory, worker):
  """Makes what the runs begin with: data, pictures, a trained model."""
  (directory / 'home').mkdir()
  (directory / 'runs').mkdir()
  train = {
    **_BASE,
    'mode': 'train_then_eval',
    'model_dir': 'trained',
    'save_interval_steps': 2,
  }
  code, text = worker.run([f'--{n}={v}' for n, v in train.items()])
  assert code == 0, text
  from PIL import Image

  rng = random.Random(0)
  for split, count in (('train', 6), ('val', 3)):
    for label in ('a', 'b'):
      folder = directory / 'pictures' / split / label
      folder.mkdir(parents=True)
      for number in range(count):
        kind = ('png', 'jpeg', 'bmp', 'gif')[number % 4]
        image = Image.frombytes('RGB', (9, 12), rng.randbytes(9 * 12 * 3))
        image.save(folder / f'{number}.{kind}')


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  for kind, count in (('flags', 2000), ('checkpoints', 500), ('data', 500)):
    parser.add_argument(f'--{kind}', type=int, default=count)
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--processes', type=int, default=2)
  options = parser.parse_args()
  tasks = queue.Queue()
  for kind in _KINDS:
    for number in range(getattr(options, kind)):
      tasks.put((kind, number))
  total = tasks.qsize()
  with tempfile.TemporaryDirectory() as name:
    directory = pathlib.Path(name)
    first = _Worker(directory)
    _prepare(directory, first)
    before = _outside(directory)
    codes, failures = collections.Counter(), []
    begun = time.monotonic()

    def work(worker):
      while True:
        try:
          kind, number = tasks.get_nowait()
        except queue.Empty:
          worker.stop()
          return
        rng = random.Random(f'{options.seed} {kind} {number}')
        arguments = _KINDS[kind](rng, number, directory)
        code, text = worker.run(arguments)
        codes[kind, code] += 1
        if verdict := _verdict(code, text):
          failures.append(verdict)
          said = re.sub(r'x{99,}', 'xx...', f'{arguments}\n{text}')
          print(f'{verdict}: {kind} {number}: {said[-4000:]}\n', flush=True)
        for path in (directory / 'runs').iterdir():
          if not re.fullmatch(rf'[a-z_]+{number}(\..*)?', path.name):
            continue
          with contextlib.suppress(OSError):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        done = sum(codes.values())
        if done % 100 == 0:
          print(f'{done} of {total}, {time.monotonic() - begun:.0f} s')
          sys.stdout.flush()

    others = [_Worker(directory) for _ in range(options.processes - 1)]
    threads = [threading.Thread(target=work, args=[w]) for w in others]
    for thread in threads:
      thread.start()
    work(first)
    for thread in threads:
      thread.join()
    after = _outside(directory)
    changed = [p for p in {*before, *after} if before.get(p) != after.get(p)]
    if changed:
      failures.append('writes elsewhere')
      print(f'changed outside of any model_dir: {sorted(changed)[:20]}')
  print(f'\n{total} runs in {time.monotonic() - begun:.0f} s.')
  for kind in _KINDS:
    ends = {c: n for (k, c), n in sorted(codes.items(), key=str) if k == kind}
    print(f'  {kind:12} exit codes {ends}')
  print(f'  failures: {dict(collections.Counter(failures))}')
  sys.exit(bool(failures))


if __name__ == '__main__':
  main()
