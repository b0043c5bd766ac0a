"""Times in the files of a run."""

import datetime
import time


def now() -> str:
  """Returns the time as ISO 8601, to the second, in UTC."""
  return datetime.datetime.now(datetime.timezone.utc).isoformat(
    timespec='seconds'
  )


def age(when: str) -> float | None:
  """Returns the age of `when` in seconds; None if it is not a time."""
  try:
    then = datetime.datetime.fromisoformat(when)
    return time.time() - then.timestamp()
  except (TypeError, ValueError, OverflowError, OSError):
    return None
