"""main.py whose chief is slow to save its last step, $SLOW_STEP.

The checkpoint is there, and yet the chief does not go on before the other
worker has ended, or says that it is done; and then for longer than a worker may
be silent. Who ends meanwhile is taken for lost, unless the chief knows better.
"""

import json
import os
import pathlib
import runpy
import sys
import time

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
_HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(_HERE.parent))

from supcon.compute import watchdog  # noqa: E402
from supcon.compute import workers  # noqa: E402
from supcon.training import run_hooks  # noqa: E402

watchdog.PROBE_SECONDS = 0.5
_STEP = int(os.environ['SLOW_STEP'])
_others = workers.read().others
_after_save = run_hooks.SaveListener.after_save


def _is_done(number, model_dir):
  path = pathlib.Path(model_dir) / f'worker_{number}.json'
  try:
    return json.loads(path.read_text())['is_done']
  except (OSError, ValueError):
    return False


def _slow_after_save(self, session, step):
  _after_save(self, session, step)
  if step != _STEP:
    return
  for number, address in _others.items():
    while watchdog.is_there(address, 5.0):
      if _is_done(number, self._model_dir):
        break
      time.sleep(0.05)
  time.sleep(8 * watchdog.PROBE_SECONDS)  # It is gone after 3 of them.


run_hooks.SaveListener.after_save = _slow_after_save
runpy.run_path(str(_HERE.parent / 'main.py'), run_name='__main__')
