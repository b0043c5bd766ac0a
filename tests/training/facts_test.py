"""Tests of facts, facts_keeper and earlier_runs.

What is written down holds, whenever it is read.
"""

import dataclasses
import itertools
import json
import math
import shutil

import numpy as np
import pytest
import tensorflow as tf

from supcon.config import enums
from supcon.config import hparams
from supcon.models import layers
from supcon.models import resnet
from supcon.runs import checkpoint_files
from supcon.runs import model_dirs
from supcon.training import earlier_runs
from supcon.training import facts
from supcon.training import facts_keeper
from supcon.training import positions
from tests import command
from tests import killing

tf1 = tf.compat.v1

_PARAMS = hparams.HParams(batch_size=16)
# 48 / 16 = 3 steps an epoch, 2 and 1 epochs.
_COUNTING = positions.Counting(48, 16, (2, 1))
_OLD = facts.Facts(
  _PARAMS, _COUNTING, 'train', '48 files, a', {'split': 'val', 'n': 12}, ''
)
_NEW = dataclasses.replace(
  _OLD,
  params=_PARAMS.replace('loss.contrastive.temperature', 0.5),
  counting=positions.Counting(48, 16, (2, 3)),
)


def _write(directory, step, value=None):
  """Writes a checkpoint as a trainer does."""
  directory.mkdir(exist_ok=True)
  path = str(directory / f'model.ckpt-{step}')
  tf.raw_ops.SaveV2(
    prefix=path,
    tensor_names=['global_step', 'w'],
    shape_and_slices=['', ''],
    tensors=[
      np.int64(step),
      np.full([10], step if value is None else value, np.float32),
    ],
  )
  names = [f'model.ckpt-{each}' for each in command.steps(directory)]
  tf1.train.update_checkpoint_state(str(directory), names[-1], names)
  return path


def _train(directory, what, steps, files=None):
  """Does what a trainer does that saves checkpoints of these steps."""
  directory.mkdir(exist_ok=True)
  model_dir = model_dirs.ModelDir(str(directory))
  files = {'labels.txt': 'cat\n'} if files is None else files
  keeper = facts_keeper.Keeper(model_dir, what, files)
  keeper.begin(model_dir.newest())
  for step in steps:
    keeper.before_save(step)
    _write(directory, step)
    keeper.after_save(step)


def _known(directory, checkpoint=None):
  model_dir = model_dirs.ModelDir(str(directory))
  return facts.find(model_dir, checkpoint or model_dir.newest())


def _shown(directory):
  return json.loads((directory / 'hparams.json').read_text())


def _content(directory):
  return {
    name: content for name, (_, content) in command.contents(directory).items()
  }


# --- Before and after a checkpoint --------------------------------------------


def test_nothing_is_known_of_nothing(tmp_path):
  assert _known(tmp_path) is None
  assert earlier_runs.recorded_params(str(tmp_path)) is None


def test_a_new_run(tmp_path):
  keeper = facts_keeper.Keeper(
    model_dirs.ModelDir(str(tmp_path)), _OLD, {'labels.txt': 'cat\n'}
  )
  keeper.begin(None)
  # An intention is no fact.
  assert list(tmp_path.iterdir()) == []
  _train(tmp_path, _OLD, [0, 3])
  assert _known(tmp_path) == _OLD
  assert earlier_runs.recorded_params(str(tmp_path)) == _OLD.params
  written = _shown(tmp_path)
  assert written['compact'] == _OLD.params.serialize()
  assert written['hparams'] == _OLD.params.to_json()
  assert len(written['facts']) == 1
  assert (tmp_path / 'labels.txt').read_text() == 'cat\n'


def test_of_what_was_there_before_a_new_run_nothing_holds(tmp_path):
  (tmp_path / 'hparams.json').write_text('{')
  for name in ('labels.txt', 'whitening.json'):
    (tmp_path / name).write_text('of another run')
  _train(
    tmp_path, _OLD, [0], files={'labels.txt': 'cat\n', 'whitening.json': None}
  )
  assert _known(tmp_path) == _OLD
  assert (tmp_path / 'labels.txt').read_text() == 'cat\n'
  assert not (tmp_path / 'whitening.json').exists()


