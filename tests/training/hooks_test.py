"""Tests of supcon.training.hooks."""

import logging
import math
import types

import numpy as np
import pytest
import tensorflow as tf

from supcon.config import hparams
from supcon.training import hooks
from supcon.training import stages
from supcon.training import steps

tf1 = tf.compat.v1


def _plan(epochs_1=50, epochs_2=20, steps_per_epoch=2):
  """Returns the plan of two stages; 8 images in a batch."""
  params = hparams.HParams(
    batch_size=8,
    stage_1=hparams.Stage(epochs=epochs_1, warmup_epochs=0.0),
    stage_2=hparams.Stage(epochs=epochs_2, warmup_epochs=0.0),
  )
  return stages.plan(params, 8 * steps_per_epoch)


# --- The stop at NaN ----------------------------------------------------------

_LOSSES = ('total', 'contrastive', 'cross_entropy', 'weight_decay')
_SUBJECTS = (
  steps.Subject('the loss', ''),
  steps.Subject('the gradients of', 'v'),
  steps.Subject('the gradients of', 'w'),
  steps.Subject('the gradients of', 'x'),
  steps.Subject('the batch statistics for', 'y'),
)


def _run_with_nan_hook(reports, number=1, keeps=False):
  """Runs a step per report with the hook; returns how many steps ran.

  Args:
    reports: Of each step, as in steps.Health. A bad one is not counted.
    number: Of the stage.
    keeps: Whether the steps are a loop that ends after the last of them, and
      the hook only sees what was kept.
  """
  hook = hooks.NanHook()
  with tf.Graph().as_default():
    step = tf1.train.get_or_create_global_step()
    report = tf.gather(tf.constant(reports, tf.float32), step)
    health, memory = steps.Health(_LOSSES, _SUBJECTS, report), None
    updates = []
    if keeps:
      health, memory, update = steps.first_bad(health)
      updates.append(update)
    hook.watch(_plan().stages[number - 1], health, memory)
    with tf.control_dependencies([*updates, report]):
      train_op = step.assign_add(tf.cast(health.is_good, tf.int64))
    count = 0
    with tf1.train.SingularMonitoredSession(hooks=[hook]) as session:
      for _ in reports:
        if keeps and count + 1 < len(reports):
          session.raw_session().run(train_op)
        else:
          session.run(train_op)
        count += 1
    return count


_GOOD = [3.0, 2.0, 2.5, 0.125, 0, 0, 0, 0, 0]


@pytest.mark.parametrize('keeps', [False, True])
@pytest.mark.parametrize('number', [1, 2])
@pytest.mark.parametrize(
  'bad, words',
  [
    ([1, 0, 0, 0, 0], 'the loss'),
    # Bad on one of four replicas.
    ([0.25, 0, 0, 0, 0], 'the loss'),
    ([0, 0, 1, 0, 0], 'the gradients of 1 of 3 variables (the first is w)'),
    (
      [1, 0, 1, 1, 1],
      'the loss and the gradients of 2 of 3 variables (the first is w) and the '
      'batch statistics for 1 of 1 variables (the first is y)',
    ),
  ],
)
def test_nan_hook_says_when_and_what(bad, words, number, keeps):
  broken = [math.nan, math.inf, 2.5, 0.125, *bad]
  with pytest.raises(hooks.NanLossError) as caught:
    _run_with_nan_hook([_GOOD, _GOOD, broken, _GOOD], number, keeps)
  assert caught.value.reason == (
    f'NaN or infinite at step 2, stage {number}: {words}; loss parts: '
    'total nan, contrastive inf, cross_entropy 2.5, weight_decay 0.125'
  )
  assert str(caught.value) == (
    f'{caught.value.reason}. Checkpoints saved before are untouched; try a '
    'lower learning rate or a longer warm-up.'
  )
  assert caught.value.step == 2 and type(caught.value.step) is int


@pytest.mark.parametrize('keeps', [False, True])
def test_nan_hook_lets_good_steps_pass(keeps):
  # Parts of the loss may be what they like.
  reports = [_GOOD, [1.0, math.nan, math.inf, 3e38, 0, 0, 0, 0, 0], _GOOD]
  assert _run_with_nan_hook(reports, keeps=keeps) == 3


