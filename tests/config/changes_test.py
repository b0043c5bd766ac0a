"""Tests of changes: what may change is said of everything, and held."""

import pytest

from supcon.config import changes
from supcon.config import enums
from supcon.config import fields
from supcon.config import hparams
from supcon.config import run_options
from tests import command

_PATHS = [entry.path for entry in hparams.FIELDS]


def _other(value):
  """Returns another value of the same type."""
  if isinstance(value, bool):
    return not value
  if isinstance(value, (int, float)):
    return value + 1
  if isinstance(value, str):
    return f'{value}x'
  if isinstance(value, tuple):
    return (*value, value[-1])
  return next(member for member in type(value) if member != value)


def test_every_hyper_parameter_stands_in_it_once():
  named = [
    path
    for rule in changes.RULES
    for what in rule.what
    for path in changes.expand(what)
  ]
  assert len(named) == len(set(named))
  facts = {
    changes.CLASS_NAMES,
    changes.TRAINING_IMAGES,
    changes.NUM_EXAMPLES,
    changes.WHITENING,
  }
  assert set(named) - facts == set(_PATHS)
  assert facts < set(named)


@pytest.mark.parametrize('path', _PATHS)
def test_a_change_is_refused_or_said(path, warnings):
  known = hparams.HParams()
  now = known.replace(path, _other(known.get(path)))
  may = changes.rule_of(path).may
  if may == changes.May.NOT_CHANGE:
    with pytest.raises(fields.FieldError, match='DIR/model.ckpt-7') as error:
      changes.check(known, now, 'DIR/model.ckpt-7')
    assert str(error.value).startswith(f'{now.field(path)} does not fit')
    assert warnings == []
  else:
    changes.check(known, now, 'DIR/model.ckpt-7')
    (line,) = warnings
    assert line.startswith(f'WARNING: {now.field(path)} now; ')


@pytest.mark.parametrize(
  'path, may',
  [
    ('architecture.first_conv_stride', changes.May.NOT_CHANGE),
    ('input_data.preprocessing.image_size', changes.May.NOT_CHANGE),
    ('input_data.preprocessing.apply_whitening', changes.May.NOT_CHANGE),
    ('input_data.input_fn', changes.May.NOT_CHANGE),
    (changes.CLASS_NAMES, changes.May.NOT_CHANGE),
    ('batch_size', changes.May.MOVE_NOTHING),
    ('stage_1.epochs', changes.May.MOVE_NOTHING),
    ('stage_2.epochs', changes.May.MOVE_NOTHING),
    ('stage_2.base_learning_rate', changes.May.CHANGE),
    ('loss.contrastive.temperature', changes.May.CHANGE),
    ('seed', changes.May.CHANGE),
  ],
)
def test_examples(path, may):
  assert changes.rule_of(path).may == may


def test_the_same_is_not_spoken_of(warnings):
  changes.check(hparams.HParams(), hparams.HParams(), 'DIR/model.ckpt-7')
  assert warnings == []


def test_who_uses_a_model_may_be_elsewhere_and_look_at_less(warnings):
  trained = hparams.HParams()
  wished = trained
  for path, value in {
    'input_data.max_samples': 5,
    'input_data.train_split': 'train[:10]',
    'input_data.skip_bad_images': True,
    'input_data.preprocessing.compile_augmentation': False,
    'input_data.preprocessing.defer_blurring': False,
    'input_data.preprocessing.defer_augmentation': True,
    'input_data.preprocessing.allow_mixed_precision': True,
  }.items():
    assert wished.get(path) != value, path
    wished = wished.replace(path, value)
  assert changes.as_used(trained, wished) == wished
  # And nothing of it is worth a word.
  changes.warn_of_use(trained, wished)
  assert warnings == []


def test_who_uses_a_model_chooses_the_images_and_nothing_of_the_model(warnings):
  trained = hparams.HParams()
  wished = trained
  for path, value in {
    'input_data.eval_split': 'test',
    'input_data.preprocessing.image_size': 32,
    'eval.batch_size': 7,
    'loss.contrastive.temperature': 0.5,
    'seed': 7,
    'architecture.first_conv_stride': 1,
    'stage_1.epochs': 3,
  }.items():
    wished = wished.replace(path, value)
  used = changes.as_used(trained, wished)
  assert used == trained.replace('input_data.eval_split', 'test').replace(
    'input_data.preprocessing.image_size', 32
  ).replace('eval.batch_size', 7)
  changes.warn_of_use(trained, wished)
  assert warnings == [
    'WARNING: --first_conv_stride=1 has no effect: nothing is trained, and the '
    'run has 2',
    'WARNING: --temperature=0.5 has no effect: nothing is trained, and the run '
    'has 0.07',
    'WARNING: --stage_1_epochs=3 has no effect: nothing is trained, and the '
    'run has 700',
    'WARNING: --image_size=32, but the model was trained with 224',
    'WARNING: --seed=7 has no effect: nothing is trained, and the run has 0',
  ]


@pytest.mark.parametrize(
  'now, words',
  [
    (('fox', 'dog', 'owl'), 'class 0 .* fox, but FILE says cat '),
    (('cat', 'owl', 'dog'), 'class 1 .* owl, but FILE says dog '),
    (('cat', 'dog'), r'class 2 .* missing, but FILE says owl \(2 classes, 3 '),
    (
      ('cat', 'dog', 'owl', 'pig'),
      'class 3 .* pig, but FILE says that there is none',
    ),
  ],
)
def test_labels_mean_what_they_meant(now, words):
  known = ('cat', 'dog', 'owl')
  changes.check_class_names(known, known, 'FILE')
  changes.check_class_names(None, now, 'FILE')
  with pytest.raises(ValueError, match=words):
    changes.check_class_names(known, now, 'FILE')


@pytest.mark.parametrize(
  'mode, option',
  [
    ('train', {'eval_once': True}),
    ('eval', {'checkpoint': 'DIR/model.ckpt-3'}),
    ('eval', {'accept_new_plan': True}),
  ],
)
def test_flags_that_would_have_no_effect(mode, option):
  options = run_options.RunOptions(
    mode=mode, model_dir='m', use_tpu=False, **option
  )
  (name,) = option
  with pytest.raises(ValueError, match=rf'--{name}\b.* has no effect with'):
    options.check(hparams.HParams())


def test_the_guide_has_the_table():
  readme = (command.ROOT / 'supcon' / 'runs' / 'README.md').read_text()
  assert changes.table() in readme


def test_flags_of_the_table():
  table = changes.table()
  for flag in ('resnet_depth', 'image_size', 'stage_N_epochs', 'temperature'):
    assert f'`--{flag}`' in table
  # Of one flag for two fields there is only one.
  assert table.count('`--normalize_embedding`') == 1
  assert enums.EncoderArchitecture.__name__ not in table
