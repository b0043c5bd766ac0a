"""Tests of what a run says of mirror images that lose their class."""

import numpy as np
from PIL import Image
import pytest

from supcon.config import hparams
from supcon.config import run_options
from supcon.data.sources import digits
from supcon.jobs import announcing
from supcon.jobs import checked_runs

_PARAMS = (
  hparams.HParams()
  .replace('batch_size', 16)
  .replace('input_data.input_fn', 'folder')
  .replace('input_data.eval_split', 'train')
  .replace('input_data.preprocessing.image_size', 8)
  .replace('input_data.preprocessing.apply_whitening', False)
)


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
  """Two hundred digits, in a folder for each class."""
  directory = tmp_path_factory.mktemp('digits')
  images, labels = digits.arrays()
  for number, (image, label) in enumerate(zip(images[:200], labels)):
    path = directory / 'train' / str(label) / f'{number}.png'
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((image * (255 // 16)).astype(np.uint8)).save(path)
  return str(directory)


def _announced(warnings, model_dir, data_dir, params, mode='inspect_data'):
  """Returns what was warned of, of flips."""
  options = run_options.RunOptions(
    mode=mode, model_dir=str(model_dir), data_dir=data_dir, use_tpu=False
  )
  announcing.announce(checked_runs.prepare(options, params))
  return [line for line in warnings if 'mirror' in line]


@pytest.mark.parametrize('mode', ['inspect_data', 'train'])
def test_a_new_run_and_an_inspection_advise_against_flips(
  tmp_path, data_dir, warnings, mode
):
  (line,) = _announced(warnings, tmp_path, data_dir, _PARAMS, mode)
  assert line.startswith('WARNING: the classes look as if they were told apart')
  assert 'of 200 images' in line and '--random_flip=False' in line


@pytest.mark.parametrize(
  'field, value',
  [
    ('preprocessing.random_flip', False),
    ('preprocessing.train_on_eval_views', True),
    # Of these it is known that they are not flipped.
    ('input_fn', 'digits'),
  ],
)
def test_nothing_is_said_where_nothing_is_flipped(
  tmp_path, data_dir, warnings, field, value
):
  params = _PARAMS.replace(f'input_data.{field}', value)
  if value == 'digits':
    data_dir = str(tmp_path / 'data')
  assert not _announced(warnings, tmp_path / 'run', data_dir, params)
