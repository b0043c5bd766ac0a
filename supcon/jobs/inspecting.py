"""Shows the images that training sees, and profiles the input pipeline."""

import shlex
import sys

from supcon.config import hparams
from supcon.config import run_options
from supcon.data.sources import faults
from supcon.jobs import announcing
from supcon.jobs import checked_runs
from supcon.reports import contact_sheet
from supcon.reports import pipeline_costs


class InspectData:
  """--mode=inspect_data."""

  def __init__(self, options: run_options.RunOptions, params: hparams.HParams):
    self._run = checked_runs.prepare(options, params)

  def announce(self) -> None:
    announcing.announce(self._run)

  def run(self) -> None:
    """Writes the contact sheet and inspect_data.json, and prints the timings.

    Raises:
      faults.BadExampleError: If an image cannot be decoded.
    """
    run, output = self._run, self._run.output
    with faults.naming(run.dataset.train):
      sheet = contact_sheet.make(run.dataset, run.params)
      path = sheet.write(output.path)
      speed = pipeline_costs.measure(run.dataset, run.params)
    output.write_json(
      'inspect_data.json',
      {'contact_sheet': sheet.to_json(), 'speed': speed.to_json()},
    )
    run.skipped.report('train', run.dataset, output)
    logdir = ['-m', 'tensorboard.main', '--logdir', output.path]
    print(
      f'\n{speed.describe()}\n\n{sheet.describe()}\n\n'
      f'Contact sheet: {path}\n'
      f'Its rows, and the figures: {output.join("inspect_data.json")}\n'
      f'TensorBoard: {shlex.join([sys.executable, *logdir])}',
      flush=True,
    )
