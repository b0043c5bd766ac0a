"""Tests of the shell scripts: their flags, their interpreter, their set-up.

No TensorFlow and no installation: stubs stand in for the interpreters.
"""

import collections
import json
import os
import pathlib
import shutil
import signal
import stat
import subprocess
import sys

import pytest

from supcon.config import reach
from tests import fake_packages
from tests import flag_parsing
from tests import golden

_ROOT = pathlib.Path(__file__).resolve().parent.parent
_SCRIPTS = sorted((_ROOT / 'scripts').glob('*.sh'))
_SOURCED = ('configs.sh', 'setup.sh')
_HEAD = 'train_classification_head_from_pretrained_encoder'
_TRANSFERS = ('finetune', 'linear_eval')
# What the published TensorFlow code has no script for.
_OTHERS = (
  'supcon_cifar10_resnet50_pytorch_recipe',
  'supcon_memory_cifar10_resnet50',
  'supcon_memory_imagenet_resnet50',
)

# What that script changes of the published values, as its header says.
_HEAD_CHANGES = {
  'warm_start_encoder': 'True',
  'stage_1_contrastive_loss_weight': '0.0',
  'stage_1_cross_entropy_loss_weight': '1.0',
  'stage_1_use_encoder_weight_decay': 'False',
  'stage_1_use_projection_head_weight_decay': 'False',
  'stage_1_use_classification_head_weight_decay': 'True',
  'stage_1_update_encoder_batch_norm': 'False',
  'stage_2_epochs': '0',
  'stage_2_warmup_epochs': '0',
}

# What a script that starts from a reference takes from there.
_OF_REFERENCE = {
  'resnet_architecture',
  'resnet_depth',
  'resnet_width',
  'first_conv_kernel_size',
  'first_conv_stride',
  'use_initial_max_pool',
  'image_size',
  'eval_crop_method',
  'crop_padding',
  'apply_whitening',
}

# Prints its arguments as JSON, as main.py would get them.
_ECHO = f"""#!/bin/sh
exec '{sys.executable}' -S -c '
import json, sys
print(json.dumps(sys.argv[1:]))' "$@"
"""

# Behaves as Python VERSION, far enough for the set-up, and logs its calls. A
# virtual environment that it makes holds a copy of it.
_FAKE_PYTHON = """#!/bin/bash
case "$1 $2" in
  -c*'import pip'*) [[ -e "${0%/*}/pip" ]] && echo VERSION ;;
  -c*) printf '%s\\n' VERSION "$0" 'LACK' ;;
  '-m venv')
    echo 'venv VERSION' >> "$LOG"
    rm -rf "$4" && mkdir -p "$4/bin" && cp "$0" "$4/bin/python"
    touch "$4/bin/pip"
    ;;
  '-m pip')
    echo "pip ${*: -1}" >> "$LOG"
    echo 'ERROR: as the test asks' >&2
    [[ -z "${PIP_KILLED:-}" ]] || kill -9 $PPID $$
    exit "${PIP_STATUS:-0}"
    ;;
  *) echo "$0" "$@" ;;
esac
"""


def _write_executable(path, text):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(text)
  path.chmod(0o755)
  return path


def _fake_python(directory, name, version, lack=''):
  text = _FAKE_PYTHON.replace('VERSION', version).replace('LACK', lack)
  return _write_executable(directory / name, text)


def _run(script, *flags, cwd, **environment):
  """Runs a script; a variable that is None is unset."""
  # A VENV of the user's is not for tests to make anew.
  unset = dict.fromkeys(('PYTHON', 'PYTHONPATH', 'VENV'))
  variables = {**os.environ, **unset, **environment}
  return subprocess.run(
    [str(script), *flags],
    cwd=cwd,
    env={k: str(v) for k, v in variables.items() if v is not None},
    stdin=subprocess.DEVNULL,
    capture_output=True,
    text=True,
    timeout=60,
  )


@pytest.fixture
def echo(tmp_path):
  return _write_executable(tmp_path / 'echo python', _ECHO)


