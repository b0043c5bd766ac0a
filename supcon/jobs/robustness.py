"""Measures robustness to corruptions: --mode=robustness.

The model computes all images in one pass, since starting it takes seconds and
there are 75 sets. Each evaluation is recorded as soon as its last image is
done, and a job that starts again does only those that are not recorded.
"""

from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import itertools
import os
import time
from typing import Any, NamedTuple

from absl import logging
import numpy as np
import tensorflow as tf

from supcon.compute import devices as devices_lib
from supcon.config import enums
from supcon.config import hparams
from supcon.config import reach
from supcon.config import run_options
from supcon.config import safe_text
from supcon.data.sources import corruptions
from supcon.data.sources import datasets
from supcon.data.sources import faults
from supcon.data.sources import folder
from supcon.data.sources import splits
from supcon.data.views import crops
from supcon.evaluation import robustness
from supcon.jobs import outputs
from supcon.jobs import run_images
from supcon.jobs import trained_run
from supcon.reports import pipeline_probes
from supcon.reports import robustness_table
from supcon.runs import checkpoint_files
from supcon.runs import model_dirs
from supcon.runs import timestamps
from supcon.training import checkpoints
from supcon.training import facts

CLEAN = 'clean'


class Evaluation(NamedTuple):
  """One set of images.

  Attributes:
    name: CLEAN, or CORRUPTION/SEVERITY.
    key: (corruption, severity); None for clean images.
    split: The images.
    logits: int64 [classes of the set], the logit of each of its labels.
    params: Hyper-parameters that determine how its images are preprocessed.
    data: One line that identifies the images and their preprocessing.
  """

  name: str
  key: tuple[str, int] | None
  split: splits.Split
  logits: np.ndarray
  params: hparams.HParams
  data: str


class Record:
  """robustness/NAME-STEP.json: what was measured, of one checkpoint.

  Attributes:
    path: The file.
    evaluations: {name: 'error', 'ece', 'n', 'data'}; with those of other
      weights, images or preprocessing left out.
  """

  def __init__(
    self,
    model_dir: model_dirs.ModelDir,
    name: str,
    facts_of_file: Mapping[str, Any],
    wanted: Iterable[Evaluation],
  ):
    """Reads the file, if it exists.

    Args:
      model_dir: The model_dir of the run.
      name: NAME-STEP.
      facts_of_file: What else the file holds. The 'fingerprint' identifies the
        weights.
      wanted: All evaluations.

    Raises:
      ValueError: If it holds something else.
    """
    self._model_dir, self._facts = model_dir, dict(facts_of_file)
    self._name = os.path.join(model_dirs.ROBUSTNESS, name)
    self.path = model_dir.join(f'{self._name}.json')

    def parse(found):
      if found['fingerprint'] != facts_of_file['fingerprint']:
        return {}
      return {
        each.name: found['evaluations'][each.name]
        for each in wanted
        if found['evaluations'].get(each.name, {}).get('data') == each.data
      }

    self.evaluations = (
      model_dir.read_json(
        f'{self._name}.json', parse, 'robustness', 'delete it'
      )
      or {}
    )

  def add(self, evaluation: Evaluation, measured: Mapping[str, float]) -> None:
    """Records an evaluation, by replacing the file."""
    self.evaluations[evaluation.name] = {**measured, 'data': evaluation.data}
    self.write(None)

  def write(self, summary: Mapping[str, Any] | None) -> None:
    tf.io.gfile.makedirs(self._model_dir.join(model_dirs.ROBUSTNESS))
    self._model_dir.write_json(
      f'{self._name}.json',
      {
        **self._facts,
        'time': timestamps.now(),
        'summary': summary,
        'evaluations': self.evaluations,
      },
    )

  def write_table(self, text: str) -> None:
    """Writes NAME-STEP.csv beside it."""
    self._model_dir.write(f'{self._name}.csv', text)


