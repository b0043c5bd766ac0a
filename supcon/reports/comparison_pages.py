"""--mode=compare: runs side by side, as text, CSV, Markdown, JSON and HTML."""

from collections.abc import Iterator
from collections.abc import Sequence
import csv
import html
import io
import os
import re

from supcon.config import run_options
from supcon.config import safe_text
from supcon.reports import comparison as comparison_lib
from supcon.reports import line_charts
from supcon.reports import run_records
from supcon.runs import storage
from supcon.runs import terminal

Comparison = comparison_lib.Comparison

# Metrics that are shown besides the one that decides; the files for other
# programs have all.
_SHOWN = (
  run_options.TOP_1,
  'top_5_accuracy',
  'knn/k20_t0.07',
  'calibration/nll',
  'calibration/ece',
)
_TITLE_WIDTH = 14  # Longer titles of columns are broken.
_MAX_SETTINGS = 6  # Of a run that is not in the table.
_NAMES = {run_options.TOP_1: 'top-1', 'top_5_accuracy': 'top-5'}

# {column of metrics.csv: what it is}, for the curves.
_TRAINING_CURVES = {
  'loss': 'training loss',
  run_options.TOP_1: 'top-1 of training batches (%)',
}


def show(options: run_options.RunOptions) -> int:
  """Prints the table, and writes the files if asked to; returns the exit code.

  Raises:
    ValueError: If there are no runs, or a file cannot be written.
  """
  found = comparison_lib.compare(
    run_records.find(options.runs), options.best_metric
  )
  shown = text(found)
  if options.output:
    paths = [
      os.path.join(options.output, f'comparison.{kind}') for kind in _PAGES
    ]
    try:
      for path, page in zip(paths, _PAGES.values()):
        storage.write(path, page(found))
    except storage.errors() as error:
      raise ValueError(
        f'--output={options.output} cannot be written '
        f'({safe_text.for_files(error)}); name a directory.'
      ) from error
    shown += '\n' + ''.join(f'{path}\n' for path in paths)
  return terminal.show(shown)


# --- The table ----------------------------------------------------------------


def _table(found: Comparison) -> list[list[str]]:
  """Returns the rows of the table as text, the title first."""
  metric = found.metric
  others = [
    name
    for name in dict.fromkeys(_SHOWN)
    if name != metric and any(name in each.summaries for each in found.groups)
  ]
  names = [_name(name) for name in (metric, *others)]
  rows = [[*found.columns, 'n', names[0], 'sd', '95% interval', *names[1:]]]
  for group in found.groups:
    best = group.summaries[metric]
    bounds = [comparison_lib.in_words(metric, x) for x in (best.low, best.high)]
    rows.append(
      [
        *(_cell(group.settings[name]) for name in found.columns),
        str(best.n),
        comparison_lib.in_words(metric, best.mean),
        comparison_lib.in_words(metric, best.deviation),
        ' to '.join(filter(None, bounds)),
        *(_mean(group, name) for name in others),
      ]
    )
  return rows


def _mean(group, name):
  summary = group.summaries.get(name)
  return comparison_lib.in_words(name, summary and summary.mean)


def _name(metric):
  return _NAMES.get(metric, metric)


def _cell(value):
  return safe_text.printable(value) or '-'


def _heading(found):
  num = sum(len(group.runs) for group in found.groups)
  if not found.groups:
    return 'No run has been trained and evaluated to its end.'
  return (
    f'{num} {"run" if num == 1 else "runs"} by {_name(found.metric)} of the '
    f'last step on {_cell(str(found.data))}'
  )


def _left_out(found) -> list[tuple[str, str, str]]:
  """Returns (path, settings, why) of the runs in no group."""
  return [
    (safe_text.printable(run.path), ', '.join(_peculiar(found, run)), why)
    for run, why in found.left_out
  ]


def _peculiar(found, run):
  """Yields 'NAME=VALUE' of what sets a run apart from those in the table."""
  best = found.groups[0].settings if found.groups else run.settings
  others = [
    name for name in run.settings if run.settings[name] != best.get(name)
  ]
  names = dict.fromkeys([run_records.SEED, *found.columns, *others])
  names = [name for name in names if name in run.settings]
  for name in names[:_MAX_SETTINGS]:
    yield f'{name}={_cell(run.settings[name])}'
  if len(names) > _MAX_SETTINGS:
    yield f'and {len(names) - _MAX_SETTINGS} more'


