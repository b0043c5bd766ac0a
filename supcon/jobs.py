"""The jobs: train, evaluate one checkpoint or each new one, export.

`prepare` looks at every file and finds every mistake that can be found early;
nothing is written to model_dir before it returns. `Job.announce` says what is
going to be done, `Job.run` does it.
"""

import collections
import json
import math
import os
import time

from absl import logging
import tensorflow as tf

from supcon import estimators
from supcon import hparams
from supcon import run_options
from supcon.data import datasets
from supcon.data import inputs
from supcon.data import preprocessing
from supcon.models import contrastive
from supcon.serving import saved_model
from supcon.training import checkpoints
from supcon.training import hooks
from supcon.training import model_fn
from supcon.training import stages
from supcon.training import warm_start

tf1 = tf.compat.v1
FileError = tf.errors.OpError
# What stops a job on its way, in one line.
Stopped = (hooks.NanLossError, checkpoints.MismatchError)

_POLL_SECONDS = 2.0


def prepare(options: run_options.RunOptions, params: hparams.HParams) -> 'Job':
  """Returns a job of which everything has been checked.

  Args:
    options: Checked RunOptions.
    params: Checked HParams.

  Raises:
    ValueError: In one line, what was found, what was expected, what to do.
    FileError: If a file cannot be read.
  """
  tf1.disable_v2_behavior()
  tf1.enable_v2_tensorshape()  # Shapes of plain ints, as in TensorFlow 2.
  estimators.check_device(options)
  preprocessing.check_supported(params.input_data.preprocessing)
  dataset = datasets.load(
    params.input_data.input_fn,
    options.data_dir,
    max_train_examples=params.input_data.max_samples,
  )
  preprocessing.check_image_size(
    params.input_data.preprocessing, dataset.image_shape
  )
  inputs.check(dataset, params)
  run = stages.plan(params, dataset.num_train_examples)
  job = Job(options, params, dataset, run)
  job.check_checkpoints()
  return job


