"""Exports in the newest tensorflow_hub, TensorFlow and Keras.

They need an environment of their own, for this project needs older ones.
"""

import json
import os
import pathlib
import subprocess

import numpy as np
import pytest

from tests.serving import exported

_PYTHON = 'SUPCON_NEWEST_HUB_PYTHON'
_HERE = pathlib.Path(__file__).resolve().parent

pytestmark = pytest.mark.skipif(
  not os.environ.get(_PYTHON),
  reason=f'{_PYTHON} does not name the Python of an environment with the '
  'newest tensorflow_hub; make one: tests/serving/make_hub_environment.sh DIR '
  f'&& export {_PYTHON}=DIR/bin/python',
)


@pytest.mark.slow
def test_exports_work_there(export, expected, tmp_path):
  digits, labels = exported.digits_to_learn()
  images = exported.unit_range(exported.images())
  file = tmp_path / 'images.npz'
  np.savez(file, images=images, digits=digits, labels=labels)
  ran = subprocess.run(
    [
      os.environ[_PYTHON],
      str(_HERE / 'newest_hub.py'),
      export.saved_model,
      export.hub_module,
      str(file),
    ],
    capture_output=True,
    text=True,
  )
  assert ran.returncode == 0, ran.stderr
  result = json.loads(ran.stdout.splitlines()[-1])
  assert result['versions'][1] != '0.15.0'
  for name, training in (
    ('call', False),
    ('call_in_training', True),
  ):
    exported.assert_close(
      {'logits': np.array(result[name])}, expected.outputs[training]
    )
  for name, training in (
    ('default', False),
    ('module', False),
    ('module_in_training', True),
  ):
    outputs = {key: np.array(value) for key, value in result[name].items()}
    exported.assert_close(
      {'logits': outputs.pop('default')}, expected.outputs[training]
    )
    exported.assert_close(outputs, expected.outputs[training])
  exported.assert_close(
    {'unnormalized_embeddings': np.array(result['layer'])},
    expected.outputs[False],
  )
  assert result['losses'][-1] < 0.9 * result['losses'][0], result['losses']
  assert all(result['statistics_moved'])
