"""The mean color of a data set and its spread, measured and kept."""

import dataclasses
import json
import math

import tensorflow as tf

from supcon.data.sources import splits
from supcon.data.views import image_ops

tf1 = tf.compat.v1

# So many images give a mean within a hundredth of what all would give: the
# means of single photographs spread by about 0.3.
MAX_IMAGES = 4096


@dataclasses.dataclass(frozen=True)
class Statistics:
  """Of each channel on the scale [-1, 1].

  Attributes:
    mean: Three floats; None where images are not whitened.
    std: Three floats, at least half a grey level; None likewise.
    num_images: Of how many images they are; None if unknown.
    image_size: To which sides they were resized before; None if unknown.
    reference: The checkpoint of the model that they belong to, if they were not
      measured here.
  """

  mean: tuple[float, float, float] | None
  std: tuple[float, float, float] | None
  num_images: int | None = None
  image_size: int | None = None
  reference: str = ''

  def to_json(self) -> str:
    """Returns what a file holds; `read` reads it back."""
    fields = dataclasses.asdict(self)
    if not self.reference:
      del fields['reference']
    return json.dumps(fields, indent=2) + '\n'

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

  Their order being random, they are a fair sample. All sums are of integers, so
  that the result is the same wherever it is computed.

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
  # Of integers, (count x squares - sum^2) / count^2 loses nothing.
  std = tuple(
    math.sqrt(count * square - value**2) / count
    for value, square in zip(sums, sums_of_squares)
  )
  return Statistics(
    mean=tuple(value / 127.5 - 1 for value in mean),
    # A channel that is the same everywhere has nothing to divide by.
    std=tuple(max(value, 0.5) / 127.5 for value in std),
    num_images=num_images,
    image_size=image_size,
  )


def read(path: str) -> Statistics | None:
  """Returns what `Statistics` a file holds; None if there is no such file.

  Raises:
    ValueError: If it holds something else.
  """
  if not tf.io.gfile.exists(path):
    return None
  with tf.io.gfile.GFile(path) as file:
    text = file.read()
  try:
    fields = json.loads(text)
    if (fields['mean'] is None) != (fields['std'] is None):
      raise ValueError('one of them is missing')
    for name in ('mean', 'std'):
      if fields[name] is None:
        continue
      fields[name] = tuple(map(float, fields[name]))
      if len(fields[name]) != 3 or not all(map(math.isfinite, fields[name])):
        raise ValueError(f'{name} is {fields[name]}')
    if fields['std'] and min(fields['std']) <= 0:
      raise ValueError(f'std is {fields["std"]}')
    return Statistics(**fields)
  except (KeyError, TypeError, ValueError) as error:
    raise ValueError(
      f'{path} holds no mean and standard deviation ({error}); restore it, '
      'or take another --model_dir.'
    ) from error
