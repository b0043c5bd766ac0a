"""A trained model with the facts that its users need."""

from collections.abc import Mapping
import dataclasses

import tensorflow as tf

from supcon.config import enums
from supcon.config import hparams
from supcon.data.views import image_ops
from supcon.models import contrastive
from supcon.runs import checkpoint_files


@dataclasses.dataclass(frozen=True)
class TrainedModel:
  """A checkpoint, and the meaning of its inputs and outputs.

  Attributes:
    params: The hyper-parameters that it was trained with.
    checkpoint: Checkpoint prefix, such as DIR/model.ckpt-100, that holds every
      variable of the model under its own name.
    class_names: The classes, in the order of the logits.
    mean: The mean color by which images are whitened, on the scale [-1, 1];
      None without whitening.
    std: The standard deviation, on the same scale; None without whitening.
  """

  params: hparams.HParams
  checkpoint: str
  class_names: tuple[str, ...]
  mean: tuple[float, ...] | None
  std: tuple[float, ...] | None

  @property
  def step(self) -> int:
    return checkpoint_files.step_of(self.checkpoint)

  @property
  def fingerprint(self) -> str:
    """A text that identifies the weights."""
    return checkpoint_files.fingerprint(self.checkpoint)

  @property
  def preprocessing(self) -> str:
    """One line on all preprocessing that affects the embeddings."""
    options = self.params.input_data.preprocessing
    crop = options.eval_crop_method.name
    if options.eval_crop_method != enums.EvalCropMethod.IDENTITY:
      crop += f' {options.crop_padding}'
    whitening = 'none'
    if self.mean is not None:
      whitening = ' '.join(f'{v:.6g}' for v in (*self.mean, *self.std))
    return f'{options.image_size} pixels, {crop}, whitening {whitening}'

  @property
  def num_classes(self) -> int:
    return len(self.class_names)

  @property
  def image_size(self) -> int:
    """Height and width of the images, in pixels."""
    return self.params.input_data.preprocessing.image_size

  @property
  def embedding_size(self) -> int:
    with tf.Graph().as_default():
      return self.build().encoder.embedding_size

  def build(self) -> contrastive.ContrastiveModel:
    """Makes the model; its variables are not initialized yet.

    Gradients reach the encoder from both heads. Training may stop them to
    separate its losses, but users of the model have losses of their own.
    """
    architecture = dataclasses.replace(
      self.params.architecture,
      stop_gradient_before_classification_head=False,
      stop_gradient_before_projection_head=False,
    )
    return contrastive.ContrastiveModel(architecture, self.num_classes)

  def from_unit_range(self, images: tf.Tensor) -> tf.Tensor:
    """Maps images in [0, 1] to the model's input.

    Args:
      images: float32 [N, S, S, 3], RGB.

    Returns:
      float32 [N, S, S, 3], in [-1, 1] before whitening.
    """
    # For grey levels / 255 the result is bit for bit that of training for grey
    # levels.
    return self._whitened(images * 2.0 - 1.0)

  def from_grey_levels(self, images: tf.Tensor) -> tf.Tensor:
    """Maps images in 0..255, uint8 or float32, like `from_unit_range`."""
    return self._whitened(image_ops.to_model_range(images, tf.float32))

  def _whitened(self, images):
    if self.mean is None:
      return images
    return image_ops.whiten(images, self.mean, self.std)


# The outputs for an image, under all their names: {name: key of `outputs`}.
OUTPUTS = {
  'logits': 'logits',
  'embeddings': 'embeddings',
  'normalized_embeddings': 'embeddings',
  'unnormalized_embeddings': 'unnormalized_embeddings',
  'projection': 'projection',
}

# The common signatures, https://www.tensorflow.org/hub/common_signatures/images
# {signature: {name of an output: key of `outputs`}}. Each takes `IMAGES`,
# float32 [N, S, S, 3], RGB in [0, 1]. A feature vector is what comes out of the
# last pooling, as in other modules.
IMAGE_SIGNATURES = {
  'default': {'default': 'logits', **OUTPUTS},
  'image_classification': {'default': 'logits'},
  'image_feature_vector': {'default': 'unnormalized_embeddings'},
}
IMAGES = 'images'


def named(outputs: contrastive.Outputs) -> Mapping[str, tf.Tensor]:
  """Returns the outputs for the first views, under the published names.

  Args:
    outputs: The outputs of the model for N samples.

  Returns:
    All float32: embeddings [N, D] at unit length, unnormalized_embeddings [N,
    D], projection [N, P] at unit length, logits [N, classes].
  """
  return {
    'embeddings': outputs.normalized_embedding[:, 0],
    'unnormalized_embeddings': outputs.embedding[:, 0],
    'projection': outputs.projection[:, 0],
    'logits': outputs.logits,
  }
