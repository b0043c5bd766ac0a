"""A memory of earlier batches, whose features are contrasts of this one.

Supervised Contrastive Learning (https://arxiv.org/abs/2004.11362, section 4.1)
has one of 8192 features; without labels it is that of Momentum Contrast
(https://arxiv.org/abs/1911.05722).

In each step t, with encoder and projection head f, weights w and the views x_iv
of sample i:

    w'_t = m w'_{t-1} + (1 - m) w_t         w'_0 = w_0
    k_iv = f(x_iv; w'_t)                    if m > 0, without gradient
    k_iv = f(x_iv; w_t)                     if m = 0

The anchors f(x_iv; w_t) are contrasted with the keys k_ju of the global batch,
except the one of their own sample and view, and with all features in the
memory. Then the keys of the last views enter it with their labels, and the
oldest features leave it.

The batch norms of keys use the statistics of the global batch, also without
--use_global_batch_norm: otherwise a replica could tell the keys of its own
samples by their statistics. In micro-batches, which cannot do that, keys are
shuffled instead.
"""

from collections.abc import Callable
from collections.abc import Mapping
import functools

import tensorflow as tf

from supcon import pairwise
from supcon.compute import replicas
from supcon.config import hparams
from supcon.models import contrastive
from supcon.models import layers
from supcon.models import momentum
from supcon.training import steps

tf1 = tf.compat.v1

_SCOPE = 'Memory'


def is_part(name: str) -> bool:
  """Whether a variable belongs to a memory, or to its copy of the model."""
  return name.startswith((f'{_SCOPE}/', f'{momentum.SCOPE}/'))


def of_run(
  params: hparams.HParams, model: contrastive.ContrastiveModel
) -> 'Memory | None':
  """Makes the memory of a run; returns None if it has none."""
  if not params.memory.memory_size:
    return None
  feature_size = params.architecture.projection_head_layers[-1]
  return Memory(params.memory, model, feature_size)


class Memory:
  """Remembered features with their labels, and the slow copy of the model."""

  def __init__(
    self,
    options: hparams.Memory,
    model: contrastive.ContrastiveModel,
    feature_size: int,
  ):
    """Makes the variables: an empty memory.

    Args:
      options: Size and momentum.
      model: The model.
      feature_size: Length of a projection.
    """
    make = functools.partial(
      tf1.get_variable,
      trainable=False,
      use_resource=True,
      aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
    )
    self._features = make(
      f'{_SCOPE}/features',
      [options.memory_size, feature_size],
      tf.float32,
      tf1.initializers.zeros(),
    )
    self._labels = make(
      f'{_SCOPE}/labels',
      [options.memory_size],
      tf.int32,
      tf1.initializers.constant(-1),
    )
    self._copy = None
    if options.memory_momentum:
      self._copy = momentum.SlowCopy(
        [
          *model.encoder.trainable_variables,
          *model.projection_head.trainable_variables,
        ],
        options.memory_momentum,
      )

  @property
  def variables(self) -> list[tf.Variable]:
    copies = self._copy.variables if self._copy else []
    return [self._features, self._labels, *copies]

  def recall(
    self,
    project: Callable[[], tf.Tensor],
    outputs: contrastive.Outputs,
    labels: tf.Tensor,
  ) -> tuple[contrastive.Outputs, steps.Update]:
    """Adds keys and remembered features to the outputs of a batch.

    Args:
      project: Computes the projections of the batch again, [b, V, P].
      outputs: The model's outputs for the batch.
      labels: int32 [b].

    Returns:
      The outputs, and the update that remembers their keys.
    """
    memory = pairwise.Memory(
      self._features.read_value(), self._labels.read_value()
    )
    keys, moved = None, None
    if self._copy:
      moved = self._copy.moved()
      with layers.substituted(moved):
        keys = project()
    outputs = outputs._replace(recalled=pairwise.Recalled(keys, memory))
    newest = outputs.projection if keys is None else keys
    return outputs, self._update(memory, newest[:, -1], labels, moved)

  def _update(
    self,
    memory: pairwise.Memory,
    features: tf.Tensor,
    labels: tf.Tensor,
    moved: Mapping | None,
  ) -> steps.Update:
    """Returns the update that puts a batch in front of the memory."""
    features = replicas.gather(tf.stop_gradient(features))
    labels = replicas.gather(labels)
    size = self._features.shape[0]

    def make():
      return [
        self._features.assign(
          tf.concat([features, memory.features], axis=0)[:size],
          read_value=False,
        ),
        self._labels.assign(
          tf.concat([labels, memory.class_ids], axis=0)[:size],
          read_value=False,
        ),
        *(self._copy.keep(moved) if moved else ()),
      ]

    return steps.Update(
      make,
      changed=self.variables,
      kind='the keys for',
      read=[(self._features, features)],
    )
