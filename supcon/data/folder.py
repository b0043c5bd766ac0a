"""Images in folders: DIRECTORY/SPLIT/CLASS/IMAGE.

The folders of the training split are the classes. Examples are not in the order
of their names, in which one class would follow the other, but in that of a hash
of them: the first n are a fair sample, and a shuffle buffer sees all classes.
"""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Sequence
import concurrent.futures
import dataclasses
import functools
import hashlib
import math
import os
import zlib

import numpy as np
import tensorflow as tf

from supcon.data import image_files
from supcon.data import splits

# Of files that are taken for images.
ENDINGS = ('.jpg', '.jpeg', '.png', '.bmp', '.gif')
_EXPECTED = f'CLASS/*{{{",".join(ENDINGS)}}}'

# ImageNet's is called val.
_EVAL_NAMES = ('val', 'validation', 'test')

# Directories are listed, and files looked at, so many at a time: in an object
# store each takes a request.
_NUM_THREADS = 32
# So many files tell how large all are.
_MAX_MEASURED = 512


@dataclasses.dataclass(frozen=True, eq=False)
class FolderSplit:
  """See `splits.Split`.

  Attributes:
    name: The folder's.
    directory: Its path.
    class_names: In the order of the labels.
    labels: int32 [N], by position.
    files: Names within the class's folder, by position.
    num_bytes: About.
  """

  name: str
  directory: str
  class_names: tuple[str, ...]
  labels: np.ndarray
  files: tuple[str, ...]
  num_bytes: int

  @property
  def num_examples(self) -> int:
    return len(self.files)

  @functools.cached_property
  def fingerprint(self) -> str:
    paths = '/'.join(map(self._relative_path, range(self.num_examples)))
    digest = hashlib.md5(paths.encode()).hexdigest()
    return f'{self.num_examples} files, {digest}'

  def records(self) -> tf.data.Dataset:
    files = self.storage()
    names = tf.data.Dataset.from_tensor_slices(files.names())
    return names.map(
      files.read, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True
    )

  def storage(self) -> splits.Files:
    directories = [
      os.path.join(self.directory, name) for name in self.class_names
    ]

    def names():
      # Compressed, since every checkpoint holds a copy of the graph: ImageNet's
      # names and labels take 10 MB instead of 33 MB. A slash separates them,
      # the one character that no name can hold.
      files = tf.strings.split(_constant('/'.join(self.files).encode()), '/')
      labels = tf.io.decode_raw(
        _constant(self.labels.astype('<i4').tobytes()), tf.int32
      )
      return files, labels

    def read(file, label):
      path = tf.strings.join([tf.gather(directories, label), file], '/')
      return image_files.readable(tf.io.read_file(path)), label

    return splits.Files(names, read)

  def select(self, positions: Sequence[int]) -> 'FolderSplit':
    return dataclasses.replace(
      self,
      labels=self.labels[list(positions)],
      files=tuple(self.files[position] for position in positions),
      num_bytes=self.num_bytes * len(positions) // self.num_examples,
    )

  def where(self, position: int) -> str:
    return os.path.join(self.directory, self._relative_path(position))

  def example_id(self, position: int) -> str:
    return f'{self.name}/{self._relative_path(position)}'

  def damage(self) -> None:
    return None

  def _relative_path(self, position):
    return f'{self.class_names[self.labels[position]]}/{self.files[position]}'


