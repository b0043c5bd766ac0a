"""The list of tests.mutants, which a change of the code may outdate."""

import ast
import collections
import shlex

import pytest

from tests import mutants


@pytest.mark.parametrize('mutant', mutants.MUTANTS, ids=lambda each: each.name)
def test_a_slip_can_be_planted(mutant):
  text = mutants.planted(mutant)
  assert text != (mutants.ROOT / mutant.file).read_text()
  if mutant.file.endswith('.py'):
    ast.parse(text)
  assert mutant.what and '\n' not in mutant.what


def test_names_are_unique():
  counts = collections.Counter(mutant.name for mutant in mutants.MUTANTS)
  assert [name for name, count in counts.items() if count > 1] == []


def test_tests_are_there():
  for mutant in mutants.MUTANTS:
    files = [a for a in shlex.split(mutant.tests) if a.endswith('.py')]
    assert files, mutant.name
    for file in files:
      assert (mutants.ROOT / file).is_file(), mutant.name


def test_a_slip_that_fits_nowhere_is_named():
  mutant = mutants.MUTANTS[0]._replace(name='outdated', old='no such text')
  with pytest.raises(
    ValueError,
    match=f'^outdated: its old text stands 0 times in {mutant.file}, expected',
  ):
    mutants.planted(mutant)
