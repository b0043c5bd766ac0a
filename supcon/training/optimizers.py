"""Builds the optimizers of a run from the hyper-parameters of its stages.

The names given here and the order of creation determine the names of the slot
variables in a checkpoint. They are a public contract.
"""

from collections.abc import Collection
from collections.abc import Sequence

import tensorflow as tf

from supcon.compute import replicas
from supcon.config import enums
from supcon.config import hparams
from supcon.models import contrastive
from supcon.training import lars
from supcon.training import objectives
from supcon.training import stages
from supcon.training import steps

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
    undecayed: The variables without weight decay. Only LARS uses this: it
      decays weights itself, and does not adapt the steps of these variables.
      For the others, weight decay is part of the loss.

  Raises:
    ValueError: If the optimizer does not exist.
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

  Every checkpoint holds the slots of all stages, so that training can continue
  in the next stage. Equal optimizers in two stages get names in the order of
  creation (Adam: `Adam`, `Adam_1`, then `Adam_2`, `Adam_3`). So call this for
  stage 1, then for stage 2, before any `apply_gradients`, which then finds the
  slots and creates none.

  Args:
    optimizer: The optimizer itself, not a wrapper such as CrossShardOptimizer.
    variables: All variables that the optimizer will ever update, in creation
      order.
  """
  # `apply_gradients` is the only public way to create slots, but it adds update
  # ops that must never run. Like this function, it creates them in an
  # `init_scope`. The name scope is cleared, because it would otherwise become
  # part of the name of `beta1_power`.
  with tf.init_scope(), tf1.name_scope(None):
    optimizer._create_slots(list(variables))  # pylint: disable=protected-access


# Each is a function (stage, its name, learning rate, undecayed variables) ->
# optimizer.


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
  # The published name is the same for all stages.
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


# --- Of a run -----------------------------------------------------------------


def of_plan(
  plan: stages.Plan,
  model: contrastive.ContrastiveModel,
  step: tf.Tensor,
  include_bias: bool,
) -> dict[int, tf1.train.Optimizer]:
  """Returns {stage number: its optimizer}, with all slots created.

  Every checkpoint of a run holds the slots of all stages, whatever the current
  stage. They are made in the order of the stages, which determines their names
  if two stages share an optimizer whose slot names do not include the stage.
  """
  result = {}
  rates = plan.learning_rates(step)
  # The published LARS increments the step before it reads its rate.
  lars_rates = plan.learning_rates(step + 1)
  for stage, rate, lars_rate in zip(plan.stages, rates, lars_rates):
    if stage.params.optimizer == enums.Optimizer.LARS:
      rate = lars_rate
    decayed = {
      v.ref()
      for v in objectives.decayed_variables(stage.params, model, include_bias)
    }
    result[stage.number] = build(
      stage.params,
      stage.number,
      learning_rate=rate,
      undecayed=[
        v for v in model.trainable_variables if v.ref() not in decayed
      ],
    )

  def create_all_slots():
    for optimizer in result.values():
      create_slots(optimizer, model.trainable_variables)

  # In a single call: each call would count equal names from the start.
  replicas.once(create_all_slots)
  return result


def update(
  optimizer: tf1.train.Optimizer,
  variables: Sequence[tf.Variable],
  gradients: Sequence[tf.Tensor | None],
  step: tf.Variable,
) -> steps.Update:
  """Returns the update of the weights, which increments `step` at the end.

  Variables that the loss does not reach get a gradient of zero: they do not
  change, and their slots decay as in the published implementation.

  Args:
    optimizer: The optimizer of the stage, with its slots.
    variables: All trainable variables.
    gradients: The gradient of this replica's loss for each variable, or None.
      The mean of the replicas' losses is minimised.
    step: The global step.
  """

  def make():
    return replicas.apply_mean_gradients(
      optimizer,
      [
        (tf.zeros_like(variable) if gradient is None else gradient, variable)
        for gradient, variable in zip(gradients, variables)
      ],
      step,
    )

  return steps.Update(
    make, changed=[*variables, *_variables_of(optimizer, variables), step]
  )


def _variables_of(optimizer, variables):
  """Returns the variables of an optimizer: slots and others."""
  return [
    *(
      optimizer.get_slot(variable, name)
      for name in optimizer.get_slot_names()
      for variable in variables
    ),
    # Powers of Adam's betas. The public list looks only at the default graph,
    # but the loop of a TPU may be another graph.
    *optimizer._non_slot_variables(),  # pylint: disable=protected-access
  ]


def unreached_slots(
  plan: stages.Plan,
  model: contrastive.ContrastiveModel,
  step: tf.Tensor,
  include_bias: bool,
  architecture: hparams.Architecture,
) -> set[str]:
  """Makes the optimizers and returns the names of slots that never change.

  The published code has no slots for variables that no loss reaches.

  Args:
    plan: The plan of all stages.
    model: The model.
    step: The global step.
    include_bias: Whether biases decay.
    architecture: The architecture of the model.
  """
  names = set()
  for number, optimizer in of_plan(plan, model, step, include_bias).items():
    stage = plan.stages[number - 1].params
    reached = objectives.reached_variables(stage, model, architecture)
    if stage.optimizer != enums.Optimizer.LARS and stage.weight_decay:
      reached += objectives.decayed_variables(stage, model, include_bias)
    reached = {variable.ref() for variable in reached}
    names |= {
      optimizer.get_slot(variable, slot).op.name
      for slot in optimizer.get_slot_names()
      for variable in model.trainable_variables
      if variable.ref() not in reached
    }
  return names
