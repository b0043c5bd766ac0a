"""Hyper-parameters: the type, default, short name, flag, help, check of each.

One frozen dataclass per part of a run. The short names and their order define
the compact `--hparams` string, which is the published one: `bs=64,d=18` sets
two fields and keeps all other defaults.

This module does not use TensorFlow: flags are parsed and checked before
TensorFlow is imported.
"""

from collections.abc import Iterator
import dataclasses
import enum
from typing import Any

from supcon.config import compact_string
from supcon.config import enums
from supcon.config import fields

# Depths of each family of encoders that has a depth.
DEPTHS = {
  enums.EncoderArchitecture.RESNET_V1: (18, 34, 50, 101, 152, 200),
  enums.EncoderArchitecture.RESNEXT: (50, 101, 152, 200),
}

# Far above any practical value. A typo such as a million views or pixels
# would keep TensorFlow building the graph for ever.
_MOST_IN_A_BATCH = 2**20
_MOST_PIXELS = 2**13
_MOST_VIEWS = 2**6


def _field(
  short_name: str,
  default: Any,
  *checks: fields.Check,
  published: bool = True,
  **spec: Any,
) -> Any:
  """Defines a hyper-parameter; see `fields.define`.

  Args:
    short_name: The name in the compact string, without the stage's prefix.
    default: The default. A tuple makes a list-valued hyper-parameter.
    *checks: Checks of the value.
    published: Whether the published implementation has it. A hyper-parameter
      that it lacks appears in the compact string only if it differs from the
      default, so that a published configuration gives the published string.
    **spec: flag: Its name, if it differs from that of the field. part: For the
      weight of a term of the loss, the part of the model whose output the term
      compares.
  """
  spec = {'short_name': short_name, 'published': published, **spec}
  return fields.define(default, *checks, **spec)


@dataclasses.dataclass(frozen=True)
class Architecture:
  """The networks: encoder, projection head, classification head.

  Attributes:
    encoder_architecture: Family of the encoder. TINY, two convolutions, is for
      trying things out; depth, width and stem have no effect on it.
    encoder_depth: Layers of the encoder: 18, 34, 50, 101, 152 or 200; RESNEXT
      starts at 50.
    encoder_width: Multiplier of the channels of every layer of the encoder.
    first_conv_kernel_size: Kernel side of the first convolution: 7 for
      ImageNet, 3 for CIFAR.
    first_conv_stride: Stride of the first convolution: 2 for ImageNet, 1 for
      CIFAR.
    use_initial_max_pool: Use a max pool with stride 2 after the first
      convolution.
    projection_head_layers: Sizes of the dense layers of the projection head.
    projection_head_use_batch_norm: Use batch norm between the layers of the
      projection head.
    projection_head_use_batch_norm_beta: Whether these batch norms learn a
      shift.
    normalize_projection_head_inputs: Scale the embedding to unit length before
      both heads.
    normalize_classifier_inputs: Scale the embedding to unit length before both
      heads.
    zero_initialize_classifier: Start the classifier at zero instead of at
      random.
    stop_gradient_before_classification_head: Keep the gradient of the
      classifier from reaching the encoder.
    stop_gradient_before_projection_head: Keep the gradient of the projection
      head from reaching the encoder.
    use_global_batch_norm: Compute batch norm statistics over all devices; the
      moving variance is then the biased one.
  """

  encoder_architecture: enums.EncoderArchitecture = _field(
    'ea', enums.EncoderArchitecture.RESNET_V1, flag='resnet_architecture'
  )
  encoder_depth: int = _field('d', 50, flag='resnet_depth')
  encoder_width: float = _field(
    'w',
    1.0,
    fields.unless(
      lambda width: int(64 * width) > 0,
      'leaves no channels of the 64 that it multiplies; give at least 0.015625',
    ),
    flag='resnet_width',
  )
  first_conv_kernel_size: int = _field('fk', 7, fields.POSITIVE)
  first_conv_stride: int = _field('fs', 2, fields.POSITIVE)
  use_initial_max_pool: bool = _field('imp', True)
  projection_head_layers: tuple[int, ...] = _field(
    'phl',
    (2048, 128),
    fields.unless(
      lambda sizes: sizes and min(sizes) > 0,
      'must be one or more positive sizes, such as 2048,128',
    ),
  )
  projection_head_use_batch_norm: bool = _field(
    'up', False, flag='use_projection_batch_norm'
  )
  projection_head_use_batch_norm_beta: bool = _field(
    'pb', True, flag='use_projection_batch_norm_beta'
  )
  normalize_projection_head_inputs: bool = _field(
    'phn', True, flag='normalize_embedding'
  )
  normalize_classifier_inputs: bool = _field(
    'chn', True, flag='normalize_embedding'
  )
  zero_initialize_classifier: bool = _field('czi', False)
  stop_gradient_before_classification_head: bool = _field('sgc', True)
  stop_gradient_before_projection_head: bool = _field('sgp', False)
  use_global_batch_norm: bool = _field('gbp', True)

  def conflicts(self) -> Iterator[tuple[str, str]]:
    depths = DEPTHS.get(self.encoder_architecture)
    if depths and self.encoder_depth not in depths:
      yield (
        'encoder_depth',
        f'does not exist for {self.encoder_architecture.name}; choose one of '
        f'{depths}',
      )
    is_resnext = self.encoder_architecture == enums.EncoderArchitecture.RESNEXT
    if is_resnext and int(64 * self.encoder_width) % 32:
      yield (
        'encoder_width',
        'does not split RESNEXT into its groups; give a multiple of 0.5',
      )


