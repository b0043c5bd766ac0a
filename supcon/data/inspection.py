"""Looks at what training sees, and measures what it costs to make.

- `contact_sheet` shows the first examples of a run beside their views, as the
  model would see them.
- `measure` tells how many examples per second the input pipeline makes, and
  which of its parts costs how much.

Neither knows how examples are chosen or views are made: both ask
`inputs.train_input_fn`, for other data sets or other hyper-parameters than
those of the run where that tells something. Everything runs on the CPU.
"""

import dataclasses
import math
import os
import time
from typing import NamedTuple

from absl import logging
import numpy as np
import tensorflow as tf

from supcon import enums
from supcon import hparams
from supcon.data import datasets
from supcon.data import image_ops
from supcon.data import inputs
from supcon.data import preprocessing
from supcon.data import splits

tf1 = tf.compat.v1


def _session():
  # A GPU may be busy with a training run.
  return tf1.Session(config=tf1.ConfigProto(device_count={'GPU': 0}))


def _with_preprocessing(params, **fields):
  for name, value in fields.items():
    params = params.replace(f'input_data.preprocessing.{name}', value)
  return params


def _unaugmented(params, **fields):
  """Returns hyper-parameters of crop, resize and flip alone."""
  return _with_preprocessing(
    params,
    augmentation_type=enums.AugmentationType.IDENTITY,
    apply_whitening=False,
    **fields,
  )


# ------------------------------------------------------------ numbered images

# What three channels of 8 bits can tell apart.
_MAX_NUMBERED = 2**24


@dataclasses.dataclass(frozen=True)
class _Numbered:
  """A split whose images are numbers: PNGs of a pixel that says the position.

  It offers what `inputs` asks of a `splits.Split`. It is read from the same
  files in the same order as the split that it is made of.
  """

  split: splits.Split

  @property
  def num_examples(self) -> int:
    return self.split.num_examples

  @property
  def num_bytes(self) -> int:
    return self.split.num_bytes

  def records(self) -> tf.data.Dataset:
    return (
      self.split.records()
      .enumerate()
      .map(lambda position, example: _numbered(position, *example))
    )

  def storage(self) -> splits.Files | splits.Shards:
    storage = self.split.storage()
    return _NUMBERED_STORAGES[type(storage)](storage)


def _numbered(position, encoded, label):
  """Returns (PNG, label)."""
  # Adds 0 in a way that no optimizer sees through: it would not read the file.
  number = tf.cast(position, tf.int32)
  number += tf.minimum(tf.strings.length(encoded), 0)
  levels = tf.bitwise.right_shift(number, [0, 8, 16]) % 256
  pixel = tf.reshape(tf.cast(levels, tf.uint8), [1, 1, 3])
  return tf.io.encode_png(pixel), label


def _numbered_files(files):
  def names():
    names, labels = files.names()
    positions = tf.strings.as_string(tf.range(tf.size(names)))
    return tf.strings.join([positions, names], '/'), labels

  def read(name, label):
    parts = tf.strings.split(name, '/', maxsplit=1)
    position = tf.strings.to_number(parts[0], tf.int64)
    return _numbered(position, *files.read(parts[1], label))

  return splits.Files(names, read)


def _numbered_shards(shards):
  firsts = np.cumsum((0, *shards.sizes))

  def read(shard, skip):
    first = tf.gather(firsts, shard) + skip
    return shards.read(shard, skip).enumerate(first)

  def parse(position, *stored):
    return _numbered(position, *shards.parse(*stored))

  return splits.Shards(shards.sizes, read, parse)


_NUMBERED_STORAGES = {
  splits.Files: _numbered_files,
  splits.Shards: _numbered_shards,
}


def _numbered_images(dataset):
  return dataclasses.replace(
    dataset, train=_Numbered(dataset.train), image_shape=(1, 1)
  )


# -------------------------------------------------------------- contact sheet

# At least so many views are shown of each image. Those that the run does not
# make at a time are such as it makes in other epochs.
_MIN_VIEWS = 4

# Smaller tiles are enlarged, each pixel to a square.
_MIN_TILE_SIDE = 96

