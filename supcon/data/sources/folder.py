"""Images in folders: DIRECTORY/SPLIT/CLASS/IMAGE.

The folders of the training split are the classes. Examples are not sorted by
name, which would put one class after another, but by a hash of their names. So
the first n are a fair sample, and a shuffle buffer sees all classes.

A split may be a part of a folder, such as train[:80%], which takes that part of
each class in the same order. An image stays in its part unless images are added
or removed. The folder `.` is the directory itself: DIRECTORY/CLASS/IMAGE.
"""

from collections.abc import Sequence
import dataclasses
import difflib
import functools
import hashlib
import itertools
import os
import re
from typing import NamedTuple
import unicodedata
import zlib

import numpy as np
import tensorflow as tf

from supcon.config import safe_text
from supcon.data.sources import listing
from supcon.data.sources import splits
from supcon.data.views import image_files

_EXPECTED = f'CLASS/*{{{",".join(listing.COMMON_ENDINGS)}}}'

# Usual names of evaluation folders; ImageNet's is val.
EVAL_NAMES = ('val', 'validation', 'test')

# The directory itself, for classes without splits.
WHOLE = '.'

# A split that is a part of a folder.
_PART = re.compile(r'(?P<folder>.*)\[(?P<begin>[^:\]]*):(?P<end>[^:\]]*)\]')


@dataclasses.dataclass(frozen=True, eq=False)
class FolderSplit:
  """See `splits.Split`.

  Attributes:
    name: The name of the folder, and which part of it, if not all.
    folder: The folder's name, or `WHOLE`.
    directory: The path of the folder.
    class_names: The classes, in the order of the labels.
    labels: int32 [N], by position.
    files: Names within the class's folder, by position.
    num_bytes: Approximate size.
  """

  name: str
  folder: str
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
    return self.storage().records()

  def storage(self) -> splits.Files:
    directories = [
      os.path.join(self.directory, name) for name in self.class_names
    ]

    def names():
      # Compressed, because every checkpoint holds a copy of the graph:
      # ImageNet's names and labels take 10 MB instead of 33 MB. The separator
      # is a slash, the one character that no name can contain.
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
    path = self._relative_path(position)
    return path if self.folder == WHOLE else f'{self.folder}/{path}'

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
    train_split: The folder to train on, or a part of one; '' is train.
    eval_split: The folder to evaluate on, or a part of one; '' is the first of
      val, validation, test. Its classes must be among those of the training
      split.

  Raises:
    ValueError: If a folder or a part is missing or empty, or a class is
      unknown.
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
  names = listing.folders(data_dir)
  try:
    train_split, eval_split = splits.choose(
      train_split, eval_split, EVAL_NAMES, names
    )
  except ValueError as error:
    raise ValueError(
      f'--data_dir={data_dir}: {error}{_advice(data_dir, names)}.'
    ) from error
  places = []
  for flag, name in (('train', train_split), ('eval', eval_split)):
    place = place_of(data_dir, name, f'--{flag}_split')
    if not tf.io.gfile.isdir(place.directory):
      raise ValueError(
        f'--{flag}_split={name} is not in --data_dir={data_dir}, which holds '
        f'{splits.listed(names)}.'
      )
    places.append(place)

  train_place, eval_place = places
  class_names = _class_folders(train_place.directory)
  eval_names = _class_folders(eval_place.directory)
  directories = (train_place.directory, class_names)
  directories += (eval_place.directory, eval_names)
  _check_forms(*directories)
  _check_known(*directories, names)
  train, left_out = _list(train_place, class_names, class_names)
  evaluation, more = _list(eval_place, eval_names, class_names)
  # Both may be the same folder.
  listing.warn_of({**left_out, **more}, data_dir)
  train = _part_of(train, train_place, '--train_split', class_names)
  return splits.Source(
    train=train,
    evaluation=_part_of(evaluation, eval_place, '--eval_split', ()),
    class_names=class_names,
    image_shape=None,
  )


def joined(parts: Sequence[splits.Split]) -> splits.Joined:
  """Joins splits to be read in order, with adjacent folders as one.

  TensorFlow takes a second to build what reads a folder, and there may be 75.
  """
  result = []
  for is_folder, some in itertools.groupby(
    parts, lambda part: isinstance(part, FolderSplit)
  ):
    some = tuple(some)
    result += [_Folders(some)] if is_folder and len(some) > 1 else some
  return splits.Joined(tuple(result))


