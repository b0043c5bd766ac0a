"""The order of the training examples, against loops that spell it out.

The random cases are sizes, numbers of hosts, batch sizes and stop points.
"""

import collections
import functools
import itertools
import os
import random

import numpy as np
import pytest
import tensorflow as tf

from supcon.compute import hosts
from supcon.data import order
from supcon.data import seeds
from supcon.data.sources import splits

tf1 = tf.compat.v1


def _random_case(number):
  rng = random.Random(number)
  num_hosts = rng.randint(1, 4)
  batch_size = num_hosts * rng.randint(1, 5)
  num_examples = batch_size + rng.randint(0, 60)
  return {
    'seed': rng.randint(-(2**31), 2**31 - 1),
    'num_examples': num_examples,
    'batch_size': batch_size,
    'num_hosts': num_hosts,
    'start_step': rng.randint(1, 3 * num_examples // batch_size),
  }


def _id(case):
  return 'N{num_examples}_B{batch_size}_H{num_hosts}_s{start_step}'.format(
    **case
  )


_random_cases = pytest.mark.parametrize(
  'case', [_random_case(number) for number in range(6)], ids=_id
)
_is_shared = pytest.mark.parametrize('is_shared', [True, False])


@pytest.fixture(autouse=True)
def several_groups_of_shards(monkeypatch):
  monkeypatch.setattr(order, 'PARTS_AT_A_TIME', 3)


def _positions(case, host=0, start_step=0, is_shared=True):
  return order.Positions(
    seed=case['seed'],
    num_examples=case['num_examples'],
    batch_size=case['batch_size'],
    start_step=start_step,
    host=hosts.Host(host, case['num_hosts']),
    is_shared=is_shared,
  )


def _fetch(count, make, *arguments):
  """Returns the first elements of a data set, `make(*arguments)`, as tuples."""
  # As in a job: nothing is eager.
  with tf.Graph().as_default(), tf1.Session() as session:
    batch = make(*arguments).batch(count, drop_remainder=True)
    iterator = tf1.data.make_initializable_iterator(batch)
    columns = iterator.get_next()
    session.run(iterator.initializer)
    return list(zip(*(column.tolist() for column in session.run(columns))))


# ---------------------------------------------------------------- definitions


@functools.cache
def _shuffled(seed, purpose, this_pass, size, index=0):
  return tf.random.experimental.stateless_shuffle(
    tf.range(size), seeds.key(seed, purpose, this_pass, index)
  ).numpy()


def _positions_of_host(case, host, is_shared):
  """Yields (pass, rank in it) of a host's positions, for ever."""
  local_size = case['batch_size'] // case['num_hosts']
  for position in itertools.count():
    epoch, rank = divmod(position, case['num_examples'])
    if not is_shared:
      yield epoch * case['num_hosts'] + host, rank
    elif position // local_size % case['num_hosts'] == host:
      yield epoch, rank


def _slots_of_host(case, host, is_shared):
  """Yields (pass, slot), for ever."""
  size = case['num_examples']
  for this_pass, rank in _positions_of_host(case, host, is_shared):
    order_of_pass = _shuffled(
      case['seed'], seeds.Purpose.ORDER, this_pass, size
    )
    yield this_pass, order_of_pass[rank]


def _streamed_to_host(case, host, is_shared):
  """Yields (pass, example index) of `_shards`, for ever."""
  shard_sizes, seed = _shards(case).sizes, case['seed']
  firsts = np.cumsum([0, *shard_sizes])
  hosts = range(case['num_hosts']) if is_shared else [host]
  passes = {
    each: itertools.groupby(
      _positions_of_host(case, each, is_shared), lambda position: position[0]
    )
    for each in hosts
  }
  while True:
    counts = {}
    for each in hosts:
      this_pass, positions = next(passes[each])
      counts[each] = len(list(positions))
    begin = sum(counts[each] for each in hosts if each < host)
    end = begin + counts[host]

    parts, slot = [], 0
    for shard in _shuffled(
      seed, seeds.Purpose.SHARDS, this_pass, len(shard_sizes)
    ):
      part = []
      for i in range(shard_sizes[shard]):
        if begin <= slot < end:
          part.append(firsts[shard] + i)
        slot += 1
      if part:
        parts.append(part)

    read = []
    num_groups = -(-len(parts) // order.PARTS_AT_A_TIME)
    group_size = -(-len(parts) // num_groups)
    for first in range(0, len(parts), group_size):
      group = parts[first : first + group_size]
      for one_of_each in itertools.zip_longest(*group):
        read += [index for index in one_of_each if index is not None]

    size = _window_size(case)
    for number, first in enumerate(range(0, len(read), size)):
      window = read[first : first + size]
      for i in _shuffled(
        seed, seeds.Purpose.WINDOW, this_pass, len(window), number
      ):
        yield this_pass, window[i]


def _window_size(case):
  return 1 + abs(case['seed']) % (case['num_examples'] // 2 + 1)


def _shards(case):
  """Returns up to 9 shards, some of them empty, whose examples are numbers."""
  rng = random.Random(case['seed'])
  cuts = [rng.randint(0, case['num_examples']) for _ in range(8)]
  cuts = sorted(cuts[: rng.randint(0, 8)])
  firsts = np.int64([0, *cuts, case['num_examples']])

  def read(shard, skip):
    first, end = tf.gather(firsts, shard), tf.gather(firsts, shard + 1)
    return tf.data.Dataset.range(first + skip, end)

  return splits.Shards(tuple(np.diff(firsts).tolist()), read, parse=None)


def _windows(case, positions):
  """Returns a data set of (pass, example index)."""

  def checked(this_pass, index, example):
    (number,) = example
    with tf.control_dependencies([tf1.assert_equal(number, index)]):
      return this_pass, tf.identity(index)

  windows = order.windows(positions, _shards(case), _window_size(case))
  return windows.map(checked)


# What is to be made, and what is expected.
_KINDS = {
  'slots': (lambda case, positions: order.slots(positions), _slots_of_host),
  'windows': (_windows, _streamed_to_host),
}
_kinds = pytest.mark.parametrize('kind', list(_KINDS))


# ------------------------------------------------------------ positions, hosts


def test_parts_of_an_epoch():
  # N = 10, B = 4, 2 hosts with 2 examples each per step. Positions 0 to 9 are
  # epoch 0, in which the hosts take 0011 0011 00; epoch 1 goes on with 11 0011
  # 0011.
  positions = order.Positions(
    seed=0, num_examples=10, batch_size=4, host=hosts.Host(1, 2)
  )
  np.testing.assert_array_equal(
    positions.are_taken(np.arange(20)),
    [host == '1' for host in '00110011001100110011'],
  )
  # Host 0 has six positions in epoch 0, so host 1 has the four from 6 on. In
  # epoch 1 host 0 has four.
  for epoch, bounds in ((0, [6, 10]), (1, [4, 10])):
    found = positions.range_of(tf.constant(epoch, tf.int64))
    assert [int(bound) for bound in found] == bounds


def test_ranges_of_hosts_are_as_long_as_their_parts():
  for number in range(200):
    case = _random_case(number)
    epoch = case['start_step']
    in_epoch = epoch * case['num_examples'] + np.arange(case['num_examples'])
    begin = 0
    for host in range(case['num_hosts']):
      positions = _positions(case, host)
      first, end = positions.range_of(tf.constant(epoch, tf.int64))
      assert first == begin
      assert end - first == np.count_nonzero(positions.are_taken(in_epoch))
      begin = end
    assert begin == case['num_examples']


@_kinds
@_random_cases
@_is_shared
def test_definition_and_restart(kind, case, is_shared):
  make, define = _KINDS[kind]
  host = case['num_hosts'] - 1
  local_size = case['batch_size'] // case['num_hosts']
  # Two epochs, and what it takes to reach the step of the restart.
  count = 2 * case['num_examples'] // case['num_hosts'] + 5
  skipped = case['start_step'] * local_size
  expected = list(
    itertools.islice(define(case, host, is_shared), skipped + count)
  )
  for start_step, first in ((0, 0), (case['start_step'], skipped)):
    positions = _positions(case, host, start_step, is_shared)
    found = _fetch(count, make, case, positions)
    assert found == expected[first : first + count]


@_kinds
@_random_cases
def test_epochs_of_all_hosts_are_disjoint_and_complete(kind, case):
  make, _ = _KINDS[kind]
  num_hosts, num_examples = case['num_hosts'], case['num_examples']
  local_size = case['batch_size'] // num_hosts
  num_steps = -(-2 * num_examples // case['batch_size'])
  parts = []
  for host in range(num_hosts):
    found = _fetch(num_steps * local_size, make, case, _positions(case, host))
    parts.append(np.reshape(found, [num_steps, local_size, 2]))
  # Batch after batch, and in each of them host after host.
  sequence = np.stack(parts, axis=1).reshape([-1, 2])
  for epoch in range(2):
    passes, indices = sequence[epoch * num_examples :][:num_examples].T
    assert set(passes) == {epoch}
    assert sorted(indices) == list(range(num_examples))


def test_order_of_a_held_set_is_the_same_for_any_number_of_hosts():
  case = {'seed': 3, 'num_examples': 23, 'batch_size': 6}

  def batches(num_hosts, host):
    positions = _positions({**case, 'num_hosts': num_hosts}, host)
    found = _fetch(60 // num_hosts, order.slots, positions)
    return np.reshape(found, [10, 6 // num_hosts, 2])

  np.testing.assert_array_equal(
    np.concatenate([batches(2, 0), batches(2, 1)], axis=1), batches(1, 0)
  )


def test_hosts_that_do_not_share_differ():
  case = {**_random_case(0), 'num_hosts': 2, 'batch_size': 2}
  for make, _ in _KINDS.values():
    first, second = (
      _fetch(
        2 * case['num_examples'],
        make,
        case,
        _positions(case, host, is_shared=False),
      )
      for host in range(2)
    )
    assert [index for _, index in first] != [index for _, index in second]
    # No (pass, index) twice: no view is seen twice.
    assert len({*first, *second}) == 4 * case['num_examples']


# --------------------------------------------------------------------- shards


def test_what_lies_before_the_start_is_not_read(tmp_path):
  # 9 shards of 4 examples, 3 shards at a time: groups of 12 examples, 3 per
  # round. Windows of 6 examples are 2 rounds.
  for shard in range(9):
    with tf.io.TFRecordWriter(str(tmp_path / str(shard))) as writer:
      for i in range(4):
        writer.write(f'{4 * shard + i:02d}')

  def indices(start_step, count):
    positions = order.Positions(0, 36, batch_size=1, start_step=start_step)
    paths = [str(tmp_path / str(shard)) for shard in range(9)]
    shards = splits.Shards(
      sizes=(4,) * 9,
      read=lambda shard, skip: tf.data.TFRecordDataset(
        tf.gather(paths, shard)
      ).skip(skip),
      parse=None,
    )

    def index_and_number(this_pass, index, example):
      del this_pass
      return index, tf.strings.to_number(*example, out_type=tf.int64)

    found = _fetch(
      count,
      lambda: order.windows(positions, shards, 6).map(index_and_number),
    )
    assert all(index == number for index, number in found)
    return [index for index, _ in found]

  whole = indices(0, 36)
  assert whole != list(range(36))
  # Step 20 is in the second window, 18 to 23, of the second group.
  for shard in {index // 4 for index in whole[:12]}:
    os.remove(tmp_path / str(shard))
  for index in whole[12:18]:
    # A record is 12 bytes of header, 2 of data, 4 of checksum.
    with open(tmp_path / str(index // 4), 'r+b') as file:
      file.seek(index % 4 * 18 + 12)
      file.write(b'??')
  assert indices(20, 16) == whole[20:]
  with pytest.raises(tf.errors.DataLossError):
    indices(12, 24)
  with pytest.raises(tf.errors.NotFoundError):
    indices(0, 36)


def test_a_shard_with_too_few_examples_is_an_error():
  shards = splits.Shards(
    sizes=(3, 3),
    read=lambda shard, skip: tf.data.Dataset.range(2).skip(skip),
    parse=None,
  )
  positions = order.Positions(0, 6, batch_size=1)
  with pytest.raises(tf.errors.FailedPreconditionError, match='contain'):
    _fetch(
      6,
      lambda: order.windows(positions, shards, 6).map(
        lambda this_pass, index, _: (this_pass, index)
      ),
    )


# ------------------------------------------------------------- class balance


def _draws(labels, num_passes, seed=1):
  """Returns (class, turn, index) of all draws, in the order of the draws."""

  def make():
    balance = order.ClassBalance(seed, tf.constant(labels, tf.int32))
    draws = tf.data.Dataset.range(num_passes * len(labels))
    return draws.map(
      lambda draw: balance.draw(draw // len(labels), draw % len(labels))
    )

  found = _fetch(num_passes * len(labels), make)
  return [(labels[index], turn, index) for turn, index in found]


def test_draws_go_round_the_classes():
  # Three of five classes occur, 1, 2 and 4 times.
  labels = [3, 0, 4, 3, 4, 3, 3]
  found = _draws(labels, num_passes=3)
  assert [label for label, _, _ in found] == [0, 3, 4] * 7
  # Seven draws each: class 0 gives its example for the seventh time, class 3
  # is in its second turn, class 4 in its fourth.
  turns = collections.defaultdict(str)
  for label, turn, _ in found:
    turns[label] += str(turn)
  assert turns == {0: '0123456', 3: '0000111', 4: '0011223'}


def test_turns_are_complete_and_shuffled_anew():
  rng = random.Random(1)
  labels = [rng.choice([0, 1, 1, 1, 1, 3, 3]) for _ in range(60)]
  found = _draws(labels, num_passes=9)
  assert len(set(found)) == len(found)  # So that no view is seen twice.
  for label in (0, 1, 3):
    members = [i for i, other in enumerate(labels) if other == label]
    turns = collections.defaultdict(list)
    for other, turn, index in found:
      if other == label:
        turns[turn].append(index)
    *complete, last = turns.values()
    assert len(complete) >= 3
    assert all(sorted(turn) == members for turn in complete)
    assert len(set(last)) == len(last)
    assert len({tuple(turn) for turn in complete}) == len(complete)
  assert _draws(labels, 9) == found
  assert _draws(labels, 9, seed=2) != found
