"""Retries operations on storage that fails for a moment.

Object stores do this. An error that may be temporary is retried after a pause
that doubles each time, up to a limit. A permanent error (a wrong name, a
missing permission, a full disk) is raised at once.
"""

from collections.abc import Callable
import time
from typing import TypeVar

from absl import logging
import tensorflow as tf

from supcon.config import safe_text

_Result = TypeVar('_Result')

# The service did not answer, answered too late, or has given up: file systems
# of object stores retry ten times by themselves, within half a minute.
TRANSIENT_ERRORS = (
  tf.errors.UnavailableError,
  tf.errors.DeadlineExceededError,
  tf.errors.AbortedError,
)


class Retries:
  """Counts retries and limits them.

  Attributes:
    count: The number of retries so far.
  """

  def __init__(
    self,
    limit: int = 5,
    first_pause: float = 2.0,
    sleep: Callable[[float], None] = time.sleep,
    tell: Callable[[], None] = lambda: None,
  ):
    """Starts without failures.

    Args:
      limit: This many failures in a row are too many.
      first_pause: Seconds before the first retry; each pause is twice the
        previous one.
      sleep: Waits for a number of seconds.
      tell: Called before every retry.
    """
    self.count = 0
    self._limit = limit
    self._first_pause = first_pause
    self._sleep = sleep
    self._tell = tell
    self._failures = 0

  def call(self, what: str, function: Callable[[], _Result]) -> _Result:
    """Calls a function until it succeeds, and returns its result.

    Args:
      what: What the function does, for the log: 'writing DIR/status.json'.
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
    """Waits before the next attempt.

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
    """Resets the number of failures in a row."""
    self._failures = 0


def reason(error: Exception) -> str:
  """Returns one line about what went wrong with which file."""
  text = error.message if isinstance(error, tf.errors.OpError) else str(error)
  return safe_text.one_line(str(text).split('\n')[0])


class Saver(tf.compat.v1.train.Saver):
  """Saves and restores checkpoints, with retries.

  TensorFlow itself neither waits nor counts: if the error occurs while a
  session is created, it starts again without end.
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
  """Ends training if TensorFlow would silently create another session.

  If storage fails for a moment, TensorFlow creates a new session and restores
  the newest checkpoint, without limit. But its input would start where this
  call of train() started, and so repeat examples. So the error is passed on to
  the caller, which knows the next batch.
  """

  def __init__(self):
    self._has_begun = False

  def after_create_session(self, session, coord):
    if self._has_begun:
      raise LostSessionError('storage or a device was gone for a moment')
    self._has_begun = True


class LostSessionError(RuntimeError):
  """Storage or a device failed, and the session with it.

  It is not a TensorFlow error, because TensorFlow would create another session.
  """
