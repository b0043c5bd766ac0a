"""A run is a list of stages; each has losses, an optimizer and a schedule.

Nothing asks which stage it is in by name: a `Plan` says which stage a step
belongs to, and the training graph is built for that stage. What a stage does
not need (a loss of weight 0, and so perhaps the whole backward pass through the
encoder) is not in its graph.
"""

from collections.abc import Sequence
import dataclasses
from typing import NamedTuple

import tensorflow as tf

from supcon import enums
from supcon import hparams
from supcon import replicas
from supcon.models import contrastive
from supcon.training import optimizers
from supcon.training import schedules

tf1 = tf.compat.v1


class Stage(NamedTuple):
  """One stage and the steps that it spans."""

  params: hparams.Stage
  span: schedules.StageSpan

  @property
  def number(self) -> int:
    """Counted from 1, as in the flags and in the names of slots."""
    return self.span.number

  @property
  def start_step(self) -> int:
    return self.span.start_step

  @property
  def stop_step(self) -> int:
    return self.span.stop_step


@dataclasses.dataclass(frozen=True)
class Plan:
  """The stages of a run on a training set of known size."""

  stages: tuple[Stage, ...]
  batch_size: int
  steps_per_epoch: float

  @property
  def total_steps(self) -> int:
    return self.stages[-1].stop_step

  def stage_at(self, step: int) -> Stage:
    """Returns the stage whose update takes `step` to `step` + 1.

    After the last step it is the last stage that trained anything.
    """
    trained = [s for s in self.stages if s.start_step < s.stop_step]
    for stage in trained:
      if step < stage.stop_step:
        return stage
    return trained[-1]

  def stage_that_made(self, step: int) -> Stage:
    """Returns the stage whose update made the checkpoint of a step.

    The checkpoint at the end of a stage belongs to that stage, not to the next
    one. That of step 0 belongs to the first stage that trains anything.
    """
    return self.stage_at(max(step - 1, 0))

  def learning_rates(self, step: tf.Tensor) -> tuple[tf.Tensor, ...]:
    """Returns each stage's float32 rate at `step`; 0 outside its own steps."""
    return schedules.learning_rates(
      step,
      [stage.params for stage in self.stages],
      [stage.span for stage in self.stages],
      self.batch_size,
    )


def plan(params: hparams.HParams, num_examples: int) -> Plan:
  """Returns the stages of a run over `num_examples` training examples.

  Raises:
    ValueError: If no step results, or a warm-up does not fit its stage.
  """
  spans = schedules.stage_spans(params.stages, num_examples, params.batch_size)
  result = Plan(
    stages=tuple(map(Stage, params.stages, spans)),
    batch_size=params.batch_size,
    steps_per_epoch=num_examples / params.batch_size,
  )
  if result.total_steps == 0:
    raise ValueError(
      f'--stage_1_epochs={params.stage_1.epochs} and --stage_2_epochs='
      f'{params.stage_2.epochs} make no step with --batch_size='
      f'{params.batch_size} and {num_examples} training examples.'
    )
  with tf.Graph().as_default():
    result.learning_rates(tf.constant(0, tf.int64))  # Raises what does not fit.
  return result


class LossParts(NamedTuple):
  """Scalars, float32, in nats but for `weight_decay`."""

  total: tf.Tensor  # What the stage minimises.
  contrastive: tf.Tensor  # Mean over samples, without weight.
  cross_entropy: tf.Tensor  # Mean over samples, without weight.
  weight_decay: tf.Tensor  # What weight decay adds to the total.


def loss_parts(
  stage: Stage,
  model: contrastive.ContrastiveModel,
  contrastive_loss: tf.Tensor,
  cross_entropy_loss: tf.Tensor,
  include_bias: bool,
) -> LossParts:
  """Composes the loss of a stage from the two scalar mean losses."""
  decay = weight_decay_loss(stage, model, include_bias)
  total = decay
  for weight, loss in (
    (stage.params.contrastive_loss_weight, contrastive_loss),
    (stage.params.cross_entropy_loss_weight, cross_entropy_loss),
  ):
    if weight:  # 0 * loss would still be differentiated, and 0 * inf is NaN.
      total += weight * loss
  return LossParts(total, contrastive_loss, cross_entropy_loss, decay)


def weight_norms(model, include_bias) -> dict:
  """Returns {module: sum of v^2/2 over its kernels (and biases)}."""
  return {
    name: tf.add_n([tf.nn.l2_loss(v) for v in _decayable(module, include_bias)])
    for name, module, _ in _modules(model)
  }


