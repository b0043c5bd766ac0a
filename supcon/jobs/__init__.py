"""The jobs, one per --mode.

`prepare` looks at every file and reports every mistake that can be found early;
nothing is written before it returns. A job's `announce` says what the job will
do, and its `run` does it.
"""

from typing import Protocol

import tensorflow as tf

from supcon.config import hparams
from supcon.config import run_options
from supcon.jobs import evaluation
from supcon.jobs import inspecting
from supcon.jobs import model_use
from supcon.jobs import setup
from supcon.jobs import training

tf1 = tf.compat.v1
# What TensorFlow raises if a file cannot be read or written.
FileError = tf.errors.OpError
TrainerGoneError = setup.TrainerGoneError
reason = setup.reason


class Job(Protocol):
  """A job of main.py that has passed all checks."""

  def announce(self) -> None:
    """Logs what the job will do, and records its settings.

    Raises:
      ValueError: If nothing can be written.
    """

  def run(self) -> None:
    """Does the job.

    Raises:
      Stopped: If it cannot finish.
    """


_JOBS = {
  'train': training.Train,
  'train_then_eval': training.Train,
  'eval': evaluation.prepare,
  'inspect_data': inspecting.InspectData,
  'export': model_use.Export,
  'embed': model_use.Embed,
  'predict': model_use.Predict,
}


def prepare(options: run_options.RunOptions, params: hparams.HParams) -> Job:
  """Returns a job that has passed all checks.

  Args:
    options: Checked RunOptions.
    params: Checked HParams.

  Raises:
    ValueError: The message says in one line what was found, what was expected
      and what to do.
    FileError: If a file cannot be read.
  """
  tf1.disable_v2_behavior()
  tf1.enable_v2_tensorshape()  # Shapes of plain ints, as in TensorFlow 2.
  return _JOBS[options.mode](options, params)
