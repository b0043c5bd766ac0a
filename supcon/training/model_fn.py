"""Builds the graphs: a training step of a stage, and an evaluation."""

import dataclasses
import functools
import math
import os

import tensorflow as tf

from supcon.compute import replicas
from supcon.compute import tpu_estimator
from supcon.config import hparams
from supcon.data.views import preprocessing
from supcon.models import contrastive
from supcon.models import layers
from supcon.runs import model_dirs
from supcon.training import hooks
from supcon.training import memory as memory_lib
from supcon.training import metrics
from supcon.training import objectives
from supcon.training import optimizers
from supcon.training import run_hooks
from supcon.training import stages
from supcon.training import steps
from supcon.training import warm_start

tf1 = tf.compat.v1
ModeKeys = tpu_estimator.ModeKeys
TPUEstimatorSpec = tpu_estimator.TPUEstimatorSpec


@dataclasses.dataclass
class ModelFn:
  """A model_fn for TPUEstimator; each mode is a method.

  Attributes:
    params: The hyper-parameters.
    run: The plan of all stages.
    stage: The stage that is trained, or that made the evaluated checkpoint.
    num_classes: Number of classes of the data set.
    num_eval_examples: Number of evaluation examples, without padding.
    mean: The mean color by which images are whitened, on the scale [-1, 1];
      None without whitening.
    std: The standard deviation, on the same scale; None without whitening.
    dtype: Type of the images that the encoder sees.
    model_dir: The directory below which training summaries are written.
    summary_interval_steps: Steps between training summaries.
    use_tpu: Whether it runs on TPU, where no hook can see into the training
      loop.
    reference_checkpoint: The source of warm-started variables; None without
      warm start, or once model_dir has a checkpoint of its own.
    train_batch_norm: Whether batch norm uses batch statistics in training.
    start_step: The step at which training starts or resumes.
    nan_hook: A hook to pass to train().
    nan_listener: A saving listener to pass to train().
    stop_hook: The hook that stops several workers together; None for one
      worker.
  """

  params: hparams.HParams
  run: stages.Plan
  stage: stages.Stage
  num_classes: int
  num_eval_examples: int
  mean: tuple[float, ...] | None
  std: tuple[float, ...] | None
  dtype: tf.DType
  model_dir: str
  summary_interval_steps: int
  use_tpu: bool
  reference_checkpoint: str | None
  train_batch_norm: bool
  start_step: int = 0
  nan_hook: hooks.NanHook = dataclasses.field(default_factory=hooks.NanHook)
  nan_listener: hooks.NanListener = dataclasses.field(
    default_factory=hooks.NanListener
  )
  stop_hook: run_hooks.StopHook | None = None

  def __call__(self, features, labels, mode, params):
    del params  # TPUEstimator's own; shapes tell all that is needed.
    if mode == ModeKeys.TRAIN:
      return self.train(features, labels)
    return self.evaluate(features, labels)

  @property
  def summary_dir(self) -> str:
    """Directory of training summaries; its name is the run in TensorBoard."""
    return os.path.join(self.model_dir, model_dirs.TRAIN)

  @property
  def speed_hook(self) -> metrics.SpeedHook:
    """A hook to pass to train() on the chief."""
    return metrics.SpeedHook(
      self.summary_dir, self.run.batch_size, self.summary_interval_steps
    )

  def train(self, features, labels) -> TPUEstimatorSpec:
    """One step of the stage. See data/inputs.py for features and labels."""
    model = self._model()
    include_bias = self.params.loss.include_bias_in_weight_decay
    variables = model.trainable_variables
    step = self._step(model, features, labels)
    health = steps.health(step, variables)
    reported = health.losses
    if self.stop_hook:
      self.stop_hook.count(replicas.mean(self.stop_hook.ballot()))
    counter = tf1.train.get_or_create_global_step()
    before_update = tf.identity(counter)
    scalars = metrics.training_scalars(
      self.run,
      before_update,
      model,
      step.outputs.logits,
      labels,
      reported,
      include_bias,
    )
    before = [before_update, *tf.nest.flatten(scalars)]
    training_hooks, memory = [], None
    if self.use_tpu:
      # After a bad step nothing changes until the host sees the report.
      health, memory, kept = steps.first_bad(health)
      before.append(kept)
    else:
      training_hooks.append(
        hooks.ProgressHook(self.run, self.stage, before_update, scalars)
      )
    with tf.control_dependencies(before):
      optimizer = optimizers.of_plan(self.run, model, counter, include_bias)[
        self.stage.number
      ]
      train_op = steps.make(
        [
          *step.updates,
          optimizers.update(optimizer, variables, step.gradients, counter),
        ],
        health.is_good,
      )
    self.nan_hook.watch(self.stage, health, memory)
    self.nan_listener.watch(self.stage)
    return TPUEstimatorSpec(
      mode=ModeKeys.TRAIN,
      loss=reported[objectives.TOTAL],
      train_op=train_op,
      host_call=metrics.host_call(
        scalars,
        before_update,
        self.summary_dir,
        self.summary_interval_steps,
        self.start_step,
      ),
      training_hooks=training_hooks,
      scaffold_fn=self._scaffold_fn(model),
    )

  def evaluate(self, features, labels) -> TPUEstimatorSpec:
    """Metrics over every example exactly once; padding has weight 0."""
    model = self._model()
    outputs = self._forward(model, features, training=False)()
    weights = features['weights']
    per_example = objectives.per_example(
      self.params.loss, outputs, labels, is_valid=weights > 0
    )
    # The estimator reports the mean of the batches' losses. With this scale
    # that is the mean over all examples, even if the last batch is padded.
    global_batch = labels.shape[0] * replicas.num_replicas()
    batches = math.ceil(self.num_eval_examples / global_batch)
    scale = batches / self.num_eval_examples

    def mean(loss):  # 0 * NaN would be NaN.
      loss = tf.where(weights > 0, scale * weights * loss, 0.0)
      return replicas.sum(tf.reduce_sum(loss))

    means = {name: mean(loss) for name, loss in per_example.items()}
    return TPUEstimatorSpec(
      mode=ModeKeys.EVAL,
      loss=self._compose(model, means)[objectives.TOTAL],
      eval_metrics=metrics.eval_metrics(
        labels, outputs.logits, per_example, weights
      ),
    )

  def _model(self):
    return contrastive.ContrastiveModel(
      self.params.architecture, self.num_classes
    )

  def _forward(self, model, features, training):
    """Returns a function that computes the outputs of the model."""
    if 'embeddings' in features:  # The encoder does not change.
      embeddings = features['embeddings']
      return lambda: model.of_embeddings(embeddings, training)
    images = self._images(features)
    return lambda: model(images, training)

  def _images(self, features):
    """Returns the views, [B, V, S, S, 3], as the encoder sees them."""
    return preprocessing.finish(
      features,
      self.params.input_data.preprocessing,
      self.mean,
      self.std,
      self.dtype,
    )

  def _step(self, model, features, labels):
    stage, training = self.stage.params, self.train_batch_norm
    memory = memory_lib.of_run(self.params, model)
    updates = []

    def losses_of(outputs, keys):
      if memory and stage.contrastive_loss_weight:
        outputs, update = memory.recall(keys, outputs, labels)
        updates.append(update)
      per_example = objectives.per_example(self.params.loss, outputs, labels)
      means = {name: tf.reduce_mean(loss) for name, loss in per_example.items()}
      return self._compose(model, means)

    count = self.params.num_micro_batches(labels.shape[0])
    if count == 1 or 'embeddings' in features:
      forward = self._forward(model, features, training)

      def keys():
        with layers.synchronised():
          return forward().projection

      step = steps.in_one_pass(
        stage, model, forward(), functools.partial(losses_of, keys=keys)
      )
    else:
      parts = steps.Parts(count, features, self._images)
      step = steps.in_micro_batches(
        stage,
        model,
        parts,
        training,
        functools.partial(
          losses_of,
          keys=lambda: steps.projections_in_turn(model, parts, training),
        ),
      )
    return step._replace(updates=[*step.updates, *updates])

  def _compose(self, model, means):
    """Returns the losses of the stage from the means of its terms."""
    include_bias = self.params.loss.include_bias_in_weight_decay
    decay = objectives.weight_decay_loss(self.stage.params, model, include_bias)
    return objectives.compose(self.stage.params, means, decay)

  def _scaffold_fn(self, model):
    """Returns the scaffold_fn that initializes from the reference, or None."""
    if not self.reference_checkpoint:
      return None

    def start():
      tf1.train.init_from_checkpoint(
        self.reference_checkpoint,
        warm_start.assignment_map(
          model, self.params.warm_start, self.reference_checkpoint
        ),
      )

    def scaffold_fn():  # On TPU it runs outside the cores' program.
      replicas.once(start)
      return tf1.train.Scaffold()

    return scaffold_fn
