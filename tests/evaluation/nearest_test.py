"""Tests of the search for nearest rows."""

import numpy as np
import pytest

from supcon.evaluation import nearest


def _by_sorting(queries, rows, k):
  cosines = np.rint(queries.astype(np.float64) @ rows.T * 2**24) / 2**24
  order = np.argsort(-cosines, axis=1, kind='stable')[:, :k]
  return order, np.take_along_axis(cosines, order, axis=1)


def _blocks(rows, size):
  return (rows[i : i + size] for i in range(0, len(rows), size))


@pytest.mark.parametrize('dtype', [np.float32, np.float64])
@pytest.mark.parametrize('size', [1, 64, 1000])
@pytest.mark.parametrize('k', [1, 5, 50, 400, 403])
def test_the_result_is_that_of_sorting(k, size, dtype):
  # Quarters: all products are exact, and most of them are ties.
  random = np.random.default_rng(k)
  rows = random.integers(-4, 5, [400, 3]).astype(dtype) / 8
  queries = random.integers(-4, 5, [260, 3]).astype(dtype) / 8
  positions, cosines = nearest.find(queries, _blocks(rows, size), k)
  expected_positions, expected_cosines = _by_sorting(queries, rows, k)
  np.testing.assert_array_equal(positions, expected_positions)
  np.testing.assert_array_equal(cosines, expected_cosines)
  assert positions.dtype == np.int64 and cosines.dtype == np.float32


def test_rounded_similarities_decide():
  # They differ by less than a step, so they are equal: the first is nearer.
  rows = np.array([[0.5], [0.5 + 2**-26], [0.5 + 2**-23]])
  positions, _ = nearest.find(np.ones([1, 1]), [rows], 3)
  assert positions.tolist() == [[2, 0, 1]]


def test_rows_that_are_all_equal_come_in_order():
  rows = np.ones([5000, 1], np.float32)
  positions, cosines = nearest.find(rows[:3], _blocks(rows, 1600), 200)
  assert positions.tolist() == [list(range(200))] * 3
  assert np.all(cosines == 1)
