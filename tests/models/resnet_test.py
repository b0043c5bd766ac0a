"""Encoders: their variables against the published ones, sizes, initial values.

Their outputs are compared with the published ones in contrastive_test.py.
"""

import csv
import re

import numpy as np
import pytest
import tensorflow as tf

from supcon.config import enums
from supcon.config import hparams
from supcon.models import contrastive
from supcon.models import layers
from supcon.models import resnet
from tests import golden

tf1 = tf.compat.v1

_STEMS = {
  'cifar': {
    'first_conv_kernel_size': 3,
    'first_conv_stride': 1,
    'use_initial_max_pool': False,
  },
  'imagenet': {},
}
_NUM_CLASSES = {'cifar': 10, 'imagenet': 1000}
_TABLES = sorted(
  path.name for path in golden.path('variables').glob('variables_*.tsv')
)


@pytest.fixture(autouse=True)
def _graph():
  with tf.Graph().as_default():
    tf1.set_random_seed(0)
    yield


def _encoder(**architecture):
  return resnet.Encoder(
    layers.Module(None, 'Model'), hparams.Architecture(**architecture)
  )


@pytest.mark.parametrize('table', _TABLES)
def test_variables_are_the_published_ones(table):
  kind, depth, stem = re.fullmatch(
    r'variables_(\w+)_(\d+)_(\w+)\.tsv', table
  ).groups()
  model = contrastive.ContrastiveModel(
    hparams.Architecture(
      encoder_architecture=enums.EncoderArchitecture[kind.upper()],
      encoder_depth=int(depth),
      **_STEMS[stem],
    ),
    _NUM_CLASSES[stem],
  )
  with golden.path(f'variables/{table}').open(newline='') as rows:
    expected = [
      (row['name'], row['shape'], row['dtype'], row['trainable'])
      for row in csv.DictReader(rows, delimiter='\t')
    ]
  found = [
    (
      v.op.name,
      ','.join(str(size) for size in v.shape),
      v.dtype.base_dtype.name,
      str(int(v.trainable)),
    )
    for v in model.variables
  ]
  assert found == expected
  # Modules hand out the very variables that a Saver and an optimizer find.
  assert tf1.global_variables() == model.variables
  assert tf1.trainable_variables() == model.trainable_variables
  roles = (model.kernels, model.biases, model.batch_norm_variables)
  assert sum(len(variables) for variables in roles) == len(model.variables)
  # Nothing is computed yet, which keeps construction quick.
  types = {op.type for op in tf1.get_default_graph().get_operations()}
  assert not types & {'Conv2D', 'FusedBatchNormV3', 'MatMul'}


def test_every_depth_can_be_built():
  depths = {
    kind: tuple(depth for its_kind, depth in resnet._BLOCKS if its_kind is kind)
    for kind in (resnet._RESNET_V1, resnet._RESNEXT)
  }
  assert depths == hparams.DEPTHS


@pytest.mark.parametrize(
  'kind, depth, layers_per_block',
  [
    (kind, depth, 2 if depth < 50 else 3)
    for kind, depths in hparams.DEPTHS.items()
    for depth in depths
  ],
)
def test_depth_counts_the_layers(kind, depth, layers_per_block):
  # The stem and the classifier count, shortcuts do not.
  _, group_sizes = resnet._BLOCKS[kind, depth]
  assert 2 + layers_per_block * sum(group_sizes) == depth


@pytest.mark.parametrize(
  'width, stem, channels, embedding_size',
  [
    # int(64 * 2**i * width): 64 * .3 = 19.2, 128 * .3 = 38.4, 76.8, 153.6.
    (0.3, 19, [19, 38, 76, 153], 153),
    (2.0, 128, [128, 256, 512, 1024], 1024),
  ],
)
def test_width_multiplies_channels(width, stem, channels, embedding_size):
  encoder = _encoder(encoder_depth=18, encoder_width=width)
  kernels = {v.op.name: v for v in encoder.kernels}
  assert (
    kernels['Model/Encoder/Conv2DFixedPadding/conv2d/kernel'].shape[-1] == stem
  )
  assert [
    kernels[
      f'Model/Encoder/BlockGroup{i}/ResidualBlock_1/Conv2DFixedPadding_1'
      '/conv2d/kernel'
    ].shape[-1]
    for i in range(4)
  ] == channels
  assert encoder.embedding_size == embedding_size