@pytest.fixture
def checkout(tmp_path):
  """A copy of what the set-up needs, in a directory whose name has a space."""
  copy = tmp_path / 'a checkout'
  shutil.copytree(_ROOT / 'scripts', copy / 'scripts')
  (copy / 'tests').mkdir()
  for name in ('requirements.txt', 'tests/requirements.txt'):
    shutil.copy(_ROOT / name, copy / name)
  return copy


@pytest.fixture
def bare_path(tmp_path):
  """A directory for PATH with the system's tools but without any Python."""
  tools = tmp_path / 'tools'
  tools.mkdir()
  for name in (
    'bash',
    'cat',
    'cksum',
    'cp',
    'dirname',
    'ls',
    'mkdir',
    'rm',
    'sort',
    'tail',
    'touch',
  ):
    (tools / name).symlink_to(shutil.which(name))
  return tools


def _arguments(script, *flags, cwd, echo):
  result = _run(script, *flags, cwd=cwd, PYTHON=echo)
  assert result.returncode == 0, result.stderr
  main, *arguments = json.loads(result.stdout)
  assert pathlib.Path(main).resolve() == _ROOT / 'main.py'
  return arguments


def _resolved(arguments):
  """Returns {flag: value}; what comes last counts, as in main.py."""
  assert all(a.startswith('--') and '=' in a for a in arguments), arguments
  return dict(a[2:].split('=', maxsplit=1) for a in arguments)


def _published():
  return golden.json('scripts.json')['scripts']


def test_there_is_a_script_for_every_published_configuration():
  names = {path.stem for path in _SCRIPTS}
  assert set(_published()) <= names


def test_scripts_pass_exactly_the_published_flags(tmp_path, echo):
  for name, published in _published().items():
    if name == _HEAD:
      continue
    script = _ROOT / 'scripts' / f'{name}.sh'
    arguments = _arguments(script, cwd=tmp_path, echo=echo)
    assert _resolved(arguments) == published['flags'], name
    assert len(arguments) == len(published['flags']), f'{name} repeats a flag'


def test_losses_reach_the_encoder_in_every_script(tmp_path, echo):
  for name in (*_published(), *_TRANSFERS, *_OTHERS):
    script = _ROOT / 'scripts' / f'{name}.sh'
    reference = ['runs/a'] if name in (_HEAD, *_TRANSFERS) else []
    arguments = _arguments(script, *reference, cwd=tmp_path, echo=echo)
    _, params = flag_parsing.parse(arguments)
    params.check()
    reach.check(params)
    assert list(reach.oddities(params)) == [], name
    assert list(params.input_data.preprocessing.oddities()) == [], name


def test_headers_name_the_published_hardware():
  for name, published in _published().items():
    header = (_ROOT / 'scripts' / f'{name}.sh').read_text().split('\nset ')[0]
    words = header.replace('\n# ', ' ')
    if published['tpu_cores'] is not None:
      assert f'{published["tpu_cores"]} TPU v3 cores' in words
    assert 'top-1' in words or '81.4' in words
    assert f'# Usage: scripts/{name}.sh' in header


def test_classification_head_changes_only_what_it_says(tmp_path, echo):
  script = _ROOT / 'scripts' / f'{_HEAD}.sh'
  published = _published()[_HEAD]['flags']
  expected = {**published, **_HEAD_CHANGES, 'reference_ckpt': 'runs/a b'}
  left = {name: expected.pop(name) for name in _OF_REFERENCE & {*expected}}
  for reference in ('runs/a b', '--reference_ckpt=runs/a b'):
    arguments = _arguments(script, reference, cwd=tmp_path, echo=echo)
    assert _resolved(arguments) == expected
  # Where nothing is known of the reference, what it leaves out is published.
  with_them = [*arguments, *(f'--{k}={v}' for k, v in left.items())]
  assert flag_parsing.parse(with_them) == flag_parsing.parse(arguments)


@pytest.mark.parametrize('name', [_HEAD, *_TRANSFERS])
def test_what_is_the_references_no_script_says(tmp_path, echo, name):
  script = _ROOT / 'scripts' / f'{name}.sh'
  arguments = _arguments(script, 'runs/a', cwd=tmp_path, echo=echo)
  assert not _OF_REFERENCE & {*_resolved(arguments)}
  # What the user says comes last, and so holds.
  flag = '--image_size=16'
  assert _arguments(script, 'a', flag, cwd=tmp_path, echo=echo)[-1] == flag


