"""What a run tells of itself, and what --mode=status makes of it."""

import json
import logging as python_logging
import multiprocessing
import os
import pathlib
import re
import socket
import subprocess
import sys
import time
import types

from absl import logging
import pytest
import tensorflow as tf

from supcon.config import safe_text
from supcon.runs import locks
from supcon.runs import log_files
from supcon.runs import model_dirs
from supcon.runs import processes
from supcon.runs import signals
from supcon.runs import status
from supcon.runs import status_report
from supcon.runs import storage
from supcon.runs import terminal
from supcon.runs import timestamps
from supcon.training import run_hooks

tf1 = tf.compat.v1

_ROOT = pathlib.Path(__file__).resolve().parents[2]
_FORK = multiprocessing.get_context('fork')


def _writer(path, *args, **kwargs):
  return status.Writer(model_dirs.ModelDir(str(path)), *args, **kwargs)


def _read(path, name=status.TRAINER):
  return json.loads((path / name).read_text())


def _evaluation(step, second=0):
  return {
    'step': step,
    'top_1': 0.25,
    'time': f'2026-01-31T12:00:{second:02}+00:00',
  }


# --- The files ----------------------------------------------------------------


def test_fields(tmp_path):
  with _writer(tmp_path) as writer:
    writer.begin(status.TRAINING, step=0, total_steps=40)
    found = _read(tmp_path)
    assert found['state'] == 'training'
    assert (found['step'], found['total_steps']) == (0, 40)
    assert found['host'] == socket.gethostname()
    assert found['pid'] == os.getpid()
    for name in ('restarts', 'skipped_batches', 'rollbacks', 'retries'):
      assert found[name] == 0
    for name in ('last_checkpoint', 'last_evaluation', 'error', 'stage'):
      assert found[name] is None
    assert timestamps.age(found['started']) < 10
    assert timestamps.age(found['updated']) < 10
    writer.write(stage=1, step=7, images_per_second=float('nan'))
    found = _read(tmp_path)
    assert (found['stage'], found['step']) == (1, 7)
    assert found['images_per_second'] is None  # JSON has no NaN.
  assert _read(tmp_path)['state'] == 'done'
  assert [path.name for path in tmp_path.iterdir()] == ['status.json']


def test_writes_now_and_then(tmp_path):
  seconds = 100.0
  writer = _writer(tmp_path, clock=lambda: seconds)
  assert writer.is_due
  writer.begin(status.TRAINING)
  seconds = 102.9
  assert not writer.is_due
  writer.update(step=1)
  assert _read(tmp_path)['step'] == 0
  seconds = 103.0
  assert writer.is_due
  writer.add(retries=1)
  # Together with what was to be written before.
  assert (_read(tmp_path)['step'], _read(tmp_path)['retries']) == (1, 1)
  writer.add(retries=2, rollbacks=1)
  writer.write()
  assert (_read(tmp_path)['retries'], _read(tmp_path)['rollbacks']) == (3, 1)


class _StoppedError(RuntimeError):
  pass


def _explain(error):
  return str(error) if isinstance(error, _StoppedError) else ''


@pytest.mark.parametrize(
  'error, state, words',
  [
    (_StoppedError('no\nnumber \x1b[2J'), 'stopped', r'no number \x1b[2J'),
    (KeyError('a'), 'failed', "KeyError: 'a'"),
    (signals.Interrupted('SIGTERM'), 'interrupted', None),
    (KeyboardInterrupt(), 'interrupted', None),
  ],
)
def test_how_it_ended(tmp_path, error, state, words):
  writer = _writer(tmp_path, explain=_explain)
  with pytest.raises(type(error)), writer:
    writer.begin(status.TRAINING)
    raise error
  found = _read(tmp_path)
  assert (found['state'], found['error']) == (state, words)