# Light, but neither white nor black nor mid-grey, which are in views.
_PAPER, _INK = 228, 80
_GAP = 6
_WIDE_GAP = 24

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
    position: In the training split.
    class_name: Of the label that training is given.
    stored_class_name: Of the label before --label_noise_prob.
    size: (height, width) of the image in pixels.
    where: Its file, or its record.
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
  """The first training examples of a run, one a row.

  On the left stands the row's number; then the whole image; then the views that
  the run starts with; then others, which chance might make of the same image.

  Attributes:
    rows: From the first on, numbered from 0.
    num_views: How many views of an image the run makes at a time.
    zoom: How many pixels of the sheet each pixel of a view is wide.
  """

  rows: tuple[Row, ...]
  num_views: int
  zoom: int

  def strips(self) -> list[np.ndarray]:
    """Returns each row as a picture, uint8 [height, width, 3]."""
    digits = len(str(len(self.rows) - 1))
    return [
      self._strip(f'{number:0{digits}d}', row)
      for number, row in enumerate(self.rows)
    ]

  def _strip(self, numeral, row):
    side = row.original.shape[0]
    columns = [_numeral(numeral, side), row.original]
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

  def write(self, directory: str) -> str:
    """Writes contact_sheet.png, and the same for TensorBoard.

    Args:
      directory: Where to. What was written there before is replaced.

    Returns:
      The path of the PNG file.
    """
    strips = self.strips()
    pictures = {
      'contact_sheet': (np.concatenate(strips), 'The first training examples.')
    }
    for number, (row, strip) in enumerate(zip(self.rows, strips)):
      pictures[f'row_{number:02d}/{row.class_name}'] = (strip, row.where)
    with tf.Graph().as_default(), _session() as session:
      pngs = session.run(
        {tag: tf.io.encode_png(image) for tag, (image, _) in pictures.items()}
      )
      suffix = '.contact_sheet'
      for old in tf.io.gfile.glob(os.path.join(directory, f'events.*{suffix}')):
        tf.io.gfile.remove(old)
      with tf1.summary.FileWriter(directory, filename_suffix=suffix) as writer:
        for tag, (image, description) in pictures.items():
          summary = tf1.Summary()
          value = summary.value.add(tag=tag)
          value.metadata.summary_description = description
          value.image.height, value.image.width, _ = image.shape
          value.image.encoded_image_string = pngs[tag]
          writer.add_summary(summary, global_step=0)
    path = os.path.join(directory, 'contact_sheet.png')
    with tf.io.gfile.GFile(path, 'wb') as file:
      file.write(pngs['contact_sheet'])
    return path


