"""Exports in TensorFlow 2: hub.load and hub.KerasLayer.

saved_model_test.py has hub.KerasLayer on a SavedModel.
"""

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_hub as hub

from tests.serving import exported


def _images():
  return tf.constant(exported.unit_range(exported.images()))


def _numpy(outputs):
  return {name: value.numpy() for name, value in outputs.items()}


def test_a_saved_model(export, expected):
  loaded = hub.load(export.saved_model)
  logits = loaded(_images())
  exported.assert_close({'logits': logits.numpy()}, expected.outputs[False])
  default = _numpy(loaded.signatures['default'](images=_images()))
  exported.assert_close(
    {'logits': default.pop('default')}, expected.outputs[False]
  )
  exported.assert_close(default, expected.outputs[False])
  # Last: it moves the statistics.
  logits = loaded(_images(), training=True)
  exported.assert_close({'logits': logits.numpy()}, expected.outputs[True])


@pytest.mark.parametrize('tags, training', [(None, False), (['train'], True)])
def test_signatures_of_a_module(export, expected, tags, training):
  loaded = hub.load(export.hub_module, tags=tags)
  default = _numpy(loaded.signatures['default'](images=_images()))
  exported.assert_close(
    {'logits': default.pop('default')}, expected.outputs[training]
  )
  assert set(default) == {*exported.NAMES, 'normalized_embeddings'}
  exported.assert_close(default, expected.outputs[training])
  for name, output in (
    ('image_classification', 'logits'),
    ('image_feature_vector', 'unnormalized_embeddings'),
  ):
    (value,) = loaded.signatures[name](images=_images()).values()
    exported.assert_close({output: value.numpy()}, expected.outputs[training])


@pytest.mark.parametrize('tags', [None, ['train']])
def test_variables_of_a_module(export, checkpoint, tags):
  loaded = hub.load(export.hub_module, tags=tags)
  found = {v.name.removesuffix(':0'): v.numpy() for v in loaded.variables}
  expected = exported.values(checkpoint)
  assert set(found) == set(expected)
  for name, value in expected.items():
    assert found[name].tobytes() == value.tobytes(), name


def test_a_module_as_a_layer(export, expected):
  layer = hub.KerasLayer(export.hub_module, output_key='projection')
  projection = layer(_images()).numpy()
  exported.assert_close({'projection': projection}, expected.outputs[False])


@pytest.mark.parametrize('kind', ['saved_model', 'hub_module'])
@pytest.mark.parametrize('output', [*exported.NAMES, 'normalized_embeddings'])
def test_a_layer_of_any_output_is_the_same_of_both(
  export, expected, kind, output
):
  layer = hub.KerasLayer(
    getattr(export, kind), signature='default', output_key=output
  )
  exported.assert_close(
    {output: layer(_images()).numpy()}, expected.outputs[False]
  )


def test_a_layer_to_train_takes_its_output_from_all(export, expected):
  layer = hub.KerasLayer(
    export.saved_model,
    trainable=True,
    arguments={'output': 'all'},
    output_key='projection',
  )
  assert layer.trainable_weights
  for training in (False, True):
    projection = layer(_images(), training=training).numpy()
    exported.assert_close(
      {'projection': projection}, expected.outputs[training]
    )
  # The one thing that does not go: of one tensor there is nothing to choose.
  with pytest.raises(ValueError, match='output_key'):
    hub.KerasLayer(export.saved_model, output_key='projection')(_images())


def test_a_classifier_on_a_module(export):
  images, labels = exported.digits_to_learn()
  tf.keras.utils.set_random_seed(0)
  encoder = hub.KerasLayer(
    export.hub_module, output_key='unnormalized_embeddings'
  )
  model = tf.keras.Sequential([encoder, tf.keras.layers.Dense(10)])
  model.compile(
    tf.keras.optimizers.legacy.SGD(0.02),
    tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True),
  )
  history = model.fit(images, labels, batch_size=64, epochs=8, verbose=0)
  losses = history.history['loss']
  assert losses[-1] < 0.9 * losses[0], losses
  assert not encoder.trainable_weights
  assert np.all(np.isfinite(losses))
