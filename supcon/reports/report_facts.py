"""The numbers of a report, from a model's outputs and the tables of its run."""

from collections.abc import Mapping
import csv
import io
import itertools
import math
from typing import Any

from absl import logging
import numpy as np

from supcon.config import hparams
from supcon.evaluation import model_outputs
from supcon.evaluation import nearest
from supcon.evaluation import registry
from supcon.reports import embedding_maps

# What a classifier must have been trained for.
_OF_LOGITS = ('accuracy', 'calibration', 'classes')
_OF_EMBEDDINGS = ('knn', 'few_shot', 'geometry')

# With more images in the index, evaluations take seconds each, and are logged.
_FEW = 5000
_MAX_CONFUSED = 20
# More classes in a map could not be told apart.
_MAX_NAMED = 20
_NUM_QUERIES = 8
_NUM_NEIGHBOURS = 5
# A curve has at most this many points.
_MAX_POINTS = 500


def measure(
  evaluation: model_outputs.Outputs,
  index: model_outputs.Outputs,
  held_out: model_outputs.Outputs | None,
  has_classifier: bool,
) -> dict[str, Any]:
  """Returns what report.json says of a model's outputs.

  Args:
    evaluation: The outputs for the evaluation split.
    index: The outputs for the training split.
    held_out: The outputs for training examples that were not trained on, for
      temperature scaling; None for none.
    has_classifier: Whether logits mean anything; otherwise their evaluations
      are left out.

  Returns:
    'metrics', {'EVALUATION/NAME': value}, see supcon/evaluation/registry.py;
    'map', with the 'positions' and 'labels' of its points, their coordinates
    'pca' and 'tsne' (None if it cannot be computed), the shares of the variance
    'explained' by two components, and the classes that are 'named';
    'neighbours', see `neighbours`. With a classifier also 'confusion_classes'
    and 'most_confused', see `most_confused`.

  Raises:
    ValueError: If an output is NaN or infinite.
  """
  names = (*_OF_LOGITS, *_OF_EMBEDDINGS) if has_classifier else _OF_EMBEDDINGS
  others = {'index': index}
  if held_out is not None:
    others['held_out'] = held_out
  log = logging.info if index.num_examples > _FEW else logging.debug
  metrics = {}
  for name in names:
    log('measuring %s', name)
    metrics |= registry.run([name], evaluation, **others)
  log('drawing maps of the embeddings')
  positions = embedding_maps.choose(evaluation.num_examples)
  points, explained = embedding_maps.principal_components(evaluation, positions)
  tsne = embedding_maps.tsne(evaluation, positions)
  found = {
    'metrics': metrics,
    'map': {
      'positions': positions.tolist(),
      'labels': evaluation.labels[positions].tolist(),
      'pca': points.tolist(),
      'explained': explained,
      'tsne': None if tsne is None else tsne.tolist(),
      'named': _largest(evaluation.labels[positions]),
    },
    'neighbours': neighbours(evaluation, index),
  }
  if has_classifier:
    shown, pairs = most_confused(
      np.array(metrics['classes/confusion']), _MAX_CONFUSED
    )
    found |= {'confusion_classes': shown.tolist(), 'most_confused': pairs}
  return found


def _largest(labels):
  """Returns the classes with the most examples, increasing."""
  counts = np.bincount(labels)
  # Stable, so that of classes of equal size the first ones are taken.
  order = np.argsort(-counts, kind='stable')[:_MAX_NAMED]
  return sorted(label for label in order.tolist() if counts[label])


