"""Tests of supcon.training.checkpoints."""

import csv
import functools
import re

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import trackable_object_graph_pb2

from supcon.config import enums
from supcon.config import hparams
from supcon.models import contrastive
from supcon.runs import checkpoint_files
from supcon.training import checkpoints
from supcon.training import optimizers
from supcon.training import stages
from tests import flag_parsing
from tests import golden
from tests import writing

tf1 = tf.compat.v1


def _write_corners(prefix, shapes):
  """Writes a checkpoint with names and shapes but hardly any values.

  Of each variable there is only the first value, as a slice of a partitioned
  variable; so that the published networks take no space.
  """
  corners = {
    name: (
      ' '.join(map(str, shape)) + ' ' + ':'.join(['0,1'] * len(shape)),
      tf.zeros([1] * len(shape)),
    )
    if shape
    else ('', tf.zeros([], tf.int64))
    for name, shape in shapes.items()
  }
  slices, values = zip(*corners.values())
  tf.raw_ops.SaveV2(
    prefix=str(prefix),
    tensor_names=list(corners),
    shape_and_slices=slices,
    tensors=values,
  )
  return str(prefix)


class _Holder(tf.Module):
  """Variables in a list that is an attribute of some name."""

  def __init__(self, variables, attribute):
    super().__init__()
    setattr(self, attribute, variables)


# --- What is in a checkpoint --------------------------------------------------

_X, _Y = 'Model/Encoder/kernel', 'Model/Head/moving_mean'


def _shapes_of_index(*args):
  found = checkpoints.index(*args)
  assert all(entry.dtype == tf.float32 for entry in found.entries.values())
  return found.prefix, found.shapes


def test_index_without_a_scope_takes_every_name_as_it_is(tmp_path):
  shapes = {'a/Model/x': [2, 1], 'Model/x': [], 'global_step': [7]}
  checkpoint = writing.write(tmp_path / 'c-1', shapes)
  assert _shapes_of_index(checkpoint) == ('', shapes)
  found = checkpoints.index(checkpoint)
  assert {name: entry.key for name, entry in found.entries.items()} == {
    name: name for name in shapes
  }


@pytest.mark.parametrize('prefix', ['', 'module/', 'a/b_1/c/', 'Model/'])
def test_index_finds_the_scope_below_any_prefix(tmp_path, prefix):
  there = {f'{prefix}{_X}': [3, 2], f'{prefix}{_Y}': [2], 'global_step': []}
  checkpoint = writing.write(tmp_path / 'c-1', there)
  expected = (prefix, {_X: [3, 2], _Y: [2]})
  assert _shapes_of_index(checkpoint, 'Model') == expected
  entries = checkpoints.index(checkpoint, 'Model').entries
  assert {entries[name].key for name in (_X, _Y)} == {prefix + _X, prefix + _Y}


def test_a_scope_is_a_whole_part_of_a_name(tmp_path):
  there = {
    'module/Model/x': [1],
    'a/MyModel/x': [1],
    'b/Model_1/x': [1],
    'c/Models/x': [1],
    'd/Model': [1],
  }
  checkpoint = writing.write(tmp_path / 'c-1', there)
  found = _shapes_of_index(checkpoint, 'Model')
  assert found == ('module/', {'Model/x': [1]})


@pytest.mark.parametrize('prefix', ['', 'module/'])
@pytest.mark.parametrize(
  'copy',
  [
    '{prefix}{name}/ExponentialMovingAverage',
    '{prefix}{name}/LARSOptimizer_stage1/Momentum',
    'training/{prefix}{name}/Adam_1',
    'SGD/{prefix}{name}/momentum',
    'Adam/m/{prefix}{name}',
    'Adam/average/{prefix}{name}',
  ],
)
def test_copies_do_not_disturb(tmp_path, prefix, copy):
  shapes = {_X: [3, 2], _Y: [2]}
  there = {prefix + name: shape for name, shape in shapes.items()}
  for name, shape in shapes.items():
    there[copy.format(prefix=prefix, name=name)] = shape
  found = checkpoints.index(writing.write(tmp_path / 'c-1', there), 'Model')
  assert found.prefix == prefix
  for name, shape in shapes.items():
    assert found.entries[name] == (prefix + name, shape, tf.float32)
  differences = _compare(shapes, ['Model'], found)
  assert differences == ([], [], [])


