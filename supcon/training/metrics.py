"""Training summaries and evaluation metrics.

The tags are those of the published implementation.
"""

import time

import tensorflow as tf

from supcon.compute import replicas
from supcon.runs import event_files
from supcon.training import objectives
from supcon.training import schedules

tf1 = tf.compat.v1


def top_k_accuracy(labels, logits, k):
  """Whether the label is among the k largest logits.

  Among equal logits, that of the lower class counts as larger, as in
  `numpy.argmax`. So k = 1 equals `argmax(logits) == label` for every example.

  Args:
    labels: int32 [B].
    logits: float32 [B, C].
    k: Python int; if k >= C, every label is among the k largest.

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
  # NaN is neither larger nor smaller, so it must not count as correct.
  is_number = tf.reduce_all(tf.math.is_finite(logits), axis=1)
  return tf.cast(tf.logical_and(rank < k, is_number), tf.float32)


def training_scalars(plan, step, model, logits, labels, losses, include_bias):
  """Returns {tag: float32 scalar} of a training step, before its update.

  Args:
    plan: stages.Plan.
    step: int64 scalar, the global step before the update.
    model: contrastive.ContrastiveModel.
    logits: float32 [B, C] of this replica's samples.
    labels: int32 [B].
    losses: The result of objectives.compose, already averaged over replicas.
    include_bias: Whether the weight norms include biases.
  """
  scalars = {
    objectives.tag(name): losses[name]
    for name in (objectives.TOTAL, *objectives.TERMS)
  }
  scalars['current_epoch'] = schedules.current_epoch(step, plan.steps_per_epoch)
  ranks = (1, 5)
  accuracies = replicas.mean(
    tf.stack([tf.reduce_mean(top_k_accuracy(labels, logits, k)) for k in ranks])
  )
  for k, accuracy in zip(ranks, tf.unstack(accuracies)):
    scalars[f'top_{k}_accuracy'] = accuracy
  for name, norm in model.weight_norms(include_bias).items():
    scalars[f'weight_decay/{name}_weights'] = norm
  for stage, rate in zip(plan.stages, plan.learning_rates(step)):
    scalars[f'weight_decay/stage{stage.number}_weight_decay_loss'] = (
      objectives.weight_decay_loss(stage.params, model, include_bias)
    )
    scalars[f'stage_{stage.number}_learning_rate'] = rate
  return scalars


def host_call(scalars, global_step, directory, interval_steps, start_step=0):
  """Returns a TPUEstimatorSpec host_call that writes training summaries.

  Args:
    scalars: {tag: float32 scalar}.
    global_step: int64 scalar, the step before the update.
    directory: The directory of the event file.
    interval_steps: A record is written at each multiple of it. This is the same
      on TPU, GPU and CPU, although the latter two call the host every step.
    start_step: The first step of this session. Existing records of it and of
      later steps are deleted, see event_files.
  """

  def write(global_step, **values):
    if replicas.replica_id():
      return []  # All replicas have the same values; the first writes.
    step = global_step[0]
    with tf.device('cpu:0'):
      # On TPU there is one value per core; write their mean.
      means = tf.stack([tf.reduce_mean(value) for value in values.values()])

      def begin():
        event = event_files.start(start_step).SerializeToString()
        return _write(directory, tf.raw_ops.ImportEvent, event=event)

      def record():
        return _write_scalars(directory, step, list(values), means)

      begun = tf.cond(tf.equal(step, start_step), begin, tf.no_op)
      with tf.control_dependencies([begun]):
        is_recorded = tf.equal(step % interval_steps, 0)
        return [tf.cond(is_recorded, record, tf.no_op)]

  tensors = {tag: tf.reshape(value, [1]) for tag, value in scalars.items()}
  return write, {'global_step': tf.reshape(global_step, [1]), **tensors}


def _write(directory, write, **arguments):
  """Returns the op that writes to the event file once it exists.

  Args:
    directory: The directory of the file, shared by all writers of a session.
    write: One of tf.raw_ops.
    **arguments: The arguments of `write`.
  """
  writer = tf.raw_ops.SummaryWriter(shared_name='training_summaries')
  opened = tf.raw_ops.CreateSummaryFileWriter(
    writer=writer,
    logdir=directory,
    max_queue=10,
    flush_millis=120000,
    filename_suffix='.v2',
  )
  with tf.control_dependencies([opened]):
    written = write(writer=writer, **arguments)
  with tf.control_dependencies([written]):
    # Flush, so that records are complete. Otherwise a run that is killed and
    # resumes after this step would lose some of its tags for good.
    return tf.raw_ops.FlushSummaryWriter(writer=writer)


def _write_scalars(directory, step, tags, values):
  """Returns the op that writes float32 [N] values of [N] tags at a step."""
  summary = tf.raw_ops.ScalarSummary(tags=tags, values=values)
  return _write(
    directory, tf.raw_ops.WriteRawProtoSummary, step=step, tensor=summary
  )


class SpeedHook(tf1.train.SessionRunHook):
  """Adds the speed of training to the training summaries.

  It writes to the file of the host call, at the steps recorded there; on TPU,
  at the last recorded step of each loop.
  """

  def __init__(self, directory: str, batch_size: int, interval_steps: int):
    self._directory = directory
    self._batch_size = batch_size
    self._interval_steps = interval_steps
    # Time and number of the last step that was counted. The first step is not
    # counted, because it waits for one-time work.
    self._last = None

  def begin(self):
    self._step = tf1.train.get_global_step()
    # On the host of the step, like the host call.
    with tf.device(self._step.device), tf.device('cpu:0'):
      self._recorded = tf1.placeholder(tf.int64, [])
      self._speeds = tf1.placeholder(tf.float32, [2])
      self._write = _write_scalars(
        self._directory,
        self._recorded,
        ['global_step/sec', 'examples/sec'],
        self._speeds,
      )

  def after_run(self, run_context, run_values):
    # A fetch together with the step might return the value before the update.
    step = int(run_context.session.run(self._step)) - 1
    now = time.perf_counter()
    if self._last is None:
      self._last = now, step
      return
    recorded = step - step % self._interval_steps
    then, last_step = self._last
    if recorded <= last_step:
      return
    speed = (step - last_step) / (now - then)
    self._last = now, step
    run_context.session.run(
      self._write,
      {
        self._recorded: recorded,
        self._speeds: [speed, speed * self._batch_size],
      },
    )


def eval_metrics(labels, logits, losses, weights):
  """Returns a TPUEstimatorSpec eval_metrics: means over weighted examples.

  Args:
    labels: int32 [B].
    logits: float32 [B, C].
    losses: {term: float32 [B]}, the result of objectives.per_example.
    weights: float32 [B], 1 for examples, 0 for padding of the last batch.
  """

  def metric_fn(**values):
    weights = values.pop('weights')
    return {
      tag: _weighted_mean(tag, value, weights) for tag, value in values.items()
    }

  return metric_fn, {
    'top_1_accuracy': top_k_accuracy(labels, logits, 1),
    'top_5_accuracy': top_k_accuracy(labels, logits, 5),
    **{objectives.tag(name): loss for name, loss in losses.items()},
    'weights': weights,
  }


def _weighted_mean(name, values, weights):
  """Like tf.metrics.mean, but summed in float64.

  So an accuracy is exactly the number of correct answers divided by the number
  of examples, and 50,000 losses add up without rounding.
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
