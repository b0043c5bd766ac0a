"""Measures the training input pipeline: its speed, the cost of each part."""

from collections.abc import Callable
import dataclasses
import math
import os
import time
from typing import NamedTuple

from absl import logging
import numpy as np
import tensorflow as tf

from supcon.config import enums
from supcon.config import hparams
from supcon.data import inputs
from supcon.data.sources import datasets
from supcon.reports import pipeline_probes

tf1 = tf.compat.v1

# A larger batch would not give more information on the speed.
_MAX_BATCH_BYTES = 32 * 2**20
_MAX_BATCH_SIZE = 256

# Maximum number and bytes of images to measure parts on; they are held in
# memory.
MAX_SAMPLED = 256
_MAX_SAMPLED_BYTES = 32 * 2**20

# Reading is so fast that single elements would mostly measure overhead.
_READING_BATCH_SIZE = 64

# Duration of a batch in which views are made.
_SMALL_BATCH_MS = 10

_NUM_WINDOWS = 5
_NUM_ROUNDS = 8

_IDLE_SECONDS = 0.01
_MAX_IDLE_WAIT_SECONDS = 10.0

# The parts in the order of processing.
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


class Clock(NamedTuple):
  """Functions that return times, in seconds since a fixed moment.

  Attributes:
    wall: The wall-clock time.
    work: The CPU time of this process so far, over all cores.
  """

  wall: Callable[[], float]
  work: Callable[[], float]


REAL_TIME = Clock(time.perf_counter, time.process_time)


class Part(NamedTuple):
  """The cost of a part of the input pipeline.

  Attributes:
    milliseconds: Core milliseconds per example with all its views.
    spread: Half of the interquartile range over the rounds.
  """

  milliseconds: float
  spread: float


@dataclasses.dataclass(frozen=True)
class Speed:
  """The speed of the input pipeline.

  Attributes:
    examples_per_second: With all cores; the median of the windows.
    windows: Examples per second in each window of time.
    batch_size: Examples per batch during the measurement.
    num_views: Number of views of each example.
    first_batch_seconds: Time from the start to the first batch.
    busy_cores: Average number of busy cores.
    num_cores: Number of cores.
    parts: The parts by name, in the order of processing.
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
    """Core milliseconds per example, as the sum of the parts."""
    return sum(part.milliseconds for part in self.parts.values())

  @property
  def milliseconds_end_to_end(self) -> float:
    """Core milliseconds per example, with all threads at work."""
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
    """Returns a description in some lines."""
    width = max(map(len, (*self.parts, 'end to end')))
    lines = [
      f'{self.examples_per_second:.0f} images/s, {self.num_views} views of '
      f'each, with {self.busy_cores:.1f} of {self.num_cores} cores busy.',
      f'{len(self.windows)} windows of time: {min(self.windows):.0f} to '
      f'{max(self.windows):.0f} images/s. First batch after '
      f'{self.first_batch_seconds:.1f} s.',
      '',
      'Milliseconds of one core per image:',
      f'  {"part":{width}}  {"ms":>8} +- spread {"share":>6}',
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
  dataset: datasets.Dataset,
  params: hparams.HParams,
  seconds: float = 12.0,
  clock: Clock = REAL_TIME,
) -> Speed:
  """Measures the speed of the training input pipeline, and its parts.

  The cost of a part is the difference between two pipelines, one of which does
  one thing more. They are measured in turn, on the same images with the same
  random draws, with one thread each. It is measured in processor time, which
  other programs hardly disturb. That does not include waiting for files, which
  shows up as idle cores.

  Args:
    dataset: The data set.
    params: The hyper-parameters of the run.
    seconds: How long to measure, in addition to building the pipelines.
    clock: The clock.

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
  end_to_end = _end_to_end(dataset, params, batch_size, seconds / 2, clock)
  core_ms = 1e3 * end_to_end['busy_cores'] / end_to_end['examples_per_second']
  logging.info('measuring what each part costs')
  sample = _sample(dataset)
  parts = {
    'read': _reading(dataset, sample, params, seconds / 8, clock),
    **_making(sample, params, batch_size, core_ms, seconds * 3 / 8, clock),
  }
  return Speed(
    batch_size=batch_size,
    num_views=options.num_views,
    num_cores=os.cpu_count(),
    parts={part: parts[part] for part in _PARTS if part in parts},
    **end_to_end,
  )


