"""main.py on several devices and on several machines, which are processes.

All runs are of three steps, one in stage 1 and two in stage 2, and see the same
global batches. The encoder is the TINY one.
"""

import json
import re
import shutil
import socket
import sys
import time
import types

import numpy as np
import pytest

from tests import command
from tests.tpu import cases

_LOCAL_WORKERS = command.ROOT / 'scripts' / 'local_workers.sh'
_ON_CPU = {'CUDA_VISIBLE_DEVICES': ''}

_FLAGS = {
  **command.DIGITS,
  'temperature': 0.5,
  'stop_gradient_before_classification_head': False,
  'num_images': 100,
  'summary_interval_steps': 1,
  'stage_1_epochs': 1,
  'stage_1_warmup_epochs': 0,
  'stage_1_base_learning_rate': 0.3,
  'stage_1_optimizer': 'MOMENTUM',
  'stage_1_cross_entropy_loss_weight': 1.0,
  'stage_1_weight_decay': 0.01,
  'stage_2_epochs': 1,
  'stage_2_warmup_epochs': 0,
  'stage_2_base_learning_rate': 3.0,
  'stage_2_optimizer': 'MOMENTUM',
  'stage_2_contrastive_loss_weight': 0.5,
}
_STEPS = [0, 1, 3]  # Those of checkpoints: the start and the ends of stages.

# float32: relative to what training has changed, as a norm over a variable.
_TOLERANCE = 4e-5


def _flags(directory, model, **changes):
  return {
    **_FLAGS,
    'mode': 'train',
    'data_dir': directory / 'data',
    'model_dir': directory / model,
    **changes,
  }


def _run(directory, flags):
  return command.succeed(flags, directory, is_small=True, **_ON_CPU)


def _run_workers(directory, flags, count=2):
  return command.succeed(
    flags,
    directory,
    program=_LOCAL_WORKERS,
    first=[str(count), sys.executable, str(command.MAIN)],
    is_small=True,
    **_ON_CPU,
  )


@pytest.fixture(scope='module')
def one(tmp_path_factory):
  """A run on one device."""
  directory = tmp_path_factory.mktemp('devices')
  flags = _flags(directory, 'one', mode='train_then_eval')
  return types.SimpleNamespace(
    directory=directory,
    model_dir=flags['model_dir'],
    run=_run(directory, flags),
  )


def _check_checkpoints(model_dir, expected_dir, steps):
  start = command.variables(expected_dir / 'model.ckpt-0')
  for step in steps:
    found, expected = (
      command.variables(each / f'model.ckpt-{step}')
      for each in (model_dir, expected_dir)
    )
    if step == 0:
      for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)
    worst = cases.worst_difference(found, expected, before=start)
    assert worst < (_TOLERANCE,), step


def _check_same_run(model_dir, one):
  """Compares all that a run leaves."""
  assert command.steps(model_dir) == _STEPS
  _check_checkpoints(model_dir, one.model_dir, _STEPS)
  found, expected = (
    command.summaries(each / 'train') for each in (model_dir, one.model_dir)
  )
  assert set(found) == set(expected)
  for tag in set(expected) - {'global_step/sec', 'examples/sec'}:
    assert found[tag] == pytest.approx(expected[tag], rel=1e-4), tag
  found, expected = (
    command.table(each / 'metrics.csv') for each in (model_dir, one.model_dir)
  )
  assert list(found) == list(expected) == list(range(_STEPS[-1]))
  results = [
    json.loads((each / 'result.json').read_text())
    for each in (model_dir, one.model_dir)
  ]
  found, expected = (result['metrics'] for result in results)
  assert found == pytest.approx(expected, rel=1e-4, abs=1e-3)
  assert results[0]['num_examples'] == 360
  # Losses are smooth, accuracies are counts.
  for name in ('loss/contrastive_loss', 'loss/cross_entropy_loss'):
    assert found[name] == pytest.approx(expected[name], rel=1e-5)
  assert {path.name for path in model_dir.iterdir() if path.is_dir()} == {
    path.name for path in one.model_dir.iterdir() if path.is_dir()
  }


