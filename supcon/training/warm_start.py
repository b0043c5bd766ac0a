"""Which variables come from a reference checkpoint."""

import tensorflow as tf

from supcon import hparams
from supcon.models import contrastive
from supcon.training import checkpoints

tf1 = tf.compat.v1


def find(reference: str) -> str:
  """Returns the checkpoint that a directory or prefix stands for.

  Args:
    reference: A checkpoint prefix such as DIR/model.ckpt-100, or a directory,
      whose newest checkpoint is meant.

  Raises:
    ValueError: If there is no checkpoint.
  """
  # checkpoint_exists() is true of any directory.
  if tf.io.gfile.exists(f'{reference}.index'):
    return reference
  if not tf.io.gfile.isdir(reference):
    raise ValueError(
      f'--reference_ckpt={reference} does not exist; name a checkpoint '
      '(DIR/model.ckpt-STEP) or a training directory.'
    )
  checkpoint = tf.train.latest_checkpoint(reference)
  if checkpoint is None:
    raise ValueError(
      f'--reference_ckpt={reference} holds no checkpoint; name a training '
      'directory that does, or a checkpoint (DIR/model.ckpt-STEP).'
    )
  return checkpoint


def assignment_map(
  model: contrastive.ContrastiveModel,
  params: hparams.WarmStart,
  checkpoint: str,
) -> dict[str, tf.Variable]:
  """Returns {name in the reference checkpoint: variable that starts from it}.

  Raises:
    ValueError: If the checkpoint is one of another architecture, or lacks
      variables and `params` does not ignore that.
  """
  modules = [
    module
    for module, is_wanted in (
      (model.encoder, params.warm_start_encoder),
      (model.projection_head, params.warm_start_projection_head),
      (model.classification_head, params.warm_start_classifier),
    )
    if is_wanted
  ]
  wanted = [v for module in modules for v in module.variables]
  found = checkpoints.compare(
    wanted, [module.name for module in modules], checkpoint
  )
  if found.missing and not params.ignore_missing_checkpoint_vars:
    raise ValueError(
      f'--reference_ckpt={checkpoint} lacks {len(found.missing)} of '
      f'{len(wanted)} variables: {", ".join(found.missing)}; use the flags '
      'that it was trained with, or --ignore_missing_checkpoint_vars to '
      'start these at random.'
    )
  difference = found._replace(missing=[]).describe()
  if difference:
    raise ValueError(
      f'--reference_ckpt={checkpoint} is of another architecture: '
      f'{difference}; use the flags that it was trained with.'
    )
  missing = set(found.missing)
  return {v.op.name: v for v in wanted if v.op.name not in missing}
