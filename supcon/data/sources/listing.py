"""Lists directories of images, on this machine or on an object store."""

import collections
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
import concurrent.futures
import math
import os

from absl import logging
import tensorflow as tf

from supcon.config import safe_text
from supcon.data.sources import splits

# File name endings of images: JPEG, PNG, BMP, GIF. TensorFlow 2.21 also reads
# WebP, but 2.15 does not, and an animated one corrupts its memory.
ENDINGS = (
  *('.jpg', '.jpeg', '.jpe', '.jfif', '.jif', '.pjpeg', '.pjp'),
  *('.png', '.apng'),
  *('.bmp', '.dib'),
  '.gif',
)
# The common endings, for messages.
COMMON_ENDINGS = ('.jpg', '.jpeg', '.png', '.bmp', '.gif')
IN_WORDS = ', '.join(f'*{ending}' for ending in COMMON_ENDINGS)

# Number of parallel requests for directories and files, because each takes a
# round trip to an object store.
_NUM_THREADS = 32
# Number of files sampled to estimate the size of all.
MAX_MEASURED = 512
# Maximum number of kinds of ignored files that a message names.
_MAX_KINDS = 6


def visible_names(directory: str) -> list[str]:
  """Returns the names in a directory, sorted, without hidden ones."""
  try:
    names = tf.io.gfile.listdir(directory)
  except UnicodeDecodeError as error:
    raise ValueError(_without_text(directory)) from error
  # Object stores mark directories with a trailing slash.
  names = [name.rstrip('/') for name in names]
  return sorted(name for name in names if name and not name.startswith('.'))


def _without_text(directory):
  """Returns a line on the names in a local directory that are not UTF-8."""
  names = sorted(os.listdir(directory))
  # Python reads other bytes as surrogates, which cannot be encoded.
  bad = [n for n in names if n.encode(errors='ignore').decode() != n]
  return (
    f'{safe_text.printable(os.path.join(directory, bad[0]))} has a name that '
    f'is not UTF-8, like {len(bad)} of the {len(names)} names in the folder; '
    'rename what is not.'
  )


def is_image(name: str) -> bool:
  """Whether a file counts as an image, by the ending of its name."""
  return name.lower().endswith(ENDINGS)


def warn_of(left_out: Mapping[str, bool], where: str) -> None:
  """Logs in one line which files are ignored, if any.

  Args:
    left_out: {path: whether it is a folder}.
    where: The directory that was searched.
  """
  kinds = collections.defaultdict(list)
  for path, is_folder in sorted(left_out.items()):
    ending = os.path.splitext(path)[1].lower()
    kind = f'*{ending}' if ending else 'without an ending'
    kinds['folders in folders of classes' if is_folder else kind].append(path)
  if not kinds:
    return
  most = sorted(kinds, key=lambda kind: (-len(kinds[kind]), kind))
  found = [
    f'{len(kinds[kind])} {kind} (such as {kinds[kind][0]})'
    for kind in most[:_MAX_KINDS]
  ]
  if most[_MAX_KINDS:]:
    found.append(f'{sum(len(kinds[k]) for k in most[_MAX_KINDS:])} others')
  logging.warning(
    'WARNING: left out of %s, since only images directly in their folder are '
    'read (%s): %s; convert or move them if they are to be used',
    safe_text.printable(where),
    IN_WORDS,
    safe_text.printable(', '.join(found)),
  )


def estimate_bytes(split: splits.Split) -> int:
  """Returns the size of all files of a split, from a sample of them.

  A missing file counts as empty; reading it will report the error.
  """
  count = split.num_examples
  # Evenly spread, so that the sample covers all folders.
  sample = range(0, count, math.ceil(count / MAX_MEASURED))
  sizes = in_parallel(size, map(split.where, sample))
  return max(1, sum(sizes) * count // len(sizes))


def in_parallel(function: Callable, items: Iterable) -> list:
  """Applies a function that waits for a file system to each item."""
  with concurrent.futures.ThreadPoolExecutor(_NUM_THREADS) as pool:
    return list(pool.map(function, items))


def size(path: str) -> int:
  """Returns the size of a file in bytes; 0 if it does not exist."""
  try:
    return tf.io.gfile.stat(path).length
  except tf.errors.NotFoundError:
    return 0


def folders(directory: str) -> tuple[str, ...]:
  """Returns the visible folders in a directory, sorted."""
  names = visible_names(directory)
  paths = [os.path.join(directory, name) for name in names]
  are_folders = in_parallel(tf.io.gfile.isdir, paths)
  return tuple(name for name, is_one in zip(names, are_folders) if is_one)
