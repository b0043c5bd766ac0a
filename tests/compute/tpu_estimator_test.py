"""TPUEstimator, wherever the installed TensorFlow has left it."""

import ast
import importlib.metadata
import pathlib
import subprocess
import sys

import pytest
import tensorflow as tf

from supcon.compute import tpu_estimator
from tests import command

_WITHIN = tpu_estimator.IS_IN_TENSORFLOW
_beside = pytest.mark.skipif(
  _WITHIN, reason='TensorFlow 2.15 has TPUEstimator itself'
)


def test_it_comes_from_tensorflow_up_to_2_15():
  version = tuple(map(int, tf.__version__.split('.')[:2]))
  assert (version < (2, 16)) == _WITHIN


def test_nobody_else_knows_where_it_comes_from():
  me = ['tpu_estimator.py', 'tpu_estimator_test.py']
  for directory in ('supcon', 'tests'):
    for path in (command.ROOT / directory).rglob('*.py'):
      if path.name not in me:
        text = path.read_text()
        for name in ('.estimator.', 'import tensorflow_estimator'):
          assert f'v1{name}' not in text and f'tf1{name}' not in text, path


def test_a_run_config_under_a_strategy_has_what_the_estimator_asks_for():
  with tf.Graph().as_default():
    strategy = tf.distribute.MirroredStrategy(['/cpu:0'])
  config = tpu_estimator.RunConfig(train_distribute=strategy)
  assert config.master == config.evaluation_master == ''
  assert config.is_chief and config.num_worker_replicas == 1
  assert config.task_type == 'worker' and config.task_id == 0


# --- Stand-ins ----------------------------------------------------------------


@_beside
def test_a_cluster_is_refused_and_not_ignored(monkeypatch):
  monkeypatch.setenv(
    'TF_CONFIG',
    '{"cluster": {"worker": ["a:1", "b:2"]}, "task": {"type": "worker"}}',
  )
  with tf.Graph().as_default():
    strategy = tf.distribute.MirroredStrategy(['/cpu:0'])
  with pytest.raises(NotImplementedError, match='distribute coordinator'):
    tpu_estimator.RunConfig(train_distribute=strategy)


@_beside
@pytest.mark.parametrize('module', sorted(tpu_estimator.LOST))
def test_what_a_stand_in_cannot_do_raises_an_error_that_says_so(module):
  stand_in = tpu_estimator.stand_in(module)
  _, raises = tpu_estimator.LOST[module]
  for name in raises:
    with pytest.raises(NotImplementedError, match=f'no {name} of {module}'):
      getattr(stand_in, name)(1, x=2)


def _taken(module):
  """Returns what the estimator's own modules take from a module by name."""
  leaf = module.rpartition('.')[2]
  directory = pathlib.Path(
    importlib.metadata.distribution('tensorflow-estimator').locate_file(
      'tensorflow_estimator'
    )
  )
  found = set()
  for path in [
    *(directory / 'python/estimator').glob('*.py'),
    *(directory / 'python/estimator/tpu').glob('*.py'),
  ]:
    tree = ast.parse(path.read_text())
    aliases = set()
    for node in ast.walk(tree):
      if isinstance(node, ast.ImportFrom):
        for alias in node.names:
          if f'{node.module}.{alias.name}' == module:
            aliases.add(alias.asname or leaf)
          elif node.module == module:
            found.add(alias.name)
    found |= {
      node.attr
      for node in ast.walk(tree)
      if isinstance(node, ast.Attribute)
      and isinstance(node.value, ast.Name)
      and node.value.id in aliases
    }
  return found


# Of tf.estimator.train_and_evaluate, which nobody calls here.
_UNUSED = {'should_run_distribute_coordinator', 'train_and_evaluate'}


@pytest.mark.parametrize('module', sorted(tpu_estimator.LOST))
def test_stand_ins_have_all_that_is_taken_from_them(module):
  works, raises = tpu_estimator.LOST[module]
  assert _taken(module) - _UNUSED == {*works, *raises}


def test_tensorflow_is_left_as_it_is():
  code = """
import sys
import tensorflow as tf
from supcon.compute import tpu_estimator
for name in tpu_estimator.LOST:
  if not tpu_estimator.IS_IN_TENSORFLOW:
    assert name not in sys.modules, name
print(hasattr(tf.compat.v1, 'estimator') == tpu_estimator.IS_IN_TENSORFLOW)
"""
  ran = subprocess.run(
    [sys.executable, '-c', code],
    cwd=command.ROOT,
    capture_output=True,
    text=True,
  )
  assert ran.stdout == 'True\n', ran.stderr


# --- On a TPU -----------------------------------------------------------------


@pytest.fixture
def environment(monkeypatch):
  for name in ('TF_TPU_GRACEFUL_SHUTDOWN_MODE', 'TF_TPU_WATCHDOG_TIMEOUT'):
    monkeypatch.setenv(name, '')  # So that it is restored.
    monkeypatch.delenv(name)
  return monkeypatch


@_beside
def test_the_watch_over_workers_is_turned_off_where_it_is_lost(environment):
  import os

  tpu_estimator.check_tpu()
  assert os.environ['TF_TPU_GRACEFUL_SHUTDOWN_MODE'] == ''


@_beside
@pytest.mark.parametrize(
  'name, value',
  [
    ('TF_TPU_GRACEFUL_SHUTDOWN_MODE', 'shutdown_worker'),
    ('TF_TPU_WATCHDOG_TIMEOUT', '30'),
  ],
)
def test_whoever_asks_for_that_watch_is_refused(environment, name, value):
  environment.setenv(name, value)
  with pytest.raises(ValueError, match=f'{name}={value} asks for .* unset it'):
    tpu_estimator.check_tpu()
