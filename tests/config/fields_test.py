"""Tests of the fields of the config: their help, their checks, their errors."""

import dataclasses
import inspect
import re

from absl import flags
import pytest

from supcon.config import fields
from supcon.config import hparams
from supcon.config import run_options
from tests import flag_parsing

_ALL = (*run_options.FIELDS, *hparams.FIELDS)
_CLASSES = [
  each
  for each in (*vars(hparams).values(), run_options.RunOptions)
  if dataclasses.is_dataclass(each)
]


def _is_number(value):
  if isinstance(value, tuple):
    return all(map(_is_number, value)) and value != ()
  return isinstance(value, (int, float)) and not isinstance(value, bool)


@pytest.mark.parametrize('dataclass', _CLASSES)
def test_the_docstring_describes_each_field_in_its_order(dataclass):
  described = re.findall(r'(?m)^  (\w+): ', inspect.getdoc(dataclass))
  assert described == [
    field.name
    for field in dataclasses.fields(dataclass)
    if 'checks' in field.metadata and not hasattr(field.default, 'conflicts')
  ]


def _refusal(arguments):
  """Returns the line by which main.py refuses flags."""
  try:
    options, params = flag_parsing.parse(
      ['--model_dir=m', '--use_tpu=False', *arguments]
    )
    params.check()
    options.check(params)
  except (flags.Error, ValueError) as error:
    return str(error)
  return ''


_NUMBERS = sorted({field.flag for field in _ALL if _is_number(field.value)})


@pytest.mark.parametrize('flag', _NUMBERS)
def test_what_is_no_number_is_refused_by_the_name_of_its_flag(flag):
  assert len(_NUMBERS) > 50
  for value in ('nan', 'inf', '-inf', '1e999'):
    line = _refusal([f'--{flag}={value}'])
    assert re.search(rf'--{flag}\b', line), line
    assert '\n' not in line


def test_an_error_has_fields_and_says_flags():
  params = hparams.HParams().replace('architecture.encoder_depth', 19)
  with pytest.raises(fields.FieldError) as error:
    params.check()
  (field,) = error.value.fields
  assert (field.path, field.value) == ('architecture.encoder_depth', 19)
  assert str(error.value).startswith('--resnet_depth=19 does not exist for')


def test_conflicts_name_every_field_of_their_part():
  params = hparams.HParams().replace('stage_2.warmup_epochs', 200.0)
  with pytest.raises(fields.FieldError) as error:
    params.check()
  assert str(error.value).startswith(
    '--stage_2_warmup_epochs=200.0 and --stage_2_epochs=200 do not fit: '
  )


def test_values_are_shown_as_the_flags_take_them():
  params = hparams.HParams()
  shown = {field.path: str(field) for field in fields.walk(params)}
  assert shown['stage_1.optimizer'] == '--stage_1_optimizer=RMSPROP'
  assert shown['input_data.max_samples'] == '--num_images=0'
  path = 'architecture.projection_head_layers'
  assert shown[path] == '--projection_head_layers=2048,128'
  assert shown['input_data.eval_split'] == '--eval_split'
  evil = fields.find(run_options.RunOptions(model_dir='a\nb'), 'model_dir')
  assert str(evil) == r'--model_dir=a\nb'