@pytest.mark.parametrize('dtype', [tf.float32, tf.bfloat16])
@pytest.mark.parametrize('stem', _STEMS)
@pytest.mark.parametrize(
  'kind, depth, width, embedding_size',
  [
    ('RESNET_V1', 18, 0.125, 64),
    ('RESNET_V1', 50, 0.125, 256),
    ('RESNEXT', 50, 0.5, 1024),
  ],
)
def test_embeddings_are_float32(
  kind, depth, width, embedding_size, stem, dtype
):
  encoder = _encoder(
    encoder_architecture=enums.EncoderArchitecture[kind],
    encoder_depth=depth,
    encoder_width=width,
    **_STEMS[stem],
  )
  assert encoder.embedding_size == embedding_size
  embedding = encoder(tf.zeros([2, 33, 20, 3], dtype), training=True)
  assert embedding.shape == [2, embedding_size]
  assert embedding.dtype == tf.float32
  convolutions = [
    op
    for op in tf1.get_default_graph().get_operations()
    if op.type in ('Conv2D', 'FusedBatchNormV3')
  ]
  assert {op.outputs[0].dtype for op in convolutions} == {dtype}
  # Hundreds of places are added up: not with 8 bits.
  assert embedding.op.type == 'Mean'
  assert embedding.op.inputs[0].dtype == tf.float32


def test_bfloat16_embeddings_are_near_float32():
  encoder = _encoder(encoder_depth=18, encoder_width=0.25, **_STEMS['cifar'])
  images = np.random.RandomState(0).uniform(-1, 1, [4, 16, 16, 3])
  embeddings = [
    encoder(tf.cast(images, dtype), training=False)
    for dtype in (tf.float32, tf.bfloat16)
  ]
  with tf1.Session() as session:
    session.run(tf1.global_variables_initializer())
    full, half = session.run(embeddings)
  # 8 significant bits through 17 layers.
  np.testing.assert_allclose(half, full, atol=0.05 * np.abs(full).max())


@pytest.mark.parametrize(
  'kind, depth, silent_per_block',
  [('RESNET_V1', 18, 1), ('RESNET_V1', 50, 1), ('RESNEXT', 50, 0)],
)
def test_last_gamma_of_a_residual_block_starts_at_zero(
  kind, depth, silent_per_block
):
  architecture = enums.EncoderArchitecture[kind]
  encoder = _encoder(
    encoder_architecture=architecture, encoder_depth=depth, encoder_width=0.5
  )
  gammas = [
    v for v in encoder.trainable_variables if v.op.name.endswith('/gamma')
  ]
  with tf1.Session() as session:
    session.run(tf1.global_variables_initializer())
    values = session.run(gammas)
  silent = {v.op.name for v, value in zip(gammas, values) if not np.any(value)}
  num_blocks = sum(resnet._BLOCKS[architecture, depth][1])
  assert len(silent) == silent_per_block * num_blocks
  assert all(np.all(value == value[0]) for value in values)
  last = {}  # Variables come in order of creation: the last of a block stays.
  for v in gammas:
    block, _, _ = v.op.name.rpartition('/batch_normalization')
    last[block] = v.op.name
  assert silent <= set(last.values())


def test_unknown_depth_is_refused():
  with pytest.raises(ValueError, match='RESNEXT of depth 18; .*RESNEXT 50'):
    _encoder(
      encoder_architecture=enums.EncoderArchitecture.RESNEXT, encoder_depth=18
    )


def test_resnext_that_does_not_split_into_groups_is_refused():
  with pytest.raises(ValueError, match='resnet_width=0.25 makes 16 channels'):
    _encoder(
      encoder_architecture=enums.EncoderArchitecture.RESNEXT,
      encoder_depth=50,
      encoder_width=0.25,
    )


# --- What an encoder is, by its variables -------------------------------------


def _shapes(**architecture):
  """Returns {name below the encoder's scope: shape}."""
  with tf.Graph().as_default():
    variables = _encoder(**architecture).variables
  start = 'Model/Encoder/'
  return {v.op.name[len(start) :]: v.shape.as_list() for v in variables}


@pytest.mark.parametrize(
  'kind, depth',
  [
    (kind, depth) for kind, depths in hparams.DEPTHS.items() for depth in depths
  ],
)
def test_every_encoder_is_recognised(kind, depth):
  shapes = _shapes(
    encoder_architecture=kind,
    encoder_depth=depth,
    encoder_width=0.5,
    first_conv_kernel_size=5,
  )
  expected = (kind, depth, 0.5, 5)
  assert resnet.describe(shapes) == expected
  # The order does not matter, nor do slots.
  slots = {f'{name}/Momentum': shape for name, shape in shapes.items()}
  assert resnet.describe({**slots, **shapes}) == expected


@pytest.mark.parametrize(
  'width, expected',
  [
    # Two digits are enough to make int(512 * width) channels.
    (1.0, 1.0),
    (4.0, 4.0),
    (1.5, 1.5),
    (0.3, 0.3),
    (0.36, 0.36),
    (0.99, 0.99),
    # 512 / 16 = 32; neither 0.06 * 512 = 30.7 nor 0.07 * 512 = 35.8 do.
    (1 / 16, 0.0625),
    (1 / 64, 0.015625),
    # 512 / 3 = 170.7; 0.33 makes 168, 0.34 makes 174, 170 / 512 makes 170.
    (1 / 3, 0.33203125),
  ],
)
@pytest.mark.parametrize('depth', [18, 50])
def test_the_width_is_one_that_makes_the_same_network(depth, width, expected):
  shapes = _shapes(encoder_depth=depth, encoder_width=width)
  found = resnet.describe(shapes)
  assert found.width == expected
  assert _shapes(encoder_depth=depth, encoder_width=found.width) == shapes