def weight_decay_loss(stage, model, include_bias) -> tf.Tensor:
  """Returns coefficient x norms of the modules that the stage decays.

  LARS decays inside the optimizer, so the loss is 0 there.
  """
  if stage.params.optimizer == enums.Optimizer.LARS:
    return tf.constant(0.0)
  if not stage.params.weight_decay:
    return tf.constant(0.0)
  return stage.params.weight_decay * tf.add_n(
    [tf.constant(0.0)]
    + [tf.nn.l2_loss(v) for v in _decayed_variables(stage, model, include_bias)]
  )


def make_optimizers(
  run: Plan,
  model: contrastive.ContrastiveModel,
  step: tf.Tensor,
  include_bias: bool,
) -> dict[int, tf1.train.Optimizer]:
  """Returns {stage number: its optimizer}, with all slots created.

  Every checkpoint of a run holds the slots of every stage, whichever stage is
  under way. They are made in the order of the stages, which decides their names
  where two stages share an optimizer whose slots do not carry the stage.
  """
  result = {}
  rates = run.learning_rates(step)
  # The published LARS counts the step before it reads its rate.
  lars_rates = run.learning_rates(step + 1)
  for stage, rate, lars_rate in zip(run.stages, rates, lars_rates):
    if stage.params.optimizer == enums.Optimizer.LARS:
      rate = lars_rate
    decayed = {v.ref() for v in _decayed_variables(stage, model, include_bias)}
    result[stage.number] = optimizers.build(
      stage.params,
      stage.number,
      learning_rate=rate,
      undecayed=[
        v for v in model.trainable_variables if v.ref() not in decayed
      ],
    )

  def create_slots():
    for optimizer in result.values():
      optimizers.create_slots(optimizer, model.trainable_variables)

  # In one go: each call would count equal names from the start.
  replicas.once(create_slots)
  return result


def unreached_slots(
  run: Plan,
  model: contrastive.ContrastiveModel,
  step: tf.Tensor,
  include_bias: bool,
  architecture: hparams.Architecture,
) -> set[str]:
  """Makes the optimizers and names the slots that no loss ever changes.

  The published code has no slots of variables that no loss reaches.

  Args:
    run: The plan of all stages.
    model: The model.
    step: The global step.
    include_bias: Whether biases decay.
    architecture: That of the model.
  """
  names = set()
  for number, optimizer in make_optimizers(
    run, model, step, include_bias
  ).items():
    stage = run.stages[number - 1]
    reached = []
    if stage.params.contrastive_loss_weight:
      reached += model.projection_head.trainable_variables
      if not architecture.stop_gradient_before_projection_head:
        reached += model.encoder.trainable_variables
    if stage.params.cross_entropy_loss_weight:
      reached += model.classification_head.trainable_variables
      if not architecture.stop_gradient_before_classification_head:
        reached += model.encoder.trainable_variables
    if (
      stage.params.optimizer != enums.Optimizer.LARS
      and stage.params.weight_decay
    ):
      reached += _decayed_variables(stage, model, include_bias)
    reached = {variable.ref() for variable in reached}
    names |= {
      optimizer.get_slot(variable, slot).op.name
      for slot in optimizer.get_slot_names()
      for variable in model.trainable_variables
      if variable.ref() not in reached
    }
  return names


class Subject(NamedTuple):
  """What has to be finite for a step to be made."""

  kind: str  # In words.
  name: str  # Of the variable; empty for the loss.


class Health(NamedTuple):
  """Whether all that a step would do is finite; the same on all replicas.

  Attributes:
    subjects: What is looked at.
    report: float32 [4 + len(subjects)]: `LossParts`, as means over the
      replicas; then of each subject the share of the replicas on which it is
      NaN or infinite.
  """

  subjects: tuple[Subject, ...]
  report: tf.Tensor

  @property
  def losses(self) -> LossParts:
    return LossParts(*tf.unstack(self.report[: len(LossParts._fields)]))

  @property
  def is_good(self) -> tf.Tensor:
    return tf.reduce_all(tf.equal(self.report[len(LossParts._fields) :], 0))


def gradients(
  model: contrastive.ContrastiveModel, loss: tf.Tensor
) -> list[tf.Tensor | None]:
  """Returns this replica's gradient of each trainable variable.

  It is None where the loss does not reach.
  """
  return tf.gradients(loss, model.trainable_variables)


