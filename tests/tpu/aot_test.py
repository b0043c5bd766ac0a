"""Whole programs through the compiler of TPUs, without a TPU.

It needs an environment of its own, for which TensorFlow and this compiler ask
for different versions of jaxlib.
"""

import json
import os
import pathlib
import subprocess

import pytest

from supcon.config import enums
from tests.tpu import cases
from tests.tpu import program
from tests.tpu import scripts

_PYTHON = 'SUPCON_AOT_PYTHON'
_HERE = pathlib.Path(__file__).resolve().parent

pytestmark = [
  pytest.mark.slow,
  pytest.mark.skipif(
    not os.environ.get(_PYTHON),
    reason=f'{_PYTHON} does not name the Python of an environment with the '
    'TPU compiler; make one: tests/tpu/make_aot_environment.sh DIR && export '
    f'{_PYTHON}=DIR/bin/python',
  ),
]


def _compile(mlir, topology, directory):
  """Returns what aot.py says, printed as well."""
  from jaxlib import xla_client

  computation = xla_client._xla.mlir.mlir_module_to_xla_computation(
    mlir, use_tuple_args=False, return_tuple=True
  )
  file = directory / 'program.pb'
  file.write_bytes(computation.as_serialized_hlo_module_proto())
  ran = subprocess.run(
    [os.environ[_PYTHON], str(_HERE / 'aot.py'), str(file), topology],
    capture_output=True,
    text=True,
  )
  assert ran.stdout, ran.stderr
  result = json.loads(ran.stdout)
  print(json.dumps(result, indent=2))
  assert result['compiled'], result['error']
  return result


def _assert_similarities_are_float32(result, anchors, contrasts, size):
  """Also what is gathered for them."""
  (similarities,) = [
    product
    for product in result['products']
    if product['result'] == f'f32[{anchors},{contrasts}]'
  ]
  assert sorted(similarities['operands']) == sorted(
    [f'f32[{anchors},{size}]', f'f32[{contrasts},{size}]']
  )
  # Features, their gradient, and classes; and no other way between cores.
  assert _kinds(result) == {
    ('all-to-all', 'f32'),
    ('all-to-all', 's32'),
    ('all-reduce', 'f32'),
  }


def _kinds(result):
  return {(each['name'], each['dtype']) for each in result['collectives']}


def test_a_small_program_for_8_cores(tmp_path):
  cores = cases.OnCores(cases.params(enums.Optimizer.LARS), 1, num_cores=8)
  result = _compile(cores.mlir, 'v3:2x2', tmp_path)
  assert result['num_cores'] == 8
  _assert_similarities_are_float32(
    result, 2 * cases.BATCH_SIZE // 8, 2 * cases.BATCH_SIZE, size=8
  )


def test_default_precision_would_gather_bfloat16(tmp_path):
  # So the other tests see a difference that execution on a CPU does not show.
  cores = cases.OnCores(cases.params(enums.Optimizer.LARS), 1, num_cores=8)
  mlir = cores.mlir.replace('HIGHEST', 'DEFAULT')
  result = _compile(mlir, 'v3:2x2', tmp_path)
  assert ('all-to-all', 'bf16') in _kinds(result)


def test_a_published_script_for_128_cores(tmp_path):
  name = 'supcon_imagenet_resnet50'
  assert scripts.intended_cores(name) == 128
  mlir = program.lower(scripts.training_graph(name))
  result = _compile(mlir, 'v3:8x8', tmp_path)
  assert result['num_cores'] == 128
  # 6144 samples in two views.
  _assert_similarities_are_float32(result, 96, 12288, size=128)
  assert result['memory']['total'] < 16 * 2**30