def test_who_trains_nothing_changes_nothing(tmp_path):
  _train(tmp_path, _OLD, [0, 6])
  before = command.contents(tmp_path)
  # TensorFlow saves what it begins with.
  _train(tmp_path, _NEW, [6], files={'labels.txt': 'dog\n'})
  after = command.contents(tmp_path)
  for name in ('hparams.json', 'labels.txt'):
    assert after[name] == before[name]
  assert _known(tmp_path) == _OLD


def test_each_checkpoint_keeps_its_facts(tmp_path):
  _train(tmp_path, _OLD, [0, 3, 6])
  _train(tmp_path, _NEW, [6, 8, 9])
  for step, expected in ((0, _OLD), (3, _OLD), (6, _OLD), (8, _NEW), (9, _NEW)):
    assert _known(tmp_path, str(tmp_path / f'model.ckpt-{step}')) == expected
  assert _shown(tmp_path)['compact'] == _NEW.params.serialize()


def test_the_same_again_is_not_written_again(tmp_path):
  _train(tmp_path, _OLD, [0, 3])
  before = command.contents(tmp_path)
  _train(tmp_path, _OLD, [3, 6])
  after = command.contents(tmp_path)
  for name in ('hparams.json', 'labels.txt'):
    assert after[name] == before[name]


def test_who_goes_back_finds_what_held_there(tmp_path):
  _train(tmp_path, _OLD, [0, 6])
  _train(tmp_path, _NEW, [6, 9])
  for path in tmp_path.glob('model.ckpt-9*'):
    path.unlink()
  tf1.train.update_checkpoint_state(
    str(tmp_path), 'model.ckpt-6', ['model.ckpt-6']
  )
  assert _known(tmp_path) == _OLD
  facts_keeper.settle(model_dirs.ModelDir(str(tmp_path)))
  assert _shown(tmp_path)['compact'] == _OLD.params.serialize()
  # What is trained from there is not what was.
  _train(tmp_path, _OLD, [6, 9])
  assert _known(tmp_path) == _OLD
  assert len(_shown(tmp_path)['facts']) == 1


def test_it_holds_whenever_a_trainer_is_killed(tmp_path, monkeypatch):
  """After each writing of a file."""
  write = model_dirs.ModelDir.write
  left = 0

  def be_killed(model_dir, name, text):
    nonlocal left
    left -= 1
    if left < 0:
      raise killing.KilledError
    write(model_dir, name, text)

  _train(tmp_path / 'begun', _OLD, [0, 6])
  monkeypatch.setattr(model_dirs.ModelDir, 'write', be_killed)
  for number in itertools.count():
    left = number
    directory = tmp_path / str(number)
    shutil.copytree(tmp_path / 'begun', directory)
    try:
      _train(directory, _NEW, [6, 9], files={'labels.txt': 'dog\n'})
      break
    except killing.KilledError:
      pass
    has_saved = command.newest_step(directory) == 9
    assert has_saved == (number > 0)
    assert _known(directory) == (_NEW if has_saved else _OLD)
    # The next trainer writes what this one has not.
    left = 99
    facts_keeper.settle(model_dirs.ModelDir(str(directory)))
    expected = _NEW if has_saved else _OLD
    assert _shown(directory)['compact'] == expected.params.serialize()
    _train(directory, _NEW, [10], files={'labels.txt': 'dog\n'})
    assert (directory / 'labels.txt').read_text() == 'dog\n'
  # Before the save, and two files after it.
  assert number == 3


@pytest.mark.parametrize(
  'text',
  [
    '{',
    '[]',
    '{}',
    '7',
    '{"compact": 3}',
    '{"compact": "nonsense=1"}',
    '{"facts": [{"after_step": -1}]}',
    '{"facts": {"after_step": -1}}',
  ],
)
def test_something_else_is_an_error_that_names_the_file(tmp_path, text):
  _write(tmp_path, 3)
  (tmp_path / 'hparams.json').write_text(text)
  with pytest.raises(ValueError, match=f'{tmp_path}/hparams.json '):
    _known(tmp_path)


def test_a_file_of_an_older_version(tmp_path):
  _write(tmp_path, 3)
  (tmp_path / 'hparams.json').write_text(
    json.dumps({'hparams': {}, 'compact': _PARAMS.serialize()})
  )
  assert _known(tmp_path) == facts.Facts(_PARAMS)
  assert _known(tmp_path).plan() is None
  before = _content(tmp_path)
  facts_keeper.settle(model_dirs.ModelDir(str(tmp_path)))
  assert _content(tmp_path) == before
  _train(tmp_path, _NEW, [3, 6])
  assert _known(tmp_path, str(tmp_path / 'model.ckpt-3')).params == _PARAMS
  assert _known(tmp_path) == _NEW