@dataclasses.dataclass(frozen=True)
class ContrastiveOptions:
  """Arguments of `losses.contrastive_loss`, the same in all stages.

  Attributes:
    use_labels: Treat all views of the same class as positives (SupCon);
      otherwise only the views of the same image (SimCLR).
    temperature: Softmax temperature; > 0.
    contrast_mode: Which views are anchors: all, or the first view only.
    summation_location: Where to sum over positives: outside (eq. 2) or inside
      (eq. 3) the log.
    denominator_mode: Positives in the denominator: all, only the one in the
      numerator, or none.
    positives_cap: Maximum number of positives besides the views of the same
      image, a multiple of the number of views; -1 for no limit.
    scale_by_temperature: Multiply the contrastive loss by the temperature.
  """

  use_labels: bool = _field('ul', True)
  temperature: float = _field('t', 0.07, fields.POSITIVE)
  contrast_mode: enums.LossContrastMode = _field(
    'cm', enums.LossContrastMode.ALL_VIEWS
  )
  summation_location: enums.LossSummationLocation = _field(
    'sl', enums.LossSummationLocation.OUTSIDE
  )
  denominator_mode: enums.LossDenominatorMode = _field(
    'dm', enums.LossDenominatorMode.ALL
  )
  positives_cap: int = _field('pc', -1)
  scale_by_temperature: bool = _field('sbt', True)


@dataclasses.dataclass(frozen=True)
class CrossEntropyOptions:
  """Arguments of `losses.cross_entropy_loss`, the same in all stages.

  Attributes:
    label_smoothing: Label smoothing of the cross-entropy, in [0, 1).
  """

  label_smoothing: float = _field(
    'ls', 0.0, fields.unless(lambda x: 0 <= x < 1, 'must be in [0, 1)')
  )


@dataclasses.dataclass(frozen=True)
class Losses:
  """Options of the losses that all stages share.

  Attributes:
    include_bias_in_weight_decay: Apply weight decay to biases, too.
  """

  contrastive: ContrastiveOptions = ContrastiveOptions()
  cross_entropy: CrossEntropyOptions = CrossEntropyOptions()
  include_bias_in_weight_decay: bool = _field(
    'bd', True, flag='use_bias_weight_decay'
  )


