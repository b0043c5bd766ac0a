"""Handles SIGTERM and SIGINT.

A machine that is about to be taken away sends SIGTERM a few seconds before. The
current work then ends at once with exit code 75, except that training finishes
and saves its step first. A second signal ends the process immediately.

Python calls handlers in the main thread between two of its own instructions,
which may take long while TensorFlow computes. So a separate thread also sees
the signals, and ends the process if the main thread does not.

This module does not use TensorFlow, because signals can interrupt even its
import.
"""

import atexit
from collections.abc import Iterator
import contextlib
import os
import select
import signal
import socket
import sys
import threading
import time

# EX_TEMPFAIL of sysexits.h: the same command, given again, continues.
EXIT_CODE = 75

_SIGNALS = (signal.SIGTERM, signal.SIGINT)

# A launcher may forward a signal that its whole process group has received
# anyway. A signal this soon after the first one counts as the same one.
_SAME_SECONDS = 0.2
# How long the main thread may take to end.
_PATIENCE_SECONDS = 5.0
_POLL_SECONDS = 0.1


class Interrupted(BaseException):
  """A signal has told this process to end.

  It is not an Exception: like KeyboardInterrupt it can occur anywhere, and
  error handlers are not meant for it.
  """


class Deferral:
  """Defers signals once it has begun.

  Attributes:
    has_begun: Whether it has begun.
  """

  def __init__(self):
    self.has_begun = False

  def begin(self) -> None:
    """Defers signals from now on.

    Raises:
      Interrupted: If there has already been a signal.
    """
    check()
    self.has_begun = True


class _Watch:
  """Watches for signals in the main thread and in a thread of its own.

  Attributes:
    number: The first signal; None before.
    has_come: Set once there is a signal.
    deferral: The current deferral, if any.
  """

  def __init__(self, same_seconds: float, patience_seconds: float):
    self._same_seconds = same_seconds
    self._patience_seconds = patience_seconds
    self.number: int | None = None
    self.has_come = threading.Event()
    self.deferral: Deferral | None = None
    self._has_raised = False
    self._is_swallowed = False
    self._num_own = 0  # Signals that this watch has sent itself.
    self._reader, self._writer = socket.socketpair()
    self._writer.setblocking(False)
    self._thread = threading.Thread(target=self._run, daemon=True)

  def start(self) -> int:
    """Returns the file descriptor to which Python should write signals."""
    self._thread.start()
    return self._writer.fileno()

  def close(self) -> None:
    self._writer.close()  # The thread reads the end.
    self._thread.join()
    self._reader.close()

  def handle(self, number, frame) -> None:
    """Handler for Python. Raises only once, so that clean-up is undisturbed."""
    del frame
    self._note(number)
    if not self._is_deferred() and not self._has_raised:
      self.check()

  def check(self) -> None:
    if self.number is not None:
      self._has_raised = True
      raise Interrupted(_describe(self.number))

  def swallowed(self) -> None:
    """Records that the exception was raised where Python drops exceptions.

    One such place is a destructor. The thread makes it be raised again
    elsewhere.
    """
    self._is_swallowed = True

  def _is_deferred(self):
    deferral = self.deferral
    return deferral is not None and deferral.has_begun

  def _note(self, number):
    if self.number is None:
      self.number = number

  def _run(self):
    first_seen = patient_since = None
    while True:
      try:
        received = self._reader.recv(64)
        if not received:
          return
      except TimeoutError:
        received = b''
      now = time.monotonic()
      for number in received:
        if number not in _SIGNALS:
          continue
        if self._num_own:
          self._num_own -= 1
          continue
        if first_seen is None:
          first_seen = patient_since = now
          self._note(number)
          # Not in the handler, since the main thread may be inside wait() then.
          self.has_come.set()
          self._reader.settimeout(_POLL_SECONDS)
          if self._is_deferred():
            name = signal.Signals(number).name
            _say(
              f'{time.strftime("%H:%M:%S")} {name}: stopping after this step, '
              'which is saved; a second signal ends at once'
            )
        elif now - first_seen > self._same_seconds:
          os._exit(128 + number)
      if first_seen is None:
        continue
      if self._is_swallowed:
        self._is_swallowed = self._has_raised = False
        self._num_own += 1
        patient_since = now
        signal.pthread_kill(threading.main_thread().ident, self.number)
      if self._is_deferred():
        patient_since = now
      elif now - patient_since > self._patience_seconds:
        _say(f'main.py: interrupted: {_describe(self.number)}')
        os._exit(EXIT_CODE)


