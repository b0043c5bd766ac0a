"""Embeddings as points in the plane."""

import importlib.util

import numpy as np

from supcon.evaluation import model_outputs

# More points could not be told apart, and t-SNE of them takes long.
MAX_POINTS = 2000
_MIN_POINTS_OF_TSNE = 10


def choose(num_examples: int, max_points: int = MAX_POINTS) -> np.ndarray:
  """Returns int64: which examples become points, by increasing position.

  They are drawn at random, always the same ones: at equal distances there might
  be points of a few classes only.
  """
  rng = np.random.default_rng(0)
  count = min(num_examples, max_points)
  return np.sort(rng.choice(num_examples, count, replace=False))


def principal_components(
  outputs: model_outputs.Outputs, positions: np.ndarray
) -> tuple[np.ndarray, list[float]]:
  """Projects embeddings at unit length onto their first two components.

  The components are those of all examples. Their signs make the largest entry
  of each direction positive.

  Args:
    outputs: The outputs for N examples.
    positions: The examples to project, int64 [n].

  Returns:
    float64 [n, 2]; and the shares of the variance of the two, 0 if there is
    none.

  Raises:
    ValueError: If an embedding is NaN or infinite.
  """
  size = outputs.embeddings.shape[1]
  total, products = np.zeros([size]), np.zeros([size, size])
  for _, rows in outputs.blocks('embeddings'):
    rows = model_outputs.unit(rows.astype(np.float64))
    total += rows.sum(axis=0)
    products += rows.T @ rows
  mean = total / outputs.num_examples
  variances, directions = np.linalg.eigh(
    products / outputs.num_examples - np.outer(mean, mean)
  )
  # eigh sorts by increasing variance. A plane needs two directions.
  first = np.zeros([size, 2])
  first[:, : min(size, 2)] = directions[:, ::-1][:, :2]
  first *= np.where(first[abs(first).argmax(axis=0), [0, 1]] < 0, -1, 1)
  variances = np.append(variances[::-1], 0)[:2].clip(min=0)
  whole = max(np.trace(products) / outputs.num_examples - mean @ mean, 0)
  rows = model_outputs.unit(outputs.embeddings[positions].astype(np.float64))
  shares = variances / whole if whole > 1e-12 else [0.0, 0.0]
  return (rows - mean) @ first, [float(share) for share in shares]


def tsne(
  outputs: model_outputs.Outputs, positions: np.ndarray
) -> np.ndarray | None:
  """Returns float64 [n, 2], the t-SNE of embeddings at unit length.

  None without scikit-learn, with too few examples, or if all embeddings are
  the same.
  """
  if len(positions) < _MIN_POINTS_OF_TSNE:
    return None
  if importlib.util.find_spec('sklearn') is None:
    return None
  from sklearn import manifold  # Takes a second, and may be missing.
  import threadpoolctl  # scikit-learn needs it.

  rows = model_outputs.unit(np.asarray(outputs.embeddings[positions]))
  if np.ptp(rows, axis=0).max() < 1e-6:
    return None
  # Of so few points: on a busy machine its threads wait for each other, and it
  # takes nine times as long.
  with threadpoolctl.threadpool_limits(1):
    points = manifold.TSNE(
      perplexity=min(30, (len(rows) - 1) / 3), init='pca', random_state=0
    ).fit_transform(rows)
  return points.astype(np.float64)
