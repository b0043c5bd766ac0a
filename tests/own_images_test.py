"""Tests of the choice of flags for one's own images."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
from PIL import Image
import pytest

from scripts import own_images
from supcon.data.sources import digits
from tests import flag_parsing

_ROOT = pathlib.Path(__file__).resolve().parent.parent


def _write_digits(directory, count, size=28):
  images, labels = digits.arrays()
  for number, (image, label) in enumerate(zip(images[:count], labels)):
    path = directory / str(label) / f'{number}.png'
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray((image * (255 // 16)).astype(np.uint8))
    picture.resize((size, size), Image.Resampling.BICUBIC).save(path)
  return directory


def _write_patches(directory, count, size=64):
  """Two textures of other colors."""
  random = np.random.RandomState(0)
  for name, color in (('china', (160, 170, 180)), ('flower', (200, 60, 30))):
    for number in range(count):
      noise = random.randint(-50, 51, (size, size, 1))
      pixels = np.clip(np.array(color) + noise, 0, 255).astype(np.uint8)
      path = directory / name / f'{number}.png'
      path.parent.mkdir(parents=True, exist_ok=True)
      Image.fromarray(pixels).save(path)
  return directory


@pytest.fixture
def choose(capsys):
  def choose(*arguments):
    """Returns (exit code, flags, what was said)."""
    code = own_images.main(['own_images.py', *map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out.splitlines(), captured.err.splitlines()

  return choose


def test_digits(tmp_path, choose):
  _write_digits(tmp_path, 200)
  code, flags, says = choose(tmp_path, '--num_gpus=0')
  assert code == 0
  _, params = flag_parsing.parse(flags)
  params.check()
  assert params.input_data.train_split == '.[:80%]'
  assert params.input_data.eval_split == '.[80%:]'
  assert not params.input_data.preprocessing.random_flip
  assert params.input_data.preprocessing.image_size == 28
  assert params.architecture.first_conv_stride == 1
  assert params.batch_size == 64  # Two batches of 160 images and more.
  assert len(says) == 5
  assert '160 to train on, 10 classes of 1' in says[0] and 'grey' in says[0]
  assert 'told apart by orientation' in says[2]
  assert 'CPU core' in says[3]
  assert '--eval_split=.[80%:]' in says[4]


def test_patches_in_color_with_a_split_of_their_own(tmp_path, choose):
  _write_patches(tmp_path / 'train', 30)
  _write_patches(tmp_path / 'val', 5)
  code, flags, says = choose(tmp_path, '--num_gpus=0', '--seed=3')
  assert code == 0
  assert '--eval_split=val' in flags and '--random_flip=True' in flags
  assert '--image_size=64' in flags
  assert len(says) == 4 and '10 to evaluate on' in says[0]


def test_given_flags_are_left_alone(tmp_path, choose):
  _write_patches(tmp_path, 20, size=230)
  given = ('--image_size=32', '--batch_size=8', '--num_gpus=0')
  code, flags, _ = choose(tmp_path, *given)
  assert code == 0
  assert not [flag for flag in flags if flag.startswith('--image_size')]
  assert not [flag for flag in flags if flag.startswith('--batch_size')]
  assert '--resnet_depth=18' in flags


def test_all_mistakes_are_told_at_once(tmp_path, choose):
  (tmp_path / 'cat').mkdir()
  (tmp_path / 'cat' / '1.png').write_bytes(b'no image')
  (tmp_path / 'dog').mkdir()
  code, flags, says = choose(tmp_path, '--epochs=3')
  assert code == 2 and not flags
  assert len(says) == 2
  assert '--epochs is no flag here' in says[0]
  assert 'without images' in says[1] and 'dog' in says[1]


@pytest.mark.parametrize(
  'flag, message',
  [
    ('--resnet_depth=19', '--resnet_depth=19 does not exist'),
    ('more', "'more' is no flag"),
    ('--mode=fly', 'value should be one of'),
    ('--train_split=.[:50%]', 'name the part to evaluate on, too'),
    ('--train_split=china', 'china holds no folders of classes'),
  ],
)
def test_wrong_flags_are_told(tmp_path, choose, flag, message):
  _write_patches(tmp_path, 10, size=16)
  code, flags, says = choose(tmp_path, flag)
  assert code == 2 and not flags
  assert message in says[0]


@pytest.mark.parametrize('arguments', [(), ('--seed=1',)])
def test_says_how_it_is_used(choose, arguments):
  code, _, says = choose(*arguments)
  assert code == 2
  assert len(says) == 1 and 'usage: scripts/own_images.sh DIR' in says[0]


# -------------------------------------------------------------- the script

# Stands in for the interpreter: chooses two flags, and shows what main.py gets.
_PYTHON = f"""#!/bin/bash
if [[ "$1" == */own_images.py ]]; then
  [[ "$2" != *wrong ]] || {{ echo mistake >&2; exit 2; }}
  printf '%s\\n' --batch_size=8 '--data_dir=a b'
