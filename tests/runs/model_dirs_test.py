"""Tests of supcon.runs.model_dirs: which checkpoint counts, whatever happened.

Files are damaged, trainers are killed while they write, and a disk is full.
"""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from supcon.runs import checkpoint_files
from supcon.runs import model_dirs
from supcon.runs import retries
from tests import command

tf1 = tf.compat.v1

_INDEX, _DATA = '.index', '.data-00000-of-00001'


def _write(directory, steps, listed=None):
  """Writes checkpoint_files, whose only value is their step.

  Args:
    directory: A pathlib.Path.
    steps: Those of all checkpoints.
    listed: Those that the file `checkpoint` lists, the newest last; by default
      all.
  """
  directory.mkdir(exist_ok=True)
  for step in steps:
    tf.raw_ops.SaveV2(
      prefix=str(directory / f'model.ckpt-{step}'),
      tensor_names=['w'],
      shape_and_slices=[''],
      tensors=[np.full([100], step, np.float32)],
    )
  names = [f'model.ckpt-{step}' for step in listed or steps]
  tf1.train.update_checkpoint_state(str(directory), names[-1], names)
  return model_dirs.ModelDir(str(directory))


def _path(model_dir, step, end=''):
  return pathlib.Path(model_dir.path) / f'model.ckpt-{step}{end}'


def _cut(path):
  path.write_bytes(path.read_bytes()[:-5])


def _fill_with_zeros(path):
  path.write_bytes(bytes(path.stat().st_size))