def test_a_run_of_the_published_code(tmp_path):
  _write(tmp_path, 3)
  _train(tmp_path, _NEW, [3, 6])
  assert _known(tmp_path, str(tmp_path / 'model.ckpt-3')) is None
  assert _known(tmp_path) == _NEW


def test_a_checkpoint_that_is_kept_elsewhere(tmp_path):
  _train(tmp_path, _OLD, [0, 6])
  _train(tmp_path, _NEW, [6, 9])
  best = tmp_path / 'best'
  best.mkdir()
  checkpoint = str(best / 'model.ckpt-6')
  checkpoint_files.copy(str(tmp_path / 'model.ckpt-6'), checkpoint)
  assert _known(tmp_path, checkpoint) == _OLD


def test_storage_that_cannot_be_reached_is_named(monkeypatch):
  def fail(path):
    raise tf.errors.FailedPreconditionError(None, None, 'no such host\n at all')

  monkeypatch.setattr(tf.io.gfile, 'exists', fail)
  with pytest.raises(ValueError) as caught:
    earlier_runs.recorded_params('gs://nowhere/x')
  assert str(caught.value) == (
    '--model_dir=gs://nowhere/x cannot be read (no such host); name a '
    'directory that can.'
  )


# --- Another plan -------------------------------------------------------------

# 1.875 steps an epoch: stage 1 ends with step 3, stage 2 with step 5.
_FEWER = positions.Counting(30, 16, (2, 1))
# 6 steps an epoch: 12 and 18.
_MORE = positions.Counting(48, 8, (2, 1))


@pytest.mark.parametrize('now, step', [(_FEWER, 3), (_MORE, 12)])
def test_move(tmp_path, now, step):
  _train(tmp_path, _OLD, [0, 3, 6])
  before = _content(tmp_path)
  model_dir = model_dirs.ModelDir(str(tmp_path))
  aside = facts_keeper.move(model_dir, _known(tmp_path), now)
  assert command.steps(tmp_path) == [step]
  values = command.variables(tmp_path)
  assert values['global_step'] == step
  np.testing.assert_array_equal(values['w'], [6] * 10)
  # It was trained as it was, but its step is counted otherwise.
  assert _known(tmp_path) == dataclasses.replace(_OLD, counting=now)
  # Nothing is lost, and what was is a run like any other.
  former = tmp_path / 'former_plans' / '1'
  assert aside == str(former)
  kept = _content(former)
  for name, content in before.items():
    if not name.startswith('checkpoint'):
      assert kept[name] == content
  assert command.newest_step(former) == 6
  assert _known(former) == _OLD
  # On from there.
  going_on = dataclasses.replace(_NEW, counting=now)
  _train(tmp_path, going_on, [step, step + 1])
  assert _known(tmp_path) == going_on
  assert _known(tmp_path, str(tmp_path / f'model.ckpt-{step}')).params == (
    _OLD.params
  )


def test_move_to_the_same_step(tmp_path):
  _train(tmp_path, _OLD, [0, 6])
  # The same steps, but step 6 is in stage 1 now.
  now = positions.Counting(48, 16, (3, 1))
  model_dir = model_dirs.ModelDir(str(tmp_path))
  assert facts_keeper.move(model_dir, _known(tmp_path), now) is None
  assert _known(tmp_path) == dataclasses.replace(_OLD, counting=now)
  assert command.steps(tmp_path) == [0, 6]


