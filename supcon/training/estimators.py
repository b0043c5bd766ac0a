"""Builds estimators from run options and devices."""

from collections.abc import Sequence
import contextlib
import os
from typing import NamedTuple

import tensorflow as tf
from tensorflow.python.framework import config as config_lib

from supcon.compute import devices as devices_lib
from supcon.compute import replicas
from supcon.compute import tpu_estimator
from supcon.compute import workers
from supcon.config import run_options
from supcon.runs import event_files
from supcon.runs import model_dirs
from supcon.runs import retries
from supcon.training import checkpoints
from supcon.training import lost_sessions
from supcon.training import run_hooks

tf1 = tf.compat.v1


class _Context(NamedTuple):
  """The host that an input function is for, in the form of TPUEstimator."""

  current_host: int
  num_hosts: int


def build(
  options: run_options.RunOptions,
  devices: devices_lib.Devices,
  model_fn,
  train_batch_size: int,
  eval_batch_size: int,
  seed: int,
) -> tpu_estimator.TPUEstimator:
  """Returns the estimator of one stage, for a TPU or one device.

  Off TPU one device evaluates and exports, whatever devices train.
  """
  return tpu_estimator.TPUEstimator(
    model_fn=model_fn,
    config=_run_config(options, devices, seed, cluster=devices.resolver),
    use_tpu=options.use_tpu,
    train_batch_size=train_batch_size,
    eval_batch_size=eval_batch_size,
    predict_batch_size=eval_batch_size,
    # A second MetaGraph for TPU would prevent TF2 from loading the SavedModel.
    export_to_tpu=False,
  )


def train(
  options: run_options.RunOptions,
  devices: devices_lib.Devices,
  function,
  input_fn,
  batch_size: int,
  seed: int,
  max_steps: int,
  attempts: retries.Retries,
  hooks: Sequence[tf1.train.SessionRunHook] = (),
  listeners: Sequence[tf1.train.CheckpointSaverListener] = (),
) -> None:
  """Trains one stage on all devices.

  Args:
    options: Checked RunOptions.
    devices: The devices of the run.
    function: model_fn.ModelFn of the stage.
    input_fn: The result of inputs.train_input_fn.
    batch_size: The global batch.
    seed: Seed of the initial weights.
    max_steps: The step to stop at.
    attempts: Counts failures of storage.
    hooks: Hooks in addition to those of the function.
    listeners: Saving listeners in addition to those of the function.

  Raises:
    watchdog.LostWorkerError: If another machine has gone.
    lost_sessions.LostSessionError: If storage or a device was unavailable for a
      moment.
  """
  hooks = [function.nan_hook, *hooks]
  listeners = [*listeners, function.nan_listener]
  function = _with_saver(function, options, attempts)
  if devices.strategy is None:
    estimator = build(options, devices, function, batch_size, batch_size, seed)
  else:
    estimator = _build_distributed(options, devices, function, seed)
    params = {'batch_size': devices.share(batch_size)}
    if devices.cluster:
      params['context'] = _Context(*devices.host)
    if not devices.is_chief:
      hooks.append(run_hooks.ReadingHook(options.save_interval_steps))
      listeners = None  # It saves nothing.
    input_fn = _per_replica(input_fn, params)
  if not devices.cluster:
    hooks.append(lost_sessions.NewSessionHook())
  with (
    _graph_beside_summaries(options.model_dir)
    if devices.is_chief
    else contextlib.nullcontext(),
    devices.watchdog.guarding(),
    _determinism(options.deterministic),
  ):
    estimator.train(
      input_fn, max_steps=max_steps, hooks=hooks, saving_listeners=listeners
    )


@contextlib.contextmanager
def _graph_beside_summaries(model_dir):
  """Makes the estimator write its graph beside the training summaries.

  Otherwise it writes to model_dir itself, which TensorBoard then shows as a run
  '.' without any scalars.
  """
  writer = tf1.summary.FileWriter(
    os.path.join(model_dir, model_dirs.TRAIN),
    filename_suffix=event_files.GRAPH_SUFFIX,
  )
  tf1.summary.FileWriterCache._cache[model_dir] = writer
  try:
    yield
  finally:
    tf1.summary.FileWriterCache._cache.pop(model_dir, None)
    with contextlib.suppress(tf.errors.OpError):  # It is not needed.
      writer.close()


@contextlib.contextmanager
def _determinism(is_wanted):
  """Makes TensorFlow run every op deterministically or reject it, within.

  If this applied everywhere, TensorFlow would require a seed even for a graph
  that is built only for the shapes of a model.
  """
  if is_wanted:
    config_lib.enable_op_determinism()
  try:
    yield
  finally:
    if is_wanted:
      config_lib.disable_op_determinism()


