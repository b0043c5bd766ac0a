"""Tests of projector: what the Embedding Projector is given."""

import numpy as np
from PIL import Image
import pytest
import tensorflow as tf

from supcon.evaluation import model_outputs
from supcon.reports import projector

_OUTPUTS = model_outputs.Outputs(
  labels=np.array([1, 0, 2]),
  logits=np.float32([[0, 9, 0], [0, 0, 9], [0, 0, 9]]),
  embeddings=np.float32([[3, 4], [0, 0], [-2, 0]]),
  class_names=['cat', 'a\tb\n', '7'],
  ids=['x/1', 'x/2', 'x/3'],
)


def _write(directory, outputs=_OUTPUTS, step=44, **options):
  positions = np.arange(outputs.num_examples)
  # Image i is of grey level i.
  levels = positions.astype(np.uint8)[:, np.newaxis, np.newaxis, np.newaxis]
  side = projector.SIDE
  thumbnails = np.broadcast_to(levels, [len(positions), side, side, 3])
  projector.write(
    str(directory), outputs, positions, thumbnails, step, **options
  )


def _sprites(directory):
  return np.array(Image.open(directory / 'sprites.png'))


def test_embeddings_are_the_only_matrix_and_of_unit_length(tmp_path):
  _write(tmp_path)
  checkpoint = tf.train.latest_checkpoint(str(tmp_path))
  assert tf.train.list_variables(checkpoint) == [('embeddings', [3, 2])]
  # (3, 4) / 5; what has no direction stays; (-2, 0) / 2.
  np.testing.assert_allclose(
    tf.train.load_variable(checkpoint, 'embeddings'),
    [[0.6, 0.8], [0, 0], [-1, 0]],
    rtol=1e-6,
  )


def test_each_point_has_one_line_whatever_its_class_is_called(tmp_path):
  _write(tmp_path)
  assert (tmp_path / 'metadata.tsv').read_text() == (
    'class\tpredicted\tresult\texample\n'
    'a\\tb\\n\ta\\tb\\n\tright\tx/1\n'
    'cat\tclass 7\twrong\tx/2\n'
    'class 7\tclass 7\tright\tx/3\n'
  )


def test_without_a_classifier_no_point_has_a_prediction(tmp_path):
  _write(tmp_path, has_predictions=False)
  assert (tmp_path / 'metadata.tsv').read_text() == (
    'class\texample\na\\tb\\n\tx/1\ncat\tx/2\nclass 7\tx/3\n'
  )


def test_pictures_lie_in_rows_in_frames_of_the_color_of_the_class(tmp_path):
  _write(tmp_path)
  sheet, side = _sprites(tmp_path), projector.SIDE
  # Two rows of two, the last one empty.
  assert sheet.shape == (2 * side, 2 * side, 3)
  middle = side // 2
  assert sheet[middle::side, middle::side, 0].tolist() == [[0, 1], [2, 0]]
  corners = sheet[::side, ::side].tolist()
  assert corners == [[[230, 159, 0], [0, 114, 178]], [[0, 158, 115], [0, 0, 0]]]


def test_many_classes_have_no_frames_as_no_one_could_tell_them_apart(tmp_path):
  outputs = model_outputs.Outputs(
    np.arange(11), np.eye(11, dtype=np.float32), np.ones([11, 2], np.float32)
  )
  _write(tmp_path, outputs)
  # Four rows of four.
  corners = _sprites(tmp_path)[:: projector.SIDE, :: projector.SIDE, 0]
  assert corners.ravel().tolist() == [*range(11), 0, 0, 0, 0, 0]


def test_another_checkpoint_takes_the_place_of_the_earlier_one(tmp_path):
  _write(tmp_path, step=4)
  names = {path.name for path in tmp_path.iterdir()}
  _write(tmp_path, step=44)
  assert {path.name for path in tmp_path.iterdir()} == {
    name.replace('embeddings-4.', 'embeddings-44.') for name in names
  }
  assert tf.train.latest_checkpoint(str(tmp_path)).endswith('embeddings-44')


def test_embeddings_that_are_not_finite_are_refused_by_name(tmp_path):
  embeddings = np.float32([[1, 2], [np.nan, 0], [0, 1]])
  outputs = model_outputs.Outputs(
    _OUTPUTS.labels, _OUTPUTS.logits, embeddings, ids=_OUTPUTS.ids
  )
  with pytest.raises(ValueError, match='the embeddings of example x/2 are NaN'):
    _write(tmp_path, outputs)
