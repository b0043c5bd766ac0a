"""The TensorFlow 2 SavedModel: to be served, and to be built upon.

`tf.saved_model.load(path)` opens it without any further argument. It is a
reusable SavedModel, https://www.tensorflow.org/hub/reusable_saved_models, so
that hub.KerasLayer and tf.GradientTape train it further; and it has signatures:

  contrastive_train, contrastive_eval, serving_default: the published ones. They
    take `INPUT`, float32 [N, S, S, 3] in [-1, 1], whitened if the model was
    trained on whitened images: the caller does the preprocessing. The first one
    runs batch norm on the statistics of the batch and moves none.
  default, image_classification, image_feature_vector: see trained.py. They take
    RGB images in [0, 1].
  serving_bytes: takes `IMAGE_BYTES`, string [N], image files of any size; the
    preprocessing of evaluation is inside.
"""

import dataclasses

import tensorflow as tf

from supcon import enums
from supcon import hparams
from supcon.data import image_files
from supcon.data import preprocessing
from supcon.serving import trained
from supcon.training import stages

INPUT = 'input'
IMAGE_BYTES = 'image_bytes'
BYTES_SIGNATURE = 'serving_bytes'


def write(model: trained.TrainedModel, path: str) -> None:
  """Writes a SavedModel; the process may be one of TensorFlow 1.

  What is loaded has
    __call__(images, training=False, output='logits'): images float32
      [N, S, S, 3], RGB in [0, 1]; `training` a Python bool, True runs batch
      norm on the statistics of the batch and moves the moving ones; `output`
      one of trained.OUTPUTS. Returns float32 [N, ...].
    variables, trainable_variables: as in the checkpoint, by the same names.
    regularization_losses: of encoder, projection head and classifier, each a
      function without arguments. They are scaled, unlike those of a TF-Hub
      module, because Keras adds them to the loss as they are: by the weight
      decay of the first stage that trained anything.

  Args:
    model: What is exported.
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


class _Graphs:
  """The network's two graphs, which everything that is exported calls.

  So each is in the file once, whatever the number of signatures.

  Attributes:
    infer: From model input, float32 [N, S, S, 3], to what `trained.outputs`
      returns. Batch norm uses the moving statistics.
    train: Likewise, from model input and whether the moving statistics move,
      bool []. Batch norm uses the statistics of the batch.
  """

  def __init__(self, model, network):
    images = _images_spec(model, 'images')

    def infer(images):
      return trained.outputs(network, images, training=False)

    def train(images, moves_statistics):
      outputs = trained.outputs(network, images, training=True)

      def move():
        with tf.control_dependencies(network.batch_norm_updates()):
          return tf.no_op()

      tf.cond(moves_statistics, move, tf.no_op)
      return outputs

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
    return outputs[trained.OUTPUTS[output]]

  call = tf.function(call, autograph=False)
  for training in (False, True):
    for output in trained.OUTPUTS:
      call.get_concrete_function(
        _images_spec(model, trained.IMAGES), training=training, output=output
      )
  result = tf.__internal__.tracking.AutoTrackable()
  result.__call__ = call
  result.variables = network.variables
  result.trainable_variables = network.trainable_variables
  result.regularization_losses = _regularization_losses(model.params, network)
  return result


def regularization_coefficient(params: hparams.HParams) -> float:
  """Returns the weight decay of the first stage that trains anything."""
  return next(stage.weight_decay for stage in params.stages if stage.epochs)


def _regularization_losses(params, network):
  """Returns a function for each of encoder, projection head and classifier."""
  coefficient = regularization_coefficient(params)

  def norms():
    return stages.weight_norms(
      network, params.loss.include_bias_in_weight_decay
    )

  def loss_of(name):
    def loss():
      return coefficient * norms()[name]

    return _function(loss)

  return [loss_of(name) for name in norms()]


def _signatures(model, graphs):
  """Returns {signature: function}."""
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

    return _function(image_signature, _images_spec(model, trained.IMAGES))

  evaluation = _function(contrastive_eval, model_input)
  return {
    'contrastive_train': _function(contrastive_train, model_input),
    'contrastive_eval': evaluation,
    tf.saved_model.DEFAULT_SERVING_SIGNATURE_DEF_KEY: evaluation,
    BYTES_SIGNATURE: _function(
      serving_bytes, tf.TensorSpec([None], tf.string, IMAGE_BYTES)
    ),
    **{
      name: of_images(outputs)
      for name, outputs in trained.IMAGE_SIGNATURES.items()
    },
  }


def evaluation_crop(encoded: tf.Tensor, params: hparams.HParams) -> tf.Tensor:
  """The view of an image file that an evaluation classifies.

  Args:
    encoded: A string scalar, the bytes of a JPEG, PNG, BMP or GIF.
    params: The hyper-parameters.

  Returns:
    uint8 [S, S, 3].
  """
  # The view depends neither on others nor on augmentation; without, the graph
  # is a small one.
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
