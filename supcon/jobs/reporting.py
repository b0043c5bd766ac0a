"""Makes a report of a trained model: --mode=report, and after a training.

The outputs for all images are computed in one pass, and kept in temporary files
instead of in memory.
"""

from collections.abc import Mapping
import contextlib
import dataclasses
import os
import tempfile
from typing import Any

from absl import logging
import tensorflow as tf

from supcon.compute import devices as devices_lib
from supcon.compute import installation
from supcon.config import hparams
from supcon.config import run_options
from supcon.config import safe_text
from supcon.data.sources import faults
from supcon.data.sources import splits
from supcon.evaluation import model_outputs
from supcon.evaluation import registry
from supcon.jobs import evaluation
from supcon.jobs import outputs
from supcon.jobs import report_subject
from supcon.jobs import representation
from supcon.jobs import run_images
from supcon.jobs import run_state
from supcon.jobs import trained_run
from supcon.reports import report_facts
from supcon.reports import report_page
from supcon.reports import thumbnails
from supcon.runs import model_dirs
from supcon.runs import retries
from supcon.runs import signals
from supcon.runs import timestamps
from supcon.training import facts

_REPORT = 'report'
PAGE = os.path.join(_REPORT, 'report.html')
NUMBERS = os.path.join(_REPORT, 'report.json')

# Height and width of a picture in pixels.
_SIDE = 72
# How evaluations are called that a model card takes over from a report.
_OF_CARD = ('calibration/', 'classes/', 'knn/', 'few_shot/', 'geometry/')


class Report:
  """--mode=report: writes a page about the newest checkpoint of --model_dir."""

  def __init__(self, options: run_options.RunOptions, params: hparams.HParams):
    installation.load_plotting()
    devices = devices_lib.find(options)
    devices_lib.check_batches(devices, options, params)
    model = trained_run.find_model(options, params)
    trained_run.check_fits(devices, model)
    dataset = run_images.load_dataset(options, params)
    if dataset.num_classes != model.num_classes:
      raise ValueError(
        f'--input_fn={params.input_data.input_fn} has {dataset.num_classes} '
        f'classes, but the model {model.num_classes}; name the data that it '
        'was trained on.'
      )
    if params.input_data.skip_bad_images:
      good = {
        part: faults.without(split, faults.find(split))
        for part in ('train', 'evaluation')
        for split in [getattr(dataset, part)]
      }
      dataset = dataclasses.replace(dataset, **good)
    model_dir = model_dirs.ModelDir(
      options.model_dir, retries.Retries(sleep=signals.sleep)
    )
    self._subject = report_subject.Subject(
      options,
      devices,
      model,
      dataset,
      model_dir,
      facts.find(model_dir, model.checkpoint),
      devices.encoder_dtype(
        model.params.input_data.preprocessing.allow_mixed_precision
      ),
      report_subject.read_records(model_dir, model.fingerprint),
    )

  def announce(self) -> None:
    logging.info('making a report of %s', self._subject.model.checkpoint)

  def run(self) -> None:
    """Writes the report and prints its path.

    Raises:
      checkpoints.NotFiniteError: If an output is NaN or infinite.
      faults.BadExampleError: If an image cannot be decoded.
    """
    make(self._subject)
    print(f'Report: {self._subject.model_dir.join(PAGE)}')


def after_training(run: run_state.Run, result: Mapping[str, Any]) -> str | None:
  """Makes the report that ends a training, and adds its metrics to the export.

  Whatever goes wrong is only worth a warning: the run is complete.

  Args:
    run: The run.
    result: The evaluation of its last checkpoint, as in result.json.

  Returns:
    The path of the page; None if there is none.
  """
  if not run.options.report_examples:
    return None
  try:
    installation.load_plotting()
    run = run.as_trained(result['checkpoint'])
    model = run.trained_model(run.checkpoint)
    metrics = make(
      report_subject.Subject(
        run.options,
        run.devices,
        model,
        run.dataset,
        run.model_dir,
        run.known,
        run.dtype,
        report_subject.read_records(run.model_dir, model.fingerprint),
      )
    )
    evaluation.describe_export(run, result, _for_card(metrics))
    return run.model_dir.join(PAGE)
  except Exception as error:  # pylint: disable=broad-except
    signals.check()
    logging.debug('Failed here:', exc_info=True)
    logging.warning(
      'WARNING: there is no report: %s', safe_text.one_line(error)
    )
    return None


