"""Tests of the losses: golden values, loops from the equations, by hand."""

import functools
from importlib import metadata
import itertools
import os
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from supcon import losses
from supcon import pairwise
from supcon.compute import replicas
from supcon.config import enums
from tests import golden

tf1 = tf.compat.v1

_CONTRAST_MODES = list(enums.LossContrastMode)
_SUMMATIONS = list(enums.LossSummationLocation)
_DENOMINATORS = list(enums.LossDenominatorMode)
_OUTSIDE, _INSIDE = _SUMMATIONS
_ALL, _ONE_POSITIVE, _ONLY_NEGATIVES = _DENOMINATORS
_ONE_VIEW = enums.LossContrastMode.ONE_VIEW


# ---- The reference: float64 loops written from the equations. ----


def _log_sum_exp(x):
  if not x.size:
    return -np.inf
  return x.max() + np.log(np.exp(x - x.max()).sum())


def _reference(
  features,
  labels=None,
  temperature=1.0,
  contrast_mode=enums.LossContrastMode.ALL_VIEWS,
  summation_location=_OUTSIDE,
  denominator_mode=_ALL,
  positives_cap=-1,
  scale_by_temperature=True,
  keys=None,
  memory=None,
):
  """Returns loss [B] and the gradient of its mean, like `features`, float64."""
  z = np.asarray(features, np.float64)
  batch, views = z.shape[:2]
  z = z.reshape(batch, views, -1)
  vectors = {(j, u): z[j, u] for j in range(batch) for u in range(views)}
  if keys is not None:
    vectors = {(j, u): np.float64(keys[j][u]) for j, u in vectors}
  slots = {}  # Class by slot; no labels: no class of the batch.
  for slot in range(0 if memory is None else len(memory.class_ids)):
    if memory.class_ids[slot] >= 0:
      slots[slot] = -1 if labels is None else memory.class_ids[slot]
      vectors[slot] = np.float64(memory.features[slot])
  classes = np.arange(batch) if labels is None else np.argmax(labels, axis=1)
  anchor_views = 1 if contrast_mode is _ONE_VIEW else views
  loss = np.zeros(batch)
  gradient = np.zeros_like(z)
  for i, v in itertools.product(range(batch), range(anchor_views)):
    alike = [j for j in range(batch) if classes[j] == classes[i] and j != i]
    if positives_cap >= 0:
      alike = alike[: positives_cap // views]
    positives = [(i, u) for u in range(views) if u != v]
    positives += [(j, u) for j in alike for u in range(views)]
    negatives = [
      (j, u)
      for j in range(batch)
      for u in range(views)
      if classes[j] != classes[i]
    ]
    positives += [slot for slot in slots if slots[slot] == classes[i]]
    negatives += [slot for slot in slots if slots[slot] != classes[i]]
    no_denominator = denominator_mode is _ONLY_NEGATIVES and not negatives
    if not positives or no_denominator:
      continue  # By convention such an anchor contributes 0.
    contrasts = positives + negatives
    z_contrasts = np.stack([vectors[contrast] for contrast in contrasts])
    s = z_contrasts @ z[i, v] / temperature
    num_positives = len(positives)
    # in_denominator[p, j]: whether contrast j stands below positive p.
    in_denominator = np.zeros([num_positives, len(contrasts)], bool)
    in_denominator[:, num_positives:] = True
    if denominator_mode is _ALL:
      in_denominator[:] = True
    elif denominator_mode is _ONE_POSITIVE:
      in_denominator[:, :num_positives] = np.eye(num_positives, dtype=bool)
    log_denominator = np.array([_log_sum_exp(s[row]) for row in in_denominator])
    log_terms = s[:num_positives] - log_denominator
    if summation_location is _OUTSIDE:
      anchor_loss = -np.mean(log_terms)
      term_weights = np.full(num_positives, 1 / num_positives)
    else:
      log_sum = _log_sum_exp(log_terms)
      anchor_loss = np.log(num_positives) - log_sum
      term_weights = np.exp(log_terms - log_sum)
    # d(-log term_p)/ds_j = softmax over the denominator of p, minus [j = p].
    shares = np.exp(
      np.where(in_denominator, s - log_denominator[:, None], -np.inf)
    )
    ds = term_weights @ shares
    ds[:num_positives] -= term_weights
    weight = 1 / anchor_views
    if views == 1:
      weight /= num_positives
    if scale_by_temperature:
      weight *= temperature
    loss[i] += weight * anchor_loss
    ds *= weight / batch / temperature
    gradient[i, v] += ds @ z_contrasts
    for contrast, d in zip(contrasts, ds):
      if keys is None and contrast not in slots:
        gradient[contrast] += d * z[i, v]
  return loss, gradient.reshape(np.shape(features))


def test_reference_gradient_is_that_of_reference_loss():
  random = np.random.RandomState(0)
  labels = np.eye(2)[[0, 1, 0, 0]]
  for summation, denominator in itertools.product(_SUMMATIONS, _DENOMINATORS):
    features = random.randn(4, 2, 2)
    options = {
      'labels': labels,
      'temperature': 0.7,
      'summation_location': summation,
      'denominator_mode': denominator,
      'positives_cap': 2,
    }
    _, gradient = _reference(features, **options)
    for index in np.ndindex(*features.shape):
      step = np.zeros_like(features)
      step[index] = 1e-5
      above, _ = _reference(features + step, **options)
      below, _ = _reference(features - step, **options)
      numeric = (above.mean() - below.mean()) / 2e-5
      np.testing.assert_allclose(gradient[index], numeric, atol=1e-8)


# ---- Three ways to run the loss. ----


def _loss_and_gradient(features, **options):
  features = tf.convert_to_tensor(features)
  with tf.GradientTape() as tape:
    tape.watch(features)
    loss = losses.contrastive_loss(features, **options)
    mean = tf.reduce_mean(loss)
  return loss, tape.gradient(mean, features)


def _eager(features, **options):
  loss, gradient = _loss_and_gradient(features, **options)
  return loss.numpy(), gradient.numpy()


def _graph(features, **options):
  with tf.Graph().as_default(), tf1.Session() as session:
    placeholder = tf1.placeholder(features.dtype, features.shape)
    loss = losses.contrastive_loss(placeholder, **options)
    (gradient,) = tf1.gradients(tf.reduce_mean(loss), placeholder)
    assert loss.shape == features.shape[:1]
    return session.run([loss, gradient], {placeholder: features})


def _compiled(features, **options):
  run = tf.function(
    lambda x: _loss_and_gradient(x, **options), jit_compile=True
  )
  loss, gradient = run(tf.constant(features))
  return loss.numpy(), gradient.numpy()


def _in_tiles(size, run):
  """Returns the same way to run the loss, with the size of a tile forced."""
  return lambda features, **options: run(features, tile_size=size, **options)


def _gradient_atol(
  features, gradient, temperature=1.0, scale_by_temperature=True, **unused
):
  """1e-6 of the largest gradient, or of the pull and push that made it.

  A gradient is a difference of the two, each up to max|z| / batch (divided by
  the temperature unless scaled by it). Where they cancel, nothing but their
  rounding is left, in the published values as well.
  """
  pull = np.abs(features).max() / len(features)
  if not scale_by_temperature:
    pull /= temperature
  return 1e-6 * float(np.abs(gradient).max() + pull)


def _assert_like_reference(features, run=_eager, **options):
  loss, gradient = run(features, **options)
  expected_loss, expected_gradient = _reference(features, **options)
  np.testing.assert_allclose(loss, expected_loss, rtol=2e-5, atol=2e-6)
  np.testing.assert_allclose(
    gradient,
    expected_gradient,
    rtol=2e-4,
    atol=_gradient_atol(features, expected_gradient, **options),
  )


def _unit(features):
  norms = np.linalg.norm(features, axis=-1, keepdims=True)
  return (features / norms).astype(np.float32)


# ---- Golden values of the published implementation. ----


def _golden(name):
  try:
    return golden.json(name)
  except pytest.skip.Exception:
    return {'cases': [], 'validation': []}  # The other tests still run.


def _of_each_kind(cases):
  """One case for each way to sum and to choose the denominator."""
  chosen = {}
  for case in cases:
    kind = (case['summation_location'], case['denominator_mode'])
    chosen.setdefault(kind, case)
  return list(chosen.values())


@functools.cache
def _golden_arrays(name):
  return golden.npz(name)


def _name(case):
  return case['case']


_LOSS = _golden('loss.json')
_CROSS_REPLICA = _golden('cross_replica.json')


def _options(case):
  return {
    'temperature': case['temperature'],
    'contrast_mode': enums.LossContrastMode[case['contrast_mode']],
    'summation_location': enums.LossSummationLocation[
      case['summation_location']
    ],
    'denominator_mode': enums.LossDenominatorMode[case['denominator_mode']],
    'positives_cap': case['positives_cap'],
    'scale_by_temperature': case['scale_by_temperature'],
  }


def _check_golden(case, run):
  arrays = _golden_arrays('loss.npz')
  name = case['case']
  features = arrays[name + '/features']
  options = _options(case)
  options['labels'] = arrays.get(name + '/labels_onehot')
  if case['error']:
    with pytest.raises(ValueError):
      run(features, **options)
    return
  published_loss = arrays[name + '/loss']
  published_gradient = arrays[name + '/grad']
  loss, gradient = run(features, **options)
  assert loss.dtype == np.float32
  assert gradient.dtype == features.dtype
  finite = np.isfinite(published_loss)
  if finite.all() and np.isfinite(published_gradient).all():
    expected_loss, expected_gradient = published_loss, published_gradient
  else:
    # Where exp() under- or overflowed, the published values that are still
    # finite have lost digits to it too.
    expected_loss, expected_gradient = _reference(features, **options)
    np.testing.assert_allclose(
      loss[finite], published_loss[finite], rtol=1e-3, atol=2e-6
    )
  slack = 10 if case['features_kind'] == 'big' else 1
  np.testing.assert_allclose(
    loss, expected_loss, rtol=slack * 2e-5, atol=slack * 2e-6
  )
  half = features.dtype == np.float16
  np.testing.assert_allclose(
    gradient.astype(np.float64),
    expected_gradient.astype(np.float64),
    rtol=2e-3 if half else slack * 2e-4,
    atol=slack * _gradient_atol(features, expected_gradient, **options),
  )


@pytest.mark.parametrize('case', _LOSS['cases'], ids=_name)
def test_golden(case):
  _check_golden(case, _eager)


@pytest.mark.parametrize('case', _LOSS['cases'], ids=_name)
def test_golden_in_tiles(case):
  _check_golden(case, _in_tiles(3, _eager))


@pytest.mark.parametrize(
  'run', [_graph, _compiled, _in_tiles(7, _graph), _in_tiles(7, _compiled)]
)
@pytest.mark.parametrize('case', _of_each_kind(_LOSS['cases']), ids=_name)
def test_golden_in_graphs(case, run):
  _check_golden(case, run)


class _Replicas:
  """Stands in for `replicas`: several of them, one process, one tape.

  A first round over the replicas records what each of them brings to its
  gathers; in the second round, each gather returns what all have brought.
  """

  def __init__(self, count):
    self._brought = [[] for _ in range(count)]
    self._id = 0
    self._gathers = None  # How many the replica has done, in the second round.

  def num_replicas(self):
    return len(self._brought)

  def replica_id(self):
    return self._id

  def gather(self, x):
    if self._gathers is None:
      self._brought[self._id].append(x)
      return tf.concat([x] * len(self._brought), axis=0)
    self._gathers += 1
    return tf.concat([x[self._gathers - 1] for x in self._brought], axis=0)

  def run(self, function):
    """Returns [function(id) for each replica], as if they ran together."""
    for replica in range(len(self._brought)):
      self._id = replica
      function(replica)
    results = []
    for replica in range(len(self._brought)):
      self._id, self._gathers = replica, 0
      results.append(function(replica))
    return results


def _many_replicas_loss(features, labels, monkeypatch, **options):
  """[R, b, ...] -> loss [R, b] and gradient of the mean loss."""
  several = _Replicas(len(features))
  for name in ['num_replicas', 'replica_id', 'gather']:
    monkeypatch.setattr(replicas, name, getattr(several, name))
  local = [tf.constant(x) for x in features]
  with tf.GradientTape() as tape:
    tape.watch(local)
    loss = tf.stack(
      several.run(
        lambda i: losses.contrastive_loss(
          local[i], None if labels is None else labels[i], **options
        )
      )
    )
    mean = tf.reduce_mean(loss)
  return loss.numpy(), tf.stack(tape.gradient(mean, local)).numpy()


def _merge_replicas(x):
  """[R, b, ...] -> [R * b, ...]."""
  return None if x is None else x.reshape((-1,) + x.shape[2:])


@pytest.mark.parametrize('case', _CROSS_REPLICA['cases'], ids=_name)
def test_golden_replicas(case, monkeypatch):
  arrays = _golden_arrays('cross_replica.npz')
  name = case['case']
  features = arrays[name + '/features']
  labels = arrays.get(name + '/labels_onehot')
  options = _options(case)
  loss, gradient = _many_replicas_loss(features, labels, monkeypatch, **options)
  if case['finite']:
    expected_loss = arrays[name + '/loss']
    expected_gradient = arrays[name + '/grad']
  else:
    expected_loss, expected_gradient = _reference(
      _merge_replicas(features), labels=_merge_replicas(labels), **options
    )
    expected_loss = expected_loss.reshape(loss.shape)
    expected_gradient = expected_gradient.reshape(gradient.shape)
  np.testing.assert_allclose(loss, expected_loss, rtol=2e-5, atol=2e-6)
  np.testing.assert_allclose(gradient, expected_gradient, rtol=2e-4, atol=1e-7)


def test_replicas_without_labels_are_told_apart(monkeypatch):
  # Two replicas with one sample each, both views of it 1 and -1 respectively:
  # similarity 1 to the positive, -1 to the two negatives. Without the replica
  # id, the second replica would take the first one's sample for its own.
  features = np.array([[[[1], [1]]], [[[-1], [-1]]]], np.float32)
  loss, _ = _many_replicas_loss(features, None, monkeypatch)
  expected = -np.log(np.exp(1) / (np.exp(1) + 2 * np.exp(-1)))
  np.testing.assert_allclose(loss, [[expected], [expected]], rtol=1e-6)


# ---- By hand. ----

# Exponentials of similarities to the first view of the first sample: its other
# views 2 and 3, the three views of the other sample 1 each.
_BY_HAND = np.array(
  [[[1, 0], [np.log(2), 0], [np.log(3), 0]], [[0, 1], [0, 1], [0, 1]]],
  np.float32,
)


@pytest.mark.parametrize(
  ('summation', 'denominator', 'expected'),
  [
    # The denominator is 2 + 3 + 1 + 1 + 1 = 8.
    (_OUTSIDE, _ALL, -(np.log(2 / 8) + np.log(3 / 8)) / 2),
    (_INSIDE, _ALL, -np.log((2 / 8 + 3 / 8) / 2)),
    # 2 + 3 for the first term, 3 + 3 for the second.
    (_OUTSIDE, _ONE_POSITIVE, -(np.log(2 / 5) + np.log(3 / 6)) / 2),
    (_INSIDE, _ONE_POSITIVE, -np.log((2 / 5 + 3 / 6) / 2)),
    # 1 + 1 + 1 = 3.
    (_OUTSIDE, _ONLY_NEGATIVES, -(np.log(2 / 3) + np.log(3 / 3)) / 2),
    (_INSIDE, _ONLY_NEGATIVES, -np.log((2 / 3 + 3 / 3) / 2)),
  ],
)
def test_modes_by_hand(summation, denominator, expected):
  loss = losses.contrastive_loss(
    _BY_HAND,
    contrast_mode=_ONE_VIEW,
    summation_location=summation,
    denominator_mode=denominator,
  )
  assert loss.shape == [2] and loss.dtype == tf.float32
  np.testing.assert_allclose(loss[0], expected, rtol=1e-6)


def test_temperature_by_hand():
  # At temperature 0.5 the exponentials are squared: 4 and 9, and three 1s.
  expected = -(np.log(4 / 16) + np.log(9 / 16)) / 2
  options = {'temperature': 0.5, 'contrast_mode': _ONE_VIEW}
  scaled = losses.contrastive_loss(_BY_HAND, **options)
  plain = losses.contrastive_loss(
    _BY_HAND, scale_by_temperature=False, **options
  )
  np.testing.assert_allclose(plain[0], expected, rtol=1e-6)
  np.testing.assert_allclose(scaled[0], expected * 0.5, rtol=1e-6)


def test_all_views_is_the_mean_over_anchors():
  # Second view as anchor: exponentials 2 (the first view), 2^log 3 (the third)
  # and three 1s; third view: 3, 3^log 2 = 2^log 3, and three 1s.
  x = 2 ** np.log(3)
  anchors = [
    -(np.log(2 / 8) + np.log(3 / 8)) / 2,
    -(np.log(2 / (5 + x)) + np.log(x / (5 + x))) / 2,
    -(np.log(3 / (6 + x)) + np.log(x / (6 + x))) / 2,
  ]
  loss = losses.contrastive_loss(_BY_HAND)
  np.testing.assert_allclose(loss[0], np.mean(anchors), rtol=1e-6)


def test_positives_cap_by_hand():
  # One class; similarities of the first anchor to its other view 0, to the
  # second sample log 2 (twice), to the third log 3 (twice).
  rows = [[1, 0], [0, 1], [np.log(2), 0], [np.log(2), 0]]
  rows += [[np.log(3), 0], [np.log(3), 0]]
  features = np.array(rows, np.float32).reshape([3, 2, 2])
  expected = {
    # Only the own other view: 1 of 1.
    0: 0,
    # With the second sample, which comes first: 1, 2, 2 of 5. The third
    # sample stands in no denominator.
    2: -(np.log(1 / 5) + 2 * np.log(2 / 5)) / 3,
    # With all: 1, 2, 2, 3, 3 of 11.
    4: -(np.log(1 / 11) + 2 * np.log(2 / 11) + 2 * np.log(3 / 11)) / 5,
  }
  expected[6] = expected[-1] = expected[-2] = expected[4]
  for cap, value in expected.items():
    loss = losses.contrastive_loss(
      features, np.ones([3, 1]), contrast_mode=_ONE_VIEW, positives_cap=cap
    )
    np.testing.assert_allclose(loss[0], value, rtol=1e-6, atol=1e-7)


def test_single_view_divides_by_positives_once_more():
  # Equal features of one class: each anchor has two positives, log(1 / 2) each.
  loss = losses.contrastive_loss(tf.ones([3, 1, 1]), tf.ones([3, 1]))
  np.testing.assert_allclose(loss, np.log(2) / 2 * np.ones(3), rtol=1e-6)


# ---- Against the loops. ----


@pytest.mark.parametrize('tile_size', [None, 3, 100])
@pytest.mark.parametrize('seed', range(40))
def test_like_reference(seed, tile_size):
  random = np.random.RandomState(seed)
  views = 1 + seed % 4
  batch = random.randint(2, 9)
  features = random.randn(batch, views, random.randint(2, 9))
  features = _unit(features) if random.rand() < 0.7 else np.float32(features)
  classes = random.randint(1, batch + 1)
  labels = np.eye(classes, dtype=random.choice(['float32', 'int32']))
  _assert_like_reference(
    features,
    run=_in_tiles(tile_size, _eager),
    labels=labels[random.randint(classes, size=batch)],
    temperature=random.uniform(0.05, 1),
    contrast_mode=_CONTRAST_MODES[random.randint(2)],
    summation_location=_SUMMATIONS[random.randint(2)],
    denominator_mode=_DENOMINATORS[random.randint(3)],
    positives_cap=int(random.choice([-1, 0, 1, 2])) * views,
    scale_by_temperature=bool(random.randint(2)),
  )


# ---- Keys and memory. ----


def _memory(seed=0):
  """Returns 7 slots, two of them empty, with classes 0, 1 and 5."""
  random = np.random.RandomState(seed)
  return pairwise.Memory(
    _unit(random.randn(7, 4)).astype(np.float32),
    np.array([1, -1, 0, 5, 1, -1, 0], np.int32),
  )


@pytest.mark.parametrize('tile_size', [None, 3])
@pytest.mark.parametrize('has_memory', [False, True])
@pytest.mark.parametrize('has_keys', [False, True])
def test_keys_and_memory_like_reference(has_keys, has_memory, tile_size):
  random = np.random.RandomState(1)
  for use_labels, summation, denominator, mode, views in itertools.product(
    [False, True], _SUMMATIONS, _DENOMINATORS, _CONTRAST_MODES, [1, 2]
  ):
    features, keys = _unit(random.randn(2, 5, views, 4)).astype(np.float32)
    options = {
      'labels': np.eye(3)[[0, 1, 0, 2, 1]] if use_labels else None,
      'temperature': 0.5,
      'contrast_mode': mode,
      'summation_location': summation,
      'denominator_mode': denominator,
      'keys': keys if has_keys else None,
      'memory': _memory() if has_memory else None,
    }
    run = _in_tiles(tile_size, _eager)
    _assert_like_reference(features, run, **options)


def test_memory_by_hand():
  # Two classes of one view; the memory has a positive and a negative of the
  # first one, and an empty slot, which would be a perfect match.
  features = tf.constant([[[1.0, 0.0]], [[0.0, 1.0]]])
  memory = pairwise.Memory(
    tf.constant([[1.0, 0.0], [-1.0, 0.0], [1.0, 0.0]]), tf.constant([0, 1, -1])
  )
  loss = losses.contrastive_loss(features, tf.constant([0, 1]), memory=memory)
  # Similarities of the first: 1 to its positive; 0 and -1 to its negatives. Of
  # the second: 0 to its positive; 0 and 0 to its negatives.
  e = np.exp
  expected = [np.log(1 + e(-1) + e(-2)), np.log(3)]
  np.testing.assert_allclose(loss, expected, rtol=1e-6)


def test_an_empty_memory_changes_nothing():
  features = _unit(np.random.RandomState(0).randn(4, 2, 3)).astype(np.float32)
  labels = np.array([0, 1, 1, 0])
  empty = pairwise.Memory(tf.zeros([5, 3]), tf.fill([5], -1))
  loss, gradient = _eager(features, labels=labels, memory=empty)
  expected, expected_gradient = _eager(features, labels=labels)
  np.testing.assert_allclose(loss, expected, rtol=1e-6)
  np.testing.assert_allclose(gradient, expected_gradient, atol=1e-7)


def test_of_padding_a_memory_knows_nothing():
  random = np.random.RandomState(0)
  features, keys = _unit(random.randn(2, 4, 2, 4)).astype(np.float32)
  options = dict(labels=np.array([0, 1, 0, 1]), memory=_memory())
  is_valid = np.array([True, True, True, False])
  loss, _ = _eager(features, **options, keys=keys, is_valid=is_valid)
  options['labels'] = options['labels'][:3]
  expected, _ = _eager(features[:3], **options, keys=keys[:3])
  np.testing.assert_allclose(loss[:3], expected, rtol=1e-6)
  assert loss[3] == 0


def test_a_memory_takes_no_cap():
  with pytest.raises(ValueError, match='positives_cap=2 .* memory'):
    losses.contrastive_loss(
      tf.zeros([2, 2, 4]), positives_cap=2, memory=_memory()
    )


def test_trailing_dimensions_are_flattened():
  features = _unit(np.random.RandomState(0).randn(3, 2, 8))
  np.testing.assert_array_equal(
    losses.contrastive_loss(features.reshape([3, 2, 2, 2, 2])),
    losses.contrastive_loss(features),
  )


@pytest.mark.parametrize('denominator', _DENOMINATORS)
@pytest.mark.parametrize('summation', _SUMMATIONS)
def test_order_of_samples_and_views_does_not_matter(summation, denominator):
  random = np.random.RandomState(0)
  features = _unit(random.randn(6, 3, 4))
  labels = np.eye(3)[[0, 1, 1, 2, 0, 1]]
  order = [3, 1, 5, 0, 2, 4]
  options = {
    'temperature': 0.2,
    'summation_location': summation,
    'denominator_mode': denominator,
  }
  loss = losses.contrastive_loss(features, labels, **options)
  permuted = losses.contrastive_loss(
    features[order][:, [2, 0, 1]], labels[order], **options
  )
  np.testing.assert_allclose(permuted, loss.numpy()[order], rtol=1e-5)


@pytest.mark.parametrize('dtype', [tf.float16, tf.bfloat16, tf.float32])
def test_similarities_are_float32(dtype):
  # (1 + 2^-7)^2 = 1.01568... needs more bits than float16 or bfloat16 have.
  value = tf.constant(1 + 2.0**-7, dtype)
  loss, gradient = _loss_and_gradient(
    tf.stack([[[value]] * 2, [[tf.zeros([], dtype)]] * 2])
  )
  s = (1 + 2.0**-7) ** 2
  assert loss.dtype == tf.float32 and gradient.dtype == dtype
  np.testing.assert_allclose(loss[0], np.log(1 + 2 * np.exp(-s)), rtol=1e-6)


# ---- Tiles. ----


@pytest.fixture(name='v1_control_flow')
def _v1_control_flow():
  """The loops that Estimator builds."""
  tf1.disable_control_flow_v2()
  yield
  tf1.enable_control_flow_v2()


@pytest.mark.parametrize('denominator', _DENOMINATORS)
@pytest.mark.parametrize('summation', _SUMMATIONS)
def test_tiles_in_the_graph_of_an_estimator(
  summation, denominator, v1_control_flow
):
  random = np.random.RandomState(0)
  for size in (1, 4, 7, 100):  # Of 10 anchors.
    _assert_like_reference(
      _unit(random.randn(5, 2, 3)),
      run=_in_tiles(size, _graph),
      labels=np.eye(2)[[0, 1, 1, 1, 0]],
      summation_location=summation,
      denominator_mode=denominator,
      positives_cap=2,
    )


@pytest.mark.parametrize('run', [_eager, _graph])
def test_size_of_tiles_does_not_matter(run):
  # Two tiles are chosen, whose slopes are kept; three are forced, whose slopes
  # are computed again; and one.
  features = _unit(np.random.RandomState(0).randn(1100, 2, 4))
  labels = np.arange(1100) % 7
  assert pairwise.tile_shape(2200, 2200) == (1100, 2200)
  expected_loss, expected = run(features, labels=labels, tile_size=2200)
  for size in (None, 900):
    loss, gradient = run(features, labels=labels, tile_size=size)
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-6)
    np.testing.assert_allclose(
      gradient, expected, atol=_gradient_atol(features, expected)
    )


