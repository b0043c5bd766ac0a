"""The graph that computes a model's outputs for a batch of images."""

from collections.abc import Callable
import dataclasses

import tensorflow as tf

from supcon.compute import replicas
from supcon.compute import tpu_estimator
from supcon.data.views import preprocessing
from supcon.models import contrastive
from supcon.serving import trained_models

tf1 = tf.compat.v1


@dataclasses.dataclass
class PredictFn:
  """A model_fn for TPUEstimator that predicts.

  Predictions are the outputs of `trained_models.named`, plus the labels and
  weights among the features, see inputs.predict_input_fn.

  Attributes:
    model: The model, whose hyper-parameters also define the preprocessing.
    dtype: Type of the images that the encoder sees.
    start: Initializes the variables; None if a checkpoint under their own names
      does.
  """

  model: trained_models.TrainedModel
  dtype: tf.DType
  start: Callable[[contrastive.ContrastiveModel], None] | None = None

  def __call__(self, features, labels, mode, params):
    del labels, params
    network = self.model.build()
    images = preprocessing.finish(
      features,
      self.model.params.input_data.preprocessing,
      self.model.mean,
      self.model.std,
      self.dtype,
    )
    predictions = trained_models.named(network(images[:, 0], training=False))
    for name in ('labels', 'weights'):
      predictions[name] = features[name]
    return tpu_estimator.TPUEstimatorSpec(
      mode=mode,
      predictions=predictions,
      scaffold_fn=self._scaffold_fn(network),
    )

  def _scaffold_fn(self, network):
    if self.start is None:
      return None

    def scaffold_fn():
      replicas.once(lambda: self.start(network))
      return tf1.train.Scaffold()

    return scaffold_fn
