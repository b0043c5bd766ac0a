"""--mode=eval beside whatever happens to checkpoints, and to itself.

The encoder is the TINY one. Checkpoints are put there as
a trainer does it, one after the other; what they hold is up to the test.
"""

import dataclasses
import functools
import itertools
import json
import math
import os
import pathlib
import re
import shutil
import time
import types

from absl import logging
import numpy as np
import pytest
import tensorflow as tf

from supcon.config import hparams
from supcon.config import run_options
from supcon.data.sources import datasets
from supcon.jobs import announcing
from supcon.jobs import checked_runs
from supcon.jobs import evaluation
from supcon.jobs import evaluation_records
from supcon.jobs import stopping
from supcon.runs import checkpoint_files
from supcon.runs import locks
from supcon.runs import log_files
from supcon.runs import model_dirs
from supcon.runs import processes
from supcon.runs import status
from supcon.runs import timestamps
from supcon.serving import exports
from supcon.training import facts
from supcon.training import facts_keeper
from supcon.training import positions
from tests import command
from tests import killing

tf1 = tf.compat.v1

_FLAGS = {
  **command.DIGITS,
  'num_images': 500,
  'stop_gradient_before_classification_head': False,
  'stage_1_epochs': 4,
  'stage_1_warmup_epochs': 0,
  'stage_1_optimizer': 'MOMENTUM',
  'stage_1_cross_entropy_loss_weight': 1.0,
  'stage_2_epochs': 3,
  'stage_2_warmup_epochs': 0,
  'stage_2_base_learning_rate': 3.0,
  'stage_2_optimizer': 'MOMENTUM',
  'eval_interval_secs': 0,
}
_LAST = 54  # floor(7 x 500 / 64)


def _read_json(path):
  return json.loads(path.read_text())


def _top_1(entry):
  return entry['metrics']['top_1_accuracy']


# --- From the first checkpoint to the last ------------------------------------


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  """A finished train_then_eval."""
  directory = tmp_path_factory.mktemp('trained')
  flags = {**_FLAGS, 'data_dir': directory / 'data'}
  model_dir = directory / 'model'
  command.succeed(
    {
      **flags,
      'model_dir': model_dir,
      'mode': 'train_then_eval',
      'save_interval_steps': 10,
      'max_checkpoints_to_keep': 100,
      'export_formats': 'saved_model',
    },
    directory,
    is_small=True,
  )
  return types.SimpleNamespace(flags=flags, model_dir=model_dir)


def _put(trained, model_dir, step, values_of, files=('.data', '.index')):
  """Puts a checkpoint into a model_dir, and lists it there.

  Args:
    trained: That fixture.
    model_dir: Where it goes.
    step: What it is called.
    values_of: The step of the checkpoint of `trained` with its values.
    files: The beginnings of what its files end with.
  """
  model_dir.mkdir(exist_ok=True)
  start = f'model.ckpt-{values_of}'
  for path in sorted(trained.model_dir.glob(f'{start}.*')):
    end = path.name.removeprefix(start)
    if end.startswith(files):
      shutil.copy(path, model_dir / f'model.ckpt-{step}{end}')
  names = [f'model.ckpt-{each}' for each in command.steps(model_dir)]
  tf1.train.update_checkpoint_state(str(model_dir), names[-1], names)


def _delete(model_dir, step):
  # As the saver does it.
  (model_dir / f'model.ckpt-{step}.index').unlink()
  (model_dir / f'model.ckpt-{step}.data-00000-of-00001').unlink()


@pytest.fixture(scope='module')
def scenario(tmp_path_factory, trained):
  """An eval job that meets everything, and is killed in between.

  The checkpoints have the values of these steps of `trained`:
    10: 31. 20: 54, the best one. 30: 54 again, killed. 40: damaged. 45: deleted
    as its evaluation begins. 54: 31.
  """
  directory = tmp_path_factory.mktemp('scenario')
  model_dir = directory / 'model'
  flags = {
    **trained.flags,
    'model_dir': model_dir,
    'mode': 'eval',
    'export_formats': 'saved_model',
  }
  checkpoint = f'{model_dir}/model.ckpt'

  def put_and_wait(job, step, values_of):
    _put(trained, model_dir, step, values_of)
    job.wait_until(lambda: f'evaluating {checkpoint}-{step}\n' in job.stderr)

  def is_evaluated(job, step):
    return lambda: f' step {step}: top-1 ' in job.stderr

  with command.Process(flags, directory, is_small=True) as first:
    first.wait_until(lambda: 'waiting for a checkpoint in ' in first.stderr)
    put_and_wait(first, 10, 31)
    first.wait_until(is_evaluated(first, 10))
    put_and_wait(first, 20, _LAST)
    first.wait_until(is_evaluated(first, 20))
    _delete(model_dir, 20)
    put_and_wait(first, 30, _LAST)
    first = first.kill()
  in_between = command.contents(model_dir)
  # Whoever restarts it finds what came meanwhile.
  _put(trained, model_dir, 40, 41)
  data = model_dir / 'model.ckpt-40.data-00000-of-00001'
  data.write_bytes(data.read_bytes()[:-100])
  with command.Process(flags, directory, is_small=True) as second:
    second.wait_until(lambda: 'model.ckpt-40 is damaged' in second.stderr)
    put_and_wait(second, 45, 41)
    _delete(model_dir, 45)
    second.wait_until(lambda: 'was deleted by the trainer' in second.stderr)
    put_and_wait(second, _LAST, 31)
    second = second.wait()
  return types.SimpleNamespace(
    flags=flags,
    directory=directory,
    model_dir=model_dir,
    logs=[first.log, second.log],
    returncode=second.returncode,
    in_between=in_between,
    record=_read_json(model_dir / 'eval' / 'evaluated.json'),
  )


