"""End-to-end tests: main.py on storage that fails on demand."""

import numpy as np
import pytest

from tests import command

_FLAGS = {
  'mode': 'train',
  'use_tpu': False,
  'input_fn': 'digits',
  'image_size': 8,
  'eval_crop_method': 'CROP_THEN_RESIZE',
  'crop_padding': 0,
  'num_images': 40,
  'batch_size': 8,
  'projection_head_layers': '8',
  **command.SMALL,
  'stage_1_epochs': 2,
  'stage_1_warmup_epochs': 0,
  'stage_1_base_learning_rate': 1.0,
  'stage_2_epochs': 1,
  'stage_2_warmup_epochs': 0,
  'save_interval_steps': 3,
}


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
  return tmp_path_factory.mktemp('data')


def _run(directory, data_dir, flaky):
  directory.mkdir()
  return command.run(
    {**_FLAGS, 'data_dir': data_dir, 'model_dir': directory / 'model'},
    directory,
    program=command.ROOT / 'tests' / 'flaky_main.py',
    FLAKY=flaky,
  )


@pytest.mark.slow
def test_what_passes_is_tried_again_with_the_right_batches(tmp_path, data_dir):
  whole = _run(tmp_path / 'whole', data_dir, 'unavailable:1000')
  assert whole.returncode == 0, whole.stderr
  # Saves are at steps 0, 3, 6, 9, 10 and then in stage 2.
  faults = 'unavailable:2,unavailable:3,session:8,session:13'
  torn = _run(tmp_path / 'torn', data_dir, faults)
  assert torn.returncode == 0, torn.stderr
  again = [line for line in torn.log if 'trying again in' in line]
  assert ['saving' in line for line in again] == [True, True, False, False]
  assert 'training from step 6 on failed' in again[2]
  expected = command.variables(tmp_path / 'whole' / 'model')
  found = command.variables(tmp_path / 'torn' / 'model')
  assert set(found) == set(expected)
  for name, value in expected.items():
    np.testing.assert_array_equal(found[name], value, err_msg=name)


def test_what_does_not_pass_ends_with_a_line(tmp_path, data_dir):
  ever = ','.join(f'unavailable:{n}' for n in range(2, 30))
  run = _run(tmp_path / 'ever', data_dir, ever)
  assert run.returncode == 1
  assert 'Traceback' not in run.stderr
  assert run.log[-1].startswith('main.py: stopped: ')
  assert any('giving up' in line for line in run.log)


def test_a_missing_permission_ends_at_once(tmp_path, data_dir):
  run = _run(tmp_path / 'denied', data_dir, 'denied:2')
  assert run.returncode == 1
  assert 'Traceback' not in run.stderr
  assert 'storage says no' in run.log[-1]
  assert str(tmp_path / 'denied' / 'model') in run.log[-1]
  assert not any('trying again' in line for line in run.log)
  assert command.steps(tmp_path / 'denied' / 'model') == [0]
