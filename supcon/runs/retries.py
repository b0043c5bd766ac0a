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

from supcon.runs import storage_errors

_Result = TypeVar('_Result')

# The service did not answer, answered too late, or has given up: file systems
# of object stores retry ten times by themselves, within half a minute.
TRANSIENT_ERRORS = (
  tf.errors.UnavailableError,
  tf.errors.DeadlineExceededError,
  tf.errors.AbortedError,
)

# Seconds before the first retry; each pause is twice the previous one.
FIRST_PAUSE_SECONDS = 2.0


class Retries:
  """Counts retries and limits them.

  Attributes:
    count: The number of retries so far.
  """

  def __init__(
    self,
    limit: int = 5,
    first_pause: float | None = None,
    sleep: Callable[[float], None] = time.sleep,
    tell: Callable[[], None] = lambda: None,
  ):
    """Starts without failures.

    Args:
      limit: This many failures in a row are too many.
      first_pause: Seconds before the first retry; by default
        FIRST_PAUSE_SECONDS.
      sleep: Waits for a number of seconds.
      tell: Called before every retry.
    """
    self.count = 0
    self._limit = limit
    self._first_pause = first_pause or FIRST_PAUSE_SECONDS
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
      storage_errors.reason(error),
      pause,
    )
    self._tell()
    self._sleep(pause)

  def succeeded(self) -> None:
    """Resets the number of failures in a row."""
    self._failures = 0
