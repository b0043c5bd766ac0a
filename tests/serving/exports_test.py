"""Tests of supcon.serving.exports: what is where, and that nothing is lost."""

import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest
import tensorflow as tf

import supcon
from supcon.config import hparams
from supcon.config import run_options
from supcon.serving import exports
from supcon.serving import hub_module
from supcon.serving import saved_model
from tests.serving import exported

tf1 = tf.compat.v1

_ROOT = pathlib.Path(__file__).resolve().parents[2]
_BOTH = ('saved_model', 'hub')


@pytest.fixture(name='quick')
def _quick(monkeypatch):
  """Replaces the writing of models, which takes seconds."""

  def write(model, path):
    tf.io.gfile.makedirs(path)
    with tf.io.gfile.GFile(f'{path}/saved_model.pb', 'w') as file:
      file.write(f'{model.step}')

  monkeypatch.setattr(saved_model, 'write', write)
  monkeypatch.setattr(hub_module, 'write', write)


@pytest.fixture(name='directory')
def _directory(tmp_path):
  return tmp_path / 'exports'


def _write(model, directory, formats=_BOTH, to_keep=0):
  return exports.write(model, str(directory), formats, to_keep, {})


def _names(directory):
  return sorted(path.name for path in directory.iterdir())


# --- What is where ------------------------------------------------------------


def _files(path):
  return {
    str(file.relative_to(path))
    for file in pathlib.Path(path).rglob('*')
    if file.is_file()
  }


def test_layout(export):
  path = pathlib.Path(export.path)
  assert export == (str(path), str(path), f'{path}/hub')
  assert abs(int(path.name) - time.time()) < 3600
  assert _names(path.parent) == [path.name]
  assert _files(path) >= {
    'model_card.md',
    'labels.txt',
    'export.json',
    'saved_model.pb',
    'variables/variables.index',
    'assets.extra/labels.txt',
    'assets.extra/whitening.json',
    'hub/saved_model.pb',
    'hub/tfhub_module.pb',
    'hub/variables/variables.index',
    'hub/model_card.md',
    'hub/labels.txt',
  }


def test_labels_and_whitening(export):
  path = pathlib.Path(export.path)
  labels = ''.join(f'digit {n}\n' for n in range(10))
  for name in ('labels.txt', 'assets.extra/labels.txt', 'hub/labels.txt'):
    assert (path / name).read_text() == labels
  whitening = json.loads((path / 'assets.extra/whitening.json').read_text())
  assert whitening == {'mean': [-0.125, 0.0, 0.25], 'std': [0.5, 0.25, 1.0]}


def test_facts_for_programs(export):
  found = json.loads((pathlib.Path(export.path) / 'export.json').read_text())
  assert found['formats'] == ['saved_model', 'hub']
  assert found['global_step'] == exported.STEP
  assert found['checkpoint'] == f'model.ckpt-{exported.STEP}'
  assert found['image_size'] == exported.SIDE
  assert found['num_classes'] == 10
  assert found['embedding_size'] == 512 // 16
  assert found['hparams'] == exported.PARAMS.to_json()
  assert hparams.parse(found['compact']) == exported.PARAMS
  assert found['version'] == supcon.__version__
  assert {name: found[name] for name in exported.FACTS} == exported.FACTS


def test_without_whitening_there_is_no_such_file(quick, model, directory):
  plain = dataclasses.replace(model, mean=None, std=None)
  export = _write(plain, directory)
  assert 'assets.extra/labels.txt' in _files(export.path)
  assert 'assets.extra/whitening.json' not in _files(export.path)


@pytest.mark.parametrize('name', run_options.EXPORT_FORMATS)
def test_one_format_alone(quick, model, directory, name):
  export = _write(model, directory, [name])
  common = {'model_card.md', 'labels.txt', 'export.json'}
  if name == 'saved_model':
    assert export == (export.path, export.path, None)
    assert _files(export.path) == {
      *common,
      'saved_model.pb',
      'assets.extra/labels.txt',
      'assets.extra/whitening.json',
    }
  else:
    assert export == (export.path, None, f'{export.path}/hub')
    assert _files(export.path) == {
      *common,
      'hub/saved_model.pb',
      'hub/model_card.md',
      'hub/labels.txt',
      'tfhub_module.pb',
    }