class _Folders(NamedTuple):
  """Folders one after the other; see `splits.Joined`."""

  parts: tuple[FolderSplit, ...]

  @property
  def num_examples(self) -> int:
    return sum(part.num_examples for part in self.parts)

  def records(self) -> tf.data.Dataset:
    directories, labels, places = [], [], []
    for part in self.parts:
      places.append(part.labels + len(directories))
      directories += [
        os.path.join(part.directory, name) for name in part.class_names
      ]
      labels += range(len(part.class_names))
    folders = FolderSplit(
      name='',
      folder='',
      directory='',
      class_names=tuple(directories),
      labels=np.concatenate(places),
      files=tuple(file for part in self.parts for file in part.files),
      num_bytes=0,
    )
    return folders.records().map(
      lambda image, place: (image, tf.gather(labels, place))
    )


def load_evaluation(data_dir: str, name: str) -> splits.Source:
  """Lists the images of a folder of classes that has no training images.

  Args:
    data_dir: A directory, local or gs://.
    name: The path of the folder in it.

  Returns:
    A source whose splits are the same, with the classes that the folder has.

  Raises:
    ValueError: If there are no classes, or one is empty.
  """
  place = Place(name, name, os.path.join(data_dir, name), None)
  class_names = _class_folders(place.directory)
  split, left_out = _list(place, class_names, class_names)
  listing.warn_of(left_out, place.directory)
  return splits.Source(split, split, class_names, image_shape=None)


class Place(NamedTuple):
  """The location of a split.

  Attributes:
    name: The name that the user chose.
    folder: The folder, or `WHOLE`.
    directory: The path of the folder.
    percent: (begin, end) of a part; None for the whole folder.
  """

  name: str
  folder: str
  directory: str
  percent: tuple[int, int] | None


def is_part(name: str) -> bool:
  """Whether a split looks like a part of a folder, such as train[:80%]."""
  return bool(_PART.fullmatch(name))


def place_of(data_dir: str, name: str, flag: str = '') -> Place:
  """Returns the location of a split, which may be a part of a folder.

  Args:
    data_dir: The directory that holds the folders.
    name: The name of the split.
    flag: The flag that names it.

  Raises:
    ValueError: If the part is malformed.
  """

  def place(folder, percent):
    directory = os.path.join(data_dir, folder)
    return Place(
      name, folder, data_dir if folder == WHOLE else directory, percent
    )

  match = _PART.fullmatch(name)
  if not match or tf.io.gfile.isdir(os.path.join(data_dir, name)):
    return place(name, None)
  bounds = []
  for text, default in ((match['begin'], 0), (match['end'], 100)):
    number = text.removesuffix('%')
    is_percentage = number.isdecimal() and text.endswith('%')
    bounds.append(int(number) if is_percentage else default)
    if text and not (is_percentage and int(number) <= 100):
      raise ValueError(
        f'{flag}={name}: {text!r} is not a percentage; expected a part of each '
        'class, such as train[:80%] or train[80%:].'
      )
  return place(match['folder'] or WHOLE, tuple(bounds))


