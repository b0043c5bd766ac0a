"""The input pipeline: encoded records to shuffled, augmented batches.

`order` defines the order of the training examples. The order and the views are
functions of (run seed, epoch, example index) only, and label noise is a
function of (run seed, example index) only. They do not depend on the number of
threads, and a run that restarts at step s sees the same batches as without the
restart.
"""

from collections.abc import Callable
import enum
import functools
import math
from typing import Any

import numpy as np
import tensorflow as tf

from supcon.compute import hosts
from supcon.config import hparams
from supcon.config import safe_text
from supcon.data import order
from supcon.data import seeds
from supcon.data.sources import datasets
from supcon.data.sources import splits
from supcon.data.views import image_ops
from supcon.data.views import preprocessing

# Data sets up to this size are held in memory, where any permutation is free.
# They are decoded if that fits (CIFAR-10 takes 146 MiB), otherwise encoded.
MAX_BYTES_IN_MEMORY = 256 * 2**20

# Larger data sets are shuffled while they are read, in windows of this size:
# about 2,400 examples of ImageNet. Up to three windows are in memory.
WINDOW_BYTES = 256 * 2**20

# How many examples are finished together. Starting a program takes 50
# microseconds; larger groups would save little more of that and need more
# memory.
_MAX_GROUP = 16

InputFn = Callable[[dict[str, Any]], tf.data.Dataset]

# Data sets that a function builds take its functions as they are. Nothing here
# branches on tensors in Python, and looking for it takes two seconds per job.
_as_written = tf.autograph.experimental.do_not_convert


class Holding(enum.Enum):
  """What part of the training examples is in memory before the first step."""

  PIXELS = 'images as they are decoded'
  FILES = 'images as they are encoded'
  NAMES = 'names of image files'
  NOTHING = 'nothing, examples are streamed'


def holding(dataset: datasets.Dataset) -> Holding:
  """Returns how the training examples of a data set are held in memory."""
  split = dataset.train
  if split.num_bytes <= MAX_BYTES_IN_MEMORY:
    shape = dataset.image_shape
    if shape and _num_decoded_bytes(split, shape) <= MAX_BYTES_IN_MEMORY:
      return Holding.PIXELS
    return Holding.FILES
  if isinstance(split.storage(), splits.Files):
    return Holding.NAMES
  return Holding.NOTHING


def _num_decoded_bytes(split, shape):
  return split.num_examples * math.prod(shape) * 3


def check(dataset: datasets.Dataset, params: hparams.HParams) -> None:
  """Checks the hyper-parameters that depend on the data set.

  Raises:
    ValueError: If a training batch is larger than the training set, labels
      matter but there is only one class, or classes cannot be balanced.
  """
  uses_labels = params.loss.contrastive.use_labels or any(
    stage.epochs and stage.cross_entropy_loss_weight for stage in params.stages
  )
  if dataset.num_classes < 2 and uses_labels:
    only = safe_text.printable(dataset.class_names[0])
    raise ValueError(
      f'--input_fn={params.input_data.input_fn} has one class only, '
      f'{only}: there is nothing to tell apart. Add a class, or train without '
      'labels: --use_labels=False --stage_2_epochs=0.'
    )
  if params.batch_size > dataset.num_train_examples:
    raise ValueError(
      f'--batch_size={params.batch_size} is larger than the '
      f'{dataset.num_train_examples} training examples of '
      f'--input_fn={params.input_data.input_fn} (--num_images='
      f'{params.input_data.max_samples}); give at most '
      f'{dataset.num_train_examples}.'
    )
  if params.input_data.class_balanced and holding(dataset) == Holding.NOTHING:
    raise ValueError(
      '--class_balanced=True needs all labels before the first step, but the '
      f'{dataset.train.num_bytes / 2**20:.0f} MiB of --input_fn='
      f'{params.input_data.input_fn} are read as the run goes: they are record '
      f'files of more than {MAX_BYTES_IN_MEMORY / 2**20:.0f} MiB. Use '
      '--input_fn=folder, which may have any size, or --num_images.'
    )


def train_input_fn(
  dataset: datasets.Dataset,
  params: hparams.HParams,
  dtype: tf.DType,
  start_step: int = 0,
) -> InputFn:
  """Returns the input function of training.

  Args:
    dataset: The data set.
    params: The hyper-parameters of the run.
    dtype: Type of the images.
    start_step: The first batch to return, counted from the start of the run:
      the global step plus the number of batches that rollbacks have skipped.

  Returns:
    A function of {'batch_size': B, 'context': which host this is, if there are
    several}, for TPUEstimator. B is the batch of one core, so several batches
    may make up a host's part of a step. The function returns an endless data
    set of (features, labels): the features of preprocessing.train_views, each
    with a leading dimension B, and labels int32 [B].
  """
  build = functools.partial(_train_batches, dataset, params, dtype, start_step)

  def input_fn(params):
    return build(_host(params), params['batch_size'])

  return input_fn


