"""Tests of supcon.runs.checkpoint_files."""

import os
import pathlib
import re

import numpy as np
import pytest
import tensorflow as tf

from supcon.runs import checkpoint_files
from tests import writing

tf1 = tf.compat.v1


# --- Steps --------------------------------------------------------------------


def _write_steps(directory, steps):
  paths = [
    writing.write(directory / f'model.ckpt-{s}', {'w': []}) for s in steps
  ]
  # Relative to the directory, as training writes them.
  names = [f'model.ckpt-{step}' for step in steps]
  tf1.train.update_checkpoint_state(str(directory), names[-1], names)
  return paths


def test_steps_and_paths_are_ordered_by_number(tmp_path):
  paths = _write_steps(tmp_path, [100, 9, 1000, 20])
  found = checkpoint_files.steps_and_paths(str(tmp_path))
  assert list(found) == [9, 20, 100, 1000]
  assert set(found.values()) == set(paths)
  assert found[20] == str(tmp_path / 'model.ckpt-20')


def test_steps_and_paths_leave_out_what_was_deleted(tmp_path):
  _write_steps(tmp_path, [0, 10, 20])
  for file in tmp_path.glob('model.ckpt-10.*'):
    file.unlink()
  assert list(checkpoint_files.steps_and_paths(str(tmp_path))) == [0, 20]


def test_steps_and_paths_of_a_directory_that_moved(tmp_path):
  old, new = tmp_path / 'old', tmp_path / 'new'
  _write_steps(old, [5])
  old.rename(new)
  assert checkpoint_files.steps_and_paths(str(new)) == {
    5: str(new / 'model.ckpt-5')
  }


def test_steps_and_paths_where_nothing_is(tmp_path):
  assert checkpoint_files.steps_and_paths(str(tmp_path)) == {}
  assert checkpoint_files.steps_and_paths(str(tmp_path / 'none')) == {}


@pytest.mark.parametrize(
  'checkpoint, step',
  [
    ('model.ckpt-0', 0),
    ('/a-5/model.ckpt-1000', 1000),
    ('gs://b/run-2/x-7', 7),
  ],
)
def test_step_of(checkpoint, step):
  assert checkpoint_files.step_of(checkpoint) == step


# --- Whole or not -------------------------------------------------------------

_VALUES = {
  'global_step': np.int64(7),
  'Model/name': np.array(['a', 'bc'], object),
  **{
    f'Model/layer_{i}/kernel': np.arange(15 + 7 * i, dtype=np.float32)
    for i in range(12)
  },
}


def _write_sharded(prefix, parts):
  """Writes a checkpoint in which each {name: value} has a file of its own."""
  prefixes = [
    writing.write_values(prefix.parent / 'parts' / f'part-{n}', part)
    for n, part in enumerate(parts)
  ]
  tf.raw_ops.MergeV2Checkpoints(
    checkpoint_prefixes=prefixes,
    destination_prefix=str(prefix),
    delete_old_dirs=True,
  )
  return str(prefix)


@pytest.fixture(scope='module')
def whole_bytes(tmp_path_factory):
  """(index, data) of a checkpoint that is whole."""
  path = tmp_path_factory.mktemp('whole') / 'model.ckpt-7'
  checkpoint = writing.write_values(path, _VALUES)
  assert checkpoint_files.damage(checkpoint) is None
  return tuple(
    path.with_name(path.name + end).read_bytes() for end in (_INDEX, _DATA)
  )


_INDEX, _DATA = '.index', '.data-00000-of-00001'


def _random(seed, size):
  """Returns (random generator, random position) for a test case."""
  rng = np.random.default_rng(seed)
  return rng, int(rng.integers(size))


def _cut_somewhere(content, seed):
  return content[: _random(seed, len(content))[1]]


def _zero_to_the_end(content, seed):
  # What a machine leaves that lost its power.
  _, start = _random(seed, len(content) - 1)
  return content[:start].ljust(len(content), b'\0')


def _flip_some_bit(content, seed):
  rng, position = _random(seed, len(content))
  found = bytearray(content)
  found[position] ^= 1 << int(rng.integers(8))
  return bytes(found)