def contact_sheet(
  dataset: datasets.Dataset, params: hparams.HParams, num_examples: int = 16
) -> ContactSheet:
  """Shows the examples that the run sees first.

  Args:
    dataset: The data set.
    params: The hyper-parameters of the run.
    num_examples: How many; at most as many as there are.

  Raises:
    ValueError: If there are more examples than can be told apart.
    tf.errors.OpError: If an image cannot be decoded.
  """
  if dataset.num_train_examples > _MAX_NUMBERED:
    raise ValueError(
      f'--input_fn={params.input_data.input_fn} has '
      f'{dataset.num_train_examples} training examples, of which no contact '
      f'sheet can be made; give --num_images={_MAX_NUMBERED} or fewer.'
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
  with _session() as session:
    iterator = tf1.data.make_initializable_iterator(batches)
    element = iterator.get_next()
    session.run(iterator.initializer)
    return [session.run(element) for _ in range(count)]


def _positions(dataset, params, count):
  """Returns which examples come first."""
  dataset = _numbered_images(dataset)
  params = _unaugmented(params, image_size=1, num_views=1)
  with tf.Graph().as_default():
    batches = _train_batches(dataset, params, 1)
    batches = batches.map(
      lambda features, _: _grey_levels(features, params, dataset.info)
    )
    pixels = np.reshape(_first(batches, count), [count, 3])
  return (pixels @ [1, 2**8, 2**16]).tolist()


def _views(dataset, params, num_views, count):
  """Returns what the model would see of the first examples, and their labels.

  Returns:
    A list of (uint8 [num_views, side, side, 3], label).
  """
  params = _with_preprocessing(params, num_views=num_views)

  def shown(features, labels):
    return _grey_levels(features, params, dataset.info), labels[0]

  with tf.Graph().as_default():
    # One by one: until here, views are float32.
    return _first(_train_batches(dataset, params, 1).map(shown), count)


def _grey_levels(features, params, info):
  """Returns what the model sees of one example, uint8 [V, side, side, 3]."""
  options = params.input_data.preprocessing
  images = preprocessing.finish(
    features, options, info.mean, info.std, tf.float32
  )
  side = options.image_size
  views = tf.ensure_shape(images[0], [options.num_views, side, side, 3])
  if options.apply_whitening and info.mean is not None:
    views = views * info.std + info.mean
  # Half a level more, for fractions are dropped.
  return image_ops.to_grey_levels(views + 0.5 / 127.5)


def _train_batches(dataset, params, batch_size):
  input_fn = inputs.train_input_fn(dataset, params, tf.float32)
  return input_fn({'batch_size': batch_size})


def _originals(split, positions, side):
  """Returns whole images, fitted into squares, with the labels as stored.

  Returns:
    A list of (uint8 [side, side, 3], label, int32 [2] height and width).
  """

  def fit(encoded, label):
    image = image_ops.decode(encoded)
    size = tf.shape(image)[:2]
    return _fitted(image, size, side), label, size

  with tf.Graph().as_default():
    examples = _examples_at(split, positions)
    return _first(examples.map(fit), len(positions))


def _fitted(image, size, side):
  """Returns the image in the middle of a square of paper."""
  longer = tf.cast(tf.reduce_max(size), tf.float32)
  fitted_size = tf.cast(tf.cast(size, tf.float32) * (side / longer), tf.int32)
  fitted_size = tf.clip_by_value(fitted_size, 1, side)
  # Small images show their pixels; large ones are smoothed.
  image = tf.cond(
    longer <= side,
    lambda: tf.image.resize(image, fitted_size, 'nearest'),
    lambda: tf.saturate_cast(
      tf.image.resize(image, fitted_size, antialias=True) + 0.5, tf.uint8
    ),
  )
  before = (side - fitted_size) // 2
  paddings = tf.stack([before, side - fitted_size - before], axis=1)
  paddings = tf.concat([paddings, [[0, 0]]], axis=0)
  square = tf.pad(image, paddings, constant_values=_PAPER)
  return tf.ensure_shape(square, [side, side, 3])


def _examples_at(split, positions):
  """Returns (image, label) as stored, in the order of `positions`."""
  storage = split.storage()
  if isinstance(storage, splits.Files):
    named = [tf.gather(column, positions) for column in storage.names()]
    return tf.data.Dataset.from_tensor_slices(tuple(named)).map(storage.read)
  positions = np.int64(positions)
  ends = np.cumsum(storage.sizes)
  shards = np.searchsorted(ends, positions, side='right')
  skips = positions - (ends - storage.sizes)[shards]
  stored = tf.data.Dataset.from_tensor_slices((shards, skips)).flat_map(
    lambda shard, skip: splits.part(storage, shard, skip, 1)
  )
  return stored.map(storage.parse)


def _paper(height, width):
  return np.full([height, width, 3], _PAPER, np.uint8)


def _numeral(digits, height):
  """Returns a string of digits in the middle of a margin."""
  scale = 4  # Pixels of the sheet per pixel of a digit.
  rows = [_DIGITS[int(digit)] for digit in digits]
  # A fourth pixel, which is always 0, keeps digits apart.
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


# ------------------------------------------------------------------ its speed

# A larger batch tells nothing more about the speed.
_MAX_BATCH_BYTES = 32 * 2**20
_MAX_BATCH_SIZE = 256

# Parts are measured on so many images at most, which are held in memory.
_MAX_SAMPLED = 256
_MAX_SAMPLED_BYTES = 32 * 2**20

# Reading is so fast that handing over one by one would hide it.
_READING_BATCH_SIZE = 64

# Views are made in batches that take so long.
_SMALL_BATCH_MS = 10

_NUM_WINDOWS = 5
_NUM_ROUNDS = 8

_IDLE_SECONDS = 0.01
_MAX_IDLE_WAIT_SECONDS = 10.0

# In the order in which they are done.
_PARTS = (
  'read',
  'overhead',
  'decode',
  'crop and resize',
  'flip',
  'color jitter, grayscale',
  'AutoAugment',
  'RandAugment',
  'warp',
  'blur',
  'whiten',
  'batch',
)


class Part(NamedTuple):
  """What a part of the input pipeline costs.

  Attributes:
    milliseconds: Of one core per example, in all its views.
    spread: Half of the range in which the middle half of all rounds lies.
  """

  milliseconds: float
  spread: float


@dataclasses.dataclass(frozen=True)
class Speed:
  """How fast the input pipeline is.

  Attributes:
    examples_per_second: With all cores, the median of the windows.
    windows: Examples per second in each window of time.
    batch_size: Examples per batch while this was measured.
    num_views: Of each example.
    first_batch_seconds: From nothing to the first batch.
    busy_cores: How many cores worked at a time, on average.
    num_cores: How many there are.
    parts: By name, in the order in which they are done.
  """

  examples_per_second: float
  windows: tuple[float, ...]
  batch_size: int
  num_views: int
  first_batch_seconds: float
  busy_cores: float
  num_cores: int
  parts: dict[str, Part]

  @property
  def milliseconds(self) -> float:
    """Of one core per example: the sum of the parts."""
    return sum(part.milliseconds for part in self.parts.values())

  @property
  def milliseconds_end_to_end(self) -> float:
    """Of one core per example: what all threads took at the same time."""
    return 1e3 * self.busy_cores / self.examples_per_second

  def to_json(self) -> dict:
    fields = dataclasses.asdict(self)
    fields['parts'] = {
      name: {
        'core_milliseconds_per_example': part.milliseconds,
        'spread': part.spread,
        'share': part.milliseconds / self.milliseconds,
      }
      for name, part in self.parts.items()
    }
    return {
      **fields,
      'core_milliseconds_per_example': self.milliseconds,
      'core_milliseconds_per_example_end_to_end': self.milliseconds_end_to_end,
    }

  def describe(self) -> str:
    """Returns some lines for people."""
    width = max(map(len, (*self.parts, 'end to end')))
    lines = [
      f'{self.examples_per_second:.0f} images/s, {self.num_views} views of '
      f'each, with {self.busy_cores:.1f} of {self.num_cores} cores busy.',
      f'{len(self.windows)} windows of time: {min(self.windows):.0f} to '
      f'{max(self.windows):.0f} images/s. First batch after '
      f'{self.first_batch_seconds:.1f} s.',
      '',
      'Milliseconds of one core per image:',
    ]
    lines += [
      f'  {name:{width}}  {part.milliseconds:8.3f} +- {part.spread:5.3f}'
      f'  {part.milliseconds / self.milliseconds:6.1%}'
      for name, part in self.parts.items()
    ]
    lines += [
      f'  {"sum":{width}}  {self.milliseconds:8.3f}',
      f'  {"end to end":{width}}  {self.milliseconds_end_to_end:8.3f}',
    ]
    return '\n'.join(lines)


def measure(
  dataset: datasets.Dataset, params: hparams.HParams, seconds: float = 12.0
) -> Speed:
  """Measures the input pipeline of training: its speed, and its parts.

  A part is the difference between two pipelines of which one does one thing
  more. They are measured in turn, on the same images with the same random
  draws, with one thread each. What counts is the time of the processor, which
  other programs hardly disturb. Waiting for files is not in it: that shows in
  cores that are not busy.

  Args:
    dataset: The data set.
    params: The hyper-parameters of the run.
    seconds: How long to measure. Building the pipelines comes on top.

  Raises:
    tf.errors.OpError: If an image cannot be decoded.
  """
  options = params.input_data.preprocessing
  example_bytes = max(
    12 * options.image_size**2 * options.num_views,  # float32
    dataset.train.num_bytes // dataset.num_train_examples,
  )
  batch_size = min(
    params.batch_size,
    _MAX_BATCH_SIZE,
    max(1, _MAX_BATCH_BYTES // example_bytes),
  )
  logging.info('measuring the speed of the input pipeline')
  end_to_end = _end_to_end(dataset, params, batch_size, seconds / 2)
  core_ms = 1e3 * end_to_end['busy_cores'] / end_to_end['examples_per_second']
  logging.info('measuring what each part costs')
  sample = _sample(dataset)
  parts = {
    'read': _reading(dataset, sample, params, seconds / 8),
    **_making(sample, params, batch_size, core_ms, seconds * 3 / 8),
  }
  return Speed(
    batch_size=batch_size,
    num_views=options.num_views,
    num_cores=os.cpu_count(),
    parts={part: parts[part] for part in _PARTS if part in parts},
    **end_to_end,
  )


def _end_to_end(dataset, params, batch_size, seconds):
  """Returns the fields of `Speed` that are about all cores at work."""
  begun = time.perf_counter()
  with tf.Graph().as_default(), _session() as session:
    pipeline = _Pipeline(session, _train_batches(dataset, params, batch_size))
    first_batch_seconds = time.perf_counter() - begun
    # It takes a while until tf.data has found out how many threads do best.
    pipeline.take_for(seconds / 3)
    windows = []
    begun, work_before = time.perf_counter(), time.process_time()
    for _ in range(_NUM_WINDOWS):
      batches_per_second = pipeline.take_for(seconds * 2 / 3 / _NUM_WINDOWS)
      windows.append(batches_per_second * batch_size)
    work = time.process_time() - work_before
    busy_cores = work / (time.perf_counter() - begun)
  return {
    'examples_per_second': float(np.median(windows)),
    'windows': tuple(windows),
    'first_batch_seconds': first_batch_seconds,
    'busy_cores': busy_cores,
  }


def _sample(dataset):
  """Returns a data set of so few training examples that they are held."""
  split = dataset.train
  example_bytes = max(1, split.num_bytes // split.num_examples)
  size = min(
    split.num_examples,
    _MAX_SAMPLED,
    max(1, _MAX_SAMPLED_BYTES // example_bytes),
  )
  is_decoded = inputs.holding(dataset) == inputs.Holding.PIXELS
  return dataclasses.replace(
    dataset,
    train=split.select(range(size)),
    # Images of unknown sizes are not held decoded, as all would be if so few.
    image_shape=dataset.image_shape if is_decoded else None,
  )


def _reading(dataset, sample, params, seconds):
  """Returns the Part that reads, and puts in order what is read.

  Of a set that is held in memory as the sample is, it is almost nothing.
  """
  params = _unaugmented(params, image_size=1, num_views=1)
  with tf.Graph().as_default():
    batches = [
      _train_batches(_numbered_images(each), params, _READING_BATCH_SIZE)
      for each in (sample, dataset)
    ]
    costs = _costs(batches, seconds) / _READING_BATCH_SIZE
  (part,) = _increments(costs)
  return part


def _making(sample, params, batch_size, core_ms, seconds):
  """Returns {name: Part}, what is done with an image that is read.

  Args:
    sample: The data set.
    params: The hyper-parameters.
    batch_size: That of `Speed`.
    core_ms: What an example takes in all, about.
    seconds: How long to measure.
  """
  steps = list(_steps(sample, params))
  # Small, for few examples are to be made in vain, but not so small that it
  # counts how threads wait for one another.
  small = min(batch_size, math.ceil(_SMALL_BATCH_MS / core_ms))
  with tf.Graph().as_default():
    pipelines = [
      _train_batches(step.dataset, step.params, small) for step in steps
    ]
    nothing = tf.nest.map_structure(
      lambda spec: tf.zeros(spec.shape[1:], spec.dtype),
      pipelines[-1].element_spec,
    )
    batched, handed_over = (
      tf.data.Dataset.from_tensors(nothing).repeat().batch(size).prefetch(1)
      for size in (batch_size, small)
    )
    costs = _costs([batched, handed_over, *pipelines], seconds)
  increments = _increments(costs[:, 1:] / small)
  return {
    **{step.part: part for step, part in zip(steps, increments)},
    'batch': _part(costs[:, 0] / batch_size),
  }


def _increments(costs):
  """Returns by how much each column exceeds the one before, a list of Part."""
  return [_part(each) for each in np.diff(costs).T]


def _part(costs):
  """Returns the Part that cost so much in each round."""
  low, middle, high = np.percentile(costs, [25, 50, 75]).tolist()
  # Noise may make a difference negative.
  return Part(max(middle, 0.0), (high - low) / 2)


class _Step(NamedTuple):
  """A pipeline that does one thing more than the one before.

  Attributes:
    part: What it does more.
    dataset: The data set.
    params: The hyper-parameters.
  """

  part: str
  dataset: datasets.Dataset
  params: hparams.HParams


def _steps(dataset, params):
  """Yields _Step, from images of a pixel to what the run does.

  What takes long to build comes last, where it is built once.
  """
  options = params.input_data.preprocessing
  info = dataset.info
  unflipped = dataclasses.replace(
    dataset, info=dataclasses.replace(info, flips=False)
  )
  pixels = _numbered_images(unflipped)
  params = _unaugmented(params)
  yield _Step('overhead', pixels, _with_preprocessing(params, image_size=1))
  yield _Step('crop and resize', pixels, params)
  yield _Step('decode', unflipped, params)
  if info.flips:
    yield _Step('flip', dataset, params)
  if options.apply_whitening and info.mean is not None:
    params = _with_preprocessing(params, apply_whitening=True)
    yield _Step('whiten', dataset, params)
  if options.augmentation_magnitude > 0:
    for part, fields in _augmentation_steps(options):
      params = _with_preprocessing(params, **fields)
      yield _Step(part, dataset, params)


def _augmentation_steps(options):
  """Returns (part, fields of hparams.Preprocessing that add it), a list."""
  kinds = enums.AugmentationType
  simclr = [
    (
      'color jitter, grayscale',
      {
        'augmentation_type': kinds.SIMCLR,
        'warp_probability': 0.0,
        'blur_probability': 0.0,
      },
    )
  ]
  if options.warp_probability > 0:
    simclr.append(('warp', {'warp_probability': options.warp_probability}))
  if options.blur_probability > 0:
    simclr.append(('blur', {'blur_probability': options.blur_probability}))
  return {
    kinds.IDENTITY: [],
    kinds.SIMCLR: simclr,
    kinds.AUTOAUGMENT: [
      ('AutoAugment', {'augmentation_type': kinds.AUTOAUGMENT})
    ],
    kinds.RANDAUGMENT: [
      ('RandAugment', {'augmentation_type': kinds.RANDAUGMENT})
    ],
    kinds.STACKED_RANDAUGMENT: [
      *simclr,
      ('RandAugment', {'augmentation_type': kinds.STACKED_RANDAUGMENT}),
    ],
  }[options.augmentation_type]


class _Pipeline:
  """A data set that is read batch by batch."""

  def __init__(self, session: tf1.Session, batches: tf.data.Dataset):
    """Reads the first batch."""
    iterator = tf1.data.make_initializable_iterator(batches)
    # Not the images, which would be copied once more.
    _, self._labels = iterator.get_next()
    self._session = session
    session.run(iterator.initializer)
    self.take(1)

  def take(self, count: int) -> None:
    for _ in range(count):
      self._session.run(self._labels)

  def take_for(self, seconds: float) -> float:
    """Reads at least one batch; returns how many per second."""
    begun = now = time.perf_counter()
    count = 0
    while not count or now - begun < seconds:
      self.take(1)
      count += 1
      now = time.perf_counter()
    return count / (now - begun)

  def core_milliseconds(self, count: int) -> float:
    """Reads batches; returns the work until as many are ready as before."""
    begun = time.process_time()
    self.take(count)
    _wait_until_idle()
    return 1e3 * (time.process_time() - begun)


def _costs(pipelines, seconds):
  """Returns milliseconds of one core per batch, [rounds, pipelines].

  In a round as many batches are taken of each pipeline, so that the same
  examples stand in a row.
  """
  options = tf.data.Options()
  options.autotune.enabled = False
  options.threading.private_threadpool_size = 1
  options.threading.max_intra_op_parallelism = 1
  with _session() as session:
    pipelines = [
      _Pipeline(session, each.with_options(options)) for each in pipelines
    ]
    _wait_until_idle()

    def one_round(count):
      return [each.core_milliseconds(count) / count for each in pipelines]

    per_round = 1e3 * seconds / _NUM_ROUNDS
    count = max(1, round(per_round / sum(one_round(2))))
    begun = time.perf_counter()
    rounds = []
    while len(rounds) < 3 or time.perf_counter() - begun < seconds:
      rounds.append(one_round(count))
    return np.array(rounds)


def _wait_until_idle():
  """Returns when nothing is computed any more in this process."""
  begun = time.perf_counter()
  idle_polls = 0
  # Once might be a thread that waits for a core.
  while idle_polls < 2 and time.perf_counter() - begun < _MAX_IDLE_WAIT_SECONDS:
    work = time.process_time()
    time.sleep(_IDLE_SECONDS)
    is_idle = time.process_time() - work < 0.05 * _IDLE_SECONDS
    idle_polls = idle_polls + 1 if is_idle else 0
