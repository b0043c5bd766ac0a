"""What TensorBoard shows of a report: pictures and the Embedding Projector."""

from collections.abc import Callable
from collections.abc import Mapping
from typing import Any

import numpy as np

from supcon.evaluation import model_outputs
from supcon.reports import embedding_maps
from supcon.reports import figures
from supcon.reports import image_summaries
from supcon.reports import projector
from supcon.reports import report_drawings


def write(
  directory: str,
  report: Mapping[str, Any],
  outputs: model_outputs.Outputs,
  read: Callable[[np.ndarray, int], np.ndarray],
) -> None:
  """Writes the files of one run of TensorBoard's; earlier ones are replaced.

  Args:
    directory: The directory to write to.
    report: The content of report.json, see supcon/jobs/reporting.py.
    outputs: The outputs that the report is about.
    read: A function from positions, [n], and a side in pixels to the images of
      these examples, uint8 [n, side, side, 3].

  Raises:
    ValueError: If an embedding is NaN or infinite.
    tf.errors.OpError: If a file cannot be written.
  """
  step = report['run']['step']
  pictures = _of_classifier(report)
  image_summaries.write(directory, 'report', pictures, step)
  positions = embedding_maps.choose(outputs.num_examples, projector.MAX_POINTS)
  projector.write(
    directory,
    outputs,
    positions,
    read(positions, projector.SIDE),
    step,
    has_predictions=bool(pictures),
  )


def _of_classifier(report):
  """Returns the pictures by tag; none without a classifier."""
  if 'classes/confusion' not in report['metrics']:
    return {}
  pictures = {
    'classifier/confusion': image_summaries.Picture(
      figures.confusion(*report_drawings.confused(report), form='png'),
      'The number of examples of each class, and what they are taken for.',
    )
  }
  for title, bins in report_drawings.bins(report).items():
    tag = f'classifier/reliability: {title.lower()}'
    pictures[tag] = image_summaries.Picture(
      figures.reliability({title: bins}, form='png'),
      'How often predictions are right, by their probability.',
    )
  return pictures
