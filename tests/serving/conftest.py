"""One export, which all tests of what is exported look at."""

import pytest

from supcon.serving import exports
from tests.serving import exported


@pytest.fixture(scope='session')
def checkpoint(tmp_path_factory):
  return exported.write_checkpoint(tmp_path_factory.mktemp('model_dir'))


@pytest.fixture(scope='session')
def model(checkpoint):
  return exported.trained_model(checkpoint)


@pytest.fixture(scope='session')
def facts():
  return {
    'dataset': 'digits',
    'train_split': 'train',
    'eval_split': 'test',
    'num_train_examples': 1437,
    'num_eval_examples': 360,
    'total_steps': 40,
    'metrics': {'top_1_accuracy': 0.9125, 'loss/cross_entropy_loss': 0.25},
  }


@pytest.fixture(scope='session')
def export(model, facts, tmp_path_factory):
  """Both formats, written in a process of TensorFlow 2."""
  directory = str(tmp_path_factory.mktemp('exports'))
  return exports.write(model, directory, ('saved_model', 'hub'), 0, facts)


@pytest.fixture(scope='session')
def expected(checkpoint):
  return exported.expect(checkpoint)
