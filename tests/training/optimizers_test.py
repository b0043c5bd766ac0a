"""Tests of supcon.training.optimizers, with the published trajectories."""

import dataclasses
import re

import numpy as np
import pytest
import tensorflow as tf

from supcon.config import enums
from supcon.config import hparams
from supcon.models import contrastive
from supcon.training import lars
from supcon.training import objectives
from supcon.training import optimizers
from supcon.training import stages
from tests import flag_parsing
from tests import golden
from tests import model_functions
from tests.training import scalar_model

tf1 = tf.compat.v1


# Reference values.

_GOLDEN = golden.json('optimizers.json')


@pytest.fixture(scope='module', name='arrays')
def _arrays():
  return golden.npz('optimizers.npz')


def _matching(patterns, variables):
  """Returns the variables whose names the published patterns match."""
  return [
    variable
    for variable in variables
    if any(re.search(pattern, variable.op.name) for pattern in patterns or ())
  ]


def _lars_of(case, learning_rate, variables):
  """An optimizer for a case that constructs LARSOptimizer directly."""
  arguments = {
    name: case[name]
    for name in (
      'weight_decay',
      'momentum',
      'eta',
      'classic_momentum',
      'use_nesterov',
      'name',
    )
    if name in case
  }
  for name in ('exclude_from_weight_decay', 'exclude_from_layer_adaptation'):
    if case.get(name) is not None:
      arguments[name] = _matching(case[name], variables)
  return lars.LARSOptimizer(learning_rate, **arguments)


def _built_of(case, learning_rate, variables):
  """An optimizer for a case that goes through the factory."""
  stage = hparams.Stage(
    optimizer=enums.Optimizer[case['opt']],
    rmsprop_epsilon=case.get('epsilon', hparams.Stage().rmsprop_epsilon),
    weight_decay=case.get('lars_weight_decay', 0.0),
  )
  stage_number = int(case['name'][len('stage') :])
  undecayed = _matching(case.get('lars_exclude'), variables)
  return optimizers.build(stage, stage_number, learning_rate, undecayed)


_OPTIMIZER_OF = {'LARSOptimizer': _lars_of, 'build': _built_of}


@pytest.mark.parametrize(
  'case', [pytest.param(case, id=case['case']) for case in _GOLDEN['cases']]
)
def test_golden(case, arrays):
  prefix = case['case']
  names = [variable['name'] for variable in _GOLDEN['variables']]
  with tf.Graph().as_default(), tf1.Session() as session:
    variables = [
      tf1.get_variable(
        name, initializer=arrays[f'{prefix}/init/{name}'], use_resource=True
      )
      for name in names
    ]
    weights = dict(zip(names, variables, strict=True))
    learning_rate = tf1.placeholder(tf.float32, [])
    gradients = [tf1.placeholder(tf.float32, v.shape) for v in variables]
    global_step = tf1.train.get_or_create_global_step()
    not_slots = len(tf1.global_variables())
    optimizer = _OPTIMIZER_OF[case['kind']](case, learning_rate, variables)
    optimizers.create_slots(optimizer, variables)
    train_op = optimizer.apply_gradients(
      zip(gradients, variables, strict=True), global_step
    )
    slots = {v.op.name: v for v in tf1.global_variables()[not_slots:]}
    assert list(slots) == case['slot_variables']

    session.run(tf1.global_variables_initializer())
    for name, value in session.run(slots).items():
      np.testing.assert_allclose(
        value, np.full_like(value, case['slot_initial_value'][name])
      )
    for step in range(case['steps']):
      session.run(
        train_op,
        {
          learning_rate: case['learning_rates'][step],
          **{
            gradient: arrays[f'{prefix}/grad{step}/{name}']
            for gradient, name in zip(gradients, names, strict=True)
          },
        },
      )
      after = session.run({'step': weights, 'slot': slots})
      for kind, values in after.items():
        for name, value in values.items():
          np.testing.assert_allclose(
            value,
            arrays[f'{prefix}/{kind}{step}/{name}'],
            rtol=2e-5,
            atol=1e-7,
            err_msg=f'{name} after step {step}',
          )
    assert session.run(global_step) == case['global_step_after']


