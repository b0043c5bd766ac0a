"""Writes, reads and searches files of embeddings.

Files are written incrementally, but appear complete or not at all: they are
written beside the target (for gs:// in the local directory for temporary
files), then moved to its place. There are two formats. Beside each file is a
FILE.json with facts.

FILE.npz, for NumPy, with N examples:
  embeddings: float32 [N, D] at unit length.
  unnormalized_embeddings: float32 [N, D].
  projection: float32 [N, P] at unit length.
  logits: float32 [N, classes].
  labels: int32 [N]; -1 if the class is unknown.
  ids: strings [N], see `splits.Split.example_id`.
  class_names: strings [classes], in the order of the labels.
  made_by: strings [2], see `Origin`; missing if unknown.

FILE.tfrecord, one tf.train.Example each:
  embedding, unnormalized_embedding, projection, logits: lists of floats.
  label: An integer, as above.
  class_name, id: Bytes, UTF-8; no class name if the class is unknown.
  made_by: Two byte strings, see `Origin`; missing if unknown.
"""

from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import dataclasses
import itertools
import json
import math
import os
import shutil
import tempfile
from typing import Any, NamedTuple
import zipfile
import zlib

from absl import logging
import numpy as np
import tensorflow as tf

from supcon.config import safe_text
from supcon.data.sources import splits
from supcon.runs import storage

# {array of a .npz: feature of a .tfrecord that holds a row of it}.
_FEATURES = {
  'embeddings': 'embedding',
  'unnormalized_embeddings': 'unnormalized_embedding',
  'projection': 'projection',
  'logits': 'logits',
}
_MAKE_INDEX = 'make one with --mode=embed --output=FILE.npz'

_COPY_BYTES = 2**20
_IDS_AT_A_TIME = 4096

# A search takes this many queries at a time, and blocks of the index with this
# many numbers: 32 MiB in float64, and as much for their cosines.
_QUERIES_AT_A_TIME = 256
_NUMBERS_AT_A_TIME = 2**22
# Rounding step of cosines, exact in float32.
_STEP = np.float32(2**-24)


class Origin(NamedTuple):
  """The origin of embeddings; only those of one origin are comparable.

  Attributes:
    fingerprint: The fingerprint of the checkpoint.
    preprocessing: The preprocessing of the images, in one line.
  """

  fingerprint: str
  preprocessing: str


# -------------------------------------------------------------------- writing


def check_output(path: str) -> None:
  """Checks early that a file can be written; makes its directory.

  Raises:
    ValueError: If the name has another ending, or the file cannot be written.
  """
  _store_class(path)
  if tf.io.gfile.isdir(path):
    raise ValueError(
      f'--output={path} is a directory; name a file, such as '
      f'{os.path.join(path, "embeddings.npz")}.'
    )
  probe = _aside(path)
  try:
    tf.io.gfile.makedirs(os.path.dirname(path) or '.')
    with tf.io.gfile.GFile(probe, 'w') as file:
      file.write('')
    tf.io.gfile.remove(probe)
  except (OSError, tf.errors.OpError) as error:
    reason = str(error).splitlines()[0]
    raise ValueError(
      f'--output={path} cannot be written ({reason}); name a file in a '
      'directory that can.'
    ) from error


