"""Tests of supcon.data.views.policies."""

import re

import numpy as np
import pytest
import tensorflow as tf

from supcon.data.views import policies


def _noise(height, width, low=0, high=256):
  random = np.random.RandomState(height * 1000 + width)
  return random.randint(low, high, (height, width, 3)).astype(np.uint8)


_POLICIES = {
  'imagenet': policies.IMAGENET_POLICY,
  'cifar10': policies.CIFAR10_POLICY,
}


@pytest.mark.parametrize('name', _POLICIES)
def test_policies_are_25_pairs(name):
  policy = _POLICIES[name]
  assert len(policy.sub_policies) == 25
  for sub_policy in policy.sub_policies:
    assert len(sub_policy) == 2
    for operation, probability, level in sub_policy:
      assert operation in policy.operations
      assert 0 <= probability <= 1
      assert level in range(11)


# The policy v0 of AutoAugment for TPU models: operation, probability and level,
# twice in a line.
_IMAGENET_TABLE = """
  Equalize 0.8 1      ShearY 0.8 4
  Color 0.4 9         Equalize 0.6 3
  Color 0.4 1         Rotate 0.6 8
  Solarize 0.8 3      Equalize 0.4 7
  Solarize 0.4 2      Solarize 0.6 2
  Color 0.2 0         Equalize 0.8 8
  Equalize 0.4 8      SolarizeAdd 0.8 3
  ShearX 0.2 9        Rotate 0.6 8
  Color 0.6 1         Equalize 1.0 2
  Invert 0.4 9        Rotate 0.6 0
  Equalize 1.0 9      ShearY 0.6 3
  Color 0.4 7         Equalize 0.6 0
  Posterize 0.4 6     AutoContrast 0.4 7
  Solarize 0.6 8      Color 0.6 9
  Solarize 0.2 4      Rotate 0.8 9
  Rotate 1.0 7        TranslateY 0.8 9
  ShearX 0.0 0        Solarize 0.8 4
  ShearY 0.8 0        Color 0.6 4
  Color 1.0 0         Rotate 0.6 2
  Equalize 0.8 4      Equalize 0.0 8
  Equalize 1.0 4      AutoContrast 0.6 2
  ShearY 0.4 7        SolarizeAdd 0.6 7
  Posterize 0.8 2     Solarize 0.6 10
  Solarize 0.6 8      Equalize 0.6 1
  Color 0.8 6         Rotate 0.4 5
"""

# Table 7 of https://arxiv.org/abs/1805.09501.
_CIFAR10_TABLE = """
  Invert 0.1 7        Contrast 0.2 6
  Rotate 0.7 2        TranslateX 0.3 9
  Sharpness 0.8 1     Sharpness 0.9 3
  ShearY 0.5 8        TranslateY 0.7 9
  AutoContrast 0.5 8  Equalize 0.9 2
  ShearY 0.2 7        Posterize 0.3 7
  Color 0.4 3         Brightness 0.6 7
  Sharpness 0.3 9     Brightness 0.7 9
  Equalize 0.6 5      Equalize 0.5 1
  Contrast 0.6 7      Sharpness 0.6 5
  Color 0.7 7         TranslateX 0.5 8
  Equalize 0.3 7      AutoContrast 0.4 8
  TranslateY 0.4 3    Sharpness 0.2 6
  Brightness 0.9 6    Color 0.2 8
  Solarize 0.5 2      Invert 0.0 3
  Equalize 0.2 0      AutoContrast 0.6 0
  Equalize 0.2 8      Equalize 0.6 4
  Color 0.9 9         Equalize 0.6 6
  AutoContrast 0.8 4  Solarize 0.2 8
  Brightness 0.1 3    Color 0.7 0
  Solarize 0.4 5      AutoContrast 0.9 3
  TranslateY 0.9 9    TranslateY 0.7 9
  AutoContrast 0.9 2  Solarize 0.8 3
  Equalize 0.8 8      Invert 0.1 3
  TranslateY 0.7 9    AutoContrast 0.9 1
"""

# What RandAugment chooses from, in the words of the paper, and how strong each
# is at level 10.
_RANDAUGMENT_STRENGTHS = {
  'AutoContrast': 0,
  'Equalize': 0,
  'Invert': 0,
  'Rotate': 30,
  'Posterize': 4,
  'Solarize': 0,  # 256 in 8 bits.
  'Color': 1.9,
  'Contrast': 1.9,
  'Brightness': 1.9,
  'Sharpness': 1.9,
  'ShearX': 0.3,
  'ShearY': 0.3,
  'TranslateX': 100,
  'TranslateY': 100,
  'Cutout': 40,
  'SolarizeAdd': 110,
}


def _ours(name):
  """Returns 'shear_x' for 'ShearX'; only AutoContrast is one word here."""
  if name == 'AutoContrast':
    return 'autocontrast'
  return re.sub(r'(?<=[a-z])(?=[A-Z])', '_', name).lower()


