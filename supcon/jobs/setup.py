"""A run: a data set and a plan in a model_dir, all of it checked."""

import collections
import copy
import dataclasses
from typing import Any

from absl import logging
import tensorflow as tf

from supcon.compute import devices as devices_lib
from supcon.compute import workers
from supcon.config import changes
from supcon.config import hparams
from supcon.config import reach
from supcon.config import run_options
from supcon.config import safe_text
from supcon.data import inputs
from supcon.data import whitening
from supcon.data.sources import datasets
from supcon.data.sources import faults
from supcon.data.sources import orientation
from supcon.data.views import preprocessing
from supcon.jobs import skipped_images
from supcon.models import contrastive
from supcon.reports import pipeline_probes
from supcon.runs import checkpoint_files
from supcon.runs import locks
from supcon.runs import model_dirs
from supcon.runs import retries
from supcon.runs import signals
from supcon.runs import storage_errors
from supcon.serving import trained_models
from supcon.training import checkpoints
from supcon.training import facts as facts_lib
from supcon.training import footprint
from supcon.training import hooks
from supcon.training import model_fn
from supcon.training import optimizers
from supcon.training import positions
from supcon.training import stages
from supcon.training import warm_start

tf1 = tf.compat.v1


class CutShortError(RuntimeError):
  """Training has ended without a checkpoint of its last step."""


class LostCheckpointError(RuntimeError):
  """A checkpoint has changed since its evaluation began."""


class TrainerGoneError(RuntimeError):
  """There is no trainer that could write another checkpoint."""


# Errors that stop a running job and whose message explains why.
_STOPPED = (
  hooks.NanLossError,
  checkpoints.MismatchError,
  checkpoints.NotFiniteError,
  faults.BadExampleError,
  workers.LostWorkerError,
  retries.LostSessionError,
  locks.LockLostError,
  CutShortError,
  LostCheckpointError,
  TrainerGoneError,
)


