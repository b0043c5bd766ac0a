"""main.py where training diverges: it stops, or skips what it diverged at.

Some batches of the data order are NaN: see poisoned_main.py. The encoder is
the TINY one.
"""

import json
import pathlib
import re
import shutil
import sys

import numpy as np
import pytest
import tensorflow as tf

from tests import command

tf1 = tf.compat.v1

_HERE = pathlib.Path(__file__).parent
_POISONED_MAIN = _HERE / 'poisoned_main.py'
_ON_CPU = {'CUDA_VISIBLE_DEVICES': ''}

_FLAGS = {
  **command.DIGITS,
  **command.SMALL,
  'mode': 'train',
  'temperature': 0.5,
  'num_images': 128,
  'save_interval_steps': 3,
  'stage_1_epochs': 4,
  'stage_1_warmup_epochs': 0,
  'stage_1_base_learning_rate': 0.3,
  'stage_1_optimizer': 'MOMENTUM',
  'stage_1_cross_entropy_loss_weight': 1.0,
  'stage_2_epochs': 3,
  'stage_2_warmup_epochs': 0,
  'stage_2_base_learning_rate': 3.0,
  'stage_2_optimizer': 'LARS',
}
_BOUNDARY, _LAST = 8, 14  # Steps: 2 per epoch.


@pytest.fixture(scope='module', name='directory')
def _directory(tmp_path_factory):
  return tmp_path_factory.mktemp('divergence')


def _flags(directory, model, **changes):
  return {
    **_FLAGS,
    'data_dir': directory / 'data',
    'model_dir': directory / model,
    **changes,
  }


def _start(directory, flags, poison):
  return command.Process(
    flags, directory, program=_POISONED_MAIN, POISON=poison, **_ON_CPU
  )


def _run(directory, flags, poison):
  with _start(directory, flags, poison) as process:
    return process.wait()


def _rollbacks(model_dir):
  """Returns [(checkpoint_step, diverged_step, skipped)] of rollbacks.json."""
  keys = ('checkpoint_step', 'diverged_step', 'skipped')
  found = json.loads((model_dir / 'rollbacks.json').read_text())
  for each in found:
    assert each['reason'].startswith('NaN or infinite at step ')
  return [tuple(each[key] for key in keys) for each in found]


def _assert_same_bits(first, second):
  first, second = command.variables(first), command.variables(second)
  assert first.keys() == second.keys()
  for name, value in first.items():
    assert value.tobytes() == second[name].tobytes(), name


def test_rollbacks_survive_a_kill(directory):
  # Step 4 has NaN: back to step 3, which takes batch 5. Step 9 then has batch
  # 11, which is NaN, and is what the checkpoint of the boundary leads to in two
  # steps: back to step 8, which takes batch 12.
  memory = {'memory_size': 128, 'memory_momentum': 0.9}
  flags = _flags(directory, 'killed', on_nan='rollback', **memory)
  model_dir = flags['model_dir']
  with _start(directory, flags, '4,11') as process:
    process.wait_until(lambda: command.newest_step(model_dir) >= 6)
    killed = process.kill()
  assert 'WARNING: rollback 1 of at most 3: back to step 3, without the 2 ' in (
    killed.stderr
  )
  finished = _run(directory, flags, '4,11')
  assert finished.returncode == 0, finished.stderr
  assert _rollbacks(model_dir) == [(3, 4, 2), (8, 9, 2)]
  assert (
    f'WARNING: 4 batches were skipped in 2 rollbacks; {model_dir}/'
    'rollbacks.json lists them'
  ) in finished.log
  assert command.steps(model_dir)[-1] == _LAST

  # A run that is told so from the start sees the same, and nothing bad.
  told = _flags(directory, 'told', **memory)
  told['model_dir'].mkdir()
  shutil.copy(model_dir / 'rollbacks.json', told['model_dir'])
  command.succeed(told, directory, **_ON_CPU)
  assert len(_rollbacks(told['model_dir'])) == 2
  for step in (_BOUNDARY, _LAST):
    checkpoint = f'model.ckpt-{step}'
    _assert_same_bits(model_dir / checkpoint, told['model_dir'] / checkpoint)