def test_large_batches_need_no_matrix_of_all_pairs(v1_control_flow):
  with tf.Graph().as_default() as graph:
    features = tf1.placeholder(tf.float32, [32768, 2, 8])
    labels = tf1.placeholder(tf.int32, [32768])
    loss = losses.contrastive_loss(features, labels, positives_cap=4)
    tf1.gradients(loss, features)
    sizes = [
      tensor.shape.num_elements()
      for op in graph.get_operations()
      for tensor in op.outputs
      if tensor.shape.is_fully_defined()
    ]
  assert max(sizes) == 128 * 65536


# ---- Conventions, and where the published loss is not finite. ----


@pytest.mark.parametrize('run', [_eager, _graph, _in_tiles(2, _graph)])
@pytest.mark.parametrize('denominator', _DENOMINATORS)
@pytest.mark.parametrize('summation', _SUMMATIONS)
def test_anchors_without_positives_contribute_nothing(
  summation, denominator, run
):
  features = _unit(np.random.RandomState(0).randn(3, 1, 4))
  loss, gradient = run(
    features,
    labels=np.eye(2)[[0, 1, 1]],  # The first sample has no positive.
    summation_location=summation,
    denominator_mode=denominator,
  )
  assert loss[0] == 0
  assert np.isfinite(loss).all() and np.isfinite(gradient).all()
  _assert_like_reference(
    features,
    run=run,
    labels=np.eye(2)[[0, 1, 1]],
    summation_location=summation,
    denominator_mode=denominator,
  )


