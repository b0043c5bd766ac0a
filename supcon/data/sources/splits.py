"""The interface of every image source: splits with a fixed order."""

from collections.abc import Callable
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import tensorflow as tf

from supcon.config import safe_text


class Files(NamedTuple):
  """Examples in one file each, which can be read in any order.

  Attributes:
    names: Returns (files, labels) by position: string [N], names for `read`,
      and int32 [N].
    read: A function from a file and its label to (image, label), as in
      `Split.records`.
  """

  names: Callable[[], tuple[tf.Tensor, tf.Tensor]]
  read: Callable[[tf.Tensor, tf.Tensor], tuple[tf.Tensor, tf.Tensor]]

  def records(self) -> tf.data.Dataset:
    """Returns all examples in their order, as `Split.records` gives them."""
    names = tf.data.Dataset.from_tensor_slices(self.names())
    return names.map(
      self.read, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True
    )


class Shards(NamedTuple):
  """Examples stored consecutively, by position, in a few files.

  Attributes:
    sizes: Number of examples in each file.
    read: A function from the number of a file and the number of examples to
      skip, both int64 [], to a data set of its other examples as stored.
    parse: A function from a stored example to (image, label), as in
      `Split.records`.
  """

  sizes: tuple[int, ...]
  read: Callable[[tf.Tensor, tf.Tensor], tf.data.Dataset]
  parse: Callable[[Any], tuple[tf.Tensor, tf.Tensor]]


def part(
  shards: Shards, shard: tf.Tensor, skip: tf.Tensor, size: tf.Tensor
) -> tf.data.Dataset:
  """Returns `size` examples of a shard after the first `skip`, as stored.

  A shard with fewer examples is an error.
  """
  stored = shards.read(shard, skip).take(size)
  return stored.apply(tf.data.experimental.assert_cardinality(size))


class Split(Protocol):
  """Examples with fixed positions.

  Attributes:
    name: The name that the user chooses, such as 'train' or 'test[:50%]'.
    num_examples: Number of examples; positions count from 0.
    num_bytes: Approximate size of the encoded images in bytes.
    fingerprint: One line that identifies the examples.
  """

  name: str
  num_examples: int
  num_bytes: int
  fingerprint: str

  def records(self) -> tf.data.Dataset:
    """Returns (image, label) by position: encoded, string []; int32 []."""

  def storage(self) -> Files | Shards:
    """Returns the files of the examples, for sets too large for memory."""

  def select(self, positions: Sequence[int]) -> 'Split':
    """Returns a split of only the examples at increasing `positions`."""

  def where(self, position: int) -> str:
    """Returns where users can find the example: a path or a record."""

  def example_id(self, position: int) -> str:
    """Returns a name of an example that is the same on every machine.

    It is also the same in every selection or part of the split:
    'val/cat/1.jpg', or 'train/17' for an example without a name.
    """

  def damage(self) -> str | None:
    """Reads all files with several examples; describes the first broken one.

    Returns:
      One line, or None if there are no such files or all are complete.
    """


class Joined(NamedTuple):
  """Splits one after the other, to be read in order; see `Split`."""

  parts: tuple[Split, ...]

  @property
  def num_examples(self) -> int:
    return sum(part.num_examples for part in self.parts)

  def records(self) -> tf.data.Dataset:
    records, *others = (part.records() for part in self.parts)
    for other in others:
      records = records.concatenate(other)
    return records

  def example_id(self, position: int) -> str:
    for part in self.parts:
      if position < part.num_examples:
        return part.example_id(position)
      position -= part.num_examples
    raise IndexError(position)


class Source(NamedTuple):
  """A data set on disk.

  Attributes:
    train: The examples to train on.
    evaluation: The examples to evaluate on.
    class_names: The classes, in the order of the labels.
    image_shape: (height, width) in pixels; None if images may differ in size.
  """

  train: Split
  evaluation: Split
  class_names: tuple[str, ...]
  image_shape: tuple[int, int] | None


def choose(
  train_split: str,
  eval_split: str,
  eval_names: Sequence[str],
  names: Sequence[str],
) -> tuple[str, str]:
  """Returns the names of the splits to train and to evaluate on.

  Args:
    train_split: The user's choice, which is used unchanged; '' takes train.
    eval_split: The user's choice; '' takes the first of `eval_names` that
      exists.
    eval_names: Usual names, best first.
    names: The existing splits.

  Raises:
    ValueError: If there is no such split; the message does not name the place.
  """
  return (
    _choose(train_split, 'train_split', ['train'], names),
    _choose(eval_split, 'eval_split', eval_names, names),
  )


def _choose(asked_for, flag, candidates, names):
  if asked_for:
    return asked_for
  for candidate in candidates:
    if candidate in names:
      return candidate
  raise ValueError(
    f'none of {", ".join(candidates)} is there, only {listed(names)}; choose '
    f'with --{flag}'
  )


def listed(names: Sequence[str]) -> str:
  """Returns some of the names, for a message."""
  names = sorted(names)
  if len(names) > 8:
    names = [*names[:8], '...']
  return safe_text.printable(', '.join(names)) if names else 'nothing'
