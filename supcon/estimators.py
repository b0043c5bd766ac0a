"""From run options to a TPUEstimator."""

import tensorflow as tf

from supcon import run_options

tf1 = tf.compat.v1


def cluster(options: run_options.RunOptions):
  """Returns the resolver of the Cloud TPU, or None where none is needed.

  Raises:
    ValueError: If the TPU cannot be found.
  """
  if not options.use_tpu or options.master:
    return None
  try:
    return tf.distribute.cluster_resolver.TPUClusterResolver(
      tpu=options.tpu_name,
      zone=options.tpu_zone,
      project=options.gcp_project,
    )
  except Exception as error:  # Whatever the client library raises.
    reason = ' '.join(str(error).split())[:200]
    raise ValueError(
      f'--use_tpu=True but --tpu_name={options.tpu_name} cannot be resolved '
      f'({reason}); name a TPU, or pass --use_tpu=False for GPU or CPU.'
    ) from error


def build(
  options: run_options.RunOptions,
  resolver,
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
    cluster=resolver,
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
