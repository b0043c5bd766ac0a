"""Hyper-parameters: the compact string, the checks."""

import dataclasses

import pytest

from supcon.config import enums
from supcon.config import hparams
from tests import golden

# The published abbreviated paths that have another name or place in ours.
_GOLDEN = golden.json('hparams_serialization.json')
_FIELDS = {entry.short_name: entry for entry in hparams.FIELDS}


def test_fields_are_the_published_ones_in_order():
  published = [
    entry.short_name for entry in hparams.FIELDS if entry.spec['published']
  ]
  assert published == [field['abbreviation'] for field in _GOLDEN['fields']]


def test_defaults_are_those_of_the_published_flags():
  assert (
    hparams.HParams().serialize() == _GOLDEN['default_from_flags_serialized']
  )


@pytest.mark.parametrize(
  'script', _GOLDEN['scripts_round_trip'], ids=lambda script: script['script']
)
def test_published_strings_survive(script):
  params = hparams.parse(script['serialized'])
  assert params.serialize() == script['serialized']


@pytest.mark.parametrize(
  'example', _GOLDEN['examples'], ids=lambda example: repr(example['string'])
)
def test_strings_are_read_as_published(example):
  # The published defaults of the string differ from those of the flags; what
  # an example changes is told from the former.
  if example['error']:
    with pytest.raises(ValueError):
      hparams.parse(example['string'])
    return
  published_defaults = hparams.parse(_GOLDEN['default_serialized'])
  params = hparams.parse(example['string'])
  expected = hparams.parse(example['reserialized'])
  named = {part.split('=')[0].strip() for part in _split(example['string'])}
  for name, entry in _FIELDS.items():
    if name in named:
      assert params.get(entry.path) == expected.get(entry.path), name
    else:
      assert params.get(entry.path) == entry.value
      if entry.spec['published']:
        assert expected.get(entry.path) == published_defaults.get(entry.path)


def _split(text):
  """Splits at commas outside brackets and quotes."""
  depth, quoted, part = 0, False, ''
  for character in text:
    depth += (character == '[') - (character == ']')
    quoted ^= character == '"'
    if character == ',' and not depth and not quoted:
      yield part
      part = ''
    else:
      part += character
  if part:
    yield part


def test_new_fields_enter_the_string_only_where_they_differ():
  assert 'seed' not in hparams.HParams().serialize()
  params = hparams.HParams(seed=7)
  assert params.serialize().endswith(',seed=7')
  assert hparams.parse(params.serialize()) == params


def test_any_value_round_trips():
  params = hparams.HParams().replace('input_data.input_fn', 'a,b')
  params = params.replace('input_data.train_split', 'train[:80%]')
  params = params.replace('stage_2.decay_boundary_epochs', (1, 22))
  params = params.replace('loss.contrastive.temperature', 1e-7)
  params = params.replace('stage_1.optimizer', enums.Optimizer.ADAM)
  assert hparams.parse(params.serialize()) == params


@pytest.mark.parametrize(
  'text, words',
  [
    ('zz=3', 'zz'),
    ('bs=64,bs=32', 'twice'),
    ('bs=6.4', 'int'),
    ('ul=maybe', 'true'),
    ('ea=zz', 'RESNEXT'),
    ('d=[1,2]', 'single value'),
    ('bs', 'NAME=VALUE'),
  ],
)
def test_errors_say_what_is_wrong(text, words):
  with pytest.raises(ValueError, match=words):
    hparams.parse(text)


def test_json_holds_every_field():
  def leaves(node):
    if isinstance(node, dict):
      return sum(leaves(child) for child in node.values())
    return 1

  assert leaves(hparams.HParams().to_json()) == len(hparams.FIELDS)


def test_frozen():
  with pytest.raises(dataclasses.FrozenInstanceError):
    hparams.HParams().batch_size = 3


_DEFAULT = hparams.HParams()


