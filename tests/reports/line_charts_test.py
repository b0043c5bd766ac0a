"""Tests of line_charts."""

import re
from xml.etree import ElementTree

import pytest

from supcon.reports import line_charts


def _polylines(svg):
  """Returns [(points, width)] of the lines in an SVG."""
  return [
    (
      [tuple(map(float, p.split(','))) for p in each.get('points').split()],
      float(each.get('stroke-width')),
    )
    for each in ElementTree.fromstring(svg).iter('polyline')
  ]


def test_the_mean_is_drawn_over_the_lines():
  lines = [[(0, 0), (5, 2), (10, 4)], [(0, 2), (10, 8)]]
  svg = line_charts.chart([line_charts.Series(0, lines)], 'x', 'y')
  first, second, mean = _polylines(svg)
  assert first[1] == second[1] < mean[1]
  # Where both have a point: (0 + 2) / 2 and (4 + 8) / 2.
  assert [x for x, _ in mean[0]] == [first[0][0][0], first[0][2][0]]
  for index in (0, 1):
    ends = [first[0][2 * index][1], second[0][index][1]]
    assert mean[0][index][1] == pytest.approx(sum(ends) / 2, abs=0.1)


def test_groups_differ_in_more_than_color():
  keys = [line_charts.key(n) for n in range(line_charts.NUM_STYLES)]
  dashes = [re.search('dasharray="(.*?)"', key)[1] for key in keys]
  markers = [re.search('<path d="(.*?)"', key)[1] for key in keys]
  assert len({*dashes}) == len({*markers}) == len(keys)


def test_any_values_have_an_axis():
  for line in ([(0, 1)], [(0, 1), (1, 1)], [(0, -1e9), (1e-9, 1e9)], []):
    svg = line_charts.chart([line_charts.Series(None, [line])], 'x', '<y>')
    ElementTree.fromstring(svg)  # It is well-formed.
    assert 'nan' not in svg and 'inf' not in svg


def test_round_ticks():
  svg = line_charts.chart(
    [line_charts.Series(0, [[(0, 0.3), (7, 9.7)]])], 'x', 'y'
  )
  ticks = [each.text for each in ElementTree.fromstring(svg).iter('text')]
  assert ticks[:4] == ['0', '2', '4', '6']
  assert ticks[4:10] == ['0', '2', '4', '6', '8', '10']


def test_an_interval_lies_on_the_scale():
  svg = line_charts.interval([0.5, 1.0], 0.5, 1.0, (0.0, 1.0), 0)
  root = ElementTree.fromstring(svg)
  # From 8 to 212 of 220 pixels.
  assert [c.get('cx') for c in root.iter('circle')] == ['110.0', '212.0']