# Three steps by hand, all from weight 1 with rate 0.1 and gradients 1, 0, -1.
# Momentum 0.9 throughout.

_TRAJECTORIES = {
  # v = 1, 0.9, 0.81 - 1 = -0.19; the step is 0.1 * v.
  enums.Optimizer.MOMENTUM: [0.9, 0.81, 0.829],
  # The same v; the step is 0.1 * (g + 0.9 * v):
  # 0.1 * 1.9, 0.1 * 0.81, 0.1 * (-1 - 0.171) = -0.1171.
  enums.Optimizer.NESTEROV: [0.81, 0.729, 0.8461],
  # Mean square m, from 1: 0.9 + 0.1 = 1, 0.9, 0.81 + 0.1 = 0.91. Epsilon 1 is
  # inside the root: v = 0.1 / sqrt(2) = 0.0707107, then 0.9 * v = 0.0636396,
  # then 0.9 * v - 0.1 / sqrt(1.91) = 0.0572756 - 0.0723575 = -0.0150818.
  enums.Optimizer.RMSPROP: [0.9292893, 0.8656497, 0.8807315],
  # With beta 0.9 and 0.999, the means m = 0.1, 0.09, -0.019 over 1 - 0.9^t,
  # 0.1, 0.19, 0.271, are 1, 0.473684, -0.070111. The mean squares 0.001,
  # 0.000999, 0.001998001 over 1 - 0.999^t, 0.001, 0.001999, 0.002997001, have
  # the roots 1, 0.706930, 0.816497. The step is 0.1 times the quotient:
  # 0.1, 0.0670058, -0.0085868.
  enums.Optimizer.ADAM: [0.9, 0.8329942, 0.8415810],
  # Ratio 0.001 * |w| / |g|; nothing to adapt to at gradient 0.
  # v = 0.1 * 0.001 * 1 = 0.0001; 0.9 * v = 0.00009;
  # 0.9 * v - 0.1 * 0.001 * 0.99981 = 0.000081 - 0.000099981 = -0.000018981.
  enums.Optimizer.LARS: [0.9999, 0.99981, 0.999828981],
}


@pytest.mark.parametrize('choice', list(enums.Optimizer))
def test_three_steps(choice):
  stage = hparams.Stage(optimizer=choice, rmsprop_epsilon=1.0)
  with tf.Graph().as_default(), tf1.Session() as session:
    weight = tf1.get_variable('w', initializer=1.0, use_resource=True)
    gradient = tf1.placeholder(tf.float32, [])
    optimizer = optimizers.build(stage, 1, tf.constant(0.1), undecayed=[])
    train_op = optimizer.apply_gradients([(gradient, weight)])
    session.run(tf1.global_variables_initializer())
    trajectory = []
    for value in (1.0, 0.0, -1.0):
      session.run(train_op, {gradient: value})
      trajectory.append(session.run(weight))
  np.testing.assert_allclose(trajectory, _TRAJECTORIES[choice], rtol=1e-6)


@pytest.mark.parametrize('choice', list(enums.Optimizer))
def test_a_zero_gradient_at_rest_changes_nothing(choice):
  stage = hparams.Stage(optimizer=choice)
  with tf.Graph().as_default(), tf1.Session() as session:
    weight = tf1.get_variable('w', initializer=[1.0, -2.0], use_resource=True)
    optimizer = optimizers.build(stage, 1, tf.constant(0.1), undecayed=[])
    train_op = optimizer.apply_gradients([(tf.zeros([2]), weight)])
    session.run(tf1.global_variables_initializer())
    session.run(train_op)
    np.testing.assert_array_equal(session.run(weight), [1.0, -2.0])