class MeasureRobustness:
  """--mode=robustness: evaluates a checkpoint under every corruption."""

  def __init__(self, options: run_options.RunOptions, params: hparams.HParams):
    self._options = options
    self._devices = devices_lib.find(options)
    devices_lib.check_batches(self._devices, options, params)
    self._model = model = trained_run.find_model(options, params)
    model_dir = model_dirs.ModelDir(options.model_dir)
    _check_classifier(model_dir, model.checkpoint)
    trained_run.check_fits(self._devices, model)
    self._dataset = dataset = run_images.load_dataset(options, params)
    found = corruptions.find(
      options.corruptions,
      options.data_dir,
      params.input_data.max_eval_samples,
    )
    if missing := [
      name
      for name in corruptions.not_prepared(options.corruptions, found)
      if name not in robustness.EXTRA
    ]:
      logging.warning(
        'WARNING: %s has more corruptions, which are not prepared and not '
        'measured: %s',
        options.corruptions,
        ', '.join(missing),
      )
    self._lacks = robustness.lacks_of_imagenet_c(
      [(each.corruption, each.severity) for each in found],
      found[0].source.class_names,
    )
    params_of = params_for(model.params, dataset, found[0])
    where = {each.source.class_names: options.corruptions for each in found}
    where.setdefault(
      dataset.class_names, f'--input_fn={params.input_data.input_fn}'
    )
    logits = {names: _logits(names, model, where[names]) for names in where}

    def evaluation(name, key, split, class_names, params):
      used = dataclasses.replace(model, params=params)
      data = f'{split.fingerprint}; {used.preprocessing}'
      return Evaluation(name, key, split, logits[class_names], params, data)

    self._all = [
      evaluation(
        CLEAN, None, dataset.evaluation, dataset.class_names, model.params
      ),
      *(
        evaluation(
          each.name,
          (each.corruption, each.severity),
          each.source.evaluation,
          each.source.class_names,
          params_of,
        )
        for each in found
      ),
    ]
    self._name = corruptions.called(options.corruptions)
    self._record = Record(
      model_dir,
      f'{self._name}-{model.step}',
      {
        'corruptions': options.corruptions,
        'checkpoint': model.checkpoint,
        'fingerprint': model.fingerprint,
        'global_step': model.step,
        'dataset': params.input_data.input_fn,
        'split': dataset.evaluation.name,
        'num_classes': len(found[0].source.class_names),
      },
      self._all,
    )
    self._pending = [
      each for each in self._all if each.name not in self._record.evaluations
    ]
    if params.input_data.skip_bad_images:
      self._pending = [_without_bad(each) for each in self._pending]

  def announce(self) -> None:
    keys = [each.key for each in self._all if each.key]
    num_corruptions = len({corruption for corruption, _ in keys})
    logging.info(
      'robustness of %s to %s: %d corruptions x %d severities, and clean '
      'images: %d evaluations of %d images in all, of which %d were done '
      'before',
      self._model.checkpoint,
      self._name,
      num_corruptions,
      len(keys) // num_corruptions,
      len(self._all),
      sum(each.split.num_examples for each in self._all),
      len(self._all) - len(self._pending),
    )
    if self._all[-1].params != self._model.params:
      logging.info(
        'the corrupted images have %dx%d pixels already and are used as they '
        'are',
        self._model.image_size,
        self._model.image_size,
      )

  def run(self) -> None:
    """Evaluates what is not recorded; prints the table.

    Raises:
      checkpoints.NotFiniteError: If a logit is NaN or infinite.
      faults.BadExampleError: If an image cannot be decoded.
    """
    total = sum(each.split.num_examples for each in self._pending)
    done, begun = 0, time.monotonic()
    for evaluation, measured in self._measure():
      self._record.add(evaluation, measured)
      done += measured['n']
      seconds = (time.monotonic() - begun) / done * (total - done)
      logging.info(
        '%d of %d: %s: error %.2f%%, ECE %.4f; %s left',
        len(self._record.evaluations),
        len(self._all),
        evaluation.name,
        100 * measured['error'],
        measured['ece'],
        timestamps.duration(seconds),
      )
    found = self._record.evaluations
    measured = {each.key: found[each.name] for each in self._all if each.key}
    summary = robustness.summarize(measured, found[CLEAN], not self._lacks)
    summary['mce_note'] = self._note()
    self._record.write(summary)
    self._record.write_table(robustness_table.as_csv(measured, found[CLEAN]))
    print(robustness_table.text(measured, summary))
    print(f'Robustness: {self._record.path} and .csv')

  def _measure(self):
    """Yields the pending evaluations and what was measured."""
    model = self._model
    dtype = self._devices.encoder_dtype(
      model.params.input_data.preprocessing.allow_mixed_precision
    )
    for params, group in itertools.groupby(
      self._pending, lambda each: each.params
    ):
      group = tuple(group)
      batches = outputs.compute(
        self._options,
        self._devices,
        dataclasses.replace(model, params=params),
        self._dataset,
        folder.joined([each.split for each in group]),
        dtype,
      )
      yield from measure_each(group, batches, model.checkpoint)

  def _note(self):
    """Returns one line on mCE."""
    if self._lacks:
      return (
        f'no mCE, which is defined for ImageNet-C; this set lacks {self._lacks}'
      )
    if corruptions.is_of_tfds(self._options.corruptions):
      return (
        'TFDS has computed these images anew, so that mCE is slightly off: it '
        'is defined for the published JPEGs'
      )
    return ''


