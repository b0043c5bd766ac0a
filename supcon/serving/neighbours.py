"""Finds the nearest neighbours of embeddings in a file of embeddings."""

import contextlib
import dataclasses
import math
import zipfile
import zlib

from absl import logging
import numpy as np
import tensorflow as tf

from supcon.config import safe_text
from supcon.data.sources import splits
from supcon.evaluation import model_outputs
from supcon.evaluation import nearest
from supcon.runs import storage
from supcon.serving import embeddings as embeddings_lib

_MAKE_INDEX = 'make one with --mode=embed --output=FILE.npz'
# Blocks of the index have this many numbers: 32 MiB in float64.
_NUMBERS_AT_A_TIME = 2**22


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
  origin: embeddings_lib.Origin | None = None

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

  def check_origin(
    self, origin: embeddings_lib.Origin, checkpoint: str
  ) -> None:
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
    return nearest.find(
      model_outputs.unit(queries),
      (
        self.embeddings[rows].astype(np.float64)
        for rows in _blocks(self.embeddings)
      ),
      k,
    )


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
  origin, made_by = None, arrays.get('made_by')
  if made_by is not None and len(made_by) != len(embeddings_lib.Origin._fields):
    raise ValueError(
      f'{flag}: made_by holds {len(made_by)} strings, expected '
      f'{len(embeddings_lib.Origin._fields)}; {_MAKE_INDEX}.'
    )
  if made_by is not None:
    origin = embeddings_lib.Origin(*_strings(made_by).tolist())
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
    origin=origin,
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
  for rows in _blocks(embeddings):
    block = embeddings[rows].astype(np.float64)
    is_bad = ~np.isfinite(block).all(axis=1)
    if is_bad.any():
      raise ValueError(
        f'{flag}: the embedding of row {rows.start + np.argmax(is_bad)} is not '
        'finite; make another index from a checkpoint whose training has not '
        'diverged.'
      )
    unit[rows] = model_outputs.unit(block)
  return unit


def _blocks(rows):
  """Yields slices that cover an array, each of 32 MiB in float64."""
  size = math.ceil(_NUMBERS_AT_A_TIME / rows.shape[1])
  for start in range(0, len(rows), size):
    yield slice(start, start + size)