def test_only_lars_decays_weights_itself():
  # Gradient 0, decay 0.5, rate 0.1. LARS: g = 0.5 * 1, ratio 0.001 * 1 / 0.5,
  # step 0.1 * 0.002 * 0.5 = 0.0001, and none where the variable is excluded.
  for choice in enums.Optimizer:
    stage = hparams.Stage(optimizer=choice, weight_decay=0.5)
    with tf.Graph().as_default(), tf1.Session() as session:
      kernel = tf1.get_variable('kernel', initializer=1.0, use_resource=True)
      beta = tf1.get_variable('beta', initializer=1.0, use_resource=True)
      optimizer = optimizers.build(stage, 1, tf.constant(0.1), undecayed=[beta])
      train_op = optimizer.apply_gradients(
        [(tf.zeros([]), kernel), (tf.zeros([]), beta)]
      )
      session.run(tf1.global_variables_initializer())
      session.run(train_op)
      actual = session.run([kernel, beta])
    decayed = 0.9999 if choice == enums.Optimizer.LARS else 1.0
    np.testing.assert_allclose(actual, [decayed, 1.0], rtol=1e-7)


def test_an_unknown_optimizer_lists_the_choices():
  stage = dataclasses.replace(hparams.Stage(), optimizer='SGD')
  with pytest.raises(ValueError, match='--stage_2_optimizer=SGD.*RMSPROP, MOM'):
    optimizers.build(stage, 2, tf.constant(0.1), undecayed=[])


# Slots.

_SLOT_NAMES = {  # Of both stages, for variable 'w', in order of creation.
  enums.Optimizer.RMSPROP: [
    'w/RMSPropOptimizer_stage1',
    'w/RMSPropOptimizer_stage1_1',
    'w/RMSPropOptimizer_stage2',
    'w/RMSPropOptimizer_stage2_1',
  ],
  enums.Optimizer.MOMENTUM: [
    'w/MomentumOptimizer_stage1',
    'w/MomentumOptimizer_stage2',
  ],
  enums.Optimizer.LARS: [
    'w/LARSOptimizer_stage1/Momentum',
    'w/LARSOptimizer_stage2/Momentum',
  ],
  enums.Optimizer.ADAM: [
    'beta1_power',
    'beta2_power',
    'w/Adam',
    'w/Adam_1',
    'beta1_power_1',
    'beta2_power_1',
    'w/Adam_2',
    'w/Adam_3',
  ],
  enums.Optimizer.NESTEROV: [
    'w/NesterovMomentumOptimizer_stage1',
    'w/NesterovMomentumOptimizer_stage2',
  ],
}


@pytest.mark.parametrize('applied_stage', [1, 2])
@pytest.mark.parametrize('choice', list(enums.Optimizer))
def test_slots_of_both_stages_stand_whichever_is_applied(choice, applied_stage):
  stage = hparams.Stage(optimizer=choice)
  with tf.Graph().as_default() as graph, tf1.Session() as session:
    weight = tf1.get_variable('w', initializer=1.0, use_resource=True)
    built = [
      optimizers.build(stage, number, tf.constant(0.1), undecayed=[])
      for number in (1, 2)
    ]
    with tf1.name_scope('training'):  # Must not enter the names.
      for optimizer in built:
        optimizers.create_slots(optimizer, [weight])
      assert not graph.get_collection(tf1.GraphKeys.TRAIN_OP)
      train_op = built[applied_stage - 1].apply_gradients(
        [(tf.ones([]), weight)]
      )

    slots = {v.op.name: v for v in tf1.global_variables() if v is not weight}
    assert list(slots) == _SLOT_NAMES[choice]
    assert tf1.trainable_variables() == [weight]
    session.run(tf1.global_variables_initializer())
    before = session.run(slots)
    session.run(train_op)
    after = session.run(slots)
  # The first half is stage 1's. Only what is applied moves.
  names = list(slots)
  half = len(names) // 2
  applied = names[:half] if applied_stage == 1 else names[half:]
  moved = [name for name in names if before[name] != after[name]]
  # RMSProp's mean square stays at 1: 0.9 * 1 + 0.1 * 1^2.
  still = [name for name in applied if before[name] == 1.0 == after[name]]
  assert sorted(moved + still) == sorted(applied)
  assert moved