def measure_each(
  evaluations: Sequence[Evaluation],
  batches: Iterator[Mapping[str, np.ndarray]],
  checkpoint: str,
) -> Iterator[tuple[Evaluation, dict[str, float]]]:
  """Yields each evaluation with its measurement once its last image is there.

  Args:
    evaluations: The evaluations.
    batches: The outputs for their images, one set after the other: 'logits',
      and as 'labels' those of the set; a batch may hold images of several sets.
    checkpoint: The checkpoint, for errors.

  Raises:
    checkpoints.NotFiniteError: If a logit is NaN or infinite.
    faults.BadExampleError: If an image cannot be decoded.
  """
  groups = _grouped(batches, [each.split.num_examples for each in evaluations])
  for number, evaluation in enumerate(evaluations):
    split = evaluation.split
    with faults.naming(*(each.split for each in evaluations[number:])):
      logits, labels = next(groups)
    if not np.isfinite(logits).all():
      ids = [safe_text.printable(split.where(i)) for i in range(len(labels))]
      checkpoints.require_finite_outputs({'logits': logits}, checkpoint, ids)
    yield evaluation, robustness.measure(logits, evaluation.logits[labels])


def _grouped(batches, sizes):
  """Yields (logits, labels) of consecutive groups of examples."""
  rest = np.empty([0, 0]), np.empty([0])
  for size in sizes:
    parts, missing = [], size
    while missing:
      if not len(rest[1]):
        batch = next(batches)
        rest = batch['logits'], batch['labels']
      parts.append([values[:missing] for values in rest])
      rest = tuple(values[missing:] for values in rest)
      missing -= len(parts[-1][1])
    yield tuple(map(np.concatenate, zip(*parts)))


def _check_classifier(model_dir, checkpoint):
  """Checks that training has reached the classifier, as far as is known.

  Raises:
    ValueError: If it has not.
  """
  known = facts.find(model_dir, checkpoint)
  plan = known and known.plan()
  if not plan or known.params.warm_start.warm_start_classifier:
    return
  step = checkpoint_files.step_of(checkpoint)
  for stage in plan.stages:
    reaches = reach.of(known.params.architecture, stage.params)
    if stage.start_step < min(step, stage.stop_step) and any(
      loss.part == 'classification_head' for loss in reaches
    ):
      return
  raise ValueError(
    f'the classifier of {checkpoint} has not been trained: until step {step} '
    'no loss has reached it, so its error would be that of chance. Train on, '
    'or name a later --checkpoint.'
  )


def _logits(class_names, model, where):
  """Returns the logit of each label of a set; classes are known by name.

  Raises:
    ValueError: If the model does not know a class.
  """
  position = {name: label for label, name in enumerate(model.class_names)}
  unknown = [name for name in class_names if name not in position]
  if not unknown:
    if len(class_names) < model.num_classes:
      logging.warning(
        'WARNING: %s has %d of the %d classes of the model',
        where,
        len(class_names),
        model.num_classes,
      )
    return np.array([position[name] for name in class_names])
  if class_names == tuple(map(str, range(model.num_classes))):
    logging.info(
      '%s numbers its %d classes without naming them; they are taken to be '
      'those of the model, in its order',
      where,
      model.num_classes,
    )
    return np.arange(model.num_classes)
  raise ValueError(
    f'{where} has the class {safe_text.printable(unknown[0])}, which the model '
    f'does not know; it knows {splits.listed(model.class_names)} '
    f'({model.num_classes} classes). {len(unknown)} of the {len(class_names)} '
    'classes are like this; give folders the names of labels.txt.'
  )


def params_for(
  params: hparams.HParams,
  dataset: datasets.Dataset,
  corrupted: corruptions.Corrupted,
) -> hparams.HParams:
  """Returns hyper-parameters with the preprocessing of corrupted images.

  It is that of clean images, unless only the corrupted ones have the size that
  the model takes, as in ImageNet-C at 224 pixels: these are used as they are.

  Raises:
    ValueError: If images are to be used as they are, and have another size.
  """
  options = params.input_data.preprocessing
  sides = {(options.image_size, options.image_size)}
  source = corrupted.source
  sizes = _sizes(source.image_shape, source.evaluation)
  is_identity = options.eval_crop_method == enums.EvalCropMethod.IDENTITY
  if sizes != sides or (is_identity and source.image_shape):
    crops.check_image_size(options, source.image_shape, lambda: [*sizes])
    return params
  if not is_identity and sides == _sizes(
    dataset.image_shape, dataset.evaluation
  ):
    return params
  # This changes nothing of images of that size.
  return pipeline_probes.with_preprocessing(
    params,
    eval_crop_method=enums.EvalCropMethod.CROP_THEN_RESIZE,
    crop_padding=0,
  )


def _sizes(image_shape, split):
  """Returns {(height, width)} of some images; empty if one cannot be read."""
  if image_shape:
    return {tuple(image_shape[:2])}
  try:
    return {*pipeline_probes.image_sizes(split)}
  except tf.errors.OpError:  # The evaluation names the bad image.
    return set()


def _without_bad(evaluation):
  split = faults.without(evaluation.split, faults.find(evaluation.split))
  return evaluation._replace(split=split)