def health(
  stage: Stage,
  model: contrastive.ContrastiveModel,
  parts: LossParts,
  gradients: Sequence[tf.Tensor | None],
) -> Health:
  """Looks at what this replica would do in a step, and all others.

  Of the losses only the total counts: parts of weight 0 may be what they like.
  Batch statistics count if moving averages follow them. Neither the loss nor
  the gradients need show that they are NaN: on CPU, a batch norm and its relu
  are one op, which makes 0 of NaN.
  """
  looked_at = [
    ('the gradients of', variable, gradient)
    for variable, gradient in zip(model.trainable_variables, gradients)
    if gradient is not None
  ]
  if stage.params.update_encoder_batch_norm:
    looked_at += [
      ('the batch statistics for', variable, statistic)
      for variable, statistic in model.batch_statistics()
    ]
  # Under a tf.distribute strategy a replica knows them by names of its own.
  names = replicas.once(lambda: [v.op.name for _, v, _ in looked_at])
  subjects = [Subject('the loss', '')]
  are_finite = [tf.math.is_finite(parts.total)]
  for (kind, _, value), name in zip(looked_at, names):
    subjects.append(Subject(kind, name))
    are_finite.append(tf.reduce_all(tf.math.is_finite(value)))
  report = tf.concat(
    [tf.stack(parts), 1.0 - tf.cast(tf.stack(are_finite), tf.float32)], axis=0
  )
  return Health(tuple(subjects), replicas.mean(report))


def first_bad(health: Health) -> tuple[Health, tf.Variable, tf.Operation]:
  """Keeps the first bad report, for a loop of steps that nobody can look into.

  Returns:
    The health of all steps since the session began, this one included; the
    variable that keeps its report; and the op that does so.
  """
  memory = tf1.get_variable(
    'first_bad_report',
    shape=health.report.shape,
    initializer=tf1.zeros_initializer(),
    trainable=False,
    collections=[tf1.GraphKeys.LOCAL_VARIABLES],
    use_resource=True,
  )
  before = health._replace(report=memory.read_value())
  since = health._replace(
    report=tf.where(before.is_good, health.report, before.report)
  )
  return since, memory, memory.assign(since.report, read_value=False)


def train_op(
  run: Plan,
  stage: Stage,
  model: contrastive.ContrastiveModel,
  gradients: Sequence[tf.Tensor | None],
  step: tf.Variable,
  include_bias: bool,
  is_good: tf.Tensor,
) -> tf.Operation:
  """Returns the op of one step of `stage`, which ends by counting `step`.

  Variables that the loss does not reach get a gradient of zero: they stay, and
  their slots decay as they do in the published implementation.

  Args:
    run: The plan of all stages.
    stage: That of the step.
    model: The model.
    gradients: Of each trainable variable, or None. What is minimised is the
      mean of the replicas' losses.
    step: The global step.
    include_bias: Whether biases decay.
    is_good: Bool scalar, the same on all replicas. If it does not hold, no
      variable changes, be it a weight, a slot, a moving statistic or `step`.
  """
  variables = model.trainable_variables
  optimizer = make_optimizers(run, model, step, include_bias)[stage.number]
  moves_batch_norm = stage.params.update_encoder_batch_norm

  def update():
    updates = model.batch_norm_updates() if moves_batch_norm else []
    # One op for all of them: every op that follows has an edge from it.
    with tf.control_dependencies([tf.group(updates)]):
      return replicas.apply_mean_gradients(
        optimizer,
        [
          (tf.zeros_like(variable) if gradient is None else gradient, variable)
          for gradient, variable in zip(gradients, variables)
        ],
        step,
      )

  return replicas.update_if(
    is_good,
    update,
    changed=[
      *(model.variables if moves_batch_norm else variables),
      *_optimizer_variables(optimizer, variables),
      step,
    ],
  )


def _optimizer_variables(optimizer, variables):
  """Returns what an optimizer keeps: of each variable, and besides."""
  return [
    *(
      optimizer.get_slot(variable, name)
      for name in optimizer.get_slot_names()
      for variable in variables
    ),
    # Powers of Adam's betas. Its public list looks at the default graph alone,
    # but the loop of a TPU may be a graph of its own.
    *optimizer._non_slot_variables(),  # pylint: disable=protected-access
  ]


def _modules(model):
  """Yields (name, module, the stage's weight-decay switch)."""
  yield 'Encoder', model.encoder, 'use_encoder_weight_decay'
  yield (
    'ProjectionHead',
    model.projection_head,
    'use_projection_head_weight_decay',
  )
  yield (
    'ClassificationHead',
    model.classification_head,
    'use_classification_head_weight_decay',
  )


def _decayable(module, include_bias):
  return [*module.kernels, *(module.biases if include_bias else ())]


def _decayed_variables(stage, model, include_bias):
  return [
    variable
    for _, module, switch in _modules(model)
    if getattr(stage.params, switch)
    for variable in _decayable(module, include_bias)
  ]
