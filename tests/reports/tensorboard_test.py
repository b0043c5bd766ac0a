"""What TensorBoard shows of a report, asked over HTTP and seen in a browser."""

import io
import json
import urllib.parse
import urllib.request

import numpy as np
from PIL import Image
import pytest
from tensorboard import default
from tensorboard import program
import tensorflow as tf

from supcon.reports import board
from supcon.reports import projector
from supcon.runs import event_files
from tests import browser
from tests.reports import made_report

tf1 = tf.compat.v1

_NUM_EXAMPLES, _NUM_CLASSES, _SIZE = 120, 4, 8


@pytest.fixture(name='url', scope='module')
def fixture_url(tmp_path_factory):
  """A TensorBoard that shows a model_dir with a report."""
  model_dir = tmp_path_factory.mktemp('runs') / 'the model'
  with tf.Graph().as_default(), tf1.Session() as session:
    tf1.get_variable('weights', [200, 90])
    session.run(tf1.global_variables_initializer())
    tf1.train.Saver().save(session, str(model_dir / 'model.ckpt'), 30)
    # Both are begun before the report.
    for run in ('train', 'eval'):
      event_files.add(str(model_dir / run), {30: {'loss': 0.5}})
  tf1.summary.FileWriterCache.clear()
  report, outputs, *_ = made_report.report()

  def read(positions, side):
    return np.full([len(positions), side, side, 3], 40, np.uint8)

  board.write(str(model_dir / 'report'), report, outputs, read)
  tensorboard = program.TensorBoard(default.get_plugins())
  tensorboard.configure([None, '--logdir', str(model_dir), '--port', '0'])
  return tensorboard.launch()


def _get(url, path, **query):
  path = f'{url}data/plugin/{path}?{urllib.parse.urlencode(query)}'
  with urllib.request.urlopen(path, timeout=60) as answer:
    return answer.read()


def _json(url, path, **query):
  return json.loads(_get(url, path, **query))


def test_the_projector_opens_with_the_embeddings_and_nothing_else(url):
  # It selects the first run and the first tensor of it.
  assert _json(url, 'projector/runs')[0] == 'report'
  info = _json(url, 'projector/info', run='report')
  (embedding,) = info['embeddings']
  assert embedding['tensorShape'] == [_NUM_EXAMPLES, _SIZE]
  of_embeddings = {'run': 'report', 'name': embedding['tensorName']}
  values = np.frombuffer(_get(url, 'projector/tensor', **of_embeddings), 'f4')
  lengths = np.linalg.norm(values.reshape([_NUM_EXAMPLES, _SIZE]), axis=1)
  np.testing.assert_allclose(lengths, 1, rtol=1e-6)
  lines = _get(url, 'projector/metadata', **of_embeddings).decode().splitlines()
  assert len(lines) == 1 + _NUM_EXAMPLES
  assert lines[0] == 'class\tpredicted\tresult\texample'
  sprites = _get(url, 'projector/sprite_image', **of_embeddings)
  # 120 pictures are 11 rows of up to 11.
  assert Image.open(io.BytesIO(sprites)).size == (11 * projector.SIDE,) * 2


def test_pictures_are_shown_beside_training_and_evaluation(url):
  assert _json(url, 'scalars/tags').keys() == {'train', 'eval'}
  images = _json(url, 'images/tags')
  assert images.keys() == {'report'}
  tags = images['report']
  assert tags.keys() == {
    'classifier/confusion',
    'classifier/reliability: as trained',
    'classifier/reliability: scaled by temperature',
  }
  for tag, facts in tags.items():
    assert 'examples' in facts['description'] or 'right' in facts['description']
    (image,) = _json(url, 'images/images', run='report', tag=tag, sample=0)
    assert image['step'] == 30
    query = dict(urllib.parse.parse_qsl(image['query']))
    png = _get(url, 'images/individualImage', **query)
    assert Image.open(io.BytesIO(png)).size[0] == 700


@pytest.mark.slow
def test_a_browser_shows_the_points_and_the_pictures(url, tmp_path):
  # The frames of the classes; the bars of the reliability diagrams.
  for page, colors in {
    'projector': projector.COLORS[:_NUM_CLASSES],
    'images': [(86, 180, 233)],
  }.items():
    pixels = browser.screenshot(
      f'{url}#{page}',
      tmp_path,
      1400,
      1400,
      # Points are drawn with WebGL; time passes until all is loaded.
      '--enable-unsafe-swiftshader',
      '--virtual-time-budget=30000',
    )
    for color in colors:
      distance = abs(pixels - np.array(color, int)).max(axis=2)
      assert (distance < 16).sum() > 100, (page, color)
