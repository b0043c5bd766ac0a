"""Tests of few-shot classification."""

import numpy as np
import pytest

from supcon.evaluation import few_shot
from tests.evaluation import made


def test_draws_so_many_of_each_class():
  labels = np.array([0, 1, 2, 0, 1, 0, 1, 1])
  taken = few_shot.draw(labels, 2, seed=0)
  assert taken.tolist() == sorted(taken)
  # Class 2 has only one.
  assert np.bincount(labels[taken]).tolist() == [2, 2, 1]
  np.testing.assert_array_equal(taken, few_shot.draw(labels, 2, seed=0))
  draws = {tuple(few_shot.draw(labels, 2, seed)) for seed in range(20)}
  assert len(draws) > 5


@pytest.mark.parametrize('num_rows, size', [(7, 3), (5, 9)])
def test_weights_minimise_the_regularised_squares(num_rows, size):
  random = np.random.default_rng(0)
  rows = random.standard_normal([num_rows, size])
  labels = np.arange(num_rows) % 3
  targets = np.where(labels[:, None] == np.arange(3), 1.0, -1.0)

  def loss(weights, bias):
    errors = rows @ weights + bias - targets
    return np.sum(errors**2) + 0.3 * np.sum(weights**2)

  weights, bias = few_shot.fit(rows, labels, 3, l2=0.3)
  least = loss(weights, bias)
  for _ in range(50):
    change = 1e-3 * random.standard_normal(weights.shape)
    shift = 1e-3 * random.standard_normal(bias.shape)
    assert loss(weights + change, bias + shift) > least


def test_mean_and_deviation_of_the_seeds():
  outputs, index = made.outputs(200), made.outputs(300, seed=1)
  alone = []
  for seed in range(3):
    taken = few_shot.draw(index.labels, 5, seed)
    unit = [
      rows / np.linalg.norm(rows, axis=1, keepdims=True)
      for rows in (index.embeddings[taken], outputs.embeddings)
    ]
    weights, bias = few_shot.fit(unit[0], index.labels[taken], 4, l2=0.1)
    predicted = np.argmax(unit[1] @ weights + bias, axis=1)
    alone.append(np.mean(predicted == outputs.labels))
  found = few_shot.run(outputs, index)
  assert list(found)[2:4] == ['5_shot', '5_shot_deviation']
  assert found['5_shot'] == pytest.approx(np.mean(alone))
  assert found['5_shot_deviation'] == pytest.approx(np.std(alone, ddof=1))
  assert found['5_shot'] > found['1_shot']


def test_too_few_images():
  # Two of each of four classes.
  index = made.of_embeddings(np.eye(8), np.arange(8) % 4)
  found = few_shot.run(index, index)
  assert list(found) == ['1_shot', '1_shot_deviation']
  assert found['1_shot'] == pytest.approx(0.5, abs=0.13)


def test_one_class_and_an_empty_class():
  assert few_shot.run(made.outputs(5, 1), made.outputs(20, 1))['5_shot'] == 1
  index = made.of_embeddings([[1, 0], [-1, 0]], [0, 2], num_classes=4)
  outputs = made.of_embeddings([[1, 0], [9, 0]], [0, 3], num_classes=4)
  assert few_shot.run(outputs, index)['1_shot'] == 0.5


def test_an_index_of_another_size_is_refused():
  with pytest.raises(ValueError, match='size 9, but the examples 8'):
    few_shot.run(made.outputs(5), made.outputs(5, size=9))