def test_every_number_of_channels_has_a_width():
  for channels in range(8, 2050):
    width = resnet.width_of(channels)
    assert int(64 * 2**3 * width) == channels
    for group in range(3):  # As for every other width that makes as many.
      assert int(64 * 2**group * width) == channels >> (3 - group)


@pytest.mark.parametrize('table', _TABLES)
def test_published_encoders_are_recognised(table):
  kind, depth, stem = re.fullmatch(
    r'variables_(\w+)_(\d+)_(\w+)\.tsv', table
  ).groups()
  start = 'ContrastiveModel/Encoder/'
  with golden.path(f'variables/{table}').open(newline='') as rows:
    shapes = {
      row['name'][len(start) :]: [int(size) for size in row['shape'].split(',')]
      for row in csv.DictReader(rows, delimiter='\t')
      if row['name'].startswith(start)
    }
  kernel_size = {'cifar': 3, 'imagenet': 7}[stem]
  architecture = enums.EncoderArchitecture[kind.upper()]
  assert resnet.describe(shapes) == (
    architecture,
    int(depth),
    1.0,
    kernel_size,
  )


def test_what_is_none_of_the_encoders_is_not_recognised():
  shapes = _shapes(encoder_depth=18, encoder_width=0.25)
  stem = 'Conv2DFixedPadding/conv2d/kernel'
  block = 'BlockGroup1/ResidualBlock_1/'
  others = {
    'nothing': {},
    'another family': {'conv1/kernel': [7, 7, 3, 64]},
    'a block less': {
      name: shape
      for name, shape in shapes.items()
      if not name.startswith(block)
    },
    'a block more': {
      **shapes,
      f'BlockGroup1/ResidualBlock_2/{stem}': [3, 3, 32, 32],
    },
    'no stem': {n: shape for n, shape in shapes.items() if n != stem},
    'another stem': {**shapes, stem: [7, 3, 64]},
    'blocks of two kinds': {
      name.replace(block, 'BlockGroup1/BottleneckBlock/'): shape
      for name, shape in shapes.items()
    },
  }
  for what, variables in others.items():
    assert resnet.describe(variables) is None, what


# --- What it holds ------------------------------------------------------------


@pytest.mark.parametrize(
  'kind, depth, width, stem, image_size',
  [
    ('RESNET_V1', 18, 0.25, 'cifar', 32),
    ('RESNET_V1', 18, 0.25, 'imagenet', 45),
    ('RESNET_V1', 50, 0.125, 'imagenet', 45),
    ('RESNEXT', 50, 0.5, 'cifar', 19),
  ],
)
def test_activations_are_those_of_the_graph(
  kind, depth, width, stem, image_size
):
  architecture = hparams.Architecture(
    encoder_architecture=enums.EncoderArchitecture[kind],
    encoder_depth=depth,
    encoder_width=width,
    **_STEMS[stem],
  )
  encoder = resnet.Encoder(layers.Module(None, 'Model'), architecture)
  images = tf1.placeholder(tf.float32, [1, image_size, image_size, 3])
  with pytest.MonkeyPatch.context() as patch:
    # As it is on most machines: one op, not one for each channel of a group.
    patch.setattr(layers, 'has_group_convolution_gradient', lambda: True)
    encoder(images, training=True)

  def is_held(op):
    # Padding by nothing is no op once the graph is optimised.
    return op.type in ('Conv2D', 'Relu', 'MaxPool') or (
      op.type == 'Pad' and op.inputs[0].shape != op.outputs[0].shape
    )

  operations = tf1.get_default_graph().get_operations()
  held = [tuple(op.outputs[0].shape[1:]) for op in operations if is_held(op)]
  expected = [tuple(images.shape[1:]), *held]
  found = resnet.activations(architecture, image_size)
  assert sorted(found) == sorted(expected)
  assert found[0].size == 3 * image_size**2


@pytest.mark.parametrize('kind, depth', [('RESNET_V1', 34), ('RESNEXT', 50)])
def test_values_are_those_of_the_variables(kind, depth):
  architecture = hparams.Architecture(
    encoder_architecture=enums.EncoderArchitecture[kind],
    encoder_depth=depth,
    encoder_width=0.5,
  )
  encoder = resnet.Encoder(layers.Module(None, 'Model'), architecture)
  count = sum(v.shape.num_elements() for v in encoder.variables)
  assert resnet.num_values(architecture) == count
  assert resnet.embedding_size(architecture) == encoder.embedding_size
