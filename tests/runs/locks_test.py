"""One trainer per model_dir: real processes, real kills, edited files."""

import contextlib
import errno
import json
import multiprocessing
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import pytest
import tensorflow as tf

from supcon.runs import locks
from supcon.runs import model_dirs
from supcon.runs import processes
from supcon.runs import timestamps

# Children have what is imported here, which takes a fresh process seconds.
_FORK = multiprocessing.get_context('fork')


def _acquire(path, force=False):
  return locks.acquire(model_dirs.ModelDir(str(path)), force)


def _read(path):
  return json.loads((path / 'trainer.lock').read_text())


def _write(path, **fields):
  """Leaves the lock of a process that is here, but for some fields."""
  (path / 'trainer.lock').write_text(
    json.dumps(
      {
        'host': socket.gethostname(),
        'pid': os.getppid(),
        'since': '2026-01-31T12:00:00+00:00',
        'heartbeat': timestamps.now(),
        'token': 'another',
        **fields,
      }
    )
  )


@pytest.fixture
def somebody():
  """Another process of this machine."""
  with subprocess.Popen(['sleep', '60']) as process:
    yield process
    process.kill()


def test_is_there_as_long_as_it_is_held(tmp_path):
  path = tmp_path / 'a' / 'b'
  with _acquire(path) as lock:
    lock.verify()
    found = _read(path)
    assert found['host'] == socket.gethostname()
    assert found['pid'] == os.getpid()
    assert 0 <= timestamps.age(found['since']) < 10
    assert locks.read(str(path)).process == processes.this_process()
  assert list(path.iterdir()) == []
  with pytest.raises(RuntimeError), _acquire(path):
    raise RuntimeError
  assert list(path.iterdir()) == []


def test_refuses_and_says_who_is_there(tmp_path, somebody):
  _write(tmp_path, pid=somebody.pid)
  before = (tmp_path / 'trainer.lock').read_text()
  with pytest.raises(ValueError) as error:
    _acquire(tmp_path)
  message = str(error.value)
  for part in (
    f'--model_dir={tmp_path}',
    f'process {somebody.pid} on {socket.gethostname()}',
    'since 2026-01-31T12:00:00+00:00',
    '--force',
  ):
    assert part in message
  assert '\n' not in message
  assert (tmp_path / 'trainer.lock').read_text() == before


def test_force_takes_it(tmp_path, somebody):
  _write(tmp_path, pid=somebody.pid)
  with _acquire(tmp_path, force=True):
    assert _read(tmp_path)['pid'] == os.getpid()


@pytest.mark.parametrize('ends', ['killed', 'zombie'])
def test_the_dead_keep_nobody_out(tmp_path, somebody, ends):
  _write(tmp_path, pid=somebody.pid)
  somebody.kill()
  if ends == 'killed':
    somebody.wait()
  else:
    os.waitid(os.P_PID, somebody.pid, os.WEXITED | os.WNOWAIT)
  _acquire(tmp_path).release()


def test_a_process_that_has_the_number_of_another(tmp_path, somebody):
  process = processes.Process(
    socket.gethostname(),
    somebody.pid,
    processes.this_process().space,
    processes.birth_of(somebody.pid),
  )
  assert process.is_there()
  fields = {'pid': process.pid, 'space': process.space}
  _write(tmp_path, birth=process.birth, **fields)
  with pytest.raises(ValueError, match='in use'):
    _acquire(tmp_path)
  _write(tmp_path, birth=str(int(process.birth) - 1), **fields)
  _acquire(tmp_path).release()


def _uptime():
  with open('/proc/uptime') as file:
    return float(file.read().split()[0])


@pytest.mark.parametrize('name', ['plain', 'a) Z (b 1 2'])
def test_birth_is_when_a_process_began(name):
  # Whatever it calls itself: the name stands before what is read.
  before = _uptime()
  code = (
    'import sys; open("/proc/self/comm", "w").write(sys.argv[1]); '
    'print("named", flush=True); sys.stdin.read()'
  )
  with subprocess.Popen(
    [sys.executable, '-S', '-c', code, name],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
  ) as process:
    assert process.stdout.readline() == b'named\n'
    found = processes.Process(socket.gethostname(), process.pid)
    assert found.is_there()
    birth = int(processes.birth_of(process.pid)) / os.sysconf('SC_CLK_TCK')
    assert before - 0.1 <= birth <= _uptime() + 0.1
    process.stdin.close()


