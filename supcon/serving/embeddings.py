"""Writes files of embeddings; neighbours.py reads and searches them.

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
import itertools
import json
import os
import shutil
import tempfile
from typing import Any, NamedTuple
import zipfile

import numpy as np
import tensorflow as tf

from supcon.runs import storage

# {array of a .npz: feature of a .tfrecord that holds a row of it}.
_FEATURES = {
  'embeddings': 'embedding',
  'unnormalized_embeddings': 'unnormalized_embedding',
  'projection': 'projection',
  'logits': 'logits',
}

_COPY_BYTES = 2**20
_IDS_AT_A_TIME = 4096


class Origin(NamedTuple):
  """The origin of embeddings; only those of one origin are comparable.

  Attributes:
    fingerprint: The fingerprint of the checkpoint.
    preprocessing: The preprocessing of the images, in one line.
  """

  fingerprint: str
  preprocessing: str


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
