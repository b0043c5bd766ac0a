"""One export, which all tests of what is exported look at."""

import os

import pytest

from supcon.serving import exports
from tests.serving import elsewhere
from tests.serving import exported


@pytest.fixture(scope='session')
def checkpoint(tmp_path_factory):
  return exported.write_checkpoint(tmp_path_factory.mktemp('model_dir'))


@pytest.fixture(scope='session')
def model(checkpoint):
  return exported.trained_model(checkpoint)


@pytest.fixture(scope='session')
def export(model, tmp_path_factory):
  """Both formats, written in a process of TensorFlow 2."""
  path = os.environ.get(elsewhere.EXPORT)
  if path:  # Written by another TensorFlow, see elsewhere_test.py.
    return exports.Export(path, path, f'{path}/hub')
  directory = str(tmp_path_factory.mktemp('exports'))
  formats = ('saved_model', 'hub')
  return exports.write(model, directory, formats, 0, exported.FACTS)


@pytest.fixture(scope='session')
def expected(checkpoint):
  return exported.expect(checkpoint)
