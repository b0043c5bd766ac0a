"""Tests of supcon.training.rollbacks."""

import datetime
import json

import pytest

from supcon.runs import model_dirs
from supcon.training import rollbacks


def _read(directory):
  return rollbacks.Rollbacks(model_dirs.ModelDir(str(directory)))


def _rollback(checkpoint_step, diverged_step):
  skipped = diverged_step + 1 - checkpoint_step
  return rollbacks.Rollback(
    checkpoint_step, diverged_step, skipped, '2025-01-31T12:00:00+00:00', 'NaN'
  )


def _batches(*steps):
  """Returns which batches steps 0 to 19 take.

  Args:
    *steps: (checkpoint_step, diverged_step) of each rollback.
  """
  records = [_rollback(*each) for each in steps]
  return [step + rollbacks.offset(records, step) for step in range(20)]


def test_without_rollbacks_a_step_takes_its_batch():
  assert _batches() == [*range(20)]


def test_what_led_to_the_divergence_is_skipped():
  # Batches 5 to 7 are left out: steps 5, 6, 7 ... take 8, 9, 10 ...
  assert _batches((5, 7)) == [*range(5), *range(8, 23)]
  assert _batches((0, 0)) == [*range(1, 21)]


def test_rollbacks_add_up():
  # Step 10 diverged at batch 10 + 3; step 9 had been saved.
  assert _batches((5, 7), (9, 10)) == [*range(5), *range(8, 12), *range(14, 25)]


def test_at_the_same_place_more_is_skipped():
  assert _batches((5, 7), (5, 5)) == [*range(5), *range(9, 24)]
  assert _batches((5, 7), (5, 5), (5, 6)) == [*range(5), *range(11, 26)]


def test_an_older_checkpoint_undoes_what_was_said_of_later_steps():
  # Step 10 has batch 10 + 3 + 2 = 15 and diverges, but the checkpoint of step 9
  # is lost: from step 2 on, 16 and so on, without another jump at step 9.
  assert _batches((5, 7), (9, 10), (2, 10)) == [0, 1, *range(16, 34)]


def test_a_batch_at_which_training_diverged_is_never_taken_again():
  steps = [(0, 3), (2, 9), (2, 2), (12, 12), (8, 15)]
  bad = [
    step + rollbacks.offset([_rollback(*each) for each in steps[:count]], step)
    for count, (_, step) in enumerate(steps)
  ]
  taken = _batches(*steps)
  assert not set(bad) & set(taken)
  assert sorted(set(taken)) == taken  # In their order, each once.


def test_until():
  def until(records, step, stop_step):
    return Fake(records).until(step, stop_step)

  class Fake(rollbacks.Rollbacks):
    def __init__(self, records):
      self.all = tuple(_rollback(*each) for each in records)

  assert until([], 3, 20) == 20
  two = [(5, 7), (9, 10)]
  found = [until(two, step, 20) for step in (0, 4, 5, 8, 9, 12)]
  assert found == [5, 5, 9, 9, 20, 20]
  assert until(two, 6, 8) == 8  # A stage ends before.
  assert until(two, 6, 9) == 9
  # What an older checkpoint has undone is no border any more.
  assert until([*two, (2, 10)], 2, 20) == 20
  assert until([*two, (2, 10)], 0, 20) == 2


def test_add_is_written_and_read(tmp_path):
  before = datetime.datetime.now(datetime.timezone.utc)
  first = _read(tmp_path)
  assert (first.all, first.count, first.num_skipped) == ((), 0, 0)
  added = first.add(5, 7, 'the loss is not a finite number')
  assert added == first.all[0]
  first.add(9, 10, 'again')

  again = _read(tmp_path)
  assert again.all == first.all
  assert (again.count, again.num_skipped) == (2, 3 + 2)
  assert [again.offset(step) for step in (4, 5, 8, 9)] == [0, 3, 3, 5]
  written = json.loads((tmp_path / 'rollbacks.json').read_text())
  time = written[0].pop('time')
  assert written[0] == {
    'checkpoint_step': 5,
    'diverged_step': 7,
    'skipped': 3,
    'reason': 'the loss is not a finite number',
  }
  elapsed = datetime.datetime.fromisoformat(time) - before
  assert -1 <= elapsed.total_seconds() < 60


def test_a_worker_writes_nothing(tmp_path):
  worker = _read(tmp_path)
  worker.add(5, 7, 'NaN', is_written=False)
  assert worker.offset(5) == 3
  assert [*tmp_path.iterdir()] == []


def test_a_step_before_the_checkpoint_is_refused(tmp_path):
  with pytest.raises(ValueError, match='from step 4 back to step 5'):
    _read(tmp_path).add(5, 4, 'NaN')


_GOOD = {
  'checkpoint_step': 5,
  'diverged_step': 7,
  'skipped': 3,
  'time': '',
  'reason': '',
}


@pytest.mark.parametrize(
  'content',
  [
    [{**_GOOD, 'skipped': 4}],
    [{**_GOOD, 'checkpoint_step': -1, 'skipped': 9}],
    [{**_GOOD, 'diverged_step': 7.0}],
    [{**_GOOD, 'diverged_step': True}],
    [{**_GOOD, 'more': 1}],
    [{'skipped': 3}],
    [_GOOD, 3],
    [[]],
    {'rollbacks': []},
    7,
    'nothing',
  ],
)
def test_what_is_not_a_list_of_rollbacks_is_refused(tmp_path, content):
  path = tmp_path / 'rollbacks.json'
  path.write_text(json.dumps(content))
  with pytest.raises(
    ValueError, match='rollbacks.json holds no list'
  ) as caught:
    _read(tmp_path)
  assert '\n' not in str(caught.value)


def test_no_json_is_refused(tmp_path):
  (tmp_path / 'rollbacks.json').write_text('[')
  with pytest.raises(ValueError, match='rollbacks.json holds no list'):
    _read(tmp_path)