def _train_and_save(directory, factors, number=1):
  """Trains a weight w of 1, and a slot, saving after each step.

  Step s sets w = w * factors[s], and the slot to its square.
  """
  listener = hooks.NanListener()
  listener.watch(_plan().stages[number - 1])
  with tf.Graph().as_default():
    step = tf1.train.get_or_create_global_step()
    weights = tf1.get_variable('w', initializer=[1.0, 1.0], use_resource=True)
    slot = tf1.get_variable(
      'w/slot', initializer=[1.0, 1.0], use_resource=True, trainable=False
    )
    tf1.get_variable('other', initializer=1.0, use_resource=True)
    # Only one of the two elements breaks.
    factor = [tf.gather(tf.constant(factors, tf.float32), step), 1.0]
    with tf.control_dependencies([weights.assign(weights * factor)]):
      update = slot.assign(weights.read_value() ** 2)
    with tf.control_dependencies([update]):
      train_op = step.assign_add(1)
    saver = tf1.train.CheckpointSaverHook(
      str(directory), save_steps=1, listeners=[listener]
    )
    with tf1.train.MonitoredSession(hooks=[saver]) as session:
      for _ in factors:
        session.run(train_op)


@pytest.mark.parametrize(
  'factor, words',
  [
    (math.nan, '2 of 3 variables (the first is w)'),
    (math.inf, '2 of 3 variables (the first is w)'),
    (1e30, '1 of 3 variables (the first is w/slot)'),  # 1e60 is too much.
  ],
)
def test_nan_listener_refuses_to_save_what_is_broken(tmp_path, factor, words):
  with pytest.raises(hooks.BrokenVariableError) as caught:
    _train_and_save(tmp_path, [2.0, 3.0, factor, 1.0], number=2)
  assert caught.value.step == 2 and type(caught.value.step) is int
  assert caught.value.reason == (
    'NaN or infinite after step 2, stage 2, whose loss and gradients were not: '
    f'{words}'
  )
  assert 'Checkpoints saved before are untouched' in str(caught.value)

  newest = tf.train.latest_checkpoint(str(tmp_path))
  assert newest == str(tmp_path / 'model.ckpt-2')
  reader = tf.train.load_checkpoint(newest)
  np.testing.assert_array_equal(reader.get_tensor('w'), [6.0, 1.0])
  assert not list(tmp_path.glob('model.ckpt-3*'))


def test_nan_listener_lets_finite_variables_be_saved(tmp_path):
  _train_and_save(tmp_path, [2.0, 3.0])
  newest = tf.train.latest_checkpoint(str(tmp_path))
  assert newest == str(tmp_path / 'model.ckpt-2')


# --- Progress -----------------------------------------------------------------


class _Progress:
  """A ProgressHook whose clock and session are those of the test."""

  def __init__(self, monkeypatch, caplog, run, stage):
    self._now = 0.0
    self._log = caplog
    caplog.set_level(logging.INFO, logger='absl')
    monkeypatch.setattr(
      hooks, 'time', types.SimpleNamespace(time=lambda: self._now)
    )
    scalars = {
      'loss': 'total',
      'loss/contrastive_loss': 'contrastive',
      'loss/cross_entropy_loss': 'cross_entropy',
      'weight_decay/stage1_weight_decay_loss': 'decay',
      'weight_decay/stage2_weight_decay_loss': 'decay',
      'stage_1_learning_rate': 'rate of stage 1',
      'stage_2_learning_rate': 'rate of stage 2',
    }
    self._hook = hooks.ProgressHook(run, stage, 'step', scalars)

  def lines(self, steps, seconds):
    """Returns what is logged after the step before which `steps` were done."""
    self._log.clear()
    self._now = 1e9 + seconds
    fetched = {
      'step': steps,
      'total': 1.25,
      'contrastive': 0.98765,
      'decay': 0.26235,
      'cross_entropy': 2.0,
      'rate of stage 1': 0.1,
      'rate of stage 2': 0.000123456,
    }
    results = tf.nest.map_structure(
      fetched.get, self._hook.before_run(None).fetches
    )
    self._hook.after_run(
      None, tf1.train.SessionRunValues(results, options=None, run_metadata=None)
    )
    return [record.getMessage() for record in self._log.records]


