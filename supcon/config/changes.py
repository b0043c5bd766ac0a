"""What may change when a run resumes or its checkpoints are used.

A table has a rule for every hyper-parameter, and for facts of the data that are
not hyper-parameters.
"""

from collections.abc import Sequence
import enum
import itertools
from typing import NamedTuple

from absl import logging

from supcon.config import fields
from supcon.config import hparams
from supcon.config import safe_text


class May(enum.Enum):
  """Whether something may change; the values are shown to users."""

  CHANGE = 'yes'
  MOVE_NOTHING = 'if the newest step keeps its place'
  NOT_CHANGE = 'no'


class Rule(NamedTuple):
  """A rule for some hyper-parameters, or for a fact of the data.

  Attributes:
    what: Dotted paths of hyper-parameters, in which stage_N stands for both
      stages; or words for something that is not a hyper-parameter.
    may: Whether it may change.
    why: One sentence.
    in_use: Whether a command that only uses a checkpoint (evaluation, export,
      embed, predict) may choose the value. Otherwise it gets the run's value.
  """

  what: tuple[str, ...]
  may: May
  why: str
  in_use: bool = False


CLASS_NAMES = 'names and number of the classes'
TRAINING_IMAGES = 'training images'
NUM_EXAMPLES = 'number of training examples'
WHITENING = 'mean and standard deviation of the whitening'


def _below(prefix, *names):
  return tuple(f'{prefix}.{name}' for name in names)


RULES = (
  Rule(
    _below(
      'architecture',
      'encoder_architecture',
      'encoder_depth',
      'encoder_width',
      'first_conv_kernel_size',
      'first_conv_stride',
      'use_initial_max_pool',
      'projection_head_layers',
      'projection_head_use_batch_norm',
      'projection_head_use_batch_norm_beta',
      'normalize_projection_head_inputs',
      'normalize_classifier_inputs',
    ),
    May.NOT_CHANGE,
    'The weights are those of another network.',
  ),
  Rule(
    _below(
      'input_data.preprocessing',
      'image_size',
      'eval_crop_method',
      'crop_padding',
    ),
    May.NOT_CHANGE,
    'The weights have learned from images of this kind, and exports make them '
    'so.',
    in_use=True,
  ),
  Rule(
    ('input_data.preprocessing.apply_whitening', WHITENING),
    May.NOT_CHANGE,
    'The weights have learned from images of these colors.',
  ),
  Rule(
    ('input_data.input_fn',),
    May.NOT_CHANGE,
    'Another data set is another run, which may start from this one.',
    in_use=True,
  ),
  Rule(
    (CLASS_NAMES,),
    May.NOT_CHANGE,
    'The labels would mean something else.',
  ),
  Rule(
    ('stage_N.optimizer',),
    May.NOT_CHANGE,
    'The checkpoint holds the slots of another one.',
  ),
  Rule(
    _below(
      'warm_start',
      'warm_start_classifier',
      'warm_start_projection_head',
      'warm_start_encoder',
      'batch_norm_in_train_mode',
    ),
    May.NOT_CHANGE,
    'The run has begun: its weights are its own, and how its batch norm works '
    'follows from these.',
  ),
  Rule(
    (
      'batch_size',
      'stage_N.epochs',
      'input_data.train_split',
      'input_data.max_samples',
      'input_data.skip_bad_images',
      NUM_EXAMPLES,
    ),
    May.MOVE_NOTHING,
    'A later end does. What makes another stage or epoch of the steps that are '
    'done needs --accept_new_plan.',
  ),
  Rule(
    (TRAINING_IMAGES,),
    May.CHANGE,
    'The run goes on with the new ones.',
  ),
  Rule(
    _below(
      'stage_N',
      'warmup_epochs',
      'base_learning_rate',
      'learning_rate_decay',
      'decay_rate',
      'decay_boundary_epochs',
      'epochs_per_decay',
      'rmsprop_epsilon',
    ),
    May.CHANGE,
    'The rates of the steps to come are those of the new schedule.',
  ),
  Rule(
    (
      *_below(
        'stage_N',
        'contrastive_loss_weight',
        'cross_entropy_loss_weight',
        'weight_decay',
        'use_encoder_weight_decay',
        'use_projection_head_weight_decay',
        'use_classification_head_weight_decay',
        'update_encoder_batch_norm',
      ),
      *_below(
        'loss.contrastive',
        'use_labels',
        'temperature',
        'contrast_mode',
        'summation_location',
        'denominator_mode',
        'positives_cap',
        'scale_by_temperature',
      ),
      'memory.memory_size',
      'memory.memory_momentum',
      'loss.cross_entropy.label_smoothing',
      'loss.include_bias_in_weight_decay',
      'architecture.stop_gradient_before_classification_head',
      'architecture.stop_gradient_before_projection_head',
    ),
    May.CHANGE,
    'The steps to come minimise the new loss.',
  ),
  Rule(
    _below(
      'input_data.preprocessing',
      'augmentation_type',
      'augmentation_magnitude',
      'warp_probability',
      'blur_probability',
      'use_pytorch_color_jitter',
      'crop_area_range',
      'random_flip',
      'train_on_eval_views',
      'num_views',
    ),
    May.CHANGE,
    'The views of the steps to come are made so.',
  ),
  Rule(
    ('input_data.label_noise_prob', 'input_data.class_balanced', 'seed'),
    May.CHANGE,
    'The examples of the steps to come are drawn anew, so an epoch that is '
    'under way may repeat some.',
  ),
  Rule(
    (
      'architecture.use_global_batch_norm',
      'micro_batch_size',
      'input_data.shard_per_host',
      *_below(
        'input_data.preprocessing',
        'allow_mixed_precision',
        'defer_blurring',
        'defer_augmentation',
        'compile_augmentation',
      ),
    ),
    May.CHANGE,
    'Where something is computed, and how exactly.',
  ),
  Rule(
    (
      'eval.batch_size',
      'input_data.eval_split',
      'input_data.max_eval_samples',
    ),
    May.CHANGE,
    'Evaluations of another set are kept apart.',
    in_use=True,
  ),
  Rule(
    (
      'architecture.zero_initialize_classifier',
      'warm_start.ignore_missing_checkpoint_vars',
      'input_data.preprocessing.measure_whitening',
    ),
    May.CHANGE,
    'No effect: it is about how a run begins.',
  ),
)

