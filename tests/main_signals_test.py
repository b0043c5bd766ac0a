"""main.py where a signal comes, in the process of the test."""

import os
import signal

from absl import flags
import pytest

import main
from supcon import jobs
from supcon.runs import signals
from supcon.training import lost_sessions


class _Job:
  """Is told to end while it trains, and then fails in a way that is foreseen.

  As storage does where somebody takes the machine away.
  """

  def __init__(self, error, number):
    self._error = error
    self._number = number

  def announce(self):
    pass

  def run(self):
    with signals.deferral() as begin:
      begin()
      if self._number:
        os.kill(os.getpid(), self._number)
        assert signals.received()
      raise self._error


@pytest.fixture
def run_main(monkeypatch, capsys, tmp_path):
  """Returns a function: from an error and a signal to (code, stderr)."""
  handlers = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)}
  # What a shell puts into the background ignores it, and so would main.py.
  signal.signal(signal.SIGINT, signal.default_int_handler)
  # The end of this process is not that of main.py.
  monkeypatch.setattr(signals.atexit, 'register', lambda *_: None)
  monkeypatch.setattr(signals, 'answer_with', lambda code: None)

  def run(error, number=None):
    monkeypatch.setattr(jobs, 'prepare', lambda *_: _Job(error, number))
    argv = [
      'main.py',
      '--mode=train',
      '--use_tpu=False',
      '--input_fn=digits',
      f'--model_dir={tmp_path}',
    ]
    saved = flags.FLAGS.flag_values_dict()
    try:
      code = main.main(main.parse_flags(argv))
    finally:
      flags.FLAGS.unparse_flags()
      for name, value in saved.items():
        flags.FLAGS[name].value = value
    return code, capsys.readouterr().err

  yield run
  for number, handler in handlers.items():
    signal.signal(number, handler)


def test_a_foreseen_error_ends_with_1(run_main):
  code, errors = run_main(lost_sessions.LostSessionError('storage was gone'))
  assert code == 1
  assert 'main.py: stopped: ' in errors and 'storage was gone' in errors


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(
  'error',
  [lost_sessions.LostSessionError('storage was gone'), KeyError('a bug')],
)
def test_what_comes_of_a_signal_ends_with_75(run_main, number, error):
  code, errors = run_main(error, number)
  assert code == 75
  assert f'main.py: interrupted: {number.name}; ' in errors
  assert 'stopped' not in errors
