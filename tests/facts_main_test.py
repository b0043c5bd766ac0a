"""End-to-end tests: what is written of a run stays true, whatever comes next.

Two runs on 48 images in folders, 3 steps an epoch: one was stopped at the end
of stage 1, step 6 of 9, the other one has ended. Each command is given to a
copy of one of them.
"""

import json
import re
import shutil
import types

import numpy as np
from PIL import Image
import pytest

from supcon.config import hparams
from tests import command

pytestmark = pytest.mark.slow

_COLORS = {'cat': (190, 60, 50), 'dog': (60, 170, 50), 'owl': (50, 60, 180)}
_FLAGS = {
  'use_tpu': False,
  'input_fn': 'folder',
  'projection_head_layers': '8',
  'image_size': 16,
  'eval_crop_method': 'CROP_THEN_RESIZE',
  'crop_padding': 0,
  'augmentation_type': 'IDENTITY',
  'compile_augmentation': False,
  'batch_size': 16,
  'eval_batch_size': 8,
  'knn_examples': 0,
  'report_examples': 0,
  'measure_whitening': True,
  'stage_1_epochs': 2,
  'stage_1_warmup_epochs': 0,
  'stage_1_optimizer': 'MOMENTUM',
  'stage_2_epochs': 1,
  'stage_2_warmup_epochs': 0,
  'stage_2_optimizer': 'MOMENTUM',
  'export_formats': 'saved_model',
  'eval_interval_secs': 0,
  # Whoever waits for a step that the run does not have fails.
  'eval_timeout_secs': 3,
}


def _write_images(directory, names, num_train, num_val):
  """Writes images of each class."""
  for split, count in (('train', num_train), ('val', num_val)):
    for name, color in zip(names, _COLORS.values()):
      folder = directory / split / name
      folder.mkdir(parents=True)
      for i in range(count):
        noise = np.random.RandomState(i).randint(-40, 40, (18, 20, 3))
        image = Image.fromarray((np.array(color) + noise).astype(np.uint8))
        image.save(folder / f'{i}.png')
  return directory


def _json(path):
  return json.loads(path.read_text())


def _truth(model_dir):
  """Returns the files that say what was trained."""
  return {
    name: (model_dir / name).read_text()
    for name in ('hparams.json', 'labels.txt', 'whitening.json')
  }


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
  """Those two runs; after all the commands, by the names of the commands."""
  directory = tmp_path_factory.mktemp('facts')
  images = _write_images(directory / 'images', _COLORS, 16, 4)
  fewer = _write_images(directory / 'fewer', _COLORS, 10, 3)
  _write_images(directory / 'others', ('fox', 'hen', 'owl'), 16, 4)
  half, whole = directory / 'half', directory / 'whole'
  train = {**_FLAGS, 'data_dir': images}
  whole_flags = {**train, 'mode': 'train_then_eval', 'model_dir': whole}
  begun = command.run_many(
    [
      {**train, 'mode': 'train', 'model_dir': half, 'stage_2_epochs': 0},
      whole_flags,
    ],
    directory,
    is_small=True,
  )
  for each in begun:
    assert each.returncode == 0, each.stderr
  index = directory / 'index.npz'
  use = {'use_tpu': False, 'data_dir': images}
  picture = images / 'val' / 'cat' / '0.png'
  neighbours = {'mode': 'predict', 'neighbours': 1, 'index': index}
  neighbours |= {'images': picture}
  of_half, of_whole = (
    {name: (path, flags, more) for name, flags, *more in commands}
    for path, commands in (
      (
        half,
        [
          ('fewer images', {'data_dir': fewer}),
          ('fewer images accepted', {'data_dir': fewer, 'accept_new_plan': 1}),
          ('larger batch', {'batch_size': 32}),
          ('fewer images, older version', {'data_dir': fewer}),
          ('later end', {}),
        ],
      ),
      (
        whole,
        [
          (
            'other preprocessing',
            {
              'image_size': 24,
              'eval_crop_method': 'RESIZE_THEN_CROP',
              'crop_padding': 16,
            },
          ),
          ('other classes', {'data_dir': directory / 'others'}),
          ('other loss and seed', {'temperature': 0.5, 'seed': 7}),
          ('earlier end', {'stage_2_epochs': 0}),
          ('eval of another split', {'mode': 'eval', 'eval_split': 'train'}),
          ('eval of another set', {'mode': 'eval', 'data_dir': fewer}),
          (
            'eval of other classes',
            {'mode': 'eval', 'data_dir': directory / 'others'},
          ),
          (
            'eval of one',
            {
              'mode': 'eval',
              'eval_once': True,
              'checkpoint': '{model_dir}/model.ckpt-6',
              'temperature': 0.5,
              'batch_size': 32,
            },
          ),
        ],
      ),
    )
  )
  commands = []
  for name, (source, flags, _) in {**of_half, **of_whole}.items():
    model_dir = directory / name
    shutil.copytree(source, model_dir)
    if 'older version' in name:
      record = _json(model_dir / 'hparams.json')
      del record['facts']
      (model_dir / 'hparams.json').write_text(json.dumps(record))
    flags = {**whole_flags, **flags, 'model_dir': model_dir}
    flags = {
      flag: str(value).format(model_dir=model_dir)
      for flag, value in flags.items()
    }
    commands.append((name, flags))
  more = directory / 'more'
  commands += [
    ('embed', {**use, 'mode': 'embed', 'model_dir': whole, 'output': index}),
    ('predict', {**neighbours, 'model_dir': whole}),
    ('predict with another model', {**neighbours, 'model_dir': half}),
    (
      'predict with another crop',
      {**neighbours, 'model_dir': whole, 'image_size': 17},
    ),
    (
      'eval of nothing',
      {'mode': 'eval', 'eval_once': True, **use, 'model_dir': more},
    ),
    (
      'transfer',
      {
        **train,
        'mode': 'train',
        'model_dir': directory / 'transfer',
        'data_dir': fewer,
        'measure_whitening': False,
        'reference_ckpt': whole,
        'warm_start_encoder': True,
        'stage_2_epochs': 0,
      },
    ),
    (
      'export after another loss',
      {'mode': 'export', 'model_dir': directory / 'other loss and seed'},
    ),
    (
      'status after another loss',
      {'mode': 'status', 'model_dir': directory / 'other loss and seed'},
    ),
  ]
  finished = command.run_many(
    [flags for _, flags in commands], directory, is_small=True
  )
  return types.SimpleNamespace(
    directory=directory,
    half=half,
    whole=whole,
    done=dict(zip((name for name, _ in commands), finished, strict=True)),
  )


