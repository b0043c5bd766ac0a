"""Tests of image_summaries: pictures that TensorBoard shows."""

import io

import numpy as np
from PIL import Image
from tensorboard.backend.event_processing import event_accumulator
import tensorflow as tf

from supcon.reports import image_summaries
from supcon.runs import event_files


def _image(height, width, level):
  return np.full([height, width, 3], level, np.uint8)


def _shown(directory):
  """Returns {tag: [(step, width, height, pixels)]} as TensorBoard has it."""
  events = event_accumulator.EventAccumulator(str(directory))
  events.Reload()
  shown = {}
  for tag in events.PluginTagToContent('images'):
    shown[tag] = []
    for event in events.Tensors(tag):
      width, height, png = tf.make_ndarray(event.tensor_proto)
      pixels = np.array(Image.open(io.BytesIO(png))).tolist()
      shown[tag].append((event.step, int(width), int(height), pixels))
  return shown


def _write(directory, step, **images):
  pictures = {
    tag: image_summaries.Picture(image_summaries.png(image), f'A {tag}.')
    for tag, image in images.items()
  }
  image_summaries.write(str(directory), 'report', pictures, step)


def test_each_picture_is_shown_at_its_step(tmp_path):
  wide, high = _image(1, 3, 7), _image(2, 1, 9)
  _write(tmp_path / 'report', 44, wide=wide, high=high)
  assert _shown(tmp_path / 'report') == {
    'wide': [(44, 3, 1, wide.tolist())],
    'high': [(44, 1, 2, high.tolist())],
  }


def test_pictures_replace_those_of_their_kind_and_leave_scalars_alone(tmp_path):
  with tf.Graph().as_default():
    event_files.add(str(tmp_path), {44: {'loss': 0.5}})
  for level in (1, 2):
    _write(tmp_path, 22, picture=_image(1, 1, level))
  assert _shown(tmp_path) == {'picture': [(22, 1, 1, [[[2, 2, 2]]])]}
  assert event_files.read(str(tmp_path)) == {44: {'loss': 0.5}}
