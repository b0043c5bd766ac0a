"""A run: a data set and a plan in a model_dir."""

import copy
import dataclasses
from typing import Any

import tensorflow as tf

from supcon.compute import devices as devices_lib
from supcon.config import changes
from supcon.config import hparams
from supcon.config import run_options
from supcon.data import inputs
from supcon.data import whitening
from supcon.data.sources import datasets
from supcon.jobs import run_images
from supcon.jobs import skipped_images
from supcon.runs import checkpoint_files
from supcon.runs import model_dirs
from supcon.runs import retries
from supcon.runs import signals
from supcon.serving import trained_models
from supcon.training import facts as facts_lib
from supcon.training import model_fn
from supcon.training import positions
from supcon.training import stages

# Directory of --mode=inspect_data below model_dir.
_INSPECTION = 'inspect_data'


class Run:
  """The state shared by all jobs that read training examples.

  Attributes:
    options: Checked RunOptions.
    params: Checked HParams. A job that trains has those of the command. Any
      other job has those of the newest checkpoint, if they are known, with the
      choices that the command may make.
    devices: The devices to compute on.
    dataset: The data set, without bad images. Its mean and standard deviation
      are those by which the run whitens images; None if it does not whiten.
    class_names: Names of the logits. The data of an evaluation may have other
      names.
    plan: The stages.
    model_dir: The directory of the checkpoints.
    checkpoint: The checkpoint that the job uses or continues from: the newest
      one when it last looked, or that of --checkpoint; None if there is none.
    known: The facts about that checkpoint.
    announced_last_step: The last step of a run with the command's flags on the
      run's training set.
    reference: The checkpoint to start from; None without --reference_ckpt, or
      if there is a `checkpoint`.
    output: The directory for files. An inspection has its own, and changes
      nothing that a run has written.
    wished: The HParams of the command.
    skipped: The bad images.
    whitening: The content of whitening.json, if this command decides on it.
    found_reference: The checkpoint that --reference_ckpt stands for.
    origins: Lines on where the variables come from.
    warnings: Lines to warn of.
    footprint: How much memory a step needs, in words.
  """

  def __init__(self, options: run_options.RunOptions, params: hparams.HParams):
    """Finds the newest checkpoint, opens the data set and makes the plan.

    This reads names and sizes, but no image; see checked_runs.prepare.

    Raises:
      ValueError, tf.errors.OpError: See checked_runs.prepare.
    """
    self.options = options
    self.params = self.wished = params
    self.model_dir = model_dirs.ModelDir(
      options.model_dir, retries.Retries(sleep=signals.sleep)
    )
    self.output = self.model_dir
    if options.inspects:
      self.output = model_dirs.ModelDir(self.model_dir.join(_INSPECTION))
    self.devices = devices_lib.find(options)
    devices_lib.check_batches(self.devices, options, params)
    self.checkpoint = find_checkpoint(self.model_dir, options.checkpoint)
    self.known: facts_lib.Facts | None = None
    if self.checkpoint and not options.inspects:
      self.known = facts_lib.find(self.model_dir, self.checkpoint)
    self.dataset = run_images.load_dataset(options, params)
    self.class_names = self.dataset.class_names
    self.skipped = skipped_images.Skipped(self.model_dir)
    self.whitening: whitening.Statistics | None = None
    self.found_reference: str | None = None
    self.origins: list[str] = []
    self.warnings: list[str] = []
    self.footprint = ''
    self.make_plan()

  @property
  def step(self) -> int:
    """The step of `checkpoint`; 0 without one."""
    return checkpoint_files.step_of(self.checkpoint) if self.checkpoint else 0

  @property
  def reference(self) -> str | None:
    return None if self.checkpoint else self.found_reference

  def look_again(self) -> int:
    """Looks for the newest checkpoint, which becomes `checkpoint`.

    Returns:
      Its step; 0 without one.
    """
    self.checkpoint = self.model_dir.newest()
    return self.step

  def make_plan(self) -> None:
    """Makes the plan, and checks the data set against it."""
    if self.options.mode == 'eval' and self.known and self.known.counting:
      # An evaluation set may differ in size from the training set.
      self.plan = self.known.plan()
      wished = positions.of(self.params, self.known.counting.num_examples)
      self.announced_last_step = wished.last_step
      return
    inputs.check(self.dataset, self.params)
    self.plan = stages.plan(self.params, self.dataset.num_train_examples)
    self.announced_last_step = self.plan.total_steps

  @property
  def facts(self) -> facts_lib.Facts:
    """The facts about the checkpoints that this command trains."""
    return facts_lib.Facts(
      params=self.params,
      counting=self.counting_of(self.params),
      train_split=self.dataset.train.name,
      train_images=self.dataset.train.fingerprint,
      evaluation=data_of(self),
      reference=self.options.reference_ckpt,
      data_name=datasets.called(
        self.params.input_data.input_fn, self.options.data_dir
      ),
    )

  def counting_of(self, params: hparams.HParams) -> positions.Counting:
    """Returns how steps are counted with some hyper-parameters."""
    return positions.of(params, self.dataset.num_train_examples)

  def as_trained(self, checkpoint: str) -> 'Run':
    """Returns this run as seen by a job that uses a checkpoint.

    Hyper-parameters and plan are those that the checkpoint was trained with, as
    far as they are known. The command decides what a user of a checkpoint may
    choose.

    Raises:
      ValueError, tf.errors.OpError: If the recorded facts cannot be read.
    """
    run = copy.copy(self)
    run.checkpoint = checkpoint
    run.known = facts_lib.find(self.model_dir, checkpoint)
    if run.known:
      run.params = changes.as_used(run.known.params, self.wished)
      run.plan = run.known.plan() or self.plan
    names = self.model_dir.class_names()
    if names and len(names) == self.dataset.num_classes:
      run.class_names = names
    run.take_colors()
    return run

  def set_colors(self, mean, std) -> None:
    """Sets the mean and standard deviation to whiten by; None for neither."""
    info = dataclasses.replace(self.dataset.info, mean=mean, std=std)
    self.dataset = dataclasses.replace(self.dataset, info=info)

  def take_colors(self) -> None:
    """Sets the mean and deviation that `checkpoint` was trained with.

    Raises:
      ValueError: If the flags say to measure them, which is too late.
    """
    params = self.known.params if self.known else self.wished
    preprocessing = self.wished.input_data.preprocessing
    if preprocessing.measure_whitening and self.options.mode != 'eval':
      path = self.model_dir.join(model_dirs.WHITENING)
      if not tf.io.gfile.exists(path):
        raise ValueError(
          f'--measure_whitening comes too late: {self.checkpoint} was '
          f'trained without it (there is no {path}); choose another '
          '--model_dir.'
        )
    self.set_colors(*facts_lib.colors(self.model_dir, params))

  @property
  def announcement(self) -> dict:
    """What the job is about to do, in JSON."""
    return {
      'hparams': self.params.to_json(),
      'compact': self.params.serialize(),
    }

  def trained_model(self, checkpoint: str) -> trained_models.TrainedModel:
    """Returns the model of a checkpoint, for jobs that use it."""
    return trained_models.TrainedModel(
      params=self.params,
      checkpoint=checkpoint,
      class_names=self.class_names,
      mean=self.dataset.info.mean,
      std=self.dataset.info.std,
    )

  def training_facts(self) -> dict[str, Any]:
    """Returns the known facts of the training, for an export."""
    if self.known:
      return facts_lib.of_export(self.known)
    return {
      'dataset': self.params.input_data.input_fn,
      'data_name': datasets.called(
        self.params.input_data.input_fn, self.options.data_dir
      ),
      'train_split': self.dataset.train.name,
      'num_train_examples': self.dataset.num_train_examples,
    }

  def model_fn(self, stage) -> model_fn.ModelFn:
    """Returns the model_fn of a stage."""
    options, params = self.options, self.params
    return model_fn.ModelFn(
      params=params,
      run=self.plan,
      stage=stage,
      num_classes=self.dataset.num_classes,
      num_eval_examples=self.dataset.num_eval_examples,
      mean=self.dataset.info.mean,
      std=self.dataset.info.std,
      dtype=self.dtype,
      model_dir=options.model_dir,
      summary_interval_steps=options.summary_interval(
        stage.stop_step - stage.start_step
      ),
      use_tpu=options.use_tpu,
      reference_checkpoint=self.reference,
      train_batch_norm=self.trains_batch_norm,
      start_step=self.step,
    )

  @property
  def trains_batch_norm(self) -> bool:
    """Whether batch norm uses batch statistics in training."""
    return (
      not self.options.reference_ckpt
      or self.params.warm_start.batch_norm_in_train_mode
    )

  @property
  def dtype(self) -> tf.DType:
    """Type of the images that the encoder sees, and of its activations."""
    return self.devices.encoder_dtype(
      self.params.input_data.preprocessing.allow_mixed_precision
    )


