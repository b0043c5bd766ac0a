"""Time of --mode=compare for many runs.

python -m tests.benchmarks.compare [--runs 100]
"""

import argparse
import pathlib
import tempfile

from supcon.runs import event_files
from supcon.runs import model_dirs
from tests import command
from tests import made_runs


def main():
  parser = argparse.ArgumentParser()
  parser.add_argument('--runs', type=int, default=100)
  num_runs = parser.parse_args().runs
  # As many records as those of 1,000 epochs of 1,000 steps.
  rows = {step: {'loss': 1.0, 'top_1_accuracy': 0.5} for step in range(10000)}
  metrics = event_files.table(
    rows, event_files.TRAINING_COLUMNS, lambda step: (step / 10, 1)
  )
  with tempfile.TemporaryDirectory() as directory:
    directory = pathlib.Path(directory)
    for number in range(num_runs):
      path = directory / 'runs' / f'{number}'
      made_runs.train(path, t=0.01 * (number // 5 + 1), seed=number % 5)
      (path / model_dirs.METRICS).write_text(metrics)
      for step in range(1, made_runs.LAST_STEP + 1):
        made_runs.evaluate(path, 0.9 + number / 10000, step, loss=0.1)
    flags = {'mode': 'compare', 'runs': directory / 'runs'}
    for output in ('', directory / 'out'):
      finished = command.succeed({**flags, 'output': output}, directory)
      print(
        f'{num_runs} runs, {"with" if output else "without"} files: '
        f'{finished.seconds:.2f} s'
      )


if __name__ == '__main__':
  main()