@pytest.mark.parametrize('run', [_eager, _graph, _in_tiles(2, _graph)])
@pytest.mark.parametrize('summation', _SUMMATIONS)
@pytest.mark.parametrize('denominator', [_ONE_POSITIVE, _ONLY_NEGATIVES])
def test_anchors_without_negatives_contribute_nothing(
  summation, denominator, run
):
  features = 30 * np.random.RandomState(0).randn(3, 2, 4).astype(np.float32)
  loss, gradient = run(
    features,
    labels=np.ones([3, 1]),
    summation_location=summation,
    denominator_mode=denominator,
  )
  np.testing.assert_array_equal(loss, np.zeros(3))
  np.testing.assert_array_equal(gradient, np.zeros([3, 2, 4]))


@pytest.mark.parametrize(
  ('scale', 'run'),
  [(1e2, _eager), (1e4, _graph), (1e8, _compiled), (1e15, _eager)],
)
def test_huge_features_by_hand(scale, run):
  # Two classes at a right angle: similarities scale^2 to the three positives,
  # 0 to the negatives, which vanish beside them.
  features = np.zeros([4, 2, 2], np.float32)
  features[:2, :, 0] = features[2:, :, 1] = scale
  for summation, denominator, expected in [
    (_OUTSIDE, _ALL, np.log(3)),  # -log(1 / 3)
    (_INSIDE, _ALL, np.log(3)),
    (_OUTSIDE, _ONE_POSITIVE, 0),  # -log(1 / 1)
    (_INSIDE, _ONE_POSITIVE, 0),
    (_OUTSIDE, _ONLY_NEGATIVES, np.log(4) - scale**2),  # Four exp(0) below.
    (_INSIDE, _ONLY_NEGATIVES, np.log(4) - scale**2),
  ]:
    loss, gradient = run(
      features,
      labels=np.eye(2)[[0, 0, 1, 1]],
      summation_location=summation,
      denominator_mode=denominator,
    )
    np.testing.assert_allclose(loss, [expected] * 4, rtol=1e-6, atol=1e-6)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize('denominator', [_ONE_POSITIVE, _ONLY_NEGATIVES])