class TestScenario:
  def test_ends_by_itself(self, scenario):
    assert scenario.returncode == 0, scenario.logs
    assert not any('Traceback' in line for log in scenario.logs for line in log)
    assert scenario.logs[1][-1] == (
      f'the best: step 20, top-1 {_top_1(scenario.record["20"]):.4f}, in '
      f'{scenario.model_dir}/best'
    )

  def test_evaluates_each_exactly_once_and_in_order(self, scenario):
    begun, done = (
      [
        [int(found[1]) for found in map(pattern.match, log) if found]
        for log in scenario.logs
      ]
      for pattern in (
        re.compile(r'evaluating .*model\.ckpt-(\d+)$'),
        re.compile(r'step (\d+): top-1 '),
      )
    )
    # 30 was under way when the job was killed.
    assert begun == [[10, 20, 30], [30, 45, _LAST]]
    assert done == [[10, 20], [30, _LAST]]

  def test_records_what_was_evaluated(self, scenario, trained):
    record = scenario.record
    assert list(record) == ['10', '20', '30', str(_LAST)]
    published = _read_json(trained.model_dir / 'eval' / 'evaluated.json')
    assert list(published) == [str(_LAST)]
    for step, expected in (
      ('20', published[str(_LAST)]),
      ('30', published[str(_LAST)]),
      ('10', record[str(_LAST)]),
    ):
      for key in ('fingerprint', 'data'):
        assert record[step][key] == expected[key]
      # What the loss is depends on the stage.
      assert {**record[step]['metrics'], 'loss': 0} == {
        **expected['metrics'],
        'loss': 0,
      }
    assert _top_1(record['10']) < _top_1(record['20'])
    for entry in record.values():
      assert timestamps.age(entry['time']) >= 0

  def test_skips_what_is_damaged_or_deleted_with_a_line(self, scenario):
    lines = [line for line in scenario.logs[1] if line.endswith('; skipped')]
    assert len(lines) == 2
    checkpoint = f'{scenario.model_dir}/model.ckpt'
    assert re.fullmatch(
      rf'WARNING: {checkpoint}-40 is damaged \(\d+ bytes are left, but the '
      r'values take \d+\); skipped',
      lines[0],
    )
    assert lines[1] == f'{checkpoint}-45 was deleted by the trainer; skipped'
    # The trainer's files are the trainer's.
    assert (scenario.model_dir / 'model.ckpt-40.index').exists()

  def test_result_is_that_of_the_last_one(self, scenario):
    result = _read_json(scenario.model_dir / 'result.json')
    assert result['global_step'] == _LAST
    assert result['metrics'] == scenario.record[str(_LAST)]['metrics']

  def test_result_keeps_every_evaluation(self, scenario):
    result = _read_json(scenario.model_dir / 'result.json')
    # Across the kill.
    assert [
      (f'{each["global_step"]}', each['checkpoint'], each['metrics'])
      for each in result['evaluations']
    ] == [
      (step, f'model.ckpt-{step}', entry['metrics'])
      for step, entry in scenario.record.items()
    ]
    (last,) = result['evaluations'][-1:]
    for key in ('num_examples', 'split', 'fingerprint', 'data', 'total_steps'):
      assert last[key] == result[key]

  def test_keeps_the_best_one(self, scenario, trained):
    best = scenario.model_dir / 'best'
    # The equal one of step 30 has not taken its place.
    assert sorted(os.listdir(best)) == [
      'best.json',
      'checkpoint',
      'model.ckpt-20.data-00000-of-00001',
      'model.ckpt-20.index',
    ]
    facts = _read_json(best / 'best.json')
    assert facts['step'] == 20
    assert facts['top_1'] == _top_1(scenario.record['20'])
    assert facts['checkpoint'] == tf.train.latest_checkpoint(str(best))
    values, expected = (
      command.variables(checkpoint)
      for checkpoint in (best, trained.model_dir / f'model.ckpt-{_LAST}')
    )
    assert list(values) == list(expected)
    for name, value in expected.items():
      np.testing.assert_array_equal(values[name], value)

  def test_keeps_the_export_of_the_best_one(self, scenario):
    facts = _read_json(scenario.model_dir / 'best' / 'best.json')
    result = _read_json(scenario.model_dir / 'result.json')
    kept = {os.path.basename(each['export']) for each in (facts, result)}
    # That of step 10 has gone with its being the best one.
    assert {*os.listdir(scenario.model_dir / 'exports')} == kept
    assert len(kept) == 2
    assert [entry['export'] for entry in scenario.record.values()] == [
      None,
      facts['export'],
      None,
      result['export'],
    ]
    export = _read_json(pathlib.Path(facts['export']) / 'export.json')
    assert export['global_step'] == 20
    assert facts['saved_model'] == facts['export']

  def test_the_record_is_there_when_the_rest_is(self, scenario):
    names = {name for name in scenario.in_between if '.tmp' not in name}
    record = json.loads(scenario.in_between['eval/evaluated.json'][1])
    assert list(record) == ['10', '20']
    assert {
      'result.json',
      'best/best.json',
      'best/model.ckpt-20.index',
    } <= names
    assert (
      json.loads(scenario.in_between['result.json'][1])['global_step'] == 20
    )

  def test_a_finished_one_has_nothing_to_do(self, scenario):
    # It says all the same that it was here.
    own = {log_files.EVALUATOR, status.EVALUATOR}

    def others():
      found = command.contents(scenario.model_dir)
      return {name: found[name] for name in {*found} - own}

    before = others()
    run = command.succeed(scenario.flags, scenario.directory, is_small=True)
    top_1 = _top_1(scenario.record[str(_LAST)])
    assert re.fullmatch(
      rf'step {_LAST}, the last one, was evaluated before, on \S+: top-1 '
      rf'{top_1:.4f}; nothing is left to do',
      run.log[-2],
    )
    assert others() == before


