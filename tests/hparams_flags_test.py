"""The flags: the published contract, and the table's completeness."""

from absl import flags
import pytest

import hparams_flags
from supcon.config import enums
from supcon.config import hparams
from supcon.config import run_options
from tests import flag_parsing
from tests import golden

_TYPES = {
  'string': 'string',
  'integer': 'int',
  'float': 'float',
  'boolean': 'bool',
  'enum': 'string enum',
  'comma_list': 'comma separated list of strings',
}


@pytest.fixture(name='values', scope='module')
def fixture_values():
  values = flags.FlagValues()
  hparams_flags.define(values)
  return values


@pytest.mark.parametrize(
  'published', golden.json('flags.json')['flags'], ids=lambda f: f['name']
)
def test_published_flags(values, published):
  flag = values[published['name']]
  default = published['default']
  if published['type'] == 'comma_list':
    default = [str(item) for item in default]
  assert flag.default == default
  assert flag.flag_type() == _TYPES[published['type']]
  if published['type'] == 'enum':
    # Ours may know more, such as --mode=inspect_data.
    known = flag.parser.enum_values
    assert known[: len(published['enum_values'])] == published['enum_values']


def test_untouched_flags_give_the_defaults():
  assert flag_parsing.parse([]) == (
    run_options.RunOptions(),
    hparams.HParams(),
  )


def test_every_flag_has_help(values):
  for flag in values.get_flags_for_module(hparams_flags):
    assert len(flag.help) > 5, flag.name


def test_flags_set_their_fields():
  options, params = flag_parsing.parse(
    [
      '--mode=eval',
      '--nouse_tpu',
      '--batch_size=64',
      '--normalize_embedding=False',
      '--projection_head_layers=64,32',
      '--crop_area_range=0.2,1.0',
      '--stage_2_optimizer=lars',
      '--stage_2_decay_boundary_epochs=1,2',
      '--augmentation_type=SIMCLR',
    ]
  )
  assert options.mode == 'eval' and not options.use_tpu
  assert params.batch_size == 64
  assert not params.architecture.normalize_classifier_inputs
  assert not params.architecture.normalize_projection_head_inputs
  assert params.architecture.projection_head_layers == (64, 32)
  assert params.input_data.preprocessing.crop_area_range == (0.2, 1.0)
  assert params.stage_2.optimizer == enums.Optimizer.LARS
  assert params.stage_1.optimizer == enums.Optimizer.RMSPROP
  assert params.stage_2.decay_boundary_epochs == (1, 2)


class _Facts:
  """Stands in for facts whose reference is a ResNet-18 of 16 pixels."""

  taken_by = ()

  def taken(self, model_dir, reference, params):
    self.taken_by += ((model_dir, reference),)
    assert params.warm_start.warm_start_encoder
    return {
      'architecture.encoder_depth': 18,
      'input_data.preprocessing.image_size': 16,
    }


_TRANSFER = (
  '--model_dir=m',
  '--reference_ckpt=r',
  '--warm_start_encoder',
  '--use_tpu=False',
)


@pytest.mark.parametrize('mode', ['train', 'train_then_eval', 'inspect_data'])
def test_what_is_taken_from_a_reference_holds_where_no_flag_is(mode):
  facts = _Facts()
  arguments = [*_TRANSFER, f'--mode={mode}', '--image_size=224']
  _, params = flag_parsing.parse(arguments, lambda: facts)
  assert facts.taken_by == (('m', 'r'),)
  assert params.architecture.encoder_depth == 18
  # The default, but it was given.
  assert params.input_data.preprocessing.image_size == 224


@pytest.mark.parametrize(
  'arguments',
  [
    ['--mode=status', *_TRANSFER],
    _TRANSFER[:2],  # Of which nothing is taken: refused later.
    ['--model_dir=m', '--warm_start_encoder'],
    [*_TRANSFER, '--hparams=d=50,wse=1'],  # Says all.
  ],
)
def test_nothing_is_taken_where_no_reference_counts(arguments):
  facts = _Facts()
  _, params = flag_parsing.parse(arguments, lambda: facts)
  assert facts.taken_by == ()
  assert params.architecture.encoder_depth == 50


def test_a_reference_that_is_no_name_is_refused_first():
  arguments = [*_TRANSFER, '--reference_ckpt=a*']
  with pytest.raises(ValueError, match='--reference_ckpt=a'):
    flag_parsing.parse(arguments, _Facts)


def test_the_compact_string_replaces_the_flags():
  _, params = flag_parsing.parse(['--batch_size=64', '--hparams=d=18'])
  assert params == hparams.parse('d=18')
  assert params.batch_size == 2048


def test_bad_list_items_name_the_flag():
  with pytest.raises(ValueError, match='--projection_head_layers'):
    flag_parsing.parse(['--projection_head_layers=64,x'])


_PATHS = ('model_dir', 'data_dir', 'reference_ckpt', 'output', 'index')


