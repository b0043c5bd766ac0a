"""Random flags, damage, restarts, odd names and thin images against main.py.

  python -m tests.fuzz [--flags 2000] [--checkpoints 500] [--data 500] \
    [--restarts 250] [--names 125] [--thin 125] [--seed 0] [--processes 2]

Whatever is thrown at it, main.py has to end within a minute, with exit code 0
or with one line that says what is wrong; no traceback and no character that
steers a terminal may reach the user, and nothing may be written outside the
model_dir. What a run has recorded of its checkpoints changes with a checkpoint
only. Networks are of two convolutions and runs of a few steps: what is tried is
all that surrounds them.

Prints what was tried and what came of it; exit code 1 if that did not hold.
"""

import argparse
import collections
from collections.abc import Callable
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
from typing import NamedTuple
import unicodedata

from supcon.config import enums
from supcon.config import hparams
from supcon.config import run_options

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
  'report_examples': 4,
  'stage_1_epochs': 1,
  'stage_1_warmup_epochs': 0,
  'stage_2_epochs': 0,
  'stage_2_warmup_epochs': 0,
  'resnet_architecture': 'TINY',
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
# Of a run on the pictures of `_prepare`.
_OF_PICTURES = {
  'input_fn': 'folder',
  'data_dir': 'pictures',
  'num_images': 0,
  'num_eval_images': 0,
  'batch_size': 4,
}
_HALFWAY = {'stage_2_epochs': 1}
# What predict and eval are told of a run that is there.
_OF_USE = ('use_tpu', 'mode', 'model_dir', 'images', 'data_dir', 'eval_once')
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
import json, os, sys, tempfile
sys.path.insert(0, %r)
os.environ['TF_CPP_MIN_LOG_LEVEL'] = '3'
from tests import many_mains

answers = os.fdopen(os.dup(1), 'w')
for line in sys.stdin:
  with tempfile.TemporaryFile('w+', errors='replace') as out:
    os.dup2(out.fileno(), 1)
    os.dup2(out.fileno(), 2)
    code = many_mains.run(json.loads(line))
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


class _Try(NamedTuple):
  """One run.

  Attributes:
    arguments: Of main.py.
    check: Returns what is wrong besides after the run, from its exit code and
      what it printed; '' if nothing is.
  """

  arguments: list[str]
  check: Callable[[int, str], str] = lambda code, text: ''


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
  defaults = {
    field.flag: field.value
    for field in (*hparams.FIELDS, *run_options.FIELDS)
    if field.flag not in (*_LEFT_ALONE, 'mode', 'hparams')
  }
  for name in rng.sample([*defaults], rng.choice((0, 1, 1, 1, 2, 2, 3, 5))):
    if name in ('model_dir', 'data_dir'):
      flags[name] = rng.choice((*_DIRECTORIES, flags[name]))
    else:
      flags[name] = _value(rng, name, defaults[name])
  if rng.random() < 0.05:
    flags['hparams'] = rng.choice((*_WORDS, 'bs=8,d=18', 'bs=8,ea=r9'))
  arguments = [f'--{name}={value}' for name, value in flags.items()]
  if rng.random() < 0.05:
    arguments.insert(rng.randrange(len(arguments)), rng.choice(_WORDS))
  return _Try(arguments)


def _value(rng, name, default):
  if rng.random() < 0.15:
    return rng.choice(_WORDS)
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
  return _Try(_to_arguments(flags))


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
  return _Try(_to_arguments(flags))


def _to_arguments(flags):
  return [f'--{name}={value}' for name, value in flags.items()]


# Flags of a restart, and values unlike those of the run.
_CHANGES = {
  'image_size': (6, 9, 12),
  'eval_crop_method': ('RESIZE_THEN_CROP', 'IDENTITY'),
  'crop_padding': (1, 4),
  'apply_whitening': (False,),
  'measure_whitening': (True,),
  'resnet_architecture': ('RESNET_V1',),
  'projection_head_layers': ('4', '8,8'),
  'normalize_embedding': (False,),
  'batch_size': (3, 4, 16),
  'num_images': (11, 16, 20, 0),
  'num_eval_images': (5, 0),
  'stage_1_epochs': (0, 1, 2, 4),
  'stage_2_epochs': (0, 1, 2, 4),
  'stage_1_optimizer': ('ADAM', 'LARS'),
  'stage_1_base_learning_rate': (0.01, 1),
  'stage_2_weight_decay': (0.1,),
  'temperature': (0.5,),
  'use_labels': (False,),
  'seed': (7,),
  'augmentation_type': ('SIMCLR',),
  'train_split': ('train[:50%]', 'test'),
  'eval_split': ('train', 'train[:10%]'),
  'eval_once': (True,),
  'accept_new_plan': (True,),
  'force': (True,),
  'on_nan': ('rollback',),
  'input_fn': ('folder', 'digits'),
}
# What says what the newest checkpoint was trained with.
_FACTS = ('hparams.json', 'labels.txt', 'whitening.json', 'bad_images.json')


