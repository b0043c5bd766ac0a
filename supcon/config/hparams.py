"""Hyper-parameters: the type, default, short name and check of each.

One frozen dataclass per part of a run. A field holds everything about a
hyper-parameter except its flag, which `hparams_flags.py` defines. The short
names and their order define the compact `--hparams` string, which is the
published one: `bs=64,d=18` sets two fields and keeps all other defaults.

This module does not use TensorFlow: flags are parsed and checked before
TensorFlow is imported.
"""

from collections.abc import Iterator
import dataclasses
import enum
import math
import re
from typing import Any, NamedTuple

from supcon.config import enums

# Depths of each family of encoders that has a depth.
DEPTHS = {
  enums.EncoderArchitecture.RESNET_V1: (18, 34, 50, 101, 152, 200),
  enums.EncoderArchitecture.RESNEXT: (50, 101, 152, 200),
}


# Key in the metadata of the field of a loss weight.
_PART = 'part'


def _field(
  short_name: str, default: Any, published: bool = True, part: str = ''
) -> Any:
  """Defines a hyper-parameter and its name in the compact string.

  Args:
    short_name: The name in the compact string, without the stage's prefix.
    default: The default. A tuple makes a list-valued hyper-parameter.
    published: Whether the published implementation has it. A hyper-parameter
      that it lacks appears in the compact string only if it differs from the
      default, so that a published configuration gives the published string.
    part: For the weight of a term of the loss, the part of the model whose
      output the term compares.
  """
  metadata = {'short_name': short_name, 'published': published}
  return dataclasses.field(
    default=default, metadata={**metadata, _PART: part} if part else metadata
  )


class Field(str):
  """The path of a hyper-parameter within a message; users see its flag."""


class FieldsError(ValueError):
  """An error that names hyper-parameters, which users see as flags.

  Attributes:
    parts: The parts of the message, strings; those that are Fields are paths.
  """

  def __init__(self, *parts: str):
    super().__init__(''.join(parts))
    self.parts = parts


class ChangedError(FieldsError):
  """A run cannot resume with the hyper-parameters that it was given."""


def _require(condition: bool, message: str) -> None:
  if not condition:
    raise ValueError(message)


# Far above any practical value. A typo such as a million views or pixels
# would keep TensorFlow building the graph for ever.
_MOST_IN_A_BATCH = 2**20
_MOST_PIXELS = 2**13
_MOST_VIEWS = 2**6


def _require_within(flag: str, value: int, most: int) -> None:
  _require(
    1 <= value <= most,
    f'--{flag}={value} must be positive, at most {most}.',
  )


@dataclasses.dataclass(frozen=True)
class Architecture:
  """The networks: encoder, projection head, classification head."""

  encoder_architecture: enums.EncoderArchitecture = _field(
    'ea', enums.EncoderArchitecture.RESNET_V1
  )
  encoder_depth: int = _field('d', 50)
  encoder_width: float = _field('w', 1.0)
  first_conv_kernel_size: int = _field('fk', 7)
  first_conv_stride: int = _field('fs', 2)
  use_initial_max_pool: bool = _field('imp', True)
  projection_head_layers: tuple[int, ...] = _field('phl', (2048, 128))
  projection_head_use_batch_norm: bool = _field('up', False)
  projection_head_use_batch_norm_beta: bool = _field('pb', True)
  normalize_projection_head_inputs: bool = _field('phn', True)
  normalize_classifier_inputs: bool = _field('chn', True)
  zero_initialize_classifier: bool = _field('czi', False)
  stop_gradient_before_classification_head: bool = _field('sgc', True)
  stop_gradient_before_projection_head: bool = _field('sgp', False)
  use_global_batch_norm: bool = _field('gbp', True)

  def check(self) -> None:
    depths = DEPTHS.get(self.encoder_architecture)
    _require(
      depths is None or self.encoder_depth in depths,
      f'--resnet_depth={self.encoder_depth} does not exist for '
      f'{self.encoder_architecture.name}; choose one of {depths}.',
    )
    _require(
      self.encoder_width > 0 and int(64 * self.encoder_width) > 0,
      f'--resnet_width={self.encoder_width} leaves no channels; it multiplies'
      ' 64 channels, so give at least 0.015625.',
    )
    _require(
      self.encoder_architecture != enums.EncoderArchitecture.RESNEXT
      or int(64 * self.encoder_width) % 32 == 0,
      f'--resnet_width={self.encoder_width} does not split RESNEXT into its '
      'groups; give a multiple of 0.5.',
    )
    _require(
      self.first_conv_kernel_size > 0 and self.first_conv_stride > 0,
      f'--first_conv_kernel_size={self.first_conv_kernel_size} and '
      f'--first_conv_stride={self.first_conv_stride} must be positive.',
    )
    _require(
      len(self.projection_head_layers) > 0
      and min(self.projection_head_layers) > 0,
      f'--projection_head_layers={_joined(self.projection_head_layers)} must '
      'be one or more positive sizes, such as 2048,128.',
    )

  def reaches(self, stage: 'Stage') -> list['Reach']:
    """Returns the parts that each weighted term of a stage's loss trains."""
    return [
      Reach(
        term,
        part,
        f'stop_gradient_before_{part}',
        not getattr(self, f'stop_gradient_before_{part}', False),
      )
      for term, part in stage.loss_parts.items()
      if stage.loss_weights[term]
    ]


