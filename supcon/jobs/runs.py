"""A run: a data set and a plan in a model_dir, of which all is checked."""

import collections
import dataclasses

from absl import logging
import tensorflow as tf

from supcon import devices as devices_lib
from supcon import hparams
from supcon import locks
from supcon import model_dirs
from supcon import retries
from supcon import run_options
from supcon import signals
from supcon import storage
from supcon import workers
from supcon.data import datasets
from supcon.data import faults
from supcon.data import inputs
from supcon.data import preprocessing
from supcon.data import whitening
from supcon.models import contrastive
from supcon.serving import trained
from supcon.training import checkpoints
from supcon.training import hooks
from supcon.training import model_fn
from supcon.training import stages
from supcon.training import warm_start

tf1 = tf.compat.v1


class CutShortError(RuntimeError):
  """Training has ended without the checkpoint of its last step."""


class LostCheckpointError(RuntimeError):
  """A checkpoint is not any more what it was when its evaluation began."""


class TrainerGoneError(RuntimeError):
  """No trainer is there from which another checkpoint could come."""


# What stops a job on its way, and says so in words.
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
  """Returns in one line what has stopped a job; '' if nobody foresaw it."""
  if isinstance(error, _STOPPED):
    return str(error)
  if explanation := storage.explain_failed_write(error):
    return explanation
  return storage.reason(error) if isinstance(error, tf.errors.OpError) else ''


# What --mode=inspect_data writes, below model_dir.
_INSPECTION = 'inspect_data'


