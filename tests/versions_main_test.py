"""A run of one TensorFlow is continued under another."""

import json
import os
import shutil
import sys

import numpy as np
import pytest
import tensorflow as tf

from tests import command

_OLDEST = os.environ.get('SUPCON_TENSORFLOW_2_15_PYTHON')
_NEWEST = sys.executable

pytestmark = [
  pytest.mark.slow,
  pytest.mark.skipif(
    not _OLDEST or tf.__version__.startswith('2.15'),
    reason='needs a newer TensorFlow here, and SUPCON_TENSORFLOW_2_15_PYTHON '
    'to name the Python of an environment with '
    'tests/requirements_tensorflow_2_15.txt; .ci/run makes both',
  ),
]

# 240 images, so 4 steps an epoch. The checkpoint of 2 epochs is continued. That
# each TensorFlow gives a ResNet the same variables is for resnet_test.py.
_FLAGS = {
  **command.DIGITS,
  **command.SMALL,
  'mode': 'train_then_eval',
  'export_formats': 'saved_model',
  'num_images': 240,
  'batch_size': 60,
  'stage_1_epochs': 3,
  'stage_1_warmup_epochs': 0,
  'stage_2_epochs': 1,
  'stage_2_warmup_epochs': 0,
  'save_interval_steps': 4,
  'summary_interval_steps': 1,
  'max_checkpoints_to_keep': 100,
}
_STEP = 8


@pytest.fixture(scope='module')
def unbroken(tmp_path_factory):
  """Returns {interpreter: model_dir of a whole run}."""
  model_dirs = {}
  for python in (_OLDEST, _NEWEST):
    directory = tmp_path_factory.mktemp('unbroken')
    flags = {'model_dir': directory / 'run', 'data_dir': directory}
    command.succeed({**_FLAGS, **flags}, directory, python=python)
    model_dirs[python] = directory / 'run'
  return model_dirs


@pytest.mark.parametrize(
  'first, then',
  [(_OLDEST, _NEWEST), (_NEWEST, _OLDEST)],
  ids=['2.15 to the newest', 'the newest to 2.15'],
)
def test_training_continues_as_if_nothing_had_happened(
  first, then, unbroken, tmp_path
):
  model_dir = tmp_path / 'run'
  model_dir.mkdir()
  name = f'model.ckpt-{_STEP}'
  for path in unbroken[first].iterdir():
    if path.name.startswith(f'{name}.') or path.suffix == '.json':
      shutil.copy(path, model_dir)
  (model_dir / 'checkpoint').write_text(f'model_checkpoint_path: "{name}"\n')
  written = (model_dir / f'{name}.index').stat().st_mtime_ns

  flags = {'model_dir': model_dir, 'data_dir': tmp_path}
  command.succeed({**_FLAGS, **flags}, tmp_path, python=then)

  # What it has restored it has written again, all slots included.
  assert (model_dir / f'{name}.index').stat().st_mtime_ns > written
  before = command.variables(unbroken[first] / name)
  after = command.variables(model_dir / name)
  assert set(before) == set(after) and len(before) == 60
  for key, value in before.items():
    np.testing.assert_array_equal(after[key], value, err_msg=key)

  losses = [
    command.summaries(directory / 'train')['loss']
    for directory in (unbroken[first], model_dir)
  ]
  # A loss is recorded under the number of steps before it.
  assert min(losses[1]) == _STEP and max(losses[1]) == max(losses[0]) == 15
  np.testing.assert_allclose(losses[1][_STEP], losses[0][_STEP], rtol=1e-5)
  # Rounding makes the two runs differ, but not by much.
  np.testing.assert_allclose(losses[1][15], losses[0][15], rtol=1e-2)


@pytest.mark.parametrize('python', [_OLDEST, _NEWEST], ids=['2.15', 'newest'])
def test_the_other_tensorflow_evaluates_alike(python, unbroken, tmp_path):
  model_dir = tmp_path / 'run'
  shutil.copytree(unbroken[python], model_dir)
  flags = {'model_dir': model_dir, 'data_dir': tmp_path}
  other = _NEWEST if python == _OLDEST else _OLDEST
  # Nothing is left to train.
  command.succeed({**_FLAGS, **flags}, tmp_path, python=other)
  expected, found = (
    json.loads((directory / 'result.json').read_text())
    for directory in (unbroken[python], model_dir)
  )
  assert set(found) == set(expected)
  for key, value in expected['metrics'].items():
    np.testing.assert_allclose(
      found['metrics'][key], value, rtol=1e-4, atol=1e-6, err_msg=key
    )