@pytest.mark.parametrize(
  'policy, table',
  [
    (policies.IMAGENET_POLICY, _IMAGENET_TABLE),
    (policies.CIFAR10_POLICY, _CIFAR10_TABLE),
  ],
  ids=['imagenet', 'cifar10'],
)
def test_policies_are_the_published_tables(policy, table):
  def pair(line):
    words = line.split()
    return tuple(
      (_ours(name), float(probability), int(level))
      for name, probability, level in (words[:3], words[3:])
    )

  expected = [pair(line) for line in table.strip().splitlines()]
  assert list(policy.sub_policies) == expected


def test_operations_of_rand_augment_are_the_published_ones():
  found = {
    name: operation.strength(10)
    for name, operation in policies.RANDAUGMENT_OPERATIONS.items()
  }
  expected = {_ours(n): s for n, s in _RANDAUGMENT_STRENGTHS.items()}
  assert found == pytest.approx(expected)


@pytest.mark.parametrize(
  'operations, operation, level, strength',
  [
    (policies.IMAGENET_POLICY.operations, *row)
    for row in (
      ('shear_y', 4, 0.12),  # 0.4 * 0.3
      ('rotate', 8, 24),  # 0.8 * 30
      ('translate_y', 9, 225),  # 0.9 * 250
      ('color', 0, 0.1),
      ('color', 9, 1.72),  # 0.1 + 0.9 * 1.8
      ('posterize', 6, 2),  # 0.6 * 4 = 2.4
      ('posterize', 2, 1),  # 0.2 * 4 = 0.8, at least 1
      ('solarize', 3, 76),  # 0.3 * 256 = 76.8
      ('solarize', 10, 0),  # 256 modulo 256
      ('solarize_add', 7, 77),  # 0.7 * 110
    )
  ]
  + [
    (policies.CIFAR10_POLICY.operations, *row)
    for row in (
      ('translate_x', 8, 8),  # 0.8 * 10
      ('solarize', 2, 205),  # 256 - 51
      ('posterize', 7, 2),  # 0.7 * 4 = 2.8
    )
  ]
  + [
    (policies.RANDAUGMENT_OPERATIONS, *row)
    for row in (
      ('translate_x', 10, 100),
      ('cutout', 5, 20),
      ('posterize', 10, 4),
      ('posterize', 30, 8),  # An image has no more bits.
      ('sharpness', 15, 2.8),  # 0.1 + 1.5 * 1.8
    )
  ],
)
def test_strengths_of_levels(operations, operation, level, strength):
  actual = operations[operation].strength(level)
  assert actual == pytest.approx(strength)


def _draw(function, image, n):
  """Stacks function(image, seed) over n seeds, as the pipeline computes it."""
  image = tf.constant(image)
  dataset = tf.data.Dataset.range(n).map(
    lambda index: function(image, tf.stack([index, 3])), num_parallel_calls=2
  )
  return next(iter(dataset.batch(n))).numpy()


def _numbered(*chances):
  """Operations that change grey level x to 4 x + their number, from 1 on."""

  def operation(number):
    return lambda image, *_: image * 4 + number

  return {
    str(number): policies.Operation(operation(number), lambda _: 1.0, chance)
    for number, chance in enumerate(chances, start=1)
  }


_NOTHING = policies.Chance.NOTHING


def test_sub_policies_apply_two_operations_in_order():
  policy = policies.Policy(
    sub_policies=(
      (('1', 1.0, 0), ('2', 1.0, 0)),
      (('3', 1.0, 0), ('1', 0.3, 0)),
      (('2', 0.0, 0), ('3', 0.7, 0)),
    ),
    operations=_numbered(_NOTHING, _NOTHING, _NOTHING),
  )
  n = 3000
  results = _draw(
    lambda image, seed: policies.auto_augment(image, seed, policy),
    np.zeros([1, 1, 3], np.uint8),
    n,
  )[:, 0, 0, 0]
  expected = {
    # 4 * 1 + 2.
    6: 1 / 3,
    # 4 * 3 + 1, or the first alone; the latter also from the third.
    13: 0.3 / 3,
    3: 0.7 / 3 + 0.7 / 3,
    0: 0.3 / 3,
  }
  assert set(results) == set(expected)
  for result, probability in expected.items():
    error = np.sqrt(probability * (1 - probability) / n)
    assert abs(np.mean(results == result) - probability) <= 4 * error, result


