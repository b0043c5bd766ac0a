"""Tests of the outputs that evaluations look at."""

import numpy as np
import pytest

from supcon.evaluation import model_outputs
from tests.evaluation import made


def test_blocks_cover_an_array_in_order():
  outputs = made.outputs(10)
  blocks = list(outputs.blocks('logits', num_rows=4))
  assert [block for block, _ in blocks] == [
    slice(0, 4),
    slice(4, 8),
    slice(8, 10),
  ]
  np.testing.assert_array_equal(
    np.concatenate([rows for _, rows in blocks]), outputs.logits
  )


def test_arrays_that_are_not_finite_are_named_by_example():
  embeddings = np.ones([9, 2], np.float32)
  embeddings[[1, 4, 5, 7, 8], [0, 1, 0, 1, 0]] = [np.nan, np.inf, *[np.nan] * 3]
  outputs = made.of_embeddings(
    embeddings, np.zeros(9, int), ids=[f'{i}.png' for i in range(9)]
  )
  with pytest.raises(
    ValueError,
    match=r'^the embeddings of example 1.png, 4.png, 5.png and 2 more are NaN',
  ):
    list(outputs.blocks('embeddings', num_rows=9))


@pytest.mark.parametrize(
  'changes, says',
  [
    ({'labels': np.zeros(3, int)}, "'labels': 3, 'logits': 10"),
    ({'ids': ['a']}, "'ids': 1"),
    ({'labels': np.full(10, 4)}, 'label of example 0 is 4; expected 0 to 3'),
    (
      {'labels': np.array([0] * 9 + [-1])},
      'label of example 9 is -1; expected',
    ),
  ],
)
def test_arrays_that_do_not_match_are_refused(changes, says):
  with pytest.raises(ValueError, match=says):
    made.outputs(10, **changes)


def test_no_examples_are_refused():
  with pytest.raises(ValueError, match="'labels': 0"):
    made.outputs(0)


def test_rows_get_unit_length_and_zeros_stay():
  rows = np.array([[3, 4], [0, 0], [1e-30, 0]], np.float32)
  unit = model_outputs.unit(rows)
  assert unit.dtype == np.float32
  np.testing.assert_allclose(unit, [[0.6, 0.8], [0, 0], [1, 0]], rtol=1e-6)


def test_log_softmax_of_large_logits_is_finite():
  logs = model_outputs.log_softmax(np.float32([[1e30, 0], [0, 0]]))
  np.testing.assert_allclose(logs, [[0, -1e30], [-np.log(2)] * 2], rtol=1e-6)
