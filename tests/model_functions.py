"""Makes a ModelFn for tests, which say only what they are about."""

import tensorflow as tf

from supcon.training import model_fn


def make(params, run, stage, num_classes, **changes):
  """Returns a ModelFn off TPU, of float32 images that are not whitened.

  Args:
    params: hparams.HParams.
    run: stages.Plan.
    stage: stages.Stage, one of the plan's.
    num_classes: Int.
    **changes: Other fields of ModelFn.
  """
  arguments = dict(
    num_eval_examples=1,
    mean=None,
    std=None,
    dtype=tf.float32,
    model_dir='unused',
    summary_interval_steps=1,
    use_tpu=False,
    reference_checkpoint=None,
    train_batch_norm=True,
  )
  return model_fn.ModelFn(
    params=params,
    run=run,
    stage=stage,
    num_classes=num_classes,
    **{**arguments, **changes},
  )