def test_train_then_eval_records_and_keeps(trained):
  record = _read_json(trained.model_dir / 'eval' / 'evaluated.json')
  result = _read_json(trained.model_dir / 'result.json')
  assert record[str(_LAST)]['metrics'] == result['metrics']
  assert record[str(_LAST)]['export'] == result['export']
  best = _read_json(trained.model_dir / 'best' / 'best.json')
  assert best['step'] == _LAST
  assert best['export'] == result['export']


def test_ends_without_a_trainer(tmp_path, trained):
  model_dir = tmp_path / 'model'
  flags = {
    **trained.flags,
    'model_dir': model_dir,
    'mode': 'eval',
    'eval_timeout_secs': 1,
  }
  # This process stands for a trainer, which is slow.
  lock = locks.acquire(model_dirs.ModelDir(str(model_dir)), force=False)
  with command.Process(flags, tmp_path, is_small=True) as job:
    job.wait_until(lambda: 'waiting for a checkpoint in ' in job.stderr)
    begun = time.monotonic()
    job.wait_until(lambda: time.monotonic() - begun > 5)
    lock.release()
    job = job.wait()
  assert job.returncode == 69, job.stderr
  assert 'Traceback' not in job.stderr
  assert job.log[-1] == (
    f'main.py: stopped: found no trainer and no new checkpoint in {model_dir} '
    'for 1 s; start both jobs again to continue.'
  )


# --- One after the other, in detail -------------------------------------------


class _Clock:
  """Stands for the time, which passes only while somebody sleeps."""

  def __init__(self):
    self.now = 1000.0
    self.events = {}  # {time: what happens then}.

  def monotonic(self):
    return self.now

  def sleep(self, seconds):
    self.now += seconds
    for when in sorted(self.events):
      if when <= self.now:
        self.events.pop(when)()


def _kill():
  raise killing.KilledError


def _write(directory, step, value=None, is_listed=True):
  """Writes a checkpoint; its value is its step by default."""
  directory.mkdir(exist_ok=True)
  path = str(directory / f'model.ckpt-{step}')
  tf.raw_ops.SaveV2(
    prefix=path,
    tensor_names=['w'],
    shape_and_slices=[''],
    tensors=[np.full([10], step if value is None else value, np.float32)],
  )
  if is_listed:
    names = [f'model.ckpt-{each}' for each in command.steps(directory)]
    tf1.train.update_checkpoint_state(str(directory), names[-1], names)
  return path


def _run(directory, **options):
  """Returns what a job knows of its run, of 100 steps."""
  run = types.SimpleNamespace(
    options=run_options.RunOptions(
      mode='eval', model_dir=str(directory), **options
    ),
    params=hparams.HParams(),
    dataset=types.SimpleNamespace(
      evaluation=types.SimpleNamespace(
        name='test', fingerprint='10 of 360', num_bytes=1000
      ),
      num_eval_examples=10,
      info=datasets.INFOS['digits'],
    ),
    plan=types.SimpleNamespace(total_steps=100),
    announced_last_step=100,
    known=None,
    model_dir=model_dirs.ModelDir(str(directory)),
    checkpoint=None,
  )
  run.as_trained = lambda checkpoint: run
  return run


def _export(path='export'):
  return exports.Export(str(path), None, None)


@pytest.fixture
def job(tmp_path, monkeypatch):
  """Runs jobs on `directory`, in which `evaluations` takes no time.

  evaluations: (time since the start, step, value of the checkpoint).
  """
  clock = _Clock()
  monkeypatch.setattr(evaluation, 'time', clock)
  lines = []
  for name in ('info', 'warning'):
    monkeypatch.setattr(
      logging, name, lambda line, *args: lines.append(line % args)
    )
  directory = tmp_path / 'model'
  directory.mkdir()
  evaluations = []
  result = types.SimpleNamespace(
    clock=clock,
    lines=lines,
    directory=directory,
    evaluations=evaluations,
    during=lambda step: None,  # What happens while a step is evaluated.
  )

  def evaluate(run, checkpoint, exports_if_best):
    step = checkpoint_files.step_of(checkpoint)
    value = tf.train.load_checkpoint(checkpoint).get_tensor('w')[0]
    evaluations.append((clock.now - 1000, step, value))
    fingerprint = checkpoint_files.fingerprint(checkpoint)
    result.during(step)
    metrics = {'top_1_accuracy': step / 1000}
    export = None
    if run.options.formats and not exports_if_best:
      export = _export(f'export {step}')
    evaluation_records.Record(run).add(step, fingerprint, metrics, export)
    return {
      'global_step': step,
      'metrics': metrics,
      'dataset': 'digits',
      'split': 'test',
    }

  monkeypatch.setattr(evaluation, 'evaluate', evaluate)

  def run(change=lambda run: None, **options):
    of_run = _run(directory, **{'eval_interval_secs': 0, **options})
    change(of_run)
    monkeypatch.setattr(checked_runs, 'prepare', lambda *_: of_run)
    monkeypatch.setattr(checked_runs, 'check_checkpoint', lambda *_: None)
    monkeypatch.setattr(announcing, 'announce', lambda run: None)
    # Nothing takes an hour.
    clock.events.setdefault(clock.now + 3600, _kill)
    try:
      each = evaluation.EvaluateEach(
        of_run.options, of_run.params, sleep=clock.sleep
      )
      each.announce()
      each.run()
    except killing.KilledError:
      return 'killed'
    return 'ended'

  result.run = run
  return result


