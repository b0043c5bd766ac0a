"""Tests of sessions: what TensorBoard's HParams plugin makes of runs."""

import os

import pytest
from tensorboard import context
from tensorboard.backend.event_processing import data_provider
from tensorboard.backend.event_processing import plugin_event_multiplexer
from tensorboard.plugins import base_plugin
from tensorboard.plugins.hparams import api_pb2
from tensorboard.plugins.hparams import backend_context
from tensorboard.plugins.hparams import get_experiment
from tensorboard.plugins.hparams import list_session_groups
import tensorflow as tf

from supcon.config import hparams
from supcon.runs import event_files
from supcon.runs import sessions


@pytest.fixture(autouse=True)
def fixture_graph():
  with tf.Graph().as_default():  # What writes for estimators needs one.
    yield
  tf.compat.v1.summary.FileWriterCache.clear()


def _evaluated(path, compact, top_1, has_ended=True):
  params = hparams.parse(compact)
  sessions.record(str(path / 'eval'), params, is_last_step=False)
  event_files.add(str(path / 'eval'), {7: {'top_1_accuracy': top_1}})
  sessions.record(str(path / 'eval'), params, has_ended)


def _context(path):
  """Returns the plugin's view of the runs below a directory."""
  events = plugin_event_multiplexer.EventMultiplexer()
  events.AddRunsFromDirectory(str(path))
  events.Reload()
  provider = data_provider.MultiplexerDataProvider(events, str(path))
  return backend_context.Context(
    base_plugin.TBContext(data_provider=provider, multiplexer=events)
  )


def _experiment(path):
  """Returns the columns of the plugin's table."""
  request = api_pb2.GetExperimentRequest()
  handler = get_experiment.Handler(
    context.RequestContext(), _context(path), '', request
  )
  return handler.run()


def _groups(path, *columns):
  """Returns the sessions that the plugin shows under some filters."""
  request = api_pb2.ListSessionGroupsRequest(
    allowed_statuses=[api_pb2.STATUS_UNKNOWN, api_pb2.STATUS_SUCCESS],
    col_params=columns,
    slice_size=100,
    include_metrics=True,
  )
  handler = list_session_groups.Handler(
    context.RequestContext(), _context(path), '', request
  )
  return handler.run().session_groups


def test_runs_are_shown_with_values_metrics_and_status(tmp_path):
  _evaluated(tmp_path / 'a', 't=0.5,seed=3', 0.25)
  _evaluated(tmp_path / 'b', 't=0.1', 0.75, False)
  first, second = _groups(tmp_path)
  assert first.name == 'a/eval' and second.name == 'b/eval'
  assert first.hparams['temperature'].number_value == 0.5
  assert first.hparams['seed'].number_value == 3
  assert first.hparams['use_labels'].bool_value
  assert first.hparams['stage_1_optimizer'].string_value == 'RMSPROP'
  assert second.hparams['seed'].number_value == 0
  (metric,) = first.metric_values
  assert (metric.name.tag, metric.value) == ('top_1_accuracy', 0.25)
  assert first.sessions[0].status == api_pb2.STATUS_SUCCESS
  assert second.sessions[0].status == api_pb2.STATUS_UNKNOWN


def test_every_run_has_every_column_and_those_that_differ_are_known(tmp_path):
  _evaluated(tmp_path / 'a', 't=0.5', 0.25)
  _evaluated(tmp_path / 'b', 'bs=64', 0.75)
  columns = {info.name: info for info in _experiment(tmp_path).hparam_infos}
  assert {*columns} == {field.flag for field in hparams.FIELDS}
  differing = {name for name, info in columns.items() if info.differs}
  assert differing == {'temperature', 'batch_size'}


def test_runs_can_be_filtered(tmp_path):
  for t in (0.1, 0.3, 0.5):
    _evaluated(tmp_path / f'{t}', f't={t}', t)
  wanted = api_pb2.ColParams(
    hparam='temperature',
    filter_interval=api_pb2.Interval(min_value=0.2, max_value=0.4),
  )
  assert [group.name for group in _groups(tmp_path, wanted)] == ['0.3/eval']


def test_a_repetition_writes_nothing(tmp_path):
  directory = str(tmp_path / 'eval')
  for has_ended in (False, True):
    sessions.record(directory, hparams.HParams(), has_ended)
    path = tmp_path / 'eval' / sessions.FILE
    before = path.stat().st_mtime_ns, path.read_bytes()
    sessions.record(directory, hparams.HParams(), has_ended)
    assert (path.stat().st_mtime_ns, path.read_bytes()) == before
  assert os.listdir(directory) == [sessions.FILE]


def test_new_values_replace_the_old_ones(tmp_path):
  _evaluated(tmp_path / 'a', 't=0.5', 0.25)
  _evaluated(tmp_path / 'a', 't=0.1', 0.5)
  (group,) = _groups(tmp_path)
  assert group.hparams['temperature'].number_value == 0.1


def test_a_damaged_file_is_written_anew(tmp_path):
  _evaluated(tmp_path / 'a', 't=0.5', 0.25)
  (tmp_path / 'a' / 'eval' / sessions.FILE).write_bytes(b'damaged')
  _evaluated(tmp_path / 'a', 't=0.5', 0.25)
  (group,) = _groups(tmp_path)
  assert group.hparams['temperature'].number_value == 0.5


def test_scalars_are_read_as_before(tmp_path):
  _evaluated(tmp_path / 'a', 't=0.5', 0.25)
  directory = str(tmp_path / 'a' / 'eval')
  assert event_files.read(directory) == {7: {'top_1_accuracy': 0.25}}
