"""What TensorBoard shows of a report, asked over HTTP and seen in a browser."""

import io
import json
import shutil
import subprocess
import urllib.parse
import urllib.request

import numpy as np
from PIL import Image
import pytest
from tensorboard import default
from tensorboard import program
import tensorflow as tf

from supcon.evaluation import model_outputs
from supcon.reports import image_summaries
from supcon.reports import projector
from supcon.runs import event_files

tf1 = tf.compat.v1

_NUM_EXAMPLES, _NUM_CLASSES, _SIZE = 60, 3, 8
_PURPLE = (120, 20, 200)


@pytest.fixture(name='url', scope='module')
def fixture_url(tmp_path_factory):
  """A TensorBoard that shows a model_dir with a report."""
  model_dir = tmp_path_factory.mktemp('runs') / 'the model'
  with tf.Graph().as_default(), tf1.Session() as session:
    tf1.get_variable('weights', [90, 90])
    session.run(tf1.global_variables_initializer())
    tf1.train.Saver().save(session, str(model_dir / 'model.ckpt'), 44)
    # Both are begun before the report.
    for run in ('train', 'eval'):
      event_files.add(str(model_dir / run), {44: {'loss': 0.5}})
  tf1.summary.FileWriterCache.clear()
  labels = np.arange(_NUM_EXAMPLES) % _NUM_CLASSES
  logits = np.eye(_NUM_CLASSES, dtype=np.float32)[labels]
  rng = np.random.default_rng(0)
  noise = rng.normal(scale=0.1, size=[_NUM_EXAMPLES, _SIZE])
  outputs = model_outputs.Outputs(
    labels,
    logits,
    (np.eye(_NUM_CLASSES, _SIZE)[labels] + noise).astype(np.float32),
    ['cat', 'dog', 'emu'],
  )
  positions = projector.choose(_NUM_EXAMPLES)
  shape = [_NUM_EXAMPLES, projector.SIDE, projector.SIDE, 3]
  thumbnails = np.full(shape, 40, np.uint8)
  directory = str(model_dir / 'report')
  projector.write(directory, outputs, positions, thumbnails, 44)
  picture = np.full([64, 96, 3], _PURPLE, np.uint8)
  png = image_summaries.png(picture)
  pictures = {'confusion_matrix': image_summaries.Picture(png, 'Of 60.')}
  image_summaries.write(directory, 'report', pictures, 44)
  board = program.TensorBoard(default.get_plugins())
  board.configure([None, '--logdir', str(model_dir), '--port', '0'])
  return board.launch()


def _get(url, path, **query):
  path = f'{url}data/plugin/{path}?{urllib.parse.urlencode(query)}'
  with urllib.request.urlopen(path, timeout=60) as answer:
    return answer.read()


def test_the_projector_opens_with_the_embeddings_and_nothing_else(url):
  # It selects the first run and the first tensor of it.
  assert json.loads(_get(url, 'projector/runs'))[0] == 'report'
  info = json.loads(_get(url, 'projector/info', run='report'))
  (embedding,) = info['embeddings']
  assert embedding['tensorShape'] == [_NUM_EXAMPLES, _SIZE]
  of_embeddings = {'run': 'report', 'name': embedding['tensorName']}
  values = np.frombuffer(_get(url, 'projector/tensor', **of_embeddings), 'f4')
  lengths = np.linalg.norm(values.reshape([_NUM_EXAMPLES, _SIZE]), axis=1)
  np.testing.assert_allclose(lengths, 1, rtol=1e-6)
  lines = _get(url, 'projector/metadata', **of_embeddings).decode().splitlines()
  assert lines[:3] == [
    'class\tpredicted\tresult\texample',
    'cat\tcat\tright\t0',
    'dog\tdog\tright\t1',
  ]
  sprites = _get(url, 'projector/sprite_image', **of_embeddings)
  # 60 pictures are 8 rows of 8.
  assert Image.open(io.BytesIO(sprites)).size == (8 * projector.SIDE,) * 2


def test_pictures_are_shown_beside_training_and_evaluation(url):
  assert json.loads(_get(url, 'scalars/tags')).keys() == {'train', 'eval'}
  images = json.loads(_get(url, 'images/tags'))
  assert images.keys() == {'report'}
  assert images['report']['confusion_matrix']['description'] == '<p>Of 60.</p>'
  (image,) = json.loads(
    _get(url, 'images/images', run='report', tag='confusion_matrix', sample=0)
  )
  assert image['step'] == 44


@pytest.mark.slow
def test_a_browser_shows_the_points_and_the_pictures(url, tmp_path):
  browser = shutil.which('chromium') or shutil.which('google-chrome')
  if not browser:
    pytest.skip('Chromium is not installed, so nobody looked at TensorBoard')
  projected = _screenshot(browser, url, 'projector', tmp_path)
  # The frames of three classes.
  for color in projector.COLORS[:_NUM_CLASSES]:
    assert _share(projected, color) > 1e-4
  assert _share(_screenshot(browser, url, 'images', tmp_path), _PURPLE) > 0.01


def _screenshot(browser, url, page, directory):
  path = directory / f'{page}.png'
  subprocess.run(
    [
      browser,
      *'--headless --no-sandbox --disable-gpu --enable-unsafe-swiftshader '
      '--disable-quic --no-first-run --disable-background-networking '
      '--disable-component-update --disable-sync'.split(),
      f'--user-data-dir={directory / "profile"}',
      '--virtual-time-budget=30000',
      '--window-size=1400,900',
      f'--screenshot={path}',
      f'{url}#{page}',
    ],
    check=True,
    capture_output=True,
    timeout=300,
  )
  return np.array(Image.open(path).convert('RGB'), int)


def _share(image, color):
  """Returns the share of the pixels that are of a color, nearly."""
  return (abs(image - np.array(color)).max(axis=2) < 16).mean()
