"""The order in which training sees the examples.

Training takes one endless sequence of positions 0, 1, 2 ... Batch s consists of
the positions s * B to (s + 1) * B - 1, where B is the batch over all hosts.
Position p is in epoch p // N, where N is the number of examples. Batches cross
the borders of epochs, so that no example is dropped. The example at a position
follows from the seed, not from what was read before: a run that starts at step
s sees batch s or, if rollbacks have skipped k batches, batch s + k.

Hosts. Host h of H takes those positions of each batch with p // (B / H) % H ==
h, so the hosts' parts of an epoch are disjoint and complete. With
--shard_per_host=False, each host instead sees all examples: it has a sequence
of its own, with batches of B / H. A pass is an epoch of a sequence. Epoch e of
the shared sequence is pass e; epoch e of host h's own sequence is pass e * H +
h.

Slots. Each pass has N slots, 0 to N - 1.

- For a data set in memory (`slots`), the slots of a pass are shuffled; all
  orders are equally likely, whatever the number of hosts. Slot i is example i.
  With balanced classes (`ClassBalance`), slot i of pass k is instead draw d = k
  * N + i, which takes an example of class d mod C, where C is the number of
  classes that occur. A class returns all its examples before it repeats one, in
  a new order each time.

- For a data set that is streamed (`windows`), each pass shuffles the shards and
  lays them end to end: N slots. Each host takes a contiguous range of them, as
  many as it has positions in the epoch, which consists of parts of shards. It
  reads a few parts at a time, one example of each in turn, cuts what it has
  read into windows, and shuffles each window. To start in the middle of a pass,
  it skips what comes before the window: whole parts without opening them,
  examples without reading them.

The views of an example depend on its index and its turn. The turn is the pass
or, with balanced classes, the number of times that the example was taken
before.
"""

from collections.abc import Sequence
import dataclasses
from typing import NamedTuple

import tensorflow as tf

from supcon.compute import hosts
from supcon.data import seeds
from supcon.data.sources import splits

# Number of parts of shards that are read at a time.
PARTS_AT_A_TIME = 16

# Number of examples that are read ahead in each part.
_EXAMPLES_AHEAD = 8

# Looking up small examples one by one would take twice as long.
_ROWS_AT_A_TIME = 128


@dataclasses.dataclass(frozen=True)
class Positions:
  """The positions that a host takes.

  Attributes:
    seed: The run's seed.
    num_examples: N.
    batch_size: B, a multiple of the number of hosts.
    start_step: The first batch.
    host: The number of the host.
    is_shared: Whether the hosts share one sequence.
  """

  seed: int
  num_examples: int
  batch_size: int
  start_step: int = 0
  host: hosts.Host = hosts.Host()
  is_shared: bool = True

  @property
  def local_batch_size(self) -> int:
    return self.batch_size // self.host.count

  @property
  def share(self) -> int:
    """The number of this host's share of each batch of the sequence."""
    return self.host.index if self.is_shared else 0

  @property
  def num_shares(self) -> int:
    return self.host.count if self.is_shared else 1

  @property
  def start(self) -> int:
    """The first position of batch `start_step`."""
    return self.start_step * self.local_batch_size * self.num_shares

  @property
  def first_epoch(self) -> int:
    return self.start // self.num_examples

  def epochs(self) -> tf.data.Dataset:
    """Returns the epochs from `first_epoch` on, int64 []."""
    return tf.data.Dataset.range(self.first_epoch, tf.int64.max)

  def pass_of(self, epoch):
    if self.is_shared:
      return epoch
    return epoch * self.host.count + self.host.index

  def are_taken(self, positions):
    """Returns whether `positions`, integers of any shape, are this host's."""
    share = positions // self.local_batch_size % self.num_shares
    return tf.equal(share, self.share) & (positions >= self.start)

  def range_of(self, epoch, end=None):
    """Returns the host's range of slots, if hosts have contiguous ranges.

    Args:
      epoch: int64 [].
      end: Positions from this one on are excluded; None for the whole epoch.

    Returns:
      (first slot, last slot + 1), as many slots as the host has positions.
    """
    begin = epoch * self.num_examples
    if end is None:
      end = begin + self.num_examples
    return tuple(
      self._num_before(end, shares) - self._num_before(begin, shares)
      for shares in (self.share, self.share + 1)
    )

  def _num_before(self, position, shares):
    """Returns the number of positions before `position` in the first shares."""
    position = tf.convert_to_tensor(position, tf.int64)
    batch_size = self.local_batch_size * self.num_shares
    per_batch = self.local_batch_size * shares
    in_whole_batches = position // batch_size * per_batch
    return in_whole_batches + tf.minimum(position % batch_size, per_batch)