def load(
  data_dir: str | None, train_split: str, eval_split: str
) -> splits.Source:
  """Lists the images below a directory, without opening them.

  Args:
    data_dir: The directory that holds the splits, local or gs://.
    train_split: The folder to train on; '' is train.
    eval_split: The folder to evaluate on; '' is the first of val, validation,
      test. Its classes must be among those of the training split.

  Raises:
    ValueError: If a folder is missing or empty, or a class is unknown.
  """
  if not data_dir:
    raise ValueError(
      '--input_fn=folder needs --data_dir, the directory that holds '
      f'train/{_EXPECTED} and val/{_EXPECTED}.'
    )
  if not tf.io.gfile.isdir(data_dir):
    raise ValueError(
      f'--data_dir={data_dir} is not a directory; name the one that holds '
      f'train/{_EXPECTED}.'
    )
  names = _folders(data_dir)
  try:
    train_split = splits.choose(train_split, 'train_split', ['train'], names)
    eval_split = splits.choose(eval_split, 'eval_split', _EVAL_NAMES, names)
  except ValueError as error:
    raise ValueError(f'--data_dir={data_dir}: {error}.') from error
  for flag, name in (('train', train_split), ('eval', eval_split)):
    if not tf.io.gfile.isdir(os.path.join(data_dir, name)):
      raise ValueError(
        f'--{flag}_split={name} is not in --data_dir={data_dir}, which holds '
        f'{splits.listed(names)}.'
      )

  train_dir = os.path.join(data_dir, train_split)
  eval_dir = os.path.join(data_dir, eval_split)
  class_names = _class_folders(train_dir)
  eval_names = _class_folders(eval_dir)
  unknown = sorted(set(eval_names) - set(class_names))
  if unknown:
    raise ValueError(
      f'{os.path.join(eval_dir, unknown[0])} is not a class of {train_dir} '
      f'({splits.listed(class_names)}); rename it, or choose another split '
      f'with --eval_split ({splits.listed(names)}).'
    )
  return splits.Source(
    train=_list(train_split, train_dir, class_names, class_names),
    evaluation=_list(eval_split, eval_dir, eval_names, class_names),
    class_names=class_names,
    image_shape=None,
  )


def visible_names(directory: str) -> list[str]:
  """Returns what is in a directory, sorted, without what is hidden."""
  # Object stores mark a directory by a trailing slash.
  names = [name.rstrip('/') for name in tf.io.gfile.listdir(directory)]
  return sorted(name for name in names if name and not name.startswith('.'))


def estimate_bytes(split: splits.Split) -> int:
  """Returns the size of all files of a split, from a sample of them.

  A file that is not there has none: whoever reads it finds out.
  """
  count = split.num_examples
  # Evenly spread, lest the names of one folder stand for those of all.
  sample = range(0, count, math.ceil(count / _MAX_MEASURED))
  sizes = in_parallel(_size, map(split.where, sample))
  return max(1, sum(sizes) * count // len(sizes))


def in_parallel(function: Callable, items: Iterable) -> list:
  """Applies a function that waits for a file system to each of the items."""
  with concurrent.futures.ThreadPoolExecutor(_NUM_THREADS) as pool:
    return list(pool.map(function, items))


def _size(path):
  try:
    return tf.io.gfile.stat(path).length
  except tf.errors.NotFoundError:
    return 0


def _constant(data):
  """Returns a string tensor of bytes that are compressed in the graph."""
  return tf.io.decode_compressed(tf.constant(zlib.compress(data)), 'ZLIB')


def _folders(directory):
  names = visible_names(directory)
  paths = [os.path.join(directory, name) for name in names]
  are_folders = in_parallel(tf.io.gfile.isdir, paths)
  return tuple(name for name, is_one in zip(names, are_folders) if is_one)


def _class_folders(directory):
  names = _folders(directory)
  if not names:
    raise ValueError(
      f'{directory} holds no folders of classes; expected '
      f'{os.path.join(directory, _EXPECTED)}.'
    )
  return names


def _list(name, directory, found_names, class_names):
  """Returns the split with the images of the classes `found_names`."""

  def images(class_name):
    return [
      file
      for file in visible_names(os.path.join(directory, class_name))
      if file.lower().endswith(ENDINGS)
    ]

  files_of = dict(zip(found_names, in_parallel(images, found_names)))
  empty = [found for found in found_names if not files_of[found]]
  if empty:
    raise ValueError(
      f'{os.path.join(directory, empty[0])} holds no images (*'
      f'{", *".join(ENDINGS)}); add some or delete the folder. Of '
      f'{len(found_names)} class folders {len(empty)} are like this.'
    )
  label_of = {found: label for label, found in enumerate(class_names)}
  examples = [
    (hashlib.md5(f'{found}/{file}'.encode()).digest(), label_of[found], file)
    for found in found_names
    for file in files_of[found]
  ]
  examples.sort()
  _, labels, files = zip(*examples)
  split = FolderSplit(
    name=name,
    directory=directory,
    class_names=class_names,
    labels=np.array(labels, np.int32),
    files=files,
    num_bytes=0,
  )
  return dataclasses.replace(split, num_bytes=estimate_bytes(split))