def _write_noise(content, seed):
  """Has a few hundred random bytes in place of what was there."""
  rng, start = _random(seed, len(content))
  noise = rng.bytes(min(300, len(content) - start))
  return content[:start] + noise + content[start + len(noise) :]


@pytest.mark.parametrize('seed', range(20))
@pytest.mark.parametrize(
  'damage', [_cut_somewhere, _zero_to_the_end, _flip_some_bit, _write_noise]
)
@pytest.mark.parametrize('end', [_INDEX, _DATA])
def test_damage_at_a_random_place_is_found(
  tmp_path, whole_bytes, end, damage, seed
):
  index, data = whole_bytes
  if end == _INDEX:
    index = damage(index, seed)
  else:
    data = damage(data, seed)
  (tmp_path / f'model.ckpt-7{_INDEX}').write_bytes(index)
  (tmp_path / f'model.ckpt-7{_DATA}').write_bytes(data)
  checkpoint = str(tmp_path / 'model.ckpt-7')
  problem = checkpoint_files.damage(checkpoint)
  assert '\n' not in (problem or '')
  if (index, data) == whole_bytes:
    assert problem is None
  elif end == _DATA:
    assert problem
  elif not problem:
    # The last bytes of an index are there to make it longer.
    _assert_values(checkpoint, _VALUES)


def _assert_values(checkpoint, values):
  reader = tf.train.load_checkpoint(checkpoint)
  assert sorted(reader.get_variable_to_shape_map()) == sorted(values)
  for name, value in values.items():
    found = reader.get_tensor(name)
    if found.dtype == object:
      found = np.char.decode(found.astype(bytes))
    np.testing.assert_array_equal(found, value)


def _damage_files(checkpoint, damage):
  """Applies {end of the name: None to delete, or new bytes}."""
  for end, content in damage.items():
    path = pathlib.Path(checkpoint + end)
    path.unlink()
    if content is not None:
      path.write_bytes(content)


@pytest.mark.parametrize(
  'damage, message',
  [
    ({_INDEX: None}, r'model.ckpt-7.index is missing'),
    ({_DATA: None}, r'model.ckpt-7.data-00000-of-\* is missing'),
    ({_INDEX: None, _DATA: None}, r'model.ckpt-7.index is missing'),
    ({_INDEX: b''}, r'model.ckpt-7.index cannot be read: .*too short.*'),
    # 12 x 15 + 7 x 66 float32, and an int64.
    ({_DATA: b''}, r'\d+ bytes are left, but the values take 2576'),
    ({_DATA: b'\0' * 2600}, r'Model/\S+ cannot be read: .*'),
  ],
)
def test_missing_and_empty_files_are_named(tmp_path, damage, message):
  checkpoint = writing.write_values(tmp_path / 'model.ckpt-7', _VALUES)
  _damage_files(checkpoint, damage)
  assert re.fullmatch(message, checkpoint_files.damage(checkpoint))


def test_values_of_another_checkpoint_are_found(tmp_path):
  checkpoint = writing.write_values(tmp_path / 'model.ckpt-7', _VALUES)
  others = {**_VALUES, 'global_step': np.int64(8)}
  other = writing.write_values(tmp_path / 'model.ckpt-8', others)
  _damage_files(checkpoint, {_DATA: pathlib.Path(other + _DATA).read_bytes()})
  assert 'Checksum does not match' in checkpoint_files.damage(checkpoint)


def test_an_absurd_size_in_the_index_is_found(tmp_path, whole_bytes):
  # The last 48 bytes say where the index of the index is, in seven bits a byte:
  # a size of 2^62 is what nobody can allocate.
  index, data = whole_bytes
  end = bytearray(index[-48:])
  end[4 : 4 + 11] = bytes([0x80] * 8 + [0x40, 0, 0])
  (tmp_path / f'model.ckpt-7{_INDEX}').write_bytes(index[:-48] + end)
  (tmp_path / f'model.ckpt-7{_DATA}').write_bytes(data)
  assert checkpoint_files.damage(str(tmp_path / 'model.ckpt-7'))