else
  exec '{sys.executable}' -S -c 'import json, sys
print(json.dumps(sys.argv[1:]))' "$@"
fi
"""


def _run(*arguments, cwd, python):
  return subprocess.run(
    [str(_ROOT / 'scripts' / 'own_images.sh'), *arguments],
    cwd=cwd,
    env={**os.environ, 'PYTHON': str(python)},
    capture_output=True,
    text=True,
    timeout=1200,
  )


@pytest.fixture
def python(tmp_path):
  path = tmp_path / 'python'
  path.write_text(_PYTHON)
  path.chmod(0o755)
  return path


def test_the_script_passes_the_choice_and_then_the_users_flags(
  tmp_path, python
):
  (tmp_path / 'my digits').mkdir()
  flags = ['--batch_size=4', '--seed=2']
  result = _run('my digits', *flags, cwd=tmp_path, python=python)
  assert result.returncode == 0, result.stderr
  main, *arguments = json.loads(result.stdout)
  assert main == str(_ROOT / 'main.py')
  assert arguments[-4:] == ['--batch_size=8', '--data_dir=a b', *flags]
  assert '--mode=train_then_eval' in arguments
  (model_dir,) = [a for a in arguments if a.startswith('--model_dir=')]
  assert model_dir.startswith(f'--model_dir={_ROOT}/runs/my_digits-')
  flag_parsing.parse(arguments)
  # Other flags or another directory: another run. The same: the same one.
  directories = {model_dir}
  (tmp_path / 'x' / 'my digits').mkdir(parents=True)
  for other in (['my digits'], ['x/my digits', *flags]):
    result = _run(*other, cwd=tmp_path, python=python)
    directories |= {
      a for a in json.loads(result.stdout) if a.startswith('--model_dir=')
    }
  assert len(directories) == 3
  result = _run(str(tmp_path / 'my digits'), *flags, cwd='/', python=python)
  assert model_dir in json.loads(result.stdout)


def test_the_script_ends_where_something_is_wrong(tmp_path, python):
  result = _run('wrong', cwd=tmp_path, python=python)
  assert (result.returncode, result.stdout) == (2, '')
  assert result.stderr == 'mistake\n'


@pytest.mark.slow
def test_the_script_trains_evaluates_and_exports(tmp_path):
  _write_patches(tmp_path / 'images', 40)
  model_dir = tmp_path / 'run'
  result = _run(
    str(tmp_path / 'images'),
    f'--model_dir={model_dir}',
    '--stage_1_epochs=4',
    '--num_gpus=0',
    '--report_examples=0',  # Reports have a test of their own.
    cwd=tmp_path,
    python=sys.executable,
  )
  assert result.returncode == 0, result.stderr
  found = json.loads((model_dir / 'result.json').read_text())
  assert found['num_examples'] == 16  # A fifth of 40, of each of two.
  assert found['metrics']['top_1_accuracy'] > 0.9
  assert len(list((model_dir / 'exports').iterdir())) == 1
  assert 'network: ResNet-18' in result.stderr
