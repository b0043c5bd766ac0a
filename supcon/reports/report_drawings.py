"""The pictures of a report, from its numbers."""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import numpy as np

from supcon.reports import figures
from supcon.reports import report_facts

# Titles, and columns of metrics.csv.
_PANELS = (
  ('Loss', 'loss'),
  ('Top-1 accuracy', 'top_1_accuracy'),
  ('Contrastive loss', 'contrastive_loss'),
  ('Cross-entropy', 'cross_entropy_loss'),
  ('Learning rate', 'learning_rate'),
  ('Accuracy of 20 nearest neighbours', 'knn_k20_t0.07'),
)
_CURVES = {'train': 'training', 'eval': 'evaluation'}


def draw(report: Mapping[str, Any]) -> dict[str, bytes]:
  """Returns {name: SVG}, see report_page.make.

  Args:
    report: The content of report.json, see supcon/jobs/reporting.py.
  """
  run, found = report['run'], report['map']
  names = run['class_names']
  maps = {'Principal components': np.array(found['pca'])}
  if found['tsne']:
    maps['t-SNE'] = np.array(found['tsne'])
  drawn = {
    'map': figures.embedding_map(
      maps,
      np.array(found['labels']),
      {label: names[label] for label in found['named']},
    )
  }
  if panels := _panels(report['curves']):
    ends = [
      stage['last_step'] / run['steps_per_epoch'] for stage in run['stages']
    ]
    drawn['curves'] = figures.curves(panels, ends[:-1])
  if 'classes/confusion' in report['metrics']:
    drawn['confusion'] = figures.confusion(*confused(report))
    drawn['reliability'] = figures.reliability(bins(report))
  for number, found in enumerate(report['robustness']):
    errors = report_facts.errors_by_severity(found['evaluations'])
    if errors:
      drawn[f'robustness_{number}'] = figures.errors_by_severity(errors)
  return drawn


def confused(report: Mapping[str, Any]) -> tuple[np.ndarray, list[str]]:
  """Returns the part of the confusion matrix to show, and its classes."""
  shown = report['confusion_classes']
  matrix = np.array(report['metrics']['classes/confusion'])
  names = report['run']['class_names']
  return matrix[np.ix_(shown, shown)], [names[label] for label in shown]


def bins(report: Mapping[str, Any]) -> dict[str, list[dict[str, float]]]:
  """Returns {title: bins as calibration.run returns them}."""
  metrics = report['metrics']
  found = {'As trained': metrics['calibration/reliability']}
  if 'calibration/reliability_scaled' in metrics:
    found['Scaled by temperature'] = metrics['calibration/reliability_scaled']
  return found


def _panels(curves):
  """Returns (title, {name: points}) of the quantities that are recorded."""
  panels = []
  for title, column in _PANELS:
    lines = {
      name: curves[table][column]
      for table, name in _CURVES.items()
      if column in curves[table]
    }
    if lines:
      panels.append((title, lines))
  return panels


def pictures(
  report: Mapping[str, Any],
  read: Callable[[str, Sequence[int]], np.ndarray],
) -> dict[tuple[str, int], bytes]:
  """Returns {(part, position): PNG} of the examples on the page.

  Args:
    report: See `draw`.
    read: A function from the part, 'evaluation' or 'index', and positions in it
      to images, uint8 [n, side, side, 3].
  """
  shown = {'evaluation': set(), 'index': set()}
  for mistake in report['metrics'].get('classes/mistakes', ()):
    shown['evaluation'].add(mistake['position'])
  for query in report['neighbours']:
    shown['evaluation'].add(query['position'])
    shown['index'].update(near['position'] for near in query['neighbours'])
  return {
    (part, position): figures.png(image)
    for part, positions in shown.items()
    for position, image in zip(sorted(positions), read(part, sorted(positions)))
  }
