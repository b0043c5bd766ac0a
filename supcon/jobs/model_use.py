"""Uses an existing model: export, embed, predict."""

import dataclasses
import os

from absl import logging
import numpy as np
import tensorflow as tf

from supcon.compute import devices as devices_lib
from supcon.config import changes
from supcon.config import enums
from supcon.config import hparams
from supcon.config import run_options
from supcon.config import safe_text
from supcon.data.sources import datasets
from supcon.data.sources import faults
from supcon.data.sources import unlabelled
from supcon.data.views import image_ops
from supcon.jobs import evaluation
from supcon.jobs import evaluation_records
from supcon.jobs import outputs
from supcon.jobs import setup
from supcon.models import contrastive
from supcon.runs import model_dirs
from supcon.serving import embeddings
from supcon.serving import exports
from supcon.serving import neighbours
from supcon.serving import trained_models
from supcon.training import checkpoints
from supcon.training import facts
from supcon.training import footprint

tf1 = tf.compat.v1


def find_trained_model(
  options: run_options.RunOptions, params: hparams.HParams
) -> trained_models.TrainedModel:
  """Returns the newest checkpoint of model_dir with the facts about it.

  The data set is opened only if no file records the names of the classes.

  Raises:
    ValueError: If there is no checkpoint, or if it belongs to another model or
      contains NaN.
  """
  model_dir = model_dirs.ModelDir(options.model_dir)
  checkpoint = model_dir.newest()
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
    names = setup.load_dataset(options, params).class_names
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
      f'{checkpoint} is not of this program: it has no {kernel.op.name}; name '
      'another --model_dir.'
    )
  return shapes[kernel.op.name][-1]


def _check_fits(devices, model):
  """Checks that the devices have enough memory to run the model on a batch.

  Raises:
    ValueError: If they do not.
  """
  if room := footprint.room(devices):
    step = footprint.evaluation_step(model.params, model.num_classes, 1)
    footprint.check([step], room)


class Export:
  """--mode=export: exports the newest checkpoint."""

  def __init__(self, options: run_options.RunOptions, params: hparams.HParams):
    self._options = options
    self._model_dir = model_dirs.ModelDir(options.model_dir)
    self._model = find_trained_model(options, params)

  def announce(self) -> None:
    logging.info(
      'exporting %s as %s',
      self._model.checkpoint,
      ', '.join(self._options.formats),
    )

  def run(self) -> None:
    """Writes the export and prints its path."""
    export = exports.write(
      self._model,
      self._model_dir.join(model_dirs.EXPORTS),
      self._options.formats,
      self._options.exports_to_keep,
      self._facts(),
      kept=evaluation_records.kept_exports(self._model_dir),
    )
    places = {
      'SavedModel': export.saved_model,
      'Hub module': export.hub_module,
      'Model card': os.path.join(export.path, 'model_card.md'),
    }
    for name, place in places.items():
      if place:
        print(f'{name + ":":<12}{place}')

  def _facts(self):
    """Returns the facts about the model, with metrics if it was evaluated."""
    known = facts.find(self._model_dir, self._model.checkpoint)
    input_fn = self._model.params.input_data.input_fn
    found = {'dataset': input_fn, 'data_name': datasets.called(input_fn)}
    if known:
      found = facts.of_export(known)
    result = self._model_dir.read_json(model_dirs.RESULT) or {}
    fingerprint = self._model.fingerprint
    if (
      result.get('global_step') == self._model.step
      and result.get('fingerprint', fingerprint) == fingerprint
    ):
      found.update(evaluation.facts_of_evaluation(result))
    return found


class Embed:
  """--mode=embed: writes the model's outputs for each image of a split."""

  def __init__(self, options: run_options.RunOptions, params: hparams.HParams):
    embeddings.check_output(options.output)
    self._options = options
    self._devices = devices_lib.find(options)
    devices_lib.check_batches(self._devices, options, params)
    self._model = find_trained_model(options, params)
    _check_fits(self._devices, self._model)
    self._dataset = setup.load_dataset(options, params)
    self._input_fn = params.input_data.input_fn
    self._split = self._dataset.evaluation
    if params.input_data.skip_bad_images:
      bad = faults.find(self._split)
      self._split = faults.without(self._split, bad)

  def announce(self) -> None:
    logging.info(
      'embedding the %d images of split %s of %s with %s',
      self._split.num_examples,
      self._split.name,
      self._input_fn,
      self._model.checkpoint,
    )

  def run(self) -> None:
    """Computes and writes the outputs.

    Raises:
      checkpoints.NotFiniteError: If an output is NaN or infinite.
      faults.BadExampleError: If an image cannot be decoded.
    """
    split, model = self._split, self._model
    dtype = self._devices.encoder_dtype(
      model.params.input_data.preprocessing.allow_mixed_precision
    )
    facts_of_file = {
      'checkpoint': model.checkpoint,
      'fingerprint': model.fingerprint,
      'preprocessing': model.preprocessing,
      'global_step': model.step,
      'dataset': self._input_fn,
      'split': split.name,
      # The data set may have other class names than the model.
      'logit_names': list(model.class_names),
    }
    with (
      faults.naming(split),
      embeddings.open_writer(
        self._options.output,
        split.num_examples,
        self._dataset.class_names,
        facts_of_file,
        embeddings.Origin(model.fingerprint, model.preprocessing),
      ) as writer,
    ):
      position = 0
      for batch in outputs.compute(
        self._options, self._devices, model, self._dataset, split, dtype
      ):
        end = position + len(batch['labels'])
        ids = [split.example_id(i) for i in range(position, end)]
        _check_outputs(batch, model, ids)
        writer.add({**batch, 'ids': ids})
        position = end
    print(f'Embeddings of {position} images: {self._options.output}')


class Predict:
  """--mode=predict: classifies images."""

  def __init__(self, options: run_options.RunOptions, params: hparams.HParams):
    # A TPU is not worth starting for a few images.
    self._options = dataclasses.replace(options, use_tpu=False)
    self._devices = devices_lib.find(self._options)
    self._model = find_trained_model(options, params)
    _check_fits(self._devices, self._model)
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
    _check_outputs(batch, self._model, ids)
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


def _check_outputs(batch, model, ids):
  checkpoints.require_finite_outputs(
    {key: batch[key] for key in trained_models.OUTPUTS.values()},
    model.checkpoint,
    [safe_text.printable(name) for name in ids],
  )


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