class Job:
  """A run on a data set."""

  def __init__(self, options, params, dataset, run):
    self._options = options
    self._params = params
    self._dataset = dataset
    self._plan = run
    self._reference: str | None = None

  def check_checkpoints(self) -> None:
    """Checks the checkpoints of model_dir and --reference_ckpt, if any.

    Raises:
      ValueError: If one is missing, or of another model.
    """
    newest = self._newest()
    is_eval = self._options.mode == 'eval'
    if not newest and (is_eval or not self._options.reference_ckpt):
      return
    with tf.Graph().as_default():
      model = contrastive.ContrastiveModel(
        self._params.architecture, self._dataset.num_classes
      )
      if not newest:
        self._reference = warm_start.find(self._options.reference_ckpt)
        warm_start.assignment_map(
          model, self._params.warm_start, self._reference
        )
        return
      variables = model.variables
      if not is_eval:
        stages.make_optimizers(
          self._plan,
          model,
          tf1.train.get_or_create_global_step(),
          self._params.loss.include_bias_in_weight_decay,
        )
        variables = tf1.global_variables()
      checkpoints.require_same(variables, [model.name], newest)

  def announce(self) -> None:
    """Says what the run is, and writes hparams.json unless it only evaluates.

    Raises:
      ValueError: If model_dir cannot be written.
    """
    path = self._path('hparams.json')
    record = {
      'hparams': self._params.to_json(),
      'compact': self._params.serialize(),
    }
    if tf.io.gfile.exists(path):
      with tf.io.gfile.GFile(path) as file:
        before = json.load(file)
      _log_changes(before.get('hparams', {}), record['hparams'])
    if self._options.mode != 'eval':
      try:
        tf.io.gfile.makedirs(self._options.model_dir)
        _write_json(path, record)
      except (OSError, FileError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
          f'--model_dir={self._options.model_dir} cannot be written '
          f'({reason}); name a directory that can.'
        ) from error
    logging.info(
      'hyper-parameters, in full in %s, other than the defaults:', path
    )
    for line in _lines_of_changes(self._params):
      logging.info('  %s', line)
    logging.info('  --hparams=%s', record['compact'])
    logging.info(
      '%s: %d training examples, %d evaluation examples, %d classes; '
      '%.1f steps per epoch, %d steps in all',
      self._params.input_data.input_fn,
      self._dataset.num_train_examples,
      self._dataset.num_eval_examples,
      self._dataset.num_classes,
      self._plan.steps_per_epoch,
      self._plan.total_steps,
    )

  def run(self) -> None:
    """Does what --mode says.

    Raises:
      Stopped: If the loss is not a number any more, or a checkpoint that is to
        be evaluated is of another model.
    """
    if self._options.mode == 'eval':
      self._evaluate_each()
      return
    self._train()
    if self._options.mode == 'train_then_eval':
      self._summarize(self._evaluate(self._newest()))

  def _train(self):
    """Trains what remains of the plan, stage by stage."""
    step = self._newest_step()
    if step:
      logging.info(
        'model_dir holds step %d of %d: %s',
        step,
        self._plan.total_steps,
        'training continues there'
        if step < self._plan.total_steps
        else 'nothing is left to train',
      )
    for stage in self._plan.stages:
      step = self._newest_step()
      if step >= stage.stop_step:
        continue
      logging.info(
        'stage %d: steps %d to %d', stage.number, step, stage.stop_step
      )
      function = self._model_fn(stage)
      self._estimator(function).train(
        inputs.train_input_fn(
          self._dataset, self._params, self._dtype(), start_step=step
        ),
        max_steps=stage.stop_step,
        hooks=[function.nan_hook],
        saving_listeners=[function.nan_listener],
      )

  def _evaluate(self, checkpoint: str) -> dict:
    """Evaluates and exports a checkpoint; returns what result.json holds."""
    step = checkpoints.step_of(checkpoint)
    logging.info('evaluating %s', checkpoint)
    # The stage whose update made this checkpoint; at step 0, the first one.
    estimator = self._estimator(
      self._model_fn(self._plan.stage_at(max(step - 1, 0)))
    )
    examples = self._dataset.num_eval_examples
    metrics = estimator.evaluate(
      inputs.eval_input_fn(self._dataset, self._params, self._dtype()),
      steps=math.ceil(examples / self._params.eval.batch_size),
      checkpoint_path=checkpoint,
    )
    export = estimator.export_saved_model(
      os.path.join(self._options.model_dir, 'exports'),
      saved_model.serving_input_receiver_fn(
        self._params.input_data.preprocessing.image_size
      ),
      checkpoint_path=checkpoint,
    )
    result = {
      'metrics': {
        name: float(value)
        for name, value in sorted(metrics.items())
        if name != 'global_step'
      },
      'global_step': step,
      'total_steps': self._plan.total_steps,
      'num_examples': examples,
      'dataset': self._params.input_data.input_fn,
      'split': self._dataset.info.eval_split,
      'checkpoint': checkpoint,
      'saved_model': export.decode(),
    }
    _write_json(self._path('result.json'), result)
    logging.info(
      'step %d: top-1 %.4f, top-5 %.4f, contrastive loss %.4f, '
      'cross-entropy %.4f on %d examples',
      step,
      *(
        metrics[tag]
        for tag in (
          'top_1_accuracy',
          'top_5_accuracy',
          'loss/contrastive_loss',
          'loss/cross_entropy_loss',
        )
      ),
      examples,
    )
    return result

  def _evaluate_each(self):
    """Evaluates each checkpoint of model_dir until that of the last step."""
    done = -1
    is_compared = bool(self._newest())  # By prepare.
    waiting_since = None
    while done < self._plan.total_steps:
      found = checkpoints.steps_and_paths(self._options.model_dir)
      is_over = self._plan.total_steps in found
      new = [step for step in found if step > done]
      if not new:
        if waiting_since is None:
          logging.info(
            'waiting for a checkpoint after step %d in %s',
            done,
            self._options.model_dir,
          )
        waiting_since = waiting_since or time.time()
        time.sleep(_POLL_SECONDS)
        continue
      waiting_since = None
      done, begun = new[0], time.time()
      if not is_compared:
        # Restoring would adopt the shapes of the checkpoint without a word.
        self.check_checkpoints()
        is_compared = True
      self._evaluate_unless_deleted(found[done])
      if not is_over and done < self._plan.total_steps:
        pause = begun + self._options.eval_interval_secs - time.time()
        time.sleep(max(0.0, pause))

  def _evaluate_unless_deleted(self, checkpoint):
    """Evaluates a checkpoint that the trainer may delete at any moment."""
    try:
      self._evaluate(checkpoint)
    except (ValueError, tf.errors.NotFoundError, tf.errors.DataLossError):
      if tf1.train.checkpoint_exists(checkpoint):
        raise
      logging.info('%s was deleted by the trainer; skipped', checkpoint)

  def _summarize(self, result):
    """Prints where everything is, for people."""
    top_1 = result['metrics']['top_1_accuracy']
    model_dir = self._options.model_dir
    print(
      f'\nTop-1 {100 * top_1:.2f}% on all {result["num_examples"]} '
      f'{result["dataset"]} {result["split"]} images.\n'
      f'Checkpoint:  {result["checkpoint"]}\n'
      f'SavedModel:  {result["saved_model"]}\n'
      f'Metrics:     {self._path("result.json")}\n'
      f'TensorBoard: tensorboard --logdir {model_dir}',
      flush=True,
    )

  def _model_fn(self, stage):
    options, params = self._options, self._params
    return model_fn.ModelFn(
      params=params,
      run=self._plan,
      stage=stage,
      num_classes=self._dataset.num_classes,
      num_eval_examples=self._dataset.num_eval_examples,
      model_dir=options.model_dir,
      summary_interval_steps=options.summary_interval_steps,
      use_tpu=options.use_tpu,
      reference_checkpoint=None if self._newest() else self._reference,
      train_batch_norm=(
        not options.reference_ckpt or params.warm_start.batch_norm_in_train_mode
      ),
    )

  def _estimator(self, function):
    return estimators.build(
      self._options,
      function,
      train_batch_size=self._params.batch_size,
      eval_batch_size=self._params.eval.batch_size,
      seed=self._params.seed,
    )

  def _dtype(self):
    mixed = self._params.input_data.preprocessing.allow_mixed_precision
    return tf.bfloat16 if mixed and self._options.use_tpu else tf.float32

  def _newest(self) -> str | None:
    return tf.train.latest_checkpoint(self._options.model_dir)

  def _newest_step(self) -> int:
    newest = self._newest()
    return checkpoints.step_of(newest) if newest else 0

  def _path(self, name):
    return os.path.join(self._options.model_dir, name)


