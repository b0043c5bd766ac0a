"""Compares runs: groups those that differ in the seed alone, best first.

It only reads, and it does not use TensorFlow unless a run is on an object
store, so that a hundred runs take a second or two.
"""

import collections
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import csv
import dataclasses
import functools
import json
import math
import os
import statistics
from typing import Any, NamedTuple

from supcon.config import hparams
from supcon.config import run_options
from supcon.config import safe_text
from supcon.runs import locks
from supcon.runs import status
from supcon.runs import status_report
from supcon.runs import storage

# The names in runs.model_dirs, which imports TensorFlow.
_HPARAMS = 'hparams.json'
_RESULT = 'result.json'
_METRICS = 'metrics.csv'

SEED = 'seed'

# What reading raises if a file holds something else.
_MALFORMED = (
  ArithmeticError,
  AttributeError,
  LookupError,
  RecursionError,
  TypeError,
  ValueError,
)

_MAX_POINTS = 200  # Of a curve.


class Data(NamedTuple):
  """What was evaluated on: images and labels, but not how they are cropped.

  The crop is a hyper-parameter, and so a column of the table if it differs.
  """

  dataset: str
  split: str
  num_examples: int
  images: str

  def __str__(self) -> str:
    return f'{self.dataset} {self.split}, {self.num_examples} images'


class Evaluation(NamedTuple):
  """An evaluation of one checkpoint.

  Attributes:
    step: The step of the checkpoint.
    fingerprint: The fingerprint of its values; '' if unknown.
    data: The data.
    metrics: {name: value}.
  """

  step: int
  fingerprint: str
  data: Data
  metrics: Mapping[str, float]


@dataclasses.dataclass
class Run:
  """What a run says of itself.

  Attributes:
    path: Its model_dir.
    settings: {name: text}: each hyper-parameter by its flag, the reference and
      the training images. What changed while it trained reads 'A then B'. Empty
      if unknown.
    evaluations: One for each checkpoint and data, by step.
    last_step: The step at which its training ends; None if unknown.
    steps_per_epoch: None if unknown.
    stage_ends: The epochs at which a stage ends and another one begins.
    rollbacks: How often its training returned to a checkpoint.
    news: What its trainer does, or how it ended.
    damage: Why it cannot be read; '' if it can.
  """

  path: str
  settings: Mapping[str, str] = dataclasses.field(default_factory=dict)
  evaluations: Sequence[Evaluation] = ()
  last_step: int | None = None
  steps_per_epoch: float | None = None
  stage_ends: Sequence[float] = ()
  rollbacks: int = 0
  news: str = ''
  damage: str = ''

  def final(self, data: Data) -> Evaluation | None:
    """Returns the evaluation of the last step on some data; None if none."""
    return next(
      (
        each
        for each in self.evaluations
        if each.step == self.last_step and each.data == data
      ),
      None,
    )

  def evaluation_curve(
    self, data: Data, metric: str
  ) -> list[tuple[float, float]]:
    """Returns (epoch, value) of a metric of the evaluations on some data."""
    if not self.steps_per_epoch:
      return []
    return [
      (each.step / self.steps_per_epoch, each.metrics[metric])
      for each in self.evaluations
      if each.data == data and metric in each.metrics
    ]

  def training_curve(self, column: str) -> list[tuple[float, float]]:
    """Returns (epoch, value) of a column of the training metrics, thinned out.

    The curve is empty if there is no such column or the file is damaged.
    """
    try:
      return [
        (float(row['epoch']), float(row[column]))
        for row in _training_rows(self.path)
        if row[column]
      ]
    except (*storage.errors(), *_MALFORMED, csv.Error):
      return []


@functools.cache
def _training_rows(path):
  lines = storage.read(os.path.join(path, _METRICS)).splitlines()
  return list(csv.DictReader(lines[:1] + _thinned(lines[1:])))


def _thinned(lines):
  """Returns every n-th line, and the last one."""
  every = len(lines) // _MAX_POINTS + 1
  return lines[:-1:every] + lines[-1:]


# --- Reading ------------------------------------------------------------------


def find(patterns: Iterable[str]) -> list[Run]:
  """Reads the runs that some paths name.

  Args:
    patterns: Directories of runs, directories of such directories, or shell
      patterns for either. A pattern may match other files besides.

  Raises:
    ValueError: If one of them leads to no run, or cannot be looked up.
  """
  found = {}
  for pattern in patterns:
    try:
      runs = [run for path in storage.matches(pattern) for run in _at(path)]
    except storage.errors() as error:
      raise ValueError(
        f'--runs={pattern} cannot be read: {safe_text.for_files(error)}'
      ) from error
    if not runs:
      raise ValueError(
        f'--runs={safe_text.printable(pattern)} leads to no run; name one or '
        'more directories that were a --model_dir, or directories of such '
        'directories.'
      )
    for run in runs:
      is_remote = storage.is_remote(run.path)
      key = run.path if is_remote else os.path.realpath(run.path)
      found.setdefault(key, run)
  return list(found.values())