def find_checkpoint(model_dir: model_dirs.ModelDir, wanted: str) -> str | None:
  """Returns the checkpoint that a job uses, or None.

  Args:
    model_dir: The model_dir of the run.
    wanted: The value of --checkpoint; without one it is the newest checkpoint.

  Raises:
    ValueError: If the one that is wanted is missing or damaged.
  """
  path = model_dir.path
  if tf.io.gfile.exists(path) and not tf.io.gfile.isdir(path):
    raise ValueError(f'--model_dir={path} is a file; name a directory.')
  if not wanted:
    return model_dir.newest()
  found = checkpoint_files.prefix_of(wanted)
  if not found:
    raise ValueError(
      f'--checkpoint={wanted} does not exist; name one such as '
      f'{path}/model.ckpt-STEP.'
    )
  if damage := model_dir.damage(found):
    raise ValueError(
      f'--checkpoint={wanted} is damaged ({damage}); name another one.'
    )
  return found


def data_of(run: Run) -> dict[str, Any]:
  """Returns the identity of the evaluation data, to compare metrics."""
  preprocessing = run.params.input_data.preprocessing
  info, split = run.dataset.info, run.dataset.evaluation
  return {
    'dataset': run.params.input_data.input_fn,
    'split': split.name,
    'num_examples': run.dataset.num_eval_examples,
    'images': f'{split.fingerprint}, {split.num_bytes} bytes',
    'image_size': preprocessing.image_size,
    'crop': preprocessing.eval_crop_method.name,
    'crop_padding': preprocessing.crop_padding,
    'whitening': [*info.mean, *info.std] if info.mean else None,
  }
