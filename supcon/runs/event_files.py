"""Event files for TensorBoard, and the same data as a table.

All scalars are `simple_value`s, in training and evaluation alike: the ones that
TensorBoard's `EventAccumulator.Scalars()` returns.

A run that was killed repeats some steps, so the old records of these steps are
void. The first event of the next session, SessionLog.START at a step, cancels
everything from that step on. TensorBoard obeys it, and so does `read`.
"""

from collections.abc import Callable
from collections.abc import Mapping
import csv
import io
import os
import time

import numpy as np
import tensorflow as tf

tf1 = tf.compat.v1

# {column: tag}; '{stage}' is replaced by the stage of the row.
TRAINING_COLUMNS = {
  'loss': 'loss',
  'contrastive_loss': 'loss/contrastive_loss',
  'cross_entropy_loss': 'loss/cross_entropy_loss',
  'weight_decay_loss': 'weight_decay/stage{stage}_weight_decay_loss',
  'top_1_accuracy': 'top_1_accuracy',
  'top_5_accuracy': 'top_5_accuracy',
  'learning_rate': 'stage_{stage}_learning_rate',
  'encoder_weights': 'weight_decay/Encoder_weights',
  'projection_head_weights': 'weight_decay/ProjectionHead_weights',
  'classification_head_weights': 'weight_decay/ClassificationHead_weights',
  'examples_per_second': 'examples/sec',
}
EVALUATION_COLUMNS = {
  'loss': 'loss',
  'contrastive_loss': 'loss/contrastive_loss',
  'cross_entropy_loss': 'loss/cross_entropy_loss',
  'top_1_accuracy': 'top_1_accuracy',
  'top_5_accuracy': 'top_5_accuracy',
  'knn_k20_t0.07': 'knn/k20_t0.07',
  'alignment': 'geometry/alignment',
  'uniformity': 'geometry/uniformity',
}


# Suffix of files that hold a graph, which is large, and no scalars.
GRAPH_SUFFIX = '.graph'


def start(step: int) -> tf1.Event:
  """Returns the event that cancels the records from `step` on."""
  return tf1.Event(
    wall_time=time.time(),
    step=step,
    session_log=tf1.SessionLog(status=tf1.SessionLog.START),
  )


def read(directory: str) -> dict[int, dict[str, float]]:
  """Returns {step: {tag: value}} of all scalars, by increasing step.

  Raises:
    tf.errors.OpError: If a file cannot be read. A truncated file is not an
      error: it is being written, or its writer was killed.
  """
  rows = {}
  for path in _paths(directory):
    try:
      for event in tf1.train.summary_iterator(path):
        if event.session_log.status == tf1.SessionLog.START:
          rows = {step: row for step, row in rows.items() if step < event.step}
        for value in event.summary.value:
          if value.WhichOneof('value') == 'simple_value':
            row = rows.setdefault(event.step, {})
            row[value.tag] = value.simple_value
    except tf.errors.DataLossError:
      continue
  return dict(sorted(rows.items()))


def restart(directory: str, step: int) -> dict[int, dict[str, float]]:
  """Cancels the records in a directory from `step` on.

  Returns:
    The cancelled scalars, in the form of `read`.
  """
  void = {s: row for s, row in read(directory).items() if s >= step}
  if void:
    _write(directory, [start(step)])
  return void


def add(directory: str, rows: Mapping[int, Mapping[str, float]]) -> None:
  """Adds scalars in the form of `read`."""
  events = []
  for step, row in rows.items():
    event = tf1.Event(wall_time=time.time(), step=step)
    for tag, value in row.items():
      event.summary.value.add(tag=tag, simple_value=value)
    events.append(event)
  _write(directory, events)


def _write(directory, events):
  # The estimator writes its evaluations to the same file.
  writer = tf1.summary.FileWriterCache.get(directory)
  for event in events:
    writer.add_event(event)
  writer.flush()


def table(
  rows: Mapping[int, Mapping[str, float]],
  columns: Mapping[str, str],
  place: Callable[[int], tuple[float, int]],
) -> str:
  """Returns scalars as CSV: a line per step, with unknown values empty.

  Args:
    rows: The scalars, in the form of `read`.
    columns: {column: tag}; they follow `step`, `epoch` and `stage`.
    place: A function from a step to its epoch and stage.
  """
  text = io.StringIO()
  writer = csv.writer(text, lineterminator='\n')
  writer.writerow(['step', 'epoch', 'stage', *columns])
  for step, row in rows.items():
    epoch, stage = place(step)
    values = [row.get(tag.format(stage=stage)) for tag in columns.values()]
    writer.writerow(
      [step, f'{epoch:.6g}', stage]
      # Values are float32: write 0.1, not 0.10000000149.
      + ['' if value is None else str(np.float32(value)) for value in values]
    )
  return text.getvalue()


def _paths(directory):
  """Returns the event files in the order in which TensorBoard reads them."""
  if not tf.io.gfile.isdir(directory):
    return []
  names = sorted(
    name
    for name in tf.io.gfile.listdir(directory)
    if 'tfevents' in name and not name.endswith(GRAPH_SUFFIX)
  )
  return [os.path.join(directory, name) for name in names]
