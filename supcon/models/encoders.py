"""The encoders, by the name that the flags give them.

The module of an encoder has `Encoder`, a layers.Module that is made from its
parent and an hparams.Architecture, maps images [B, H, W, 3] to float32
[B, embedding_size] and has that attribute; and it says what a step holds,
without making one.
"""

from supcon.config import enums
from supcon.config import hparams
from supcon.models import layers
from supcon.models import resnet
from supcon.models import tiny

_ENCODERS = {
  enums.EncoderArchitecture.RESNET_V1: resnet,
  enums.EncoderArchitecture.RESNEXT: resnet,
  enums.EncoderArchitecture.TINY: tiny,
}


def build(
  parent: layers.Module, architecture: hparams.Architecture
) -> layers.Module:
  """Returns the encoder of an architecture.

  Raises:
    ValueError: If it does not exist in this depth or width.
  """
  return _of(architecture).Encoder(parent, architecture)


def activations(
  architecture: hparams.Architecture, image_size: int
) -> list[layers.Activation]:
  """Returns the tensors that a training step holds for its backward pass.

  Args:
    architecture: Of the encoder.
    image_size: Height and width of the images, in pixels.
  """
  return _of(architecture).activations(architecture, image_size)


def num_values(architecture: hparams.Architecture) -> int:
  """Returns how many values the variables of an encoder have."""
  return _of(architecture).num_values(architecture)


def embedding_size(architecture: hparams.Architecture) -> int:
  """Returns the length of an embedding."""
  return _of(architecture).embedding_size(architecture)


def _of(architecture):
  return _ENCODERS[architecture.encoder_architecture]