def test_progress_lines(monkeypatch, caplog):
  # 2 steps per epoch: stage 1 is steps 0 to 100, stage 2 steps 100 to 140.
  run = _plan()
  progress = _Progress(monkeypatch, caplog, run, run.stages[0])
  # 1 * 0.98765 + 0 * 2 + 0.26235 = 1.25.
  losses = (
    'loss 1.2500 (1 x contrastive 0.9877, 0 x cross-entropy 2.0000, weight '
    'decay 0.2624)'
  )
  # The first line comes at once, and cannot know the speed.
  assert progress.lines(0, seconds=0) == [
    f'stage 1  step 1 of 140  epoch 0.5  {losses}  rate 0.1'
  ]
  # Lines are 5 seconds apart.
  assert progress.lines(1, seconds=2) == []
  assert progress.lines(2, seconds=4.9) == []
  # 20 steps in 10 s since the first: 2 * 8 images/s. A step took 2, 2.9, and 18
  # times 5.1 / 18 s; 79 of the median, 2 s, are 158 s.
  assert progress.lines(20, seconds=10) == [
    f'stage 1  step 21 of 140  epoch 10.5  {losses}  rate 0.1  16 images/s  '
    '2:38 left in this stage'
  ]
  assert progress.lines(21, seconds=14) == []
  # 50 steps in 15 s: 26.7 images/s. The median of 2, 2.9, 0.28, 4, 0.03 is 2 s,
  # 49 times 98 s.
  assert progress.lines(50, seconds=15) == [
    f'stage 1  step 51 of 140  epoch 25.5  {losses}  rate 0.1  27 images/s  '
    '1:38 left in this stage'
  ]
  # The last of the stage comes in any case: 99 steps in 16.5 s.
  assert progress.lines(98, seconds=16) == []
  assert progress.lines(99, seconds=16.5) == [
    f'stage 1  step 100 of 140  epoch 50.0  {losses}  rate 0.1  48 images/s  '
    '0:00 left in this stage'
  ]


def test_a_slow_start_does_not_make_the_time_that_is_left_longer(
  monkeypatch, caplog
):
  run = _plan()
  progress = _Progress(monkeypatch, caplog, run, run.stages[0])
  progress.lines(0, seconds=0)
  # Something is made once, 8 s long; then a step takes 0.1 s.
  lines = progress.lines(1, seconds=8)
  for step in range(2, 12):
    lines = progress.lines(step, seconds=8 + step * 0.1) or lines
  for step in range(12, 80):
    lines = progress.lines(step, seconds=8 + step * 0.1) or lines
  # The last line was written at 13 s, after step 51: 49 steps are left.
  assert lines[0].split('  ')[1] == 'step 51 of 140'
  assert lines[0].endswith('0:05 left in this stage')


def test_progress_of_a_stage_that_continues(monkeypatch, caplog):
  run = _plan(epochs_1=50, epochs_2=2000)  # Stage 2: steps 100 to 4100.
  progress = _Progress(monkeypatch, caplog, run, run.stages[1])
  losses = (
    'loss 1.2500 (1 x contrastive 0.9877, 0 x cross-entropy 2.0000, weight '
    'decay 0.2624)'
  )
  assert progress.lines(200, seconds=0) == [
    f'stage 2  step 201 of 4100  epoch 100.5  {losses}  rate 0.0001235'
  ]
  # 10 steps in 10 s, from where it continued: 3889 steps are 1 h 4 min 49 s.
  assert progress.lines(210, seconds=10) == [
    f'stage 2  step 211 of 4100  epoch 105.5  {losses}  rate 0.0001235  '
    '8 images/s  1:04:49 left in this stage'
  ]


def test_progress_in_a_session(caplog):
  caplog.set_level(logging.INFO, logger='absl')
  run = _plan(epochs_1=1, epochs_2=1)
  with tf.Graph().as_default():
    step = tf1.train.get_or_create_global_step()
    before_update = tf.identity(step)
    with tf.control_dependencies([before_update]):
      train_op = step.assign_add(1)
    scalars = {
      tag: tf.constant(0.5)
      for tag in (
        'loss',
        'loss/contrastive_loss',
        'loss/cross_entropy_loss',
        'stage_1_learning_rate',
        'weight_decay/stage1_weight_decay_loss',
      )
    }
    hook = hooks.ProgressHook(run, run.stages[0], before_update, scalars)
    with tf1.train.SingularMonitoredSession(hooks=[hook]) as session:
      for _ in range(2):
        session.run(train_op)
  lines = [r.getMessage() for r in caplog.records if r.name == 'absl']
  assert [line[: len('stage 1  step 1 of 4')] for line in lines] == [
    'stage 1  step 1 of 4',
    'stage 1  step 2 of 4',
  ]