_watch: _Watch | None = None  # Signals concern the whole process.


@contextlib.contextmanager
def handled(
  same_seconds: float = _SAME_SECONDS,
  patience_seconds: float = _PATIENCE_SECONDS,
) -> Iterator[None]:
  """Within, a signal raises Interrupted in the main thread, the caller's.

  SIGINT stays ignored if it was ignored before: shells make background
  processes ignore it, because Ctrl-C is not meant for them.

  Args:
    same_seconds: A signal this soon after the first one counts as the same one.
    patience_seconds: How long the main thread may take to end.

  Raises:
    Interrupted: Also replaces an error that occurs after a signal, since some
      code converts the interruption to another error.
  """
  global _watch
  atexit.register(_ignore)  # Registered first, so called last.
  _watch = _Watch(same_seconds, patience_seconds)
  before = {}
  for number in _SIGNALS:
    handler = signal.getsignal(number)
    if number == signal.SIGINT and handler in (signal.SIG_IGN, None):
      continue
    before[number] = signal.SIG_DFL if handler is None else handler
  descriptor = signal.set_wakeup_fd(_watch.start(), warn_on_full_buffer=False)
  hook = sys.unraisablehook

  def hook_of_ours(unraisable):
    if _watch and isinstance(unraisable.exc_value, Interrupted):
      _watch.swallowed()
    else:
      hook(unraisable)

  sys.unraisablehook = hook_of_ours
  try:
    for number in before:
      signal.signal(number, _watch.handle)
    yield
  except Exception:
    check()
    raise
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)
    signal.set_wakeup_fd(descriptor)
    sys.unraisablehook = hook
    _watch.close()
    _watch = None


def answer_with(code: int) -> None:
  """From now on a signal ends the process with this exit code.

  This is for the end of a program, when all work is done and libraries clean
  up.
  """
  for number in _SIGNALS:
    if signal.getsignal(number) != signal.SIG_IGN:
      signal.signal(number, lambda *_: os._exit(code))


def _ignore():
  """Ignores signals during shutdown, so that the exit code stays."""
  for number in _SIGNALS:
    signal.signal(number, signal.SIG_IGN)


@contextlib.contextmanager
def deferral() -> Iterator[Deferral]:
  """Yields a Deferral, which ends with the block.

  Raises:
    Interrupted: At the end, if a signal came during the deferral.
  """
  result = Deferral()
  if _watch:
    _watch.deferral = result
  try:
    yield result
  finally:
    if _watch:
      _watch.deferral = None
  check()


def received() -> bool:
  """Returns whether there has been a signal."""
  return _watch is not None and _watch.number is not None


def check() -> None:
  """Marks a place where work may end, even if signals are deferred.

  Raises:
    Interrupted: If there has been a signal.
  """
  if _watch:
    _watch.check()


def interruption(what: str) -> Interrupted:
  """Returns the error for a signal to this process or to another worker.

  Args:
    what: Says in words what has been saved.
  """
  return Interrupted(_describe(_watch and _watch.number, f'{what}; '))


def sleep(seconds: float) -> None:
  """Sleeps until a signal comes, even if signals are deferred.

  Raises:
    Interrupted: If there has been a signal.
  """
  if not _watch:
    time.sleep(seconds)
    return
  _watch.has_come.wait(seconds)
  _watch.check()


def _describe(number, what=''):
  name = (
    signal.Signals(number).name if number else 'another worker was told to end'
  )
  return f'{name}; {what}the same command, given again, continues.'


def _say(line):
  """Writes to stderr, unless that would block."""
  if select.select([], [2], [], 0)[1]:
    # A terminal may show a line on progress, which has no \n at its end.
    start = '\r\x1b[K' if os.isatty(2) else ''
    os.write(2, f'{start}{line}\n'.encode())
