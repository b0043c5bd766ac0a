"""Tests of files of embeddings: written, read back, searched."""

import collections
import json
import os
import pathlib
import signal
import subprocess
import sys
import tracemalloc
import zipfile

import numpy as np
import pytest
import tensorflow as tf

from supcon.serving import embeddings

pytestmark = pytest.mark.usefixtures('no_network')

_ROOT = pathlib.Path(__file__).resolve().parents[2]
_CLASSES = ('cat', 'dog', 'große Möwe')
_IDS = ('val/cat/1.jpg', 'val/cat/two\nlines "x".jpg', 'é/猫 🐈.png', '', '4')
_SIZES = {
  'embeddings': 4,
  'unnormalized_embeddings': 4,
  'projection': 3,
  'logits': len(_CLASSES),
}


def _batch(count=5, seed=0):
  random = np.random.RandomState(seed)
  batch = {
    name: random.randn(count, size).astype(np.float32)
    for name, size in _SIZES.items()
  }
  batch['embeddings'] /= np.linalg.norm(
    batch['embeddings'], axis=1, keepdims=True
  )
  batch['labels'] = np.arange(count, dtype=np.int32) % 4 - 1  # -1, 0, 1, 2.
  batch['ids'] = [_IDS[i % 5] for i in range(count)]
  return batch


def _part(batch, *slice_args):
  return {name: values[slice(*slice_args)] for name, values in batch.items()}


def _write(path, *batches, num_examples=None, facts=None, classes=_CLASSES):
  if num_examples is None:
    num_examples = sum(len(batch['ids']) for batch in batches)
  with embeddings.open_writer(
    str(path), num_examples, classes, facts or {}
  ) as writer:
    for batch in batches:
      writer.add(batch)


def _read_npz(path):
  with np.load(path, allow_pickle=False) as arrays:
    return dict(arrays)


def _read_tfrecord(path):
  """Returns {feature: [value of each example]}."""
  columns = collections.defaultdict(list)
  for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
    example = tf.train.Example.FromString(record)
    for name, feature in example.features.feature.items():
      values = getattr(feature, feature.WhichOneof('kind')).value
      columns[name].append(list(values))
  return dict(columns)


# -------------------------------------------------------------------- writing


def test_npz_holds_what_was_added(tmp_path):
  batch = _batch()
  path = tmp_path / 'new' / 'folder' / 'e.npz'
  # In parts of any size, none among them.
  parts = [(0, 2), (2, 2), (2, 5)]
  _write(path, *(_part(batch, *part) for part in parts))
  arrays = _read_npz(path)
  assert list(arrays) == [*_SIZES, 'labels', 'ids', 'class_names']
  for name in _SIZES:
    assert arrays[name].dtype == np.float32
    np.testing.assert_array_equal(arrays[name], batch[name])
  assert arrays['labels'].dtype == np.int32
  assert arrays['labels'].tolist() == [-1, 0, 1, 2, -1]
  assert arrays['ids'].dtype.kind == 'U'
  assert tuple(arrays['ids']) == _IDS
  assert tuple(arrays['class_names']) == _CLASSES
  # Nothing else is left.
  assert sorted(os.listdir(path.parent)) == ['e.npz', 'e.npz.json']


def test_tfrecord_holds_what_was_added(tmp_path):
  batch = _batch()
  path = tmp_path / 'e.tfrecord'
  _write(path, _part(batch, 0, 3), _part(batch, 3, 5))
  columns = _read_tfrecord(path)
  for array, feature in (
    ('embeddings', 'embedding'),
    ('unnormalized_embeddings', 'unnormalized_embedding'),
    ('projection', 'projection'),
    ('logits', 'logits'),
  ):
    np.testing.assert_array_equal(
      np.float32(columns.pop(feature)), batch[array]
    )
  names = ('', 'cat', 'dog', 'große Möwe', '')
  assert columns == {
    'label': [[-1], [0], [1], [2], [-1]],
    'class_name': [[name.encode()] for name in names],
    'id': [[name.encode()] for name in _IDS],
  }
  assert sorted(os.listdir(tmp_path)) == ['e.tfrecord', 'e.tfrecord.json']


