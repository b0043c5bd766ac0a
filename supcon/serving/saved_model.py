"""Writes a TensorFlow 2 SavedModel, for serving and for further training.

`tf.saved_model.load(path)` opens it without further arguments. It is a reusable
SavedModel, https://www.tensorflow.org/hub/reusable_saved_models, which
hub.KerasLayer and tf.GradientTape can train further. It has these signatures:

  contrastive_train, contrastive_eval, serving_default: the published ones. They
    take `INPUT`, float32 [N, S, S, 3] in [-1, 1], whitened if the model was
    trained on whitened images: the caller does the preprocessing. The first one
    uses the batch norm statistics of the batch, without updating the moving
    ones.
  default, image_classification, image_feature_vector: see trained_models.py.
    They take RGB images in [0, 1].
  serving_bytes: takes `IMAGE_BYTES`, string [N], image files of any size; it
    includes the preprocessing of evaluation.

Tools that are not given a signature take the first one. That is
serving_default, in the file and in the object that TensorFlow loads.
"""

from collections.abc import Iterator
import dataclasses
import os
from typing import NamedTuple

import tensorflow as tf

from supcon.config import enums
from supcon.config import hparams
from supcon.data.views import image_files
from supcon.data.views import preprocessing
from supcon.models import layers
from supcon.serving import trained_models

INPUT = 'input'
IMAGE_BYTES = 'image_bytes'
BYTES_SIGNATURE = 'serving_bytes'
# Value of `output` in __call__ that returns all of trained_models.OUTPUTS.
ALL = 'all'

_DEFAULT_SIGNATURE = tf.saved_model.DEFAULT_SERVING_SIGNATURE_DEF_KEY


def write(model: trained_models.TrainedModel, path: str) -> None:
  """Writes a SavedModel; TensorFlow may be in graph mode.

  The loaded object has
    __call__(images, training=False, output='logits'): images float32
      [N, S, S, 3], RGB in [0, 1]; `training` a Python bool, where True uses the
      batch norm statistics of the batch and updates the moving ones; `output`
      one of trained_models.OUTPUTS. Returns float32 [N, ...]; with
      output='all', {name: float32 [N, ...]} of all of them.
    variables, trainable_variables: the variables, under the names of the
      checkpoint.
    regularization_losses: of encoder, projection head and classifier, each a
      function without arguments. Unlike those of a TF-Hub module they are
      scaled, by the weight decay of the first stage that trains, because Keras
      adds them to the loss as they are.

  Args:
    model: The model to export.
    path: The directory to write.
  """
  # Nothing is computed that would be worth an accelerator, which may be busy.
  with tf.__internal__.eager_context.eager_mode(), tf.device('/cpu:0'):
    network = model.build()
    checkpoint = tf.train.load_checkpoint(model.checkpoint)
    for variable in network.variables:
      name = variable.name.removesuffix(':0')
      variable.assign(checkpoint.get_tensor(name))
    graphs = _Graphs(model, network)
    tf.saved_model.save(
      _reusable(model, network, graphs), path, _signatures(model, graphs)
    )
  _put_first(_DEFAULT_SIGNATURE, path)


class _Graphs:
  """The network's two graphs, which all exported functions call.

  So each graph is in the file only once, whatever the number of signatures.

  Attributes:
    infer: A function from model input, float32 [N, S, S, 3], to the result of
      `trained_models.named`. Batch norm uses the moving statistics.
    train: The same from model input and whether to update the moving
      statistics, bool []. Batch norm uses the statistics of the batch.
  """

  def __init__(self, model, network):
    images = _images_spec(model, 'images')

    def infer(images):
      return trained_models.named(network(images, training=False))

    def train(images, moves_statistics):
      outputs = network(images, training=True)

      def move():
        # tf.group would bind itself to the device of the variables.
        updates = layers.move_averages(outputs.batch_statistics)
        with tf.control_dependencies(updates):
          return tf.no_op()

      tf.cond(moves_statistics, move, tf.no_op)
      return trained_models.named(outputs)

    self.infer = _function(infer, images)
    self.train = _function(train, images, tf.TensorSpec([], tf.bool))


def _reusable(model, network, graphs):
  """Returns the object that `write` describes."""

  def call(images, training=False, output='logits'):
    images = model.from_unit_range(images)
    if training:
      outputs = graphs.train(images, tf.constant(True))
    else:
      outputs = graphs.infer(images)
    if output == ALL:
      return {
        name: outputs[key] for name, key in trained_models.OUTPUTS.items()
      }
    return outputs[trained_models.OUTPUTS[output]]

  call = tf.function(call, autograph=False)
  for training in (False, True):
    for output in (ALL, *trained_models.OUTPUTS):
      call.get_concrete_function(
        _images_spec(model, trained_models.IMAGES),
        training=training,
        output=output,
      )
  result = tf.__internal__.tracking.AutoTrackable()
  result.__call__ = call
  result.variables = network.variables
  result.trainable_variables = network.trainable_variables
  result.regularization_losses = _regularization_losses(model.params, network)
  return result


def regularization_coefficient(params: hparams.HParams) -> float:
  """Returns the weight decay of the first stage that trains."""
  return next(stage.weight_decay for stage in params.stages if stage.epochs)


def _regularization_losses(params, network):
  """Returns a function for each part: encoder, projection head, classifier."""
  coefficient = regularization_coefficient(params)

  def norms():
    return network.weight_norms(params.loss.include_bias_in_weight_decay)

  def loss_of(name):
    def loss():
      return coefficient * norms()[name]

    return _function(loss)

  return [loss_of(name) for name in norms()]


