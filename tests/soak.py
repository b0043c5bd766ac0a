"""A trainer and an evaluator under faults, beside a run that is left alone.

  python -m tests.soak --faults 10 --seed 1 --directory DIR

Both are real processes, which a supervisor starts again whenever they end as
they may: told to (75), killed, or for a full disk (1). All else is a problem of
the run, and so is whatever was lost, missed, done twice or came out otherwise
than in the run that is left alone. The encoder is the TINY one.

Each ten faults are one of each kind, in random order, at random moments.
model_dir is on a file system of its own, which can be made full; where none can
be mounted, the largest size of the trainer's files is limited in its stead.

Prints a table and writes DIR/soak.json; exit code 1 if there was a problem.
"""

import argparse
import collections
import contextlib
import hashlib
import json
import math
import os
import pathlib
import random
import re
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import time

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')

import tensorflow as tf  # noqa: E402

from supcon.runs import checkpoint_files  # noqa: E402
from supcon.serving import exports  # noqa: E402
from tests import command  # noqa: E402

# Ten steps an epoch, half of the epochs in each stage.
_STEPS_PER_FAULT = 200
# After the last fault, for what takes its time while training goes on.
_LAST_STEPS = 600
_FLAGS = {
  **command.DIGITS,
  'deterministic': True,
  'num_images': 640,
  'num_eval_images': 100,
  'eval_interval_secs': 0,
  'export_formats': 'saved_model',
  'export_checkpoints': 'all',
  'save_interval_steps': 80,
  # All: what is not there at the end was lost.
  'max_checkpoints_to_keep': 1_000_000,
  'stage_1_warmup_epochs': 1,
  'stage_1_optimizer': 'LARS',
  'stage_1_cross_entropy_loss_weight': 1.0,
  'stage_2_warmup_epochs': 0,
  'stage_2_optimizer': 'ADAM',
  'stage_2_contrastive_loss_weight': 0.5,
}

_POLL_SECONDS = 0.01
_HANG_SECONDS = 240.0  # Nothing takes as long.
_TERM_SECONDS = 60.0  # Nor that.

# What a process that is told to end by SIGTERM may end with: before it handles
# signals, as it wishes to, and after a second one.
_TERMINATED = (-signal.SIGTERM, 75, 128 + signal.SIGTERM)
_FULL = re.compile(
  r'main\.py: (stopped|error): .*(No space left on device|File too large)'
)


class _StoppedError(Exception):
  """The soak cannot go on."""


class _Process(command.Process):
  """Adds what a supervisor needs."""

  @property
  def pid(self):
    return self._process.pid

  def poll(self):
    return self._process.poll()

  def send(self, number):
    self._process.send_signal(number)


class _Job:
  """A command that is started again.

  Attributes:
    name: 'trainer' or 'evaluator'.
    process: The one that runs or has run.
    is_done: Whether it has ended by itself.
    is_suspended: Whether it has been sent SIGSTOP.
    started: When the process was, of time.time().
    starts: How often it was.
    ends: {exit code: how often}.
  """

  def __init__(self, name, flags, directory):
    self.name = name
    self._flags = flags
    self._directory = directory
    directory.mkdir()
    self.is_done = False
    self.starts = 0
    self.ends = collections.Counter()
    self.start()

  def start(self):
    self.process = _Process(
      self._flags,
      self._directory,
      is_small=True,
      CUDA_VISIBLE_DEVICES='',
    )
    self.is_suspended = False
    self.started = time.time()
    self.starts += 1
    self._told = {}

  @property
  def is_running(self):
    return self.process.poll() is None

  def send(self, number):
    self.process.send(number)
    self._told.setdefault(number, time.monotonic())
    if number in (signal.SIGSTOP, signal.SIGCONT):
      self.is_suspended = number == signal.SIGSTOP

  @property
  def is_ending(self):
    return signal.SIGTERM in self._told

  @property
  def is_deaf(self):
    """Whether it should have ended by now."""
    told = self._told.get(signal.SIGTERM, math.inf)
    return self.is_running and time.monotonic() - told > _TERM_SECONDS

  def end(self):
    """Takes note of the end; returns what is wrong with it, '' if nothing."""
    run = self.process.wait()
    self.ends[run.returncode] += 1
    says = [line for line in run.log if line.startswith('main.py: ')]
    expected = {0}
    if signal.SIGKILL in self._told:
      expected.add(-signal.SIGKILL)
    if signal.SIGTERM in self._told:
      expected.update(_TERMINATED)
    if len(says) == 1 and _FULL.match(says[0]):
      expected.add({'stopped': 1, 'error': 2}[_FULL.match(says[0])[1]])
    self.is_done = run.returncode == 0
    if run.returncode in expected and 'Traceback' not in run.stderr:
      return ''
    return f'{self.name} ended with {run.returncode}: {run.stderr[-3000:]}'


