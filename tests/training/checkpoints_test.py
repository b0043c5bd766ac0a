"""Tests of supcon.training.checkpoints."""

import numpy as np
import pytest
import tensorflow as tf

from supcon import hparams
from supcon.models import contrastive
from supcon.training import checkpoints

tf1 = tf.compat.v1


def _write(prefix, shapes):
  """Writes a checkpoint of zeros; returns its prefix.

  Args:
    prefix: A pathlib.Path.
    shapes: {name: shape}.
  """
  prefix.parent.mkdir(parents=True, exist_ok=True)
  tf.raw_ops.SaveV2(
    prefix=str(prefix),
    tensor_names=list(shapes),
    shape_and_slices=[''] * len(shapes),
    tensors=[tf.zeros(shape) for shape in shapes.values()],
  )
  return str(prefix)


def _compare(shapes, scopes, checkpoint, compare=checkpoints.compare):
  """Compares variables of these shapes with a checkpoint."""
  with tf.Graph().as_default():
    variables = [
      tf1.get_variable(name, shape, use_resource=True)
      for name, shape in shapes.items()
    ]
    return compare(variables, scopes, checkpoint)


# --- Comparison ---------------------------------------------------------------

_SHAPES = {
  'Model/Encoder/kernel': [3, 2],
  'Model/Encoder/bias': [2],
  'Model/Head/kernel': [2, 5],
  'global_step': [],
}


def test_equal_ones_do_not_differ(tmp_path):
  checkpoint = _write(tmp_path / 'model.ckpt-1', _SHAPES)
  found = _compare(_SHAPES, ['Model'], checkpoint)
  assert found == ([], [], [])
  assert found.describe() == ''


def test_what_the_checkpoint_lacks_is_missing(tmp_path):
  checkpoint = _write(tmp_path / 'c-1', {'Model/Head/kernel': [2, 5]})
  found = _compare(_SHAPES, ['Model'], checkpoint)
  assert found.missing == [
    'Model/Encoder/kernel',
    'Model/Encoder/bias',
    'global_step',
  ]
  assert (found.different, found.extra) == ([], [])
  assert found.describe() == 'Model/Encoder/kernel is not in it'


def test_other_shapes_are_different_and_not_missing(tmp_path):
  there = {**_SHAPES, 'Model/Encoder/bias': [7], 'Model/Head/kernel': [5, 2]}
  found = _compare(_SHAPES, ['Model'], _write(tmp_path / 'c-1', there))
  assert found.different == [
    ('Model/Encoder/bias', [7], [2]),
    ('Model/Head/kernel', [5, 2], [2, 5]),
  ]
  assert (found.missing, found.extra) == ([], [])
  expected = 'Model/Encoder/bias has shape [7] there but [2] in this model'
  assert found.describe() == expected


def test_what_is_too_much_in_the_scopes_is_extra(tmp_path):
  more = {
    'Model/Encoder/kernel_1': [1],
    'Model/Encoder/Block_9/kernel': [1],
    # These are in no scope that was asked for.
    'Model/Encoder_1/kernel': [1],
    'Model/Tail/kernel': [1],
    'Encoder/kernel': [1],
  }
  checkpoint = _write(tmp_path / 'c-1', {**_SHAPES, **more})
  found = _compare(_SHAPES, ['Model/Encoder', 'Model/Head'], checkpoint)
  assert found.extra == [
    'Model/Encoder/Block_9/kernel',
    'Model/Encoder/kernel_1',
  ]
  assert (found.missing, found.different) == ([], [])
  expected = 'Model/Encoder/Block_9/kernel is in it but not in this model'
  assert found.describe() == expected


def test_every_kind_of_difference_is_told_apart(tmp_path):
  there = {'Model/Encoder/kernel': [1, 1], 'Model/Encoder/gamma': [1]}
  found = _compare(_SHAPES, ['Model'], _write(tmp_path / 'c-1', there))
  assert found.different == [('Model/Encoder/kernel', [1, 1], [3, 2])]
  assert len(found.missing) == 3
  assert found.extra == ['Model/Encoder/gamma']
  # A wrong shape says more than what is missing, and that than what is extra.
  assert 'Encoder/kernel has shape' in found.describe()
  found = found._replace(different=[])
  assert 'Encoder/bias is not in it' in found.describe()


def test_slots_are_not_extra(tmp_path):
  slots = {
    'Model/Encoder/kernel/MomentumOptimizer_stage1': [3, 2],
    'Model/Encoder/kernel/LARSOptimizer_stage1/Momentum': [3, 2],
    'Model/Encoder/bias/RMSPropOptimizer_stage2_1': [2],
    'beta1_power': [],
  }
  checkpoint = _write(tmp_path / 'c-1', {**_SHAPES, **slots})
  assert _compare(_SHAPES, ['Model'], checkpoint) == ([], [], [])


