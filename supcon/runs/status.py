"""Writes and reads the status of a run.

The trainer keeps status.json in model_dir, and the evaluator keeps
eval/status.json. The files are always complete, and at most a few seconds old
while anything changes. Each process writes only its own file, with one
exception: the trainer copies the evaluator's result, and the evaluator adds it
if no trainer is left to copy it.

Only writing uses TensorFlow, because --mode=status should answer at once.
"""

from collections.abc import Callable
import contextlib
import dataclasses
import math
import os
import time

from absl import logging

from supcon.config import safe_text
from supcon.runs import locks
from supcon.runs import processes
from supcon.runs import storage
from supcon.runs import timestamps

TRAINER = 'status.json'
EVALUATOR = 'eval/status.json'

# What a process does, or how it has ended.
TRAINING = 'training'
EVALUATING = 'evaluating'
WAITING = 'waiting'  # The evaluator waits for a checkpoint.
DONE = 'done'
STOPPED = 'stopped'  # For the reason in `error`.
INTERRUPTED = 'interrupted'  # By a signal; can be resumed.
FAILED = 'failed'  # By an unexpected error.
RUNNING = (TRAINING, EVALUATING, WAITING)

# Time between two writes. Object stores allow one write to a file per second,
# and charge for each.
LOCAL_SECONDS = 3.0
_REMOTE_SECONDS = 15.0

_MAX_LENGTH = 500


@dataclasses.dataclass
class Status:
  """The content of a status file. None means unknown.

  Attributes:
    state: One of the states above.
    stage: Number of the stage that is trained, from 1.
    step: Number of global steps done.
    total_steps: Total number of steps.
    images_per_second: Recent speed in training examples per second.
    seconds_left: Remaining training time at this speed.
    last_checkpoint: {'path', 'step', 'time'}.
    last_evaluation: {'step', 'top_1', 'time'}.
    restarts: Number of times that the run was resumed.
    skipped_batches: Number of batches skipped because of divergence.
    rollbacks: Number of times that training returned to a checkpoint.
    retries: Number of retries of storage.
    started: When this process started. Times are ISO 8601, in UTC.
    updated: When this was written.
    host: The machine of this process; see processes.Process for this and the
      next three.
    pid: Its number.
    space: The scope of that number.
    birth: Its start time.
    error: Why it has ended, in one line.
  """

  state: str = ''
  stage: int | None = None
  step: int | None = None
  total_steps: int | None = None
  images_per_second: float | int | None = None
  seconds_left: float | int | None = None
  last_checkpoint: dict | None = None
  last_evaluation: dict | None = None
  restarts: int = 0
  skipped_batches: int = 0
  rollbacks: int = 0
  retries: int = 0
  started: str = ''
  updated: str = ''
  host: str = ''
  pid: int = 0
  space: str = ''
  birth: str = ''
  error: str | None = None

  @property
  def process(self) -> processes.Process:
    return processes.Process(self.host, self.pid, self.space, self.birth)

  @property
  def has_ended(self) -> bool:
    return self.state not in RUNNING


def read(model_dir: str, name: str = TRAINER) -> Status | None:
  """Returns the content of a status file; None if missing or malformed.

  Values of a wrong type count as unknown, because any program may have written
  the file.

  Args:
    model_dir: A local directory, or one on an object store.
    name: TRAINER or EVALUATOR.

  Raises:
    OSError, tf.errors.OpError: If it cannot be read.
  """
  found = storage.read_json(os.path.join(model_dir, name))
  fields = {
    field.name: found[field.name]
    for field in dataclasses.fields(Status)
    if field.name in found and _is_sane(found[field.name], field.type)
  }
  return Status(**fields) if fields.get('state') else None


def _is_sane(value, kind):
  if isinstance(value, (int, float)) and not abs(value) < 2**63:  # Or NaN.
    return False
  return isinstance(value, kind)


def _newer(first, second):
  """Returns the later of two `last_evaluation` entries, either may be None."""
  entries = [entry for entry in (first, second) if entry]
  return max(entries, key=lambda e: str(e.get('time')), default=None)


