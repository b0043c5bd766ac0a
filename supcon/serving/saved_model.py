"""The SavedModel: its input and its signatures.

Names, tags and meanings are those of the published implementation, in one
MetaGraph, so that `tf.saved_model.load(path)` needs no further argument.
"""

import tensorflow as tf

from supcon.models import contrastive

tf1 = tf.compat.v1

INPUT = 'input'


def serving_input_receiver_fn(image_size: int):
  """Returns a function that makes the input of the SavedModel.

  The input is float32 [N, image_size, image_size, 3] in [-1, 1], whitened if
  the model was trained on whitened images: the caller does the preprocessing.
  """

  def receive():
    images = tf1.placeholder(
      tf.float32, [None, image_size, image_size, 3], name=INPUT
    )
    return tf1.estimator.export.ServingInputReceiver(
      {'images': images}, {INPUT: images}
    )

  return receive


def signatures(model: contrastive.ContrastiveModel, images: tf.Tensor) -> dict:
  """Returns {signature: PredictOutput}.

  contrastive_train runs batch norm on the statistics of the batch,
  contrastive_eval and serving_default on the moving statistics.
  """
  outputs = {
    'contrastive_train': _outputs(model(images, training=True)),
    'contrastive_eval': _outputs(model(images, training=False)),
  }
  default = (
    tf1.saved_model.signature_constants.DEFAULT_SERVING_SIGNATURE_DEF_KEY
  )
  outputs[default] = outputs['contrastive_eval']
  return {
    name: tf1.estimator.export.PredictOutput(tensors)
    for name, tensors in outputs.items()
  }


def _outputs(outputs: contrastive.Outputs) -> dict:
  """Returns the named tensors of a single view, each float32 [N, ...]."""
  return {
    'embeddings': outputs.normalized_embedding[:, 0],
    'unnormalized_embeddings': outputs.embedding[:, 0],
    'projection': outputs.projection[:, 0],
    'logits': outputs.logits,
  }