@pytest.fixture
def sharded(tmp_path):
  names = sorted(_VALUES)
  parts = [{n: _VALUES[n] for n in names[k::3]} for k in range(3)]
  return _write_sharded(tmp_path / 'model.ckpt-7', parts)


def test_a_checkpoint_of_several_files(sharded):
  assert [
    path.removeprefix(sharded) for path in checkpoint_files.files(sharded)
  ] == [
    '.data-00000-of-00003',
    '.data-00001-of-00003',
    '.data-00002-of-00003',
    '.index',
  ]
  assert checkpoint_files.damage(sharded) is None
  _assert_values(sharded, _VALUES)


@pytest.mark.parametrize('shard', range(3))
def test_a_missing_shard_is_named(sharded, shard):
  end = f'.data-0000{shard}-of-00003'
  _damage_files(sharded, {end: None})
  assert checkpoint_files.damage(sharded) == f'model.ckpt-7{end} is missing'


def test_files_of_other_shards_do_no_harm(sharded):
  # Those of a checkpoint that was saved by fewer devices, and written over.
  pathlib.Path(sharded + _DATA).write_bytes(b'few')
  assert checkpoint_files.damage(sharded) is None


def test_files_are_those_of_this_checkpoint_alone(tmp_path):
  for step in (7, 70, 77):
    writing.write(tmp_path / f'model.ckpt-{step}', {'w': []})
  (tmp_path / 'model.ckpt-7.meta').touch()
  (tmp_path / 'model.ckpt-7_temp').mkdir()
  assert checkpoint_files.files(str(tmp_path / 'model.ckpt-7')) == [
    str(tmp_path / f'model.ckpt-7{end}') for end in (_DATA, _INDEX)
  ]
  assert checkpoint_files.files(str(tmp_path / 'model.ckpt-8')) == []
  assert checkpoint_files.files(str(tmp_path / 'none' / 'model.ckpt-7')) == []


def test_storage_that_fails_is_no_damage(tmp_path, monkeypatch):
  checkpoint = writing.write(tmp_path / 'model.ckpt-7', {'w': [3]})

  def fail(*_):
    raise tf.errors.OpError(None, None, 'HTTP 503', tf.errors.UNKNOWN)

  def be_away(*_):
    raise tf.errors.UnavailableError(None, None, 'HTTP 503')

  monkeypatch.setattr(tf.train, 'load_checkpoint', fail)
  assert checkpoint_files.damage(checkpoint) == (
    'model.ckpt-7.index cannot be read: HTTP 503'
  )
  monkeypatch.setattr(tf.io.gfile, 'GFile', be_away)
  with pytest.raises(tf.errors.UnavailableError):
    checkpoint_files.damage(checkpoint)
  with pytest.raises(tf.errors.UnavailableError):
    checkpoint_files.read_state(str(tmp_path))


def test_what_cannot_be_read_is_no_damage(tmp_path, monkeypatch):
  checkpoint = writing.write(tmp_path / 'model.ckpt-7', {'w': [3]})

  def fail(*_):
    raise tf.errors.OpError(None, None, 'bad', tf.errors.DATA_LOSS)

  def open_badly(path, *_):
    raise tf.errors.UnknownError(None, None, f'{path}; Input/output error')

  # The reader fails, and so does whoever reads the bytes as they are.
  monkeypatch.setattr(tf.train, 'load_checkpoint', fail)
  monkeypatch.setattr(tf.io.gfile, 'GFile', open_badly)
  with pytest.raises(tf.errors.UnknownError):
    checkpoint_files.damage(checkpoint)
  with pytest.raises(tf.errors.UnknownError):
    checkpoint_files.read_state(str(tmp_path))


