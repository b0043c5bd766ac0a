"""The quickstart's job in short, on the Python and TensorFlow that run this.

  VENV=ENVIRONMENT ENVIRONMENT/bin/python -m tests.quick_job

Trains, evaluates, exports and reports; continues the run to a later end;
exports again; and classifies an image. Needs the packages of requirements.txt
alone.
"""

import json
import os
import pathlib
import platform
import re
import sys
import tempfile

from PIL import Image
import tensorflow as tf

from tests import command

_QUICKSTART = command.ROOT / 'scripts' / 'quickstart.sh'
_FLAGS = {
  'stage_1_epochs': 3,
  'stage_1_warmup_epochs': 0,
  'stage_2_epochs': 1,
}
_OURS = re.compile(r'\d\d:\d\d:\d\d ')  # How our own lines begin.


def main():
  with tempfile.TemporaryDirectory() as directory:
    directory = pathlib.Path(directory)
    model_dir = directory / 'run'
    places = {'model_dir': model_dir, 'data_dir': directory / 'data'}

    def run(flags, program=command.MAIN):
      finished = command.succeed(
        flags,
        directory,
        program=program,
        is_forked=False,
        VENV=os.environ['VENV'],
      )
      # No library is to say anything that nobody has asked for.
      lines = finished.stderr.splitlines()
      noise = [line for line in lines if not _OURS.match(line)]
      assert not noise, noise
      return finished

    run({**_FLAGS, **places}, program=_QUICKSTART)
    before = json.loads((model_dir / 'result.json').read_text())
    assert before['num_examples'] == 360, before

    finished = run(
      {**_FLAGS, **places, 'stage_2_epochs': 3}, program=_QUICKSTART
    )
    after = json.loads((model_dir / 'result.json').read_text())
    assert before['global_step'] < after['global_step'], (before, after)
    # It has not begun anew: stage 1 is not trained again.
    assert not any('stage 1' in line for line in finished.log), finished.log
    assert after['metrics']['top_1_accuracy'] > 0.15, after
    report = json.loads((model_dir / 'report' / 'report.json').read_text())
    assert report['run']['step'] == after['global_step'], report['run']

    run({'mode': 'export', 'model_dir': model_dir})
    # The one of each evaluation, and this one.
    assert len(list((model_dir / 'exports').iterdir())) == 3

    Image.new('L', (8, 8), 128).save(directory / 'image.png')
    flags = {'images': directory / 'image.png', 'model_dir': model_dir}
    finished = run({'mode': 'predict', **flags})
    assert 'image.png' in finished.stdout, finished.stdout
  print(
    f'Python {platform.python_version()}, TensorFlow {tf.__version__}: '
    f'top-1 {after["metrics"]["top_1_accuracy"]:.2%} after '
    f'{after["global_step"]} steps'
  )


if __name__ == '__main__':
  sys.exit(main())