def test_two_models_are_told_apart_by_nobody(tmp_path):
  there = {f'teacher/{_X}': [1], f'student/{_X}': [1], f'student/{_Y}': [1]}
  checkpoint = writing.write(tmp_path / 'c-1', there)
  with pytest.raises(
    ValueError, match=f'^{checkpoint} holds 2 models, under student/, teacher/;'
  ):
    checkpoints.index(checkpoint, 'Model')
  # The names are what they are where no model is looked for.
  assert _shapes_of_index(checkpoint) == ('', there)


def test_another_family_is_refused(tmp_path):
  there = {f'resnet/conv{index}/kernel': [1] for index in range(5)}
  checkpoint = writing.write(tmp_path / 'c-1', there)
  with pytest.raises(
    ValueError,
    match=rf'^{checkpoint} is of another family of models: none of its 5 '
    r'variables \(resnet/conv0/kernel, .*, \.\.\.\) is in a Model; name a ',
  ):
    checkpoints.index(checkpoint, 'Model')


def _variables(prefix=''):
  return [
    tf.Variable(np.ones([3, 2], np.float32), name=prefix + _X),
    tf.Variable(np.ones([2], np.float32), name=prefix + _Y, trainable=False),
  ]


@pytest.mark.parametrize('prefix', ['', 'module/'])
@pytest.mark.parametrize('attribute', ['_variables', 'Model', 'a'])
def test_names_of_objects(tmp_path, attribute, prefix):
  holder = _Holder(_variables(prefix), attribute)
  tf.saved_model.save(holder, str(tmp_path / 'export'))
  checkpoint = str(tmp_path / 'export' / 'variables' / 'variables')
  found = _shapes_of_index(checkpoint, 'Model')
  assert found == (prefix, {_X: [3, 2], _Y: [2]})
  entries = checkpoints.index(checkpoint, 'Model').entries
  assert entries[_X].key == f'{attribute}/0/.ATTRIBUTES/VARIABLE_VALUE'
  assert entries[_Y].key == f'{attribute}/1/.ATTRIBUTES/VARIABLE_VALUE'
  assert set(checkpoints.index(checkpoint).entries) == {
    prefix + _X,
    prefix + _Y,
  }


@pytest.mark.parametrize('prefix', ['', 'module/'])
@pytest.mark.parametrize(
  'optimizer',
  [
    functools.partial(tf.keras.optimizers.Adam, use_ema=True),
    functools.partial(tf.keras.optimizers.SGD, momentum=0.9),
    tf.keras.optimizers.legacy.Adam,
    functools.partial(tf.keras.optimizers.legacy.SGD, momentum=0.9),
  ],
  ids=['Adam', 'SGD', 'legacy.Adam', 'legacy.SGD'],
)
def test_names_of_objects_beside_an_optimizer(tmp_path, optimizer, prefix):
  variables = _variables(prefix)
  optimizer = optimizer()
  optimizer.apply_gradients([(tf.ones([3, 2]), variables[0])])
  checkpoint = tf.train.Checkpoint(
    model=_Holder(variables, 'a'), optimizer=optimizer
  ).save(str(tmp_path / 'c'))
  held = checkpoints.index(checkpoint, 'Model')
  assert held.prefix == prefix
  for index, name in enumerate((_X, _Y)):
    key = f'model/a/{index}/.ATTRIBUTES/VARIABLE_VALUE'
    assert held.entries[name].key == key
  assert _compare({_X: [3, 2], _Y: [2]}, ['Model'], held) == ([], [], [])


def test_two_objects_of_one_name_are_refused(tmp_path):
  checkpoint = tf.train.Checkpoint(
    model=_Holder(_variables(), 'a'), average=_Holder(_variables(), 'b')
  ).save(str(tmp_path / 'c'))
  with pytest.raises(
    ValueError,
    match=f'^{checkpoint} holds {_X} twice, as average/b/0/.* and model/a/0/',
  ):
    checkpoints.index(checkpoint, 'Model')


# --- Damage -------------------------------------------------------------------


@pytest.fixture(name='whole')
def _whole(tmp_path):
  """A checkpoint whose index has several blocks."""
  shapes = {f'Model/Encoder/Block{i}/kernel': [50] for i in range(200)}
  return writing.write(tmp_path / 'c-1', shapes)


def _is_refused(checkpoint, function):
  with pytest.raises(ValueError) as caught:
    function()
  text = str(caught.value)
  assert text.startswith(f'{checkpoint} is damaged or not whole (')
  assert '\n' not in text