def _part_of(split, place, flag, needed):
  """Returns the part of each class that a place names.

  Args:
    split: All images of its folder.
    place: The `Place`.
    flag: The flag that names it.
    needed: Names of classes that must have an image.

  Raises:
    ValueError: If the part is empty, or has no image of a needed class.
  """
  if place.percent is None:
    return split
  kept = np.zeros(split.num_examples, bool)
  found = set()
  for label, name in enumerate(split.class_names):
    of_class = np.flatnonzero(split.labels == label)
    # Rounded half up, so that adjacent parts share no image.
    begin, end = ((len(of_class) * p + 50) // 100 for p in place.percent)
    kept[of_class[begin:end]] = True
    if begin < end:
      found.add(name)
  missing = [name for name in needed if name not in found]
  if missing or not kept.any():
    what = (
      f'no images of {safe_text.printable(missing[0])}' if missing else 'none'
    )
    raise ValueError(
      f'{flag}={place.name} takes a part of each class of {split.directory} '
      f'and gets {what}; choose a larger part, or add images.'
    )
  part = split.select(np.flatnonzero(kept).tolist())
  return dataclasses.replace(part, name=place.name)


def _constant(data):
  """Returns a string tensor of bytes, compressed in the graph."""
  return tf.io.decode_compressed(tf.constant(zlib.compress(data)), 'ZLIB')


def _advice(data_dir, names):
  """Returns advice on a directory without a split of a usual name."""
  num_images = sum(map(listing.is_image, listing.visible_names(data_dir)))
  if num_images and not names:
    return (
      f'. It holds {num_images} images itself: sort them into a folder for '
      f'each class, {data_dir}/train/{_EXPECTED} and {data_dir}/val/{_EXPECTED}'
    )
  first = (
    listing.visible_names(os.path.join(data_dir, names[0])) if names else ()
  )
  if any(map(listing.is_image, first)) and 'train' not in names:
    return (
      f'. If {splits.listed(names)} are the classes, move them into '
      f'{data_dir}/train, and some images of each into {data_dir}/val, or '
      "take parts of each: --train_split='.[:80%]' --eval_split='.[80%:]'"
    )
  return ''


def _class_folders(directory):
  names = listing.folders(directory)
  for name in names:
    if safe_text.has_controls(name):
      raise ValueError(
        f'{safe_text.printable(os.path.join(directory, name))} has a name that '
        'cannot be written in one line (in labels.txt, one class a line); '
        'rename the folder.'
      )
  if not names:
    raise ValueError(
      f'{without_classes(directory)}; expected '
      f'{os.path.join(directory, _EXPECTED)}.'
    )
  return names


def without_classes(directory: str) -> str:
  """Returns in words what a directory without folders holds."""
  num_images = sum(map(listing.is_image, listing.visible_names(directory)))
  but = f', but {num_images} images of no class' if num_images else ''
  name = safe_text.printable(directory)
  return f'{name} holds no folders of classes{but}'


def _check_forms(train_dir, class_names, eval_dir, eval_names):
  """Checks that no two names look the same but differ in encoding."""
  found = {}
  for directory, names in ((train_dir, class_names), (eval_dir, eval_names)):
    for name in names:
      form = unicodedata.normalize('NFC', name)
      other, where = found.setdefault(form, (name, directory))
      if other != name:
        raise ValueError(
          f'{os.path.join(directory, name)} and {os.path.join(where, other)} '
          f'differ only in how their letters are encoded ({ascii(name)} and '
          f'{ascii(other)}, normal forms of Unicode); give both the same name, '
          'or names that look different.'
        )


def _check_known(train_dir, class_names, eval_dir, eval_names, names):
  """Checks that training has all classes of the evaluation."""
  unknown = sorted(set(eval_names) - set(class_names))
  if not unknown:
    return
  similar = difflib.get_close_matches(unknown[0], class_names, n=1)
  raise ValueError(
    safe_text.printable(
      f'{os.path.join(eval_dir, unknown[0])} is not a class of {train_dir} '
      f'({splits.listed(class_names)}'
      f'{f"; is {similar[0]} meant?" if similar else ""}). The same is '
      f'true of {len(unknown)} of the {len(eval_names)} folders there: give '
      'them the names of classes, move or delete them, or choose another split '
      f'with --eval_split ({splits.listed(names)}).'
    )
  )


def _list(place, found_names, class_names):
  """Returns all images in a folder of the classes `found_names`.

  It also returns {path: whether it is a folder} of other entries in the class
  folders and of files outside them.
  """

  directory = place.directory

  def files(class_name):
    return listing.visible_names(os.path.join(directory, class_name))

  all_of = dict(zip(found_names, listing.in_parallel(files, found_names)))
  files_of = {
    found: [file for file in all_of[found] if listing.is_image(file)]
    for found in found_names
  }
  others = [
    os.path.join(directory, found, file)
    for found in found_names
    for file in all_of[found]
    if not listing.is_image(file)
  ]
  left_out = dict(zip(others, listing.in_parallel(tf.io.gfile.isdir, others)))
  beside = set(listing.visible_names(directory)) - set(
    listing.folders(directory)
  )
  left_out |= {os.path.join(directory, file): False for file in beside}
  empty = [found for found in found_names if not files_of[found]]
  if empty:
    raise ValueError(
      f'{os.path.join(directory, empty[0])} holds no images ('
      f'{listing.IN_WORDS}); add some or delete the folder. The same is '
      f'true of {len(empty)} of the {len(found_names)} class folders'
      f'{_what_else(all_of[empty[0]])}.'
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
    name=place.folder,
    folder=place.folder,
    directory=directory,
    class_names=class_names,
    labels=np.array(labels, np.int32),
    files=files,
    num_bytes=0,
  )
  split = dataclasses.replace(split, num_bytes=listing.estimate_bytes(split))
  return split, left_out


def _what_else(names):
  """Returns what a folder without images contains, for a message."""
  if not names:
    return ''
  return f'; it holds {safe_text.printable(splits.listed(names))}'
