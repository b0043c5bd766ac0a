"""Handles SIGTERM and SIGINT.

A machine that is about to be taken away sends SIGTERM a few seconds before. The
current work then ends at once with exit code 75, except that training finishes
and saves its step first. A second signal ends the process immediately.

Ending means to raise Interrupted in the main thread, as Python does with
KeyboardInterrupt: the lock is released, status and log are finished, temporary
files are removed. None of this is needed to continue the run, which survives a
`kill -9` at any moment. So a separate thread, which also sees the signals, ends
the process if the main thread does not, be it inside TensorFlow, which may take
minutes, or in a place where Python drops exceptions.

This module does not use TensorFlow, because signals can interrupt even its
import.
"""

import atexit
from collections.abc import Callable
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


class _Watch:
  """What is known of signals to this process.

  Attributes:
    number: The first signal; None before.
    has_come: Set once there is a signal.
    is_deferred: Whether the current work is finished first.
  """

  def __init__(self):
    self.number: int | None = None
    self.has_come = threading.Event()
    self.is_deferred = False
    self._has_raised = False

  def handle(self, number, frame) -> None:
    """Handler for Python. Raises only once, so that clean-up is undisturbed."""
    del frame
    self.number = self.number or number
    if not self.is_deferred and not self._has_raised:
      self.check()

  def check(self) -> None:
    if self.number:
      self._has_raised = True
      # A destructor drops it; see the thread below.
      sys.unraisablehook = lambda unraisable: None
      raise Interrupted(_describe(self.number))

  def run(self, reader, same_seconds, patience_seconds) -> None:
    """Sees signals while the main thread does not; in a thread."""
    first_seen = patient_since = None
    while True:
      timeout = None if first_seen is None else _POLL_SECONDS
      is_there = select.select([reader], [], [], timeout)[0]
      received = reader.recv(1) if is_there else b'\0'
      if not received:
        return
      now, number = time.monotonic(), received[0]
      if number in _SIGNALS and first_seen is None:
        first_seen = patient_since = now
        self.number = self.number or number
        # Not in the handler, since the main thread may be inside wait() then.
        self.has_come.set()
        if self.is_deferred:
          name = signal.Signals(number).name
          _say(
            f'{time.strftime("%H:%M:%S")} {name}: stopping after this step, '
            'which is saved; a second signal ends at once'
          )
      elif number in _SIGNALS and now - first_seen > same_seconds:
        os._exit(128 + number)
      if self.is_deferred:
        patient_since = now
      elif first_seen and now - patient_since > patience_seconds:
        _say(f'main.py: interrupted: {_describe(self.number)}')
        os._exit(EXIT_CODE)


_watch = _Watch()  # Signals concern the whole process.


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
  _watch = _Watch()
  reader, writer = socket.socketpair()
  writer.setblocking(False)
  limits = same_seconds, patience_seconds
  thread = threading.Thread(
    target=_watch.run, args=(reader, *limits), daemon=True
  )
  thread.start()
  before = {}
  for number in _SIGNALS:
    handler = signal.getsignal(number)
    if number == signal.SIGINT and handler in (signal.SIG_IGN, None):
      continue
    before[number] = signal.SIG_DFL if handler is None else handler
  descriptor = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
  hook = sys.unraisablehook
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
    writer.close()  # The thread reads the end.
    thread.join()
    reader.close()
    _watch = _Watch()


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
def deferral() -> Iterator[Callable[[], None]]:
  """Yields a function; signals are deferred from its call until the block ends.

  Raises:
    Interrupted: At the end, if a signal came meanwhile. The function raises it
      if one came before.
  """

  def begin():
    check()
    _watch.is_deferred = True

  try:
    yield begin
  finally:
    _watch.is_deferred = False
  check()


def received() -> bool:
  """Returns whether there has been a signal."""
  return _watch.number is not None


def check() -> None:
  """Marks a place where work may end, even if signals are deferred.

  Raises:
    Interrupted: If there has been a signal.
  """
  _watch.check()


def interruption(what: str) -> Interrupted:
  """Returns the error for a signal to this process or to another worker.

  Args:
    what: Says in words what has been saved.
  """
  return Interrupted(_describe(_watch.number, f'{what}; '))


def sleep(seconds: float) -> None:
  """Sleeps until a signal comes, even if signals are deferred.

  Raises:
    Interrupted: If there has been a signal.
  """
  _watch.has_come.wait(seconds)
  check()


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
