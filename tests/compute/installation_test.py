"""What is said of packages that are missing or do not go together."""

import os
import re
import subprocess
import sys

import pytest

from supcon.compute import installation
from tests import command
from tests import fake_packages

_NEEDS = ('numpy<2.0.0,>=1.23.5', 'protobuf!=4.21.0,<5,>=3.20.3')
_TENSORFLOW = '__version__ = {!r}'


def _modules(version, *others, **sources):
  names = ['tensorflow_datasets', *others]
  return {
    'tensorflow': _TENSORFLOW.format(version),
    **dict.fromkeys(names, ''),
    **sources,
  }


def _run(directory, *arguments):
  return subprocess.run(
    [sys.executable, '-S', *map(str, arguments)],
    cwd=command.ROOT,
    env={**os.environ, 'PYTHONPATH': f'{directory}:{command.ROOT}'},
    capture_output=True,
    text=True,
    timeout=120,
  )


def _versions(tensorflow, **others):
  return {
    'tensorflow': tensorflow,
    'numpy': '1.26.4',
    'protobuf': '4.25.9',
    **others,
  }


_CASES = {
  'no TensorFlow': (
    dict(versions={}),
    'TensorFlow is not installed for {python}; run: {pip} -r {requirements}',
  ),
  'old': (
    dict(versions=_versions('2.14.1'), modules=_modules('2.14.1')),
    'TensorFlow 2.14.1 is too old, expected 2.15 to 2.21; run: {pip} -r '
    '{requirements}',
  ),
  'nothing beside it': (
    dict(versions=_versions('2.19.1'), modules=_modules('2.19.1')),
    'tensorflow_estimator and tf_keras must be installed beside TensorFlow '
    '2.19.1, but cannot be found; run: {pip} --no-deps '
    "tensorflow-estimator==2.15.0 'tf_keras==2.19.*'",
  ),
  'no estimator': (
    dict(versions=_versions('2.16.2'), modules=_modules('2.16.2', 'tf_keras')),
    'tensorflow_estimator must be installed beside TensorFlow 2.16.2, but '
    'cannot be found; run: {pip} --no-deps tensorflow-estimator==2.15.0',
  ),
  'no Keras 2': (
    dict(
      versions=_versions('2.21.0'),
      modules=_modules('2.21.0', 'tensorflow_estimator'),
    ),
    'tf_keras must be installed beside TensorFlow 2.21.0, but cannot be found; '
    "run: {pip} --no-deps 'tf_keras==2.21.*'",
  ),
  'another NumPy': (
    dict(
      versions=_versions('2.15.1', numpy='2.1.0'), modules=_modules('2.15.1')
    ),
    'numpy 2.1.0 does not go with TensorFlow 2.15.1, which needs '
    "numpy<2.0.0,>=1.23.5; run: {pip} 'numpy<2.0.0,>=1.23.5'",
  ),
  'another protobuf': (
    dict(
      versions=_versions('2.15.1', protobuf='5.29.1'),
      modules=_modules('2.15.1'),
    ),
    'protobuf 5.29.1 does not go with TensorFlow 2.15.1, which needs '
    'protobuf!=4.21.0,<5,>=3.20.3; run: {pip} '
    "'protobuf!=4.21.0,<5,>=3.20.3'",
  ),
  'a protobuf that TensorFlow does not know to be too new': (
    dict(
      versions=_versions('2.20.0', protobuf='7.36.2'),
      modules=_modules('2.20.0', 'tensorflow_estimator', 'tf_keras'),
      requires=('protobuf>=5.28.0',),
    ),
    'protobuf 7.36.2 does not go with TensorFlow 2.20.0, which needs '
    "protobuf<7; run: {pip} 'protobuf<7'",
  ),
  'broken': (
    dict(
      versions=_versions('2.15.1'),
      modules=_modules('2.15.1', tensorflow='raise AttributeError("a\\nb")'),
    ),
    'tensorflow cannot be imported (AttributeError: a b); run: {pip} -r '
    '{requirements}',
  ),
  'metadata of another protobuf': (
    dict(
      versions=_versions('2.15.1', **{'tensorflow-metadata': '1.21.0'}),
      modules=_modules('2.15.1', tensorflow_datasets='raise TypeError("x")'),
    ),
    'tensorflow_datasets cannot be imported (TypeError: x); run: {pip} '
    "'tensorflow-metadata<1.18'",
  ),
  'no data sets beside the newest': (
    dict(
      versions=_versions('2.21.0'),
      modules=_modules(
        '2.21.0',
        'tensorflow_estimator',
        'tf_keras',
        tensorflow_datasets='raise ImportError("x")',
      ),
    ),
    'tensorflow_datasets cannot be imported (ImportError: x); run: {pip} -r '
    '{requirements}',
  ),
  'no data sets beside an older one': (
    dict(
      versions=_versions('2.15.1'),
      modules=_modules('2.15.1', tensorflow_datasets='raise ImportError("x")'),
    ),
    'tensorflow_datasets cannot be imported (ImportError: x); run: '
    'PYTHON={python} {root}/scripts/setup_tpu.sh',
  ),
}


