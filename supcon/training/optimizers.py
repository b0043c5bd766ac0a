"""Hyper-parameters of a stage -> its optimizer.

The names given here, and the order in which slots are created, decide the names
of the slot variables in a checkpoint. They are a public contract.
"""

from collections.abc import Collection
from collections.abc import Sequence

import tensorflow as tf

from supcon import enums
from supcon import hparams
from supcon.training import lars

tf1 = tf.compat.v1

MOMENTUM = 0.9
RMSPROP_DECAY = 0.9


def build(
  stage: hparams.Stage,
  stage_number: int,
  learning_rate,
  undecayed: Collection[tf.Variable],
) -> tf1.train.Optimizer:
  """Returns the optimizer of a stage.

  Args:
    stage: The stage's hyper-parameters.
    stage_number: Counted from 1; part of the names of the slot variables.
    learning_rate: float32 scalar tensor.
    undecayed: The variables that weight decay leaves alone. For LARS only,
      which decays weights by itself, and does not adapt the steps of these; for
      the others, weight decay is part of the loss.

  Raises:
    ValueError: If there is no such optimizer.
  """
  if stage.optimizer not in _BUILDERS:
    raise ValueError(
      f'--stage_{stage_number}_optimizer={stage.optimizer} is not known; '
      f'choose one of {", ".join(choice.name for choice in _BUILDERS)}.'
    )
  return _BUILDERS[stage.optimizer](
    stage, f'stage{stage_number}', learning_rate, undecayed
  )


def create_slots(
  optimizer: tf1.train.Optimizer, variables: Sequence[tf.Variable]
) -> None:
  """Creates an optimizer's slot variables without applying anything.

  The slots of all stages stand in every checkpoint, whichever stage runs, so
  that training can continue in the next one. Equal optimizers in two stages get
  names in the order of creation (Adam: `Adam`, `Adam_1`, then `Adam_2`,
  `Adam_3`): call this for stage 1, then stage 2, before any `apply_gradients`,
  which then finds the slots and creates none.

  Args:
    optimizer: Not wrapped, such as in a CrossShardOptimizer.
    variables: All that the optimizer is ever to update, in creation order.
  """
  # `apply_gradients` is the only public way to create slots, but it adds update
  # ops that must never run. It creates them in an `init_scope`, too. No name
  # scope: `beta1_power` would get the caller's into its name.
  with tf.init_scope(), tf1.name_scope(None):
    optimizer._create_slots(list(variables))  # pylint: disable=protected-access


# Each: (stage, its name, learning rate, undecayed variables) -> optimizer.


def _rmsprop(stage, stage_name, learning_rate, undecayed):
  del undecayed
  return tf1.train.RMSPropOptimizer(
    learning_rate,
    decay=RMSPROP_DECAY,
    momentum=MOMENTUM,
    epsilon=stage.rmsprop_epsilon,
    name=f'RMSPropOptimizer_{stage_name}',
  )


def _momentum(stage, stage_name, learning_rate, undecayed):
  del stage, undecayed
  return tf1.train.MomentumOptimizer(
    learning_rate, MOMENTUM, name=f'MomentumOptimizer_{stage_name}'
  )


def _lars(stage, stage_name, learning_rate, undecayed):
  return lars.LARSOptimizer(
    learning_rate,
    weight_decay=stage.weight_decay,
    momentum=MOMENTUM,
    exclude_from_weight_decay=undecayed,
    name=f'LARSOptimizer_{stage_name}',
  )


def _adam(stage, stage_name, learning_rate, undecayed):
  # The published name does not tell the stages apart.
  del stage, stage_name, undecayed
  return tf1.train.AdamOptimizer(learning_rate, name='Adam')


def _nesterov(stage, stage_name, learning_rate, undecayed):
  del stage, undecayed
  return tf1.train.MomentumOptimizer(
    learning_rate,
    MOMENTUM,
    use_nesterov=True,
    name=f'NesterovMomentumOptimizer_{stage_name}',
  )


_BUILDERS = {
  enums.Optimizer.RMSPROP: _rmsprop,
  enums.Optimizer.MOMENTUM: _momentum,
  enums.Optimizer.LARS: _lars,
  enums.Optimizer.ADAM: _adam,
  enums.Optimizer.NESTEROV: _nesterov,
}
