"""A training step as a value: its effects, before any of them happens.

A step may be computed in any way: `in_one_pass` takes the whole batch at once,
`in_micro_batches` a part of it at a time. Each owner of state hands out an
`Update` with the variables that it changes; no other code lists them.
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
    outputs: The model's outputs for this replica's samples, before the step.
    updates: The updates of all state except the weights.
  """

  losses: Mapping[str, tf.Tensor]
  gradients: Sequence[tf.Tensor | None]
  outputs: contrastive.Outputs
  updates: Sequence[Update]


class Parts:
  """A replica's samples in K micro-batches.

  Attributes:
    count: K.
    size: Samples in a micro-batch.
    num_views: Views of each sample.
  """

  def __init__(
    self,
    count: int,
    features: Mapping[str, tf.Tensor],
    images_of: Callable[[Mapping[str, tf.Tensor]], tf.Tensor],
  ):
    """Divides a batch.

    Args:
      count: K.
      features: {name: tensor [b, ...]}, with 'images'.
      images_of: Makes the images that the encoder sees, [n, V, S, S, 3], of
        the features of n samples.
    """
    batch, self.num_views = features['images'].shape[:2]
    self.count, self.size = count, batch // count
    self._features = features
    self._images_of = images_of

  def images(self, index: tf.Tensor) -> tf.Tensor:
    """Returns the images of a micro-batch: of neighbours in the batch."""
    return self._images_of(
      {
        name: tf.reshape(value, [self.count, -1, *value.shape[1:]])[index]
        for name, value in self._features.items()
      }
    )

  def mixed_images(self, index: tf.Tensor) -> tf.Tensor:
    """Returns the images of the samples index, index + K, index + 2 K ..."""
    return self._images_of(
      {
        name: tf.reshape(value, [-1, self.count, *value.shape[1:]])[:, index]
        for name, value in self._features.items()
      }
    )


# From the outputs of the model to the result of objectives.compose.
LossesOf = Callable[[contrastive.Outputs], Mapping[str, tf.Tensor]]


def in_one_pass(
  stage: hparams.Stage,
  model: contrastive.ContrastiveModel,
  outputs: contrastive.Outputs,
  losses_of: LossesOf,
) -> Step:
  """Returns the step of a batch that was computed in one pass.

  Args:
    stage: Determines whether moving averages follow the batch.
    model: The model.
    outputs: Its outputs for the batch.
    losses_of: Composes the losses of the stage.
  """
  losses = losses_of(outputs)
  gradients = tf.gradients(losses[objectives.TOTAL], model.trainable_variables)
  return Step(losses, gradients, outputs, _moves(stage, outputs))


def in_micro_batches(
  stage: hparams.Stage,
  model: contrastive.ContrastiveModel,
  parts: Parts,
  training: bool,
  losses_of: LossesOf,
) -> Step:
  """Returns the step of a batch, computed one micro-batch at a time.

  It is gradient caching (https://arxiv.org/abs/2101.06983), cut at the
  embedding. With the images x_k of micro-batch k, the encoder f and its weights
  w, the weights v of the heads, and the loss L of the whole batch:

    1. e_k = f(x_k; w) for k = 1 ... K, without keeping anything for a gradient.
    2. L(e_1 ... e_K; v), dL/dv, and g_k = dL/de_k for all k.
    3. dL/dw = sum over k of g_k de_k/dw, for which f(x_k; w) is computed again.

  This is the gradient of the whole batch, although only the activations of a
  single micro-batch are in memory at a time. If the loss does not reach the
  embedding, there is no third part. Batch norm uses the statistics of each
  micro-batch, and moving averages follow their mean: the step is that of K
  replicas without global batch norm, which have a micro-batch each.

  Args:
    stage: Determines whether moving averages follow the batch.
    model: The model.
    parts: The micro-batches.
    training: Whether batch norm uses the statistics of a micro-batch.
    losses_of: Composes the losses of the stage.
  """

  def embed(index):
    return model.embed(parts.images(index), training)

  embedding, statistics = _embed_in_turn(model, embed, parts, training)
  outputs = model.of_embeddings(embedding, training, num_groups=parts.count)
  outputs = outputs._replace(
    batch_statistics=(*statistics, *outputs.batch_statistics)
  )
  losses = losses_of(outputs)

  encoder = model.encoder.trainable_variables
  are_encoder = {variable.ref() for variable in encoder}
  heads = [v for v in model.trainable_variables if v.ref() not in are_encoder]
  # The weights of the encoder must not be among them: from those, tf.gradients
  # would find its way through the loop.
  upstream, *head_gradients = tf.gradients(
    losses[objectives.TOTAL], [embedding, *heads]
  )
  gradients = tf.gradients(losses[objectives.WEIGHT_DECAY], encoder)
  if upstream is not None:
    totals = _pull_back(
      model,
      embed,
      tf.reshape(upstream, [parts.count, -1, *upstream.shape[1:]]),
    )
    gradients = [
      total if decay is None else total + decay
      for total, decay in zip(totals, gradients)
    ]
  of_variable = {
    variable.ref(): gradient
    for variable, gradient in zip(
      [*encoder, *heads], [*gradients, *head_gradients]
    )
  }
  return Step(
    losses,
    [of_variable[variable.ref()] for variable in model.trainable_variables],
    outputs,
    _moves(stage, outputs),
  )


