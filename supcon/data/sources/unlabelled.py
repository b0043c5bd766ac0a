"""Images outside any data set: files and folders that the user names."""

from collections.abc import Sequence
import dataclasses
import functools
import hashlib
import os

import tensorflow as tf

from supcon.config import safe_text
from supcon.data.sources import listing
from supcon.data.sources import splits
from supcon.data.views import image_files
from supcon.runs import storage

# Their classes are unknown.
NO_LABEL = -1


@dataclasses.dataclass(frozen=True, eq=False)
class LooseImages:
  """See `splits.Split`; every label is `NO_LABEL`.

  Attributes:
    files: The paths by position, as the user has named them.
    num_bytes: Approximate size.
  """

  files: tuple[str, ...]
  num_bytes: int

  name = 'images'

  @property
  def num_examples(self) -> int:
    return len(self.files)

  @functools.cached_property
  def fingerprint(self) -> str:
    # No path can contain a zero byte.
    digest = hashlib.md5('\0'.join(self.files).encode()).hexdigest()
    return f'{self.num_examples} files, {digest}'

  def records(self) -> tf.data.Dataset:
    return self.storage().records()

  def storage(self) -> splits.Files:
    def names():
      paths = tf.constant([*self.files])
      return paths, tf.fill(tf.shape(paths), NO_LABEL)

    def read(path, label):
      return image_files.readable(tf.io.read_file(path)), label

    return splits.Files(names, read)

  def select(self, positions: Sequence[int]) -> 'LooseImages':
    return LooseImages(
      files=tuple(self.files[position] for position in positions),
      num_bytes=self.num_bytes * len(positions) // self.num_examples,
    )

  def where(self, position: int) -> str:
    return self.files[position]

  def example_id(self, position: int) -> str:
    return self.files[position]

  def damage(self) -> None:
    return None


def find(paths: Sequence[str]) -> LooseImages:
  """Finds images, without opening them.

  Args:
    paths: Paths of files, which may have any ending; and of folders, from which
      all images are taken recursively by the endings of their names, except
      hidden ones. Local or gs://.

  Returns:
    The images in the order of `paths`; those of a folder in the order of their
    paths. If a file is found several times, the first one is kept. Folders may
    be links, even circular ones; a link to a file is a separate file.

  Raises:
    ValueError: If there are no paths, a path does not exist, or a folder holds
      no images.
  """
  if not paths:
    raise ValueError(
      'no images are named; give files or folders, as --images=FILE_OR_FOLDER '
      'or as plain arguments.'
    )
  # A dict keeps the order of first insertion.
  files, left_out = {}, {}
  for number, path in enumerate(paths):
    try:
      found, others = _found_at(path, paths[number + 1 :])
    except UnicodeEncodeError as error:
      raise ValueError(
        f'--images={safe_text.printable(path)} is a name that is not UTF-8; '
        'rename it.'
      ) from error
    for file in found:
      files.setdefault(_identity(file), file)
    left_out.update(dict.fromkeys(others, False))
  listing.warn_of(left_out, 'the folders named')
  images = LooseImages(tuple(files.values()), num_bytes=0)
  return dataclasses.replace(images, num_bytes=listing.estimate_bytes(images))


def _found_at(path, following):
  """Returns the images and the other files at a path of the user.

  Args:
    path: The path.
    following: The paths after it.
  """
  if tf.io.gfile.isdir(path):
    files, others = _search(path)
    if not files:
      raise ValueError(
        f'--images={safe_text.printable(path)} holds no images '
        f'({listing.IN_WORDS}), nor do the folders in it; name '
        'another folder, or the files themselves, whatever their names end in.'
      )
    return files, others
  if not tf.io.gfile.exists(path):
    raise ValueError(
      f'--images={safe_text.printable(path)} does not exist; name an image '
      f'file, or a folder of them.{_of_comma(path, following)}'
    )
  return [path], []


def _of_comma(path, following):
  """Returns advice if a comma within a name was taken as its end."""
  for number in range(len(following)):
    whole = ','.join((path, *following[: number + 1]))
    if tf.io.gfile.exists(whole):
      return (
        ' Commas separate names in --images; give '
        f'{safe_text.printable(whole)} as an argument without --images= after '
        'the flags.'
      )
  return ''


def _search(root):
  """Returns the sorted paths of all images below a folder, and others."""
  files, others, seen, level = [], [], {_real(root)}, [root]
  # Level by level, so that each level can be listed in parallel.
  while level:
    entries = [
      os.path.join(directory, name)
      for directory, names in zip(
        level, listing.in_parallel(listing.visible_names, level)
      )
      for name in names
    ]
    level = []
    for entry, is_folder in zip(
      entries, listing.in_parallel(tf.io.gfile.isdir, entries)
    ):
      if not is_folder:
        (files if listing.is_image(entry) else others).append(entry)
      elif _real(entry) not in seen:
        # Otherwise circular links would be followed for ever.
        seen.add(_real(entry))
        level.append(entry)
  return sorted(files), others


def _real(path):
  """Returns a path with links resolved; object stores have none."""
  if storage.is_remote(path):
    return path
  return os.path.realpath(path)


def _identity(file):
  """Returns a key that is the same for all names of a file."""
  directory, name = os.path.split(file)
  return _real(directory), name