@contextlib.contextmanager
def open_writer(
  path: str,
  num_examples: int,
  class_names: Sequence[str],
  facts: Mapping[str, Any],
  origin: Origin | None = None,
) -> Iterator['Writer']:
  """Opens a file for embeddings, which appears when the context ends well.

  Only one batch of examples is in memory. While a .npz is assembled, it
  temporarily needs the extra disk space of its largest array. A killed process
  leaves FILE.tmp* behind, and nothing else.

  Args:
    path: FILE.npz or FILE.tfrecord, local or gs://. An existing file of that
      name is replaced at the end, and kept if there is an error.
    num_examples: Number of examples to be added.
    class_names: The classes, in the order of the labels.
    facts: The content of FILE.json besides the numbers of examples and features
      and the names of the classes: data set, split, checkpoint ...
    origin: The origin of the embeddings; None if unknown.

  Raises:
    ValueError: If the name has another ending, or the number of examples added
      differs from `num_examples`.
    OSError, tf.errors.OpError: If the file cannot be written.
  """
  make_store = _store_class(path)
  directory, name = os.path.split(path)
  tf.io.gfile.makedirs(directory or '.')
  with tempfile.TemporaryDirectory(
    prefix=f'{name}.tmp',
    dir=None if storage.is_remote(path) else directory or '.',
  ) as scratch:
    with contextlib.closing(
      make_store(scratch, num_examples, class_names, origin)
    ) as store:
      writer = Writer(store, num_examples, len(class_names))
      yield writer
      writer.check_is_complete()
      whole = store.finish()
    facts = {
      **facts,
      'num_examples': num_examples,
      'num_features': writer.num_features,
      'class_names': list(class_names),
    }
    whole_record = os.path.join(scratch, 'json')
    with open(whole_record, 'w') as file:
      file.write(json.dumps(facts, indent=2) + '\n')
    record_path = f'{path}.json'
    with _near(path, whole) as new, _near(record_path, whole_record) as record:
      # No facts for a moment are better than those of another file.
      _remove(record_path)
      tf.io.gfile.rename(new, path, overwrite=True)
      tf.io.gfile.rename(record, record_path, overwrite=True)


class Writer:
  """Receives the examples of a file, batch by batch.

  Attributes:
    num_features: {name of an array: length of its rows}.
  """

  def __init__(self, store, num_examples, num_classes):
    self._store = store
    self._num_examples = num_examples
    self._num_classes = num_classes
    self._num_added = 0
    self.num_features: dict[str, int] = {}

  def add(self, batch: Mapping[str, Any]) -> None:
    """Adds n examples.

    Args:
      batch: embeddings, unnormalized_embeddings, projection and logits, floats
        [n, ...]; labels, integers [n]; ids, n strings.

    Raises:
      ValueError: If the arrays do not match each other or earlier ones.
    """
    arrays = {name: np.asarray(batch[name], np.float32) for name in _FEATURES}
    num_features = {name: array.shape[1] for name, array in arrays.items()}
    arrays['labels'] = np.asarray(batch['labels'], np.int32)
    ids = list(batch['ids'])
    lengths = {name: len(array) for name, array in arrays.items()}
    if set(lengths.values()) != {len(ids)}:
      raise ValueError(f'a batch holds {len(ids)} ids, but {lengths} rows.')
    self.num_features = self.num_features or num_features
    if num_features != self.num_features:
      raise ValueError(
        f'a batch has {num_features} features, those before it '
        f'{self.num_features}.'
      )
    labels = arrays['labels']
    if np.any((labels < -1) | (labels >= self._num_classes)):
      raise ValueError(
        f'a batch has the labels {labels.min()} to {labels.max()}, but there '
        f'are {self._num_classes} classes.'
      )
    self._num_added += len(ids)
    self._store.add(arrays, ids)

  def check_is_complete(self) -> None:
    """Raises ValueError if examples are missing."""
    if self._num_added != self._num_examples:
      raise ValueError(
        f'{self._num_added} examples were added instead of '
        f'{self._num_examples}.'
      )


