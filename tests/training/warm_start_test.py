"""Tests of supcon.training.warm_start."""

import itertools

import pytest
import tensorflow as tf

from supcon import hparams
from supcon.models import contrastive
from supcon.training import warm_start

tf1 = tf.compat.v1

_MODULES = ('encoder', 'projection_head', 'classification_head')
_FLAGS = {  # Module: its field of hparams.WarmStart.
  'encoder': 'warm_start_encoder',
  'projection_head': 'warm_start_projection_head',
  'classification_head': 'warm_start_classifier',
}


def _model(depth=18, num_classes=3, head=(4, 2)):
  return contrastive.ContrastiveModel(
    hparams.Architecture(
      encoder_depth=depth, encoder_width=1 / 64, projection_head_layers=head
    ),
    num_classes,
  )


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
  tf.raw_ops.SaveV2(
    prefix=str(prefix),
    tensor_names=list(shapes),
    shape_and_slices=[''] * len(shapes),
    tensors=[tf.zeros(shape) for shape in shapes.values()],
  )
  return str(prefix)


def _assigned(checkpoint, modules=_MODULES, ignore=False):
  """Returns the names in the map, having checked what they stand for."""
  params = hparams.WarmStart(
    **{flag: module in modules for module, flag in _FLAGS.items()},
    ignore_missing_checkpoint_vars=ignore,
  )
  with tf.Graph().as_default():
    model = _model()
    found = warm_start.assignment_map(model, params, checkpoint)
    variables = {v.op.name: v for v in model.variables}
  for name, variable in found.items():
    assert variable is variables[name]
  return set(found)


# --- Which checkpoint ---------------------------------------------------------


def test_find_a_checkpoint_by_its_prefix(tmp_path):
  older = _write(tmp_path / 'model.ckpt-9', {'w': []})
  newer = _write(tmp_path / 'model.ckpt-100', {'w': []})
  tf1.train.update_checkpoint_state(str(tmp_path), newer, [older, newer])
  assert warm_start.find(older) == older
  assert warm_start.find(newer) == newer


@pytest.mark.parametrize('suffix', ['', '/'])
def test_find_the_newest_checkpoint_of_a_directory(tmp_path, suffix):
  older = _write(tmp_path / 'model.ckpt-9', {'w': []})
  newer = _write(tmp_path / 'model.ckpt-100', {'w': []})
  tf1.train.update_checkpoint_state(str(tmp_path), newer, [older, newer])
  assert warm_start.find(f'{tmp_path}{suffix}') == newer


@pytest.mark.parametrize('suffix', ['', '/'])
def test_a_directory_without_a_checkpoint_is_refused(tmp_path, suffix):
  reference = f'{tmp_path}{suffix}'
  with pytest.raises(
    ValueError, match=f'--reference_ckpt={reference} holds no checkpoint'
  ):
    warm_start.find(reference)


def test_a_reference_that_does_not_exist_is_refused(tmp_path):
  _write(tmp_path / 'model.ckpt-9', {'w': []})
  for name in ('none', 'model.ckpt-10', 'model.ckpt'):
    reference = tmp_path / name
    with pytest.raises(
      ValueError, match=f'--reference_ckpt={reference} does not exist'
    ):
      warm_start.find(str(reference))


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


def test_all_that_is_missing_is_listed(tmp_path):
  removed = [_NAMES['encoder'][0], *_NAMES['classification_head']]
  checkpoint = _write(tmp_path / 'c-1', _without(removed))
  with pytest.raises(ValueError) as caught:
    _assigned(checkpoint)
  message = str(caught.value)
  assert f'--reference_ckpt={checkpoint} lacks 3 of {len(_SHAPES)} ' in message
  assert f': {", ".join(removed)};' in message
  assert '--ignore_missing_checkpoint_vars' in message
  # Only what is wanted counts.
  with pytest.raises(ValueError, match=f'lacks 1 of {len(_NAMES["encoder"])} '):
    _assigned(checkpoint, ['encoder'])
  assert _assigned(checkpoint, ['projection_head'])


def test_what_is_missing_can_be_ignored(tmp_path):
  removed = [_NAMES['encoder'][0], *_NAMES['classification_head']]
  checkpoint = _write(tmp_path / 'c-1', _without(removed))
  assert _assigned(checkpoint, ignore=True) == set(_SHAPES) - set(removed)


@pytest.mark.parametrize('ignore', [False, True])
def test_another_shape_is_refused(tmp_path, ignore):
  shapes, _ = _shapes(head=(5, 2))
  checkpoint = _write(tmp_path / 'c-1', shapes)
  with pytest.raises(
    ValueError,
    match=f'--reference_ckpt={checkpoint} is of another architecture: '
    r'ContrastiveModel/ProjectionHead/dense/kernel has shape \[8, 5\] there '
    r'but \[8, 4\]',
  ):
    _assigned(checkpoint, ignore=ignore)
  assert _assigned(checkpoint, ['encoder'], ignore) == set(_NAMES['encoder'])


@pytest.mark.parametrize('ignore', [False, True])
def test_a_deeper_reference_is_refused(tmp_path, ignore):
  # ResNet-34 has every variable of ResNet-18, and more blocks.
  deeper, _ = _shapes(depth=34)
  assert set(_SHAPES) < set(deeper)
  checkpoint = _write(tmp_path / 'c-1', deeper)
  with pytest.raises(
    ValueError, match='is of another architecture: .*/ResidualBlock_2/.* is in'
  ):
    _assigned(checkpoint, ['encoder'], ignore)
  # The heads are the same.
  heads = _MODULES[1:]
  assert _assigned(checkpoint, heads) == {n for m in heads for n in _NAMES[m]}


def test_a_shallower_reference_is_refused(tmp_path):
  shapes, _ = _shapes(depth=34)
  checkpoint = _write(tmp_path / 'c-1', _SHAPES)
  params = hparams.WarmStart(warm_start_encoder=True)
  with tf.Graph().as_default():
    with pytest.raises(ValueError) as caught:
      warm_start.assignment_map(_model(depth=34), params, checkpoint)
  missing = sorted(set(shapes) - set(_SHAPES))
  assert f'lacks {len(missing)} of ' in str(caught.value)
  assert all(name in str(caught.value) for name in missing)
