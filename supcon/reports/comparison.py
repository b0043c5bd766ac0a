"""Compares runs: groups those that differ in the seed alone, best first."""

import collections
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import functools
import math
import statistics
from typing import Any, NamedTuple

from supcon.config import run_options
from supcon.config import safe_text
from supcon.reports import run_records


class Summary(NamedTuple):
  """A metric of runs that differ in the seed alone.

  Attributes:
    mean: The mean.
    deviation: The standard deviation of the runs, with n - 1; None for one run.
    low: The lower end of the 95% interval of the mean; None for one run.
    high: The upper end.
    n: Number of runs.
  """

  mean: float
  deviation: float | None
  low: float | None
  high: float | None
  n: int


def summarize(values: Sequence[float]) -> Summary:
  """Returns mean, deviation and the interval by Student's t."""
  mean, n = statistics.fmean(values), len(values)
  if n == 1:
    return Summary(mean, None, None, None, n)
  deviation = statistics.stdev(values)
  half = student_t(n - 1) * deviation / math.sqrt(n)
  return Summary(mean, deviation, mean - half, mean + half, n)


@functools.cache
def student_t(freedom: int, probability: float = 0.95) -> float:
  """Returns the t that |T| of Student's distribution stays below.

  Args:
    freedom: Degrees of freedom, at least 1.
    probability: The probability with which it does, in (0, 1).
  """
  # P(|T| < t) grows with the angle whose tangent is t / sqrt(freedom).
  low, high = 0.0, math.pi / 2
  while (angle := (low + high) / 2) not in (low, high):
    if _probability_within(angle, freedom) < probability:
      low = angle
    else:
      high = angle
  return math.sqrt(freedom) * math.tan(angle)


def _probability_within(angle, freedom):
  """Returns P(|T| < sqrt(freedom) * tan(angle)).

  Equations 26.7.3 and 26.7.4 of Abramowitz and Stegun, Handbook of Mathematical
  Functions.
  """
  is_odd = freedom % 2
  term = math.cos(angle) if is_odd else 1.0
  total = 0.0
  for k in range(2 + is_odd, freedom + 1, 2):
    total += term
    term *= math.cos(angle) ** 2 * (k - 1) / k
  total *= math.sin(angle)
  return 2 / math.pi * (angle + total) if is_odd else total


@dataclasses.dataclass(frozen=True)
class Group:
  """Runs that differ in the seed alone.

  Attributes:
    settings: {name: text} of what they share.
    runs: The runs.
    summaries: {metric: Summary} of the metrics that all of them have.
  """

  settings: Mapping[str, str]
  runs: Sequence[run_records.Run]
  summaries: Mapping[str, Summary]


@dataclasses.dataclass(frozen=True)
class Comparison:
  """Runs side by side.

  Attributes:
    metric: The metric that decides.
    data: The data of the evaluations; None if there are none.
    columns: The names of the settings in which the groups differ; in which the
      runs differ besides the seed, if there is no group.
    groups: The groups, the best one first.
    left_out: Runs that belong to no group, with the reasons.
    notes: What else a reader should know.
  """

  metric: str
  data: run_records.Data | None
  columns: Sequence[str]
  groups: Sequence[Group]
  left_out: Sequence[tuple[run_records.Run, str]]
  notes: Sequence[str]


def compare(runs: Sequence[run_records.Run], metric: str) -> Comparison:
  """Groups and ranks runs by the evaluation of their last step.

  They are compared on the data that most of them were evaluated on.

  Args:
    runs: The runs.
    metric: One of run_options.BEST_METRICS.
  """
  data = _common_data(runs)
  members = collections.defaultdict(list)
  left_out, notes, first = [], [], {}
  for run in runs:
    if why := _why_left_out(run, data, metric):
      left_out.append((run, why))
      continue
    fingerprint = run.final(data).fingerprint
    if fingerprint and first.setdefault(fingerprint, run) is not run:
      left_out.append((run, f'a copy of {first[fingerprint].path}'))
      continue
    shared = {k: v for k, v in run.settings.items() if k != run_records.SEED}
    members[tuple(shared.items())].append(run)
    if run.rollbacks:
      notes.append(f'{run.path} returned to a checkpoint {run.rollbacks} times')
  groups = [
    Group(dict(settings), tuple(group), _summaries(group, data))
    for settings, group in members.items()
  ]
  sign = -1 if run_options.is_better(metric, 1, 0) else 1
  groups.sort(key=lambda group: sign * group.summaries[metric].mean)
  notes += [note for group in groups for note in _repeated_seeds(group)]
  shown = groups or [run for run in runs if run.settings]
  columns = [
    n for n in _differing([s.settings for s in shown]) if n != run_records.SEED
  ]
  return Comparison(metric, data, columns, groups, left_out, notes)