def test_two_replicas_do_what_one_does(one):
  flags = _flags(one.directory, 'two', mode='train_then_eval', num_replicas=2)
  run = _run(one.directory, flags)
  assert 'batch 64 = 2 CPU devices x 32' in run.log
  assert 'batch 64 on one CPU device' in one.run.log
  _check_same_run(flags['model_dir'], one)


def test_micro_batches_do_what_as_many_replicas_do(tmp_path):
  flags = _flags(
    tmp_path,
    'replicas',
    use_global_batch_norm=False,
    augmentation_type='SIMCLR',
    defer_augmentation=True,
  )
  in_parts = {**flags, 'model_dir': tmp_path / 'parts'}
  finished = command.run_many(
    [{**flags, 'num_replicas': 2}, {**in_parts, 'micro_batch_size': 32}],
    tmp_path,
    is_small=True,
  )
  for run in finished:
    assert run.returncode == 0, run.stderr
  _check_checkpoints(in_parts['model_dir'], flags['model_dir'], _STEPS)


@pytest.mark.slow
def test_two_workers_do_what_one_device_does(one):
  flags = _flags(one.directory, 'workers', mode='train_then_eval')
  run = _run_workers(one.directory, flags)
  for index in (0, 1):
    lines = [line for line in run.log if line.startswith(f'[{index}] ')]
    assert any('= 2 CPU devices x 32, on 2 machines' in line for line in lines)
    assert any(' step 3 of 3 ' in line for line in lines)
    assert not any('Traceback' in line for line in lines)
    # The chief alone evaluates, and tells.
    is_chief = index == 0
    assert any('evaluating ' in line for line in lines) == is_chief
    assert (f'[{index}] Top-1' in run.stdout) == is_chief
  _check_same_run(flags['model_dir'], one)


def test_who_has_ended_is_not_lost_while_the_last_step_is_saved(tmp_path):
  flags = _flags(
    tmp_path,
    'model',
    mode='train_then_eval',
    stage_2_epochs=0,
    export_formats='none',
  )
  finished = command.succeed(
    flags,
    tmp_path,
    program=_LOCAL_WORKERS,
    first=['2', sys.executable, str(command.ROOT / 'tests/slow_save_main.py')],
    is_small=True,
    SLOW_STEP='1',
    **_ON_CPU,
  )
  assert 'is gone' not in finished.stderr
  assert '[0] Top-1' in finished.stdout


@pytest.mark.slow
def test_two_workers_start_from_the_reference(one):
  warm = dict(
    reference_ckpt=one.model_dir,
    warm_start_encoder=True,
    batch_norm_in_train_mode=True,
    stage_1_optimizer='LARS',
  )
  flags = _flags(one.directory, 'warm', **warm)
  _run(one.directory, flags)
  _run_workers(
    one.directory, {**flags, 'model_dir': one.directory / 'warm, workers'}
  )
  _check_checkpoints(
    one.directory / 'warm, workers', flags['model_dir'], _STEPS
  )
  encoder = [
    name
    for name in command.variables(flags['model_dir'] / 'model.ckpt-0')
    if name.startswith('ContrastiveModel/Encoder/') and 'Optimizer' not in name
  ]
  found = command.variables(one.directory / 'warm, workers' / 'model.ckpt-0')
  expected = command.variables(one.model_dir)
  for name in encoder:
    np.testing.assert_array_equal(found[name], expected[name], err_msg=name)


# --- Checkpoints go from each to each -----------------------------------------


def _begun_by(directory, name, source):
  """Returns a model_dir with the checkpoint after step 1 of another one."""
  model_dir = directory / name
  model_dir.mkdir()
  for path in source.glob('model.ckpt-[01].*'):
    shutil.copy2(path, model_dir)
  (model_dir / 'checkpoint').write_text(
    'model_checkpoint_path: "model.ckpt-1"\n'
    'all_model_checkpoint_paths: "model.ckpt-1"\n'
  )
  return model_dir


