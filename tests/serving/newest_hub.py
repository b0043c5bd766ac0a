"""Uses an export by the newest tensorflow_hub; newest_hub_test.py runs it.

PYTHON newest_hub.py SAVED_MODEL HUB_MODULE IMAGES.npz

It knows nothing of this project. Images are float32 in [0, 1]. Prints versions,
outputs and losses as JSON.
"""

import json
import sys

import numpy as np
import tensorflow as tf
import tensorflow_hub as hub
import tf_keras


def _plain(outputs):
  return {name: value.numpy().tolist() for name, value in outputs.items()}


def main(saved_model, hub_module, path):
  arrays = np.load(path)
  images, digits, labels = (arrays[n] for n in ('images', 'digits', 'labels'))
  loaded = hub.load(saved_model)
  layer = hub.KerasLayer(hub_module, output_key='unnormalized_embeddings')
  result = {
    'versions': [tf.__version__, hub.__version__, tf_keras.__version__],
    'call': loaded(images).numpy().tolist(),
    'default': _plain(loaded.signatures['default'](images=images)),
    'module': _plain(hub.load(hub_module).signatures['default'](images=images)),
    'module_in_training': _plain(
      hub.load(hub_module, tags=['train']).signatures['default'](images=images)
    ),
    'layer': layer(images).numpy().tolist(),
    # Last: it moves the statistics.
    'call_in_training': loaded(images, training=True).numpy().tolist(),
  }
  tf_keras.utils.set_random_seed(0)
  backbone = hub.KerasLayer(
    saved_model,
    trainable=True,
    arguments={'output': 'unnormalized_embeddings'},
  )
  model = tf_keras.Sequential([backbone, tf_keras.layers.Dense(10)])
  model.compile(
    tf_keras.optimizers.legacy.SGD(0.02),
    tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True),
  )
  before = [v.numpy() for v in backbone.non_trainable_weights]
  history = model.fit(digits, labels, batch_size=64, epochs=8, verbose=0)
  after = backbone.non_trainable_weights
  result['losses'] = history.history['loss']
  result['statistics_moved'] = [
    bool(np.any(old != new.numpy())) for old, new in zip(before, after)
  ]
  print(json.dumps(result))


if __name__ == '__main__':
  main(*sys.argv[1:])