@pytest.mark.parametrize('summation', _SUMMATIONS)
def test_huge_features_without_negatives_contribute_nothing(
  summation, denominator
):
  # Nothing is in the denominators. What stands for it is subtracted from
  # similarities of 1e34, which must not overflow.
  loss, gradient = _eager(
    np.full([2, 2, 1], 1e17, np.float32),
    labels=np.zeros(2, np.int32),
    summation_location=summation,
    denominator_mode=denominator,
  )
  np.testing.assert_array_equal(loss, [0, 0])
  np.testing.assert_array_equal(gradient, np.zeros([2, 2, 1]))


@pytest.mark.parametrize('summation', _SUMMATIONS)
def test_hugely_dissimilar_by_hand(summation):
  # Everybody is opposite to the anchor, at similarity -1e16: one positive of
  # three equal contrasts, -log(1 / 3). The masked anchor must stay below them.
  features = -np.ones([2, 2, 1], np.float32)
  features[0, 0] = 1
  loss, gradient = _eager(
    1e8 * features, contrast_mode=_ONE_VIEW, summation_location=summation
  )
  np.testing.assert_allclose(loss[0], np.log(3), rtol=1e-6)
  assert np.isfinite(gradient).all()


@pytest.mark.parametrize('denominator', _DENOMINATORS)
@pytest.mark.parametrize('summation', _SUMMATIONS)
def test_huge_features_like_reference(summation, denominator):
  # Whole numbers, whose products float32 holds exactly up to 2^24. Each sample
  # has its other view nearby, its class on the far side and a negative nearby,
  # so that all terms count and losses are as large as the similarities.
  random = np.random.RandomState(1)
  features = 1000 + random.randint(-3, 4, size=[4, 2, 3])
  features[1::2] *= -1
  _assert_like_reference(
    features.astype(np.float32),
    labels=np.eye(2)[[0, 0, 1, 1]],
    summation_location=summation,
    denominator_mode=denominator,
  )


