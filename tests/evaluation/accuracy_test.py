"""Tests of top-k accuracy."""

import pytest

from supcon.evaluation import accuracy
from tests.evaluation import made


def test_top_k_by_hand():
  # Ranks of the labels: 0, 1, 2, 2.
  logits = [[3, 2, 1], [3, 2, 1], [3, 2, 1], [1, 3, 2]]
  found = accuracy.run(made.of_logits(logits, [0, 1, 2, 0]), ks=(1, 2, 3, 5))
  assert found == {'top_1': 0.25, 'top_2': 0.5, 'top_3': 1, 'top_5': 1}


def test_the_first_of_equal_logits_is_the_largest():
  outputs = made.of_logits([[1, 1, 1]] * 3, [0, 1, 2])
  assert accuracy.run(outputs, ks=(1, 2)) == {
    'top_1': pytest.approx(1 / 3),
    'top_2': pytest.approx(2 / 3),
  }


def test_one_class():
  assert accuracy.run(made.of_logits([[1]] * 3, [0] * 3), ks=(1,)) == {
    'top_1': 1
  }
