"""Computes a model's outputs for every image of a split."""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
import contextlib
import dataclasses
import os
import time

from absl import logging
import numpy as np
import tensorflow as tf

from supcon.compute import devices as devices_lib
from supcon.config import run_options
from supcon.data import inputs
from supcon.data.sources import datasets
from supcon.data.sources import splits
from supcon.serving import predictions
from supcon.serving import trained_models
from supcon.training import estimators

_PROGRESS_SECONDS = 5.0


def compute(
  options: run_options.RunOptions,
  devices: devices_lib.Devices,
  model: trained_models.TrainedModel,
  dataset: datasets.Dataset,
  split: splits.Split,
  dtype: tf.DType,
  start: Callable | None = None,
) -> Iterator[dict[str, np.ndarray]]:
  """Computes embeddings, projections and logits, on one device or a TPU.

  Args:
    options: Checked RunOptions.
    devices: The devices of the job.
    model: The model, whose hyper-parameters determine how images are
      preprocessed (as in an evaluation).
    dataset: The data set of the split.
    split: The examples.
    dtype: Type of the encoder's activations.
    start: See predictions.PredictFn; if given, the model's checkpoint is not
      used.

  Yields:
    Batches in the order of the positions: the outputs of
    `trained_models.named`, float32, and 'labels', int32 [n].

  Raises:
    tf.errors.OpError: If an image cannot be decoded.
  """
  params = model.params.replace('input_data.preprocessing.num_views', 1)
  # Whiten by the model's statistics, whichever data set the images are from.
  info = dataclasses.replace(dataset.info, mean=model.mean, std=model.std)
  dataset = dataclasses.replace(dataset, evaluation=split, info=info)
  estimator = estimators.build(
    options,
    devices,
    predictions.PredictFn(
      dataclasses.replace(model, params=params), dtype, start
    ),
    train_batch_size=params.batch_size,
    eval_batch_size=params.eval.batch_size,
    seed=params.seed,
  )
  batches = estimator.predict(
    inputs.predict_input_fn(dataset, params, devices.image_dtype(dtype)),
    checkpoint_path=None if start else model.checkpoint,
    yield_single_examples=False,
  )
  done, begun = 0, time.monotonic()
  logged = begun
  for batch in batches:
    is_example = batch.pop('weights') > 0
    batch = {name: values[is_example] for name, values in batch.items()}
    done += len(batch['labels'])
    now = time.monotonic()
    if now - logged > _PROGRESS_SECONDS:
      logged = now
      rate = done / (now - begun)
      logging.info(
        '%d of %d images (%.0f images/s, %.0f s left)',
        done,
        split.num_examples,
        rate,
        (split.num_examples - done) / rate,
      )
    yield batch


def to_files(
  batches: Iterable[Mapping[str, np.ndarray]], directory: str
) -> dict[str, np.ndarray]:
  """Keeps outputs in files, for splits whose outputs do not fit into memory.

  Args:
    batches: The batches of `compute`.
    directory: A local directory, which must outlive the arrays.

  Returns:
    Read-only memmaps: 'labels', 'logits' and 'embeddings', by position.

  Raises:
    OSError: If a file cannot be written.
  """
  count, kinds = 0, {}
  with contextlib.ExitStack() as stack:
    files = {
      name: stack.enter_context(open(os.path.join(directory, name), 'wb'))
      for name in ('labels', 'logits', 'embeddings')
    }
    for batch in batches:
      count += len(batch['labels'])
      for name, file in files.items():
        kinds[name] = batch[name].dtype, batch[name].shape[1:]
        batch[name].tofile(file)
  return {
    name: np.memmap(files[name].name, dtype, 'r', shape=(count, *shape))
    for name, (dtype, shape) in kinds.items()
  }