# --------------------------------------------------------- held in memory


def slots(positions: Positions) -> tf.data.Dataset:
  """Returns (pass, slot) for each of the host's positions, int64 []."""

  def of_epoch(epoch):
    every = tf.range(positions.num_examples, dtype=tf.int64)
    this_pass = positions.pass_of(epoch)
    shuffled = tf.random.experimental.stateless_shuffle(
      every, seeds.key(positions.seed, seeds.Purpose.ORDER, this_pass)
    )
    are_taken = positions.are_taken(epoch * positions.num_examples + every)
    taken = shuffled[are_taken]
    return tf.data.Dataset.from_tensor_slices(
      (tf.fill(tf.shape(taken), this_pass), taken)
    )

  return positions.epochs().flat_map(of_epoch)


def look_up(
  taken: tf.data.Dataset, columns: Sequence[tf.Tensor]
) -> tf.data.Dataset:
  """Adds the rows of the columns at each index.

  Args:
    taken: A data set of (turn, index), int64 [].
    columns: Tensors of N rows each.

  Returns:
    A data set of (turn, index, tuple of the rows).
  """
  return taken.batch(_ROWS_AT_A_TIME).flat_map(
    lambda turns, indices: tf.data.Dataset.from_tensor_slices(
      (turns, indices, _rows(columns, indices))
    )
  )


def _rows(columns, indices):
  return tuple(tf.gather(column, indices) for column in columns)


class ClassBalance:
  """Draws from the classes in turn, for data sets in memory."""

  def __init__(self, seed: int, labels: tf.Tensor):
    """Sorts the examples by class.

    Args:
      seed: The run's seed.
      labels: int32 [N].
    """
    self._seed = seed
    self._num_examples = tf.size(labels, tf.int64)
    self._by_class = tf.argsort(labels, stable=True)
    sizes = tf.math.bincount(labels, dtype=tf.int64)
    self._sizes = sizes[sizes > 0]
    self._firsts = tf.cumsum(self._sizes, exclusive=True)

  def draw(self, this_pass, slot):
    """Returns (turn, index) of the example that a slot draws, int64 [].

    Args:
      this_pass: int64 [].
      slot: int64 [].
    """
    draw = this_pass * self._num_examples + slot
    num_classes = tf.size(self._sizes, tf.int64)
    rank_of_class, draw_of_class = draw % num_classes, draw // num_classes
    size = self._sizes[rank_of_class]
    turn, rank = draw_of_class // size, draw_of_class % size
    key = seeds.key(self._seed, seeds.Purpose.CLASS, turn, rank_of_class)
    rank = tf.random.experimental.index_shuffle(
      rank, seeds.scrambled(key), size - 1
    )
    index = self._by_class[self._firsts[rank_of_class] + rank]
    return turn, tf.cast(index, tf.int64)


# --------------------------------------------------------------- streamed


def windows(
  positions: Positions, shards: splits.Shards, window_size: int
) -> tf.data.Dataset:
  """Returns the examples at the host's positions, read from shards.

  One window is used while the next is read and assembled, so up to three are in
  memory.

  Args:
    positions: The positions of the host.
    shards: The files of the N examples.
    window_size: Number of examples in a window.

  Returns:
    A data set of (pass, example index, example): int64 [], int64 [] and a tuple
    of the example's tensors, as stored.
  """
  start_epoch = tf.constant(positions.first_epoch, tf.int64)
  first, end = positions.range_of(start_epoch, positions.start)
  start_window = (end - first) // window_size
  start_rank = (end - first) % window_size

  def of_epoch(epoch):
    parts = _parts(positions, shards.sizes, epoch)
    window = tf.where(tf.equal(epoch, start_epoch), start_window, 0)
    examples = _in_turn(parts, shards, window * window_size)
    cut = examples.batch(window_size).enumerate(window)
    return cut.map(lambda window, examples: (epoch, window) + examples)

  def of_window(epoch, window, indices, examples):
    this_pass = positions.pass_of(epoch)
    order = tf.random.experimental.stateless_shuffle(
      tf.range(tf.size(indices)),
      seeds.key(positions.seed, seeds.Purpose.WINDOW, this_pass, window),
    )
    is_start = tf.equal(epoch, start_epoch) & tf.equal(window, start_window)
    rows = tf.data.Dataset.from_tensor_slices(
      order[tf.where(is_start, start_rank, 0) :]
    )
    return rows.map(
      lambda row: (
        this_pass,
        tf.gather(indices, row),
        _rows(tf.nest.flatten(examples), row),
      )
    )

  all_windows = positions.epochs().flat_map(of_epoch)
  return all_windows.prefetch(1).flat_map(of_window)