class _Disk:
  """What model_dir is on.

  Attributes:
    kind: 'tmpfs', or 'file size limit' where none can be mounted.
  """

  def __init__(self, path, num_faults):
    self.path = path
    self._size = (200 + 10 * num_faults) * 2**20
    path.mkdir()
    mounted = self._mount(self._size)
    self.kind = 'file size limit' if mounted.returncode else 'tmpfs'
    if mounted.returncode:
      print(f'No tmpfs can be mounted: {mounted.stderr.strip()}', flush=True)

  def fill(self, trainer, spare):
    """Leaves next to no room, until `empty`.

    Args:
      trainer: A _Process.
      spare: How many bytes are left.
    """
    if self.kind != 'tmpfs':
      # Less than a checkpoint takes, more than the process has to say.
      _, hard = resource.prlimit(trainer.pid, resource.RLIMIT_FSIZE)
      resource.prlimit(trainer.pid, resource.RLIMIT_FSIZE, (20_000, hard))
      return
    for _ in range(100):
      # Fails where others were quicker to use it.
      used = shutil.disk_usage(self.path).used
      if not self._mount(used + spare).returncode:
        return
    raise _StoppedError('the file system cannot be made smaller')

  def empty(self, trainer):
    if self.kind == 'tmpfs':
      self._mount(self._size)
    elif trainer.poll() is None:
      _, hard = resource.prlimit(trainer.pid, resource.RLIMIT_FSIZE)
      resource.prlimit(trainer.pid, resource.RLIMIT_FSIZE, (hard, hard))

  def close(self):
    if self.kind == 'tmpfs':
      subprocess.run(['umount', '--lazy', self.path], check=True)

  def _mount(self, size):
    options = f'size={size}'
    if os.path.ismount(self.path):
      options += ',remount'
    return subprocess.run(
      ['mount', '-t', 'tmpfs', '-o', options, 'none', self.path],
      capture_output=True,
      text=True,
    )


# --- What there was -----------------------------------------------------------


