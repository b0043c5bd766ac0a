"""Finds unusable examples: no valid image, or no class for a label.

The input pipeline has no time to check examples. An example that cannot be
decoded is an error that stops the run, and the error contains its bytes at
most. So images are checked separately,

- all of them before the run, if the user wants bad ones skipped, since order
  and length of an epoch depend on them. The result is stored with the run.
- all of them before the run, if that takes only seconds and they are the user's
  own;
- otherwise after an error, up to the first bad one, to identify it.

A check decodes the whole image once and does nothing else. On two cores this
processes about 1,000 JPEGs of 500x375 pixels per second, or 9,000 PNGs of
32x32. So ImageNet takes 20 minutes there and half a minute on a hundred cores,
less than an epoch.
"""

from collections.abc import Iterator
import contextlib
import time

from absl import logging
import numpy as np
import tensorflow as tf

from supcon.config import safe_text
from supcon.data.sources import splits
from supcon.data.views import image_ops
from supcon.runs import storage_errors

tf1 = tf.compat.v1

# Up to this many bytes of encoded images are checked without a request: 2,400
# JPEGs of 500x375 pixels, about 3 seconds on two cores.
MAX_BYTES_UNASKED = 256 * 2**20

# Errors of the input pipeline for a bad example.
INPUT_ERRORS = (
  tf.errors.InvalidArgumentError,
  tf.errors.DataLossError,
  tf.errors.NotFoundError,
  tf.errors.PermissionDeniedError,
  tf.errors.FailedPreconditionError,
)

# These ops raise some of the same errors for reasons other than examples.
_CHECKPOINT_OPS = ('SaveV2', 'RestoreV2', 'MergeV2Checkpoints')

_REMEDY = 'delete what is bad, or skip it with --skip_bad_images'
_CHUNK = 64
_SECONDS_BETWEEN_LINES = 30.0


class BadExampleError(RuntimeError):
  """The input pipeline has met an example that it cannot use."""


def find(split: splits.Split) -> list[int]:
  """Returns the positions of all bad examples; logs its progress.

  Raises:
    ValueError: If a file that holds several examples is damaged, because it is
      then unknown which of them are lost.
  """
  if damage := split.damage():
    raise ValueError(damage)
  bad, expected = [], 0
  begun = logged = time.monotonic()
  for position in _good_positions(split):
    bad.extend(range(expected, position))
    expected = position + 1
    if time.monotonic() - logged > _SECONDS_BETWEEN_LINES:
      logged = time.monotonic()
      logging.info(
        '%d of %d images looked at, %d bad',
        expected,
        split.num_examples,
        len(bad),
      )
  bad.extend(range(expected, split.num_examples))
  seconds = time.monotonic() - begun
  logging.info(
    'looked at the %d images of %s in %.1f s (%.0f images/s): %d cannot be '
    'used',
    split.num_examples,
    split.name,
    seconds,
    split.num_examples / seconds,
    len(bad),
  )
  return bad


def check_if_quick(split: splits.Split) -> None:
  """Checks all images if that takes only seconds.

  Raises:
    ValueError: If there are bad ones.
  """
  if split.num_bytes > MAX_BYTES_UNASKED:
    return
  if bad := find(split):
    raise ValueError(
      f'{describe(split, bad[0])}. {len(bad)} of {split.num_examples} images '
      f'are bad ({splits.listed([*map(split.example_id, bad)])}); {_REMEDY}.'
    )


def without(split: splits.Split, bad: list[int]) -> splits.Split:
  """Returns the split without the examples at some positions.

  Raises:
    ValueError: If none would be left.
  """
  if not bad:
    return split
  kept = np.setdiff1d(np.arange(split.num_examples), bad).tolist()
  if not kept:
    raise ValueError(
      f'none of the {len(bad)} images of {split.name} can be used; the first: '
      f'{describe(split, 0)}.'
    )
  return split.select(kept)


def explain(split: splits.Split) -> str | None:
  """Returns one line about the cause of an input error in `split`.

  Returns:
    None if all examples are good, so that the error has another cause.
  """
  # First, because a truncated file would produce endless errors.
  if damage := split.damage():
    return damage
  logging.info('looking for a bad image in %s', split.name)
  expected = 0
  for position in _good_positions(split):
    if position != expected:
      break
    expected += 1
  if expected == split.num_examples:
    return None
  return f'{describe(split, expected)}; {_REMEDY}.'


@contextlib.contextmanager
def naming(*read: splits.Split):
  """Names the image if the input pipeline fails on one.

  Args:
    *read: The splits that it reads.

  Raises:
    BadExampleError: Replaces TensorFlow's error if an example is bad.
  """
  try:
    yield
  except INPUT_ERRORS as error:
    if error.op is not None and error.op.type in _CHECKPOINT_OPS:
      raise
    explanation = next(filter(None, map(explain, read)), None)
    if not explanation:
      raise
    raise BadExampleError(explanation) from error


def describe(split: splits.Split, position: int) -> str:
  """Returns one line about where a bad example is and what is wrong."""
  with tf.Graph().as_default(), tf1.Session() as session:
    records = split.select([position]).records()
    good = tf1.data.make_one_shot_iterator(_decoded(records)).get_next()
    try:
      session.run(good)
      what = 'is in order now'
    except tf.errors.OpError as error:
      what = f'cannot be used: {storage_errors.reason(error)}'
  return f'{safe_text.printable(split.where(position))} {what}'


def _good_positions(split) -> Iterator[int]:
  """Yields the positions of good examples in increasing order."""
  with tf.Graph().as_default(), tf1.Session() as session:
    examples = _decoded(split.records()).ignore_errors().batch(_CHUNK)
    chunk = tf1.data.make_one_shot_iterator(examples).get_next()
    while True:
      try:
        positions, _ = session.run(chunk)
      except tf.errors.OutOfRangeError:
        return
      yield from positions.tolist()


def _decoded(records):
  """Returns a data set of (position, size), with an error for bad examples."""

  def decode(position, record):
    encoded, _ = record
    # Without a use of its size, the image would not be decoded.
    return position, tf.size(image_ops.decode(encoded))

  return records.enumerate().map(
    decode, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True
  )
