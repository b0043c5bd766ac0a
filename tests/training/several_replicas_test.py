"""Training on several replicas of a MirroredStrategy, against one device.

And training in micro-batches, against several replicas.
"""

import dataclasses
import re

import numpy as np
import pytest
import tensorflow as tf

from supcon.compute import replicas
from supcon.compute import tpu_estimator
from supcon.config import enums
from supcon.config import hparams
from tests.tpu import cases

tf1 = tf.compat.v1


def _estimator(function, count, model_dir):
  @tf.autograph.experimental.do_not_convert
  def call(features, labels, mode):
    return function(features, labels, mode, {}).as_estimator_spec()

  # tf.distribute would look into a function that is not to be converted.
  def model_fn(features, labels, mode):
    return call(features, labels, mode)

  devices = [f'/cpu:{index}' for index in range(count)]
  # Outside a graph it would look for them where tests before have made one.
  with tf.Graph().as_default():
    strategy = tf.distribute.MirroredStrategy(devices)
  config = tpu_estimator.RunConfig(
    model_dir=model_dir,
    train_distribute=strategy,
    save_summary_steps=None,
    checkpoint_save_graph_def=False,
    session_config=tf1.ConfigProto(device_count={'CPU': count}),
  )
  return tpu_estimator.Estimator(model_fn, config=config)


