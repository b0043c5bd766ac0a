"""The graph of a training step of the TINY encoder, off TPU."""

import contextlib

import numpy as np
import tensorflow as tf

from tests.tpu import cases

tf1 = tf.compat.v1

SHAPE = [cases.BATCH_SIZE, 2, cases.SIDE, cases.SIDE, 3]


class TrainingGraph:
  """The graph of a training step."""

  def __init__(self, params, stage=1, with_sigmas=False, **changes):
    with tf.Graph().as_default() as self._graph:
      tf1.set_random_seed(0)
      self._features = {'images': tf1.placeholder(tf.float32, SHAPE)}
      if with_sigmas:
        sigmas = np.random.RandomState(0).uniform(0, 2, SHAPE[:2])
        self._features['blur_sigmas'] = tf.constant(sigmas, tf.float32)
      self._labels = tf1.placeholder(tf.int32, SHAPE[:1])
      function = cases.function(params, stage, use_tpu=False, **changes)
      self._spec = function.train(self._features, self._labels)
      self._variables = {v.op.name: v for v in tf1.global_variables()}

  def train(self, batches):
    """Returns all variables after a training, and the losses."""
    (variables, _), *steps = self.history(batches)
    return steps[-1][0] if steps else variables, [loss for _, loss in steps]

  def history(self, batches):
    """Yields all variables and None; after each step, variables and loss."""
    # Not entered: the graph must not be the default one meanwhile.
    with contextlib.closing(tf1.Session(graph=self._graph)) as session:
      session.run([v.initializer for v in self._variables.values()])
      yield session.run(self._variables), None
      for images, labels in batches:
        feed = {self._features['images']: images, self._labels: labels}
        loss, _ = session.run([self._spec.loss, self._spec.train_op], feed)
        yield session.run(self._variables), loss

  def loops(self):
    """Returns the names of the loops of the graph."""
    return [
      op.name
      for op in self._graph.get_operations()
      if op.type in ('While', 'StatelessWhile')
    ]