class Writer:
  """Writes the status of this process.

  As a context manager, it finally writes how the block has ended.
  """

  def __init__(
    self,
    model_dir,
    name: str = TRAINER,
    verify: Callable[[], None] = lambda: None,
    explain: Callable[[BaseException], str] = lambda error: '',
    clock: Callable[[], float] = time.monotonic,
  ):
    """Makes a writer, which writes nothing before `begin`.

    Args:
      model_dir: model_dirs.ModelDir.
      name: TRAINER or EVALUATOR.
      verify: Called before each write, which it prevents by raising an error;
        that of locks.Lock.
      explain: Returns in words why an error has stopped a job; '' for an
        unexpected error.
      clock: Returns seconds since a fixed moment.
    """
    self._model_dir = model_dir
    self._name = name
    self._verify = verify
    self._explain = explain
    self._clock = clock
    self._seconds = LOCAL_SECONDS
    if storage.is_remote(model_dir.path):
      self._seconds = _REMOTE_SECONDS
    self._due = -math.inf
    self._has_failed = False
    self._status = Status()

  def __enter__(self):
    return self

  def __exit__(self, kind, error, traceback):
    if kind is None:
      self.write(state=DONE, seconds_left=0)
      return
    with contextlib.suppress(locks.LockLostError):  # Not ours any more.
      if not issubclass(kind, Exception):
        self.write(state=INTERRUPTED)
      elif reason := self._explain(error):
        self.write(state=STOPPED, error=safe_text.for_files(reason))
      else:
        self.write(
          state=FAILED, error=safe_text.for_files(f'{kind.__name__}: {error}')
        )

  @property
  def status(self) -> Status:
    return self._status

  @property
  def is_due(self) -> bool:
    """Whether `update` would write."""
    return self._clock() >= self._due

  def begin(self, state: str, step: int = 0, total_steps: int | None = None):
    """Takes over the counts of earlier processes, and writes.

    Args:
      state: One of RUNNING.
      step: The step of the newest checkpoint; 0 for a new run.
      total_steps: Total number of steps.
    """
    process = processes.this_process()
    is_new = self._name == TRAINER and not step
    before = not is_new and read(self._model_dir.path, self._name) or Status()
    is_left = before.state != DONE or step < (total_steps or 0)
    self._status = Status(
      last_checkpoint=before.last_checkpoint,
      last_evaluation=before.last_evaluation,
      restarts=before.restarts + bool(step and is_left),
      skipped_batches=before.skipped_batches,
      rollbacks=before.rollbacks,
      retries=before.retries,
      started=timestamps.now(),
      **dataclasses.asdict(process),
    )
    self.write(state=state, step=step, total_steps=total_steps)

  def update(self, **fields) -> None:
    """Sets fields of Status, and writes if the last write is old enough.

    Raises:
      LockLostError: If `verify` raises it.
    """
    self._set(fields)
    if self.is_due:
      self.write()

  def add(self, **counts) -> None:
    """Adds to counts of Status, and writes like `update`."""
    status = self._status
    self.update(**{k: getattr(status, k) + n for k, n in counts.items()})

  def write(self, **fields) -> None:
    """Sets fields of Status, and writes.

    A failure of storage does not stop the run: the next write tries again.

    Raises:
      LockLostError: If `verify` raises it.
    """
    import tensorflow as tf

    self._set(fields)
    self._verify()
    try:
      path = self._model_dir.join(self._name)
      tf.io.gfile.makedirs(os.path.dirname(path))
      self._write()
      self._has_failed = False
    except storage.errors() as error:
      if not self._has_failed:
        logging.warning(
          'WARNING: cannot write %s: %s', path, safe_text.for_files(error)
        )
      self._has_failed = True
    self._due = self._clock() + self._seconds

  def _set(self, fields):
    self._status = dataclasses.replace(self._status, **fields)

  def _write(self):
    is_trainer = self._name == TRAINER
    if is_trainer:
      other = read(self._model_dir.path, EVALUATOR) or Status()
      self._set({'last_evaluation': self._last_evaluation(other)})
    self._set({'updated': timestamps.now()})
    self._model_dir.write_json(self._name, _to_json(self._status))
    if not is_trainer:
      self._tell_trainer()

  def _tell_trainer(self):
    """Adds the last evaluation to the trainer's file if no trainer runs."""
    path = self._model_dir.path
    trainer = read(path)
    if trainer is None or trainer.last_evaluation == self._last_evaluation(
      trainer
    ):
      return
    holder = locks.read(path)
    if holder is None or not holder.is_alive():
      trainer.last_evaluation = self._last_evaluation(trainer)
      self._model_dir.write_json(TRAINER, _to_json(trainer))

  def _last_evaluation(self, other):
    return _newer(self._status.last_evaluation, other.last_evaluation)


def _to_json(status):
  """Returns the fields without infinities and NaN, which JSON lacks."""

  def finite(value):
    if isinstance(value, dict):
      return {k: finite(v) for k, v in value.items()}
    is_number = not isinstance(value, float) or math.isfinite(value)
    return value if is_number else None

  return finite(dataclasses.asdict(status))