def _steps(job):
  return [step for _, step, _ in job.evaluations]


def test_begins_within_seconds(job):
  for when, step in ((1003, 10), (1007.5, 20), (1300.1, 100)):
    job.clock.events[when] = functools.partial(_write, job.directory, step)
  assert job.run() == 'ended'
  assert _steps(job) == [10, 20, 100]
  for (when, *_), appeared in zip(job.evaluations, (3, 7.5, 300.1)):
    assert appeared <= when <= appeared + 2


def test_keeps_the_interval_until_training_is_over(job):
  for step in (10, 20, 30, 40):
    _write(job.directory, step)
  job.clock.events[1130] = functools.partial(_write, job.directory, 100)
  assert job.run(eval_interval_secs=60) == 'ended'
  times = [round(when) for when, *_ in job.evaluations]
  assert _steps(job) == [10, 20, 30, 40, 100]
  assert times[:3] == [0, 60, 120]
  # Two seconds at most after that of the last step.
  assert times[3] == times[4] and 130 <= times[3] <= 132


def test_each_once_whenever_it_is_killed(job):
  for step in (10, 20, 30, 100):
    _write(job.directory, step)

  def be_killed_the_first_time(step):
    if _steps(job).count(step) == 1:
      _kill()

  job.during = be_killed_the_first_time
  for _ in range(4):
    assert job.run() == 'killed'
  assert job.run() == 'ended'
  assert _steps(job) == [10, 10, 20, 20, 30, 30, 100, 100]
  # All is recorded now.
  assert job.run() == 'ended'
  assert len(job.evaluations) == 8


def _exported(job):
  """Returns which steps were exported, were they the best ones or not."""
  record = _read_json(job.directory / 'eval' / 'evaluated.json')
  return [int(step) for step, entry in record.items() if entry['export']]


@pytest.mark.parametrize(
  'options, exported',
  [
    ({}, [100]),
    ({'export_checkpoints': 'all'}, [10, 20, 100]),
    ({'export_formats': ('none',)}, []),
    ({'export_formats': ('none',), 'export_checkpoints': 'all'}, []),
  ],
)
def test_what_is_exported_whether_it_is_the_best_or_not(job, options, exported):
  for step in (10, 20, 100):
    _write(job.directory, step)
  assert job.run(**options) == 'ended'
  assert _exported(job) == exported


def test_what_becomes_the_last_one_later_is_exported(job):
  for step in (10, 20):
    _write(job.directory, step)
  with pytest.raises(stopping.TrainerGoneError):
    job.run(eval_timeout_secs=1)
  assert _exported(job) == []

  def end_with_20(run):
    run.plan.total_steps = run.announced_last_step = 20

  for _ in range(2):
    assert job.run(end_with_20) == 'ended'
    assert _steps(job) == [10, 20, 20]
    assert _exported(job) == [20]


def test_a_run_that_was_begun_anew_is_evaluated_anew(job):
  for step in (10, 100):
    _write(job.directory, step)
  assert job.run() == 'ended'
  # Saved again, as a trainer does with what it begins with.
  for step in (10, 100):
    _write(job.directory, step)
  assert job.run() == 'ended'
  assert _steps(job) == [10, 100]
  for step in (10, 100):
    _write(job.directory, step, value=step + 1)
  assert job.run() == 'ended'
  assert job.evaluations[2:] == [(0, 10, 11), (0, 100, 101)]


def test_a_run_that_went_back(job):
  for step in (10, 20, 30):
    _write(job.directory, step)

  def go_back():
    for step in (20, 30):
      (job.directory / f'model.ckpt-{step}.index').unlink()
    _write(job.directory, 20, value=-20)

  job.clock.events[1010] = go_back
  job.clock.events[1020] = functools.partial(_write, job.directory, 100)
  assert job.run() == 'ended'
  assert [(step, value) for _, step, value in job.evaluations] == [
    (10, 10),
    (20, 20),
    (30, 30),
    (20, -20),
    (100, 100),
  ]


def test_other_data_are_another_evaluation(job):
  for step in (10, 100):
    _write(job.directory, step)
  assert job.run() == 'ended'

  def change(run):
    run.dataset.num_eval_examples = 5

  assert job.run(change) == 'ended'
  assert _steps(job) == [10, 100, 10, 100]


def test_what_is_being_written_is_waited_for(job):
  """Without being listed, its data come in parts, and later its index."""
  whole = job.directory.parent / 'elsewhere'
  _write(whole, 100)
  index, data = (
    (whole / f'model.ckpt-100{end}').read_bytes()
    for end in ('.index', '.data-00000-of-00001')
  )

  def write(end, content):
    (job.directory / f'model.ckpt-100{end}').write_bytes(content)

  for when, end, content in (
    (1002.5, '.data-00000-of-00001', data[:10]),
    (1004.5, '.index', index[:70]),
    (1006.5, '.index', index),
    (1007.5, '.data-00000-of-00001', data),
  ):
    job.clock.events[when] = functools.partial(write, end, content)
  assert job.run() == 'ended'
  assert _steps(job) == [100]
  assert not any('damaged' in line for line in job.lines)


