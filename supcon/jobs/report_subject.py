"""What a report is about: a model, its run and its data, described in JSON."""

from collections.abc import Iterator
from collections.abc import Mapping
import csv
import dataclasses
import functools
import os
import platform
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

import supcon
from supcon.compute import devices as devices_lib
from supcon.config import hparams
from supcon.config import run_options
from supcon.config import safe_text
from supcon.data.sources import datasets
from supcon.data.sources import faults
from supcon.data.sources import splits
from supcon.jobs import representation
from supcon.jobs import run_images
from supcon.reports import report_facts
from supcon.runs import model_dirs
from supcon.runs import status
from supcon.serving import exports
from supcon.serving import trained_models
from supcon.training import facts
from supcon.training import objectives
from supcon.training import stages

# More images would hardly change the temperature.
_MAX_HELD_OUT = 5000


class Records(NamedTuple):
  """What a run has recorded of itself.

  Attributes:
    curves: {'train' and 'eval': what report_facts.curves returns}.
    robustness: The files of --mode=robustness on the checkpoint.
  """

  curves: dict[str, dict[str, list[tuple[float, float]]]]
  robustness: list[dict[str, Any]]


def read_records(model_dir: model_dirs.ModelDir, fingerprint: str) -> Records:
  """Reads what a run has recorded.

  Args:
    model_dir: The directory of the run.
    fingerprint: That of the checkpoint to be reported on.

  Raises:
    ValueError: If a file is malformed.
  """
  curves = {}
  for name, path in (
    ('train', model_dirs.METRICS),
    ('eval', f'eval/{model_dirs.METRICS}'),
  ):
    try:
      curves[name] = report_facts.curves(model_dir.read(path))
    except (ValueError, csv.Error) as error:
      raise ValueError(
        f'{model_dir.join(path)} is no table of metrics '
        f'({safe_text.one_line(error)}); restore it, or delete it.'
      ) from error
  return Records(curves, list(_robustness(model_dir, fingerprint)))


def _robustness(model_dir, fingerprint):
  def parse(found):
    if found['fingerprint'] != fingerprint:
      return None
    report_facts.errors_by_severity(found['evaluations'])  # Raises.
    return found

  if not tf.io.gfile.isdir(model_dir.join(model_dirs.ROBUSTNESS)):
    return
  for name in sorted(
    tf.io.gfile.listdir(model_dir.join(model_dirs.ROBUSTNESS))
  ):
    if name.endswith('.json'):
      path = os.path.join(model_dirs.ROBUSTNESS, name)
      found = model_dir.read_json(path, parse, 'robustness', 'delete it')
      if found:
        yield found


@dataclasses.dataclass(frozen=True)
class Subject:
  """What a report is about.

  Attributes:
    options: Checked RunOptions.
    devices: The devices to compute on.
    model: The model.
    dataset: The data set, without bad images if they are skipped.
    model_dir: The directory of the run.
    known: The facts about the checkpoint; None if they are not recorded.
    dtype: Type of the encoder's activations.
    records: What the run has recorded.
  """

  options: run_options.RunOptions
  devices: devices_lib.Devices
  model: trained_models.TrainedModel
  dataset: datasets.Dataset
  model_dir: model_dirs.ModelDir
  known: facts.Facts | None
  dtype: tf.DType
  records: Records

  @functools.cached_property
  def plan(self) -> stages.Plan | None:
    return self.known.plan() if self.known else None

  @property
  def has_classifier(self) -> bool:
    """Whether the classifier has been trained, as far as is known."""
    if not self.plan or self.known.params.warm_start.warm_start_classifier:
      return True
    return any(
      stage.params.cross_entropy_loss_weight
      and stage.start_step < min(stage.stop_step, self.model.step)
      for stage in self.plan.stages
    )

  def held_out(self) -> splits.Split | None:
    """Returns training examples that no step was trained on; None for none.

    These are the ones that --num_images has left out ever since the run began.
    """
    entries = facts.Record(self.model_dir).entries
    limits = [e.facts.params.input_data.max_samples for e in entries]
    if not self.known or min(limits, default=0) <= 0:
      return None
    if self.known.train_images != self.dataset.train.fingerprint:
      return None  # The flags name other images.
    params = self.known.params.replace('input_data.max_samples', 0)
    whole = run_images.load_dataset(self.options, params).train
    rest = range(max(limits), whole.num_examples)
    if not rest:
      return None
    split = representation.subset(whole.select(rest), _MAX_HELD_OUT)
    if params.input_data.skip_bad_images:
      split = faults.without(split, faults.find(split))
    return split