# ---- What is no number. ----


@pytest.mark.parametrize(
  ('value', 'run'),
  [
    (np.nan, _eager),
    (np.nan, _graph),
    (np.nan, _compiled),
    (np.inf, _eager),
    (-np.inf, _graph),
    (np.nan, _in_tiles(5, _graph)),
    (-np.inf, _in_tiles(5, _eager)),
  ],
)
def test_what_is_no_number_does_not_pass_for_a_loss(value, run):
  features = _unit(np.random.RandomState(0).randn(6, 2, 4))
  features[1, 0, 2] = value
  for summation, denominator in itertools.product(_SUMMATIONS, _DENOMINATORS):
    loss, gradient = run(
      features,
      labels=[0, 0, 1, 1, 2, 2],
      summation_location=summation,
      denominator_mode=denominator,
    )
    assert np.isnan(loss).all(), (summation, denominator)
    # Whoever looks at gradients alone sees it, too.
    assert not np.isfinite(gradient).all()


def test_only_losses_that_depend_on_it_are_nan():
  # One view each. Sample 0 is alone in its class: whatever others hold, it
  # contributes 0. A cap of 1 leaves sample 4 out of what 1 and 2 look at.
  features = _unit(np.random.RandomState(0).randn(5, 1, 4))
  features[4] = np.nan
  loss, _ = _eager(features, labels=[0, 1, 1, 2, 1], positives_cap=1)
  np.testing.assert_array_equal(np.isnan(loss), [0, 0, 0, 0, 1])
  assert loss[0] == loss[3] == 0 and loss[1] > 0
  # Alone, but itself no number.
  loss, _ = _eager(features, labels=[0, 1, 2, 3, 4])
  np.testing.assert_array_equal(loss, [0, 0, 0, 0, np.nan])


