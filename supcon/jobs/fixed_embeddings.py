"""Trains a classifier on embeddings that are computed once.

If neither the encoder nor its inputs change from step to step, a step need not
compute the embeddings again. Linear evaluation then costs only as much as
training the classifier.
"""

import functools
import os
import tempfile

from absl import logging
import numpy as np
import tensorflow as tf

from supcon.data import inputs
from supcon.data.sources import faults
from supcon.jobs import outputs
from supcon.jobs import run_state
from supcon.models import contrastive
from supcon.training import warm_start

# Limit on the embeddings, which are held in memory.
MAX_BYTES = 4 * 2**30


def is_worth_it(run: run_state.Run) -> bool:
  """Whether training would compute the same embeddings in every epoch."""
  return (
    run.devices.strategy is None
    and not run.options.use_tpu
    and run.params.input_data.preprocessing.train_on_eval_views
    and not run.trains_batch_norm
    and all(
      _keeps_encoder(stage.params, run.params.architecture)
      for stage in _ahead(run)
    )
    and _num_bytes(run) <= MAX_BYTES
  )


class Embeddings:
  """The embeddings of all training examples, in a temporary file."""

  def __init__(self, run: run_state.Run):
    """Computes the embeddings.

    Raises:
      faults.BadExampleError: If an image cannot be decoded.
    """
    split = run.dataset.train
    logging.info(
      'neither the encoder nor its images change: computing the embeddings of '
      '%d training images once',
      split.num_examples,
    )
    # A run that has just started has no checkpoint of its own.
    model = run.trained_model(run.checkpoint or run.reference)
    start = functools.partial(_start, run) if run.reference else None
    self._run = run
    self._directory = tempfile.TemporaryDirectory(prefix='supcon_embeddings_')
    self._path = os.path.join(self._directory.name, 'embeddings')
    labels = []
    with faults.naming(split), open(self._path, 'wb') as file:
      for batch in outputs.compute(
        run.options, run.devices, model, run.dataset, split, run.dtype, start
      ):
        embeddings = batch['unnormalized_embeddings']
        embeddings.astype('<f4').tofile(file)
        labels.append(batch['labels'])
    self._size = embeddings.shape[1]
    self._labels = np.concatenate(labels)

  def input_fn(self, start_step: int) -> inputs.InputFn:
    """Returns the input function for training from `start_step` on."""
    return inputs.embeddings_input_fn(
      self._path,
      self._size,
      self._labels,
      self._run.dataset,
      self._run.params,
      start_step,
    )


def _start(run, model):
  """Initializes the encoder from the reference."""
  tf.compat.v1.train.init_from_checkpoint(
    run.reference,
    warm_start.assignment_map(model, run.params.warm_start, run.reference),
  )


def _ahead(run):
  # A run that starts in the middle must do the same as one that starts at the
  # beginning.
  step = 0 if run.options.deterministic else run.step
  return [stage for stage in run.plan.stages if stage.stop_step > step]


def _keeps_encoder(stage, architecture):
  """Whether a stage leaves the encoder unchanged.

  Weights with zero gradient and no weight decay do not move, nor do batch norm
  statistics that training does not update.
  """
  return (
    stage.contrastive_loss_weight == 0
    and architecture.stop_gradient_before_classification_head
    and not (stage.weight_decay and stage.use_encoder_weight_decay)
  )


def _num_bytes(run):
  with tf.Graph().as_default():
    model = contrastive.ContrastiveModel(run.params.architecture, 2)
  return 4 * run.dataset.num_train_examples * model.encoder.embedding_size