def _assert_refused(run, *words):
  assert run.returncode == 2, run.stderr
  line = run.stderr.splitlines()[-1]
  assert line.startswith('main.py: error: ')
  assert 'Traceback' not in run.stderr
  for word in words:
    assert word in line, line


def _assert_succeeded(run):
  assert run.returncode == 0, run.stderr
  assert 'Traceback' not in run.stderr


def test_hparams_json_holds_hparams_and_facts(runs):
  written = _json(runs.whole / 'hparams.json')
  params = hparams.parse(written['compact'])
  assert written['hparams'] == params.to_json()
  (entry,) = written['facts']
  assert entry['after_step'] == -1
  assert entry['compact'] == written['compact']
  assert entry['plan'] == {
    'num_examples': 48,
    'batch_size': 16,
    'epochs': [2, 1],
    'steps_per_epoch': 3.0,
    'ends': [6, 9],
  }


@pytest.mark.parametrize(
  'name, words',
  [
    ('other preprocessing', ['--image_size=24', 'trained with 16']),
    ('other classes', ['class 0', 'fox', 'labels.txt says cat']),
    ('earlier end', ['step 9 of 9', 'stage_2_epochs: 0 instead of 1']),
    (
      'fewer images',
      [
        'model.ckpt-6 is at step 6 of 6, epoch 2.00 of 2 of stage 1',
        'training examples: 30 instead of 48',
        '--accept_new_plan',
        'step 3 of 5, ',
      ],
    ),
    ('larger batch', ['--batch_size: 32 instead of 16', '--accept_new_plan']),
  ],
)
def test_what_may_not_change_is_refused_and_changes_nothing(runs, name, words):
  _assert_refused(runs.done[name], *words)
  source = runs.half if name in ('fewer images', 'larger batch') else runs.whole
  before, after = (
    {path: content for path, (_, content) in command.contents(each).items()}
    for each in (source, runs.directory / name)
  )
  assert after == before


def test_what_nobody_has_written_down_is_not_believed_to_be_over(runs):
  # On 30 images 2 epochs end with step 3.
  _assert_refused(
    runs.done['fewer images, older version'],
    'model.ckpt-6 holds step 6, but the plan that ',
    'hparams.json tells of ends with step 3 (30 training examples',
  )


def test_a_job_that_trains_nothing_changes_no_fact(runs):
  for name in (
    'other loss and seed',
    'eval of another split',
    'eval of another set',
    'eval of other classes',
    'eval of one',
  ):
    _assert_succeeded(runs.done[name])
    assert _truth(runs.directory / name) == _truth(runs.whole), name


def test_results_are_of_what_was_trained(runs):
  name = 'other loss and seed'
  results = [
    _json(path / 'result.json') for path in (runs.whole, runs.directory / name)
  ]
  before, after = (result['metrics'] for result in results)
  assert after == before
  # Also the export that was made beside it, its card, and the next one.
  exports = sorted((runs.directory / name / 'exports').iterdir())
  assert len(exports) == 3
  compact = _json(runs.whole / 'hparams.json')['compact']
  for path in exports:
    assert _json(path / 'export.json')['compact'] == compact
    assert (
      '| `loss.contrastive.temperature` | `0.07` |'
      in (path / 'model_card.md').read_text()
    )
  status = runs.done['status after another loss']
  assert status.returncode == 0
  assert re.search(r'^step +9 of 9 \(100\.0%\)$', status.stdout, re.MULTILINE)


