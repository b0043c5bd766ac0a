"""Tests of the numbers of a report."""

import json

import numpy as np
import pytest

from supcon.config import hparams
from supcon.evaluation import registry
from supcon.reports import report_facts
from tests.evaluation import made
from tests.reports import made_report


def test_metrics_are_those_of_the_evaluations():
  report, evaluation, index, held_out = made_report.report()
  expected = registry.run(
    registry.EVALUATIONS, evaluation, index=index, held_out=held_out
  )
  assert report['metrics'] == expected
  assert 'calibration/ece_scaled' in expected
  assert json.loads(json.dumps(report)) == json.loads(json.dumps(report))
  assert json.dumps(report, allow_nan=False)


def test_without_held_out_examples_nothing_is_scaled():
  few = made.outputs(30)
  metrics = report_facts.measure(few, few, None, True)['metrics']
  assert 'calibration/ece' in metrics
  assert not [name for name in metrics if 'scaled' in name]
  assert 'calibration/temperature' not in metrics


def test_without_a_classifier_no_metric_is_of_logits():
  report, *_ = made_report.report(has_classifier=False)
  kinds = {name.split('/')[0] for name in report['metrics']}
  assert kinds == {'knn', 'few_shot', 'geometry'}
  assert 'confusion_classes' not in report


def test_neighbours_are_nearest_by_cosine():
  evaluation = made.of_embeddings([[0, 1], [2, 0], [0, 2]], [1, 0, 1])
  index = made.of_embeddings(
    [[1, 1], [9, 0], [0, 3], [-1, 0]], [0, 0, 1, 1], ids=list('abcd')
  )
  first, second = report_facts.neighbours(evaluation, index)
  # The first example of each class; its neighbours by decreasing cosine.
  assert (first['label'], first['position']) == (0, 1)
  assert [near['id'] for near in first['neighbours']] == list('bacd')
  cosines = [near['cosine'] for near in first['neighbours']]
  np.testing.assert_allclose(cosines, [1, 0.5**0.5, 0, -1], atol=1e-6)
  assert (second['label'], second['position']) == (1, 0)
  assert [near['label'] for near in second['neighbours']] == [1, 0, 0, 1]


@pytest.mark.parametrize('num_classes', [1, 4])
def test_few_examples_and_empty_classes_are_no_trouble(num_classes):
  # Class 0 alone has examples, fewer than the neighbours asked for.
  few = made.of_embeddings(
    np.eye(3), [0, 0, 0], num_classes, class_names=list('abcd')[:num_classes]
  )
  report = report_facts.measure(few, few, None, True)
  metrics = report['metrics']
  assert {n for n in metrics if n.startswith('knn/')} == {
    'knn/k1_t0.07',
    'knn/k1_t0.1',
  }
  counts = [row['count'] for row in metrics['classes/per_class']]
  assert counts == [3, 0, 0, 0][:num_classes]
  assert report['map']['tsne'] is None  # Too few points.
  assert json.dumps(report, allow_nan=False)


def test_a_map_names_the_largest_classes():
  # 25 classes, of which the last has the most examples and class 0 none.
  labels = [*range(1, 25), 24]
  many = made.of_embeddings(np.eye(25), labels)
  named = report_facts.measure(many, many, None, False)['map']['named']
  assert named == [*range(1, 20), 24]


def test_nan_is_an_error():
  good, bad = made.outputs(20), made.outputs(20)
  bad.embeddings[3, 0] = np.nan
  with pytest.raises(ValueError, match='embeddings of example 3'):
    report_facts.measure(bad, good, None, False)


class TestCurves:
  def test_by_epoch_without_gaps(self):
    table = 'step,epoch,stage,loss,top_1\n0,0,1,2.5,\n3,1.5,2,0.5,0.25\n'
    assert report_facts.curves(table) == {
      'loss': [(0.0, 2.5), (1.5, 0.5)],
      'top_1': [(1.5, 0.25)],
    }

  def test_of_nothing(self):
    assert report_facts.curves(None) == {}

  def test_values_that_are_no_numbers_are_left_out(self):
    table = 'step,epoch,stage,loss\n0,0,1,nan\n1,1,1,2\n'
    assert report_facts.curves(table) == {'loss': [(1.0, 2.0)]}

  def test_long_ones_are_thinned(self):
    rows = ''.join(f'{n},{n},1,{n}\n' for n in range(4001))
    found = report_facts.curves(f'step,epoch,stage,loss\n{rows}')['loss']
    assert len(found) == 445  # Every 9th row: 4001 / 500 is 8.002.
    assert found[:2] == [(0, 0), (9, 9)]

  @pytest.mark.parametrize(
    'table', ['a,b\n1,2\n', 'step,epoch,stage,loss\n1,2\n', '\0\n1']
  )
  def test_another_file_is_an_error(self, table):
    with pytest.raises(ValueError, match='row'):
      report_facts.curves(table)


def test_errors_are_sorted_by_severity():
  found = {
    'clean': {'error': 0.1},
    'fog/5': {'error': 0.3},
    'fog/1': {'error': 0.2},
  }
  assert report_facts.errors_by_severity(found) == {'fog': [(1, 0.2), (5, 0.3)]}


def test_changed_hyper_parameters_are_listed_as_flags():
  params = hparams.HParams(seed=3).replace('stage_2.epochs', 7)
  default = hparams.HParams().stage_2.epochs
  assert report_facts.changed(params) == [
    {'flag': 'stage_2_epochs', 'value': '7', 'default': str(default)},
    {'flag': 'seed', 'value': '3', 'default': '0'},
  ]


def test_of_many_classes_those_confused_most_are_shown():
  matrix = np.diag([9] * 6)
  matrix[4, 1], matrix[0, 5], matrix[1, 4], matrix[2, 3] = 7, 5, 3, 1
  shown, pairs = report_facts.most_confused(matrix, 4)
  # 4 and 1, then 0 and 5; 2 and 3 would be more than four.
  assert shown.tolist() == [0, 1, 4, 5]
  assert pairs == [(4, 1, 7), (0, 5, 5), (1, 4, 3), (2, 3, 1)]
  assert report_facts.most_confused(matrix, 6)[0].tolist() == list(range(6))
  assert report_facts.most_confused(np.eye(3), 2)[1] == []
