"""Tests of path_names; hparams_flags_test.py has those of the flags."""

import pytest

from supcon.config import path_names


@pytest.mark.parametrize(
  'path, character',
  [
    ('runs/lr=[0.1]', '['),
    ('a*', '*'),
    ('a?', '?'),
    ('a\\b', '\\'),
    ('a]b {c,d} %s #1:2 é猫', ''),
    ('', ''),
  ],
)
def test_patterns(path, character):
  assert path_names.pattern_in(path) == character


def test_home(monkeypatch):
  monkeypatch.setenv('HOME', '/home/me')
  assert path_names.expanded('~') == '/home/me'
  assert path_names.expanded('~/a/~') == '/home/me/a/~'
  assert path_names.expanded('a/~') == 'a/~'
  with pytest.raises(ValueError, match='no home directory ~no_one'):
    path_names.expanded('~no_one/a')