def projections_in_turn(
  model: contrastive.ContrastiveModel, parts: Parts, training: bool
) -> tf.Tensor:
  """Returns the projections of a batch, [B, V, P], without gradient.

  Micro-batches are others than those of `in_micro_batches`: batch statistics do
  not tell which samples were in a micro-batch with an anchor there.

  Args:
    model: The model.
    parts: The micro-batches.
    training: Whether batch norm uses the statistics of a micro-batch.
  """

  def embed(index):
    return model.embed(parts.mixed_images(index), training)

  embedding, _ = _embed_in_turn(model, embed, parts, training)
  outputs = model.of_embeddings(embedding, training, num_groups=parts.count)
  projection = outputs.projection  # The first samples of all parts come first.
  shape = projection.shape
  projection = tf.reshape(projection, [parts.count, parts.size, *shape[1:]])
  return tf.reshape(tf.transpose(projection, [1, 0, 2, 3]), shape)


# One micro-batch at a time, and nothing kept for the gradient of a loop.
_IN_TURN = dict(parallel_iterations=1, back_prop=False)


def _embed_in_turn(model, embed, parts, training):
  """Returns all embeddings [B, V, D], and the mean BatchStatistics."""
  part_shape = [parts.size, parts.num_views, model.encoder.embedding_size]
  measured = []

  def compute(index):
    embedding = embed(index)
    measured[:] = model.take_batch_statistics()
    values = [statistic.value for statistic in measured]
    return embedding, tf.concat([*values, tf.zeros([0])], axis=0)

  # XLA has to know the shapes beforehand.
  moving = model.encoder.batch_norm_variables if training else []
  num_statistics = sum(v.shape[0] for v in moving if not v.trainable)
  embeddings, values = tf1.map_fn(
    compute,
    tf.range(parts.count),
    fn_output_signature=(
      tf.TensorSpec(part_shape, tf.float32),
      tf.TensorSpec([num_statistics], tf.float32),
    ),
    **_IN_TURN,
  )
  sizes = [statistic.moving.shape[0] for statistic in measured]
  means = tf.split(tf.reduce_mean(values, axis=0), [*sizes, 0])
  return tf.reshape(embeddings, [-1, *part_shape[1:]]), [
    statistic._replace(value=mean) for statistic, mean in zip(measured, means)
  ]


def _pull_back(model, embed, upstream):
  """Returns the gradients of the encoder's weights, given [K, B/K, V, D]."""
  encoder = model.encoder.trainable_variables

  def add(totals, index):
    parts = tf.gradients(embed(index), encoder, grad_ys=upstream[index])
    model.take_batch_statistics()  # They are known from the first pass.
    return [total + part for total, part in zip(totals, parts)]

  # The first forward pass does not need the gradient. It would begin beside the
  # first loop, and hold its activations until the end of that loop.
  with tf.control_dependencies([upstream]):
    indices = tf.identity(tf.range(upstream.shape[0]))
  zeros = [tf.zeros(v.shape) for v in encoder]
  return tf1.foldl(add, indices, zeros, **_IN_TURN)


def _moves(stage, outputs):
  """Returns the updates of the moving averages."""
  statistics = outputs.batch_statistics
  if not statistics or not stage.update_encoder_batch_norm:
    return []
  return [
    Update(
      make=lambda: layers.move_averages(statistics),
      changed=[moving for moving, _ in statistics],
      kind='the batch statistics for',
      read=statistics,
    )
  ]


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
