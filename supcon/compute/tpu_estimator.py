"""Provides TPUEstimator on every version of TensorFlow.

TensorFlow 2.15 is the last version that contains it, in tf.compat.v1.estimator.
Newer versions still contain everything that it needs, except four Python
modules. There it comes from the package tensorflow-estimator, and stand-ins
replace those four modules while that package is imported. TensorFlow itself is
not changed.

A stand-in implements what this project needs. Anything else in it raises an
error when it is used.
"""

from collections.abc import Iterator
import contextlib
import importlib.util
import os
import sys
import types

import tensorflow as tf

tf1 = tf.compat.v1

_PACKAGE = 'tensorflow_estimator'


def _init_run_config(config, tf_config):
  """Completes a RunConfig that has a tf.distribute strategy.

  The original starts a coordinator if TF_CONFIG names a cluster. This project
  starts its own server and strategy, and hides TF_CONFIG from it.
  """
  if tf_config.get('cluster') or config._experimental_distribute:
    raise _unavailable(
      'tensorflow.python.distribute.estimator_training',
      'the distribute coordinator',
    )
  config._distribute_coordinator_mode = None
  config._init_distributed_setting_from_environment_var(tf_config)
  config._maybe_overwrite_session_config_for_distributed_training()


def _unavailable(module, name):
  return NotImplementedError(
    f'TensorFlow {tf.__version__} has no {name} of {module} any more, and '
    f'{__name__} does not replace it; TensorFlow 2.15 has it.'
  )


# The modules that were removed in TensorFlow 2.16, and the names that
# tensorflow-estimator uses from each: working ones, and ones that raise.
LOST = {
  # Sets up a RunConfig for a strategy; coordinates several workers.
  'tensorflow.python.distribute.estimator_training': (
    {'init_run_config': _init_run_config},
    ['estimator_train', 'estimator_evaluate'],
  ),
  # Watches the workers of a TPU by an op that has no kernel in released
  # TensorFlow wheels. `check_tpu` keeps TPUEstimator from using it.
  'tensorflow.python.tpu.session_support': (
    {},
    [
      'GracefulShutdownHook',
      'ResetComputation',
      'ShutdownAllWorkers',
      'ShutdownLameWorkers',
      'start_worker_watchdog',
    ],
  ),
  # Embedding tables on a TPU, which this project does not use.
  'tensorflow.python.tpu.tpu_embedding': (
    {},
    [
      'AdagradParameters',
      'AdagradSlotVariableNames',
      'AdamParameters',
      'AdamSlotVariableNames',
      'EnqueueData',
      'FeatureConfig',
      'FtrlParameters',
      'FtrlSlotVariableNames',
      'INFERENCE',
      'MomentumParameters',
      'MomentumSlotVariableNames',
      'ProximalAdagradParameters',
      'ProximalAdagradSlotVariableNames',
      'RMSPropParameters',
      'RMSPropSlotVariableNames',
      'StochasticGradientDescentParameters',
      'TPUEmbedding',
      'TRAINING',
      'TableConfig',
    ],
  ),
  'tensorflow.python.tpu.tpu_embedding_gradient': (
    {},
    [
      'create_dummy_table_variables',
      'get_gradients_through_dummy_table_variables',
      'hook_dummy_table_variables_to_activations',
    ],
  ),
}


class _Lost(type):
  """The metaclass of names that raise; classes, to allow derived ones."""

  def __call__(cls, *args, **kwargs):
    raise _unavailable(cls.__module__, cls.__name__)


def stand_in(name):
  """Returns the stand-in for a removed module."""
  works, raises = LOST[name]
  module = types.ModuleType(name)
  vars(module).update(works)
  for lost in raises:
    setattr(module, lost, _Lost(lost, (), {'__module__': name}))
  return module


def _estimator_export(*names, **kwargs):
  """Decorator without effect.

  The original registers public names with tf_export, which no longer knows a
  component called estimator.
  """
  del names, kwargs
  return lambda decorated: decorated