def test_move_is_done_or_not_whenever_it_is_killed(tmp_path, monkeypatch):
  """After each operation on files but those that only read."""
  _train(tmp_path / 'begun', _OLD, [0, 3, 6])
  killer = killing.Killer(monkeypatch)
  outcomes = set()
  for number in itertools.count():
    directory = tmp_path / str(number)
    shutil.copytree(tmp_path / 'begun', directory)
    model_dir = model_dirs.ModelDir(str(directory))
    killer.left = number
    try:
      facts_keeper.move(model_dir, _OLD, _FEWER)
      break
    except killing.KilledError:
      killer.left = math.inf
    model_dir = model_dirs.ModelDir(str(directory))
    newest = model_dir.newest()
    assert checkpoint_files.damage(newest) is None
    step = command.variables(newest)['global_step']
    assert step == checkpoint_files.step_of(newest)
    counted = {6: _COUNTING, 3: _FEWER}[int(step)]
    assert _known(directory) == dataclasses.replace(_OLD, counting=counted)
    outcomes.add(int(step))
    if step == 6:  # Again, from the beginning.
      facts_keeper.move(model_dir, _known(directory), _FEWER)
      assert command.newest_step(directory) == 3
    # No value is lost.
    found = {
      float(command.variables(str(path)[: -len('.index')])['w'][0])
      for path in directory.rglob('model.ckpt-*.index')
    }
    assert found == {0, 3, 6}
  assert outcomes == {3, 6}
  assert number > 10


# --- References ---------------------------------------------------------------


def _of_run(directory, **preprocessing):
  params = _PARAMS.replace('input_data.input_fn', 'cifar10')
  for name, value in preprocessing.items():
    params = params.replace(f'input_data.preprocessing.{name}', value)
  _train(directory, dataclasses.replace(_OLD, params=params), [0, 6])
  return str(directory / 'model.ckpt-6')


def test_whitening_of_a_run(tmp_path):
  # Of a known set, measured, and not at all.
  known = _of_run(tmp_path / 'known')
  found = earlier_runs.whitening_of_reference(known)
  assert found.mean == (-0.0172, -0.0356, -0.107)
  measured = _of_run(tmp_path / 'measured')
  (tmp_path / 'measured' / 'whitening.json').write_text(
    '{"mean": [0, 0.5, 1], "std": [1, 2, 3], "num_images": 4, "image_size": 8}'
  )
  found = earlier_runs.whitening_of_reference(measured)
  assert (found.mean, found.std) == ((0, 0.5, 1), (1, 2, 3))
  assert found.reference == measured
  none = _of_run(tmp_path / 'none', apply_whitening=False)
  found = earlier_runs.whitening_of_reference(none)
  assert found.mean is None and 'none' in found.describe()


def test_whitening_of_the_best_of_a_run(tmp_path):
  checkpoint = _of_run(tmp_path / 'run')
  best = tmp_path / 'run' / 'best'
  best.mkdir()
  checkpoint_files.copy(checkpoint, str(best / 'model.ckpt-6'))
  found = earlier_runs.whitening_of_reference(str(best / 'model.ckpt-6'))
  assert found.mean == (-0.0172, -0.0356, -0.107)


@pytest.mark.parametrize('where', ['variables', 'hub/variables'])
@pytest.mark.parametrize('mean', [[0.5, 0.25, 0], None])
def test_whitening_of_an_export(tmp_path, where, mean):
  (tmp_path / where).mkdir(parents=True)
  export = {'mean': mean, 'std': mean and [1, 1, 1]}
  (tmp_path / 'export.json').write_text(json.dumps(export))
  found = earlier_runs.whitening_of_reference(
    str(tmp_path / where / 'variables')
  )
  assert found.mean == (mean and tuple(mean))


def test_whitening_of_what_nobody_knows(tmp_path):
  _write(tmp_path, 3)
  for name in ('model.ckpt-3', 'variables/variables', 'model'):
    assert earlier_runs.whitening_of_reference(str(tmp_path / name)) is None


# What a run of _PARAMS was trained with, that is not the default.
_OTHERS = {
  'architecture.encoder_depth': 18,
  'architecture.encoder_width': 0.25,
  'architecture.first_conv_stride': 1,
  'architecture.projection_head_layers': (8,),
  'input_data.preprocessing.image_size': 16,
  'input_data.preprocessing.crop_padding': 0,
  'input_data.preprocessing.apply_whitening': False,
}


def _others():
  params = _PARAMS
  for path, value in _OTHERS.items():
    params = params.replace(path, value)
  return params


def _taking(*parts):
  """Returns HParams of a training that takes parts from its reference."""
  params = hparams.HParams()
  for part in parts:
    params = params.replace(f'warm_start.warm_start_{part}', True)
  return params


def _taken(directory, params, reference):
  """Returns what is taken and is not the default."""
  found = earlier_runs.taken(str(directory / 'new'), str(reference), params)
  defaults = hparams.HParams()
  return {p: v for p, v in found.items() if v != defaults.get(p)}