@pytest.mark.parametrize('is_listed', [True, False])
def test_what_is_damaged_is_skipped_until_it_is_repaired(job, is_listed):
  path = _write(job.directory, 10, is_listed=is_listed)
  data = pathlib.Path(f'{path}.data-00000-of-00001')
  content = data.read_bytes()
  data.write_bytes(bytes(len(content)))
  if is_listed:
    _write(job.directory, 20)
  job.clock.events[1050] = functools.partial(data.write_bytes, content)
  job.clock.events[1060] = functools.partial(_write, job.directory, 100)
  assert job.run() == 'ended'
  assert _steps(job) == ([20, 10, 100] if is_listed else [10, 100])
  (when,) = (when for when, step, _ in job.evaluations if step == 10)
  assert 50 <= when <= 52
  (line,) = [line for line in job.lines if line.endswith('; skipped')]
  assert line.startswith(f'WARNING: {path} is damaged (')


def test_the_last_one_is_damaged(job):
  # Whoever trains on will write it again.
  path = pathlib.Path(_write(job.directory, 100))
  path.with_name(f'{path.name}.data-00000-of-00001').unlink()
  assert job.run() == 'killed'
  job.clock.events.clear()
  job.clock.events[job.clock.now + 9] = functools.partial(
    _write, job.directory, 100
  )
  assert job.run() == 'ended'
  assert _steps(job) == [100]


@pytest.mark.parametrize('error', [LookupError, stopping.LostCheckpointError])
def test_only_what_was_lost_is_skipped(job, error):
  for step in (10, 100):
    _write(job.directory, step)

  def lose(step):
    if step == 10 and len(job.evaluations) == 1:
      # Else it would be there still.
      (job.directory / 'model.ckpt-10.index').unlink()
      raise error('DIR/model.ckpt-10 is lost')

  job.during = lose
  if error is LookupError:
    with pytest.raises(LookupError):
      job.run()
  else:
    assert job.run() == 'ended'
    assert _steps(job) == [10, 100]
    assert 'DIR/model.ckpt-10 is lost; skipped' in job.lines


def _record(directory):
  """Writes down that a run ends with step 40."""
  model_dir = model_dirs.ModelDir(str(directory))
  plan = positions.Counting(num_examples=40, batch_size=10, epochs=(5, 5))
  keeper = facts_keeper.Keeper(
    model_dir, facts.Facts(hparams.HParams(), plan), {}
  )
  keeper.before_save(0)


def test_the_last_step_is_that_of_the_run(job):
  # Though there would be 100 on as many examples as the flags name.
  _record(job.directory)
  for step in (10, 40):
    _write(job.directory, step)

  def change(run):
    run.announced_last_step = 40

  assert job.run(change) == 'ended'
  assert _steps(job) == [10, 40]
  assert job.clock.now < 1010


@pytest.mark.parametrize('comes', [False, True])
def test_flags_with_a_later_end_wait_a_moment_for_a_trainer(job, comes):
  _record(job.directory)
  _write(job.directory, 40)
  trainer = locks.Holder(
    processes.this_process(), timestamps.now(), '', timestamps.now()
  )

  def begin():
    writer = status.Writer(model_dirs.ModelDir(str(job.directory)))
    writer.begin(status.TRAINING, 40, 100)

  if comes:
    job.clock.events[1030] = begin
    job.clock.events[1500] = functools.partial(_write, job.directory, 100)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(locks, 'read', lambda _: trainer if comes else None)
    assert job.run() == 'ended'
  assert _steps(job) == ([40, 100] if comes else [40])
  if not comes:
    assert 1060 <= job.clock.now <= 1065


def test_a_trainer_of_an_older_version_has_said_its_last_step(job):
  path = str(job.directory)
  with status.Writer(model_dirs.ModelDir(path)) as writer:
    writer.begin(status.TRAINING, 40, 40)
  _write(job.directory, 40)
  newest = f'{path}/model.ckpt-40'
  last_step = functools.partial(
    evaluation.last_step, model_dirs.ModelDir(path), announced=100
  )
  assert last_step(newest=newest) == 40
  # It speaks of no other step.
  assert last_step(newest=f'{path}/model.ckpt-30') == 100
  assert last_step(newest=None) == 100


def test_the_trainer_is_gone(job):
  trainer = locks.Holder(
    processes.Process('elsewhere', 1), timestamps.now(), '', ''
  )
  is_there = {1000: True, 1500: False, 1530: True, 1700: False}

  def read(_):
    alive = is_there[max(t for t in is_there if t <= job.clock.now)]
    return dataclasses.replace(
      trainer, heartbeat=timestamps.now() if alive else ''
    )

  _write(job.directory, 10)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(locks, 'read', read)
    with pytest.raises(stopping.TrainerGoneError, match=' for 60 s; '):
      job.run(eval_timeout_secs=60)
  # It was away for half a minute, and then for good.
  assert 1760 <= job.clock.now <= 1765
  assert _steps(job) == [10]


def test_checkpoints_are_a_sign_of_a_trainer(job):
  # Of one that nobody can see.
  for step in (1, 2, 3, 4):
    job.clock.events[1000 + 50 * step] = functools.partial(
      _write, job.directory, step
    )
  with pytest.raises(stopping.TrainerGoneError):
    job.run(eval_timeout_secs=60)
  assert 1260 <= job.clock.now <= 1265
  assert _steps(job) == [1, 2, 3, 4]


def test_storage_that_is_away_for_a_moment(job, monkeypatch):
  for step in (10, 100):
    _write(job.directory, step)
  steps_and_paths = checkpoint_files.steps_and_paths
  looks = []

  def fail(path):
    looks.append(path)
    if len(looks) % 3:
      raise tf.errors.UnavailableError(None, None, 'HTTP 503')
    return steps_and_paths(path)

  monkeypatch.setattr(checkpoint_files, 'steps_and_paths', fail)
  assert job.run() == 'ended'
  assert _steps(job) == [10, 100]


