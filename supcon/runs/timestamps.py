"""Times and durations in the files and log lines of a run."""

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


def duration(seconds: float) -> str:
  """Returns a duration as '1:02:03' or '2:03'; half a second counts as one."""
  minutes, seconds = divmod(int(seconds + 0.5), 60)
  hours, minutes = divmod(minutes, 60)
  if not hours:
    return f'{minutes}:{seconds:02}'
  return f'{hours}:{minutes:02}:{seconds:02}'
