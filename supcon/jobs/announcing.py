"""Logs what a job is about to do."""

import collections

from absl import logging
import tensorflow as tf

from supcon.config import changes
from supcon.config import hparams
from supcon.config import reach
from supcon.config import safe_text
from supcon.data.sources import datasets
from supcon.data.sources import orientation
from supcon.jobs import continuing
from supcon.jobs import run_state
from supcon.runs import model_dirs
from supcon.runs import storage


def announce(run: run_state.Run) -> None:
  """Logs what the run is; an inspection writes hparams.json.

  Raises:
    ValueError: If model_dir cannot be written.
  """
  options, dataset = run.options, run.dataset
  if options.inspects:
    _write_for_inspection(run)
  elif options.mode == 'eval':
    _warn_of_other_classes(run)
  is_ahead = run.step < run.plan.total_steps
  where = ''
  if options.inspects or (options.trains and is_ahead):
    where = f', in full in {run.output.join(model_dirs.HPARAMS)}'
  logging.info('hyper-parameters%s, other than the defaults:', where)
  for line in _lines_of_changes(run.params):
    logging.info('  %s', line)
  logging.info('  --hparams=%s', run.params.serialize())
  training = f'{dataset.num_train_examples} training examples (split '
  training += f'{dataset.train.name}), '
  logging.info(
    '%s: %s%d evaluation examples (split %s), '
    '%d classes; %.1f steps per epoch, %d steps in all',
    run.params.input_data.input_fn,
    '' if options.mode == 'eval' else training,
    dataset.num_eval_examples,
    dataset.evaluation.name,
    dataset.num_classes,
    run.plan.steps_per_epoch,
    run.plan.total_steps,
  )
  if options.mode == 'eval' and run.params.memory.memory_size:
    logging.info(
      'evaluations have no memory: in their contrastive loss, --memory_size '
      'does not count'
    )
  for line in run.origins:
    logging.info('  %s', line)
  odd = [*run.params.input_data.preprocessing.oddities()]
  if options.mode != 'eval':
    odd += reach.oddities(run.params)
  for line in (*run.warnings, *odd):
    logging.warning('WARNING: %s', line)
  if options.trains:
    logging.info('%s', run.devices.describe(run.params.batch_size))
  if precision := run.devices.describe_dtype(
    run.params.input_data.preprocessing.allow_mixed_precision
  ):
    logging.info('%s', precision)
  if run.footprint:
    logging.info('%s', run.footprint)
  _warn_of_flips(run)


def _warn_of_flips(run):
  """Warns if flips appear to change the labels."""
  preprocessing, input_fn = (
    run.params.input_data.preprocessing,
    run.params.input_data.input_fn,
  )
  is_new = run.options.trains and not run.checkpoint
  if not (is_new or run.options.inspects) or not run.devices.is_chief:
    return
  if (
    datasets.is_unvetted(input_fn)
    and run.dataset.info.flips
    and preprocessing.random_flip
    and not preprocessing.train_on_eval_views
  ):
    found = orientation.of_split(run.dataset.train)
    if found.matters:
      logging.warning('WARNING: %s', found.advice())


def _write_for_inspection(run):
  before = run.model_dir.read_json(
    model_dirs.HPARAMS,
    lambda found: hparams.parse(found['compact']),
    'hyper-parameters',
  )
  if before:
    changes.warn(before, run.params)
  _warn_of_other_classes(run)
  files = continuing.files(run, is_new=True)
  files[model_dirs.HPARAMS] = storage.to_json(run.announcement)
  try:
    tf.io.gfile.makedirs(run.output.path)
    for name, text in files.items():
      if text is not None:
        run.output.write(name, text)
  except (OSError, tf.errors.OpError) as error:
    reason = str(error).splitlines()[0]
    raise ValueError(
      f'--model_dir={run.options.model_dir} cannot be written '
      f'({reason}); name a directory that can.'
    ) from error


def _warn_of_other_classes(run):
  """Warns if the meaning of the labels has changed."""
  before = run.model_dir.class_names() or ()
  for old, new in zip(before, run.dataset.class_names):
    if old != new:
      logging.warning(
        'WARNING: the class that was %s when model_dir was begun is %s now',
        safe_text.printable(old),
        safe_text.printable(new),
      )
      return


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
