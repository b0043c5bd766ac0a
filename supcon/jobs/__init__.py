"""The jobs, one per --mode.

`prepare` looks at every file and reports every mistake that can be found early;
nothing is written before it returns. A job's `announce` says what the job will
do, and its `run` does it.
"""

import tensorflow as tf

from supcon.config import hparams
from supcon.config import run_options
from supcon.jobs import embedding
from supcon.jobs import evaluation
from supcon.jobs import exporting
from supcon.jobs import inspecting
from supcon.jobs import predicting
from supcon.jobs import reporting
from supcon.jobs import robustness
from supcon.jobs import stopping
from supcon.jobs import training

tf1 = tf.compat.v1
# What TensorFlow raises if a file cannot be read or written.
FileError = tf.errors.OpError
TrainerGoneError = stopping.TrainerGoneError
reason = stopping.why


_JOBS = {
  'train': training.Train,
  'train_then_eval': training.Train,
  'eval': evaluation.prepare,
  'inspect_data': inspecting.InspectData,
  'export': exporting.Export,
  'embed': embedding.Embed,
  'predict': predicting.Predict,
  'report': reporting.Report,
  'robustness': robustness.MeasureRobustness,
}


def prepare(options: run_options.RunOptions, params: hparams.HParams):
  """Returns a job that has passed all checks; see above for its methods.

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