@pytest.mark.parametrize('ending', ['npz', 'tfrecord'])
def test_facts_lie_beside_the_file(ending, tmp_path):
  path = tmp_path / f'e.{ending}'
  _write(path, _batch(), facts={'split': 'test', 'global_step': 7})
  assert json.loads((tmp_path / f'e.{ending}.json').read_text()) == {
    'split': 'test',
    'global_step': 7,
    'num_examples': 5,
    'num_features': _SIZES,
    'class_names': list(_CLASSES),
  }


_ORIGIN = embeddings.Origin('0123abcd', '16 pixels, IDENTITY, whitening none')


@pytest.mark.parametrize('ending', ['npz', 'tfrecord'])
def test_files_say_what_made_them(ending, tmp_path):
  path = str(tmp_path / f'e.{ending}')
  with embeddings.open_writer(path, 5, _CLASSES, {}, _ORIGIN) as writer:
    writer.add(_batch())
  if ending == 'npz':
    assert embeddings.Origin(*_read_npz(path)['made_by']) == _ORIGIN
    assert embeddings.read_index(path).origin == _ORIGIN
  else:
    made_by = [text.encode() for text in _ORIGIN]
    assert _read_tfrecord(path)['made_by'] == [made_by] * 5


def test_same_numbers_make_the_same_file(tmp_path):
  batch = _batch()
  _write(tmp_path / 'a.npz', batch)
  _write(tmp_path / 'b.npz', _part(batch, 0, 1), _part(batch, 1, 5))
  one, two = (tmp_path / name for name in ('a.npz', 'b.npz'))
  assert one.read_bytes() == two.read_bytes()


def test_any_program_can_read_the_archive(tmp_path):
  # Files of more than 4 GiB need the fields of ZIP64, hence all have them.
  _write(tmp_path / 'e.npz', _batch())
  with zipfile.ZipFile(tmp_path / 'e.npz') as archive:
    assert archive.testzip() is None
    for info in archive.infolist():
      assert info.compress_type == zipfile.ZIP_STORED
      assert info.file_size % 4 == 0
      with archive.open(info) as member:
        version = np.lib.format.read_magic(member)
        assert version == (1, 0)


def test_other_types_become_float32(tmp_path):
  batch = _batch()
  halves = {
    **batch,
    'embeddings': tf.cast(batch['embeddings'], tf.bfloat16).numpy(),
    'logits': np.asfortranarray(batch['logits'].astype(np.float64)),
    'labels': batch['labels'].astype(np.int64),
  }
  _write(tmp_path / 'e.npz', halves)
  arrays = _read_npz(tmp_path / 'e.npz')
  np.testing.assert_array_equal(
    arrays['embeddings'], halves['embeddings'].astype(np.float32)
  )
  np.testing.assert_array_equal(arrays['logits'], batch['logits'])
  assert {a.dtype.str for a in arrays.values()} >= {'<f4', '<i4'}


@pytest.mark.parametrize('ending', ['npz', 'tfrecord'])
def test_memory_does_not_grow_with_the_examples(ending, tmp_path, monkeypatch):
  monkeypatch.setattr(embeddings, '_COPY_BYTES', 2**10)
  monkeypatch.setattr(embeddings, '_IDS_AT_A_TIME', 32)
  batch = {name: np.ones([32, 256], np.float32) for name in _SIZES}
  batch['labels'] = np.zeros(32, np.int32)
  batch['ids'] = [f'val/cat/{i:064}.jpg' for i in range(32)]

  def peak(num_batches):
    tracemalloc.start()
    _write(tmp_path / f'e.{ending}', *[batch] * num_batches, classes=['cat'])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak

  peak(1)
  # Of 15 batches the numbers take 2 MB, the ids 130 kB.
  assert peak(20) < peak(5) + 20_000


def _interrupted(path):
  with embeddings.open_writer(str(path), 9, _CLASSES, {}) as writer:
    writer.add(_batch())
    assert any('.tmp' in name for name in os.listdir(path.parent))
    raise KeyboardInterrupt


def _too_few(path):
  _write(path, _batch(), num_examples=6)


def _too_many(path):
  _write(path, _batch(), _batch(), num_examples=9)


def _other_sizes(path):
  other = {**_batch(), 'projection': np.zeros([5, 9])}
  _write(path, _batch(), other)


