"""Tables of a model's errors under corruptions."""

from collections.abc import Mapping
import csv
import io
from typing import Any

from supcon.config import safe_text

Measured = Mapping[tuple[str, int], Mapping[str, float]]


def as_csv(measured: Measured, clean: Mapping[str, float]) -> str:
  """Returns a row for each set of images; that of clean ones has severity 0.

  Args:
    measured: {(corruption, severity): 'error', 'ece', 'n'}.
    clean: The same of clean images.
  """
  text = io.StringIO()
  writer = csv.writer(text, lineterminator='\n')
  columns = ('n', 'error', 'ece')
  writer.writerow(('corruption', 'severity', *columns))
  for key, values in {('clean', 0): clean, **measured}.items():
    writer.writerow((*key, *(values[name] for name in columns)))
  return text.getvalue()


def text(measured: Measured, summary: Mapping[str, Any]) -> str:
  """Returns a table for people, in %.

  Args:
    measured: {(corruption, severity): 'error', 'ece', 'n'}.
    summary: The result of supcon.evaluation.robustness.summarize, and
      'mce_note', one line on its mCE.
  """
  severities = summary['severities']
  has_ce = summary['mce'] is not None
  lines = ['', _line('error in %, severity:', [*severities, 'mean', 'ECE'])]
  if has_ce:
    lines[-1] += f'{"CE":>8}'
  for name, means in summary['corruptions'].items():
    star = ' *' if name in summary['not_counted'] else ''
    values = [measured[name, int(severity)]['error'] for severity in severities]
    values += [means['error'], means['ece']]
    if means['ce'] is not None:
      values.append(means['ce'])
    lines.append(_line(name + star, map(_percent, values)))
  for title, key in (('mean error', 'error'), ('mean ECE', 'ece')):
    values = [means[key] for means in severities.values()]
    values.append(summary[f'mean_{key}'])
    lines.append(_line(title, map(_percent, values)))
  if summary['not_counted']:
    lines.append('* not counted in any mean')
  clean_error, clean_ece, mean_error, mean_ece = (
    f'{_percent(summary[key])}%'
    for key in ('clean_error', 'clean_ece', 'mean_error', 'mean_ece')
  )
  lines.append(
    f'Clean images: error {clean_error}, ECE {clean_ece}. Corrupted ones: mean '
    f'error {mean_error}, mean ECE {mean_ece}.'
  )
  if has_ce:
    lines.append(
      f'mCE {_percent(summary["mce"])}%, relative mCE '
      f'{_percent(summary["relative_mce"])}% (AlexNet: 100%).'
    )
  if summary['mce_note']:
    lines.append(f'({summary["mce_note"]})')
  return '\n'.join(lines)


def _percent(value):
  return f'{100 * value:.2f}'


def _line(name, columns):
  return f'{safe_text.printable(name):<24}' + ''.join(
    f'{column:>8}' for column in columns
  )
