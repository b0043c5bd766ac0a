"""Controls what the user sees: our own lines, and not TensorFlow's."""

from collections.abc import Iterator
import contextlib
import logging as python_logging
import os
import shutil
import sys
import threading
import warnings

from absl import logging


class _Formatter(python_logging.Formatter):
  """Formats lines as 'time message'."""

  def __init__(self):
    super().__init__('%(asctime)s %(message)s', '%H:%M:%S')

  def leave(self) -> str:
    """Returns the text to write before anything else."""
    return ''


class _TerminalFormatter(_Formatter):
  """Adds line ends, except to progress, whose line is overwritten."""

  def __init__(self):
    super().__init__()
    self._is_open = False

  def format(self, record):
    line = super().format(record)
    if not getattr(record, 'is_progress', False):  # See log_files.
      return f'{self.leave()}{line}\n'
    self._is_open = True
    return f'\r{line[: shutil.get_terminal_size().columns - 1]}\x1b[K'

  def leave(self):
    start = '\r\x1b[K' if self._is_open else ''
    self._is_open = False
    return start


_formatter = _Formatter()


def say(line: str) -> None:
  """Writes a line to stderr, without the time."""
  print(f'{_formatter.leave()}{line}', file=sys.stderr)


def show(text: str) -> int:
  """Writes a text to stdout; returns the exit code.

  The reader may stop early: `| head` closes the pipe.
  """
  try:
    sys.stdout.write(text)
    sys.stdout.flush()
  except BrokenPipeError:
    # Python flushes again when it exits.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
  return 0


def shorten() -> None:
  """Logs the messages of supcon/ as 'time message'."""
  global _formatter
  handler = logging.get_absl_handler()
  if sys.stderr.isatty():
    _formatter = _TerminalFormatter()
    handler.python_handler.terminator = ''
  else:
    _formatter = _Formatter()
  handler.setFormatter(_formatter)
  handler.addFilter(
    lambda record: (
      record.levelno >= python_logging.ERROR
      or logging.level_debug()
      or 'site-packages' not in record.pathname
    )
  )


def quiet_tensorflow() -> None:
  """Hides TensorFlow's messages about itself, unless --verbosity=1.

  Call it before TensorFlow is imported.
  """
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
  logger = python_logging.getLogger('tensorflow')
  logger.propagate = False  # absl has the root logger; avoids repeated lines.
  if not logging.level_debug():
    logger.setLevel(python_logging.ERROR)
    warnings.filterwarnings('ignore')
    threading.excepthook = _tell_of_thread


def _tell_of_thread(args):
  """Prints the error that ended a thread, like Python.

  The exception is the thread that writes summaries. Its error, such as a full
  disk, is raised again in the main thread, which reports it in one line.
  """
  if not args.thread or args.thread.name != 'EventLoggerThread':
    threading.__excepthook__(args)


@contextlib.contextmanager
def hidden_stderr() -> Iterator[None]:
  """Hides all output to stderr, including C++'s, unless --verbosity=1."""
  if logging.level_debug():
    yield
    return
  sys.stderr.flush()
  stderr = os.dup(2)
  try:
    with open(os.devnull, 'w') as nowhere:
      os.dup2(nowhere.fileno(), 2)
    yield
  finally:
    sys.stderr.flush()
    os.dup2(stderr, 2)
    os.close(stderr)


def quiet_xla() -> None:
  """Makes XLA print its once-per-process message while stderr is hidden."""
  import tensorflow.compat.v1 as tf

  config = tf.ConfigProto(device_count={'GPU': 0})
  with hidden_stderr(), tf.Graph().as_default(), tf.Session(config=config) as s:
    x = tf.placeholder(tf.float32, [])
    s.run(tf.function(tf.abs, jit_compile=True)(x), {x: 0.0})