@pytest.mark.parametrize(
  'path, value, words',
  [
    ('batch_size', 0, '--batch_size=0'),
    ('batch_size', -5, '--batch_size=-5'),
    ('batch_size', 2**21, '=2097152 must be positive, at most 1048576'),
    ('eval.batch_size', 0, '--eval_batch_size=0'),
    ('eval.batch_size', 2**31, '--eval_batch_size=2147483648'),
    ('stage_1.epochs', -1, '--stage_1_epochs=-1'),
    ('stage_2.warmup_epochs', 200.0, '--stage_2_warmup_epochs=200'),
    ('stage_1.warmup_epochs', 701.0, 'shorter than the stage'),
    ('stage_1.warmup_epochs', -1.0, '--stage_1_warmup_epochs'),
    ('stage_1.contrastive_loss_weight', 0.0, 'leave the stage without a loss'),
    ('stage_1.decay_boundary_epochs', (3, 2), 'must increase'),
    ('stage_1.decay_rate', 0.0, '--stage_1_decay_rate'),
    ('stage_1.epochs_per_decay', 0.0, '--stage_1_epochs_per_decay'),
    ('stage_1.weight_decay', -1.0, '--stage_1_weight_decay'),
    ('loss.contrastive.temperature', 0.0, '--temperature=0.0'),
    ('loss.contrastive.positives_cap', 3, 'multiple of the 2 views'),
    ('loss.contrastive.positives_cap', 9998, '--positives_cap=9998'),
    ('loss.cross_entropy.label_smoothing', 1.0, '--label_smoothing=1.0'),
    ('architecture.encoder_depth', 19, '--resnet_depth=19'),
    ('architecture.encoder_width', 0.0, '--resnet_width=0.0'),
    ('architecture.projection_head_layers', (0,), 'projection_head_layers'),
    ('architecture.first_conv_stride', 0, '--first_conv_stride=0'),
    ('input_data.label_noise_prob', 1.5, '--label_noise_prob=1.5'),
    ('input_data.preprocessing.image_size', 0, '--image_size=0'),
    ('input_data.preprocessing.image_size', 10**6, 'at most 8192'),
    ('input_data.preprocessing.crop_area_range', (0.5,), 'two fractions'),
    ('input_data.preprocessing.crop_area_range', (0.0, 1.0), 'fractions'),
    ('input_data.preprocessing.crop_padding', -1, '--crop_padding=-1'),
    ('input_data.preprocessing.blur_probability', 2.0, 'probability'),
    ('input_data.preprocessing.warp_probability', -0.1, 'probability'),
    ('input_data.preprocessing.num_views', 0, '--num_views=0'),
    ('input_data.preprocessing.num_views', 10**6, 'at most 64'),
    ('seed', 2**40, '--seed'),
    ('micro_batch_size', -1, '--micro_batch_size'),
  ],
)
def test_checks(path, value, words):
  _DEFAULT.check()
  with pytest.raises(ValueError, match=words) as error:
    _DEFAULT.replace(path, value).check()
  assert '\n' not in str(error.value)


def test_colors_are_not_measured_for_nothing():
  params = _DEFAULT.replace('input_data.preprocessing.measure_whitening', True)
  params.check()
  params = params.replace('input_data.preprocessing.apply_whitening', False)
  with pytest.raises(
    ValueError, match='--measure_whitening=True and --apply_whit'
  ):
    params.check()


def test_some_stage_must_train():
  params = _DEFAULT.replace('stage_1.epochs', 0).replace('stage_2.epochs', 0)
  with pytest.raises(ValueError, match='nothing to train'):
    params.check()


def test_a_skipped_stage_needs_no_warmup_reset():
  # The default warm-up of 12 epochs does not fit into 0 epochs.
  assert _DEFAULT.stage_2.warmup_epochs == 12
  _DEFAULT.replace('stage_2.epochs', 0).check()


def test_resnext_has_groups_only_at_some_widths():
  params = _DEFAULT.replace(
    'architecture.encoder_architecture', enums.EncoderArchitecture.RESNEXT
  )
  params.replace('architecture.encoder_width', 0.5).check()
  with pytest.raises(ValueError, match='--resnet_width=0.3'):
    params.replace('architecture.encoder_width', 0.3).check()
  with pytest.raises(ValueError, match='--resnet_depth=18'):
    params.replace('architecture.encoder_depth', 18).check()


def test_all_views_of_a_batch_may_be_positives():
  params = hparams.HParams().replace('batch_size', 4)
  params = params.replace('loss.contrastive.positives_cap', 4 * 2)
  params.check()
  with pytest.raises(ValueError, match='--positives_cap=10 is more than the 4'):
    params.replace('loss.contrastive.positives_cap', 10).check()


@pytest.mark.parametrize(
  'side, padding, method, is_told',
  [
    # 16 / (16 + 32) = 1/3 of the side.
    (16, 32, 'RESIZE_THEN_CROP', True),
    (16, 17, 'CROP_THEN_RESIZE', True),
    (16, 16, 'CROP_THEN_DISTORT', False),  # A half.
    (224, 32, 'RESIZE_THEN_CROP', False),
    (16, 32, 'IDENTITY', False),  # Which has no use for it.
  ],
)
def test_a_padding_that_leaves_little_is_told(side, padding, method, is_told):
  preprocessing = hparams.Preprocessing(
    image_size=side,
    crop_padding=padding,
    eval_crop_method=enums.EvalCropMethod[method],
  )
  lines = list(preprocessing.oddities())
  assert len(lines) == is_told
  for line in lines:
    assert f'--crop_padding={padding} is large against --image_size=16' in line
  if padding == 32 and is_told:
    assert '33% of the shorter side' in lines[0]
