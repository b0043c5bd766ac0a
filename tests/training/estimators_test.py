"""Who gets which rows of a global batch, and what estimators are told."""

import json
import os
import types
from unittest import mock

import numpy as np
import pytest
import tensorflow as tf

from supcon.compute import devices
from supcon.compute import replicas
from supcon.compute import tpu_estimator
from supcon.compute import workers
from supcon.config import enums
from supcon.config import run_options
from supcon.runs import retries
from supcon.training import estimators
from supcon.training import hooks
from supcon.training import optimizers as stage_optimizers
from supcon.training import run_hooks
from tests import command
from tests import writing
from tests.tpu import cases
from tests.tpu import offline

tf1 = tf.compat.v1


class _Recorder:
  """Stands in for ModelFn: trains one weight, and keeps every label it sees."""

  def __init__(self):
    self.nan_hook = tf1.train.SessionRunHook()
    self.nan_listener = tf1.train.CheckpointSaverListener()
    self.seen = []  # [step][replica]: labels
    self._labels = []

  def __call__(self, features, labels, mode, params):
    del features, params
    weight = tf1.get_variable('weight', [], use_resource=True)
    loss = weight * tf.reduce_mean(tf.cast(labels, tf.float32))
    self._labels.append(labels)
    return tpu_estimator.TPUEstimatorSpec(
      mode=mode,
      loss=loss,
      train_op=tf1.train.GradientDescentOptimizer(0.1).minimize(
        loss, tf1.train.get_global_step()
      ),
      training_hooks=[_Fetch(self._labels, self.seen)],
    )


class _Fetch(tf1.train.SessionRunHook):
  """Fetches tensors with every step."""

  def __init__(self, tensors, seen):
    self._tensors, self._seen = tensors, seen

  def before_run(self, run_context):
    return tf1.train.SessionRunArgs(list(self._tensors))

  def after_run(self, run_context, run_values):
    self._seen.append([labels.tolist() for labels in run_values.results])


def _count_up(params):
  """Batches of 0, 1, 2 ... as they come from one host."""
  labels = tf.data.Dataset.range(1000).map(lambda i: ({'x': i}, i))
  return labels.batch(params['batch_size'], drop_remainder=True)


def _train(recorder, model_dir, count):
  """Trains 3 steps of a global batch of 8 on virtual devices."""
  options = run_options.RunOptions(
    mode='train', model_dir=str(model_dir), use_tpu=False, num_replicas=count
  )
  with tf.Graph().as_default():
    estimators.train(
      options,
      devices.find(options),
      recorder,
      _count_up,
      batch_size=8,
      seed=0,
      max_steps=3,
      attempts=retries.Retries(),
    )


