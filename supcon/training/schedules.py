"""Learning rates as pure functions of the global step.

A run is a sequence of stages. Each stage warms up linearly to its peak rate,
then decays. Rates are scaled linearly with the batch, as in section 2.1 of
https://arxiv.org/abs/1706.02677. The number of steps per epoch may be
fractional. Epochs are converted to steps by rounding down each boundary of the
run separately, so that fractions do not accumulate over the stages.

Lengths in epochs and steps are static Python numbers; only the step is a
tensor. Arithmetic on it is in float32.
"""

from collections.abc import Sequence
import dataclasses
import math

import tensorflow as tf

from supcon.config import enums
from supcon.config import hparams

# Base learning rates are given for this batch size.
BASE_BATCH_SIZE = 256


@dataclasses.dataclass(frozen=True)
class StageSpan:
  """The position of a stage in its run: steps [start_step, stop_step)."""

  number: int  # Counted from 1, as the flags do.
  start_epoch: int
  stop_epoch: int
  steps_per_epoch: float

  @property
  def start_step(self) -> int:
    return self.step_at(self.start_epoch)

  @property
  def stop_step(self) -> int:
    return self.step_at(self.stop_epoch)

  def step_at(self, epoch: float) -> int:
    """Returns the step that reaches `epoch`, counted from the run's start."""
    return int(epoch * self.steps_per_epoch)


def stage_spans(
  stages: Sequence[hparams.Stage], num_examples: int, batch_size: int
) -> tuple[StageSpan, ...]:
  """Lays the stages of a run end to end.

  Args:
    stages: The stages in the order in which they run. 0 epochs give an empty
      span.
    num_examples: Size of the training set.
    batch_size: Global batch size, the sum over all replicas.

  Returns:
    One span per stage; the `stop_step` of the last is the length of the run.
  """
  spans = []
  epoch = 0
  for number, stage in enumerate(stages, start=1):
    spans.append(
      StageSpan(
        number=number,
        start_epoch=epoch,
        stop_epoch=epoch + stage.epochs,
        steps_per_epoch=num_examples / batch_size,
      )
    )
    epoch += stage.epochs
  return tuple(spans)


def current_epoch(step, steps_per_epoch: float):
  """Returns the epochs before `step`, fractional, float32 shaped like it."""
  return tf.cast(step, tf.float32) / steps_per_epoch


def stage_index(step, spans: Sequence[StageSpan]):
  """Returns which stage a step belongs to.

  Args:
    step: int64 (or int32) scalar, the global step.
    spans: The spans of all stages, from `stage_spans`.

  Returns:
    int32 scalar, index into `spans`. Empty stages have no step. After the end
    of the run the result is the last stage, even if it is empty.
  """
  step = tf.convert_to_tensor(step)
  next_starts = tf.constant([span.start_step for span in spans[1:]], step.dtype)
  return tf.reduce_sum(tf.cast(step >= next_starts, tf.int32))


def learning_rates(
  step,
  stages: Sequence[hparams.Stage],
  spans: Sequence[StageSpan],
  batch_size: int,
):
  """Returns the rate of every stage at a step: 0 except in its own steps.

  Args:
    step: int64 (or int32) scalar, the global step.
    stages: All stages of the run.
    spans: The spans of these stages, from `stage_spans`.
    batch_size: Global batch size, the sum over all replicas.

  Returns:
    A tuple of float32 scalars, one per stage.

  Raises:
    ValueError: If the warm-up of a stage leaves no step for the decay.
  """
  step = tf.convert_to_tensor(step)  # Reads a variable once.
  current = stage_index(step, spans)
  rates = []
  for index, (stage, span) in enumerate(zip(stages, spans, strict=True)):
    if stage.epochs == 0:
      # A skipped stage has no warm-up. So the warm-up flag, whose default is 12
      # epochs, need not be changed to skip a stage.
      stage = dataclasses.replace(stage, warmup_epochs=0.0)
    rate = learning_rate(step, stage, span, batch_size)
    # Selected instead of multiplied by 0 or 1: an exponential decay is infinite
    # long before its start.
    rates.append(tf.where(tf.equal(current, index), rate, tf.zeros_like(rate)))
  return tuple(rates)