@pytest.mark.parametrize('kept', [0.0, 0.3, 0.99])
def test_an_index_that_was_cut_is_refused(whole, kept):
  path = f'{whole}.index'
  with open(path, 'rb') as file:
    content = file.read()
  with open(path, 'wb') as file:
    file.write(content[: int(kept * len(content))])
  _is_refused(whole, lambda: checkpoints.index(whole))
  _is_refused(whole, lambda: checkpoints.index(whole, 'Model'))


@pytest.mark.parametrize('where', [0.1, 0.5, 0.9])
def test_an_index_with_a_wrong_bit_is_refused(whole, where):
  path = f'{whole}.index'
  with open(path, 'rb') as file:
    content = bytearray(file.read())
  content[int(where * len(content))] ^= 1
  with open(path, 'wb') as file:
    file.write(content)
  _is_refused(whole, lambda: checkpoints.index(whole, 'Model'))


def _cut(content):
  return content[:-1]


def _flip(content):
  return bytes([content[0] ^ 1]) + content[1:]


@pytest.mark.parametrize('damage', [_cut, _flip, lambda content: b'', None])
def test_damaged_values_are_refused(whole, damage):
  path = f'{whole}.data-00000-of-00001'
  held = checkpoints.index(whole, 'Model')
  names = list(held.entries)
  held.check_values(names)
  with open(path, 'rb') as file:
    content = file.read()
  if damage:
    with open(path, 'wb') as file:
      file.write(damage(content))
  else:
    tf.io.gfile.remove(path)
  _is_refused(whole, lambda: held.check_values(names))


def test_only_the_values_that_are_wanted_have_to_be_whole(whole):
  path = f'{whole}.data-00000-of-00001'
  with open(path, 'rb') as file:
    content = file.read()
  with open(path, 'wb') as file:
    file.write(_cut(content))
  held = checkpoints.index(whole, 'Model')
  *good, last = [f'Model/Encoder/Block{i}/kernel' for i in range(200)]
  held.check_values(good)
  _is_refused(whole, lambda: held.check_values([last]))


@pytest.mark.parametrize(
  'graph',
  [
    b'\xff' * 20,
    trackable_object_graph_pb2.TrackableObjectGraph(
      nodes=[
        trackable_object_graph_pb2.TrackableObjectGraph.TrackableObject(
          attributes=[
            trackable_object_graph_pb2.TrackableObjectGraph.TrackableObject.SerializedTensor(
              name='VARIABLE_VALUE', full_name=_X, checkpoint_key='nowhere'
            )
          ]
        )
      ]
    ).SerializeToString(),
  ],
  ids=['not a graph', 'names what is not there'],
)
def test_a_damaged_object_graph_is_refused(tmp_path, graph):
  values = {'a/.ATTRIBUTES/VARIABLE_VALUE': tf.zeros([3])}
  values['_CHECKPOINTABLE_OBJECT_GRAPH'] = tf.constant(graph)
  checkpoint = writing.write_values(tmp_path / 'c-1', values)
  _is_refused(checkpoint, lambda: checkpoints.index(checkpoint, 'Model'))


def test_what_does_not_exist_is_refused(tmp_path):
  checkpoint = str(tmp_path / 'model.ckpt-1')
  _is_refused(checkpoint, lambda: checkpoints.index(checkpoint))


# --- Comparison ---------------------------------------------------------------

_SHAPES = {
  'Model/Encoder/kernel': [3, 2],
  'Model/Encoder/bias': [2],
  'Model/Head/kernel': [2, 5],
  'global_step': [],
}


def _compare(shapes, scopes, held, compare=checkpoints.compare):
  """Compares variables of these shapes with what is held."""
  with tf.Graph().as_default():
    variables = [
      tf1.get_variable(name, shape, use_resource=True)
      for name, shape in shapes.items()
    ]
    return compare(variables, scopes, held)


def _held(prefix, shapes):
  return checkpoints.index(writing.write(prefix, shapes))


def test_equal_ones_do_not_differ(tmp_path):
  held = _held(tmp_path / 'model.ckpt-1', _SHAPES)
  found = _compare(_SHAPES, ['Model'], held)
  assert found == ([], [], [])
  assert found.describe() == ''


