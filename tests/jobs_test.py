"""Decisions of supcon.jobs that need neither training nor data."""

import contextlib
import math
import types

import pytest
import tensorflow as tf

from supcon.compute import watchdog
from supcon.config import hparams
from supcon.jobs import evaluation
from supcon.jobs import fixed_embeddings
from supcon.jobs import meeting
from supcon.training import checkpoints
from supcon.training import hooks
from supcon.training import stages

# --- Whether embeddings are computed once -------------------------------------

# A classifier alone, on evaluation views and from a reference, in two stages.
_WORTH_IT = {
  'batch_size': 4,
  'architecture.encoder_depth': 18,
  'architecture.stop_gradient_before_classification_head': True,
  'input_data.preprocessing.train_on_eval_views': True,
  'stage_1.epochs': 2,
  'stage_1.warmup_epochs': 0.0,
  'stage_1.contrastive_loss_weight': 0.0,
  'stage_1.cross_entropy_loss_weight': 1.0,
  'stage_1.weight_decay': 0.5,
  'stage_1.use_encoder_weight_decay': False,
  'stage_2.epochs': 1,
  'stage_2.warmup_epochs': 0.0,
  'stage_2.contrastive_loss_weight': 0.0,
  'stage_2.weight_decay': 0.5,
  'stage_2.use_encoder_weight_decay': False,
}
# Embeddings of a ResNet-18 have 512 float32: 2 KiB for each example.
_MOST = fixed_embeddings.MAX_BYTES // (512 * 4)


def _run(
  strategy=None,
  use_tpu=False,
  trains_batch_norm=False,
  num_examples=4,
  step=0,
  deterministic=False,
  **changes,
):
  """Returns what stands for a runs.Run."""
  params = hparams.HParams()
  for path, value in {**_WORTH_IT, **changes}.items():
    params = params.replace(path, value)
  return types.SimpleNamespace(
    devices=types.SimpleNamespace(strategy=strategy),
    options=types.SimpleNamespace(use_tpu=use_tpu, deterministic=deterministic),
    params=params,
    trains_batch_norm=trains_batch_norm,
    plan=stages.plan(params, 4),  # Of one step an epoch.
    dataset=types.SimpleNamespace(num_train_examples=num_examples),
    step=step,
  )


def test_embeddings_of_a_frozen_encoder_are_computed_once():
  assert fixed_embeddings.is_worth_it(_run())
  assert fixed_embeddings.is_worth_it(_run(num_examples=_MOST))


@pytest.mark.parametrize(
  'changes',
  [
    {'strategy': 'several devices'},
    {'use_tpu': True},
    {'trains_batch_norm': True},
    {'num_examples': _MOST + 1},
    {'input_data.preprocessing.train_on_eval_views': False},
    {'architecture.stop_gradient_before_classification_head': False},
    {'stage_1.contrastive_loss_weight': 1.0},
    {'stage_2.contrastive_loss_weight': 1.0},
    {'stage_1.use_encoder_weight_decay': True},
    {'stage_2.use_encoder_weight_decay': True},
  ],
  ids=str,
)
def test_embeddings_that_change_are_not_computed_once(changes):
  assert not fixed_embeddings.is_worth_it(_run(**changes))


@pytest.mark.parametrize('number', [1, 2])
def test_a_decay_of_nothing_keeps_the_encoder(number):
  assert fixed_embeddings.is_worth_it(
    _run(
      **{
        f'stage_{number}.use_encoder_weight_decay': True,
        f'stage_{number}.weight_decay': 0.0,
      }
    )
  )


def test_of_the_stages_those_ahead_count():
  # Stage 1 trains the encoder, and has the steps 0 and 1.
  trained = {'stage_1.contrastive_loss_weight': 1.0}
  assert not fixed_embeddings.is_worth_it(_run(step=1, **trained))
  assert fixed_embeddings.is_worth_it(_run(step=2, **trained))
  # Whoever wants the same bits does what a run from the beginning does.
  assert not fixed_embeddings.is_worth_it(
    _run(step=2, deterministic=True, **trained)
  )