def test_a_poll_reads_no_checkpoint(job, monkeypatch):
  for step in (10, 20):
    path = _write(job.directory, step)
  pathlib.Path(f'{path}.data-00000-of-00001').write_bytes(b'')
  reads = []
  for name in ('damage', 'fingerprint'):
    function = getattr(checkpoint_files, name)

    def read(path, function=function):
      reads.append(job.clock.now)
      return function(path)

    monkeypatch.setattr(checkpoint_files, name, read)
  assert job.run() == 'killed'
  assert max(reads) < 1010


@pytest.mark.parametrize(
  'content', ['', '{', '[]', '{"10": {}}', '{"x": 3}', '\0' * 50]
)
def test_a_damaged_record_is_put_aside(job, content):
  _write(job.directory, 100)
  path = job.directory / 'eval' / 'evaluated.json'
  path.parent.mkdir()
  path.write_text(content)
  assert job.run() == 'ended'
  assert _steps(job) == [100]
  if content != '[]':  # It says that there is nothing.
    assert path.with_name('evaluated.json.damaged').read_text() == content
  assert list(_read_json(path)) == ['100']


def test_record_of_later_ones(tmp_path):
  run = _run(tmp_path)
  record = evaluation_records.Record(run)
  for step in (10, 20):
    path = _write(tmp_path, step)
    record.add(step, checkpoint_files.fingerprint(path), {'a': 1.0}, _export())
  assert [record.has_later(step) for step in (0, 10, 20)] == [True, True, False]
  # What is there now was not evaluated.
  _write(tmp_path, 20, value=3)
  assert not evaluation_records.Record(run).has_later(10)


# --- The best one -------------------------------------------------------------


_DATA = {'dataset': 'digits', 'split': 'test', 'num_examples': 360}


def _consider(
  directory,
  step,
  top_1,
  fingerprint='a',
  data=types.MappingProxyType(_DATA),
  architecture='small',
  own_data=None,
):
  """Does with `Best` what an evaluation does."""
  path = _write(directory, step)
  best = evaluation_records.Best(
    model_dirs.ModelDir(str(directory)), dict(data), architecture, own_data
  )
  candidate = {'step': step, 'top_1': top_1, 'fingerprint': fingerprint}
  is_best = best.would_be(candidate)
  if is_best:
    best.hold(path)
    best.replace(candidate, _export(f'exports/{step}'))
  return is_best


def _assert_best(directory, step):
  """Asserts that best/ holds this one, and it alone."""
  best = directory / 'best'
  facts = _read_json(best / 'best.json')
  assert facts['step'] == step
  assert facts['export'] == f'exports/{step}'
  assert command.steps(best) == [step]
  assert len(os.listdir(best)) == 4
  newest = tf.train.latest_checkpoint(str(best))
  assert newest == str(best / f'model.ckpt-{step}')
  assert checkpoint_files.damage(newest) is None
  np.testing.assert_array_equal(command.variables(best)['w'], [step] * 10)
  kept = evaluation_records.kept_exports(model_dirs.ModelDir(str(directory)))
  assert f'exports/{step}' in kept


def test_best_is_the_first_of_the_highest(tmp_path):
  found = [
    _consider(tmp_path, step, top_1)
    for step, top_1 in ((1, 0.2), (2, 0.1), (3, 0.5), (4, 0.5), (5, 0.4))
  ]
  assert found == [True, False, True, False, False]
  _assert_best(tmp_path, 3)
  # Evaluated again, it is the best one still, with the later export.
  assert _consider(tmp_path, 3, 0.5)
  # But not with other values.
  assert not _consider(tmp_path, 3, 0.4, fingerprint='b')
  _assert_best(tmp_path, 3)


@pytest.mark.parametrize(
  'other',
  [
    {'data': {**_DATA, 'split': 'train'}},
    {'data': {**_DATA, 'num_examples': 5}},
    {'architecture': 'large'},
  ],
)
def test_what_cannot_be_compared_is_kept_apart(tmp_path, other):
  _consider(tmp_path, 1, 0.9)
  assert _consider(tmp_path, 2, 0.2, **other)
  _assert_best(tmp_path, 1)
  (beside,) = tmp_path.glob('best-digits_*')
  # So are the curves: in eval, and in eval_NAME.
  of_run, of_other = (
    evaluation_records.Best(
      model_dirs.ModelDir(str(tmp_path)),
      **{'data': _DATA, 'architecture': 'small', **each},
    )
    for each in ({}, other)
  )
  assert (of_run.name, f'best-{of_other.name}') == ('', beside.name)
  assert _read_json(beside / 'best.json')['step'] == 2
  # Each is compared with its like from then on.
  assert not _consider(tmp_path, 3, 0.1, **other)
  assert _consider(tmp_path, 4, 0.3, **other)
  assert not _consider(tmp_path, 5, 0.8)
  assert command.steps(beside) == [4]
  _assert_best(tmp_path, 1)
  kept = evaluation_records.kept_exports(model_dirs.ModelDir(str(tmp_path)))
  assert sorted(kept) == ['exports/1', 'exports/4']


def test_best_is_of_the_data_of_the_run_whatever_comes_first(tmp_path):
  other = {**_DATA, 'split': 'train'}
  assert _consider(tmp_path, 1, 0.9, data=other, own_data=_DATA)
  assert not (tmp_path / 'best').exists()
  assert _consider(tmp_path, 2, 0.2, own_data=_DATA)
  assert _read_json(tmp_path / 'best' / 'best.json')['step'] == 2


