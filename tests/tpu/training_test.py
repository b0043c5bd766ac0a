"""Training as the cores of a TPU do it, against one device."""

import functools
import re

import numpy as np
import pytest
import tensorflow as tf

from supcon import losses
from supcon.compute import replicas
from supcon.config import enums
from supcon.config import hparams
from supcon.training import memory
from tests.tpu import cases

_OPTIMIZERS = [enums.Optimizer.MOMENTUM, enums.Optimizer.LARS]
_STEP = 'global_step'


@functools.cache
def _on_cores(optimizer, stage, num_cores):
  return cases.OnCores(cases.params(optimizer), stage, num_cores)


@functools.cache
def _train_on_cores(optimizer, num_cores, in_float64=False):
  """Like `cases.one_device`; an array of each core."""
  variables = cases.initial_variables(cases.params(optimizer))
  result = [{name: np.stack([value]) for name, value in variables.items()}]
  history = []
  for stage in (1, 2):
    cores = _on_cores(optimizer, stage, num_cores)
    after, steps = cores.train(_of_first_core(result[-1]), in_float64)
    result.append(after)
    history += steps
  return result, history


def _of_first_core(variables):
  return {name: value[0] for name, value in variables.items()}


def _assert_cores_agree(variables):
  for name, value in variables.items():
    same = np.broadcast_to(value[:1], value.shape)
    np.testing.assert_array_equal(value, same, err_msg=name)


@pytest.mark.parametrize('num_cores', [4, 8])
@pytest.mark.parametrize('optimizer', _OPTIMIZERS)
def test_training_is_that_of_one_device(optimizer, num_cores):
  expected, expected_history = cases.one_device(optimizer)
  found, history = _train_on_cores(optimizer, num_cores)
  assert found[-1][_STEP][0] == 2 * cases.STEPS_PER_STAGE
  for step, (scalars, reference) in enumerate(zip(history, expected_history)):
    assert set(scalars) == set(reference)
    for tag, values in scalars.items():
      assert len(values) == num_cores
      # Rounding of float32, over six steps; in float64 they are equal, below.
      np.testing.assert_allclose(
        values, reference[tag], rtol=3e-6, atol=3e-6, err_msg=f'{step} {tag}'
      )
  for stage in (1, 2):
    _assert_cores_agree(found[stage])
    worst = cases.worst_difference(
      _of_first_core(found[stage]), expected[stage], before=expected[0]
    )
    assert worst < (2e-5,)


def _assert_equal_in_float64(found, expected, before):
  """Compares variables of several cores with those of one."""
  found, expected, before = map(_of_first_core, (found, expected, before))
  assert cases.worst_difference(found, expected, before) < (1e-7,)
  # On one core the fused batch norm gives the unbiased variance, of which the
  # biased is made: two float32 constants, n / (n - 1) and (n - 1) / n.
  exact = [name for name in before if not name.endswith('/moving_variance')]
  found, expected = (
    {name: each[name] for name in exact} for each in (found, expected)
  )
  assert cases.worst_difference(found, expected, before) < (1e-9,)


def test_tiles_of_the_loss_equal_one(monkeypatch):
  # Each of the 4 cores has 16 anchors: 3 tiles, the last with 4 of 6.
  expected, expected_history = _train_on_cores(enums.Optimizer.MOMENTUM, 4)
  params = cases.params(enums.Optimizer.MOMENTUM)
  in_tiles = functools.partial(losses.contrastive_loss, tile_size=6)
  monkeypatch.setattr(losses, 'contrastive_loss', in_tiles)
  cores = cases.OnCores(params, 1, 4)
  assert 'mhlo.while' in cores.mlir and 'tensor<6x64xf32>' in cores.mlir
  found, history = cores.train(_of_first_core(expected[0]))
  for scalars, reference in zip(history, expected_history):
    for tag, values in scalars.items():
      np.testing.assert_allclose(
        values, reference[tag], rtol=1e-6, atol=1e-6, err_msg=tag
      )
  found, before = map(_of_first_core, (found, expected[0]))
  worst = cases.worst_difference(found, _of_first_core(expected[1]), before)
  assert worst < (2e-5,)


