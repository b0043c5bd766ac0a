"""Compares evaluations with scikit-learn's."""

import numpy as np
import pytest

from supcon.evaluation import accuracy
from supcon.evaluation import calibration
from supcon.evaluation import classes
from supcon.evaluation import few_shot
from supcon.evaluation import knn
from supcon.evaluation import model_outputs
from tests.evaluation import made

pytest.importorskip('sklearn')

from sklearn import linear_model  # pylint: disable=wrong-import-position
from sklearn import metrics  # pylint: disable=wrong-import-position
from sklearn import neighbors  # pylint: disable=wrong-import-position


@pytest.fixture(params=[2, 5])
def outputs(request):
  return made.outputs(400, request.param, skill=1.5)


def test_top_k(outputs):
  labels, logits = outputs.labels, outputs.logits
  if outputs.num_classes == 2:
    logits = logits[:, 1] - logits[:, 0]
  found = accuracy.run(outputs, ks=(1, 2))
  assert found['top_1'] == metrics.accuracy_score(
    labels, outputs.logits.argmax(axis=1)
  )
  if outputs.num_classes > 2:
    assert found['top_2'] == metrics.top_k_accuracy_score(labels, logits, k=2)


def test_calibration(outputs):
  found = calibration.run(outputs)
  probabilities = np.exp(model_outputs.log_softmax(outputs.logits))
  assert found['nll'] == pytest.approx(
    metrics.log_loss(outputs.labels, probabilities), abs=1e-6
  )
  assert found['brier'] == pytest.approx(
    metrics.brier_score_loss(
      outputs.labels, probabilities, scale_by_half=False
    ),
    abs=1e-6,
  )


def test_classes(outputs):
  # Without examples of the first class, which is predicted all the same.
  kept = outputs.labels > 0
  outputs = model_outputs.Outputs(
    outputs.labels[kept], outputs.logits[kept], outputs.embeddings[kept]
  )
  found = classes.run(outputs)
  predicted = outputs.logits.argmax(axis=1)
  labels = np.arange(outputs.num_classes)
  arguments = (outputs.labels, predicted)
  kwargs = {'labels': labels, 'zero_division': np.nan}
  assert found['confusion'] == (
    metrics.confusion_matrix(*arguments, labels=labels).tolist()
  )
  columns = metrics.precision_recall_fscore_support(*arguments, **kwargs)
  for name, column in zip(('precision', 'recall', 'f1', 'count'), columns):
    np.testing.assert_allclose(
      np.array([row[name] for row in found['per_class']], float),
      column,
      atol=1e-6,
    )
  means = metrics.precision_recall_fscore_support(
    *arguments, average='macro', **kwargs
  )
  for name, mean in zip(('precision', 'recall', 'f1'), means):
    assert found[f'macro_{name}'] == pytest.approx(mean, abs=1e-6)


@pytest.mark.parametrize('k', knn.KS)
def test_knn(outputs, k):
  index = made.outputs(900, outputs.num_classes, skill=1.5, seed=1)
  model = neighbors.KNeighborsClassifier(
    k,
    algorithm='brute',
    metric='cosine',
    weights=lambda distances: np.exp((1 - distances) / 0.07),
  ).fit(index.embeddings.astype(np.float64), index.labels)
  expected = model.predict(outputs.embeddings.astype(np.float64))
  ((_, found),) = knn.predictions(outputs, index, [k], [0.07])
  np.testing.assert_array_equal(found[k, 0.07], expected)


@pytest.mark.parametrize('shots', [1, 10])
def test_few_shot(outputs, shots):
  index = made.outputs(900, outputs.num_classes, skill=1.5, seed=1)
  taken = few_shot.draw(index.labels, shots, seed=0)
  rows = model_outputs.unit(index.embeddings[taken].astype(np.float64))
  queries = model_outputs.unit(outputs.embeddings.astype(np.float64))
  labels = index.labels[taken]
  model = linear_model.RidgeClassifier(alpha=0.1).fit(rows, labels)
  weights, bias = few_shot.fit(rows, labels, index.num_classes, l2=0.1)
  scores = queries @ weights + bias
  if outputs.num_classes == 2:
    scores = scores[:, 1]
  np.testing.assert_allclose(
    scores, model.decision_function(queries), atol=1e-6
  )
