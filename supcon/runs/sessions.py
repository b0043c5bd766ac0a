"""Tells TensorBoard's HParams plugin the hyper-parameters of a run.

`tensorboard --logdir PARENT` then compares and filters the runs below PARENT.
A run is a "session" there. Its metrics are the scalars in the same directory,
so this is the directory of the evaluations.

Every session names every hyper-parameter, and none describes an "experiment".
TensorBoard takes the columns of all runs from whichever experiment it finds
first; without one it makes them of all sessions, and knows which differ.
"""

import os
import time

import tensorflow as tf

from supcon.config import hparams

tf1 = tf.compat.v1

# Sorts before the files of summaries, because TensorBoard reads files in the
# order of their names and never returns to an earlier one.
FILE = 'events.out.tfevents.0.hparams'


def record(directory: str, params: hparams.HParams, is_last_step: bool) -> None:
  """Writes the session of a run, unless the same is recorded already.

  Args:
    directory: The directory of the evaluations; made if missing.
    params: The hyper-parameters that the run was trained with.
    is_last_step: Whether the last step of the run is evaluated, so that it
      counts as a success.

  Raises:
    tf.errors.OpError: If the file cannot be read or written.
  """
  try:
    # TensorFlow 2.20 and later do without it.
    from tensorboard.plugins.hparams import api_pb2
    from tensorboard.plugins.hparams import plugin_data_pb2
    from tensorboard.plugins.hparams import summary
  except ImportError:
    return

  def contents(summaries):
    # The order of a map's bytes differs between processes, so compare values.
    return [
      plugin_data_pb2.HParamsPluginData.FromString(
        value.metadata.plugin_data.content
      )
      for each in summaries
      for value in each.value
    ]

  path = os.path.join(directory, FILE)
  before = contents(_read(path))
  started = ended = time.time()
  for content in before:
    started = content.session_start_info.start_time_secs or started
    ended = content.session_end_info.end_time_secs or ended
  summaries = [
    summary.session_start_pb(_values(params), start_time_secs=started)
  ]
  if is_last_step:
    status = api_pb2.STATUS_SUCCESS
    summaries.append(summary.session_end_pb(status, end_time_secs=ended))
  if before == contents(summaries):
    return
  tf.io.gfile.makedirs(directory)
  # Without 'tfevents' in its name TensorBoard does not read it.
  aside = os.path.join(directory, 'hparams.temp')
  with tf.io.TFRecordWriter(aside) as writer:
    # Before the version, events count as those of very old programs.
    version = tf1.Event(wall_time=started, file_version='brain.Event:2')
    writer.write(version.SerializeToString())
    for each in summaries:
      event = tf1.Event(wall_time=started, step=0, summary=each)
      writer.write(event.SerializeToString())
  tf.io.gfile.rename(aside, path, overwrite=True)


def _read(path):
  """Returns the summaries in a file; none if it is missing or damaged."""
  try:
    return [event.summary for event in tf1.train.summary_iterator(path)]
  except (tf.errors.NotFoundError, tf.errors.DataLossError):
    return []


def _values(params):
  """Returns {flag: value} of every hyper-parameter, with the plugin's types."""
  values = {}
  for field in hparams.FIELDS:
    value = params.get(field.path)
    is_plain = isinstance(value, (bool, int, float, str))
    values[field.flag] = value if is_plain else field._replace(value=value).text
  return values
