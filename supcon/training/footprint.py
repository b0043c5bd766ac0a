"""Estimates whether a step fits into a device: largest tensor, memory.

Otherwise TensorFlow crashes minutes after a run has begun. The estimate uses
only shapes and is made before anything is built. On CPU with TensorFlow 2.21
(tests/benchmarks/memory.py) it was between 10% below and 1% above the peak
memory of a process. It does not know what else the device is used for, so it
refuses a step only if the estimate is well above the available memory: refusing
a run that would have worked is worse than one that fails late.

On TPU nothing is checked: XLA reports what does not fit when it compiles, and
it recomputes tensors that it does not keep.
"""

from collections.abc import Iterable
from collections.abc import Iterator
import math
import pathlib
from typing import NamedTuple

from absl import logging
import tensorflow as tf
from tensorflow.python.client import device_lib

from supcon import pairwise
from supcon.compute import devices as devices_lib
from supcon.config import enums
from supcon.config import fields
from supcon.config import hparams
from supcon.config import reach
from supcon.models import encoders
from supcon.models import layers

# Kernels count elements in int32: more elements cause a segmentation fault.
MOST_ELEMENTS = 2**31 - 1

# A step is refused if it needs this many times the available memory.
_SLACK = 1.25

# Memory of Python, TensorFlow, graphs, compiled programs and read-ahead.
PROCESS_BYTES = 800 * 2**20

_BYTES_PER_VALUE = 4  # Everything but activations is float32.

# Number of copies of the largest activation at a time. Forward: the ends of a
# block and its shortcut, while the next activation is computed. Backward:
# gradients, besides the activations kept by the forward pass.
_COPIES_FORWARD = 4
_COPIES_BACKWARD = 2

# Number of tensors like the embedding of the whole batch beside micro-batches:
# the embedding itself, the same at unit length and within the heads, and their
# gradients.
_COPIES_OF_EMBEDDINGS = 6

# Number of tensors like the memory: itself, as it is read and as it will be,
# among the contrasts, and their gradient.
_COPIES_OF_MEMORY = 5

_IMAGE_SIZE = 'input_data.preprocessing.image_size'

_SLOTS = {
  enums.Optimizer.RMSPROP: 2,
  enums.Optimizer.MOMENTUM: 1,
  enums.Optimizer.NESTEROV: 1,
  enums.Optimizer.LARS: 1,
  enums.Optimizer.ADAM: 2,
}

# --- What a step needs --------------------------------------------------------


