"""--mode=compare, as a user runs it, where TensorFlow cannot be imported."""

import csv
from html import parser
import json

import pytest

from tests import command
from tests import made_runs


@pytest.fixture(name='compare')
def _compare(tmp_path):
  """Runs the mode with some flags, in a directory of its own."""
  for name in ('tensorflow', 'numpy', 'matplotlib'):
    (tmp_path / 'without' / f'{name}.py').parent.mkdir(exist_ok=True)
    (tmp_path / 'without' / f'{name}.py').write_text('raise ImportError("no")')
  path = str(tmp_path / 'without')
  return lambda **flags: command.run(
    {'mode': 'compare', **flags}, tmp_path, PYTHONPATH=path
  )


@pytest.fixture(name='sweep')
def _sweep(tmp_path):
  """Two temperatures with two seeds each, and a run that diverged."""
  sweep = tmp_path / 'sweep'
  for t, accuracies in (('0.1', (0.98, 0.96)), ('0.5', (0.9, 0.91))):
    for seed, top_1 in enumerate(accuracies):
      metrics = {'top_5_accuracy': 1.0, 'loss': 0.5}
      made_runs.finish(sweep / f't{t}-s{seed}', top_1, metrics, t=t, seed=seed)
  made_runs.train(
    sweep / 'bad', 7, ValueError('<b>the loss</b> is NaN'), t=0.05
  )
  return sweep


# 0.1: (98 - 96) / sqrt(2) = 1.41; 97 -+ 12.7062 * 1.41421 / sqrt(2), which is
# 97 -+ 12.71. 0.5: (91 - 90) / sqrt(2) = 0.71; 90.5 -+ 6.35.
_TABLE = """\
4 runs by top-1 of the last step on digits test, 50 images

temperature  n  top-1   sd     95% interval       top-5
0.1          2  97.00%  1.41%  84.29% to 109.71%  100.00%
0.5          2  90.50%  0.71%  84.15% to 96.85%   100.00%

Not averaged in:
  sweep/bad (seed=0, temperature=0.05): stopped, step 7 of 30: \
<b>the loss</b> is NaN; no evaluation yet
"""


def test_the_table(compare, sweep):
  before = command.contents(sweep)
  finished = compare(runs='sweep/*')
  assert finished.stderr == ''
  assert finished.stdout == _TABLE
  assert finished.returncode == 0
  # Looking at runs changes nothing.
  assert command.contents(sweep) == before


def test_the_files(compare, sweep):
  before = command.contents(sweep)
  output = sweep.parent / 'out' / 'here'
  finished = compare(runs=sweep, output=output)
  assert finished.stderr == ''
  for path in output.iterdir():
    assert str(path) in finished.stdout
  assert command.contents(sweep) == before

  rows = list(csv.DictReader((output / 'comparison.csv').open()))
  assert [row['temperature'] for row in rows] == ['0.1', '0.5']
  assert rows[0]['seeds'] == '0 1' and rows[0]['n'] == '2'
  assert float(rows[0]['top_1_accuracy']) == pytest.approx(0.97)
  assert float(rows[1]['loss sd']) == 0

  found = json.loads((output / 'comparison.json').read_text())
  assert found['groups'][0]['settings'] == {'temperature': '0.1'}
  assert found['groups'][0]['summaries']['loss']['n'] == 2
  assert 'is NaN' in found['left_out'][0]['why']

  lines = (output / 'comparison.md').read_text().splitlines()
  assert lines[2:5] == [
    '| temperature | n | top-1 | sd | 95% interval | top-5 |',
    '|---|---|---|---|---|---|',
    '| 0.1 | 2 | 97.00% | 1.41% | 84.29% to 109.71% | 100.00% |',
  ]

  _Page().feed(page := (output / 'comparison.html').read_text())
  for text in ('97.00%', 'Training loss', '&lt;b&gt;the loss&lt;/b&gt;'):
    assert text in page
  # Two keys, two rows of dots, and two charts of training.
  assert page.count('<svg') == 6


class _Page(parser.HTMLParser):
  """Checks that a page needs no other file."""

  def handle_starttag(self, tag, attrs):
    assert tag not in ('script', 'link', 'img', 'iframe', 'b'), tag
    assert not {'src', 'href'} & {name for name, _ in attrs}, attrs


def test_runs_that_still_train_are_shown_without_a_table(compare, tmp_path):
  made_runs.train(tmp_path / 'a', step=12, is_over=False)
  finished = compare(runs='a', output='out')
  assert finished.returncode == 0
  assert finished.stdout.startswith('No run has been trained and evaluated')
  assert 'training, step 12 of 30' in finished.stdout
  assert (tmp_path / 'out' / 'comparison.html').exists()


@pytest.mark.parametrize(
  'flags, words',
  [
    ({}, ['--mode=compare', '--runs=DIR']),
    ({'runs': 'nowhere'}, ['--runs=nowhere', 'no run']),
    ({'runs': 'sweep,sweep/none*'}, ['--runs=sweep/none*', 'no run']),
    ({'runs': 'sweep', 'output': 'sweep/bad/status.json'}, ['--output=sweep']),
    ({'runs': 'sweep', 'best_metric': 'speed'}, ['--best_metric=speed']),
    ({'runs': 'sweep', 'mode': 'status', 'model_dir': 'm'}, ['--runs=sweep']),
  ],
  ids=str,
)
def test_refuses_in_one_line(compare, sweep, flags, words):
  finished = compare(**flags)
  assert finished.returncode == 2
  assert finished.stdout == ''
  assert finished.stderr.count('\n') == 1
  for word in ('main.py: error: ', *words):
    assert word in finished.stderr
