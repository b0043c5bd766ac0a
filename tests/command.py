"""Runs main.py and the scripts as a user does, and reads what they leave.

Unless told otherwise main.py is started in a fork, see forking.py.
"""

import csv
import dataclasses
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import numpy as np
from tensorboard.backend.event_processing import event_accumulator
import tensorflow as tf

from tests import forking

ROOT = pathlib.Path(__file__).resolve().parent.parent
MAIN = ROOT / 'main.py'
_MANY = ROOT / 'tests' / 'many_mains.py'

# Flags of runs that take seconds: images as they are. The 360 of the test split
# are no multiple of an evaluation batch.
DIGITS = {
  'use_tpu': False,
  'input_fn': 'digits',
  'image_size': 8,
  'eval_crop_method': 'CROP_THEN_RESIZE',
  'crop_padding': 0,
  'crop_area_range': '0.5,1.0',
  'augmentation_type': 'IDENTITY',
  'batch_size': 64,
  'eval_batch_size': 100,
  'projection_head_layers': '16,8',
  # It takes a second for each evaluation; representation_main_test.py has it.
  'knn_examples': 0,
  # Several seconds for each training; report_main_test.py has it.
  'report_examples': 0,
}
RESNET = {
  'resnet_depth': 18,
  'resnet_width': 0.0625,
  'first_conv_kernel_size': 3,
  'first_conv_stride': 1,
  'use_initial_max_pool': False,
}

# An encoder of two convolutions, for runs that take seconds. Rounding does not
# grow in so shallow a network: whoever computes the same gets the same weights,
# to float32.
SMALL = {'resnet_architecture': 'TINY'}

# Far more than any run takes, for machines that are busy with other things.
TIMEOUT_SECONDS = 600

# What a test process may have set and a user has not.
_UNSET = (
  'PYTHONPATH',
  'PYTHON',
  'VENV',
  'TF_CPP_MIN_LOG_LEVEL',
  'TF_DETERMINISTIC_OPS',
  'TF_USE_LEGACY_KERAS',
  'TFDS_DATA_DIR',
)


def to_arguments(flags):
  """Turns {flag: value} into ['--flag=value', ...]."""
  return [f'--{flag}={value}' for flag, value in flags.items()]


@dataclasses.dataclass(frozen=True)
class Finished:
  """What a user sees of a process that has ended."""

  returncode: int
  stdout: str
  stderr: str
  seconds: float

  @property
  def log(self) -> list[str]:
    """The lines of stderr without the time at their beginning."""
    return [
      re.sub(r'^\d\d:\d\d:\d\d ', '', line) for line in self.stderr.splitlines()
    ]


class Process:
  """A running main.py or script; its output goes to files."""

  def __init__(
    self,
    flags,
    directory,
    program=MAIN,
    first=(),
    python=sys.executable,
    is_small=False,
    is_forked=True,
    **environment,
  ):
    """Starts it.

    Args:
      flags: {flag: value}.
      directory: Its working directory, in which the output files are made.
      program: main.py or a script.
      first: Arguments before the flags.
      python: The interpreter that runs it.
      is_small: Whether the encoder is the TINY one.
      is_forked: Whether a Python program may begin with TensorFlow imported. It
        does not where Python itself reads a variable, such as PYTHONPATH.
      **environment: Variables that are set besides those of this process.
    """
    is_script = program.suffix == '.sh'
    variables = _environment()
    if is_script:
      variables['PYTHON'] = python
    variables.update(environment)
    command = [
      program,
      *first,
      *to_arguments(_with_encoder(flags, is_small)),
    ]
    number = len(list(pathlib.Path(directory).glob('*.stderr')))
    self._stdout = pathlib.Path(directory) / f'{number}.stdout'
    self._stderr = pathlib.Path(directory) / f'{number}.stderr'
    self._begun = time.monotonic()
    with self._stdout.open('w') as stdout, self._stderr.open('w') as stderr:
      how = dict(cwd=directory, env=variables, stdout=stdout, stderr=stderr)
      is_forked = is_forked and not is_script and python == sys.executable
      if is_forked and 'PYTHONPATH' not in environment:
        self._process = forking.Process(command, **how)
      else:
        self._process = subprocess.Popen(
          command if is_script else [python, *command],
          stdin=subprocess.DEVNULL,
          **how,
        )

  def __enter__(self):
    return self

  def __exit__(self, *_):
    if self._process.poll() is None:
      self.kill()

  @property
  def stderr(self) -> str:
    return self._stderr.read_text()

  def wait_until(self, condition) -> None:
    """Returns as soon as `condition()` holds.

    Raises:
      AssertionError: If the process ends before, or it takes too long.
    """
    while not condition():
      assert self._process.poll() is None, self.stderr
      assert self._seconds() < TIMEOUT_SECONDS, self.stderr
      time.sleep(0.005)

  def kill(self) -> Finished:
    """Ends it as the machine's failure does, without any warning."""
    self._process.send_signal(signal.SIGKILL)
    self._process.wait()
    return self.wait()

  def wait(self) -> Finished:
    """Waits for its end."""
    try:
      returncode = self._process.wait(
        max(0.0, TIMEOUT_SECONDS - self._seconds())
      )
    except subprocess.TimeoutExpired:
      self._process.kill()
      raise AssertionError(self.stderr) from None
    return Finished(
      returncode, self._stdout.read_text(), self.stderr, self._seconds()
    )

  def _seconds(self):
    return time.monotonic() - self._begun


