"""Tests of the search for neighbours in files of embeddings."""

import pathlib

import numpy as np
import pytest

from supcon.evaluation import nearest
from supcon.serving import embeddings
from supcon.serving import neighbours

pytestmark = pytest.mark.usefixtures('no_network')

_CLASSES = ('cat', 'dog', 'große Möwe')
_IDS = ('val/cat/1.jpg', 'val/cat/two\nlines "x".jpg', 'é/猫 🐈.png', '', '4')
_ORIGIN = embeddings.Origin('0123abcd', '16 pixels, IDENTITY, whitening none')


def _batch():
  random = np.random.RandomState(0)
  rows = random.randn(5, 4).astype(np.float32)
  rows /= np.linalg.norm(rows, axis=1, keepdims=True)
  return {
    'embeddings': rows,
    'unnormalized_embeddings': rows,
    'projection': rows,
    'logits': rows[:, :3],
    'labels': np.arange(5, dtype=np.int32) % 4 - 1,  # -1, 0, 1, 2, -1.
    'ids': _IDS,
  }


def _write(path, origin=None):
  with embeddings.open_writer(str(path), 5, _CLASSES, {}, origin) as writer:
    writer.add(_batch())
  return neighbours.read_index(str(path))


def test_index_of_our_own(tmp_path):
  path = str(tmp_path / 'e.npz')
  batch = _batch()
  index = _write(path)
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
  index = neighbours.read_index(_save(tmp_path, embeddings=_TWO))
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
  index = neighbours.read_index(path)
  assert [index.id_of(i) for i in range(2)] == ['é', r'\xff']
  assert index.class_of(0) == '7'
  path = str(tmp_path / 'compressed.npz')
  np.savez_compressed(path, embeddings=_TWO, ids=np.array([30, 40]))
  assert neighbours.read_index(path).id_of(np.int64(1)) == '40'


@pytest.mark.parametrize('dtype', ['<f4', '>f4', '<f8', '<f2'])
def test_index_is_brought_to_unit_length(dtype, tmp_path, monkeypatch):
  monkeypatch.setattr(neighbours, '_NUMBERS_AT_A_TIME', 1)  # Row by row.
  # 3-4-5 and 5-12-13; a direction of zeros cannot be made up.
  rows = np.array([[3, 4], [0, 0], [-1, 0], [10, 24], [0.5, 0]], dtype)
  index = neighbours.read_index(_save(tmp_path, embeddings=rows))
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
    neighbours.read_index(str(path))
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
  return neighbours.read_index(path)


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
  monkeypatch.setattr(nearest, '_QUERIES_AT_A_TIME', random.randint(1, 6))
  monkeypatch.setattr(neighbours, '_NUMBERS_AT_A_TIME', random.randint(1, 99))
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


def test_an_index_of_the_model_is_taken(tmp_path, warnings):
  _write(tmp_path / 'e.npz', _ORIGIN).check_origin(_ORIGIN, 'DIR/model.ckpt-3')
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
  index = _write(tmp_path / 'e.npz', _ORIGIN._replace(**change))
  with pytest.raises(ValueError, match=words) as caught:
    index.check_origin(_ORIGIN, 'DIR/model.ckpt-3')
  assert str(caught.value).startswith(f'--index={tmp_path}/e.npz ')


def test_an_index_that_says_nothing_is_taken_with_a_warning(tmp_path, warnings):
  _write(tmp_path / 'e.npz', None).check_origin(_ORIGIN, 'DIR/model.ckpt-3')
  (line,) = warnings
  assert 'e.npz does not say which model made it' in line


@pytest.mark.parametrize('made_by', [['a'], ['a', 'b', 'c'], [1, 2]])
def test_an_origin_that_is_none_is_refused(tmp_path, made_by):
  path = tmp_path / 'e.npz'
  np.savez(path, embeddings=np.eye(3, dtype=np.float32), made_by=made_by)
  with pytest.raises(ValueError, match='made_by'):
    neighbours.read_index(str(path))