def test_what_the_checkpoint_lacks_is_missing(tmp_path):
  held = _held(tmp_path / 'c-1', {'Model/Head/kernel': [2, 5]})
  found = _compare(_SHAPES, ['Model'], held)
  assert found.missing == [
    'Model/Encoder/kernel',
    'Model/Encoder/bias',
    'global_step',
  ]
  assert (found.different, found.extra) == ([], [])
  assert found.describe() == 'Model/Encoder/kernel is not in it'


def test_other_shapes_are_different_and_not_missing(tmp_path):
  there = {**_SHAPES, 'Model/Encoder/bias': [7], 'Model/Head/kernel': [5, 2]}
  found = _compare(_SHAPES, ['Model'], _held(tmp_path / 'c-1', there))
  assert found.different == [
    ('Model/Encoder/bias', 'shape [7]', 'shape [2]'),
    ('Model/Head/kernel', 'shape [5, 2]', 'shape [2, 5]'),
  ]
  assert (found.missing, found.extra) == ([], [])
  expected = 'Model/Encoder/bias has shape [7] there but shape [2] in this'
  assert expected in found.describe()


def test_other_types_are_different(tmp_path):
  # Restoring would fail.
  values = {name: tf.zeros(shape) for name, shape in _SHAPES.items()}
  values['Model/Encoder/bias'] = tf.zeros([2], tf.float16)
  held = checkpoints.index(writing.write_values(tmp_path / 'c-1', values))
  found = _compare(_SHAPES, ['Model'], held)
  assert found.different == [
    ('Model/Encoder/bias', 'type float16', 'type float32')
  ]
  assert (found.missing, found.extra) == ([], [])


def test_what_is_too_much_in_the_scopes_is_extra(tmp_path):
  more = {
    'Model/Encoder/kernel_1': [1],
    'Model/Encoder/Block_9/kernel': [1],
    # These are in no scope that was asked for.
    'Model/Encoder_1/kernel': [1],
    'Model/Tail/kernel': [1],
    'Encoder/kernel': [1],
  }
  held = _held(tmp_path / 'c-1', {**_SHAPES, **more})
  found = _compare(_SHAPES, ['Model/Encoder', 'Model/Head'], held)
  assert found.extra == [
    'Model/Encoder/Block_9/kernel',
    'Model/Encoder/kernel_1',
  ]
  assert (found.missing, found.different) == ([], [])
  expected = 'Model/Encoder/Block_9/kernel is in it but not in this model'
  assert found.describe() == expected


def test_every_kind_of_difference_is_told_apart(tmp_path):
  there = {'Model/Encoder/kernel': [1, 1], 'Model/Encoder/gamma': [1]}
  found = _compare(_SHAPES, ['Model'], _held(tmp_path / 'c-1', there))
  assert found.different == [
    ('Model/Encoder/kernel', 'shape [1, 1]', 'shape [3, 2]')
  ]
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
  held = _held(tmp_path / 'c-1', {**_SHAPES, **slots})
  assert _compare(_SHAPES, ['Model'], held) == ([], [], [])


def _thin(depth):
  return hparams.Architecture(
    encoder_depth=depth, encoder_width=1 / 64, projection_head_layers=(2,)
  )


@functools.cache
def _shapes_of(architecture, num_classes=3):
  """Returns {name: shape} of a model."""
  with tf.Graph().as_default():
    model = contrastive.ContrastiveModel(architecture, num_classes)
    return {v.op.name: v.shape.as_list() for v in model.variables}


def test_a_deeper_network_is_another_architecture(tmp_path):
  shallow, deep = _shapes_of(_thin(50)), _shapes_of(_thin(101))
  # The deep one has all that the shallow one has: only what is extra tells.
  assert all(deep[name] == shape for name, shape in shallow.items())
  more = set(deep) - set(shallow)
  kernels = [name for name in more if name.endswith('/kernel')]
  assert len(kernels) == 17 * 3  # 17 more blocks, of three convolutions.

  held = _held(tmp_path / 'c-1', deep)
  found = _compare(shallow, ['ContrastiveModel'], held)
  assert (found.missing, found.different) == ([], [])
  assert set(found.extra) == more


def test_a_comparison_reads_what_a_saver_writes(tmp_path):
  with tf.Graph().as_default(), tf1.Session() as session:
    step = tf1.train.get_or_create_global_step()
    variable = tf1.get_variable('Model/w', [2, 3], use_resource=True)
    session.run(tf1.global_variables_initializer())
    session.run(step.assign(12))
    path = tf1.train.Saver().save(session, str(tmp_path / 'model.ckpt'), step)
    held = checkpoints.index(path)
    found = checkpoints.compare([variable, step], ['Model'], held)
  assert found == ([], [], [])
  assert checkpoint_files.step_of(path) == 12
  assert checkpoint_files.steps_and_paths(str(tmp_path)) == {12: path}
  assert held.entries['global_step'].dtype == tf.int64


