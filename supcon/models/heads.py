"""The heads on top of the embedding.

Both take float32 [B, D] and return float32. Only the encoder computes in
bfloat16, because the heads cost little and losses need the precision.
"""

import functools

import tensorflow as tf

from supcon.models import layers

tf1 = tf.compat.v1


class ProjectionHead(layers.Module):
  """A multi-layer perceptron to the space of the contrastive loss.

  It consists of dense layers with relu between them and, optionally, batch norm
  before each relu. The last layer has no bias and nothing follows it. With
  batch norm no layer has a bias, because the batch norm would cancel it.
  """

  def __init__(
    self,
    parent,
    in_size,
    layer_sizes,
    use_batch_norm,
    use_batch_norm_beta,
    synchronised,
  ):
    """Makes the variables.

    Args:
      parent: The Module that this is a part of.
      in_size: Int; length of an embedding.
      layer_sizes: Ints; output sizes of the dense layers, at least one.
      use_batch_norm: Whether there is batch norm between dense layers.
      use_batch_norm_beta: Whether these batch norms have a beta.
      synchronised: Whether these batch norms use the statistics of the global
        batch.
    """
    super().__init__(parent, 'ProjectionHead')
    norm = functools.partial(
      layers.BatchNorm,
      synchronised=synchronised,
      use_beta=use_batch_norm_beta,
    )
    *hidden_sizes, out_size = layer_sizes
    dense = functools.partial(
      layers.Dense,
      kernel_initializer=tf1.initializers.random_normal(stddev=0.01),
    )
    self._hidden = []  # Pairs (dense layer, batch norm or None).
    for size in hidden_sizes:
      self._hidden.append(
        (
          dense(self, in_size, size, use_bias=not use_batch_norm),
          norm(self, size) if use_batch_norm else None,
        )
      )
      in_size = size
    self._last = dense(self, in_size, out_size, use_bias=False)

  def forward(self, x, training):
    """Maps embeddings [B, D] to projections [B, P], not yet of unit length."""
    for dense, norm in self._hidden:
      x = dense(x, training)
      if norm:
        x = norm(x, training)
      x = tf.nn.relu(x)
    return self._last(x, training)


class ClassificationHead(layers.Module):
  """A linear classifier."""

  def __init__(self, parent, in_size, num_classes, zero_initialize):
    super().__init__(parent, 'ClassificationHead')
    initializer = (
      tf1.initializers.zeros()
      if zero_initialize
      else tf1.initializers.glorot_uniform()
    )
    self._dense = layers.Dense(
      self, in_size, num_classes, True, kernel_initializer=initializer
    )

  def forward(self, x, training):
    """Maps embeddings [B, D] to logits [B, num_classes]."""
    return self._dense(x, training)