@pytest.mark.parametrize(
  'formats, to_keep, message',
  [
    (('saved_model', 'onnx'), 0, "'onnx'; give .* saved_model, hub"),
    ((), 0, 'none; give .* saved_model, hub'),
    (('hub',), -1, '-1 exports to keep; give .* 0'),
  ],
)
def test_bad_arguments_are_named(model, directory, formats, to_keep, message):
  with pytest.raises(ValueError, match=message) as error:
    _write(model, directory, formats, to_keep)
  assert '\n' not in str(error.value)
  assert not directory.exists()


def test_a_checkpoint_of_another_model(model, directory):
  other = dataclasses.replace(model, class_names=('only', 'three', 'classes'))
  with pytest.raises(ValueError, match='dense/kernel has shape .*10') as error:
    _write(other, directory)
  assert '\n' not in str(error.value)
  deeper = model.params.replace('architecture.encoder_depth', 34)
  with pytest.raises(ValueError, match='is not in it'):
    _write(dataclasses.replace(model, params=deeper), directory)
  assert not directory.exists()


def test_the_commit_of_a_checkout(quick, model, directory, monkeypatch):
  def commit():
    path = _write(model, directory, ['hub']).path
    return json.loads((pathlib.Path(path) / 'export.json').read_text())[
      'commit'
    ]

  if (_ROOT / '.git').exists():
    head = subprocess.check_output(['git', 'rev-parse', 'HEAD'], cwd=_ROOT)
    assert commit().removesuffix('-dirty') == head.decode().strip()
  with monkeypatch.context() as patch:
    patch.setenv('PATH', '')  # No git.
    assert commit() is None
  elsewhere = directory / 'supcon' / '__init__.py'
  monkeypatch.setattr(supcon, '__file__', str(elsewhere))
  assert commit() is None


# --- One after the other ------------------------------------------------------


def test_the_next_free_second(quick, model, directory, monkeypatch):
  monkeypatch.setattr(time, 'time', lambda: 1000.5)
  paths = [pathlib.Path(_write(model, directory).path) for _ in range(3)]
  assert [path.name for path in paths] == ['1000', '1001', '1002']


def test_another_process_takes_the_second(quick, model, directory, monkeypatch):
  monkeypatch.setattr(time, 'time', lambda: 1000.5)
  rename = tf.io.gfile.rename

  def too_late(source, target):
    monkeypatch.setattr(tf.io.gfile, 'rename', rename)
    pathlib.Path(target).mkdir()
    (pathlib.Path(target) / 'theirs').touch()
    rename(source, target)

  monkeypatch.setattr(tf.io.gfile, 'rename', too_late)
  path = pathlib.Path(_write(model, directory).path)
  assert path.name == '1001'
  assert _names(directory) == ['1000', '1001']
  assert _names(directory / '1000') == ['theirs']


def _fill(directory, *names):
  for name in names:
    (directory / name).mkdir(parents=True)
    (directory / name / 'saved_model.pb').touch()


@pytest.mark.parametrize(
  'to_keep, left',
  [
    (0, ['7', '80', '900', '1000']),
    (1, ['1000']),
    (3, ['80', '900', '1000']),  # By number, not by letter.
    (9, ['7', '80', '900', '1000']),
  ],
)
def test_the_oldest_are_removed(
  quick, model, directory, monkeypatch, to_keep, left
):
  monkeypatch.setattr(time, 'time', lambda: 1000.5)
  _fill(directory, '7', '80', '900')
  _write(model, directory, to_keep=to_keep)
  assert _names(directory) == sorted(left)


def test_nothing_else_is_removed(quick, model, directory, monkeypatch):
  monkeypatch.setattr(time, 'time', lambda: 1e6 + 0.5)
  others = ['best', '12b', '-5', '1000001', 'temp', 'temp-notes', 'temp-x-1']
  # Of 24 hours ago: it may still be written.
  others.append(f'temp-{10**6 - 24 * 3600}-abc')
  _fill(directory, '5', *others)
  (directory / 'README').touch()
  _write(model, directory, to_keep=1)
  assert _names(directory) == sorted([*others, 'README', '1000000'])


def test_what_was_killed_the_day_before_yesterday_is_removed(
  quick, model, directory, monkeypatch
):
  monkeypatch.setattr(time, 'time', lambda: 1e6 + 0.5)
  yesterday = 10**6 - 24 * 3600 - 1
  _fill(directory, f'temp-{yesterday}-0123abcd', f'temp-{yesterday}', '5')
  _write(model, directory)
  assert _names(directory) == ['1000000', '5']


# --- Failures -----------------------------------------------------------------


