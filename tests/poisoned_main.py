"""main.py whose training data are NaN in some batches of their order.

The environment variable POISON lists them, such as 3,7. Of several replicas,
the first one alone gets the bad images.
"""

import os
import pathlib
import runpy
import sys

_HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(_HERE.parent))

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')

import tensorflow as tf  # noqa: E402

from supcon.data import inputs  # noqa: E402

_POISONED = [int(batch) for batch in os.environ['POISON'].split(',')]
_train_input_fn = inputs.train_input_fn


def _poisoned_input_fn(dataset, params, dtype, start_step):
  build = _train_input_fn(dataset, params, dtype, start_step)
  batch_size = params.batch_size

  def input_fn(params):
    host, num_hosts = params.get('context', (0, 1))
    if host:
      return build(params)
    per_step = batch_size // num_hosts // params['batch_size']
    bad = [(batch - start_step) * per_step for batch in _POISONED]

    def poison(index, batch):
      features, labels = batch
      factor = tf.where(tf.reduce_any(tf.equal(index, bad)), float('nan'), 1.0)
      return {**features, 'images': features['images'] * factor}, labels

    return build(params).enumerate().map(poison)

  return input_fn


inputs.train_input_fn = _poisoned_input_fn
runpy.run_path(str(_HERE.parent / 'main.py'), run_name='__main__')