class _NpzStore:
  """A .npz file: an uncompressed archive of one .npy file per array.

  An archive stores one file after another, but the rows of all arrays arrive at
  the same time. So each array is written to its own file until all rows are
  there.
  """

  def __init__(self, directory, num_examples, class_names, origin):
    self._directory = directory
    self._num_examples = num_examples
    # Arrays that do not grow.
    self._constants = {'class_names': np.array(class_names, np.str_)}
    if origin:
      self._constants['made_by'] = np.array(origin, np.str_)
    self._arrays = {}
    # JSON, one id per line, because the width of the array is known only at the
    # end.
    self._ids = open(os.path.join(directory, 'ids'), 'w+')
    self._longest_id = 1

  def add(self, arrays, ids):
    for name, array in arrays.items():
      if name not in self._arrays:
        self._arrays[name] = open(os.path.join(self._directory, name), 'wb')
        _write_npy_header(
          self._arrays[name], array.dtype, self._num_examples, *array.shape[1:]
        )
      self._arrays[name].write(np.ascontiguousarray(array).data)
    self._ids.writelines(f'{json.dumps(name)}\n' for name in ids)
    self._longest_id = max(self._longest_id, *map(len, ids), 0)

  def finish(self):
    """Returns the path of the complete file."""
    path = os.path.join(self._directory, 'npz')
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_STORED) as archive:

      def member(name):
        # Without the time, so that the same numbers give the same file.
        info = zipfile.ZipInfo(f'{name}.npy')
        return archive.open(info, 'w', force_zip64=True)

      for name, file in self._arrays.items():
        file.close()
        with open(file.name, 'rb') as rows, member(name) as target:
          shutil.copyfileobj(rows, target, _COPY_BYTES)
        os.remove(file.name)
      with member('ids') as target:
        self._write_ids(target)
      for name, array in self._constants.items():
        with member(name) as target:
          np.lib.format.write_array(target, array)
    return path

  def _write_ids(self, target):
    dtype = np.dtype(f'<U{self._longest_id}')
    _write_npy_header(target, dtype, self._num_examples)
    self._ids.seek(0)
    while lines := list(itertools.islice(self._ids, _IDS_AT_A_TIME)):
      target.write(np.array([*map(json.loads, lines)], dtype).tobytes())

  def close(self):
    for file in (self._ids, *self._arrays.values()):
      file.close()


class _TfRecordStore:
  """A .tfrecord file."""

  def __init__(self, directory, num_examples, class_names, origin):
    del num_examples  # The format does not need it.
    self._origin = [text.encode() for text in origin or ()]
    self._path = os.path.join(directory, 'tfrecord')
    self._class_names = [name.encode() for name in class_names]
    self._file = tf.io.TFRecordWriter(self._path)

  def add(self, arrays, ids):
    for row, (label, name) in enumerate(zip(arrays['labels'].tolist(), ids)):
      example = tf.train.Example()
      features = example.features.feature
      for array, feature in _FEATURES.items():
        features[feature].float_list.value.extend(arrays[array][row].tolist())
      class_name = self._class_names[label] if label >= 0 else b''
      features['label'].int64_list.value.append(label)
      features['class_name'].bytes_list.value.append(class_name)
      features['id'].bytes_list.value.append(name.encode())
      if self._origin:
        features['made_by'].bytes_list.value.extend(self._origin)
      self._file.write(example.SerializeToString())

  def finish(self):
    """Returns the path of the complete file."""
    self._file.close()
    return self._path

  def close(self):
    self._file.close()


_STORES = {'.npz': _NpzStore, '.tfrecord': _TfRecordStore}


def _store_class(path):
  """Returns the class for the ending of a path."""
  ending = os.path.splitext(path)[1]
  if ending not in _STORES:
    raise ValueError(
      f'--output={path} ends in {ending or "nothing"}; name a file that ends '
      f'in {" or ".join(_STORES)}.'
    )
  return _STORES[ending]


def _write_npy_header(file, dtype, *shape):
  np.lib.format.write_array_header_1_0(
    file,
    {
      'descr': np.lib.format.dtype_to_descr(dtype),
      'fortran_order': False,
      'shape': shape,
    },
  )


def _aside(path):
  return f'{path}.tmp{os.getpid()}'


@contextlib.contextmanager
def _near(path, whole):
  """Yields the file, or a copy of it, where it can be renamed to `path`."""
  if not storage.is_remote(path):
    yield whole
    return
  aside = _aside(path)
  try:
    tf.io.gfile.copy(whole, aside, overwrite=True)
    yield aside
  finally:
    _remove(aside)


