"""Another environment, with TensorFlow 2.15 and tensorflow_hub 0.15.

One interpreter has one TensorFlow, and an export is for all of them. hub.Module
is in tensorflow_hub up to 0.15 alone, which needs TensorFlow 2.15 or older. So
where the tests run with a newer one, some of them also run in a second
environment, by the interpreter that an environment variable names.
"""

import functools
import os
import pathlib
import subprocess
import sys

VARIABLE = 'SUPCON_TENSORFLOW_2_15_PYTHON'
# Names an export to be tested; otherwise the tests write their own.
EXPORT = 'SUPCON_TEST_EXPORT'

_ROOT = pathlib.Path(__file__).resolve().parents[2]
_MAKE = 'tests/serving/make_hub_environment.sh'

_HAS_HUB_MODULE = """
import importlib.metadata
version = importlib.metadata.version('tensorflow-hub')
print(tuple(map(int, version.split('.')[:2])) < (0, 16))
"""


def python() -> str:
  """Returns the interpreter of the other environment; '' if there is none."""
  return os.environ.get(VARIABLE, '')


@functools.cache
def has_hub_module(interpreter: str = sys.executable) -> bool:
  """Whether the tensorflow_hub of an interpreter has hub.Module.

  Tells it by the version, without the seconds that an import takes.
  """
  return run([interpreter, '-c', _HAS_HUB_MODULE]).strip() == 'True'


def why_not() -> str:
  """Returns why nothing can run elsewhere; '' if it can."""
  if has_hub_module():
    return (
      'has to run with a newer TensorFlow than 2.15; there it tries both '
      'directions'
    )
  how = f'{_MAKE} DIR && export {VARIABLE}=DIR/bin/python'
  if not python():
    return (
      f'{VARIABLE} does not name the Python of an environment with TensorFlow '
      f'2.15 and tensorflow_hub 0.15; make one: {how}'
    )
  if not has_hub_module(python()):
    return f'{VARIABLE}={python()} has no hub.Module; make one that has: {how}'
  return ''


def run(command, **variables: str) -> str:
  """Runs a command in the checkout; returns what it prints on stdout.

  Args:
    command: The command and its arguments.
    **variables: Of the environment, beside our own.

  Raises:
    AssertionError: If it fails; with all of its output.
  """
  environment = {**os.environ, **variables}
  if command[0] != sys.executable:
    # It has Keras 2, and need not have the package that this asks for.
    environment.pop('TF_USE_LEGACY_KERAS', None)
  ran = subprocess.run(
    command, cwd=_ROOT, env=environment, capture_output=True, text=True
  )
  assert ran.returncode == 0, f'{command}:\n{ran.stdout}\n{ran.stderr}'
  return ran.stdout
