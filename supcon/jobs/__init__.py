"""The jobs, one for each --mode.

`prepare` looks at every file and finds every mistake that can be found early;
nothing is written before it returns. A job's `announce` says what is going to
be done, its `run` does it.
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
# What TensorFlow raises where a file cannot be read or written.
FileError = tf.errors.OpError
TrainerGoneError = setup.TrainerGoneError
reason = setup.reason


class Job(Protocol):
  """Something that main.py does, of which everything has been checked."""

  def announce(self) -> None:
    """Says what is going to be done, and writes down with what settings.

    Raises:
      ValueError: If nothing can be written.
    """

  def run(self) -> None:
    """Does it.

    Raises:
      Stopped: If it cannot be brought to its end.
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
  """Returns a job of which everything has been checked.

  Args:
    options: Checked RunOptions.
    params: Checked HParams.

  Raises:
    ValueError: In one line, what was found, what was expected, what to do.
    FileError: If a file cannot be read.
  """
  tf1.disable_v2_behavior()
  tf1.enable_v2_tensorshape()  # Shapes of plain ints, as in TensorFlow 2.
  return _JOBS[options.mode](options, params)