def _remove(path):
  """Removes a file if it exists."""
  with contextlib.suppress(tf.errors.NotFoundError):
    tf.io.gfile.remove(path)


# ------------------------------------------------------------------ searching


@dataclasses.dataclass(frozen=True, eq=False)
class Index:
  """Embeddings to search, all in memory.

  Attributes:
    path: The file that holds them.
    embeddings: float32 [N, D] at unit length; zeros remain zeros.
    ids: Strings [N], or None.
    labels: Integers [N], or None; -1 if the class is unknown.
    class_names: The classes, in the order of the labels; empty if unknown.
    origin: The origin of the embeddings; None if not recorded.
  """

  path: str
  embeddings: np.ndarray
  ids: np.ndarray | None
  labels: np.ndarray | None
  class_names: tuple[str, ...]
  origin: Origin | None = None

  @property
  def num_examples(self) -> int:
    return len(self.embeddings)

  @property
  def embedding_size(self) -> int:
    return self.embeddings.shape[1]

  def id_of(self, position: int) -> str:
    """Returns the id of an example, or its position if it has none."""
    return str(position if self.ids is None else self.ids[position])

  def class_of(self, position: int) -> str:
    """Returns an example's class, or its label, or '' if both are unknown."""
    label = -1 if self.labels is None else int(self.labels[position])
    if label < 0:
      return ''
    return self.class_names[label] if self.class_names else str(label)

  def check(self, embedding_size: int) -> None:
    """Raises ValueError if the embeddings differ in size from a model's."""
    if embedding_size != self.embedding_size:
      raise ValueError(
        f'--index={self.path} holds embeddings of {self.embedding_size} '
        f'numbers, but this model makes {embedding_size}; {_MAKE_INDEX} and '
        'this model.'
      )

  def check_origin(self, origin: Origin, checkpoint: str) -> None:
    """Checks that a model has made the embeddings.

    It logs if the file does not record that, as in files of other programs or
    older versions.

    Args:
      origin: The origin that the model would record.
      checkpoint: The name of its checkpoint.

    Raises:
      ValueError: If another model or another preprocessing has.
    """
    if self.origin is None:
      logging.warning(
        'WARNING: %s does not say which model made it; its cosines mean '
        'something only if that is %s',
        safe_text.printable(self.path),
        checkpoint,
      )
    elif self.origin.fingerprint != origin.fingerprint:
      raise ValueError(
        f'--index={self.path} is of another model (fingerprint '
        f'{safe_text.printable(self.origin.fingerprint)}, but {checkpoint} has '
        f'{origin.fingerprint}); {_MAKE_INDEX} and this model.'
      )
    elif self.origin != origin:
      raise ValueError(
        f'--index={self.path} is of images that were made otherwise '
        f'({safe_text.printable(self.origin.preprocessing)}, but here '
        f'{origin.preprocessing}); give the same flags, or {_MAKE_INDEX}.'
      )

  def nearest(
    self, queries: np.ndarray, k: int
  ) -> tuple[np.ndarray, np.ndarray]:
    """Finds the nearest examples by cosine similarity, searching all.

    The order is exact: that of the products with `embeddings` in float64,
    rounded to 2^-24, their precision. Among equal ones, the lower position
    comes first. This takes about 100 MiB besides the result, however many
    examples and queries there are.

    Args:
      queries: Floats [Q, D] of any length; a zero query is equally near to all.
      k: Number of results, at least 1; with fewer examples, all of them.

    Returns:
      int64 [Q, k], positions in the index, nearest first; float32 [Q, k],
      their cosine similarities, in [-1, 1].

    Raises:
      ValueError: If queries have another size, or are not finite.
    """
    self.check(queries.shape[1])
    queries = queries.astype(np.float64)
    is_bad = ~np.isfinite(queries).all(axis=1)
    if is_bad.any():
      raise ValueError(
        f'the embedding of query {np.argmax(is_bad)} is not finite; has the '
        'training diverged? Use an earlier checkpoint.'
      )
    queries = _normalized(queries)
    k = min(k, self.num_examples)
    positions = np.zeros([len(queries), k], np.int64)
    cosines = np.zeros([len(queries), k], np.float32)
    for some in _slices(len(queries), _QUERIES_AT_A_TIME):
      positions[some], cosines[some] = self._nearest_of_all(queries[some], k)
    return positions, cosines

  def _nearest_of_all(self, queries, k):
    """Does the work of `nearest` for a few queries, float64, unit length."""
    best = [(np.zeros([0], np.int64), np.zeros([0], np.float32))] * len(queries)
    for block in _slices(self.num_examples, _block_rows(self.embedding_size)):
      rows = self.embeddings[block].astype(np.float64)
      # The rounding of a matrix product depends on the position of a row, which
      # must not decide between equal rows.
      cosines = np.rint(queries @ rows.T / _STEP).astype(np.float32) * _STEP
      for query, row in enumerate(cosines):
        positions, kept = best[query]
        # Values that only equal the last one come after it.
        bound = kept[-1] if len(kept) == k else -np.inf
        new = np.flatnonzero(row > bound)
        if len(new):
          best[query] = _first(
            np.concatenate([positions, block.start + new]),
            np.concatenate([kept, row[new]]),
            k,
          )
    positions, cosines = zip(*best)
    return np.stack(positions), np.clip(np.stack(cosines), -1, 1)


