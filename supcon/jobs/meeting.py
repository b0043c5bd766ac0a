"""Keeps the workers of several machines together while they train."""

from collections.abc import Callable
from collections.abc import Iterator
import contextlib
import math
import time

from absl import logging

from supcon.compute import watchdog
from supcon.jobs import run_state
from supcon.runs import model_dirs
from supcon.training import hooks

_POLL_SECONDS = 2.0

# How long a file may take to become visible on the other machines.
_WAIT_SECONDS = 60.0
# How long the chief may take to save; more than it ever needs.
_SAVING_SECONDS = 3600.0


class Meeting:
  """What this worker has to do with the others; nothing if it is alone."""

  def __init__(
    self,
    run: run_state.Run,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
  ):
    """Begins alone; `clock` and `sleep` are in seconds."""
    self._run = run
    self._clock = clock
    self._sleep = sleep

  @contextlib.contextmanager
  def together(self) -> Iterator[None]:
    """Waits for the others at the end, or at an error that all stop at."""
    try:
      yield
    except hooks.NanLossError as error:
      # All workers stop at this error, unless only one of them has found it.
      if not isinstance(error, hooks.BrokenVariableError):
        self.part()
      raise
    self.part()

  def part(self) -> None:
    """Ends the common work; see watchdog.Watchdog.part."""
    self._run.devices.watchdog.part()

  def begin(self) -> None:
    """Waits for the chief, which must train the same run in the same place."""
    # Once the chief's server is visible, so is what the chief has announced.
    devices, model_dir = self._run.devices, self._run.model_dir
    # No retries: the wait looks again anyway, and a watchdog cannot wait for
    # storage.
    records = watchdog.Records(
      model_dirs.ModelDir(model_dir.path), devices.host.index
    )
    records.clear()
    devices.watchdog.records = records
    logging.info(
      'worker %d listens at %s', devices.host.index, devices.listen()
    )
    mine = self._run.announcement
    if devices.is_chief:
      model_dir.write_json(model_dirs.ANNOUNCED, mine)

    def is_announced():
      return model_dir.read_json(model_dirs.ANNOUNCED) == mine

    self._wait_for(
      f'{model_dirs.ANNOUNCED} with the flags of this worker', is_announced
    )

  def wait_for_checkpoint(self, step: int) -> None:
    """Waits until this worker sees the checkpoint that the chief has written.

    Otherwise it would start the next stage from an older checkpoint.
    """
    records = self._run.devices.watchdog.records
    if self._run.devices.is_chief:
      records.tell(saved=step)
    self._wait_for(
      f'checkpoint of step {step}',
      lambda: self._run.look_again() >= step,
      is_written=lambda: records.saved(0) >= step,
      most_seconds=_SAVING_SECONDS,
    )

  def _wait_for(self, what, is_there, is_written=None, most_seconds=math.inf):
    """Waits for a file of the chief, at most a minute after it is written.

    Args:
      what: Name of the file for messages.
      is_there: Whether this worker sees it.
      is_written: Whether the chief has written it; by default, whether the
        chief is there.
      most_seconds: The maximum wait in any case.

    Raises:
      watchdog.LostWorkerError: If the file does not appear.
    """
    begun, until = None, math.inf
    model_dir = self._run.model_dir.path
    with self._run.devices.watchdog.guarding(_WAIT_SECONDS) as guard:
      is_written = is_written or (lambda: guard.has_seen(0))
      while not is_there():
        now = self._clock()
        if begun is None:
          begun = now
          logging.info('waiting for %s in %s', what, model_dir)
        if until == math.inf and is_written():
          until = now + _WAIT_SECONDS
        if now > min(until, begun + most_seconds):
          raise watchdog.LostWorkerError(
            f'found no {what} in --model_dir={model_dir}, where the chief '
            'should have written it; give all workers the same flags and the '
            'same directory, on a file system that they share.'
          )
        self._sleep(_POLL_SECONDS)