class _Parts(NamedTuple):
  """Parts of shards; each field is int64 [number of parts].

  Attributes:
    shards: The numbers of the shards.
    skips: The number of examples of the shard before the part.
    sizes: The number of examples in the part.
    indices: The index of the first example in the part.
  """

  shards: tf.Tensor
  skips: tf.Tensor
  sizes: tf.Tensor
  indices: tf.Tensor


def _parts(positions, shard_sizes, epoch):
  """Returns the parts of shards that make up the host's range."""
  sizes = tf.constant(shard_sizes, tf.int64)
  this_pass = positions.pass_of(epoch)
  shards = tf.random.experimental.stateless_shuffle(
    tf.range(len(shard_sizes), dtype=tf.int64),
    seeds.key(positions.seed, seeds.Purpose.SHARDS, this_pass),
  )
  firsts = tf.gather(tf.cumsum(sizes, exclusive=True), shards)
  sizes = tf.gather(sizes, shards)
  begins = tf.cumsum(sizes, exclusive=True)
  first, end = positions.range_of(epoch)
  skips = tf.clip_by_value(first - begins, 0, sizes)
  sizes = tf.clip_by_value(end - begins, 0, sizes) - skips
  parts = _Parts(shards, skips, sizes, firsts + skips)
  return tf.nest.map_structure(lambda field: field[sizes > 0], parts)


def _in_turn(parts, shards, num_skipped):
  """Reads parts, a few at a time, taking one example of each in turn.

  Args:
    parts: _Parts.
    shards: splits.Shards.
    num_skipped: Number of examples to skip.

  Returns:
    A data set of (example index, example as stored).
  """
  # As few groups as possible, of almost equal sizes.
  num_parts = tf.size(parts.sizes, tf.int64)
  num_groups = -(-num_parts // PARTS_AT_A_TIME)
  parts_per_group = -(-num_parts // num_groups)
  begins = tf.concat([[0], tf.cumsum(parts.sizes)], 0)[::parts_per_group]
  first_group = tf.searchsorted(begins, [num_skipped], 'right')[0] - 1

  def of_part(shard, skip, size, index):
    indices = tf.data.Dataset.range(index, index + size)
    examples = splits.part(shards, shard, skip, size)
    # All parts read ahead at the same time; only their results are taken in
    # turn.
    examples = examples.prefetch(_EXAMPLES_AHEAD)
    return tf.data.Dataset.zip((indices, examples))

  def of_group(group):
    first = group * parts_per_group
    members = tf.nest.map_structure(
      lambda field: field[first : first + parts_per_group], parts
    )
    # Whole rounds are skipped without reading them; few examples remain.
    to_skip = tf.maximum(num_skipped - begins[group], 0)
    rounds = to_skip // tf.size(members.sizes, tf.int64)
    skipped = tf.minimum(members.sizes, rounds)
    members = _Parts(
      members.shards,
      members.skips + skipped,
      members.sizes - skipped,
      members.indices + skipped,
    )
    examples = tf.data.Dataset.from_tensor_slices(tuple(members)).interleave(
      of_part, cycle_length=PARTS_AT_A_TIME, block_length=1
    )
    return examples.skip(to_skip - tf.reduce_sum(skipped))

  groups = tf.data.Dataset.range(tf.cast(first_group, tf.int64), num_groups)
  return groups.flat_map(of_group)
