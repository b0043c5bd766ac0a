"""Finds, checks and reads data sets that TFDS has prepared on disk.

Nothing here uses the network: missing data is an error that says how to get it.
"""

from collections.abc import Sequence
import dataclasses
import functools
import os
import re

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from supcon.config import safe_text
from supcon.data.sources import listing
from supcon.data.sources import splits
from supcon.runs import storage_errors

tf1 = tf.compat.v1

_EVAL_NAMES = ('test', 'validation', 'val')

# Bytes that a TFRecord file adds to each record.
_FRAME_BYTES = 16
# Maximum number of files to read in search of the truncated one.
_MAX_SUSPECTS = 4


@dataclasses.dataclass(frozen=True, eq=False)
class PreparedSplit:
  """See `splits.Split`.

  Attributes:
    name: A TFDS split expression, such as 'train', 'train[:80%]', 'train+test'.
    builder: The TFDS builder that reads it.
    image: Name of the image feature.
    label: Name of the label feature.
    kept: int64, the stored positions in use; None for all.
  """

  name: str
  builder: tfds.core.DatasetBuilder
  image: str
  label: str
  kept: np.ndarray | None = None

  @property
  def num_examples(self) -> int:
    return self._num_stored if self.kept is None else len(self.kept)

  @property
  def num_bytes(self) -> int:
    stored = self.builder.info.splits
    # TFDS does not know the size of a part of a split.
    known = [stored[self.name]] if self.name in stored else stored.values()
    num_bytes = sum(split.num_bytes for split in known)
    num_examples = sum(split.num_examples for split in known)
    return max(1, num_bytes * self.num_examples // num_examples)

  @property
  def fingerprint(self) -> str:
    return (
      f'{self.builder.info.full_name}, {self.name}: {self.num_examples} of '
      f'{self._num_stored} records'
    )

  @property
  def _num_stored(self):
    return self.builder.info.splits[self.name].num_examples

  def records(self) -> tf.data.Dataset:
    """See `splits.Split`; a label that is not a class is an error."""
    shards = self.storage()
    sizes = tf.data.Dataset.from_tensor_slices(np.int64(shards.sizes))
    stored = sizes.enumerate().interleave(
      lambda shard, size: splits.part(
        shards, shard, tf.constant(0, tf.int64), size
      ),
      # One file after another, but the next ones are opened ahead of time.
      cycle_length=1,
      num_parallel_calls=tf.data.AUTOTUNE,
      deterministic=True,
    )
    return stored.map(shards.parse)

  def storage(self) -> splits.Shards:
    files = self.builder.info.splits[self.name].file_instructions
    paths = [str(file.filename) for file in files]
    skips = np.int64([file.skip for file in files])
    begins = np.cumsum([0] + [file.take for file in files])
    if self.kept is None:
      kept_begins, dropped = begins, np.zeros([0], np.int64)
    else:
      kept_begins = np.searchsorted(self.kept, begins)
      dropped = np.setdiff1d(np.arange(self.kept[-1] + 1), self.kept)
    # For each dropped position: how many positions before it are kept.
    num_kept = dropped - np.arange(len(dropped))

    def read(shard, skip):
      position = tf.gather(kept_begins, shard) + skip
      num_dropped = tf.searchsorted(num_kept, [position], 'right', tf.int64)[0]
      stored = position + num_dropped
      records = tf.data.TFRecordDataset(tf.gather(paths, shard)).skip(
        tf.gather(skips, shard) + stored - tf.gather(begins, shard)
      )
      if not len(dropped):
        return records
      records = records.enumerate(stored).filter(
        lambda stored, _: tf.reduce_all(tf.not_equal(stored, dropped))
      )
      return records.map(lambda _, record: record)

    decoding = tfds.decode.PartialDecoding(
      {self.image: True, self.label: True},
      decoders={self.image: tfds.decode.SkipDecoding()},
    )
    features = decoding.extract_features(self.builder.info.features)
    num_classes = features[self.label].num_classes

    def parse(record):
      record = features.deserialize_example(record, decoders=decoding.decoders)
      label = tf.cast(record[self.label], tf.int32)
      is_class = tf.debugging.Assert(
        (label >= 0) & (label < num_classes),
        [f'the label is not one of 0 to {num_classes - 1}, it is', label],
      )
      with tf.control_dependencies([is_class]):
        return record[self.image], tf.identity(label)

    sizes = tuple(int(size) for size in np.diff(kept_begins))
    return splits.Shards(sizes, read, parse)

  def select(self, positions: Sequence[int]) -> 'PreparedSplit':
    kept = np.arange(self._num_stored) if self.kept is None else self.kept
    return dataclasses.replace(self, kept=kept[list(positions)])

  def where(self, position: int) -> str:
    return (
      f'record {self._stored(position)} (counted from 0 as they are read) of '
      f'split {self.name} in {self.builder.data_dir}'
    )

  def example_id(self, position: int) -> str:
    """See `splits.Split`: the stored split and the number of the record.

    For example, record 3 of 'train[80%:]' is 'train/803' if train has 1000.
    """
    begins, pieces = self._origins
    stored = self._stored(position)
    piece = np.searchsorted(begins, stored, 'right') - 1
    name, first = pieces[piece]
    return f'{name}/{first + stored - begins[piece]}'

  def damage(self) -> str | None:
    files = self.builder.info.splits[self.name].file_instructions
    return _first_damaged(
      {str(file.filename): file.examples_in_shard for file in files}
    )

  def _stored(self, position):
    return position if self.kept is None else self.kept[position]

  @functools.cached_property
  def _origins(self):
    """Returns the pieces of stored splits that make up this one.

    Returns:
      int64 [pieces], the first position of each piece; and for each piece the
      name of the stored split and the number of its first record.
    """
    first_of = {}
    for name, split in self.builder.info.splits.items():
      firsts = np.cumsum([0, *split.shard_lengths])
      for path, first in zip(split.filepaths, firsts.tolist()):
        first_of[str(path)] = name, first
    files = self.builder.info.splits[self.name].file_instructions
    begins = np.cumsum([0, *(file.take for file in files)])[:-1]
    pieces = []
    for file in files:
      name, first = first_of[str(file.filename)]
      pieces.append((name, first + file.skip))
    return begins, pieces


def find(name: str, config: str, version: str, data_dir: str) -> str | None:
  """Returns the directory of the newest accepted version, or None.

  Args:
    name: Name of the data set.
    config: Config of the data set; '' for the only one.
    version: The accepted versions, such as '5.*.*'.
    data_dir: The directory of TFDS's data sets.

  Raises:
    ValueError: If there are several configs to choose from.
  """
  parent = os.path.join(data_dir, name, config).rstrip('/')
  versions = [
    tfds.core.Version(found)
    for found in directory_names(parent)
    if tfds.core.Version.is_valid(found) and _is_prepared(parent, found)
  ]
  matching = [found for found in versions if found.match(version)]
  if matching:
    return os.path.join(parent, str(max(matching)))
  if config or versions:
    return None
  configs = [
    found
    for found in directory_names(parent)
    if any(
      tfds.core.Version.is_valid(each)
      and _is_prepared(os.path.join(parent, found), each)
      for each in directory_names(os.path.join(parent, found))
    )
  ]
  if len(configs) > 1:
    raise ValueError(
      f'{parent} holds the configs {splits.listed(configs)}; choose one, such '
      f'as --input_fn=tfds:{name}/{sorted(configs)[0]}.'
    )
  return find(name, configs[0], version, data_dir) if configs else None


def directory_names(directory: str) -> list[str]:
  """Returns the names in a directory; none if it does not exist."""
  if not tf.io.gfile.isdir(directory):
    return []
  # Object stores mark directories with a trailing slash.
  return [name.rstrip('/') for name in tf.io.gfile.listdir(directory)]


def not_prepared(wanted: str, data_dir: str, others: str, note: str) -> str:
  """Returns the message for a data set that the user has to prepare.

  Args:
    wanted: NAME[/CONFIG]:VERSION.
    data_dir: The directory of TFDS's data sets.
    others: The directory that holds other versions of it.
    note: What else the user must do.
  """
  if not tf.io.gfile.isdir(data_dir):
    found = 'does not exist'
  else:
    found = f'holds no {wanted}'
    if names := directory_names(others):
      found += f', only {", ".join(sorted(names))}'
  return (
    f'--data_dir={data_dir} {found}; name the directory that has {wanted}, '
    'or prepare it with: python -c "import tensorflow_datasets as tfds; '
    f"tfds.builder('{wanted}', data_dir='{data_dir}').download_and_prepare()"
    f'"{note}.'
  )


def load(directory: str, train_split: str, eval_split: str) -> splits.Source:
  """Opens a prepared data set.

  Args:
    directory: The directory of one version.
    train_split: The split to train on, or a TFDS expression for a part of one;
      '' is train.
    eval_split: The split to evaluate on; '' is the first of test, validation,
      val.

  Raises:
    ValueError: If a split or a file is missing, a file is truncated or damaged,
      or the data set holds no images with class labels.
  """
  builder = _open(directory)
  file_format = builder.info.file_format
  if file_format != tfds.core.FileFormat.TFRECORD:
    raise ValueError(
      f'{directory} was prepared as {file_format.value}, but only tfrecord can '
      "be read in order; prepare it again with file_format='tfrecord'."
    )
  names = list(builder.info.splits)
  try:
    train_split, eval_split = splits.choose(
      train_split, eval_split, _EVAL_NAMES, names
    )
  except ValueError as error:
    raise ValueError(
      f'{directory}: {error}, which also takes parts of a split such as '
      'train[:80%] and train[80%:].'
    ) from error
  for flag, name in (('train', train_split), ('eval', eval_split)):
    _check_split(builder, f'--{flag}_split={name}', name)
  _check_files(builder, (train_split, eval_split))

  image, label = _features(builder)
  features = builder.info.features
  height, width = features[image].shape[:2]
  return splits.Source(
    train=PreparedSplit(train_split, builder, image, label),
    evaluation=PreparedSplit(eval_split, builder, image, label),
    class_names=tuple(features[label].names),
    image_shape=(height, width) if height and width else None,
  )


def load_evaluation(directory: str) -> splits.Source:
  """Opens a prepared data set that need not have training images.

  Returns:
    A source whose splits are the same: the first of test, validation, val.

  Raises:
    ValueError: See `load`.
  """
  names = _open(directory).info.splits
  found = [name for name in _EVAL_NAMES if name in names]
  if not found:
    raise ValueError(
      f'{directory} has the splits {splits.listed(list(names))}, but none of '
      f'{", ".join(_EVAL_NAMES)}; prepare the data set again.'
    )
  return load(directory, found[0], found[0])


def _open(directory):
  """Returns the TFDS builder of a prepared data set."""
  _refuse_foreign_code(directory)
  try:
    builder = tfds.builder_from_directory(directory)
    # Read now what is used later.
    _ = (builder.info.splits, dict(builder.info.features))
    return builder
  # TFDS may raise any error for a damaged description.
  except Exception as error:  # pylint: disable=broad-except
    reason = safe_text.one_line(error)[:200]
    raise ValueError(
      f'{directory} has no readable description (dataset_info.json, '
      f'features.json): {reason}; prepare the data set again.'
    ) from error


def _refuse_foreign_code(directory):
  """Rejects a description that would make TFDS import another module."""
  path = os.path.join(directory, 'features.json')
  if not tf.io.gfile.exists(path):
    return
  with tf.io.gfile.GFile(path, 'rb') as file:
    text = file.read()
  names = re.findall(rb'"(?:pythonClassName|type)"\s*:\s*"([^"]*)"', text)
  for name in names:
    if not name.startswith(b'tensorflow_datasets.'):
      raise ValueError(
        f'{path} names the class {name.decode(errors="replace")!r}; expected '
        'those of tensorflow_datasets alone, since others would be imported '
        'and run. Prepare the data set with features of TFDS.'
      )


def _is_prepared(parent, version):
  # Without this file nothing can be read, as in an unfinished copy.
  return tf.io.gfile.exists(os.path.join(parent, version, 'dataset_info.json'))


def _check_split(builder, flag, name):
  names = splits.listed(list(builder.info.splits))
  try:
    num_examples = builder.info.splits[name].num_examples
  except (AssertionError, KeyError, ValueError) as error:
    raise ValueError(
      f'{flag} is not in {builder.data_dir}, which has the splits {names}; '
      'give one of them, or a part such as train[:80%].'
    ) from error
  if not num_examples:
    raise ValueError(
      f'{flag} of {builder.data_dir} is empty; choose another of {names}.'
    )


def _features(builder):
  """Returns the names of the image feature and the label feature."""
  features = dict(builder.info.features)
  names = builder.info.supervised_keys
  if not names or len(names) != 2 or set(names) - set(features):
    names = ('image', 'label')
  kinds = (tfds.features.Image, tfds.features.ClassLabel)
  for name, kind in zip(names, kinds):
    feature = features.get(name)
    if not isinstance(feature, kind):
      found = type(feature).__name__ if feature else 'missing'
      raise ValueError(
        f'{builder.data_dir}: feature {name!r} is {found}, but must be a '
        f'tfds.features.{kind.__name__}; use a data set of labelled images.'
      )
  return names


# ------------------------------------------------------------- damaged files


def _check_files(builder, names):
  """Raises ValueError if a file of the splits is missing or truncated.

  This only costs a look at the size of each file, because a split knows the
  bytes of its records. Only if some are missing are files read, the most
  suspicious ones first: TFDS has not always counted bytes in the same way, so
  the sum alone proves nothing.
  """
  read = {
    str(file.filename)
    for name in names
    for file in builder.info.splits[name].file_instructions
  }
  for split in builder.info.splits.values():
    lengths = dict(zip(map(str, split.filepaths), split.shard_lengths))
    if read.isdisjoint(lengths):
      continue
    sizes = dict(zip(lengths, listing.in_parallel(listing.size, lengths)))
    missing = [path for path in lengths if lengths[path] and not sizes[path]]
    if missing:
      raise ValueError(
        f'{missing[0]} is missing or empty; prepare the data set again.'
      )
    frames = _FRAME_BYTES * split.num_examples
    if sum(sizes.values()) >= split.num_bytes + frames:
      continue
    suspects = sorted(
      filter(lengths.get, lengths), key=lambda path: sizes[path] / lengths[path]
    )
    damage = _first_damaged(
      {path: lengths[path] for path in suspects[:_MAX_SUSPECTS]}
    )
    if damage:
      raise ValueError(damage)


def _first_damaged(lengths):
  """Reads TFRecord files; returns a line on the first broken one, or None.

  Args:
    lengths: {path: number of records that it should hold}.
  """
  with tf.Graph().as_default(), tf1.Session() as session:
    path = tf1.placeholder(tf.string, [])
    count = tf.data.TFRecordDataset(path).reduce(
      tf.constant(0, tf.int64), lambda count, _: count + 1
    )
    for name, expected in lengths.items():
      try:
        found = session.run(count, {path: name})
      except tf.errors.DataLossError as error:
        return (
          f'{name} is damaged ({storage_errors.reason(error)}); prepare the '
          'data set again.'
        )
      if found != expected:
        return (
          f'{name} holds {found} records instead of {expected}; prepare the '
          'data set again.'
        )
  return None