class _Inventory:
  """Looks at model_dir all the time, and says at the end what is missing.

  Attributes:
    newest: Step of the newest checkpoint that is listed; -1 without any.
    evaluations: How many were recorded.
    problems: What has been found on the way.
  """

  def __init__(self, model_dir):
    self._dir = model_dir
    self.newest = -1
    self.evaluations = 0
    self.repeated = 0
    self.problems = []
    self._stamps = {}
    # {step: (fingerprint, bytes)} of all that were ever listed.
    self._checkpoints = {}
    # {(step, fingerprint): entry of evaluated.json}.
    self._records = {}
    self._exports = {}  # {name: {file: hash}}
    # What was damaged: [{file name: content}], and which steps are.
    self._aside = []
    self._damaged = set()

  def look(self):
    """Returns the steps that are listed for the first time."""
    new = []
    if self._has_changed('checkpoint'):
      state = checkpoint_files.read_state(str(self._dir))
      for path in state.paths:
        step = checkpoint_files.step_of(path)
        if step not in self._checkpoints and os.path.exists(f'{path}.index'):
          if step not in self._damaged:
            self._add(step, path)
            new.append(step)
      if state.newest and os.path.exists(f'{state.newest}.index'):
        self.newest = checkpoint_files.step_of(state.newest)
    if self._has_changed('eval/evaluated.json'):
      self._look_at_records()
    if self._has_changed('exports'):
      for name in self._names_of_exports():
        if name not in self._exports:
          self._exports[name] = _hashes(self._dir / 'exports' / name)
    return new

  def _has_changed(self, name):
    stamp = checkpoint_files.stamp(str(self._dir / name))
    has_changed = stamp != self._stamps.get(name)
    self._stamps[name] = stamp
    return has_changed

  def _add(self, step, path):
    if problem := checkpoint_files.damage(path):
      self.problems.append(f'{path} was listed but is not whole: {problem}')
    size = sum(os.path.getsize(file) for file in checkpoint_files.files(path))
    self._checkpoints[step] = checkpoint_files.fingerprint(path), size

  def _look_at_records(self):
    for step, entry in self.records().items():
      key = step, entry['fingerprint']
      before = self._records.get(key)
      self._records[key] = entry
      # Each evaluation has an export of its own.
      if before is None or before['export'] != entry['export']:
        self.evaluations += 1
        self.repeated += before is not None

  def records(self):
    path = self._dir / 'eval' / 'evaluated.json'
    found = json.loads(path.read_text()) if path.exists() else {}
    return {int(step): entry for step, entry in found.items()}

  @property
  def steps(self):
    return {*self._checkpoints} - self._damaged

  def _names_of_exports(self):
    path = self._dir / 'exports'
    return [name for name in os.listdir(path) if name.isdigit()]

  # Damage.

  def damage_checkpoint(self, rng):
    """Damages the newest checkpoint; returns how."""
    path = self._dir / f'model.ckpt-{self.newest}'
    self._damaged.add(self.newest)
    file = pathlib.Path(rng.choice(checkpoint_files.files(str(path))))
    content = bytearray(file.read_bytes())
    how = rng.choice(('cut', 'zeros', 'flipped', 'removed'))
    if how == 'cut':
      file.write_bytes(content[: rng.randrange(len(content))])
    elif how == 'zeros':
      file.write_bytes(bytes(len(content)))
    elif how == 'flipped':
      # An index has some bytes that nobody looks at.
      while not checkpoint_files.damage(str(path)):
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        file.write_bytes(content)
    else:
      file.unlink()
    self._aside.append(
      {
        os.path.basename(name): pathlib.Path(name).read_bytes()
        for name in checkpoint_files.files(str(path))
      }
    )
    return f'{file.name} {how}'

  def damage_state(self, rng):
    """Damages the file `checkpoint`; returns how."""
    contents = {
      'emptied': b'',
      'noise': rng.randbytes(rng.randrange(1, 200)),
      'points at nothing': b'model_checkpoint_path: "model.ckpt-99999999"\n',
    }
    how = rng.choice([*contents])
    (self._dir / 'checkpoint').write_bytes(contents[how])
    self._aside.append({'checkpoint': contents[how]})
    return f'checkpoint {how}'

  # At the end.

  def missed(self):
    """Returns the steps of whole checkpoints that were not evaluated."""
    there = {
      step
      for step in command.steps(self._dir)
      if not checkpoint_files.damage(str(self._dir / f'model.ckpt-{step}'))
    }
    fingerprints = {step: entry[0] for step, entry in self._checkpoints.items()}
    for step in there:
      fingerprints[step] = checkpoint_files.fingerprint(
        str(self._dir / f'model.ckpt-{step}')
      )
    records = self.records()
    return [
      step
      for step in sorted(there | self.steps)
      if step not in records
      or records[step]['fingerprint'] != fingerprints[step]
    ]

  def lost(self):
    """Returns {what was lost: bytes}."""
    lost = {}
    for step in self.steps:
      path = str(self._dir / f'model.ckpt-{step}')
      fingerprint, size = self._checkpoints[step]
      problem = checkpoint_files.damage(path)
      if problem or checkpoint_files.fingerprint(path) != fingerprint:
        lost[f'checkpoint of step {step} ({problem or "other values"})'] = size
    records = self.records()
    for (step, _), entry in self._records.items():
      if records.get(step) != entry:
        lost[f'record of step {step}'] = len(json.dumps(entry))
    for name, files in self._exports.items():
      found = _hashes(self._dir / 'exports' / name)
      for file, (size, digest) in files.items():
        if found.get(file) != (size, digest):
          lost[f'exports/{name}/{file}'] = size
    in_damaged = [
      {path.name: path.read_bytes() for path in directory.iterdir()}
      for directory in (self._dir / 'damaged').glob('*')
    ]
    for files in self._aside:
      for name, content in files.items():
        if not any(found.get(name) == content for found in in_damaged):
          # Nothing may be left of one that was emptied but its name.
          lost[f'{name}, damaged and put aside'] = max(1, len(content))
    if problem := self.problem_of_best():
      lost[f'best/: {problem}'] = 1
    return lost

  def problem_of_best(self):
    """Returns what is wrong with best/ while nobody writes; '' if nothing."""
    records, best = self.records(), self._dir / 'best'
    if not records:
      return ''
    if not (best / 'best.json').exists():
      return 'there is none'
    facts = json.loads((best / 'best.json').read_text())
    for path in (facts['checkpoint'], tf.train.latest_checkpoint(str(best))):
      if problem := checkpoint_files.damage(path):
        return problem
    if not os.path.exists(os.path.join(facts['export'], exports.FACTS)):
      return f'{facts["export"]} is gone'
    top_1 = max(e['metrics']['top_1_accuracy'] for e in records.values())
    if facts['top_1'] < top_1:
      return f'top-1 of {facts["top_1"]}, but {top_1} was reached'
    return ''


