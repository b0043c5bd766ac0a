"""A copy of a model that follows its weights slowly.

Momentum Contrast, https://arxiv.org/abs/1911.05722.
"""

from collections.abc import Mapping
from collections.abc import Sequence

import tensorflow as tf

from supcon.compute import replicas

tf1 = tf.compat.v1

SCOPE = 'Momentum'


class SlowCopy:
  """The weights w' = m w' + (1 - m) w, which are moved before each use.

  Attributes:
    variables: All that it keeps.
  """

  def __init__(self, originals: Sequence[tf.Variable], momentum: float):
    """Makes the variables, which are zeros until they are moved.

    Args:
      originals: The variables to copy.
      momentum: m, in [0, 1); the first move makes the copies equal.
    """
    # Under a strategy each replica has its own names for them.
    names = replicas.once(lambda: [v.op.name for v in originals])
    self._originals = originals
    self._momentum = momentum

    def make(name, shape, dtype):
      return tf1.get_variable(
        f'{SCOPE}/{name}',
        shape,
        dtype,
        tf1.initializers.zeros(),
        trainable=False,
        use_resource=True,
        aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
      )

    self._copies = [
      make(name, original.shape, tf.float32)
      for name, original in zip(names, originals)
    ]
    self._has_moved = make('has_moved', [], tf.int32)

  @property
  def variables(self) -> list[tf.Variable]:
    return [*self._copies, self._has_moved]

  def moved(self) -> Mapping:
    """Returns {original.ref(): its copy once it has moved}, tensors."""
    momentum = self._momentum * tf.cast(self._has_moved, tf.float32)
    return {
      original.ref(): tf.stop_gradient(
        momentum * copy + (1 - momentum) * original
      )
      for original, copy in zip(self._originals, self._copies)
    }

  def keep(self, moved: Mapping) -> list[tf.Operation]:
    """Builds the ops that move the copies."""
    return [
      copy.assign(moved[original.ref()], read_value=False)
      for original, copy in zip(self._originals, self._copies)
    ] + [self._has_moved.assign(1, read_value=False)]