def eval_input_fn(
  dataset: datasets.Dataset, params: hparams.HParams, dtype: tf.DType
) -> InputFn:
  """Returns the input function of evaluation.

  Args:
    dataset: The data set.
    params: The hyper-parameters of the run.
    dtype: Type of the images.

  Returns:
    A function like that of `train_input_fn`, but with a finite data set: each
    example occurs once, in the order of the records. The last batch is padded
    with black images. One more feature marks the padding:
      features['weights']: float32 [B], 1 for examples, 0 for padding.
  """
  build = functools.partial(_eval_batches, dataset, params, dtype)

  def input_fn(params):
    return build(params['batch_size'])

  return input_fn


def predict_input_fn(
  dataset: datasets.Dataset, params: hparams.HParams, dtype: tf.DType
) -> InputFn:
  """Returns the input function of a prediction.

  It is like that of evaluation, but labels are an additional feature:
    features['labels']: int32 [B].
  """
  build = functools.partial(_eval_batches, dataset, params, dtype)

  # TPUEstimator looks for the name of the argument, which a wrapper would hide.
  def input_fn(params):
    return build(params['batch_size']).map(
      _as_written(lambda features, labels: {**features, 'labels': labels})
    )

  return input_fn


def embeddings_input_fn(
  path: str,
  embedding_size: int,
  labels: np.ndarray,
  dataset: datasets.Dataset,
  params: hparams.HParams,
  start_step: int = 0,
) -> InputFn:
  """Returns the input function of training on a frozen encoder's embeddings.

  The examples have the same order as those of `train_input_fn` for data sets in
  memory.

  Args:
    path: A file of float32 [N, embedding_size], little-endian, by position.
    embedding_size: Python int D.
    labels: int32 [N], by position.
    dataset: The data set.
    params: The hyper-parameters of the run.
    start_step: The first batch to return, see `train_input_fn`.

  Returns:
    A function like that of `train_input_fn`. The only feature is
      embeddings: float32 [B, V, D], the same in all views.
  """

  build = functools.partial(
    _embedding_batches,
    path,
    embedding_size,
    labels,
    dataset,
    params,
    start_step,
  )

  def input_fn(params):
    return build(_host(params), params['batch_size'])

  return input_fn


def _host(params):
  """Returns the host that an input function is for."""
  context = params.get('context')
  if context is None:
    return hosts.Host()
  return hosts.Host(context.current_host, context.num_hosts)


def _positions(dataset, params, start_step, host):
  """Returns the positions of a host's examples from a step on."""
  if params.batch_size % host.count:
    raise ValueError(
      f'--batch_size={params.batch_size} is not divisible by the {host.count} '
      f'hosts; try {params.batch_size // host.count * host.count}.'
    )
  return order.Positions(
    seed=params.seed,
    num_examples=dataset.num_train_examples,
    batch_size=params.batch_size,
    start_step=start_step,
    host=host,
    is_shared=params.input_data.shard_per_host,
  )


@_as_written
def _train_batches(dataset, params, dtype, start_step, host, batch_size):
  """Returns the data set that `train_input_fn` describes."""
  positions = _positions(dataset, params, start_step, host)
  input_data = params.input_data
  stream, read = _train_stream(dataset, positions, input_data.class_balanced)

  def views(turn, index, example):
    encoded, label = read(*example)
    features = preprocessing.train_views(
      encoded,
      seeds.scrambled(
        seeds.key(params.seed, seeds.Purpose.TRAIN_VIEWS, turn, index)
      ),
      input_data.preprocessing,
      dataset.info.flips,
      dataset.info.autoaugment_policy,
    )
    return features, _label(label, index, dataset, params)

  stream = stream.map(views, num_parallel_calls=tf.data.AUTOTUNE)
  return _batched(stream, batch_size, dataset, params, dtype)


@_as_written
def _embedding_batches(
  path, embedding_size, labels, dataset, params, start_step, host, batch_size
):
  """Returns the data set that `embeddings_input_fn` describes."""
  vectors = tf.data.FixedLengthRecordDataset(path, 4 * embedding_size).map(
    lambda record: tf.ensure_shape(
      tf.io.decode_raw(record, tf.float32), [embedding_size]
    )
  )
  examples = tf.data.Dataset.zip(
    (vectors, tf.data.Dataset.from_tensor_slices(labels))
  )
  num_views = params.input_data.preprocessing.num_views

  def views(turn, index, example):
    del turn  # The views are the same in every epoch.
    vector, label = example
    vectors = tf.tile(vector[tf.newaxis], [num_views, 1])
    return {'embeddings': vectors}, _label(label, index, dataset, params)

  return (
    _held(
      examples.batch(len(labels), drop_remainder=True),
      _positions(dataset, params, start_step, host),
      params.input_data.class_balanced,
    )
    .map(views)
    .batch(batch_size, drop_remainder=True)
    .prefetch(tf.data.AUTOTUNE)
  )