def test_counts_go_on(tmp_path):
  def start(step, ends=True):
    with _writer(tmp_path) as writer:
      writer.begin(status.TRAINING, step=step, total_steps=9)
      writer.write(rollbacks=writer.status.rollbacks + 1)
      if not ends:
        raise KeyboardInterrupt
    return _read(tmp_path)

  for restarts, step in enumerate((0, 3, 3, 7)):
    with pytest.raises(KeyboardInterrupt):
      start(step, ends=False)
    found = _read(tmp_path)
    assert (found['restarts'], found['rollbacks']) == (restarts, restarts + 1)
  # All is trained, but not all was done.
  assert start(9)['restarts'] == 4
  # Whoever looks once more continues nothing.
  assert start(9)['restarts'] == 4
  # Without a checkpoint it is another run.
  assert start(0)['restarts'] == 0
  assert _read(tmp_path)['rollbacks'] == 1


def test_where_a_run_before_left_nothing(tmp_path):
  writer = _writer(tmp_path)
  writer.begin(status.TRAINING, step=5, total_steps=9)
  assert _read(tmp_path)['restarts'] == 1


def test_the_trainer_copies_the_last_evaluation(tmp_path):
  trainer = _writer(tmp_path)
  trainer.begin(status.TRAINING)
  evaluator = _writer(tmp_path, status.EVALUATOR)
  with locks.acquire(model_dirs.ModelDir(str(tmp_path)), force=False):
    evaluator.begin(status.WAITING)
    evaluator.write(state=status.EVALUATING, last_evaluation=_evaluation(5))
    # It does not touch what a trainer writes who is there.
    assert _read(tmp_path)['last_evaluation'] is None
    assert _read(tmp_path, 'eval/status.json')['state'] == 'evaluating'
    trainer.write(step=8)
    assert _read(tmp_path)['last_evaluation'] == _evaluation(5)
    # An older one does not replace it.
    trainer.write(last_evaluation=_evaluation(9, second=1))
    assert _read(tmp_path)['last_evaluation'] == _evaluation(9, second=1)
  # The trainer is gone now.
  evaluator.write(last_evaluation=_evaluation(10, second=2))
  found = _read(tmp_path)
  assert found['last_evaluation'] == _evaluation(10, second=2)
  assert (found['state'], found['step']) == ('training', 8)


def test_an_evaluator_remembers(tmp_path):
  _writer(tmp_path, status.EVALUATOR).write(
    state=status.EVALUATING, last_evaluation=_evaluation(5)
  )
  writer = _writer(tmp_path, status.EVALUATOR)
  writer.begin(status.WAITING)
  assert _read(tmp_path, 'eval/status.json')['last_evaluation'] == _evaluation(
    5
  )


def test_a_lost_lock_writes_nothing(tmp_path):
  lost = []

  def verify():
    if lost:
      raise locks.LockLostError('taken')

  with (
    pytest.raises(locks.LockLostError),
    _writer(tmp_path, verify=verify) as w,
  ):
    w.begin(status.TRAINING)
    before = (tmp_path / 'status.json').read_text()
    lost.append(True)
    w.write(step=1)
  assert (tmp_path / 'status.json').read_text() == before


def test_storage_that_fails_stops_nothing(tmp_path, monkeypatch, caplog):
  class Failing(model_dirs.ModelDir):
    is_full = True

    def write(self, name, text):
      if self.is_full:
        raise tf.errors.ResourceExhaustedError(None, None, 'No space left')
      super().write(name, text)

  monkeypatch.setattr(logging.get_absl_logger(), 'propagate', True)
  model_dir = Failing(str(tmp_path))
  writer = status.Writer(model_dir)
  with caplog.at_level(python_logging.WARNING):
    writer.begin(status.TRAINING)
    writer.write(step=1)
  assert [r.getMessage() for r in caplog.records] == [
    f'WARNING: cannot write {tmp_path}/status.json: No space left'
  ]
  model_dir.is_full = False
  writer.write(step=2)
  assert _read(tmp_path)['step'] == 2