def _with_saver(function, options, attempts):
  """Returns a model_fn that makes the estimator save with `attempts`."""

  def model_fn(features, labels, mode, params):
    if mode == tpu_estimator.ModeKeys.TRAIN:
      replicas.once(add_saver)
    return function(features, labels, mode, params)

  def add_saver():
    saver = _Saver(
      options.model_dir,
      attempts,
      sharded=True,
      max_to_keep=options.max_checkpoints_to_keep,
      keep_checkpoint_every_n_hours=(
        options.keep_checkpoint_interval_secs / 3600
      ),
      defer_build=True,
      save_relative_paths=True,
    )
    # The estimator looks here before it makes its own saver.
    tf1.add_to_collection(tf1.GraphKeys.SAVERS, saver)

  return model_fn


class _Saver(lost_sessions.Saver):
  """A saver that also restores checkpoints of the published code.

  The ops for variables with other names there must be in the graph before it is
  finalized.
  """

  def __init__(self, model_dir: str, attempts: retries.Retries, **kwargs):
    super().__init__(attempts, **kwargs)
    self._model_dir = model_dir
    self._attempts = attempts
    # A checkpoint, the saver that restores most of it, and the op for the rest.
    self._adopted = None

  def build(self):
    super().build()
    checkpoint = tf.train.latest_checkpoint(self._model_dir)
    if not checkpoint:
      return
    variables = {v.op.name: v for v in tf1.global_variables()}
    try:
      held = checkpoints.index(checkpoint)
      keys, initial = checkpoints.adoption(variables, held)
      values = dict(held.values(keys.values()))
    except ValueError:
      return  # `restore` reports it.
    if not keys and not initial:
      return
    rest = [variables.pop(name).initializer for name in initial]
    rest += [
      variables.pop(name).assign(values[key]) for name, key in keys.items()
    ]
    saver = lost_sessions.Saver(
      self._attempts, var_list=list(variables.values())
    )
    self._adopted = checkpoint, saver, tf.group(rest)

  def restore(self, sess, save_path):
    if not self._adopted or self._adopted[0] != save_path:
      super().restore(sess, save_path)
      return
    _, saver, rest = self._adopted
    saver.restore(sess, save_path)
    sess.run(rest)


def _per_replica(input_fn, params):
  """Returns an input function whose elements the replicas take in turn.

  Each replica of the machine takes one element per step, in the order of their
  ids. So the r-th replica has rows r * b to (r + 1) * b of the machine's part
  of the global batch.
  """
  return lambda: input_fn(params)


def _build_distributed(options, devices, function, seed):
  """Returns the estimator that trains one stage on several GPUs or CPUs."""

  @tf.autograph.experimental.do_not_convert
  def call(features, labels, mode):
    spec = function(features, labels, mode, {}).as_estimator_spec()
    # The sum over all replicas is reported, and each replica has the mean.
    return spec._replace(loss=spec.loss / replicas.num_replicas())

  # A plain function: tf.distribute inspects it, and `call` must not be
  # converted.
  def model_fn(features, labels, mode):
    return call(features, labels, mode)

  changes = dict(log_step_count_steps=None)
  if not devices.is_chief:
    changes |= dict(save_checkpoints_steps=None, save_checkpoints_secs=None)
  config = _run_config(
    options,
    devices,
    seed,
    master=devices.listen(),
    train_distribute=devices.strategy,
    **changes,
  )
  return tpu_estimator.Estimator(model_fn, config=config)


def _run_config(options, devices, seed, **changes):
  # SLICED: the first host of a TPU reads the evaluation examples for all hosts,
  # each of them once.
  pipeline = tpu_estimator.InputPipelineConfig
  tpu_config = tpu_estimator.TPUConfig(
    iterations_per_loop=options.steps_per_loop,
    per_host_input_for_training=pipeline.PER_HOST_V2,
    eval_training_input_configuration=(
      pipeline.SLICED if options.use_tpu else pipeline.PER_HOST_V1
    ),
  )
  arguments = dict(
    model_dir=options.model_dir,
    save_checkpoints_steps=options.save_interval_steps,
    keep_checkpoint_max=options.max_checkpoints_to_keep,
    keep_checkpoint_every_n_hours=(
      options.keep_checkpoint_interval_secs / 3600
    ),
    # The host call and one of our hooks write these summaries, to one file.
    save_summary_steps=None,
    log_step_count_steps=options.summary_interval_steps,
    tf_random_seed=seed,
    session_config=_copy(devices.session_config),
    tpu_config=tpu_config,
  )
  with _without(workers.VARIABLE):
    return tpu_estimator.RunConfig(**{**arguments, **changes})


def _copy(config):
  """Returns a copy, because an estimator modifies its arguments."""
  copy = tf1.ConfigProto()
  copy.CopyFrom(config)
  return copy


@contextlib.contextmanager
def _without(variable):
  """Hides an environment variable from an estimator that would obey it."""
  value = os.environ.pop(variable, None)
  try:
    yield
  finally:
    if value is not None:
      os.environ[variable] = value
