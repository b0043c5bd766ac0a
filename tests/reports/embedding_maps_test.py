"""Tests of embeddings as points in the plane."""

import sys

import numpy as np
import pytest

from supcon.reports import embedding_maps
from tests.evaluation import made


def test_principal_components_are_those_of_a_decomposition():
  outputs = made.outputs(50, size=6)
  positions = np.array([0, 7, 49])
  points, explained = embedding_maps.principal_components(outputs, positions)
  rows = outputs.embeddings.astype(np.float64)
  rows /= np.linalg.norm(rows, axis=1, keepdims=True)
  centered = rows - rows.mean(axis=0)
  _, deviations, directions = np.linalg.svd(centered)
  shares = deviations**2 / (deviations**2).sum()
  np.testing.assert_allclose(explained, shares[:2], rtol=1e-9)
  for place in (0, 1):
    direction = directions[place]
    direction *= np.sign(direction[abs(direction).argmax()])
    np.testing.assert_allclose(
      points[:, place], centered[positions] @ direction, atol=1e-9
    )


@pytest.mark.parametrize('size', [1, 3])
def test_collapsed_embeddings_are_one_point(size):
  outputs = made.of_embeddings(np.ones([12, size]), [0] * 12)
  positions = np.arange(12)
  points, explained = embedding_maps.principal_components(outputs, positions)
  np.testing.assert_allclose(points, np.zeros([12, 2]), atol=1e-7)
  assert explained == [0, 0]
  assert embedding_maps.tsne(outputs, positions) is None


def test_points_are_all_examples_or_some_of_them_always_the_same():
  assert embedding_maps.choose(4).tolist() == [0, 1, 2, 3]
  some = embedding_maps.choose(10**6)
  assert len(some) == embedding_maps.MAX_POINTS == len({*some.tolist()})
  assert (np.diff(some) > 0).all()
  assert (some == embedding_maps.choose(10**6)).all()
  # Digits that follow one another in turn are all among them.
  assert len({*(embedding_maps.choose(100, 50) % 10).tolist()}) == 10


def test_tsne_needs_scikit_learn(monkeypatch):
  monkeypatch.setitem(sys.modules, 'sklearn', None)
  assert embedding_maps.tsne(made.outputs(20), np.arange(20)) is None


def test_tsne_keeps_clusters_apart():
  pytest.importorskip('sklearn')
  rows = (
    np.repeat(np.eye(3), 10, axis=0)
    + made.outputs(30, size=3).logits[:, :3] * 0.01
  )
  outputs = made.of_embeddings(rows, np.repeat([0, 1, 2], 10))
  points = embedding_maps.tsne(outputs, np.arange(30))
  centers = points.reshape([3, 10, 2]).mean(axis=1)
  spread = np.abs(points.reshape([3, 10, 2]) - centers[:, np.newaxis]).max()
  distances = np.linalg.norm(centers - np.roll(centers, 1, axis=0), axis=1)
  assert distances.min() > 2 * spread
