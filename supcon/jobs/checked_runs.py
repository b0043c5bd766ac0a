"""Checks all that a job needs, before anything is written."""

import tensorflow as tf

from supcon.config import changes
from supcon.config import hparams
from supcon.config import run_options
from supcon.jobs import continuing
from supcon.jobs import representation
from supcon.jobs import run_images
from supcon.jobs import run_state
from supcon.models import contrastive
from supcon.training import checkpoints
from supcon.training import earlier_runs
from supcon.training import footprint
from supcon.training import memory
from supcon.training import optimizers
from supcon.training import warm_start

tf1 = tf.compat.v1


def prepare(
  options: run_options.RunOptions, params: hparams.HParams
) -> run_state.Run:
  """Returns a run of which every mistake that can be found early is excluded.

  It looks at every file, and with --skip_bad_images decodes every image that no
  earlier job has looked at. It writes nothing.

  Raises:
    ValueError: The message says in one line what was found, what was expected
      and what to do.
    tf.errors.OpError: If a file cannot be read.
  """
  run = run_state.Run(options, params)
  if not options.inspects:
    check_checkpoint(run, run.checkpoint)
  if options.trains and run.known:
    continuing.check_facts(run)
  _check_fits(run)
  run_images.look(run)
  if options.trains and run.checkpoint:
    continuing.check_place(run)
  if options.mode == 'eval' and run.checkpoint:
    if run.known:
      changes.warn_of_use(run.known.params, params)
    run = run.as_trained(run.checkpoint)
  if options.evaluates:
    representation.check(run)
  return run


def check_checkpoint(run: run_state.Run, checkpoint: str | None) -> None:
  """Checks a checkpoint of model_dir, or without one, --reference_ckpt.

  Raises:
    ValueError: If it is missing or belongs to another model.
  """
  is_eval = run.options.mode == 'eval'
  if not checkpoint and (is_eval or not run.options.reference_ckpt):
    return
  with tf.Graph().as_default():
    model = contrastive.ContrastiveModel(
      run.params.architecture, run.dataset.num_classes
    )
    if not checkpoint:
      run.found_reference = warm_start.find(run.options.reference_ckpt)
      wanted = (model, run.params.warm_start, run.reference)
      warm_start.assignment_map(*wanted)  # Raises if it does not fit.
      run.origins = warm_start.describe(*wanted)
      _compare_with_reference(run)
      return
    variables, optional = model.variables, set()
    if not is_eval:
      optional = optimizers.unreached_slots(
        run.plan,
        model,
        tf1.train.get_or_create_global_step(),
        run.params.loss.include_bias_in_weight_decay,
        run.params.architecture,
      )
      memory.of_run(run.params, model)
      variables = tf1.global_variables()
    adopted = checkpoints.require_same(
      variables, [model.name], checkpoint, optional
    )
    run.origins = adopted.describe(checkpoint)


def _compare_with_reference(run):
  for is_warning, line in earlier_runs.compare_with_reference(
    run.reference, run.options.reference_ckpt, run.params
  ):
    if is_warning:
      run.warnings.append(line)
    else:
      run.origins.append(line)


def _check_fits(run):
  """Checks that the steps of the job fit into the memory of its devices.

  Raises:
    ValueError: If they do not fit.
  """
  options, num_classes = run.options, run.dataset.num_classes
  if options.inspects or not (room := footprint.room(run.devices)):
    return
  if options.trains:
    training = [
      footprint.training_step(
        run.params, stage.params, num_classes, run.devices.num_replicas
      )._replace(activation_bytes=run.dtype.size)
      for stage in run.plan.stages
      if stage.params.epochs and stage.stop_step > run.step
    ]
    # A run that has trained before has fitted. With --force, or after a kill,
    # another trainer is about to free its memory.
    footprint.check(training, room, not (run.step or options.force))
    if training:
      largest = max(training, key=footprint.Step.num_bytes)
      run.footprint = footprint.describe(largest, room)
  if options.evaluates:
    views = run.params.input_data.preprocessing.num_views
    evaluation = footprint.evaluation_step(run.params, num_classes, views)
    evaluation = evaluation._replace(activation_bytes=run.dtype.size)
    footprint.check([evaluation], room._replace(num_replicas=1))