@pytest.mark.parametrize(
  'flags', [(), ('--mode=train',), ('',), ('--reference_ckpt=',)]
)
@pytest.mark.parametrize('name', [_HEAD, *_TRANSFERS])
def test_a_reference_is_asked_for(tmp_path, echo, flags, name):
  script = _ROOT / 'scripts' / f'{name}.sh'
  result = _run(script, *flags, cwd=tmp_path, PYTHON=echo)
  assert result.returncode == 2
  assert result.stdout == ''
  assert result.stderr.count('\n') == 1
  assert f'usage: scripts/{name}.sh REFERENCE' in result.stderr


@pytest.mark.parametrize('name', _TRANSFERS)
def test_transfers_train_what_they_say(tmp_path, echo, name):
  script = _ROOT / 'scripts' / f'{name}.sh'
  arguments = _arguments(script, 'runs/a b', cwd=tmp_path, echo=echo)
  options, params = flag_parsing.parse(
    [*arguments, '--use_tpu=False', '--model_dir=x']
  )
  params.check()
  options.check(params)
  assert options.reference_ckpt == 'runs/a b'
  assert params.warm_start.warm_start_encoder
  assert not params.warm_start.warm_start_classifier
  assert params.stage_2.epochs == 0
  stage = params.stage_1
  assert (stage.contrastive_loss_weight, stage.cross_entropy_loss_weight) == (
    0,
    1,
  )
  is_whole = name == 'finetune'
  assert params.warm_start.batch_norm_in_train_mode == is_whole
  assert stage.update_encoder_batch_norm == is_whole
  assert params.input_data.preprocessing.train_on_eval_views != is_whole
  keeps = params.architecture.stop_gradient_before_classification_head
  assert keeps != is_whole
  assert is_whole or not stage.use_encoder_weight_decay


@pytest.mark.parametrize('name', [*_TRANSFERS, *_OTHERS])
def test_flags_that_nobody_has_published_are_the_ones_written_down(
  tmp_path, echo, name
):
  # script_flags.json has all of them, written out: whoever means to change one
  # changes it there, too.
  script = _ROOT / 'scripts' / f'{name}.sh'
  reference = ['runs/x'] if name in _TRANSFERS else []
  found = _resolved(_arguments(script, *reference, cwd=tmp_path, echo=echo))
  if reference:
    assert found.pop('reference_ckpt') == 'runs/x'
  expected = json.loads((_ROOT / 'tests' / 'script_flags.json').read_text())
  assert found == expected[name]


@pytest.mark.parametrize('name', _OTHERS)
def test_headers_say_that_it_was_not_run(name):
  header = (_ROOT / 'scripts' / f'{name}.sh').read_text().split('\nset ')[0]
  words = header.replace('\n# ', ' ')
  assert 'Published top-1' in words and 'Not run by us.' in words


def test_users_flags_come_last(tmp_path, echo):
  flags = ['--batch_size=8', '--model_dir=a b', '--use_tpu=False']
  for name in _published():
    script = _ROOT / 'scripts' / f'{name}.sh'
    reference = ['runs/x'] if name == _HEAD else []
    arguments = _arguments(script, *reference, *flags, cwd=tmp_path, echo=echo)
    assert arguments[-3:] == flags
    assert _resolved(arguments)['batch_size'] == '8'


def test_scripts_run_from_any_directory(tmp_path, echo):
  script = 'supcon_cifar10_resnet50.sh'
  (tmp_path / 'scripts').mkdir()  # CDPATH must not lead there.
  for cwd, path in ((_ROOT, 'scripts/'), (_ROOT / 'scripts', './')):
    result = _run(path + script, cwd=cwd, PYTHON=echo, CDPATH=tmp_path)
    assert pathlib.Path(json.loads(result.stdout)[0]) == _ROOT / 'main.py'