@pytest.mark.parametrize(
  'labels',
  [
    [[1, 0], [0, 1], [0, 0], [1, 0]],
    [[1, 0], [0, 1], [1, 1], [1, 0]],
    [[1, 0], [0, 1], [np.nan, 1], [1, 0]],
    [[1, 0], [0, 1], [0.9, 0.1], [1, 0]],
    [[1, 0, 0], [0, 1, 0], [1, 1, -1], [1, 0, 0]],
    [0, 1, np.nan, 0],
    [[0], [1], [0.5], [0]],
    [0, 1, -1, 0],
    np.array([0, 1, 2**31, 0]),
    np.float32([0, 1, 2**24 + 2, 0]),
  ],
  ids=str,
)
class TestLabelsThatAreNone:
  """The third label is none."""

  def test_known_ones_raise(self, labels):
    def loss(is_valid=None):
      return losses.contrastive_loss(_UNIT, labels, is_valid=is_valid)

    with pytest.raises(ValueError, match='^Row 2 of labels .*give each') as e:
      loss()
    assert '\n' not in str(e.value)
    with tf.Graph().as_default(), pytest.raises(ValueError, match='Row 2'):
      loss()
    assert np.isfinite(loss(is_valid=[1, 1, 0, 1])).all()  # It is padding.

  def test_in_a_graph_they_make_the_loss_nan(self, labels):
    labels = np.asarray(labels)
    for compiled in (False, True):
      loss = tf.function(losses.contrastive_loss, jit_compile=compiled)
      assert np.isnan(loss(_UNIT, tf.constant(labels))).all()
      valid = loss(
        _UNIT, tf.constant(labels), is_valid=tf.constant([1, 1, 0, 1])
      )
      assert np.isfinite(valid).all()


# ---- Labels. ----


@pytest.mark.parametrize(
  'dtype', ['uint8', 'int32', 'int64', 'uint64', 'float16', 'float32', 'bool']
)
def test_ids_and_columns_of_ids_mean_what_one_hot_rows_mean(dtype):
  ids = np.array([0, 1, 1, 0], dtype)
  expected = losses.contrastive_loss(_UNIT, np.eye(2)[[0, 1, 1, 0]])
  alike = losses.contrastive_loss(_UNIT, np.ones([4, 1]))
  assert np.abs(alike - expected).min() > 0.01  # The labels matter.
  one_hot = np.eye(2, dtype=dtype)[[0, 1, 1, 0]]
  unknown = tf.function(lambda labels: losses.contrastive_loss(_UNIT, labels))
  for labels in (ids, ids[:, None], one_hot):
    np.testing.assert_array_equal(
      losses.contrastive_loss(_UNIT, labels), expected
    )
    np.testing.assert_allclose(
      unknown(tf.constant(labels)), expected, rtol=1e-6
    )
    with tf.Graph().as_default(), tf1.Session() as session:
      found = session.run(losses.contrastive_loss(_UNIT, labels))
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_ids_need_not_follow_one_another():
  np.testing.assert_array_equal(
    losses.contrastive_loss(_UNIT, [[7], [2**31 - 1], [7], [300]]),
    losses.contrastive_loss(_UNIT, [0, 1, 0, 2]),
  )


def test_a_single_column_means_the_same_as_ids_and_as_one_hot():
  # One-hot of a single class is a column of ones: as ids, they are alike, too.
  np.testing.assert_array_equal(
    losses.contrastive_loss(_UNIT, np.ones([4, 1], np.float32)),
    losses.contrastive_loss(_UNIT, np.zeros([4], int)),
  )


def test_how_many_columns_there_are_may_show_as_the_graph_runs():
  loss = tf.function(
    lambda labels: losses.contrastive_loss(_UNIT, labels),
    input_signature=[tf.TensorSpec([4, None], tf.float32)],
  )
  for labels in ([[0.0], [1], [1], [0]], np.eye(2)[[0, 1, 1, 0]]):
    np.testing.assert_allclose(
      loss(labels), losses.contrastive_loss(_UNIT, [0, 1, 1, 0]), rtol=1e-6
    )


@pytest.mark.parametrize('shape', [None, [3], [3, 2], [4, 2, 1], []])
def test_shapes_of_labels_raise_as_a_graph_is_built(shape):
  with tf.Graph().as_default():
    labels = tf1.placeholder(tf.float32, shape)
    with pytest.raises(ValueError, match='Found labels of shape .*; give each'):
      losses.contrastive_loss(_UNIT, labels)


# ---- Padding. ----


