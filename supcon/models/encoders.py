"""The registry of encoders, by their names in the flags.

Each encoder has a module with a class `Encoder`, a layers.Module. It is
constructed from its parent and an hparams.Architecture, has the attribute
`embedding_size`, and maps images [B, H, W, 3] to float32 [B, embedding_size].
The functions of the module tell what a step holds in memory without building
the encoder.
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
    ValueError: If the encoder does not exist in this depth or width.
  """
  return _of(architecture).Encoder(parent, architecture)


def activations(
  architecture: hparams.Architecture, image_size: int
) -> list[layers.Activation]:
  """Returns the tensors that a training step holds for its backward pass.

  Args:
    architecture: The architecture of the encoder.
    image_size: Height and width of the images, in pixels.
  """
  return _of(architecture).activations(architecture, image_size)


def num_values(architecture: hparams.Architecture) -> int:
  """Returns the number of values in an encoder's variables."""
  return _of(architecture).num_values(architecture)


def embedding_size(architecture: hparams.Architecture) -> int:
  """Returns the length of an embedding."""
  return _of(architecture).embedding_size(architecture)


def _of(architecture):
  return _ENCODERS[architecture.encoder_architecture]
