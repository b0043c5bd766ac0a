"""From encoded records to shuffled, augmented, batched views.

The training stream is one endless sequence. Position p of it is in epoch
p // N, N being the number of training examples; an epoch is a permutation of
all of them. Batch s is positions s * B to (s + 1) * B - 1, across the borders
of epochs, so that nothing is dropped. Order and views are functions of (run
seed, epoch, example index), label noise of (run seed, example index), and of
nothing else: they do not depend on how many threads work, and a run that starts
again at step s sees what it would have seen.
"""

from collections.abc import Callable
import enum
import functools
from typing import Any

import tensorflow as tf

from supcon import hparams
from supcon.data import datasets
from supcon.data import preprocessing

tf1 = tf.compat.v1

# Encoded examples up to this size in all (CIFAR-10 takes 110 MiB) are held in
# memory, where any permutation costs nothing.
MAX_BYTES_IN_MEMORY = 256 * 2**20

# Larger sets are shuffled while they are read, in a buffer of this size: about
# 4,700 examples of ImageNet.
SHUFFLE_BUFFER_BYTES = 512 * 2**20

InputFn = Callable[[dict[str, Any]], tf.data.Dataset]


class _Purpose(enum.IntEnum):
  """What randomness is for; purposes share no random numbers."""

  ORDER = 0
  TRAIN_VIEWS = 1
  EVAL_VIEWS = 2
  LABEL_NOISE = 3


