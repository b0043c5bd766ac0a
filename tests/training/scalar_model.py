"""A model of seven scalars, so that every number can be had by hand."""

import dataclasses

import numpy as np
import tensorflow as tf

from supcon.config import enums
from supcon.config import hparams
from supcon.models import contrastive
from supcon.models import layers
from supcon.training import objectives
from supcon.training import optimizers
from supcon.training import stages
from supcon.training import steps

tf1 = tf.compat.v1


def make_params(stage_1=None, stage_2=None, batch_size=4):
  """Returns HParams; the stages without warm-up, changed as asked for."""

  def changed(stage, changes):
    return dataclasses.replace(stage, **{'warmup_epochs': 0.0, **changes})

  defaults = hparams.HParams()
  return dataclasses.replace(
    defaults,
    batch_size=batch_size,
    stage_1=changed(defaults.stage_1, stage_1 or {}),
    stage_2=changed(defaults.stage_2, stage_2 or {}),
  )


class _Part(layers.Module):
  """x * kernel + bias, with batch norm if asked for."""

  def __init__(self, parent, name, kernel, bias, has_norm=False):
    super().__init__(parent, name)
    self.kernel = self._scalar(layers.Role.KERNEL, 'kernel', kernel)
    self.bias = self._scalar(layers.Role.BIAS, 'bias', bias)
    self.norm = None
    if has_norm:
      self.norm = layers.BatchNorm(self, 1, synchronised=True, gamma=7.0)

  def forward(self, x, training):
    x = x * self.kernel + self.bias
    return self.norm(x, training) if self.norm else x

  def _scalar(self, role, name, value):
    return self._add_variable(role, name, [], tf1.initializers.constant(value))


class Model(contrastive.Composite):
  """Two heads on an encoder, as in contrastive.ContrastiveModel.

  Sums of v^2/2 over kernels, and over kernels and biases:
    encoder          4^2/2 = 8     8 + 2^2/2 = 10
    projection head  2^2/2 = 2     2 + 6^2/2 = 20
    classifier       6^2/2 = 18   18 + 8^2/2 = 50
  The batch norm's gamma, 7, would add 24.5 if it counted.
  """

  def __init__(self):
    super().__init__(None, 'Model')
    self.encoder = _Part(self, 'Encoder', 4.0, 2.0, has_norm=True)
    self.projection_head = _Part(self, 'ProjectionHead', 2.0, 6.0)
    self.classification_head = _Part(self, 'ClassificationHead', 6.0, 8.0)

  def forward(self, x, training):
    """Returns what the two losses depend on, of x [B, 1]."""
    embedding = self.encoder(x, training)
    return (
      self.projection_head(embedding, training),
      self.classification_head(tf.stop_gradient(embedding), training),
    )


KERNEL = 'Model/Encoder/kernel'
BIAS = 'Model/Encoder/bias'
GAMMA = 'Model/Encoder/batch_normalization/gamma'
MOVING_MEAN = 'Model/Encoder/batch_normalization/moving_mean'
MOVING_VARIANCE = 'Model/Encoder/batch_normalization/moving_variance'

SWITCHES = (
  'use_encoder_weight_decay',
  'use_projection_head_weight_decay',
  'use_classification_head_weight_decay',
)


def make_stage(number=1, **changes):
  """Returns stage `number` of two stages of 4 steps each, changed."""
  params = make_params({'epochs': 4}, {'epochs': 4})
  field = f'stage_{number}'
  params = dataclasses.replace(
    params, **{field: dataclasses.replace(params.get(field), **changes)}
  )
  run = stages.plan(params, params.batch_size)
  return run.stages[number - 1]


# --- Training -----------------------------------------------------------------

# Two samples. The encoder's kernel is 4 and its bias 2, so 6 and 14 enter its
# batch norm: their mean is 10, their (biased) variance 4^2 = 16.
X = np.array([[1.0], [3.0]], np.float32)

# One step per epoch and four in each stage: batch 256, the batch for which
# rates are given, of 256 examples. The rates of both stages are
# 0, 0.25, 0.5, 0.5.
WARM_UP = {
  'epochs': 4,
  'warmup_epochs': 2.0,
  'base_learning_rate': 0.5,
  'learning_rate_decay': enums.DecayType.NO_DECAY,
}


def train(*args, num_steps=1, **kwargs):
  """Trains the model by hand, `num_steps` times on X.

  The other arguments are those of `states`.

  Returns:
    (variables before, variables after), each {name: value} in the order of
    their creation.
  """
  found = states([X] * num_steps, *args, **kwargs)
  return found[0], found[-1]


def states(
  batches,
  loss_of,
  stage_1,
  stage_2=None,
  number=1,
  start_step=0,
  start_values=None,
  include_bias=True,
):
  """Returns {name: value} of all variables at first and after each step.

  Args:
    batches: What to run the train op on.
    loss_of: From (the model, projection, logits) to a scalar.
    stage_1: Changes of the stage's hyper-parameters.
    stage_2: Likewise.
    number: Of the stage to train.
    start_step: The global step before training.
    start_values: {name of a variable: its value before training}.
    include_bias: Whether biases decay.
  """
  params = make_params(
    {**WARM_UP, **stage_1}, {**WARM_UP, **(stage_2 or {})}, batch_size=256
  )
  run = stages.plan(params, 256)
  with tf.Graph().as_default(), tf1.Session() as session:
    step = tf1.train.get_or_create_global_step()
    x = tf1.placeholder(tf.float32, X.shape)
    train_op, _ = make_step(
      loss_of, x, run, run.stages[number - 1], step, include_bias
    )
    variables = {v.op.name: v for v in tf1.global_variables()}
    session.run(tf1.global_variables_initializer())
    step.load(start_step, session)
    for name, value in (start_values or {}).items():
      variables[name].load(value, session)
    found = [session.run(variables)]
    for batch in batches:
      session.run(train_op, {x: batch})
      found.append(session.run(variables))
    return found


def make_step(loss_of, x, run, stage, step, include_bias=True):
  """Returns (train op, Health) of a step on `x`."""
  model = Model()
  loss = loss_of(model, *model(x, training=True))
  losses = {
    objectives.TOTAL: loss,
    'contrastive': 2.0 * loss,
    'cross_entropy': 3.0 * loss,
    objectives.WEIGHT_DECAY: tf.constant(4.0),
  }
  outputs = contrastive.Outputs(
    *[None] * 4, batch_statistics=tuple(model.take_batch_statistics())
  )
  value = steps.in_one_pass(stage.params, model, outputs, lambda _: losses)
  variables = model.trainable_variables
  health = steps.health(value, variables)
  optimizer = optimizers.of_plan(run, model, step, include_bias)[stage.number]
  updates = [
    *value.updates,
    optimizers.update(optimizer, variables, value.gradients, step),
  ]
  return steps.make(updates, health.is_good), health


def no_loss(model, projection, logits):
  del model, projection, logits
  return tf.constant(0.0)


def encoder_kernel(model, projection, logits):
  """A loss whose gradient is 1 for the encoder's kernel and 0 elsewhere."""
  del projection, logits
  return model.encoder.kernel + 0.0


MOMENTUM = {'optimizer': enums.Optimizer.MOMENTUM}
RMSPROP = {'optimizer': enums.Optimizer.RMSPROP}
LARS = {'optimizer': enums.Optimizer.LARS}
