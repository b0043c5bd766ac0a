"""The table of the terms of the loss.

A stage weighs the terms by its fields NAME_loss_weight, which also say which
part of the model a term trains. All other code that handles losses (metrics,
hooks, evaluation) iterates over the names. To add a term, add a row to TERMS
and a field to hparams.Stage, and say in changes.py that it may change.
"""

from collections.abc import Mapping
from typing import Protocol

import tensorflow as tf

from supcon import losses
from supcon.config import enums
from supcon.config import hparams
from supcon.config import reach
from supcon.models import contrastive

TOTAL = 'total'
WEIGHT_DECAY = 'weight_decay'


class Term(Protocol):
  """A loss per example."""

  def __call__(
    self,
    params: hparams.Losses,
    outputs: contrastive.Outputs,
    labels: tf.Tensor,
    is_valid: tf.Tensor | None,
  ) -> tf.Tensor:
    """Returns float32 [B], in nats.

    Args:
      params: The options of the losses, shared by all stages.
      outputs: The outputs of the model for B samples.
      labels: int32 [B].
      is_valid: Bool [B], False for padding; None if there is none.
    """


def _contrastive(params, outputs, labels, is_valid):
  options = params.contrastive
  return losses.contrastive_loss(
    outputs.projection,
    labels=labels if options.use_labels else None,
    temperature=options.temperature,
    contrast_mode=options.contrast_mode,
    summation_location=options.summation_location,
    denominator_mode=options.denominator_mode,
    positives_cap=options.positives_cap,
    scale_by_temperature=options.scale_by_temperature,
    is_valid=is_valid,
    **(outputs.recalled._asdict() if outputs.recalled else {}),
  )


def _cross_entropy(params, outputs, labels, is_valid):
  del is_valid  # The value of an example does not depend on others.
  return losses.cross_entropy_loss(
    labels,
    outputs.logits,
    label_smoothing=params.cross_entropy.label_smoothing,
  )


TERMS: dict[str, Term] = {
  'contrastive': _contrastive,
  'cross_entropy': _cross_entropy,
}


def per_example(
  params: hparams.Losses,
  outputs: contrastive.Outputs,
  labels: tf.Tensor,
  is_valid: tf.Tensor | None = None,
) -> dict[str, tf.Tensor]:
  """Returns {term: float32 [B]}; see `Term` for the arguments."""
  return {
    name: term(params, outputs, labels, is_valid)
    for name, term in TERMS.items()
  }


def reached_variables(
  stage: hparams.Stage,
  model: contrastive.ContrastiveModel,
  architecture: hparams.Architecture,
) -> list[tf.Variable]:
  """Returns the variables that the gradient of a stage's loss reaches."""
  parts = set()
  for reached in reach.of(architecture, stage):
    parts.add(reached.part)
    if reached.reaches_encoder:
      parts.add('encoder')
  return [
    variable
    for part in sorted(parts)
    for variable in model.parts[part].trainable_variables
  ]


def tag(name: str) -> str:
  """Returns the summary tag of a term or of the total."""
  return 'loss' if name == TOTAL else f'loss/{name}_loss'


def in_words(name: str) -> str:
  """Returns the name of a term for messages."""
  return name.replace('_', '-')


def compose(
  stage: hparams.Stage,
  means: Mapping[str, tf.Tensor],
  weight_decay: tf.Tensor,
) -> dict[str, tf.Tensor]:
  """Composes the loss of a stage.

  Args:
    stage: Its hyper-parameters.
    means: {term: float32 scalar}, the mean over examples, without weight.
    weight_decay: float32 scalar, added to the total.

  Returns:
    {'total': what the stage minimises, each term as it was given,
    'weight_decay': as it was given}, float32 scalars, in this order.
  """
  total = weight_decay
  for name, weight in stage.loss_weights.items():
    if weight:  # 0 * loss would still be differentiated, and 0 * inf is NaN.
      total += weight * means[name]
  return {TOTAL: total, **means, WEIGHT_DECAY: weight_decay}


# --- Weight decay -------------------------------------------------------------


def decayed_variables(
  stage: hparams.Stage,
  model: contrastive.ContrastiveModel,
  include_bias: bool,
) -> list[tf.Variable]:
  """Returns the variables that weight decay acts on in a stage."""
  return [
    variable
    for name, part in model.parts.items()
    if getattr(stage, f'use_{name}_weight_decay')
    for variable in part.decayable(include_bias)
  ]


def weight_decay_loss(
  stage: hparams.Stage,
  model: contrastive.ContrastiveModel,
  include_bias: bool,
) -> tf.Tensor:
  """Returns coefficient x norms of the parts that decay in the stage.

  LARS decays inside the optimizer, so the loss is 0 there.
  """
  if stage.optimizer == enums.Optimizer.LARS or not stage.weight_decay:
    return tf.constant(0.0)
  return stage.weight_decay * tf.add_n(
    [tf.constant(0.0)]
    + [tf.nn.l2_loss(v) for v in decayed_variables(stage, model, include_bias)]
  )
