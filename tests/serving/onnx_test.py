"""An export becomes an ONNX model and a PyTorch one, as its model card says.

That needs packages that this project does not: an environment variable names
the interpreter of an environment that has them.
"""

import json
import os
import pathlib
import re
import shlex
import shutil

import numpy as np
import pytest

from supcon.serving import model_card
from tests.serving import elsewhere
from tests.serving import exported

_VARIABLE = 'SUPCON_ONNX_PYTHON'
_MAKE = pathlib.Path(__file__).parent / 'make_onnx_environment.sh'
_SIDE = exported.SIDE

_needs_it = pytest.mark.skipif(
  not os.environ.get(_VARIABLE),
  reason=f'{_VARIABLE} does not name the Python of an environment with '
  'tf2onnx, onnxruntime and onnx2torch; make one: '
  f'tests/serving/{_MAKE.name} DIR && export {_VARIABLE}=DIR/bin/python',
)

# What stands for images in the card's examples, and what does here.
_IMAGES = {
  f'np.zeros([1, {_SIDE}, {_SIDE}, 3], np.float32)': "np.load('images.npy')",
  f'torch.zeros(1, {_SIDE}, {_SIDE}, 3)': (
    "torch.from_numpy(__import__('numpy').load('images.npy'))"
  ),
}
# Prints all outputs of each.
_PRINT = {
  'onnxruntime': """
import json
names = [output.name for output in session.get_outputs()]
outputs = session.run(None, {'images': images})
print(json.dumps(
  {'logits': logits.tolist()}
  | {name: value.tolist() for name, value in zip(names, outputs)}
))
""",
  'onnx2torch': """
import json
print(json.dumps(
  {'logits': logits.tolist()}
  | {name: value.tolist() for name, value in zip(names, outputs)}
))
""",
}


def _blocks(export, language):
  card = (pathlib.Path(export.path) / 'model_card.md').read_text()
  return re.findall(f'```{language}\n(.*?)```', card, re.DOTALL)


def _recipe(export):
  """Returns the commands that make an environment, and convert in it."""
  (recipe,) = [code for code in _blocks(export, 'sh') if 'onnx' in code]
  lines = recipe.replace('\\\n', '').splitlines()
  return [shlex.split(line) for line in lines]


def _run(command, directory):
  return elsewhere.run(
    ['bash', '-c', 'cd "$1" && shift && exec "$@"', '-', directory, *command],
    TF_CPP_MIN_LOG_LEVEL='3',
  )


@pytest.fixture(scope='module', name='converted')
def _converted(export, tmp_path_factory):
  """A copy of an export, with its model.onnx."""
  directory = tmp_path_factory.mktemp('onnx') / 'moved'
  shutil.copytree(export.path, directory)
  images = exported.unit_range(exported.images())
  np.save(directory / 'images.npy', images)
  *_, (_, *arguments) = _recipe(export)
  _run([os.environ[_VARIABLE], *arguments], str(directory))
  return str(directory)


@_needs_it
@pytest.mark.parametrize('package', ['onnxruntime', 'onnx2torch'])
def test_outputs_are_those_of_the_model(export, expected, converted, package):
  (code,) = [
    code for code in _blocks(export, 'python') if f'import {package}' in code
  ]
  changed = code
  for images, ours in _IMAGES.items():
    changed = changed.replace(images, ours)
  assert changed != code
  program = [os.environ[_VARIABLE], '-c', changed + _PRINT[package]]
  found = json.loads(_run(program, converted).splitlines()[-1])
  outputs = {name: np.array(value) for name, value in found.items()}
  np.testing.assert_array_equal(outputs.pop('default'), outputs['logits'])
  assert set(outputs) == {*exported.NAMES, 'normalized_embeddings'}
  exported.assert_close(outputs, expected.outputs[False])


@_needs_it
def test_what_is_told_no_signature_takes_the_one_to_be_served(converted):
  model = 'first.onnx'
  program = ['-m', 'tf2onnx.convert', '--saved-model', '.', '--output', model]
  _run([os.environ[_VARIABLE], *program], converted)
  names = (
    'import onnx; print([each.name for each in '
    f'onnx.load({model!r}).graph.input])'
  )
  output = _run([os.environ[_VARIABLE], '-c', names], converted)
  # Those of the common signatures take `images`.
  assert output.splitlines()[-1] == "['input']"


def test_the_environment_has_the_versions_of_the_card(export):
  install = _recipe(export)[1]
  assert install[:2] == ['onnx/bin/pip', 'install']
  assert tuple(install[2:]) == model_card.ONNX_PACKAGES
  script = _MAKE.read_text()
  for package in (*model_card.ONNX_PACKAGES, *model_card.PYTORCH_PACKAGES):
    assert f' {package}' in script