def notes(subject: Subject, parts: Mapping[str, splits.Split]) -> Iterator[str]:
  """Yields sentences on what limits the report."""
  step = subject.model.step
  state = status.read(subject.model_dir.path)
  if subject.plan and step < subject.plan.total_steps:
    is_training = (
      state
      and state.state == status.TRAINING
      and state.process.is_there() is not False
    )
    yield (
      f'The run is {"still training" if is_training else "not finished"}: this '
      f'is about its newest checkpoint, that of step {step} of '
      f'{subject.plan.total_steps}.'
    )
  if not subject.has_classifier:
    yield (
      'No classifier has been trained yet, so there are no metrics of its '
      'predictions; those of the embeddings say whether the encoder learns.'
    )
  for part, split in (
    ('index', subject.dataset.train),
    ('evaluation', subject.dataset.evaluation),
  ):
    if parts[part].num_examples < split.num_examples:
      yield (
        f'This looks at {parts[part].num_examples:,} of {split.num_examples:,} '
        f'images of {split.name}; --report_examples sets the limit.'
      )


def scaling(
  subject: Subject,
  parts: Mapping[str, splits.Split],
  metrics: Mapping[str, Any],
) -> str:
  """Returns sentences on temperature scaling."""
  if not subject.has_classifier:
    return ''
  if 'held_out' in parts:
    return (
      f'The temperature {metrics["calibration/temperature"]:.4f} was fitted on '
      f'{parts["held_out"].num_examples:,} training images that --num_images '
      'has left out of the training.'
    )
  return (
    'Probabilities are not scaled by a temperature: it would have to be fitted '
    'on training images that were not trained on, and all of them were '
    '(--num_images leaves some out).'
  )


def run(subject: Subject, parts: Mapping[str, splits.Split]) -> dict[str, Any]:
  """Returns what was trained, and on what it is evaluated."""
  model, dataset, known = subject.model, subject.dataset, subject.known
  params = known.params if known else model.params
  input_fn = params.input_data.input_fn
  data_name = (known and known.data_name) or datasets.called(
    input_fn, subject.options.data_dir
  )
  architecture = params.architecture
  encoder = architecture.encoder_architecture.name
  if architecture.encoder_architecture in hparams.DEPTHS:
    encoder += f' {architecture.encoder_depth}'
  plan = subject.plan
  return {
    'title': f'{data_name or input_fn}, {encoder}',
    'model_dir': subject.model_dir.path,
    'checkpoint': model.checkpoint,
    'fingerprint': model.fingerprint,
    'step': model.step,
    'total_steps': plan and plan.total_steps,
    'steps_per_epoch': plan and plan.steps_per_epoch,
    'stages': [
      {
        'number': stage.number,
        'epochs': stage.params.epochs,
        'first_step': stage.start_step,
        'last_step': stage.stop_step,
        'optimizer': stage.params.optimizer.name,
        'losses': ', '.join(
          f'{weight:g} x {objectives.in_words(name)}'
          for name, weight in stage.params.loss_weights.items()
          if weight
        ),
      }
      for stage in (plan.stages if plan else ())
      if stage.start_step < stage.stop_step
    ],
    'data_name': data_name,
    'dataset': input_fn,
    'train_split': dataset.train.name,
    'num_train_examples': dataset.train.num_examples,
    'num_index_examples': parts['index'].num_examples,
    'eval_split': dataset.evaluation.name,
    'num_eval_examples': parts['evaluation'].num_examples,
    'class_names': list(model.class_names),
    'encoder': f'{encoder}, width {architecture.encoder_width:g}',
    'versions': {
      'This code': supcon.__version__,
      'TensorFlow': tf.__version__,
      'NumPy': np.__version__,
      'Python': platform.python_version(),
    },
    'commit': exports.commit(),
    'changed': report_facts.changed(params),
    'compact': params.serialize(),
  }


def files(subject: Subject) -> list[tuple[str, str]]:
  """Returns [(what, path relative to the page)] of files that exist."""
  model_dir = subject.model_dir
  names = [
    ('Checkpoint', f'{os.path.basename(subject.model.checkpoint)}.index'),
    ('Hyper-parameters', model_dirs.HPARAMS),
    ('Last evaluation', model_dirs.RESULT),
  ]
  if tf.io.gfile.isdir(model_dir.join(model_dirs.EXPORTS)):
    exported = tf.io.gfile.listdir(model_dir.join(model_dirs.EXPORTS))
    names += [
      ('Export', os.path.join(model_dirs.EXPORTS, name, exports.CARD))
      for name in sorted(name.rstrip('/') for name in exported)
    ]
  return [('Every number of this page', 'report.json')] + [
    (what, f'../{name}') for what, name in names if model_dir.has(name)
  ]