def _at(path):
  """Yields the run at a path, or those in the directory."""
  if run := read(path):
    yield run
    return
  for below in storage.matches(os.path.join(path, '*')):
    if run := read(below):
      yield run


def read(path: str) -> Run | None:
  """Reads what a run says of itself; returns None if there is no run."""
  run = Run(os.path.normpath(path) if not storage.is_remote(path) else path)
  name = _RESULT
  try:
    trainer = status.read(path)
    result = _read_json(path, _RESULT)
    run.evaluations = _evaluations(result)
    name = _HPARAMS
    known = _read_json(path, _HPARAMS)
    if not (trainer or result or known):
      return None
    run.news = _news(trainer, path)
    run.last_step = result.get('total_steps')
    _take_facts(run, known)
  except storage.errors() as error:
    run.damage = f'it cannot be read ({safe_text.for_files(error)})'
    return run
  except _MALFORMED as error:
    # Some messages go on with all names that would have been known.
    reason = safe_text.for_files(str(error).partition(';')[0])
    kind = type(error).__name__
    run.damage = f'{name} cannot be read ({kind}: {reason})'
    return run
  if trainer:
    run.rollbacks = trainer.rollbacks
    # It knows first of an end that has been put off.
    run.last_step = trainer.total_steps or run.last_step
  return run


def _read_json(path, name):
  """Returns the object in a file, empty if it is missing."""
  found = json.loads(storage.read(os.path.join(path, name)) or '{}')
  if not isinstance(found, dict):
    raise ValueError(f'it holds a {type(found).__name__}')
  return found


def _news(trainer, path):
  """Returns what the trainer does, or how it ended."""
  if not trainer:
    return 'its end is unknown: it has no status.json'
  _, news = status_report.look_at(trainer, locks.read(path))
  if trainer.state == status.DONE:
    news = 'its last checkpoint was not evaluated; run --mode=eval --eval_once'
  elif trainer.step is not None:
    news += f', step {trainer.step}'
    if trainer.total_steps:
      news += f' of {trainer.total_steps}'
  if trainer.error:
    news += f': {trainer.error}'
  return safe_text.for_files(news)


def _evaluations(result):
  """Returns the evaluations in result.json; raises any error if malformed."""
  if not result:
    return ()
  # Older versions recorded only the last one.
  found = [
    Evaluation(
      int(each['global_step']),
      str(each.get('fingerprint', '')),
      Data(
        str(each['dataset']),
        str(each['split']),
        int(each['num_examples']),
        str((each.get('data') or {}).get('images', '')),
      ),
      {
        str(name): float(value)
        for name, value in each['metrics'].items()
        if isinstance(value, (int, float))
      },
    )
    for each in result.get('evaluations') or [result]
  ]
  return tuple(sorted(found, key=lambda each: each.step))


def _take_facts(run, found):
  """Takes what hparams.json records; raises any error if it is malformed.

  See training.facts. The entries that count are those of the checkpoint that
  was evaluated last, and of its predecessors.
  """
  entries = found.get('facts') or [found] if found else []
  if not entries:
    return
  steps = {each.step for each in run.evaluations}
  entries = [
    each
    for each in entries
    if not steps or each.get('after_step', -1) < max(steps)
  ]
  values = collections.defaultdict(list)
  for entry in entries:
    for name, text in _settings(entry['compact']).items():
      values[name].append(text)
    values['reference_ckpt'].append(str(entry.get('reference', '')))
    values['training images'].append(str(entry.get('train_images', '')))
  run.settings = {
    name: ' then '.join(
      text
      for number, text in enumerate(texts)
      if not number or text != texts[number - 1]
    )
    for name, texts in values.items()
  }
  if plan := entries[-1].get('plan'):
    run.steps_per_epoch = float(plan['steps_per_epoch'])
    run.last_step = int(plan['ends'][-1])
    run.stage_ends = tuple(
      end / run.steps_per_epoch for end in plan['ends'] if end < run.last_step
    )


@functools.cache
def _settings(compact):
  """Returns {flag: text} of hyper-parameters in their compact form."""
  params = hparams.parse(compact)
  result = {}
  for field in hparams.FIELDS:
    text = field._replace(value=params.get(field.path)).text
    # One flag may set two fields, which a compact string sets apart.
    if result.setdefault(field.flag, text) != text:
      result[field.flag] += f'/{text}'
  return result


# --- Comparing ----------------------------------------------------------------


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
  runs: Sequence[Run]
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
  data: Data | None
  columns: Sequence[str]
  groups: Sequence[Group]
  left_out: Sequence[tuple[Run, str]]
  notes: Sequence[str]


def compare(runs: Sequence[Run], metric: str) -> Comparison:
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
    shared = {k: v for k, v in run.settings.items() if k != SEED}
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
  columns = [n for n in _differing([s.settings for s in shown]) if n != SEED]
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
    return '' if run.settings else f'{_HPARAMS} is missing'
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
    by_seed[run.settings.get(SEED)].append(run.path)
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
