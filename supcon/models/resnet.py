"""Encoders: ResNet V1 and ResNeXt for images of any size.

Deep Residual Learning (https://arxiv.org/abs/1512.03385), with the stride of a
bottleneck on its 3x3 convolution, and Aggregated Residual Transformations
(https://arxiv.org/abs/1611.05431). The variables have the names and the order
of creation of the published checkpoints.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import functools
import math
from typing import NamedTuple

import tensorflow as tf

from supcon.config import enums
from supcon.config import hparams
from supcon.models import layers

_RESNEXT_GROUPS = 32


class _Conv(NamedTuple):
  """A convolution of a block."""

  in_channels: int
  out_channels: int
  kernel_size: int
  stride: int
  groups: int = 1


class _Block(layers.Module):
  """relu(body(x) + shortcut(x)); subclasses describe the body.

  Attributes:
    name: Scope of the block.
    expansion: Ratio of the block's output channels to its inner channels.
    last_gamma: Initial gamma of the last batch norm.
  """

  scope: str
  expansion: int
  # The block starts as only its shortcut, which trains better.
  last_gamma = 0.0

  def __init__(self, parent, in_channels, channels, stride, project, norm):
    """Makes the variables.

    Args:
      parent: The Module that this is a part of.
      in_channels: Int; channels of the input.
      channels: Int; channels inside.
      stride: Int; stride of the whole block.
      project: Whether the shortcut is a 1x1 convolution. Otherwise it is the
        input itself, which must then have the shape of the output.
      norm: A function norm(parent, channels), such as a partial
        `layers.BatchNorm`.
    """
    super().__init__(parent, self.scope)
    self._shortcut = None
    if project:
      conv = self.shortcut(in_channels, channels, stride)
      self._shortcut = _make(self, conv, norm)
    *first, last = self.body(in_channels, channels, stride)
    # Pairs of a convolution and its batch norm, with relu between the pairs.
    self._body = [
      *(_make(self, conv, norm) for conv in first),
      _make(self, last, norm, gamma=self.last_gamma),
    ]

  @classmethod
  def shortcut(cls, in_channels, channels, stride) -> _Conv:
    """Returns the convolution of a projecting shortcut."""
    return _Conv(in_channels, channels * cls.expansion, 1, stride)

  @classmethod
  def body(cls, in_channels, channels, stride) -> Sequence[_Conv]:
    """Returns the convolutions of the body in order."""
    raise NotImplementedError

  def forward(self, x, training):
    """Maps [B, H, W, in] to [B, H / stride, W / stride, out], rounded up."""
    shortcut = x
    if self._shortcut:
      conv, norm = self._shortcut
      shortcut = norm(conv(x, training), training)
    for index, (conv, norm) in enumerate(self._body):
      x = tf.nn.relu(x) if index else x
      x = norm(conv(x, training), training)
    return tf.nn.relu(x + shortcut)


def _make(parent, conv, norm, **options):
  """Makes a convolution and its batch norm."""
  if conv.groups > 1:
    layer = layers.GroupConv2D(parent, *conv)
  else:
    layer = layers.Conv2D(parent, *conv[:-1])
  return layer, norm(parent, conv.out_channels, **options)


class _ResidualBlock(_Block):
  """Two 3x3 convolutions."""

  scope = 'ResidualBlock'
  expansion = 1

  @classmethod
  def body(cls, in_channels, channels, stride):
    return (
      _Conv(in_channels, channels, 3, stride),
      _Conv(channels, channels, 3, 1),
    )


class _BottleneckBlock(_Block):
  """1x1 down, 3x3, 1x1 up to four times the channels."""

  scope = 'BottleneckBlock'
  expansion = 4

  @classmethod
  def body(cls, in_channels, channels, stride):
    return (
      _Conv(in_channels, channels, 1, 1),
      _Conv(channels, channels, 3, stride),
      _Conv(channels, channels * cls.expansion, 1, 1),
    )


class _ResNeXtBlock(_Block):
  """A bottleneck of double inner width whose 3x3 convolution is grouped."""

  scope = 'ResNextBlock'
  expansion = 4
  last_gamma = 1.0

  @classmethod
  def body(cls, in_channels, channels, stride):
    inner = 2 * channels
    # The published layer divides the channels before doubling them: its 32
    # groups of `channels` are 64 groups of the inner width.
    return (
      _Conv(in_channels, inner, 1, 1),
      _Conv(inner, inner, 3, stride, groups=2 * _RESNEXT_GROUPS),
      _Conv(inner, channels * cls.expansion, 1, 1),
    )


class _Group(NamedTuple):
  """The blocks of one resolution; the first changes stride and channels."""

  block: type[_Block]
  num_blocks: int
  in_channels: int
  channels: int
  stride: int

  @property
  def out_channels(self):
    return self.channels * self.block.expansion

  def inputs(self):
    """Yields (input channels, stride, whether it projects) of each block."""
    yield self.in_channels, self.stride, True
    for _ in range(self.num_blocks - 1):
      yield self.out_channels, 1, False


class _BlockGroup(layers.Module):
  """The layers of a group."""

  def __init__(self, parent, name, group, norm):
    super().__init__(parent, name)
    self._blocks = [
      group.block(self, in_channels, group.channels, stride, project, norm)
      for in_channels, stride, project in group.inputs()
    ]

  def forward(self, x, training):
    for block in self._blocks:
      x = block(x, training)
    return x


_RESNET_V1 = enums.EncoderArchitecture.RESNET_V1
_RESNEXT = enums.EncoderArchitecture.RESNEXT

_BLOCKS = {  # (architecture, depth): (block, number of blocks in each group)
  (_RESNET_V1, 18): (_ResidualBlock, (2, 2, 2, 2)),
  (_RESNET_V1, 34): (_ResidualBlock, (3, 4, 6, 3)),
  (_RESNET_V1, 50): (_BottleneckBlock, (3, 4, 6, 3)),
  (_RESNET_V1, 101): (_BottleneckBlock, (3, 4, 23, 3)),
  (_RESNET_V1, 152): (_BottleneckBlock, (3, 8, 36, 3)),
  (_RESNET_V1, 200): (_BottleneckBlock, (3, 24, 36, 3)),
  (_RESNEXT, 50): (_ResNeXtBlock, (3, 4, 6, 3)),
  (_RESNEXT, 101): (_ResNeXtBlock, (3, 4, 23, 3)),
  (_RESNEXT, 152): (_ResNeXtBlock, (3, 8, 36, 3)),
  (_RESNEXT, 200): (_ResNeXtBlock, (3, 24, 36, 3)),
}


class Encoder(layers.Module):
  """Stem, four groups of blocks, global average pool.

  Attributes:
    embedding_size: Int D; length of an embedding.
  """

  def __init__(self, parent, architecture):
    """Makes the variables.

    Args:
      parent: The Module that this is a part of.
      architecture: hparams.Architecture.

    Raises:
      ValueError: If the encoder does not exist in this depth or width.
    """
    super().__init__(parent, 'Encoder')
    norm = functools.partial(
      layers.BatchNorm, synchronised=architecture.use_global_batch_norm
    )
    stem, groups = _table(architecture)
    self._use_max_pool = architecture.use_initial_max_pool
    self._stem, self._stem_norm = _make(self, stem, norm)
    self._groups = [
      _BlockGroup(self, f'BlockGroup{index}', group, norm)
      for index, group in enumerate(groups)
    ]
    self.embedding_size = groups[-1].out_channels

  def forward(self, x, training):
    """Maps images [B, H, W, 3] to embeddings, float32 [B, D]."""
    x = self._stem(x, training)
    x = tf.nn.relu(self._stem_norm(x, training))
    if self._use_max_pool:
      x = tf.nn.max_pool2d(x, 3, 2, 'SAME')
    for group in self._groups:
      x = group(x, training)
    return tf.reduce_mean(tf.cast(x, tf.float32), [1, 2])


def activations(
  architecture: hparams.Architecture, image_size: int
) -> list[layers.Activation]:
  """Returns the tensors that a training step holds for its backward pass.

  In the order of the forward pass, these are the output of each convolution
  (needed by its batch norm), the output of each relu (needed by the relu and
  the next convolution), and the padded inputs of strided convolutions. The
  tensor between batch norm and relu is not needed: the relu overwrites it in
  place.

  Args:
    architecture: The architecture of the encoder.
    image_size: Height and width of the images, in pixels.

  Raises:
    ValueError: If the encoder does not exist in this depth or width.
  """
  stem, groups = _table(architecture)
  result = []

  def add(side, channels):
    result.append(layers.Activation(side, side, channels))

  def convolve(side, conv):
    """Adds the tensors of a convolution; returns the side of its output."""
    if conv.stride > 1:  # Like _pad and, within the op, 'SAME'.
      if conv.groups == 1 and conv.kernel_size > 1:
        add(side + conv.kernel_size - 1, conv.in_channels)
      side = -(-side // conv.stride)
    add(side, conv.out_channels)
    return side

  add(image_size, stem.in_channels)
  side = convolve(image_size, stem)
  add(side, stem.out_channels)
  if architecture.use_initial_max_pool:
    side = -(-side // 2)
    add(side, stem.out_channels)
  for group in groups:
    for in_channels, stride, project in group.inputs():
      shape = in_channels, group.channels, stride
      if project:
        convolve(side, group.block.shortcut(*shape))
      for conv in group.block.body(*shape):
        side = convolve(side, conv)
        add(side, conv.out_channels)
  return result


def num_values(architecture: hparams.Architecture) -> int:
  """Returns the number of values in the variables of the encoder."""
  stem, groups = _table(architecture)
  convs = [stem]
  for group in groups:
    for in_channels, stride, project in group.inputs():
      shape = in_channels, group.channels, stride
      convs += [group.block.shortcut(*shape)] if project else []
      convs += group.block.body(*shape)
  return sum(
    conv.kernel_size**2 * conv.in_channels // conv.groups * conv.out_channels
    + 4 * conv.out_channels  # The batch norm.
    for conv in convs
  )


def embedding_size(architecture: hparams.Architecture) -> int:
  """Returns the length of an embedding."""
  _, groups = _table(architecture)
  return groups[-1].out_channels


class Description(NamedTuple):
  """The type of an encoder as its variables show it, without strides."""

  architecture: enums.EncoderArchitecture
  depth: int
  width: float
  first_conv_kernel_size: int


def describe(shapes: Mapping[str, Sequence[int]]) -> Description | None:
  """Identifies an encoder by its variables; None if it is none of these.

  Args:
    shapes: {name: shape} of all its variables; names do not include the scope
      of the encoder. Other variables in these scopes, such as slots, are
      ignored.
  """
  blocks = {
    tuple(name.split('/')[:2])
    for name in shapes
    if name.startswith('BlockGroup')
  }
  kinds = [kind for kind in _BLOCKS if _block_scopes(*_BLOCKS[kind]) == blocks]
  if not kinds:
    return None
  ((architecture, depth),) = kinds
  block, _ = _BLOCKS[architecture, depth]
  kernel = 'Conv2DFixedPadding/conv2d/kernel'
  stem = shapes.get(kernel, ())
  shortcut = shapes.get(f'BlockGroup3/{block.scope}/{kernel}', ())
  if len(stem) != 4 or len(shortcut) != 4:
    return None
  width = width_of(shortcut[-1] // block.expansion)
  return Description(architecture, depth, width, stem[0])


def _block_scopes(block, group_sizes):
  """Returns (scope of its group, own scope) for each block."""
  return {
    (f'BlockGroup{group}', block.scope + (f'_{index}' if index else ''))
    for group, num_blocks in enumerate(group_sizes)
    for index in range(num_blocks)
  }


def width_of(channels):
  """Returns a width that gives the last group this number of channels.

  The last group has int(512 * width) channels; halving and rounding down gives
  the other groups. So every width that fits describes the same network. The
  result has at most two decimals if possible, as a user has most likely written
  it.
  """
  width = math.ceil(100 * channels / 512) / 100
  return width if int(512 * width) == channels else channels / 512


def _table(architecture):
  """Returns the convolution of the stem, and the groups."""
  block, group_sizes = _look_up(architecture)
  width = architecture.encoder_width
  channels = int(64 * width)
  stem = _Conv(
    3,
    channels,
    architecture.first_conv_kernel_size,
    architecture.first_conv_stride,
  )
  groups = []
  for index, num_blocks in enumerate(group_sizes):
    groups.append(
      _Group(
        block,
        num_blocks,
        in_channels=channels,
        channels=int(64 * 2**index * width),
        stride=1 if index == 0 else 2,
      )
    )
    channels = groups[-1].out_channels
  return stem, groups


def _look_up(architecture):
  """Returns the block class and the number of blocks in each group."""
  kind, depth = architecture.encoder_architecture, architecture.encoder_depth
  if (kind, depth) not in _BLOCKS:
    choices = ', '.join(f'{kind.name} {depth}' for kind, depth in _BLOCKS)
    raise ValueError(
      f'there is no encoder {kind.name} of depth {depth}; choose one of '
      f'{choices}.'
    )
  width = architecture.encoder_width
  if kind is _RESNEXT and int(64 * width) % _RESNEXT_GROUPS:
    raise ValueError(
      f'--resnet_width={width} makes {int(64 * width)} channels, which do '
      f'not split into the {_RESNEXT_GROUPS} groups of RESNEXT; give a '
      'multiple of 0.5.'
    )
  return _BLOCKS[kind, depth]
