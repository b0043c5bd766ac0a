"""Measures and stores the mean and standard deviation of image colors."""

import dataclasses
import math

import tensorflow as tf

from supcon.data.sources import splits
from supcon.data.views import image_ops
from supcon.runs import storage

tf1 = tf.compat.v1

# This many images give a mean within 0.01 of that of all images, because the
# means of single photographs have a standard deviation of about 0.3.
MAX_IMAGES = 4096


@dataclasses.dataclass(frozen=True)
class Statistics:
  """Statistics of each channel on the scale [-1, 1].

  Attributes:
    mean: Three floats; None if images are not whitened.
    std: Three floats, at least half a grey level; None if images are not
      whitened.
    num_images: Number of measured images; None if unknown.
    image_size: The side to which they were resized before; None if unknown.
    reference: The checkpoint of the model that the values come from, if they
      were not measured here.
  """

  mean: tuple[float, float, float] | None
  std: tuple[float, float, float] | None
  num_images: int | None = None
  image_size: int | None = None
  reference: str = ''

  def to_json(self) -> str:
    """Returns the text of a file; `from_json` is the inverse."""
    fields = dataclasses.asdict(self)
    if not self.reference:
      del fields['reference']
    return storage.to_json(fields)

  def describe(self) -> str:
    """Returns 'mean (...), standard deviation (...), from DIR', or 'none'."""
    origin = f', as {self.reference} has it' if self.reference else ''
    if not self.mean:
      return f'none{origin}'
    mean, std = (
      ', '.join(f'{value:.4g}' for value in values)
      for values in (self.mean, self.std)
    )
    return f'mean ({mean}), standard deviation ({std}){origin}'


def measure(split: splits.Split, image_size: int) -> Statistics:
  """Measures the first `MAX_IMAGES` images, resized to a square.

  They are a fair sample, because their order is random. All sums are of
  integers, so the result is the same on every machine.

  Args:
    split: The training examples.
    image_size: The side in pixels.

  Raises:
    tf.errors.OpError: If an image cannot be decoded.
  """

  def sums(encoded, _):
    image = image_ops.resize(
      image_ops.decode(encoded), [image_size, image_size]
    )
    image = tf.cast(image, tf.int64)
    return tf.reduce_sum(image, [0, 1]), tf.reduce_sum(image**2, [0, 1])

  with tf.Graph().as_default(), tf1.Session() as session:
    zeros = tf.zeros([3], tf.int64)
    total = (
      split.records()
      .take(MAX_IMAGES)
      .map(sums, num_parallel_calls=tf.data.AUTOTUNE)
      .reduce((zeros, zeros), lambda *sums: tuple(map(tf.add, *sums)))
    )
    sums, sums_of_squares = (value.tolist() for value in session.run(total))

  num_images = min(split.num_examples, MAX_IMAGES)
  count = num_images * image_size**2
  mean = tuple(value / count for value in sums)
  # With integers, (count x squares - sum^2) / count^2 loses no precision.
  std = tuple(
    math.sqrt(count * square - value**2) / count
    for value, square in zip(sums, sums_of_squares)
  )
  return Statistics(
    mean=tuple(value / 127.5 - 1 for value in mean),
    # A constant channel has a standard deviation of 0.
    std=tuple(max(value, 0.5) / 127.5 for value in std),
    num_images=num_images,
    image_size=image_size,
  )


IN_WORDS = 'mean and standard deviation'


def from_json(fields: dict) -> Statistics:
  """Returns the `Statistics` of a JSON object, which must be in order.

  Raises:
    LookupError, TypeError, ValueError: If it is not.
  """
  if (fields['mean'] is None) != (fields['std'] is None):
    raise ValueError('one of them is missing')
  colors = {name: fields[name] for name in ('mean', 'std') if fields[name]}
  for name, values in colors.items():
    colors[name] = tuple(map(float, values))
    if len(values) != 3 or not all(map(math.isfinite, colors[name])):
      raise ValueError(f'{name} is {values}')
  if colors and min(colors['std']) <= 0:
    raise ValueError(f'std is {fields["std"]}')
  return Statistics(**{**fields, **colors})
