"""Storage that fails for a moment, as object stores do: try again, with an end.

What may pass by itself is tried again after a pause that doubles each time.
What will not (a wrong name, a missing permission, a full disk) is an error at
once.
"""

from collections.abc import Callable
import time
from typing import TypeVar

from absl import logging
import tensorflow as tf

from supcon.config import safe_text

_Result = TypeVar('_Result')

# The service did not answer, answered too late, or has given up trying: file
# systems of object stores try ten times by themselves, within half a minute.
TRANSIENT_ERRORS = (
  tf.errors.UnavailableError,
  tf.errors.DeadlineExceededError,
  tf.errors.AbortedError,
)


class Retries:
  """Counts what was tried again, and says when it is enough.

  Attributes:
    count: How often something was tried again.
  """

  def __init__(
    self,
    limit: int = 5,
    first_pause: float = 2.0,
    sleep: Callable[[float], None] = time.sleep,
    tell: Callable[[], None] = lambda: None,
  ):
    """Nothing has failed yet.

    Args:
      limit: So many failures in a row are one too many.
      first_pause: Seconds before the second try; each pause is twice the one
        before.
      sleep: What waits.
      tell: Is called whenever something is to be tried again.
    """
    self.count = 0
    self._limit = limit
    self._first_pause = first_pause
    self._sleep = sleep
    self._tell = tell
    self._failures = 0

  def call(self, what: str, function: Callable[[], _Result]) -> _Result:
    """Returns what a function returns, as soon as it does.

    Args:
      what: What is done, for the log: 'writing DIR/status.json'.
      function: May be called several times.

    Raises:
      tf.errors.OpError: If it fails for another reason, or too often.
    """
    while True:
      try:
        result = function()
      except TRANSIENT_ERRORS as error:
        self.wait(what, error)
      else:
        self.succeeded()
        return result

  def wait(self, what: str, error: Exception) -> None:
    """Waits before the next try.

    Raises:
      Exception: `error`, if there were too many failures in a row.
    """
    self._failures += 1
    if self._failures >= self._limit:
      logging.warning(
        'WARNING: %s failed %d times in a row; giving up', what, self._failures
      )
      raise error
    pause = self._first_pause * 2 ** (self._failures - 1)
    self.count += 1
    logging.warning(
      'WARNING: %s failed (%s); trying again in %.0f s',
      what,
      reason(error),
      pause,
    )
    self._tell()
    self._sleep(pause)

  def succeeded(self) -> None:
    """Ends a row of failures."""
    self._failures = 0


def reason(error: Exception) -> str:
  """Returns what went wrong with which file, in one line."""
  text = error.message if isinstance(error, tf.errors.OpError) else str(error)
  return safe_text.one_line(str(text).split('\n')[0])


class Saver(tf.compat.v1.train.Saver):
  """Saves and restores checkpoints, and tries again where that may help.

  By itself TensorFlow would not wait, and not count: where the error comes
  while a session is made, it begins anew without end.
  """

  def __init__(self, attempts: Retries, **kwargs):
    super().__init__(**kwargs)
    self._attempts = attempts

  def save(self, sess, save_path, *args, **kwargs):
    return self._call(
      f'saving {save_path}',
      lambda: super(Saver, self).save(sess, save_path, *args, **kwargs),
    )

  def restore(self, sess, save_path):
    return self._call(
      f'restoring {save_path}',
      lambda: super(Saver, self).restore(sess, save_path),
    )

  def _call(self, what, function):
    try:
      return self._attempts.call(what, function)
    except TRANSIENT_ERRORS as error:
      raise LostSessionError(f'{what}: {reason(error)}') from error


class NewSessionHook(tf.compat.v1.train.SessionRunHook):
  """Ends training where TensorFlow would go on by itself.

  A session whose storage is gone for a moment is made anew and restored from
  the newest checkpoint, without limit; but its input would begin where this
  call of train() began, and repeat examples. So the error is handed on to
  whoever knows which batch is next.
  """

  def __init__(self):
    self._has_begun = False

  def after_create_session(self, session, coord):
    if self._has_begun:
      raise LostSessionError('storage or a device was gone for a moment')
    self._has_begun = True


class LostSessionError(RuntimeError):
  """Storage or a device failed, and the session with it.

  Not an error of TensorFlow's, which would make another session.
  """
