"""Tests of the page that --help prints."""

import re

from supcon.config import help_page
from supcon.config import hparams
from supcon.config import run_options

_FLAGS = sorted(
  {field.flag for field in (*run_options.FIELDS, *hparams.FIELDS)}
)


def test_help_has_every_flag_once():
  text = help_page.text()
  flattened = []
  for name in re.findall(r'^  --(\w+)', text, re.M):
    is_of_stages = name.startswith('stage_N_')
    numbers = '12' if is_of_stages else ' '
    flattened += [name.replace('N', number, 1) for number in numbers]
  assert sorted(flattened) == _FLAGS
  assert max(map(len, text.splitlines())) <= 80


def test_help_shows_defaults_and_choices():
  text = ' '.join(help_page.text().split())
  params = hparams.HParams()
  assert f'--temperature ({params.loss.contrastive.temperature})' in text
  epochs = f'({params.stage_1.epochs}, {params.stage_2.epochs})'
  assert f'--stage_N_epochs {epochs}' in text
  assert 'One of: ALL_VIEWS, ONE_VIEW.' in text


def test_what_is_suggested_exists():
  for name in help_page._OTHER_NAMES:
    suggested = re.findall(r'--(\w+)', help_page.instead_of(name))
    assert suggested and set(suggested) <= set(_FLAGS)