@dataclasses.dataclass(frozen=True)
class Stage:
  """One stage of training. The defaults are those of stage 1.

  Attributes:
    epochs: Length in epochs; 0 skips the stage.
    warmup_epochs: Epochs of linear warm-up; must be shorter than the stage.
    base_learning_rate: Learning rate for a batch of 256; scaled with the batch
      size.
    learning_rate_decay: How the learning rate decays after the warm-up.
    decay_rate: EXPONENTIAL, PIECEWISE_LINEAR: factor of each drop.
    decay_boundary_epochs: PIECEWISE_LINEAR: epochs of the drops, counted from
      the end of the warm-up.
    epochs_per_decay: EXPONENTIAL: epochs between drops.
    optimizer: Update rule.
    update_encoder_batch_norm: Update the moving statistics of batch norm.
    rmsprop_epsilon: RMSPROP: epsilon.
    contrastive_loss_weight: Weight of the contrastive loss.
    cross_entropy_loss_weight: Weight of the cross-entropy.
    weight_decay: Coefficient of the weight decay: in the loss, or within LARS.
    use_encoder_weight_decay: Apply weight decay to the encoder.
    use_projection_head_weight_decay: Apply weight decay to the projection head.
    use_classification_head_weight_decay: Apply weight decay to the classifier.
  """

  epochs: int = _field('te', 700, fields.NOT_NEGATIVE)
  warmup_epochs: float = _field('wu', 12.0, fields.NOT_NEGATIVE)
  base_learning_rate: float = _field('lr', 0.3, fields.NOT_NEGATIVE)
  learning_rate_decay: enums.DecayType = _field('de', enums.DecayType.COSINE)
  decay_rate: float = _field('dr', 0.1, fields.POSITIVE)
  decay_boundary_epochs: tuple[int, ...] = _field(
    'be',
    (30, 60, 80, 90),
    fields.unless(
      lambda epochs: list(epochs) == sorted(set(epochs)), 'must increase'
    ),
  )
  epochs_per_decay: float = _field('epd', 2.4, fields.POSITIVE)
  optimizer: enums.Optimizer = _field('op', enums.Optimizer.RMSPROP)
  update_encoder_batch_norm: bool = _field('ebn', True)
  rmsprop_epsilon: float = _field('rep', 1.0, fields.POSITIVE)
  contrastive_loss_weight: float = _field(
    'cw', 1.0, fields.NOT_NEGATIVE, part='projection_head'
  )
  cross_entropy_loss_weight: float = _field(
    'xw', 0.0, fields.NOT_NEGATIVE, part='classification_head'
  )
  weight_decay: float = _field('wd', 0.0, fields.NOT_NEGATIVE)
  use_encoder_weight_decay: bool = _field('ed', True)
  use_projection_head_weight_decay: bool = _field('pd', True)
  use_classification_head_weight_decay: bool = _field('cd', False)

  @property
  def loss_weights(self) -> dict[str, float]:
    """{term of the loss: its weight}; objectives.py defines the terms."""
    return {
      term: getattr(self, f'{term}_loss_weight') for term in self.loss_parts
    }

  @property
  def loss_parts(self) -> dict[str, str]:
    """{term of the loss: the part of the model whose output it compares}."""
    return {
      field.name.removesuffix('_loss_weight'): field.metadata['part']
      for field in dataclasses.fields(self)
      if 'part' in field.metadata
    }

  def conflicts(self) -> Iterator[tuple[str, str]]:
    if self.epochs == 0:
      return  # A skipped stage has no schedule and no losses.
    if self.warmup_epochs >= self.epochs:
      yield (
        'warmup_epochs epochs',
        'do not fit: the warm-up must be shorter than the stage',
      )
    if not any(self.loss_weights.values()):
      weights = ' '.join(f'{term}_loss_weight' for term in self.loss_weights)
      yield weights, 'leave the stage without a loss; make one positive'


@dataclasses.dataclass(frozen=True)
class Eval:
  """Evaluation.

  Attributes:
    batch_size: Examples per evaluation step, over all devices: all cores of a
      TPU, otherwise one device.
  """

  batch_size: int = _field(
    'ebs', 128, fields.up_to(_MOST_IN_A_BATCH), flag='eval_batch_size'
  )


