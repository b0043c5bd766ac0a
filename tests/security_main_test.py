"""What a run writes tells nothing, and what it reads runs nothing."""

import http.server
import io
import os
import pickle
import stat
import tarfile
import threading

import numpy as np
import pytest
import tensorflow as tf

from supcon.data.sources import prepared
from supcon.serving import neighbours
from supcon.training import warm_start
from tests import command

_SECRET = 'hunter2-do-not-write-down'


@pytest.fixture(scope='module')
def model_dir(tmp_path_factory):
  """A small run by somebody with a secret and a narrow umask."""
  directory = tmp_path_factory.mktemp('run')
  before = os.umask(0o027)
  try:
    command.succeed(
      {
        'mode': 'train_then_eval',
        'use_tpu': False,
        'input_fn': 'digits',
        'data_dir': directory / 'data',
        'model_dir': directory / 'model',
        'image_size': 8,
        'eval_crop_method': 'CROP_THEN_RESIZE',
        'crop_padding': 0,
        'num_images': 24,
        'num_eval_images': 12,
        'batch_size': 8,
        'eval_batch_size': 8,
        'projection_head_layers': '8',
        'stage_1_epochs': 1,
        'stage_1_warmup_epochs': 0,
        'stage_2_epochs': 0,
      },
      directory,
      is_small=True,
      AWS_SECRET_ACCESS_KEY=_SECRET,
      GOOGLE_APPLICATION_CREDENTIALS=f'/home/{_SECRET}.json',
    )
  finally:
    os.umask(before)
  return directory / 'model'


def _files(directory):
  return [path for path in directory.rglob('*') if path.is_file()]


def test_nothing_of_the_environment_is_written(model_dir):
  files = _files(model_dir)
  assert len(files) > 10
  for path in files:
    assert _SECRET.encode() not in path.read_bytes(), path


def test_files_are_as_open_as_the_umask_says(model_dir):
  for path in _files(model_dir):
    assert stat.S_IMODE(path.stat().st_mode) == 0o640, path


# --- What others have written -------------------------------------------------


class _Evil:
  """Makes a file where it is unpickled."""

  def __init__(self, path):
    self._path = str(path)

  def __reduce__(self):
    return os.mkdir, (self._path,)


def test_an_index_is_not_unpickled(tmp_path):
  trace = tmp_path / 'unpickled'
  path = tmp_path / 'index.npz'
  objects = np.empty(2, object)
  objects[:] = [_Evil(trace)] * 2
  np.savez(path, embeddings=objects, ids=objects)
  with pytest.raises(ValueError, match='index.npz'):
    neighbours.read_index(str(path))
  assert not trace.exists()
  # It would have been made.
  pickle.loads(pickle.dumps(_Evil(trace)))
  assert trace.exists()


def test_features_do_not_import_modules(tmp_path, monkeypatch):
  trace = tmp_path / 'imported'
  (tmp_path / 'evil.py').write_text(f'import os; os.mkdir({str(trace)!r})')
  monkeypatch.syspath_prepend(tmp_path)
  (tmp_path / 'features.json').write_text(
    '{"pythonClassName": "evil.Feature", "content": "{}"}'
  )
  (tmp_path / 'dataset_info.json').write_text('{"name": "x"}')
  with pytest.raises(ValueError, match="'evil.Feature'"):
    prepared.load(str(tmp_path), '', '')
  assert not trace.exists()


@pytest.mark.parametrize('name', ['../../outside', '/{absolute}', 'link/x'])
def test_a_module_cannot_write_outside_its_directory(
  tmp_path, monkeypatch, name
):
  outside = tmp_path / 'outside'
  archive = io.BytesIO()
  with tarfile.open(fileobj=archive, mode='w:gz') as tar:
    link = tarfile.TarInfo('link')
    link.type = tarfile.SYMTYPE
    link.linkname = str(tmp_path)
    tar.addfile(link)
    entry = tarfile.TarInfo(
      name.replace('{absolute}', str(outside).lstrip('/'))
    )
    entry.size = 5
    tar.addfile(entry, io.BytesIO(b'hello'))

  class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):  # pylint: disable=invalid-name
      self.send_response(200)
      self.end_headers()
      self.wfile.write(archive.getvalue())

    def log_message(self, *args):
      pass

  server = http.server.HTTPServer(('localhost', 0), Handler)
  threading.Thread(target=server.serve_forever, daemon=True).start()
  cache = tmp_path / 'a' / 'cache'
  monkeypatch.setenv('TFHUB_CACHE_DIR', str(cache))
  before = {path for path in tmp_path.rglob('*')}
  try:
    with pytest.raises(ValueError, match='--reference_ckpt='):
      warm_start.find(f'http://localhost:{server.server_port}/module/1')
  finally:
    server.shutdown()
    server.server_close()
  written = {path for path in tmp_path.rglob('*')} - before
  assert all(
    path in (tmp_path / 'a', cache) or cache in path.parents for path in written
  ), written
  assert not tf.io.gfile.exists(str(outside))
