"""Tests of the front page and the guides: links, and what they say to run.

A block that begins with ```sh runnable is run; so is all of the Python.
"""

import os
import re
import shlex
import subprocess
import sys

import pytest

from tests import command

_PAGES = sorted(
  path.relative_to(command.ROOT)
  for pattern in ('README.md', 'supcon/**/README.md', 'tests/**/README.md')
  for path in command.ROOT.glob(pattern)
)
_LINK = re.compile(r'\]\(([^)\s]+)\)')
_BLOCK = re.compile(
  r'^```(\w+)( runnable)?\n(.*?)^```', re.DOTALL | re.MULTILINE
)


def _anchors(page):
  """Returns the anchors of a page's headings, as GitHub makes them."""
  text = re.sub(r'(?ms)^```.*?^```', '', page.read_text())
  headings = re.findall(r'(?m)^#+ (.*)$', text)
  return {
    re.sub(r'[^\w\- ]', '', heading.lower()).replace(' ', '-')
    for heading in headings
  }


@pytest.mark.parametrize('page', _PAGES, ids=str)
def test_links_lead_somewhere(page):
  page = command.ROOT / page
  for link in _LINK.findall(page.read_text()):
    target, _, anchor = link.partition('#')
    if re.match('[a-z]+:', target):
      continue
    path = page.parent / target if target else page
    assert path.exists(), link
    if anchor:
      assert anchor in _anchors(path), link


def test_there_are_pages_and_they_are_found():
  names = {str(page) for page in _PAGES}
  assert {'README.md', 'supcon/README.md', 'supcon/data/README.md'} <= names


def test_the_front_page_is_short():
  lines = (command.ROOT / 'README.md').read_text().splitlines()
  assert len(lines) < 200


def _blocks():
  for page in _PAGES:
    text = (command.ROOT / page).read_text()
    for number, (language, runnable, code) in enumerate(_BLOCK.findall(text)):
      if language == 'python' or runnable:
        yield pytest.param(language, code, id=f'{page}-{number}')


@pytest.fixture(name='checkout')
def _checkout(tmp_path):
  """A directory that looks like the checkout, but keeps what is written."""
  for name in ('main.py', 'hparams_flags.py', 'supcon', 'scripts'):
    (tmp_path / name).symlink_to(command.ROOT / name)
  python = tmp_path / 'bin' / 'python'
  python.parent.mkdir()
  # A link to the Python of a virtual environment would not be in it.
  python.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n')
  python.chmod(0o755)
  return tmp_path


# Calls what the front page's Python defines, on four samples in two views.
_CALL = """
if 'train_step' in globals():
  import numpy as np
  views = np.random.RandomState(0).rand(4, 2, 8, 8, 3).astype('float32')
  labels = np.array([0, 0, 1, 1], 'int32')
  found = [float(train_step(views, labels)) for _ in range(20)]
  assert found[-1] < found[0], found
"""


@pytest.mark.parametrize('language, code', _blocks())
def test_what_the_pages_say_to_run(language, code, checkout):
  environment = {
    **os.environ,
    'PATH': f'{checkout / "bin"}:{os.environ["PATH"]}',
    'PYTHON': sys.executable,
    'TF_USE_LEGACY_KERAS': '1',
  }
  if language == 'python':
    arguments = [sys.executable, '-c', code + _CALL]
    environment['PYTHONPATH'] = str(checkout)
  else:
    arguments = ['bash', '-euc', code]
  ran = subprocess.run(
    arguments,
    cwd=checkout,
    env=environment,
    capture_output=True,
    text=True,
    timeout=command.TIMEOUT_SECONDS,
  )
  assert ran.returncode == 0, ran.stderr
