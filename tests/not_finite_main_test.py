"""main.py on checkpoints, or with outputs, that are NaN or infinite.

What such a model says looks like a result: a loss of 0, a class, embeddings in
a file. Every job that would use it stops, and says in one line what is not
finite.
"""

import shutil
import types

import numpy as np
from PIL import Image
import pytest
import tensorflow as tf

from tests import command
from tests import writing

_STEPS = 2
_CHECKPOINT = f'model.ckpt-{_STEPS}'
# Behind it comes a relu, which makes 0 of NaN where it is one op with batch
# norm: no output shows it.
_GAMMA = 'ContrastiveModel/Encoder/batch_normalization/gamma'
_KERNEL = 'ContrastiveModel/ClassificationHead/dense/kernel'


@pytest.fixture(scope='module', name='trained')
def _trained(tmp_path_factory):
  """Two steps of training, and an image."""
  directory = tmp_path_factory.mktemp('trained')
  flags = {
    **command.DIGITS,
    **command.SMALL,
    'num_images': 128,
    'data_dir': directory / 'data',
    'stage_1_epochs': 1,
    'stage_1_warmup_epochs': 0,
    'stage_2_epochs': 0,
  }
  model_dir = directory / 'model'
  command.succeed({**flags, 'mode': 'train', 'model_dir': model_dir}, directory)
  image = directory / 'image.png'
  Image.fromarray(np.zeros([8, 8, 3], np.uint8)).save(image)
  return types.SimpleNamespace(model_dir=model_dir, flags=flags, image=image)


def _changed(trained, directory, name, value):
  """Returns a copy of model_dir where the variable has another value."""
  ignored = shutil.ignore_patterns('model.ckpt-0.*')
  shutil.copytree(trained.model_dir, directory, ignore=ignored)
  values = command.variables(directory / _CHECKPOINT)
  values[name] = np.full_like(values[name], value)
  writing.write_values(directory / _CHECKPOINT, values)
  return directory


def _jobs(trained, model_dir, directory):
  """Returns {mode: flags} of whatever uses a checkpoint."""
  flags = {**trained.flags, 'model_dir': model_dir}
  image = {'images': trained.image, 'output': directory / 'said.json'}
  jobs = {
    'eval': {},
    'train_then_eval': {},
    'embed': {'output': directory / 'embeddings.npz'},
    'predict': image,
    'export': {},
  }
  return {
    mode: {**flags, 'mode': mode, **changes} for mode, changes in jobs.items()
  }


def _last_line(run):
  assert 'Traceback' not in run.stderr, run.stderr
  *_, line = run.stderr.splitlines()
  assert line.startswith(('main.py: stopped: ', 'main.py: error: ')), line
  return line


def _assert_nothing_written(model_dir, directory):
  for name in ('result.json', 'exports', 'best', 'eval/evaluated.json'):
    assert not (model_dir / name).exists()
  for name in ('embeddings.npz', 'embeddings.npz.json', 'said.json'):
    assert not (directory / name).exists()


def test_checkpoints_that_are_not_finite_are_not_used(trained, tmp_path):
  model_dir = _changed(trained, tmp_path / 'model', _GAMMA, np.nan)
  jobs = _jobs(trained, model_dir, tmp_path)
  jobs['transfer'] = {
    **trained.flags,
    'mode': 'train',
    'model_dir': tmp_path / 'new',
    'reference_ckpt': model_dir / _CHECKPOINT,
    'warm_start_encoder': True,
  }
  runs = command.run_many(list(jobs.values()), tmp_path)
  for job, run in zip(jobs, runs):
    evaluates = job in ('eval', 'train_then_eval')
    assert run.returncode == (1 if evaluates else 2), (job, run.stderr)
    line = _last_line(run)
    assert f'{model_dir / _CHECKPOINT} is NaN or infinite in 1 of ' in line
    assert f'variables (the first is {_GAMMA})' in line
  _assert_nothing_written(model_dir, tmp_path)
  assert not (tmp_path / 'new').exists()


def test_outputs_that_are_not_finite_are_not_used(trained, tmp_path):
  largest = tf.float32.max
  model_dir = _changed(trained, tmp_path / 'model', _KERNEL, largest)
  jobs = _jobs(trained, model_dir, tmp_path)
  del jobs['export']  # It computes nothing.
  del jobs['train_then_eval']  # The same as eval.
  runs = command.run_many(list(jobs.values()), tmp_path)
  for (job, flags), run in zip(jobs.items(), runs):
    assert run.returncode == 1, (job, run.stderr)
    line = _last_line(run)
    assert str(model_dir / _CHECKPOINT) in line
    if 'output' in flags:
      first = trained.image if job == 'predict' else 'test/0'
      assert f'logits of {first} are NaN or infinite' in line
      # Nothing was said of any image.
      assert not run.stdout.strip()
    else:
      assert 'loss/cross_entropy_loss is ' in line
      assert 'loss/contrastive_loss is ' not in line
  _assert_nothing_written(model_dir, tmp_path)
