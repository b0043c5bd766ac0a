"""main.py under kill -9, again and again, then left alone.

  python tests/killed_main.py NUM_KILLS LAST_STEP --model_dir=... [FLAGS]

Kills are at random moments, from its start to the end of its training. Prints
JSON: the step of the newest checkpoint at each of them. TensorFlow is imported
once: each run is a fork of the process that has done so.
"""

import json
import os
import pathlib
import random
import signal
import sys
import time

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from absl import app  # noqa: E402

import main  # noqa: E402
from supcon import jobs  # noqa: E402, F401
from tests import command  # noqa: E402

# A start takes about as long.
_SECONDS = 2.0


def _fork(flags):
  """Returns the id of a process that runs main.py."""
  pid = os.fork()
  if pid:
    return pid
  os.dup2(2, 1)
  code = 1
  try:
    app.run(main.main, ['main.py', *flags], main.parse_flags)
  except SystemExit as end:
    code = end.code or 0
  finally:
    sys.stderr.flush()
    os._exit(code)


def _kill(pid, is_time):
  """Kills as soon as it is time.

  Raises:
    RuntimeError: If the process ends by itself.
  """
  while not is_time():
    if os.waitpid(pid, os.WNOHANG) != (0, 0):
      raise RuntimeError('it has ended before it was killed')
    time.sleep(0.002)
  os.kill(pid, signal.SIGKILL)
  os.waitpid(pid, 0)


def run(num_kills, last_step, flags):
  (path,) = (f.partition('=')[2] for f in flags if f.startswith('--model_dir='))
  model_dir = pathlib.Path(path)
  killed_at = []
  for number in range(num_kills):
    # Some on their way to a step, by which all of the run gets its share; the
    # others, who knows where.
    step = last_step * (number + 1) // (num_kills + 4)
    latest = time.monotonic() + random.uniform(0, _SECONDS)
    if number % 2:
      latest = float('inf')
    pid = _fork(flags)
    _kill(
      pid,
      lambda step=step, latest=latest: (
        time.monotonic() > latest
        or command.newest_step(model_dir) >= step + random.uniform(0, 2)
      ),
    )
    killed_at.append(command.newest_step(model_dir))
  _, status = os.waitpid(_fork(flags), 0)
  print(json.dumps(killed_at))
  return os.waitstatus_to_exitcode(status)


if __name__ == '__main__':
  sys.exit(run(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]))
