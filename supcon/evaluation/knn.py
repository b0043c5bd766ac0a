"""Weighted k-nearest-neighbour classification of embeddings.

Unsupervised Feature Learning via Non-Parametric Instance Discrimination,
https://arxiv.org/abs/1805.01978, section 3.4. Published figures differ in k and
temperature, so the whole grid is reported.
"""

from collections.abc import Iterator
from collections.abc import Sequence

import numpy as np

from supcon.evaluation import model_outputs
from supcon.evaluation import nearest

KS = (1, 10, 20, 100, 200)
TEMPERATURES = (0.07, 0.1)
_QUERIES_AT_A_TIME = 1024


def tag(k: int, temperature: float) -> str:
  """Returns the name of an accuracy, such as k20_t0.07."""
  return f'k{k}_t{temperature:g}'


TAGS = tuple(tag(k, t) for k in KS for t in TEMPERATURES)


def run(
  outputs: model_outputs.Outputs,
  index: model_outputs.Outputs,
  ks: Sequence[int] = KS,
  temperatures: Sequence[float] = TEMPERATURES,
) -> dict[str, float]:
  """Returns {'kK_tT': the accuracy of the vote of K neighbours}.

  A K greater than the number of index examples is left out. The index is read
  once, block by block, so it may be a memmap of any size.

  Args:
    outputs: The outputs for N examples.
    index: The outputs for the training split, preprocessed as in an evaluation.
    ks: Numbers of neighbours.
    temperatures: The temperatures T of the votes.

  Raises:
    ValueError: If the index is of other embeddings or classes, or an embedding
      is NaN or infinite.
  """
  ks = [k for k in sorted(ks) if k <= index.num_examples]
  hits = dict.fromkeys(((k, t) for k in ks for t in temperatures), 0)
  for block, found in predictions(outputs, index, ks, temperatures):
    for key, predicted in found.items():
      hits[key] += int((predicted == outputs.labels[block]).sum())
  return {tag(*key): n / outputs.num_examples for key, n in hits.items()}


def predictions(
  outputs: model_outputs.Outputs,
  index: model_outputs.Outputs,
  ks: Sequence[int],
  temperatures: Sequence[float],
) -> Iterator[tuple[slice, dict[tuple[int, float], np.ndarray]]]:
  """Classifies examples by the votes of their nearest neighbours.

  The k examples of the index with the largest cosine similarity s vote
  exp(s / T) for their class. Similarities are products in float32, rounded to
  2^-24; among equal ones, the lower position in the index is nearer. Among
  classes with equal votes, the lower one wins.

  Args:
    outputs, index, temperatures: See `run`.
    ks: Numbers of neighbours, increasing, at most as many as the index has.

  Yields:
    The positions of some examples, and {(k, T): int64 [n], their classes}.

  Raises:
    ValueError: See `run`.
  """
  _check(outputs, index)
  queries = np.empty(outputs.embeddings.shape, np.float32)
  for block, rows in outputs.blocks('embeddings'):
    queries[block] = model_outputs.unit(rows)
  positions, cosines = nearest.find(
    queries,
    (model_outputs.unit(rows) for _, rows in index.blocks('embeddings')),
    max(ks),
  )
  for start in range(0, len(queries), _QUERIES_AT_A_TIME):
    some = slice(start, min(start + _QUERIES_AT_A_TIME, len(queries)))
    labels = np.asarray(index.labels)[positions[some]]
    yield (
      some,
      {
        (k, t): predicted
        for t in temperatures
        for k, predicted in zip(
          ks, _votes(labels, cosines[some], ks, t, index.num_classes)
        )
      },
    )


def _votes(labels, cosines, ks, temperature, num_classes):
  """Yields the classes that the first k neighbours elect, for each k."""
  # The largest vote is 1, so that no temperature makes it infinite.
  weights = np.exp((cosines.astype(np.float64) - cosines[:, :1]) / temperature)
  cells = labels + num_classes * np.arange(len(labels))[:, np.newaxis]
  votes = np.zeros([len(labels) * num_classes])
  done = 0
  for k in ks:
    votes += np.bincount(
      cells[:, done:k].reshape(-1), weights[:, done:k].reshape(-1), len(votes)
    )
    done = k
    yield votes.reshape([len(labels), num_classes]).argmax(axis=1)


def _check(outputs, index):
  for what, mine, other in (
    (
      'embeddings of size',
      outputs.embeddings.shape[1],
      index.embeddings.shape[1],
    ),
    ('classes:', outputs.num_classes, index.num_classes),
  ):
    if mine != other:
      raise ValueError(
        f'the index has {what} {other}, but the examples {mine}; make it with '
        'the same model.'
      )