def test_what_does_not_fit_into_memory_is_no_damage(tmp_path, monkeypatch):
  checkpoint = writing.write(tmp_path / 'model.ckpt-7', {'w': [3]})
  reader = tf.train.load_checkpoint(checkpoint)

  class Reader:
    get_variable_to_shape_map = reader.get_variable_to_shape_map
    get_variable_to_dtype_map = reader.get_variable_to_dtype_map

    def get_tensor(self, name):
      raise MemoryError

  monkeypatch.setattr(tf.train, 'load_checkpoint', lambda _: Reader())
  with pytest.raises(tf.errors.ResourceExhaustedError, match='into memory'):
    checkpoint_files.damage(checkpoint)


@pytest.mark.parametrize('name', ['lr=[0.1]', 'a*', 'a?', 'a\\b'])
def test_a_name_that_is_taken_for_a_pattern_is_no_damage(tmp_path, name):
  # `[` finds nothing, `*` and `?` find others, too.
  (tmp_path / name).mkdir()
  checkpoint = writing.write(tmp_path / 'model.ckpt-7', {'w': [3]})
  for path in checkpoint_files.files(checkpoint):
    os.rename(path, tmp_path / name / os.path.basename(path))
  with pytest.raises(tf.errors.InvalidArgumentError, match='in its name'):
    checkpoint_files.damage(str(tmp_path / name / 'model.ckpt-7'))


def test_fingerprint_is_of_the_values(tmp_path):
  def fingerprint(step, values):
    path = tmp_path / f'model.ckpt-{step}'
    return checkpoint_files.fingerprint(writing.write_values(path, values))

  first = fingerprint(7, _VALUES)
  assert fingerprint(7, _VALUES) == first
  assert fingerprint(8, _VALUES) == first
  assert fingerprint(7, {**_VALUES, 'global_step': np.int64(8)}) != first
  with pytest.raises(tf.errors.NotFoundError):
    checkpoint_files.fingerprint(str(tmp_path / 'model.ckpt-9'))


def test_stamps_change_with_the_files(tmp_path):
  checkpoint = writing.write(tmp_path / 'model.ckpt-7', {'w': [3]})
  before = checkpoint_files.stamps(checkpoint)
  assert checkpoint_files.stamps(checkpoint) == before
  data = tmp_path / f'model.ckpt-7{_DATA}'
  status = data.stat()
  os.utime(data, ns=(status.st_atime_ns, status.st_mtime_ns + 1000))
  later = checkpoint_files.stamps(checkpoint)
  assert later != before
  data.write_bytes(data.read_bytes() + b'\0')
  os.utime(data, ns=(status.st_atime_ns, status.st_mtime_ns + 1000))
  assert checkpoint_files.stamps(checkpoint) not in (before, later)
  assert checkpoint_files.stamps(str(tmp_path / 'model.ckpt-8')) == ()


def test_copy_and_rename(sharded, tmp_path):
  copy, renamed = str(tmp_path / 'best' / 'a-1'), str(tmp_path / 'b-2')
  (tmp_path / 'best').mkdir()
  checkpoint_files.copy(sharded, copy)
  checkpoint_files.rename(sharded, renamed)
  assert checkpoint_files.files(sharded) == []
  for prefix in (copy, renamed):
    assert checkpoint_files.damage(prefix) is None
    _assert_values(prefix, _VALUES)


# --- The file `checkpoint` ----------------------------------------------------


def test_state(tmp_path):
  directory = str(tmp_path)
  assert checkpoint_files.read_state(directory) == checkpoint_files.State()
  assert (
    checkpoint_files.read_state(f'{directory}/none') == checkpoint_files.State()
  )
  paths = tuple(f'{directory}/model.ckpt-{step}' for step in (5, 10, 20))
  tf1.train.update_checkpoint_state(directory, paths[-1], list(paths))
  expected = checkpoint_files.State(newest=paths[-1], paths=paths)
  assert checkpoint_files.read_state(directory) == expected


