"""Tests of the table of evaluations."""

import json
import subprocess
import sys

import pytest

from supcon.evaluation import registry
from tests.evaluation import made


def test_every_evaluation_runs_and_can_be_written_as_json():
  outputs = made.outputs(50)
  others = {'index': made.outputs(60, seed=1), 'held_out': made.outputs(9)}
  found = registry.run(registry.EVALUATIONS, outputs, **others)
  assert {name.split('/')[0] for name in found} == {*registry.EVALUATIONS}
  assert json.loads(json.dumps(found)) == found
  assert found['calibration/temperature'] > 0
  scalars = registry.scalars(found)
  assert 'knn/k20_t0.07' in scalars
  assert 'classes/confusion' not in scalars


def test_an_evaluation_is_one_entry(monkeypatch):
  monkeypatch.setitem(
    registry.EVALUATIONS,
    'size',
    registry.Evaluation(lambda outputs: {'examples': outputs.num_examples}),
  )
  assert registry.run(['size'], made.outputs(7)) == {'size/examples': 7}


def test_what_an_evaluation_does_not_take_is_not_given():
  outputs = made.outputs(7)
  found = registry.run(['calibration'], outputs, index=outputs)
  assert 'calibration/temperature' not in found
  with pytest.raises(TypeError, match='index'):
    registry.run(['knn'], outputs)


def test_evaluations_need_no_tensorflow():
  code = (
    'import sys, supcon.evaluation.registry; print("tensorflow" in sys.modules)'
  )
  done = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True, check=True
  )
  assert done.stdout == 'False\n'
