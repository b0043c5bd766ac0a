"""A small run, trained on one device and as the program of TPU cores.

The run has two stages of three steps. Its encoder is two convolutions, each
with batch norm and relu: enough for every collective, and shallow enough that
rounding does not flip a relu. With it the real `ModelFn` is trained.
"""

import dataclasses
import functools

import numpy as np
import tensorflow as tf

from supcon.config import enums
from supcon.config import hparams
from supcon.training import stages
from tests import model_functions
from tests.tpu import offline
from tests.tpu import program

tf1 = tf.compat.v1

BATCH_SIZE = 32
STEPS_PER_STAGE = 3
SIDE = 8
NUM_CLASSES = 4
_EPOCHS = 2

# The variable by which TPUEstimator says how many steps a loop has.
_ITERATIONS = 'tpu_estimator/iterations_per_loop'

_BASE_LEARNING_RATES = {
  enums.Optimizer.MOMENTUM: 4.0,
  enums.Optimizer.LARS: 80.0,
  enums.Optimizer.ADAM: 0.1,
}


def params(optimizer, architecture=None):
  """Returns HParams of two stages that differ in their losses."""
  stage = hparams.Stage(
    epochs=_EPOCHS,
    warmup_epochs=0.0,
    base_learning_rate=_BASE_LEARNING_RATES[optimizer],
    optimizer=optimizer,
    contrastive_loss_weight=1.0,
    cross_entropy_loss_weight=0.5,
    weight_decay=0.01,
    update_encoder_batch_norm=True,
  )
  return hparams.HParams(
    batch_size=BATCH_SIZE,
    architecture=architecture
    or hparams.Architecture(
      encoder_architecture=enums.EncoderArchitecture.TINY,
      projection_head_layers=(16, 8),
      projection_head_use_batch_norm=True,
      stop_gradient_before_projection_head=False,
    ),
    loss=hparams.Losses(
      contrastive=hparams.ContrastiveOptions(temperature=0.5)
    ),
    stage_1=stage,
    stage_2=dataclasses.replace(
      stage, contrastive_loss_weight=0.2, cross_entropy_loss_weight=2.0
    ),
    input_data=hparams.InputData(
      preprocessing=hparams.Preprocessing(
        image_size=SIDE, defer_blurring=False
      ),
    ),
  )


@functools.cache
def one_device(optimizer):
  """Trains both stages on one device; cached.

  Returns:
    Variables at the start and after each stage, and all summaries.
  """
  start = params(optimizer)
  variables, history = [initial_variables(start)], []
  for stage in (1, 2):
    after, steps = train_on_one_device(start, stage, variables[-1])
    variables.append(after)
    history += steps
  return variables, history