class Reach(NamedTuple):
  """A weighted term of the loss, and where its gradient goes."""

  term: str
  part: str  # Part of the model that the term always trains.
  flag: str  # The gradient reaches the encoder if this flag is False.
  reaches_encoder: bool

  @property
  def name(self) -> str:
    """Name of the term for users."""
    return f'{self.term.replace("_", "-")} loss'


@dataclasses.dataclass(frozen=True)
class ContrastiveOptions:
  """Arguments of `losses.contrastive_loss`, the same in all stages."""

  use_labels: bool = _field('ul', True)
  temperature: float = _field('t', 0.07)
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

  def check(self) -> None:
    _require(
      self.temperature > 0,
      f'--temperature={self.temperature} must be positive.',
    )


@dataclasses.dataclass(frozen=True)
class CrossEntropyOptions:
  """Arguments of `losses.cross_entropy_loss`, the same in all stages."""

  label_smoothing: float = _field('ls', 0.0)

  def check(self) -> None:
    _require(
      0 <= self.label_smoothing < 1,
      f'--label_smoothing={self.label_smoothing} must be in [0, 1).',
    )


@dataclasses.dataclass(frozen=True)
class Losses:
  """Options of the losses that all stages share."""

  contrastive: ContrastiveOptions = ContrastiveOptions()
  cross_entropy: CrossEntropyOptions = CrossEntropyOptions()
  include_bias_in_weight_decay: bool = _field('bd', True)


@dataclasses.dataclass(frozen=True)
class Stage:
  """One stage of training. The defaults are those of stage 1."""

  epochs: int = _field('te', 700)
  warmup_epochs: float = _field('wu', 12.0)
  base_learning_rate: float = _field('lr', 0.3)
  learning_rate_decay: enums.DecayType = _field('de', enums.DecayType.COSINE)
  decay_rate: float = _field('dr', 0.1)
  decay_boundary_epochs: tuple[int, ...] = _field('be', (30, 60, 80, 90))
  epochs_per_decay: float = _field('epd', 2.4)
  optimizer: enums.Optimizer = _field('op', enums.Optimizer.RMSPROP)
  update_encoder_batch_norm: bool = _field('ebn', True)
  rmsprop_epsilon: float = _field('rep', 1.0)
  contrastive_loss_weight: float = _field('cw', 1.0, part='projection_head')
  cross_entropy_loss_weight: float = _field(
    'xw', 0.0, part='classification_head'
  )
  weight_decay: float = _field('wd', 0.0)
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
      field.name.removesuffix('_loss_weight'): field.metadata[_PART]
      for field in dataclasses.fields(self)
      if _PART in field.metadata
    }

  def check_as(self, number: int) -> None:
    """Checks the fields; error messages name stage `number`."""
    flag = f'--stage_{number}_'
    _require(
      self.epochs >= 0,
      f'{flag}epochs={self.epochs} must not be negative; 0 skips the stage.',
    )
    if self.epochs == 0:
      return  # A skipped stage has no schedule and no losses.
    _require(
      0 <= self.warmup_epochs < self.epochs,
      f'{flag}warmup_epochs={self.warmup_epochs} does not fit into '
      f'{flag}epochs={self.epochs}; it must be shorter than the stage.',
    )
    _require(
      self.base_learning_rate >= 0,
      f'{flag}base_learning_rate={self.base_learning_rate} must not be '
      'negative.',
    )
    _require(
      self.decay_rate > 0,
      f'{flag}decay_rate={self.decay_rate} must be positive.',
    )
    _require(
      self.epochs_per_decay > 0,
      f'{flag}epochs_per_decay={self.epochs_per_decay} must be positive.',
    )
    boundaries = self.decay_boundary_epochs
    _require(
      list(boundaries) == sorted(set(boundaries)),
      f'{flag}decay_boundary_epochs={_joined(boundaries)} must increase.',
    )
    _require(
      self.rmsprop_epsilon > 0,
      f'{flag}rmsprop_epsilon={self.rmsprop_epsilon} must be positive.',
    )
    _require(
      self.weight_decay >= 0,
      f'{flag}weight_decay={self.weight_decay} must not be negative.',
    )
    weights = self.loss_weights
    given = [f'{flag}{k}_loss_weight={weight}' for k, weight in weights.items()]
    _require(
      min(weights.values()) >= 0 and sum(weights.values()) > 0,
      f'stage {number} has no loss: {" and ".join(given)}; one must be '
      'positive and none negative.',
    )