def check(dataset: datasets.Dataset, params: hparams.HParams) -> None:
  """Checks the hyper-parameters that depend on the data set.

  Raises:
    ValueError: If a training batch is larger than the training set.
  """
  if params.batch_size > dataset.num_train_examples:
    raise ValueError(
      f'--batch_size={params.batch_size} is larger than the '
      f'{dataset.num_train_examples} training examples of '
      f'--input_fn={params.input_data.input_fn} (--num_images='
      f'{params.input_data.max_samples}); give at most '
      f'{dataset.num_train_examples}.'
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
    dtype: Of the images.
    start_step: The first batch to give is that of this global step.

  Returns:
    A function of {'batch_size': B}, the batch per call, for TPUEstimator. It
    returns an endless data set of (features, labels):
      features['images']: dtype [B, S, S, 3V], V views stacked on channels.
      features['blur_sigmas']: float32 [B, V], in pixels, where blurring is left
        to the model.
      labels: int32 [B].
  """
  build = functools.partial(_train_batches, dataset, params, dtype, start_step)

  def input_fn(params):
    return build(params['batch_size'])

  return input_fn


def eval_input_fn(
  dataset: datasets.Dataset, params: hparams.HParams, dtype: tf.DType
) -> InputFn:
  """Returns the input function of evaluation.

  Args:
    dataset: The data set.
    params: The hyper-parameters of the run.
    dtype: Of the images.

  Returns:
    A function as `train_input_fn` returns it, whose data set ends: each example
    occurs once, in the order of the records. The last batch is filled up with
    zero images. One more feature tells them apart:
      features['weights']: float32 [B], 1 for examples, 0 for filling.
  """
  build = functools.partial(_eval_batches, dataset, params, dtype)

  def input_fn(params):
    return build(params['batch_size'])

  return input_fn


def _train_batches(dataset, params, dtype, start_step, batch_size):
  """Returns the data set that `train_input_fn` describes."""
  input_data = params.input_data

  def views(epoch, index, encoded, label):
    if input_data.label_noise_prob > 0:
      label = _noisy_label(
        label,
        dataset.num_classes,
        input_data.label_noise_prob,
        _key(params.seed, _Purpose.LABEL_NOISE, index=index),
      )
    images, blur_sigmas = preprocessing.train_views(
      encoded,
      _scrambled(_key(params.seed, _Purpose.TRAIN_VIEWS, epoch, index)),
      input_data.preprocessing,
      dataset.info.mean,
      dataset.info.std,
      dataset.info.flips,
      dtype,
    )
    return {'images': images, 'blur_sigmas': blur_sigmas}, label

  stream = _train_stream(dataset, params.seed, start_step * batch_size)
  stream = stream.map(views, num_parallel_calls=tf.data.AUTOTUNE)
  return _batched(stream, batch_size)


def _eval_batches(dataset, params, dtype, batch_size):
  """Returns the data set that `eval_input_fn` describes."""

  def views(index, record):
    encoded, label = record
    images, blur_sigmas = preprocessing.eval_views(
      encoded,
      _scrambled(_key(params.seed, _Purpose.EVAL_VIEWS, index=index)),
      params.input_data.preprocessing,
      dataset.info.mean,
      dataset.info.std,
      dataset.info.flips,
      dtype,
    )
    features = {'images': images, 'blur_sigmas': blur_sigmas, 'weights': 1.0}
    return features, label

  examples = dataset.records(is_train=False).enumerate()
  examples = examples.map(views, num_parallel_calls=tf.data.AUTOTUNE)
  filling = tf.nest.map_structure(
    lambda spec: tf.zeros(spec.shape, spec.dtype), examples.element_spec
  )
  num_filling = -dataset.num_eval_examples % batch_size
  examples = examples.concatenate(
    tf.data.Dataset.from_tensors(filling).repeat(num_filling)
  )
  return _batched(examples, batch_size)


def _batched(examples, batch_size):
  batches = examples.batch(batch_size, drop_remainder=True)
  options = tf.data.Options()
  options.deterministic = True
  return batches.prefetch(tf.data.AUTOTUNE).with_options(options)


def _train_stream(dataset, seed, start):
  """Returns the endless training sequence from position `start` on.

  Args:
    dataset: The data set.
    seed: The run's seed.
    start: The first position.

  Returns:
    A data set of (epoch int64, example index int64, encoded image string, label
    int32), all scalars.
  """
  examples_per_epoch = dataset.num_train_examples
  first_epoch, first_rank = divmod(start, examples_per_epoch)
  epochs = tf.data.Dataset.range(first_epoch, tf.int64.max)
  records = dataset.records(is_train=True)
  num_bytes = dataset.num_bytes(is_train=True)

  def rank_to_start(epoch):
    # Only the first epoch starts within.
    return tf.where(tf.equal(epoch, first_epoch), first_rank, 0)

  def from_memory(encoded, labels):
    def epoch_examples(epoch):
      order = tf.random.experimental.stateless_shuffle(
        tf.range(examples_per_epoch, dtype=tf.int64),
        _key(seed, _Purpose.ORDER, epoch),
      )
      order = tf.data.Dataset.from_tensor_slices(order[rank_to_start(epoch) :])
      return order.map(lambda i: (epoch, i, encoded[i], labels[i]))

    return epochs.flat_map(epoch_examples)

  def while_reading(epoch):
    # The buffer's order would depend on the graph's seed, too.
    tf1.set_random_seed(1)
    buffer_size = SHUFFLE_BUFFER_BYTES * examples_per_epoch // num_bytes
    examples = records.enumerate().shuffle(
      max(buffer_size, 1),
      seed=_scrambled(_key(seed, _Purpose.ORDER, epoch))[0],
      reshuffle_each_iteration=False,
    )
    examples = examples.skip(tf.cast(rank_to_start(epoch), tf.int64))
    return examples.map(lambda i, record: (epoch, i) + record)

  if num_bytes <= MAX_BYTES_IN_MEMORY:
    # One element that holds all records, in which the epochs then look up.
    whole = records.batch(examples_per_epoch, drop_remainder=True)
    return whole.flat_map(from_memory)
  return epochs.flat_map(while_reading)


def _noisy_label(label, num_classes, probability, key):
  """Returns a uniformly random class with `probability`, else `label`."""
  chance = tf.random.stateless_uniform([2], key)
  random_label = tf.cast(chance[1] * num_classes, label.dtype)
  return tf.where(chance[0] < probability, random_label, label)


def _key(seed, purpose, epoch=0, index=0):
  """Returns int64 [2], another one for all other arguments.

  Args:
    seed: The run's seed, a Python int of 32 bits.
    purpose: A _Purpose.
    epoch: int64 [], below 2^24.
    index: int64 [], below 2^32.
  """
  epoch, index = tf.cast(epoch, tf.int64), tf.cast(index, tf.int64)
  return tf.stack([seed, (purpose * 2**24 + epoch) * 2**32 + index])


def _scrambled(key):
  """Returns random int64 [2], so that arithmetic on it meets no other key."""
  return tf.random.stateless_uniform([2], key, None, None, tf.int64)
