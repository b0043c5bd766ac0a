"""One trainer per model_dir: who it is, and whether it is still there.

A trainer keeps `trainer.lock` in model_dir, with who it is and when it gave its
last sign of life, which it does as long as it runs. What a trainer leaves that
was killed keeps nobody out.

Of several that begin at the same moment on one machine, exactly one wins. Where
the file system cannot keep processes apart (object stores, NFS), the last one
to write wins; the others see it when they look again, at the latest before they
save.
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

# Whether a process of another machine is there, only its signs of life tell.
STALE_SECONDS = 120.0
_RENEW_SECONDS = 20.0
# Who else has begun at the same moment, where nobody keeps processes apart.
_SETTLE_SECONDS = 2.0
# Others need an instant to look and write; but one of them may be suspended.
_TURN_SECONDS = 5.0


class LockLostError(RuntimeError):
  """Another trainer has taken model_dir over."""


# --- The file -----------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Holder:
  """Who has locked a model_dir.

  Attributes:
    process: The trainer.
    since: When it began, as of timestamps.now.
    heartbeat: Its last sign of life.
    token: Of this lock alone.
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
  """Returns who has locked a directory; None if nobody has, or it is damaged.

  Args:
    model_dir: Local, or on an object store.

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
  """Waits until no other process of this machine is in here.

  Yields:
    Whether that is so; False where the file system does not tell.
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
    except OSError:  # Not on this file system.
      return False
  return False


# --- The lock -----------------------------------------------------------------


class Lock:
  """A model_dir that this process alone trains in; see `acquire`.

  As a context manager it releases itself.
  """

  def __init__(self, model_dir):
    self._model_dir = model_dir
    self._path = os.path.join(model_dir.path, NAME)
    self._since = timestamps.now()
    self._token = secrets.token_hex(8)
    self._lost = ''  # What to say of it.
    self._is_released = threading.Event()
    self._mutex = threading.Lock()  # The thread writes, and so does `release`.
    self._thread = threading.Thread(target=self._keep, daemon=True)

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self.release()

  def start(self) -> None:
    """Writes the file, whoever has done so before."""
    self._write()
    self._thread.start()

  def verify(self) -> None:
    """Looks whether model_dir is still this process's, which takes one read.

    To be called before anything is written there that another trainer would
    find. This process may have been suspended for hours.

    Raises:
      LockLostError: If it is not.
    """
    if not self._lost:
      try:
        holder = read(self._model_dir.path)
      except storage.errors():
        return  # Which is no sign of another trainer.
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
    """Lets others in, unless they are in already."""
    import tensorflow as tf

    self._is_released.set()
    with self._mutex, _turn(self._model_dir.path):
      try:
        self.verify()
        tf.io.gfile.remove(self._path)
      except (LockLostError, *storage.errors()):
        # It stays, as that of a process that was killed.
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
    """Gives signs of life, until it is released or lost."""
    pause = _SETTLE_SECONDS  # Early, for whoever began at the same moment.
    while not self._is_released.wait(pause):
      pause = _RENEW_SECONDS
      try:
        with self._mutex, _turn(self._model_dir.path):
          if self._is_released.is_set():
            return
          self.verify()
          self._write()
      except LockLostError:
        return
      except storage.errors():
        # It may have recovered the next time.
        logging.debug('No sign of life:', exc_info=True)


def acquire(model_dir, force: bool) -> Lock:
  """Locks a directory, which is made if need be.

  Args:
    model_dir: model_dirs.ModelDir.
    force: Whether to take it from another trainer, which then stops.

  Raises:
    ValueError: If another trainer is there, or nothing can be written.
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
      time.sleep(_SETTLE_SECONDS)
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
  """Says whose lock is taken.

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