@pytest.mark.parametrize(
  'elsewhere', [{'host': 'far-away'}, {'space': 'another boot or container'}]
)
def test_of_other_machines_signs_of_life_count(tmp_path, elsewhere):
  def heard_of(seconds):
    then = time.time() - seconds
    utc = time.strftime('%Y-%m-%dT%H:%M:%S+00:00', time.gmtime(then))
    # No process of this machine has that number.
    _write(tmp_path, pid=2**30, heartbeat=utc, **elsewhere)

  heard_of(100)
  with pytest.raises(ValueError, match=r'heard of 10\d s ago.*after 120 s'):
    _acquire(tmp_path)
  heard_of(-1000)  # A clock that is wrong.
  with pytest.raises(ValueError, match='heard of 0 s ago'):
    _acquire(tmp_path)
  heard_of(130)
  _acquire(tmp_path).release()
  _write(tmp_path, heartbeat='soon', **elsewhere)
  _acquire(tmp_path).release()


@pytest.mark.parametrize(
  'text',
  ['', '{', '[]', '"x"', '{"host": 1}', '[' * 100_000, '\0', '{"pid": 1e999}'],
)
def test_a_damaged_file_keeps_nobody_out(tmp_path, text):
  (tmp_path / 'trainer.lock').write_text(text)
  assert locks.read(str(tmp_path)) is None
  _acquire(tmp_path).release()


def test_names_of_others_do_not_reach_the_terminal(tmp_path):
  _write(tmp_path, host='\x1b[2J\n\u202e', since='\x1b[2J')
  with pytest.raises(ValueError) as error:
    _acquire(tmp_path)
  assert str(error.value).isprintable()
  assert r'\x1b[2J\n' in str(error.value)


def test_gives_signs_of_life(tmp_path, monkeypatch):
  monkeypatch.setattr(locks, 'SETTLE_SECONDS', 0.05)
  monkeypatch.setattr(locks, 'RENEW_SECONDS', 0.05)
  with _acquire(tmp_path):
    since = _read(tmp_path)['since']
    _wait_until(lambda: _read(tmp_path)['heartbeat'] > since)
    assert _read(tmp_path)['since'] == since


@pytest.mark.parametrize('is_gone', [False, True])
def test_whoever_has_lost_it_notices(tmp_path, monkeypatch, is_gone):
  monkeypatch.setattr(locks, 'SETTLE_SECONDS', 0.05)
  lock = _acquire(tmp_path)
  if is_gone:
    os.remove(tmp_path / 'trainer.lock')
  else:
    _write(tmp_path, host='far-away')
  with pytest.raises(locks.LockLostError, match='another trainer'):
    lock.verify()
  time.sleep(0.2)
  lock.release()
  # What is there now is left alone.
  assert (tmp_path / 'trainer.lock').exists() != is_gone
  if not is_gone:
    assert _read(tmp_path)['host'] == 'far-away'
    with pytest.raises(ValueError, match='far-away'):
      _acquire(tmp_path)


def test_storage_that_fails_is_no_other_trainer(tmp_path, monkeypatch):
  lock = _acquire(tmp_path)
  with monkeypatch.context() as patch:

    def fail(path):
      raise tf.errors.UnavailableError(None, None, 'not now')

    patch.setattr(locks, 'read', fail)
    lock.verify()
  lock.verify()
  lock.release()


def test_says_where_nothing_can_be_written(tmp_path):
  in_the_way = tmp_path / 'file'
  in_the_way.write_text('')
  with pytest.raises(ValueError, match=f'--model_dir={in_the_way} cannot be'):
    _acquire(in_the_way)