@dataclasses.dataclass(frozen=True)
class Preprocessing:
  """How a decoded image becomes the views that the model sees.

  Attributes:
    allow_mixed_precision: Use bfloat16 images and activations on devices that
      have instructions for it: TPUs, recent GPUs and CPUs. Others use float32.
    image_size: Height and width of the network input, in pixels.
    augmentation_type: Training augmentation after crop and flip. SIMCLR: color
      jitter, grayscale, warp, blur. AUTOAUGMENT: the policy of the data set.
      RANDAUGMENT: 2 random operations. STACKED_RANDAUGMENT: color jitter,
      RandAugment, grayscale, warp, blur. IDENTITY: nothing.
    augmentation_magnitude: SIMCLR, STACKED_RANDAUGMENT: strength of the color
      jitter, at most 1 (RandAugment stays at 10). RANDAUGMENT: its magnitude,
      about 10. AUTOAUGMENT: no effect. In all of them, 0 or less turns off all
      augmentation except crop and flip.
    warp_probability: Probability of a smooth random warp, with SIMCLR and
      STACKED_RANDAUGMENT.
    blur_probability: Probability of Gaussian blur, with SIMCLR and
      STACKED_RANDAUGMENT.
    defer_blurring: Blur on the accelerator instead of in the input pipeline.
    use_pytorch_color_jitter: Use color jitter as defined by torchvision instead
      of TensorFlow.
    apply_whitening: Subtract the mean and divide by the standard deviation, if
      the data set has them (cifar10) or they are measured.
    crop_area_range: Minimum and maximum fraction of the image area in a random
      crop.
    eval_crop_method: How an evaluation image is brought to the input size.
    crop_padding: Pixels by which the resized image exceeds the evaluation crop.
    num_views: Views of each image in a batch.
    measure_whitening: With --apply_whitening: measure mean and standard
      deviation on training images at the start of a run, and keep them in
      whitening.json of the model_dir.
    defer_augmentation: Move as much of the augmentation as possible to the
      accelerator: images travel as bytes, and the model does color jitter and
      grayscale (unless RandAugment or a warp follows them), whitening and blur.
      For accelerators that wait for their input.
    compile_augmentation: Let XLA compile the color operations of the input
      pipeline, for speed. Turn it off if the TensorFlow of the hosts lacks XLA
      for CPU.
    random_flip: Mirror half of the training views if that keeps the label (not
      for handwritten characters). Turn it off if mirroring changes the labels
      of your own data.
    train_on_eval_views: Train on the evaluation crop: no random crop, no flip,
      no augmentation. The embeddings of a frozen encoder are then computed only
      once.
  """

  allow_mixed_precision: bool = _field('bf', False)
  image_size: int = _field('is', 224, fields.up_to(_MOST_PIXELS))
  augmentation_type: enums.AugmentationType = _field(
    'au', enums.AugmentationType.AUTOAUGMENT
  )
  augmentation_magnitude: float = _field('m', 0.5)
  warp_probability: float = _field('wp', 0.0, fields.PROBABILITY)
  blur_probability: float = _field('bp', 0.5, fields.PROBABILITY)
  defer_blurring: bool = _field('db', True)
  use_pytorch_color_jitter: bool = _field('pj', False)
  apply_whitening: bool = _field('wh', True)
  crop_area_range: tuple[float, ...] = _field(
    'ar',
    (0.08, 1.0),
    fields.unless(
      lambda area: len(area) == 2 and 0 < area[0] <= area[1] <= 1,
      'must be two fractions of the image, smaller first, such as 0.08,1.0',
    ),
  )
  eval_crop_method: enums.EvalCropMethod = _field(
    'ec', enums.EvalCropMethod.RESIZE_THEN_CROP
  )
  crop_padding: int = _field('cp', 32, fields.NOT_NEGATIVE)
  num_views: int = _field('nv', 2, fields.up_to(_MOST_VIEWS))
  measure_whitening: bool = _field('mw', False, published=False)
  defer_augmentation: bool = _field('da', False, published=False)
  compile_augmentation: bool = _field('ca', True, published=False)
  random_flip: bool = _field('rf', True, published=False)
  train_on_eval_views: bool = _field('tev', False, published=False)

  def conflicts(self) -> Iterator[tuple[str, str]]:
    if self.measure_whitening and not self.apply_whitening:
      yield (
        'measure_whitening apply_whitening',
        'contradict each other: there is nothing to measure; drop one of them',
      )

  def oddities(self) -> Iterator[str]:
    """Yields a line for each unusual setting of the images."""
    side, padding = self.image_size, self.crop_padding
    method = self.eval_crop_method
    if method != enums.EvalCropMethod.IDENTITY and padding > side:
      yield (
        f'--crop_padding={padding} is large against --image_size={side}: an '
        f'evaluation sees {side / (side + padding):.0%} of the shorter side of '
        f'an image; {round(side / 7)} would make it 7/8, as the default is.'
      )