def make(subject: report_subject.Subject) -> dict[str, Any]:
  """Writes report/ in model_dir.

  Returns:
    The metrics, see supcon/evaluation/registry.py.

  Raises:
    ValueError: If a file of the run is malformed.
    checkpoints.NotFiniteError: If an output is NaN or infinite.
    faults.BadExampleError: If an image cannot be decoded.
    OSError, tf.errors.OpError: If a file cannot be read or written.
  """
  dataset, limit = subject.dataset, subject.options.report_examples
  parts = {
    'index': representation.subset(dataset.train, limit),
    'evaluation': representation.subset(dataset.evaluation, limit),
  }
  if subject.has_classifier and (held_out := subject.held_out()):
    parts['held_out'] = held_out
  # Late: Matplotlib may be missing, and no other job needs it.
  from supcon.reports import board
  from supcon.reports import report_drawings

  model_dir = subject.model_dir
  with tempfile.TemporaryDirectory(prefix='supcon_report_') as directory:
    found = _outputs(subject, parts, directory)
    logging.info('measuring')
    measured = report_facts.measure(
      **found, has_classifier=subject.has_classifier
    )
    logging.info('drawing')
    report = {
      'made': timestamps.now(),
      'notes': list(report_subject.notes(subject, parts)),
      'run': report_subject.run(subject, parts),
      'curves': subject.records.curves,
      'scaling': report_subject.scaling(subject, parts, measured['metrics']),
      'robustness': subject.records.robustness,
      'files': report_subject.files(subject),
      **measured,
    }
    page = report_page.make(
      report,
      report_drawings.draw(report),
      report_drawings.pictures(
        report,
        lambda part, positions: thumbnails.read(parts[part], positions, _SIDE),
      ),
    )
    tf.io.gfile.makedirs(model_dir.join(_REPORT))
    model_dir.write_json(NUMBERS, report)
    model_dir.write(PAGE, page)
    board.write(
      model_dir.join(_REPORT),
      report,
      found['evaluation'],
      lambda *what: thumbnails.read(parts['evaluation'], *what),
    )
  return report['metrics']


def measured(
  model_dir: model_dirs.ModelDir, fingerprint: str
) -> dict[str, float]:
  """Returns the metrics of a report that a model card has as well.

  Args:
    model_dir: The directory of a run.
    fingerprint: That of the checkpoint that the report must be about.

  Returns:
    {'EVALUATION/NAME': value}; empty without such a report.
  """
  # A damaged report must not keep anybody from exporting the model.
  with contextlib.suppress(ValueError, LookupError, TypeError):
    report = model_dir.read_json(NUMBERS)
    if report and report['run']['fingerprint'] == fingerprint:
      return _for_card(report['metrics'])
  return {}


def _for_card(metrics):
  return {
    name: value
    for name, value in registry.scalars(metrics).items()
    if name.startswith(_OF_CARD)
  }


# --- Outputs ------------------------------------------------------------------


def _outputs(subject, parts, directory):
  """Returns {part: model_outputs.Outputs} of all parts, from one pass.

  Args:
    subject: The Subject.
    parts: {part: splits.Split}.
    directory: A local directory; the arrays are files in it.
  """
  together = splits.Joined(tuple(parts.values()))
  logging.info(
    'computing the outputs for %d images: %s',
    together.num_examples,
    ', '.join(
      f'{split.num_examples} of {split.name}' for split in parts.values()
    ),
  )
  with contextlib.ExitStack() as stack:
    for split in parts.values():
      stack.enter_context(faults.naming(split))
    arrays = outputs.to_files(
      _checked(
        outputs.compute(
          subject.options,
          subject.devices,
          subject.model,
          subject.dataset,
          together,
          subject.dtype,
        ),
        subject.model,
        together,
      ),
      directory,
    )
  found, start = {'held_out': None}, 0
  for part, split in parts.items():
    stop = start + split.num_examples
    found[part] = model_outputs.Outputs(
      **{name: array[start:stop] for name, array in arrays.items()},
      class_names=subject.model.class_names,
      ids=[split.example_id(n) for n in range(split.num_examples)],
    )
    start = stop
  return found


def _checked(batches, model, together):
  position = 0
  for batch in batches:
    end = position + len(batch['labels'])
    ids = [together.example_id(n) for n in range(position, end)]
    trained_run.check_outputs(batch, model, ids)
    position = end
    yield batch