def neighbours(
  evaluation: model_outputs.Outputs, index: model_outputs.Outputs
) -> list[dict[str, Any]]:
  """Returns the nearest training examples of one example per class.

  Args:
    evaluation: The outputs for the evaluation split.
    index: The outputs for the training split.

  Returns:
    For the first example of each of the first classes: 'id', 'position',
    'label', and 'neighbours', a list of the same with 'cosine', nearest first.
  """
  _, firsts = np.unique(evaluation.labels, return_index=True)
  positions = firsts[:_NUM_QUERIES]
  found, cosines = nearest.find(
    model_outputs.unit(np.asarray(evaluation.embeddings[positions])),
    (model_outputs.unit(rows) for _, rows in index.blocks('embeddings')),
    _NUM_NEIGHBOURS,
  )
  return [
    {
      **_example(evaluation, query),
      'neighbours': [
        {**_example(index, position), 'cosine': float(cosine)}
        for position, cosine in zip(found[row], cosines[row])
      ],
    }
    for row, query in enumerate(positions)
  ]


def _example(outputs, position):
  return {
    'id': outputs.name_of(position),
    'position': int(position),
    'label': int(outputs.labels[position]),
  }


def curves(table: str | None) -> dict[str, list[tuple[float, float]]]:
  """Returns {column: [(epoch, value), ...]} of a table of scalars.

  Args:
    table: The text of a metrics.csv, see supcon/runs/event_files.py; None if
      there is none. Long curves are thinned.

  Raises:
    ValueError: If it is no such table.
  """
  rows = list(csv.DictReader(io.StringIO(table or '')))
  rows = rows[:: math.ceil(len(rows) / _MAX_POINTS) or 1]
  found: dict[str, list[tuple[float, float]]] = {}
  for row in rows:
    if None in row or 'epoch' not in row or None in row.values():
      raise ValueError(f'a row of it is {row}')
    for column, text in row.items():
      if column not in ('step', 'epoch', 'stage') and text:
        value = float(text)
        if math.isfinite(value):
          found.setdefault(column, []).append((float(row['epoch']), value))
  return found


def changed(params: hparams.HParams) -> list[dict[str, str]]:
  """Returns the hyper-parameters that differ from their defaults."""
  return [
    {'flag': found.flag, 'value': found.text, 'default': default.text}
    for default in hparams.FIELDS
    if (found := params.field(default.path)).value != default.value
  ]


def most_confused(
  matrix: np.ndarray, num_classes: int
) -> tuple[np.ndarray, list[tuple[int, int, int]]]:
  """Returns the classes that are confused most, and the worst pairs.

  Args:
    matrix: Integers [C, C], the number of examples by label and prediction.
    num_classes: Maximum number of classes to return.

  Returns:
    int64, increasing: the classes of the worst pairs, or all classes if they
    are so few; and the worst ten pairs (label, prediction, count).
  """
  wrong = np.array(matrix)
  np.fill_diagonal(wrong, 0)
  order = np.argsort(-wrong, axis=None, kind='stable')
  pairs = [
    (*divmod(int(cell), len(wrong)), int(wrong.flat[cell]))
    for cell in itertools.islice(order, 10 * num_classes)
    if wrong.flat[cell]
  ]
  if len(wrong) <= num_classes:
    return np.arange(len(wrong)), pairs[:10]
  chosen: list[int] = []
  for label, predicted, _ in pairs:
    both = [c for c in (label, predicted) if c not in chosen]
    if len(chosen) + len(both) <= num_classes:
      chosen += both
  return np.sort(np.array(chosen, np.int64)), pairs[:10]


def errors_by_severity(
  evaluations: Mapping[str, Mapping[str, Any]],
) -> dict[str, list[tuple[int, float]]]:
  """Returns {corruption: [(severity, error), ...]}.

  Args:
    evaluations: {'CORRUPTION/SEVERITY': {'error', ...}}; what has another name,
      such as 'clean', is left out.
  """
  found: dict[str, list[tuple[int, float]]] = {}
  for name, measured in evaluations.items():
    corruption, _, severity = name.rpartition('/')
    if corruption:
      point = int(severity), float(measured['error'])
      found.setdefault(corruption, []).append(point)
  return {name: sorted(points) for name, points in found.items()}