@dataclasses.dataclass(frozen=True)
class InputData:
  """The data set and how it is used.

  Attributes:
    input_fn: Data set: imagenet, cifar10 or digits;
      tfds:NAME[/CONFIG][:VERSION], any data set that TFDS has prepared; folder,
      images in --data_dir/{train,val}/CLASS.
    max_samples: Train on the first this many examples only; 0 for all.
    label_noise_prob: Probability that a training label is replaced by a random
      one.
    shard_per_host: With several hosts, give each its own slice of every epoch;
      otherwise each host reads the whole training split, in its own order.
    train_split: Split to train on: a folder (. is --data_dir itself) or a TFDS
      expression such as train[:80%], which takes that part of each class of a
      folder. Default: train.
    eval_split: Split to evaluate on. Default: test or validation of a TFDS data
      set, or the first of the folders val, validation, test.
    skip_bad_images: Check every image first, skip those that cannot be decoded,
      and report their number. Otherwise the first bad image is an error.
    max_eval_samples: Evaluate on the first this many examples only; 0 for all.
    class_balanced: Draw from all classes equally often: an epoch repeats
      examples of small classes and omits some of large classes.
  """

  input_fn: str = _field('ds', 'imagenet')
  preprocessing: Preprocessing = Preprocessing()
  max_samples: int = _field('ms', 0, flag='num_images')
  label_noise_prob: float = _field('ln', 0.0, fields.PROBABILITY)
  shard_per_host: bool = _field('hs', True)
  train_split: str = _field('ts', '', published=False)
  eval_split: str = _field('es', '', published=False)
  skip_bad_images: bool = _field('sb', False, published=False)
  max_eval_samples: int = _field(
    'mes', 0, flag='num_eval_images', published=False
  )
  class_balanced: bool = _field('cb', False, published=False)


@dataclasses.dataclass(frozen=True)
class WarmStart:
  """Which variables start from the reference checkpoint.

  Attributes:
    warm_start_classifier: Initialize the classifier from --reference_ckpt.
    warm_start_projection_head: Initialize the projection head from
      --reference_ckpt.
    warm_start_encoder: Initialize the encoder from --reference_ckpt.
    ignore_missing_checkpoint_vars: Initialize variables that --reference_ckpt
      lacks at random instead of stopping.
    batch_norm_in_train_mode: With --reference_ckpt, keep batch norm in training
      mode.
  """

  warm_start_classifier: bool = _field('wsc', False)
  warm_start_projection_head: bool = _field('wsp', False)
  warm_start_encoder: bool = _field('wse', False)
  ignore_missing_checkpoint_vars: bool = _field('wsi', False)
  batch_norm_in_train_mode: bool = _field('wsb', False)

  @property
  def is_asked_for(self) -> bool:
    return (
      self.warm_start_classifier
      or self.warm_start_projection_head
      or self.warm_start_encoder
    )


@dataclasses.dataclass(frozen=True)
class Memory:
  """The memory of earlier batches, see supcon/training/memory.py.

  Attributes:
    memory_size: Contrast each anchor with the last this many features of
      earlier batches, too, one of each sample, a multiple of --batch_size. 0:
      no memory.
    memory_momentum: With --memory_size: contrasts come from a copy of encoder
      and projection head that keeps this share of its weights in each step and
      takes the rest from the trained model. 0: from the trained model itself.
  """

  memory_size: int = _field('mems', 0, fields.NOT_NEGATIVE, published=False)
  memory_momentum: float = _field(
    'memm',
    0.999,
    fields.unless(lambda x: 0 <= x < 1, 'must be in [0, 1)'),
    published=False,
  )


