"""Finds and records the bad images that a run skips."""

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
  """The bad images, from the record or from a scan of all images.

  {part: {'examples': fingerprint of the split, 'positions', 'bad_images'}}.
  bad_images.json is written by training. Another job writes what it has found
  in its own evaluation images to eval/bad_images.json.
  """

  def __init__(self, model_dir: model_dirs.ModelDir):
    self._model_dir = model_dir
    self.found: dict[str, dict[str, Any]] = {}

  def find(
    self, dataset: datasets.Dataset, parts: Sequence[str] = PARTS
  ) -> datasets.Dataset:
    """Returns the data set without bad images.

    Args:
      dataset: The data set with all images.
      parts: The parts to look at, some of `PARTS`.

    Raises:
      ValueError: If no image would be left, or if a file that holds several
        images is damaged.
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
    """Returns the earlier result for the same images, or None."""
    for name in (model_dirs.BAD_IMAGES, model_dirs.EVAL_BAD_IMAGES):
      entry = (self._model_dir.read_json(name) or {}).get(part, {})
      if entry.get('examples') == split.fingerprint:
        return entry
    return None

  def count(self, part: str) -> int:
    """Returns the number of bad images skipped in a part."""
    return len(self.found.get(part, {}).get('positions', ()))

  def keep(self) -> None:
    """Records the bad images of the evaluation, unless a file has them."""
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
    """Logs a reminder of the bad images of a part, if there are any.

    Args:
      part: One of `PARTS`.
      dataset: The data set.
      output: The directory that the job writes to.
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