def _shapes_of(depth):
  """Returns {name: shape} of a thin ResNet."""
  architecture = hparams.Architecture(
    encoder_depth=depth, encoder_width=1 / 64, projection_head_layers=(2,)
  )
  with tf.Graph().as_default():
    model = contrastive.ContrastiveModel(architecture, num_classes=3)
    return {v.op.name: v.shape.as_list() for v in model.variables}


def test_a_deeper_network_is_another_architecture(tmp_path):
  shallow, deep = _shapes_of(50), _shapes_of(101)
  # The deep one has all that the shallow one has: only what is extra tells.
  assert all(deep[name] == shape for name, shape in shallow.items())
  more = set(deep) - set(shallow)
  kernels = [name for name in more if name.endswith('/kernel')]
  assert len(kernels) == 17 * 3  # 17 more blocks, of three convolutions.

  checkpoint = _write(tmp_path / 'c-1', deep)
  found = _compare(shallow, ['ContrastiveModel'], checkpoint)
  assert (found.missing, found.different) == ([], [])
  assert set(found.extra) == more


# --- A checkpoint of model_dir ------------------------------------------------


def test_require_same_accepts_the_same(tmp_path):
  checkpoint = _write(tmp_path / 'model.ckpt-1', _SHAPES)
  _compare(_SHAPES, ['Model'], checkpoint, checkpoints.require_same)


@pytest.mark.parametrize(
  'name, shape, message',
  [
    (
      'Model/Head/kernel',
      [9, 9],
      r'Model/Head/kernel has shape \[9, 9\] there',
    ),
    ('Model/Head/kernel', None, 'Model/Head/kernel is not in it'),
    ('Model/Head/bias', [5], 'Model/Head/bias is in it but not in this model'),
  ],
)
def test_require_same_names_what_differs(tmp_path, name, shape, message):
  there = {**_SHAPES, name: shape}
  there = {name: shape for name, shape in there.items() if shape is not None}
  checkpoint = _write(tmp_path / 'model.ckpt-1', there)
  with pytest.raises(
    ValueError, match=f'^--model_dir holds {checkpoint} .*{message}.* another '
  ):
    _compare(_SHAPES, ['Model'], checkpoint, checkpoints.require_same)


# --- Steps --------------------------------------------------------------------


def _write_steps(directory, steps):
  paths = [_write(directory / f'model.ckpt-{s}', {'w': []}) for s in steps]
  # Relative to the directory, as training writes them.
  names = [f'model.ckpt-{step}' for step in steps]
  tf1.train.update_checkpoint_state(str(directory), names[-1], names)
  return paths


def test_steps_and_paths_are_ordered_by_number(tmp_path):
  paths = _write_steps(tmp_path, [100, 9, 1000, 20])
  found = checkpoints.steps_and_paths(str(tmp_path))
  assert list(found) == [9, 20, 100, 1000]
  assert set(found.values()) == set(paths)
  assert found[20] == str(tmp_path / 'model.ckpt-20')


def test_steps_and_paths_leave_out_what_was_deleted(tmp_path):
  _write_steps(tmp_path, [0, 10, 20])
  for file in tmp_path.glob('model.ckpt-10.*'):
    file.unlink()
  assert list(checkpoints.steps_and_paths(str(tmp_path))) == [0, 20]


def test_steps_and_paths_of_a_directory_that_moved(tmp_path):
  old, new = tmp_path / 'old', tmp_path / 'new'
  _write_steps(old, [5])
  old.rename(new)
  assert checkpoints.steps_and_paths(str(new)) == {5: str(new / 'model.ckpt-5')}


def test_steps_and_paths_where_nothing_is(tmp_path):
  assert checkpoints.steps_and_paths(str(tmp_path)) == {}
  assert checkpoints.steps_and_paths(str(tmp_path / 'none')) == {}


@pytest.mark.parametrize(
  'checkpoint, step',
  [
    ('model.ckpt-0', 0),
    ('/a-5/model.ckpt-1000', 1000),
    ('gs://b/run-2/x-7', 7),
  ],
)
def test_step_of(checkpoint, step):
  assert checkpoints.step_of(checkpoint) == step


def test_a_comparison_reads_what_a_saver_writes(tmp_path):
  with tf.Graph().as_default(), tf1.Session() as session:
    step = tf1.train.get_or_create_global_step()
    variable = tf1.get_variable('Model/w', [2, 3], use_resource=True)
    session.run(tf1.global_variables_initializer())
    session.run(step.assign(12))
    path = tf1.train.Saver().save(session, str(tmp_path / 'model.ckpt'), step)
    found = checkpoints.compare([variable, step], ['Model'], path)
  assert found == ([], [], [])
  assert checkpoints.step_of(path) == 12
  assert checkpoints.steps_and_paths(str(tmp_path)) == {12: path}
  value = tf.train.load_checkpoint(path).get_tensor('global_step')
  assert value.dtype == np.int64
