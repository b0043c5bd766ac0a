"""Cuts evaluation images, according to the hyper-parameters."""

from collections.abc import Callable
import math
from typing import NamedTuple

import tensorflow as tf

from supcon.config import enums
from supcon.data.views import image_ops

# If the sides of an image differ by a larger factor, only its middle is resized
# for the evaluation crop, which is from the middle.
_MAX_ASPECT = 16


# ---------------------------------------------------------- evaluation crops


class EvalCrop(NamedTuple):
  """How to cut and resize an evaluation image.

  Attributes:
    window: A function from (shape, side, padding) to the window to decode.
    finish: A function from (that window's image, side, padding) to uint8 [side,
      side, 3].
  """

  window: Callable
  finish: Callable


def _resize_then_crop(image, side, padding):
  """Resizes the shorter side to `side + padding`; takes the central square."""
  shape = image_ops.shape_with_shorter_side(tf.shape(image)[:2], side + padding)
  # Truncation may leave the shorter side one pixel short of the crop.
  shape = tf.maximum(shape, side)
  image = image_ops.resize(image, shape)
  return image_ops.crop(image, image_ops.center_window(shape, [side, side]))


def _resize(image, side, padding):
  del padding
  return image_ops.resize(image, [side, side])


def _crop_then_distort(image, side, padding):
  """Resizes the central part, whatever its aspect ratio, to a square."""
  window = image_ops.center_fraction_window(
    tf.shape(image)[:2], side / (side + padding)
  )
  return image_ops.resize(image_ops.crop(image, window), [side, side])


def _keep(image, side, padding):
  del side, padding
  return image


def _whole(shape, side, padding):
  del side, padding
  return image_ops.whole_window(shape)


def _middle(shape, side, padding):
  """Returns all of an image, or of a very thin one the part near the crop.

  The result has at most `_MAX_ASPECT` times the pixels of a square.
  """
  del side, padding
  longest = _MAX_ASPECT * tf.reduce_min(shape)
  excess = tf.maximum(shape - longest, 0)
  # The same margin on either side, so that the crop does not move.
  return image_ops.center_window(shape, shape - (excess + 1) // 2 * 2)


def _center_square(shape, side, padding):
  return image_ops.center_square_window(shape, side / (side + padding))


EVAL_CROPS = {
  enums.EvalCropMethod.RESIZE_THEN_CROP: EvalCrop(_middle, _resize_then_crop),
  enums.EvalCropMethod.CROP_THEN_RESIZE: EvalCrop(_center_square, _resize),
  enums.EvalCropMethod.CROP_THEN_DISTORT: EvalCrop(_whole, _crop_then_distort),
  enums.EvalCropMethod.IDENTITY: EvalCrop(_whole, _keep),
}


def check_image_size(settings, image_shape, look=lambda: ()):
  """Checks that evaluation images can have the requested size.

  Args:
    settings: hparams.Preprocessing.
    image_shape: The data set's (height, width, ...); None in it, or None, if
      images may differ in size.
    look: Called in that case; returns (height, width) of some images, if it
      can.

  Raises:
    ValueError: If images are to be used without resizing and have another size.
  """
  if settings.eval_crop_method != enums.EvalCropMethod.IDENTITY:
    return
  others = ', '.join(
    method.name
    for method in EVAL_CROPS
    if method != enums.EvalCropMethod.IDENTITY
  )
  height, width = (image_shape or (None, None))[:2]
  if height is None or width is None:
    raise ValueError(
      '--eval_crop_method=IDENTITY takes images as they are, but '
      f'{_of_sizes(look())}; use one of {others}. CROP_THEN_RESIZE with '
      '--crop_padding=0 changes nothing of images of --image_size.'
    )
  if (height, width) != (settings.image_size, settings.image_size):
    raise ValueError(
      f'--image_size={settings.image_size} with --eval_crop_method=IDENTITY '
      f'takes images as they are, but those of this data set are {height}x'
      f'{width}; set that size or use one of {others}.'
    )


def _of_sizes(sizes):
  """Describes the known (height, width) of a data set's images."""
  first, *_, last = sorted(sizes, key=math.prod) * 2 or [None, None]
  if first and {*sizes} != {first}:
    return (
      f'those of this data set vary in size, from {first[0]}x{first[1]} to '
      f'{last[0]}x{last[1]}'
    )
  looked_at = ''
  if first:
    looked_at = f' (the {len(sizes)} that were looked at are of {first[0]}x'
    looked_at += f'{first[1]})'
  return (
    'it is not known whether all images of this data set have one size'
    f'{looked_at}'
  )


def needs_whole(settings):
  """Whether an evaluation view needs the whole image.

  The view must not depend on the number of views that follow, so a window of
  its own is always decoded separately.
  """
  return EVAL_CROPS[settings.eval_crop_method].window in (_whole, _middle)
