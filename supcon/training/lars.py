"""LARS: momentum with a step scaled per layer to the layer's weights.

You, Gitman, Ginsburg, Large Batch Training of Convolutional Networks,
https://arxiv.org/abs/1708.03888. The update is a pure function; the optimizer
wraps it.
"""

from collections.abc import Collection

import tensorflow as tf

tf1 = tf.compat.v1


def lars_update(
  weight,
  gradient,
  velocity,
  learning_rate,
  *,
  momentum: float,
  weight_decay: float,
  eta: float,
  classic_momentum: bool,
  use_nesterov: bool,
  adapt: bool,
):
  """Returns one layer's weight and velocity after one step.

  With g = gradient + weight_decay * weight, and the trust ratio
  r(x) = eta * |weight| / |x|, which is 1 where either norm is 0 or not `adapt`:

    classic   v' = momentum * v + learning_rate * r(g) * g
              weight' = weight - v'
    else      v' = momentum * v + g
              weight' = weight - learning_rate * r(v') * v'

  With `use_nesterov` the step looks ahead: the last line of either variant uses
  momentum * v' + (the term that the line before adds to momentum * v) instead
  of v'. The published implementation divides by |g|. The paper divides by the
  sum of the norms of gradient and decay, an upper bound of it.

  The published implementation divides by |g|; the paper by the sum of the norms
  of gradient and decay, an upper bound of it.

  Args:
    weight: float, any shape; one layer, over all of which norms are taken.
    gradient: Like `weight`; without weight decay.
    velocity: Like `weight`; 0 at the start.
    learning_rate: Scalar of the dtype of `weight`.
    momentum: Factor in [0, 1) by which the velocity persists.
    weight_decay: Coefficient >= 0 of |weight|^2 / 2; 0 for excluded variables.
    eta: Trust coefficient > 0, 0.001 in the paper.
    classic_momentum: Whether the velocity holds scaled steps (as in the paper,
      eq. 6 and algorithm 1) or plain gradients.
    use_nesterov: Whether to use Nesterov momentum.
    adapt: Whether to scale the step by the trust ratio.

  Returns:
    A tuple (new weight, new velocity).
  """
  gradient += weight_decay * weight

  def layer_rate(direction):
    if not adapt:
      return learning_rate
    weight_norm = tf.norm(weight)
    direction_norm = tf.norm(direction)
    # With a ratio of 0, a layer that starts at 0 could never move.
    trust_ratio = tf.where(
      tf.logical_and(weight_norm > 0, direction_norm > 0),
      eta * weight_norm / direction_norm,
      tf.ones_like(weight_norm),
    )
    return learning_rate * trust_ratio

  push = layer_rate(gradient) * gradient if classic_momentum else gradient
  new_velocity = momentum * velocity + push
  step = momentum * new_velocity + push if use_nesterov else new_velocity
  if not classic_momentum:
    step = layer_rate(step) * step
  return weight - step, new_velocity


class LARSOptimizer(tf1.train.Optimizer):
  """Applies `lars_update` to resource variables.

  The velocity of variable `w` is the variable `w/<name>/Momentum`.
  """

  def __init__(
    self,
    learning_rate,
    weight_decay: float,
    momentum: float = 0.9,
    eta: float = 0.001,
    classic_momentum: bool = True,
    use_nesterov: bool = False,
    exclude_from_weight_decay: Collection[tf.Variable] = (),
    exclude_from_layer_adaptation: Collection[tf.Variable] | None = None,
    name: str = 'LARSOptimizer',
  ):
    """Creates the optimizer.

    Args:
      learning_rate: Float or float scalar tensor.
      weight_decay: See `lars_update`. The loss must not contain it again.
      momentum: See `lars_update`.
      eta: See `lars_update`.
      classic_momentum: See `lars_update`.
      use_nesterov: See `lars_update`.
      exclude_from_weight_decay: Variables without weight decay, such as those
        of batch norm.
      exclude_from_layer_adaptation: Variables whose trust ratio is 1. None
        means the variables without weight decay.
      name: Part of the names of the slot variables.
    """
    super().__init__(use_locking=False, name=name)
    if exclude_from_layer_adaptation is None:
      exclude_from_layer_adaptation = exclude_from_weight_decay
    self._learning_rate = learning_rate
    self._weight_decay = weight_decay
    self._undecayed = {v.ref() for v in exclude_from_weight_decay}
    self._unadapted = {v.ref() for v in exclude_from_layer_adaptation}
    self._update_rule = dict(
      momentum=momentum,
      eta=eta,
      classic_momentum=classic_momentum,
      use_nesterov=use_nesterov,
    )

  def _create_slots(self, var_list):
    for variable in var_list:
      self._zeros_slot(variable, 'momentum', f'{self._name}/Momentum')

  def _prepare(self):
    self._learning_rate_tensor = tf.convert_to_tensor(self._learning_rate)

  def _resource_apply_dense(self, grad, variable):
    velocity = self.get_slot(variable, 'momentum')
    # Under a tf.distribute strategy, `variable` is one replica's copy, while
    # the exclusions name the variable as a whole.
    strategy = tf.distribute.get_strategy()
    whole = strategy.extended.value_container(variable).ref()
    # Each variable is read once: a second read could see the new value.
    new_weight, new_velocity = lars_update(
      variable.read_value(),
      grad,
      velocity.read_value(),
      tf.cast(self._learning_rate_tensor, grad.dtype),
      weight_decay=0.0 if whole in self._undecayed else self._weight_decay,
      adapt=whole not in self._unadapted,
      **self._update_rule,
    )
    return tf.group(
      variable.assign(new_weight, read_value=False),
      velocity.assign(new_velocity, read_value=False),
    )

  def _resource_apply_sparse(self, grad, variable, indices):
    raise ValueError(
      f'{self._name}: the gradient of {variable.name} is sparse, but the '
      'trust ratio needs a dense one; apply tf.convert_to_tensor(gradient), '
      'or use another optimizer.'
    )