@pytest.mark.parametrize('num_cores', [4, 8])
@pytest.mark.parametrize('optimizer', _OPTIMIZERS)
def test_in_float64_cores_equal_one_core(optimizer, num_cores):
  expected, _ = _train_on_cores(optimizer, 1, in_float64=True)
  found, _ = _train_on_cores(optimizer, num_cores, in_float64=True)
  for stage in (1, 2):
    _assert_equal_in_float64(found[stage], expected[stage], expected[0])


@pytest.mark.slow
def test_resnet_in_float64():
  # In float32 its many relus fall on other sides; that says nothing.
  architecture = hparams.Architecture(
    encoder_depth=18,
    encoder_width=1 / 8,
    first_conv_kernel_size=3,
    first_conv_stride=1,
    use_initial_max_pool=False,
    projection_head_layers=(16, 8),
  )
  params = cases.params(enums.Optimizer.LARS, architecture)
  start = cases.initial_variables(params)
  one, eight = (
    cases.OnCores(params, 1, num_cores).train(start, in_float64=True)[0]
    for num_cores in (1, 8)
  )
  assert len(one) > 200
  start = {name: np.stack([value]) for name, value in start.items()}
  _assert_equal_in_float64(eight, one, start)


def test_bfloat16():
  params = cases.params(enums.Optimizer.MOMENTUM)
  variables = cases.initial_variables(params)
  cores = cases.OnCores(params, 1, num_cores=4, dtype=tf.bfloat16)
  after, history = cores.train(variables)
  _assert_cores_agree(after)
  # Convolutions have 8 significant bits, the rest float32.
  assert re.search(r'mhlo.convolution.*bf16', cores.mlir)
  assert not re.search(r'mhlo.(dot|all_to_all|cross-rep).*bf16', cores.mlir)
  _, expected = cases.one_device(enums.Optimizer.MOMENTUM)
  for scalars, reference in zip(history, expected):
    for tag in ('loss/contrastive_loss', 'loss/cross_entropy_loss'):
      np.testing.assert_allclose(scalars[tag], reference[tag], atol=0.03)


def test_micro_batches_of_cores_are_as_many_cores():
  params = cases.params(enums.Optimizer.LARS)
  params = params.replace('architecture.use_global_batch_norm', False)
  start = cases.initial_variables(params)
  in_parts = params.replace('micro_batch_size', 4)
  found, expected = (
    {
      # Each core has moving averages of its own.
      name: value.mean(axis=0)
      for name, value in cases.OnCores(*case).train(start, True)[0].items()
    }
    for case in ((in_parts, 1, 4), (params, 1, 8))
  )
  assert cases.worst_difference(found, expected, start) < (1e-9,)


def test_the_memory_of_cores_is_that_of_one_core():
  params = cases.params(enums.Optimizer.MOMENTUM)
  params = params.replace('memory.memory_size', 2 * cases.BATCH_SIZE)
  params = params.replace('memory.memory_momentum', 0.75)
  start = cases.initial_variables(params)
  one, four = (
    cases.OnCores(params, 1, num_cores).train(start, in_float64=True)[0]
    for num_cores in (1, 4)
  )
  start = {name: np.stack([value]) for name, value in start.items()}
  names = [name for name in start if memory.is_part(name)]
  for name in names:  # It is the same on all cores.
    np.testing.assert_allclose(four[name], four[name][:1].repeat(4, axis=0))
  assert len(names) > 3 and np.all(four['Memory/labels'] >= 0)
  _assert_equal_in_float64(four, one, start)


