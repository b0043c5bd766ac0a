"""The graphs of TPUEstimator, as far as they can be built and looked at."""

import dataclasses
import re

import numpy as np
import pytest
import tensorflow as tf

from supcon.config import enums
from supcon.config import hparams
from tests.tpu import cases
from tests.tpu import offline
from tests.tpu import program
from tests.tpu import scripts

tf1 = tf.compat.v1


def test_what_xla_cannot_compile_is_refused():
  params = cases.params(enums.Optimizer.MOMENTUM)
  function = cases.function(params, 1, use_tpu=True)

  def with_strings(features, labels, mode, params):
    labels = tf.strings.length(tf.strings.as_string(labels))
    return function(features, labels, mode, params)

  graph = offline.training_graph(
    with_strings,
    cases.input_fn(tf.float32, with_weights=False),
    4,
    cases.BATCH_SIZE,
    steps=1,
  )
  with pytest.raises(ValueError, match='tf.AsString'):
    program.lower(graph)


def test_variables_start_from_the_reference(tmp_path):
  params = dataclasses.replace(
    cases.params(enums.Optimizer.MOMENTUM),
    warm_start=hparams.WarmStart(warm_start_encoder=True),
  )
  expected = cases.initial_variables(params)
  prefix = str(tmp_path / 'model.ckpt-0')
  tf.raw_ops.SaveV2(
    prefix=prefix,
    tensor_names=list(expected),
    shape_and_slices=[''] * len(expected),
    tensors=[tf.constant(value + 1) for value in expected.values()],
  )
  graph = offline.training_graph(
    cases.function(params, 1, use_tpu=True, reference_checkpoint=prefix),
    cases.input_fn(tf.float32, with_weights=False),
    4,
    cases.BATCH_SIZE,
    steps=1,
  )
  with graph.as_default():
    variables = {v.op.name: v for v in tf1.global_variables()}
  kernel = 'ContrastiveModel/Encoder/Conv2DFixedPadding/conv2d/kernel'
  other = 'ContrastiveModel/ClassificationHead/dense/bias'
  options = tf1.GraphOptions(place_pruned_graph=True)  # There is no TPU.
  with tf1.Session(
    graph=graph, config=tf1.ConfigProto(graph_options=options)
  ) as session:
    session.run([variables[name].initializer for name in (kernel, other)])
    found = session.run([variables[kernel], variables[other]])
  np.testing.assert_array_equal(found[0], expected[kernel] + 1)
  np.testing.assert_array_equal(found[1], expected[other])


# --- The published scripts ----------------------------------------------------


def _check_script(script, depth=None):
  params = scripts.params(script)
  mlir = program.lower(scripts.training_graph(script, depth=depth))
  # Each core gets its share of the batch.
  (infeed,) = re.findall(r'"mhlo.infeed".*-> \((.*)\)', mlir)
  options = params.input_data.preprocessing
  share = params.batch_size // scripts.intended_cores(script)
  side, views = options.image_size, options.num_views
  images = f'{share}x{views}x{side}x{side}x3xbf16'
  assert f'tensor<{images}>' in infeed
  # Features and classes go to all cores, as they are.
  size = params.architecture.projection_head_layers[-1]
  gathers = re.findall(r'mhlo.all_to_all.*: \(tensor<(.*?)>\)', mlir)
  assert set(gathers) == {
    f'{params.batch_size}x{views}x{size}xf32',
    f'{params.batch_size}xi32',
  }
  assert not re.search(r'mhlo.cross-replica-sum.*bf16', mlir)


# Whole, the graph of the first is built in seconds, those of 200 layers in half
# a minute: here they are reduced in depth, and in nothing else.
@pytest.mark.parametrize('script', scripts.NAMES)
def test_the_graph_of_a_script_builds_for_its_cores(script):
  whole = script == 'supcon_imagenet_resnet50'
  _check_script(script, depth=None if whole else 18)


# The other scripts have the graph of ResNet-50 that is checked above.
@pytest.mark.slow
@pytest.mark.parametrize(
  'script', ['supcon_imagenet_resnet101', 'supcon_imagenet_resnet200']
)
def test_the_whole_graph_of_a_deep_encoder_builds(script):
  _check_script(script)