@pytest.mark.parametrize('num_layers', [0, 1, 2])
def test_rand_augment_chooses_evenly(num_layers):
  operations = _numbered(_NOTHING, _NOTHING, _NOTHING)
  n = 2000
  results = _draw(
    lambda image, seed: policies.rand_augment(
      image, seed, num_layers, 10.0, operations
    ),
    np.zeros([1, 1, 3], np.uint8),
    n,
  )[:, 0, 0, 0]
  # Three operations or none in each layer.
  outcomes = [0]
  for _ in range(num_layers):
    outcomes = outcomes + [
      4 * outcome + number for outcome in outcomes for number in (1, 2, 3)
    ]
  probability = 4.0**-num_layers
  for outcome in set(outcomes):
    expected = outcomes.count(outcome) * probability
    error = np.sqrt(expected * (1 - expected) / n)
    assert abs(np.mean(results == outcome) - expected) <= 4 * error, outcome


def test_rand_augment_has_16_operations():
  assert len(policies.RANDAUGMENT_OPERATIONS) == 16


def test_signs_and_positions_are_random():
  kept = {
    name: policies.RANDAUGMENT_OPERATIONS[name]
    for name in ('translate_x', 'cutout')
  }
  # At level 0.2, 2 pixels to either side.
  image = np.arange(0, 240, 2, dtype=np.uint8).reshape(1, 40, 3)
  images = _draw(
    lambda image, seed: policies.rand_augment(image, seed, 1, 0.2, kept),
    image,
    1500,
  )
  to_the_left = (images[:, :, :38] == image[:, 2:]).all(axis=(1, 2, 3)).mean()
  to_the_right = (images[:, :, 2:] == image[:, :38]).all(axis=(1, 2, 3)).mean()
  # 1 / 3 * 1 / 2.
  error = np.sqrt(1 / 6 * 5 / 6 / 1500)
  assert abs(to_the_left - 1 / 6) <= 4 * error
  assert abs(to_the_right - 1 / 6) <= 4 * error

  # At level 0.25, cutout covers 2 pixels, half of its side 1 to either side of
  # each of 40 centers.
  covered = _draw(
    lambda image, seed: policies.rand_augment(image, seed, 1, 0.25, kept),
    np.zeros([1, 40, 3], np.uint8),
    1500,
  )[:, 0, :, 0]
  counts = (covered == 128).sum(axis=0)
  # 2 of 40 centers cover a pixel, in a third of the images: 25 times. Left of
  # the last pixel lies one center less.
  assert (np.abs(counts[:-1] - 25) <= 4.5 * np.sqrt(25)).all()
  assert counts[-1] < 25 + 4.5 * 5


@pytest.mark.parametrize(
  'function',
  [
    lambda image, seed: policies.auto_augment(
      image, seed, policies.IMAGENET_POLICY
    ),
    lambda image, seed: policies.auto_augment(
      image, seed, policies.CIFAR10_POLICY
    ),
    lambda image, seed: policies.rand_augment(image, seed, 2, 7.0),
  ],
)
def test_every_image_is_another_and_always_the_same(function):
  image = _noise(24, 24)
  images = _draw(function, image, 40)
  assert images.shape == (40, 24, 24, 3) and images.dtype == np.uint8
  np.testing.assert_array_equal(_draw(function, image, 40), images)
  assert len({image.tobytes() for image in images}) > 15
  # Seeds of 32 bits give images, too.
  seed = tf.constant([5, 3], tf.int32)
  assert function(tf.constant(image), seed).shape == (24, 24, 3)


def test_images_of_any_size():
  for shape in ((1, 1), (2, 7), (1, 60), (33, 5)):
    for seed in ([0, 1], [2, 3], [4, 5]):
      image = tf.constant(_noise(*shape))
      for policy in _POLICIES.values():
        augmented = policies.auto_augment(image, seed, policy)
        assert augmented.shape == (*shape, 3)
      assert policies.rand_augment(image, seed, 2, 9.0).shape == (*shape, 3)


def test_only_the_chosen_operation_is_computed():
  def fail(image, strength):
    del strength
    nothing = tf.cast(image, tf.float32) / 0
    return tf.cast(tf.debugging.check_numerics(nothing, 'computed'), tf.uint8)

  failing = policies.Operation(fail, lambda _: 0.0)

  def draw(probability):
    policy = policies.Policy(
      sub_policies=((('fail', probability, 0), ('1', 1.0, 0)),),
      operations={'fail': failing, **_numbered(_NOTHING)},
    )
    return _draw(
      lambda image, seed: policies.auto_augment(image, seed, policy),
      np.zeros([1, 1, 3], np.uint8),
      10,
    )

  assert (draw(0.0) == 1).all()
  with pytest.raises(tf.errors.InvalidArgumentError, match='computed'):
    draw(1.0)


def test_published_contrast_is_relative_to_a_256th_of_the_pixels():
  # 224 * 224 / 256 = 196: 0.5 * 100 + 0.5 * 196 = 148. 32 * 32 / 256 = 4.
  # More than 255 there is not.
  for side, expected in ((224, 148), (32, 52), (300, 177)):
    image = tf.constant(np.full([side, side, 3], 100, np.uint8))
    changed = policies.RANDAUGMENT_OPERATIONS['contrast'].function(image, 0.5)
    assert np.unique(changed).tolist() == [expected]
