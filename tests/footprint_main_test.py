"""End-to-end tests: a step that does not fit is refused before anything."""

import io

from PIL import Image
import pytest

from tests import command

_FLAGS = {'use_tpu': False, 'mode': 'train_then_eval', 'input_fn': 'folder'}
_COMMANDS = {
  # What a new user types.
  'default': {},
  'evaluation': {'batch_size': 8, 'eval_batch_size': 4096},
}


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
  """Each command on 3,000 images of 28 x 28 pixels."""
  directory = tmp_path_factory.mktemp('footprint')
  image = io.BytesIO()
  Image.new('RGB', (28, 28), (9, 99, 199)).save(image, 'PNG')
  for split, count in (('train', 1500), ('val', 5)):
    for name in ('cat', 'dog'):
      folder = directory / 'data' / split / name
      folder.mkdir(parents=True)
      for number in range(count):
        (folder / f'{number}.png').write_bytes(image.getvalue())
  flags = {**_FLAGS, 'data_dir': directory / 'data'}
  commands = [
    {**flags, 'model_dir': directory / name, **more}
    for name, more in _COMMANDS.items()
  ]
  finished = command.run_many(commands, directory)
  for name in _COMMANDS:
    assert not (directory / name).exists()
  return dict(zip(_COMMANDS, finished, strict=True))


@pytest.mark.parametrize(
  'name, words',
  [
    (
      'default',
      [
        '--batch_size=2048 with --image_size=224 makes a tensor of 4096 x 112',
        'less than 2^31',
        'try --batch_size=',
      ],
    ),
    (
      'evaluation',
      [
        '--eval_batch_size=4096 with --image_size=224 makes a tensor of 8192 x',
        'try --eval_batch_size=',
      ],
    ),
  ],
)
def test_it_ends_in_seconds_with_one_line(runs, name, words):
  run = runs[name]
  assert run.returncode == 2, run.stderr
  assert run.stdout == ''
  assert run.stderr.count('\n') == 1
  assert run.stderr.startswith('main.py: error: --')
  for word in words:
    assert word in run.stderr