def test_interpreter_is_python_then_venv_then_python3(checkout, bare_path):
  script = checkout / 'scripts' / 'simclr_cifar10_resnet50.sh'
  for text in ('python3', 'named'):
    _write_executable(bare_path / text, f'#!/bin/sh\necho {text}')

  def interpreter(**environment):
    return _run(script, cwd='/', PATH=bare_path, **environment).stdout.strip()

  assert interpreter() == 'python3'
  _write_executable(checkout / '.venv/bin/python', '#!/bin/sh\necho venv')
  assert interpreter() == 'venv'
  assert interpreter(PYTHON=bare_path / 'named') == 'named'
  assert interpreter(PYTHON='') == 'venv'


@pytest.mark.parametrize('path', _SCRIPTS, ids=lambda path: path.name)
def test_script_is_well_formed(path):
  lines = path.read_text().splitlines()
  assert lines[0] == '#!/bin/bash'
  assert lines[1].startswith('# ')
  subprocess.run(['bash', '-n', str(path)], check=True)
  if path.name not in _SOURCED:
    assert path.stat().st_mode & stat.S_IXUSR
    assert 'set -euo pipefail' in lines


def test_continuous_integration_is_well_formed():
  path = _ROOT / '.ci' / 'run'
  assert path.read_text().startswith('#!/bin/bash\n')
  assert path.stat().st_mode & stat.S_IXUSR
  subprocess.run(['bash', '-n', str(path)], check=True)


