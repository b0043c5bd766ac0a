"""Tests of supcon.training.warm_start."""

import contextlib
import functools
import http.server
import io
import itertools
import os
import pathlib
import re
import socket
import sys
import tarfile
import threading
import time

import numpy as np
import pytest
import tensorflow as tf

from supcon.compute import replicas
from supcon.config import hparams
from supcon.models import contrastive
from supcon.serving import hub_module
from supcon.serving import trained_models
from supcon.training import checkpoints
from supcon.training import warm_start
from tests import flag_parsing
from tests import golden
from tests import mirrored

tf1 = tf.compat.v1

_MODULES = ('encoder', 'projection_head', 'classification_head')
_FLAGS = {  # Module: its field of hparams.WarmStart.
  'encoder': 'warm_start_encoder',
  'projection_head': 'warm_start_projection_head',
  'classification_head': 'warm_start_classifier',
}


def _architecture(depth=18, width=1 / 64, head=(4, 2), norm=False):
  return hparams.Architecture(
    encoder_depth=depth,
    encoder_width=width,
    projection_head_layers=head,
    projection_head_use_batch_norm=norm,
  )


def _model(num_classes=3, **changes):
  return contrastive.ContrastiveModel(_architecture(**changes), num_classes)


@functools.cache
def _shapes(**changes):
  """Returns {name: shape} of a model, and the names of each of its modules."""
  with tf.Graph().as_default():
    model = _model(**changes)
    shapes = {v.op.name: v.shape.as_list() for v in model.variables}
    names = {
      module: [v.op.name for v in getattr(model, module).variables]
      for module in _MODULES
    }
  return shapes, names


_SHAPES, _NAMES = _shapes()


def _write(prefix, shapes):
  """Writes a checkpoint of zeros; returns its prefix."""
  return _write_values(prefix, {n: tf.zeros(s) for n, s in shapes.items()})


def _write_values(prefix, values):
  """Writes a checkpoint of {name: value}; returns its prefix."""
  pathlib.Path(prefix).parent.mkdir(parents=True, exist_ok=True)
  tf.raw_ops.SaveV2(
    prefix=str(prefix),
    tensor_names=list(values),
    shape_and_slices=[''] * len(values),
    tensors=list(values.values()),
  )
  return str(prefix)


def _params(modules=_MODULES, ignore=False):
  return hparams.WarmStart(
    **{flag: module in modules for module, flag in _FLAGS.items()},
    ignore_missing_checkpoint_vars=ignore,
  )


def _assigned(checkpoint, modules=_MODULES, ignore=False, **changes):
  """Returns the names in the map, having checked what they stand for."""
  with tf.Graph().as_default():
    model = _model(**changes)
    found = warm_start.assignment_map(
      model, _params(modules, ignore), checkpoint
    )
    variables = {v.op.name: v for v in model.variables}
  for name, variable in found.items():
    assert variable is variables[name]
  return set(found)


def _refusal(checkpoint, *args, **changes):
  with pytest.raises(ValueError) as caught:
    _assigned(checkpoint, *args, **changes)
  text = str(caught.value)
  assert text.startswith(f'--reference_ckpt={checkpoint} ')
  assert text.endswith('.')
  assert '\n' not in text
  return text


# --- Which checkpoint ---------------------------------------------------------


def _write_steps(directory, steps):
  """Writes checkpoints as a training does; returns their prefixes."""
  paths = [
    _write(directory / f'model.ckpt-{step}', {'w': []}) for step in steps
  ]
  tf1.train.update_checkpoint_state(str(directory), paths[-1], paths)
  return paths


def _write_module(directory, marker='saved_model.pb'):
  """Writes what an export or a TF-Hub module has; returns its checkpoint."""
  checkpoint = _write(directory / 'variables' / 'variables', {'w': []})
  (directory / marker).write_bytes(b'\x08\x03')
  return checkpoint


def test_find_a_checkpoint_by_its_prefix(tmp_path):
  older, newer = _write_steps(tmp_path, [9, 100])
  assert warm_start.find(older) == older
  assert warm_start.find(newer) == newer


@pytest.mark.parametrize('suffix', ['', '/', '/checkpoint'])
def test_find_the_newest_checkpoint_of_a_directory(tmp_path, suffix):
  _, newer = _write_steps(tmp_path, [9, 100])
  _write_module(tmp_path / 'exports' / '1')
  assert warm_start.find(f'{tmp_path}{suffix}') == newer


@pytest.mark.parametrize(
  'suffix', ['.index', '.data-00000-of-00001', '.meta', '']
)
def test_find_a_checkpoint_by_its_files(tmp_path, suffix):
  older, _ = _write_steps(tmp_path, [9, 100])
  pathlib.Path(f'{older}.meta').touch()
  assert warm_start.find(older + suffix) == older


@pytest.mark.parametrize('marker', ['saved_model.pb', 'tfhub_module.pb'])
@pytest.mark.parametrize(
  'suffix',
  ['', '/', '/{marker}', '/variables', '/variables/', '/variables/variables'],
)
def test_find_an_export_or_a_module(tmp_path, marker, suffix):
  checkpoint = _write_module(tmp_path / 'export', marker)
  reference = f'{tmp_path}/export{suffix.format(marker=marker)}'
  assert warm_start.find(reference) == checkpoint