def _signatures(model, graphs):
  """Returns {signature: function}; TensorFlow loads them in this order."""
  model_input = _images_spec(model, INPUT)

  def contrastive_train(images):
    return graphs.train(images, tf.constant(False))

  def contrastive_eval(images):
    return graphs.infer(images)

  def serving_bytes(encoded):
    return graphs.infer(model.from_grey_levels(crops_of(encoded)))

  def crops_of(encoded):
    size = model.image_size
    return tf.map_fn(
      lambda each: evaluation_crop(each, model.params),
      encoded,
      fn_output_signature=tf.TensorSpec([size, size, 3], tf.uint8),
    )

  def of_images(outputs):
    def image_signature(images):
      found = graphs.infer(model.from_unit_range(images))
      return {name: found[key] for name, key in outputs.items()}

    return _function(
      image_signature, _images_spec(model, trained_models.IMAGES)
    )

  evaluation = _function(contrastive_eval, model_input)
  return {
    _DEFAULT_SIGNATURE: evaluation,
    'contrastive_eval': evaluation,
    'contrastive_train': _function(contrastive_train, model_input),
    BYTES_SIGNATURE: _function(
      serving_bytes, tf.TensorSpec([None], tf.string, IMAGE_BYTES)
    ),
    **{
      name: of_images(outputs)
      for name, outputs in trained_models.IMAGE_SIGNATURES.items()
    },
  }


def evaluation_crop(encoded: tf.Tensor, params: hparams.HParams) -> tf.Tensor:
  """Returns the view of an image file that an evaluation classifies.

  Args:
    encoded: A string scalar, the bytes of a JPEG, PNG, BMP or GIF.
    params: The hyper-parameters.

  Returns:
    uint8 [S, S, 3].
  """
  # The view does not depend on other views or augmentation, and the graph is
  # small without them.
  alone = dataclasses.replace(
    params.input_data.preprocessing,
    num_views=1,
    augmentation_type=enums.AugmentationType.IDENTITY,
  )
  features = preprocessing.eval_views(
    image_files.readable(encoded),
    tf.constant([0, 0], tf.int64),
    alone,
    flips=False,
    policy=None,
  )
  return features['images'][0]


def _images_spec(model, name):
  size = model.image_size
  return tf.TensorSpec([None, size, size, 3], tf.float32, name)


def _function(function, *specs):
  return tf.function(function, input_signature=specs, autograph=False)


# ---------------------------------------------------- the order in the file
#
# A signature is an entry of a map, and TensorFlow writes those by their names,
# contrastive_eval first. To protobuf the order of a map means nothing, and its
# classes cannot be told one. So the entries trade places in the bytes,
# https://protobuf.dev/programming-guides/encoding:
#
#   message SavedModel { repeated MetaGraphDef meta_graphs = 2; }
#   message MetaGraphDef { map<string, SignatureDef> signature_def = 5; }
#
# An entry is a message with the key as its field 1.

_META_GRAPHS = 2
_SIGNATURE_DEF = 5
_KEY = 1


class _Field(NamedTuple):
  """A field of a message: content[begin:end] with its tag before the value."""

  number: int
  begin: int
  value: int
  end: int


def _put_first(name, path):
  """Puts a signature first in the file of a SavedModel."""
  file = os.path.join(path, tf.saved_model.SAVED_MODEL_FILENAME_PB)
  with tf.io.gfile.GFile(file, 'rb') as source:
    content = source.read()
  with tf.io.gfile.GFile(file, 'wb') as target:
    target.write(with_signature_first(content, name))


def with_signature_first(content: bytes, name: str) -> bytes:
  """Returns a serialised SavedModel with a signature moved to the front.

  Args:
    content: The SavedModel.
    name: Name of the signature. If it does not exist, nothing changes.
  """
  for graph in _fields(content, 0, len(content), _META_GRAPHS):
    entries = [*_fields(content, graph.value, graph.end, _SIGNATURE_DEF)]
    # Python's sort is stable.
    ordered = sorted(entries, key=lambda e: _key(content, e) != name.encode())
    moved = b''.join(content[entry.begin : entry.end] for entry in ordered)
    begin = entries[0].begin if entries else graph.end
    # Only if they are contiguous, as every protobuf writes them.
    if content[begin : begin + len(moved)] == b''.join(
      content[entry.begin : entry.end] for entry in entries
    ):
      content = content[:begin] + moved + content[begin + len(moved) :]
  return content


def _key(content, entry):
  (key,) = _fields(content, entry.value, entry.end, _KEY)
  return content[key.value : key.end]


def _fields(content, begin, end, number) -> Iterator[_Field]:
  """Yields the fields with a number in the message content[begin:end]."""
  while begin < end:
    tag, value = _varint(content, begin)
    wire_type = tag & 7
    if wire_type == 0:
      _, after = _varint(content, value)
    elif wire_type == 2:
      length, value = _varint(content, value)
      after = value + length
    else:
      after = value + {1: 8, 5: 4}[wire_type]
    if tag >> 3 == number:
      yield _Field(number, begin, value, after)
    begin = after


def _varint(content, position):
  """Returns the integer at a position, and the position after it."""
  result = shift = 0
  while True:
    byte = content[position]
    result |= (byte & 127) << shift
    position, shift = position + 1, shift + 7
    if byte < 128:
      return result, position
