"""log.txt in model_dir: the log of a run.

It has the lines of stderr with dates, but only one line on progress per minute.
When it is full, it is renamed to log.txt.1 and a new one is started.

Object stores cannot append to a file. There it is rewritten once a minute and
at the end, so it lacks the last lines of a killed process.
"""

from collections.abc import Iterator
import contextlib
import logging as python_logging
import logging.handlers as python_handlers
import os
import time

from absl import logging
import tensorflow as tf

from supcon.config import safe_text
from supcon.runs import signals
from supcon.runs import storage

TRAINER = 'log.txt'
EVALUATOR = 'eval/log.txt'

# Marks a log record on progress, which another one will soon follow.
PROGRESS = {'is_progress': True}

MAX_BYTES = 10_000_000
MAX_REMOTE_BYTES = 1_000_000  # It is uploaded once a minute.
REMOTE_SECONDS = 60.0
_PROGRESS_SECONDS = 60.0


@contextlib.contextmanager
def keep(path: str) -> Iterator[None]:
  """Adds what is logged within to a file, local or on an object store."""
  handler = _handler(path)
  handler.setFormatter(_Formatter('%(asctime)s %(message)s'))
  for each in logging.get_absl_handler().filters:  # Not TensorFlow's.
    handler.addFilter(each)
  handler.addFilter(_Thinning())
  root = python_logging.getLogger()
  root.addHandler(handler)
  try:
    yield
  except BaseException as error:
    # The error is reported on stderr only after this file is closed.
    kind = (
      'interrupted' if isinstance(error, signals.Interrupted) else 'stopped'
    )
    line = f'{kind}: {safe_text.for_files(error)}'
    level = python_logging.ERROR
    handler.handle(python_logging.LogRecord('', level, '', 0, line, None, None))
    raise
  finally:
    root.removeHandler(handler)
    handler.close()


def is_progress(record: python_logging.LogRecord) -> bool:
  return getattr(record, 'is_progress', False)


def _handler(path):
  try:
    tf.io.gfile.makedirs(os.path.dirname(path))
    return _Remote(path) if storage.is_remote(path) else _Local(path)
  except storage.errors() as error:  # A run does not need it.
    logging.warning(
      'WARNING: cannot write %s: %s', path, safe_text.for_files(error)
    )
    return python_logging.NullHandler()


class _Formatter(python_logging.Formatter):
  default_time_format = '%Y-%m-%d %H:%M:%S'
  default_msec_format = None

  def format(self, record):
    return safe_text.without_secrets(super().format(record))


class _Thinning:
  """A filter that drops most of the records on progress."""

  def __init__(self):
    self._due = 0.0

  def filter(self, record):
    if not is_progress(record):
      return True
    now = time.monotonic()
    if now < self._due:
      return False
    self._due = now + _PROGRESS_SECONDS
    return True


class _Local(python_handlers.RotatingFileHandler):
  def __init__(self, path):
    super().__init__(
      path,
      maxBytes=MAX_BYTES,
      backupCount=1,
      encoding='utf-8',
      errors='backslashreplace',
    )

  def handleError(self, record):
    """Ignores errors: the disk may be full, and stderr has the line."""

  def close(self):
    with contextlib.suppress(OSError):  # The rest cannot be written.
      super().close()


class _Remote(python_logging.Handler):
  def __init__(self, path):
    super().__init__()
    self._path = path
    self._text = ''
    if tf.io.gfile.exists(path):
      with tf.io.gfile.GFile(path) as file:
        self._text = file.read()
    self._is_written = True
    self._due = time.monotonic() + REMOTE_SECONDS

  def emit(self, record):
    self._text += f'{self.format(record)}\n'
    self._is_written = False
    if time.monotonic() >= self._due:
      self.flush()

  def flush(self):
    if self._is_written:
      return
    self._due = time.monotonic() + REMOTE_SECONDS
    try:
      self._write(self._path)
      if len(self._text) > MAX_REMOTE_BYTES:
        self._write(f'{self._path}.1')
        self._text = ''
      self._is_written = True
    except storage.errors():
      pass  # The next time may work; stderr has the lines.

  def close(self):
    self.flush()
    super().close()

  def _write(self, path):
    with tf.io.gfile.GFile(path, 'w') as file:
      file.write(self._text)