def test_a_best_of_an_older_version_is_compared(tmp_path):
  # It says less of its data.
  _consider(tmp_path, 1, 0.5, data={'dataset': 'digits', 'split': 'test'})
  assert not _consider(tmp_path, 2, 0.4)
  assert _consider(tmp_path, 3, 0.6)
  _assert_best(tmp_path, 3)


def _consider_by(metric, directory, step, top_1, **metrics):
  path = _write(directory, step)
  best = evaluation_records.Best(
    model_dirs.ModelDir(str(directory)), dict(_DATA), 'small', None, metric
  )
  candidate = {'step': step, 'top_1': top_1, 'fingerprint': 'a'}
  candidate['metrics'] = {'top_1_accuracy': top_1, **metrics}
  if is_best := best.would_be(candidate):
    best.hold(path)
    best.replace(candidate, _export(f'exports/{step}'))
  return is_best, best.describe()


def test_best_by_another_metric(tmp_path, warnings):
  # One of an older version, of which the top-1 alone is known.
  _consider(tmp_path, 1, 0.9)
  of_loss = functools.partial(_consider_by, 'loss', tmp_path)
  assert of_loss(2, 0.1, loss=3.0)[0]
  (warning,) = warnings
  assert 'does not count any more (its loss is unknown)' in warning
  assert not of_loss(3, 0.8, loss=3.0)[0]
  assert not of_loss(4, 0.8, loss=4.0)[0]
  assert not of_loss(4, 0.8)[0]  # It is undefined.
  assert of_loss(5, 0.2, loss=2.0) == (
    True,
    f'step 5, loss 2.0000, top-1 0.2000, in {tmp_path}/best',
  )
  # Back to the other one.
  assert not _consider(tmp_path, 6, 0.1)
  assert _consider(tmp_path, 7, 0.3)
  _assert_best(tmp_path, 7)


def test_what_nobody_can_compare_is_put_aside(tmp_path):
  _consider(tmp_path, 1, 0.9)
  (tmp_path / 'best' / 'best.json').write_text('{}')
  assert _consider(tmp_path, 2, 0.2)
  _assert_best(tmp_path, 2)
  assert command.steps(tmp_path / 'damaged' / '1') == [1]


@pytest.mark.parametrize('name', ['model.ckpt-1.index', 'best.json'])
def test_best_that_is_damaged_is_replaced(tmp_path, name):
  _consider(tmp_path, 1, 0.9)
  path = tmp_path / 'best' / name
  path.write_bytes(bytes(path.stat().st_size))
  assert _consider(tmp_path, 2, 0.2)
  _assert_best(tmp_path, 2)


def test_best_takes_no_part_of_a_checkpoint(tmp_path):
  _consider(tmp_path, 1, 0.2)
  path = _write(tmp_path, 2)
  pathlib.Path(f'{path}.data-00000-of-00001').write_bytes(b'cut')
  best = evaluation_records.Best(
    model_dirs.ModelDir(str(tmp_path)), dict(_DATA), 'small'
  )
  with pytest.raises(tf.errors.DataLossError, match='is not whole'):
    best.hold(path)
  assert _consider(tmp_path, 3, 0.3)
  _assert_best(tmp_path, 3)


def test_best_is_whole_whenever_it_is_killed(tmp_path, monkeypatch):
  """After each operation on files but those that only read."""
  killer = killing.Killer(monkeypatch)
  _consider(tmp_path, 1, 0.2)
  number_of_kills = 0
  for kill_after in itertools.count():
    killer.left = kill_after
    try:
      _consider(tmp_path, 2, 0.3)
      break
    except killing.KilledError:
      number_of_kills += 1
    # Whoever reads it, by either name, finds a whole one.
    best = tmp_path / 'best'
    facts = _read_json(best / 'best.json')
    for checkpoint in (
      tf.train.latest_checkpoint(str(best)),
      facts['checkpoint'],
    ):
      assert checkpoint_files.damage(checkpoint) is None
      step = checkpoint_files.step_of(checkpoint)
      assert tf.train.load_checkpoint(checkpoint).get_tensor('w')[0] == step
    if facts['step'] == 2:
      # From the beginning.
      killer.left = math.inf
      shutil.rmtree(best)
      _consider(tmp_path, 1, 0.2)
  assert number_of_kills > 6
  _assert_best(tmp_path, 2)


# --- All evaluations of a run -------------------------------------------------


def _keep(directory, step, top_1, split='test', is_last=True, within=True):
  result = {'global_step': step, 'metrics': {'top_1_accuracy': top_1}}
  directory.mkdir(exist_ok=True)
  evaluated = {
    **result,
    'checkpoint': f'{directory if within else "/other"}/model.ckpt-{step}',
    'data': {'split': split},
  }
  evaluation_records.keep_result(
    model_dirs.ModelDir(str(directory)), result, evaluated, is_last
  )
  return _read_json(directory / 'result.json')


def _evaluations(found):
  return [
    (each['checkpoint'], each['data']['split'], _top_1(each))
    for each in found['evaluations']
  ]


def test_evaluations_are_kept_by_checkpoint_and_data(tmp_path):
  directory = tmp_path / 'model'
  for arguments in ((1, 0.1), (2, 0.2), (2, 0.3, 'train')):
    found = _keep(directory, *arguments)
    assert (found['global_step'], _top_1(found)) == arguments[:2]
  # That of the first step again: the last one stays the last one.
  found = _keep(directory, 1, 0.15, is_last=False)
  assert (found['global_step'], _top_1(found)) == (2, 0.3)
  # In a directory that was moved, and of a checkpoint elsewhere.
  directory = directory.rename(tmp_path / 'moved')
  _keep(directory, 2, 0.25)
  found = _keep(directory, 2, 0.4, within=False)
  assert _evaluations(found) == [
    ('model.ckpt-1', 'test', 0.15),
    ('model.ckpt-2', 'train', 0.3),
    ('model.ckpt-2', 'test', 0.25),
    ('/other/model.ckpt-2', 'test', 0.4),
  ]


