"""main.py --deterministic under kill -9 does what it does when left alone."""

import json
import pathlib

import pytest
import tensorflow as tf

from tests import command

_HERE = pathlib.Path(__file__).parent
_ON_CPU = {'CUDA_VISIBLE_DEVICES': ''}

_FLAGS = {
  **command.DIGITS,
  **command.SMALL,
  'deterministic': True,
  'augmentation_type': 'SIMCLR',
  'num_images': 200,
  'label_noise_prob': 0.2,
  'save_interval_steps': 2,
  'stage_1_epochs': 16,
  'stage_1_warmup_epochs': 1,
  'stage_1_optimizer': 'LARS',
  'stage_1_cross_entropy_loss_weight': 1.0,
  'memory_size': 192,
  'memory_momentum': 0.9,
  'stage_2_epochs': 16,
  'stage_2_warmup_epochs': 0,
  'stage_2_optimizer': 'ADAM',
  'stage_2_contrastive_loss_weight': 0.5,
}
_BOUNDARY, _LAST = 50, 100  # Steps: 16 * 200 / 64 in each stage.
_NUM_KILLS = 12


@pytest.mark.slow
def test_killed_at_any_moment_the_result_is_the_same(tmp_path):
  flags = {**_FLAGS, 'data_dir': tmp_path / 'data'}
  unbroken = {**flags, 'mode': 'train_then_eval', 'model_dir': tmp_path / 'one'}
  command.succeed(unbroken, tmp_path, **_ON_CPU)
  killed = {**flags, 'mode': 'train', 'model_dir': tmp_path / 'killed'}
  finished = command.succeed(
    killed,
    tmp_path,
    program=_HERE / 'killed_main.py',
    first=[str(_NUM_KILLS), str(_LAST)],
    **_ON_CPU,
  )
  killed_at = json.loads(finished.stdout)
  print(killed_at)
  assert len(killed_at) == _NUM_KILLS
  assert any(0 < step < _BOUNDARY for step in killed_at)
  assert any(_BOUNDARY < step < _LAST for step in killed_at)

  expected, found = (
    command.variables(each['model_dir'] / f'model.ckpt-{_LAST}')
    for each in (unbroken, killed)
  )
  assert expected.keys() == found.keys()
  assert expected['global_step'] == _LAST
  assert {'Memory/features', 'Memory/labels', 'Momentum/has_moved'} < {
    *expected
  }
  for name, value in expected.items():
    assert value.tobytes() == found[name].tobytes(), name

  # What only training needs is not exported.
  result = json.loads((unbroken['model_dir'] / 'result.json').read_text())
  exported = tf.train.list_variables(
    str(pathlib.Path(result['saved_model']) / 'variables' / 'variables')
  )
  assert exported and not any(
    'Memory' in name or 'Momentum' in name for name, _ in exported
  )

  # Each step is recorded once, and as it was done at last.
  expected, found = (
    command.summaries(each['model_dir'] / 'train')
    for each in (unbroken, killed)
  )
  rows = command.table(killed['model_dir'] / 'metrics.csv')
  assert list(expected['loss']) == list(rows) == list(range(_LAST))
  for tag in set(expected) - {'global_step/sec', 'examples/sec'}:
    assert found[tag] == expected[tag], tag
  for step, row in rows.items():
    assert float(row['loss']) == pytest.approx(expected['loss'][step], rel=1e-6)


def test_it_is_refused_where_it_may_not_hold(tmp_path):
  flags = {**_FLAGS, 'data_dir': tmp_path / 'data', 'num_replicas': 2}
  run = command.run(
    {**flags, 'mode': 'train', 'model_dir': tmp_path / 'model'},
    tmp_path,
    **_ON_CPU,
  )
  assert run.returncode == 2
  assert run.log[-1] == (
    'main.py: error: --deterministic holds on one CPU device or GPU; leave it '
    'out, or use --use_tpu=False with one device (--num_gpus=1 or '
    '--num_gpus=0).'
  )
  assert not (tmp_path / 'model').exists()
