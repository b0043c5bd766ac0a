"""Checks that the installed packages fit together, and imports them.

TensorFlow is imported here first. So incompatible packages end in a line that
says how to fix them, and TensorFlow does not print to the terminal.
"""

import functools
import importlib
import importlib.metadata
import importlib.util
import os
import pathlib
import shlex
import sys

from absl import logging

from supcon.runs import terminal

_REQUIREMENTS = pathlib.Path(__file__).parents[2] / 'requirements.txt'

# The oldest and the newest version of TensorFlow that this code was tested
# with.
OLDEST = (2, 15)
NEWEST = (2, 21)
# The first version without TPUEstimator and with Keras 3.
_WITHOUT_ESTIMATOR = (2, 16)

# The names under which TensorFlow is distributed.
_TENSORFLOWS = (
  'tensorflow',
  'tensorflow-cpu',
  'tensorflow-gpu',
  'tensorflow-tpu',
  'tensorflow-rocm',
  'tensorflow-intel',
  'tensorflow-macos',
  'tf-nightly',
  'tf-nightly-cpu',
)
# Packages that TensorFlow is compiled or has generated code for. Other versions
# of them fail at import, or later.
_COMPILED_FOR = ('numpy', 'protobuf')
# Undeclared requirements: TensorFlow 2.20 accepts any newer protobuf, but
# protobuf 7 has removed an argument that it needs to write graphs.
_NEEDED_UNSAID = {(2, 20): ('protobuf<7',)}


class InstallationError(ValueError):
  """Packages are missing or incompatible."""


def choose_keras() -> None:
  """Makes tf.keras Keras 2, the package tf_keras since TensorFlow 2.16.

  Call it before TensorFlow is imported.
  """
  # TensorFlow 2.15 would also use tf_keras, but does not need it.
  if _is_there('tf_keras'):
    os.environ.setdefault('TF_USE_LEGACY_KERAS', '1')


@functools.cache
def load() -> None:
  """Imports TensorFlow and TensorFlow Datasets, quietly.

  Raises:
    InstallationError: If they cannot be imported, or lack a package.
  """
  choose_keras()
  terminal.quiet_tensorflow()
  if not _is_there('tensorflow'):
    raise InstallationError(
      f'TensorFlow is not installed for {sys.executable}; run: '
      f'{_pip("-r", str(_REQUIREMENTS))}'
    )
  _check_what_tensorflow_needs()
  # Newer versions log lines about the CPU before they read the log level.
  with terminal.hidden_stderr():
    tensorflow = _import('tensorflow')
  _check_version(tensorflow.__version__)
  with terminal.hidden_stderr():
    _import('tensorflow_datasets')
    if _is_there('tensorflow_metadata'):
      # TensorFlow Datasets imports it late, in the middle of other work.
      _import('tensorflow_metadata.proto.v0.schema_pb2')


def load_plotting() -> None:
  """Imports Matplotlib, which only a report needs.

  Raises:
    InstallationError: If it cannot be imported.
  """
  with terminal.hidden_stderr():
    _import('matplotlib.figure')


def _check_version(version):
  """Checks the packages that a version of TensorFlow needs beside it."""
  major_minor = _major_minor(version)
  if major_minor < OLDEST:
    raise InstallationError(
      f'TensorFlow {version} is too old, expected {_text(OLDEST)} to '
      f'{_text(NEWEST)}; run: {_pip("-r", str(_REQUIREMENTS))}'
    )
  if major_minor > NEWEST:
    logging.warning(
      'WARNING: TensorFlow %s is newer than %s, the newest that this code was '
      'tried with',
      version,
      _text(NEWEST),
    )
  if major_minor < _WITHOUT_ESTIMATOR:
    return
  beside = {
    'tensorflow_estimator': 'tensorflow-estimator==2.15.0',
    'tf_keras': f'tf_keras=={_text(major_minor)}.*',
  }
  missing = [module for module in beside if not _is_there(module)]
  if missing:
    needed = [beside[module] for module in missing]
    raise InstallationError(
      f'{" and ".join(missing)} must be installed beside TensorFlow {version}, '
      f'but cannot be found; run: {_pip("--no-deps", *needed)}'
    )


def _check_what_tensorflow_needs():
  """Compares NumPy and protobuf with TensorFlow's declared requirements."""
  try:
    from packaging import requirements
  except ImportError:
    return  # The import of TensorFlow will report it.
  name, version = _tensorflow()
  lines = list(importlib.metadata.requires(name) or ()) if name else []
  lines += _NEEDED_UNSAID.get(_major_minor(version), ()) if name else ()
  for line in lines:
    needed = requirements.Requirement(line)
    if needed.name not in _COMPILED_FOR:
      continue
    if needed.marker and not needed.marker.evaluate({'extra': ''}):
      continue
    found = _version(needed.name)
    wanted = f'{needed.name}{needed.specifier}'
    if found is None:
      problem = f'{needed.name} is not installed'
    elif not needed.specifier.contains(found, prereleases=True):
      problem = f'{needed.name} {found} does not go with TensorFlow {version}'
    else:
      continue
    raise InstallationError(
      f'{problem}, which needs {wanted}; run: {_pip(wanted)}'
    )


def _import(name):
  """Imports a package; turns every error into an InstallationError."""
  try:
    return importlib.import_module(name)
  # An incompatible package may raise any error: ImportError, AttributeError,
  # TypeError, and those of protobuf.
  except Exception as error:
    logging.debug('Failed here:', exc_info=True)
    raise InstallationError(
      f'{name} cannot be imported ({type(error).__name__}: '
      f'{str(error).strip()}); run: {_mend(name)}'
    ) from error


def _mend(name):
  """Returns the command that most likely makes `name` importable."""
  _, tensorflow = _tensorflow()
  protobuf, metadata = _version('protobuf'), _version('tensorflow-metadata')
  if name.startswith('tensorflow_') and protobuf and metadata:
    # Since 1.18 it needs protobuf 6.31, but does not declare it.
    if _major_minor(protobuf) < (6, 31) and _major_minor(metadata) >= (1, 18):
      return _pip('tensorflow-metadata<1.18')
  if name == 'tensorflow' or (tensorflow or '').startswith(_text(NEWEST)):
    return _pip('-r', str(_REQUIREMENTS))
  script = _REQUIREMENTS.parent / 'scripts' / 'setup_tpu.sh'
  return f'PYTHON={shlex.quote(sys.executable)} {shlex.quote(str(script))}'


def _tensorflow():
  """Returns the name and version of TensorFlow's distribution, or Nones."""
  for name in _TENSORFLOWS:
    version = _version(name)
    if version:
      return name, version
  return None, None


def _version(name):
  try:
    return importlib.metadata.version(name)
  except importlib.metadata.PackageNotFoundError:
    return None


def _is_there(module):
  return module in sys.modules or importlib.util.find_spec(module) is not None


def _pip(*arguments):
  return shlex.join([sys.executable, '-m', 'pip', 'install', *arguments])


def _major_minor(version):
  return tuple(int(part) for part in version.split('.')[:2])


def _text(version):
  return '.'.join(map(str, version))
