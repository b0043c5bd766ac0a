"""An encoder of about 700 parameters, for trying things out and for tests.

Rounding errors do not grow in such a shallow network: the same computation
gives the same weights, up to float32.
"""

import functools

import tensorflow as tf

from supcon.config import hparams
from supcon.models import layers

_SIZE = 16
# (Input channels, output channels, stride) of each convolution.
_CONVS = ((3, 4, 1), (4, _SIZE, 2))
_KERNEL = 3


class Encoder(layers.Module):
  """Two 3x3 convolutions, each with batch norm and relu, then the mean.

  Attributes:
    embedding_size: Int.
  """

  embedding_size = _SIZE

  def __init__(self, parent, architecture):
    """Makes the variables.

    Args:
      parent: The Module that this is a part of.
      architecture: hparams.Architecture; only `use_global_batch_norm` matters.
    """
    super().__init__(parent, 'Encoder')
    norm = functools.partial(
      layers.BatchNorm, synchronised=architecture.use_global_batch_norm
    )
    self._pairs = [
      (layers.Conv2D(self, in_size, size, _KERNEL, stride), norm(self, size))
      for in_size, size, stride in _CONVS
    ]

  def forward(self, x, training):
    """Maps images [B, H, W, 3] to embeddings, float32 [B, 16]."""
    for conv, norm in self._pairs:
      x = tf.nn.relu(norm(conv(x, training), training))
    return tf.reduce_mean(tf.cast(x, tf.float32), [1, 2])


def activations(
  architecture: hparams.Architecture, image_size: int
) -> list[layers.Activation]:
  """Returns the tensors of a training step; see resnet.activations."""
  del architecture
  result, side = [layers.Activation(image_size, image_size, 3)], image_size
  for _, size, stride in _CONVS:
    side = -(-side // stride)
    result += [layers.Activation(side, side, size)] * 2
  return result


def num_values(architecture: hparams.Architecture) -> int:
  """Returns the number of values in the variables of the encoder."""
  del architecture
  return sum(
    _KERNEL**2 * in_size * size + 4 * size for in_size, size, _ in _CONVS
  )


def embedding_size(architecture: hparams.Architecture) -> int:
  """Returns the length of an embedding."""
  del architecture
  return _SIZE