class Run:
  """What the jobs that look at training examples share.

  Attributes:
    options: Checked RunOptions.
    params: Checked HParams.
    devices: What it computes on.
    dataset: The data set, without bad images.
    plan: The stages.
    model_dir: Where the checkpoints are.
    reference: The checkpoint to start from; None without --reference_ckpt, or
      once model_dir has a checkpoint of its own.
    output: Where files go: an inspection changes nothing that a run has
      written.
  """

  def __init__(self, options: run_options.RunOptions, params: hparams.HParams):
    """Looks at every file and finds every mistake that can be found early.

    Nothing is written.

    Raises:
      ValueError: In one line, what was found, what was expected, what to do.
      tf.errors.OpError: If a file cannot be read.
    """
    self.options = options
    self.params = params
    self.model_dir = model_dirs.ModelDir(
      options.model_dir, retries.Retries(sleep=signals.sleep)
    )
    self.output = self.model_dir
    if options.inspects:
      self.output = model_dirs.ModelDir(self.model_dir.join(_INSPECTION))
    self.devices = devices_lib.find(options)
    devices_lib.check_batches(self.devices, options, params)
    self.dataset = load_dataset(options, params)
    inputs.check(self.dataset, params)
    self.plan = stages.plan(params, self.dataset.num_train_examples)
    self.reference: str | None = None
    self._origins: list[str] = []  # Which variables come from where.
    # What goes into bad_images.json and whitening.json.
    self._skipped: dict[str, dict] = {}
    self._whitening: whitening.Statistics | None = None
    if not options.inspects:
      self.check_checkpoints()
    self._look_at_images()

  def check_checkpoints(self) -> None:
    """Checks the checkpoints of model_dir and --reference_ckpt, if any.

    Raises:
      ValueError: If one is missing, or of another model.
    """
    newest = self.model_dir.newest()
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
        warm_start.assignment_map(*wanted)  # Raises what does not fit.
        self._origins = warm_start.describe(*wanted)
        return
      variables, optional = model.variables, set()
      if not is_eval:
        optional = stages.unreached_slots(
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

  def _look_at_images(self) -> None:
    """Finds bad images and measures colors, as far as that was asked for.

    Both happen once in a model_dir: they decide what a step of the run sees.

    Raises:
      ValueError: If there are bad images that are not to be skipped, too few
        good ones, or colors were asked for too late.
    """
    options = self.params.input_data
    if options.skip_bad_images:
      self._skip_bad_images()
    elif datasets.is_unvetted(options.input_fn) and not self.model_dir.newest():
      for is_train in (True, False):
        faults.check_if_quick(self.dataset.split(is_train))
    if options.preprocessing.apply_whitening:
      self._measure_whitening()

  def _skip_bad_images(self):
    known = self.model_dir.read_json(model_dirs.BAD_IMAGES) or {}
    for part in ('train', 'evaluation'):
      split = getattr(self.dataset, part)
      entry = known.get(part, {})
      if entry.get('examples') != split.fingerprint:
        bad = faults.find(split)
        entry = {
          'examples': split.fingerprint,
          'positions': bad,
          'bad_images': [split.where(position) for position in bad],
        }
      self._skipped[part] = entry
      self.dataset = dataclasses.replace(
        self.dataset, **{part: faults.without(split, entry['positions'])}
      )
    inputs.check(self.dataset, self.params)
    self.plan = stages.plan(self.params, self.dataset.num_train_examples)

  def _measure_whitening(self):
    options = self.params.input_data.preprocessing
    path = self.model_dir.join(model_dirs.WHITENING)
    found = whitening.read(path)
    if not found and options.measure_whitening:
      if self.model_dir.newest():
        raise ValueError(
          f'--measure_whitening comes too late: {self.model_dir.newest()} was '
          f'trained without, for there is no {path}; take another --model_dir.'
        )
      try:
        found = whitening.measure(self.dataset.train, options.image_size)
      except faults.INPUT_ERRORS as error:
        explanation = faults.explain(self.dataset.train)
        raise ValueError(explanation or storage.reason(error)) from error
      logging.info(
        'measured on %d images: mean %s, standard deviation %s',
        found.num_images,
        found.mean,
        found.std,
      )
    if found:
      self._whitening = found
      self.dataset = dataclasses.replace(
        self.dataset,
        info=dataclasses.replace(
          self.dataset.info, mean=found.mean, std=found.std
        ),
      )

  def announce(self) -> None:
    """Says what the run is, and writes hparams.json unless it only evaluates.

    Raises:
      ValueError: If model_dir cannot be written.
    """
    self._warn_of_other_classes()
    record = self.record()
    before = self.model_dir.read_json(model_dirs.HPARAMS)
    if before:
      _log_changes(before['hparams'], record['hparams'])
    if self.options.mode != 'eval' and self.devices.is_chief:
      try:
        tf.io.gfile.makedirs(self.output.path)
        self.output.write_json(model_dirs.HPARAMS, record)
        self.write_facts_of_data()
      except (OSError, tf.errors.OpError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
          f'--model_dir={self.options.model_dir} cannot be written '
          f'({reason}); name a directory that can.'
        ) from error
    logging.info(
      'hyper-parameters, in full in %s, other than the defaults:',
      self.output.join(model_dirs.HPARAMS),
    )
    for line in _lines_of_changes(self.params):
      logging.info('  %s', line)
    logging.info('  --hparams=%s', record['compact'])
    logging.info(
      '%s: %d training examples (split %s), %d evaluation examples (split %s), '
      '%d classes; %.1f steps per epoch, %d steps in all',
      self.params.input_data.input_fn,
      self.dataset.num_train_examples,
      self.dataset.train.name,
      self.dataset.num_eval_examples,
      self.dataset.evaluation.name,
      self.dataset.num_classes,
      self.plan.steps_per_epoch,
      self.plan.total_steps,
    )
    for line in self._origins:
      logging.info('  %s', line)
    if self.options.trains:
      logging.info('%s', self.devices.describe(self.params.batch_size))

  def record(self) -> dict:
    """Returns what hparams.json holds."""
    return {
      'hparams': self.params.to_json(),
      'compact': self.params.serialize(),
    }

  def write_facts_of_data(self):
    """Writes what the data are, for later runs and for users of the model.

    An evaluation may be of other data than the training: it adds what is not
    there yet and changes nothing.
    """
    class_names = self.dataset.class_names
    facts = {model_dirs.LABELS: ''.join(f'{name}\n' for name in class_names)}
    if self._whitening:
      facts[model_dirs.WHITENING] = model_dirs.to_json(
        dataclasses.asdict(self._whitening)
      )
    if self._skipped:
      facts[model_dirs.BAD_IMAGES] = model_dirs.to_json(self._skipped)
    for name, text in facts.items():
      if self.options.mode != 'eval' or not self.output.has(name):
        self.output.write(name, text)

  def trained_model(self, checkpoint: str) -> trained.TrainedModel:
    """Returns what a checkpoint of this run is for others."""
    info = self.dataset.info
    is_whitened = self.params.input_data.preprocessing.apply_whitening
    return trained.TrainedModel(
      params=self.params,
      checkpoint=checkpoint,
      class_names=self.dataset.class_names,
      mean=info.mean if is_whitened else None,
      std=info.std if is_whitened else None,
    )

  def num_skipped(self, part):
    """Returns how many bad images 'train' or 'evaluation' went without."""
    return len(self._skipped[part]['positions']) if self._skipped else 0

  def report_skipped(self, part):
    """Reminds of the bad images of 'train' or 'evaluation', if any."""
    if count := self.num_skipped(part):
      logging.warning(
        'WARNING: %d bad images of split %s were skipped; %s lists them',
        count,
        self.dataset.split(is_train=part == 'train').name,
        self.output.join(model_dirs.BAD_IMAGES),
      )

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
      summary_interval_steps=options.summary_interval_steps,
      use_tpu=options.use_tpu,
      reference_checkpoint=None if self.model_dir.newest() else self.reference,
      train_batch_norm=self.trains_batch_norm,
    )

  @property
  def trains_batch_norm(self) -> bool:
    """Whether batch norm runs on batch statistics in training."""
    return (
      not self.options.reference_ckpt
      or self.params.warm_start.batch_norm_in_train_mode
    )

  @property
  def dtype(self) -> tf.DType:
    """Of the images that the encoder sees."""
    mixed = self.params.input_data.preprocessing.allow_mixed_precision
    return tf.bfloat16 if mixed and self.options.use_tpu else tf.float32

  def _warn_of_other_classes(self):
    """Says so if the labels do not mean what they meant."""
    before = self.model_dir.class_names() or ()
    for old, new in zip(before, self.dataset.class_names):
      if old != new:
        logging.warning(
          'WARNING: the class that was %s when model_dir was begun is %s now',
          old,
          new,
        )
        return


def load_dataset(options, params) -> datasets.Dataset:
  """Opens the data set that the flags name.

  Raises:
    ValueError: If it is not there, or its images do not have the size asked
      for.
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
  preprocessing.check_image_size(input_data.preprocessing, dataset.image_shape)
  return dataset


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
