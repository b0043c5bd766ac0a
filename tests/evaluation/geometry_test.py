"""Tests of alignment and uniformity."""

import math

import numpy as np
import pytest

from supcon.evaluation import geometry
from tests.evaluation import made


def _by_loop(outputs):
  rows = outputs.embeddings.astype(np.float64)
  rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
  distances, positives = [], []
  for i in range(len(rows)):
    for j in range(i):
      distances.append(sum((rows[i] - rows[j]) ** 2))
      if outputs.labels[i] == outputs.labels[j]:
        positives.append(distances[-1])
  return {
    'alignment': np.mean(positives),
    'uniformity': math.log(np.mean(np.exp(-2 * np.array(distances)))),
  }


@pytest.mark.parametrize('skill', [0.1, 3.0, 100.0])
def test_values_are_those_of_loops(skill, monkeypatch):
  monkeypatch.setattr(geometry, '_ROWS_AT_A_TIME', 32)
  outputs = made.outputs(150, skill=skill)
  assert geometry.run(outputs) == pytest.approx(_by_loop(outputs), abs=1e-6)


def test_by_hand():
  # Squared distances of 0, 90 and 180 degrees: 2, 2, 4; the first pair is one
  # of equals.
  outputs = made.of_embeddings([[2, 0], [0, 5], [-1, 0]], [0, 0, 1])
  found = geometry.run(outputs)
  assert found['alignment'] == pytest.approx(2)
  assert found['uniformity'] == pytest.approx(
    math.log((2 * math.exp(-4) + math.exp(-8)) / 3)
  )


def test_collapsed_embeddings():
  outputs = made.of_embeddings(np.ones([50, 3]), np.arange(50) % 2)
  assert geometry.run(outputs) == pytest.approx(
    {'alignment': 0, 'uniformity': 0}, abs=1e-6
  )


def test_without_pairs_there_is_nothing_to_say():
  assert geometry.run(made.of_embeddings([[1, 0]], [0])) == {}
  two = made.of_embeddings([[1, 0], [0, 1]], [0, 1])
  assert list(geometry.run(two)) == ['uniformity']
