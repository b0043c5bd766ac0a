"""main.py on storage that fails when it is told to.

$FLAKY is a list such as 'unavailable:3,denied:9,session:7': the third time that
a checkpoint is saved storage is not available, the ninth time permission is
denied, and in the seventh step it is the input that cannot be read.
"""

import itertools
import os
import pathlib
import runpy
import sys

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
_ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(_ROOT))

import tensorflow as tf  # noqa: E402

from supcon.runs import retries  # noqa: E402
from supcon.training import lost_sessions  # noqa: E402

_ERRORS = {
  'unavailable': tf.errors.UnavailableError,
  'denied': tf.errors.PermissionDeniedError,
}
_plan = [item.split(':') for item in os.environ['FLAKY'].split(',')]
_saves = {int(n): _ERRORS[kind] for kind, n in _plan if kind in _ERRORS}
_steps = {int(n) for kind, n in _plan if kind == 'session'}
_Saver = tf.compat.v1.train.Saver
_save = _Saver.save
_save_numbers = itertools.count(1)
_step_numbers = itertools.count(1)


def _flaky_save(self, session, path, *args, **kwargs):
  if error := _saves.get(next(_save_numbers)):
    raise error(None, None, f'{path}: storage says no\nin many words')
  return _save(self, session, path, *args, **kwargs)


class _FlakyHook(lost_sessions.NewSessionHook):
  def before_run(self, run_context):
    if next(_step_numbers) in _steps:
      raise tf.errors.UnavailableError(None, None, 'the input says no')


_Saver.save = _flaky_save
lost_sessions.NewSessionHook = _FlakyHook
retries.FIRST_PAUSE_SECONDS = 0.01
runpy.run_path(str(_ROOT / 'main.py'), run_name='__main__')
