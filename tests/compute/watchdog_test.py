"""Tests of supcon.compute.watchdog."""

import socket
import threading

import pytest
import tensorflow as tf

from supcon.compute import watchdog
from supcon.runs import model_dirs


def test_is_there():
  other = socket.create_server(('127.0.0.1', 0))
  address = f'127.0.0.1:{other.getsockname()[1]}'
  assert watchdog.is_there(address, 1.0)
  other.close()
  assert not watchdog.is_there(address, 1.0)


# --- What they tell each other ------------------------------------------------


@pytest.fixture(name='records')
def _records(tmp_path):
  """Those of workers 0 and 1."""
  model_dir = model_dirs.ModelDir(str(tmp_path))
  return [watchdog.Records(model_dir, index) for index in (0, 1)]


def test_the_others_are_told(records):
  chief, other = records
  assert (other.saved(0), other.is_done(0)) == (-1, False)
  chief.tell(saved=7)
  assert (other.saved(0), other.is_done(0)) == (7, False)
  chief.tell(is_done=True)
  assert (other.saved(0), other.is_done(0)) == (7, True)
  assert not chief.is_done(1)


def test_a_worker_that_begins_again_is_not_done(records):
  chief, other = records
  chief.tell(saved=7, is_done=True)
  chief.clear()
  assert (other.saved(0), other.is_done(0)) == (-1, False)
  chief.clear()  # Nothing is there.


@pytest.mark.parametrize('text', ['', '{"is_do', '[1]'])
def test_what_is_half_there_says_nothing(records, tmp_path, text):
  (tmp_path / 'worker_0.json').write_text(text)
  assert (records[1].saved(0), records[1].is_done(0)) == (-1, False)


def test_who_cannot_write_goes_on(tmp_path):
  nowhere = model_dirs.ModelDir(str(tmp_path / 'nowhere'))
  records = watchdog.Records(nowhere, 1)
  records.clear()
  records.tell(is_done=True)
  assert not records.is_done(1)


# --- Whether they are there ---------------------------------------------------

_OTHER = 'host1:2222'


class _Time:
  """Time that passes only where a test says so.

  Attributes:
    now: In seconds.
  """

  def __init__(self):
    self.now = 0.0
    self._rounds = threading.Semaphore(0)
    self._is_over = threading.Semaphore(0)

  def clock(self):
    return self.now

  def sleep(self, seconds):
    """What ends a round of the watchdog's thread."""
    del seconds
    self.round_is_over()
    self._rounds.acquire()

  def round_is_over(self):
    self._is_over.release()

  def wait(self):
    """Waits for the end of a round."""
    assert self._is_over.acquire(timeout=60)

  def tick(self, seconds=1.0):
    """Has time pass, and the watchdog look."""
    self.now += seconds
    self._rounds.release()
    self.wait()


class TestWatchdog:
  """It looks every second, and is patient for three of them."""

  @pytest.fixture(autouse=True)
  def _two_workers(self, records):
    self.mine, self.theirs = records
    self.is_there = True
    self.time = _Time()
    self.messages = []

    def end(message):
      self.messages.append(message)
      self.time.round_is_over()

    self.watchdog = watchdog.Watchdog(
      {1: _OTHER},
      end,
      probe_seconds=1.0,
      probe=lambda address, _: self.is_there,
      clock=self.time.clock,
      sleep=self.time.sleep,
    )
    self.watchdog.records = self.mine

  def see(self):
    """Waits for the first look."""
    self.time.wait()
    assert self.watchdog.has_seen(0)  # This one.
    assert self.watchdog.has_seen(1) == self.is_there

  def test_says_who_is_gone(self):
    with self.watchdog.guarding():
      self.see()
      self.is_there = False
      for _ in range(3):
        self.time.tick()
        assert not self.messages
      self.time.tick()
    (message,) = self.messages
    assert message.startswith(f'worker 1 ({_OTHER}) is gone')

  def test_a_worker_that_comes_back_was_not_gone(self):
    with self.watchdog.guarding():
      self.see()
      for _ in range(4):
        self.is_there = False
        self.time.tick(3)
        self.is_there = True
        self.time.tick()
    assert not self.messages

  def test_who_is_done_is_not_lost(self):
    with self.watchdog.guarding():
      self.see()
      self.theirs.tell(is_done=True)
      self.is_there = False
      self.time.tick(1000)
      # Unless it has begun again, and not for the end.
      self.theirs.clear()
      assert not self.messages
      self.time.tick()
    assert len(self.messages) == 1

  def test_others_may_end_when_they_are_not_needed(self):
    with self.watchdog.guarding():
      self.see()
    self.is_there = False
    self.time.tick(10)
    # Also while this one waits for what they have left, but not for ever.
    with self.watchdog.guarding(patience=20.0):
      self.time.tick(10)
      assert not self.messages
      self.time.tick(1)
      assert len(self.messages) == 1

  def test_waits_for_those_who_have_not_begun(self):
    self.is_there = False
    with self.watchdog.guarding():
      self.see()
      self.time.tick(1000)
    assert not self.messages

  def test_does_not_mind_those_who_are_there(self):
    with self.watchdog.guarding():
      self.see()
      self.time.tick(1000)
    assert not self.messages

  def test_explains_errors_of_others(self):
    error = tf.errors.UnavailableError(None, None, 'Socket closed')
    with pytest.raises(tf.errors.UnavailableError):
      with self.watchdog.guarding():
        raise error
    self.is_there = False
    with pytest.raises(
      watchdog.LostWorkerError, match='worker 1 .* is gone'
    ) as lost:
      with self.watchdog.guarding():
        raise error
    assert not isinstance(lost.value, watchdog.EndedWorkerError)
    self.theirs.tell(is_done=True)
    with pytest.raises(watchdog.EndedWorkerError):
      with self.watchdog.guarding():
        raise error


class TestParting:
  """A worker that is done waits for those who are not, as long as they live."""

  @pytest.fixture(autouse=True)
  def _two_workers(self, records):
    self.mine, self.theirs = records
    self.now = 0.0
    self.events = {}  # {time: what happens then}
    self.is_there = True
    self.watchdog = watchdog.Watchdog(
      {1: _OTHER},
      probe_seconds=1.0,
      probe=lambda address, _: self.is_there,
      clock=lambda: self.now,
      sleep=self.sleep,
    )
    self.watchdog.records = self.mine

  def sleep(self, seconds):
    self.now += seconds
    for at in [at for at in self.events if at <= self.now]:
      self.events.pop(at)()

  def die(self):
    self.is_there = False

  def end(self):
    self.theirs.tell(is_done=True)
    self.die()

  def test_a_slow_save_is_waited_for(self, warnings):
    self.events = {5000.0: self.end}
    self.watchdog.part()
    assert self.theirs.is_done(0)
    assert 5000 <= self.now < 5001
    assert not warnings

  def test_nobody_waits_for_who_is_done(self, warnings):
    self.end()
    self.watchdog.part()
    assert self.now == 0
    assert not warnings

  def test_nobody_waits_for_who_has_died(self, warnings):
    self.events = {10.0: self.die}
    self.watchdog.part()
    assert 13 <= self.now < 14  # Three probes later.
    (warning,) = warnings
    assert f'worker 1 ({_OTHER}) does not answer; ' in warning

  def test_alone_there_is_nobody_to_wait_for(self):
    watchdog.Watchdog({}).part()