def _restart(rng, number, directory):
  """Goes on with a run under other flags, or with other data."""
  model_dir = directory / 'runs' / f'restart{number}'
  origin = rng.choice(('trained', 'halfway', 'of_pictures'))
  shutil.copytree(directory / origin, model_dir)
  flags = {
    **_BASE,
    **(_OF_PICTURES if origin == 'of_pictures' else {}),
    'mode': rng.choice(
      ('train', 'train', 'train_then_eval', 'eval', 'export', 'embed', 'status')
    ),
    'model_dir': f'runs/restart{number}',
    'output': f'runs/restart{number}.npz',
  }
  if origin == 'halfway':
    flags.update(_HALFWAY)
  if origin == 'of_pictures' and rng.random() < 0.7:
    data_dir = directory / 'runs' / f'data{number}'
    shutil.copytree(directory / 'pictures', data_dir)
    flags['data_dir'] = f'runs/data{number}'
    folder = data_dir / rng.choice(('train', 'val'))
    change = rng.choice(('fewer', 'renamed', 'another class', 'no class'))
    if change == 'fewer':
      files = sorted(folder.rglob('*.*'))
      for path in rng.sample(files, rng.randint(1, len(files) - 1)):
        path.unlink()
    elif change == 'renamed':
      (folder / 'a').rename(folder / rng.choice(('z', 'A', 'c')))
    elif change == 'another class':
      shutil.copytree(folder / 'a', folder / 'c')
    else:
      shutil.rmtree(folder / 'b')
  for name in rng.sample(sorted(_CHANGES), rng.choice((0, 1, 1, 2, 3))):
    flags[name] = rng.choice(_CHANGES[name])
  # The digits prepare themselves where they are asked for.
  if flags['input_fn'] == 'digits':
    flags['data_dir'] = 'data'
  elif flags['data_dir'] == 'data':
    flags['data_dir'] = 'pictures'
  before = _recorded(model_dir)

  def check(code, text):
    found = re.findall(r'step (\d+) of (\d+)', text)
    if any(int(step) > int(of) for step, of in found):
      return 'a step beyond the last one'
    after = _recorded(model_dir)
    # A better one of the same data may take its place, but only then.
    if len(after['best']) < len(before['best']):
      return 'a best checkpoint is lost'
    is_trained = after['newest'] != before['newest']
    if not is_trained and not before['newest'] <= after['kept']:
      return 'the newest checkpoint is lost'
    if not is_trained and after['facts'] != before['facts']:
      return 'a fact has changed without a checkpoint'
    return ''

  return _Try(_to_arguments(flags), check)


def _recorded(model_dir):
  """Returns what is recorded in a training directory."""

  def steps_in(directory):
    return {
      path.name.removesuffix('.index')
      for path in (model_dir / directory).glob('model.ckpt-*.index')
    }

  newest = set()
  with contextlib.suppress(FileNotFoundError):
    newest = set(
      re.findall(
        r'^model_checkpoint_path: ".*?([^/"]+)"',
        (model_dir / 'checkpoint').read_text(),
      )
    )
  kept = steps_in('.') | steps_in('best')
  for directory in model_dir.glob('former_plans*'):
    kept |= {
      path.name.removesuffix('.index') for path in directory.rglob('*.index')
    }
  return {
    'newest': newest,
    'kept': kept,
    'best': {
      (path.parent.name, name)
      for path in model_dir.glob('best*/best.json')
      for name in steps_in(path.parent.name)
    },
    'facts': {
      name: (model_dir / name).read_bytes()
      for name in _FACTS
      if (model_dir / name).exists()
    },
  }


_ODD_NAMES = (
  'lr=[0.1]',
  'a b',
  "it's",
  '"quoted"',
  'a,b',
  'a=b',
  '-dash',
  '.hidden',
  '~',
  '~root',
  'back\\slash',
  'star*',
  'what?',
  'new\nline',
  'carriage\rreturn',
  'escape\x1b[31m',
  'caf\u00e9',
  'cafe\u0301',
  '\u202eright to left',
  'x' * 200,
  '\N{SNOWMAN}',
  '%s',
  '{}',
  '$(id)',
  'not utf-8 \udcff',
)


