"""Times kNN classification against scikit-learn's brute force.

  python -m tests.benchmarks.neighbours [--examples 50000] [--size 128]

scikit-learn searches by cosine similarity, or (its faster way) by Euclidean
distance between rows of unit length, once for each k and T. Ours searches once
for the whole grid. All run in one process, in turns, so that a busy machine
slows all; the figures are medians, and the ratio is the one to compare.
"""

import argparse
import pathlib
import sys
import time

import numpy as np
from sklearn import neighbors

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from supcon.evaluation import knn  # pylint: disable=wrong-import-position
from supcon.evaluation import model_outputs  # pylint: disable=wrong-import-position

_CLASSES = 100
_GRID = [(k, t) for k in knn.KS for t in knn.TEMPERATURES]


def clusters(num_examples, size, seed):
  """Returns outputs like those of an encoder that has learned something."""
  random = np.random.default_rng(seed)
  centers = np.random.default_rng(0).standard_normal([_CLASSES, size])
  labels = random.integers(0, _CLASSES, num_examples)
  rows = centers[labels] + 3 * random.standard_normal([num_examples, size])
  return model_outputs.Outputs(
    labels,
    np.zeros([num_examples, _CLASSES], np.float32),
    model_outputs.unit(rows.astype(np.float32)),
  )


def ours(outputs, index, grid):
  """Returns {(k, T): the class of each example}."""
  ks, temperatures = (sorted({*column}) for column in zip(*grid))
  parts = knn.predictions(outputs, index, ks, temperatures)
  parts = [found for _, found in parts]
  return {key: np.concatenate([part[key] for part in parts]) for key in grid}


def theirs(metric):
  def classify(outputs, index, grid):
    found = {}
    for k, temperature in grid:

      def weights(distances, temperature=temperature):
        # On the sphere, 1 - s = |x - y|^2 / 2.
        loss = distances if metric == 'cosine' else np.square(distances) / 2
        return np.exp((1 - loss) / temperature)

      model = neighbors.KNeighborsClassifier(
        k, algorithm='brute', metric=metric, weights=weights
      ).fit(index.embeddings, index.labels)
      found[k, temperature] = model.predict(outputs.embeddings)
    return found

  return classify


_PROGRAMS = {
  'ours': ours,
  'scikit-learn, cosine': theirs('cosine'),
  'scikit-learn, euclidean': theirs('euclidean'),
}


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--examples', type=int, default=50_000)
  parser.add_argument('--queries', type=int, default=2_000)
  parser.add_argument('--size', type=int, default=128)
  parser.add_argument('--repeats', type=int, default=3)
  args = parser.parse_args()
  index = clusters(args.examples, args.size, seed=1)
  outputs = clusters(args.queries, args.size, seed=2)
  for title, grid in (
    ('k=20, T=0.07', [(20, 0.07)]),
    ('k=200, T=0.07', [(200, 0.07)]),
    ('the whole grid', _GRID),
  ):
    seconds = {name: [] for name in _PROGRAMS}
    found = {}
    for _ in range(args.repeats):
      for name, program in _PROGRAMS.items():
        begun = time.perf_counter()
        found[name] = program(outputs, index, grid)
        seconds[name].append(time.perf_counter() - begun)
    times = {name: np.median(each) for name, each in seconds.items()}
    print(f'{title}, {args.examples} x {args.size}, {args.queries} queries')
    for name, each in times.items():
      same = np.mean([found[name][key] == found['ours'][key] for key in grid])
      print(
        f'  {name:24} {each:7.2f} s, {each / times["ours"]:5.1f} times; '
        f'{100 * same:.3f}% of predictions equal'
      )


if __name__ == '__main__':
  main()