class TestSetUp:
  """quickstart.sh and test.sh on machines with other interpreters."""

  @pytest.fixture(autouse=True)
  def _machine(self, tmp_path, checkout, bare_path):
    self.checkout = checkout
    self.path = bare_path
    self.log = tmp_path / 'log'

  def run(self, *flags, script='quickstart.sh', **environment):
    """Returns the finished process and what it called for the set-up."""
    self.log.write_text('')
    result = _run(
      self.checkout / 'scripts' / script,
      *flags,
      cwd='/',
      **{'PATH': self.path, 'LOG': self.log, **environment},
    )
    return result, self.log.read_text().split('\n')[:-1]

  def assert_refuses(self, result, *found):
    assert result.returncode == 1
    assert result.stdout == ''
    assert result.stderr.count('\n') == 1
    for words in ('3.10, 3.11, 3.12 or 3.13', *found):
      assert words in result.stderr
    assert not (self.checkout / '.venv').exists()

  @pytest.mark.parametrize('script', ['quickstart.sh', 'test.sh'])
  def test_refuses_other_versions(self, script):
    _fake_python(self.path, 'python3', '3.14.1')
    _fake_python(self.path, 'python', '2.7.18')
    result, _ = self.run(script=script)
    self.assert_refuses(result, '3.14.1', str(self.path / 'python3'), '2.7.18')

  def test_refuses_a_machine_without_python(self):
    result, _ = self.run()
    self.assert_refuses(result, 'no Python at all')

  def test_names_what_a_supported_version_lacks(self):
    _fake_python(self.path, 'python3.11', '3.11.2', lack='the venv module')
    result, _ = self.run()
    self.assert_refuses(result, '3.11.2 without the venv module')

  @pytest.mark.parametrize('name', ['python3.11', 'python3.10', 'python'])
  def test_finds_the_right_one(self, name):
    _fake_python(self.path, 'python3', '3.9.1')
    _fake_python(self.path, name, '3.10.9')
    _, calls = self.run()
    assert calls[0] == 'venv 3.10.9'

  def test_takes_the_newest_supported_one(self):
    for version in ('3.9.18', '3.14.0', '3.10.13', '3.12.1', '3.11.7'):
      name = f'python{version.rpartition(".")[0]}'
      _fake_python(self.path, name, version)
    assert self.run()[1][0] == 'venv 3.12.1'
    # What is there goes on, until another is asked for.
    _fake_python(self.path, 'python3', '3.13.0')
    assert self.run()[1] == []
    assert self.run(PYTHON='python3')[1][0] == 'venv 3.13.0'

  def test_passes_over_a_shim_that_fails(self, tmp_path):
    _write_executable(tmp_path / 'shims/python3.11', '#!/bin/sh\nexit 127')
    _fake_python(self.path, 'python3.11', '3.11.2')
    path = f'{tmp_path / "shims"}:{self.path}'
    _, calls = self.run(PATH=path)
    assert calls[0] == 'venv 3.11.2'

  def test_asks_pyenv_for_versions_that_it_hides(self, tmp_path):
    versions = tmp_path / 'versions'
    _fake_python(versions / '3.9.1/bin', 'python', '3.9.1')
    _fake_python(versions / '3.10.4/bin', 'python', '3.10.4')
    _write_executable(self.path / 'pyenv', f'#!/bin/sh\necho "{tmp_path}"')
    _, calls = self.run()
    assert calls[0] == 'venv 3.10.4'

  def test_python_names_the_interpreter(self, tmp_path):
    _fake_python(self.path, 'python3.11', '3.11.2')
    other = _fake_python(tmp_path / 'opt', 'py', '3.10.7')
    _, calls = self.run(PYTHON=other)
    assert calls[0] == 'venv 3.10.7'
    # It is made anew only for another version.
    assert self.run(PYTHON=other)[1] == []
    assert self.run(PYTHON='python3.11')[1][0] == 'venv 3.11.2'
    assert self.run()[1] == []

  @pytest.mark.parametrize('version, says', [('3.14.0', '3.14.0'), ('', 'run')])
  def test_says_that_python_does_not_do(self, tmp_path, version, says):
    _fake_python(self.path, 'python3.11', '3.11.2')
    other = tmp_path / 'none'
    if version:
      other = _fake_python(tmp_path / 'opt', 'py', version)
    result, calls = self.run(PYTHON=other)
    assert calls[0] == 'venv 3.11.2'
    assert f'PYTHON={other} does not do (' in result.stdout
    assert says in result.stdout

  def test_installs_once(self):
    _fake_python(self.path, 'python3.11', '3.11.2')
    requirements = self.checkout / 'requirements.txt'
    result, calls = self.run()
    assert result.returncode == 0, result.stderr
    assert calls == ['venv 3.11.2', 'pip pip', f'pip {requirements}']
    assert len(result.stdout.splitlines()) <= 6
    result, calls = self.run()
    assert calls == []
    assert len(result.stdout.splitlines()) == 1  # main.py alone.

    # The tests need more, and what they installed serves both.
    for_tests = self.checkout / 'tests' / 'requirements.txt'
    assert self.run(script='test.sh')[1] == ['pip pip', f'pip {for_tests}']
    assert self.run(script='test.sh')[1] == []
    assert self.run()[1] == []

    requirements.write_text('absl-py\n')
    assert self.run()[1] == ['pip pip', f'pip {requirements}']

  def test_shows_why_pip_fails_and_starts_over(self):
    _fake_python(self.path, 'python3.11', '3.11.2')
    result, calls = self.run(PIP_STATUS='1')
    assert result.returncode == 1
    assert calls == ['venv 3.11.2', 'pip pip']
    assert 'ERROR: as the test asks' in result.stderr
    assert str(self.checkout / '.venv/pip.log') in result.stderr
    assert self.run()[1][0] == 'venv 3.11.2'

  def test_starts_over_after_an_interruption(self):
    _fake_python(self.path, 'python3.11', '3.11.2')
    self.run(PIP_KILLED='1')
    assert self.run()[1][0] == 'venv 3.11.2'
    assert self.run()[1] == []

  def test_makes_a_broken_environment_anew(self):
    _fake_python(self.path, 'python3.11', '3.11.2')
    self.run()
    (self.checkout / '.venv/bin/pip').unlink()
    assert self.run()[1][0] == 'venv 3.11.2'

  def model_dir(self, *flags):
    last = self.run(*flags)[0].stdout.splitlines()[-1]
    return last.split('--model_dir=')[1].split(' --')[0]

  def test_quickstart_keeps_different_runs_apart(self):
    _fake_python(self.path, 'python3.11', '3.11.2')
    plain = self.model_dir()
    assert plain == str(self.checkout / 'runs/quickstart')
    simclr = self.model_dir('--use_labels=False')
    assert simclr.startswith(plain + '-')
    assert simclr == self.model_dir('--use_labels=False')
    others = [('--use_labels=True',), ('--use_labels=False', '--seed=1')]
    assert len({plain, simclr, *(self.model_dir(*f) for f in others)}) == 4

  def test_quickstart_runs_the_main_job(self):
    _fake_python(self.path, 'python3.11', '3.11.2')
    result, _ = self.run('--stage_1_epochs=1', '--model_dir=mine')
    python, *arguments = result.stdout.splitlines()[-1].split(' --')
    assert f'{self.checkout}/main.py' in python
    assert f'{self.checkout}/.venv/bin/python' in python
    assert arguments[-2:] == ['stage_1_epochs=1', 'model_dir=mine']
    flags = dict(a.split('=', maxsplit=1) for a in arguments)
    assert flags['mode'] == 'train_then_eval'
    assert flags['use_tpu'] == 'False'
    assert flags['input_fn'] == 'digits'
    assert flags['data_dir'] == str(self.checkout / 'runs/data')
    flag_parsing.parse([f'--{a}' for a in arguments])  # It knows all of them.

  def test_test_passes_options_to_pytest(self):
    _fake_python(self.path, 'python3.11', '3.11.2')
    result, _ = self.run('-k', 'losses', '-x', script='test.sh')
    assert ' -m pytest ' in result.stdout.splitlines()[-1]
    assert result.stdout.endswith(' -k losses -x\n')