def _end_to_end(dataset, params, batch_size, seconds, clock):
  """Returns the fields of `Speed` that describe all cores at work."""
  begun = clock.wall()
  with tf.Graph().as_default(), pipeline_probes.session() as session:
    batches = pipeline_probes.batches(dataset, params, batch_size)
    pipeline = _Pipeline(session, batches, clock)
    first_batch_seconds = clock.wall() - begun
    # tf.data needs a while to find the best number of threads.
    pipeline.take_for(seconds / 3)
    windows = []
    begun, work_before = clock.wall(), clock.work()
    for _ in range(_NUM_WINDOWS):
      batches_per_second = pipeline.take_for(seconds * 2 / 3 / _NUM_WINDOWS)
      windows.append(batches_per_second * batch_size)
    work = clock.work() - work_before
    busy_cores = work / (clock.wall() - begun)
  return {
    'examples_per_second': float(np.median(windows)),
    'windows': tuple(windows),
    'first_batch_seconds': first_batch_seconds,
    'busy_cores': busy_cores,
  }


def _sample(dataset):
  """Returns a data set of few enough training examples to hold in memory."""
  split = dataset.train
  example_bytes = max(1, split.num_bytes // split.num_examples)
  size = min(
    split.num_examples,
    MAX_SAMPLED,
    max(1, _MAX_SAMPLED_BYTES // example_bytes),
  )
  is_decoded = inputs.holding(dataset) == inputs.Holding.PIXELS
  return dataclasses.replace(
    dataset,
    train=split.select(range(size)),
    # Images of unknown size are held encoded, although so few would fit.
    image_shape=dataset.image_shape if is_decoded else None,
  )


def _reading(dataset, sample, params, seconds, clock):
  """Returns the Part that reads examples and puts them in order.

  For a data set in memory, like the sample, it is almost zero.
  """
  params = pipeline_probes.unaugmented(params, image_size=1, num_views=1)
  with tf.Graph().as_default():
    batches = [
      pipeline_probes.batches(
        pipeline_probes.numbered_images(each), params, _READING_BATCH_SIZE
      )
      for each in (sample, dataset)
    ]
    costs = core_milliseconds(batches, seconds, clock) / _READING_BATCH_SIZE
  (part,) = _increments(costs)
  return part


def _making(sample, params, batch_size, core_ms, seconds, clock):
  """Returns {name: Part} of the processing of an image after reading.

  Args:
    sample: The data set.
    params: The hyper-parameters.
    batch_size: The batch size of `Speed`.
    core_ms: Approximate core milliseconds of an example in total.
    seconds: How long to measure.
    clock: The clock.
  """
  steps = list(_steps(sample, params))
  # Small, so that few examples are made in vain, but large enough that the
  # waiting of threads for each other does not matter.
  small = min(batch_size, math.ceil(_SMALL_BATCH_MS / max(core_ms, 1e-3)))
  with tf.Graph().as_default():
    pipelines = [
      pipeline_probes.batches(step.dataset, step.params, small)
      for step in steps
    ]
    nothing = tf.nest.map_structure(
      lambda spec: tf.zeros(spec.shape[1:], spec.dtype),
      pipelines[-1].element_spec,
    )
    batched, handed_over = (
      tf.data.Dataset.from_tensors(nothing).repeat().batch(size).prefetch(1)
      for size in (batch_size, small)
    )
    pipelines = [batched, handed_over, *pipelines]
    costs = core_milliseconds(pipelines, seconds, clock)
  increments = _increments(costs[:, 1:] / small)
  return {
    **{step.part: part for step, part in zip(steps, increments)},
    'batch': _part(costs[:, 0] / batch_size),
  }


def _increments(costs):
  """Returns a list of Parts, the differences of successive columns."""
  return [_part(each) for each in np.diff(costs).T]


def _part(costs):
  """Returns the Part with these costs in each round."""
  low, middle, high = np.percentile(costs, [25, 50, 75]).tolist()
  # Noise may make a difference negative.
  return Part(max(middle, 0.0), (high - low) / 2)


class _Step(NamedTuple):
  """A pipeline that does one thing more than the previous one.

  Attributes:
    part: The additional part.
    dataset: The data set.
    params: The hyper-parameters.
  """

  part: str
  dataset: datasets.Dataset
  params: hparams.HParams


def _steps(dataset, params):
  """Yields _Steps, from images of one pixel to the pipeline of the run.

  Parts that take long to build come last, where they are built only once.
  """
  options = params.input_data.preprocessing
  info = dataset.info

  def plain(**fields):
    plain_info = dataclasses.replace(info, mean=None, std=None, **fields)
    return dataclasses.replace(dataset, info=plain_info)

  unflipped = plain(flips=False)
  pixels = pipeline_probes.numbered_images(unflipped)
  params = pipeline_probes.unaugmented(params)
  yield _Step(
    'overhead', pixels, pipeline_probes.with_preprocessing(params, image_size=1)
  )
  yield _Step('crop and resize', pixels, params)
  yield _Step('decode', unflipped, params)
  if info.flips:
    yield _Step('flip', plain(), params)
  if info.mean is not None:
    yield _Step('whiten', dataset, params)
  if options.augmentation_magnitude > 0:
    for part, fields in _augmentation_steps(options):
      params = pipeline_probes.with_preprocessing(params, **fields)
      yield _Step(part, dataset, params)


def _augmentation_steps(options):
  """Returns a list of (part, fields of hparams.Preprocessing for it)."""
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

  def __init__(
    self, session: tf1.Session, batches: tf.data.Dataset, clock: Clock
  ):
    """Reads the first batch."""
    self._clock = clock
    iterator = tf1.data.make_initializable_iterator(batches)
    # Not the images, which would have to be copied.
    _, self._labels = iterator.get_next()
    self._session = session
    session.run(iterator.initializer)
    self.take(1)

  def take(self, count: int) -> None:
    for _ in range(count):
      self._session.run(self._labels)

  def take_for(self, seconds: float) -> float:
    """Reads at least one batch; returns batches per second."""
    begun = now = self._clock.wall()
    count = 0
    while not count or now - begun < seconds:
      self.take(1)
      count += 1
      now = self._clock.wall()
    return count / (now - begun)

  def core_milliseconds(self, count: int) -> float:
    """Reads batches; returns the core time until the buffers are full again."""
    begun = self._clock.work()
    self.take(count)
    wait_until_idle(self._clock)
    return 1e3 * (self._clock.work() - begun)


def core_milliseconds(pipelines, seconds, clock):
  """Returns core milliseconds per batch, [rounds, pipelines].

  A round takes the same number of batches from each pipeline, so a row compares
  the same examples.
  """
  options = tf.data.Options()
  options.autotune.enabled = False
  options.threading.private_threadpool_size = 1
  options.threading.max_intra_op_parallelism = 1
  with pipeline_probes.session() as session:
    pipelines = [
      _Pipeline(session, each.with_options(options), clock)
      for each in pipelines
    ]
    wait_until_idle(clock)

    def one_round(count):
      return [each.core_milliseconds(count) / count for each in pipelines]

    per_round = 1e3 * seconds / _NUM_ROUNDS
    # Two batches may take no time, for example with the clock of a test; then a
    # round would have no end.
    count = max(1, round(per_round / max(sum(one_round(2)), 0.1)))
    begun = clock.wall()
    rounds = []
    while len(rounds) < 3 or clock.wall() - begun < seconds:
      rounds.append(one_round(count))
    return np.array(rounds)


def wait_until_idle(clock: Clock = REAL_TIME) -> None:
  """Returns once this process is idle, or after 10 s."""
  begun = clock.wall()
  idle_polls = 0
  # A single idle poll could be a thread that waits for a core.
  while idle_polls < 2 and clock.wall() - begun < _MAX_IDLE_WAIT_SECONDS:
    work = clock.work()
    time.sleep(_IDLE_SECONDS)
    is_idle = clock.work() - work < 0.05 * _IDLE_SECONDS
    idle_polls = idle_polls + 1 if is_idle else 0