def test_reads_without_tensorflow(tmp_path):
  with _acquire(tmp_path):
    code = (
      'import sys; from supcon.runs import locks; '
      'print(locks.read(sys.argv[1]).is_alive(), "tensorflow" in sys.modules)'
    )
    result = subprocess.run(
      [sys.executable, '-c', code, str(tmp_path)],
      cwd=pathlib.Path(__file__).resolve().parents[2],
      capture_output=True,
      text=True,
    )
  assert result.stdout == 'True False\n', result.stderr


def test_object_stores(monkeypatch):
  monkeypatch.setattr(locks, 'SETTLE_SECONDS', 0.1)
  path = 'ram://locks_test/model'
  lock = _acquire(path)
  assert locks.read(path).process == processes.this_process()
  lock.release()
  assert locks.read(path) is None


# --- Several processes --------------------------------------------------------


def _wait_until(condition):
  end = time.monotonic() + 30
  while not condition():
    assert time.monotonic() < end
    time.sleep(0.01)


def _compete(path, barrier, results, is_over):
  barrier.wait()
  try:
    lock = _acquire(path)
  except ValueError as error:
    results.put(str(error))
    return
  results.put('won')
  is_over.wait()
  lock.release()


def _refuse(descriptor, operation):
  raise OSError(errno.ENOTSUP, 'what a file system says that has no locks')


@pytest.mark.parametrize('knows_turns', [True, False])
@pytest.mark.parametrize('is_stale', [False, True])
def test_of_those_who_begin_together_one_wins(
  tmp_path, monkeypatch, knows_turns, is_stale
):
  count, rounds = 6, 5 if knows_turns else 2
  if not knows_turns:
    monkeypatch.setattr(locks.fcntl, 'flock', _refuse)
    monkeypatch.setattr(locks, 'SETTLE_SECONDS', 0.5)
  for number in range(rounds):
    path = tmp_path / str(number)
    path.mkdir()
    if is_stale:
      _write(path, pid=2**30)
    barrier, results, is_over = (
      _FORK.Barrier(count),
      _FORK.Queue(),
      _FORK.Event(),
    )
    processes = [
      _FORK.Process(target=_compete, args=(path, barrier, results, is_over))
      for _ in range(count)
    ]
    for process in processes:
      process.start()
    found = [results.get(timeout=30) for _ in processes]
    is_over.set()
    for process in processes:
      process.join()
    assert found.count('won') == 1, found
    assert all('another trainer' in each for each in found if each != 'won')


def _hold(path, connection):
  """Acquires, and verifies and writes whenever it is asked to."""
  locks.RENEW_SECONDS = locks.SETTLE_SECONDS = 0.02
  lock = _acquire(path)
  connection.send('ready')
  while connection.recv():
    try:
      lock.verify()
      connection.send('')
    except locks.LockLostError as error:
      connection.send(str(error))


@contextlib.contextmanager
def _holder(path):
  here, there = _FORK.Pipe()
  process = _FORK.Process(target=_hold, args=(path, there))
  process.start()
  try:
    assert here.recv() == 'ready'
    yield process, here
  finally:
    process.kill()
    process.join()


def test_kill_9(tmp_path):
  with _holder(tmp_path) as (process, _):
    with pytest.raises(ValueError, match=f'process {process.pid} '):
      _acquire(tmp_path)
    process.kill()
    process.join()
    _acquire(tmp_path).release()


def test_one_that_was_suspended(tmp_path):
  with _holder(tmp_path) as (process, connection):
    connection.send('verify')
    assert connection.recv() == ''
    os.kill(process.pid, signal.SIGSTOP)
    time.sleep(0.1)
    with pytest.raises(ValueError, match='--force'):
      _acquire(tmp_path)
    with _acquire(tmp_path, force=True) as lock:
      mine = _read(tmp_path)['token']
      connection.send('verify')
      os.kill(process.pid, signal.SIGCONT)
      assert f'process {os.getpid()} on' in connection.recv()
      time.sleep(0.1)
      assert _read(tmp_path)['token'] == mine
      lock.verify()