def read_index(path: str) -> Index:
  """Reads embeddings, with ids and labels if there are any.

  Any .npz with an array `embeddings` is accepted. Unknown arrays are not read.
  Everything is held in memory: 10 GiB for 1.28 million embeddings of 2048
  numbers.

  Args:
    path: FILE.npz, local or gs://.

  Raises:
    ValueError: If the file does not exist or its content is invalid.
    tf.errors.OpError: If it cannot be read.
  """
  flag = f'--index={path}'
  if not tf.io.gfile.exists(path) or tf.io.gfile.isdir(path):
    raise ValueError(f'{flag} is not a file that is there; {_MAKE_INDEX}.')
  arrays = _read_arrays(path, flag)
  _check_kinds(arrays, flag)
  num_examples = len(arrays['embeddings'])
  for name in ('ids', 'labels'):
    if name in arrays and len(arrays[name]) != num_examples:
      raise ValueError(
        f'{flag} holds {num_examples} embeddings, but {len(arrays[name])} '
        f'{name}; {_MAKE_INDEX}.'
      )
  origin = arrays.get('made_by')
  if origin is not None and len(origin) != len(Origin._fields):
    raise ValueError(
      f'{flag}: made_by holds {len(origin)} strings, expected '
      f'{len(Origin._fields)}; {_MAKE_INDEX}.'
    )
  labels = arrays.get('labels')
  class_names = arrays.get('class_names')
  if labels is not None and class_names is not None:
    is_outside = (labels < -1) | (labels >= len(class_names))
    if is_outside.any():
      row = np.argmax(is_outside)
      raise ValueError(
        f'{flag}: the label of row {row} is {labels[row]}, but there are '
        f'{len(class_names)} class_names; {_MAKE_INDEX}.'
      )
  return Index(
    path,
    embeddings=_unit_rows(arrays['embeddings'], flag),
    ids=_strings(arrays.get('ids')),
    labels=labels,
    class_names=(
      () if class_names is None else tuple(_strings(class_names).tolist())
    ),
    origin=None if origin is None else Origin(*_strings(origin).tolist()),
  )


# The arrays of an index: kinds of NumPy types, and their description.
_KINDS = {
  'embeddings': ('f', 'floats [N, D]'),
  'ids': ('USiu', 'strings [N]'),
  'labels': ('iu', 'integers [N]'),
  'class_names': ('US', 'strings [classes]'),
  'made_by': ('US', 'strings [2]'),
}