def reason(error: BaseException) -> str:
  """Returns in one line what stopped a job; '' for an unexpected error."""
  if isinstance(error, _STOPPED):
    return str(error)
  if explanation := storage_errors.explain_failed_write(error):
    return explanation
  return (
    storage_errors.reason(error) if isinstance(error, tf.errors.OpError) else ''
  )


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
    checkpoint: The newest checkpoint, or that of --checkpoint; None if there is
      none.
    known: The facts about that checkpoint.
    announced_last_step: The last step of a run with the command's flags on the
      run's training set.
    reference: The checkpoint to start from; None without --reference_ckpt, or
      once model_dir has a checkpoint of its own.
    output: The directory for files. An inspection has its own, and changes
      nothing that a run has written.
  """

  def __init__(self, options: run_options.RunOptions, params: hparams.HParams):
    """Looks at every file and reports every mistake that can be found early.

    Nothing is written.

    Raises:
      ValueError: The message says in one line what was found, what was expected
        and what to do.
      tf.errors.OpError: If a file cannot be read.
    """
    self.options = options
    self.params = self._wished = params
    self.model_dir = model_dirs.ModelDir(
      options.model_dir, retries.Retries(sleep=signals.sleep)
    )
    self.output = self.model_dir
    if options.inspects:
      self.output = model_dirs.ModelDir(self.model_dir.join(_INSPECTION))
    self.devices = devices_lib.find(options)
    devices_lib.check_batches(self.devices, options, params)
    self.checkpoint = self._find_checkpoint()
    self.known: facts_lib.Facts | None = None
    if self.checkpoint and not options.inspects:
      self.known = facts_lib.find(self.model_dir, self.checkpoint)
    self.dataset = load_dataset(options, params)
    self.class_names = self.dataset.class_names
    self._check_data()
    self.reference: str | None = None
    self._origins: list[str] = []  # Sources of variables.
    self._warnings: list[str] = []  # To be logged first.
    self._footprint = ''  # Memory needed, in words.
    self.skipped = skipped_images.Skipped(self.model_dir)
    # The content of whitening.json.
    self._whitening: whitening.Statistics | None = None
    if not options.inspects:
      self.check_checkpoints()
    if options.trains and self.known:
      self._check_facts(self.known)
    self._check_fits()
    self._look_at_images()
    if options.trains and self.checkpoint:
      changes.check_class_names(
        self.model_dir.class_names(),
        self.dataset.class_names,
        self.model_dir.join(model_dirs.LABELS),
      )
      self._check_place()
    self.announced_last_step = self.plan.total_steps
    if options.mode == 'eval' and self.checkpoint:
      if self.known:
        if known := self.known.counting:
          announced = positions.of(params, known.num_examples)
          self.announced_last_step = announced.last_step
        changes.warn_of_use(self.known.params, params)
      self._be_as_trained(self.checkpoint)

  def _find_checkpoint(self):
    """Returns the checkpoint that the job uses, or None."""
    wanted = self.options.checkpoint
    path = self.model_dir.path
    if tf.io.gfile.exists(path) and not tf.io.gfile.isdir(path):
      raise ValueError(f'--model_dir={path} is a file; name a directory.')
    if not wanted:
      return self.model_dir.newest()
    found = checkpoint_files.prefix_of(wanted)
    if not found:
      raise ValueError(
        f'--checkpoint={wanted} is not there; name one as '
        f'{self.model_dir.path}/model.ckpt-STEP.'
      )
    if damage := self.model_dir.damage(found):
      raise ValueError(
        f'--checkpoint={wanted} is damaged ({damage}); name another one.'
      )
    return found

  def _check_data(self):
    """Makes the plan and checks the data against it."""
    if self.options.mode == 'eval' and self.known and self.known.counting:
      # An evaluation set may differ in size from the training set.
      self.plan = self.known.plan()
      return
    inputs.check(self.dataset, self.params)
    self.plan = stages.plan(self.params, self.dataset.num_train_examples)

  def _check_fits(self):
    """Checks that the steps of the job fit into the memory of its devices.

    Raises:
      ValueError: If they do not fit.
    """
    options, num_classes = self.options, self.dataset.num_classes
    if options.inspects or not (room := footprint.room(self.devices)):
      return
    step = self.model_dir.newest_step()
    if options.trains:
      training = [
        footprint.training_step(
          self.params, stage.params, num_classes, self.devices.num_replicas
        )
        for stage in self.plan.stages
        if stage.params.epochs and stage.stop_step > step
      ]
      # A run that has trained before has fitted. With --force, or after a kill,
      # another trainer is about to free its memory.
      footprint.check(training, room, not (step or options.force))
      if training:
        largest = max(training, key=footprint.Step.num_bytes)
        self._footprint = footprint.describe(largest, room)
    if options.evaluates:
      views = self.params.input_data.preprocessing.num_views
      evaluation = footprint.evaluation_step(self.params, num_classes, views)
      footprint.check([evaluation], room._replace(num_replicas=1))

  def _check_facts(self, known):
    """Checks and logs the changes of a resumed run."""
    changes.check(known.params, self.params, self.checkpoint)
    images = self.dataset.train.fingerprint
    if known.train_images and known.train_images != images:
      logging.warning(
        'WARNING: the training images are others now: %s, not %s',
        images,
        known.train_images,
      )
    reference = self.options.reference_ckpt
    if known.reference and known.reference != reference:
      logging.warning(
        'WARNING: --reference_ckpt=%s has no effect: the run has begun, with '
        '%s',
        reference,
        known.reference,
      )

  @property
  def facts(self) -> facts_lib.Facts:
    """The facts about the checkpoints that this command trains."""
    return facts_lib.Facts(
      params=self.params,
      counting=self._counting(self.params),
      train_split=self.dataset.train.name,
      train_images=self.dataset.train.fingerprint,
      evaluation=data_of(self),
      reference=self.options.reference_ckpt,
      data_name=datasets.called(
        self.params.input_data.input_fn, self.options.data_dir
      ),
    )

  def _counting(self, params):
    return positions.of(params, self.dataset.num_train_examples)

  def _check_place(self):
    """Checks that the newest step stays in its stage and epoch.

    Raises:
      ValueError: If it does not, and the user has not accepted that.
    """
    step = self.model_dir.newest_step()
    before, now = self._counting_before(), self.facts.counting
    if before and step <= before.last_step:
      if not positions.is_moved(before, now, step):
        return
      if not self.options.accept_new_plan:
        to = positions.moved_step(before, now, step)
        raise ValueError(
          f'{self.checkpoint} is at {positions.place(before, step)}, but '
          f'another plan was given ({positions.what_moves(before, now)}): go '
          'on with the former one, or add --accept_new_plan to go on at '
          f'{positions.place(now, to)}.'
        )
    elif before or step > now.last_step:
      # A checkpoint of an older version, or of the published code, does not
      # record its plan, so it is unknown what has moved.
      plan, says = before or now, 'these flags make'
      if before:
        says = f'{self.model_dir.join(model_dirs.HPARAMS)} tells of'
      raise ValueError(
        f'{self.checkpoint} holds step {step}, but the plan that {says} ends '
        f'with step {plan.last_step} ({plan.num_examples} training examples, '
        f'batch_size {plan.batch_size}, {" + ".join(map(str, plan.epochs))} '
        'epochs); give the flags and the data that it was trained with'
        f'{", or delete the file if it is wrong" if before else ""}.'
      )

  def _counting_before(self):
    """Returns how the newest step was counted; None if unknown."""
    if not self.known:
      return None
    return self.known.counting or self._counting(self.known.params)

  def take_over(self) -> None:
    """Prepares model_dir for training by this process.

    Raises:
      tf.errors.OpError: If a file cannot be renamed or written.
    """
    self.model_dir.settle(self.options.max_checkpoints_to_keep)
    facts_lib.settle(self.model_dir)
    before, now = self._counting_before(), self.facts.counting
    step = self.model_dir.newest_step()
    if not before or not positions.is_moved(before, now, step):
      return
    aside = facts_lib.move(
      self.model_dir, dataclasses.replace(self.known, counting=before), now
    )
    logging.warning(
      'WARNING: another plan was accepted: what was %s is %s%s',
      positions.place(before, step),
      positions.place(now, self.model_dir.newest_step()),
      f'; the former checkpoints are in {aside}' if aside else '',
    )

  def keeper(self) -> facts_lib.Keeper:
    """Returns the recorder of the facts about this run's checkpoints."""
    return facts_lib.Keeper(
      self.model_dir, self.facts, self.files(is_new=not self.checkpoint)
    )

  def files(self, is_new: bool) -> dict[str, str | None]:
    """Returns the files besides hparams.json that describe the training.

    Args:
      is_new: Whether nothing was trained before, so that existing files of
        these names are obsolete.

    Returns:
      {name: text}; None means that the file must not exist.
    """
    found = {model_dirs.BAD_IMAGES: None}
    if is_new:
      found[model_dirs.WHITENING] = None
    if is_new or not self.model_dir.has(model_dirs.LABELS):
      names = self.dataset.class_names
      found[model_dirs.LABELS] = ''.join(f'{name}\n' for name in names)
    if self._whitening:
      found[model_dirs.WHITENING] = self._whitening.to_json()
    if self.skipped.found:
      found[model_dirs.BAD_IMAGES] = model_dirs.to_json(self.skipped.found)
    return found

  def as_trained(self, checkpoint: str) -> 'Run':
    """Returns this run as seen by a job that uses a checkpoint.

    Hyper-parameters and plan are those that the checkpoint was trained with, as
    far as they are known. The command decides what a user of a checkpoint may
    choose.

    Raises:
      ValueError, tf.errors.OpError: If the recorded facts cannot be read.
    """
    result = copy.copy(self)
    result._be_as_trained(checkpoint)
    return result

  def _be_as_trained(self, checkpoint):
    known = self.known = facts_lib.find(self.model_dir, checkpoint)
    if known:
      self.params = changes.as_used(known.params, self._wished)
      if plan := known.plan():
        self.plan = plan
    names = self.model_dir.class_names()
    if names and len(names) == self.dataset.num_classes:
      self.class_names = names
    self._set_colors(*self._colors_of_run())

  def check_checkpoints(self) -> None:
    """Checks the checkpoints of model_dir and --reference_ckpt, if any.

    Raises:
      ValueError: If one is missing or belongs to another model.
    """
    newest = (
      self.checkpoint if self.options.checkpoint else self.model_dir.newest()
    )
    is_eval = self.options.mode == 'eval'
    if not newest and (is_eval or not self.options.reference_ckpt):
      return
    with tf.Graph().as_default():
      model = contrastive.ContrastiveModel(
        self.params.architecture, self.dataset.num_classes
      )
      if not newest:
        self.reference = warm_start.find(self.options.reference_ckpt)
        wanted = (model, self.params.warm_start, self.reference)
        warm_start.assignment_map(*wanted)  # Raises if it does not fit.
        self._origins = warm_start.describe(*wanted)
        self._compare_with_reference()
        return
      variables, optional = model.variables, set()
      if not is_eval:
        optional = optimizers.unreached_slots(
          self.plan,
          model,
          tf1.train.get_or_create_global_step(),
          self.params.loss.include_bias_in_weight_decay,
          self.params.architecture,
        )
        variables = tf1.global_variables()
      adopted = checkpoints.require_same(
        variables, [model.name], newest, optional
      )
      self._origins = adopted.describe(newest)

  def _compare_with_reference(self):
    for is_warning, line in facts_lib.compare_with_reference(
      self.reference, self.options.reference_ckpt, self.params
    ):
      if is_warning:
        self._warnings.append(line)
      else:
        self._origins.append(line)

  def _look_at_images(self) -> None:
    """Finds bad images and measures colors, if the flags say so.

    Both happen only once per model_dir, because they affect what every step of
    the run sees.

    Raises:
      ValueError: If there are bad images that must not be skipped or too few
        good ones, or if it is too late to measure colors.
    """
    options = self.params.input_data
    if options.skip_bad_images:
      is_eval = self.options.mode == 'eval'
      parts = skipped_images.PARTS[
        is_eval:
      ]  # An evaluation needs the last one only.
      self.dataset = self.skipped.find(self.dataset, parts)
      self._check_data()
    elif datasets.is_unvetted(options.input_fn) and not self.checkpoint:
      for is_train in (True, False):
        faults.check_if_quick(self.dataset.split(is_train))
    if self.checkpoint:
      self._set_colors(*self._colors_of_run())
    elif options.preprocessing.apply_whitening:
      self._begin_whitening()
    else:
      self._go_without_whitening()

  def _set_colors(self, mean, std):
    info = dataclasses.replace(self.dataset.info, mean=mean, std=std)
    self.dataset = dataclasses.replace(self.dataset, info=info)

  def _colors_of_run(self):
    """Returns the mean and deviation that the newest checkpoint uses.

    Raises:
      ValueError: If the flags say to measure them, which is too late.
    """
    params = self.known.params if self.known else self._wished
    preprocessing = self._wished.input_data.preprocessing
    if preprocessing.measure_whitening and self.options.mode != 'eval':
      path = self.model_dir.join(model_dirs.WHITENING)
      if not tf.io.gfile.exists(path):
        raise ValueError(
          f'--measure_whitening comes too late: {self.checkpoint} was '
          f'trained without, for there is no {path}; take another --model_dir.'
        )
    return facts_lib.colors(self.model_dir, params)

  def _begin_whitening(self):
    """Takes mean and deviation from the reference, or measures them."""
    options = self.params.input_data.preprocessing
    found = None
    if self.options.mode == 'eval':
      return  # The trainer decides and records it.
    if options.measure_whitening:
      found = self._measure(options.image_size)
    elif self.reference and self.params.warm_start.warm_start_encoder:
      found = facts_lib.whitening_of_reference(self.reference)
      if found:
        self._origins.append(f'whitening: {found.describe()}')
    if found:
      self._whitening = found
      self._set_colors(found.mean, found.std)

  def _go_without_whitening(self):
    self._set_colors(None, None)
    if self.reference and self.params.warm_start.warm_start_encoder:
      found = facts_lib.whitening_of_reference(self.reference)
      if found and found.mean:
        logging.warning(
          'WARNING: --apply_whitening=False, but %s was trained on whitened '
          'images (%s)',
          self.reference,
          found.describe(),
        )

  def _measure(self, image_size):
    try:
      found = whitening.measure(self.dataset.train, image_size)
    except faults.INPUT_ERRORS as error:
      explanation = faults.explain(self.dataset.train)
      raise ValueError(explanation or storage_errors.reason(error)) from error
    logging.info(
      'measured on %d images: mean %s, standard deviation %s',
      found.num_images,
      found.mean,
      found.std,
    )
    return found

  def announce(self) -> None:
    """Logs what the run is; an inspection writes hparams.json.

    Raises:
      ValueError: If model_dir cannot be written.
    """
    options, dataset = self.options, self.dataset
    if options.inspects:
      self._write_for_inspection()
    elif options.mode == 'eval':
      self._warn_of_other_classes()
    is_ahead = self.model_dir.newest_step() < self.plan.total_steps
    where = ''
    if options.inspects or (options.trains and is_ahead):
      where = f', in full in {self.output.join(model_dirs.HPARAMS)}'
    logging.info('hyper-parameters%s, other than the defaults:', where)
    for line in _lines_of_changes(self.params):
      logging.info('  %s', line)
    logging.info('  --hparams=%s', self.params.serialize())
    training = f'{dataset.num_train_examples} training examples (split '
    training += f'{dataset.train.name}), '
    logging.info(
      '%s: %s%d evaluation examples (split %s), '
      '%d classes; %.1f steps per epoch, %d steps in all',
      self.params.input_data.input_fn,
      '' if options.mode == 'eval' else training,
      dataset.num_eval_examples,
      dataset.evaluation.name,
      dataset.num_classes,
      self.plan.steps_per_epoch,
      self.plan.total_steps,
    )
    for line in self._origins:
      logging.info('  %s', line)
    odd = [*self.params.input_data.preprocessing.oddities()]
    if options.mode != 'eval':
      odd += reach.oddities(self.params)
    for line in (*self._warnings, *odd):
      logging.warning('WARNING: %s', line)
    if options.trains:
      logging.info('%s', self.devices.describe(self.params.batch_size))
    if precision := self.devices.describe_dtype(
      self.params.input_data.preprocessing.allow_mixed_precision
    ):
      logging.info('%s', precision)
    if options.trains:
      if self._footprint:
        logging.info('%s', self._footprint)
    self._warn_of_flips()

  def _warn_of_flips(self):
    """Warns if flips appear to change the labels."""
    preprocessing, input_fn = (
      self.params.input_data.preprocessing,
      self.params.input_data.input_fn,
    )
    is_new = self.options.trains and not self.checkpoint
    if not (is_new or self.options.inspects) or not self.devices.is_chief:
      return
    if (
      datasets.is_unvetted(input_fn)
      and self.dataset.info.flips
      and preprocessing.random_flip
      and not preprocessing.train_on_eval_views
    ):
      found = orientation.of_split(self.dataset.train)
      if found.matters:
        logging.warning('WARNING: %s', found.advice())

  def _write_for_inspection(self):
    before = self.model_dir.read_json(model_dirs.HPARAMS)
    if before:
      changes.warn(hparams.parse(before['compact']), self.params)
    self._warn_of_other_classes()
    files = self.files(is_new=True)
    files[model_dirs.HPARAMS] = model_dirs.to_json(self.announcement)
    try:
      tf.io.gfile.makedirs(self.output.path)
      for name, text in files.items():
        if text is not None:
          self.output.write(name, text)
    except (OSError, tf.errors.OpError) as error:
      reason = str(error).splitlines()[0]
      raise ValueError(
        f'--model_dir={self.options.model_dir} cannot be written '
        f'({reason}); name a directory that can.'
      ) from error

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
    newest = self.model_dir.newest()
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
      reference_checkpoint=None if newest else self.reference,
      train_batch_norm=self.trains_batch_norm,
      start_step=checkpoint_files.step_of(newest) if newest else 0,
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

  def _warn_of_other_classes(self):
    """Warns if the meaning of the labels has changed."""
    before = self.model_dir.class_names() or ()
    for old, new in zip(before, self.dataset.class_names):
      if old != new:
        logging.warning(
          'WARNING: the class that was %s when model_dir was begun is %s now',
          safe_text.printable(old),
          safe_text.printable(new),
        )
        return


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


def load_dataset(options, params) -> datasets.Dataset:
  """Opens the data set that the flags name.

  Raises:
    ValueError: If it does not exist, or its images do not have the requested
      size.
  """
  input_data = params.input_data
  dataset = datasets.load(
    input_data.input_fn,
    options.data_dir,
    max_train_examples=input_data.max_samples,
    max_eval_examples=input_data.max_eval_samples,
    train_split=input_data.train_split,
    eval_split=input_data.eval_split,
  )

  def look():
    try:
      return pipeline_probes.image_sizes(dataset.train)
    except tf.errors.OpError:  # Other code reports bad images.
      return ()

  preprocessing.check_image_size(
    input_data.preprocessing, dataset.image_shape, look
  )
  return dataset


def _lines_of_changes(params):
  """Yields a line for each part of the hyper-parameters that has changed."""
  defaults = hparams.HParams()
  parts = collections.defaultdict(list)
  for entry in hparams.FIELDS:
    if params.get(entry.path) != defaults.get(entry.path):
      part, _, name = entry.path.rpartition('.')
      value = params.get(entry.path)
      parts[part].append(f'{name}={getattr(value, "name", value)}')
  for part, changed in parts.items():
    yield f'{part or "run"}: {", ".join(changed)}'