def _hashes(directory):
  """Returns {file: (size, hash)} of a whole tree."""
  return {
    name: (len(content), hashlib.sha256(content).hexdigest())
    for name, (_, content) in command.contents(directory).items()
  }


class _Delays:
  """From the listing of a checkpoint to 'evaluating' in the evaluator's log.

  Only where the evaluator was waiting, and left alone meanwhile.
  """

  def __init__(self):
    self.seconds = []
    self._step = self._since = None

  def listed(self, steps, evaluator):
    if self._step is None and steps and not evaluator.is_suspended:
      if evaluator.is_running and phase(evaluator) == 'waiting':
        self._step, self._since = steps[0], time.monotonic()

  def disturbed(self):
    self._step = None

  def look(self, evaluator):
    if self._step is not None:
      if f'/model.ckpt-{self._step}\n' in evaluator.process.stderr:
        self.seconds.append(time.monotonic() - self._since)
        self._step = None


_PHASES = {
  'evaluating': 'evaluation',
  'exported': 'record',
  'waiting for a checkpoint': 'waiting',
}


def phase(evaluator):
  """Returns what an evaluator is about."""
  lines = re.findall(
    r'^\d\d:\d\d:\d\d (evaluating|exported|waiting for a checkpoint|step \d+:)',
    evaluator.process.stderr,
    re.MULTILINE,
  )
  if not lines:
    return 'start'
  return _PHASES.get(lines[-1], 'between two')


# --- Faults -------------------------------------------------------------------