@pytest.mark.parametrize('suffix', ['', '/hub'])
def test_find_an_export_that_is_a_module_only(tmp_path, suffix):
  checkpoint = _write_module(tmp_path / '7' / 'hub', 'tfhub_module.pb')
  assert warm_start.find(f'{tmp_path}/7{suffix}') == checkpoint


def test_a_saved_model_is_taken_before_the_module_beside_it(tmp_path):
  _write_module(tmp_path / 'hub', 'tfhub_module.pb')
  checkpoint = _write_module(tmp_path)
  assert warm_start.find(str(tmp_path)) == checkpoint


@pytest.mark.parametrize('suffix', ['', '/', '/exports', '/exports/'])
def test_find_the_newest_whole_export(tmp_path, suffix):
  exports = tmp_path / 'exports'
  _write_module(exports / '99')
  expected = _write_module(exports / '1000')
  # Neither of these is whole.
  _write_module(exports / 'temp-2000')
  (exports / '3000').mkdir()
  assert warm_start.find(f'{tmp_path}{suffix}') == expected
  newest = _write_module(exports / '4000' / 'hub')
  assert warm_start.find(f'{tmp_path}{suffix}') == newest


def test_find_the_only_checkpoint_of_a_directory(tmp_path):
  checkpoint = _write(tmp_path / 'init.ckpt', {'w': []})
  assert warm_start.find(str(tmp_path)) == checkpoint


def test_several_checkpoints_without_a_newest_are_refused(tmp_path):
  _write_steps(tmp_path, [9, 100])
  (tmp_path / 'checkpoint').unlink()
  with pytest.raises(
    ValueError,
    match=f'--reference_ckpt={tmp_path} holds 2 checkpoints, but does not say '
    f'which is the newest; name one, such as {tmp_path}/model.ckpt-9',
  ):
    warm_start.find(str(tmp_path))


@pytest.mark.parametrize('suffix', ['', '/'])
@pytest.mark.parametrize('content', [None, 'exports', 'saved_model.pb'])
def test_a_directory_without_a_checkpoint_is_refused(tmp_path, suffix, content):
  if content == 'exports':
    (tmp_path / content).mkdir()
  elif content:
    (tmp_path / content).touch()
  reference = f'{tmp_path}{suffix}'
  with pytest.raises(
    ValueError, match=f'^--reference_ckpt={reference} holds no checkpoint; name'
  ):
    warm_start.find(reference)


@pytest.mark.parametrize('name', ['notes.txt', 'module.tar.gz', 'x.index.bak'])
def test_a_file_of_no_checkpoint_is_refused(tmp_path, name):
  (tmp_path / name).write_text('This is no checkpoint.')
  with pytest.raises(ValueError, match=f'={tmp_path}/{name} holds no checkp'):
    warm_start.find(str(tmp_path / name))


def test_a_reference_that_does_not_exist_is_refused(tmp_path):
  _write(tmp_path / 'model.ckpt-9', {'w': []})
  for name in ('none', 'model.ckpt-10', 'model.ckpt', 'model.ckpt-10.index'):
    reference = tmp_path / name
    with pytest.raises(
      ValueError, match=f'^--reference_ckpt={reference} does not exist'
    ):
      warm_start.find(str(reference))


def test_a_file_system_that_is_not_there_is_refused():
  with pytest.raises(
    ValueError,
    match=r"^--reference_ckpt=foo://bucket/x cannot be looked at \(.*'foo'",
  ):
    warm_start.find('foo://bucket/x')


# --- Handles of TF-Hub --------------------------------------------------------


class _Handler(http.server.BaseHTTPRequestHandler):
  """Answers with what the server holds for a path; records what is asked."""

  def do_GET(self):
    self.server.asked.append(self.path)
    answer = self.server.answers.get(self.path)
    if callable(answer):
      answer(self)
      return
    self.send_response(200 if answer else 404)
    self.end_headers()
    self.wfile.write(answer or b'')

  def log_message(self, *args):
    del args


@pytest.fixture(name='server')
def _server(tmp_path, monkeypatch):
  """A server of modules on this machine, with `url`, `answers` and `asked`."""
  monkeypatch.setenv('TFHUB_CACHE_DIR', str(tmp_path / 'cache'))
  monkeypatch.setenv('no_proxy', '*')
  with http.server.ThreadingHTTPServer(('localhost', 0), _Handler) as server:
    server.url = f'http://localhost:{server.server_address[1]}'
    server.answers, server.asked = {}, []
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()


_QUERY = '?tf-hub-format=compressed'  # What tensorflow_hub asks servers for.


def _tar(directory):
  """Returns a directory's content as a .tar.gz."""
  file = io.BytesIO()
  with tarfile.open(fileobj=file, mode='w:gz') as tar:
    tar.add(directory, arcname='.')
  return file.getvalue()


