"""Examines a directory of images before the first training.

It finds all mistakes in names at once, so that the user can correct them at
once. In contrast, `folder.load`, which every job starts with, stops at the
first one. Images that cannot be decoded are found by every job that trains.
"""

import dataclasses
import os
import unicodedata

import numpy as np
import tensorflow as tf

from supcon.config import safe_text
from supcon.data.sources import datasets
from supcon.data.sources import folder
from supcon.data.sources import listing
from supcon.data.sources import orientation
from supcon.data.sources import splits

tf1 = tf.compat.v1

# Maximum number of folders or files that a message on a mistake names.
_MAX_NAMED = 5
# The parts to use if a directory holds classes without splits.
_TRAIN_PART, _EVAL_PART = '[:80%]', '[80%:]'
# JPEG stores grey photographs in color, not quite exactly.
_MAX_TINT = 12


@dataclasses.dataclass(frozen=True)
class Layout:
  """The location of the images, in terms of --train_split, --eval_split.

  Attributes:
    train: The split to train on.
    evaluation: The split to evaluate on.
    is_parted: Whether both are parts of one folder.
  """

  train: str
  evaluation: str
  is_parted: bool


@dataclasses.dataclass(frozen=True)
class Images:
  """Properties of all images, estimated from a sample.

  Attributes:
    sides: (minimum, median, maximum) shorter side in pixels.
    is_grey: Whether no image has a color.
  """

  sides: tuple[int, int, int]
  is_grey: bool


def layout_of(
  data_dir: str, train_split: str = '', eval_split: str = ''
) -> Layout | str:
  """Determines where the images are.

  Args:
    data_dir: The directory.
    train_split: The user's choice; '' if there is none.
    eval_split: The user's choice; '' if there is none.

  Returns:
    The layout, or a line that says what is wrong.
  """
  if not tf.io.gfile.isdir(data_dir):
    what = 'a file' if tf.io.gfile.exists(data_dir) else 'not there'
    return (
      f'{safe_text.printable(data_dir)} is {what}; name the directory that '
      'holds a folder of images for each class.'
    )
  names = listing.folders(data_dir)
  if train_split and eval_split:
    return Layout(train_split, eval_split, is_parted=False)
  evaluations = [name for name in folder.EVAL_NAMES if name in names]
  if not train_split and 'train' in names:
    train_split = 'train'
  if train_split:
    if not eval_split and folder.is_part(train_split):
      return (
        f'--train_split={safe_text.printable(train_split)} is a part of a '
        'folder; name the part to evaluate on, too, with --eval_split.'
      )
    if eval_split or evaluations:
      return Layout(train_split, eval_split or evaluations[0], False)
    return Layout(train_split + _TRAIN_PART, train_split + _EVAL_PART, True)
  if eval_split or evaluations:
    return (
      f'{safe_text.printable(data_dir)} holds {splits.listed(names)}: images '
      'to evaluate on, but none to train on in a folder named train; name it '
      'with --train_split.'
    )
  if not names:
    num_images = sum(map(listing.is_image, listing.visible_names(data_dir)))
    but = f'{num_images} images, but ' if num_images else ''
    return (
      f'{safe_text.printable(data_dir)} holds {but}no folders; sort the images '
      'into a folder for each class, '
      f'{safe_text.printable(data_dir)}/CLASS/*.png.'
    )
  return Layout(folder.WHOLE + _TRAIN_PART, folder.WHOLE + _EVAL_PART, True)


def mistakes_in(data_dir: str, layout: Layout) -> list[str]:
  """Returns a line for each problem that prevents training.

  Only names are looked at: every job that trains looks for bad images itself.

  Args:
    data_dir: The directory.
    layout: The location of the images in it.
  """
  mistakes, classes = [], {}
  for name in (layout.train, layout.evaluation):
    place = folder.place_of(data_dir, name)
    if place.directory in classes:
      continue
    if not tf.io.gfile.isdir(place.directory):
      mistakes.append(
        f'{safe_text.printable(place.directory)} is not there; '
        f'{safe_text.printable(data_dir)} holds '
        f'{splits.listed(listing.folders(data_dir))}.'
      )
      continue
    names = listing.folders(place.directory)
    classes[place.directory] = names
    mistakes += _of_classes(place.directory, names)
  directories = list(classes)
  if directories and len(classes[directories[0]]) == 1:
    mistakes.append(
      f'{directories[0]} holds one class only, '
      f'{safe_text.printable(classes[directories[0]][0])}: there is nothing to '
      'tell apart; add a class.'
    )
  if len(directories) == 2:
    mistakes += _unknown(*directories, classes)
  mistakes += _same_looking(classes)
  return mistakes


