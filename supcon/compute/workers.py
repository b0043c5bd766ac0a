"""Coordinates several machines that train together.

Each machine runs one worker, with the same command and its own TF_CONFIG, which
is JSON: {"cluster": {"worker": ["host:port", ...]}, "task": {"type": "worker",
"index": 0}}. The first worker is the chief, which writes model_dir; addresses
in "chief" come before those in "worker".
"""

from collections.abc import Callable
from collections.abc import Mapping
import contextlib
import dataclasses
import json
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

tf1 = tf.compat.v1

VARIABLE = 'TF_CONFIG'

_KINDS = ('chief', 'worker')  # In the order of the workers' numbers.

# A worker is lost if it was there before and has missed this many probes.
_PROBE_SECONDS = 3.0
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


@dataclasses.dataclass(frozen=True)
class Cluster:
  """All workers, and the place of this process among them.

  Attributes:
    jobs: {'chief': addresses, 'worker': addresses}, as 'host:port'.
    kind: 'chief' or 'worker'.
    task: The index among workers of that kind, from 0.
  """

  jobs: Mapping[str, tuple[str, ...]]
  kind: str
  task: int

  @property
  def addresses(self) -> tuple[str, ...]:
    """Returns the addresses of all workers, in the order of their numbers."""
    return tuple(
      address for kind in _KINDS for address in self.jobs.get(kind, ())
    )

  @property
  def index(self) -> int:
    """This worker's number, from 0; the chief has 0."""
    before = self.kind == 'worker' and len(self.jobs.get('chief', ()))
    return before + self.task

  @property
  def others(self) -> dict[int, str]:
    """Returns {number: address} of the other workers."""
    return {
      number: address
      for number, address in enumerate(self.addresses)
      if number != self.index
    }


def read(environment: Mapping[str, str] = os.environ) -> Cluster | None:
  """Returns the workers in TF_CONFIG; None if there is only one.

  Raises:
    ValueError: If TF_CONFIG is malformed.
  """
  text = environment.get(VARIABLE, '').strip()
  if not text:
    return None
  try:
    config = json.loads(text)
    jobs = {
      kind: tuple(addresses)
      for kind, addresses in config.get('cluster', {}).items()
    }
    task = config.get('task', {})
    kind, index = task.get('type', ''), int(task.get('index', 0))
  except (ValueError, TypeError, AttributeError) as error:
    raise ValueError(
      f'{VARIABLE}={text} cannot be read ({error}); expected JSON like '
      '{"cluster": {"worker": ["host0:2222", "host1:2222"]}, '
      '"task": {"type": "worker", "index": 0}}.'
    ) from error
  if not jobs:
    return None
  unknown = sorted({*jobs, kind} - set(_KINDS))
  if unknown:
    raise ValueError(
      f'{VARIABLE} names a {unknown[0]!r}, expected chief or worker only: all '
      'train. To evaluate beside them, run --mode=eval without it.'
    )
  for address in sum(jobs.values(), ()):
    host, _, port = address.rpartition(':')
    if not host or not port.isdigit():
      raise ValueError(
        f'{VARIABLE} has the address {address!r}, expected host:port.'
      )
  if len(jobs.get('chief', ())) > 1:
    raise ValueError(f'{VARIABLE} names several chiefs, expected one.')
  if not 0 <= index < len(jobs.get(kind, ())):
    raise ValueError(
      f'{VARIABLE} says that this is {kind} {index}, but lists '
      f'{len(jobs.get(kind, ()))} of them; the first one is {kind} 0.'
    )
  cluster = Cluster(jobs, kind, index)
  return cluster if cluster.others else None


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
    probe_seconds: float = _PROBE_SECONDS,
    probe: Callable[[str, float], bool] = is_there,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
  ):
    """Makes a watchdog that is not guarding yet.

    Args:
      others: {number: 'host:port'} of the other workers.
      end: Called with the message; by default it ends the process.
      probe_seconds: Seconds between two probes.
      probe: Returns whether an address answers within a number of seconds.
      clock: Returns the time, in seconds.
      sleep: Waits between two probes.
    """
    self.records: Records | None = None
    self._others = others
    self._end = end or _end_process
    self._probe_seconds = probe_seconds
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


class ReadingHook(tf1.train.SessionRunHook):
  """Reads the variables that the chief saves, at the same time.

  A checkpoint has the mean of all replicas' moving statistics, which all
  workers have to compute together.
  """

  def __init__(self, save_steps: int):
    """Makes the hook; `save_steps` is the chief's interval."""
    self._timer = tf1.train.SecondOrStepTimer(every_steps=save_steps)

  def begin(self):
    self._step = tf1.train.get_global_step()

  def after_create_session(self, session, coord):
    self._reads = [
      tensor.op
      for op in session.graph.get_operations()
      if op.type == 'SaveV2'
      for tensor in op.inputs
    ]
    self._read(session, session.run(self._step))

  def before_run(self, run_context):
    return tf1.train.SessionRunArgs(self._step)

  def after_run(self, run_context, run_values):
    # The fetched value may be the one before or after the update.
    if self._timer.should_trigger_for_step(run_values.results + 1):
      step = run_context.session.run(self._step)
      if self._timer.should_trigger_for_step(step):
        self._read(run_context.session, step)

  def end(self, session):
    step = session.run(self._step)
    if step != self._timer.last_triggered_step():
      self._read(session, step)

  def _read(self, session, step):
    self._timer.update_last_triggered_step(step)
    session.run(self._reads)


def _end_process(message):
  # The main thread is inside TensorFlow and cannot be interrupted.
  print(f'main.py: stopped: {message}', file=sys.stderr, flush=True)
  os._exit(signals.EXIT_CODE if signals.received() else 1)