def test_an_encoder_brings_its_architecture_and_images(tmp_path):
  run = tmp_path / 'run'
  _train(run, dataclasses.replace(_OLD, params=_others()), [0, 6])
  (run / 'best').mkdir()
  checkpoint_files.copy(
    str(run / 'model.ckpt-6'), str(run / 'best' / 'model.ckpt-6')
  )
  expected = {k: v for k, v in _OTHERS.items() if 'projection' not in k}
  params = _taking('encoder')
  for reference in (run, run / 'model.ckpt-6', run / 'best' / 'model.ckpt-6'):
    assert _taken(tmp_path, params, reference) == expected
  # Colors that are to be measured are not those of the reference.
  measure = 'input_data.preprocessing.measure_whitening'
  found = _taken(tmp_path, params.replace(measure, True), run)
  assert 'input_data.preprocessing.apply_whitening' not in found
  # A head brings its own alone.
  head = 'architecture.projection_head_layers'
  assert _taken(tmp_path, _taking('projection_head'), run) == {head: (8,)}
  assert _taken(tmp_path, _taking('encoder', 'projection_head'), run) == {
    **expected,
    head: (8,),
  }


@pytest.mark.parametrize('where', ['variables', 'hub/variables'])
def test_an_export_brings_them(tmp_path, where):
  (tmp_path / where).mkdir(parents=True)
  (tmp_path / where / 'variables.index').write_text('')
  export = {'compact': _others().serialize()}
  (tmp_path / 'export.json').write_text(json.dumps(export))
  found = _taken(tmp_path, _taking('encoder'), tmp_path)
  assert found['input_data.preprocessing.image_size'] == 16
  (tmp_path / 'export.json').write_text('{"compact": "zz=1"}')
  with pytest.raises(ValueError, match='export.json holds no hyper-parameters'):
    _taken(tmp_path, _taking('encoder'), tmp_path)


def test_variables_tell_a_part(tmp_path):
  with tf.Graph().as_default(), tf1.Session() as session:
    resnet.Encoder(
      layers.Module(None, 'ContrastiveModel'),
      hparams.Architecture(encoder_depth=34, encoder_width=0.0625),
    )
    session.run(tf1.global_variables_initializer())
    checkpoint = tf1.train.Saver().save(session, str(tmp_path / 'of-others'))
  found = earlier_runs.of_reference(checkpoint)
  assert found == {
    'architecture.encoder_architecture': enums.EncoderArchitecture.RESNET_V1,
    'architecture.encoder_depth': 34,
    'architecture.encoder_width': pytest.approx(0.07, abs=0.01),
    'architecture.first_conv_kernel_size': 7,
  }
  params = _taking('encoder')
  for path, value in found.items():
    params = params.replace(path, value)
  ((is_warning, line), *others) = earlier_runs.compare_with_reference(
    checkpoint, checkpoint, params.replace('architecture.encoder_depth', 34)
  )
  assert not is_warning and line.startswith(f'taken from {checkpoint}: ')
  ((is_warning, line),) = others
  assert is_warning and line.startswith('nothing says how the images of ')
  # Of published modules it is known.
  handle = 'https://tfhub.dev/google/supcon/resnet_v1_50/imagenet/x/1'
  published = earlier_runs.of_reference(checkpoint, handle)
  assert published['input_data.preprocessing.image_size'] == 224
  assert not published['input_data.preprocessing.apply_whitening']
  assert len(published) == 10
  lines = earlier_runs.compare_with_reference(
    checkpoint,
    handle,
    _taking('encoder').replace('input_data.preprocessing.image_size', 32),
  )
  warnings = [line for is_warning, line in lines if is_warning]
  assert len(warnings) == 1 and 'image_size=32' in warnings[0]
  assert 'nothing says' not in warnings[0]


def test_a_run_that_has_begun_takes_what_it_took(tmp_path):
  _train(tmp_path / 'new', dataclasses.replace(_OLD, params=_others()), [0, 3])
  found = _taken(tmp_path, _taking('encoder'), tmp_path / 'nowhere')
  assert found['input_data.preprocessing.image_size'] == 16


def test_a_reference_that_cannot_be_read_is_named(tmp_path):
  with pytest.raises(ValueError, match='--reference_ckpt=.*does not exist'):
    _taken(tmp_path, _taking('encoder'), tmp_path / 'nowhere')