def _odd_names(rng, number, directory):
  """Has classes, files or directories of odd names."""
  data_dir = directory / 'runs' / f'data{number}'
  shutil.copytree(directory / 'pictures', data_dir)
  name = rng.choice(_ODD_NAMES)
  flags = {
    **_BASE,
    **_OF_PICTURES,
    'data_dir': f'runs/data{number}',
    'mode': rng.choice(('train', 'train_then_eval')),
    'model_dir': f'runs/names{number}',
  }
  where = rng.choice(('class', 'class', 'file', 'other file', 'model_dir'))
  if where == 'class':
    for split in ('train', 'val'):
      (data_dir / split / 'a').rename(data_dir / split / name)
  elif where == 'file':
    path = data_dir / 'train' / 'a' / '0.png'
    path.rename(path.with_name(f'{name}.png'))
  elif where == 'other file':
    ending = rng.choice(('.webp', '.tif', '.txt', '', '.jfif'))
    (data_dir / 'train' / 'a' / f'{name}{ending}').write_bytes(b'nothing')
  else:
    flags['model_dir'] = f'runs/names{number}/{name}'

  def check(code, text):
    odd = {c for c in text if unicodedata.category(c) == 'Cc'} - {'\n'}
    return f'prints {sorted(odd)}' if odd else ''

  return _Try(_to_arguments(flags), check)


def _thin_images(rng, number, directory):
  """Has images that are far longer than wide, or of one pixel."""
  from PIL import Image

  data_dir = directory / 'runs' / f'data{number}'
  shutil.copytree(directory / 'pictures', data_dir)
  for _ in range(rng.randint(1, 3)):
    long = rng.choice((1, 2, 17, 300, 3000, 9000, 60000))
    shape = rng.choice(((1, long), (long, 1), (2, long), (long, 3)))
    path = data_dir / rng.choice(('train', 'val')) / 'a' / f'thin{long}.png'
    Image.new(rng.choice(('RGB', 'L', 'P')), shape, 7).save(path)
  flags = {
    **_BASE,
    **_OF_PICTURES,
    'data_dir': f'runs/data{number}',
    'mode': rng.choice(('train', 'train_then_eval', 'predict', 'eval')),
    'model_dir': f'runs/thin{number}',
    'eval_crop_method': rng.choice([e.name for e in enums.EvalCropMethod]),
    'augmentation_type': rng.choice([e.name for e in enums.AugmentationType]),
    'image_size': rng.choice((8, 32)),
    'crop_padding': rng.choice((0, 2)),
  }
  if flags['mode'] in ('predict', 'eval'):
    shutil.copytree(directory / 'of_pictures', directory / flags['model_dir'])
    flags['images'] = f'runs/data{number}/train/a'
    flags = {k: v for k, v in flags.items() if k in _OF_USE}
  return _Try(_to_arguments(flags))


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


_KINDS = {  # (what makes one, how many by default).
  'flags': (_random_flags, 2000),
  'checkpoints': (_damaged_checkpoint, 500),
  'data': (_damaged_data, 500),
  'restarts': (_restart, 250),
  'names': (_odd_names, 125),
  'thin': (_thin_images, 125),
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

  def succeed(flags):
    code, text = worker.run(_to_arguments(flags))
    assert code == 0, text

  succeed(train)
  # Stage 1 is complete, of stage 2 nothing is done.
  succeed(
    {**train, 'model_dir': 'halfway', 'mode': 'train', 'stage_2_epochs': 0}
  )
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
  succeed({**train, **_OF_PICTURES, 'model_dir': 'of_pictures'})


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  for kind, (_, count) in _KINDS.items():
    parser.add_argument(f'--{kind}', type=int, default=count)
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--processes', type=int, default=2)
  options = parser.parse_args()
  tasks = queue.Queue()
  for kind in _KINDS:
    for _ in range(getattr(options, kind)):
      # A number is of one run only: by it, the run's files are removed.
      tasks.put((kind, tasks.qsize()))
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
        make, _ = _KINDS[kind]
        arguments, check = make(rng, number, directory)
        code, text = worker.run(arguments)
        codes[kind, code] += 1
        if verdict := _verdict(code, text) or check(code, text):
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
