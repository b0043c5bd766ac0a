"""What is measured: training summaries and evaluation metrics.

The tags are those of the published implementation.
"""

import tensorflow as tf

from supcon import replicas
from supcon.training import schedules
from supcon.training import stages

tf1 = tf.compat.v1


def top_k_accuracy(labels, logits, k):
  """Whether the label is among the k largest logits.

  Of equal logits the one of the lower class counts as larger, as in
  `numpy.argmax`; so k = 1 is `argmax(logits) == label` to the last example.

  Args:
    labels: int32 [B].
    logits: float32 [B, C].
    k: Python int; as large as C or larger, every label is among them.

  Returns:
    float32 [B], 1 or 0.
  """
  num_classes = logits.shape[-1]
  is_label = tf.one_hot(labels, num_classes)  # [B, C]
  own = tf.reduce_sum(logits * is_label, axis=1, keepdims=True)
  classes = tf.range(num_classes, dtype=tf.int32)[tf.newaxis]
  ahead = tf.logical_or(
    logits > own,
    tf.logical_and(tf.equal(logits, own), classes < labels[:, tf.newaxis]),
  )
  rank = tf.reduce_sum(tf.cast(ahead, tf.int32), axis=1)
  # A NaN is neither larger nor smaller: it must not pass for a right answer.
  is_number = tf.reduce_all(tf.math.is_finite(logits), axis=1)
  return tf.cast(tf.logical_and(rank < k, is_number), tf.float32)


def training_scalars(run, step, model, outputs, labels, losses, include_bias):
  """Returns {tag: float32 scalar} of a training step, before its update.

  Args:
    run: stages.Plan.
    step: int64 scalar, the global step before the update.
    model: contrastive.ContrastiveModel.
    outputs: contrastive.Outputs of this replica's samples.
    labels: int32 [B].
    losses: stages.LossParts, already means over replicas.
    include_bias: Whether biases count in the weight norms.
  """
  scalars = {
    'loss/total_loss': losses.total,
    'loss/contrastive_loss': losses.contrastive,
    'loss/cross_entropy_loss': losses.cross_entropy,
    'current_epoch': schedules.current_epoch(step, run.steps_per_epoch),
  }
  ranks = (1, 5)
  accuracies = replicas.mean(
    tf.stack(
      [tf.reduce_mean(top_k_accuracy(labels, outputs.logits, k)) for k in ranks]
    )
  )
  for k, accuracy in zip(ranks, tf.unstack(accuracies)):
    scalars[f'top_{k}_accuracy'] = accuracy
  for name, norm in stages.weight_norms(model, include_bias).items():
    scalars[f'weight_decay/{name}_weights'] = norm
  for stage, rate in zip(run.stages, run.learning_rates(step)):
    scalars[f'weight_decay/stage{stage.number}_weight_decay_loss'] = (
      stages.weight_decay_loss(stage, model, include_bias)
    )
    scalars[f'stage_{stage.number}_learning_rate'] = rate
  return scalars


def host_call(scalars, global_step, model_dir, interval_steps):
  """Returns a TPUEstimatorSpec host_call that writes training summaries.

  Args:
    scalars: {tag: float32 scalar}.
    global_step: int64 scalar, the step before the update.
    model_dir: Where the event file goes.
    interval_steps: A record is written at each multiple of it, on TPU, GPU and
      CPU alike, though the latter call the host every step.
  """

  def write(global_step, **values):
    if replicas.replica_id():
      return []  # All replicas know the same, and the first one writes it.
    step = global_step[0]
    writer = tf.summary.create_file_writer(model_dir)
    is_recorded = tf.equal(step % interval_steps, 0)
    with (
      writer.as_default(),
      tf.summary.record_if(is_recorded),
    ):
      for tag, value in values.items():
        # On TPU one value per core: the mean over all of them.
        tf.summary.scalar(tag, tf.reduce_mean(value), step=step)
    written = tf1.summary.all_v2_summary_ops()
    with tf.control_dependencies(written):
      # A record is written whole, or a run that is killed and continues after
      # it would have lost some of its tags for good.
      flushed = tf.cond(is_recorded, writer.flush, tf.no_op)
    return [*written, flushed]

  tensors = {tag: tf.reshape(value, [1]) for tag, value in scalars.items()}
  return write, {'global_step': tf.reshape(global_step, [1]), **tensors}


def eval_metrics(labels, logits, contrastive_loss, cross_entropy_loss, weights):
  """Returns a TPUEstimatorSpec eval_metrics: means over weighted examples.

  Args:
    labels: int32 [B].
    logits: float32 [B, C].
    contrastive_loss: float32 [B].
    cross_entropy_loss: float32 [B].
    weights: float32 [B], 1 for an example, 0 for padding of the last batch.
  """

  def metric_fn(**values):
    weights = values.pop('weights')
    return {
      tag: _weighted_mean(tag, value, weights) for tag, value in values.items()
    }

  return metric_fn, {
    'top_1_accuracy': top_k_accuracy(labels, logits, 1),
    'top_5_accuracy': top_k_accuracy(labels, logits, 5),
    'loss/contrastive_loss': contrastive_loss,
    'loss/cross_entropy_loss': cross_entropy_loss,
    'weights': weights,
  }


def _weighted_mean(name, values, weights):
  """Like tf.metrics.mean, but summed in float64.

  So an accuracy is exactly the count of right answers divided by the number of
  examples, and 50,000 losses add up without rounding.
  """
  values = tf.cast(values, tf.float64)
  weights = tf.cast(weights, tf.float64)
  # A NaN or infinity in the padding must not reach the sum.
  values = tf.where(weights > 0, values * weights, tf.zeros_like(values))
  total = _accumulator(f'{name}/total')
  count = _accumulator(f'{name}/count')
  value = tf.math.divide_no_nan(total.read_value(), count.read_value())
  updates = [
    total.assign_add(tf.reduce_sum(values)),
    count.assign_add(tf.reduce_sum(weights)),
  ]
  with tf.control_dependencies(updates):
    update = tf.math.divide_no_nan(total.read_value(), count.read_value())
  return value, update


def _accumulator(name):
  return tf1.get_variable(
    f'metrics/{name}',
    shape=[],
    dtype=tf.float64,
    initializer=tf1.zeros_initializer(),
    trainable=False,
    use_resource=True,
    collections=[
      tf1.GraphKeys.LOCAL_VARIABLES,
      tf1.GraphKeys.METRIC_VARIABLES,
    ],
  )
