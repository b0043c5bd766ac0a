"""What a linear classifier learns from a few images of each class.

Regularised least squares on embeddings, in closed form, as in the few-shot
evaluations of https://arxiv.org/abs/1912.11370.
"""

from collections.abc import Sequence

import numpy as np

from supcon.evaluation import model_outputs


def run(
  outputs: model_outputs.Outputs,
  index: model_outputs.Outputs,
  shots: Sequence[int] = (1, 5, 10),
  num_seeds: int = 3,
  l2: float = 0.1,
) -> dict[str, float]:
  """Returns accuracies for several numbers of training images a class.

  Args:
    outputs: The outputs for N examples.
    index: The outputs for the training split, from which images are drawn. A
      class with fewer images contributes all of them.
    shots: Numbers of images a class. One that no class has is left out.
    num_seeds: Number of draws, with the seeds 0, 1, 2 ...
    l2: Weight of the squared norm of the weights, without the bias. Embeddings
      have unit length, and targets are 1 and -1.

  Returns:
    'N_shot', the mean of the accuracies; 'N_shot_deviation', their standard
    deviation (of a sample), 0 for one seed.

  Raises:
    ValueError: If an embedding is NaN or infinite, or sizes differ.
  """
  if index.embeddings.shape[1] != outputs.embeddings.shape[1]:
    raise ValueError(
      f'the index has embeddings of size {index.embeddings.shape[1]}, but the '
      f'examples {outputs.embeddings.shape[1]}; make it with the same model.'
    )
  most = np.bincount(index.labels).max()
  shots = [n for n in shots if n <= most]
  draws = {
    (n, seed): draw(index.labels, n, seed)
    for n in shots
    for seed in range(num_seeds)
  }
  classifiers = {
    key: fit(_rows(index, taken), index.labels[taken], index.num_classes, l2)
    for key, taken in draws.items()
  }
  hits = dict.fromkeys(draws, 0)
  for block, rows in outputs.blocks('embeddings'):
    rows = model_outputs.unit(rows.astype(np.float64))
    for key, (weights, bias) in classifiers.items():
      predicted = (rows @ weights + bias).argmax(axis=1)
      hits[key] += int((predicted == outputs.labels[block]).sum())
  result = {}
  for n in shots:
    found = [hits[n, seed] / outputs.num_examples for seed in range(num_seeds)]
    result[f'{n}_shot'] = float(np.mean(found))
    result[f'{n}_shot_deviation'] = (
      float(np.std(found, ddof=1)) if num_seeds > 1 else 0.0
    )
  return result


def draw(labels: np.ndarray, shots: int, seed: int) -> np.ndarray:
  """Returns int64, increasing: the positions of `shots` examples a class."""
  order = np.random.default_rng(seed).permutation(len(labels))
  # Stable, so the examples of a class stay in random order.
  order = order[np.argsort(labels[order], kind='stable')]
  sorted_labels = labels[order]
  rank = np.arange(len(order)) - np.searchsorted(sorted_labels, sorted_labels)
  return np.sort(order[rank < shots])


def _rows(index, positions):
  """Returns float64 rows at unit length; checks them."""
  part = model_outputs.Outputs(
    index.labels[positions],
    index.logits[positions],
    index.embeddings[positions],
    ids=[index.name_of(position) for position in positions],
  )
  return np.concatenate(
    [
      model_outputs.unit(rows.astype(np.float64))
      for _, rows in part.blocks('embeddings')
    ]
  )


def fit(
  rows: np.ndarray, labels: np.ndarray, num_classes: int, l2: float
) -> tuple[np.ndarray, np.ndarray]:
  """Returns the weights [D, C] and the bias [C] of least squares.

  They minimise |rows weights + bias - targets|^2 + l2 |weights|^2, where the
  target is 1 for the label and -1 for other classes. The smaller one of two
  equivalent systems is solved, with as many unknowns as rows or columns.

  Args:
    rows: float64 [n, D].
    labels: Integers [n].
    num_classes: C. The bias of a class without rows is -inf.
    l2: Python float > 0.
  """
  targets = 2.0 * (labels[:, np.newaxis] == np.arange(num_classes)) - 1
  mean, target_mean = rows.mean(axis=0), targets.mean(axis=0)
  x, y = rows - mean, targets - target_mean
  if len(x) < x.shape[1]:
    weights = x.T @ np.linalg.solve(x @ x.T + l2 * np.eye(len(x)), y)
  else:
    weights = np.linalg.solve(x.T @ x + l2 * np.eye(x.shape[1]), x.T @ y)
  is_known = np.isin(np.arange(num_classes), labels)
  return weights, np.where(is_known, target_mean - mean @ weights, -np.inf)