def function(params, stage, use_tpu, **changes):
  """Returns the ModelFn of stage 1 or 2."""
  run = stages.plan(params, BATCH_SIZE * STEPS_PER_STAGE // _EPOCHS)
  return model_functions.make(
    params,
    run,
    run.stages[stage - 1],
    NUM_CLASSES,
    **{
      'num_eval_examples': 2 * BATCH_SIZE,
      'use_tpu': use_tpu,
      **changes,
    },
  )


def batches(stage):
  """Returns [(images, labels) of each step of a stage], global batches."""
  rng = np.random.RandomState(stage)
  return [
    (
      rng.uniform(-1, 1, [BATCH_SIZE, 2, SIDE, SIDE, 3]).astype(np.float32),
      rng.randint(0, NUM_CLASSES, BATCH_SIZE).astype(np.int32),
    )
    for _ in range(STEPS_PER_STAGE)
  ]


def initial_variables(params):
  """Returns {name: array} of a run that begins."""
  with tf.Graph().as_default(), tf1.Session() as session:
    tf1.set_random_seed(1)
    _placeholders_and_spec(params, 1)
    session.run(tf1.global_variables_initializer())
    return session.run({v.op.name: v for v in tf1.global_variables()})


def train_on_one_device(params, stage, variables):
  """Trains a stage with TensorFlow's own kernels.

  Returns:
    {name: array} of all variables after it, and {tag: value} of each step.
  """
  with tf.Graph().as_default(), tf1.Session() as session:
    images, labels, spec = _placeholders_and_spec(params, stage)
    session.run(tf1.global_variables_initializer())
    everything = {v.op.name: v for v in tf1.global_variables()}
    for name, variable in everything.items():
      variable.load(variables[name], session)
    history = []
    for image_batch, label_batch in batches(stage):
      feed = {images: image_batch, labels: label_batch}
      scalars, _ = session.run([spec.host_call[1], spec.train_op], feed)
      history.append({tag: value[0] for tag, value in scalars.items()})
    return session.run(everything), history


def _placeholders_and_spec(params, stage):
  images = tf1.placeholder(tf.float32, [BATCH_SIZE, 2, SIDE, SIDE, 3])
  labels = tf1.placeholder(tf.int32, [BATCH_SIZE])
  spec = function(params, stage, use_tpu=False).train(
    {'images': images}, labels
  )
  return images, labels, spec


class OnCores:
  """The program of N cores that trains a stage."""

  def __init__(self, params, stage, num_cores, dtype=tf.float32):
    """Builds and lowers it."""
    self._stage = stage
    self._num_cores = num_cores
    self._dtype = dtype
    recorded, tags = _recording_tags(
      function(params, stage, use_tpu=True, dtype=dtype), 'host_call'
    )
    graph = offline.training_graph(
      recorded,
      input_fn(dtype, with_weights=False),
      num_cores,
      BATCH_SIZE,
      STEPS_PER_STAGE,
    )
    with graph.as_default():  # They start from zero, and are in no checkpoint.
      self._locals = {
        v.op.name: np.zeros(v.shape, v.dtype.as_numpy_dtype)
        for v in tf1.local_variables()
      }
    self._tags = tags  # In the order in which TPUEstimator sends them.
    self.mlir = program.lower(graph)

  def train(self, variables, in_float64=False):
    """Runs it from a dictionary of variables.

    Returns:
      {name: array [N, ...]} of all variables after it, and {tag: [N]} of each
      step.
    """
    mlir, dtype = self.mlir, self._dtype.as_numpy_dtype
    if in_float64:
      mlir, dtype = program.in_float64(mlir), np.float64
    infeed = []
    for images, labels in batches(self._stage):
      infeed.append(
        list(
          zip(
            np.split(images.astype(dtype), self._num_cores),
            np.split(labels, self._num_cores),
          )
        )
      )
    ran = program.Executable(mlir, self._num_cores).run(
      {**variables, **self._locals, _ITERATIONS: STEPS_PER_STAGE}, infeed
    )
    history = [
      {
        tag: np.concatenate(values)
        for tag, values in zip(self._tags, zip(*step))
      }
      for step in ran.outfed
    ]
    # A program has no result for what it does not change.
    after = {
      name: np.stack(ran.variables.get(name, [value]))
      for name, value in variables.items()
    }
    return after, history


def evaluate_on_one_device(params, variables, weights):
  """Evaluates the first batch of stage 1.

  Args:
    params: HParams.
    variables: {name: array}; may hold more than the model has.
    weights: float32 [B], 0 for padding.

  Returns:
    The loss, and {tag: [B]} of what goes into the metrics.
  """
  with tf.Graph().as_default(), tf1.Session() as session:
    images, labels = (tf.constant(array) for array in batches(1)[0])
    spec = function(params, 1, use_tpu=False).evaluate(
      {'images': images, 'weights': tf.constant(weights)}, labels
    )
    for variable in tf1.global_variables():
      variable.load(variables[variable.op.name], session)
    return session.run([spec.loss, spec.eval_metrics[1]])


def evaluate_on_cores(params, variables, weights, num_cores):
  """Like `evaluate_on_one_device`, as the program of N cores; the loss [N]."""
  recorded, tags = _recording_tags(
    function(params, 1, use_tpu=True), 'eval_metrics'
  )
  graph = offline.evaluation_graph(
    recorded,
    input_fn(tf.float32, with_weights=True),
    num_cores,
    BATCH_SIZE,
    steps=1,
  )
  images, labels = batches(1)[0]
  parts = (np.split(each, num_cores) for each in (images, weights, labels))
  ran = program.Executable(program.lower(graph), num_cores).run(
    {**variables, _ITERATIONS: 1}, [list(zip(*parts))]
  )
  (outfed,) = ran.outfed
  (losses,) = ran.results
  return np.stack(losses), {
    tag: np.concatenate(values) for tag, values in zip(tags, zip(*outfed))
  }


def _recording_tags(function, field):
  """Returns a model_fn, and the list of tags that it fills when it is called.

  Args:
    function: ModelFn.
    field: 'host_call' or 'eval_metrics', of whose tensors the tags are.
  """
  tags = []

  def recorded(features, labels, mode, params):
    spec = function(features, labels, mode, params)
    tags.extend(getattr(spec, field)[1])
    return spec

  return recorded, tags


def input_fn(dtype, with_weights):
  """Returns an input_fn of empty batches: the graph needs only their shapes."""

  def build(params):
    batch = params['batch_size']
    features = {'images': tf.zeros([batch, 2, SIDE, SIDE, 3], dtype)}
    if with_weights:
      features['weights'] = tf.ones([batch])
    labels = tf.zeros([batch], tf.int32)
    return tf.data.Dataset.from_tensors((features, labels)).repeat()

  return build


def worst_difference(found, expected, before):
  """Returns the largest |found - expected| / |expected - before|, and whose.

  Each is a norm over all values of a variable.

  Args:
    found: {name: array}.
    expected: {name: array}, the same names.
    before: {name: array} from before the update.

  Returns:
    (the ratio, the variable's name).
  """
  worst = (0.0, 'none')
  assert set(found) == set(expected)
  for name, value in expected.items():
    value, start, other = (
      np.asarray(x, np.float64) for x in (value, before[name], found[name])
    )
    error = np.linalg.norm(other - value)
    if error:
      worst = max(worst, (error / np.linalg.norm(value - start), name))
  return worst