# A command that uses a checkpoint may run elsewhere, or on less data.
_IN_USE_TOO = (
  'input_data.skip_bad_images',
  'input_data.preprocessing.allow_mixed_precision',
  'input_data.preprocessing.compile_augmentation',
  'input_data.preprocessing.defer_blurring',
  'input_data.preprocessing.defer_augmentation',
  'input_data.preprocessing.measure_whitening',
  'input_data.train_split',
  'input_data.max_samples',
)


def expand(what: str) -> tuple[str, ...]:
  """Returns the paths that a name in a rule stands for."""
  return tuple(
    dict.fromkeys(what.replace('stage_N', f'stage_{n}') for n in (1, 2))
  )


_RULE_OF = {
  path: rule for rule in RULES for what in rule.what for path in expand(what)
}


def rule_of(what: str) -> Rule:
  """Returns the rule for a hyper-parameter, given its path, or for a fact."""
  return _RULE_OF[what]


def as_used(
  trained: hparams.HParams, wished: hparams.HParams, with_data: bool = True
) -> hparams.HParams:
  """Returns the hyper-parameters for using a trained checkpoint.

  Args:
    trained: The checkpoint's hyper-parameters.
    wished: The command's hyper-parameters, which win where it may choose.
    with_data: Whether to name the data that the checkpoint is used on, instead
      of the training data (which a description of the model names).
  """
  for path in _differences(trained, wished):
    is_of_data = path.startswith('input_data.') and path.count('.') == 1
    if is_of_data and not with_data:
      continue
    if rule_of(path).in_use or path in _IN_USE_TOO:
      trained = trained.replace(path, wished.get(path))
  return trained


def warn_of_use(trained: hparams.HParams, wished: hparams.HParams) -> None:
  """Logs how a command differs from the run whose checkpoint it uses."""
  for path in _differences(trained, wished):
    here, there = wished.field(path), trained.field(path).text
    if rule_of(path).may == May.NOT_CHANGE and rule_of(path).in_use:
      logging.warning(
        'WARNING: %s, but the model was trained with %s', here, there
      )
    elif not rule_of(path).in_use and path not in _IN_USE_TOO:
      logging.warning(
        'WARNING: %s has no effect: nothing is trained, and the run has %s',
        here,
        there,
      )


def table() -> str:
  """Returns the table for supcon/runs/README.md of what may change."""
  flags = {field.path: field.flag for field in hparams.FIELDS}
  lines = ['| what | may it change? | |', '|---|---|---|']
  for rule in RULES:
    names = []
    for what in rule.what:
      flag = flags.get(expand(what)[0])
      if flag and what.startswith('stage_N.'):
        flag = flag.replace('stage_1', 'stage_N')
      names.append(f'`--{flag}`' if flag else what)
    what = ', '.join(dict.fromkeys(names))
    lines.append(f'| {what} | {rule.may.value} | {rule.why} |')
  return '\n'.join(lines) + '\n'


def _differences(first, second):
  """Returns the paths of all hyper-parameters that differ."""
  return [
    field.path
    for field in hparams.FIELDS
    if first.get(field.path) != second.get(field.path)
  ]


def check(
  known: hparams.HParams, now: hparams.HParams, checkpoint: str
) -> None:
  """Checks that a run may resume with other hyper-parameters; logs changes.

  Args:
    known: The hyper-parameters that the newest checkpoint was trained with.
    now: The hyper-parameters of the checkpoints to come.
    checkpoint: The newest checkpoint.

  Raises:
    fields.FieldError: If something that may not change has changed.
  """
  for path in _differences(known, now):
    rule = rule_of(path)
    if rule.may == May.NOT_CHANGE:
      raise fields.FieldError(
        now,
        path,
        f'does not fit {checkpoint}, which was trained with '
        f'{known.field(path).text}. {rule.why} Go on with the former value, or '
        'begin in another --model_dir, with this one as --reference_ckpt if '
        'the weights are wanted',
      )
  warn(known, now)


def warn(known: hparams.HParams, now: hparams.HParams) -> None:
  """Logs what has changed since a run began."""
  for path in _differences(known, now):
    logging.warning(
      'WARNING: %s now; model_dir was begun with %s',
      now.field(path),
      known.field(path).text or 'none',
    )


def check_class_names(
  known: Sequence[str] | None, now: Sequence[str], where: str
) -> None:
  """Checks that the meaning of the labels has not changed.

  Args:
    known: Names of the classes, in the order of the labels; None if unknown.
    now: Names of the classes of the data set.
    where: The file that holds the known names.

  Raises:
    ValueError: If it has changed.
  """
  known = known or now
  for label, (old, new) in enumerate(itertools.zip_longest(known, now)):
    if old != new:
      raise ValueError(
        f'class {label} of the training images is '
        f'{safe_text.printable(new or "missing")}, but {where} says '
        f'{safe_text.printable(old or "that there is none")} ({len(now)} '
        f'classes, {len(known)} then). {rule_of(CLASS_NAMES).why} Give the '
        'data set its former classes, or take another --model_dir; if this '
        'class was only renamed, write its new name into the file.'
      )