def _other_lengths(path):
  _write(path, {**_batch(), 'labels': np.zeros([4])})


def _unknown_label(path):
  _write(path, {**_batch(), 'labels': np.array([0, 1, 2, 3, 0])})


@pytest.mark.parametrize('ending', ['npz', 'tfrecord'])
@pytest.mark.parametrize('is_there', [False, True])
@pytest.mark.parametrize(
  'failing, error, says',
  [
    (_interrupted, KeyboardInterrupt, '^$'),
    (_too_few, ValueError, '5 examples were added instead of 6'),
    (_too_many, ValueError, '10 examples were added instead of 9'),
    (_other_sizes, ValueError, "'projection': 9"),
    (_other_lengths, ValueError, "5 ids, but .*'labels': 4"),
    (_unknown_label, ValueError, 'labels 0 to 3, but there are 3 classes'),
  ],
)
def test_whole_or_nothing(failing, error, says, is_there, ending, tmp_path):
  path = tmp_path / f'e.{ending}'
  before = {}
  if is_there:
    _write(path, _batch(3), facts={'old': True})
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    assert len(before) == 2
  with pytest.raises(error, match=says):
    failing(path)
  assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


_KILLED = """
import os, signal, sys
sys.path.insert(0, {root!r})
from tests.serving import embeddings_test
from supcon.serving import embeddings
with embeddings.open_writer({path!r}, 999, ('a', 'b', 'c'), {{}}) as writer:
  for _ in range(99):
    writer.add(embeddings_test._batch())
  os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_kill_leaves_what_was_there(tmp_path):
  path = tmp_path / 'e.npz'
  _write(path, _batch(3), facts={'old': True})
  before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
  done = subprocess.run(
    [sys.executable, '-c', _KILLED.format(root=str(_ROOT), path=str(path))],
    capture_output=True,
    text=True,
    timeout=120,
  )
  assert done.returncode == -signal.SIGKILL, done.stderr
  after = {p.name: p for p in tmp_path.iterdir()}
  assert {name: after.pop(name).read_bytes() for name in before} == before
  assert [name.startswith('e.npz.tmp') for name in after] == [True]
  # The next one is not disturbed.
  _write(path, _batch(5))
  assert len(_read_npz(path)['labels']) == 5


def test_a_file_is_replaced_with_its_facts(tmp_path):
  path = tmp_path / 'e.npz'
  _write(path, _batch(3), facts={'old': True})
  whole = path.read_bytes()
  with path.open('rb') as file:
    _write(path, _batch(4), facts={'new': True})
    # Who has begun to read it reads the old one to its end.
    assert file.read() == whole
  assert len(_read_npz(path)['labels']) == 4
  facts = json.loads((tmp_path / 'e.npz.json').read_text())
  assert facts['num_examples'] == 4 and facts['new'] and 'old' not in facts


@pytest.mark.parametrize('ending', ['npz', 'tfrecord'])
def test_any_file_system_will_do(ending, tmp_path, monkeypatch):
  monkeypatch.setattr('tempfile.tempdir', str(tmp_path))
  path = f'ram://embeddings/some/{ending}/e.{ending}'
  embeddings.check_output(path)
  for count in (3, 5):
    _write(path, _batch(count))
  directory = os.path.dirname(path)
  assert sorted(tf.io.gfile.listdir(directory)) == [
    f'e.{ending}',
    f'e.{ending}.json',
  ]
  assert not os.listdir(tmp_path)
  if ending == 'npz':
    index = embeddings.read_index(path)
    assert index.num_examples == 5
    np.testing.assert_allclose(
      index.embeddings, _batch()['embeddings'], rtol=1e-6
    )
  else:
    assert len(_read_tfrecord(path)['id']) == 5


@pytest.mark.parametrize(
  'step, left', [('copy', ['e.npz', 'e.npz.json']), ('rename', ['e.npz'])]
)
def test_an_upload_that_fails_leaves_what_was_there(
  step, left, tmp_path, monkeypatch
):
  monkeypatch.setattr('tempfile.tempdir', str(tmp_path))
  path = f'ram://failing/{step}/e.npz'
  _write(path, _batch(3))

  def fail(source, *args, **kwargs):
    assert tf.io.gfile.exists(source)
    raise tf.errors.UnavailableError(None, None, 'no network')

  monkeypatch.setattr(tf.io.gfile, step, fail)
  with pytest.raises(tf.errors.UnavailableError):
    _write(path, _batch(5))
  assert embeddings.read_index(path).num_examples == 3
  assert sorted(tf.io.gfile.listdir(os.path.dirname(path))) == left
  assert not os.listdir(tmp_path)


def test_here(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  for path in ('deep/a.npz', 'b.npz'):
    embeddings.check_output(path)
    _write(path, _batch())
    assert embeddings.read_index(path).num_examples == 5
  assert sorted(p.name for p in tmp_path.rglob('*.npz')) == ['a.npz', 'b.npz']


def _output_error(path):
  with pytest.raises(ValueError) as error:
    embeddings.check_output(str(path))
  assert '\n' not in str(error.value)
  return str(error.value)


def test_output_that_can_be_written(tmp_path):
  old = tmp_path / 'old.npz'
  old.write_bytes(b'old')
  embeddings.check_output(str(old))
  embeddings.check_output(str(tmp_path / 'new' / 'e.tfrecord'))
  assert old.read_bytes() == b'old'
  assert not os.listdir(tmp_path / 'new')
  assert sorted(os.listdir(tmp_path)) == ['new', 'old.npz']


def test_output_that_cannot_be_written(tmp_path):
  for path, ending in (
    ('', 'nothing'),
    ('e.h5', '.h5'),
    ('a.npz/e', 'nothing'),
  ):
    assert _output_error(path) == (
      f'--output={path} ends in {ending}; name a file that ends in .npz or '
      '.tfrecord.'
    )
  (tmp_path / 'e.npz').mkdir()
  assert _output_error(tmp_path / 'e.npz') == (
    f'--output={tmp_path}/e.npz is a directory; name a file, such as '
    f'{tmp_path}/e.npz/embeddings.npz.'
  )
  (tmp_path / 'file').write_text('no directory')
  for path in (tmp_path / 'file' / 'e.npz', tmp_path / 'file' / 'f' / 'e.npz'):
    message = _output_error(path)
    assert message.startswith(f'--output={path} cannot be written (')
    assert message.endswith('); name a file in a directory that can.')
  with pytest.raises(ValueError, match='ends in .csv; name'):
    _write(tmp_path / 'e.csv', _batch())


# -------------------------------------------------------------------- reading


def test_index_of_our_own(tmp_path):
  path = str(tmp_path / 'e.npz')
  batch = _batch()
  _write(path, batch)
  index = embeddings.read_index(path)
  assert (index.path, index.num_examples, index.embedding_size) == (path, 5, 4)
  np.testing.assert_allclose(index.embeddings, batch['embeddings'], rtol=1e-6)
  assert index.embeddings.dtype == np.float32
  assert index.class_names == _CLASSES
  assert [index.id_of(i) for i in range(5)] == list(_IDS)
  assert [index.class_of(i) for i in range(5)] == [
    *('', 'cat', 'dog', 'große Möwe', '')
  ]
  index.check(4)
  with pytest.raises(ValueError) as error:
    index.check(2048)
  assert str(error.value) == (
    f'--index={path} holds embeddings of 4 numbers, but this model makes 2048; '
    'make one with --mode=embed --output=FILE.npz and this model.'
  )


def _save(tmp_path, **arrays):
  path = str(tmp_path / 'e.npz')
  np.savez(path, **arrays)
  return path


_TWO = np.eye(2)


def test_index_of_others(tmp_path):
  index = embeddings.read_index(_save(tmp_path, embeddings=_TWO))
  assert [index.id_of(i) for i in range(2)] == ['0', '1']
  assert [index.class_of(i) for i in range(2)] == ['', '']
  assert index.ids is index.labels is None and index.class_names == ()

  path = _save(
    tmp_path,
    embeddings=_TWO.astype('>f2', order='F'),
    labels=np.array([7, 255], np.uint8).astype(np.int64),
    ids=np.array(['é'.encode(), b'\xff']),
    more=np.array([{}], object),  # Never looked at.
  )
  index = embeddings.read_index(path)
  assert [index.id_of(i) for i in range(2)] == ['é', r'\xff']
  assert index.class_of(0) == '7'
  path = str(tmp_path / 'compressed.npz')
  np.savez_compressed(path, embeddings=_TWO, ids=np.array([30, 40]))
  assert embeddings.read_index(path).id_of(np.int64(1)) == '40'


@pytest.mark.parametrize('dtype', ['<f4', '>f4', '<f8', '<f2'])
def test_index_is_brought_to_unit_length(dtype, tmp_path, monkeypatch):
  monkeypatch.setattr(embeddings, '_NUMBERS_AT_A_TIME', 1)  # Row by row.
  # 3-4-5 and 5-12-13; a direction of zeros cannot be made up.
  rows = np.array([[3, 4], [0, 0], [-1, 0], [10, 24], [0.5, 0]], dtype)
  index = embeddings.read_index(_save(tmp_path, embeddings=rows))
  assert index.embeddings.dtype == np.float32
  np.testing.assert_allclose(
    index.embeddings,
    [[0.6, 0.8], [0, 0], [-1, 0], [5 / 13, 12 / 13], [1, 0]],
    rtol=1e-7,
  )


@pytest.mark.parametrize(
  'arrays, says',
  [
    ({'x': _TWO, 'y': _TWO}, ' holds x, y, but no embeddings; make one with'),
    (
      {'embeddings': _TWO[0]},
      ': embeddings are float64 [2], but must be floats',
    ),
    (
      {'embeddings': _TWO[None]},
      ': embeddings are float64 [1, 2, 2], but must',
    ),
    (
      {'embeddings': _TWO.astype(int)},
      ': embeddings are int64 [2, 2], but must',
    ),
    (
      {'embeddings': _TWO.astype(str)},
      ': embeddings are <U32 [2, 2], but must',
    ),
    ({'embeddings': _TWO[:0]}, ': embeddings are empty, [0, 2]; make one with'),
    ({'embeddings': _TWO[:, :0]}, ': embeddings are empty, [2, 0]; make one'),
    (
      {'embeddings': _TWO.astype(object)},
      ': embeddings cannot be read (Object arrays cannot be loaded when '
      'allow_pickle=False); make one with',
    ),
    (
      {'embeddings': _TWO, 'ids': np.array(['a', {}], object)},
      ': ids cannot be read (Object arrays cannot be loaded when',
    ),
    (
      {'embeddings': [[1, 0], [np.nan, 0]]},
      ': the embedding of row 1 is not finite; make another index',
    ),
    (
      {'embeddings': [[1, 0], [1, 0], [1, np.inf]]},
      ': the embedding of row 2 is not finite; make another index',
    ),
    (
      {'embeddings': _TWO, 'labels': np.zeros(3, int)},
      ' holds 2 embeddings, but 3 labels; make one with',
    ),
    (
      {'embeddings': _TWO, 'ids': ['a']},
      ' holds 2 embeddings, but 1 ids; make one with',
    ),
    (
      {'embeddings': _TWO, 'ids': [['a', 'b']]},
      ': ids are <U1 [1, 2], but must be strings [N]; make one with',
    ),
    (
      {'embeddings': _TWO, 'labels': _TWO[0]},
      ': labels are float64 [2], but must be integers [N]; make one with',
    ),
    (
      {'embeddings': _TWO, 'class_names': [1, 2]},
      ': class_names are int64 [2], but must be strings [classes]; make',
    ),
    (
      {'embeddings': _TWO, 'labels': [0, 2], 'class_names': ['a', 'b']},
      ': the label of row 1 is 2, but there are 2 class_names; make one with',
    ),
    (
      {'embeddings': _TWO, 'labels': [-2, 1], 'class_names': ['a', 'b']},
      ': the label of row 0 is -2, but there are 2 class_names; make one with',
    ),
  ],
)
def test_what_is_no_index(arrays, says, tmp_path):
  path = _save(tmp_path, **arrays)
  assert _index_error(path).startswith(f'--index={path}{says}')


def _index_error(path):
  with pytest.raises(ValueError) as error:
    embeddings.read_index(str(path))
  assert '\n' not in str(error.value)
  return str(error.value)


def test_what_is_no_index_file(tmp_path):
  message = _index_error(tmp_path / 'none.npz')
  assert message == (
    f'--index={tmp_path}/none.npz is not a file that is there; make one with '
    '--mode=embed --output=FILE.npz.'
  )
  assert 'is not a file that is there' in _index_error(tmp_path)
  np.save(tmp_path / 'e.npy', _TWO)
  np.save(tmp_path / 'pickle', np.array({}, object), allow_pickle=True)
  (tmp_path / 'empty').write_bytes(b'')
  (tmp_path / 'text').write_text('embeddings')
  whole = pathlib.Path(_save(tmp_path, embeddings=np.ones([99, 99])))
  data = whole.read_bytes()
  (tmp_path / 'half').write_bytes(data[: len(data) // 2])
  for name in ('e.npy', 'pickle.npy', 'empty', 'text', 'half'):
    path = tmp_path / name
    assert _index_error(path) == (
      f'--index={path} is no .npz file, or damaged; make one with --mode=embed '
      '--output=FILE.npz.'
    )
  changed = bytearray(data)
  changed[len(data) // 2] ^= 1
  whole.write_bytes(bytes(changed))
  assert ': embeddings cannot be read (Bad CRC-32' in _index_error(whole)


# ------------------------------------------------------------------ searching


def _index(rows, tmp_path):
  path = str(tmp_path / 'e.npz')
  np.savez(path, embeddings=np.asarray(rows, np.float32))
  return embeddings.read_index(path)


def _nearest_by_loop(rows, queries, k):
  """One cosine after the other, of rows at unit length."""
  found = []
  for query in queries.astype(np.float64):
    query /= np.sqrt(sum(query**2)) or 1
    cosines = []
    for position, row in enumerate(rows.astype(np.float64)):
      cosine = sum(a * b for a, b in zip(query, row))
      cosines.append((-np.rint(cosine * 2**24) / 2**24, position))
    found.append(sorted(cosines)[:k])
  found = np.array(found)
  return found[..., 1], -found[..., 0]


def test_nearest_by_hand(tmp_path):
  # At 0, 90, 180, 45 degrees and nowhere; the length does not matter.
  index = _index([[2, 0], [0, 3], [-1, 0], [1, 1], [0, 0]], tmp_path)
  positions, cosines = index.nearest(np.array([[0, 9.0], [-1, 0]]), 3)
  assert positions.dtype == np.int64 and cosines.dtype == np.float32
  half = 0.5**0.5
  # As near as the other zeros, the earlier one comes first.
  assert positions.tolist() == [[1, 3, 0], [2, 1, 4]]
  np.testing.assert_allclose(cosines, [[1, half, 0], [1, 0, 0]], atol=1e-7)


@pytest.mark.parametrize('seed', range(8))
def test_nearest_is_what_a_loop_finds(seed, tmp_path, monkeypatch):
  random = np.random.RandomState(seed)
  num_rows, num_queries, size = random.randint([20, 1, 1], [90, 12, 9])
  # With blocks of a few rows and queries, the last of them smaller.
  monkeypatch.setattr(embeddings, '_QUERIES_AT_A_TIME', random.randint(1, 6))
  monkeypatch.setattr(embeddings, '_NUMBERS_AT_A_TIME', random.randint(1, 99))
  rows = random.randn(num_rows, size).astype(np.float32)
  if seed % 2:
    # Few directions, hence most cosines are ties: over and over again.
    rows = random.randint(-1, 2, [num_rows, size]).astype(np.float32)
  queries = random.randn(num_queries, size).astype(np.float32)
  if seed % 4 == 3:
    queries = rows[random.randint(num_rows, size=num_queries)]
  index = _index(rows, tmp_path)
  for k in (1, 2, 7, num_rows - 1, num_rows, num_rows + 5):
    positions, cosines = index.nearest(queries, k)
    expected_positions, expected_cosines = _nearest_by_loop(
      index.embeddings, queries, k
    )
    assert positions.shape == (num_queries, min(k, num_rows))
    np.testing.assert_allclose(cosines, expected_cosines, atol=2e-7)
    np.testing.assert_array_equal(positions, expected_positions)
    assert np.all(np.abs(cosines) <= 1)


def test_equal_ones_come_in_their_order_wherever_blocks_end(tmp_path):
  # What a matrix product rounds depends on where in it a row stands.
  random = np.random.RandomState(0)
  row = random.randn(1, 37)
  others = random.randn(500, 37)
  rows = np.concatenate([others, *[row] * 100, others, *[row] * 100])
  index = _index(rows, tmp_path)
  positions, cosines = index.nearest(row + 0.1 * others[:3], 200)
  expected = [*range(500, 600), *range(1100, 1200)]
  assert positions.tolist() == [expected] * 3
  assert np.all(cosines == cosines[:, :1])


def test_the_answer_does_not_depend_on_the_company(tmp_path, monkeypatch):
  random = np.random.RandomState(1)
  index = _index(random.randn(300, 16), tmp_path)
  queries = random.randn(40, 16)
  positions, cosines = index.nearest(queries, 9)
  for i in range(0, 40, 13):
    alone = index.nearest(queries[i : i + 1], 9)
    np.testing.assert_array_equal(alone[0][0], positions[i])
    np.testing.assert_array_equal(alone[1][0], cosines[i])
  # Fewer neighbours are the first ones; every row is its own nearest.
  np.testing.assert_array_equal(index.nearest(queries, 4)[0], positions[:, :4])
  own, cosines = index.nearest(index.embeddings, 1)
  np.testing.assert_array_equal(own[:, 0], np.arange(300))
  np.testing.assert_allclose(cosines, np.ones([300, 1]), atol=2e-7)
  assert np.all(cosines <= 1)


def test_queries_that_are_none(tmp_path):
  index = _index(np.eye(3), tmp_path)
  positions, cosines = index.nearest(np.zeros([0, 3], np.float32), 2)
  assert positions.shape == cosines.shape == (0, 2)
  positions, cosines = index.nearest(np.zeros([1, 3], np.float32), 2)
  assert positions.tolist() == [[0, 1]] and cosines.tolist() == [[0, 0]]
  with pytest.raises(ValueError, match='of 3 numbers, but this model makes 2'):
    index.nearest(np.zeros([1, 2]), 1)
  with pytest.raises(ValueError, match='of query 1 is not finite; has the'):
    index.nearest(np.array([[1, 0, 0], [0, np.nan, 0]]), 1)


# -------------------------------------------------------------------- origins


def _written_by(path, origin):
  with embeddings.open_writer(str(path), 5, _CLASSES, {}, origin) as writer:
    writer.add(_batch())
  return embeddings.read_index(str(path))


def test_an_index_of_the_model_is_taken(tmp_path, warnings):
  _written_by(tmp_path / 'e.npz', _ORIGIN).check_origin(
    _ORIGIN, 'DIR/model.ckpt-3'
  )
  assert warnings == []


@pytest.mark.parametrize(
  'change, words',
  [
    (
      {'fingerprint': '9999ffff'},
      r'of another model \(fingerprint 9999ffff, but DIR/model.ckpt-3 has 0123',
    ),
    (
      {'preprocessing': '17 pixels'},
      r'made otherwise \(17 pixels, but here 16 pixels, IDENTITY',
    ),
  ],
)
def test_an_index_of_another_model_is_refused(tmp_path, change, words):
  index = _written_by(tmp_path / 'e.npz', _ORIGIN._replace(**change))
  with pytest.raises(ValueError, match=words) as caught:
    index.check_origin(_ORIGIN, 'DIR/model.ckpt-3')
  assert str(caught.value).startswith(f'--index={tmp_path}/e.npz ')


def test_an_index_that_says_nothing_is_taken_with_a_warning(tmp_path, warnings):
  _written_by(tmp_path / 'e.npz', None).check_origin(
    _ORIGIN, 'DIR/model.ckpt-3'
  )
  (line,) = warnings
  assert 'e.npz does not say which model made it' in line


@pytest.mark.parametrize('made_by', [['a'], ['a', 'b', 'c'], [1, 2]])
def test_an_origin_that_is_none_is_refused(tmp_path, made_by):
  path = tmp_path / 'e.npz'
  np.savez(path, embeddings=np.eye(3, dtype=np.float32), made_by=made_by)
  with pytest.raises(ValueError, match='made_by'):
    embeddings.read_index(str(path))