@pytest.mark.parametrize(
  'text, expected',
  [
    ('a\nb\t c', 'a b c'),
    ('x' * 600, 'x' * 497 + '...'),
    ('\u202e\x1b[1m\x07', r'\u202e\x1b[1m\x07'),
    ('gs://bucket/a', 'gs://bucket/a'),
    ('https://me:pass@host/a?x=1', 'https://***@host/a?x=1'),
    ('Authorization: Bearer ya29.a0Af_x-y', 'Authorization: Bearer ***'),
    ('url?X-Goog-Signature=abc&y=1', 'url?X-Goog-Signature=***&y=1'),
    ("{'api_key': 'abc', 'b': 1}", "{'api_key': '***', 'b': 1}"),
    ('AWS_SECRET_ACCESS_KEY=abc', 'AWS_SECRET_ACCESS_KEY=***'),
    ('Key dense/kernel not found: token', 'Key dense/kernel not found: token'),
  ],
)
def test_text_is_one_line_and_holds_no_secrets(text, expected):
  assert safe_text.for_files(text) == expected


# --- Training -----------------------------------------------------------------


def _train(steps, hook, after_step=lambda step: None):
  with tf.Graph().as_default():
    update = tf1.assign_add(tf1.train.get_or_create_global_step(), 1)
    stop = tf1.train.StopAtStepHook(steps)
    with tf1.train.SingularMonitoredSession([stop, *hook]) as session:
      while not session.should_stop():
        after_step(session.run(update))


@pytest.mark.parametrize('logs_too', [False, True])
def test_status_hook(tmp_path, monkeypatch, caplog, logs_too):
  monkeypatch.setattr(logging.get_absl_logger(), 'propagate', True)
  monkeypatch.setattr(status, 'LOCAL_SECONDS', 0.0)
  writer = _writer(tmp_path)
  run = types.SimpleNamespace(total_steps=110, batch_size=64)
  stage = types.SimpleNamespace(number=2)
  seen = []
  hook = run_hooks.StatusHook(
    writer, run, stage, logs=logs_too, clock=lambda: 0.5 * len(seen)
  )

  def after_step(step):
    seen.append(_read(tmp_path))

  with caplog.at_level(python_logging.INFO, logger='absl'):
    _train(10, [hook], after_step)
  # The file is that after the step: hooks come before the session returns.
  assert [found['step'] for found in seen] == list(range(1, 11))
  assert all(found['stage'] == 2 for found in seen)
  assert seen[0]['images_per_second'] is None
  last = seen[-1]
  # 2 steps a second, of 64 images; 100 steps are left.
  assert last['images_per_second'] == 128
  assert last['seconds_left'] == 50
  lines = [r.getMessage() for r in caplog.records if r.name == 'absl']
  assert len(lines) == (10 if logs_too else 0)
  if lines:
    assert lines[0] == 'stage 2  step 1 of 110'
    assert lines[9] == 'stage 2  step 10 of 110  128 images/s  0:50 left'


def test_speed_is_that_of_late():
  clock = iter([0.0, 10.0, 100.0, 110.0, 171.0]).__next__
  speed = run_hooks.Speed(clock)
  assert speed.at(1) is None
  assert speed.at(11) == 10 / 10
  # It was suspended, which counts for a minute.
  assert speed.at(12) == 1 / 90
  assert speed.at(32) == 21 / 100
  assert speed.at(215) == 183 / 61


def test_saves_are_told_and_need_the_lock(tmp_path):
  writer = _writer(tmp_path)
  lock = locks.acquire(model_dirs.ModelDir(str(tmp_path)), force=False)
  kept = []
  keeper = types.SimpleNamespace(
    before_save=lambda step: kept.append(('before', step)),
    after_save=lambda step: kept.append(('after', step)),
  )
  listener = run_hooks.SaveListener(lock, writer, str(tmp_path), keeper)
  saver = tf1.train.CheckpointSaverHook(
    str(tmp_path), save_steps=3, listeners=[listener]
  )

  def after_step(step):
    if step == 5:
      os.remove(tmp_path / 'trainer.lock')

  with pytest.raises(locks.LockLostError):
    _train(9, [saver], after_step)
  found = writer.status.last_checkpoint
  assert found['path'] == tf.train.latest_checkpoint(str(tmp_path))
  assert found['step'] == 3
  assert timestamps.age(found['time']) < 10
  # A checkpoint that is not saved is none.
  assert kept == [
    (when, step) for step in (0, 3) for when in ('before', 'after')
  ]
  lock.release()


