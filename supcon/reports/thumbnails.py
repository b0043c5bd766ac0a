"""Small pictures of examples as they are stored."""

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from supcon.data.sources import splits
from supcon.data.views import image_ops
from supcon.reports import pipeline_probes

tf1 = tf.compat.v1

# Grey level around an image: light, but not white, which occurs in images.
PAPER = 228


def read(
  split: splits.Split, positions: Sequence[int], side: int
) -> np.ndarray:
  """Returns some images of a split, each fitted into a square.

  The files are read once from their beginning to the last position.

  Args:
    split: The split.
    positions: The positions of the images, in any order; they may repeat.
    side: Height and width of the squares in pixels.

  Returns:
    uint8 [len(positions), side, side, 3].

  Raises:
    tf.errors.OpError: If an image cannot be decoded.
  """
  wanted, places = np.unique(
    np.asarray(positions, np.int64), return_inverse=True
  )
  found = np.zeros([len(wanted), side, side, 3], np.uint8)
  if len(wanted):

    def fit(encoded, label):
      del label
      image = image_ops.decode(encoded)
      return fitted(image, tf.shape(image)[:2], side)

    with tf.Graph().as_default(), pipeline_probes.session() as session:
      images = split.select(wanted.tolist()).records()
      images = images.map(
        fit, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True
      )
      following = tf1.data.make_one_shot_iterator(images.prefetch(8)).get_next()
      for row in range(len(found)):
        found[row] = session.run(following)
  return found[places]


def fitted(image: tf.Tensor, size: tf.Tensor, side: int) -> tf.Tensor:
  """Returns an image centered on a square of paper.

  Args:
    image: uint8 [height, width, 3].
    size: int32 [2], height and width.
    side: Height and width of the square in pixels.

  Returns:
    uint8 [side, side, 3].
  """
  longer = tf.cast(tf.reduce_max(size), tf.float32)
  fitted_size = tf.cast(tf.cast(size, tf.float32) * (side / longer), tf.int32)
  fitted_size = tf.clip_by_value(fitted_size, 1, side)
  # Small images show their pixels; large ones are smoothed.
  image = tf.cond(
    longer <= side,
    lambda: tf.image.resize(image, fitted_size, 'nearest'),
    lambda: tf.saturate_cast(
      tf.image.resize(image, fitted_size, antialias=True) + 0.5, tf.uint8
    ),
  )
  before = (side - fitted_size) // 2
  paddings = tf.stack([before, side - fitted_size - before], axis=1)
  paddings = tf.concat([paddings, [[0, 0]]], axis=0)
  square = tf.pad(image, paddings, constant_values=PAPER)
  return tf.ensure_shape(square, [side, side, 3])