def test_home_in_every_path(monkeypatch):
  monkeypatch.setenv('HOME', '/home/me')
  arguments = [f'--{flag}=~/{flag}' for flag in _PATHS]
  options, _ = flag_parsing.parse([*arguments, '--images=~/a.png,~,b/~/c'])
  for flag in _PATHS:
    assert getattr(options, flag) == f'/home/me/{flag}'
  assert options.images == ('/home/me/a.png', '/home/me', 'b/~/c')
  root = flag_parsing.parse(['--model_dir=~root/m'])[0].model_dir
  assert not root.startswith('~')


def test_what_is_no_home_stays():
  for path in ('', 'a~', './~/x', '/~', 'gs://~/x'):
    assert flag_parsing.parse([f'--model_dir={path}'])[0].model_dir == path
  assert flag_parsing.parse([])[0].data_dir is None


@pytest.mark.parametrize('flag', [*_PATHS, 'images'])
def test_a_home_of_nobody_is_refused(flag):
  with pytest.raises(ValueError) as error:
    flag_parsing.parse([f'--{flag}=~nobody_at_all/x'])
  assert str(error.value) == (
    f'--{flag}=~nobody_at_all/x: there is no home directory ~nobody_at_all; '
    'give the whole path, or ./~nobody_at_all/x if that is its name.'
  )


@pytest.mark.parametrize('character', '*?[\\')
def test_paths_that_tensorflow_takes_for_patterns_are_refused(character):
  path = f'lr={character}0.1'
  start = ['--use_tpu=False', '--warm_start_encoder']
  for arguments in (
    [f'--model_dir={path}', '--reference_ckpt=y'],
    ['--model_dir=x', f'--reference_ckpt={path}/model.ckpt-1'],
  ):
    options, params = flag_parsing.parse([*start, *arguments])
    with pytest.raises(ValueError) as error:
      options.check(params)
    assert f'={path}' in str(error.value)
    assert f' holds the character {character}: TensorFlow' in str(error.value)
  # A URL is none, and images and data are opened by their names.
  options, params = flag_parsing.parse(
    [
      *start,
      '--model_dir=a]b {c,d} %s #:\u732b',
      f'--data_dir={path}',
      '--reference_ckpt=https://tfhub.dev/x/1?tf-hub-format=compressed',
    ]
  )
  options.check(params)


@pytest.mark.parametrize('flag', _PATHS)
@pytest.mark.parametrize('name', ['a\nb', 'a\x1b[2J', 'a\u2028', '\udce9'])
def test_paths_that_break_lines_are_refused(flag, name):
  arguments = {'model_dir': 'x', flag: name}
  options, params = flag_parsing.parse(
    [f'--{flag}={value}' for flag, value in arguments.items()]
  )
  with pytest.raises(
    ValueError, match=f'--{flag}=.*cannot be written'
  ) as error:
    options.check(params)
  assert str(error.value).isprintable()


@pytest.mark.parametrize(
  'arguments, words',
  [
    (['--model_dir='], '--model_dir is empty'),
    (['--save_interval_steps=0'], '--save_interval_steps=0 must be positive'),
    (
      ['--eval_interval_secs=-1'],
      '--eval_interval_secs=-1 must not be negative',
    ),
    (['--reference_ckpt=y'], '--warm_start_encoder'),
    (['--warm_start_encoder'], '--reference_ckpt'),
  ],
)
def test_run_options_are_checked(arguments, words):
  options, params = flag_parsing.parse(
    ['--model_dir=x', '--use_tpu=False', *arguments]
  )
  with pytest.raises(ValueError, match=words):
    options.check(params)


# --- Flags of other programs --------------------------------------------------


@pytest.mark.parametrize(
  'argument, says',
  [
    ('--epochs=3', 'use --stage_1_epochs or --stage_2_epochs.'),
    ('--lr=0.1', 'use --stage_1_base_learning_rate or --stage_2_'),
    ('--arch=resnet50', 'use --resnet_depth or '),
    ('--dataset=cifar10', 'use --input_fn or --data_dir.'),
    ('--gpus=2', 'use --num_gpus.'),
    ('--resume', 'leave it out: training continues'),
    ('--temperatur=1', 'Did you mean: temperature'),
  ],
)
def test_flags_of_other_programs_lead_to_ours(values, argument, says):
  with pytest.raises(flags.UnrecognizedFlagError) as raised:
    values(['main.py', argument])
  text = hparams_flags.explain_parsing(raised.value)
  assert says in text and '\n' not in text


@pytest.mark.parametrize(
  'arguments, stage_steps, expected',
  [
    # As many points as there are steps, then 50 or more, until 100 is reached.
    ([], 30, 1),
    ([], 149, 2),  # 75 points.
    ([], 4999, 99),
    ([], 5000, 100),
    ([], 1000000, 100),
    # What is said holds, also if it is the default.
    (['--summary_interval_steps=100'], 30, 100),
    (['--summary_interval_steps=7'], 1000000, 7),
  ],
)
def test_a_short_stage_has_enough_summaries(arguments, stage_steps, expected):
  options, _ = flag_parsing.parse(arguments)
  assert options.summary_interval(stage_steps) == expected