# --- Kills --------------------------------------------------------------------


def _write_all_the_time(path):
  writer = _writer(path)
  writer.begin(status.TRAINING)
  step = 0
  while True:
    step += 1
    writer.write(step=step, error='x' * 5000)


def test_always_valid_also_after_kill_9(tmp_path):
  for _ in range(5):
    process = _FORK.Process(target=_write_all_the_time, args=(tmp_path,))
    process.start()
    steps = set()
    # Each of them was read while the next was written, or close to it.
    while len(steps) < 20:
      assert process.is_alive()
      if (tmp_path / 'status.json').exists():
        steps.add(_read(tmp_path)['step'])
    process.kill()
    process.join()
    assert _read(tmp_path)['state'] == 'training'


# --- In words -----------------------------------------------------------------


def _show(path, capsys):
  code = status_report.show(str(path))
  out, err = capsys.readouterr()
  assert (out + err).replace('\n', '').isprintable()
  return code, out + err


def _write(path, name=status.TRAINING, **fields):
  """Writes a status file of a process that is here."""
  found = {
    'state': status.TRAINING,
    'step': 30,
    'total_steps': 40,
    'stage': 2,
    'images_per_second': 812.5,
    'seconds_left': 3661,
    'last_checkpoint': {
      'path': '/m/ckpt-20',
      'step': 20,
      'time': timestamps.now(),
    },
    'last_evaluation': {'top_1': 0.5, 'step': 20, 'time': timestamps.now()},
    'started': timestamps.now(),
    'updated': timestamps.now(),
    **vars(processes.this_process()),
    **fields,
  }
  (path / name).parent.mkdir(exist_ok=True)
  (path / name).write_text(json.dumps(found))


def _ago(seconds):
  return time.strftime(
    '%Y-%m-%dT%H:%M:%S+00:00', time.gmtime(time.time() - seconds)
  )


def test_running(tmp_path, capsys):
  _write(tmp_path, status.TRAINER)
  code, text = _show(tmp_path, capsys)
  assert code == 10
  lines = [re.split(r'  +', line, maxsplit=1) for line in text.splitlines()]
  found = dict(lines)
  assert found['state'] == 'training'
  assert found['stage'] == '2'
  assert found['step'] == '30 of 40 (75.0%)'
  assert found['speed'] == '812 images/s, 1:01:01 left'
  assert re.fullmatch(r'step 20, \d s ago: /m/ckpt-20', found['checkpoint'])
  assert re.fullmatch(r'step 20, \d s ago: top-1 50.00%', found['evaluation'])
  assert (
    found['so far'] == '0 restarts, 0 batches skipped, 0 rollbacks, 0 retries'
  )
  assert f'process {os.getpid()} on {socket.gethostname()}' in found['process']


@pytest.mark.parametrize(
  'fields, code, words',
  [
    ({'state': 'done'}, 0, 'done'),
    ({'state': 'interrupted'}, 11, 'interrupted'),
    ({'state': 'stopped', 'error': 'not a number'}, 1, 'not a number'),
    ({'state': 'failed', 'error': 'KeyError: 1'}, 1, 'KeyError: 1'),
    ({'state': 'evaluating'}, 10, 'evaluating'),
    ({'state': 'what?'}, 1, 'what?'),
    # Killed on this machine; one with another's number; on another machine.
    ({'pid': 2**30}, 11, 'was it killed?'),
    ({'birth': '1'}, 11, 'was it killed?'),
    ({'host': 'far-away', 'updated': 720}, 11, 'for 12 min: was it k'),
    ({'host': 'far-away', 'updated': 'never'}, 11, 'unknown time: was it k'),
    ({'host': 'far-away', 'updated': 300}, 10, '5 min ago'),
    ({'updated': 720}, 10, 'no news for 12 min: is it suspended?'),
  ],
)
def test_exit_codes(tmp_path, capsys, fields, code, words):
  if isinstance(seconds := fields.get('updated'), int):
    fields = {**fields, 'updated': _ago(seconds)}
  _write(tmp_path, status.TRAINER, **fields)
  found, text = _show(tmp_path, capsys)
  assert found == code
  assert words in text


