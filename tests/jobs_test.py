"""Decisions of supcon.jobs that need neither training nor data."""

import contextlib
import math
import pathlib
import types

import numpy as np
from PIL import Image
import pytest
import tensorflow as tf

from supcon.compute import watchdog
from supcon.config import enums
from supcon.config import hparams
from supcon.data.sources import corruptions
from supcon.data.sources import folder
from supcon.jobs import evaluation
from supcon.jobs import fixed_embeddings
from supcon.jobs import meeting
from supcon.jobs import robustness
from supcon.runs import model_dirs
from supcon.runs import signals
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


# --- Robustness ---------------------------------------------------------------


def _evaluation(name, count, logits=(0, 1)):
  return robustness.Evaluation(
    name=name,
    key=None,
    split=types.SimpleNamespace(
      num_examples=count, where=lambda position: f'{name}, image {position}'
    ),
    logits=np.array(logits),
    params=None,
    data=f'the images of {name}',
  )


def _batches(counts, logits=(1.0, 0.0)):
  """Yields outputs that always say class 0, with labels 0, 1, 0, 1 ..."""
  begin = 0
  for count in counts:
    yield {
      'logits': np.tile(np.float32([logits]), [count, 1]),
      'labels': np.arange(begin, begin + count) % 2,
    }
    begin += count


class TestRobustness:
  @pytest.fixture(autouse=True)
  def _a_model_dir(self, tmp_path):
    self.model_dir = model_dirs.ModelDir(str(tmp_path))
    self.all = [_evaluation(f'fog/{n}', n) for n in (3, 2, 4)]

  def record(self, fingerprint='the weights', evaluations=None):
    return robustness.Record(
      self.model_dir,
      'of-7',
      {'fingerprint': fingerprint},
      evaluations or self.all,
    )

  def measure(self, evaluations, batches):
    return robustness.measure_each(evaluations, batches, 'DIR/model.ckpt-7')

  def test_sets_are_told_apart_within_batches(self):
    # Of the labels 0 1 0, 1 0, 1 0 1 0 the ones are wrong.
    found = self.measure(self.all, _batches([2, 6, 1]))
    assert [(e.name, m['n'], m['error']) for e, m in found] == [
      ('fog/3', 3, pytest.approx(1 / 3)),
      ('fog/2', 2, pytest.approx(1 / 2)),
      ('fog/4', 4, pytest.approx(1 / 2)),
    ]

  def test_labels_of_a_set_are_those_of_other_logits(self):
    swapped = _evaluation('fog/3', 3, logits=(1, 0))
    ((_, found),) = self.measure([swapped], _batches([3]))
    assert found['error'] == pytest.approx(2 / 3)

  def test_a_killed_job_repeats_nothing(self):
    def killed():
      yield from _batches([4, 2])
      raise signals.Interrupted('SIGTERM')

    record = self.record()
    with pytest.raises(signals.Interrupted):
      for each, measured in self.measure(self.all, killed()):
        record.add(each, measured)
    again = self.record()
    assert list(again.evaluations) == ['fog/3', 'fog/2']
    (left,) = [e for e in self.all if e.name not in again.evaluations]
    for each, measured in self.measure([left], _batches([4])):
      again.add(each, measured)
    assert list(self.record().evaluations) == ['fog/3', 'fog/2', 'fog/4']

  def test_what_was_measured_otherwise_does_not_count(self):
    record = self.record()
    for each, measured in self.measure(self.all, _batches([9])):
      record.add(each, measured)
    assert not self.record(fingerprint='other weights').evaluations
    other = [self.all[0]._replace(data='other images'), *self.all[1:]]
    assert list(self.record(evaluations=other).evaluations) == [
      *('fog/2', 'fog/4')
    ]

  def test_a_damaged_record_is_not_overwritten(self):
    record = self.record()
    record.write(None)
    path = pathlib.Path(record.path)
    path.write_text(path.read_text()[:-9])
    with pytest.raises(ValueError, match='of-7.json.*delete it'):
      self.record()

  def test_broken_logits_name_their_image(self):
    batches = _batches([3, 2], logits=(1.0, math.nan))
    with pytest.raises(checkpoints.NotFiniteError, match='fog/3, image 0'):
      next(self.measure(self.all[:2], batches))

  @pytest.mark.parametrize(
    'clean, corrupted, crop, padding',
    [
      # As in ImageNet-C: cut already.
      (12, 8, enums.EvalCropMethod.CROP_THEN_RESIZE, 0),
      # As in CIFAR-10: evaluated like clean images.
      (8, 8, enums.EvalCropMethod.RESIZE_THEN_CROP, 4),
      (12, 10, enums.EvalCropMethod.RESIZE_THEN_CROP, 4),
    ],
  )
  def test_images_that_were_cut_before_are_used_as_they_are(
    self, tmp_path, clean, corrupted, crop, padding
  ):
    sources = {}
    for name, side in (('clean', clean), ('fog', corrupted)):
      path = tmp_path / name / 'cat' / '1.png'
      path.parent.mkdir(parents=True)
      Image.new('RGB', (side, side)).save(path)
      sources[name] = folder.load_evaluation(str(tmp_path), name)
    params = hparams.HParams()
    for field, value in (
      ('image_size', 8),
      ('eval_crop_method', enums.EvalCropMethod.RESIZE_THEN_CROP),
      ('crop_padding', 4),
    ):
      params = params.replace(f'input_data.preprocessing.{field}', value)
    found = robustness.params_for(
      params,
      sources['clean'],
      corruptions.Corrupted('fog', 1, sources['fog']),
    ).input_data.preprocessing
    assert (found.eval_crop_method, found.crop_padding) == (crop, padding)
    params = params.replace(
      'input_data.preprocessing.eval_crop_method', enums.EvalCropMethod.IDENTITY
    )
    if corrupted != 8:
      with pytest.raises(ValueError, match='of 10x10'):
        robustness.params_for(
          params,
          sources['clean'],
          corruptions.Corrupted('fog', 1, sources['fog']),
        )