def _values(prefix='', **changes):
  """Returns {name: array} of a model; no two arrays are alike."""
  return {
    prefix + name: golden.variable(name, shape)
    for name, shape in _shapes(**changes)[0].items()
  }


def test_a_handle_is_fetched_once(tmp_path, server):
  module = tmp_path / 'module'
  values = _values('module/')
  _write_values(module / 'variables' / 'variables', values)
  (module / 'tfhub_module.pb').write_bytes(b'\x08\x03')
  server.answers[f'/x/1{_QUERY}'] = _tar(module)
  for _ in range(2):
    found = warm_start.find(f'{server.url}/x/1')
  assert found.startswith(f'{tmp_path}/cache/')
  assert found.endswith('/variables/variables')
  assert server.asked == [f'/x/1{_QUERY}']
  started = _start(found, _MODULES)
  for name, value in values.items():
    np.testing.assert_array_equal(started[name.removeprefix('module/')], value)


def _cut(answer):
  return lambda handler: (
    handler.send_response(200),
    handler.send_header('Content-Length', str(len(answer))),
    handler.end_headers(),
    handler.wfile.write(answer[: len(answer) // 2]),
  )


def _wrong_files(tmp_path):
  (tmp_path / 'other').mkdir()
  (tmp_path / 'other' / 'README').write_text('Nothing else.')
  return _tar(tmp_path / 'other')


def _no_file(tmp_path):
  (tmp_path / 'other').mkdir()
  (tmp_path / 'other' / 'link').symlink_to('/etc')
  return _tar(tmp_path / 'other')


def _half(tmp_path):
  (tmp_path / 'other').mkdir()
  (tmp_path / 'other' / 'noise').write_bytes(os.urandom(100_000))
  return _tar(tmp_path / 'other')


@pytest.mark.parametrize(
  'answer, says',
  [
    (lambda _: None, 'cannot be fetched (HTTP Error 404: Not Found);'),
    (lambda _: b'<html>Log in!</html>', 'not appear to be a valid module.);'),
    (lambda path: _half(path)[:50_000], 'cannot be fetched ('),
    (lambda path: _cut(_half(path)), 'cannot be fetched ('),
    (_no_file, 'cannot be fetched (Unexpected object type in tar'),
    (
      lambda _: lambda handler: handler.wfile.write(b'What?\r\n\r\n'),
      'cannot be fetched (What?);',
    ),
    (
      lambda _: lambda handler: handler.connection.close(),
      'cannot be fetched (',
    ),
    (_wrong_files, 'which holds no checkpoint;'),
  ],
  ids=[
    'not found',
    'a page',
    'half an archive',
    'a connection that breaks',
    'a link',
    'no HTTP',
    'no answer',
    'another archive',
  ],
)
def test_what_a_server_has_is_refused(tmp_path, server, answer, says):
  server.answers[f'/x/1{_QUERY}'] = answer(tmp_path)
  handle = f'{server.url}/x/1'
  with pytest.raises(ValueError) as caught:
    warm_start.find(handle)
  text = str(caught.value)
  assert text.startswith(f'--reference_ckpt={handle} ')
  assert says in text
  assert '\n' not in text
  # And nothing of it stays in the way of another try.
  assert 'fetched to' in text or not any((tmp_path / 'cache').iterdir())


@pytest.mark.parametrize(
  'handle',
  [
    'http://localhost:{closed}/x/1',
    'https://localhost:{closed}/x/1',
    'https://no-such-host.invalid/x/1',
    'https://[::1/x',
    'https://localhost:port/x',
    'https:///x',
  ],
)
def test_a_handle_without_a_server_is_refused_at_once(
  tmp_path, monkeypatch, handle
):
  monkeypatch.setenv('TFHUB_CACHE_DIR', str(tmp_path))
  monkeypatch.setenv('no_proxy', '*')
  with socket.create_server(('localhost', 0)) as listener:
    closed = listener.getsockname()[1]
  handle = handle.format(closed=closed)

  def wait(seconds):
    raise AssertionError(f'it waits for {seconds} s')

  monkeypatch.setattr(time, 'sleep', wait)
  with pytest.raises(
    ValueError,
    match=rf'^--reference_ckpt={re.escape(handle)} cannot be fetched \(.+\); '
    'download the module, unpack it and name its directory, or set '
    r'TFHUB_CACHE_DIR to a cache that has it\.$',
  ):
    warm_start.find(handle)


def test_a_server_that_says_nothing_is_not_waited_for(tmp_path, monkeypatch):
  monkeypatch.setenv('TFHUB_CACHE_DIR', str(tmp_path))
  monkeypatch.setenv('no_proxy', '*')
  monkeypatch.setattr(warm_start, 'TIMEOUT_SECONDS', 0.2)
  with socket.create_server(('localhost', 0)) as listener:
    port = listener.getsockname()[1]
    with pytest.raises(ValueError, match=r'cannot be fetched \(.*timed out'):
      warm_start.find(f'http://localhost:{port}/x/1')
  # After 0.2 s, not after those of the system.
  assert socket.getdefaulttimeout() is None


def test_a_cache_that_cannot_be_written_is_refused(server, monkeypatch):
  monkeypatch.setenv('TFHUB_CACHE_DIR', __file__)
  with pytest.raises(
    ValueError, match=r'cannot be fetched \(.*TFHUB_CACHE_DIR'
  ):
    warm_start.find(f'{server.url}/x/1')
  assert server.asked == []


@pytest.mark.parametrize(
  'code, why',
  [
    # What imports of tensorflow_hub end in: no such package, setuptools 81,
    # tensorflow_hub 0.15 beside TensorFlow 2.16.
    ('raise ModuleNotFoundError("No module named x")', 'No module named x'),
    ('import pkg_resources_', "No module named 'pkg_resources_'"),
    ('import os; os.estimator', "module 'os' has no attribute 'estimator'"),
  ],
)
def test_a_handle_without_a_tensorflow_hub_that_works_is_refused(
  tmp_path, monkeypatch, code, why
):
  (tmp_path / 'tensorflow_hub.py').write_text(code)
  monkeypatch.syspath_prepend(tmp_path)
  monkeypatch.delitem(sys.modules, 'tensorflow_hub', raising=False)
  with pytest.raises(ValueError) as caught:
    warm_start.find('https://tfhub.dev/x/1')
  assert str(caught.value) == (
    '--reference_ckpt=https://tfhub.dev/x/1 cannot be fetched, for '
    f'tensorflow_hub cannot be imported ({why}); install a version of it that '
    f'goes with TensorFlow {tf.__version__} (from 2.16 on 0.16.1, '
    'with tf_keras) and setuptools<81, or download the module, unpack it and '
    'name its directory.'
  )


def test_a_handle_is_what_tensorflow_hub_makes_of_it(tmp_path, monkeypatch):
  import tensorflow_hub as hub

  checkpoint = _write_module(tmp_path, 'tfhub_module.pb')
  handles = []

  def resolve(handle):
    handles.append(handle)
    return str(tmp_path)

  monkeypatch.setattr(hub, 'resolve', resolve)
  handle = 'https://tfhub.dev/google/supcon/resnet_v1_50/1'
  assert warm_start.find(handle) == checkpoint
  assert handles == [handle]
  # Paths are none of its business.
  assert warm_start.find(str(tmp_path)) == checkpoint
  with pytest.raises(ValueError):
    warm_start.find('foo://bucket/x')
  assert handles == [handle]


# --- Which variables ----------------------------------------------------------


@pytest.mark.parametrize(
  'modules',
  [
    modules
    for count in range(4)
    for modules in itertools.combinations(_MODULES, count)
  ],
)
def test_each_flag_takes_its_module(tmp_path, modules):
  checkpoint = _write(tmp_path / 'c-1', _SHAPES)
  expected = {name for module in modules for name in _NAMES[module]}
  assert _assigned(checkpoint, modules) == expected


def test_what_is_not_taken_may_be_anything(tmp_path):
  # Another classifier, no projection head, slots and a global step.
  shapes, _ = _shapes(num_classes=7)
  there = {
    name: shape
    for name, shape in shapes.items()
    if name not in _NAMES['projection_head']
  }
  kernel = next(n for n in _NAMES['encoder'] if n.endswith('kernel'))
  there[f'{kernel}/LARSOptimizer_stage1/Momentum'] = there[kernel]
  there['global_step'] = []
  checkpoint = _write(tmp_path / 'c-1', there)
  assert _assigned(checkpoint, ['encoder']) == set(_NAMES['encoder'])


def _without(removed):
  return {name: shape for name, shape in _SHAPES.items() if name not in removed}


def test_what_is_missing_is_counted_and_named(tmp_path):
  removed = _NAMES['encoder'][:2]
  checkpoint = _write(tmp_path / 'c-1', _without(removed))
  assert _refusal(checkpoint) == (
    f'--reference_ckpt={checkpoint} is of another architecture: it lacks 2 of '
    f'{len(_SHAPES)} variables, {", ".join(removed)}; use the flags that it '
    'was trained with, or --ignore_missing_checkpoint_vars to start what it '
    'lacks at random.'
  )
  # Only what is wanted counts.
  count = len(_NAMES['encoder'])
  assert f'it lacks 2 of {count} ' in _refusal(checkpoint, ['encoder'])
  assert _assigned(checkpoint, ['projection_head'])
  # Not all names where there are many.
  checkpoint = _write(tmp_path / 'c-2', _without(_NAMES['encoder'][:40]))
  assert f'{", ".join(_NAMES["encoder"][:3])}, ...;' in _refusal(checkpoint)


@pytest.mark.parametrize('module', _MODULES)
def test_a_part_that_is_missing_is_named(tmp_path, module):
  checkpoint = _write(tmp_path / 'c-1', _without(_NAMES[module]))
  words = module.replace('_', ' ').replace('classification head', 'classifier')
  text = _refusal(checkpoint)
  assert f' holds no {words}, but this run has one: it lacks ' in text
  assert f'; drop --{_FLAGS[module]}, or --ignore_missing_' in text
  others = [m for m in _MODULES if m != module]
  assert _assigned(checkpoint, others) == {n for m in others for n in _NAMES[m]}


def test_what_is_missing_can_be_ignored(tmp_path):
  removed = [_NAMES['encoder'][0], *_NAMES['classification_head']]
  checkpoint = _write(tmp_path / 'c-1', _without(removed))
  assert _assigned(checkpoint, ignore=True) == set(_SHAPES) - set(removed)


def test_a_deeper_reference_is_refused(tmp_path):
  # ResNet-34 has every variable of ResNet-18, and more blocks.
  deeper, _ = _shapes(depth=34)
  assert set(_SHAPES) < set(deeper)
  checkpoint = _write(tmp_path / 'c-1', deeper)
  extra = min(set(deeper) - set(_SHAPES))
  for ignore in (False, True):
    assert _refusal(checkpoint, ['encoder'], ignore) == (
      f'--reference_ckpt={checkpoint} holds the encoder RESNET_V1 of depth 34 '
      'and width 0.015625, but this run has RESNET_V1 of depth 18 and width '
      f'0.015625: {extra} is in it but not in this model; pass '
      '--resnet_depth=34.'
    )
  # The heads are the same.
  heads = _MODULES[1:]
  assert _assigned(checkpoint, heads) == {n for m in heads for n in _NAMES[m]}


def test_a_shallower_reference_is_refused(tmp_path):
  shapes, _ = _shapes(depth=34)
  checkpoint = _write(tmp_path / 'c-1', _SHAPES)
  missing = [name for name in shapes if name not in _SHAPES]
  assert _refusal(checkpoint, ['encoder'], depth=34) == (
    f'--reference_ckpt={checkpoint} holds the encoder RESNET_V1 of depth 18 '
    'and width 0.015625, but this run has RESNET_V1 of depth 34 and width '
    f'0.015625: it lacks {len(missing)} of {len(shapes) - 5} variables, '
    f'{", ".join(missing[:3])}, ...; pass --resnet_depth=18, or '
    '--ignore_missing_checkpoint_vars to start what it lacks at random.'
  )
  found = _assigned(checkpoint, ['encoder'], True, depth=34)
  assert found == set(_NAMES['encoder'])


@pytest.mark.parametrize('ignore', [False, True])
@pytest.mark.parametrize(
  'there, says, remedy',
  [
    (
      dict(width=1 / 16),
      'the encoder RESNET_V1 of depth 18 and width 0.0625, but this run has '
      'RESNET_V1 of depth 18 and width 0.015625: ContrastiveModel/Encoder/'
      'Conv2DFixedPadding/conv2d/kernel has shape [7, 7, 3, 4] there but ',
      'pass --resnet_width=0.0625.',
    ),
    (
      dict(head=(5, 2)),
      'a projection head of 5,2 without batch norm, but this run has one of '
      '4,2 without batch norm: ContrastiveModel/ProjectionHead/dense/kernel '
      'has shape [8, 5] there but ',
      'pass --projection_head_layers=5,2.',
    ),
    (
      dict(norm=True),
      'a projection head of 4,2 with batch norm, but this run has one of 4,2 '
      'without batch norm: ',
      'pass --use_projection_batch_norm=True '
      '--use_projection_batch_norm_beta=True.',
    ),
    (
      dict(num_classes=1000),
      'a classifier of 1000 classes, but the data set has 3: ContrastiveModel/'
      'ClassificationHead/dense/kernel has shape [8, 1000] there but ',
      'drop --warm_start_classifier.',
    ),
    (
      dict(depth=50, num_classes=10),
      'the encoder RESNET_V1 of depth 50 and width 0.015625 and a classifier '
      'of 10 classes, but this run has RESNET_V1 of depth 18 and width '
      '0.015625 and the data set has 3: ',
      'pass --resnet_depth=50 and drop --warm_start_classifier.',
    ),
  ],
)
def test_another_architecture_is_refused(tmp_path, there, says, remedy, ignore):
  shapes, _ = _shapes(**there)
  checkpoint = _write(tmp_path / 'c-1', shapes)
  text = _refusal(checkpoint, ignore=ignore)
  assert f' holds {says}' in text
  assert text.endswith(f'; {remedy}')


def test_a_head_on_another_encoder_is_refused(tmp_path):
  # The head alone is wanted, and made alike; but embeddings are longer.
  shapes, _ = _shapes(depth=50)
  checkpoint = _write(tmp_path / 'c-1', shapes)
  text = _refusal(checkpoint, ['projection_head'])
  assert ' holds the encoder RESNET_V1 of depth 50 ' in text
  assert 'ProjectionHead/dense/kernel has shape [32, 4] there but ' in text
  assert text.endswith('; pass --resnet_depth=50.')


def test_another_type_is_refused(tmp_path):
  values = {n: tf.zeros(s, tf.float16) for n, s in _SHAPES.items()}
  checkpoint = _write_values(tmp_path / 'c-1', values)
  text = _refusal(checkpoint)
  assert 'has type float16 there but type float32 in this model; use ' in text


@pytest.mark.parametrize('ignore', [False, True])
def test_another_family_is_refused(tmp_path, ignore):
  checkpoint = _write(tmp_path / 'c-1', {'resnet50/conv1/kernel': [7, 7, 3, 8]})
  text = _refusal(checkpoint, ignore=ignore)
  assert 'is of another family of models: none of its 1 variables ' in text


def test_two_models_are_refused(tmp_path):
  there = {
    prefix + name: shape
    for prefix in ('a/', 'b/')
    for name, shape in _SHAPES.items()
  }
  checkpoint = _write(tmp_path / 'c-1', there)
  assert ' holds 2 models, under a/, b/; ' in _refusal(checkpoint)


@pytest.mark.parametrize(
  'file, kept',
  [('index', 0), ('index', 500), ('data-00000-of-00001', 1000)],
)
def test_a_damaged_reference_is_refused(tmp_path, file, kept):
  checkpoint = _write(tmp_path / 'c-1', _SHAPES)
  path = pathlib.Path(f'{checkpoint}.{file}')
  path.write_bytes(path.read_bytes()[:kept])
  assert ' is damaged or not whole (' in _refusal(checkpoint)
  path.unlink()
  assert ' is damaged or not whole (' in _refusal(checkpoint)


# --- Values, bit for bit ------------------------------------------------------

_WIDTH = 1 / 16


def _build(checkpoint, modules, ignore=False, optimizer=None, **changes):
  """Makes a model that starts from a checkpoint; returns its variables."""
  model = _model(**{'width': _WIDTH, **changes})
  if optimizer:
    loss = tf.add_n([tf.nn.l2_loss(v) for v in model.trainable_variables])
    optimizer.minimize(loss)
  tf1.train.init_from_checkpoint(
    checkpoint,
    warm_start.assignment_map(model, _params(modules, ignore), checkpoint),
  )
  return {v.op.name: v for v in tf1.global_variables()}


def _start(checkpoint, modules, **options):
  """Returns {name: value} as a training would begin with them."""
  options = {'width': 1 / 64, **options}
  with tf.Graph().as_default(), tf1.Session() as session:
    variables = _build(checkpoint, modules, **options)
    session.run(tf1.global_variables_initializer())
    return session.run(variables)


def _written_by_tensorflow_1(directory, values):
  return _write_values(directory / 'model.ckpt-1', values)


def _written_below(prefix):
  def write(directory, values):
    values = {prefix + name: value for name, value in values.items()}
    return _write_values(directory / 'variables' / 'variables', values)

  return write


def _written_beside_copies(directory, values):
  """What fine-tuning a module leaves: slots and averages of other values."""
  there = {'global_step': tf.constant(7, tf.int64)}
  for name, value in values.items():
    there[f'module/{name}'] = value
    there[f'module/{name}/ExponentialMovingAverage'] = value + 1
    there[f'module/{name}/MomentumOptimizer_stage1'] = value + 2
    there[f'Adam/m/module/{name}'] = value + 3
  return _write_values(directory / 'model.ckpt-7', there)


def _written_in_shards(directory, values):
  names = list(values)
  shards = []
  for index, part in enumerate((names[::2], names[1::2])):
    shards.append(
      _write_values(directory / f'part-{index}', {n: values[n] for n in part})
    )
  prefix = str(directory / 'model.ckpt-1')
  tf.raw_ops.MergeV2Checkpoints(
    checkpoint_prefixes=shards, destination_prefix=prefix
  )
  assert os.path.exists(f'{prefix}.data-00001-of-00002')
  return prefix


def _written_in_slices(directory, values):
  """As partitioned variables are: cut in two along the first axis."""
  names, slices, tensors = [], [], []
  for name, value in values.items():
    shape = ' '.join(map(str, value.shape))
    rest = ''.join(':-' for _ in value.shape[1:])
    middle, end = len(value) // 2, len(value)
    for start, size in ((0, middle), (middle, end - middle)):
      if size:
        names.append(name)
        slices.append(f'{shape} {start},{size}{rest}')
        tensors.append(value[start : start + size])
  directory.mkdir(parents=True, exist_ok=True)
  prefix = str(directory / 'model.ckpt-1')
  tf.raw_ops.SaveV2(
    prefix=prefix, tensor_names=names, shape_and_slices=slices, tensors=tensors
  )
  return prefix


class _Exported(tf.Module):
  """Variables in a list, or by attributes, as other programs have them."""

  def __init__(self, values, attribute):
    super().__init__()
    variables = [tf.Variable(v, name=name) for name, v in values.items()]
    if attribute:
      setattr(self, attribute, variables)
    else:
      for index, variable in enumerate(variables):
        setattr(self, f'w{index}', variable)


def _exported(attribute):
  def write(directory, values):
    tf.saved_model.save(_Exported(values, attribute), str(directory))
    return str(directory / 'variables' / 'variables')

  return write


def _written_by_tensorflow_2(directory, values):
  """What a fine-tuning in TensorFlow 2 leaves: slots of other values."""
  model = _Exported(values, '_variables')
  optimizer = tf.keras.optimizers.Adam(use_ema=True)
  before = [v.numpy() for v in model._variables]
  optimizer.apply_gradients([(tf.ones_like(v), v) for v in model._variables])
  for variable, value in zip(model._variables, before):
    variable.assign(value)
  checkpoint = tf.train.Checkpoint(model=model, optimizer=optimizer)
  return checkpoint.save(str(directory / 'ckpt'))


def _written_by_this_project(directory, values):
  """A module of ours, in TF1 Hub format."""
  params = hparams.HParams(
    architecture=_architecture(width=_WIDTH),
    input_data=hparams.InputData(
      preprocessing=hparams.Preprocessing(image_size=32)
    ),
  )
  checkpoint = _write_values(directory / 'model.ckpt-1', values)
  module = str(directory / 'module')
  hub_module.write(
    trained_models.TrainedModel(
      params, checkpoint, ('a', 'b', 'c'), None, None
    ),
    module,
  )
  return warm_start.find(module)


def _written_by_tensorflow_hub(directory, values):
  """A module of someone else, in TF1 Hub format."""
  import tensorflow_hub as hub

  def module_fn():
    images = tf1.placeholder(tf.float32, [None, 32, 32, 3])
    outputs = _model(width=_WIDTH)(images, training=False)
    hub.add_signature(inputs=images, outputs=outputs.logits)

  checkpoint = _write_values(directory / 'model.ckpt-1', values)
  module = str(directory / 'module')
  hub.create_module_spec(module_fn).export(module, checkpoint_path=checkpoint)
  return warm_start.find(f'{module}/tfhub_module.pb')


def _fine_tuned_with_tensorflow_hub(directory, values):
  """What a training in TensorFlow 1 leaves that is built on a module."""
  import tensorflow_hub as hub

  _written_by_tensorflow_hub(directory, values)
  with tf.Graph().as_default(), tf1.Session() as session:
    module = hub.Module(str(directory / 'module'), trainable=True)
    loss = tf.reduce_sum(module(tf.zeros([2, 32, 32, 3])))
    tf1.train.AdamOptimizer().minimize(loss)  # Makes slots; it is not run.
    session.run(tf1.global_variables_initializer())
    prefix = str(directory / 'training' / 'model.ckpt')
    return tf1.train.Saver().save(session, prefix, global_step=3)


_WRITERS = {
  'TensorFlow 1': _written_by_tensorflow_1,
  'a module': _written_below('module/'),
  'a deep scope': _written_below('a/b/hub_module_1/'),
  'copies': _written_beside_copies,
  'this project': _written_by_this_project,
  'tensorflow_hub': _written_by_tensorflow_hub,
  'tensorflow_hub, fine-tuned': _fine_tuned_with_tensorflow_hub,
  'shards': _written_in_shards,
  'slices': _written_in_slices,
  'an export': _exported('_variables'),
  'another list': _exported('vars'),
  'attributes': _exported(None),
  'TensorFlow 2': _written_by_tensorflow_2,
}


@pytest.fixture(scope='module', name='written')
def _written(tmp_path_factory):
  """Returns the checkpoint of a writer, of what is always the same values."""

  @functools.cache
  def checkpoint(writer):
    directory = tmp_path_factory.mktemp('written')
    return _WRITERS[writer](directory / 'it', _values(width=_WIDTH))

  return checkpoint


@pytest.mark.parametrize(
  'writer',
  [
    pytest.param(
      writer,
      marks=[pytest.mark.hub_module] if 'tensorflow_hub' in writer else [],
    )
    for writer in _WRITERS
  ],
)
def test_values_arrive_bit_for_bit(written, writer):
  checkpoint = written(writer)
  assert warm_start.find(checkpoint) == checkpoint
  found = _start(checkpoint, _MODULES, width=_WIDTH)
  expected = _values(width=_WIDTH)
  assert set(found) == set(expected)
  for name, value in expected.items():
    assert found[name].dtype == value.dtype
    np.testing.assert_array_equal(found[name], value, err_msg=name)


@pytest.mark.parametrize('writer', ['copies', 'an export'])
def test_only_what_is_wanted_is_taken(written, writer):
  found = _start(written(writer), ['encoder'], width=_WIDTH, num_classes=9)
  expected = _values(width=_WIDTH)
  for name, value in found.items():
    is_same = np.array_equal(value, expected[name])
    assert is_same == (name in _NAMES['encoder']), name


@pytest.mark.parametrize('writer', ['copies', 'TensorFlow 2'])
@pytest.mark.parametrize(
  'optimizer',
  [
    tf1.train.AdamOptimizer,
    functools.partial(tf1.train.MomentumOptimizer, 0.1, 0.9),
  ],
)
def test_slots_start_anew(written, writer, optimizer):
  with tf.Graph().as_default(), tf1.Session() as session:
    variables = _build(written(writer), _MODULES, optimizer=optimizer())
    session.run(tf1.global_variables_initializer())
    found = session.run(variables)
  expected = _values(width=_WIDTH)
  slots = {name: value for name, value in found.items() if value.ndim}
  for name, value in expected.items():
    np.testing.assert_array_equal(slots.pop(name), value, err_msg=name)
  assert len(slots) >= len(expected) // 2
  assert not any(np.any(value) for value in slots.values())


@pytest.mark.parametrize('writer', ['a module', 'an export', 'shards'])
def test_every_replica_starts_from_it(written, writer):
  checkpoint = written(writer)

  def replica():
    model = _model(width=_WIDTH)

    def start():
      tf1.train.init_from_checkpoint(
        checkpoint,
        warm_start.assignment_map(model, _params(), checkpoint),
      )

    replicas.once(start)
    return [tf.identity(v) for v in model.variables]

  names, expected = zip(*_values(width=_WIDTH).items())
  for found in mirrored.run(replica, count=2):
    for name, value, array in zip(names, expected, found):
      np.testing.assert_array_equal(array, value, err_msg=name)


def test_what_is_missing_starts_at_random(tmp_path):
  values = _values('module/', width=_WIDTH)
  missing = f'module/{_NAMES["classification_head"][0]}'
  del values[missing]
  checkpoint = _write_values(tmp_path / 'c-1', values)
  found = _start(checkpoint, _MODULES, width=_WIDTH, ignore=True)
  assert np.any(found.pop(missing.removeprefix('module/')))
  for name, value in found.items():
    np.testing.assert_array_equal(value, values[f'module/{name}'])


_PARITY = golden.json('train_parity/train_parity.json')['configs']


@pytest.mark.parametrize('config', _PARITY, ids=[c['name'] for c in _PARITY])
@pytest.mark.parametrize('prefix', ['', 'module/'])
def test_published_checkpoints_start_a_run(tmp_path, config, prefix):
  checkpoint = golden.checkpoint(f'train_parity/{config["name"]}/init.ckpt')
  assert warm_start.find(f'{checkpoint}.index') == checkpoint
  reader = tf.train.load_checkpoint(checkpoint)
  expected = {
    name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()
  }
  if prefix:
    checkpoint = _written_below(prefix)(tmp_path, expected)
  _, params = flag_parsing.parse(config['flags'])
  with tf.Graph().as_default(), tf1.Session() as session:
    model = contrastive.ContrastiveModel(
      params.architecture, config['num_classes']
    )
    found = warm_start.assignment_map(model, _params(), checkpoint)
    tf1.train.init_from_checkpoint(checkpoint, found)
    session.run(tf1.global_variables_initializer())
    values = session.run({v.op.name: v for v in model.variables})
    if not prefix:
      checkpoints.require_same(model.variables, [model.name], checkpoint)
  assert values
  for name, value in values.items():
    np.testing.assert_array_equal(value, expected[name], err_msg=name)


# --- In words -----------------------------------------------------------------


@contextlib.contextmanager
def _small_model(**changes):
  with tf.Graph().as_default():
    yield _model(**changes)


def test_describe_says_what_comes_from_where(tmp_path):
  # Kernels [8, 4] + [4, 2] and a bias [4]; 8 x 3 and a bias [3].
  size = sum(int(np.prod(_SHAPES[name])) for name in _NAMES['encoder'])
  checkpoint = _written_below('module/')(tmp_path, _values())
  with _small_model() as model:
    lines = warm_start.describe(model, _params(), checkpoint)
    assert lines == [
      f'encoder: 105 variables, {size:,} values, from {checkpoint} (names '
      'under module/)',
      f'projection head: 3 variables, 44 values, from {checkpoint} (names '
      'under module/)',
      f'classifier: 2 variables, 27 values, from {checkpoint} (names under '
      'module/)',
    ]
    lines = warm_start.describe(
      model, _params(['classification_head']), checkpoint
    )
    assert lines[:2] == [
      'encoder: starts at random',
      'projection head: starts at random',
    ]
    assert lines[2].startswith('classifier: 2 variables')


def test_describe_says_what_is_missing(tmp_path):
  removed = [*_NAMES['encoder'][:4], *_NAMES['projection_head']]
  removed.append(_NAMES['classification_head'][1])
  checkpoint = _write(tmp_path / 'c-1', _without(removed))
  with _small_model() as model:
    lines = warm_start.describe(model, _params(ignore=True), checkpoint)
  assert lines[0].endswith(
    f' from {checkpoint}; 4 start at random: {", ".join(removed[:3])}, ...'
  )
  assert lines[0].startswith('encoder: 101 of 105 variables, ')
  assert lines[1:] == [
    f'projection head: starts at random, for {checkpoint} has none',
    f'classifier: 1 of 2 variables, 24 values, from {checkpoint}; 1 start at '
    f'random: {removed[-1]}',
  ]


def test_describe_counts_in_millions(tmp_path):
  checkpoint = str(tmp_path / 'c-1')
  shapes, names = _shapes(width=0.5, head=(2,))
  _write(checkpoint, shapes)
  # A quarter of ResNet-18's 11.2 M.
  size = sum(int(np.prod(shapes[name])) for name in names['encoder'])
  assert 2_700_000 < size < 2_900_000
  with _small_model(width=0.5, head=(2,)) as model:
    lines = warm_start.describe(model, _params(['encoder']), checkpoint)
  assert lines[0] == (
    f'encoder: 105 variables, {size / 1e6:.1f} M values, from {checkpoint}'
  )