def text(found: Comparison) -> str:
  """Returns the comparison as plain text."""
  lines = [_heading(found), '']
  if found.groups:
    rows = _table(found)
    lines += [*_aligned(rows), '']
  if found.left_out:
    lines.append('Not averaged in:')
    lines += [
      f'  {path}{f" ({settings})" if settings else ""}: {why}'
      for path, settings, why in _left_out(found)
    ] + ['']
  lines += [f'Note: {safe_text.printable(note)}' for note in found.notes]
  return '\n'.join(lines).rstrip() + '\n'


def _aligned(rows) -> Iterator[str]:
  """Yields the lines of a table, with its titles broken after underscores."""
  columns = []
  for title, *cells in zip(*rows):
    columns.append((_broken(title, max(_TITLE_WIDTH, *map(len, cells))), cells))
  height = max(len(title) for title, _ in columns)
  columns = [
    [''] * (height - len(title)) + title + cells for title, cells in columns
  ]
  widths = [max(map(len, column)) for column in columns]
  for row in zip(*columns):
    yield '  '.join(map(str.ljust, row, widths)).rstrip()


def _broken(title, width):
  lines = ['']
  for part in re.findall('[^_ ]+[_ ]?', title):
    if lines[-1] and len(lines[-1] + part) > width:
      lines.append('')
    lines[-1] += part
  return lines


def markdown(found: Comparison) -> str:
  """Returns the comparison for a README or an issue."""

  def row(cells):
    cells = (cell.replace('|', '\\|') for cell in cells)
    return f'| {" | ".join(cells)} |'

  def table(rows):
    return [row(rows[0]), '|' + '---|' * len(rows[0]), *map(row, rows[1:]), '']

  lines = [_heading(found), '']
  if found.groups:
    lines += table(_table(found))
  if found.left_out:
    lines += table([('not averaged in', 'settings', 'why'), *_left_out(found)])
  lines += [f'- {safe_text.printable(note)}' for note in found.notes]
  return '\n'.join(lines).rstrip() + '\n'


def csv_table(found: Comparison) -> str:
  """Returns one line per group: all metrics, at full precision."""
  metrics = sorted({name for each in found.groups for name in each.summaries})
  written = io.StringIO()
  writer = csv.writer(written, lineterminator='\n')
  writer.writerow(
    [*found.columns, 'seeds', 'n']
    + [name + part for name in metrics for part in ('', ' sd', ' low', ' high')]
  )
  for group in found.groups:
    cells = [group.settings[name] for name in found.columns]
    cells += [_seeds(group), len(group.runs)]
    for name in metrics:
      # The csv module writes None as ''.
      cells += (group.summaries.get(name) or [None] * 4)[:4]
    writer.writerow(cells)
  return written.getvalue()


def _seeds(group):
  return ' '.join(run.settings.get(run_records.SEED, '?') for run in group.runs)


def json_page(found: Comparison) -> str:
  return storage.to_json(comparison_lib.to_json(found))


# --- HTML ---------------------------------------------------------------------

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #111; background: #fff;
  max-width: 1100px; margin: 2em auto; padding: 0 1em; }
