"""How embeddings lie on the sphere: alignment and uniformity.

Understanding Contrastive Representation Learning through Alignment and
Uniformity on the Hypersphere, https://arxiv.org/abs/2005.10242. Positive pairs
are examples of the same class, as in the supervised contrastive loss.
"""

import math

import numpy as np

from supcon.evaluation import model_outputs

_ROWS_AT_A_TIME = 2048


def run(outputs: model_outputs.Outputs) -> dict[str, float]:
  """Returns alignment and uniformity of the embeddings at unit length.

  Both are smaller for better embeddings. Time grows with the square of N:
  10,000 examples take about a second, 50,000 half a minute.

  Args:
    outputs: The outputs for N examples.

  Returns:
    'alignment', the mean of |x - y|^2 over all pairs of the same class, 0 to 4;
    'uniformity', the logarithm of the mean of exp(-2 |x - y|^2) over all pairs,
    -8 to 0. What has no pairs is left out.

  Raises:
    ValueError: If an embedding is NaN or infinite.
  """
  rows = np.empty(outputs.embeddings.shape, np.float32)
  for block, embeddings in outputs.blocks('embeddings'):
    rows[block] = model_outputs.unit(embeddings)
  result = {}
  if (alignment := _alignment(rows, outputs)) is not None:
    result['alignment'] = alignment
  if outputs.num_examples > 1:
    result['uniformity'] = _uniformity(rows)
  return result


def _alignment(rows, outputs):
  """Returns the mean over pairs of a class, without looking at each.

  The squared distances of all ordered pairs of a class add up to
  2 (n sum |x|^2 - |sum x|^2).
  """
  sums = np.zeros([outputs.num_classes, rows.shape[1]])
  squares = np.zeros([outputs.num_classes])
  for start in range(0, len(rows), _ROWS_AT_A_TIME):
    some = slice(start, start + _ROWS_AT_A_TIME)
    block = rows[some].astype(np.float64)
    np.add.at(sums, outputs.labels[some], block)
    np.add.at(squares, outputs.labels[some], np.square(block).sum(axis=1))
  counts = np.bincount(outputs.labels, minlength=outputs.num_classes)
  num_pairs = (counts * (counts - 1)).sum()
  if not num_pairs:
    return None
  total = 2 * (counts * squares - np.square(sums).sum(axis=1)).sum()
  return float(max(total, 0) / num_pairs)


def _uniformity(rows):
  squares = np.einsum('ij,ij->i', rows, rows)
  total = 0.0
  for start in range(0, len(rows), _ROWS_AT_A_TIME):
    some = slice(start, start + _ROWS_AT_A_TIME)
    for other in range(start, len(rows), _ROWS_AT_A_TIME):
      others = slice(other, other + _ROWS_AT_A_TIME)
      exponents = rows[some] @ rows[others].T
      exponents *= 4
      exponents -= 2 * squares[some, np.newaxis]
      exponents -= 2 * squares[others]
      np.exp(exponents, out=exponents)
      if other == start:
        np.fill_diagonal(exponents, 0)  # Each pair twice, and no example's own.
        total += exponents.sum(dtype=np.float64) / 2
      else:
        total += exponents.sum(dtype=np.float64)
  return math.log(total / (len(rows) * (len(rows) - 1) / 2))