# --- A checkpoint of model_dir ------------------------------------------------


def test_require_same_accepts_the_same(tmp_path):
  checkpoint = writing.write(tmp_path / 'model.ckpt-1', _SHAPES)
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
  checkpoint = writing.write(tmp_path / 'model.ckpt-1', there)
  with pytest.raises(
    checkpoints.MismatchError,
    match=f'^--model_dir holds {checkpoint} .*{message}.* another ',
  ):
    _compare(_SHAPES, ['Model'], checkpoint, checkpoints.require_same)


def test_require_same_wants_exact_names(tmp_path):
  there = {f'module/{name}': shape for name, shape in _SHAPES.items()}
  checkpoint = writing.write(tmp_path / 'model.ckpt-1', there)
  with pytest.raises(checkpoints.MismatchError, match='kernel is not in it'):
    _compare(_SHAPES, ['Model'], checkpoint, checkpoints.require_same)


def test_require_same_refuses_what_is_damaged(whole):
  tf.io.gfile.GFile(f'{whole}.index', 'w').write('nothing')
  with pytest.raises(
    checkpoints.MismatchError,
    match=f'^found in --model_dir: {whole} is damaged',
  ):
    _compare(_SHAPES, ['Model'], whole, checkpoints.require_same)


@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_named(tmp_path, value):
  values = {name: np.zeros(shape, 'f') for name, shape in _SHAPES.items()}
  bad = sorted(values)[1]
  values[bad].flat[-1] = value
  # A slot is no part of the model.
  values[f'{bad}/Momentum'] = np.float32([np.nan])
  checkpoint = writing.write_values(tmp_path / 'model.ckpt-1', values)

  def require(variables, scopes, checkpoint):
    del scopes
    checkpoints.require_finite(variables, checkpoint)

  with pytest.raises(
    checkpoints.NotFiniteError,
    match=f'^{checkpoint} is NaN or infinite in 1 of {len(_SHAPES)} variables '
    rf'\(the first is {bad}\); .* go back',
  ):
    _compare(_SHAPES, ['Model'], checkpoint, require)
  values[bad].flat[-1] = 0
  checkpoint = writing.write_values(tmp_path / 'model.ckpt-2', values)
  _compare(_SHAPES, ['Model'], checkpoint, require)


def test_outputs_that_are_not_finite_are_named():
  outputs = {'logits': np.zeros([3, 2]), 'embeddings': np.zeros([3, 4])}
  checkpoints.require_finite_outputs(outputs, 'c-1', ['a', 'b', 'c'])
  outputs['embeddings'][1:, 2] = np.inf
  with pytest.raises(
    checkpoints.NotFiniteError,
    match='^embeddings of b are NaN or infinite by c',
  ):
    checkpoints.require_finite_outputs(outputs, 'c-1', ['a', 'b', 'c'])


def _mismatch(tmp_path, there, here, num_classes=3):
  """Returns what require_same says of a checkpoint of another model."""
  checkpoint = _write_corners(tmp_path / 'c-1', _shapes_of(there))
  with tf.Graph().as_default():
    model = contrastive.ContrastiveModel(here, num_classes)
    with pytest.raises(checkpoints.MismatchError) as caught:
      checkpoints.require_same(model.variables, [model.name], checkpoint)
  return checkpoint, str(caught.value)


def test_require_same_says_which_encoder_there_is(tmp_path):
  checkpoint, text = _mismatch(tmp_path, _thin(101), _thin(50))
  # The 7th to 23rd block of the third group are too much; 10 comes after 1.
  assert text == (
    f'--model_dir holds {checkpoint} of another architecture: the encoder '
    'RESNET_V1 of depth 101 and width 0.015625, but this run has RESNET_V1 of '
    'depth 50 and width 0.015625: ContrastiveModel/Encoder/BlockGroup2/'
    'BottleneckBlock_10/Conv2DFixedPadding/conv2d/kernel is in it but not in '
    'this model; pass --resnet_depth=101, or another --model_dir.'
  )


