"""How a run is doing: what it writes down, and what others read.

The trainer keeps status.json in model_dir, the evaluator eval/status.json. They
are always whole, and a few seconds old at most while there is something new.
Each writes its own file alone; but the trainer copies what the evaluator found,
and the evaluator adds it where no trainer is left to do so.

No TensorFlow in here, but to write: --mode=status is to answer at once.
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
WAITING = 'waiting'  # The evaluator, for a checkpoint.
DONE = 'done'
STOPPED = 'stopped'  # For a reason that stands in `error`.
INTERRUPTED = 'interrupted'  # By a signal; it can be continued.
FAILED = 'failed'  # By an error that nobody has foreseen.
RUNNING = (TRAINING, EVALUATING, WAITING)

# From one writing to the next. Object stores take one write of a file a second,
# and charge for each.
_LOCAL_SECONDS = 3.0
_REMOTE_SECONDS = 15.0

_MAX_LENGTH = 500


@dataclasses.dataclass
class Status:
  """What a status file holds. Unknown is None.

  Attributes:
    state: One of those above.
    stage: Number of the stage that is trained, from 1.
    step: Global steps done.
    total_steps: Of how many.
    images_per_second: Training examples, of late.
    seconds_left: Of the training, at this speed.
    last_checkpoint: {'path', 'step', 'time'}.
    last_evaluation: {'step', 'top_1', 'time'}.
    restarts: How often a start continued what was there.
    skipped_batches: Batches left out for what they did to the loss.
    rollbacks: How often training went back to a checkpoint for that.
    retries: How often storage was tried again.
    started: When this process began. Times are ISO 8601, in UTC.
    updated: When this was written.
    host: The machine of this process; see processes.Process for these four.
    pid: Its number.
    space: Where that number holds.
    birth: Which of those that have had the number.
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
  """Returns what a status file holds; None if it is not there, or is none.

  What is not of its type counts as unknown: anybody may have written it.

  Args:
    model_dir: Local, or on an object store.
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
  """Returns the later one of two entries `last_evaluation`, which may miss."""
  entries = [entry for entry in (first, second) if entry]
  return max(entries, key=lambda e: str(e.get('time')), default=None)


class Writer:
  """Writes down how this process is doing.

  As a context manager it ends with how the block has ended.
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
      verify: Is called before each writing, which it prevents by an error:
        that of locks.Lock.
      explain: Returns in words why an error has stopped a job; '' if nobody
        foresaw it.
      clock: Tells the seconds since any moment.
    """
    self._model_dir = model_dir
    self._name = name
    self._verify = verify
    self._explain = explain
    self._clock = clock
    self._seconds = _LOCAL_SECONDS
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
    with contextlib.suppress(locks.LockLostError):  # Then it is another's.
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
    """Takes over what earlier processes have counted, and writes.

    Args:
      state: One of RUNNING.
      step: That of the newest checkpoint; 0 without any: a new run.
      total_steps: Of how many.
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
    """Sets fields of Status, and writes if there has been some time.

    Raises:
      LockLostError: As `verify` does.
    """
    self._set(fields)
    if self.is_due:
      self.write()

  def add(self, **counts) -> None:
    """Adds to counts of Status, and writes, as `update`."""
    status = self._status
    self.update(**{k: getattr(status, k) + n for k, n in counts.items()})

  def write(self, **fields) -> None:
    """Sets fields of Status, and writes.

    That storage fails is no reason to stop: it is tried again the next time.

    Raises:
      LockLostError: As `verify` does.
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
    """Adds the last evaluation where no trainer is there to copy it."""
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
  """Returns the fields; JSON has no numbers that are not finite."""

  def finite(value):
    if isinstance(value, dict):
      return {k: finite(v) for k, v in value.items()}
    is_number = not isinstance(value, float) or math.isfinite(value)
    return value if is_number else None

  return finite(dataclasses.asdict(status))


def clock(seconds: float) -> str:
  """Returns a duration as '1:02:03' or '2:03'."""
  minutes, seconds = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return (
    f'{hours}:{minutes:02}:{seconds:02}' if hours else f'{minutes}:{seconds:02}'
  )