class _Soak:
  """The supervisor, and whoever makes the faults."""

  def __init__(self, faults, seed, directory):
    self._num_faults = faults
    self._rng = random.Random(seed)
    self._directory = directory
    self._disk = _Disk(directory / 'disk', faults)
    self._model_dir = self._disk.path / 'model'
    self._steps = faults * _STEPS_PER_FAULT + _LAST_STEPS
    self._flags = {
      **_FLAGS,
      'stage_1_epochs': self._steps // 20,
      'stage_2_epochs': self._steps // 20,
      'data_dir': directory / 'data',
      'model_dir': self._model_dir,
    }
    self._inventory = _Inventory(self._model_dir)
    self._delays = _Delays()
    self._problems = self._inventory.problems
    self._is_held = False  # Whether nothing is started again for now.
    self._later = []  # [(time, job, signal)]
    self._made = collections.Counter()
    self._kills = 0
    self._progress = 0, time.monotonic()
    self._begun = time.monotonic()

  def run(self):
    """Returns what goes into soak.json."""
    directory, flags = self._directory, self._flags
    alone = directory / 'undisturbed'
    with contextlib.ExitStack() as stack:
      stack.callback(self._disk.close)
      self._trainer = _Job(
        'trainer', {**flags, 'mode': 'train'}, directory / 'trainer'
      )
      stack.callback(lambda: self._trainer.process.kill())
      self._evaluator = _Job(
        'evaluator', {**flags, 'mode': 'eval'}, directory / 'evaluator'
      )
      stack.callback(lambda: self._evaluator.process.kill())
      self._jobs = self._trainer, self._evaluator
      undisturbed = stack.enter_context(
        _Process(
          {**flags, 'mode': 'train', 'model_dir': alone},
          directory,
          is_small=True,
          CUDA_VISIBLE_DEVICES='',
        )
      )
      try:
        self._make_faults()
        self._wait(lambda: all(job.is_done for job in self._jobs))
        self._wait(lambda: undisturbed.poll() is not None)
        if undisturbed.wait().returncode:
          raise _StoppedError(f'undisturbed: {undisturbed.stderr}')
      except _StoppedError as error:
        self._problems.append(str(error))
      result = self._result(alone)
      if result['problems']:
        shutil.copytree(self._model_dir, directory / 'model_dir')
    return result

  def _make_faults(self):
    makers = {
      'SIGTERM of the trainer': lambda: self._terminate(self._trainer),
      'SIGKILL of the trainer': lambda: self._kill(self._trainer),
      'SIGSTOP of the trainer': lambda: self._suspend(self._trainer),
      'SIGTERM of the evaluator': lambda: self._terminate(self._evaluator),
      'SIGKILL of the evaluator': lambda: self._kill(self._evaluator),
      'SIGSTOP of the evaluator': lambda: self._suspend(self._evaluator),
      'a second trainer': self._start_another,
      'full disk': self._fill_disk,
      'damaged checkpoint': self._damage_checkpoint,
      'damaged state': self._damage_state,
    }
    deck = []
    for number in range(self._num_faults):
      if not deck:
        deck = self._rng.sample([*makers], len(makers))
      kind = deck.pop()
      # Progress is seen whenever a checkpoint is listed.
      step = _STEPS_PER_FAULT * (number + self._rng.random())
      self._wait(lambda step=step: self._inventory.newest >= step)
      self._pause(self._rng.uniform(0, 0.8))
      self._check_that_it_trains()
      at = self._inventory.newest
      what = makers[kind]()
      self._made[kind] += 1
      self._say(
        f'fault {number + 1} of {self._num_faults}, after step {at} of '
        f'{self._steps}: {kind}{f" ({what})" if what else ""}'
      )

  def _check_that_it_trains(self):
    if self._trainer.is_done:
      raise _StoppedError('training was over before all faults were made')

  # Each returns what it has done, in words.

  def _send(self, job, number):
    """Sends a signal, to a process that may be starting."""
    self._wait(lambda: job.is_running or job.is_done)
    if job.is_done:
      return
    if job is self._evaluator:
      self._delays.disturbed()
    if number in (signal.SIGKILL, signal.SIGTERM):
      self._kills += 1
    job.send(number)

  def _choose_moment(self, job):
    """Waits for something that an evaluator does; returns what it is about."""
    if job is not self._evaluator:
      return ''
    if self._phase() == 'start':
      return 'start'
    wanted = self._rng.choice(('evaluation', 'export', None))
    end = time.monotonic() + 2
    self._wait(
      lambda: wanted in (None, self._phase()) or time.monotonic() > end
    )
    self._pause(self._rng.uniform(0, 0.3))
    return self._phase()

  def _phase(self):
    found = phase(self._evaluator)
    if found == 'evaluation' and any(
      # What was left by others is older.
      path.stat().st_mtime > self._evaluator.started
      for path in self._model_dir.glob('exports/temp-*')
    ):
      return 'export'
    return found

  def _kill(self, job):
    what = self._choose_moment(job)
    self._send(job, signal.SIGKILL)
    if self._rng.random() < 0.4:
      # And once more, most likely while it starts.
      self._later.append(
        (time.monotonic() + self._rng.uniform(0.5, 6), job, signal.SIGKILL)
      )
      what = ', '.join(filter(None, (what, 'twice')))
    return what

  def _terminate(self, job):
    what = self._choose_moment(job)
    self._send(job, signal.SIGTERM)
    if self._rng.random() < 0.4:
      self._pause(self._rng.uniform(0.21, 0.4), is_restarted=False)
      if job.is_running:
        self._send(job, signal.SIGTERM)
        what = ', '.join(filter(None, (what, 'at once')))
    return what

  def _suspend(self, job):
    seconds = self._rng.uniform(0.2, 3)
    self._send(job, signal.SIGSTOP)
    self._later.append((time.monotonic() + seconds, job, signal.SIGCONT))
    return f'{seconds:.1f} s'

  def _trains(self):
    """Whether the trainer has saved something and is left alone."""
    self._check_that_it_trains()
    stamp = checkpoint_files.stamp(str(self._model_dir / 'checkpoint'))
    # It has put aside by then what was damaged before.
    saved = stamp and stamp.mtime_nsec / 1e9 > self._trainer.started
    is_there = self._trainer.is_running and not self._trainer.is_ending
    return saved and is_there and not self._later

  def _start_another(self):
    self._wait(self._trains)
    with _Process(
      {**self._flags, 'mode': 'train'},
      self._directory,
      is_small=True,
      CUDA_VISIBLE_DEVICES='',
    ) as other:
      # Its start takes longer than training to the next faults. The first one
      # need not run to keep others out.
      self._pause(self._rng.uniform(0, 2))
      self._send(self._trainer, signal.SIGSTOP)
      self._wait(lambda: other.poll() is not None)
      self._send(self._trainer, signal.SIGCONT)
      run = other.wait()
    wanted = f'in use by another trainer, process {self._trainer.process.pid} '
    if run.returncode != 2 or wanted not in run.stderr.splitlines()[-1]:
      self._problems.append(
        f'the second trainer ended with {run.returncode}: {run.stderr[-3000:]}'
      )
    return 'refused'

  def _fill_disk(self):
    self._wait(self._trains)
    self._delays.disturbed()
    process = self._trainer.process
    self._is_held = True
    self._disk.fill(process, self._rng.randrange(200_000))
    end = time.monotonic() + 10
    self._wait(lambda: process.poll() is not None or time.monotonic() > end)
    self._disk.empty(process)
    self._is_held = False
    return 'stopped' if process.poll() is not None else 'nothing happened'

  def _damage_checkpoint(self):
    return self._damage(self._inventory.damage_checkpoint)

  def _damage_state(self):
    return self._damage(self._inventory.damage_state)

  def _damage(self, damage):
    """Kills the trainer and damages what it has to continue from."""
    self._wait(self._trains)
    self._is_held = True
    self._send(self._trainer, signal.SIGKILL)
    self._wait(lambda: not self._trainer.is_running)
    self._look()
    what = damage(self._rng)
    self._is_held = False
    return what

  # The supervisor.

  def _wait(self, is_time):
    while not is_time():
      self._supervise()
      time.sleep(_POLL_SECONDS)

  def _pause(self, seconds, is_restarted=True):
    end = time.monotonic() + seconds
    if is_restarted:
      self._wait(lambda: time.monotonic() > end)
    else:
      time.sleep(seconds)

  def _supervise(self):
    self._look()
    self._delays.look(self._evaluator)
    now = time.monotonic()
    for each in [each for each in self._later if each[0] < now]:
      self._later.remove(each)
      _, job, number = each
      if job.is_running:
        self._send(job, number)
    for job in self._jobs:
      if job.is_deaf:
        raise _StoppedError(f'the {job.name} does not end on SIGTERM')
      if not job.is_running and not job.is_done and not self._is_held:
        self._restart(job)
    progress = (
      self._inventory.newest,
      self._inventory.evaluations,
      sum(job.starts for job in self._jobs),
    )
    if progress != self._progress[0]:
      self._progress = progress, now
    elif now - self._progress[1] > _HANG_SECONDS:
      raise _StoppedError('nothing happens any more')

  def _look(self):
    self._delays.listed(self._inventory.look(), self._evaluator)

  def _restart(self, job):
    if problem := job.end():
      raise _StoppedError(problem)
    if job is self._evaluator:
      self._delays.disturbed()
      if problem := self._inventory.problem_of_best():
        self._problems.append(f'best/: {problem}')
    if job.is_done:
      self._say(f'the {job.name} has finished')
    else:
      job.start()

  def _result(self, alone):
    inventory = self._inventory
    inventory.look()
    lost, missed = inventory.lost(), inventory.missed()
    problems = [*self._problems, *(f'lost: {what}' for what in lost)]
    if missed:
      problems.append(f'not evaluated: steps {missed}')
    if inventory.repeated:
      problems.append(f'{inventory.repeated} evaluations were repeated')
    different = self._compare(alone)
    if different:
      problems.append(f'different at the end: {different}')
    for path in self._directory.rglob('*.std*'):
      if 'Traceback' in path.read_text():
        problems.append(f'{path} has a traceback')
    return {
      'faults': sum(self._made.values()),
      'faults_by_kind': dict(sorted(self._made.items())),
      'kills_survived': self._kills,
      'restarts': {job.name: job.starts - 1 for job in self._jobs},
      'ends': {job.name: dict(job.ends) for job in self._jobs},
      'checkpoints': len(inventory.steps),
      'evaluations_done': inventory.evaluations,
      'evaluations_missed': len(missed),
      'evaluations_repeated': inventory.repeated,
      'bytes_lost': sum(lost.values()),
      'final_weights_equal': not different,
      'evaluation_delays': len(self._delays.seconds),
      'evaluation_delay_median': _rounded(
        statistics.median(self._delays.seconds or [math.nan])
      ),
      'evaluation_delay_max': _rounded(max(self._delays.seconds or [math.nan])),
      'full_disk': self._disk.kind,
      'steps': self._steps,
      'seconds': _rounded(time.monotonic() - self._begun),
      'problems': problems,
    }

  def _compare(self, alone):
    """Returns the names of variables and slots whose bits differ."""
    name = f'model.ckpt-{self._steps}'
    try:
      expected = command.variables(alone / name)
      found = command.variables(self._model_dir / name)
    except (ValueError, tf.errors.OpError) as error:
      return [str(error)]
    return sorted(
      name
      for name in expected.keys() | found.keys()
      if name not in expected
      or name not in found
      or expected[name].tobytes() != found[name].tobytes()
    )

  def _say(self, line):
    print(f'{time.monotonic() - self._begun:6.1f} s  {line}', flush=True)


def _rounded(seconds):
  return None if math.isnan(seconds) else round(seconds, 2)


def main(arguments):
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--faults', type=int, default=100)
  parser.add_argument('--seed', type=int, default=1)
  parser.add_argument('--directory', type=pathlib.Path, required=True)
  options = parser.parse_args(arguments)
  directory = options.directory.resolve()
  if directory.exists():
    parser.error(f'{directory} exists; name a new one.')
  directory.mkdir(parents=True)
  # Leave no process and no file system behind.
  signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
  result = {
    'seed': options.seed,
    **_Soak(options.faults, options.seed, directory).run(),
  }
  (directory / 'soak.json').write_text(json.dumps(result, indent=2) + '\n')
  for name, value in result.items():
    if name != 'problems':
      print(f'{name.replace("_", " "):<24} {value}')
  for problem in result['problems']:
    print(f'PROBLEM: {problem}')
  return int(bool(result['problems']))


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
