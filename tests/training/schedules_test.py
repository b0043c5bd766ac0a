"""Tests of supcon.training.schedules."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from supcon.config import enums
from supcon.config import hparams
from supcon.training import schedules
from tests import golden

tf1 = tf.compat.v1

# 10 steps per epoch, and peak rate = base rate, unless a test says otherwise.
NUM_EXAMPLES = 2560
BATCH_SIZE = 256

# Without warm-up and decay: what a test varies stands in the test.
CONSTANT = hparams.Stage(
  epochs=4,
  warmup_epochs=0.0,
  base_learning_rate=1.0,
  learning_rate_decay=enums.DecayType.NO_DECAY,
)


def _evaluate(build, steps):
  """Returns float32 [stages, steps]: `build(step)` in a session, step by step.

  One scalar step at a time, as in training: vectorised kernels may round
  differently at the boundary of a drop.
  """
  with tf.Graph().as_default(), tf1.Session() as session:
    step = tf1.placeholder(tf.int64, [])
    tensors = build(step)
    return np.transpose([session.run(tensors, {step: s}) for s in steps])


def _rates(stages, steps, num_examples=NUM_EXAMPLES, batch_size=BATCH_SIZE):
  spans = schedules.stage_spans(stages, num_examples, batch_size)
  return _evaluate(
    lambda step: schedules.learning_rates(step, stages, spans, batch_size),
    steps,
  )


def _rate(stage, steps, **kwargs):
  return _rates([stage], steps, **kwargs)[0]


# Reference values.

_CONFIGS = golden.json('schedules.json')['configs']


def _named(configs):
  return [pytest.param(config, id=config['name']) for config in configs]


def _golden_stages(config):
  return tuple(
    hparams.Stage(
      epochs=values['train_epochs'],
      warmup_epochs=values['learning_rate_warmup_epochs'],
      base_learning_rate=values['base_learning_rate'],
      learning_rate_decay=enums.DecayType[values['learning_rate_decay']],
      decay_rate=values['decay_rate'],
      decay_boundary_epochs=tuple(values['decay_boundary_epochs']),
      epochs_per_decay=values['epochs_per_decay'],
    )
    for values in (config['stage_1'], config['stage_2'])
  )


@pytest.mark.parametrize(
  'config', _named(config for config in _CONFIGS if not config['error'])
)
def test_golden(config):
  stages = _golden_stages(config)
  batch_size = config['batch_size']
  spans = schedules.stage_spans(stages, config['training_set_size'], batch_size)
  assert spans[0].steps_per_epoch == config['steps_per_epoch']
  assert spans[0].stop_step == config['stage_1_steps']
  assert spans[1].stop_step == config['total_steps']

  actual = _evaluate(
    lambda step: (
      *schedules.learning_rates(step, stages, spans, batch_size),
      schedules.current_epoch(step, spans[0].steps_per_epoch),
    ),
    config['global_step'],
  )

  expected = [
    config['stage_1_learning_rate'],
    config['stage_2_learning_rate'],
    config['current_epoch'],
  ]
  np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
  'config', _named(config for config in _CONFIGS if config['error'])
)
def test_golden_errors(config):
  stages = _golden_stages(config)
  batch_size = config['batch_size']
  spans = schedules.stage_spans(stages, config['training_set_size'], batch_size)
  with pytest.raises(ValueError, match='--stage_[12]_warmup_epochs'):
    for stage, span in zip(stages, spans, strict=True):
      schedules.learning_rate(tf.constant(0, tf.int64), stage, span, batch_size)


# Spans.


def test_stages_lie_end_to_end_without_adding_up_fractions():
  # 1000 / 64 = 15.625 steps per epoch: 3 epochs are 46.875 steps, 6 are 93.75.
  # The second stage is 47 steps long, although 46.875 rounds down to 46.
  stages = [dataclasses.replace(CONSTANT, epochs=3)] * 2
  spans = schedules.stage_spans(stages, num_examples=1000, batch_size=64)
  assert [(s.number, s.start_step, s.stop_step) for s in spans] == [
    (1, 0, 46),
    (2, 46, 93),
  ]


def test_an_empty_stage_has_an_empty_span():
  stages = [dataclasses.replace(CONSTANT, epochs=e) for e in (2, 0, 1)]
  spans = schedules.stage_spans(stages, NUM_EXAMPLES, BATCH_SIZE)
  assert [(s.start_step, s.stop_step) for s in spans] == [
    (0, 20),
    (20, 20),
    (20, 30),
  ]


def test_stage_index_skips_empty_stages_and_stays_at_the_last():
  stages = [dataclasses.replace(CONSTANT, epochs=e) for e in (0, 2, 0, 1)]
  spans = schedules.stage_spans(stages, NUM_EXAMPLES, BATCH_SIZE)
  actual = _evaluate(
    lambda step: [schedules.stage_index(step, spans)], [0, 19, 20, 29, 30, 99]
  )
  np.testing.assert_array_equal(actual, [[1, 1, 3, 3, 3, 3]])


def test_stage_index_of_a_single_stage():
  spans = schedules.stage_spans([CONSTANT], NUM_EXAMPLES, BATCH_SIZE)
  actual = _evaluate(
    lambda step: [schedules.stage_index(step, spans)], [0, 39, 40]
  )
  np.testing.assert_array_equal(actual, [[0, 0, 0]])


def test_current_epoch_is_fractional():
  # 25 steps at 10 steps per epoch.
  epoch = _evaluate(lambda step: [schedules.current_epoch(step, 10.0)], [25])
  np.testing.assert_allclose(epoch, [[2.5]])


# The shape of a schedule, by hand.


def test_rate_is_scaled_with_the_batch():
  # 0.3 at 256 are 0.6 at 512.
  stage = dataclasses.replace(CONSTANT, base_learning_rate=0.3)
  np.testing.assert_allclose(_rate(stage, [0], batch_size=512), [0.6])


def test_warmup_is_linear_from_zero_and_reaches_the_peak():
  # 1 epoch of 10 steps: 0, 1/10, ... 9/10, then 1.
  stage = dataclasses.replace(CONSTANT, warmup_epochs=1.0)
  np.testing.assert_allclose(
    _rate(stage, [0, 1, 5, 9, 10, 11]), [0.0, 0.1, 0.5, 0.9, 1.0, 1.0]
  )


def test_warmup_of_less_than_a_step_is_none():
  # 0.05 epochs of 10 steps: half a step.
  stage = dataclasses.replace(CONSTANT, warmup_epochs=0.05)
  np.testing.assert_allclose(_rate(stage, [0, 1]), [1.0, 1.0])


def test_cosine_reaches_zero_at_the_end():
  # 40 steps, 10 of them warm-up: t = 0, 10, 15, 20, 30 of 30. cos(pi/3) = 1/2.
  stage = dataclasses.replace(
    CONSTANT,
    warmup_epochs=1.0,
    learning_rate_decay=enums.DecayType.COSINE,
  )
  np.testing.assert_allclose(
    _rate(stage, [10, 20, 25, 30, 40]), [1.0, 0.75, 0.5, 0.25, 0.0], atol=1e-7
  )


def test_exponential_is_a_staircase_from_the_end_of_warmup():
  # 0.5 epochs per drop are 5 steps: t = 4 is before the first drop, t = 5 after
  # it, t = 29 after floor(29 / 5) = 5 drops.
  stage = dataclasses.replace(
    CONSTANT,
    warmup_epochs=1.0,
    learning_rate_decay=enums.DecayType.EXPONENTIAL,
    decay_rate=0.5,
    epochs_per_decay=0.5,
  )
  np.testing.assert_allclose(
    _rate(stage, [10, 14, 15, 20, 39]), [1.0, 1.0, 0.5, 0.25, 1 / 32]
  )


def test_piecewise_linear_drops_after_its_boundaries():
  # Boundaries at t = 10 and t = 20, the drop comes one step later.
  stage = dataclasses.replace(
    CONSTANT,
    warmup_epochs=1.0,
    learning_rate_decay=enums.DecayType.PIECEWISE_LINEAR,
    decay_rate=0.1,
    decay_boundary_epochs=(1, 2),
  )
  np.testing.assert_allclose(
    _rate(stage, [19, 20, 21, 30, 31, 39]),
    [1.0, 1.0, 0.1, 0.1, 0.01, 0.01],
    rtol=1e-6,
  )


def test_warmup_and_decay_are_rounded_separately():
  # 5000 / 1024 = 4.88 steps per epoch. The second stage starts at
  # floor(10 * 4.88) = 48, its warm-up takes floor(2 * 4.88) = 9 steps, up to
  # 57, and its decay starts at floor(12 * 4.88) = 58. At 57, t = -1, the
  # staircase is one drop before its start: 0.5 ^ floor(-1 / 4.88) = 2.
  stages = [
    dataclasses.replace(CONSTANT, epochs=10),
    dataclasses.replace(
      CONSTANT,
      epochs=6,
      warmup_epochs=2.0,
      base_learning_rate=0.25,
      learning_rate_decay=enums.DecayType.EXPONENTIAL,
      decay_rate=0.5,
      epochs_per_decay=1.0,
    ),
  ]
  rates = _rates(
    stages, [48, 56, 57, 58, 62, 63], num_examples=5000, batch_size=1024
  )
  np.testing.assert_allclose(
    rates[1], [0.0, 8 / 9, 2.0, 1.0, 1.0, 0.5], rtol=1e-6
  )


# Several stages.


def test_every_stage_has_a_rate_in_its_own_steps_only():
  stages = [
    dataclasses.replace(CONSTANT, base_learning_rate=rate, epochs=epochs)
    for rate, epochs in ((1.0, 2), (2.0, 1), (3.0, 1))
  ]
  np.testing.assert_allclose(
    _rates(stages, [0, 19, 20, 29, 30, 39]),
    [[1, 1, 0, 0, 0, 0], [0, 0, 2, 2, 0, 0], [0, 0, 0, 0, 3, 3]],
  )


def test_rate_is_finite_long_before_the_start_of_a_stage():
  # 0.1 ^ -2000 is infinite, and 0 times that would be NaN.
  stages = [
    dataclasses.replace(CONSTANT, epochs=2000),
    dataclasses.replace(
      CONSTANT,
      learning_rate_decay=enums.DecayType.EXPONENTIAL,
      decay_rate=0.1,
      epochs_per_decay=1.0,
    ),
  ]
  np.testing.assert_array_equal(_rates(stages, [0, 20000]), [[1, 0], [0, 1]])


@pytest.mark.parametrize('epochs', [(4, 0), (0, 4)])
def test_a_skipped_stage_needs_no_warmup(epochs):
  # The default warm-up of 12 epochs stays where --stage_N_epochs=0 is given.
  stages = [
    dataclasses.replace(CONSTANT, epochs=e, warmup_epochs=1.0 if e else 12.0)
    for e in epochs
  ]
  rates = _rates(stages, range(40))
  np.testing.assert_array_equal(rates[epochs.index(0)], np.zeros(40))
  assert rates[epochs.index(4), -1] == 1.0


# Errors.


@pytest.mark.parametrize(
  'epochs, warmup_epochs', [(3, 3.0), (3, 5.0), (3, 2.95), (0, 12.0)]
)
def test_a_warmup_that_leaves_no_step_is_an_error(epochs, warmup_epochs):
  # 2.95 epochs of 10 steps are 29 of the 30 steps, and half a step is left.
  stage = dataclasses.replace(
    CONSTANT, epochs=epochs, warmup_epochs=warmup_epochs
  )
  (span,) = schedules.stage_spans([stage], NUM_EXAMPLES, BATCH_SIZE)
  with pytest.raises(ValueError, match='--stage_1_warmup_epochs=.* steps'):
    schedules.learning_rate(tf.constant(0, tf.int64), stage, span, BATCH_SIZE)


def test_a_warmup_that_rounds_to_all_steps_names_flag_and_steps():
  # 3 examples in batches of 2 are 1.5 steps per epoch. The second stage starts
  # at step 1 and stops at floor(3 * 1.5) = 4. Of its 3 steps,
  # floor(1.5 * 1.5) = 2 are warm-up, and floor(0.5 * 1.5) = 0 are left.
  stages = [
    dataclasses.replace(CONSTANT, epochs=1),
    dataclasses.replace(CONSTANT, epochs=2, warmup_epochs=1.5),
  ]
  with pytest.raises(ValueError) as error:
    _rates(stages, [0], num_examples=3, batch_size=2)
  assert '--stage_2_warmup_epochs=1.5 takes 2 steps' in str(error.value)
  assert '3 steps of --stage_2_epochs=2' in str(error.value)
  assert '\n' not in str(error.value)


def test_an_unknown_decay_lists_the_choices():
  stage = dataclasses.replace(CONSTANT, learning_rate_decay='LINEAR')
  with pytest.raises(ValueError, match='COSINE, EXPONENTIAL'):
    _rate(stage, [0])


# Properties.


@pytest.mark.parametrize('decay', list(enums.DecayType))
def test_rates_are_float32_scalars_that_never_exceed_the_peak(decay):
  stage = dataclasses.replace(
    CONSTANT,
    warmup_epochs=1.0,
    learning_rate_decay=decay,
    decay_boundary_epochs=(1, 2),
  )
  (span,) = schedules.stage_spans([stage], NUM_EXAMPLES, BATCH_SIZE)
  with tf.Graph().as_default():
    step = tf1.placeholder(tf.int64, [])
    rate = schedules.learning_rate(step, stage, span, BATCH_SIZE)
  assert rate.dtype == tf.float32
  assert rate.shape == []
  rates = _rate(stage, range(40))
  assert rates.min() >= 0.0
  assert rates.max() == rates[10] == 1.0
  assert np.all(np.diff(rates[10:]) <= 0.0)


def test_compiled_by_xla():
  stages = [
    dataclasses.replace(
      CONSTANT,
      epochs=2,
      learning_rate_decay=decay,
      warmup_epochs=0.5,
      decay_boundary_epochs=(1,),
    )
    for decay in enums.DecayType
  ]
  spans = schedules.stage_spans(stages, NUM_EXAMPLES, BATCH_SIZE)

  @tf.function(jit_compile=True)
  def compiled(step):
    return schedules.learning_rates(step, stages, spans, BATCH_SIZE)

  steps = range(0, 80, 3)
  actual = np.transpose([compiled(tf.constant(s, tf.int64)) for s in steps])
  expected = _rates(stages, steps)
  np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-7)
