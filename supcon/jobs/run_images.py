"""The images of a run: opens the data set, finds bad ones, measures colors."""

from absl import logging
import tensorflow as tf

from supcon.data import whitening
from supcon.data.sources import datasets
from supcon.data.sources import faults
from supcon.data.views import crops
from supcon.jobs import skipped_images
from supcon.reports import pipeline_probes
from supcon.runs import storage_errors
from supcon.training import earlier_runs


def look(run) -> None:
  """Finds bad images and measures colors, if the flags say so.

  Both happen only once per model_dir, because they affect what every step of
  the run sees.

  Raises:
    ValueError: If there are bad images that must not be skipped or too few
      good ones, or if it is too late to measure colors.
  """
  options = run.params.input_data
  if options.skip_bad_images:
    is_eval = run.options.mode == 'eval'
    # An evaluation needs the last one only.
    parts = skipped_images.PARTS[is_eval:]
    run.dataset = run.skipped.find(run.dataset, parts)
    run.make_plan()
  elif datasets.is_unvetted(options.input_fn) and not run.checkpoint:
    for is_train in (True, False):
      faults.check_if_quick(run.dataset.split(is_train))
  if run.checkpoint:
    run.take_colors()
  else:
    _decide_on_colors(run)


def _decide_on_colors(run):
  """Takes mean and deviation from the reference, or measures them."""
  options, reference = run.params.input_data.preprocessing, run.reference
  theirs = None
  if reference and run.params.warm_start.warm_start_encoder:
    theirs = earlier_runs.whitening_of_reference(reference)
  if not options.apply_whitening:
    run.set_colors(None, None)
    if theirs and theirs.mean:
      logging.warning(
        'WARNING: --apply_whitening=False, but %s was trained on whitened '
        'images (%s)',
        reference,
        theirs.describe(),
      )
    return
  if run.options.mode == 'eval':
    return  # The trainer decides and records it.
  if options.measure_whitening:
    run.whitening = _measure(run, options.image_size)
  elif theirs:
    run.origins.append(f'whitening: {theirs.describe()}')
    run.whitening = theirs
  if run.whitening:
    run.set_colors(run.whitening.mean, run.whitening.std)


def _measure(run, image_size):
  try:
    found = whitening.measure(run.dataset.train, image_size)
  except faults.INPUT_ERRORS as error:
    explanation = faults.explain(run.dataset.train)
    raise ValueError(explanation or storage_errors.reason(error)) from error
  logging.info(
    'measured on %d images: mean %s, standard deviation %s',
    found.num_images,
    found.mean,
    found.std,
  )
  return found


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

  crops.check_image_size(input_data.preprocessing, dataset.image_shape, look)
  return dataset
