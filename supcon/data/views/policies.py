"""Policies of augmentation: AutoAugment and RandAugment.

They determine which operations of `augment` are applied, how strongly and how
often. AutoAugment: https://arxiv.org/abs/1805.09501; RandAugment:
https://arxiv.org/abs/1909.13719. An image is uint8 [height, width, 3] with
static sides.
"""

from collections.abc import Callable
import enum
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from supcon.data.views import augment

# --------------------------------------------------------------- operations


class Chance(enum.Enum):
  """The part of an operation that is random, besides whether to apply it."""

  NOTHING = 0
  SIGN = 1  # The sign of the strength.
  POSITION = 2


class Operation(NamedTuple):
  """An operation in a policy.

  Attributes:
    function: A function (image, strength) -> image; with a random position,
      (image, strength, float32 [2] in [0, 1)) -> image.
    strength: A function from the level of a policy, 0 to 10, to the strength.
    chance: The part of it that is random.
  """

  function: Callable
  strength: Callable[[float], float]
  chance: Chance = Chance.NOTHING


def _times(largest):
  """Strengths proportional to the level; `largest` at level 10."""
  return lambda level: level / 10 * largest


def _whole(largest):
  """Like `_times`, rounded down."""
  return lambda level: int(level / 10 * largest)


def _factor(level):
  return level / 10 * 1.8 + 0.1


def _bits(level):
  # With 0 bits nothing of the image would be left.
  return min(max(int(level / 10 * 4), 1), 8)


def _threshold(level):
  # Published as 8 bits, where 256 wraps to 0: level 10 inverts the whole image.
  return int(level / 10 * 256) % 256


def _operations(translation, fill):
  """Returns the operations by name.

  Args:
    translation: The distance in pixels at level 10.
    fill: The content that moves in from beyond the border.
  """

  def plain(function):
    return Operation(lambda image, _: function(image), lambda _: 0.0)

  def moving(function, strength):
    return Operation(
      lambda image, amount: function(image, amount, fill),
      strength,
      Chance.SIGN,
    )

  return {
    'autocontrast': plain(augment.autocontrast),
    'equalize': plain(augment.equalize),
    'invert': plain(augment.invert),
    'posterize': Operation(augment.posterize, _bits),
    'solarize': Operation(augment.solarize, _threshold),
    'solarize_add': Operation(augment.solarize_add, _whole(110)),
    'color': Operation(augment.color, _factor),
    'contrast': Operation(augment.contrast, _factor),
    'brightness': Operation(augment.brightness, _factor),
    'sharpness': Operation(augment.sharpness, _factor),
    'shear_x': moving(augment.shear_x, _times(0.3)),
    'shear_y': moving(augment.shear_y, _times(0.3)),
    'translate_x': moving(augment.translate_x, _times(translation)),
    'translate_y': moving(augment.translate_y, _times(translation)),
    'rotate': moving(augment.rotate, _times(30)),
    'cutout': Operation(augment.cutout, _whole(40), Chance.POSITION),
  }