@pytest.mark.parametrize('count', [1, 2, 4])
def test_replica_r_gets_rows_r_b_to_r_b_plus_b(tmp_path, count):
  recorder = _Recorder()
  _train(recorder, tmp_path, count)
  expected = np.arange(24).reshape([3, count, 8 // count])
  np.testing.assert_array_equal(recorder.seen, expected)


class _Adam(_Recorder):
  """Like that, of two weights, by Adam; only one is known to the loss."""

  def __call__(self, features, labels, mode, params):
    spec = super().__call__(features, labels, mode, params)
    tf1.get_variable('idle', [2], use_resource=True)
    optimizers = [tf1.train.AdamOptimizer(0.1) for _ in range(2)]
    variables = tf1.trainable_variables()

    def create_slots():
      for optimizer in optimizers:
        stage_optimizers.create_slots(optimizer, variables)

    replicas.once(create_slots)
    gradients = [
      tf.zeros_like(variable) if gradient is None else gradient
      for gradient, variable in zip(
        tf.gradients(spec.loss, variables), variables
      )
    ]
    return spec._replace(
      train_op=replicas.apply_mean_gradients(
        optimizers[1],
        list(zip(gradients, variables)),
        tf1.train.get_global_step(),
      )
    )


@pytest.mark.parametrize('count', [1, 2])
def test_checkpoints_of_the_published_code_are_restored(tmp_path, count):
  _train(_Adam(), tmp_path / 'ours', count)
  values = command.variables(tmp_path / 'ours')
  assert values['beta1_power_1'] == pytest.approx(0.9**4)
  # As if the second of three steps had been the last one; what is lacking has
  # another value than the initial one.
  values['global_step'] = np.int64(2)
  values['idle/Adam_3'] = np.float32([5, 5])
  names = {
    'beta1_power': 'train/cond_2/beta1_power',
    'beta2_power': 'train/cond_2/beta2_power',
    'beta1_power_1': 'train/cond_10/beta1_power',
    'beta2_power_1': 'train/cond_10/beta2_power',
  }
  published = {names.get(name, name): x for name, x in values.items()}
  del published['idle/Adam_3']
  zeros = {**values, 'idle/Adam_3': np.float32([0, 0])}
  found = []
  for name, variables in (('published', published), ('zeros', zeros)):
    model_dir = tmp_path / name
    writing.write_values(model_dir / 'model.ckpt-2', variables)
    tf1.train.update_checkpoint_state(str(model_dir), 'model.ckpt-2')
    _train(_Adam(), model_dir, count)
    assert command.newest_step(model_dir) == 3
    found.append(command.variables(model_dir))
  assert found[0].keys() == found[1].keys() == values.keys()
  assert found[0]['beta1_power_1'] == pytest.approx(0.9**5)
  for name, value in found[0].items():
    np.testing.assert_array_equal(value, found[1][name], err_msg=name)


def test_a_worker_reads_its_host_part_and_saves_nothing(tmp_path, monkeypatch):
  config = {
    'cluster': {'chief': ['localhost:1'], 'worker': ['localhost:2']},
    'task': {'type': 'worker', 'index': 0},
  }
  monkeypatch.setenv(workers.VARIABLE, json.dumps(config))
  options = run_options.RunOptions(
    mode='train', model_dir=str(tmp_path), use_tpu=False, save_interval_steps=7
  )
  trained = {}

  def train(self, input_fn, max_steps, hooks, saving_listeners):
    trained.update(
      config=self.config,
      hooks=hooks,
      listeners=saving_listeners,
      element=input_fn(),
      max_steps=max_steps,
    )

  seen = []
  with tf.Graph().as_default():
    found = devices.find(options)
    # Starts no server.
    found.__dict__['_server'] = types.SimpleNamespace(
      target='grpc://localhost:2'
    )
    monkeypatch.setattr(tpu_estimator.Estimator, 'train', train)
    estimators.train(
      options,
      found,
      _Recorder(),
      seen.append,
      batch_size=8,
      seed=0,
      max_steps=3,
      attempts=retries.Retries(),
    )
  (params,) = seen
  assert params['batch_size'] == 4
  assert params['context'].current_host == 1
  assert params['context'].num_hosts == 2
  assert trained['max_steps'] == 3
  assert trained['listeners'] is None
  config = trained['config']
  assert config.save_checkpoints_steps is None
  assert config.save_checkpoints_secs is None
  assert config.save_summary_steps is None
  # The estimator would take TF_CONFIG for orders of its own.
  assert not config.cluster_spec and config.is_chief
  assert config.master == 'grpc://localhost:2'
  assert workers.VARIABLE in os.environ
  kinds = [type(hook) for hook in trained['hooks']]
  assert kinds[1:] == [run_hooks.ReadingHook]


class TestReadingHook:
  """It runs the ops that a checkpoint is made of when the chief does."""

  @pytest.mark.parametrize('last, interval', [(5, 2), (4, 2), (3, 10)])
  def test_reads_when_the_chief_saves(self, tmp_path, last, interval):
    saved, read = [], []

    class Listener(tf1.train.CheckpointSaverListener):
      def after_save(self, session, global_step_value):
        saved.append(int(global_step_value))

    class Hook(run_hooks.ReadingHook):
      def read(self, session, step):
        super().read(session, step)
        read.append(int(step))
        assert self._reads

    with tf.Graph().as_default():
      step = tf1.train.get_or_create_global_step()
      update = tf1.assign_add(step, 1)
      chief = tf1.train.CheckpointSaverHook(
        str(tmp_path), save_steps=interval, listeners=[Listener()]
      )
      with tf1.train.MonitoredTrainingSession(
        hooks=[chief, Hook(interval), tf1.train.StopAtStepHook(last)],
        save_checkpoint_secs=0,
      ) as session:
        while not session.should_stop():
          session.run(update)
    assert read == saved
    assert read[0] == 0 and read[-1] == last


# --- TPU, offline -------------------------------------------------------------


class TestTpu:
  def estimator(self, num_cores, model_dir):
    options = run_options.RunOptions(
      model_dir=model_dir, use_tpu=True, tpu_name='local', steps_per_loop=3
    )
    found = devices.Devices(
      'TPU core',
      num_cores,
      tf1.ConfigProto(isolate_session_state=True),
      resolver=offline.Cluster(num_cores // offline.CORES_PER_HOST),
    )
    params = cases.params(enums.Optimizer.MOMENTUM)
    return estimators.build(
      options,
      found,
      cases.function(params, 1, use_tpu=True, model_dir=model_dir),
      cases.BATCH_SIZE,
      cases.BATCH_SIZE,
      seed=0,
    )

  @pytest.mark.parametrize('is_training', [True, False])
  def test_who_reads_on_two_hosts(self, tmp_path, is_training):
    calls = []

    def input_fn(params):
      calls.append((params['batch_size'], params['context'].current_host))
      return cases.input_fn(tf.float32, not is_training)(params)

    class Built(Exception):
      pass

    last = '_train_with_estimator_spec' if is_training else '_evaluate_run'
    with (
      offline.no_tpu(num_cores=8),
      mock.patch.object(tpu_estimator.Estimator, last, side_effect=Built),
    ):
      estimator = self.estimator(8, str(tmp_path))
      with pytest.raises(Built):
        if is_training:
          estimator.train(input_fn, max_steps=3)
        else:
          estimator.evaluate(input_fn, steps=1)
    if is_training:
      # Each host reads batches of one core, for its own four.
      assert sorted(set(calls)) == [(4, 0), (4, 1)]
    else:
      # One host reads for all, so that each example counts once.
      assert set(calls) == {(32, 0)}


def test_hooks_are_those_of_the_stage(tmp_path):
  # NaN is looked for by whoever trains, on one device or on several.
  class Stop(tf1.train.SessionRunHook):
    def after_run(self, run_context, run_values):
      raise hooks.NanLossError('as the test asks')

  for count in (1, 2):
    recorder = _Recorder()
    recorder.nan_hook = Stop()
    with pytest.raises(hooks.NanLossError):
      _train(recorder, tmp_path / str(count), count)
