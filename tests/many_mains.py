"""Runs main.py for each list of arguments in a JSON file, in one process.

  python tests/many_mains.py FILE

Prints the fields of `command.Finished` for each, as JSON.
"""

import json
import os
import pathlib
import sys
import tempfile
import time
import traceback

from absl import app

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import main  # noqa: E402


def run(arguments):
  """Runs main.py as if it had just started; returns its exit code."""
  for name in main.FLAGS:
    main.FLAGS[name].unparse()
  try:
    app.run(main.main, ['main.py', *arguments], main.parse_flags)
  except SystemExit as end:
    return end.code or 0
  except BaseException:
    traceback.print_exc()
    return 1


def _finish(arguments):
  begun = time.monotonic()
  kept = os.dup(1), os.dup(2)
  # Descriptors are replaced, not sys.stderr, for handlers of logs and C++ write
  # there.
  with tempfile.TemporaryFile('w+') as out, tempfile.TemporaryFile('w+') as err:
    os.dup2(out.fileno(), 1)
    os.dup2(err.fileno(), 2)
    returncode = run(arguments)
    sys.stdout.flush()
    sys.stderr.flush()
    for number, each in enumerate(kept, 1):
      os.dup2(each, number)
      os.close(each)
    out.seek(0)
    err.seek(0)
    return returncode, out.read(), err.read(), time.monotonic() - begun


if __name__ == '__main__':
  with open(sys.argv[1]) as file:
    finished = [_finish(arguments) for arguments in json.load(file)]
  json.dump(finished, sys.stdout)
