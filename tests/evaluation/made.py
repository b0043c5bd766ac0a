"""Outputs of models, made up for the tests of evaluations."""

import numpy as np

from supcon.evaluation import model_outputs


def outputs(num_examples, num_classes=4, size=8, seed=0, skill=1.0, **changes):
  """Returns outputs that are right now and then, the more so with `skill`."""
  random = np.random.default_rng(seed)
  labels = random.integers(0, num_classes, num_examples)
  is_label = labels[:, np.newaxis] == np.arange(num_classes)
  centers = np.random.default_rng(99).standard_normal([num_classes, size])
  arrays = {
    'labels': labels,
    'logits': skill * is_label
    + random.standard_normal([num_examples, num_classes]),
    'embeddings': skill * centers[labels]
    + random.standard_normal([num_examples, size]),
  }
  return model_outputs.Outputs(
    **{
      name: np.asarray(values, values.dtype if name == 'labels' else np.float32)
      for name, values in arrays.items()
    }
    | changes
  )


def of_logits(logits, labels, **kwargs):
  logits = np.asarray(logits, np.float32)
  return model_outputs.Outputs(
    np.asarray(labels), logits, np.ones([len(logits), 2], np.float32), **kwargs
  )


def of_embeddings(embeddings, labels, num_classes=None, **kwargs):
  labels = np.asarray(labels)
  num_classes = num_classes or labels.max() + 1
  return model_outputs.Outputs(
    labels,
    np.zeros([len(labels), num_classes], np.float32),
    np.asarray(embeddings, np.float32),
    **kwargs,
  )


def softmax(row):
  row = np.exp(row.astype(np.float64) - max(row))
  return row / sum(row)