h1 { font-size: 1.5em; } h2 { font-size: 1.15em; margin-top: 2em; }
table { border-collapse: collapse; }
td { white-space: nowrap; }
th, td { padding: 3px 12px 3px 0; text-align: left; vertical-align: middle;
  border-bottom: 1px solid #ddd; font-variant-numeric: tabular-nums; }
thead th { border-bottom: 2px solid #333; }
svg { vertical-align: middle; } h2 + svg { max-width: 100%; height: auto; }
svg text { font: 12px system-ui, sans-serif; fill: #333; }
.wide { overflow-x: auto; } .small { color: #444; font-size: .9em; }
@media print { body { margin: 0; } h2, svg, tr { break-inside: avoid; } }
"""


def html_page(found: Comparison) -> str:
  """Returns a page that needs no other file."""
  parts = [
    '<!DOCTYPE html><html lang="en"><meta charset="utf-8">',
    '<meta name="viewport" content="width=device-width">',
    f'<title>Runs side by side</title><style>{_STYLE}</style>',
    f'<h1>Runs side by side</h1><p>{html.escape(_heading(found))}. ',
    'Each row averages runs that differ in the seed alone.</p>',
  ]
  if found.groups:
    parts += [_html_groups(found), _html_curves(found)]
  if found.left_out:
    rows = [('run', 'settings', 'why'), *_left_out(found)]
    parts += ['<h2>Not averaged in</h2>', _html_table(_escaped(rows))]
  parts += [f'<p>Note: {html.escape(note)}</p>' for note in found.notes]
  return ''.join(parts) + '</html>\n'


def _escaped(rows):
  return [[html.escape(cell) for cell in row] for row in rows]


def _html_table(rows: Sequence[Sequence[str]]) -> str:
  """Returns a table; cells are HTML, and the first row is the title."""

  def row(cells, tag):
    return '<tr>' + ''.join(f'<{tag}>{cell}</{tag}>' for cell in cells)

  body = ''.join(row(cells, 'td') for cells in rows[1:])
  return (
    f'<div class="wide"><table><thead>{row(rows[0], "th")}</thead>'
    f'<tbody>{body}</tbody></table></div>'
  )


def _styles(found):
  """Returns the style of each group; the best ones have one of their own."""
  return [
    number if number < line_charts.NUM_STYLES else None
    for number in range(len(found.groups))
  ]


def _html_groups(found):
  metric = found.metric
  values = [
    [run.final(found.data).metrics[metric] for run in group.runs]
    for group in found.groups
  ]
  bounds = []
  for group in found.groups:
    summary = group.summaries[metric]
    ends = (summary.low, summary.high)
    bounds.append([summary.mean if x is None else x for x in ends])
  all_values = [x for row in (*values, *bounds) for x in row]
  scale = min(all_values), max(all_values)
  ends = ' to '.join(comparison_lib.in_words(metric, end) for end in scale)
  title, *rows = _escaped(_table(found))
  title = [cell.replace('_', '_<wbr>') for cell in title]
  drawn = [['', *title, f'mean, interval, runs<br>({ends})', 'seeds']]
  for row, dots, bound, style, group in zip(
    rows, values, bounds, _styles(found), found.groups
  ):
    chart = line_charts.interval(dots, *bound, scale, style)
    seeds = html.escape(_seeds(group))
    drawn.append([line_charts.key(style), *row, chart, seeds])
  return _html_table(drawn) + (
    '<p class="small">sd: standard deviation of the runs. 95% interval: of the '
    'mean, by Student’s t, as if the runs were drawn from a normal '
    'distribution.</p>'
  )


def _html_curves(found):
  metric = found.metric
  factor = 100 if comparison_lib.is_share(metric) else 1
  title = _name(metric) + (' (%)' if factor == 100 else '')
  charts = {
    f'{title} of the evaluations': lambda run: [
      (x, factor * y) for x, y in run.evaluation_curve(found.data, metric)
    ]
  }
  for column, title in _TRAINING_CURVES.items():
    charts[title] = lambda run, column=column: [
      (x, 100 * y if column == run_options.TOP_1 else y)
      for x, y in run.training_curve(column)
    ]
  ends = {
    end for group in found.groups for r in group.runs for end in r.stage_ends
  }
  parts = []
  for title, curve in charts.items():
    series = []
    for group, style in zip(found.groups, _styles(found)):
      lines = [line for run in group.runs if len(line := curve(run)) > 1]
      if lines:
        series.append(line_charts.Series(style, lines))
    if series:
      marks = ends if len(ends) <= 3 else ()
      parts.append(
        f'<h2>{html.escape(title.capitalize())}</h2>'
        + line_charts.chart(series, 'epoch', title, sorted(marks))
      )
  if not parts:
    return ''
  grey = len(found.groups) > line_charts.NUM_STYLES
  return ''.join(parts) + (
    '<p class="small">Thick: the mean of a row of the table. Thin: each run.'
    + (' Gray: the rows without a key.' if grey else '')
    + (' Dotted: the next stage begins.</p>' if ends else '</p>')
  )


_PAGES = {
  'csv': csv_table,
  'md': markdown,
  'json': json_page,
  'html': html_page,
}