@contextlib.contextmanager
def _stand_ins() -> Iterator[None]:
  """Makes tensorflow-estimator importable, without its canned estimators."""
  face = types.ModuleType(_PACKAGE)
  face.__path__ = importlib.util.find_spec(_PACKAGE).submodule_search_locations
  # It remains, because its submodules are imported below it.
  sys.modules[_PACKAGE] = face
  export = types.ModuleType(f'{_PACKAGE}.python.estimator.estimator_export')
  export.estimator_export = _estimator_export
  modules = {export.__name__: export}
  for name in LOST:
    if importlib.util.find_spec(name) is None:
      modules[name] = stand_in(name)
  sys.modules.update(modules)
  try:
    yield
  finally:
    for name in modules:
      del sys.modules[name]


def _of_tensorflow():
  """Returns the classes of TensorFlow by name."""
  return {
    'Estimator': tf1.estimator.Estimator,
    'InputPipelineConfig': tf1.estimator.tpu.InputPipelineConfig,
    'ModeKeys': tf1.estimator.ModeKeys,
    'RunConfig': tf1.estimator.tpu.RunConfig,
    'TPUConfig': tf1.estimator.tpu.TPUConfig,
    'TPUEstimator': tf1.estimator.tpu.TPUEstimator,
    'TPUEstimatorSpec': tf1.estimator.tpu.TPUEstimatorSpec,
  }


def _of_package():
  """Returns the same classes from tensorflow-estimator."""
  with _stand_ins():
    from tensorflow_estimator.python.estimator import estimator
    from tensorflow_estimator.python.estimator import mode_keys
    from tensorflow_estimator.python.estimator.tpu import tpu_config
    from tensorflow_estimator.python.estimator.tpu import tpu_estimator
  return {
    'Estimator': estimator.Estimator,
    'InputPipelineConfig': tpu_config.InputPipelineConfig,
    'ModeKeys': mode_keys.ModeKeys,
    'RunConfig': tpu_config.RunConfig,
    'TPUConfig': tpu_config.TPUConfig,
    'TPUEstimator': tpu_estimator.TPUEstimator,
    'TPUEstimatorSpec': tpu_estimator.TPUEstimatorSpec,
  }


IS_IN_TENSORFLOW = hasattr(tf1, 'estimator')

_classes = _of_tensorflow() if IS_IN_TENSORFLOW else _of_package()
Estimator = _classes['Estimator']
InputPipelineConfig = _classes['InputPipelineConfig']
ModeKeys = _classes['ModeKeys']
RunConfig = _classes['RunConfig']
TPUConfig = _classes['TPUConfig']
TPUEstimator = _classes['TPUEstimator']
TPUEstimatorSpec = _classes['TPUEstimatorSpec']

_SHUTDOWN_MODE = 'TF_TPU_GRACEFUL_SHUTDOWN_MODE'
_WATCHDOG_TIMEOUT = 'TF_TPU_WATCHDOG_TIMEOUT'


def check_tpu() -> None:
  """Prepares the environment for training on a TPU.

  Unless an environment variable says otherwise, TPUEstimator uses a hook of
  session_support that answers the workers' shutdown notices. If TensorFlow has
  no session_support, this sets that variable.

  Raises:
    ValueError: If the environment requests a feature of session_support.
  """
  if IS_IN_TENSORFLOW:
    return
  wanted = {
    name: value
    for name in (_SHUTDOWN_MODE, _WATCHDOG_TIMEOUT)
    if (value := os.environ.get(name, '')) not in ('', '0')
  }
  for name, value in wanted.items():
    raise ValueError(
      f'{name}={value} asks for tensorflow.python.tpu.session_support, which '
      f'TensorFlow {tf.__version__} does not have; unset it, or use TensorFlow '
      '2.15.'
    )
  os.environ[_SHUTDOWN_MODE] = ''
