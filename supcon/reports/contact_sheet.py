"""Draws training examples beside their views, as the model sees them."""

import dataclasses
import math
import os
from typing import NamedTuple

from absl import logging
import numpy as np
import tensorflow as tf

from supcon.config import hparams
from supcon.config import safe_text
from supcon.data.sources import datasets
from supcon.data.views import image_ops
from supcon.data.views import preprocessing
from supcon.reports import image_summaries
from supcon.reports import lettering
from supcon.reports import pipeline_probes
from supcon.reports import thumbnails

tf1 = tf.compat.v1

# Minimum number of views to show of each image. If the run makes fewer at a
# time, the others are views from other epochs.
_MIN_VIEWS = 4

# Smaller tiles are enlarged, each pixel to a square.
_MIN_TILE_SIDE = 96

# Not white, black or mid-grey, which occur in views.
_PAPER, _INK = thumbnails.PAPER, 80
_GAP = 6
_WIDE_GAP = 24

# Maximum size of class names, in pixels and letters; longer ones are cut.
_MAX_NAME_WIDTH = 160
_MAX_NAME_LENGTH = 40

# The rows of the digits 0 to 9, three pixels each, as octal numbers.
_DIGITS = (
  '75557',
  '26227',
  '71747',
  '71717',
  '55711',
  '74717',
  '74757',
  '71111',
  '75757',
  '75717',
)


class Row(NamedTuple):
  """An example of the contact sheet.

  Attributes:
    position: The position in the training split.
    class_name: The class of the label used in training.
    stored_class_name: The class of the label before --label_noise_prob.
    size: (height, width) of the image in pixels.
    where: The file or the record.
    original: uint8 [tile, tile, 3], the whole image fitted into a square.
    views: uint8 [views, side, side, 3].
  """

  position: int
  class_name: str
  stored_class_name: str
  size: tuple[int, int]
  where: str
  original: np.ndarray
  views: np.ndarray