# --- Several workers on one machine -------------------------------------------

_LOCAL_WORKERS = _ROOT / 'scripts' / 'local_workers.sh'


class TestLocalWorkers:
  """A script of a few lines stands in for a training."""

  def run(self, directory, body, *flags, count=2):
    script = _write_executable(directory / 'work', f'#!/bin/bash\n{body}\n')
    return _run(_LOCAL_WORKERS, str(count), str(script), *flags, cwd=directory)

  def test_each_knows_all_and_itself(self, tmp_path):
    body = 'echo "$TF_CONFIG" > "$1-$$"; echo "$2"; echo error >&2'
    result = self.run(tmp_path, body, 'config', 'a  b', count=3)
    assert result.returncode == 0, result.stderr
    configs = [json.loads(p.read_text()) for p in tmp_path.glob('config-*')]
    (addresses,) = {tuple(each['cluster']['worker']) for each in configs}
    assert len(set(addresses)) == 3
    assert all(each.startswith('localhost:') for each in addresses)
    tasks = sorted(each['task']['index'] for each in configs)
    assert tasks == [0, 1, 2]
    assert {each['task']['type'] for each in configs} == {'worker'}
    for output, text in ((result.stdout, 'a  b'), (result.stderr, 'error')):
      assert sorted(output.splitlines()) == [f'[{i}] {text}' for i in range(3)]

  def test_fails_if_one_fails(self, tmp_path):
    body = 'case "$TF_CONFIG" in *\'"index": 1\'*) exit 3 ;; esac'
    result = self.run(tmp_path, body)
    assert result.returncode == 1
    assert 'worker 1 ended with status 3' in result.stderr
    assert 'worker 0' not in result.stderr

  @pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
  def test_passes_signals_on(self, tmp_path, number):
    # As SIGTERM: bash has background processes ignore SIGINT.
    script = tmp_path / 'work.py'
    script.write_text(
      'import signal, sys, time\n'
      'signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))\n'
      'print("ready", flush=True)\n'
      'time.sleep(50)\n'
    )
    process = subprocess.Popen(
      [str(_LOCAL_WORKERS), '2', sys.executable, '-S', str(script)],
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
      # Where the tests themselves are in the background, they ignore SIGINT,
      # and so would all that they start.
      preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    lines = [process.stdout.readline() for _ in range(2)]
    assert sorted(lines) == ['[0] ready\n', '[1] ready\n']
    process.send_signal(number)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 75
    for worker in (0, 1):
      assert f'worker {worker} ended with status 75' in errors

  @pytest.mark.parametrize('arguments', [[], ['2'], ['two', 'x'], ['0', 'x']])
  def test_says_how_it_is_used(self, tmp_path, arguments):
    result = _run(_LOCAL_WORKERS, *arguments, cwd=tmp_path)
    assert result.returncode == 2
    assert result.stderr.count('\n') == 1
    assert 'usage: scripts/local_workers.sh N SCRIPT' in result.stderr


# --- Cloud TPU ----------------------------------------------------------------

# An interpreter of which the test decides what is installed, and which logs
# what pip is asked for.
_TPU_PYTHON = f"""#!/bin/bash
if [[ "$1 $2" == '-m pip' ]]; then
  for argument in "$@"; do
    if [[ "$argument" == */constraints || "$argument" == */alone ||
          "$argument" == */others ]]; then
      sed "s,^,${{argument##*/}} ," "$argument" >> "$LOG"
    fi
  done
  echo "${{@:3}}" | sed 's,^,call ,' >> "$LOG"
else
  PYTHONPATH="$INSTALLED" exec '{sys.executable}' -S "$@"
fi
"""


class TestTpuSetUp:
  def run(self, tmp_path, **versions):
    """Returns the finished process, and what pip was asked for.

    Args:
      tmp_path: Directory.
      **versions: Of the packages that are installed.
    """
    # What pip would have brought.
    modules = ('tensorflow_estimator', 'tf_keras', 'tensorflow_datasets')
    modules = dict.fromkeys(modules, '')
    if 'tensorflow' in versions:
      modules['tensorflow'] = f'__version__ = {versions["tensorflow"]!r}'
    packages = fake_packages.make(
      tmp_path / 'installed',
      {name.replace('_', '-'): each for name, each in versions.items()},
      modules,
    )
    python = _write_executable(tmp_path / 'python', _TPU_PYTHON)
    log = tmp_path / 'log'
    result = _run(
      _ROOT / 'scripts' / 'setup_tpu.sh',
      cwd=tmp_path,
      PYTHON=python,
      LOG=log,
      INSTALLED=packages,
    )
    asked = collections.defaultdict(list)
    for line in log.read_text().splitlines() if log.exists() else []:
      kind, _, text = line.partition(' ')
      asked[kind].append(text)
    return result, asked

  def test_brings_the_estimator_and_keras_that_go_with_tensorflow(
    self, tmp_path
  ):
    result, asked = self.run(
      tmp_path, tensorflow='2.19.1', numpy='2.1.3', absl_py='1.4.0'
    )
    assert result.returncode == 0, result.stderr
    assert 'TensorFlow 2.19.1 stays' in result.stdout
    assert asked['alone'] == [
      'tensorflow-hub==0.16.1',
      'cloud-tpu-client==0.10',
      'tensorflow-estimator==2.15.0',
      'tf_keras==2.19.*',
    ]
    # What asks for TensorFlow is not to bring another.
    assert ['--no-deps' in call for call in asked['call']] == [False, True]
    assert 'tensorflow-datasets==4.9.10' in asked['others']
    assert 'absl-py' not in asked['others']

  def test_pins_all_that_is_there(self, tmp_path):
    _, asked = self.run(
      tmp_path,
      tensorflow='2.15.1',
      numpy='1.26.4',
      protobuf='4.25.9',
      python_apt='2.4.0+ubuntu1',
      odd='1-2-odd',
    )
    assert sorted(asked['constraints']) == [
      'numpy==1.26.4',
      'protobuf==4.25.9',
      'python-apt==2.4.0+ubuntu1',
      'tensorflow-metadata<1.18',
      'tensorflow==2.15.1',
    ]
    assert asked['alone'] == [
      'tensorflow-hub==0.16.1',
      'cloud-tpu-client==0.10',
    ]

  def test_asks_for_nothing_twice(self, tmp_path):
    names = (
      'tensorflow_hub tensorflow_estimator tf_keras absl_py cloud_tpu_client '
      'google_api_python_client oauth2client importlib_resources matplotlib '
      'packaging setuptools tensorflow_datasets'
    ).split()
    result, asked = self.run(
      tmp_path, tensorflow='2.21.0', **dict.fromkeys(names, '1.0')
    )
    assert result.returncode == 0, result.stderr
    assert not asked

  @pytest.mark.parametrize(
    'versions, says',
    [
      ({}, 'has no TensorFlow'),
      ({'tensorflow': '2.14.1'}, 'TensorFlow 2.14.1 of'),
    ],
  )
  def test_refuses_where_no_tensorflow_fits(self, tmp_path, versions, says):
    result, asked = self.run(tmp_path, **versions)
    assert result.returncode == 1
    assert says in result.stderr and '2.15 to 2.21' in result.stderr
    assert result.stderr.count('\n') == 1
    assert not asked
