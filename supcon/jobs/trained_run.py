"""Finds the model that a run has trained, for jobs that use it."""

import dataclasses

from absl import logging
import tensorflow as tf

from supcon.config import changes
from supcon.config import hparams
from supcon.config import run_options
from supcon.config import safe_text
from supcon.jobs import run_images
from supcon.jobs import run_state
from supcon.models import contrastive
from supcon.runs import model_dirs
from supcon.serving import trained_models
from supcon.training import checkpoints
from supcon.training import facts
from supcon.training import footprint


def find_model(
  options: run_options.RunOptions, params: hparams.HParams
) -> trained_models.TrainedModel:
  """Returns the newest checkpoint, or --checkpoint, with the facts about it.

  The data set is opened only if no file records the names of the classes.

  Raises:
    ValueError: If there is no checkpoint, or if it belongs to another model or
      contains NaN.
  """
  model_dir = model_dirs.ModelDir(options.model_dir)
  checkpoint = run_state.find_checkpoint(model_dir, options.checkpoint)
  if not checkpoint:
    raise ValueError(
      f'--model_dir={options.model_dir} holds no checkpoint; name a directory '
      'in which a model was trained.'
    )
  known = facts.find(model_dir, checkpoint)
  mean, std = facts.colors(model_dir, known.params if known else params)
  model = trained_models.TrainedModel(
    params=params,
    checkpoint=checkpoint,
    class_names=_class_names(model_dir, checkpoint, options, params),
    mean=mean,
    std=std,
  )
  with tf.Graph().as_default():
    network = model.build()
    checkpoints.require_same(network.variables, [network.name], checkpoint)
    checkpoints.require_finite(network.variables, checkpoint)
  if known:
    changes.warn_of_use(known.params, params)
    model = dataclasses.replace(
      model, params=changes.as_used(known.params, params, with_data=False)
    )
  return model


def _class_names(model_dir, checkpoint, options, params):
  names = model_dir.class_names()
  if names:
    return names
  # A checkpoint of the published code, which does not record the names.
  count = _num_classes(params, checkpoint)
  try:
    names = run_images.load_dataset(options, params).class_names
    if len(names) == count:
      return names
  except ValueError as error:
    logging.info('%s', error)
  logging.warning(
    'WARNING: %s does not name the %d classes, so they are numbered',
    model_dir.join(model_dirs.LABELS),
    count,
  )
  return tuple(map(str, range(count)))


def _num_classes(params, checkpoint):
  with tf.Graph().as_default():
    network = contrastive.ContrastiveModel(params.architecture, num_classes=1)
    (kernel,) = network.classification_head.kernels
  shapes = tf.train.load_checkpoint(checkpoint).get_variable_to_shape_map()
  if kernel.op.name not in shapes:
    raise ValueError(
      f'{checkpoint} was not written by this program: it has no '
      f'{kernel.op.name}; name another --model_dir.'
    )
  return shapes[kernel.op.name][-1]


def check_fits(devices, model):
  """Checks that the devices have enough memory to run the model on a batch.

  Raises:
    ValueError: If they do not.
  """
  if room := footprint.room(devices):
    step = footprint.evaluation_step(model.params, model.num_classes, 1)
    footprint.check([step], room)


def check_outputs(batch, model, ids):
  checkpoints.require_finite_outputs(
    {key: batch[key] for key in trained_models.OUTPUTS.values()},
    model.checkpoint,
    [safe_text.printable(name) for name in ids],
  )
