"""Chooses flags for a new data set, and explains the choice.

A recipe is a function of facts about the images (number, classes, sizes,
whether they are grey, whether a mirror image keeps its class) and of the
machine. It learns within minutes on a CPU and makes sensible use of a GPU. It
does not search for the best result, which needs more time and knowledge of the
images.

This module does not use TensorFlow: it maps facts to flags.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import math
from typing import Any

# Shorter sides in pixels. Images up to the first keep all their pixels (and
# are enlarged to the smallest size that suits a network of five levels). Images
# from the second on count as photographs.
_SMALL, _PHOTOGRAPH = 48, 160
_LEAST_SIDE = 16
# Size of images between the two: on a CPU, on a GPU.
_MEDIUM = {False: 64, True: 128}
_PHOTOGRAPH_SIDE = 224

# Largest batch on a CPU and on a GPU, in images. Each image has two views.
_MAX_BATCH = {False: 128, True: 256}
_MAX_PHOTOGRAPHS = {False: 32, True: 64}
_MIN_BATCH = 16
# With more classes, a batch would hold only one image of most classes.
_FEW_CLASSES = 32

# Steps that a narrow network on a CPU (or a wide one on a GPU) needs to
# learn, and bounds on the epochs that provide them.
_STEPS = {False: 500, True: 3000}
_EPOCHS = {False: (4, 100), True: (20, 300)}
# Photographs vary: a large network needs to see each of them often.
_PHOTOGRAPH_EPOCHS = {False: 30, True: 100}
_STAGE_2_STEPS = 100
_STAGE_2_EPOCHS = 5

# Rates for a batch of 256, the same as the quickstart's; see DIGITS in
# scripts/configs.sh.
_RATE, _WEIGHT_DECAY, _STAGE_2_RATE = '0.008', '1e-4', '0.1'
# A network of 50 layers diverges at that rate.
_DEEP_RATE = '0.001'

# Floating-point operations per 224-pixel image of the forward pass of a
# network of width 1 with the stem for photographs.
_OPERATIONS = {18: 3.6e9, 50: 8.2e9}
# Training throughput of a CPU core and of a GPU, per second. The first was
# measured with the quickstart's network and a ResNet-50; the second is a guess.
_CORE_SPEED, _GPU_SPEED = 70e9, 10e12
# Time of start-up, evaluation and export.
_OTHER_SECONDS = 25
_LONG_SECONDS = 3600


@dataclasses.dataclass(frozen=True)
class Facts:
  """Facts about a data set and a machine.

  Attributes:
    class_sizes: Number of training images per class.
    num_eval: Number of evaluation images.
    sides: (minimum, median, maximum) shorter side of the images, in pixels.
    is_grey: Whether no image has a color.
    flips: Whether mirror images appear to keep their class.
    orientation: The evidence for `flips` in words; '' if there is none.
    num_cores: Number of CPU cores.
    num_gpus: Number of GPUs; 0 trains on the CPU.
  """

  class_sizes: Sequence[int]
  num_eval: int
  sides: tuple[int, int, int]
  is_grey: bool
  flips: bool
  num_cores: int
  orientation: str = ''
  num_gpus: int = 0

  @property
  def num_train(self) -> int:
    return sum(self.class_sizes)

  @property
  def num_classes(self) -> int:
    return len(self.class_sizes)


@dataclasses.dataclass(frozen=True)
class Recipe:
  """Flags for training, with reasons.

  Attributes:
    flags: {name: value} for main.py, without those that the user has given.
    reasons: Lines that explain the choices to the user.
    seconds: Approximate run time.
  """

  flags: Mapping[str, str]
  reasons: Sequence[str]
  seconds: float


@dataclasses.dataclass(frozen=True)
class _Network:
  """The network to train and its input size.

  Attributes:
    depth: Depth of the ResNet.
    width: Width of the ResNet.
    reduction: Factor by which the stem shrinks each side of the image.
    stem: The flags of the stem.
    side: Side of the input images, in pixels.
    why: The reason in words.
  """

  depth: int
  width: float
  reduction: int
  stem: Mapping[str, str]
  side: int
  why: str

  @property
  def operations(self) -> float:
    """Floating-point operations per image of the forward pass."""
    pixels = (self.side / 224 * 4 / self.reduction) ** 2
    return _OPERATIONS[self.depth] * pixels * self.width**2


_FINE_STEM = {
  'first_conv_kernel_size': '3',
  'first_conv_stride': '1',
  'use_initial_max_pool': 'False',
}
_COARSE_STEM = {
  'first_conv_kernel_size': '7',
  'first_conv_stride': '2',
  'use_initial_max_pool': 'True',
}


def choose(facts: Facts, given: Mapping[str, Any]) -> Recipe:
  """Returns how to train on images with the given facts.

  Args:
    facts: The facts.
    given: {flag: value} that the user has chosen. The other choices adapt to
      them, so --image_size=64 gives another recipe for photographs.

  Returns:
    The recipe, which depends on the arguments only.
  """
  has_gpu = facts.num_gpus > 0
  network = _network(facts, given.get('image_size'))
  is_photograph = network.depth > 18
  batch_size = given.get('batch_size') or _batch_size(facts, is_photograph)
  steps_per_epoch = max(facts.num_train / batch_size, 1e-9)
  epochs = given.get('stage_1_epochs')
  if epochs is None:
    epochs = _epochs(steps_per_epoch, has_gpu, is_photograph)
  stage_2_epochs = given.get('stage_2_epochs')
  if stage_2_epochs is None:
    least = math.ceil(_STAGE_2_STEPS / steps_per_epoch)
    stage_2_epochs = max(1, min(max(least, _STAGE_2_EPOCHS), epochs))
  flips = given.get('random_flip', facts.flips)

  flags = {
    'resnet_architecture': 'RESNET_V1',
    'resnet_depth': network.depth,
    'resnet_width': f'{network.width:g}',
    **network.stem,
    'projection_head_layers': '128' if is_photograph else '64',
    'image_size': network.side,
    'measure_whitening': True,
    **_views(facts, is_photograph),
    'random_flip': flips,
    'batch_size': batch_size,
    'eval_batch_size': 64 if is_photograph else 128,
    'stage_1_epochs': epochs,
    'stage_1_warmup_epochs': f'{epochs / 12:.3g}',
    'stage_1_optimizer': 'ADAM',
    'stage_1_base_learning_rate': _DEEP_RATE if is_photograph else _RATE,
    'stage_1_weight_decay': _WEIGHT_DECAY,
    'stage_2_epochs': stage_2_epochs,
    'stage_2_warmup_epochs': 0,
    'stage_2_optimizer': 'ADAM',
    'stage_2_base_learning_rate': _STAGE_2_RATE,
    'save_interval_steps': 200,
  }
  seconds = _seconds(facts, network, epochs, stage_2_epochs)
  reasons = [
    _of_images(facts),
    f'network: ResNet-{network.depth} of width {network.width:g}, images of '
    f'{network.side} x {network.side} pixels: {network.why}',
    _of_views(facts, flips, 'random_flip' in given),
    f'schedule: batches of {batch_size}, {epochs} + {stage_2_epochs} epochs, '
    f'{round((epochs + stage_2_epochs) * steps_per_epoch)} steps; about '
    f'{_in_words(seconds)} on {_machine(facts)}',
  ]
  if seconds > _LONG_SECONDS and is_photograph:
    short = choose(facts, {**given, 'image_size': _MEDIUM[has_gpu]})
    reasons.append(
      f'That is long. --image_size={_MEDIUM[has_gpu]} makes a small network on '
      f'small images, about {_in_words(short.seconds)}; or use a GPU.'
    )
  flags = {
    name: str(value) for name, value in flags.items() if name not in given
  }
  return Recipe(flags, reasons, seconds)


def _network(facts, wanted_side):
  has_gpu = facts.num_gpus > 0
  side = wanted_side or facts.sides[1]
  width = 1.0 if has_gpu else 0.25
  if side <= _SMALL:
    return _Network(
      depth=18,
      width=width,
      reduction=1,
      stem=_FINE_STEM,
      side=wanted_side or max(side, _LEAST_SIDE),
      why='small images, of which the stem keeps every pixel',
    )
  if side < _PHOTOGRAPH:
    return _Network(
      depth=18,
      width=width,
      reduction=4,
      stem=_COARSE_STEM,
      side=wanted_side or min(side, _MEDIUM[has_gpu]),
      why='large enough for the stem of ImageNet, too small for its network',
    )
  return _Network(
    depth=50,
    width=1.0,
    reduction=4,
    stem=_COARSE_STEM,
    side=wanted_side or _PHOTOGRAPH_SIDE,
    why='photographs, as those of ImageNet',
  )


def _batch_size(facts, is_photograph):
  """Returns a power of two times the number of GPUs; at most all images."""
  has_gpu, replicas = facts.num_gpus > 0, max(facts.num_gpus, 1)
  most = (_MAX_PHOTOGRAPHS if is_photograph else _MAX_BATCH)[has_gpu]
  if facts.num_classes > _FEW_CLASSES:
    most *= 2
  # At least two batches per epoch, unless they would be very small.
  share = max(facts.num_train // 2, min(facts.num_train, _MIN_BATCH))
  share = max(1, min(most, share // replicas))
  return 2 ** int(math.log2(share)) * replicas


def _epochs(steps_per_epoch, has_gpu, is_photograph):
  if is_photograph:
    return _PHOTOGRAPH_EPOCHS[has_gpu]
  low, high = _EPOCHS[has_gpu]
  return max(low, min(high, math.ceil(_STEPS[has_gpu] / steps_per_epoch)))


def _views(facts, is_photograph):
  """Returns the flags for crops and colors."""
  if is_photograph:
    views = {
      'crop_area_range': '0.2,1.0',
      'eval_crop_method': 'RESIZE_THEN_CROP',
      'crop_padding': 32,
      'blur_probability': 0.5,
    }
  else:
    views = {
      'crop_area_range': '0.5,1.0',
      'eval_crop_method': 'CROP_THEN_RESIZE',
      'crop_padding': 0,
      'blur_probability': 0,
    }
  if facts.is_grey:
    return {**views, 'augmentation_type': 'IDENTITY'}
  return {
    **views,
    'augmentation_type': 'SIMCLR',
    'augmentation_magnitude': 0.5,
    'use_pytorch_color_jitter': True,
  }


def _seconds(facts, network, epochs, stage_2_epochs):
  """Returns the approximate run time."""
  speed = facts.num_gpus * _GPU_SPEED or facts.num_cores * _CORE_SPEED
  # Two views. The backward pass costs twice the forward pass, and stage 2 has
  # no backward pass.
  passes = 2 * (3 * epochs + stage_2_epochs)
  images = facts.num_train * passes + facts.num_eval
  return _OTHER_SECONDS + images * network.operations / speed


def _of_images(facts):
  low, high = min(facts.class_sizes), max(facts.class_sizes)
  each = f'{low}' if low == high else f'{low} to {high}'
  least, median, most = facts.sides
  sides = f'{median}' if least == most else f'{least} to {most}'
  return (
    f'images: {facts.num_train} to train on, {facts.num_classes} classes of '
    f'{each}, and {facts.num_eval} to evaluate on; shorter side {sides} '
    f'pixels; {"grey" if facts.is_grey else "in color"}'
  )


def _of_views(facts, flips, is_given):
  views = 'crops' if facts.is_grey else 'crops and changes of color'
  if is_given:
    return f'views: {views}, {"" if flips else "no "}flips, as you say'
  if flips:
    return f'views: {views}, flips: --random_flip=False if these lose the class'
  return f'views: {views}, no flips: {facts.orientation}'


def _machine(facts):
  if facts.num_gpus:
    return f'{facts.num_gpus} GPU{"s" if facts.num_gpus > 1 else ""}'
  return f'{facts.num_cores} CPU core{"s" if facts.num_cores > 1 else ""}'


def _in_words(seconds):
  """Returns a duration to about one digit: '40 s', '3 minutes', '5 hours'."""
  for limit, unit, name in ((90, 1, 's'), (5400, 60, 'minutes')):
    if seconds < limit:
      return f'{round(seconds / unit)} {name}'
  hours = seconds / 3600
  return f'{hours:.0f} hours' if hours < 48 else f'{hours / 24:.0f} days'
