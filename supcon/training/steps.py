"""A training step as a value: its effects, before any of them happens.

A step may be computed in any way; `in_one_pass` takes the whole batch at once.
Each owner of state hands out an `Update` with the variables that it changes; no
other code lists them.
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import NamedTuple

import tensorflow as tf

from supcon.compute import replicas
from supcon.config import hparams
from supcon.models import contrastive
from supcon.models import layers
from supcon.training import objectives

tf1 = tf.compat.v1


class Update(NamedTuple):
  """A change of state that belongs to a step.

  Attributes:
    make: Builds the ops. It is called where they may run, because on TPU an op
      runs as soon as it exists.
    changed: The variables that the ops change.
    kind: Describes in words the values that the update reads.
    read: Pairs (variable, the value read for it); all values must be finite.
  """

  make: Callable[[], Sequence[tf.Operation]]
  changed: Sequence[tf.Variable]
  kind: str = ''
  read: Sequence[tuple[tf.Variable, tf.Tensor]] = ()


class Step(NamedTuple):
  """The effects of one step on this replica.

  Attributes:
    losses: The result of objectives.compose, means over this replica's samples.
    gradients: The gradient of the total for each trainable variable; None where
      it does not reach.
    updates: The updates of all state except the weights.
  """

  losses: Mapping[str, tf.Tensor]
  gradients: Sequence[tf.Tensor | None]
  updates: Sequence[Update] = ()


def in_one_pass(
  stage: hparams.Stage,
  model: contrastive.ContrastiveModel,
  losses: Mapping[str, tf.Tensor],
  statistics: Sequence[layers.BatchStatistic],
) -> Step:
  """Returns the step of a batch that was computed in one pass.

  Args:
    stage: Determines whether moving averages follow the batch.
    model: The model.
    losses: The result of objectives.compose.
    statistics: The statistics of the batch.
  """
  gradients = tf.gradients(losses[objectives.TOTAL], model.trainable_variables)
  updates = []
  if statistics and stage.update_encoder_batch_norm:
    updates.append(
      Update(
        make=lambda: layers.move_averages(statistics),
        changed=[moving for moving, _ in statistics],
        kind='the batch statistics for',
        read=statistics,
      )
    )
  return Step(losses, gradients, updates)


# --- Whether it can be made ---------------------------------------------------


class Subject(NamedTuple):
  """A value that must be finite for a step to be applied."""

  kind: str  # In words.
  name: str  # Name of the variable; empty for the loss.


class Health(NamedTuple):
  """Whether all effects of a step are finite; the same on all replicas.

  Attributes:
    loss_names: The names in Step.losses.
    subjects: The values that are checked.
    report: float32 [len(loss_names) + len(subjects)]: the losses, averaged over
      the replicas, followed by the share of replicas on which each subject is
      NaN or infinite.
  """

  loss_names: tuple[str, ...]
  subjects: tuple[Subject, ...]
  report: tf.Tensor

  @property
  def losses(self) -> dict[str, tf.Tensor]:
    return self.losses_in(tf.unstack(self.report[: len(self.loss_names)]))

  @property
  def is_good(self) -> tf.Tensor:
    return tf.reduce_all(tf.equal(self.shares_in(self.report), 0))

  def losses_in(self, report) -> dict:
    """Returns {name: loss} from a report of this form."""
    return dict(zip(self.loss_names, report))

  def shares_in(self, report):
    """Returns the share of replicas on which each subject is bad."""
    return report[len(self.loss_names) :]


def health(step: Step, variables: Sequence[tf.Variable]) -> Health:
  """Checks the effects of a step on this replica and all others.

  Of the losses only the total matters: terms of weight 0 may have any value.
  The values that updates read matter, too, because loss and gradients need not
  reveal NaN in batch statistics: on CPU, a batch norm and its relu are one op,
  which turns NaN into 0.

  Args:
    step: The step.
    variables: The variables of its gradients.
  """
  looked_at = [
    ('the gradients of', variable, gradient)
    for variable, gradient in zip(variables, step.gradients)
    if gradient is not None
  ]
  looked_at += [
    (update.kind, variable, value)
    for update in step.updates
    for variable, value in update.read
  ]
  # Under a tf.distribute strategy each replica has its own names for them.
  names = replicas.once(lambda: [v.op.name for _, v, _ in looked_at])
  subjects = [Subject('the loss', '')]
  are_finite = [tf.math.is_finite(step.losses[objectives.TOTAL])]
  for (kind, _, value), name in zip(looked_at, names):
    subjects.append(Subject(kind, name))
    are_finite.append(tf.reduce_all(tf.math.is_finite(value)))
  report = tf.concat(
    [
      tf.stack(list(step.losses.values())),
      1.0 - tf.cast(tf.stack(are_finite), tf.float32),
    ],
    axis=0,
  )
  return Health(tuple(step.losses), tuple(subjects), replicas.mean(report))


def first_bad(health: Health) -> tuple[Health, tf.Variable, tf.Operation]:
  """Keeps the first bad report of a loop that the host cannot see into.

  Returns:
    The health of all steps since the session began, including this one; the
    variable that keeps the report; and the op that updates it.
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


# --- Making it ----------------------------------------------------------------


def make(updates: Sequence[Update], is_good: tf.Tensor) -> tf.Operation:
  """Returns the op that makes all updates one after the other, or none.

  Args:
    updates: The updates in order; the last one increments the step.
    is_good: Bool scalar, the same on all replicas. If false, no variable
      changes, whether weight, slot, moving statistic or step.
  """

  def make_all():
    made = tf.no_op()
    for update in updates:
      # A single op for all of them, since every later op gets an edge from it.
      with tf.control_dependencies([made]):
        made = tf.group(update.make())
    return made

  return replicas.update_if(
    is_good,
    make_all,
    changed=[variable for update in updates for variable in update.changed],
  )