def _lines_of_changes(params):
  """Yields a line for each part of the hyper-parameters that was changed."""
  defaults = hparams.HParams()
  parts = collections.defaultdict(list)
  for entry in hparams.fields():
    if params.get(entry.path) != defaults.get(entry.path):
      part, _, name = entry.path.rpartition('.')
      value = params.get(entry.path)
      parts[part].append(f'{name}={getattr(value, "name", value)}')
  for part, changes in parts.items():
    yield f'{part or "run"}: {", ".join(changes)}'


def _log_changes(before, after, path=''):
  """Logs every hyper-parameter that is not what hparams.json held."""
  for name, value in after.items():
    old = before.get(name)
    if isinstance(value, dict) and isinstance(old, dict):
      _log_changes(old, value, f'{path}{name}.')
    elif old != value:
      logging.warning(
        'WARNING: %s%s is %s now; model_dir was begun with %s',
        path,
        name,
        value,
        old,
      )


def _write_json(path, value):
  """Writes a JSON file aside and renames it, so that it is always whole."""
  aside = f'{path}.tmp{os.getpid()}'
  with tf.io.gfile.GFile(aside, 'w') as file:
    file.write(json.dumps(value, indent=2) + '\n')
  tf.io.gfile.rename(aside, path, overwrite=True)