def _published_contrast(image, factor):
  """Blends with the grey level (number of pixels) / 256.

  The published RandAugment does this, although the paper means the mean luma.
  At 224 pixels the level is 196, a light grey.
  """
  height, width, _ = image.shape.as_list()
  grey = min(height * width // 256, 255)
  return augment.blend_with_grey(tf.cast(image, tf.float32), grey, factor)


def _apply(image, operations, index, strength, draws):
  """Applies one operation; the others cost nothing.

  Args:
    image: uint8 [height, width, 3].
    operations: List of _Operation.
    index: int32 scalar, the index of the operation; their number for none.
    strength: float32 scalar, before a random sign.
    draws: float32 [3], uniform in [0, 1).

  Returns:
    uint8 [height, width, 3].
  """
  signed = tf.where(draws[0] < 0.5, -strength, strength)
  arguments = {
    Chance.NOTHING: [strength],
    Chance.SIGN: [signed],
    Chance.POSITION: [strength, draws[1:]],
  }

  def branch(operation):
    return lambda: operation.function(image, *arguments[operation.chance])

  branches = [branch(operation) for operation in operations]
  return tf.switch_case(index, [*branches, lambda: image])


# -------------------------------------------------------------- AutoAugment


class Policy(NamedTuple):
  """A policy of AutoAugment.

  Attributes:
    sub_policies: Each consists of two operations (operation, probability,
      level), applied one after the other. One is chosen per image.
    operations: The operations by name.
  """

  sub_policies: tuple
  operations: dict[str, Operation]


# The policy of the published results, 'v0' of the authors' TPU models. (Table 9
# of the paper differs.) The mirror image moves in from the border, and the
# distances are long: 250 pixels at level 10.
IMAGENET_POLICY = Policy(
  sub_policies=(
    (('equalize', 0.8, 1), ('shear_y', 0.8, 4)),
    (('color', 0.4, 9), ('equalize', 0.6, 3)),
    (('color', 0.4, 1), ('rotate', 0.6, 8)),
    (('solarize', 0.8, 3), ('equalize', 0.4, 7)),
    (('solarize', 0.4, 2), ('solarize', 0.6, 2)),
    (('color', 0.2, 0), ('equalize', 0.8, 8)),
    (('equalize', 0.4, 8), ('solarize_add', 0.8, 3)),
    (('shear_x', 0.2, 9), ('rotate', 0.6, 8)),
    (('color', 0.6, 1), ('equalize', 1.0, 2)),
    (('invert', 0.4, 9), ('rotate', 0.6, 0)),
    (('equalize', 1.0, 9), ('shear_y', 0.6, 3)),
    (('color', 0.4, 7), ('equalize', 0.6, 0)),
    (('posterize', 0.4, 6), ('autocontrast', 0.4, 7)),
    (('solarize', 0.6, 8), ('color', 0.6, 9)),
    (('solarize', 0.2, 4), ('rotate', 0.8, 9)),
    (('rotate', 1.0, 7), ('translate_y', 0.8, 9)),
    (('shear_x', 0.0, 0), ('solarize', 0.8, 4)),
    (('shear_y', 0.8, 0), ('color', 0.6, 4)),
    (('color', 1.0, 0), ('rotate', 0.6, 2)),
    (('equalize', 0.8, 4), ('equalize', 0.0, 8)),
    (('equalize', 1.0, 4), ('autocontrast', 0.6, 2)),
    (('shear_y', 0.4, 7), ('solarize_add', 0.6, 7)),
    (('posterize', 0.8, 2), ('solarize', 0.6, 10)),
    (('solarize', 0.6, 8), ('equalize', 0.6, 1)),
    (('color', 0.8, 6), ('rotate', 0.4, 5)),
  ),
  operations=_operations(translation=250, fill=None),
)

# Table 7 of the paper.
CIFAR10_POLICY = Policy(
  sub_policies=(
    (('invert', 0.1, 7), ('contrast', 0.2, 6)),
    (('rotate', 0.7, 2), ('translate_x', 0.3, 9)),
    (('sharpness', 0.8, 1), ('sharpness', 0.9, 3)),
    (('shear_y', 0.5, 8), ('translate_y', 0.7, 9)),
    (('autocontrast', 0.5, 8), ('equalize', 0.9, 2)),
    (('shear_y', 0.2, 7), ('posterize', 0.3, 7)),
    (('color', 0.4, 3), ('brightness', 0.6, 7)),
    (('sharpness', 0.3, 9), ('brightness', 0.7, 9)),
    (('equalize', 0.6, 5), ('equalize', 0.5, 1)),
    (('contrast', 0.6, 7), ('sharpness', 0.6, 5)),
    (('color', 0.7, 7), ('translate_x', 0.5, 8)),
    (('equalize', 0.3, 7), ('autocontrast', 0.4, 8)),
    (('translate_y', 0.4, 3), ('sharpness', 0.2, 6)),
    (('brightness', 0.9, 6), ('color', 0.2, 8)),
    (('solarize', 0.5, 2), ('invert', 0.0, 3)),
    (('equalize', 0.2, 0), ('autocontrast', 0.6, 0)),
    (('equalize', 0.2, 8), ('equalize', 0.6, 4)),
    (('color', 0.9, 9), ('equalize', 0.6, 6)),
    (('autocontrast', 0.8, 4), ('solarize', 0.2, 8)),
    (('brightness', 0.1, 3), ('color', 0.7, 0)),
    (('solarize', 0.4, 5), ('autocontrast', 0.9, 3)),
    (('translate_y', 0.9, 9), ('translate_y', 0.7, 9)),
    (('autocontrast', 0.9, 2), ('solarize', 0.8, 3)),
    (('equalize', 0.8, 8), ('invert', 0.1, 3)),
    (('translate_y', 0.7, 9), ('autocontrast', 0.9, 1)),
  ),
  operations={
    **_operations(translation=10, fill=augment.GREY),
    # In this policy, a higher level inverts more pixels.
    'solarize': Operation(
      augment.solarize, lambda level: 256 - _whole(256)(level)
    ),
  },
)


def auto_augment(image, seed, policy):
  """Applies a random sub-policy.

  Args:
    image: uint8 [height, width, 3].
    seed: int32 or int64 [2].
    policy: Policy.

  Returns:
    uint8 [height, width, 3].
  """
  # Arrays [sub-policies, 2]; one row is chosen.
  names, probabilities, levels = np.moveaxis(
    np.array(policy.sub_policies, object), 2, 0
  )
  used = sorted(set(names.flat))
  operations = [policy.operations[name] for name in used]
  indices = np.vectorize(used.index)(names).astype(np.int32)
  strengths = np.vectorize(
    lambda name, level: float(policy.operations[name].strength(level))
  )(names, levels)

  choice_seed, draw_seed = tf.unstack(tf.random.split(seed))
  choice = tf.random.stateless_uniform(
    [], choice_seed, maxval=len(names), dtype=tf.int32
  )
  draws = tf.random.stateless_uniform([2, 4], draw_seed)
  is_applied = draws[:, 0] < _row(probabilities, choice)
  indices = tf.where(is_applied, tf.gather(indices, choice), len(operations))
  strengths = _row(strengths, choice)
  for step in range(2):
    image = _apply(
      image, operations, indices[step], strengths[step], draws[step, 1:]
    )
  return image


def _row(table, index):
  return tf.gather(table.astype(np.float32), index)


# -------------------------------------------------------------- RandAugment

# As in the published results. Distances in pixels do not depend on the size of
# the image: at 32 pixels and level 10, cutout covers everything.
RANDAUGMENT_OPERATIONS = {
  **_operations(translation=100, fill=None),
  'contrast': Operation(_published_contrast, _factor),
}


def rand_augment(
  image, seed, num_layers, magnitude, operations=RANDAUGMENT_OPERATIONS
):
  """Applies random operations of the same level, one after the other.

  Each step applies one of them or none, all with equal probability.

  Args:
    image: uint8 [height, width, 3].
    seed: int32 or int64 [2].
    num_layers: Python int, number of operations.
    magnitude: Python float > 0, the level of all operations; 10 is strong.
    operations: {name: Operation}, to choose from.

  Returns:
    uint8 [height, width, 3].
  """
  operations = list(operations.values())
  strengths = tf.constant(
    [float(operation.strength(magnitude)) for operation in operations] + [0.0]
  )
  choice_seed, draw_seed = tf.unstack(tf.random.split(seed))
  choices = tf.random.stateless_uniform(
    [num_layers], choice_seed, maxval=len(operations) + 1, dtype=tf.int32
  )
  draws = tf.random.stateless_uniform([num_layers, 3], draw_seed)
  for step in range(num_layers):
    image = _apply(
      image,
      operations,
      choices[step],
      tf.gather(strengths, choices[step]),
      draws[step],
    )
  return image
