"""Estimates whether mirroring an image changes its class.

A flipped cat is still a cat, but a flipped digit is not the same digit. A small
classifier on thumbnails, which takes no time to train, shows which kind a data
set appears to be. It is tested on images that it has not seen, and on their
mirror images. If it recognises the mirror images much less often, left and
right matter. The converse is not true: if such a simple classifier cannot tell
the classes apart at all, nothing is known.
"""

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from supcon.data.sources import splits
from supcon.data.views import image_files
from supcon.data.views import image_ops

tf1 = tf.compat.v1

# Maximum number of images, and of bytes, since decoding this many bytes takes
# about a second.
MAX_IMAGES = 500
MAX_BYTES = 64 * 2**20

# With fewer images, such differences may be due to chance.
MIN_IMAGES = 40

# Side of the thumbnails in pixels, enough to tell digits apart.
_SIDE = 12

# JPEGs are decoded at an eighth of their size if that leaves enough pixels.
_JPEG_RATIO = 8
_MIN_SIDE_FOR_RATIO = 2 * _SIDE * _JPEG_RATIO

_FOLDS = 5
# Regularisation of the ridge regression, for features of variance 1.
_RIDGE = 0.3

# Mirroring matters if it lowers the accuracy by at least this much, and by at
# least this many standard deviations of a random change.
_MIN_LOSS = 0.1
_MIN_DEVIATIONS = 4.0


class Orientation(NamedTuple):
  """The accuracy of a simple classifier on images that it had not seen.

  Attributes:
    num_images: Number of images.
    upright: Accuracy on the images as they are.
    mirrored: Accuracy on the same images, mirrored left to right.
    matters: Whether mirrored images lose their class.
  """

  num_images: int
  upright: float
  mirrored: float
  matters: bool

  def finding(self) -> str:
    """Returns the result in words; '' if mirroring does not matter."""
    if not self.matters:
      return ''
    return (
      'the classes look as if they were told apart by orientation (a simple '
      f'classifier is right about {100 * self.upright:.0f}% of '
      f'{self.num_images} images and {100 * self.mirrored:.0f}% of their '
      'mirror images)'
    )

  def advice(self) -> str:
    """Returns advice for a run that flips views; '' if there is none."""
    if not self.matters:
      return ''
    return (
      f'{self.finding()}, and training mirrors half of its views: if a '
      'mirrored image is of another class or of none, as with digits and '
      'letters, add --random_flip=False'
    )


def of_images(images: np.ndarray, labels: np.ndarray) -> Orientation:
  """Estimates whether mirrored images lose their class.

  It trains a linear classifier (ridge regression to one-hot labels) on four
  fifths of the images and tests it on the rest, five times in turn.

  Args:
    images: Any real type, [N, side, side], grey.
    labels: int [N].
  """
  count = len(images)
  if count < MIN_IMAGES or len(np.unique(labels)) < 2:
    return Orientation(count, 0.0, 0.0, matters=False)
  features = _features(images)
  mirrored = _features(images[:, :, ::-1])
  targets = np.equal.outer(labels, np.unique(labels)).astype(np.float64)
  truth = targets.argmax(axis=1)
  right, right_mirrored = np.zeros([2, count], bool)
  fold = np.arange(count) % _FOLDS
  for number in range(_FOLDS):
    held_out = fold == number
    classify = _trained(features[~held_out], targets[~held_out])
    right[held_out] = classify(features[held_out]) == truth[held_out]
    right_mirrored[held_out] = classify(mirrored[held_out]) == truth[held_out]
  # If mirror images were as good, then as many images would change from right
  # to wrong as from wrong to right (McNemar's test).
  lost = int(np.sum(right & ~right_mirrored))
  won = int(np.sum(~right & right_mirrored))
  deviations = (lost - won) / np.sqrt(max(lost + won, 1))
  return Orientation(
    num_images=count,
    upright=float(right.mean()),
    mirrored=float(right_mirrored.mean()),
    matters=bool(
      lost - won >= _MIN_LOSS * count and deviations >= _MIN_DEVIATIONS
    ),
  )


def of_split(split: splits.Split) -> Orientation:
  """Examines the first images of a split; takes a second or two."""
  count = sample_size(split)
  if count < MIN_IMAGES:
    return Orientation(count, 0.0, 0.0, matters=False)
  return of_images(*thumbnails(split, count))


def sample_size(split: splits.Split) -> int:
  """Returns the number of images that take a second or two to decode."""
  mean_bytes = max(1, split.num_bytes // split.num_examples)
  return min(MAX_IMAGES, split.num_examples, MAX_BYTES // mean_bytes)


def thumbnails(
  split: splits.Split, count: int
) -> tuple[np.ndarray, np.ndarray]:
  """Returns the first `count` images, small and grey, and their labels.

  Images that cannot be decoded are left out.

  Returns:
    float32 [N, side, side] in 0..255 and int32 [N], N at most `count`.
  """

  def shrink(encoded, label):
    image = tf.cast(decode_small(encoded), tf.float32)
    grey = tf.reduce_mean(image, axis=2, keepdims=True)
    # With antialiasing, so that thin strokes do not disappear.
    small = tf.image.resize(grey, [_SIDE, _SIDE], antialias=True)
    return small[:, :, 0], label

  with tf.Graph().as_default(), tf1.Session() as session:
    examples = (
      split.records()
      .take(count)
      .map(shrink, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
      .ignore_errors()
      .batch(count)
    )
    found = tf1.data.make_one_shot_iterator(examples).get_next()
    try:
      return session.run(found)
    except tf.errors.OutOfRangeError:
      return np.zeros([0, _SIDE, _SIDE], np.float32), np.zeros([0], np.int32)


def decode_small(encoded):
  """Decodes a whole image; a large JPEG at an eighth of its size.

  Args:
    encoded: A string scalar, the bytes of an image.

  Returns:
    uint8 [height, width, 3].
  """

  def decode_jpeg():
    shape = tf.image.extract_jpeg_shape(encoded)[:2]
    image = tf.cond(
      tf.reduce_min(shape) >= _MIN_SIDE_FOR_RATIO,
      lambda: tf.io.decode_jpeg(encoded, channels=3, ratio=_JPEG_RATIO),
      lambda: tf.io.decode_jpeg(encoded, channels=3),
    )
    turn = image_files.turn_of(encoded)
    return tf.cond(
      turn > 0, lambda: image_files.turned(image, turn), lambda: image
    )

  image = tf.cond(
    tf.io.is_jpeg(encoded), decode_jpeg, lambda: image_ops.decode(encoded)
  )
  image.set_shape([None, None, 3])
  return image


def _features(images):
  """Returns float64 [N, pixels], mean 0 and variance 1 in each image."""
  pixels = images.reshape(len(images), -1).astype(np.float64)
  pixels -= pixels.mean(axis=1, keepdims=True)
  return pixels / np.maximum(pixels.std(axis=1, keepdims=True), 1e-6)


def _trained(features, targets):
  """Returns a function from features [N, D] to classes, int [N]."""
  mean, target_mean = features.mean(axis=0), targets.mean(axis=0)
  centred = features - mean
  gram = centred.T @ centred
  ridge = _RIDGE * len(features)
  weights = np.linalg.solve(
    gram + ridge * np.eye(len(gram)), centred.T @ (targets - target_mean)
  )

  def classify(others):
    return ((others - mean) @ weights + target_mean).argmax(axis=1)

  return classify
