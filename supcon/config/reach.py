"""Which parts of the model the losses of a stage train."""

from collections.abc import Iterator
from typing import NamedTuple

from supcon.config import hparams


class Reach(NamedTuple):
  """A weighted term of the loss, and where its gradient goes."""

  term: str
  part: str  # Part of the model that the term always trains.
  flag: str  # The gradient reaches the encoder if this flag is False.
  reaches_encoder: bool

  @property
  def name(self) -> str:
    """Name of the term for users."""
    return f'{self.term.replace("_", "-")} loss'


def of(architecture: hparams.Architecture, stage: hparams.Stage) -> list[Reach]:
  """Returns the parts that each weighted term of a stage's loss trains."""
  return [
    Reach(
      term,
      part,
      f'stop_gradient_before_{part}',
      not getattr(architecture, f'stop_gradient_before_{part}', False),
    )
    for term, part in stage.loss_parts.items()
    if stage.loss_weights[term]
  ]


def check(params: hparams.HParams) -> None:
  """Checks that the losses reach the parts that training should train.

  This is not part of `HParams.check`, because any checkpoint may be evaluated
  and exported, however it was trained.

  Raises:
    ValueError: If a stage trains a head on an encoder that no loss has
      trained by then and that no reference initializes, or a memory serves no
      loss.
  """
  size = params.memory.memory_size
  if size and not any(
    stage.epochs and stage.contrastive_loss_weight for stage in params.stages
  ):
    raise ValueError(
      f'--memory_size={size} is of contrasts, but no stage has a contrastive '
      'loss; leave it out, or set --stage_1_contrastive_loss_weight.'
    )
  has_encoder = params.warm_start.warm_start_encoder
  for number, stage in enumerate(params.stages, start=1):
    if not stage.epochs:
      continue
    reaches = of(params.architecture, stage)
    has_encoder = has_encoder or any(loss.reaches_encoder for loss in reaches)
    if not has_encoder:
      kept = [
        f'--{loss.flag}=True keeps the {loss.name} out of it'
        for loss in reaches
      ]
      remedies = [f'--{loss.flag}=False' for loss in reaches]
      raise ValueError(
        f'stage {number} trains on an encoder at random: {" and ".join(kept)}, '
        f'and nothing has trained it before. Pass {" or ".join(remedies)}, or '
        'take an encoder from --reference_ckpt with --warm_start_encoder.'
      )


def oddities(params: hparams.HParams) -> Iterator[str]:
  """Yields a line for each unusual setting of the training."""
  for number, stage in enumerate(params.stages, start=1):
    if not stage.epochs:
      continue
    reaches = of(params.architecture, stage)
    reached = [loss for loss in reaches if loss.reaches_encoder]
    for loss in reaches if reached else ():
      if not loss.reaches_encoder:
        yield (
          f'stage {number}: the {loss.name} trains the '
          f'{loss.part.replace("_", " ")} alone, '
          f'since --{loss.flag}=True keeps it out of the encoder; pass '
          f'--{loss.flag}=False for a joint loss.'
        )
    if not reached and stage.weight_decay and stage.use_encoder_weight_decay:
      yield (
        f'stage {number}: no loss reaches the encoder, but its weights decay;'
        f' pass --stage_{number}_use_encoder_weight_decay=False to keep them.'
      )
