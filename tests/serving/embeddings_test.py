"""Tests of files of embeddings."""

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
from supcon.serving import neighbours

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
    assert neighbours.read_index(path).origin == _ORIGIN
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
    index = neighbours.read_index(path)
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
  assert neighbours.read_index(path).num_examples == 3
  assert sorted(tf.io.gfile.listdir(os.path.dirname(path))) == left
  assert not os.listdir(tmp_path)


def test_here(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  for path in ('deep/a.npz', 'b.npz'):
    embeddings.check_output(path)
    _write(path, _batch())
    assert neighbours.read_index(path).num_examples == 5
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