def test_the_similarity_is_in_float32_and_the_labels_are_integers():
  mlir = _on_cores(enums.Optimizer.MOMENTUM, 1, 8).mlir
  dots = [
    re.search(r': \(tensor<(.*?)>, tensor<(.*?)>\)', line).groups()
    for line in re.findall('mhlo.dot_general.*', mlir)
    if line.count('#mhlo<precision HIGHEST>') == 2
  ]
  # 4 samples of 2 views against those of 8 cores, and the gradients of both.
  assert sorted(dots) == [
    ('8x64xf32', '64x8xf32'),
    ('8x64xf32', '8x8xf32'),
    ('8x8xf32', '64x8xf32'),
  ]
  gathers = re.findall(r'mhlo.all_to_all.*: \(tensor<(.*?)>\)', mlir)
  # 8 cores x 4 samples of 2 views of 8 numbers, there and back; and classes.
  assert sorted(gathers) == ['32x2x8xf32', '32x2x8xf32', '32xi32']


def test_evaluation_is_that_of_one_device():
  params = cases.params(enums.Optimizer.MOMENTUM)
  variables = cases.one_device(enums.Optimizer.MOMENTUM)[0][1]
  weights = np.ones(cases.BATCH_SIZE, np.float32)
  weights[-5:] = 0  # Padding, all of it on the last two of 8 cores.
  expected_loss, expected = cases.evaluate_on_one_device(
    params, variables, weights
  )
  loss, found = cases.evaluate_on_cores(params, variables, weights, 8)
  np.testing.assert_allclose(loss, expected_loss, rtol=1e-6)
  assert set(found) == set(expected)
  for tag, values in found.items():
    np.testing.assert_allclose(values, expected[tag], rtol=1e-5, err_msg=tag)


# --- Planted mistakes ---------------------------------------------------------


def _other_order(x):
  """Gathers integers in the reverse order of the cores."""
  whole = _gather(x)
  if not x.dtype.is_integer:
    return whole
  parts = tf.split(whole, replicas.num_replicas())
  return tf.concat(parts[::-1], axis=0)


def _without_share(optimizer, gradients_and_variables, global_step):
  """Sums the gradients of the cores, as if their losses were added."""
  return optimizer.apply_gradients(
    [(replicas.sum(g), v) for g, v in gradients_and_variables], global_step
  )


def _without_sum(optimizer, gradients_and_variables, global_step):
  """Lets each core follow its own gradient."""
  return optimizer.apply_gradients(gradients_and_variables, global_step)


_gather = replicas.gather

# What is wrong: (function of `replicas`, what takes its place).
_MISTAKES = {
  'self-mask without replica offset': ('replica_id', lambda: 0),
  'statistics of batch norm not synchronised': ('mean', lambda x: x),
  'sum for mean in batch norm': ('mean', replicas.sum),
  'gradients without 1/R': ('apply_mean_gradients', _without_share),
  'gradients not summed': ('apply_mean_gradients', _without_sum),
  'no gradient through gather': (
    'gather',
    lambda x: tf.stop_gradient(_gather(x)),
  ),
  'labels in another order': ('gather', _other_order),
}


def _first_stage_in_float64(num_cores):
  """Returns variables after stage 1, by a program that is built anew."""
  params = cases.params(enums.Optimizer.MOMENTUM)
  variables = cases.initial_variables(params)
  after, _ = cases.OnCores(params, 1, num_cores).train(variables, True)
  return after


@pytest.mark.parametrize('mistake', _MISTAKES)
def test_a_mistake_is_caught(mistake, monkeypatch):
  expected, _ = _train_on_cores(enums.Optimizer.MOMENTUM, 1, in_float64=True)
  monkeypatch.setattr(replicas, *_MISTAKES[mistake])
  found = _first_stage_in_float64(num_cores=4)
  worst, name = cases.worst_difference(
    _of_first_core(found),
    _of_first_core(expected[1]),
    before=_of_first_core(expected[0]),
  )
  print(worst, name)
  # Seven orders of magnitude above what passes for equal.
  assert worst > 1e-2
