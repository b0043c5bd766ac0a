"""Tests of supcon.serving.trained_models."""

import dataclasses

import numpy as np
import tensorflow as tf

from supcon.config import enums
from supcon.serving import trained_models
from tests.serving import exported

_GREY_LEVELS = np.arange(256).repeat(3).reshape([1, 16, 16, 3]).astype(np.uint8)
_MODEL = exported.trained_model('DIR/model.ckpt-3')


def test_what_is_known_of_it():
  assert _MODEL.step == 3
  assert _MODEL.num_classes == 10
  assert _MODEL.image_size == 12
  assert _MODEL.embedding_size == 512 // 16


def test_preprocessing_tells_images_that_are_made_otherwise():
  params = _MODEL.params
  assert ' pixels, ' in _MODEL.preprocessing
  others = [dataclasses.replace(_MODEL, mean=None, std=None)]
  for path, value in (
    ('image_size', 13),
    ('eval_crop_method', enums.EvalCropMethod.IDENTITY),
    ('crop_padding', 7),
  ):
    changed = params.replace(f'input_data.preprocessing.{path}', value)
    others.append(dataclasses.replace(_MODEL, params=changed))
  lines = {model.preprocessing for model in (_MODEL, *others)}
  assert len(lines) == 5
  assert others[0].preprocessing.endswith('whitening none')
  # How training images are augmented is none of it.
  changed = params.replace('input_data.preprocessing.blur_probability', 0.25)
  same = dataclasses.replace(_MODEL, params=changed)
  assert same.preprocessing == _MODEL.preprocessing


def test_to_model_input():
  # White: (1 - mean) / std = (1.125 / 0.5, 1 / 0.25, 0.75 / 1).
  white = [[2.25, 4.0, 0.75]]
  black = [[-1.75, -4.0, -1.25]]
  for images, function in (
    (np.float32([1, 0]), _MODEL.from_unit_range),
    (np.float32([255, 0]), _MODEL.from_grey_levels),
    (np.uint8([255, 0]), _MODEL.from_grey_levels),
  ):
    images = np.broadcast_to(images[:, None, None, None], [2, 1, 1, 3])
    found = function(tf.constant(images)).numpy()
    np.testing.assert_array_equal(found, [[white], [black]])


def test_every_grey_level_comes_out_the_same_either_way():
  plain = dataclasses.replace(_MODEL, mean=None, std=None)
  for model in (plain, _MODEL):
    levels = model.from_grey_levels(tf.constant(_GREY_LEVELS))
    units = model.from_unit_range(tf.constant(np.float32(_GREY_LEVELS) / 255))
    np.testing.assert_array_equal(levels, units)
  levels = plain.from_grey_levels(tf.constant(_GREY_LEVELS)).numpy()
  np.testing.assert_array_equal(
    levels, np.float32(_GREY_LEVELS) / np.float32(127.5) - 1
  )


def test_every_name_means_an_output():
  assert set(trained_models.OUTPUTS.values()) == set(exported.NAMES)
  for names in trained_models.IMAGE_SIGNATURES.values():
    assert set(names.values()) <= set(exported.NAMES)


def test_outputs_are_the_models(checkpoint, expected):
  model = exported.trained_model(checkpoint)
  for training in (False, True):
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
      network = model.build()
      images = tf.constant(exported.model_input(exported.images()))
      outputs = trained_models.named(network(images, training))
      tf.compat.v1.train.Saver(network.variables).restore(session, checkpoint)
      found = session.run(dict(outputs))
    assert set(found) == set(exported.NAMES)
    exported.assert_close(found, expected.outputs[training])
