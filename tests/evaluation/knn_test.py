"""Tests of kNN classification."""

import math
import tracemalloc

import numpy as np
import pytest

from supcon.evaluation import knn
from supcon.evaluation import model_outputs
from tests.evaluation import made


def _by_loop(outputs, index, k, temperature):
  """The share of right votes, from the definition."""
  hits = 0
  for query, label in zip(outputs.embeddings, outputs.labels):
    cosines = []
    for position, row in enumerate(index.embeddings.astype(np.float64)):
      length = np.linalg.norm(row) * np.linalg.norm(query.astype(np.float64))
      cosines.append((-(row @ query) / length, position))
    votes = [0.0] * index.num_classes
    for negative, position in sorted(cosines)[:k]:
      votes[index.labels[position]] += math.exp(-negative / temperature)
    hits += votes.index(max(votes)) == label
  return hits / len(outputs.labels)


def test_the_grid_is_that_of_a_loop():
  outputs = made.outputs(60, skill=0.8)
  index = made.outputs(250, skill=0.8, seed=1)
  found = knn.run(outputs, index)
  assert list(found) == list(knn.TAGS)
  for k in knn.KS:
    for t in knn.TEMPERATURES:
      assert found[knn.tag(k, t)] == pytest.approx(
        _by_loop(outputs, index, k, t)
      )
  # Something has been learned, and k matters.
  assert 0.4 < min(found.values()) < max(found.values()) < 0.95


def _classes_of(queries, index, ks, temperature=0.1):
  outputs = made.of_embeddings(
    queries, np.zeros(len(queries), int), index.num_classes
  )
  found = {k: [] for k in ks}
  for _, part in knn.predictions(outputs, index, ks, [temperature]):
    for (k, _), predicted in part.items():
      found[k] += predicted.tolist()
  return found


def test_near_neighbours_weigh_more():
  # At 0, 60 and 60 degrees: 1 against 2 exp(-0.5 / T).
  half = 3**0.5 / 2
  index = made.of_embeddings([[1, 0], [0.5, half], [0.5, -half]], [0, 1, 1])
  assert _classes_of([[7, 0]], index, [1, 3], 0.1) == {1: [0], 3: [0]}
  # 2 exp(-0.5) = 1.21.
  assert _classes_of([[7, 0]], index, [1, 3], 1.0) == {1: [0], 3: [1]}


def test_equal_neighbours_and_equal_votes():
  # All are as near: the first ones are taken.
  index = made.of_embeddings([[1, 0]] * 4, [2, 1, 1, 0])
  assert _classes_of([[1, 0]], index, [1, 2, 3, 4]) == {
    1: [2],
    2: [1],  # One vote each for 2 and 1: the lower class.
    3: [1],
    4: [1],
  }


def test_any_temperature_gives_finite_votes():
  index = made.of_embeddings([[1, 0], [0, 1]], [0, 1])
  for temperature in (1e-6, 1e6):
    assert _classes_of([[1, 0.1]], index, [2], temperature) == {2: [0]}


def test_more_neighbours_than_examples_are_left_out():
  found = knn.run(made.outputs(5), made.outputs(19, seed=1))
  assert list(found) == ['k1_t0.07', 'k1_t0.1', 'k10_t0.07', 'k10_t0.1']


def test_one_class_and_an_empty_class():
  assert set(knn.run(made.outputs(5, 1), made.outputs(30, 1)).values()) == {1.0}
  # Nothing is taken for a class that the index lacks.
  index = made.of_embeddings([[1, 0], [0, 1]], [0, 2], num_classes=4)
  outputs = made.of_embeddings([[1, 0], [1, 0]], [0, 3], num_classes=4)
  assert knn.run(outputs, index, ks=(1,), temperatures=(0.1,)) == {
    'k1_t0.1': 0.5
  }


@pytest.mark.parametrize(
  'index, says',
  [
    ({'size': 9}, 'embeddings of size 9, but the examples 8; make it with'),
    ({'num_classes': 5}, 'classes: 5, but the examples 4; make it with'),
  ],
)
def test_an_index_of_another_model_is_refused(index, says):
  with pytest.raises(ValueError, match=says):
    knn.run(made.outputs(5), made.outputs(20, **index))


@pytest.mark.parametrize('is_index', [False, True])
def test_embeddings_that_are_not_finite_are_refused(is_index):
  both = [made.outputs(30), made.outputs(30)]
  both[is_index].embeddings[7, 2] = np.nan
  with pytest.raises(ValueError, match='embeddings of example 7 are NaN'):
    knn.run(*both)


def test_an_index_on_disk_is_read_in_bounded_memory(tmp_path, monkeypatch):
  monkeypatch.setattr(model_outputs, '_NUMBERS_AT_A_TIME', 2**14)
  outputs, size = made.outputs(20, size=64), 64

  def peak(num_examples):
    path = tmp_path / str(num_examples)
    whole = made.outputs(num_examples, size=size, seed=1)
    whole.embeddings.tofile(path)
    index = model_outputs.Outputs(
      whole.labels,
      whole.logits,
      np.memmap(path, np.float32, 'r', shape=(num_examples, size)),
    )
    del whole
    tracemalloc.start()
    found = knn.run(outputs, index)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(found) == 10
    return most

  peak(4000)
  # 16,000 more rows are 4 MB.
  assert peak(20000) < peak(4000) + 200_000