@pytest.mark.parametrize('directory', ['{}', '{}/', '{}/relative/..'])
def test_state_text_is_what_tensorflow_reads(tmp_path, directory):
  (tmp_path / 'relative').mkdir()
  directory = directory.format(tmp_path)
  paths = [os.path.join(directory, f'model.ckpt-{step}') for step in (5, 20)]
  writing.write(tmp_path / 'model.ckpt-20', {'w': []})
  text = checkpoint_files.state_text(directory, paths)
  assert text == (
    'model_checkpoint_path: "model.ckpt-20"\n'
    'all_model_checkpoint_paths: "model.ckpt-5"\n'
    'all_model_checkpoint_paths: "model.ckpt-20"\n'
  )
  (tmp_path / 'checkpoint').write_text(text)
  assert tf.train.latest_checkpoint(directory) == paths[-1]
  assert checkpoint_files.read_state(directory).paths == tuple(paths)
  # What is elsewhere keeps its place.
  text = checkpoint_files.state_text(directory, ['/x/ü "y"-3'])
  (tmp_path / 'checkpoint').write_text(text)
  assert checkpoint_files.read_state(directory).newest == '/x/ü "y"-3'


_USELESS_STATES = {
  'empty': b'',
  'zeros': bytes(80),
  'binary': bytes(range(256)),
  'cut': b'model_checkpoint_path: "model.ckpt-2',
  'words': b'hello\n',
  'without a step': b'model_checkpoint_path: "model"\n',
  'listing nonsense': (
    b'model_checkpoint_path: "model.ckpt-20"\nall_model_checkpoint_paths: ""\n'
  ),
}


@pytest.mark.parametrize(
  'content', _USELESS_STATES.values(), ids=_USELESS_STATES
)
def test_state_that_is_of_no_use(tmp_path, content):
  (tmp_path / 'checkpoint').write_bytes(content)
  state = checkpoint_files.read_state(str(tmp_path))
  assert state.newest is None
  assert state.paths == ()
  assert state.problem
  assert '\n' not in state.problem


def test_on_disk_is_what_has_an_index(tmp_path):
  _write_steps(tmp_path, [100, 9, 20])
  (tmp_path / 'model.ckpt-20.index').unlink()
  (tmp_path / 'model.ckpt-30.meta').touch()
  (tmp_path / 'model.ckpt-40_temp').mkdir()
  (tmp_path / 'model.ckpt-x.index').touch()
  (tmp_path / 'held.ckpt-50.index').touch()
  assert checkpoint_files.on_disk(str(tmp_path)) == [
    str(tmp_path / 'model.ckpt-9'),
    str(tmp_path / 'model.ckpt-100'),
  ]


def test_leftovers_of_saves(tmp_path):
  number = 'ad97d5cb7e24941a76f777b02de8bb81'
  left = [
    f'checkpoint.tmp{number}',
    f'graph.pbtxt.tmp{number}',
    f'model.ckpt-10.meta.tmp{number}',
    'model.ckpt-10_temp',
  ]
  others = [
    'checkpoint',
    'model.ckpt-10.data-00000-of-00001',
    'model.ckpt-10.index',
    'model.ckpt-10.meta',
    'result.json.tmp123',
    'temp',
  ]
  for name in (*left, *others):
    (tmp_path / name).touch()
  found = checkpoint_files.leftovers(str(tmp_path))
  assert found == [str(tmp_path / name) for name in left]


def test_steps_and_paths_have_those_that_are_kept_for_ever(tmp_path):
  # The saver does not list 10 any more. It is about to list 40.
  for step in (10, 20, 30, 40):
    writing.write(tmp_path / f'model.ckpt-{step}', {'w': []})
  names = ['model.ckpt-20', 'model.ckpt-30']
  tf1.train.update_checkpoint_state(str(tmp_path), names[-1], names)
  assert list(checkpoint_files.steps_and_paths(str(tmp_path))) == [10, 20, 30]


@pytest.mark.parametrize(
  'content', [None, *_USELESS_STATES.values(), b'model_checkpoint_path: "a-1"']
)
def test_steps_and_paths_without_a_state_of_use(tmp_path, content):
  _write_steps(tmp_path, [9, 20, 100])
  (tmp_path / 'checkpoint').unlink()
  if content is not None:
    (tmp_path / 'checkpoint').write_bytes(content)
  assert list(checkpoint_files.steps_and_paths(str(tmp_path))) == [9, 20, 100]
