"""Exports a model: --mode=export."""

import os

from absl import logging

from supcon.config import hparams
from supcon.config import run_options
from supcon.data.sources import datasets
from supcon.jobs import evaluation
from supcon.jobs import evaluation_records
from supcon.jobs import reporting
from supcon.jobs import trained_run
from supcon.runs import model_dirs
from supcon.serving import exports
from supcon.training import facts


class Export:
  """--mode=export: exports the newest checkpoint."""

  def __init__(self, options: run_options.RunOptions, params: hparams.HParams):
    self._options = options
    self._model_dir = model_dirs.ModelDir(options.model_dir)
    self._model = trained_run.find_model(options, params)

  def announce(self) -> None:
    logging.info(
      'exporting %s as %s',
      self._model.checkpoint,
      ', '.join(self._options.formats),
    )

  def run(self) -> None:
    """Writes the export and prints its path."""
    export = exports.write(
      self._model,
      self._model_dir.join(model_dirs.EXPORTS),
      self._options.formats,
      self._options.exports_to_keep,
      self._facts(),
      kept=evaluation_records.kept_exports(self._model_dir),
    )
    places = {
      'SavedModel': export.saved_model,
      'Hub module': export.hub_module,
      'Model card': os.path.join(export.path, 'model_card.md'),
    }
    for name, place in places.items():
      if place:
        print(f'{name + ":":<12}{place}')

  def _facts(self):
    """Returns the facts about the model, with metrics if it was evaluated."""
    known = facts.find(self._model_dir, self._model.checkpoint)
    input_fn = self._model.params.input_data.input_fn
    found = {'dataset': input_fn, 'data_name': datasets.called(input_fn)}
    if known:
      found = facts.of_export(known)
    result = self._model_dir.read_json(model_dirs.RESULT) or {}
    fingerprint = self._model.fingerprint
    if (
      result.get('global_step') == self._model.step
      and result.get('fingerprint', fingerprint) == fingerprint
    ):
      found.update(evaluation.facts_of_evaluation(result))
    if metrics := reporting.measured(self._model_dir, fingerprint):
      found['metrics'] = {**found.get('metrics', {}), **metrics}
    return found
