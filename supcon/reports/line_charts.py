"""Charts as SVG, readable on paper and without telling colors apart.

Plotting libraries take a second or more to import, and --mode=compare should
answer at once.
"""

from collections.abc import Sequence
import html
import math
from typing import NamedTuple

# Colors of Okabe and Ito, which color-blind readers can tell apart
# (https://jfly.uni-koeln.de/color/), with a dash and a marker each. The yellow
# one is missing, because it is hard to see on paper.
_STYLES = (
  ('#0072B2', '', 'M-4 0a4 4 0 1 0 8 0a4 4 0 1 0 -8 0z'),  # Circle.
  ('#D55E00', '9 3', 'M-3.5 -3.5h7v7h-7z'),  # Square.
  ('#009E73', '2 2', 'M0 -4.5l4.5 8h-9z'),  # Triangle.
  ('#CC79A7', '9 3 2 3', 'M0 -5l5 5l-5 5l-5 -5z'),  # Diamond.
  ('#000000', '14 4', 'M-4 -4l8 8m0 -8l-8 8'),  # x.
  ('#E69F00', '5 5', 'M0 4.5l4.5 -8h-9z'),  # Triangle, upside down.
  ('#56B4E9', '14 3 2 3 2 3', 'M-5 0h10m-5 -5v10'),  # +.
)
NUM_STYLES = len(_STYLES)
_REST = ('#999999', '', '')

_WIDTH, _HEIGHT = 720, 360
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 16, 12, 44
_MARKERS = 9  # Along a line.

Points = Sequence[tuple[float, float]]


class Series(NamedTuple):
  """Lines that belong together: their mean is drawn, and each one faintly.

  Attributes:
    style: Number of the style; None for those that only make the background.
    lines: The lines; each has increasing x.
  """

  style: int | None
  lines: Sequence[Points]


def key(style: int | None) -> str:
  """Returns a short line in a style, for a legend."""
  line = _drawn([(2, 8), (46, 8)], style, 2.5) + _marker((24, 8), style)
  return f'<svg width="48" height="16" role="img" aria-label="key">{line}</svg>'