@_as_written
def _eval_batches(dataset, params, dtype, batch_size):
  """Returns the data set that `eval_input_fn` describes."""

  def views(index, record):
    encoded, label = record
    features = preprocessing.eval_views(
      encoded,
      seeds.scrambled(
        seeds.key(params.seed, seeds.Purpose.EVAL_VIEWS, index=index)
      ),
      params.input_data.preprocessing,
      dataset.info.flips,
      dataset.info.autoaugment_policy,
    )
    return {**features, 'weights': 1.0}, label

  examples = dataset.records(is_train=False).enumerate()
  examples = examples.map(views, num_parallel_calls=tf.data.AUTOTUNE)
  filling = tf.nest.map_structure(
    lambda spec: tf.zeros(spec.shape, spec.dtype), examples.element_spec
  )
  num_filling = -dataset.num_eval_examples % batch_size
  examples = examples.concatenate(
    tf.data.Dataset.from_tensors(filling).repeat(num_filling)
  )
  return _batched(examples, batch_size, dataset, params, dtype)


def _batched(examples, batch_size, dataset, params, dtype):
  """Returns batches of the model's inputs."""
  settings = params.input_data.preprocessing
  finish = None
  if not settings.defer_augmentation:
    finish_views = functools.partial(
      preprocessing.finish_on_host,
      settings=settings,
      mean=dataset.info.mean,
      std=dataset.info.std,
      dtype=dtype,
    )

    def finish(features, labels):
      return finish_views(features), labels

  batches = in_batches(examples, batch_size, finish)
  options = tf.data.Options()
  options.deterministic = True
  return batches.prefetch(tf.data.AUTOTUNE).with_options(options)


def in_batches(examples, batch_size, finish):
  """Batches examples and finishes them in groups that share a program.

  Args:
    examples: A data set.
    batch_size: Python int.
    finish: A function from a batch of static size to another, or None. It must
      treat every example independently of the others.

  Returns:
    A data set of batches.
  """
  if finish is None:
    return examples.batch(batch_size, drop_remainder=True)
  group_size = max(
    size for size in range(1, _MAX_GROUP + 1) if batch_size % size == 0
  )
  groups = examples.batch(group_size, drop_remainder=True)
  groups = groups.map(finish, num_parallel_calls=tf.data.AUTOTUNE)
  batches = groups.batch(batch_size // group_size, drop_remainder=True)

  def ungrouped(*parts):
    parts = tf.nest.map_structure(
      lambda value: tf.reshape(value, [batch_size, *value.shape[2:]]), parts
    )
    return parts if len(parts) > 1 else parts[0]

  return batches.map(ungrouped)


def _train_stream(dataset, positions, class_balanced):
  """Returns the examples at a host's positions, not fully read yet.

  Args:
    dataset: The data set.
    positions: order.Positions.
    class_balanced: Whether all classes are equally frequent.

  Returns:
    A data set of (turn, example index, example): int64 [], int64 [] and a tuple
    of tensors; and a function of the latter that returns (image, label int32
    []), the image being encoded, string [], or decoded, uint8 [h, w, 3].
  """
  split, held = dataset.train, holding(dataset)
  if held in (Holding.PIXELS, Holding.FILES):
    examples = split.records()
    if held == Holding.PIXELS:
      examples = examples.map(
        functools.partial(_decoded, shape=dataset.image_shape),
        num_parallel_calls=tf.data.AUTOTUNE,
      )
    whole = examples.batch(split.num_examples, drop_remainder=True)
    return _held(whole, positions, class_balanced), _as_it_is
  storage = split.storage()
  if held == Holding.NAMES:
    whole = tf.data.Dataset.from_tensors(storage.names())
    return _held(whole, positions, class_balanced), storage.read
  window_size = WINDOW_BYTES * split.num_examples // split.num_bytes
  stream = order.windows(positions, storage, max(window_size, 1))
  return stream, storage.parse


def _decoded(encoded, label, shape):
  image = image_ops.decode(encoded)
  return tf.ensure_shape(image, [*shape, 3]), label


def _held(whole, positions, class_balanced):
  """Returns (turn, index, example) of examples that are held in memory.

  Args:
    whole: A data set of a single element that holds all examples, so that every
      pass looks them up there: (string [N], labels int32 [N]).
    positions: order.Positions.
    class_balanced: Whether all classes are equally frequent.
  """

  def of_all(*columns):
    _, labels = columns
    taken = order.slots(positions)
    if class_balanced:
      taken = taken.map(
        order.ClassBalance(positions.seed, labels).draw,
        num_parallel_calls=tf.data.AUTOTUNE,
      )
    return order.look_up(taken, columns)

  return whole.flat_map(of_all)


def _as_it_is(encoded, label):
  return encoded, label


def _label(label, index, dataset, params):
  """Returns a training label, possibly replaced by label noise."""
  probability = params.input_data.label_noise_prob
  if probability <= 0:
    return label
  key = seeds.key(params.seed, seeds.Purpose.LABEL_NOISE, index=index)
  return _noisy_label(label, dataset.num_classes, probability, key)


def _noisy_label(label, num_classes, probability, key):
  """Returns a uniformly random class with `probability`, else `label`."""
  chance = tf.random.stateless_uniform([2], key)
  random_label = tf.cast(chance[1] * num_classes, label.dtype)
  return tf.where(chance[0] < probability, random_label, label)