def _common_data(runs):
  """Returns the data that most runs were evaluated on, at the end if any."""
  ends, all_of_them = collections.Counter(), collections.Counter()
  for run in runs:
    all_of_them.update({each.data for each in run.evaluations})
    ends.update(
      {each.data for each in run.evaluations if each.step == run.last_step}
    )
  most = (ends or all_of_them).most_common(1)
  return most[0][0] if most else None


def _why_left_out(run, data, metric):
  """Returns why a run is not averaged with others; '' if it is."""
  if run.damage:
    return run.damage
  if final := run.final(data):
    value = final.metrics.get(metric)
    if value is None:
      return f'{metric} was not measured'
    if not math.isfinite(value):
      return f'its {metric} is {value}'
    return '' if run.settings else f'{run_records.HPARAMS} is missing'
  others = [each for each in run.evaluations if each.step == run.last_step]
  if others:
    data = others[-1].data
    images = f' ({data.images})' if data.images else ''
    return safe_text.for_files(f'evaluated on other data: {data}{images}')
  so_far = [
    each
    for each in run.evaluations
    if each.data == data and metric in each.metrics
  ]
  if not so_far:
    return f'{run.news}; no evaluation yet'
  value = in_words(metric, so_far[-1].metrics[metric])
  return f'{run.news}; {metric} {value} at step {so_far[-1].step}'


def _summaries(runs, data):
  finals = [run.final(data).metrics for run in runs]
  return {
    name: summarize([metrics[name] for metrics in finals])
    for name in finals[0]
    if all(math.isfinite(m.get(name, math.nan)) for m in finals)
  }


def _repeated_seeds(group) -> Iterator[str]:
  by_seed = collections.defaultdict(list)
  for run in group.runs:
    by_seed[run.settings.get(run_records.SEED)].append(run.path)
  for seed, paths in by_seed.items():
    if len(paths) > 1:
      yield (
        f'{" and ".join(paths)} have the same seed, {seed}, so they vary less '
        'than runs with different seeds'
      )


def _differing(settings) -> Iterator[str]:
  """Yields the names of the settings that differ, in the order of the flags."""
  for name in dict.fromkeys(name for each in settings for name in each):
    if len({each.get(name) for each in settings}) > 1:
      yield name


def is_share(metric: str) -> bool:
  """Whether a metric is a share, which readers know in percent."""
  return metric.endswith('accuracy') or metric.startswith('knn/')


def in_words(metric: str, value: float | None) -> str:
  """Returns a value, accuracies in percent; '' for None."""
  if value is None:
    return ''
  return f'{100 * value:.2f}%' if is_share(metric) else f'{value:.4g}'


def to_json(comparison: Comparison) -> dict[str, Any]:
  """Returns all of it, at full precision."""

  def of(run):
    evaluation = comparison.data and run.final(comparison.data)
    return {
      'path': run.path,
      'settings': dict(run.settings),
      'step': evaluation.step if evaluation else None,
      'metrics': {
        name: value if math.isfinite(value) else None  # JSON has no NaN.
        for name, value in (evaluation.metrics if evaluation else {}).items()
      },
    }

  return {
    'metric': comparison.metric,
    'data': comparison.data and comparison.data._asdict(),
    'columns': list(comparison.columns),
    'groups': [
      {
        'settings': {n: group.settings[n] for n in comparison.columns},
        'summaries': {n: s._asdict() for n, s in group.summaries.items()},
        'runs': [of(run) for run in group.runs],
      }
      for group in comparison.groups
    ],
    'left_out': [{**of(run), 'why': why} for run, why in comparison.left_out],
    'notes': list(comparison.notes),
  }
