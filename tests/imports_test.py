"""Who may import whom.

A newcomer reads from main.py down and never has to jump back; flags are checked
before TensorFlow is imported.
"""

import ast
import graphlib
import pathlib
import subprocess
import sys

import pytest

_ROOT = pathlib.Path(__file__).resolve().parent.parent

# From the ground up. A module may import its own room and those below, so that
# no arrow between two rooms runs both ways.
_ROOMS = (
  'supcon.config',
  'supcon.runs',
  'supcon.compute',
  'supcon.pairwise',
  'supcon.models',
  'supcon.losses',
  'supcon.data.views',
  'supcon.data.sources',
  'supcon.data',
  'supcon.training',
  'supcon.evaluation',
  'supcon.serving',
  'supcon.reports',
  'supcon.jobs',
)


def _name(path):
  """Returns the module's name: 'supcon.training.lars', 'supcon', 'main'."""
  parts = path.relative_to(_ROOT).with_suffix('').parts
  return '.'.join(part for part in parts if part != '__init__')


_TREES = {
  _name(path): ast.parse(path.read_text())
  for path in [*(_ROOT / 'supcon').rglob('*.py'), *_ROOT.glob('*.py')]
}
_MODULES = sorted(name for name in _TREES if name.startswith('supcon.'))


def _imports(name):
  """Returns what a module imports, also inside functions.

  `from a import b` is 'a.b', whatever b is.
  """
  found = set()
  for node in ast.walk(_TREES[name]):
    if isinstance(node, ast.Import):
      found.update(alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      assert not node.level, f'{name} has a relative import'
      found.update(f'{node.module}.{alias.name}' for alias in node.names)
  return found


def _own_imports(name):
  # The package itself holds the version and nothing else.
  return {i for i in _imports(name) if i.startswith('supcon.')}


def _level(name):
  """Returns the index into _ROOMS of the smallest room that a module is in."""
  rooms = [
    room for room in _ROOMS if name == room or name.startswith(f'{room}.')
  ]
  assert rooms, f'{name} is in no room; put it into one'
  return _ROOMS.index(max(rooms, key=len))


def test_there_is_something_to_test():
  assert 'supcon.jobs' in _MODULES
  assert 'supcon.data.inputs' in _own_imports('supcon.jobs.training')
  # Also what is imported late.
  assert 'supcon.jobs' in _own_imports('main')
  assert set(_ROOMS) <= set(_TREES)


@pytest.mark.parametrize('name', [*_MODULES, 'main', 'hparams_flags'])
def test_modules_are_imported_and_not_what_is_in_them(name):
  assert _own_imports(name) <= set(_TREES)


@pytest.mark.parametrize('name', _MODULES)
def test_no_import_runs_up(name):
  higher = {i for i in _own_imports(name) if _level(i) > _level(name)}
  assert not higher
  # Nor from main.py and what belongs to it.
  assert not _imports(name) & {'main', 'hparams_flags', 'tests'}


def test_few_modules_stand_beside_the_rooms():
  # The heart, where it is found.
  beside = {path.stem for path in (_ROOT / 'supcon').glob('*.py')}
  assert beside == {'__init__', 'losses', 'pairwise'}


def test_there_are_no_cycles():
  graph = {name: _own_imports(name) for name in _MODULES}
  graphlib.TopologicalSorter(graph).prepare()  # Raises CycleError.


@pytest.mark.parametrize('name', _MODULES)
def test_only_main_reads_flags(name):
  assert not {i for i in _imports(name) if i.startswith('absl.flags')}
  words = {
    getattr(node, 'id', getattr(node, 'attr', ''))
    for node in ast.walk(_TREES[name])
    if isinstance(node, (ast.Name, ast.Attribute))
  }
  assert 'FLAGS' not in words


def test_nothing_is_called_utils():
  for directory in ('supcon', 'tests'):
    for path in (_ROOT / directory).rglob('*'):
      assert path.stem not in ('util', 'utils')


# --- Without TensorFlow -------------------------------------------------------


def _run(code):
  """Runs code in a fresh interpreter that then reports on TensorFlow."""
  code += '\nprint("TF:", "tensorflow" in sys.modules)'
  return subprocess.run(
    [sys.executable, '-c', f'import runpy, sys\n{code}'],
    cwd=_ROOT,
    capture_output=True,
    text=True,
    timeout=120,
  )


def test_flags_need_no_tensorflow():
  done = _run(
    'import hparams_flags, supcon.config.enums, supcon.config.hparams, '
    'supcon.config.run_options'
  )
  assert done.stdout == 'TF: False\n', done.stderr


_MAIN = """
sys.argv = ['main.py', *{arguments!r}]
try:
  runpy.run_path('main.py', run_name='__main__')
except SystemExit as stop:
  print('status:', stop.code)
"""


@pytest.mark.parametrize(
  'arguments, status, says',
  [
    (['--help'], 0, '--temperature'),
    (['-h'], 0, '--temperature'),
    (['--no_such_flag'], 2, 'no_such_flag'),
    (['--batch_size=many'], 2, 'batch_size'),
    (['--model_dir=/none', '--batch_size=0'], 2, '--batch_size=0'),
    (['--hparams=bs=x'], 2, 'bs=x'),
    (['--mode=train'], 2, '--model_dir'),
    (['--mode=status', '--model_dir=/none'], 2, 'status.json'),
    (['--mode=compare', '--runs=/none'], 2, '--runs=/none'),
  ],
)
def test_main_answers_before_it_imports_tensorflow(arguments, status, says):
  done = _run(_MAIN.format(arguments=arguments))
  assert done.stdout.splitlines()[-2:] == [f'status: {status}', 'TF: False'], (
    done.stdout + done.stderr
  )
  assert says in done.stdout + done.stderr
