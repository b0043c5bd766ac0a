"""The training graphs of the published scripts, for any number of TPU cores."""

import dataclasses

import tensorflow as tf

from supcon.training import stages
from tests import flag_parsing
from tests import golden
from tests import model_functions
from tests.tpu import offline

_SCRIPTS = golden.json('scripts.json')['scripts']
NAMES = tuple(_SCRIPTS)

_ANY_CORES = 128  # For a script that is meant for no number of them.
_NUM_EXAMPLES = {'cifar10': 50_000, 'imagenet': 1_281_167}
_NUM_CLASSES = {'cifar10': 10, 'imagenet': 1000}


def params(name, num_cores=None, depth=None):
  """Returns the HParams of a script.

  Args:
    name: One of NAMES.
    num_cores: None, or a number of cores for which the global batch is scaled,
      so that each gets what it is meant to get.
    depth: None, or another depth of the encoder.
  """
  flags = _SCRIPTS[name]['flags']
  _, result = flag_parsing.parse(
    [f'--{flag}={value}' for flag, value in flags.items()]
  )
  if num_cores:
    share = result.batch_size // intended_cores(name)
    result = dataclasses.replace(result, batch_size=share * num_cores)
  if depth:
    architecture = dataclasses.replace(result.architecture, encoder_depth=depth)
    result = dataclasses.replace(result, architecture=architecture)
  return result


def intended_cores(name):
  """Returns the number of cores that a script is meant for."""
  return _SCRIPTS[name]['tpu_cores'] or _ANY_CORES


def training_graph(name, num_cores=None, depth=None):
  """Returns the graph of the first stage of a script, a tf.Graph.

  Args:
    name: One of NAMES.
    num_cores: Multiple of 4, default that which the script is meant for; each
      core gets the same share of a batch.
    depth: As for `params`.
  """
  num_cores = num_cores or intended_cores(name)
  scaled = params(name, num_cores, depth)
  return offline.training_graph(
    _function(scaled),
    _input_fn(scaled),
    num_cores,
    scaled.batch_size,
    steps=100,
  )


def _function(params):
  data = params.input_data.input_fn
  run = stages.plan(params, _NUM_EXAMPLES[data])
  return model_functions.make(
    params,
    run,
    run.stage_at(0),
    _NUM_CLASSES[data],
    num_eval_examples=params.eval.batch_size,
    mean=(0.0,) * 3,
    std=(1.0,) * 3,
    dtype=tf.bfloat16,
    use_tpu=True,
  )


def _input_fn(params):
  """Empty batches in the form of data/inputs.py."""
  options = params.input_data.preprocessing
  side, views = options.image_size, options.num_views

  def build(params):
    batch = params['batch_size']
    features = {
      'images': tf.zeros([batch, views, side, side, 3], tf.bfloat16),
      'blur_sigmas': tf.zeros([batch, views]),
    }
    labels = tf.zeros([batch], tf.int32)
    return tf.data.Dataset.from_tensors((features, labels)).repeat()

  return build