def run(flags, directory, **kwargs) -> Finished:
  """Runs main.py to its end; the arguments are those of `Process`."""
  with Process(flags, directory, **kwargs) as process:
    return process.wait()


def succeed(flags, directory, **kwargs) -> Finished:
  """Like `run`, and requires exit code 0."""
  finished = run(flags, directory, **kwargs)
  assert finished.returncode == 0, finished.stderr
  return finished


def run_many(list_of_flags, directory, is_small=False) -> list[Finished]:
  """Like `run` for each, but in one process: TensorFlow is imported once.

  Args:
    list_of_flags: {flag: value} of each.
    directory: Working directory of all.
    is_small: Whether the encoder is the TINY one.
  """
  arguments = pathlib.Path(directory) / 'arguments.json'
  arguments.write_text(
    json.dumps(
      [to_arguments(_with_encoder(flags, is_small)) for flags in list_of_flags]
    )
  )
  process = succeed({}, directory, program=_MANY, first=[arguments])
  return [Finished(*fields) for fields in json.loads(process.stdout)]


def _with_encoder(flags, is_small):
  return {**SMALL, **flags} if is_small else flags


def _environment():
  return {k: v for k, v in os.environ.items() if k not in _UNSET}


# --- What a run leaves --------------------------------------------------------


def newest_step(model_dir) -> int:
  """Returns the step of the newest checkpoint, -1 without any."""
  try:
    first_line = (model_dir / 'checkpoint').read_text().split('\n')[0]
  except FileNotFoundError:
    return -1
  found = re.search(r'-(\d+)"$', first_line)
  return int(found[1]) if found else -1


def steps(model_dir) -> list[int]:
  """Returns the steps of which checkpoints are there."""
  return sorted(
    int(path.suffixes[-2].rsplit('-', 1)[-1])
    for path in model_dir.glob('model.ckpt-*.index')
  )


def variables(checkpoint) -> dict[str, np.ndarray]:
  """Returns what a checkpoint holds, by name; of a directory, the newest."""
  reader = tf.train.load_checkpoint(str(checkpoint))
  return {
    name: reader.get_tensor(name)
    for name in sorted(reader.get_variable_to_shape_map())
  }


def contents(directory) -> dict[str, tuple[int, bytes]]:
  """Returns {file: (time of its last change, bytes)} of a whole tree."""
  return {
    str(path.relative_to(directory)): (
      path.stat().st_mtime_ns,
      path.read_bytes(),
    )
    for path in sorted(directory.rglob('*'))
    if path.is_file()
  }


def summaries(directory) -> dict[str, dict[int, float]]:
  """Returns {tag: {step: value}} of the scalars that TensorBoard finds.

  Args:
    directory: model_dir/train or model_dir/eval.
  """
  events = event_accumulator.EventAccumulator(
    str(directory), size_guidance={event_accumulator.SCALARS: 0}
  )
  events.Reload()
  found = {}
  for tag in events.Tags()['scalars']:
    steps = [event.step for event in events.Scalars(tag)]
    assert steps == sorted(set(steps)), tag
    found[tag] = {event.step: event.value for event in events.Scalars(tag)}
  return found


def table(path) -> dict[int, dict[str, str]]:
  """Returns the rows of a metrics.csv, {step: {column: text}}."""
  with path.open(newline='') as file:
    return {int(row['step']): row for row in csv.DictReader(file)}
