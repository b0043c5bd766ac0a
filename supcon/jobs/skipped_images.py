"""The bad images that a run goes without."""

from collections.abc import Sequence
import dataclasses
import os
from typing import Any

from absl import logging
import tensorflow as tf

from supcon.data.sources import datasets
from supcon.data.sources import faults
from supcon.runs import model_dirs

PARTS = ('train', 'evaluation')


class Skipped:
  """Which ones there are, by what was written down or by looking at all.

  {part: {'examples': fingerprint of the split, 'positions', 'bad_images'}}.
  bad_images.json holds those of the training; what another job has found in
  evaluation images of its own is written to eval/bad_images.json.
  """

  def __init__(self, model_dir: model_dirs.ModelDir):
    self._model_dir = model_dir
    self.found: dict[str, dict[str, Any]] = {}

  def find(
    self, dataset: datasets.Dataset, parts: Sequence[str] = PARTS
  ) -> datasets.Dataset:
    """Returns the data set without bad images.

    Args:
      dataset: With all images.
      parts: Those of `PARTS` that are looked at.

    Raises:
      ValueError: If none would be left, or a file of several is damaged.
    """
    for part in parts:
      split = getattr(dataset, part)
      entry = self._recorded(part, split)
      if not entry:
        bad = faults.find(split)
        entry = {
          'examples': split.fingerprint,
          'positions': bad,
          'bad_images': [split.where(position) for position in bad],
        }
      self.found[part] = entry
      rest = faults.without(split, entry['positions'])
      dataset = dataclasses.replace(dataset, **{part: rest})
    return dataset

  def _recorded(self, part, split):
    """Returns what was found in the same images before, or None."""
    for name in (model_dirs.BAD_IMAGES, model_dirs.EVAL_BAD_IMAGES):
      entry = (self._model_dir.read_json(name) or {}).get(part, {})
      if entry.get('examples') == split.fingerprint:
        return entry
    return None

  def count(self, part: str) -> int:
    """Returns how many bad images a part went without."""
    return len(self.found.get(part, {}).get('positions', ()))

  def keep(self) -> None:
    """Writes down those of the evaluation, if nothing says them yet."""
    entry = self.found.get('evaluation')
    if entry and not self._is_recorded('evaluation', self._model_dir):
      path = self._model_dir.join(model_dirs.EVAL_BAD_IMAGES)
      tf.io.gfile.makedirs(os.path.dirname(path))
      self._model_dir.write_json(
        model_dirs.EVAL_BAD_IMAGES, {'evaluation': entry}
      )

  def report(
    self, part: str, dataset: datasets.Dataset, output: model_dirs.ModelDir
  ) -> None:
    """Reminds of the bad images of a part, if there are any.

    Args:
      part: One of `PARTS`.
      dataset: The data set.
      output: Where the job writes.
    """
    if count := self.count(part):
      name = model_dirs.EVAL_BAD_IMAGES
      if self._is_recorded(part, output):
        name = model_dirs.BAD_IMAGES
      logging.warning(
        'WARNING: %d bad images of split %s were skipped; %s lists them',
        count,
        getattr(dataset, part).name,
        output.join(name),
      )

  def _is_recorded(self, part, directory):
    recorded = directory.read_json(model_dirs.BAD_IMAGES) or {}
    return recorded.get(part) == self.found[part]
