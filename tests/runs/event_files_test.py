"""Tests of event_files: what TensorBoard reads, and the same as a table."""

import pytest
from tensorboard.backend.event_processing import event_accumulator
import tensorflow as tf

from supcon.runs import event_files

tf1 = tf.compat.v1


@pytest.fixture(name='directory')
def fixture_directory(tmp_path):
  with tf.Graph().as_default():  # What writes for estimators needs one.
    yield str(tmp_path / 'eval')
  tf1.summary.FileWriterCache.clear()


def _shown(directory):
  """Returns {step: {tag: value}} as TensorBoard has it."""
  events = event_accumulator.EventAccumulator(directory)
  events.Reload()
  rows = {}
  for tag in events.Tags()['scalars']:
    for event in events.Scalars(tag):
      assert tag not in rows.setdefault(event.step, {})
      rows[event.step][tag] = event.value
  return rows


def test_what_is_added_is_what_is_read_and_shown(directory):
  rows = {3: {'loss': 0.5, 'top': 1.0}, 7: {'loss': 0.25}}
  event_files.add(directory, rows)
  assert event_files.read(directory) == rows
  assert _shown(directory) == rows


def test_nothing_is_read_where_nothing_is(directory):
  assert event_files.read(directory) == {}
  assert event_files.restart(directory, 0) == {}
  assert not tf.io.gfile.exists(directory)


def test_a_restart_takes_back_what_is_done_again(directory):
  event_files.add(directory, {step: {'loss': step / 4} for step in range(4)})
  assert event_files.restart(directory, 2) == {
    2: {'loss': 0.5},
    3: {'loss': 0.75},
  }
  event_files.add(directory, {2: {'loss': 9.0}})
  expected = {0: {'loss': 0.0}, 1: {'loss': 0.25}, 2: {'loss': 9.0}}
  assert event_files.read(directory) == expected
  assert _shown(directory) == expected


def test_a_file_that_is_cut_short_is_read_as_far_as_it_goes(directory):
  event_files.add(directory, {1: {'loss': 1.0}, 2: {'loss': 2.0}})
  (path,) = tf.io.gfile.glob(f'{directory}/*')
  with open(path, 'r+b') as file:
    file.truncate(file.seek(0, 2) - 5)
  assert event_files.read(directory) == {1: {'loss': 1.0}}


def test_a_table_has_a_line_for_each_step():
  rows = {
    0: {'loss': 2.0, 'rate_1': 0.10000000149, 'rate_2': 0.0},
    10: {'loss': float('nan'), 'rate_2': 1e-8},
  }
  columns = {'loss': 'loss', 'rate': 'rate_{stage}', 'other': 'other'}
  # Steps 0 to 9 are stage 1; there are 8 steps to an epoch.
  text = event_files.table(
    rows, columns, lambda step: (step / 8, 1 if step < 10 else 2)
  )
  assert text == (
    'step,epoch,stage,loss,rate,other\n0,0,1,2.0,0.1,\n10,1.25,2,nan,1e-08,\n'
  )