def test_what_cannot_be_is_not_told(tmp_path, capsys):
  # Of whoever has had another idea of the run.
  _write(tmp_path, status.TRAINER, step=179, total_steps=140)
  _, text = _show(tmp_path, capsys)
  assert re.search(r'^step +179$', text, re.MULTILINE)
  assert '140' not in text


def test_an_evaluation_says_of_what(tmp_path, capsys):
  entry = {
    'top_1': 0.5,
    'step': 20,
    'time': timestamps.now(),
    'data': 'digits test',
  }
  _write(tmp_path, status.TRAINER, last_evaluation=entry)
  _, text = _show(tmp_path, capsys)
  assert text.count(': top-1 50.00% on digits test\n') == 1


@pytest.mark.parametrize('heartbeat, code', [(10, 10), (130, 11)])
def test_signs_of_life_of_another_machine(tmp_path, capsys, heartbeat, code):
  # Its step takes longer than it takes to give signs of life.
  _write(tmp_path, status.TRAINER, host='far-away', updated=_ago(300))
  lock = {**vars(processes.this_process()), 'host': 'far-away', 'since': ''}
  (tmp_path / 'trainer.lock').write_text(
    json.dumps({**lock, 'heartbeat': _ago(heartbeat)})
  )
  assert _show(tmp_path, capsys)[0] == code


def test_no_run(tmp_path, capsys):
  for path in (tmp_path, tmp_path / 'none'):
    code, text = _show(path, capsys)
    assert code == 2
    assert 'status.json' in text and text.count('\n') == 1
  (tmp_path / 'status.json').mkdir()
  code, text = _show(tmp_path, capsys)
  assert code == 2
  assert 'cannot be read' in text and text.count('\n') == 1


@pytest.mark.parametrize(
  'trainer, evaluator, code',
  [
    ({}, {'state': 'waiting'}, 10),
    ({'state': 'done'}, {'state': 'evaluating'}, 10),
    ({'state': 'done'}, {'state': 'evaluating', 'pid': 2**30}, 0),
    ({'state': 'done'}, {'state': 'done'}, 0),
    ({'state': 'interrupted'}, {'state': 'waiting'}, 11),
    ({'state': 'stopped'}, {'state': 'waiting'}, 1),
    (None, {'state': 'waiting'}, 10),
    (None, {'state': 'done'}, 0),
  ],
)
def test_trainer_and_evaluator(tmp_path, capsys, trainer, evaluator, code):
  if trainer is not None:
    _write(tmp_path, status.TRAINER, **trainer)
  _write(tmp_path, status.EVALUATOR, **evaluator)
  found, text = _show(tmp_path, capsys)
  assert found == code
  assert evaluator['state'] in text
  assert ('evaluator' in text) == (trainer is not None)


@pytest.mark.parametrize(
  'value', [None, [], {}, '\x1b[2J\n', -1, 10**400, 1e999, float('nan'), True]
)
def test_whatever_stands_there(tmp_path, capsys, value):
  names = list(status.Status.__dataclass_fields__)
  for name in names:
    _write(tmp_path, status.TRAINER, **{name: value})
    _show(tmp_path, capsys)
  everything = {name: value for name in names}
  _write(tmp_path, status.TRAINER, **everything)
  _show(tmp_path, capsys)
  nested = {name: value for name in ('step', 'time', 'path', 'top_1')}
  _write(
    tmp_path,
    status.TRAINER,
    last_checkpoint=nested,
    last_evaluation=nested,
  )
  _show(tmp_path, capsys)