def test_a_failure_leaves_all_as_it_was(quick, model, directory, monkeypatch):
  first = _write(model, directory)
  before = exported.tree(directory)

  def fail(model, path):
    tf.io.gfile.makedirs(path)
    raise tf.errors.ResourceExhaustedError(None, None, 'disk full')

  monkeypatch.setattr(hub_module, 'write', fail)
  with pytest.raises(tf.errors.ResourceExhaustedError):
    _write(model, directory, to_keep=1)
  assert exported.tree(directory) == before
  assert _names(directory) == [os.path.basename(first.path)]


def test_interrupted_while_it_removes(quick, model, directory, monkeypatch):
  _fill(directory, '5')

  def interrupted(path):
    raise KeyboardInterrupt

  monkeypatch.setattr(tf.io.gfile, 'rmtree', interrupted)
  with pytest.raises(KeyboardInterrupt):
    _write(model, directory, to_keep=1)
  # What is called by a number is whole: only the new one is.
  (number,) = [name for name in _names(directory) if name.isdecimal()]
  assert 'export.json' in _names(directory / number)
  (aside,) = set(_names(directory)) - {number}
  assert aside.startswith('temp-')


def _start(checkpoint, directory, *how):
  return subprocess.Popen(
    [
      sys.executable,
      '-m',
      'tests.serving.exporting',
      checkpoint,
      str(directory),
      *how,
    ],
    cwd=_ROOT,
    stdout=subprocess.PIPE,
    stderr=subprocess.DEVNULL,
    text=True,
  )


def test_killed_in_the_middle(quick, model, checkpoint, directory):
  _write(model, directory)
  before = exported.tree(directory)
  process = _start(checkpoint, directory, 'hang')
  assert process.stdout.readline() == 'hanging\n'
  process.send_signal(signal.SIGKILL)
  process.wait()
  after = exported.tree(directory)
  assert {name: after[name] for name in before} == before
  left = {name.partition('/')[0] for name in set(after) - set(before)}
  assert len(left) == 1
  (aside,) = left
  assert aside.startswith('temp-')
  # It was far: the SavedModel was written, the module half.
  assert {f'{aside}/saved_model.pb', f'{aside}/hub/saved_model.pb'} <= {*after}
  export = _write(model, directory, to_keep=1)
  # Somebody else might be writing it: it is too young to be removed.
  assert _names(directory) == sorted([os.path.basename(export.path), aside])


# --- Other processes, other file systems --------------------------------------


def test_written_in_a_process_of_tensorflow_1(
  checkpoint, export, expected, directory
):
  process = _start(checkpoint, directory)
  output, _ = process.communicate()
  assert process.returncode == 0
  written = exports.Export(**json.loads(output.splitlines()[-1]))
  images = exported.unit_range(exported.images())
  loaded = tf.saved_model.load(written.saved_model)
  assert set(loaded.signatures) >= {'serving_default', 'serving_bytes'}
  for training in (False, True):
    exported.assert_close(
      {'logits': loaded(images, training=training).numpy()},
      expected.outputs[training],
    )
  # The module is made of the same graphs in every process, to the byte.
  theirs, ours = (
    exported.tree(pathlib.Path(each.hub_module)) for each in (written, export)
  )
  assert theirs == ours


def test_on_an_object_store(quick, model, tmp_path, monkeypatch):
  """On the file system in memory, which like them has no directories."""
  monkeypatch.chdir(tmp_path)

  def rename(source, target):
    for directory, _, names in tf.io.gfile.walk(source):
      for name in names:
        file = f'{directory}/{name}'
        renamed = target + file.removeprefix(source)
        tf.io.gfile.makedirs(os.path.dirname(renamed))
        tf.io.gfile.copy(file, renamed)
    tf.io.gfile.rmtree(source)

  monkeypatch.setattr(tf.io.gfile, 'rename', rename)
  directory = 'ram://bucket/exports'
  tf.io.gfile.makedirs(f'{directory}/5')
  export = _write(model, directory, to_keep=1)

  def names(path):
    return {name.rstrip('/') for name in tf.io.gfile.listdir(path)}

  assert names(directory) == {os.path.basename(export.path)}
  assert names(export.path) >= {'export.json', 'saved_model.pb', 'hub'}
  assert names(export.hub_module) >= {'labels.txt', 'saved_model.pb'}
  with tf.io.gfile.GFile(f'{export.path}/model_card.md') as file:
    assert "tf.saved_model.load('.')" in file.read()
  assert not list(tmp_path.iterdir())
