"""Tests of calibration, by hand and against loops from the definitions."""

import math

import numpy as np
import pytest

from supcon.evaluation import calibration
from tests.evaluation import made


def _by_loop(outputs, temperature=1.0, num_bins=15):
  nll, brier, bins = [], [], [[] for _ in range(num_bins)]
  for logits, label in zip(outputs.logits, outputs.labels):
    p = made.softmax(logits.astype(np.float64) / temperature)
    nll.append(-math.log(p[label]))
    brier.append(sum((p[c] - (c == label)) ** 2 for c in range(len(p))))
    best = int(np.argmax(p))
    (number,) = [
      b for b in range(num_bins) if b / num_bins < p[best] <= (b + 1) / num_bins
    ]
    bins[number].append((p[best], best == label))
  gaps = [abs(sum(p - right for p, right in each)) for each in bins]
  return {
    'nll': np.mean(nll),
    'ece': sum(gaps) / len(nll),
    'brier': np.mean(brier),
  }, bins


@pytest.mark.parametrize('num_classes', [2, 4, 30])
def test_metrics_are_those_of_loops(num_classes):
  outputs = made.outputs(300, num_classes, skill=3.0)
  held_out = made.outputs(200, num_classes, skill=3.0, seed=1)
  found = calibration.run(outputs, held_out)
  expected, bins = _by_loop(outputs)
  for name, value in expected.items():
    assert found[name] == pytest.approx(value, abs=1e-9)
  for row, each in zip(found['reliability'], bins):
    assert row['count'] == len(each)
    if each:
      confidence, accuracy = np.mean(each, axis=0)
      assert row['confidence'] == pytest.approx(confidence)
      assert row['accuracy'] == pytest.approx(accuracy)
    else:
      assert row['confidence'] is row['accuracy'] is None
  scaled, _ = _by_loop(outputs, found['temperature'])
  for name, value in scaled.items():
    assert found[f'{name}_scaled'] == pytest.approx(value, abs=1e-9)


def test_by_hand():
  # Probabilities 3/4 and 1/4; one right, one wrong.
  logit = math.log(3)
  outputs = made.of_logits([[logit, 0], [logit, 0]], [0, 1])
  found = calibration.run(outputs)
  assert found['nll'] == pytest.approx(-(math.log(0.75) + math.log(0.25)) / 2)
  assert found['ece'] == pytest.approx(0.75 - 0.5)
  # 2 x 1/16 and 2 x 9/16.
  assert found['brier'] == pytest.approx((2 / 16 + 18 / 16) / 2)
  assert 'temperature' not in found


def test_the_upper_edge_belongs_to_a_bin():
  # Confidences 1/2 and 1 are the upper edges of both of two bins.
  outputs = made.of_logits([[0, 0], [1000, 0]], [0, 0])
  found = calibration.run(outputs, num_bins=2)
  assert [row['count'] for row in found['reliability']] == [1, 1]


def test_temperature_by_hand():
  # Of logits (a, 0), 3 of 4 are right: the best probability is 3/4, hence
  # a / T = log 3.
  held_out = made.of_logits([[5, 0]] * 4, [0, 0, 0, 1])
  assert calibration.fit_temperature(held_out) == pytest.approx(
    5 / math.log(3), rel=1e-7
  )


@pytest.mark.parametrize('skill', [0.5, 3.0, 20.0])
def test_temperature_minimises_the_nll(skill):
  held_out = made.outputs(200, skill=skill, seed=3)
  best = calibration.fit_temperature(held_out)
  if best == pytest.approx(calibration.MIN_TEMPERATURE):
    return
  least = _by_loop(held_out, best)[0]['nll']
  for factor in (0.99, 1.01):
    assert _by_loop(held_out, best * factor)[0]['nll'] > least


def test_temperature_has_bounds():
  right = made.of_logits([[5, 0]] * 4, [0] * 4)
  assert calibration.fit_temperature(right) == pytest.approx(0.01)
  wrong = made.of_logits([[5, 0]] * 4, [1] * 4)
  assert calibration.fit_temperature(wrong) == pytest.approx(100)
  one = made.of_logits([[5]] * 4, [0] * 4)
  assert math.isfinite(calibration.fit_temperature(one))