@dataclasses.dataclass(frozen=True)
class HParams:
  """Everything that determines what a run computes.

  Attributes:
    batch_size: Training examples per step, over all devices.
    seed: Determines initial weights, order of examples, augmentation and label
      noise.
    micro_batch_size: Compute the gradient of the whole batch in micro-batches
      of this many samples, which takes the memory of one micro-batch and about
      4/3 of the time. It divides the samples of each device. Batch norm uses
      the statistics of a micro-batch, so it needs
      --use_global_batch_norm=False. 0: one pass.
  """

  batch_size: int = _field('bs', 2048, fields.up_to(_MOST_IN_A_BATCH))
  architecture: Architecture = Architecture()
  loss: Losses = Losses()
  stage_1: Stage = fields.define(
    Stage(), flag='stage_1_', help='Stage 1. ', short_name='s1'
  )
  stage_2: Stage = fields.define(
    Stage(
      epochs=200,
      base_learning_rate=0.05,
      rmsprop_epsilon=0.001,
      contrastive_loss_weight=0.0,
      cross_entropy_loss_weight=1.0,
    ),
    flag='stage_2_',
    help='Stage 2. ',
    short_name='s2',
  )
  eval: Eval = Eval()
  input_data: InputData = InputData()
  warm_start: WarmStart = WarmStart()
  memory: Memory = Memory()
  seed: int = _field(
    'seed',
    0,
    fields.unless(
      lambda seed: -(2**31) <= seed < 2**31, 'must fit into 32 bits'
    ),
    published=False,
  )
  micro_batch_size: int = _field('mbs', 0, fields.NOT_NEGATIVE, published=False)

  def num_micro_batches(self, share: int) -> int:
    """Returns into how many parts a replica divides its `share` of a batch."""
    return max(share // (self.micro_batch_size or share), 1)

  @property
  def stages(self) -> tuple[Stage, ...]:
    return (self.stage_1, self.stage_2)

  def check(self) -> None:
    """Checks everything that can be checked without reading data.

    Raises:
      fields.FieldError: Names the flags, what was found and what was expected.
    """
    fields.check(self)

  def conflicts(self) -> Iterator[tuple[str, str]]:
    if not any(stage.epochs for stage in self.stages):
      yield (
        'stage_1.epochs stage_2.epochs',
        'leave nothing to train; give at least one stage a positive number of '
        'epochs',
      )
    cap = self.loss.contrastive.positives_cap
    views = self.input_data.preprocessing.num_views
    if cap > 0 and cap % views:
      yield (
        'loss.contrastive.positives_cap',
        f'must be -1 (no limit) or a multiple of the {views} views',
      )
    if cap > self.batch_size * views:
      yield (
        'loss.contrastive.positives_cap',
        f'is more than the {self.batch_size} x {views} views of a batch; -1 '
        'means no limit',
      )
    size = self.memory.memory_size
    if size and cap >= 0:
      yield (
        'loss.contrastive.positives_cap memory.memory_size',
        'do not go together: the positives in a memory have no order; '
        '--positives_cap=-1 means no limit',
      )
    if size % self.batch_size:
      below = size // self.batch_size * self.batch_size
      yield (
        'memory.memory_size',
        f'must be a multiple of --batch_size={self.batch_size}; try '
        f'{below + self.batch_size}' + (f' or {below}' if below else ''),
      )

  def replace(self, path: str, value: Any) -> 'HParams':
    """Returns a copy with the field at dotted `path` set to `value`."""
    return _replaced(self, path.split('.'), value)

  def get(self, path: str) -> Any:
    """Returns the field at dotted `path`, such as 'loss.contrastive'."""
    value = self
    for name in path.split('.'):
      value = getattr(value, name)
    return value

  def field(self, path: str) -> fields.Field:
    """Returns the field at dotted `path` with its flag."""
    return fields.find(self, path)

  def serialize(self) -> str:
    """Returns the compact string; `parse` reads it back."""
    return compact_string.write(
      {
        field.short_name: self.get(field.path)
        for field in FIELDS
        if field.spec['published'] or self.get(field.path) != field.value
      }
    )

  def to_json(self) -> dict:
    """Returns nested dictionaries of JSON types, the form in hparams.json."""

    def plain(value):
      if isinstance(value, enum.Enum):
        return value.name
      if dataclasses.is_dataclass(value):
        return {
          field.name: plain(getattr(value, field.name))
          for field in dataclasses.fields(value)
        }
      return list(value) if isinstance(value, tuple) else value

    return plain(self)


# Every hyper-parameter with its default, in the order of the compact string.
FIELDS = tuple(fields.walk(HParams()))


def parse(text: str) -> HParams:
  """Reads a compact string such as 'bs=64,d=18,phl=[2048,128],au=s'.

  Returns:
    HParams, not yet checked. Fields that are not named keep their defaults.

  Raises:
    ValueError: See `compact_string.read`.
  """
  defaults = {field.short_name: field.value for field in FIELDS}
  paths = {field.short_name: field.path for field in FIELDS}
  params = HParams()
  for name, value in compact_string.read(text, defaults).items():
    params = params.replace(paths[name], value)
  return params


def _replaced(node, names, value):
  if len(names) > 1:
    value = _replaced(getattr(node, names[0]), names[1:], value)
  return dataclasses.replace(node, **{names[0]: value})