def _input_fn(stage, count):
  """One element for each replica and step."""

  def build():
    images, labels = (
      np.concatenate(each) for each in zip(*cases.batches(stage))
    )
    examples = tf.data.Dataset.from_tensor_slices(({'images': images}, labels))
    return examples.batch(cases.BATCH_SIZE // count, drop_remainder=True)

  return build


def _save(variables, directory):
  """Writes a checkpoint of a dictionary of variables at step 0."""
  with tf.Graph().as_default(), tf1.Session() as session:
    saved = {
      name: tf1.get_variable(name, initializer=value, use_resource=True)
      for name, value in variables.items()
    }
    session.run(tf1.global_variables_initializer())
    tf1.train.Saver(saved).save(session, f'{directory}/model.ckpt-0')


def _load(estimator):
  names = estimator.get_variable_names()
  return {name: estimator.get_variable_value(name) for name in names}


def _train(optimizer, count, model_dir):
  """Trains both stages, from a checkpoint that one device could have written.

  Returns:
    Variables before, between and after.
  """
  params = cases.params(optimizer)
  variables = [cases.one_device(optimizer)[0][0]]
  _save(variables[0], model_dir)
  for stage in (1, 2):
    function = cases.function(params, stage, False, model_dir=model_dir)
    estimator = _estimator(function, count, model_dir)
    estimator.train(
      _input_fn(stage, count),
      max_steps=stage * cases.STEPS_PER_STAGE,
      hooks=[function.nan_hook],
      saving_listeners=[function.nan_listener],
    )
    variables.append(_load(estimator))
  return variables


def _check(optimizer, count, model_dir):
  expected, history = cases.one_device(optimizer)
  found = _train(optimizer, count, model_dir)
  for stage in (1, 2):
    worst = cases.worst_difference(
      found[stage], expected[stage], before=expected[0]
    )
    assert worst < (2e-5,)
  for tag, values in _summaries(model_dir).items():
    np.testing.assert_allclose(
      values, [scalars[tag] for scalars in history], rtol=1e-6, err_msg=tag
    )


def _summaries(model_dir):
  """Returns {tag: [value of each step]}."""
  result = {}
  paths = sorted(tf.io.gfile.glob(f'{model_dir}/train/*.v2'))
  assert len(paths) == 2  # One for each stage, not for each replica.
  for path in paths:
    for event in tf1.train.summary_iterator(path):
      for value in event.summary.value:
        result.setdefault(value.tag, []).append(value.simple_value)
  assert 'loss' in result
  return result


def test_two_replicas_train_as_one_device_does(tmp_path):
  _check(enums.Optimizer.MOMENTUM, 2, str(tmp_path))


@pytest.mark.slow
def test_four_replicas_train_as_one_device_does(tmp_path):
  _check(enums.Optimizer.LARS, 4, str(tmp_path))


def test_replicas_start_from_the_reference(tmp_path):
  params = cases.params(enums.Optimizer.MOMENTUM)
  params = dataclasses.replace(
    params, warm_start=hparams.WarmStart(warm_start_encoder=True)
  )
  start, after, _ = cases.one_device(enums.Optimizer.MOMENTUM)[0]
  reference = str(tmp_path / 'reference')
  _save(after, reference)
  model_dir = str(tmp_path / 'run')
  function = cases.function(
    params,
    1,
    use_tpu=False,
    model_dir=model_dir,
    reference_checkpoint=f'{reference}/model.ckpt-0',
  )
  _estimator(function, 2, model_dir).train(_input_fn(1, 2), max_steps=1)
  first = tf.train.load_checkpoint(f'{model_dir}/model.ckpt-0')
  encoder = [
    name
    for name, _ in tf.train.list_variables(model_dir)
    if name.startswith('ContrastiveModel/Encoder/')
    and name in start
    and not name.rpartition('/')[-1].startswith('Momentum')
  ]
  assert len(encoder) == 10
  for name in encoder:
    np.testing.assert_array_equal(first.get_tensor(name), after[name])
  # Of the last layer, which is random in both, nothing was asked for.
  other = 'ContrastiveModel/ProjectionHead/dense_1/kernel'
  assert np.any(first.get_tensor(other) != after[other])


# --- In float64 ---------------------------------------------------------------


def _build_train_op(params, stage):
  """Returns the op of a step, which picks its batch by the global step."""
  share = cases.BATCH_SIZE // replicas.num_replicas()
  begin = replicas.replica_id() * share
  step = tf1.train.get_or_create_global_step()
  images, labels = (
    tf.gather(tf.constant(np.stack(each)), step % cases.STEPS_PER_STAGE)
    for each in zip(*cases.batches(stage))
  )
  part = slice(begin, begin + share)
  function = cases.function(params, stage, use_tpu=False)
  return function.train({'images': images[part]}, labels[part]).train_op


def _replicated_graph(params, stage, count):
  """Returns a graph in which a step of all replicas is the op 'step'."""
  devices = [f'/cpu:{index}' for index in range(count)]
  build = tf.autograph.experimental.do_not_convert(_build_train_op)
  with tf.Graph().as_default() as graph:
    strategy = tf.distribute.MirroredStrategy(devices)
    with strategy.scope():
      ops = strategy.extended.call_for_each_replica(build, (params, stage))
      tf.group(*strategy.experimental_local_results(ops), name='step')
  return graph


def _in_float64(graph_def):
  """Turns float32 into float64 in all attributes and constants."""
  single, double = tf.float32.as_datatype_enum, tf.float64.as_datatype_enum
  nodes = [*graph_def.node]
  for function in graph_def.library.function:  # Bodies of loops.
    nodes += function.node_def
    signature = function.signature
    for argument in (*signature.input_arg, *signature.output_arg):
      if argument.type == single:
        argument.type = double
  for node in nodes:
    for attribute in node.attr.values():
      if attribute.type == single:
        attribute.type = double
      for index, kind in enumerate(attribute.list.type):
        if kind == single:
          attribute.list.type[index] = double
      if attribute.tensor.dtype == single:
        value = tf.make_ndarray(attribute.tensor).astype(np.float64)
        attribute.tensor.CopyFrom(tf.make_tensor_proto(value))
  return graph_def


def _train_in_float64(params, stage, count, variables):
  """Trains a stage; returns {name: [array of each replica]}."""
  graph = _replicated_graph(params, stage, count)
  graph_def = _in_float64(graph.as_graph_def())
  config = tf1.ConfigProto(device_count={'CPU': count})
  with tf.Graph().as_default() as graph, tf1.Session(config=config) as session:
    tf.import_graph_def(graph_def, name='')
    copies = {name: [] for name in variables}
    assignments = []
    for op in graph.get_operations():
      if op.type != 'VarHandleOp':
        continue
      name = re.sub(r'/replica_\d+$', '', op.name)
      with tf.device(op.device):
        dtype = op.get_attr('dtype')
        value = tf.cast(variables[name], dtype)
        assignments.append(
          tf.raw_ops.AssignVariableOp(resource=op.outputs[0], value=value)
        )
        copies[name].append(
          lambda op=op, dtype=dtype: tf.raw_ops.ReadVariableOp(
            resource=op.outputs[0], dtype=dtype
          )
        )
    session.run(assignments)
    for _ in range(cases.STEPS_PER_STAGE):
      session.run('step')
    return session.run(
      {name: [read() for read in reads] for name, reads in copies.items()}
    )


def _plain_batch_norm(x, gamma, beta, epsilon, is_training):
  """Stands in for tf.nn.fused_batch_norm, which knows no float64."""
  assert is_training
  mean, variance = tf.nn.moments(x, [0, 1, 2])
  y = tf.nn.batch_normalization(x, mean, variance, beta, gamma, epsilon)
  count = tf.cast(tf.size(x) // x.shape[-1], tf.float32)
  return y, mean, variance * (count / (count - 1))


def test_in_float64_replicas_equal_one_device(monkeypatch):
  monkeypatch.setattr(tf1.nn, 'fused_batch_norm', _plain_batch_norm)
  params = cases.params(enums.Optimizer.MOMENTUM)
  before = cases.one_device(enums.Optimizer.MOMENTUM)[0][0]
  one = _train_in_float64(params, 1, 1, before)
  for count in (2, 4):
    several = _train_in_float64(params, 1, count, before)
    for index in range(count):
      # The step is one variable for all.
      found = {
        name: values[min(index, len(values) - 1)]
        for name, values in several.items()
      }
      expected = {name: value for name, (value,) in one.items()}
      worst = cases.worst_difference(found, expected, before)
      assert worst < (1e-9,)


# --- In micro-batches ---------------------------------------------------------


def _in_parts(params, size):
  """Returns HParams of local batch norm and micro-batches."""
  params = params.replace('architecture.use_global_batch_norm', False)
  return params.replace('micro_batch_size', size)


def _train_as_saved(params, stage, count, variables):
  """Returns what a checkpoint would hold after a stage."""
  after = _train_in_float64(params, stage, count, variables)
  return {name: np.mean(copies, axis=0) for name, copies in after.items()}


def test_in_float64_micro_batches_equal_replicas(monkeypatch):
  # Batch norm in encoder and head, weight decay, momentum.
  monkeypatch.setattr(tf1.nn, 'fused_batch_norm', _plain_batch_norm)
  params = cases.params(enums.Optimizer.MOMENTUM)
  before = cases.initial_variables(params)
  expected = _train_as_saved(_in_parts(params, 0), 1, 2, before)
  found = _train_as_saved(_in_parts(params, 16), 1, 1, before)
  assert cases.worst_difference(found, expected, before) < (1e-12,)
  assert found['global_step'] == cases.STEPS_PER_STAGE


@pytest.mark.slow
def test_in_float64_replicas_may_have_micro_batches(monkeypatch):
  monkeypatch.setattr(tf1.nn, 'fused_batch_norm', _plain_batch_norm)
  params = _in_parts(cases.params(enums.Optimizer.LARS), 8)
  before = cases.initial_variables(params)
  one, two = (_train_as_saved(params, 1, count, before) for count in (1, 2))
  assert cases.worst_difference(two, one, before) < (1e-12,)


@pytest.mark.slow
def test_in_float64_micro_batches_equal_replicas_over_a_stage_boundary(
  monkeypatch,
):
  monkeypatch.setattr(tf1.nn, 'fused_batch_norm', _plain_batch_norm)
  monkeypatch.setattr(cases, 'BATCH_SIZE', 128)  # 8 x 16.
  monkeypatch.setattr(cases, 'STEPS_PER_STAGE', 5)
  params = cases.params(enums.Optimizer.MOMENTUM)
  for stage in (1, 2):  # Rates grow with the batch.
    params = params.replace(f'stage_{stage}.base_learning_rate', 4 * 32 / 128)
  expected = found = cases.initial_variables(params)
  for stage in (1, 2):
    expected = _train_as_saved(_in_parts(params, 0), stage, 8, expected)
    found = _train_as_saved(_in_parts(params, 16), stage, 1, found)
  worst = max(
    (np.abs(found[name] - value).max(), name)
    for name, value in expected.items()
  )
  assert worst < (1e-12,)


# --- With a memory ------------------------------------------------------------


def test_in_float64_the_memory_of_replicas_is_that_of_one_device(monkeypatch):
  monkeypatch.setattr(tf1.nn, 'fused_batch_norm', _plain_batch_norm)
  params = cases.params(enums.Optimizer.MOMENTUM)
  params = params.replace('memory.memory_size', 2 * cases.BATCH_SIZE)
  params = params.replace('memory.memory_momentum', 0.75)
  before = cases.initial_variables(params)
  one, two = (_train_as_saved(params, 1, count, before) for count in (1, 2))
  assert np.all(two['Memory/labels'] >= 0)
  assert cases.worst_difference(two, one, before) < (1e-9,)


def test_a_replica_cannot_tell_its_samples_by_the_statistics_of_their_keys(
  monkeypatch,
):
  # Keys do not depend on which samples are on which replica.
  monkeypatch.setattr(tf1.nn, 'fused_batch_norm', _plain_batch_norm)
  params = _in_parts(cases.params(enums.Optimizer.MOMENTUM), 0)
  size = cases.STEPS_PER_STAGE * cases.BATCH_SIZE
  params = params.replace('memory.memory_size', size)
  before = cases.initial_variables(params)
  one, two = (
    _train_as_saved(params, 1, count, before)['Memory/features']
    for count in (1, 2)
  )
  # Later ones are of models that local statistics have trained differently.
  first = slice(size - cases.BATCH_SIZE, size)
  np.testing.assert_allclose(one[first], two[first], atol=1e-12)
  assert np.abs(one - two).max() > 1e-6


# --- Names --------------------------------------------------------------------


def test_variables_have_the_names_of_one_device():
  # Adam does not tell the stages apart, but counts: Adam, Adam_1, Adam_2, ...
  params = cases.params(enums.Optimizer.ADAM)
  expected = {
    name: value.shape for name, value in cases.initial_variables(params).items()
  }
  with _replicated_graph(params, 1, 2).as_default():
    found = {
      v.name.removesuffix(':0'): tuple(v.shape) for v in tf1.global_variables()
    }
  assert found == expected
  assert 'ContrastiveModel/ClassificationHead/dense/bias/Adam_3' in found