def _read_arrays(path, flag):
  """Returns the arrays of an .npz file that are in `_KINDS`."""
  with contextlib.ExitStack() as stack:
    file = stack.enter_context(
      tf.io.gfile.GFile(path, 'rb')
      if storage.is_remote(path)
      else open(path, 'rb')
    )
    try:
      archive = np.load(file, allow_pickle=False)
    except (EOFError, ValueError, zipfile.BadZipFile):
      archive = None
    # NumPy returns any other file as a single array.
    if not isinstance(archive, np.lib.npyio.NpzFile):
      raise ValueError(f'{flag} is no .npz file, or damaged; {_MAKE_INDEX}.')
    stack.enter_context(archive)
    if 'embeddings' not in archive.files:
      raise ValueError(
        f'{flag} holds {splits.listed(archive.files)}, but no embeddings; '
        f'{_MAKE_INDEX}.'
      )
    arrays = {}
    for name in archive.files:
      if name in _KINDS:
        try:
          arrays[name] = archive[name]
        except (EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
          reason = str(error).splitlines()[0]
          raise ValueError(
            f'{flag}: {name} cannot be read ({reason}); {_MAKE_INDEX}.'
          ) from error
    return arrays


def _check_kinds(arrays, flag):
  """Raises ValueError if an array has a wrong type or shape."""
  for name, array in arrays.items():
    kinds, meaning = _KINDS[name]
    is_known = isinstance(array, np.ndarray) and array.dtype.kind in kinds
    if not is_known or array.ndim != meaning.count(',') + 1:
      found = f'{array.dtype} {list(array.shape)}'
      raise ValueError(
        f'{flag}: {name} are {found}, but must be {meaning}; {_MAKE_INDEX}.'
      )
  if not arrays['embeddings'].size:
    shape = list(arrays['embeddings'].shape)
    raise ValueError(f'{flag}: embeddings are empty, {shape}; {_MAKE_INDEX}.')


def _strings(array):
  """Returns an array as strings; decodes bytes as UTF-8."""
  if array is None or array.dtype.kind == 'U':
    return array
  if array.dtype.kind == 'S':
    return np.char.decode(array, 'utf-8', 'backslashreplace')
  return array.astype(np.str_)


def _unit_rows(embeddings, flag):
  """Returns float32 rows of unit length, in place if possible."""
  unit = embeddings
  if unit.dtype != np.float32:
    unit = np.empty(embeddings.shape, np.float32)
  for rows in _slices(len(unit), _block_rows(embeddings.shape[1])):
    block = embeddings[rows].astype(np.float64)
    is_bad = ~np.isfinite(block).all(axis=1)
    if is_bad.any():
      raise ValueError(
        f'{flag}: the embedding of row {rows.start + np.argmax(is_bad)} is not '
        'finite; make another index from a checkpoint whose training has not '
        'diverged.'
      )
    unit[rows] = _normalized(block)
  return unit


def _normalized(rows):
  """Returns float64 rows at unit length; zeros remain zeros."""
  lengths = np.linalg.norm(rows, axis=1, keepdims=True)
  return rows / np.where(lengths > 0, lengths, 1)


def _block_rows(num_columns):
  """Returns the number of rows of a block, at least one."""
  return math.ceil(_NUMBERS_AT_A_TIME / max(num_columns, _QUERIES_AT_A_TIME))


def _slices(length, size):
  """Yields slices that cover `length`, all but the last one of `size`."""
  for start in range(0, length, size):
    yield slice(start, min(start + size, length))


def _first(positions, cosines, k):
  """Returns positions and values of the k largest cosines, in order."""
  if len(cosines) > k:
    # Include all values equal to the last one; positions decide between them.
    is_near = cosines >= np.partition(cosines, -k)[-k]
    positions, cosines = positions[is_near], cosines[is_near]
  order = np.lexsort((positions, -cosines))[:k]
  return positions[order], cosines[order]