def test_answers_at_once(tmp_path):
  _write(tmp_path, status.TRAINER)
  code = (
    'import sys; from supcon.runs import status_report; '
    'code = status_report.show(sys.argv[1]); '
    'assert "tensorflow" not in sys.modules; sys.exit(code)'
  )
  result = subprocess.run(
    [sys.executable, '-c', code, str(tmp_path)],
    cwd=_ROOT,
    capture_output=True,
    text=True,
  )
  assert result.returncode == 10, result.stderr
  assert 'state       training\n' in result.stdout


# --- log.txt ------------------------------------------------------------------


@pytest.fixture(params=['local', 'remote'])
def log_path(request, tmp_path, monkeypatch):
  if request.param == 'remote':
    monkeypatch.setattr(storage, 'is_remote', lambda path: True)
  return str(tmp_path / 'model' / 'log.txt')


@pytest.fixture(autouse=True)
def _shortened(monkeypatch):
  """As main.py has it: lines of other packages are not shown."""
  handler = logging.get_absl_handler()
  monkeypatch.setattr(handler, 'formatter', handler.formatter)
  monkeypatch.setattr(handler, 'filters', [])
  terminal.shorten()


def _lines(path):
  with tf.io.gfile.GFile(path) as file:
    lines = file.read().splitlines()
  for line in lines:
    assert re.match(r'\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ', line), line
  return [line[len('2026-01-31 12:00:00 ') :] for line in lines]


@pytest.fixture
def logger():
  logger = python_logging.getLogger('status_test')
  logger.setLevel(python_logging.INFO)
  return logger


def test_log_is_appended_to(log_path, logger):
  logger.info('before')
  for number in range(2):
    with log_files.keep(log_path):
      logger.info('line %d', number)
  logger.info('after')
  assert _lines(log_path) == ['line 0', 'line 1']


def test_log_holds_some_of_the_progress_and_no_secrets(log_path, logger):
  with log_files.keep(log_path):
    for step in range(5):
      logger.info('step %d', step, extra=log_files.PROGRESS)
    logger.info('from https://me:pass@host')
  assert _lines(log_path) == ['step 0', 'from https://***@host']


@pytest.mark.parametrize(
  'error, line',
  [
    (signals.Interrupted('SIGTERM'), 'interrupted: SIGTERM'),
    (OSError('no\nspace'), 'stopped: no space'),
    (KeyboardInterrupt(), 'stopped: KeyboardInterrupt'),
  ],
)
def test_log_says_what_ended_it(log_path, error, line):
  with pytest.raises(type(error)), log_files.keep(log_path):
    raise error
  assert _lines(log_path) == [line]


def test_log_is_bounded(log_path, logger, monkeypatch):
  monkeypatch.setattr(log_files, 'MAX_BYTES', 2000)
  monkeypatch.setattr(log_files, 'MAX_REMOTE_BYTES', 2000)
  monkeypatch.setattr(log_files, 'REMOTE_SECONDS', 0.0)
  with log_files.keep(log_path):
    for number in range(200):
      logger.info('line %d', number)
  kept = _lines(f'{log_path}.1') + _lines(log_path)
  assert kept[-1] == 'line 199'
  assert kept == [f'line {n}' for n in range(200 - len(kept), 200)]
  assert 40 < len(kept) < 160
  directory = os.path.dirname(log_path)
  assert len(tf.io.gfile.listdir(directory)) == 2


def test_log_is_flushed(tmp_path, logger):
  path = tmp_path / 'log.txt'
  with log_files.keep(str(path)):
    logger.info('line')
    assert path.read_text().endswith(' line\n')


@pytest.mark.parametrize('path', ['/proc/none/log.txt', '/dev/full'])
def test_a_log_that_cannot_be_written_stops_nothing(path, logger, capsys):
  with log_files.keep(path):
    logger.info('line')
  assert 'Traceback' not in capsys.readouterr().err