def test_require_same_names_every_part_that_differs(tmp_path):
  there = hparams.Architecture(projection_head_layers=(8, 4))
  here = hparams.Architecture(encoder_width=0.25, projection_head_layers=(4,))
  _, text = _mismatch(tmp_path, there, here, num_classes=10)
  assert (
    ' of another architecture: the encoder RESNET_V1 of depth 50 and width 1 '
    'and a projection head of 8,4 without batch norm and a classifier of 3 '
    'classes, but this run has RESNET_V1 of depth 50 and width 0.25 and this '
    'run has one of 4 and the data set has 10: ContrastiveModel/Encoder/'
    'Conv2DFixedPadding/conv2d/kernel has shape [7, 7, 3, 64] there but '
    'shape [7, 7, 3, 16] in this model; pass --resnet_width=1 and pass '
    '--projection_head_layers=8,4 --use_projection_batch_norm=False and take '
    'its data set, or another --model_dir.'
  ) in text


# --- Checkpoints of the published code ----------------------------------------


def _parse(*flags):
  return flag_parsing.parse(list(flags))[1].architecture


def _table(name):
  """Returns {variable name: shape} of a published table."""
  with golden.path(f'variables/{name}').open(newline='') as rows:
    return {
      row['name']: [int(size) for size in row['shape'].split(',') if size]
      for row in csv.DictReader(rows, delimiter='\t')
    }


def _tables(pattern):
  return sorted(path.name for path in golden.path('variables').glob(pattern))


_STEM = {
  'cifar': [
    '--first_conv_kernel_size=3',
    '--first_conv_stride=1',
    '--use_initial_max_pool=False',
  ],
  'imagenet': [],
}
_NUM_CLASSES = {'cifar': 10, 'imagenet': 1000}


_GOLDEN_RUNS = golden.json('train_parity/train_parity.json')['configs']


def _expected_of(config, **changes):
  """Returns the variables of training, and the name of the model."""
  _, params = flag_parsing.parse(config['flags'])
  for path, value in changes.items():
    params = params.replace(path.replace('__', '.'), value)
  model = contrastive.ContrastiveModel(
    params.architecture, config['num_classes']
  )
  optimizers.of_plan(
    stages.plan(params, config['training_set_size']),
    model,
    tf1.train.get_or_create_global_step(),
    params.loss.include_bias_in_weight_decay,
  )
  return tf1.global_variables(), model.name


def _final_values(config):
  values = golden.npz(f'train_parity/{config["name"]}/values.npz')
  start = 'final/'
  return {
    name[len(start) :]: value
    for name, value in values.items()
    if name.startswith(start)
  }


@pytest.mark.parametrize('config', _GOLDEN_RUNS, ids=lambda c: c['name'])
def test_a_published_run_without_some_slots_is_continued(tmp_path, config):
  # Had both heads been cut from the encoder, there would be no slots for it.
  values = _final_values(config)
  variables = {name for name in values if 'stage' not in name}
  lacking = [
    name
    for name in values
    if name.startswith('ContrastiveModel/Encoder/') and name not in variables
  ]
  assert lacking
  published = {n: x for n, x in values.items() if n not in lacking}
  whole = writing.write_values(tmp_path / 'model.ckpt-7', values)
  part = writing.write_values(tmp_path / 'model.ckpt-8', published)
  none = writing.write_values(
    tmp_path / 'model.ckpt-9', {name: values[name] for name in variables}
  )
  with tf.Graph().as_default():
    expected, scope = _expected_of(config)
    assert checkpoints.require_same(expected, [scope], whole) == ({}, [])
    adopted = checkpoints.require_same(expected, [scope], part, lacking)
    assert not adopted.keys and sorted(adopted.initial) == sorted(lacking)
    # Of variables that a loss reaches it holds slots, or is damaged.
    with pytest.raises(
      checkpoints.MismatchError, match='Encoder/.* is not in it'
    ):
      checkpoints.require_same(expected, [scope], part)
    (line,) = adopted.describe(part)
    assert line.startswith(f'{part} lacks ') and lacking[0] in line
    assert f' {len(lacking)} start at their initial values' in line
    # Without any slot it is of another optimizer.
    with pytest.raises(checkpoints.MismatchError, match='or optimizer'):
      checkpoints.require_same(expected, [scope], none, lacking)


