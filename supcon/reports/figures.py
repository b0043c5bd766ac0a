"""Draws the figures of a report: from numbers to SVG or PNG.

This is the only module that imports Matplotlib, and only the job that makes a
report imports this one. Colours can be told apart by people with any kind of
colour vision, and no figure relies on them alone.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import io
import logging
import warnings

from matplotlib import figure
from matplotlib import style
import numpy as np
from PIL import Image

# Of Okabe and Ito, with three more for ten classes.
_COLORS = (
  '#0072b2',
  '#e69f00',
  '#009e73',
  '#d55e00',
  '#56b4e9',
  '#cc79a7',
  '#000000',
  '#b8a800',
  '#6a3d9a',
  '#7f7f7f',
)
_MARKERS = 'os^Dv'
_DASHES = ('-', '--', ':', '-.')
_GREY = '#999999'
_STYLE = {
  'axes.axisbelow': True,
  'axes.edgecolor': _GREY,
  'axes.grid': True,
  'axes.spines.right': False,
  'axes.spines.top': False,
  'axes.titlesize': 10,
  'font.size': 9,
  'grid.color': '#e4e4e4',
  'legend.fontsize': 8,
  'legend.frameon': False,
  # The browser's fonts have the letters of any class name.
  'svg.fonttype': 'none',
  # The same report has the same bytes.
  'svg.hashsalt': 'supcon',
}
_DPI = 150
# The width of a PNG. TensorBoard draws every second pixel of it, or all after a
# click.
_CARD_INCHES = 700 / _DPI


# It announces that it looks for fonts, once per machine.
logging.getLogger('matplotlib').setLevel(logging.ERROR)


def _file(make, size, form='svg'):
  """Returns a file with a figure that `make` fills; size in inches."""
  if form == 'png':
    size = (_CARD_INCHES, size[1] / size[0] * _CARD_INCHES)
  with style.context(['default', _STYLE]), warnings.catch_warnings():
    # Its own font lacks letters, but it only measures with it.
    warnings.simplefilter('ignore', UserWarning)
    drawn = figure.Figure(figsize=size, layout='constrained')
    make(drawn)
    file = io.BytesIO()
    undated = {'Date': None} if form == 'svg' else {}
    drawn.savefig(file, format=form, metadata=undated, dpi=_DPI)
  return file.getvalue()


def png(image: np.ndarray) -> bytes:
  """Returns the PNG of an image, uint8 [height, width, 3]."""
  file = io.BytesIO()
  Image.fromarray(image).save(file, 'PNG', optimize=True)
  return file.getvalue()


def curves(
  panels: Sequence[tuple[str, Mapping[str, Sequence[tuple[float, float]]]]],
  boundaries: Sequence[float],
) -> bytes:
  """Draws curves by epoch, a panel for each quantity.

  Args:
    panels: (title, {name of the curve: [(epoch, value), ...]}).
    boundaries: Epochs at which a stage ends and the next one begins.

  Returns:
    SVG.
  """

  def make(drawn):
    rows = -(-len(panels) // 2)
    for number, (title, lines) in enumerate(panels):
      axes = drawn.add_subplot(rows, 2, number + 1)
      for (name, points), color, dash in zip(lines.items(), _COLORS, _DASHES):
        # A few points are measurements; a curve alone might hide that.
        marker = 'o' if len(points) < 30 else ''
        axes.plot(
          *zip(*points), dash, color=color, label=name, marker=marker, ms=3.5
        )
      for boundary in boundaries:
        axes.axvline(boundary, color=_GREY, ls=(0, (1, 2)), lw=1)
        axes.text(
          boundary,
          1,
          'stage 2',
          transform=axes.get_xaxis_transform(),
          ha='center',
          va='bottom',
          color='#666666',
          size=7,
        )
      axes.set_title(title, loc='left')
      axes.set_xlabel('epoch')
      axes.margins(x=0.02)
      if len(lines) > 1:
        axes.legend()

  return _file(make, (9.5, 2.5 * -(-len(panels) // 2)))


def embedding_map(
  maps: Mapping[str, np.ndarray],
  labels: np.ndarray,
  named: Mapping[int, str],
) -> bytes:
  """Draws embeddings as points, each class in a colour and with its name.

  Args:
    maps: {title: float [N, 2]}.
    labels: Integers [N].
    named: {label: name of the class}; the points of other classes are grey.

  Returns:
    SVG; the points are an image.
  """

  def make(drawn):
    for number, (title, points) in enumerate(maps.items()):
      axes = drawn.add_subplot(1, len(maps), number + 1)
      rest = ~np.isin(labels, [*named])
      axes.scatter(*points[rest].T, s=6, c='#dddddd', rasterized=True)
      for place, label in enumerate(named):
        some = points[labels == label]
        axes.scatter(
          *some.T,
          s=10,
          c=_COLORS[place % len(_COLORS)],
          marker=_MARKERS[place // len(_COLORS) % len(_MARKERS)],
          alpha=0.75,
          linewidths=0,
          rasterized=True,
        )
      for place, (label, name) in enumerate(named.items()):
        # Above the middle, where it hides no point of a dense cluster.
        axes.annotate(
          _shortened(name),
          np.median(points[labels == label], axis=0),
          (0, 11),
          textcoords='offset points',
          color=_COLORS[place % len(_COLORS)],
          weight='bold',
          ha='center',
          va='center',
          bbox={
            'boxstyle': 'round,pad=0.1',
            'fc': 'w',
            'ec': 'none',
            'alpha': 0.7,
          },
        )
      axes.set_title(title, loc='left')
      axes.set_xticks([])
      axes.set_yticks([])
      axes.grid(False)

  return _file(make, (4.75 * len(maps), 4.6))


def confusion(
  matrix: np.ndarray, class_names: Sequence[str], form: str = 'svg'
) -> bytes:
  """Draws a confusion matrix, its rows divided by their sums.

  Args:
    matrix: Integers [C, C], the number of examples by label and prediction.
    class_names: The classes.
    form: 'svg' or 'png'.
  """
  totals = matrix.sum(axis=1, keepdims=True)
  shares = matrix / np.maximum(totals, 1)
  names = [_shortened(name) for name in class_names]
  side = 2.2 + 0.36 * len(names)

  def make(drawn):
    axes = drawn.add_subplot()
    shown = axes.imshow(shares, cmap='Blues', vmin=0, vmax=1)
    for row, column in np.argwhere(matrix):
      axes.text(
        column,
        row,
        matrix[row, column],
        ha='center',
        va='center',
        size=7,
        color='w' if shares[row, column] > 0.55 else 'k',
      )
    for place, axis in enumerate((axes.xaxis, axes.yaxis)):
      rotated = {'rotation': 60, 'ha': 'right'} if place == 0 else {}
      axis.set_ticks(range(len(names)), names, **rotated)
      axis.set_label_text(('taken for', 'class')[place])
    if all(len(name) < 4 for name in names):
      axes.xaxis.set_ticks(range(len(names)), names, rotation=0, ha='center')
    axes.grid(False)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    drawn.colorbar(shown, label='share of the row', shrink=0.7)

  return _file(make, (side + 0.8, side), form)


def reliability(
  bins: Mapping[str, Sequence[Mapping[str, float | None]]], form: str = 'svg'
) -> bytes:
  """Draws reliability diagrams, each over the number of examples by bin.

  Args:
    bins: {title: bins as calibration.run returns them}.
    form: 'svg' or 'png'.
  """

  def make(drawn):
    grid = drawn.add_gridspec(2, len(bins), height_ratios=(3, 1))
    for place, (title, rows) in enumerate(bins.items()):
      axes = drawn.add_subplot(grid[0, place])
      below = drawn.add_subplot(grid[1, place], sharex=axes)
      width = rows[0]['high'] - rows[0]['low']
      full = [row for row in rows if row['count']]
      middles = [(row['low'] + row['high']) / 2 for row in full]
      axes.bar(
        middles,
        [row['accuracy'] for row in full],
        width * 0.9,
        color='#56b4e9',
        edgecolor='#0072b2',
        label='accuracy',
      )
      axes.plot(
        middles,
        [row['confidence'] for row in full],
        'D',
        color='#d55e00',
        ms=4,
        label='mean confidence',
      )
      axes.plot((0, 1), (0, 1), ls=':', color='k', lw=1, label='calibrated')
      axes.set(title=title, xlim=(0, 1), ylim=(0, 1.02), ylabel='accuracy')
      axes.tick_params(labelbottom=False)
      axes.legend(loc='upper left')
      below.bar(
        [(row['low'] + row['high']) / 2 for row in rows],
        [row['count'] for row in rows],
        width * 0.9,
        color=_GREY,
      )
      below.set(xlabel='confidence', ylabel='images', yscale='symlog', ylim=0)

  return _file(make, (4.75 * len(bins), 4.4), form)


def errors_by_severity(
  errors: Mapping[str, Sequence[tuple[float, float]]],
) -> bytes:
  """Draws the error of each corruption by severity, small multiples.

  Args:
    errors: {corruption: [(severity, error in [0, 1]), ...]}.

  Returns:
    SVG.
  """

  def make(drawn):
    first = None
    for number, (name, points) in enumerate(errors.items()):
      first = axes = drawn.add_subplot(
        -(-len(errors) // 5), 5, number + 1, sharey=first
      )
      axes.plot(*zip(*points), 'o-', color=_COLORS[0], ms=3)
      axes.set_title(_shortened(name), loc='left', size=8)
      axes.set_ylim(0, 1)

  return _file(make, (9.5, 1.6 * -(-len(errors) // 5)))


def _shortened(name):
  # Matplotlib would take what is between two dollars for a formula.
  name = name if len(name) <= 18 else f'{name[:16]}...'
  return name.replace('$', r'\$')
