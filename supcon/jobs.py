"""The jobs: train, evaluate one checkpoint or each new one, export, inspect.

`prepare` looks at every file and finds every mistake that can be found early;
nothing is written to model_dir before it returns. `Job.announce` says what is
going to be done, `Job.run` does it.
"""

import collections
import contextlib
import dataclasses
import json
import math
import os
import time

from absl import logging
import tensorflow as tf

from supcon import devices as devices_lib
from supcon import estimators
from supcon import hparams
from supcon import run_options
from supcon import workers
from supcon.data import datasets
from supcon.data import faults
from supcon.data import inputs
from supcon.data import inspection
from supcon.data import preprocessing
from supcon.data import whitening
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
Stopped = (
  hooks.NanLossError,
  checkpoints.MismatchError,
  faults.BadExampleError,
  workers.LostWorkerError,
)

_POLL_SECONDS = 2.0

# How long a checkpoint may take from one machine to the others.
_WAIT_SECONDS = 60.0

# Files of model_dir that say what the data are. The first two go with every
# export: one names the logits, the other says how images have to be whitened.
_LABELS = 'labels.txt'
_WHITENING = 'whitening.json'
_BAD_IMAGES = 'bad_images.json'

# What --mode=inspect_data writes, below model_dir.
_INSPECTION = 'inspect_data'


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
  devices = devices_lib.find(options)
  devices_lib.check_batches(devices, options, params)
  dataset = datasets.load(
    params.input_data.input_fn,
    options.data_dir,
    max_train_examples=params.input_data.max_samples,
    max_eval_examples=params.input_data.max_eval_samples,
    train_split=params.input_data.train_split,
    eval_split=params.input_data.eval_split,
  )
  preprocessing.check_image_size(
    params.input_data.preprocessing, dataset.image_shape
  )
  inputs.check(dataset, params)
  run = stages.plan(params, dataset.num_train_examples)
  job = Job(options, params, devices, dataset, run)
  if not options.inspects:
    job.check_checkpoints()
  job.look_at_images()
  return job


