"""What is taken for what: results per class, and the worst mistakes."""

import heapq
from typing import Any

import numpy as np

from supcon.evaluation import model_outputs


def run(
  outputs: model_outputs.Outputs, num_mistakes: int = 20
) -> dict[str, Any]:
  """Returns results per class.

  What is undefined is None and does not enter a mean: the recall of a class
  without examples, the precision of one that is never predicted, the F1 of one
  with neither.

  Args:
    outputs: The outputs for N examples.
    num_mistakes: Maximum number of mistakes to list.

  Returns:
    'macro_precision', 'macro_recall' and 'macro_f1', means over classes;
    'per_class', a list of {'class', 'count', 'precision', 'recall', 'f1'};
    'confusion', the number of examples by label and prediction, [C][C];
    'mistakes', a list of {'id', 'position', 'label', 'predicted',
    'probability'}, the most confident first, of equal ones that of the lower
    position.

  Raises:
    ValueError: If a logit is NaN or infinite.
  """
  num_classes = outputs.num_classes
  confusion = np.zeros([num_classes, num_classes], np.int64)
  mistakes = []
  for block, logits in outputs.blocks('logits'):
    labels = outputs.labels[block]
    predicted = logits.argmax(axis=1)
    np.add.at(confusion, (labels, predicted), 1)
    wrong = np.flatnonzero(predicted != labels)
    logs = model_outputs.log_softmax(logits[wrong])
    probabilities = np.exp(logs[np.arange(len(wrong)), predicted[wrong]])
    mistakes = heapq.nsmallest(
      num_mistakes,
      [
        *mistakes,
        *zip(
          (-probabilities).tolist(),
          (block.start + wrong).tolist(),
          predicted[wrong].tolist(),
        ),
      ],
    )
  hits = confusion.diagonal()
  of_class, of_prediction = confusion.sum(axis=1), confusion.sum(axis=0)
  columns = {
    'precision': _ratios(hits, of_prediction),
    'recall': _ratios(hits, of_class),
    'f1': _ratios(2 * hits, of_class + of_prediction),
  }
  return {
    **{f'macro_{name}': _mean(values) for name, values in columns.items()},
    'per_class': [
      {
        'class': outputs.class_of(label),
        'count': int(of_class[label]),
        **{name: values[label] for name, values in columns.items()},
      }
      for label in range(num_classes)
    ],
    'confusion': confusion.tolist(),
    'mistakes': [
      {
        'id': outputs.name_of(position),
        'position': position,
        'label': int(outputs.labels[position]),
        'predicted': prediction,
        'probability': -negative,
      }
      for negative, position, prediction in mistakes
    ],
  }


def _ratios(parts, wholes):
  return [int(a) / int(b) if b else None for a, b in zip(parts, wholes)]


def _mean(values):
  known = [value for value in values if value is not None]
  return float(np.mean(known)) if known else None
