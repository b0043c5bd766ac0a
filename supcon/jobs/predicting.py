"""Classifies images with a model: --mode=predict."""

import dataclasses
import os

from absl import logging
import numpy as np
import tensorflow as tf

from supcon.compute import devices as devices_lib
from supcon.config import enums
from supcon.config import hparams
from supcon.config import run_options
from supcon.config import safe_text
from supcon.data.sources import datasets
from supcon.data.sources import faults
from supcon.data.sources import unlabelled
from supcon.data.views import image_ops
from supcon.jobs import outputs
from supcon.jobs import trained_run
from supcon.runs import model_dirs
from supcon.serving import embeddings
from supcon.serving import neighbours

tf1 = tf.compat.v1


class Predict:
  """--mode=predict: classifies images."""

  def __init__(self, options: run_options.RunOptions, params: hparams.HParams):
    # A TPU is not worth starting for a few images.
    self._options = dataclasses.replace(options, use_tpu=False)
    self._devices = devices_lib.find(self._options)
    self._model = trained_run.find_model(options, params)
    trained_run.check_fits(self._devices, self._model)
    self._index = None
    if options.neighbours:
      self._index = neighbours.read_index(options.index)
      self._index.check(self._model.embedding_size)
      self._index.check_origin(
        embeddings.Origin(self._model.fingerprint, self._model.preprocessing),
        self._model.checkpoint,
      )
    found = unlabelled.find(options.images)
    bad = faults.find(found)
    self._bad = [faults.describe(found, position) for position in bad]
    self._split = faults.without(found, bad)
    _check_sizes(self._split, self._model)

  def announce(self) -> None:
    logging.info(
      'predicting %d images with %s',
      self._split.num_examples,
      self._model.checkpoint,
    )

  def run(self) -> None:
    """Prints a line for each image and each of its neighbours.

    Raises:
      checkpoints.NotFiniteError: If an output is NaN or infinite.
    """
    results = []
    for batch in outputs.compute(
      self._options,
      self._devices,
      self._model,
      datasets.of_split(self._split),
      self._split,
      tf.float32,
    ):
      for result in self._describe(batch, len(results)):
        _print(result)
        results.append(result)
    for line in self._bad:
      print(line)
    if self._options.output:
      directory, name = os.path.split(self._options.output)
      model_dirs.ModelDir(directory).write_json(
        name, {'images': results, 'bad_images': self._bad}
      )

  def _describe(self, batch, first):
    """Yields the result for each image of a batch."""
    count = len(batch['labels'])
    ids = [self._split.example_id(first + row) for row in range(count)]
    trained_run.check_outputs(batch, self._model, ids)
    probabilities = _softmax(batch['logits'])
    found = [[]] * len(probabilities)
    if self._index:
      found = self._neighbours(batch['embeddings'])
    for row, values in enumerate(probabilities):
      best = int(np.argmax(values))
      yield {
        'image': ids[row],
        'class': self._model.class_names[best],
        'label': best,
        'probability': float(values[best]),
        'neighbours': found[row],
      }

  def _neighbours(self, queries):
    positions, cosines = self._index.nearest(queries, self._options.neighbours)
    return [
      [
        {
          'id': self._index.id_of(position),
          'class': self._index.class_of(position),
          'cosine': float(cosine),
        }
        for position, cosine in zip(*row)
      ]
      for row in zip(positions, cosines)
    ]


def _print(result):
  name, label = map(safe_text.printable, (result['image'], result['class']))
  print(f'{name}\t{label}\t{result["probability"]:.4f}')
  for number, neighbour in enumerate(result['neighbours'], start=1):
    where, label = map(
      safe_text.printable, (neighbour['id'], neighbour['class'])
    )
    print(f'  neighbour {number}\t{where}\t{label}\t{neighbour["cosine"]:.4f}')


def _softmax(logits):
  """Returns float64 probabilities [N, C]."""
  shifted = logits.astype(np.float64)
  shifted -= shifted.max(axis=1, keepdims=True)
  exponentials = np.exp(shifted)
  return exponentials / exponentials.sum(axis=1, keepdims=True)


def _check_sizes(split, model):
  """Checks the sizes of images that are used without resizing.

  Raises:
    ValueError: If a size differs from the model's.
  """
  options = model.params.input_data.preprocessing
  if options.eval_crop_method != enums.EvalCropMethod.IDENTITY:
    return
  side = options.image_size

  def shape(encoded, _):
    return tf.shape(image_ops.decode(encoded))[:2]

  with tf.Graph().as_default(), tf1.Session() as session:
    shapes = split.records().map(shape, num_parallel_calls=tf.data.AUTOTUNE)
    following = tf1.data.make_one_shot_iterator(shapes).get_next()
    for position in range(split.num_examples):
      height, width = session.run(following)
      if (height, width) != (side, side):
        raise ValueError(
          f'{safe_text.printable(split.where(position))} has {height}x{width} '
          f'pixels, but this model takes {side}x{side} as they are '
          '(--eval_crop_method=IDENTITY); resize it, or add '
          '--eval_crop_method=RESIZE_THEN_CROP.'
        )
