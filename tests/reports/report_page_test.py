"""Tests of the page of a report, and of its figures."""

import base64
import re
import subprocess
import sys
from xml.etree import ElementTree

import numpy as np
import pytest

from supcon.reports import report_drawings
from tests import command
from tests.reports import made_report


@pytest.fixture(name='made', scope='module')
def _made():
  report, *_ = made_report.report(
    robustness=[
      {
        'corruptions': '/data/<c>',
        'summary': {'mean_error': 0.25, 'mce': None},
        'evaluations': {
          'clean': {'error': 0.1},
          'fog/5': {'error': 0.3},
          'fog/1': {'error': 0.2},
        },
      }
    ]
  )
  return report, made_report.page(report)


def _sections(page):
  """Returns {title: element}; fails if the page is not well-formed."""
  body = ElementTree.fromstring(page).find('body')
  return {found.find('h2').text: found for found in body.iter('section')}


def _cells(element):
  return [
    [''.join(cell.itertext()) for cell in row] for row in element.iter('tr')
  ]


def test_it_is_well_formed_and_has_every_section(made):
  assert list(_sections(made[1])) == [
    'Map of the embeddings',
    'What was trained',
    'Training',
    'Metrics',
    'Confusion',
    'Calibration',
    'Classes',
    'The most confident mistakes',
    'Nearest neighbours',
    'Robustness',
    'Hyper-parameters and versions',
    'Files',
  ]


def test_it_loads_nothing(made):
  _, page = made
  assert 'http' not in page and '<script' not in page and '@import' not in page
  for source in re.findall(r'(?:src|href)="([^"]*)"', page):
    assert source.startswith(('data:image/', '../')), source
  for encoded in re.findall(r'data:image/svg\+xml;base64,([^"]*)"', page):
    drawn = base64.b64decode(encoded).decode()
    ElementTree.fromstring(drawn)
    links = re.findall(r'(?:xlink:href|src|url)\s*[=(]\s*"?([^")]*)', drawn)
    assert all(link.startswith(('#', 'data:')) for link in links)


def test_names_are_shown_as_they_are(made):
  report, page = made
  assert '<b>bold' not in page and '<i>' not in page and '<note>' not in page
  rows = _cells(_sections(page)['Classes'])
  # A control character becomes visible.
  names = ['<b>bold</b>', '$x_1$ & "y"', "it's\\n", made_report.CLASS_NAMES[3]]
  assert [row[0] for row in rows[1:]] == names
  assert len(rows[1:]) == len(report['run']['class_names'])


def test_metrics_have_their_value_and_a_meaning(made):
  report, page = made
  rows = {row[0]: row[1:] for row in _cells(_sections(page)['Metrics'])}
  metrics = report['metrics']
  assert rows['Top-1 accuracy'][0] == f'{100 * metrics["accuracy/top_1"]:.2f}%'
  for name in ('nll', 'ece', 'brier'):
    title = {'brier': 'Brier score'}.get(name, name.upper())
    for suffix, words in (('', ''), ('_scaled', ' after scaling')):
      value = metrics[f'calibration/{name}{suffix}']
      assert rows[title + words][0] == f'{value:.4f}'
  assert all(len(rows[name][1]) > 20 for name in ('ECE', 'Alignment'))
  # Of four classes, each is among the five largest logits.
  assert 'Top-3 accuracy' in rows and 'Top-5 accuracy' not in rows
  assert rows['100'] == [
    f'{100 * metrics[f"knn/k100_t{t}"]:.2f}%' for t in (0.07, 0.1)
  ]
  # The index has 150 examples.
  assert '200' not in rows


def test_robustness_is_shown_as_far_as_it_was_measured(made):
  section = _sections(made[1])['Robustness']
  assert section.find('h3').text == '/data/<c>'
  rows = _cells(section)
  assert [row[:2] for row in rows[1:]] == [['Mean error', '25.00%']]
  assert section.find('img') is not None


def test_mistakes_and_neighbours_are_shown_as_pictures(made):
  report, page = made
  sections = _sections(page)
  mistakes = report['metrics']['classes/mistakes']
  tiles = list(sections['The most confident mistakes'].iter('figure'))
  assert len(tiles) == len(mistakes) > 3
  words = ''.join(tiles[0].itertext())
  assert f'{100 * mistakes[0]["probability"]:.2f}%' in words
  assert mistakes[0]['id'] in words
  # A query of each class, and five neighbours each.
  assert len(list(sections['Nearest neighbours'].iter('figure'))) == 4 * 6
  pictures = report_drawings.pictures(report, made_report.thumbnails)
  encoded = base64.b64encode(pictures['evaluation', mistakes[0]['position']])
  assert tiles[0].find('img').get('src').endswith(encoded.decode())


def test_without_a_classifier_or_an_evaluation_it_says_so():
  report, *_ = made_report.report(
    has_classifier=False,
    tsne=False,
    notes=['No classifier.'],
    curves={'train': {}, 'eval': {}},
    scaling='',
  )
  page = made_report.page(report)
  sections = _sections(page)
  assert not {'Confusion', 'Calibration', 'Classes'} & {*sections}
  words = ''.join(sections['Training'].itertext())
  assert 'no record of the training' in words
  assert 'No checkpoint has been evaluated yet' in words
  assert 'scikit-learn' in ''.join(sections['Map of the embeddings'].itertext())
  assert 'No classifier.' in page


def test_the_same_report_is_the_same_page(made):
  assert made_report.page(made[0]) == made[1]


def test_many_classes_are_cut_to_the_worst():
  num_classes = 50
  report, *_ = made_report.report()
  rows = [
    {'class': str(n), 'count': n, 'precision': None, 'recall': 1.0, 'f1': n}
    for n in reversed(range(num_classes))
  ]
  report['metrics']['classes/per_class'] = rows
  report['metrics']['classes/confusion'] = np.eye(num_classes).tolist()
  report['run']['class_names'] = [str(n) for n in reversed(range(num_classes))]
  found = _cells(_sections(made_report.page(report))['Classes'])
  assert [row[0] for row in found[1:]] == [str(n) for n in range(40)]
  assert found[1][2] == '–'


def test_drawing_is_imported_for_a_report_alone():
  code = (
    'import sys; from supcon import jobs; '
    'print([n for n in ("matplotlib", "sklearn") if n in sys.modules])'
  )
  done = subprocess.run(
    [sys.executable, '-c', code],
    cwd=command.ROOT,
    capture_output=True,
    text=True,
    timeout=command.TIMEOUT_SECONDS,
  )
  assert done.stdout == '[]\n', done.stderr