def test_a_result_of_an_older_version_is_gone_on_with(tmp_path):
  (tmp_path / 'result.json').write_text('{"global_step": 1, "metrics": {}}')
  assert _evaluations(_keep(tmp_path, 2, 0.2)) == [
    ('model.ckpt-2', 'test', 0.2)
  ]


@pytest.mark.parametrize(
  'text', ['{"glob', '[]', '3', '{"evaluations": 3}', '{"evaluations": [3]}']
)
def test_a_damaged_result_is_written_anew(tmp_path, text, warnings):
  (tmp_path / 'result.json').write_text(text)
  assert len(_keep(tmp_path, 2, 0.2)['evaluations']) == 1
  assert text == '[]' or 'result.json is damaged' in warnings[0]


# --- Which exports there are --------------------------------------------------


@pytest.fixture
def evaluate(tmp_path, monkeypatch):
  """Evaluates a checkpoint whose top-1 is given, and exports nothing real."""
  directory = tmp_path / 'model'
  top_1_of = {}
  tags = ('top_5_accuracy', 'loss/contrastive_loss', 'loss/cross_entropy_loss')

  def measure(run, checkpoint, name):
    top_1 = top_1_of[checkpoint_files.step_of(checkpoint)]
    return {**dict.fromkeys(tags, 0.5), 'top_1_accuracy': top_1}

  def write(model, path, formats, to_keep, facts):
    export = f'{path}/{model}'
    tf.io.gfile.makedirs(export)
    return exports.Export(export, export, None)

  monkeypatch.setattr(evaluation, '_measure', measure)
  monkeypatch.setattr(exports, 'write', write)

  def run(step, top_1, exports_if_best=True, **options):
    top_1_of[step] = top_1
    of_run = _run(directory, **options)
    of_run.skipped = types.SimpleNamespace(
      keep=lambda: None, count=lambda of: 0, report=lambda *_: None
    )
    of_run.class_names = of_run.dataset.class_names = ('cat', 'dog')
    of_run.output = of_run.model_dir
    of_run.trained_model = checkpoint_files.step_of  # Its name stands for it.
    of_run.training_facts = dict
    result = evaluation.evaluate(
      of_run, _write(directory, step), exports_if_best
    )
    assert _read_json(directory / 'result.json') == result
    left = directory / 'exports'
    return sorted(map(int, os.listdir(left))) if left.exists() else []

  run.directory = directory
  return run


def _export_of_best(directory):
  facts = _read_json(directory / 'best' / 'best.json')
  return facts['export'] and int(os.path.basename(facts['export']))


def test_the_best_one_has_an_export_and_those_before_it_have_none(evaluate):
  assert evaluate(1, 0.2) == [1]
  assert evaluate(2, 0.1) == [1]
  assert evaluate(3, 0.5) == [3]
  assert evaluate(4, 0.5) == [3]
  assert _export_of_best(evaluate.directory) == 3
  record = _read_json(evaluate.directory / 'eval' / 'evaluated.json')
  directory = f'{evaluate.directory}/exports'
  assert {step: entry['export'] for step, entry in record.items()} == {
    '1': None,
    '2': None,
    '3': f'{directory}/3',
    '4': None,
  }
  # The last one.
  assert evaluate(5, 0.4, exports_if_best=False) == [3, 5]
  # The run goes on: what its former end has left is nobody's to remove.
  assert evaluate(6, 0.6) == [5, 6]
  assert _export_of_best(evaluate.directory) == 6


def test_what_was_exported_for_another_reason_stays(evaluate):
  assert evaluate(1, 0.2, exports_if_best=False) == [1]
  assert evaluate(2, 0.3) == [1, 2]
  assert evaluate(3, 0.4, exports_if_best=False) == [1, 3]
  assert evaluate(4, 0.5) == [1, 3, 4]


def test_a_copy_of_a_run_leaves_its_exports_alone(evaluate):
  assert evaluate(1, 0.2) == [1]
  original = evaluate.directory.with_name('original')
  (evaluate.directory / 'exports').rename(original)
  path = evaluate.directory / 'best' / 'best.json'
  facts = {**_read_json(path), 'export': f'{original}/1'}
  path.write_text(json.dumps(facts))
  assert evaluate(2, 0.3) == [2]
  assert os.listdir(original) == ['1']


def test_so_many_exports_are_kept_and_that_of_the_best(evaluate):
  always = {'exports_if_best': False, 'exports_to_keep': 1}
  assert evaluate(1, 0.9, **always) == [1]
  assert evaluate(2, 0.2, **always) == [1, 2]
  assert evaluate(3, 0.3, **always) == [1, 3]
  assert evaluate(4, 0.95, **always) == [4]


def test_nothing_is_exported_if_that_is_asked_for(evaluate):
  none = {'export_formats': ('none',)}
  assert evaluate(1, 0.2, **none) == []
  assert evaluate(2, 0.3, exports_if_best=False, **none) == []
  assert _export_of_best(evaluate.directory) is None
  result = _read_json(evaluate.directory / 'result.json')
  for name in ('export', 'saved_model', 'hub_module'):
    assert result[name] is None
  assert evaluate(3, 0.4) == [3]