@pytest.mark.parametrize('use_labels', [False, True])
@pytest.mark.parametrize('views', [1, 2, 3])
@pytest.mark.parametrize('denominator', _DENOMINATORS)
@pytest.mark.parametrize('cap', [-1, 1])
def test_padding_equals_dropping(use_labels, views, denominator, cap):
  random = np.random.RandomState(views)
  is_valid = np.array([1, 0, 1, 1, 0, 1, 1, 0], bool)
  features = _unit(random.randn(8, views, 4))
  features[~is_valid] = np.nan  # It must not matter what padding holds.
  labels = np.eye(2)[[0, 0, 1, 0, 1, 1, 0, 0]] if use_labels else None
  options = {
    'temperature': 0.3,
    'denominator_mode': denominator,
    'positives_cap': cap * views,
  }
  expected_loss, expected_gradient = _eager(
    features[is_valid],
    labels=labels[is_valid] if use_labels else None,
    **options,
  )
  for run, mask in [
    (_eager, is_valid),
    (_eager, is_valid.astype(np.float32)),
    (_graph, is_valid),
    (_in_tiles(5, _graph), is_valid),
  ]:
    loss, gradient = run(features, labels=labels, is_valid=mask, **options)
    np.testing.assert_allclose(loss[is_valid], expected_loss, rtol=1e-5)
    np.testing.assert_array_equal(loss[~is_valid], np.zeros(3))
    # Means over 8 and over 5.
    np.testing.assert_allclose(
      gradient[is_valid] * 8, expected_gradient * 5, rtol=1e-4, atol=1e-7
    )
    np.testing.assert_array_equal(gradient[~is_valid], 0)


def test_all_valid_and_none_valid():
  features = _unit(np.random.RandomState(0).randn(4, 2, 3))
  np.testing.assert_array_equal(
    losses.contrastive_loss(features, is_valid=tf.ones([4])),
    losses.contrastive_loss(features),
  )
  loss, gradient = _eager(features, is_valid=tf.zeros([4], tf.bool))
  np.testing.assert_array_equal(loss, np.zeros(4))
  np.testing.assert_array_equal(gradient, np.zeros([4, 2, 3]))


# ---- Bad arguments. ----

_UNIT = _unit(np.random.RandomState(0).randn(4, 2, 3))
_BAD = {
  'rank2_features': {'features': _UNIT[:, 0]},
  'labels_rank3': {'labels': np.eye(4)[..., None]},
  'labels_wrong_batch': {'labels': np.eye(3)},
  'ids_wrong_batch': {'labels': np.arange(3)},
  'labels_strings': {'labels': np.array(['a', 'b', 'a', 'b'])},
  'cap_not_multiple_of_views': {'positives_cap': 3},
  'contrast_mode_string': {'contrast_mode': 'ALL_VIEWS'},
  'summation_string': {'summation_location': 'OUTSIDE'},
  'denominator_string': {'denominator_mode': 'ALL'},
  'cap_larger_than_batch': {'positives_cap': 10},
  'is_valid_wrong_batch': {'is_valid': np.ones(3)},
  'choice_of_another_kind': {'contrast_mode': _OUTSIDE},
  'no_anchor_in_a_tile': {'tile_size': 0},
  'negative_tile_size': {'tile_size': -1},
}
_GOOD = {
  'cap_minus_two': {'positives_cap': -2},
  'cap_of_the_batch': {'positives_cap': 8},
  # Here these are class ids; the published code refuses them.
  'labels_rank1': {'labels': np.arange(4)},
}


@pytest.mark.parametrize('name', _BAD)
def test_bad_arguments_raise(name):
  with pytest.raises(ValueError) as error:
    losses.contrastive_loss(**{'features': _UNIT, **_BAD[name]})
  assert '\n' not in str(error.value)


@pytest.mark.parametrize('name', _GOOD)
def test_good_arguments_do_not_raise(name):
  np.testing.assert_array_equal(
    losses.contrastive_loss(_UNIT, **_GOOD[name]),
    losses.contrastive_loss(_UNIT),
  )


@pytest.mark.parametrize(
  'validation', _LOSS['validation'], ids=lambda validation: validation['name']
)
def test_raises_where_published_does(validation):
  name = validation['name']
  if name == 'labels_rank1':
    pytest.skip('labels of rank 1 are class ids here, an extension')
  arguments = {**_BAD, **_GOOD}.get(name)
  if arguments is None:
    pytest.skip(f'{name}: arguments not known')
  if not validation['raises']:
    losses.contrastive_loss(**{'features': _UNIT, **arguments})
    return
  with pytest.raises(ValueError):
    losses.contrastive_loss(**{'features': _UNIT, **arguments})


def test_unknown_batch_raises():
  with tf.Graph().as_default():
    features = tf1.placeholder(tf.float32, [None, 2, 3])
    with pytest.raises(ValueError, match='static batch'):
      losses.contrastive_loss(features)


# ---- The Keras loss. ----


def test_keras_loss_is_the_mean_of_the_function():
  labels = np.eye(2)[[0, 1, 1, 0]]
  options = {
    'temperature': 0.3,
    'contrast_mode': _ONE_VIEW,
    'summation_location': _INSIDE,
    'denominator_mode': _ONE_POSITIVE,
    'positives_cap': 0,
    'scale_by_temperature': False,
  }
  expected = losses.contrastive_loss(_UNIT, labels, **options)
  loss = losses.ContrastiveLoss(**options)
  copy = losses.ContrastiveLoss.from_config(loss.get_config())
  for each in [loss, copy]:
    np.testing.assert_allclose(
      each(labels, _UNIT), np.mean(expected), rtol=1e-6
    )
  per_sample = losses.ContrastiveLoss(reduction='none', **options)
  np.testing.assert_array_equal(per_sample(labels, _UNIT), expected)


def test_keras_loss_has_the_defaults_of_the_function():
  labels = np.eye(2)[[0, 1, 1, 0]]
  np.testing.assert_array_equal(
    losses.ContrastiveLoss(reduction='none')(labels, _UNIT),
    losses.contrastive_loss(_UNIT, labels),
  )


@pytest.mark.parametrize('labels', [[0, 1, 1, 0], [[0], [1], [1], [0]]])
def test_keras_loss_takes_ids(labels):
  np.testing.assert_allclose(
    losses.ContrastiveLoss()(tf.constant(labels), _UNIT),
    np.mean(losses.contrastive_loss(_UNIT, np.eye(2)[[0, 1, 1, 0]])),
    rtol=1e-6,
  )


