"""main.py under signals, two of them at one model_dir, and what they tell."""

import json
import signal

import pytest

from tests import command

_FLAGS = {
  **command.DIGITS,
  'mode': 'train',
  'num_images': 640,
  # More than it can train until the signal.
  'stage_1_epochs': 10000,
  'stage_1_warmup_epochs': 0,
  'stage_2_epochs': 0,
  'save_interval_steps': 100_000,
}


def _flags(directory, **changes):
  return {
    **_FLAGS,
    'data_dir': directory / 'data',
    'model_dir': directory / 'model',
    **changes,
  }


def _status(directory):
  try:
    return json.loads((directory / 'model' / 'status.json').read_text())
  except FileNotFoundError:
    return {}


class _Trainer(command.Process):
  def __init__(self, directory, **changes):
    super().__init__(_flags(directory, **changes), directory, is_small=True)
    self._directory = directory

  @property
  def pid(self):
    return self._process.pid

  def send(self, number):
    self._process.send_signal(number)

  def wait_for_step(self, step):
    self.wait_until(
      lambda: (
        _status(self._directory).get('pid') == self.pid
        and (_status(self._directory)['step'] or 0) > step
      )
    )


def _show(directory):
  flags = {'mode': 'status', 'model_dir': directory / 'model'}
  finished = command.run(flags, directory)
  return finished.returncode, finished.stdout


def test_a_trainer_is_interrupted_and_goes_on(tmp_path):
  model_dir = tmp_path / 'model'
  with _Trainer(tmp_path) as first:
    first.wait_for_step(3)
    code, text = _show(tmp_path)
    assert code == 10
    assert 'images/s' in text
    refused = command.run(_flags(tmp_path), tmp_path, is_small=True)
    assert refused.returncode == 2
    assert f'process {first.pid} on ' in refused.log[-1]
    first.send(signal.SIGTERM)
    ended = first.wait()
  assert ended.returncode == 75
  step = command.newest_step(model_dir)
  assert ended.log[-2].startswith('SIGTERM: stopping after this step')
  assert ended.log[-1].startswith(
    f'main.py: interrupted: SIGTERM; step {step} of 100000 is saved'
  )
  last_line = (model_dir / 'log.txt').read_text().splitlines()[-1]
  assert last_line.endswith(ended.log[-1].removeprefix('main.py: '))
  assert not (model_dir / 'trainer.lock').exists()
  code, text = _show(tmp_path)
  assert code == 11
  assert text.startswith('state       interrupted\n')

  with _Trainer(tmp_path) as second:
    second.wait_for_step(step)
    second.kill()
  assert f'model_dir holds step {step} of 100000' in second.stderr
  found = _status(tmp_path)
  assert found['restarts'] == 1
  assert found['last_checkpoint']['step'] == step
  code, text = _show(tmp_path)
  assert code == 11
  assert 'was it killed?' in text


@pytest.mark.slow
def test_one_that_was_suspended_finds_another(tmp_path):
  with _Trainer(tmp_path, save_interval_steps=50) as first:
    first.wait_for_step(3)
    first.send(signal.SIGSTOP)
    with _Trainer(tmp_path, force=True) as second:
      second.wait_for_step(3)
      assert f'process {first.pid} on ' in second.stderr
      second.send(signal.SIGSTOP)
      before = command.contents(tmp_path / 'model')
      first.send(signal.SIGCONT)
      ended = first.wait()
      after = command.contents(tmp_path / 'model')
      second.send(signal.SIGCONT)
      second.send(signal.SIGTERM)
      assert second.wait().returncode == 75
  assert ended.returncode == 1
  assert 'belongs to another trainer now' in ended.log[-1]
  changed = {name for name in after if after[name] != before.get(name)}
  # What it has to say goes to files of its own, and to the log.
  assert all('tfevents' in name or name == 'log.txt' for name in changed)
