"""From run options to a TPUEstimator."""

import tensorflow as tf

from supcon import run_options

tf1 = tf.compat.v1


def check_device(options: run_options.RunOptions) -> None:
  """Checks that the run fits the devices that the losses can span.

  Raises:
    ValueError: If it asks for a TPU, which has several cores.
  """
  if options.use_tpu:
    raise ValueError(
      '--use_tpu=True is not available yet: the loss and batch norm span one '
      'device only; pass --use_tpu=False to run on one GPU or on CPU.'
    )


def build(
  options: run_options.RunOptions,
  model_fn,
  train_batch_size: int,
  eval_batch_size: int,
  seed: int,
) -> tf1.estimator.tpu.TPUEstimator:
  """Returns the estimator of one stage."""
  tpu_config = tf1.estimator.tpu.TPUConfig(
    iterations_per_loop=options.steps_per_loop,
    per_host_input_for_training=(
      tf1.estimator.tpu.InputPipelineConfig.PER_HOST_V2
    ),
  )
  config = tf1.estimator.tpu.RunConfig(
    master=options.master,
    model_dir=options.model_dir,
    save_checkpoints_steps=options.save_interval_steps,
    keep_checkpoint_max=options.max_checkpoints_to_keep,
    keep_checkpoint_every_n_hours=(
      options.keep_checkpoint_interval_secs / 3600
    ),
    save_summary_steps=options.summary_interval_steps,
    log_step_count_steps=options.summary_interval_steps,
    tf_random_seed=seed,
    session_config=tf1.ConfigProto(allow_soft_placement=True),
    tpu_config=tpu_config,
  )
  return tf1.estimator.tpu.TPUEstimator(
    model_fn=model_fn,
    config=config,
    use_tpu=options.use_tpu,
    train_batch_size=train_batch_size,
    eval_batch_size=eval_batch_size,
    predict_batch_size=eval_batch_size,
    # A second MetaGraph for TPU would keep TF2 from loading the SavedModel.
    export_to_tpu=False,
  )
