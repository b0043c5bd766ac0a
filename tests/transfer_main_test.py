"""End-to-end tests: what a training takes from its reference without a flag.

A small encoder of 16 pixels is pretrained for two epochs; then linear
evaluations start from it as scripts/linear_eval.sh has it, and from what is
exported of it.
"""

import json
import shutil
import subprocess
import types

import pytest

from supcon.config import hparams
from tests import command

pytestmark = pytest.mark.slow

_PRETRAIN = {
  **command.DIGITS,
  **command.RESNET,
  'mode': 'train_then_eval',
  'image_size': 16,
  'apply_whitening': True,
  'measure_whitening': True,
  'num_images': 128,
  'num_eval_images': 50,
  'stage_1_epochs': 2,
  'stage_1_warmup_epochs': 0,
  'stage_1_optimizer': 'MOMENTUM',
  'stage_2_epochs': 0,
}
# What such a run says itself: nothing about the encoder or its images.
_LINEAR = {
  'mode': 'train',
  'use_tpu': False,
  'input_fn': 'digits',
  'num_images': 128,
  'batch_size': 64,
  'stage_1_epochs': 2,
}
_TAKEN = (
  'taken from {checkpoint}: encoder_architecture=TINY, encoder_depth=18, '
  'encoder_width=0.0625, '
  'first_conv_kernel_size=3, first_conv_stride=1, use_initial_max_pool=False, '
  'image_size=16, eval_crop_method=CROP_THEN_RESIZE, crop_padding=0'
)


def _flags_of_script(directory):
  """Returns {flag: value} of scripts/linear_eval.sh."""
  echo = directory / 'echo.sh'
  echo.write_text('#!/bin/bash\nshift\nprintf "%s\\n" "$@"\n')
  echo.chmod(0o755)
  lines = subprocess.run(
    [command.ROOT / 'scripts' / 'linear_eval.sh', 'reference'],
    env={'PATH': '/usr/bin:/bin', 'PYTHON': str(echo)},
    check=True,
    capture_output=True,
    text=True,
  ).stdout.splitlines()
  return dict(line[2:].split('=', 1) for line in lines)


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
  """The pretraining, and the runs that start from it, by their names."""
  directory = tmp_path_factory.mktemp('transfer')
  reference = directory / 'reference'
  pretrain = {**_PRETRAIN, 'data_dir': directory / 'data'}
  (run,) = command.run_many(
    [{**pretrain, 'model_dir': reference}], directory, is_small=True
  )
  assert run.returncode == 0, run.stderr
  (export,) = (reference / 'exports').iterdir()
  module = directory / 'module'  # Without the export around it.
  shutil.copytree(export / 'hub', module)
  linear = {
    **_flags_of_script(directory),
    **_LINEAR,
    'data_dir': directory / 'data',
  }
  commands = {
    'run': {'reference_ckpt': reference},
    'image size': {'reference_ckpt': reference, 'image_size': 8},
    'hub': {'reference_ckpt': export / 'hub'},
    'module': {'reference_ckpt': module, 'image_size': 8, 'crop_padding': 9},
  }
  flags = [
    {**linear, 'model_dir': directory / name, **more}
    for name, more in commands.items()
  ]
  # On without the reference.
  flags.append(
    {
      **linear,
      'model_dir': directory / 'run',
      'reference_ckpt': directory / 'nowhere',
      'stage_1_epochs': 3,
    }
  )
  finished = command.run_many(flags, directory, is_small=True)
  return types.SimpleNamespace(
    directory=directory,
    reference=reference,
    export=export,
    done=dict(zip([*commands, 'on'], finished, strict=True)),
  )


def _params(model_dir):
  found = json.loads((model_dir / 'hparams.json').read_text())
  return hparams.parse(found['compact'])


def _of_encoder(params):
  """Returns what the tests are about, with what the flags of RESNET say."""
  preprocessing = params.input_data.preprocessing
  architecture = params.architecture
  return (
    architecture.encoder_depth,
    architecture.encoder_width,
    architecture.first_conv_kernel_size,
    architecture.first_conv_stride,
    architecture.use_initial_max_pool,
    preprocessing.image_size,
    preprocessing.eval_crop_method.name,
    preprocessing.crop_padding,
  )


_EXPECTED = (18, 0.0625, 3, 1, False, 16, 'CROP_THEN_RESIZE', 0)


@pytest.mark.parametrize('name', ['run', 'hub'])
def test_what_is_known_of_a_reference_is_taken(runs, name):
  run = runs.done[name]
  assert run.returncode == 0, run.stderr
  assert _of_encoder(_params(runs.directory / name)) == _EXPECTED
  checkpoint = {
    'run': runs.reference / 'model.ckpt-4',  # 2 x 128 / 64
    'hub': runs.export / 'hub' / 'variables' / 'variables',
  }[name]
  line = _TAKEN.format(checkpoint=checkpoint)
  assert [each.strip() for each in run.log].count(line) == 1
  assert not any('WARNING' in each for each in run.log)
  mean = json.loads((runs.directory / name / 'whitening.json').read_text())
  measured = json.loads((runs.reference / 'whitening.json').read_text())
  assert mean['mean'] == pytest.approx(measured['mean'], rel=1e-6)


def test_flags_win_over_the_reference(runs):
  run = runs.done['image size']
  assert run.returncode == 0, run.stderr
  found = _of_encoder(_params(runs.directory / 'image size'))
  assert found == (*_EXPECTED[:5], 8, *_EXPECTED[6:])
  (line,) = [line for line in run.log if 'WARNING' in line]
  assert 'image_size=8 here, but ' in line
  assert line.endswith('model.ckpt-4 was trained with image_size=16')


def test_a_run_that_has_begun_needs_no_reference(runs):
  run = runs.done['on']
  assert run.returncode == 0, run.stderr
  assert _of_encoder(_params(runs.directory / 'run')) == _EXPECTED
  assert command.steps(runs.directory / 'run') == [0, 4, 6]


def test_what_is_not_known_is_told(runs):
  run = runs.done['module']
  assert run.returncode == 0, run.stderr
  warnings = '\n'.join(line for line in run.log if 'WARNING' in line)
  assert 'nothing says how the images of ' in warnings
  assert 'image_size=8, eval_crop_method=RESIZE_THEN_CROP' in warnings
  # 8 / (8 + 9): less than a half.
  assert '--crop_padding=9 is large against --image_size=8' in warnings
  assert '47% of the shorter side' in warnings