def test_it_stops_when_it_may_not_roll_back_again(directory):
  flags = _flags(
    directory, 'often', on_nan='rollback', max_rollbacks=2, stage_2_epochs=0
  )
  # Nothing was saved but the beginning, to which it goes back twice: batches 1
  # and 3 are NaN, then batch 4 is the first.
  finished = _run(directory, flags, '1,3,4')
  assert finished.returncode == 1, finished.stderr
  model_dir = flags['model_dir']
  assert _rollbacks(model_dir) == [(0, 1, 2), (0, 1, 2)]
  *_, last_line = finished.log
  assert re.fullmatch(
    r'main.py: stopped: NaN or infinite at step 0, stage 1: .*; loss '
    r'parts: total .*, weight_decay \S+; 2 rollbacks have been made, as many '
    r'as --max_rollbacks=2 allows\. .*',
    last_line,
  ), last_line
  assert 'Traceback' not in finished.stderr
  assert command.steps(model_dir) == [0]


def test_what_was_restored_is_no_reason_to_roll_back(directory):
  # Its checkpoint is as broken as what is trained from it.
  flags = _flags(
    directory, 'restored', on_nan='rollback', stage_1_epochs=1, stage_2_epochs=0
  )
  model_dir = flags['model_dir']
  command.succeed(flags, directory, **_ON_CPU)
  newest = command.newest_step(model_dir)
  _spoil(model_dir / f'model.ckpt-{newest}')
  flags['stage_1_epochs'] = 4
  finished = command.run(flags, directory, **_ON_CPU)
  assert finished.returncode == 1, finished.stderr
  assert 'Traceback' not in finished.stderr
  assert f'NaN or infinite after step {newest - 1}, stage 1' in finished.log[-1]
  assert not (model_dir / 'rollbacks.json').exists()


def _spoil(checkpoint):
  """Puts a NaN into the first kernel of a checkpoint."""
  values = command.variables(checkpoint)
  name = next(n for n in sorted(values) if n.endswith('/conv2d/kernel'))
  values[name].flat[0] = np.nan
  with tf.Graph().as_default(), tf1.Session() as session:
    for each, value in values.items():
      tf1.get_variable(each, initializer=value, use_resource=True)
    session.run(tf1.global_variables_initializer())
    tf1.train.Saver().save(
      session, str(checkpoint), write_meta_graph=False, write_state=False
    )


def test_one_bad_replica_stops_all(directory):
  flags = _flags(
    directory, 'two', num_replicas=2, stage_2_epochs=0, save_interval_steps=1
  )
  finished = _run(directory, flags, '5')  # The first replica alone has NaN.
  assert finished.returncode == 1, finished.stderr
  *_, last_line = finished.log
  found = re.fullmatch(
    r'main.py: stopped: NaN or infinite at step 5, stage 1: the loss and the '
    r'gradients of \d+ of \d+ variables '
    r'\(the first is (ContrastiveModel/\S+)\) and .*; loss parts: total nan, '
    r'.*',
    last_line,
  )
  assert found, last_line
  assert not (flags['model_dir'] / 'rollbacks.json').exists()
  # Nothing of the step is left; before it, all was saved.
  assert command.newest_step(flags['model_dir']) == 5
  variables = command.variables(flags['model_dir'])
  assert found[1] in variables
  assert all(np.all(np.isfinite(value)) for value in variables.values())


@pytest.mark.slow
def test_all_workers_roll_back(directory):
  flags = _flags(directory, 'workers', on_nan='rollback')
  finished = command.succeed(
    flags,
    directory,
    program=command.ROOT / 'scripts' / 'local_workers.sh',
    first=['2', sys.executable, str(_POISONED_MAIN)],
    POISON='4',
    **_ON_CPU,
  )
  for worker in (0, 1):
    lines = [line for line in finished.log if line.startswith(f'[{worker}] ')]
    assert (
      sum('WARNING: rollback 1 of at most 3' in line for line in lines) == 1
    )
  assert _rollbacks(flags['model_dir']) == [(3, 4, 2)]
  assert command.steps(flags['model_dir'])[-1] == _LAST