def test_slots_of_two_different_stages_follow_each_other():
  variables = ['encoder/kernel', 'head/bias']
  with tf.Graph().as_default():
    created = [
      tf1.get_variable(name, initializer=1.0, use_resource=True)
      for name in variables
    ]
    for number, choice in enumerate(
      [enums.Optimizer.LARS, enums.Optimizer.RMSPROP], start=1
    ):
      optimizer = optimizers.build(
        hparams.Stage(optimizer=choice), number, tf.constant(0.1), []
      )
      optimizers.create_slots(optimizer, created)
    names = [v.op.name for v in tf1.global_variables()]
  assert names[2:] == [
    'encoder/kernel/LARSOptimizer_stage1/Momentum',
    'head/bias/LARSOptimizer_stage1/Momentum',
    'encoder/kernel/RMSPropOptimizer_stage2',
    'encoder/kernel/RMSPropOptimizer_stage2_1',
    'head/bias/RMSPropOptimizer_stage2',
    'head/bias/RMSPropOptimizer_stage2_1',
  ]


def _checkpoint_scripts():
  """Returns the scripts for which the tensors of a checkpoint are listed."""
  prefix = 'training_checkpoint_'
  listings = golden.path('variables').glob(f'{prefix}*.tsv')
  return sorted(listing.stem[len(prefix) :] for listing in listings)


@pytest.mark.parametrize('script', _checkpoint_scripts())
def test_slots_of_a_training_checkpoint(script):
  listing = golden.path(f'variables/training_checkpoint_{script}.tsv')
  rows = [line.split('\t') for line in listing.read_text().splitlines()[1:]]
  tensors = [  # (name, shape, trainable)
    (name, [int(size) for size in shape.split(',') if size], flag == '1')
    for _, name, shape, _, flag in rows
  ]
  flags = golden.json('scripts.json')['scripts'][script]['flags']
  defaults = hparams.HParams()
  with tf.Graph().as_default():
    for name, shape, _ in (t for t in tensors if t[2]):
      tf1.get_variable(name, shape, use_resource=True)
    trainable = tf1.trainable_variables()
    for number, stage in enumerate(defaults.stages, start=1):
      choice = flags.get(f'stage_{number}_optimizer', stage.optimizer.name)
      stage = dataclasses.replace(stage, optimizer=enums.Optimizer[choice])
      optimizer = optimizers.build(stage, number, tf.constant(0.1), [])
      optimizers.create_slots(optimizer, trainable)
    created = [
      (v.op.name, v.shape.as_list())
      for v in tf1.global_variables()[len(trainable) :]
    ]
  # Slots follow the model's variables in the listing, and the model's last
  # variable is a trainable one.
  last = max(i for i, (_, _, trained) in enumerate(tensors) if trained)
  assert created == [(name, shape) for name, shape, _ in tensors[last + 1 :]]


# --- Slots --------------------------------------------------------------------


@pytest.mark.parametrize(
  'first, second',
  [
    *((choice, choice) for choice in enums.Optimizer),
    (enums.Optimizer.LARS, enums.Optimizer.RMSPROP),
    (enums.Optimizer.ADAM, enums.Optimizer.NESTEROV),
  ],
)
def test_both_stages_make_the_slots_of_both(first, second):
  optimizers = {'optimizer': first}, {'optimizer': second}
  in_1, in_2 = (
    list(
      scalar_model.train(
        scalar_model.no_loss, *optimizers, number=number, num_steps=0
      )[0]
    )
    for number in (1, 2)
  )
  assert in_1 == in_2
  per_kernel = {  # Slots that an optimizer makes of a variable.
    enums.Optimizer.RMSPROP: 2,
    enums.Optimizer.MOMENTUM: 1,
    enums.Optimizer.LARS: 1,
    enums.Optimizer.ADAM: 2,
    enums.Optimizer.NESTEROV: 1,
  }
  slots = [name for name in in_1 if name.startswith(f'{scalar_model.KERNEL}/')]
  assert len(slots) == per_kernel[first] + per_kernel[second]


@pytest.mark.parametrize(
  'number, slots', [(1, {'Adam', 'Adam_1'}), (2, {'Adam_2', 'Adam_3'})]
)
def test_stage_1_has_the_first_of_equal_names(number, slots):
  # The names of Adam's slots do not say the stage, only their order does.
  adam = {'optimizer': enums.Optimizer.ADAM}
  before, after = scalar_model.train(
    scalar_model.encoder_kernel,
    adam,
    adam,
    number=number,
    start_step=4 * (number - 1),
  )
  moved = {
    name.rpartition('/')[-1]
    for name in before
    if name.startswith(f'{scalar_model.KERNEL}/')
    and before[name] != after[name]
  }
  assert moved == slots