def chart(
  series: Sequence[Series],
  x_title: str,
  y_title: str,
  marks: Sequence[float] = (),
) -> str:
  """Returns a chart of lines.

  Args:
    series: The lines; the first series is drawn on top.
    x_title: Title of the horizontal axis.
    y_title: Title of the vertical axis.
    marks: Where to draw a vertical line across the chart.
  """
  points = [p for each in series for line in each.lines for p in line]
  x_ticks, x_at = _axis([x for x, _ in points], _LEFT, _WIDTH - _RIGHT, True)
  y_ticks, y_at = _axis([y for _, y in points], _HEIGHT - _BOTTOM, _TOP)

  def place(line):
    return [(x_at(x), y_at(y)) for x, y in line]

  parts = [
    f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" role="img" '
    f'aria-label="{html.escape(y_title)} by {html.escape(x_title)}">'
  ]
  left, bottom = _LEFT, _HEIGHT - _BOTTOM
  for tick in x_ticks:
    parts.append(_text(x_at(tick), bottom + 16, f'{tick:.6g}', 'middle'))
    parts.append(_rule(x_at(tick), bottom, x_at(tick), bottom + 4, '#333'))
  for tick in y_ticks:
    parts.append(_text(left - 8, y_at(tick) + 4, f'{tick:.6g}', 'end'))
    parts.append(_rule(left, y_at(tick), _WIDTH - _RIGHT, y_at(tick), '#ddd'))
  for mark in marks:
    parts.append(_rule(x_at(mark), _TOP, x_at(mark), bottom, '#333', '1 4'))
  parts.append(_rule(left, bottom, _WIDTH - _RIGHT, bottom, '#333'))
  parts.append(_text((left + _WIDTH) / 2, _HEIGHT - 8, x_title, 'middle'))
  turn = f'rotate(-90 14 {bottom / 2})'
  parts.append(_text(14, bottom / 2, y_title, 'middle', turn))
  for number, each in reversed(list(enumerate(series))):
    mean = _mean(each.lines)
    is_alone = len(each.lines) == 1 or len(mean) < 2
    if each.style is None or not is_alone:
      for line in each.lines:
        parts.append(_drawn(place(line), each.style, 1, opacity=0.35))
    if each.style is None:
      continue
    for line in each.lines if is_alone else [mean]:
      placed = place(line)
      parts.append(_drawn(placed, each.style, 2.2))
      # Neighbouring lines have their markers at different places.
      apart = max(len(placed) // _MARKERS, 1)
      start = number * apart // NUM_STYLES
      parts += [_marker(p, each.style) for p in placed[start::apart]]
  return ''.join(parts) + '</svg>'


def interval(
  values: Sequence[float],
  low: float,
  high: float,
  scale: tuple[float, float],
  style: int | None,
) -> str:
  """Returns a row of a dot chart: the values, and an interval around the mean.

  Args:
    values: Each is a dot.
    low: The lower end of the interval.
    high: The upper end of the interval.
    scale: The values at both ends of the row.
    style: The style of the values.
  """
  width, middle = 220, 10
  span = (scale[1] - scale[0]) or 1.0

  def at(value):
    return 8 + (width - 16) * (value - scale[0]) / span

  color = _style(style)[0]
  mean = at((low + high) / 2)
  parts = [
    f'<svg width="{width}" height="20" role="img" aria-label="from '
    f'{low:.4g} to {high:.4g}">',
    _rule(8, middle, width - 8, middle, '#ddd'),
    _rule(at(low), middle, at(high), middle, '#333', width=3),
    _rule(mean, 2, mean, 18, '#333', width=3),
  ]
  parts += [
    f'<circle cx="{at(value):.1f}" cy="{middle}" r="4" fill="#fff" '
    f'fill-opacity="0.6" stroke="{color}" stroke-width="1.6"/>'
    for value in values
  ]
  return ''.join(parts) + '</svg>'


def _style(style):
  return _REST if style is None else _STYLES[style]


def _mean(lines) -> Points:
  """Returns the mean of lines, where all of them have a point."""
  tables = [{round(x, 6): y for x, y in line} for line in lines]
  shared = set(tables[0]).intersection(*tables) if tables else ()
  return [
    (x, math.fsum(table[x] for table in tables) / len(tables))
    for x in sorted(shared)
  ]


def _axis(values, start, stop, is_tight=False):
  """Returns round ticks, and the function from a value to its place.

  The axis ends at a tick or, if it is tight, at the last value.
  """
  low, high = min(values, default=0.0), max(values, default=1.0)
  if low == high:
    low, high = low - 0.5, high + 0.5
  step = 10 ** math.floor(math.log10((high - low) / 3))
  step *= max(n for n in (1, 2, 5) if n * step <= (high - low) / 3)
  if is_tight:
    first, last = math.ceil(low / step), math.floor(high / step)
  else:
    first, last = math.floor(low / step), math.ceil(high / step)
    low, high = first * step, last * step
  ticks = [number * step for number in range(first, last + 1)]
  return ticks, lambda x: start + (stop - start) * (x - low) / (high - low)


def _rule(x, y, to_x, to_y, color, dash='', width=1):
  return (
    f'<line x1="{x:.1f}" y1="{y:.1f}" x2="{to_x:.1f}" y2="{to_y:.1f}" '
    f'stroke="{color}" stroke-width="{width}" stroke-dasharray="{dash}"/>'
  )


def _text(x, y, text, anchor, turn=''):
  return (
    f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" '
    f'transform="{turn}">{html.escape(text)}</text>'
  )


def _drawn(points, style, width, opacity=1):
  color, dash, _ = _style(style)
  places = ' '.join(f'{x:.1f},{y:.1f}' for x, y in points)
  return (
    f'<polyline points="{places}" fill="none" stroke="{color}" '
    f'stroke-width="{width}" stroke-dasharray="{dash}" opacity="{opacity}"/>'
  )


def _marker(point, style):
  color, _, path = _style(style)
  return (
    f'<path d="{path}" transform="translate({point[0]:.1f} {point[1]:.1f})" '
    f'fill="#fff" stroke="{color}" stroke-width="1.8"/>'
  )
