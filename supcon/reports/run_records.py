"""Reads what runs say of themselves, for --mode=compare.

It only reads, and it does not use TensorFlow unless a run is on an object
store, so that a hundred runs take a second or two.
"""

import collections
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
import csv
import dataclasses
import functools
import json
import os
from typing import NamedTuple

from supcon.config import hparams
from supcon.config import safe_text
from supcon.runs import locks
from supcon.runs import status
from supcon.runs import status_report
from supcon.runs import storage

# The names in runs.model_dirs, which imports TensorFlow.
HPARAMS = 'hparams.json'
_RESULT = 'result.json'
_METRICS = 'metrics.csv'
_REPORT = 'report/report.json'

# What a report measures and an evaluation does not. Other metrics are in both,
# but may be measured on more images in a report.
_OF_REPORT = ('calibration/', 'classes/', 'few_shot/')

SEED = 'seed'

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
    except (*storage.errors(), *storage.MALFORMED, csv.Error):
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
    name = _REPORT
    run.evaluations = _with_report(run.evaluations, _read_json(path, _REPORT))
    name = HPARAMS
    known = _read_json(path, HPARAMS)
    if not (trainer or result or known):
      return None
    run.news = _news(trainer, path)
    run.last_step = result.get('total_steps')
    _take_facts(run, known)
  except storage.errors() as error:
    run.damage = f'it cannot be read ({safe_text.for_files(error)})'
    return run
  except storage.MALFORMED as error:
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
      _numbers(each['metrics']),
    )
    for each in result.get('evaluations') or [result]
  ]
  return tuple(sorted(found, key=lambda each: each.step))


def _numbers(metrics):
  return {
    str(name): float(value)
    for name, value in metrics.items()
    if isinstance(value, (int, float))
  }


def _with_report(evaluations, report):
  """Returns evaluations with the metrics that the run's report adds."""
  if not report or not evaluations:
    return evaluations
  about = report['run']
  names = ('fingerprint', 'dataset', 'eval_split', 'num_eval_examples')
  subject = [about[name] for name in names]
  added = {
    name: value
    for name, value in _numbers(report['metrics']).items()
    if name.startswith(_OF_REPORT)
  }
  return tuple(
    each._replace(metrics={**added, **each.metrics})
    if [each.fingerprint, *each.data[:3]] == subject
    else each
    for each in evaluations
  )


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
