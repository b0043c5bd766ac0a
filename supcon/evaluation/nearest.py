"""Exact search for the nearest of many rows, block by block.

Cosine similarities are rounded to 2^-24, the precision of float32 values near
1. Among equal ones, the lower position comes first. A neighbour is one uint64:
its distance in steps of 2^-24 in the upper half, its position in the lower
half. So the smallest numbers are the nearest neighbours, in their order.
"""

from collections.abc import Iterable

import numpy as np

_QUERIES_AT_A_TIME = 256
_STEPS = 2**24
# The distance of a cosine similarity of 0. Cosines may exceed 1 by rounding.
_ZERO = 2 * _STEPS
_NONE = np.uint64(2**64 - 1)


def find(
  queries: np.ndarray, blocks: Iterable[np.ndarray], k: int
) -> tuple[np.ndarray, np.ndarray]:
  """Finds the nearest rows by cosine similarity, among all.

  Products are computed in the type of the rows. In float32 their error is about
  1e-7, so rows whose similarities differ by less may change places; in float64
  the order is exact. Besides queries and result, a block and its products with
  256 queries are held.

  Args:
    queries: float32 or float64 [Q, D], of unit length or zero.
    blocks: The rows to search, in blocks [n, D] of the same kind; fewer than
      2^32 rows in all.
    k: Number of results, at least 1; with fewer rows, all of them.

  Returns:
    int64 [Q, k], positions of rows, nearest first; float32 [Q, k], their cosine
    similarities, in [-1, 1].
  """
  best = np.full([len(queries), k], _NONE)
  start = 0
  for block in blocks:
    for first in range(0, len(queries), _QUERIES_AT_A_TIME):
      some = slice(first, first + _QUERIES_AT_A_TIME)
      _improve(best[some], queries[some] @ block.T, start)
    start += len(block)
  best = np.sort(best, axis=1)[:, : min(k, start)]
  return (best & np.uint64(2**32 - 1)).astype(np.int64), np.clip(
    _cosines(best), -1, 1
  )


def _improve(best, cosines, start):
  """Lets a block compete with the best so far, uint64 [Q, k], in place.

  Args:
    best: The best so far, in any order; all `_NONE` if there are too few.
    cosines: [Q, n], those of a block.
    start: The position of its first row.
  """
  k, num_rows = best.shape[1], cosines.shape[1]
  # Only a row above the bound can be among the best. Equal ones come later.
  last = best.max(axis=1)
  bound = np.where(last == _NONE, -np.inf, _cosines(last))
  if np.isneginf(bound).any() and num_rows >= 8 * k:
    # At least k rows are as near as the k-th of the maxima of groups. Two steps
    # less, because different values may be rounded to the same one.
    num_groups = 4 * k
    grouped = cosines[:, : num_rows // num_groups * num_groups]
    maxima = grouped.reshape([len(best), -1, num_groups]).max(axis=1)
    maxima.partition(num_groups - k, axis=1)
    bound = np.maximum(bound, maxima[:, num_groups - k] - 2 / _STEPS)
  hits = np.flatnonzero(cosines > bound[:, np.newaxis].astype(cosines.dtype))
  if not len(hits):
    return
  queries, columns = np.divmod(hits, num_rows)
  steps = np.rint(cosines.reshape(-1)[hits] * _STEPS).astype(np.int64)
  counts = np.bincount(queries, minlength=len(best))
  slots = np.arange(len(hits)) - np.repeat(np.cumsum(counts) - counts, counts)
  merged = np.full([len(best), k + counts.max()], _NONE)
  merged[:, :k] = best
  merged[queries, k + slots] = (_ZERO - steps) << 32 | (start + columns)
  merged.partition(k - 1, axis=1)
  best[:] = merged[:, :k]


def _cosines(neighbours):
  """Returns float32 similarities; exact, since they are rounded."""
  steps = _ZERO - (neighbours >> np.uint64(32)).astype(np.int64)
  return (steps / _STEPS).astype(np.float32)