def learning_rate(step, stage: hparams.Stage, span: StageSpan, batch_size: int):
  """Returns the rate of one stage, as if it never ended.

  With S steps per epoch and t the steps since the end of warm-up:

    peak              base_learning_rate * batch_size / 256
    warm-up           peak * (steps since the stage's start) / warm-up steps
    COSINE            peak * (1 + cos(pi * t / decay steps)) / 2
    EXPONENTIAL       peak * decay_rate ^ floor(t / (epochs_per_decay * S))
    PIECEWISE_LINEAR  peak * decay_rate ^ (boundaries b with t > floor(b * S))
    NO_DECAY          peak
    t > decay steps   0

  The length of the warm-up and its end are rounded down separately. So with a
  fractional S, t can start at -1, as in the published rates. A stage without
  any step for the decay has a constant rate.

  Args:
    step: int64 (or int32), the global step; any shape.
    stage: The stage's hyper-parameters.
    span: The span of the stage.
    batch_size: Global batch size, the sum over all replicas.

  Returns:
    float32, in the shape of `step`.

  Raises:
    ValueError: If there is a warm-up and it leaves no step for the decay: it is
      at least as long as the stage, or rounding leaves none in a short stage.
  """
  warmup_steps = span.step_at(stage.warmup_epochs)
  decay_steps = span.step_at(stage.epochs - stage.warmup_epochs)
  if stage.warmup_epochs > 0 and decay_steps <= 0:
    raise ValueError(
      f'--stage_{span.number}_warmup_epochs={stage.warmup_epochs} takes '
      f'{warmup_steps} steps ({span.steps_per_epoch:g} per epoch) and leaves '
      f'no whole step of the {span.stop_step - span.start_step} steps of '
      f'--stage_{span.number}_epochs={stage.epochs}; shorten the warm-up (0 '
      'for none) or lengthen the stage.'
    )
  if stage.learning_rate_decay not in _DECAYS:
    raise ValueError(
      f'--stage_{span.number}_learning_rate_decay='
      f'{stage.learning_rate_decay} has no schedule; choose one of '
      f'{", ".join(decay.name for decay in _DECAYS)}.'
    )

  peak = stage.base_learning_rate * batch_size / BASE_BATCH_SIZE
  since_start = tf.cast(step - span.start_step, tf.float32)
  if decay_steps == 0:
    return peak * tf.ones_like(since_start)

  decay_start = span.step_at(span.start_epoch + stage.warmup_epochs)
  since_warmup = tf.cast(step - decay_start, tf.float32)
  factor = _DECAYS[stage.learning_rate_decay](
    since_warmup, decay_steps, stage, span.steps_per_epoch
  )
  factor = tf.where(since_warmup > decay_steps, 0.0, factor)
  if warmup_steps:
    factor = tf.where(
      since_start < warmup_steps, since_start / warmup_steps, factor
    )
  return peak * factor


# Each decay is a function (steps since the end of warm-up, float32; decay
# steps; stage; steps per epoch) -> factor of the peak rate, float32.


def _cosine(since_warmup, decay_steps, stage, steps_per_epoch):
  del stage, steps_per_epoch
  return 0.5 * (1.0 + tf.cos(math.pi * since_warmup / decay_steps))


def _exponential(since_warmup, decay_steps, stage, steps_per_epoch):
  del decay_steps
  steps_per_drop = stage.epochs_per_decay * steps_per_epoch
  return _dropped(stage.decay_rate, tf.floor(since_warmup / steps_per_drop))


def _piecewise_linear(since_warmup, decay_steps, stage, steps_per_epoch):
  del decay_steps
  boundaries = tf.constant(
    [int(epoch * steps_per_epoch) for epoch in stage.decay_boundary_epochs],
    tf.float32,
  )
  is_passed = tf.cast(since_warmup[..., tf.newaxis] > boundaries, tf.float32)
  return _dropped(stage.decay_rate, tf.reduce_sum(is_passed, axis=-1))


def _dropped(decay_rate, num_drops):
  return tf.pow(tf.constant(decay_rate, tf.float32), num_drops)


def _no_decay(since_warmup, decay_steps, stage, steps_per_epoch):
  del decay_steps, stage, steps_per_epoch
  return tf.ones_like(since_warmup)


_DECAYS = {
  enums.DecayType.COSINE: _cosine,
  enums.DecayType.EXPONENTIAL: _exponential,
  enums.DecayType.PIECEWISE_LINEAR: _piecewise_linear,
  enums.DecayType.NO_DECAY: _no_decay,
}