def _listings():
  """Returns the scripts for which all tensors of a checkpoint are listed."""
  prefix = 'training_checkpoint_'
  found = golden.path('variables').glob(f'{prefix}*.tsv')
  return sorted(listing.stem[len(prefix) :] for listing in found)


@pytest.mark.parametrize('script', _listings())
def test_variables_of_a_published_training_checkpoint(script):
  listing = golden.path(f'variables/training_checkpoint_{script}.tsv')
  rows = [line.split('\t') for line in listing.read_text().splitlines()[1:]]
  published = {
    (name, tuple(int(size) for size in shape.split(',') if size), flag == '1')
    for _, name, shape, _, flag in rows
  }
  num_classes = next(
    shape[-1]
    for name, shape, _ in published
    if name == 'ContrastiveModel/ClassificationHead/dense/kernel'
  )
  flags = golden.json('scripts.json')['scripts'][script]['flags']
  _, params = flag_parsing.parse([f'--{k}={v}' for k, v in flags.items()])
  run = stages.plan(params, 10 * params.batch_size)
  function = model_functions.make(
    params,
    run,
    run.stages[0],
    num_classes,
  )
  side = params.input_data.preprocessing.image_size
  with tf.Graph().as_default():
    features = {
      'images': tf.zeros([2, 2, side, side, 3]),
      'blur_sigmas': tf.zeros([2, 2]),
    }
    function.train(features, tf.constant([0, 1]))
    ours = {
      (v.op.name, tuple(v.shape), v.trainable) for v in tf1.global_variables()
    }
  assert ours == published


# --- Slots of what no loss reaches --------------------------------------------


@pytest.mark.parametrize('stops_projection', [False, True])
@pytest.mark.parametrize('stops_classifier', [False, True])
def test_unreached_slots_are_those_without_a_gradient(
  stops_projection, stops_classifier
):
  # Stage 1 decays the encoder alone; stage 2 decays inside the optimizer.
  params = scalar_model.make_params(
    {
      'optimizer': enums.Optimizer.MOMENTUM,
      'weight_decay': 0.1,
      'use_encoder_weight_decay': True,
      'use_projection_head_weight_decay': False,
      'cross_entropy_loss_weight': 0.0,
    },
    {
      'optimizer': enums.Optimizer.LARS,
      'weight_decay': 0.1,
      'contrastive_loss_weight': 0.0,
      'cross_entropy_loss_weight': 1.0,
    },
  )
  architecture = dataclasses.replace(
    params.architecture,
    encoder_depth=18,
    encoder_width=1 / 16,
    stop_gradient_before_projection_head=stops_projection,
    stop_gradient_before_classification_head=stops_classifier,
  )
  run = stages.plan(params, 100)
  with tf.Graph().as_default():
    model = contrastive.ContrastiveModel(architecture, 3)
    names = optimizers.unreached_slots(
      run, model, tf1.train.get_or_create_global_step(), True, architecture
    )
    outputs = model(tf.zeros([2, 2, 8, 8, 3]), training=True)
    expected = set()
    for stage, loss, slot in zip(
      run.stages,
      (outputs.projection, outputs.logits),
      ('MomentumOptimizer_stage1', 'LARSOptimizer_stage2/Momentum'),
    ):
      total = tf.reduce_sum(loss)
      total += objectives.weight_decay_loss(
        stage.params, model, include_bias=True
      )
      gradients = tf.gradients(total, model.trainable_variables)
      expected |= {
        f'{variable.op.name}/{slot}'
        for variable, gradient in zip(model.trainable_variables, gradients)
        if gradient is None
      }
  assert names == expected
  kernel = 'ContrastiveModel/Encoder/Conv2DFixedPadding/conv2d/kernel'
  assert f'{kernel}/MomentumOptimizer_stage1' not in names  # It decays.
  in_2 = f'{kernel}/LARSOptimizer_stage2/Momentum'
  assert (in_2 in names) == stops_classifier
