"""Several machines that train together: who they are, whether they are there.

Each machine runs one worker, with the same command and its own TF_CONFIG, which
is JSON: {"cluster": {"worker": ["host:port", ...]}, "task": {"type": "worker",
"index": 0}}. The first one is the chief, who writes model_dir; an address below
"chief" comes before those below "worker".
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

from supcon import signals

tf1 = tf.compat.v1

VARIABLE = 'TF_CONFIG'

_KINDS = ('chief', 'worker')  # In the order of the workers' numbers.

# A worker is gone if it was there and has not answered this often.
_PROBE_SECONDS = 3.0
_PROBES = 3
_WAITING_SECONDS = 30.0  # Between two lines on whom the others wait for.


class LostWorkerError(RuntimeError):
  """Without the others a worker cannot go on."""


@dataclasses.dataclass(frozen=True)
class Cluster:
  """All workers, and which of them this process is.

  Attributes:
    jobs: {'chief': addresses, 'worker': addresses}, as 'host:port'.
    kind: 'chief' or 'worker'.
    task: Which one of that kind, from 0.
  """

  jobs: Mapping[str, tuple[str, ...]]
  kind: str
  task: int

  @property
  def addresses(self) -> tuple[str, ...]:
    """Returns those of all workers, in the order of their numbers."""
    return tuple(
      address for kind in _KINDS for address in self.jobs.get(kind, ())
    )

  @property
  def index(self) -> int:
    """This worker's number, from 0; that of the chief is 0."""
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
  """Returns the workers that TF_CONFIG names; None if it names but one.

  Raises:
    ValueError: If TF_CONFIG cannot be understood.
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


class Watchdog:
  """Ends this process if another worker is gone while it is needed.

  What workers compute together has no time limit: those that are left would
  wait for ever.
  """

  def __init__(
    self,
    others: Mapping[int, str],
    end: Callable[[str], None] | None = None,
    probe_seconds: float = _PROBE_SECONDS,
  ):
    """Makes a watchdog that is off guard.

    Args:
      others: {number: 'host:port'} of the other workers.
      end: Called with the message; by default it ends the process.
      probe_seconds: From one probe to the next.
    """
    self._others = others
    self._end = end or _end_process
    self._probe_seconds = probe_seconds
    self._patience: float | None = None  # None while it is off guard.
    self._last_seen: dict[int, float] = {}
    self._thread = None

  @contextlib.contextmanager
  def guarding(self, patience: float | None = None):
    """On guard within; yields the watchdog.

    Args:
      patience: How long a worker may be away, in seconds; by default, for three
        probes.

    Raises:
      LostWorkerError: If TensorFlow finds out that a worker is gone, and says
        so in its own way.
    """
    self._patience = _PROBES * self._probe_seconds
    if patience is not None:
      self._patience = patience
    if self._others and self._thread is None:
      self._thread = threading.Thread(target=self._watch, daemon=True)
      self._thread.start()
    try:
      yield self
    except tf.errors.OpError as error:
      for number in self._silent():
        raise LostWorkerError(self._message(number)) from error
      raise
    finally:
      self._patience = None

  def has_seen(self, number: int) -> bool:
    """Whether that worker has been there, or is this one."""
    return number in self._last_seen or number not in self._others

  def _silent(self):
    """Probes all, and returns the numbers of those that do not answer."""
    silent = []
    for number, address in self._others.items():
      if is_there(address, self._probe_seconds):
        self._last_seen[number] = time.monotonic()
      else:
        silent.append(number)
    return silent

  def _watch(self):
    said = time.monotonic()
    while True:
      silent = self._silent()
      now, patience = time.monotonic(), self._patience
      for number in silent:
        seen = self._last_seen.get(number, now)
        if patience is not None and now - seen > patience:
          self._end(self._message(number))
          return
      absent = [number for number in silent if number not in self._last_seen]
      if absent and now - said > _WAITING_SECONDS:
        said = now
        logging.info(
          'waiting for worker %s',
          ', '.join(f'{number} ({self._others[number]})' for number in absent),
        )
      time.sleep(self._probe_seconds)

  def _message(self, number):
    return (
      f'worker {number} ({self._others[number]}) is gone; start all workers '
      'again to continue from the newest checkpoint.'
    )


class ReadingHook(tf1.train.SessionRunHook):
  """Reads what the chief saves, when the chief saves, and keeps nothing.

  A checkpoint has the mean of all replicas' moving statistics: the workers have
  to compute it together.
  """

  def __init__(self, save_steps: int):
    """Makes the hook; `save_steps` is that of the chief."""
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
    # Whether the fetched value is that before the update is left to chance.
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


def is_there(address: str, timeout: float) -> bool:
  """Returns whether somebody listens at 'host:port'."""
  host, _, port = address.rpartition(':')
  try:
    socket.create_connection((host.strip('[]'), int(port)), timeout).close()
  except OSError:
    return False
  return True


def _end_process(message):
  # The main thread is inside TensorFlow and cannot be told.
  print(f'main.py: stopped: {message}', file=sys.stderr, flush=True)
  os._exit(signals.EXIT_CODE if signals.received() else 1)
