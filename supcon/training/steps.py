"""A training step as a value: what it would do, before anything is done.

How it comes about is free: `in_one_pass` takes the whole batch at once. What
owns state hands out an `Update` with the variables that it changes; nobody else
lists them.
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
    make: Builds the ops. It is called where they may run, since on TPU an op
      runs as soon as it exists.
    changed: The variables that they change.
    kind: In words, what is read to make the change.
    read: (variable, what is read for it) pairs; all must be finite.
  """

  make: Callable[[], Sequence[tf.Operation]]
  changed: Sequence[tf.Variable]
  kind: str = ''
  read: Sequence[tuple[tf.Variable, tf.Tensor]] = ()


class Step(NamedTuple):
  """What one step would do on this replica.

  Attributes:
    losses: As of objectives.compose, means over this replica's samples.
    gradients: Of the total, for each trainable variable; None where it does not
      reach.
    updates: Of all state but the weights.
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
  """Returns the step of a batch that passed through the model as a whole.

  Args:
    stage: Whether moving averages follow the batch.
    model: The model.
    losses: As of objectives.compose.
    statistics: Those of the batch.
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
  """What has to be finite for a step to be made."""

  kind: str  # In words.
  name: str  # Of the variable; empty for the loss.


class Health(NamedTuple):
  """Whether all that a step would do is finite; the same on all replicas.

  Attributes:
    loss_names: Those of Step.losses.
    subjects: What is looked at.
    report: float32 [len(loss_names) + len(subjects)]: the losses, as means over
      the replicas; then of each subject the share of the replicas on which it
      is NaN or infinite.
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
    """Returns {name: its value} from a report of this form."""
    return dict(zip(self.loss_names, report))

  def shares_in(self, report):
    """Returns of each subject the share of replicas on which it is bad."""
    return report[len(self.loss_names) :]


def health(step: Step, variables: Sequence[tf.Variable]) -> Health:
  """Looks at what this replica would do in a step, and all others.

  Of the losses only the total counts: parts of weight 0 may be what they like.
  What updates read counts: neither the loss nor the gradients need show that
  batch statistics are NaN, for on CPU, a batch norm and its relu are one op,
  which makes 0 of NaN.

  Args:
    step: The step.
    variables: Those of its gradients.
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
  # Under a tf.distribute strategy a replica knows them by names of its own.
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


# --- Making it ----------------------------------------------------------------


def make(updates: Sequence[Update], is_good: tf.Tensor) -> tf.Operation:
  """Returns the op that makes all updates, one after the other, or none.

  Args:
    updates: In order; the last one counts the step.
    is_good: Bool scalar, the same on all replicas. If it does not hold, no
      variable changes, be it a weight, a slot, a moving statistic or the step.
  """

  def make_all():
    made = tf.no_op()
    for update in updates:
      # One op for all of them: every op that follows has an edge from it.
      with tf.control_dependencies([made]):
        made = tf.group(update.make())
    return made

  return replicas.update_if(
    is_good,
    make_all,
    changed=[variable for update in updates for variable in update.changed],
  )