def _flip_a_bit(path):
  content = bytearray(path.read_bytes())
  content[len(content) // 3] ^= 16
  path.write_bytes(content)


_DAMAGES = {
  f'{damage.__name__} of {end}': (damage, end)
  for damage in (_cut, _fill_with_zeros, _flip_a_bit, pathlib.Path.unlink)
  for end in (_INDEX, _DATA)
}


def _damage(model_dir, step, name):
  damage, end = _DAMAGES[name]
  damage(_path(model_dir, step, end))


_USELESS_STATES = {
  'missing': None,
  'empty': b'',
  'zeros': bytes(100),
  'cut': b'model_checkpoint_path: "model.ck',
  'points at nothing': b'model_checkpoint_path: "model.ckpt-99"\n',
  'points at nothing old': b'model_checkpoint_path: "model.ckpt-5"\n',
  'points elsewhere': b'model_checkpoint_path: "/none/model.ckpt-99"\n',
}


def _write_state(model_dir, content):
  path = pathlib.Path(model_dir.path) / 'checkpoint'
  path.unlink()
  if content is not None:
    path.write_bytes(content)


# --- Which one is newest ------------------------------------------------------


@pytest.mark.parametrize(
  'text, names',
  [
    ('cat\ndog\n', ('cat', 'dog')),
    ('cat\ndog', ('cat', 'dog')),
    ('cat\r\ndog\r\n', ('cat', 'dog')),  # Edited elsewhere.
    ('a\x85b\nc\u2028d\n', ('a\x85b', 'c\u2028d')),
    ('', ()),
    (None, None),
  ],
)
def test_a_class_a_line(tmp_path, text, names):
  if text is not None:
    (tmp_path / 'labels.txt').write_bytes(text.encode())
  assert model_dirs.ModelDir(str(tmp_path)).class_names() == names


def test_newest_is_what_the_state_names(tmp_path, warnings):
  # Somebody went back to step 20.
  model_dir = _write(tmp_path, [10, 20, 30], listed=[10, 20])
  assert model_dir.newest() == str(tmp_path / 'model.ckpt-20')
  assert checkpoint_files.step_of(model_dir.newest()) == 20
  assert warnings == []


def test_newest_where_nothing_is(tmp_path, warnings):
  for path in (tmp_path, tmp_path / 'none'):
    assert model_dirs.ModelDir(str(path)).newest() is None
    assert model_dirs.ModelDir(str(path)).newest() is None
  assert warnings == []


@pytest.mark.parametrize('damage', _DAMAGES)
def test_newest_is_whole(tmp_path, warnings, damage):
  model_dir = _write(tmp_path, [9, 10, 200, 1000])
  for step in (1000, 200):
    _damage(model_dir, step, damage)
  before = command.contents(tmp_path)
  for _ in range(3):
    assert model_dir.newest() == str(tmp_path / 'model.ckpt-10')
  # Each is reported once, with what is used instead.
  assert len(warnings) == 2
  for step, warning in zip((1000, 200), warnings):
    assert re.fullmatch(
      rf'WARNING: {tmp_path}/model\.ckpt-{step} is damaged \(.+\); '
      rf'using {tmp_path}/model\.ckpt-10',
      warning,
    )
  assert command.contents(tmp_path) == before


@pytest.mark.parametrize('damage', [None, *_DAMAGES])
@pytest.mark.parametrize('state', _USELESS_STATES)
def test_newest_without_a_state_of_use(tmp_path, warnings, state, damage):
  model_dir = _write(tmp_path, [9, 10, 200, 1000])
  if damage:
    _damage(model_dir, 1000, damage)
  _write_state(model_dir, _USELESS_STATES[state])
  expected = 200 if damage else 1000
  assert model_dir.newest() == str(tmp_path / f'model.ckpt-{expected}')
  assert warnings
  for warning in warnings:
    assert warning.endswith(f'; using {tmp_path}/model.ckpt-{expected}')


@pytest.mark.parametrize('damage', _DAMAGES)
def test_newest_where_none_is_whole(tmp_path, warnings, damage):
  model_dir = _write(tmp_path, [5])
  _damage(model_dir, 5, damage)
  assert model_dir.newest() is None
  assert warnings[-1].endswith('; no checkpoint is whole')


def test_newest_reads_a_file_once(tmp_path, monkeypatch):
  reads = []
  read = checkpoint_files.damage
  monkeypatch.setattr(
    checkpoint_files,
    'damage',
    lambda path: reads.append(path) or read(path),
  )
  model_dir = _write(tmp_path, [10, 20, 30])
  for _ in range(3):
    assert checkpoint_files.step_of(model_dir.newest()) == 30
  assert reads == [str(tmp_path / 'model.ckpt-30')]
  # Again if it has changed, as quickly as it may.
  _flip_a_bit(_path(model_dir, 30, _DATA))
  for _ in range(3):
    assert checkpoint_files.step_of(model_dir.newest()) == 20
  assert len(reads) == 3
  _write(tmp_path, [30], listed=[10, 20, 30])
  assert checkpoint_files.step_of(model_dir.newest()) == 30
  assert len(reads) == 4


def test_newest_beside_a_trainer_that_deletes(tmp_path, monkeypatch, warnings):
  """What was newest as the state was read has been deleted since."""
  model_dir = _write(tmp_path, [10])
  read_state = checkpoint_files.read_state

  def read_and_go_on(path):
    state = read_state(path)
    if state.newest.endswith('-10'):
      _write(tmp_path, [20])
      for end in (_INDEX, _DATA):
        _path(model_dir, 10, end).unlink()
    return state

  monkeypatch.setattr(checkpoint_files, 'read_state', read_and_go_on)
  assert checkpoint_files.step_of(model_dir.newest()) == 20
  assert warnings == []


# --- What TensorFlow continues from -------------------------------------------


def _listed(directory):
  """Returns the steps that TensorFlow would delete as they get old."""
  state = tf.train.get_checkpoint_state(str(directory))
  assert state.model_checkpoint_path == state.all_model_checkpoint_paths[-1]
  return [*map(checkpoint_files.step_of, state.all_model_checkpoint_paths)]


def test_settle_leaves_alone_what_is_in_order(tmp_path):
  for path, steps in ((tmp_path / 'a', [10, 20, 30]), (tmp_path / 'b', [])):
    if steps:
      _write(path, steps, listed=[10, 20])
      # Older ones are none of its business.
      _cut(path / f'model.ckpt-10{_DATA}')
    path.mkdir(exist_ok=True)
    before = command.contents(path)
    model_dirs.ModelDir(str(path)).settle(2)
    assert command.contents(path) == before


@pytest.mark.parametrize('damage', _DAMAGES)
def test_settle_has_tensorflow_continue_from_what_is_whole(tmp_path, damage):
  model_dir = _write(tmp_path, [10, 20, 30, 40, 50])
  for step in (20, 40, 50):
    _damage(model_dir, step, damage)
  before = _files_by_content(tmp_path)
  model_dir.settle(5)
  assert tf.train.latest_checkpoint(str(tmp_path)) == model_dir.newest()
  assert _listed(tmp_path) == [10, 30]
  # What training would write over is out of its way, and nothing is deleted.
  assert command.steps(tmp_path) == [10, 30]
  assert before <= _files_by_content(tmp_path)
  assert (tmp_path / 'damaged' / '1' / 'checkpoint').exists()
  # It is settled.
  settled = command.contents(tmp_path)
  model_dir.settle(5)
  assert command.contents(tmp_path) == settled


def _files_by_content(directory):
  """Returns {(name, content)} of all files, wherever they are."""
  return {
    (os.path.basename(path), content)
    for path, (_, content) in command.contents(directory).items()
  }


@pytest.mark.parametrize('state', _USELESS_STATES)
def test_settle_without_a_state_of_use(tmp_path, state):
  model_dir = _write(tmp_path, [9, 10, 20, 30, 40])
  _write_state(model_dir, _USELESS_STATES[state])
  _cut(_path(model_dir, 40, _DATA))
  before = _files_by_content(tmp_path)
  model_dir.settle(3)
  assert tf.train.latest_checkpoint(str(tmp_path)).endswith('-30')
  assert before <= _files_by_content(tmp_path)
  # Nobody knows whether the others were to be kept for ever.
  assert _listed(tmp_path) in ([10, 20, 30], [30])
  assert command.steps(tmp_path) == [9, 10, 20, 30]


def test_settle_where_none_is_whole(tmp_path):
  model_dir = _write(tmp_path, [10, 20])
  _cut(_path(model_dir, 10, _DATA))
  _path(model_dir, 20, _INDEX).unlink()
  before = _files_by_content(tmp_path)
  model_dir.settle(5)
  # TensorFlow stumbles over an empty file, and begins where there is none.
  assert tf.train.latest_checkpoint(str(tmp_path)) is None
  assert not (tmp_path / 'checkpoint').exists()
  assert before == _files_by_content(tmp_path)
  assert command.steps(tmp_path) == []


def test_settle_again_and_again(tmp_path):
  model_dir = _write(tmp_path, [10])
  for number in (1, 2, 3):
    _write(tmp_path, [20], listed=[10, 20])
    _cut(_path(model_dir, 20, _DATA))
    model_dir.settle(5)
    assert _listed(tmp_path) == [10]
    assert sorted(os.listdir(tmp_path / 'damaged' / str(number))) == [
      'checkpoint',
      f'model.ckpt-20{_DATA}',
      'model.ckpt-20.index',
    ]


def test_settle_ends_what_another_one_has_begun(tmp_path):
  # Killed after the index had been moved, or after everything had been.
  model_dir = _write(tmp_path, [10, 20])
  for end in (_INDEX, _DATA):
    _path(model_dir, 20, end).unlink()
    model_dir.settle(5)
    assert _listed(tmp_path) == [10]
    _write(tmp_path, [20], listed=[10, 20])


def test_settle_removes_what_nobody_can_read(tmp_path):
  model_dir = _write(tmp_path, [10])
  (tmp_path / 'model.ckpt-20_temp').mkdir()
  (tmp_path / 'model.ckpt-20_temp' / 'part-00000-of-00001.index').touch()
  (tmp_path / f'model.ckpt-10.meta.tmp{"0a" * 16}').touch()
  before = sorted(os.listdir(tmp_path))
  model_dir.settle(5)
  assert {*before} - {*os.listdir(tmp_path)} == {
    'model.ckpt-20_temp',
    f'model.ckpt-10.meta.tmp{"0a" * 16}',
  }


# --- Killed while it writes ---------------------------------------------------

# Trains in a child, which saves after each step and tells the parent.
_TRAINER = """
import json, os, random, signal, sys, time
sys.path.insert(0, {root!r})
import tensorflow as tf
from absl import logging
from supcon.runs import model_dirs
from supcon.runs import checkpoint_files
tf1 = tf.compat.v1

class Teller(tf1.train.CheckpointSaverListener):
  def __init__(self, descriptor):
    self.descriptor = descriptor
  def after_save(self, session, step):
    os.write(self.descriptor, b'%d\\n' % step)

def train(path, last, descriptor):
  model_dirs.ModelDir(path).settle(2)
  with tf.Graph().as_default():
    step = tf1.train.get_or_create_global_step()
    weights = [
      tf1.get_variable(f'w{{i}}', [50000], initializer=tf1.ones_initializer())
      for i in range(10)
    ]
    with tf.control_dependencies(
      [w.assign(w * 1.01 + tf.sin(tf.cast(step, tf.float32))) for w in weights]
    ):
      train_op = step.assign_add(1)
    saver = tf1.train.Saver(sharded=True, max_to_keep=2)
    hook = tf1.train.CheckpointSaverHook(
      path, save_steps=1, saver=saver, listeners=[Teller(descriptor)])
    with tf1.train.MonitoredTrainingSession(
      checkpoint_dir=path,
      hooks=[hook, tf1.train.StopAtStepHook(last_step=last)],
      save_checkpoint_steps=None, save_checkpoint_secs=None,
      save_summaries_steps=None, save_summaries_secs=None) as session:
      while not session.should_stop():
        session.run(train_op)

def fork(path, last):
  reader, writer = os.pipe()
  pid = os.fork()
  if not pid:
    os.close(reader)
    try:
      train(path, last, writer)
      os._exit(0)
    except BaseException as error:
      os.write(2, repr(error).encode())
      os._exit(1)
  os.close(writer)
  return pid, reader

def read(descriptor, told=b''):
  while data := os.read(descriptor, 4096):
    told += data
  os.close(descriptor)
  return [int(line) for line in told.splitlines()]

path, kills, rest = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
rng = random.Random(0)
log = []
for _ in range(kills):
  pid, descriptor = fork(path, 10**6)
  told, wanted = b'', rng.randint(1, 4)
  while told.count(b'\\n') < wanted:
    data = os.read(descriptor, 4096)
    assert data, 'it has ended by itself'
    told += data
  # Anywhere in what follows. How far it gets by then decides nothing.
  time.sleep(rng.uniform(0, 0.05))
  os.kill(pid, signal.SIGKILL)
  os.waitpid(pid, 0)
  told = read(descriptor, told)
  newest = checkpoint_files.step_of(model_dirs.ModelDir(path).newest())
  log.append([len(told), told[-1], newest])
last = log[-1][2] + rest if log else rest
pid, descriptor = fork(path, last)
read(descriptor)
assert os.waitpid(pid, 0)[1] == 0
json.dump([log, last], sys.stdout)
"""


def _train_and_kill(path, kills, rest):
  """Returns [[saves, last one that was told, newest step], ...] and the end."""
  path.mkdir()
  arguments = [str(path), str(kills), str(rest)]
  finished = subprocess.run(
    [sys.executable, '-c', _TRAINER.format(root=str(command.ROOT)), *arguments],
    capture_output=True,
    text=True,
    timeout=command.TIMEOUT_SECONDS,
  )
  assert finished.returncode == 0, finished.stderr
  return json.loads(finished.stdout)


def test_killed_while_it_saves(tmp_path):
  log, last = _train_and_kill(tmp_path / 'killed', kills=6, rest=5)
  assert any(saves > 1 for saves, *_ in log)
  before = 0
  for _, told, newest in log:
    # What it had said to be saved is there; or the one before, if it was killed
    # as it saved once more what it had begun with.
    assert newest >= max(told, before) - 1
    before = newest
  _train_and_kill(tmp_path / 'unbroken', kills=0, rest=last)
  killed, unbroken = (
    command.variables(tmp_path / name) for name in ('killed', 'unbroken')
  )
  assert killed['global_step'] == last
  for name, value in unbroken.items():
    np.testing.assert_array_equal(killed[name], value)


# --- Continued ----------------------------------------------------------------

_FLAGS = {
  **command.DIGITS,
  'num_images': 500,
  'stage_1_epochs': 4,
  'stage_1_warmup_epochs': 0,
  'stage_1_optimizer': 'MOMENTUM',
  'stage_2_epochs': 3,
  'stage_2_warmup_epochs': 0,
  'stage_2_optimizer': 'MOMENTUM',
  'save_interval_steps': 10,
  'max_checkpoints_to_keep': 100,
  'mode': 'train',
}
_LAST = 54  # floor(7 x 500 / 64)


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  """(model_dir, flags) of a run of which nothing was damaged."""
  directory = tmp_path_factory.mktemp('trained')
  flags = {**_FLAGS, 'data_dir': directory / 'data'}
  model_dir = directory / 'model'
  command.succeed({**flags, 'model_dir': model_dir}, directory, is_small=True)
  return model_dir, flags


def test_training_continues_from_what_is_whole(tmp_path, trained):
  unbroken, flags = trained
  model_dir = model_dirs.ModelDir(str(tmp_path / 'model'))
  shutil.copytree(unbroken, model_dir.path)
  # In either stage, with the file that says which one is newest.
  _fill_with_zeros(_path(model_dir, _LAST, _DATA))
  _path(model_dir, 51, _INDEX).unlink()
  _cut(_path(model_dir, 41, _DATA))
  _flip_a_bit(_path(model_dir, 31, _DATA))
  _write_state(model_dir, b'\0' * 100)
  before = _files_by_content(tmp_path / 'model')
  run = command.succeed(
    {**flags, 'model_dir': model_dir.path}, tmp_path, is_small=True
  )
  assert f'model_dir holds step 30 of {_LAST}: training continues there' in (
    run.log
  )
  for what in ('model.ckpt-54 is damaged', 'checkpoint cannot be read'):
    assert sum(what in line for line in run.log) == 1, what
  assert command.steps(pathlib.Path(model_dir.path)) == (
    command.steps(unbroken)
  )
  for step in (31, _LAST):
    broken, expected = (
      command.variables(pathlib.Path(directory) / f'model.ckpt-{step}')
      for directory in (model_dir.path, unbroken)
    )
    for name, value in expected.items():
      np.testing.assert_array_equal(broken[name], value, name)
  # The graphs beside them, .meta, are written anew.
  after = _files_by_content(tmp_path / 'model')
  assert {
    (name, content)
    for name, content in before
    if name.endswith((_INDEX, _DATA)) or name == 'checkpoint'
  } <= after


@pytest.fixture
def small_disk(tmp_path):
  """(Its path, a function that gives it another size in KiB)."""
  path = tmp_path / 'disk'
  path.mkdir()

  def resize(size):
    remount = ',remount' if os.path.ismount(path) else ''
    return subprocess.run(
      ['mount', '-t', 'tmpfs', '-o', f'size={size}k{remount}', 'none', path],
      capture_output=True,
      text=True,
    )

  made = resize(4)
  if made.returncode:
    pytest.skip(f'no file system can be mounted here: {made.stderr}')
  yield path, resize
  subprocess.run(['umount', path], check=True)


def test_a_full_disk(small_disk, trained):
  disk, resize = small_disk
  unbroken, flags = trained
  flags = {**flags, 'model_dir': disk / 'model'}
  resize(4000)  # Half of what the run takes.
  run = command.run(flags, disk.parent, is_small=True)
  assert run.returncode == 1, run.stderr
  assert 'Traceback' not in run.stderr
  *_, last_line = run.stderr.splitlines()
  assert re.fullmatch(
    rf'main\.py: stopped: {disk}/model/\S+ cannot be written \(No '
    r'space left on device, \d+\.\d MB free\)\. .*: make room, .*',
    last_line,
  )
  model_dir = model_dirs.ModelDir(str(disk / 'model'))
  step = checkpoint_files.step_of(model_dir.newest())
  assert 0 < step < _LAST

  resize(20000)
  run = command.succeed(flags, disk.parent, is_small=True)
  assert (
    f'model_dir holds step {step} of {_LAST}: training continues there'
    in (run.log)
  )
  broken = command.variables(disk / 'model')
  for name, value in command.variables(unbroken).items():
    np.testing.assert_array_equal(broken[name], value, name)


def test_a_file_that_cannot_be_written_leaves_nothing(tmp_path, monkeypatch):
  model_dir = model_dirs.ModelDir(str(tmp_path))
  model_dir.write('status.json', 'old')
  rename = tf.io.gfile.rename

  def fail(*args, **kwargs):
    raise tf.errors.ResourceExhaustedError(None, None, 'full')

  monkeypatch.setattr(tf.io.gfile, 'rename', fail)
  with pytest.raises(tf.errors.ResourceExhaustedError):
    model_dir.write('status.json', 'new')
  assert os.listdir(tmp_path) == ['status.json']
  assert (tmp_path / 'status.json').read_text() == 'old'
  monkeypatch.setattr(tf.io.gfile, 'rename', rename)
  model_dir.write('status.json', 'new')
  assert (tmp_path / 'status.json').read_text() == 'new'


def test_storage_that_fails_for_a_moment_is_tried_again(tmp_path, monkeypatch):
  pauses = []
  path = str(tmp_path)
  patient = model_dirs.ModelDir(path, retries.Retries(sleep=pauses.append))
  gfile = tf.io.gfile.GFile
  failures = [tf.errors.UnavailableError(None, None, 'busy')] * 2

  def open_(*args, **kwargs):
    if left:
      raise left.pop()
    return gfile(*args, **kwargs)

  monkeypatch.setattr(tf.io.gfile, 'GFile', open_)
  for act in (
    lambda d: d.write_json('a.json', {'a': 1}),
    lambda d: d.read_json('a.json'),
    lambda d: d.newest(),
  ):
    left = [*failures]
    act(patient)
    assert not left
    left = [*failures]
    with pytest.raises(tf.errors.UnavailableError):
      act(model_dirs.ModelDir(path))
  assert pauses == [2, 4] * 3
  left = []
  assert patient.read_json('a.json') == {'a': 1}


@pytest.mark.parametrize('text', ['', '{', '[1]', 'null', '{"step": "one"}'])
def test_a_file_that_holds_something_else_is_named(tmp_path, text):
  directory = model_dirs.ModelDir(str(tmp_path))

  def read():
    return directory.read_json(
      'a.json', lambda found: int(found['step']), 'step', 'train anew'
    )

  assert read() is None
  (tmp_path / 'a.json').write_text('{"step": 3}')
  assert read() == 3
  (tmp_path / 'a.json').write_text(text)
  with pytest.raises(ValueError) as caught:
    read()
  assert str(caught.value).startswith(f'{tmp_path}/a.json holds no step (')
  assert str(caught.value).endswith('); restore it, or train anew.')


@pytest.mark.parametrize('text', ['[1]', 'null', '"a"'])
def test_a_json_file_holds_an_object(tmp_path, text):
  (tmp_path / 'a.json').write_text(text)
  with pytest.raises(ValueError, match='a.json holds no JSON object'):
    model_dirs.ModelDir(str(tmp_path)).read_json('a.json')
