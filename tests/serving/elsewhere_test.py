"""An export that is written by one TensorFlow is used by another.

Its users are the tests of what is exported, which run in a pytest of their own.
The tests of hub.Module run nowhere else if it is not here.
"""

import json
import pathlib
import re
import sys

import pytest

from tests.serving import elsewhere

_USERS = (
  'tests/serving/hub_load_test.py',
  'tests/serving/hub_page_test.py',
  'tests/serving/keras_3_test.py',
  'tests/serving/model_card_test.py',
  'tests/serving/saved_model_test.py',
)
_USERS_OF_HUB_MODULE = (
  'tests/serving/tensorflow_1_test.py',
  'tests/training/warm_start_test.py::test_values_arrive_bit_for_bit',
)

_needs_it = pytest.mark.skipif(
  bool(elsewhere.why_not()), reason=elsewhere.why_not()
)


def _test(interpreter, path, directory):
  """Has an export tested; returns how many tests passed."""
  users = list(_USERS)
  if elsewhere.has_hub_module(interpreter):
    users += _USERS_OF_HUB_MODULE
  output = elsewhere.run(
    [
      interpreter,
      *('-m', 'pytest', '-c', 'tests/pytest.ini', '--rootdir=.', '-q'),
      *('-p', 'no:cacheprovider', f'--basetemp={directory}'),
      *users,
    ],
    **{elsewhere.EXPORT: path},
  )
  print(output)
  return int(re.search(r'^(\d+) passed', output, re.MULTILINE)[1])


@pytest.mark.slow
@_needs_it
def test_what_is_written_here_is_used_there(export, tmp_path):
  assert _test(elsewhere.python(), export.path, tmp_path / 'pytest') > 50


@pytest.mark.slow
@_needs_it
def test_what_is_written_there_is_used_here(checkpoint, tmp_path):
  directory = tmp_path / 'exports'
  program = ['-m', 'tests.serving.exporting', checkpoint, str(directory)]
  output = elsewhere.run([elsewhere.python(), *program])
  path = json.loads(output.splitlines()[-1])['path']
  assert _test(sys.executable, path, tmp_path / 'pytest') > 50


def test_all_tests_of_hub_module_are_run():
  mark = 'mark' + '.hub_module'  # Not found in this file.
  root = pathlib.Path(__file__).resolve().parents[2]
  marked = {
    str(file.relative_to(root))
    for file in root.glob('tests/**/*_test.py')
    if mark in file.read_text()
  }
  run = {user.partition('::')[0] for user in (*_USERS, *_USERS_OF_HUB_MODULE)}
  assert marked
  assert marked <= run
