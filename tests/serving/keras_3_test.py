"""The SavedModel in Keras 3, which this project does not use itself."""

import importlib.metadata
import json
import pathlib
import re
import sys

import numpy as np
import pytest

from tests.serving import elsewhere
from tests.serving import exported

_KERAS = importlib.metadata.version('keras')

pytestmark = pytest.mark.skipif(
  int(_KERAS.split('.')[0]) < 3,
  reason=f'Keras {_KERAS} is installed; TFSMLayer needs Keras 3, which comes '
  'with TensorFlow 2.16 or newer',
)

# Knows nothing of this project.
_PROGRAM = """
import json, os, sys
import keras, numpy as np

path, images, example = sys.argv[1:]
images = np.load(images)
found = {'version': keras.__version__}
for endpoint, name in (('serving_default', 'model_input'), ('default', 'unit')):
  layer = keras.layers.TFSMLayer(path, call_endpoint=endpoint)
  inputs = keras.Input(images[name].shape[1:])
  model = keras.Model(inputs, layer(inputs))
  found[endpoint] = {
    key: np.asarray(value).tolist()
    for key, value in model.predict(images[name], verbose=0).items()
  }
os.chdir(path)  # Where the model card says that it runs.
exec(example, variables := {})
found['example'] = list(variables['logits'].shape)

keras.utils.set_random_seed(0)
encoder = variables['model']
before = [v.numpy() for v in encoder.weights]
inputs = keras.Input(images['digits'].shape[1:])
features = encoder(inputs)['unnormalized_embeddings']
model = keras.Model(inputs, keras.layers.Dense(10)(features))
model.compile(
  keras.optimizers.SGD(0.02),
  keras.losses.SparseCategoricalCrossentropy(from_logits=True),
)
history = model.fit(
  images['digits'], images['labels'], batch_size=64, epochs=8, verbose=0
)
found['losses'] = history.history['loss']
found['trained'] = [
  (v.trainable, bool(np.any(old != v.numpy())), v.path)
  for v, old in zip(encoder.weights, before)
]
print(json.dumps(found))
"""


def test_tfsm_layer_opens_it(export, expected, tmp_path):
  digits, labels = exported.digits_to_learn()
  np.savez(
    tmp_path / 'images.npz',
    digits=digits,
    labels=labels,
    model_input=exported.model_input(exported.images()),
    unit=exported.unit_range(exported.images()),
  )
  card = (pathlib.Path(export.path) / 'model_card.md').read_text()
  (example,) = (
    block
    for block in re.findall('```python\n(.*?)```', card, re.DOTALL)
    if 'TFSMLayer' in block
  )
  output = elsewhere.run(
    [
      *(sys.executable, '-c', _PROGRAM),
      *(export.saved_model, str(tmp_path / 'images.npz'), example),
    ],
    TF_USE_LEGACY_KERAS='0',
  )
  found = json.loads(output.splitlines()[-1])
  assert found['version'] == _KERAS
  assert found['example'] == [1, len(exported.CLASS_NAMES)]
  for endpoint in ('serving_default', 'default'):
    outputs = {key: np.array(value) for key, value in found[endpoint].items()}
    default = outputs.pop('default', outputs['logits'])
    np.testing.assert_array_equal(default, outputs['logits'])
    assert set(outputs) >= set(exported.NAMES)
    exported.assert_close(outputs, expected.outputs[False])
  assert found['losses'][-1] < 0.8 * found['losses'][0], found['losses']
  # The signature makes projections and logits as well, but they are not used.
  for is_trainable, has_changed, name in found['trained']:
    is_encoder = 'ProjectionHead' not in name and 'Classification' not in name
    assert has_changed == (is_trainable and is_encoder), name
