"""What every source of images offers: splits of examples in a fixed order."""

from collections.abc import Callable
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import tensorflow as tf

from supcon.config import safe_text


class Files(NamedTuple):
  """Examples of which each is a file, so that any may be read at any time.

  Attributes:
    names: Returns (files, labels) by position: string [N], names that `read`
      knows, and int32 [N].
    read: From a file and its label to (image, label) as `Split.records` gives
      it.
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
  """Examples that lie one after the other, by position, in a few files.

  Attributes:
    sizes: How many each file holds.
    read: From the number of a file and how many of its examples to skip, both
      int64 [], to a data set of its other ones as they are stored.
    parse: From an example as it is stored to (image, label) as `Split.records`
      gives it.
  """

  sizes: tuple[int, ...]
  read: Callable[[tf.Tensor, tf.Tensor], tf.data.Dataset]
  parse: Callable[[Any], tuple[tf.Tensor, tf.Tensor]]


def part(
  shards: Shards, shard: tf.Tensor, skip: tf.Tensor, size: tf.Tensor
) -> tf.data.Dataset:
  """Returns `size` examples of a shard after the first `skip`, as stored.

  A shard that holds fewer is an error.
  """
  stored = shards.read(shard, skip).take(size)
  return stored.apply(tf.data.experimental.assert_cardinality(size))


class Split(Protocol):
  """Examples of which each has a position that never changes.

  Attributes:
    name: As the user chooses it, such as 'train' or 'test[:50%]'.
    num_examples: How many there are; positions count from 0.
    num_bytes: Roughly how many bytes the encoded images take.
    fingerprint: One line that is another one for other examples.
  """

  name: str
  num_examples: int
  num_bytes: int
  fingerprint: str

  def records(self) -> tf.data.Dataset:
    """Returns (image, label) by position: encoded, string []; int32 []."""

  def storage(self) -> Files | Shards:
    """Returns where the examples are, for sets that do not fit into memory."""

  def select(self, positions: Sequence[int]) -> 'Split':
    """Returns a split of the examples at increasing `positions` alone."""

  def where(self, position: int) -> str:
    """Returns what a person has to look for: a path, or a record."""

  def example_id(self, position: int) -> str:
    """Returns a name of an example that is the same on every machine.

    It is the same too in whatever selection or part of a split the example is
    found: 'val/cat/1.jpg', or 'train/17' for one that has no name.
    """

  def damage(self) -> str | None:
    """Reads all files that hold several examples; names the first broken one.

    Returns:
      One line, or None if there are no such files or all are whole.
    """


class Source(NamedTuple):
  """A data set as it lies on disk.

  Attributes:
    train: The examples to train on.
    evaluation: The examples to evaluate on.
    class_names: In the order of the labels.
    image_shape: (height, width) in pixels; None if images may differ in size.
  """

  train: Split
  evaluation: Split
  class_names: tuple[str, ...]
  image_shape: tuple[int, int] | None


def choose(
  asked_for: str, flag: str, candidates: Sequence[str], names: Sequence[str]
) -> str:
  """Returns the name of a split.

  Args:
    asked_for: The user's choice, which is taken as it is; or '': the first of
      `candidates` that is there.
    flag: The flag that makes the choice.
    candidates: What may be taken without being asked for, best first.
    names: The splits that there are.

  Raises:
    ValueError: If there is none to take; it does not say where.
  """
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
