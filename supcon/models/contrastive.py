"""The whole model: encoder, projection head and classification head."""

from typing import NamedTuple

import tensorflow as tf

from supcon import pairwise
from supcon.models import encoders
from supcon.models import heads
from supcon.models import layers

_IMAGE_CHANNELS = 3


class Outputs(NamedTuple):
  """The model's outputs for B samples in V views; all float32.

  Attributes:
    embedding: [B, V, D] output of the encoder.
    normalized_embedding: [B, V, D] the embedding at unit length.
    projection: [B, V, P] output of the projection head at unit length, the
      input of the contrastive loss.
    logits: [B, num_classes] of the first view.
    batch_statistics: The statistics of this batch that the batch norms used, if
      any; training updates their moving averages with them.
    recalled: What a memory adds to it, in training; () if there is none.
  """

  embedding: tf.Tensor
  normalized_embedding: tf.Tensor
  projection: tf.Tensor
  logits: tf.Tensor
  batch_statistics: tuple[layers.BatchStatistic, ...] = ()
  recalled: pairwise.Recalled | tuple[()] = ()


class Composite(layers.Module):
  """An encoder with two heads, each part with its own weight decay.

  Attributes:
    encoder: layers.Module.
    projection_head: layers.Module.
    classification_head: layers.Module.
  """

  @property
  def parts(self):
    """{name in hyper-parameters: Module} of all parts with weights."""
    return {
      'encoder': self.encoder,
      'projection_head': self.projection_head,
      'classification_head': self.classification_head,
    }

  def weight_norms(self, include_biases):
    """Returns {published name: float32 sum of v^2/2 over a part's weights}."""
    return {
      part.name.rpartition('/')[-1]: part.weight_norm(include_biases)
      for part in self.parts.values()
    }


class ContrastiveModel(Composite):
  """Encoder with two heads (https://arxiv.org/abs/2004.11362, section 3).

  Attributes:
    encoder: The encoder of the architecture, see encoders.py.
    projection_head: heads.ProjectionHead.
    classification_head: heads.ClassificationHead.
  """

  def __init__(self, architecture, num_classes):
    """Makes the variables.

    Args:
      architecture: hparams.Architecture.
      num_classes: Int.

    Raises:
      ValueError: If the encoder does not exist in this depth or width.
    """
    super().__init__(None, 'ContrastiveModel')
    self._architecture = architecture
    self.encoder = encoders.build(self, architecture)
    self.projection_head = heads.ProjectionHead(
      self,
      self.encoder.embedding_size,
      architecture.projection_head_layers,
      architecture.projection_head_use_batch_norm,
      architecture.projection_head_use_batch_norm_beta,
      architecture.use_global_batch_norm,
    )
    self.classification_head = heads.ClassificationHead(
      self,
      self.encoder.embedding_size,
      num_classes,
      architecture.zero_initialize_classifier,
    )

  def forward(self, x, training):
    """Maps images to Outputs.

    All views pass through the encoder as one batch, so batch statistics cover
    all views.

    Args:
      x: float32 or bfloat16 [B, V, H, W, 3], V views of each sample; or
        [B, H, W, 3 V], with the views stacked on channels. The encoder computes
        in this type. B may be unknown.
      training: Python bool; whether batch norm uses the batch's statistics.

    Raises:
      ValueError: If the channels are not a multiple of 3.
    """
    return self.of_embeddings(self.embed(x, training), training)

  def embed(self, x, training):
    """Maps images to the embedding alone, float32 [B, V, D]; see `forward`."""
    views = _views(x)
    embedding = self.encoder(tf.concat(views, axis=0), training)
    return _by_sample(embedding, len(views))

  def of_embeddings(self, x, training, num_groups=1):
    """Maps embeddings that were computed before to Outputs.

    Args:
      x: float32 [B, V, D].
      training: As for images.
      num_groups: Number of equal parts of the batch, of which the batch norms
        of the heads use the statistics, each of its own. The outputs have their
        means.
    """
    heads = (self.projection_head, self.classification_head)
    if num_groups > 1 and any(head.batch_norm_variables for head in heads):
      return _joined(
        [
          self.of_embeddings(group, training)
          for group in tf.split(x, num_groups)
        ]
      )
    views = tf.unstack(x, axis=1)
    return self._heads(tf.concat(views, axis=0), len(views), training)

  def _heads(self, embedding, num_views, training):
    """Returns Outputs for float32 [V B, D], view by view."""
    normalized_embedding = _unit_length(embedding)

    def head_inputs(normalize, stop_gradient):
      inputs = normalized_embedding if normalize else embedding
      return tf.stop_gradient(inputs) if stop_gradient else inputs

    hps = self._architecture
    projection = self.projection_head(
      head_inputs(
        hps.normalize_projection_head_inputs,
        hps.stop_gradient_before_projection_head,
      ),
      training,
    )
    classifier_inputs = head_inputs(
      hps.normalize_classifier_inputs,
      hps.stop_gradient_before_classification_head,
    )
    first_view = tf.split(classifier_inputs, num_views)[0]
    return Outputs(
      embedding=_by_sample(embedding, num_views),
      normalized_embedding=_by_sample(normalized_embedding, num_views),
      projection=_by_sample(_unit_length(projection), num_views),
      logits=self.classification_head(first_view, training),
      batch_statistics=tuple(self.take_batch_statistics()),
    )


def _views(x):
  """Returns the V views [B, H, W, 3] of either layout."""
  channels, has_views_apart = x.shape[-1], x.shape.rank == 5
  if has_views_apart:
    is_valid = channels == _IMAGE_CHANNELS
  else:
    is_valid = channels and not channels % _IMAGE_CHANNELS
  if not is_valid:
    raise ValueError(
      f'images have {channels} channels; expected {_IMAGE_CHANNELS} for '
      'each view.'
    )
  if has_views_apart:
    return tf.unstack(x, axis=1)
  return tf.split(x, channels // _IMAGE_CHANNELS, axis=-1)


def _by_sample(x, num_views):
  """Brings [V B, ...], view by view, into the form [B, V, ...]."""
  return tf.stack(tf.split(x, num_views), axis=1)


def _joined(parts):
  """Returns the Outputs of a batch from those of its equal parts."""
  *fields, statistics, _ = zip(*parts)
  return Outputs(
    *(tf.concat(values, axis=0) for values in fields),
    batch_statistics=tuple(
      layers.BatchStatistic(
        same[0].moving, tf.add_n([each.value for each in same]) / len(same)
      )
      for same in zip(*statistics)
    ),
  )


def _unit_length(x):
  return tf.math.l2_normalize(x, axis=-1)