class Step(NamedTuple):
  """A step of training or evaluation on one replica.

  Attributes:
    path: The field that holds the batch size over all replicas.
    params: The hyper-parameters.
    num_classes: Number of classes of the data set.
    num_replicas: Number of replicas that share the batch.
    num_views: Number of views of each example.
    is_kept: Whether activations are kept for a backward pass.
    weights: Number of values kept for each weight.
    activation_bytes: Size of a value of the encoder's activations.
  """

  path: str
  params: hparams.HParams
  num_classes: int
  num_replicas: int
  num_views: int
  is_kept: bool
  weights: int
  activation_bytes: int = 4

  @property
  def batch_size(self) -> int:
    return self.params.get(self.path)

  @property
  def image_size(self) -> int:
    return self.params.input_data.preprocessing.image_size

  def replace(self, path: str, value: int) -> 'Step':
    return self._replace(params=self.params.replace(path, value))

  def activations(self) -> list[layers.Activation]:
    return encoders.activations(self.params.architecture, self.image_size)

  @property
  def num_micro_batches(self) -> int:
    """Number of parts in which the encoder of a replica sees a batch."""
    if self.path != 'batch_size':  # Only training has them.
      return 1
    return self.params.num_micro_batches(self._share)

  @property
  def _share(self):
    return self.batch_size // self.num_replicas

  def largest(self) -> tuple[int, ...]:
    """Returns the shape of the largest tensor."""
    images = self._share * self.num_views
    activation = max(self.activations(), key=lambda each: each.size)
    shapes = (
      (images // self.num_micro_batches, *activation),
      (images, self.image_size, self.image_size, 3),
      pairwise.tile_shape(*self.anchors_and_contrasts()),
    )
    return max(shapes, key=math.prod)

  def anchors_and_contrasts(self):
    options = self.params.loss.contrastive
    views = self.num_views
    if options.contrast_mode != enums.LossContrastMode.ALL_VIEWS:
      views = 1
    contrasts = self.batch_size * self.num_views
    if self.path == 'batch_size':  # An evaluation has no memory.
      contrasts += self.params.memory.memory_size
    return self._share * views, contrasts

  def num_bytes(self) -> int:
    """Returns the approximate peak memory of a replica in bytes."""
    sizes = [activation.size for activation in self.activations()]
    values = max(sizes) * (_COPIES_BACKWARD if self.is_kept else 0)
    values += sum(sizes) if self.is_kept else max(sizes) * _COPIES_FORWARD
    images = self._share * self.num_views
    activations = values * (images // self.num_micro_batches)
    values, weights = 0, self.weights
    if self.num_micro_batches > 1:
      size = encoders.embedding_size(self.params.architecture)
      values += images * (3 * self.image_size**2 + _COPIES_OF_EMBEDDINGS * size)
      weights += 1  # The sum of the gradients.
    memory = self.params.memory
    if memory.memory_size and self.path == 'batch_size':
      feature_size = self.params.architecture.projection_head_layers[-1]
      values += _COPIES_OF_MEMORY * memory.memory_size * feature_size
      weights += 2 if memory.memory_momentum else 0  # The copy, and as moved.
    values += pairwise.num_values(*self.anchors_and_contrasts())
    values += weights * _num_weights(self.params, self.num_classes)
    return self.activation_bytes * activations + _BYTES_PER_VALUE * values


def _num_weights(params, num_classes):
  architecture = params.architecture
  size = encoders.embedding_size(architecture)
  result = encoders.num_values(architecture) + size * num_classes
  for layer in architecture.projection_head_layers:
    result += size * layer
    size = layer
  return result


def training_step(
  params: hparams.HParams,
  stage: hparams.Stage,
  num_classes: int,
  num_replicas: int,
) -> Step:
  """Returns a step of a stage."""
  preprocessing = params.input_data.preprocessing
  reaches = reach.of(params.architecture, stage)
  is_kept = any(loss.reaches_encoder for loss in reaches)
  path = 'batch_size'
  if preprocessing.train_on_eval_views and not is_kept:
    # The embeddings may be computed once, in evaluation batches.
    if params.eval.batch_size < params.batch_size:
      path, num_replicas = 'eval.batch_size', 1
  return Step(
    path,
    params,
    num_classes,
    num_replicas,
    preprocessing.num_views,
    is_kept,
    # Values, gradients, a copy of both, and the slots of all stages (each stage
    # has its own).
    4 + sum(_SLOTS[each.optimizer] for each in params.stages),
  )


def evaluation_step(
  params: hparams.HParams, num_classes: int, num_views: int
) -> Step:
  """Returns a step of an evaluation, which runs on one device."""
  return Step(
    'eval.batch_size', params, num_classes, 1, num_views, False, weights=2
  )


# --- What there is ------------------------------------------------------------


class Room(NamedTuple):
  """The memory of a device, or of a host with several virtual devices.

  Attributes:
    num_bytes: Available bytes for all replicas on it; None if unknown.
    num_replicas: Number of replicas that share it.
    overhead: Bytes needed in addition to the steps.
    words: Description for messages.
  """

  num_bytes: int | None
  num_replicas: int
  overhead: int
  words: str

  def needs(self, step: Step) -> int:
    return self.overhead + self.num_replicas * step.num_bytes()


def room(devices: devices_lib.Devices) -> Room | None:
  """Returns the memory of a run's devices; None on TPU, see above."""
  if devices.resolver:
    return None
  if devices.is_gpu:
    return Room(_gpu_bytes(devices), 1, 0, 'of a GPU')
  here = devices.num_replicas // devices.host.count
  return Room(host_bytes(), here, PROCESS_BYTES, 'of free memory')


def _gpu_bytes(devices):
  """Returns the bytes that TensorFlow may use on the smallest GPU, or None."""
  try:
    found = device_lib.list_local_devices(devices.session_config)
  except (RuntimeError, tf.errors.OpError) as error:
    logging.debug('The memory of the GPUs is not known: %s', error)
    return None
  sizes = [d.memory_limit for d in found if d.device_type == 'GPU']
  return min(sizes, default=None)


def host_bytes(root: str = '/') -> int | None:
  """Returns how much more memory this process may use, swap included.

  Args:
    root: The root of the file system, with /proc and /sys.

  Returns:
    The free memory of the host, or less if the control groups of this process
    allow less; None if unknown.
  """
  root = pathlib.Path(root)
  found = []
  fields = _fields(root / 'proc/meminfo')
  if 'MemAvailable' in fields:
    free = fields['MemAvailable'] + fields.get('SwapFree', 0)
    found.append(1024 * free)
  found += _control_groups(root)
  return min(found, default=None)


# A larger limit means no limit.
_NO_LIMIT = 2**60

# For control groups of version 2 and 1: mount point, file of the limit, file of
# the usage, and the part of the usage that is file cache.
_VERSIONS = {
  2: (
    ('sys/fs/cgroup', 'sys/fs/cgroup/unified'),
    'memory.max',
    'memory.current',
    ('active_file', 'inactive_file'),
  ),
  1: (
    ('sys/fs/cgroup/memory',),
    'memory.limit_in_bytes',
    'memory.usage_in_bytes',
    ('total_active_file', 'total_inactive_file'),
  ),
}


def _control_groups(root) -> Iterator[int]:
  """Yields the bytes that each control group of this process leaves."""
  for line in _text(root / 'proc/self/cgroup').splitlines():
    _, controllers, path = line.split(':', 2)
    if controllers and 'memory' not in controllers.split(','):
      continue
    mounts, limit, usage, caches = _VERSIONS[1 if controllers else 2]
    for mount in mounts:
      # In a container the path may be relative to the host's root, while the
      # container's own root is mounted here.
      for group in (path, *map(str, pathlib.PurePath(path).parents)):
        directory = root / mount / group.lstrip('/')
        numbers = [_text(directory / name).strip() for name in (limit, usage)]
        if not all(map(str.isdecimal, numbers)):
          continue  # It does not exist, or is 'max'.
        most, used = map(int, numbers)
        if most < _NO_LIMIT:
          fields = _fields(directory / 'memory.stat')
          cache = sum(fields.get(name, 0) for name in caches)
          yield max(most - used + cache, 0)


def _fields(path):
  """Returns {name: number} of lines such as 'name: number kB'."""
  words = (line.replace(':', ' ').split() for line in _text(path).splitlines())
  return {w[0]: int(w[1]) for w in words if len(w) > 1 and w[1].isdecimal()}


def _text(path):
  try:
    return path.read_text()
  except OSError:
    return ''


# --- Whether it fits ----------------------------------------------------------


def problem(step: Step, room: Room, slack: float = _SLACK) -> str:
  """Returns how a step is too large for a device; '' if it fits."""
  shape = step.largest()
  found = []
  if math.prod(shape) > MOST_ELEMENTS:
    found.append(
      f'makes a tensor of {" x ".join(map(str, shape))} values, but kernels '
      'of TensorFlow take less than 2^31'
    )
  needs = room.needs(step)
  if room.num_bytes is not None and needs > slack * room.num_bytes:
    found.append(
      f'needs about {_in_words(needs)}, but there are '
      f'{_in_words(room.num_bytes)} {room.words}'
    )
  return ' and '.join(found)


def describe(step: Step, room: Room) -> str:
  """Returns 'a step needs about 2.3 GiB, there are 21.9 GiB of free memory'."""
  needs = f'a step needs about {_in_words(room.needs(step))}'
  if room.num_bytes is None:
    return needs
  return f'{needs}, there are {_in_words(room.num_bytes)} {room.words}'


def check(steps: Iterable[Step], room: Room, is_sure: bool = True) -> None:
  """Checks that steps fit into a device.

  Args:
    steps: The steps.
    room: The memory of the device.
    is_sure: Whether the available memory is certain. If not, only a tensor that
      is too large is an error.

  Raises:
    ValueError: If a step does not fit. The message says what was found and what
      would fit.
  """
  for step in steps:
    if found := problem(step, room):
      if not is_sure and not problem(step, room._replace(num_bytes=None)):
        logging.warning('WARNING: a step %s', found)
        continue
      size = step.params.field(_IMAGE_SIZE)
      raise fields.FieldError(
        step.params, step.path, f'with {size} {found}; {_remedy(step, room)}'
      )


def _remedy(step, room):
  """Returns what would fit, as the end of a message."""
  least = step.num_replicas
  whole, found = step.replace('micro_batch_size', 0), []
  # Powers of two, times the replicas.
  size = least * 2 ** int(math.log2(max(step.batch_size // least, 1)))
  while size >= least and not found:
    smaller = whole.replace(step.path, size)
    if not problem(smaller, room, slack=1.0):
      found.append(str(smaller.params.field(step.path)))
      if step.num_micro_batches > 1:
        found[-1] += ' --micro_batch_size=0'
    size //= 2
  found += _micro_batches(step, room)
  if found:
    if step.image_size > 32:
      found.append('a smaller --image_size')
    return f'try {", or ".join(found)}'
  smaller = whole.replace(step.path, least)
  while smaller.image_size > 1 and problem(smaller, room, slack=1.0):
    smaller = smaller.replace(_IMAGE_SIZE, smaller.image_size // 2)
  stem = ''
  architecture = step.params.architecture
  if (
    architecture.first_conv_stride == 1 or not architecture.use_initial_max_pool
  ):
    stem = (
      ', a stem for large images (--first_conv_stride=2 '
      '--use_initial_max_pool=True)'
    )
  return (
    f'no batch fits; try {smaller.params.field(_IMAGE_SIZE)}{stem} or a '
    'smaller --resnet_depth'
  )


def _micro_batches(step, room):
  """Returns a list of the largest micro-batch that fits, as a flag, if any."""
  share = step.batch_size // step.num_replicas
  for size in range(share // 2, 0, -1):
    if step.path != 'batch_size' or share % size:
      continue
    smaller = step.replace('micro_batch_size', size)
    if not problem(smaller, room, slack=1.0):
      found = str(smaller.params.field('micro_batch_size'))
      if step.params.architecture.use_global_batch_norm:
        found += ' with --use_global_batch_norm=False'
      return [found]
  return []


def _in_words(num_bytes):
  return f'{num_bytes / 2**30:.{0 if num_bytes >= 2**36 else 1}f} GiB'