_IN_KERAS = """
import numpy as np
from supcon import losses
from supcon import pairwise
import tensorflow as tf

print(3 if hasattr(tf.keras, 'ops') else 2)
inputs = np.random.RandomState(0).randn(8, 3).astype(np.float32)
ids = np.array([0, 1, 2, 0, 1, 2, 0, 1])
model = tf.keras.Sequential(
  [tf.keras.layers.Dense(8, input_shape=(3,)), tf.keras.layers.Reshape([2, 4])]
)
expected = np.mean(losses.contrastive_loss(model(inputs), ids, 0.5))
loss = losses.ContrastiveLoss(0.5)
copy = losses.ContrastiveLoss.from_config(loss.get_config())
each = losses.ContrastiveLoss(0.5, reduction='none')
for labels in (ids, ids[:, None], np.eye(3)[ids]):
  np.testing.assert_allclose(loss(labels, model(inputs)), expected, rtol=1e-5)
  np.testing.assert_allclose(copy(labels, model(inputs)), expected, rtol=1e-5)
  assert each(labels, model(inputs)).shape == [8]
  data = tf.data.Dataset.from_tensors((inputs, labels))
  data = data.map(lambda x, y: (tf.ensure_shape(x, [8, 3]), y))
  model.compile(tf.keras.optimizers.SGD(0.0), loss)
  history = model.fit(data, epochs=1, verbose=0)
  np.testing.assert_allclose(history.history['loss'], [expected], rtol=1e-5)
"""


@pytest.mark.parametrize('major', ['2', '3'])
def test_keras_loss_is_one_of_keras_2_and_of_keras_3(major):
  installed = {each.name for each in metadata.distributions()}
  legacy = major == '2' and 'tf_keras' in installed
  if not legacy and not metadata.version('keras').startswith(major):
    pytest.skip(f'Keras {major} is not installed')
  done = subprocess.run(
    [sys.executable, '-c', _IN_KERAS],
    env={**os.environ, 'TF_USE_LEGACY_KERAS': str(int(legacy))},
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  assert done.stdout == f'{major}\n'


# ---- Cross-entropy. ----


@pytest.mark.parametrize('dtype', ['float16', 'float32'])
@pytest.mark.parametrize('labels_dtype', ['int32', 'float32'])
def test_cross_entropy_by_hand(dtype, labels_dtype):
  # Probabilities 3/4 and 1/4 of two classes; then four equal ones.
  logits = tf.constant([[np.log(3), 0]], dtype)
  labels = np.array([[1, 0]], labels_dtype)
  tolerance = 1e-3 if dtype == 'float16' else 1e-6
  loss = losses.cross_entropy_loss(labels, logits)
  assert loss.dtype == tf.float32 and loss.shape == [1]
  np.testing.assert_allclose(loss, [-np.log(3 / 4)], rtol=tolerance)
  # Smoothing by 0.2 leaves 1 - 0.2 + 0.2 / 2 = 0.9 and gives 0.2 / 2 = 0.1.
  loss = losses.cross_entropy_loss(labels, logits, label_smoothing=0.2)
  np.testing.assert_allclose(
    loss, [-(0.9 * np.log(3 / 4) + 0.1 * np.log(1 / 4))], rtol=tolerance
  )


def test_cross_entropy_is_keras_s():
  random = np.random.RandomState(0)
  logits = 10 * random.randn(5, 7).astype(np.float32)
  labels = np.eye(7, dtype=np.float32)[random.randint(7, size=5)]
  for smoothing in [0.0, 0.1, 1.0]:
    np.testing.assert_allclose(
      losses.cross_entropy_loss(labels, logits, smoothing),
      tf.keras.losses.categorical_crossentropy(
        labels, logits, from_logits=True, label_smoothing=smoothing
      ),
      rtol=1e-5,
      atol=1e-6,
    )


@pytest.mark.parametrize(
  'arguments',
  [
    {'labels': np.eye(3), 'logits': np.ones([3, 2])},
    {'labels': np.array([0, 1, 0]), 'logits': np.ones([2, 2])},
    {'labels': np.array([0, 2]), 'logits': np.ones([2, 2])},
    {'labels': np.array([0, -1]), 'logits': np.ones([2, 2])},
    {'labels': np.array([[1, 0], [0, 0]]), 'logits': np.ones([2, 2])},
    {'labels': np.array([[1, 0], [1, 1]]), 'logits': np.ones([2, 2])},
    {'labels': np.array([[1, 0], [2, -1]]), 'logits': np.ones([2, 2])},
    {'labels': np.array([[1, 0], [np.nan, 1]]), 'logits': np.ones([2, 2])},
    {'labels': np.eye(2), 'logits': np.eye(2), 'label_smoothing': 1.5},
    {'labels': np.eye(2), 'logits': np.eye(2), 'label_smoothing': -0.1},
  ],
)
def test_cross_entropy_raises(arguments):
  with pytest.raises(ValueError):
    losses.cross_entropy_loss(**arguments)


def test_cross_entropy_takes_ids():
  logits = np.random.RandomState(0).randn(3, 4).astype(np.float32)
  expected = losses.cross_entropy_loss(np.eye(4)[[3, 0, 2]], logits, 0.1)
  for labels in ([3, 0, 2], [[3], [0], [2]]):
    np.testing.assert_array_equal(
      losses.cross_entropy_loss(labels, logits, 0.1), expected
    )


def test_cross_entropy_takes_soft_labels():
  # -(0.25 log(3/4) + 0.75 log(1/4)).
  loss = losses.cross_entropy_loss([[0.25, 0.75]], [[np.log(3.0), 0.0]])
  expected = -(0.25 * np.log(3 / 4) + 0.75 * np.log(1 / 4))
  np.testing.assert_allclose(loss, [expected], rtol=1e-6)


@pytest.mark.parametrize('labels', [[0, 2], [[1.0, 0.0], [0.0, 0.0]]])
def test_cross_entropy_of_what_is_no_label_is_nan_in_a_graph(labels):
  loss = tf.function(losses.cross_entropy_loss)
  found = loss(tf.constant(labels), tf.zeros([2, 2]))
  np.testing.assert_allclose(found, [np.log(2), np.nan], rtol=1e-6)


@pytest.mark.parametrize('value', [np.nan, np.inf])
def test_cross_entropy_of_what_is_no_number_is_none(value):
  loss = losses.cross_entropy_loss([0, 1], [[0.0, 0.0], [0.0, value]])
  assert np.isfinite(loss[0]) and not np.isfinite(loss[1])
