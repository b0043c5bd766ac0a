"""Encoders: ResNet V1 and ResNeXt for images of any size.

Deep Residual Learning (https://arxiv.org/abs/1512.03385), with the stride of a
bottleneck on its 3x3 convolution, and Aggregated Residual Transformations
(https://arxiv.org/abs/1611.05431). Names and order of creation of the variables
are those of the published checkpoints.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import functools
import math
from typing import NamedTuple

import tensorflow as tf

from supcon import enums
from supcon.models import layers

_RESNEXT_GROUPS = 32


class _Block(layers.Module):
  """relu(body(x) + shortcut(x)); subclasses make the body.

  Attributes:
    name: Scope of the block.
    expansion: Output channels of the block over its channels.
  """

  scope: str
  expansion: int

  def __init__(self, parent, in_channels, channels, stride, project, norm):
    """Makes the variables.

    Args:
      parent: The Module that this is a part of.
      in_channels: Int; channels of the input.
      channels: Int; channels inside.
      stride: Int; of the block as a whole.
      project: Whether the shortcut is a 1x1 convolution; otherwise it is the
        input itself, which then has the shape of the output.
      norm: Called as norm(parent, channels); `layers.BatchNorm`, bound.
    """
    super().__init__(parent, self.scope)
    out_channels = channels * self.expansion
    self._shortcut = None
    if project:
      self._shortcut = (
        layers.Conv2D(self, in_channels, out_channels, 1, stride),
        norm(self, out_channels),
      )
    self._body = self._make_body(in_channels, channels, stride, norm)

  def _make_body(self, in_channels, channels, stride, norm):
    """Returns (convolution, batch norm) pairs; relu stands between them."""
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


class _ResidualBlock(_Block):
  """Two 3x3 convolutions."""

  scope = 'ResidualBlock'
  expansion = 1

  def _make_body(self, in_channels, channels, stride, norm):
    return (
      (
        layers.Conv2D(self, in_channels, channels, 3, stride),
        norm(self, channels),
      ),
      (
        layers.Conv2D(self, channels, channels, 3, 1),
        # The block starts as its shortcut alone, which trains better.
        norm(self, channels, gamma=0.0),
      ),
    )


class _BottleneckBlock(_Block):
  """1x1 down, 3x3, 1x1 up to four times the channels."""

  scope = 'BottleneckBlock'
  expansion = 4

  def _make_body(self, in_channels, channels, stride, norm):
    out_channels = channels * self.expansion
    return (
      (
        layers.Conv2D(self, in_channels, channels, 1, 1),
        norm(self, channels),
      ),
      (
        layers.Conv2D(self, channels, channels, 3, stride),
        norm(self, channels),
      ),
      (
        layers.Conv2D(self, channels, out_channels, 1, 1),
        norm(self, out_channels, gamma=0.0),
      ),
    )


class _ResNeXtBlock(_Block):
  """A bottleneck of double inner width whose 3x3 convolution is grouped."""

  scope = 'ResNextBlock'
  expansion = 4

  def _make_body(self, in_channels, channels, stride, norm):
    inner = 2 * channels
    out_channels = channels * self.expansion
    # The published layer divides the channels before doubling: its 32 groups
    # of `channels` are 64 groups of the inner width.
    groups = 2 * _RESNEXT_GROUPS
    return (
      (
        layers.Conv2D(self, in_channels, inner, 1, 1),
        norm(self, inner),
      ),
      (
        layers.GroupConv2D(self, inner, inner, 3, stride, groups),
        norm(self, inner),
      ),
      (
        layers.Conv2D(self, inner, out_channels, 1, 1),
        norm(self, out_channels),
      ),
    )


class _BlockGroup(layers.Module):
  """Blocks of one resolution; the first changes stride and channels."""

  def __init__(
    self, parent, name, block, num_blocks, in_channels, channels, stride, norm
  ):
    super().__init__(parent, name)
    out_channels = channels * block.expansion
    self._blocks = [block(self, in_channels, channels, stride, True, norm)]
    for _ in range(num_blocks - 1):
      self._blocks.append(block(self, out_channels, channels, 1, False, norm))

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
    block, group_sizes = _look_up(architecture)
    norm = functools.partial(
      layers.BatchNorm, synchronised=architecture.use_global_batch_norm
    )
    width = architecture.encoder_width
    channels = int(64 * width)
    self._use_max_pool = architecture.use_initial_max_pool
    self._stem = layers.Conv2D(
      self,
      3,
      channels,
      architecture.first_conv_kernel_size,
      architecture.first_conv_stride,
    )
    self._stem_norm = norm(self, channels)
    self._groups = []
    for index, num_blocks in enumerate(group_sizes):
      in_channels, channels = channels, int(64 * 2**index * width)
      self._groups.append(
        _BlockGroup(
          self,
          f'BlockGroup{index}',
          block,
          num_blocks,
          in_channels,
          channels,
          stride=1 if index == 0 else 2,
          norm=norm,
        )
      )
      channels *= block.expansion
    self.embedding_size = channels

  def forward(self, x, training):
    """Maps images [B, H, W, 3] to embeddings, float32 [B, D]."""
    x = self._stem(x, training)
    x = tf.nn.relu(self._stem_norm(x, training))
    if self._use_max_pool:
      x = tf.nn.max_pool2d(x, 3, 2, 'SAME')
    for group in self._groups:
      x = group(x, training)
    return tf.reduce_mean(tf.cast(x, tf.float32), [1, 2])


class Description(NamedTuple):
  """What an encoder is, as far as its variables tell; strides do not show."""

  architecture: enums.EncoderArchitecture
  depth: int
  width: float
  first_conv_kernel_size: int


def describe(shapes: Mapping[str, Sequence[int]]) -> Description | None:
  """Returns what encoder variables are of; None if it is none of these.

  Args:
    shapes: {name: shape} of all of them, the names without the scope of the
      encoder. What else lies in their scopes, such as slots, does no harm.
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
  width = _width(shortcut[-1] // block.expansion)
  return Description(architecture, depth, width, stem[0])


def _block_scopes(block, group_sizes):
  """Returns the (scope of its group, own scope) of each block."""
  return {
    (f'BlockGroup{group}', block.scope + (f'_{index}' if index else ''))
    for group, num_blocks in enumerate(group_sizes)
    for index in range(num_blocks)
  }


def _width(channels):
  """Returns a width with which the last group has so many channels.

  It has int(512 * width), and the others what is left of those when halved and
  rounded down: every width that fits makes the same network. Two digits after
  the point are what a user has most likely written.
  """
  width = math.ceil(100 * channels / 512) / 100
  return width if int(512 * width) == channels else channels / 512


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