@dataclasses.dataclass(frozen=True)
class Eval:
  """Evaluation."""

  batch_size: int = _field('ebs', 128)

  def check(self) -> None:
    _require_within('eval_batch_size', self.batch_size, _MOST_IN_A_BATCH)


@dataclasses.dataclass(frozen=True)
class Preprocessing:
  """How a decoded image becomes the views that the model sees."""

  allow_mixed_precision: bool = _field('bf', False)
  image_size: int = _field('is', 224)
  augmentation_type: enums.AugmentationType = _field(
    'au', enums.AugmentationType.AUTOAUGMENT
  )
  augmentation_magnitude: float = _field('m', 0.5)
  warp_probability: float = _field('wp', 0.0)
  blur_probability: float = _field('bp', 0.5)
  defer_blurring: bool = _field('db', True)
  use_pytorch_color_jitter: bool = _field('pj', False)
  apply_whitening: bool = _field('wh', True)
  crop_area_range: tuple[float, ...] = _field('ar', (0.08, 1.0))
  eval_crop_method: enums.EvalCropMethod = _field(
    'ec', enums.EvalCropMethod.RESIZE_THEN_CROP
  )
  crop_padding: int = _field('cp', 32)
  num_views: int = _field('nv', 2)
  measure_whitening: bool = _field('mw', False, published=False)
  defer_augmentation: bool = _field('da', False, published=False)
  compile_augmentation: bool = _field('ca', True, published=False)
  random_flip: bool = _field('rf', True, published=False)
  train_on_eval_views: bool = _field('tev', False, published=False)

  def check(self) -> None:
    _require_within('image_size', self.image_size, _MOST_PIXELS)
    area = self.crop_area_range
    _require(
      len(area) == 2 and 0 < area[0] <= area[1] <= 1,
      f'--crop_area_range={_joined(area)} must be two fractions of the '
      'image area, smaller first, such as 0.08,1.0.',
    )
    _require(
      self.crop_padding >= 0,
      f'--crop_padding={self.crop_padding} must not be negative.',
    )
    _require_within('num_views', self.num_views, _MOST_VIEWS)
    _require(
      self.apply_whitening or not self.measure_whitening,
      '--measure_whitening=True has no effect with --apply_whitening=False; '
      'drop one of them.',
    )
    _require(
      math.isfinite(self.augmentation_magnitude),
      f'--augmentation_magnitude={self.augmentation_magnitude} must be a '
      'number; 0 turns augmentation off.',
    )
    for name in ('warp_probability', 'blur_probability'):
      _require(
        0 <= getattr(self, name) <= 1,
        f'--{name}={getattr(self, name)} must be a probability in [0, 1].',
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
  """The data set and how it is used."""

  input_fn: str = _field('ds', 'imagenet')
  preprocessing: Preprocessing = Preprocessing()
  max_samples: int = _field('ms', 0)
  label_noise_prob: float = _field('ln', 0.0)
  shard_per_host: bool = _field('hs', True)
  train_split: str = _field('ts', '', published=False)
  eval_split: str = _field('es', '', published=False)
  skip_bad_images: bool = _field('sb', False, published=False)
  max_eval_samples: int = _field('mes', 0, published=False)
  class_balanced: bool = _field('cb', False, published=False)

  def check(self) -> None:
    _require(
      0 <= self.label_noise_prob <= 1,
      f'--label_noise_prob={self.label_noise_prob} must be a probability in '
      '[0, 1].',
    )


@dataclasses.dataclass(frozen=True)
class WarmStart:
  """Which variables start from the reference checkpoint."""

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
class HParams:
  """Everything that determines what a run computes."""

  batch_size: int = _field('bs', 2048)
  architecture: Architecture = Architecture()
  loss: Losses = Losses()
  stage_1: Stage = dataclasses.field(
    default=Stage(), metadata={'short_name': 's1'}
  )
  stage_2: Stage = dataclasses.field(
    default=Stage(
      epochs=200,
      base_learning_rate=0.05,
      rmsprop_epsilon=0.001,
      contrastive_loss_weight=0.0,
      cross_entropy_loss_weight=1.0,
    ),
    metadata={'short_name': 's2'},
  )
  eval: Eval = Eval()
  input_data: InputData = InputData()
  warm_start: WarmStart = WarmStart()
  seed: int = _field('seed', 0, published=False)

  @property
  def stages(self) -> tuple[Stage, ...]:
    return (self.stage_1, self.stage_2)

  def check(self) -> None:
    """Checks everything that can be checked without reading data.

    Raises:
      ValueError: Names the flag, what was found and what was expected.
    """
    _require_within('batch_size', self.batch_size, _MOST_IN_A_BATCH)
    for entry in fields():
      value = self.get(entry.path)
      _require(
        not isinstance(value, float) or math.isfinite(value),
        f'{entry.path}={value} must be a finite number.',
      )
    self.architecture.check()
    self.loss.contrastive.check()
    self.loss.cross_entropy.check()
    for number, stage in enumerate(self.stages, start=1):
      stage.check_as(number)
    _require(
      any(stage.epochs for stage in self.stages),
      '--stage_1_epochs=0 and --stage_2_epochs=0: there is nothing to train; '
      'give at least one stage a positive number of epochs.',
    )
    self.eval.check()
    self.input_data.check()
    self.input_data.preprocessing.check()
    cap = self.loss.contrastive.positives_cap
    views = self.input_data.preprocessing.num_views
    _require(
      cap < 0 or cap % views == 0,
      f'--positives_cap={cap} must be -1 (no limit) or a multiple of the '
      f'{views} views.',
    )
    _require(
      cap <= self.batch_size * views,
      f'--positives_cap={cap} is more than the {self.batch_size} x {views} '
      'views of a batch; -1 means no limit.',
    )
    _require(
      -(2**31) <= self.seed < 2**31,
      f'--seed={self.seed} must fit into 32 bits.',
    )

  def check_reach(self) -> None:
    """Checks that the losses reach the parts that training should train.

    This is not part of `check`, because any checkpoint may be evaluated and
    exported, however it was trained.

    Raises:
      ValueError: If a stage trains a head on an encoder that no loss has
        trained by then and that no reference initializes.
    """
    has_encoder = self.warm_start.warm_start_encoder
    for number, stage in enumerate(self.stages, start=1):
      if not stage.epochs:
        continue
      reaches = self.architecture.reaches(stage)
      has_encoder = has_encoder or any(loss.reaches_encoder for loss in reaches)
      _require(
        has_encoder,
        f'stage {number} trains on an encoder at random: '
        + ' and '.join(
          f'--{loss.flag}=True keeps the {loss.name} out of it'
          for loss in reaches
        )
        + ', and nothing has trained it before. Pass '
        + ' or '.join(f'--{loss.flag}=False' for loss in reaches)
        + ', or take an encoder from --reference_ckpt with '
        '--warm_start_encoder.',
      )

  def oddities(self) -> Iterator[str]:
    """Yields a line for each unusual setting of the training."""
    yield from self.input_data.preprocessing.oddities()
    for number, stage in enumerate(self.stages, start=1):
      if not stage.epochs:
        continue
      reaches = self.architecture.reaches(stage)
      reached = [loss for loss in reaches if loss.reaches_encoder]
      for loss in reaches if reached else ():
        if not loss.reaches_encoder:
          yield (
            f'stage {number}: the {loss.name} trains the '
            f'{loss.part.replace("_", " ")} alone, '
            f'since --{loss.flag}=True keeps it out of the encoder; pass '
            f'--{loss.flag}=False for a joint loss.'
          )
      if not reached and stage.weight_decay and stage.use_encoder_weight_decay:
        yield (
          f'stage {number}: no loss reaches the encoder, but its weights decay;'
          f' pass --stage_{number}_use_encoder_weight_decay=False to keep them.'
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

  def serialize(self) -> str:
    """Returns the compact string; `parse` reads it back."""
    defaults = HParams()
    return ','.join(
      f'{entry.short_name}={_to_string(self.get(entry.path))}'
      for entry in fields()
      if entry.published or self.get(entry.path) != defaults.get(entry.path)
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


@dataclasses.dataclass(frozen=True)
class FieldEntry:
  """One hyper-parameter in the list of `fields`."""

  path: str  # Dotted, such as 'stage_1.epochs'.
  short_name: str  # In the compact string, such as 's1te'.
  default: Any
  published: bool


def fields() -> tuple[FieldEntry, ...]:
  """Returns every hyper-parameter in the order of the compact string."""

  def walk(value, path, prefix) -> Iterator[FieldEntry]:
    for field in dataclasses.fields(value):
      field_path = f'{path}.{field.name}' if path else field.name
      short_name = prefix + field.metadata.get('short_name', '')
      default = getattr(value, field.name)
      if dataclasses.is_dataclass(default):
        yield from walk(default, field_path, short_name)
      else:
        yield FieldEntry(
          field_path, short_name, default, field.metadata['published']
        )

  return tuple(walk(HParams(), '', ''))


def parse(text: str) -> HParams:
  """Reads a compact string such as 'bs=64,d=18,phl=[2048,128],au=s'.

  Args:
    text: Comma-separated NAME=VALUE. Lists are in brackets, strings with commas
      in double quotes. Fields that are not named keep their defaults.

  Returns:
    HParams, not yet checked.

  Raises:
    ValueError: If the string is malformed, a name is unknown or given twice, or
      a value is not of the field's type.
  """
  known = {entry.short_name: entry for entry in fields()}
  result = HParams()
  seen = set()
  for name, value in _assignments(text):
    if name not in known:
      raise ValueError(
        f'--hparams: unknown hyper-parameter {name!r}; expected one of '
        f'{", ".join(known)}.'
      )
    if name in seen:
      raise ValueError(f'--hparams: {name!r} is given twice; give it once.')
    seen.add(name)
    entry = known[name]
    try:
      result = result.replace(entry.path, convert(value, entry.default))
    except ValueError as error:
      raise ValueError(f'--hparams: {name}={value}: {error}') from error
  return result


def convert(value: Any, default: Any) -> Any:
  """Converts a string, or list of strings, to the type of a field's default.

  Args:
    value: A string, a list of strings, or a value that already has the type.
    default: The field's default, which determines the type. An enum is looked
      up by its abbreviation.

  Raises:
    ValueError: If `value` cannot be read as that type.
  """
  if isinstance(default, tuple):
    items = [value] if isinstance(value, str) else value
    return tuple(convert(item, default[0]) for item in items)
  if not isinstance(value, (str, list, tuple)):
    return value
  if not isinstance(value, str):
    raise ValueError(f'expected a single value, found {_joined(value)}')
  if isinstance(default, bool):
    return _to_bool(value)
  try:
    return type(default)(value)
  except ValueError:
    expected = type(default).__name__
    if isinstance(default, enum.Enum):
      expected = 'one of ' + ', '.join(
        f'{m.value} ({m.name})' for m in type(default)
      )
    raise ValueError(f'{value!r} is not {expected}') from None


_ASSIGNMENT = re.compile(
  r'\s*(?P<name>\w+)=(?:\[(?P<list>[^\]]*)\]|"(?P<quoted>[^"]*)"|(?P<bare>[^,\[]*))'
  r'(?:,|$)'
)


def _assignments(text):
  """Yields (name, string or list of strings) from a compact string."""
  position = 0
  while position < len(text):
    match = _ASSIGNMENT.match(text, position)
    if not match:
      raise ValueError(
        f'--hparams: cannot read {text[position:]!r}; expected NAME=VALUE, '
        'comma-separated, lists in brackets.'
      )
    position = match.end()
    if match['list'] is not None:
      yield match['name'], [item.strip() for item in match['list'].split(',')]
    elif match['quoted'] is not None:
      yield match['name'], match['quoted']
    else:
      yield match['name'], match['bare']


def _to_bool(value):
  words = {'true': True, 'false': False}
  if value.lower() in words:
    return words[value.lower()]
  try:
    return bool(int(value))
  except ValueError:
    raise ValueError(f'{value!r} is not true, false, 1 or 0') from None


def _to_string(value):
  if isinstance(value, bool):
    return str(int(value))
  if isinstance(value, enum.Enum):
    return value.value
  if isinstance(value, tuple):
    return '[' + ','.join(_to_string(item) for item in value) + ']'
  if isinstance(value, str):
    return f'"{value}"' if set(value) & set(',[') else value
  return repr(value)


def _joined(values):
  return ','.join(str(value) for value in values)


def _replaced(node, names, value):
  if len(names) > 1:
    value = _replaced(getattr(node, names[0]), names[1:], value)
  return dataclasses.replace(node, **{names[0]: value})
