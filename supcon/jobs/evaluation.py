"""Evaluates and exports checkpoints: one, or each as it appears."""

import math
import time

from absl import logging
import tensorflow as tf

from supcon import estimators
from supcon import hparams
from supcon import model_dirs
from supcon import run_options
from supcon.data import faults
from supcon.data import inputs
from supcon.jobs import runs
from supcon.serving import exports
from supcon.training import checkpoints

tf1 = tf.compat.v1

_POLL_SECONDS = 2.0


def evaluate(run: runs.Run, checkpoint: str) -> dict:
  """Evaluates and exports a checkpoint.

  Returns:
    What it has written to result.json.

  Raises:
    faults.BadExampleError: If an image cannot be decoded.
  """
  step = checkpoints.step_of(checkpoint)
  logging.info('evaluating %s', checkpoint)
  options, params, dataset = run.options, run.params, run.dataset
  # The stage whose update made this checkpoint; at step 0, the first one.
  estimator = estimators.build(
    options,
    run.devices,
    run.model_fn(run.plan.stage_at(max(step - 1, 0))),
    train_batch_size=params.batch_size,
    eval_batch_size=params.eval.batch_size,
    seed=params.seed,
  )
  examples = dataset.num_eval_examples
  with faults.naming(dataset.evaluation):
    metrics = estimator.evaluate(
      inputs.eval_input_fn(dataset, params, run.dtype),
      steps=math.ceil(examples / params.eval.batch_size),
      checkpoint_path=checkpoint,
    )
  run.write_facts_of_data()
  metrics = {
    name: float(value)
    for name, value in sorted(metrics.items())
    if name != 'global_step'
  }
  export = exports.write(
    run.trained_model(checkpoint),
    run.model_dir.join(model_dirs.EXPORTS),
    options.export_formats,
    options.exports_to_keep,
    {
      'dataset': params.input_data.input_fn,
      'train_split': dataset.train.name,
      'eval_split': dataset.evaluation.name,
      'num_train_examples': dataset.num_train_examples,
      'num_eval_examples': examples,
      'total_steps': run.plan.total_steps,
      'metrics': metrics,
    },
  )
  result = {
    'metrics': metrics,
    'global_step': step,
    'total_steps': run.plan.total_steps,
    'num_examples': examples,
    'num_skipped': run.num_skipped('evaluation'),
    'dataset': params.input_data.input_fn,
    'split': dataset.evaluation.name,
    'class_names': list(dataset.class_names),
    'checkpoint': checkpoint,
    'export': export.path,
    'saved_model': export.saved_model,
    'hub_module': export.hub_module,
  }
  run.model_dir.write_json(model_dirs.RESULT, result)
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
  run.report_skipped('evaluation')
  return result


class EvaluateEach:
  """--mode=eval: evaluates each checkpoint until that of the last step."""

  def __init__(self, options: run_options.RunOptions, params: hparams.HParams):
    self._run = runs.Run(options, params)
    self._is_compared = bool(self._run.model_dir.newest())

  def announce(self) -> None:
    self._run.announce()

  def run(self) -> None:
    """Waits for checkpoints and evaluates them.

    Raises:
      checkpoints.MismatchError: If one is of another model.
      faults.BadExampleError: If an image cannot be decoded.
    """
    done = -1
    is_waiting = False
    model_dir, last = self._run.model_dir, self._run.plan.total_steps
    while done < last:
      found = checkpoints.steps_and_paths(model_dir.path)
      is_over = last in found
      new = [step for step in found if step > done]
      if not new:
        if not is_waiting:
          logging.info(
            'waiting for a checkpoint after step %d in %s', done, model_dir.path
          )
        is_waiting = True
        time.sleep(_POLL_SECONDS)
        continue
      is_waiting = False
      done, begun = new[0], time.time()
      if not self._is_compared:
        # Restoring would adopt the shapes of the checkpoint without a word.
        self._run.check_checkpoints()
        self._is_compared = True
      self._evaluate_unless_deleted(found[done])
      if not is_over and done < last:
        pause = begun + self._run.options.eval_interval_secs - time.time()
        time.sleep(max(0.0, pause))

  def _evaluate_unless_deleted(self, checkpoint):
    """Evaluates a checkpoint that the trainer may delete at any moment."""
    try:
      evaluate(self._run, checkpoint)
    except (ValueError, tf.errors.NotFoundError, tf.errors.DataLossError):
      if tf1.train.checkpoint_exists(checkpoint):
        raise
      logging.info('%s was deleted by the trainer; skipped', checkpoint)
