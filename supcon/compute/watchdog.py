"""Ends a worker when another one is lost.

Operations that all workers do together have no time limit.
"""

from collections.abc import Callable
from collections.abc import Mapping
import contextlib
import os
import socket
import sys
import threading
import time

from absl import logging
import tensorflow as tf

from supcon.config import safe_text
from supcon.runs import model_dirs
from supcon.runs import signals

# A worker is lost if it was there before and has missed this many probes.
PROBE_SECONDS = 3.0
_PROBES = 3
_WAITING_SECONDS = 30.0  # Between log lines about missing workers.
_PARTING_SECONDS = 0.2  # Between checks that all are done.


class LostWorkerError(RuntimeError):
  """Another worker is lost, without which this one cannot continue."""


class EndedWorkerError(LostWorkerError):
  """The workers that are gone had finished, so this one may end, too."""


def is_there(address: str, timeout: float) -> bool:
  """Returns whether a server listens at 'host:port'."""
  host, _, port = address.rpartition(':')
  try:
    socket.create_connection((host.strip('[]'), int(port)), timeout).close()
  except OSError:
    return False
  return True


class Records:
  """Messages between workers in files of model_dir, which all of them see.

  worker_N.json is {'saved': the last step that worker N knows to be saved,
  'is_done': whether it has finished the common work}. A worker that is done
  ends, and then no longer answers, just like a lost one.
  """

  def __init__(self, model_dir: model_dirs.ModelDir, index: int):
    """Sets the names of the files; `index` is this worker's number."""
    self._model_dir = model_dir
    self._index = index
    self._mine = {'saved': -1, 'is_done': False}

  def clear(self) -> None:
    """Removes this worker's message from an earlier run.

    Call it before the worker listens, so that workers that have seen it find no
    older message.
    """
    with contextlib.suppress(tf.errors.OpError):
      tf.io.gfile.remove(self._model_dir.join(self._name(self._index)))

  def tell(self, **changes: int | bool) -> None:
    """Tells the others. A worker that cannot write looks lost once it ends.

    Args:
      **changes: `saved`, `is_done`.
    """
    self._mine |= changes
    try:
      self._model_dir.write_json(self._name(self._index), self._mine)
    except (OSError, tf.errors.OpError) as error:
      logging.info('telling the other workers: %s', safe_text.one_line(error))

  def is_done(self, number: int) -> bool:
    """Whether that worker has finished."""
    return bool(self._read(number).get('is_done'))

  def saved(self, number: int) -> int:
    """Returns the last step that worker knows to be saved; -1 if none."""
    return int(self._read(number).get('saved', -1))

  def _read(self, number):
    # A file that cannot be read may be incomplete, and is read again later.
    with contextlib.suppress(ValueError, OSError, tf.errors.OpError):
      return self._model_dir.read_json(self._name(number)) or {}
    return {}

  def _name(self, number):
    return f'worker_{number}.json'


class Watchdog:
  """Ends this process if another worker is lost while it is needed.

  Operations that workers do together have no time limit, so the remaining
  workers would wait for ever.

  Attributes:
    records: Distinguish finished workers from lost ones; None if that is
      impossible.
  """

  def __init__(
    self,
    others: Mapping[int, str],
    end: Callable[[str], None] | None = None,
    probe_seconds: float | None = None,
    probe: Callable[[str, float], bool] = is_there,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
  ):
    """Makes a watchdog that is not guarding yet.

    Args:
      others: {number: 'host:port'} of the other workers.
      end: Called with the message; by default it ends the process.
      probe_seconds: Seconds between two probes; by default PROBE_SECONDS.
      probe: Returns whether an address answers within a number of seconds.
      clock: Returns the time, in seconds.
      sleep: Waits between two probes.
    """
    self.records: Records | None = None
    self._others = others
    self._end = end or _end_process
    self._probe_seconds = probe_seconds or PROBE_SECONDS
    self._probe = probe
    self._clock = clock
    self._sleep = sleep
    self._patience: float | None = None  # None while it is not guarding.
    self._last_seen: dict[int, float] = {}
    self._thread = None

  @contextlib.contextmanager
  def guarding(self, patience: float | None = None):
    """Guards within; yields the watchdog.

    Args:
      patience: How many seconds a worker may be unreachable; the default is
        three probes.

    Raises:
      LostWorkerError: If TensorFlow itself reports that a worker is lost; an
        EndedWorkerError if all missing workers had finished.
    """
    self._patience = self._default_patience if patience is None else patience
    if self._others and self._thread is None:
      self._thread = threading.Thread(target=self._watch, daemon=True)
      self._thread.start()
    try:
      yield self
    except tf.errors.OpError as error:
      silent = self._silent()
      for number in silent:
        if not self._is_done(number):
          raise LostWorkerError(self._message(number)) from error
      if silent:
        raise EndedWorkerError(self._message(silent[0])) from error
      raise
    finally:
      self._patience = None

  def part(self) -> None:
    """Ends the common work: tells the others, and waits for them.

    A slower worker, such as the chief that saves the last step, still needs the
    others. So they wait as long as it is running. A worker that is lost now is
    no longer needed.
    """
    if not self.records:
      return
    self.records.tell(is_done=True)
    seen = dict.fromkeys(self._others, self._clock())
    said = self._clock()
    while True:
      seen = {n: at for n, at in seen.items() if not self._is_done(n)}
      for number in [*seen]:
        if self._probe(self._others[number], self._probe_seconds):
          seen[number] = self._clock()
        elif self._is_done(number):  # It has just finished.
          del seen[number]
        elif self._clock() - seen[number] > self._default_patience:
          del seen[number]
          logging.warning(
            'WARNING: worker %s does not answer; what all do together is done',
            self._name(number),
          )
      if not seen:
        return
      if self._clock() - said > _WAITING_SECONDS:
        said = self._clock()
        logging.info(
          'waiting for the end of worker %s', ', '.join(map(self._name, seen))
        )
      self._sleep(min(self._probe_seconds, _PARTING_SECONDS))

  def has_seen(self, number: int) -> bool:
    """Whether that worker has been seen, or is this one."""
    return number in self._last_seen or number not in self._others

  @property
  def _default_patience(self):
    return _PROBES * self._probe_seconds

  def _is_done(self, number):
    return self.records is not None and self.records.is_done(number)

  def _silent(self):
    """Probes all workers; returns the numbers of those that do not answer."""
    silent = []
    for number, address in self._others.items():
      if self._probe(address, self._probe_seconds):
        self._last_seen[number] = self._clock()
      else:
        silent.append(number)
    return silent

  def _watch(self):
    said = self._clock()
    while True:
      silent = self._silent()
      now, patience = self._clock(), self._patience
      for number in silent:
        seen = self._last_seen.get(number, now)
        if patience is None or now - seen <= patience:
          continue
        if not self._is_done(number):
          self._end(self._message(number))
          return
      absent = [number for number in silent if number not in self._last_seen]
      if absent and now - said > _WAITING_SECONDS:
        said = now
        logging.info(
          'waiting for worker %s', ', '.join(map(self._name, absent))
        )
      self._sleep(self._probe_seconds)

  def _name(self, number):
    return f'{number} ({self._others[number]})'

  def _message(self, number):
    return (
      f'worker {self._name(number)} is gone; start all workers again to '
      'continue from the newest checkpoint.'
    )


def _end_process(message):
  # The main thread is inside TensorFlow and cannot be interrupted.
  print(f'main.py: stopped: {message}', file=sys.stderr, flush=True)
  os._exit(signals.EXIT_CODE if signals.received() else 1)
