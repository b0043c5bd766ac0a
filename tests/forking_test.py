"""What is started in a fork behaves like a process of its own."""

import json
import signal
import subprocess

import pytest

from tests import forking

_PROGRAM = """
import json, os, sys, time
print(json.dumps([sys.argv, os.getcwd(), dict(os.environ), __name__]))
print('tensorflow' in sys.modules, file=sys.stderr)
sys.stdout.flush()
time.sleep(float(sys.argv[1]))
sys.exit(3)
"""


@pytest.fixture
def start(tmp_path):
  """Returns a function that starts the program, which sleeps, and ends in 3."""
  program = tmp_path / 'program.py'
  program.write_text(_PROGRAM)

  def start(seconds):
    with open(tmp_path / 'out', 'w') as out, open(tmp_path / 'err', 'w') as err:
      return forking.Process(
        [program, seconds], tmp_path, {'ONLY': 'this'}, out, err
      )

  return start


def test_it_has_what_it_is_given(start, tmp_path):
  assert start(0).wait() == 3
  argv, directory, environment, name = json.loads(
    (tmp_path / 'out').read_text()
  )
  assert argv == [str(tmp_path / 'program.py'), '0']
  assert directory == str(tmp_path)
  assert environment == {'ONLY': 'this'}
  assert name == '__main__'
  assert (tmp_path / 'err').read_text() == 'True\n'


def test_it_can_be_looked_after(start):
  process = start(60)
  assert process.poll() is None
  with pytest.raises(subprocess.TimeoutExpired):
    process.wait(0.01)
  process.send_signal(signal.SIGTERM)
  assert process.wait() == process.poll() == -signal.SIGTERM
  process.kill()  # It has ended, so nothing happens.
