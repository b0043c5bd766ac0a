"""Allows one trainer per model_dir.

A trainer keeps `trainer.lock` in model_dir. The file identifies the trainer and
has the time of its last heartbeat, which it repeats as long as it runs. The
file of a killed trainer does not keep others out.

If several trainers start at the same moment on one machine, exactly one wins.
On file systems that cannot synchronize processes (object stores, NFS), the last
one to write wins. The others notice when they look again, at the latest before
they save.
"""

from collections.abc import Iterator
import contextlib
import dataclasses
import fcntl
import os
import secrets
import threading
import time

from absl import logging

from supcon.config import safe_text
from supcon.runs import processes
from supcon.runs import storage
from supcon.runs import timestamps

NAME = 'trainer.lock'

# Only heartbeats show whether a process on another machine still runs.
STALE_SECONDS = 120.0
RENEW_SECONDS = 20.0
# Time to wait for simultaneous starts if the file system cannot synchronize.
SETTLE_SECONDS = 2.0
# Others need only an instant to look and write, but one may be suspended.
_TURN_SECONDS = 5.0


class LockLostError(RuntimeError):
  """Another trainer has taken model_dir over."""


# --- The file -----------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Holder:
  """The owner of the lock on a model_dir.

  Attributes:
    process: The trainer.
    since: When it started, in the form of timestamps.now.
    heartbeat: The time of its last heartbeat.
    token: A text that is unique to this lock.
  """

  process: processes.Process
  since: str
  heartbeat: str
  token: str

  def is_alive(self) -> bool:
    is_there = self.process.is_there()
    if is_there is not None:
      return is_there
    seconds = timestamps.age(self.heartbeat)
    return seconds is not None and seconds <= STALE_SECONDS

  def describe(self) -> str:
    """Returns 'process 12 on host, since 2026-01-31T12:00:00+00:00'."""
    known = timestamps.age(self.since) is not None
    return (
      f'{self.process}, since {self.since if known else "nobody knows when"}'
    )


def read(model_dir: str) -> Holder | None:
  """Returns the owner of a directory's lock; None if unlocked or damaged.

  Args:
    model_dir: A local directory, or one on an object store.

  Raises:
    OSError, tf.errors.OpError: If it cannot be read.
  """
  found = storage.read_json(os.path.join(model_dir, NAME))
  try:
    return Holder(
      processes.Process(
        str(found['host']),
        int(found['pid']),
        str(found.get('space', '')),
        str(found.get('birth', '')),
      ),
      str(found['since']),
      str(found['heartbeat']),
      str(found.get('token', '')),
    )
  except (KeyError, TypeError, ValueError, OverflowError):
    return None


@contextlib.contextmanager
def _turn(directory) -> Iterator[bool]:
  """Waits until no other process of this machine is in this section.

  Yields:
    Whether that is certain; False if the file system cannot tell.
  """
  try:
    descriptor = os.open(directory, os.O_RDONLY)
  except OSError:
    yield False
    return
  try:
    yield _has_turn(descriptor)
  finally:
    os.close(descriptor)


def _has_turn(descriptor):
  end = time.monotonic() + _TURN_SECONDS
  while time.monotonic() < end:
    try:
      fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
      return True
    except BlockingIOError:
      time.sleep(0.01)
    except OSError:  # Not supported by this file system.
      return False
  return False


# --- The lock -----------------------------------------------------------------


class Lock:
  """Exclusive right of this process to train in a model_dir; see `acquire`.

  As a context manager, it releases the lock at the end.
  """

  def __init__(self, model_dir):
    self._model_dir = model_dir
    self._path = os.path.join(model_dir.path, NAME)
    self._since = timestamps.now()
    self._token = secrets.token_hex(8)
    self._lost = ''  # Why the lock was lost.
    self._is_released = threading.Event()
    self._mutex = threading.Lock()  # The thread writes, and so does `release`.
    self._thread = threading.Thread(target=self._keep, daemon=True)

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self.release()

  def start(self) -> None:
    """Writes the file, even over that of another trainer."""
    self._write()
    self._thread.start()

  def verify(self) -> None:
    """Checks that this process still holds the lock, which takes one read.

    Call it before writing anything that another trainer would find. This
    process may have been suspended for hours.

    Raises:
      LockLostError: If it does not.
    """
    if not self._lost:
      try:
        holder = read(self._model_dir.path)
      except storage.errors():
        return  # This does not indicate another trainer.
      if holder is None:
        self._lost = f'{self._path} is gone'
      elif holder.token != self._token:
        self._lost = f'{holder.describe()}, has taken it over'
    if self._lost:
      raise LockLostError(
        f'--model_dir={self._model_dir.path} belongs to another trainer now '
        f'({self._lost}); this one writes nothing more.'
      )

  def release(self) -> None:
    """Releases the lock, unless another trainer has taken it."""
    import tensorflow as tf

    self._is_released.set()
    with self._mutex, _turn(self._model_dir.path):
      try:
        self.verify()
        tf.io.gfile.remove(self._path)
      except (LockLostError, *storage.errors()):
        # The file stays, like that of a killed process.
        logging.debug('Not removed:', exc_info=True)

  def _write(self):
    process = processes.this_process()
    self._model_dir.write_json(
      NAME,
      {
        **dataclasses.asdict(process),
        'since': self._since,
        'heartbeat': timestamps.now(),
        'token': self._token,
      },
    )

  def _keep(self):
    """Writes heartbeats until the lock is released or lost."""
    pause = SETTLE_SECONDS  # Early, in case of simultaneous starts.
    while not self._is_released.wait(pause):
      pause = RENEW_SECONDS
      try:
        with self._mutex, _turn(self._model_dir.path):
          if self._is_released.is_set():
            return
          self.verify()
          self._write()
      except LockLostError:
        return
      except storage.errors():
        # Storage may have recovered by the next time.
        logging.debug('No sign of life:', exc_info=True)


def acquire(model_dir, force: bool) -> Lock:
  """Locks a directory; creates it if necessary.

  Args:
    model_dir: model_dirs.ModelDir.
    force: Whether to take the lock from another trainer, which then stops.

  Raises:
    ValueError: If another trainer is running, or nothing can be written.
  """
  import tensorflow as tf

  path = model_dir.path
  lock = Lock(model_dir)
  try:
    tf.io.gfile.makedirs(path)
    with _turn(path) as is_alone:
      holder = read(path)
      if holder and holder.process != processes.this_process():
        _take_from(holder, path, force)
      lock.start()
    if not is_alone:
      time.sleep(SETTLE_SECONDS)
      lock.verify()
  except storage.errors() as error:
    raise ValueError(
      f'--model_dir={path} cannot be written ({safe_text.one_line(error)}); '
      'name a directory that can.'
    ) from error
  except LockLostError as error:
    raise ValueError(str(error)) from error
  return lock


def _take_from(holder, path, force):
  """Logs whose lock is taken.

  Raises:
    ValueError: If it may not be taken.
  """
  if not holder.is_alive():
    logging.info('the trainer that was here is gone: %s', holder.describe())
    return
  if force:
    logging.warning(
      'WARNING: taking %s over from %s, which will stop',
      path,
      holder.describe(),
    )
    return
  news = ''
  if holder.process.is_there() is None:
    news = (
      f' It was heard of {max(0, timestamps.age(holder.heartbeat)):.0f} s ago, '
      f'and counts as gone after {STALE_SECONDS:.0f} s.'
    )
  raise ValueError(
    f'--model_dir={path} is in use by another trainer, {holder.describe()}; '
    'name another directory, or pass --force to have this one take over and '
    f'that one stop.{news}'
  )
