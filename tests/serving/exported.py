"""A small model, what it says, and how others are asked what they say."""

import dataclasses
import functools

import numpy as np
import tensorflow as tf

from supcon.config import enums
from supcon.config import hparams
from supcon.data.sources import digits
from supcon.models import contrastive
from supcon.models import layers
from supcon.serving import trained_models
from tests import golden

tf1 = tf.compat.v1

SIDE = 12
CLASS_NAMES = tuple(f'digit {n}' for n in range(10))
# Powers of two, and sums of a few: they cost hardly any rounding, of which
# TensorFlow does more or less as it simplifies graphs.
MEAN = (-0.125, 0.0, 0.25)
STD = (0.5, 0.25, 1.0)
STEP = 3

# Stage 1 is skipped: the first stage that trains anything is stage 2.
PARAMS = hparams.HParams(
  architecture=hparams.Architecture(
    encoder_depth=18, encoder_width=1 / 16, projection_head_layers=(32, 6)
  ),
  stage_1=hparams.Stage(epochs=0, weight_decay=0.5),
  stage_2=hparams.Stage(epochs=20, weight_decay=0.01),
  input_data=hparams.InputData(
    preprocessing=hparams.Preprocessing(
      image_size=SIDE,
      crop_padding=4,
      augmentation_type=enums.AugmentationType.SIMCLR,
    )
  ),
)

# Of its training; see exports.write.
FACTS = {
  'data_name': 'Optical Recognition of Handwritten Digits (UCI)',
  'dataset': 'digits',
  'train_split': 'train',
  'eval_split': 'test',
  'num_train_examples': 1437,
  'num_eval_examples': 360,
  'total_steps': 40,
  'metrics': {'top_1_accuracy': 0.9125, 'loss/cross_entropy_loss': 0.25},
}

# The published names; normalized_embeddings is the hub page's for embeddings.
NAMES = ('logits', 'embeddings', 'unnormalized_embeddings', 'projection')


def write_checkpoint(directory, params=PARAMS):
  """Writes a checkpoint with values that differ everywhere; returns it."""
  with tf.Graph().as_default():
    model = contrastive.ContrastiveModel(params.architecture, len(CLASS_NAMES))
    shapes = {v.op.name: v.shape.as_list() for v in model.variables}
  values = {name: golden.variable(name, shapes[name]) for name in shapes}
  values['global_step'] = np.int64(STEP)
  prefix = f'{directory}/model.ckpt-{STEP}'
  with tf.Graph().as_default(), tf1.Session() as session:
    session.run(
      tf.raw_ops.SaveV2(
        prefix=prefix,
        tensor_names=list(values),
        shape_and_slices=[''] * len(values),
        tensors=list(values.values()),
      )
    )
  return prefix


def trained_model(checkpoint):
  return trained_models.TrainedModel(PARAMS, checkpoint, CLASS_NAMES, MEAN, STD)


def values(checkpoint):
  """Returns {name: value} of the model's variables in a checkpoint."""
  reader = tf.train.load_checkpoint(checkpoint)
  return {
    name: reader.get_tensor(name)
    for name in reader.get_variable_to_shape_map()
    if name != 'global_step'
  }


def of_module(name):
  """Returns 'Encoder', 'ProjectionHead' or 'ClassificationHead'."""
  return name.split('/')[1]


def norms(values):
  """Returns three sums of v^2/2 over kernels and biases, by the equation."""
  sums = {'Encoder': 0.0, 'ProjectionHead': 0.0, 'ClassificationHead': 0.0}
  for name, value in values.items():
    if name.rpartition('/')[-1] in ('kernel', 'bias'):
      sums[of_module(name)] += np.sum(np.float64(value) ** 2) / 2
  return list(sums.values())


# ------------------------------------------------------------------- images


@functools.cache
def images(count=16):
  """Returns uint8 [count, SIDE, SIDE, 3] that differ much from each other.

  Batch norm and unit length magnify the rounding of what hardly differs.
  """
  rng = np.random.RandomState(1)
  coarse = rng.randint(0, 256, [count, SIDE // 4, SIDE // 4, 3])
  return np.kron(coarse, np.ones([1, 4, 4, 1])).astype(np.uint8)


def unit_range(images):
  return images.astype(np.float32) / 255


def model_input(images):
  """Returns what the encoder sees of uint8 images."""
  mean, std = np.float32([MEAN, STD])
  return (images.astype(np.float32) / np.float32(127.5) - 1 - mean) / std


@functools.cache
def digits_to_learn():
  """Returns 64 real images, float32 [64, SIDE, SIDE, 3] in [0, 1]; labels."""
  pixels, labels = (array[:64] for array in digits.arrays())
  # 8x8 to 16x16, of which the middle.
  pixels = np.kron(pixels / 16, np.ones([1, 2, 2]))[:, 2:-2, 2:-2]
  return (
    np.repeat(pixels[..., np.newaxis], 3, axis=-1).astype(np.float32),
    labels.astype(np.int64),
  )


# ----------------------------------------------------------------- expected


@dataclasses.dataclass(frozen=True)
class Expected:
  """What the model's own graph computes.

  Attributes:
    outputs: {training: {name: value}} of `images`.
    moved: {name: value} of all variables after one call in training.
  """

  outputs: dict
  moved: dict


def expect(checkpoint):
  """Runs the graph that training and evaluation run, on `images`."""
  outputs = {}
  for training in (False, True):
    with tf.Graph().as_default(), tf1.Session() as session:
      model = contrastive.ContrastiveModel(
        PARAMS.architecture, len(CLASS_NAMES)
      )
      found = model(tf.constant(model_input(images())), training)
      named = {
        'logits': found.logits,
        'embeddings': found.normalized_embedding[:, 0],
        'unnormalized_embeddings': found.embedding[:, 0],
        'projection': found.projection[:, 0],
      }
      updates = layers.move_averages(found.batch_statistics)
      tf1.train.Saver(model.variables).restore(session, checkpoint)
      outputs[training] = session.run(named)
      session.run([update.op for update in updates])
      moved = dict(
        zip([v.op.name for v in model.variables], session.run(model.variables))
      )
  return Expected(outputs, moved)


def assert_close(actual, expected):
  """Compares dictionaries of arrays, each to 1e-5 of its largest value."""
  for name, value in actual.items():
    wanted = expected['embeddings' if name.startswith('norm') else name]
    scale = np.max(np.abs(wanted))
    np.testing.assert_allclose(
      value, wanted, rtol=0, atol=1e-5 * scale, err_msg=name
    )


def tree(path):
  """Returns {file: its bytes} below a pathlib.Path."""
  return {
    str(file.relative_to(path)): file.read_bytes()
    for file in sorted(path.rglob('*'))
    if file.is_file()
  }