# --- Whose loss an evaluation reports -----------------------------------------


@pytest.mark.parametrize(
  'step, number', [(0, 1), (1, 1), (2, 1), (3, 2), (9, 2)]
)
def test_the_loss_is_that_of_the_stage_that_made_the_checkpoint(
  monkeypatch, step, number
):
  # Stage 1 makes the checkpoints up to that of step 2.
  network = types.SimpleNamespace(variables=[])
  run = _run()
  run.dtype = tf.float32
  run.model_fn = lambda stage: stage
  run.trained_model = lambda _: types.SimpleNamespace(build=lambda: network)

  class _BuiltError(Exception):
    pass

  def build(options, devices, model_fn, **_):
    raise _BuiltError(model_fn.number)

  monkeypatch.setattr(checkpoints, 'require_finite', lambda *_: None)
  monkeypatch.setattr(evaluation.estimators, 'build', build)
  with pytest.raises(_BuiltError, match=f'^{number}$'):
    evaluation._measure(run, f'DIR/model.ckpt-{step}', 'eval')


# --- What workers do together -------------------------------------------------


def _meeting(parted):
  """Returns the meeting of a worker that adds to `parted` when it parts."""
  ours = types.SimpleNamespace(part=lambda: parted.append('parted'))
  devices = types.SimpleNamespace(watchdog=ours)
  return meeting.Meeting(types.SimpleNamespace(devices=devices))


def test_all_that_have_come_to_the_end_part():
  parted = []
  with _meeting(parted).together():
    assert not parted
  assert parted == ['parted']


@pytest.mark.parametrize(
  'error, count',
  [
    (hooks.NanLossError('the loss is NaN', 7), 1),  # All of them know.
    (hooks.BrokenVariableError('a variable is NaN', 7), 0),
    (watchdog.LostWorkerError('worker 1 is gone'), 0),
  ],
)
def test_who_stops_alone_says_nothing(error, count):
  parted = []
  with pytest.raises(type(error)), _meeting(parted).together():
    raise error
  assert len(parted) == count


class TestWaitingForTheChief:
  """A checkpoint of step 5, which the chief is saving."""

  @pytest.fixture(autouse=True)
  def _a_worker(self):
    self.now = 1000.0
    self.written_at = self.seen_at = math.inf

  def sleep(self, seconds):
    self.now += seconds

  def saved(self, number):
    del number
    return 5 if self.now >= self.written_at else 3

  @contextlib.contextmanager
  def guarding(self, patience):
    del patience
    yield types.SimpleNamespace(has_seen=lambda number: True)

  def wait(self):
    run = types.SimpleNamespace(
      devices=types.SimpleNamespace(
        is_chief=False,
        watchdog=types.SimpleNamespace(
          records=types.SimpleNamespace(saved=self.saved),
          guarding=self.guarding,
        ),
      ),
      model_dir=types.SimpleNamespace(path='DIR'),
      look_again=lambda: 5 if self.now >= self.seen_at else 3,
    )
    meeting.Meeting(run, lambda: self.now, self.sleep).wait_for_checkpoint(5)

  def test_a_slow_save_is_waited_for(self):
    self.written_at = 2990.0
    self.seen_at = 3000.0
    self.wait()
    assert 3000 <= self.now < 3003

  def test_what_is_saved_must_come_within_a_minute(self):
    self.written_at = 1100.0
    with pytest.raises(
      watchdog.LostWorkerError, match='no checkpoint of step 5'
    ):
      self.wait()
    assert 1160 <= self.now < 1165

  def test_no_save_takes_for_ever(self):
    with pytest.raises(
      watchdog.LostWorkerError, match='no checkpoint of step 5'
    ):
      self.wait()
    assert 4600 <= self.now < 4605