@dataclasses.dataclass(frozen=True)
class ContactSheet:
  """The first training examples of a run, one per row.

  From left to right, a row has its number; the name of its class, with the one
  before --label_noise_prob if that differs; the whole image; the views that the
  run starts with; and other random views of the same image. Titles are above
  the rows.

  Attributes:
    rows: The rows, numbered from 0.
    num_views: Number of views of an image that the run makes at a time.
    zoom: Width of each pixel of a view, in pixels of the sheet.
  """

  rows: tuple[Row, ...]
  num_views: int
  zoom: int

  def strips(self) -> list[np.ndarray]:
    """Returns each row as a picture, uint8 [height, width, 3]."""
    digits = len(str(len(self.rows) - 1))
    side = self.rows[0].original.shape[0]
    names = [_lines_of_text(_class_of(row), side) for row in self.rows]
    # The title stands above the names.
    title = _lines_of_text(['class'], names[0].shape[0])
    width = max(column.shape[1] for column in (title, *names))
    return [
      self._strip(f'{number:0{digits}d}', _widened(name, width), row)
      for number, (name, row) in enumerate(zip(names, self.rows))
    ]

  def titles(self) -> np.ndarray:
    """Returns the titles above the rows, uint8 [height, width, 3]."""
    strip = self.strips()[0]
    side = self.rows[0].original.shape[0]
    num_views = len(self.rows[0].views)
    # From the right, because the right columns are the same in all sheets.
    left = strip.shape[1] - _WIDE_GAP
    titles = []
    for index in reversed(range(num_views)):
      left -= side
      is_of_run = index < self.num_views
      titles.append((left, f'view {index + 1}' if is_of_run else 'other view'))
      left -= _WIDE_GAP if index in (0, self.num_views) else _GAP
    left -= side
    titles.append((left, 'whole image'))
    line = lettering.line('', side)
    if line is None:
      return strip[:0]
    digits = len(str(len(self.rows) - 1))
    titles.append((_numeral('0' * digits, side).shape[1], 'class'))
    picture = _paper(line.shape[0] + _GAP, strip.shape[1])
    for left, title in titles:
      words = _lines_of_text([title], line.shape[0], side)
      picture[_GAP:, left : left + words.shape[1]] = words
    return picture

  def _strip(self, numeral, name, row):
    side = row.original.shape[0]
    columns = [_numeral(numeral, side), name, row.original]
    for index, view in enumerate(row.views):
      gap = _WIDE_GAP if index in (0, self.num_views) else _GAP
      columns.append(_paper(side, gap))
      columns.append(view.repeat(self.zoom, 0).repeat(self.zoom, 1))
    columns.append(_paper(side, _WIDE_GAP))
    strip = np.concatenate(columns, axis=1)
    half_gap = _paper(_GAP // 2, strip.shape[1])
    return np.concatenate([half_gap, strip, half_gap])

  def to_json(self) -> dict:
    num_others = len(self.rows[0].views) - self.num_views
    return {
      'columns': ['whole image']
      + ['view of the run'] * self.num_views
      + ['another view'] * num_others,
      'rows': [
        {
          'row': number,
          'example': row.position,
          'class': row.class_name,
          'class_before_label_noise': row.stored_class_name,
          'height': row.size[0],
          'width': row.size[1],
          'where': row.where,
        }
        for number, row in enumerate(self.rows)
      ],
    }

  def describe(self) -> str:
    """Describes the rows in words."""
    cells = [('row', 'class', 'example', 'size', 'where')]
    for number, row in enumerate(self.rows):
      height, width = row.size
      name = safe_text.printable(' '.join(_class_of(row)))
      if len(name) > _MAX_NAME_LENGTH:
        name = f'{name[: _MAX_NAME_LENGTH - 3]}...'
      size, where = f'{height}x{width}', safe_text.printable(row.where)
      cells.append((str(number), name, str(row.position), size, where))
    widths = [max(map(len, column)) for column in zip(*cells)]
    return '\n'.join(
      f'{number:>{widths[0]}}  {name:{widths[1]}}  {example:>{widths[2]}}  '
      f'{size:>{widths[3]}}  {where}'
      for number, name, example, size, where in cells
    )

  def write(self, directory: str) -> str:
    """Writes contact_sheet.png, and the same for TensorBoard.

    Args:
      directory: The directory to write to. Earlier files are replaced.

    Returns:
      The path of the PNG file.
    """
    strips = self.strips()
    sheet = image_summaries.png(np.concatenate([self.titles(), *strips]))
    pictures = {
      'contact_sheet': image_summaries.Picture(
        sheet, 'The first training examples.'
      )
    }
    for number, (row, strip) in enumerate(zip(self.rows, strips)):
      pictures[f'row_{number:02d}/{row.class_name}'] = image_summaries.Picture(
        image_summaries.png(strip), row.where
      )
    image_summaries.write(directory, 'contact_sheet', pictures, step=0)
    path = os.path.join(directory, 'contact_sheet.png')
    with tf.io.gfile.GFile(path, 'wb') as file:
      file.write(sheet)
    return path


def make(
  dataset: datasets.Dataset, params: hparams.HParams, num_examples: int = 16
) -> ContactSheet:
  """Makes a contact sheet of the examples that the run sees first.

  Args:
    dataset: The data set.
    params: The hyper-parameters of the run.
    num_examples: Number of examples, at most all of them.

  Raises:
    ValueError: If the data set has too many examples to tell them apart.
    tf.errors.OpError: If an image cannot be decoded.
  """
  if dataset.num_train_examples > pipeline_probes.MAX_NUMBERED:
    raise ValueError(
      f'--input_fn={params.input_data.input_fn} has '
      f'{dataset.num_train_examples} training examples, of which no contact '
      f'sheet can be made; give --num_images={pipeline_probes.MAX_NUMBERED} or '
      'fewer.'
    )
  options = params.input_data.preprocessing
  num_examples = min(num_examples, dataset.num_train_examples)
  num_views = max(options.num_views, _MIN_VIEWS)
  zoom = math.ceil(_MIN_TILE_SIDE / options.image_size)
  logging.info('making %d views of %d images', num_views, num_examples)
  positions = _positions(dataset, params, num_examples)
  views = _views(dataset, params, num_views, num_examples)
  originals = _originals(dataset.train, positions, options.image_size * zoom)
  rows = [
    Row(
      position=position,
      class_name=dataset.class_names[label],
      stored_class_name=dataset.class_names[stored_label],
      size=tuple(size.tolist()),
      where=dataset.train.where(position),
      original=original,
      views=views_of_row,
    )
    for position, (views_of_row, label), (original, stored_label, size) in zip(
      positions, views, originals
    )
  ]
  return ContactSheet(tuple(rows), options.num_views, zoom)


def _first(batches, count):
  """Returns the first `count` elements of a data set, as NumPy arrays."""
  with pipeline_probes.session() as session:
    iterator = tf1.data.make_initializable_iterator(batches)
    element = iterator.get_next()
    session.run(iterator.initializer)
    return [session.run(element) for _ in range(count)]


def _positions(dataset, params, count):
  """Returns the positions of the first examples."""
  dataset = pipeline_probes.numbered_images(dataset)
  params = pipeline_probes.unaugmented(params, image_size=1, num_views=1)
  with tf.Graph().as_default():
    batches = pipeline_probes.batches(dataset, params, 1)
    batches = batches.map(
      lambda features, _: _grey_levels(features, params, dataset.info)
    )
    pixels = np.reshape(_first(batches, count), [count, 3])
  return pipeline_probes.positions_in(pixels).tolist()


def _views(dataset, params, num_views, count):
  """Returns the model's inputs for the first examples, and their labels.

  Returns:
    A list of (uint8 [num_views, side, side, 3], label).
  """
  params = pipeline_probes.with_preprocessing(params, num_views=num_views)

  def shown(features, labels):
    return _grey_levels(features, params, dataset.info), labels[0]

  with tf.Graph().as_default():
    # One by one, because the views are still float32 here.
    return _first(pipeline_probes.batches(dataset, params, 1).map(shown), count)


def _grey_levels(features, params, info):
  """Returns the model's input for one example, uint8 [V, side, side, 3]."""
  options = params.input_data.preprocessing
  images = preprocessing.finish(
    features, options, info.mean, info.std, tf.float32
  )
  side = options.image_size
  views = tf.ensure_shape(images[0], [options.num_views, side, side, 3])
  if info.mean is not None:
    views = views * info.std + info.mean
  # Adds half a level, because fractions are dropped.
  return image_ops.to_grey_levels(views + 0.5 / 127.5)


def _originals(split, positions, side):
  """Returns whole images fitted into squares, with the stored labels.

  Returns:
    A list of (uint8 [side, side, 3], label, int32 [2] height and width).
  """

  def fit(encoded, label):
    image = image_ops.decode(encoded)
    size = tf.shape(image)[:2]
    return thumbnails.fitted(image, size, side), label, size

  with tf.Graph().as_default():
    examples = pipeline_probes.examples_at(split, positions)
    return _first(examples.map(fit), len(positions))


def _class_of(row):
  """Returns the lines on the class of an example."""
  if row.class_name == row.stored_class_name:
    return [row.class_name]
  return [row.class_name, f'(was {row.stored_class_name})']


def _lines_of_text(lines, height, max_width=_MAX_NAME_WIDTH):
  """Returns lines centered in a column, uint8 [height, width, 3].

  If no font is available, the column has width 0.
  """
  inks = [lettering.line(line, max_width) for line in lines]
  if any(ink is None for ink in inks):
    return _paper(height, 0)
  width = max(ink.shape[1] for ink in inks)
  ink = np.concatenate(
    [np.pad(ink, [(0, 0), (0, width - ink.shape[1])]) for ink in inks]
  )[:height]
  above = (height - ink.shape[0]) // 2
  ink = np.pad(ink, [(above, height - ink.shape[0] - above), (0, 0)])
  levels = _PAPER + ink * (_INK - _PAPER)
  return np.repeat(levels[..., np.newaxis], 3, axis=2).round().astype(np.uint8)


def _widened(column, width):
  """Returns a column of text with the gap behind it; nothing if empty."""
  height, own_width, _ = column.shape
  if not width:
    return column
  gap = _paper(height, width - own_width + _WIDE_GAP // 2)
  return np.concatenate([column, gap], axis=1)


def _paper(height, width):
  return np.full([height, width, 3], _PAPER, np.uint8)


def _numeral(digits, height):
  """Returns a string of digits centered in a margin."""
  scale = 4  # Pixels of the sheet per pixel of a digit.
  rows = [_DIGITS[int(digit)] for digit in digits]
  # A fourth pixel, always 0, separates digits.
  bits = [[f'{int(row):03b}0' for row in digit] for digit in rows]
  ink = np.array(
    [[bit == '1' for bit in ''.join(line)] for line in zip(*bits)]
  )[:, :-1]
  ink = ink.repeat(scale, axis=0).repeat(scale, axis=1)
  above = (height - ink.shape[0]) // 2
  below = height - ink.shape[0] - above
  ink = np.pad(ink, [(above, below), (_WIDE_GAP // 2, _WIDE_GAP // 2)])
  return np.where(ink[..., np.newaxis], _INK, _paper(*ink.shape)).astype(
    np.uint8
  )
