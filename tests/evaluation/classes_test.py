"""Tests of results per class."""

import pytest

from supcon.evaluation import classes
from tests.evaluation import made

# Labels 0, 0, 0, 1, 2; predictions 0, 0, 1, 1, 1. The fourth class is empty.
_LOGITS = [
  [2, 0, 0, 0],
  [2, 0, 0, 0],
  [0, 9, 0, 0],
  [0, 2, 0, 0],
  [0, 3, 0, 0],
]
_LABELS = [0, 0, 0, 1, 2]


def _run(**kwargs):
  outputs = made.of_logits(
    _LOGITS, _LABELS, class_names=['a', 'b', 'c', 'd'], ids=[*'vwxyz']
  )
  return classes.run(outputs, **kwargs)


def test_confusion_counts_by_label_and_prediction():
  assert _run()['confusion'] == [
    [2, 1, 0, 0],
    [0, 1, 0, 0],
    [0, 1, 0, 0],
    [0, 0, 0, 0],
  ]


def test_each_class_and_their_means():
  found = _run()
  assert [list(row.values()) for row in found['per_class']] == [
    # 2 of 2 and 2 of 3; 2 x 2 / (3 + 2).
    ['a', 3, 1.0, pytest.approx(2 / 3), 0.8],
    # 1 of 3 and 1 of 1; 2 x 1 / (1 + 3).
    ['b', 1, pytest.approx(1 / 3), 1.0, 0.5],
    ['c', 1, None, 0.0, 0.0],
    ['d', 0, None, None, None],
  ]
  assert found['macro_precision'] == pytest.approx((1 + 1 / 3) / 2)
  assert found['macro_recall'] == pytest.approx((2 / 3 + 1 + 0) / 3)
  assert found['macro_f1'] == pytest.approx((0.8 + 0.5 + 0) / 3)


def test_the_most_confident_mistakes_come_first():
  first, second = _run()['mistakes']
  assert (first['id'], first['position']) == ('x', 2)
  assert (first['label'], first['predicted']) == (0, 1)
  assert first['probability'] > second['probability']
  assert second['id'] == 'z'
  assert len(_run(num_mistakes=1)['mistakes']) == 1


def test_one_class_has_no_mistakes():
  found = classes.run(made.of_logits([[1]] * 3, [0] * 3))
  assert found['mistakes'] == []
  assert found['per_class'] == [
    {'class': '0', 'count': 3, 'precision': 1.0, 'recall': 1.0, 'f1': 1.0}
  ]