@pytest.mark.parametrize('case', _CASES)
def test_what_does_not_fit_is_one_line_with_the_command_that_mends_it(
  case, tmp_path
):
  environment, expected = _CASES[case]
  packages = fake_packages.make(
    tmp_path / 'packages', **{'requires': _NEEDS, **environment}
  )
  ran = _run(
    packages,
    'main.py',
    '--mode=train',
    f'--model_dir={tmp_path}/run',
    f'--data_dir={tmp_path}',
    '--use_tpu=False',
  )
  assert ran.returncode == 2
  assert (
    ran.stderr
    == 'main.py: error: '
    + expected.format(
      python=sys.executable,
      pip=f'{sys.executable} -m pip install',
      requirements=command.ROOT / 'requirements.txt',
      root=command.ROOT,
    )
    + '\n'
  )
  assert not (tmp_path / 'run').exists()


def test_without_absl_there_is_one_line_too(tmp_path):
  ran = _run(tmp_path, 'main.py', '--help')
  assert ran.returncode == 1
  assert ran.stderr.count('\n') == 1
  assert f"No module named 'absl'; run: {sys.executable} -m pip" in ran.stderr


_LOAD = """
from absl import logging
from supcon.compute import installation
installation.load()
installation.load()
"""


def test_a_newer_tensorflow_runs_and_is_named_once(tmp_path):
  packages = fake_packages.make(
    tmp_path / 'packages',
    _versions('2.99.0'),
    _modules('2.99.0', 'tensorflow_estimator', 'tf_keras'),
  )
  ran = _run(packages, '-c', _LOAD)
  assert ran.returncode == 0, ran.stderr
  assert ran.stderr.count('\n') == 1
  assert 'TensorFlow 2.99.0 is newer than 2.21' in ran.stderr


def test_what_tensorflow_says_at_its_import_is_not_shown(tmp_path):
  speaks = 'import os\nos.write(2, b"I0000 oneDNN custom operations are on")\n'
  packages = fake_packages.make(
    tmp_path / 'packages',
    _versions('2.15.1'),
    _modules('2.15.1', tensorflow=speaks + _TENSORFLOW.format('2.15.1')),
  )
  assert _run(packages, '-c', _LOAD).stderr == ''
  verbose = _LOAD.replace('\ninst', '\nlogging.set_verbosity(1)\ninst', 1)
  assert 'oneDNN' in _run(packages, '-c', verbose).stderr


def test_keras_2_is_chosen_where_it_is_there(tmp_path):
  code = _LOAD + 'import os; print(os.environ.get("TF_USE_LEGACY_KERAS"))'
  for number, (modules, chosen) in enumerate(
    [(['tf_keras'], '1'), ([], 'None')]
  ):
    packages = fake_packages.make(
      tmp_path / str(number), _versions('2.15.1'), _modules('2.15.1', *modules)
    )
    environment = os.environ.pop('TF_USE_LEGACY_KERAS', None)
    try:
      assert _run(packages, '-c', code).stdout == f'{chosen}\n'
    finally:
      if environment is not None:
        os.environ['TF_USE_LEGACY_KERAS'] = environment


def test_the_newest_version_is_the_pinned_one():
  pins = (command.ROOT / 'requirements.txt').read_text()
  newest = '.'.join(map(str, installation.NEWEST))
  assert re.search(rf'^tensorflow=={newest}\.\d+$', pins, re.M)
  assert re.search(rf'^tf_keras=={newest}\.\d+$', pins, re.M)