@pytest.mark.slow
class TestInterchange:
  def test_two_workers_continue_one_device(self, one):
    model_dir = _begun_by(one.directory, 'one, workers', one.model_dir)
    run = _run_workers(one.directory, _flags(one.directory, model_dir.name))
    continued = 'model_dir holds step 1 of 3: training continues there'
    assert run.stderr.count(continued) == 2
    _check_checkpoints(model_dir, one.model_dir, [3])

    # And on from there; nothing is left but to load what they have left.
    (model_dir / 'checkpoint').unlink()
    again = _begun_by(one.directory, 'workers, four', model_dir)
    _run(one.directory, _flags(one.directory, again.name, num_replicas=4))
    _check_checkpoints(again, one.model_dir, [3])

  def test_one_device_continues_two_replicas(self, one):
    flags = _flags(one.directory, 'begun by two', num_replicas=2)
    _run(one.directory, {**flags, 'stage_2_epochs': 0})
    assert command.steps(flags['model_dir']) == [0, 1]
    _run(one.directory, {**flags, 'num_replicas': 1})
    _check_checkpoints(flags['model_dir'], one.model_dir, [3])


@pytest.mark.slow
def test_workers_need_the_same_directory(tmp_path):
  flags = _flags(tmp_path, 'model')
  processes, _ = _start(tmp_path, flags, other={'model_dir': tmp_path / 'own'})
  with processes[0], processes[1]:
    chief, other = [process.wait() for process in processes]
  for run in chief, other:
    assert run.returncode == 1
    assert 'Traceback' not in run.stderr
  last_line = other.stderr.splitlines()[-1]
  assert last_line.startswith('main.py: stopped: found no hparams.json')
  assert f'--model_dir={tmp_path / "own"}' in last_line
  assert 'worker 1 ' in chief.stderr.splitlines()[-1]


# --- A worker that dies -------------------------------------------------------


def _free_ports(count):
  sockets = [socket.create_server(('127.0.0.1', 0)) for _ in range(count)]
  ports = [each.getsockname()[1] for each in sockets]
  for each in sockets:
    each.close()
  return ports


def _start(directory, flags, other=None):
  """Starts two workers without the script, so that one can be killed.

  Args:
    directory: Their working directory.
    flags: {flag: value}.
    other: Flags of the second one that are not those of the first.
  """
  addresses = [f'127.0.0.1:{port}' for port in _free_ports(2)]
  return [
    command.Process(
      {**flags, **(other or {})} if index else flags,
      directory,
      is_small=True,
      TF_CONFIG=json.dumps(
        {
          'cluster': {'worker': addresses},
          'task': {'type': 'worker', 'index': index},
        }
      ),
      **_ON_CPU,
    )
    for index in (0, 1)
  ], addresses


@pytest.mark.slow
@pytest.mark.parametrize('lost', [0, 1])
def test_survivors_end_and_all_can_begin_again(tmp_path, lost):
  flags = _flags(
    tmp_path, 'model', num_images=640, stage_2_epochs=0, save_interval_steps=5
  )
  model_dir = flags['model_dir']
  # 10 steps an epoch: more than it can take until the signal.
  processes, addresses = _start(tmp_path, {**flags, 'stage_1_epochs': 1000})
  with processes[0], processes[1]:
    processes[1 - lost].wait_until(lambda: command.newest_step(model_dir) >= 10)
    processes[lost].kill()
    killed = time.monotonic()
    survivor = processes[1 - lost].wait()
    assert time.monotonic() - killed < 60
  assert survivor.returncode == 1
  assert 'Traceback' not in survivor.stderr
  last_line = survivor.stderr.splitlines()[-1]
  assert last_line.startswith(
    f'main.py: stopped: worker {lost} ({addresses[lost]}) is gone'
  )

  step = command.newest_step(model_dir)
  assert step >= 10
  epochs = step // 10 + 2
  processes, _ = _start(tmp_path, {**flags, 'stage_1_epochs': epochs})
  with processes[0], processes[1]:
    finished = [process.wait() for process in processes]
  for run in finished:
    assert run.returncode == 0, run.stderr
    assert any(
      re.match(rf'model_dir holds step {step} of {10 * epochs}: ', line)
      for line in run.log
    )
  assert command.newest_step(model_dir) == 10 * epochs
