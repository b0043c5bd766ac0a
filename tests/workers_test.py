"""TF_CONFIG, and how a worker notices that another one is gone."""

import json
import socket
import threading
import time

import pytest
import tensorflow as tf

from supcon import workers

_TWO = {'worker': ['a:1', 'b:2']}


def _read(cluster, kind='worker', index=0):
  config = {'cluster': cluster, 'task': {'type': kind, 'index': index}}
  return workers.read({'TF_CONFIG': json.dumps(config)})


@pytest.mark.parametrize(
  'environment',
  [
    {},
    {'TF_CONFIG': ''},
    {'TF_CONFIG': '{}'},
    # Some platforms name the only machine that there is.
    {
      'TF_CONFIG': '{"cluster": {"worker": ["a:1"]}, '
      '"task": {"type": "worker", "index": 0}}'
    },
  ],
)
def test_one_machine_is_no_cluster(environment):
  assert workers.read(environment) is None


def test_workers_are_numbered_in_their_order():
  for index in (0, 1):
    cluster = _read(_TWO, index=index)
    assert cluster.addresses == ('a:1', 'b:2')
    assert cluster.index == index
    assert cluster.others == {1 - index: ('a:1', 'b:2')[1 - index]}


def test_the_chief_comes_first():
  jobs = {'worker': ['a:1', 'b:2'], 'chief': ['c:3']}
  assert _read(jobs, 'chief').index == 0
  second = _read(jobs, 'worker', 1)
  assert second.addresses == ('c:3', 'a:1', 'b:2')
  assert second.index == 2
  assert second.others == {0: 'c:3', 1: 'a:1'}


@pytest.mark.parametrize(
  'config, words',
  [
    ('{"cluster": ', ['cannot be read', '"worker": ["host0:2222"']),
    ('[]', ['cannot be read']),
    ({'cluster': _TWO}, ["''", 'chief or worker']),
    (
      {'cluster': _TWO, 'task': {'type': 'evaluator'}},
      ["'evaluator'", '--mode=eval'],
    ),
    (
      {'cluster': {**_TWO, 'ps': ['c:3']}, 'task': {'type': 'worker'}},
      ["'ps'"],
    ),
    (
      {'cluster': _TWO, 'task': {'type': 'worker', 'index': 2}},
      ['worker 2', 'lists 2', 'worker 0'],
    ),
    ({'cluster': _TWO, 'task': {'type': 'chief'}}, ['chief 0', 'lists 0']),
    (
      {'cluster': {'worker': ['a', 'b:2']}, 'task': {'type': 'worker'}},
      ["'a'", 'host:port'],
    ),
    (
      {'cluster': {'chief': ['a:1', 'b:2']}, 'task': {'type': 'chief'}},
      ['several chiefs'],
    ),
  ],
)
def test_says_what_is_wrong(config, words):
  text = config if isinstance(config, str) else json.dumps(config)
  with pytest.raises(ValueError) as error:
    workers.read({'TF_CONFIG': text})
  message = str(error.value)
  assert '\n' not in message and message.startswith('TF_CONFIG')
  for word in words:
    assert word in message


class _Other:
  """Another worker: a socket that listens until it is closed."""

  def __init__(self):
    self._socket = socket.create_server(('127.0.0.1', 0), backlog=100)
    self.address = f'127.0.0.1:{self._socket.getsockname()[1]}'

  def close(self):
    self._socket.close()


def test_is_there():
  other = _Other()
  assert workers.is_there(other.address, 1.0)
  other.close()
  assert not workers.is_there(other.address, 1.0)


class TestWatchdog:
  @pytest.fixture(autouse=True)
  def _two_workers(self):
    self.other = _Other()
    self.messages = []
    self.ended = threading.Event()

    def end(message):
      self.messages.append(message)
      self.ended.set()

    self.watchdog = workers.Watchdog({1: self.other.address}, end, 0.02)
    yield
    self.other.close()

  def wait_for_the_other(self):
    assert self.watchdog.has_seen(0)  # This one.
    while not self.watchdog.has_seen(1):
      time.sleep(0.01)

  def test_says_who_is_gone(self):
    with self.watchdog.guarding():
      self.wait_for_the_other()
      self.other.close()
      assert self.ended.wait(5)
    (message,) = self.messages
    assert message.startswith(f'worker 1 ({self.other.address}) is gone')

  def test_others_may_end_when_they_are_not_needed(self):
    with self.watchdog.guarding():
      self.wait_for_the_other()
    self.other.close()
    assert not self.ended.wait(0.3)
    # Also while this one waits for what they have left, but not for ever.
    with self.watchdog.guarding(patience=2.0):
      assert not self.ended.wait(0.3)
      assert self.ended.wait(5)

  def test_waits_for_those_who_have_not_begun(self):
    self.other.close()
    with self.watchdog.guarding():
      assert not self.ended.wait(0.3)

  def test_does_not_mind_those_who_are_there(self):
    with self.watchdog.guarding():
      self.wait_for_the_other()
      assert not self.ended.wait(0.3)

  def test_explains_errors_of_others(self):
    error = tf.errors.UnavailableError(None, None, 'Socket closed')
    with pytest.raises(tf.errors.UnavailableError):
      with self.watchdog.guarding():
        raise error
    self.other.close()
    with pytest.raises(workers.LostWorkerError, match='worker 1 .* is gone'):
      with self.watchdog.guarding():
        raise error