class Job:
  """A run on a data set."""

  def __init__(self, options, params, devices, dataset, run):
    self._options = options
    self._params = params
    self._devices = devices
    self._dataset = dataset
    self._plan = run
    # An inspection changes nothing that a run has written.
    self._output_dir = options.model_dir
    if options.inspects:
      self._output_dir = self._path(_INSPECTION)
    self._reference: str | None = None
    # What goes into bad_images.json and whitening.json.
    self._skipped: dict[str, dict] = {}
    self._whitening: whitening.Statistics | None = None

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

  def look_at_images(self) -> None:
    """Finds bad images and measures colors, as far as that was asked for.

    Both happen once in a model_dir: they decide what a step of the run sees.

    Raises:
      ValueError: If there are bad images that are not to be skipped, too few
        good ones, or colors were asked for too late.
    """
    options = self._params.input_data
    if options.skip_bad_images:
      self._skip_bad_images()
    elif datasets.is_unvetted(options.input_fn) and not self._newest():
      for is_train in (True, False):
        faults.check_if_quick(self._dataset.split(is_train))
    if options.preprocessing.apply_whitening:
      self._measure_whitening()

  def _skip_bad_images(self):
    path = self._path(_BAD_IMAGES)
    known = _read_json(path) if tf.io.gfile.exists(path) else {}
    for part in ('train', 'evaluation'):
      split = getattr(self._dataset, part)
      entry = known.get(part, {})
      if entry.get('examples') != split.fingerprint:
        bad = faults.find(split)
        entry = {
          'examples': split.fingerprint,
          'positions': bad,
          'bad_images': [split.where(position) for position in bad],
        }
      self._skipped[part] = entry
      self._dataset = dataclasses.replace(
        self._dataset, **{part: faults.without(split, entry['positions'])}
      )
    inputs.check(self._dataset, self._params)
    self._plan = stages.plan(self._params, self._dataset.num_train_examples)

  def _measure_whitening(self):
    options = self._params.input_data.preprocessing
    path = self._path(_WHITENING)
    found = whitening.read(path)
    if not found and options.measure_whitening:
      if self._newest():
        raise ValueError(
          f'--measure_whitening comes too late: {self._newest()} was trained '
          f'without, for there is no {path}; take another --model_dir.'
        )
      try:
        found = whitening.measure(self._dataset.train, options.image_size)
      except faults.INPUT_ERRORS as error:
        explanation = faults.explain(self._dataset.train)
        raise ValueError(explanation or faults.reason(error)) from error
      logging.info(
        'measured on %d images: mean %s, standard deviation %s',
        found.num_images,
        found.mean,
        found.std,
      )
    if found:
      self._whitening = found
      self._dataset = dataclasses.replace(
        self._dataset,
        info=dataclasses.replace(
          self._dataset.info, mean=found.mean, std=found.std
        ),
      )

  def announce(self) -> None:
    """Says what the run is, and writes hparams.json unless it only evaluates.

    Raises:
      ValueError: If model_dir cannot be written.
    """
    self._warn_of_other_classes()
    before = self._path('hparams.json')
    path = self._output('hparams.json')
    record = self._record()
    if tf.io.gfile.exists(before):
      _log_changes(_read_json(before).get('hparams', {}), record['hparams'])
    if self._options.mode != 'eval' and self._devices.is_chief:
      try:
        tf.io.gfile.makedirs(self._output_dir)
        _write_json(path, record)
        self._write_facts_of_data()
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
      '%s: %d training examples (split %s), %d evaluation examples (split %s), '
      '%d classes; %.1f steps per epoch, %d steps in all',
      self._params.input_data.input_fn,
      self._dataset.num_train_examples,
      self._dataset.train.name,
      self._dataset.num_eval_examples,
      self._dataset.evaluation.name,
      self._dataset.num_classes,
      self._plan.steps_per_epoch,
      self._plan.total_steps,
    )
    if self._options.trains:
      logging.info('%s', self._devices.describe(self._params.batch_size))

  def _record(self):
    return {
      'hparams': self._params.to_json(),
      'compact': self._params.serialize(),
    }

  def _write_facts_of_data(self):
    """Writes what the data are, for later runs and for users of the model.

    An evaluation may be of other data than the training: it adds what is not
    there yet and changes nothing.
    """
    class_names = self._dataset.class_names
    facts = {_LABELS: ''.join(f'{name}\n' for name in class_names)}
    if self._whitening:
      facts[_WHITENING] = _json_text(dataclasses.asdict(self._whitening))
    if self._skipped:
      facts[_BAD_IMAGES] = _json_text(self._skipped)
    for name, text in facts.items():
      path = self._output(name)
      if self._options.mode != 'eval' or not tf.io.gfile.exists(path):
        _write(path, text)

  def run(self) -> None:
    """Does what --mode says.

    Raises:
      Stopped: If the loss is not a number any more, an image is bad, or a
        checkpoint that is to be evaluated is of another model.
    """
    if self._options.inspects:
      self._inspect()
      return
    if self._options.mode == 'eval':
      self._evaluate_each()
      return
    self._train()
    if self._options.evaluates and self._devices.is_chief:
      self._summarize(self._evaluate(self._newest()))

  def _inspect(self):
    """Shows what training would see, and measures what it costs to make."""
    with self._naming_bad_images(self._dataset.train):
      sheet = inspection.contact_sheet(self._dataset, self._params)
      path = sheet.write(self._output_dir)
      speed = inspection.measure(self._dataset, self._params)
    report = self._output('inspect_data.json')
    _write_json(
      report, {'contact_sheet': sheet.to_json(), 'speed': speed.to_json()}
    )
    self._report_skipped('train')
    print(
      f'\n{speed.describe()}\n\n'
      f'Contact sheet: {path}\n'
      f'Its rows, and the figures: {report}\n'
      f'TensorBoard: tensorboard --logdir {self._output_dir}',
      flush=True,
    )

  def _train(self):
    """Trains what remains of the plan, stage by stage."""
    if self._devices.cluster:
      self._meet()
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
      if step >= stage.stop_step:
        continue
      logging.info(
        'stage %d: steps %d to %d', stage.number, step, stage.stop_step
      )
      with self._naming_bad_images(self._dataset.train):
        estimators.train(
          self._options,
          self._devices,
          self._model_fn(stage),
          inputs.train_input_fn(
            self._dataset, self._params, self._dtype(), start_step=step
          ),
          batch_size=self._params.batch_size,
          seed=self._params.seed,
          max_steps=stage.stop_step,
        )
      step = stage.stop_step
      if self._devices.cluster:
        self._wait_for_checkpoint(step)
    self._report_skipped('train')

  def _meet(self):
    """Waits for the chief, who has to train the same in the same directory."""
    # Whoever sees the chief's server finds what the chief has announced.
    logging.info(
      'worker %d listens at %s', self._devices.host.index, self._devices.master
    )
    path = self._path('hparams.json')
    mine = self._record()['compact']
    self._wait_for(
      'hparams.json with the flags of this worker',
      lambda: tf.io.gfile.exists(path) and _read_json(path)['compact'] == mine,
    )

  def _wait_for_checkpoint(self, step):
    """Waits until this worker sees what the chief has written.

    Else it would begin the next stage with an older checkpoint; and the chief
    would take a worker that has finished before for one that was lost.
    """
    self._wait_for(
      f'checkpoint of step {step}', lambda: self._newest_step() >= step
    )

  def _wait_for(self, what, is_there):
    """Waits for what the chief writes, from when the chief is there."""
    begun, is_waiting = None, False
    with self._devices.watchdog.guarding(_WAIT_SECONDS) as watchdog:
      while not is_there():
        if not is_waiting:
          logging.info('waiting for %s in %s', what, self._options.model_dir)
        is_waiting = True
        if begun is None and watchdog.has_seen(0):
          begun = time.monotonic()
        if begun and time.monotonic() - begun > _WAIT_SECONDS:
          raise workers.LostWorkerError(
            f'found no {what} in --model_dir={self._options.model_dir}, where '
            'the chief should have written it; give all workers the same flags '
            'and the same directory, on a file system that they share.'
          )
        time.sleep(_POLL_SECONDS)

  def _evaluate(self, checkpoint: str) -> dict:
    """Evaluates and exports a checkpoint; returns what result.json holds."""
    step = checkpoints.step_of(checkpoint)
    logging.info('evaluating %s', checkpoint)
    # The stage whose update made this checkpoint; at step 0, the first one.
    estimator = self._estimator(
      self._model_fn(self._plan.stage_at(max(step - 1, 0)))
    )
    examples = self._dataset.num_eval_examples
    with self._naming_bad_images(self._dataset.evaluation):
      metrics = estimator.evaluate(
        inputs.eval_input_fn(self._dataset, self._params, self._dtype()),
        steps=math.ceil(examples / self._params.eval.batch_size),
        checkpoint_path=checkpoint,
      )
    self._write_facts_of_data()
    export = estimator.export_saved_model(
      os.path.join(self._options.model_dir, 'exports'),
      saved_model.serving_input_receiver_fn(
        self._params.input_data.preprocessing.image_size
      ),
      assets_extra={
        name: self._path(name)
        for name in (_LABELS, _WHITENING)
        if tf.io.gfile.exists(self._path(name))
      },
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
      'num_skipped': self._num_skipped('evaluation'),
      'dataset': self._params.input_data.input_fn,
      'split': self._dataset.info.eval_split,
      'class_names': list(self._dataset.class_names),
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
    self._report_skipped('evaluation')
    return result

  def _num_skipped(self, part):
    """Returns how many bad images 'train' or 'evaluation' went without."""
    return len(self._skipped[part]['positions']) if self._skipped else 0

  def _report_skipped(self, part):
    if count := self._num_skipped(part):
      logging.warning(
        'WARNING: %d bad images of split %s were skipped; %s lists them',
        count,
        self._dataset.split(is_train=part == 'train').name,
        self._output(_BAD_IMAGES),
      )

  @contextlib.contextmanager
  def _naming_bad_images(self, split):
    """Says which image it was where the input pipeline stumbles over one."""
    try:
      yield
    except faults.INPUT_ERRORS as error:
      explanation = faults.explain(split)
      if not explanation:
        raise
      raise faults.BadExampleError(explanation) from error

  def _evaluate_each(self):
    """Evaluates each checkpoint of model_dir until that of the last step."""
    done = -1
    is_compared = bool(self._newest())  # By prepare.
    is_waiting = False
    while done < self._plan.total_steps:
      found = checkpoints.steps_and_paths(self._options.model_dir)
      is_over = self._plan.total_steps in found
      new = [step for step in found if step > done]
      if not new:
        if not is_waiting:
          logging.info(
            'waiting for a checkpoint after step %d in %s',
            done,
            self._options.model_dir,
          )
        is_waiting = True
        time.sleep(_POLL_SECONDS)
        continue
      is_waiting = False
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
    skipped = result['num_skipped']
    part = 'the first' if self._params.input_data.max_eval_samples else 'all'
    print(
      f'\nTop-1 {100 * top_1:.2f}% on {part} {result["num_examples"]} '
      f'{result["dataset"]} {result["split"]} images'
      f'{f" ({skipped} bad ones skipped)" if skipped else ""}.\n'
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
      mean=self._dataset.info.mean,
      std=self._dataset.info.std,
      dtype=self._dtype(),
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
      self._devices,
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

  def _warn_of_other_classes(self):
    """Says so if the labels do not mean what they meant."""
    path = self._path(_LABELS)
    if not tf.io.gfile.exists(path):
      return
    with tf.io.gfile.GFile(path) as file:
      before = file.read().split('\n')
    for old, new in zip(before, self._dataset.class_names):
      if old != new:
        logging.warning(
          'WARNING: the class that was %s when model_dir was begun is %s now',
          old,
          new,
        )
        return

  def _path(self, name):
    return os.path.join(self._options.model_dir, name)

  def _output(self, name):
    return os.path.join(self._output_dir, name)


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


def _read_json(path):
  with tf.io.gfile.GFile(path) as file:
    return json.load(file)


def _write_json(path, value):
  _write(path, _json_text(value))


def _json_text(value):
  return json.dumps(value, indent=2) + '\n'


def _write(path, text):
  """Writes a file aside and renames it, so that it is always whole."""
  aside = f'{path}.tmp{os.getpid()}'
  with tf.io.gfile.GFile(aside, 'w') as file:
    file.write(text)
  tf.io.gfile.rename(aside, path, overwrite=True)