def look_at(split: splits.Split) -> Images:
  """Examines a sample of the images; takes seconds.

  Raises:
    ValueError: If none can be decoded.
  """

  def measure(encoded, _):
    image = orientation.decode_small(encoded)
    pixels = tf.cast(image, tf.int32)
    tint = tf.reduce_max(pixels, axis=2) - tf.reduce_min(pixels, axis=2)
    shape = tf.cond(
      tf.io.is_jpeg(encoded),
      lambda: tf.image.extract_jpeg_shape(encoded)[:2],
      lambda: tf.shape(image)[:2],
    )
    return tf.reduce_min(shape), tf.reduce_max(tint)

  count = orientation.sample_size(split)
  with tf.Graph().as_default(), tf1.Session() as session:
    examples = (
      split.records()
      .take(max(count, 1))
      .map(measure, num_parallel_calls=tf.data.AUTOTUNE)
      .ignore_errors()
      .batch(orientation.MAX_IMAGES)
    )
    found = tf1.data.make_one_shot_iterator(examples).get_next()
    try:
      sides, tints = session.run(found)
    except tf.errors.OutOfRangeError as error:
      raise ValueError('none of the first images can be decoded') from error
  return Images(
    sides=(int(sides.min()), int(np.median(sides)), int(sides.max())),
    is_grey=bool(tints.max() <= _MAX_TINT),
  )


def class_sizes(dataset: datasets.Dataset) -> list[int]:
  """Returns the number of training images of each class."""
  labels = dataset.train.labels
  return np.bincount(labels, minlength=dataset.num_classes).tolist()


def _of_classes(directory, names):
  """Returns the problems of class folders."""
  if not names:
    return [f'{folder.without_classes(directory)}; make one for each class.']
  empty, nested = [], []
  for name in names:
    path = os.path.join(directory, name)
    if not any(map(listing.is_image, listing.visible_names(path))):
      (nested if listing.folders(path) else empty).append(name)
  mistakes = []
  if odd := [name for name in names if safe_text.has_controls(name)]:
    mistakes.append(
      f'names of classes in {safe_text.printable(directory)} that cannot be '
      f'written in one line: {_named(odd)}; rename the folders.'
    )
  if empty:
    mistakes.append(
      f'class folders in {safe_text.printable(directory)} without images '
      f'({listing.IN_WORDS}): {_named(empty)}; add some, or delete the folders.'
    )
  if nested:
    mistakes.append(
      f'class folders in {safe_text.printable(directory)} that hold folders '
      f'instead of images: {_named(nested)}; images must be directly in the '
      'folder of their class.'
    )
  return mistakes


def _unknown(train_dir, eval_dir, classes):
  unknown = sorted({*classes[eval_dir]} - {*classes[train_dir]})
  if not unknown or not classes[train_dir]:
    return []
  return [
    f'classes in {safe_text.printable(eval_dir)} that are not in '
    f'{safe_text.printable(train_dir)}: {_named(unknown)}; those there are '
    f'{splits.listed(classes[train_dir])}.'
  ]


def _same_looking(classes):
  """Returns the problems of names that differ only in their encoding."""
  seen, pairs = {}, []
  for name in sorted({name for names in classes.values() for name in names}):
    other = seen.setdefault(unicodedata.normalize('NFC', name), name)
    if other != name:
      pairs.append(f'{ascii(other)} and {ascii(name)}')
  if not pairs:
    return []
  return [
    'names of classes that differ only in how their letters are encoded: '
    f'{_named(pairs)}; give both folders the same name.'
  ]


def _named(names):
  """Returns the first few of the names, for a message."""
  more = len(names) - _MAX_NAMED
  text = safe_text.printable(', '.join(names[:_MAX_NAMED]))
  return f'{text} and {more} more' if more > 0 else text