def test_a_checkpoint_of_another_optimizer_is_refused(tmp_path):
  config = _GOLDEN_RUNS[0]
  _, params = flag_parsing.parse(config['flags'])
  other = next(
    choice
    for choice in (enums.Optimizer.NESTEROV, enums.Optimizer.MOMENTUM)
    if choice is not params.stage_1.optimizer
  )
  path = writing.write_values(tmp_path / 'c-1', _final_values(config))
  with tf.Graph().as_default():
    expected, scope = _expected_of(config, stage_1__optimizer=other)
    with pytest.raises(checkpoints.MismatchError, match='or optimizer'):
      checkpoints.require_same(expected, [scope], path)


def test_powers_of_adam_are_found_in_the_order_of_the_stages(tmp_path):
  there = {**_SHAPES}
  for name in ('cond_10', 'cond_9'):
    there[f'train/{name}/beta1_power'] = []
    there[f'train/{name}/beta2_power'] = []
  here = {**_SHAPES}
  for name in ('beta1_power', 'beta2_power'):
    here[name] = here[f'{name}_1'] = []
  checkpoint = writing.write(tmp_path / 'c-1', there)
  adopted = _compare(here, ['Model'], checkpoint, checkpoints.require_same)
  assert adopted == (
    {
      'beta1_power': 'train/cond_9/beta1_power',
      'beta1_power_1': 'train/cond_10/beta1_power',
      'beta2_power': 'train/cond_9/beta2_power',
      'beta2_power_1': 'train/cond_10/beta2_power',
    },
    [],
  )
  (line,) = adopted.describe(checkpoint)
  assert 'read train/cond_9/beta1_power as beta1_power, ' in line
  # Adam in one stage there, in both here.
  del there['train/cond_9/beta1_power'], there['train/cond_9/beta2_power']
  checkpoint = writing.write(tmp_path / 'c-2', there)
  with pytest.raises(checkpoints.MismatchError, match='beta1_power is not in'):
    _compare(here, ['Model'], checkpoint, checkpoints.require_same)


@pytest.mark.parametrize('table', _tables('training_checkpoint_*.tsv'))
def test_a_published_training_checkpoint_is_continued(tmp_path, table):
  # As a training does it: with the slots of both stages.
  shapes = _table(table)
  script = re.fullmatch(r'training_checkpoint_(.*)\.tsv', table).group(1)
  published = golden.json('scripts.json')['scripts'][script]['flags']
  _, params = flag_parsing.parse([f'--{k}={v}' for k, v in published.items()])
  classes = shapes['ContrastiveModel/ClassificationHead/dense/kernel'][-1]
  checkpoint = _write_corners(tmp_path / 'model.ckpt-7', shapes)
  slot = next(name for name in reversed(shapes) if 'Optimizer' in name)
  other = _write_corners(
    tmp_path / 'of_another_optimizer',
    {name: shape for name, shape in shapes.items() if name != slot},
  )
  with tf.Graph().as_default():
    model = contrastive.ContrastiveModel(params.architecture, classes)
    optimizers.of_plan(
      stages.plan(params, 10 * params.batch_size),
      model,
      tf1.train.get_or_create_global_step(),
      params.loss.include_bias_in_weight_decay,
    )
    variables = tf1.global_variables()
    assert len(variables) == len(shapes)
    checkpoints.require_same(variables, [model.name], checkpoint)
    # An evaluation needs no slots.
    checkpoints.require_same(model.variables, [model.name], checkpoint)
    # Whether one looks for a scope, or a part of it, slots do not count.
    held = checkpoints.index(checkpoint, model.name)
    scopes = [model.encoder.name]
    found = checkpoints.compare(model.encoder.variables, scopes, held)
    assert found == ([], [], [])
    with pytest.raises(
      checkpoints.MismatchError,
      match=f' of another architecture or optimizer: {slot} is not in it',
    ):
      checkpoints.require_same(variables, [model.name], other)


@pytest.mark.parametrize('table', _tables('variables_*.tsv'))
def test_published_networks_are_found_below_any_prefix(tmp_path, table):
  shapes = _table(table)
  kind, depth, stem = re.fullmatch(
    r'variables_(\w+)_(\d+)_(\w+)\.tsv', table
  ).groups()
  architecture = _parse(
    f'--resnet_architecture={kind.upper()}',
    f'--resnet_depth={depth}',
    *_STEM[stem],
  )
  prefixes = ('', 'module/', 'hub/module_1/')
  written = [
    _write_corners(
      tmp_path / f'variables-{index}',
      {prefix + name: shape for name, shape in shapes.items()},
    )
    for index, prefix in enumerate(prefixes)
  ]
  with tf.Graph().as_default():
    model = contrastive.ContrastiveModel(architecture, _NUM_CLASSES[stem])
    for prefix, checkpoint in zip(prefixes, written):
      held = checkpoints.index(checkpoint, model.name)
      assert held.prefix == prefix
      found = checkpoints.compare(model.variables, [model.name], held)
      assert found == ([], [], [])