def test_a_later_end_is_said_aloud_and_written_down(runs):
  run = runs.done['later end']
  _assert_succeeded(run)
  assert 'WARNING: --stage_2_epochs=1 now; model_dir was begun with 0' in (
    run.log
  )
  written = _json(runs.directory / 'later end' / 'hparams.json')
  assert written['hparams']['stage_2']['epochs'] == 1
  # Checkpoints up to step 6 were trained without.
  assert [entry['after_step'] for entry in written['facts']] == [-1, 6]
  assert written['facts'][0] == _json(runs.half / 'hparams.json')['facts'][0]
  assert written['facts'][1]['plan']['ends'] == [6, 9]


def test_an_accepted_plan_keeps_stage_and_epoch(runs):
  run = runs.done['fewer images accepted']
  _assert_succeeded(run)
  # 30 / 16 = 1.875 steps an epoch: stage 1 ends with step floor(2 x 1.875) = 3,
  # stage 2 with floor(3 x 1.875) = 5.
  assert 'stage 2: steps 3 to 5' in run.log
  assert not any(line.startswith('stage 1: steps') for line in run.log)
  model_dir = runs.directory / 'fewer images accepted'
  assert command.steps(model_dir) == [3, 5]
  first, moved = (
    command.variables(path)
    for path in (runs.half / 'model.ckpt-6', model_dir / 'model.ckpt-3')
  )
  assert (first.pop('global_step'), moved.pop('global_step')) == (6, 3)
  for name, value in first.items():
    np.testing.assert_array_equal(moved[name], value, err_msg=name)
  # What there was is there still, and a run by itself.
  former = model_dir / 'former_plans' / '1'
  assert command.steps(former) == [0, 6]
  assert command.newest_step(former) == 6
  assert _truth(former) == _truth(runs.half)
  result = _json(model_dir / 'result.json')
  assert (result['global_step'], result['total_steps']) == (5, 5)


def test_evaluations_of_other_data_end_and_keep_the_best(runs):
  best = command.contents(runs.whole / 'best')
  for name, split, count in (
    ('eval of another split', 'train', 48),
    ('eval of another set', 'val', 9),
    ('eval of other classes', 'val', 12),
  ):
    model_dir = runs.directory / name
    found = command.contents(model_dir / 'best')
    assert [content for _, content in found.values()] == [
      content for _, content in best.values()
    ]
    (beside,) = model_dir.glob('best-*')
    facts = _json(beside / 'best.json')
    assert facts['data']['num_examples'] == count
    assert facts['data']['split'] == split
    result = _json(model_dir / 'result.json')
    assert (result['split'], result['num_examples']) == (split, count)
    # Those of the run's own data are kept beside them.
    assert [
      each['num_examples']
      for each in result['evaluations']
      if each['global_step'] == 9
    ] == [
      *(
        each['num_examples']
        for each in _json(runs.whole / 'result.json')['evaluations']
      ),
      count,
    ]
    # All those that are left, each once.
    evaluated = [
      line for line in runs.done[name].log if line.startswith('evaluating ')
    ]
    assert len(evaluated) == 3  # Of the steps 0, 6 and 9.
    assert result['total_steps'] == 9
    card = sorted((model_dir / 'exports').iterdir())[-1] / 'model_card.md'
    assert '| Training examples | `48` |' in card.read_text()
  result = _json(runs.directory / 'eval of other classes' / 'result.json')
  assert result['class_names'] == ['cat', 'dog', 'owl']
  assert result['class_names_of_data'] == ['fox', 'hen', 'owl']


def test_eval_once(runs):
  run = runs.done['eval of one']
  result = _json(runs.directory / 'eval of one' / 'result.json')
  assert result['global_step'] == 6 and result['total_steps'] == 9
  assert result['checkpoint'].endswith('/eval of one/model.ckpt-6')
  assert 'WARNING: --temperature=0.5 has no effect: ' in run.stderr
  assert run.stdout.strip().startswith('Top-1 ')
  _assert_refused(runs.done['eval of nothing'], 'holds no checkpoint')


def test_an_index_knows_its_model(runs):
  _assert_succeeded(runs.done['embed'])
  _assert_succeeded(runs.done['predict'])
  assert 'neighbour 1' in runs.done['predict'].stdout
  _assert_refused(
    runs.done['predict with another model'],
    '--index=',
    'another model',
    f'{runs.half}/model.ckpt-6',
  )
  _assert_refused(
    runs.done['predict with another crop'], '16 pixels', '17 pixels'
  )


def test_whitening_comes_with_the_reference(runs):
  run = runs.done['transfer']
  _assert_succeeded(run)
  found, expected = (
    _json(path / 'whitening.json')
    for path in (runs.directory / 'transfer', runs.whole)
  )
  for name in ('mean', 'std'):
    assert found[name] == expected[name]
  (line,) = [line for line in run.log if 'whitening: mean (' in line]
  assert line.endswith(f', as {runs.whole}/model.ckpt-9 has it')