# --- What the networks are ----------------------------------------------------


_ARCHITECTURES = [  # Flags that make all kinds of networks.
  ('--resnet_depth=18', '--resnet_width=0.25'),
  ('--resnet_depth=34', '--resnet_width=0.3'),
  ('--resnet_depth=50', '--resnet_width=0.0625'),
  ('--resnet_architecture=RESNEXT', '--resnet_width=0.5'),
  ('--resnet_depth=18', '--first_conv_kernel_size=3'),
  ('--resnet_depth=18', '--projection_head_layers=8'),
  ('--resnet_depth=18', '--projection_head_layers=8,4,2'),
  ('--resnet_depth=18', '--projection_head_layers=8,4'),
  (
    '--resnet_depth=18',
    '--projection_head_layers=8,4',
    '--use_projection_batch_norm=True',
  ),
  (
    '--resnet_depth=18',
    '--projection_head_layers=8,4',
    '--use_projection_batch_norm=True',
    '--use_projection_batch_norm_beta=False',
  ),
]


@pytest.mark.parametrize(
  'there, here',
  [
    pair
    for before, after in zip(_ARCHITECTURES, _ARCHITECTURES[1:])
    for pair in ((before, after), (after, before))
  ],
)
def test_what_is_to_be_passed_makes_the_networks_equal(there, here):
  assert _differences(there, there) == []
  found = _differences(there, here)
  assert found
  remedies = [
    flag
    for part in found
    for flag in part.flags
    if not flag.startswith('and its --first_conv_stride ')
  ]
  assert _differences(there, [*here, *remedies]) == []
  assert _shapes_of(_parse(*here, *remedies)) == _shapes_of(_parse(*there))


def _differences(there, here):
  """Returns the differences of the networks that flags make."""
  shapes = [_shapes_of(_parse(*flags)) for flags in (there, here)]
  return checkpoints.part_differences(*shapes, 'ContrastiveModel')


def test_what_the_networks_are_in_words():
  def words(there, here):
    return checkpoints.in_words(_differences(there, here))

  assert words(_ARCHITECTURES[3], _ARCHITECTURES[1]) == (
    'the encoder RESNEXT of depth 50 and width 0.5, but this run has RESNET_V1 '
    'of depth 34 and width 0.3'
  )
  assert words(_ARCHITECTURES[8], _ARCHITECTURES[9]) == (
    'a projection head of 8,4 with batch norm, but this run has one of 8,4 '
    'with batch norm without beta'
  )
  assert words(_ARCHITECTURES[7], _ARCHITECTURES[5]) == (
    'a projection head of 8,4 without batch norm, but this run has one of 8'
  )


def test_a_stem_says_that_more_belongs_to_it():
  base = ['--resnet_depth=18', '--resnet_width=0.25']
  (part,) = _differences([*base, *_STEM['cifar']], base)
  assert part.there == (
    'the encoder RESNET_V1 of depth 18 and width 0.25 and a first convolution '
    'of 3'
  )
  assert part.here == (
    'this run has RESNET_V1 of depth 18 and width 0.25 and a first convolution '
    'of 7'
  )
  assert part.flags == [
    '--first_conv_kernel_size=3',
    'and its --first_conv_stride and --use_initial_max_pool',
  ]


def test_parts_that_are_not_there():
  here = _shapes_of(_thin(18))
  found = checkpoints.part_differences({}, here, 'ContrastiveModel')
  assert [(part.there, part.here, part.flags) for part in found] == [
    ('no encoder', 'this run has one', []),
    ('no projection head', 'this run has one', []),
    ('no classifier', 'this run has one', []),
  ]
  # What this run does not have is not compared.
  assert checkpoints.part_differences(here, {}, 'ContrastiveModel') == []


def test_only_what_is_known_is_told_apart():
  # Neither is one of the encoders that there are.
  there, here = (
    {'ContrastiveModel/Encoder/conv/kernel': [1, 1, 3, size]} for size in (4, 5)
  )
  assert checkpoints.part_differences(there, here, 'ContrastiveModel') == []
