"""Corrupted copies of an evaluation set, one for each corruption and severity.

They are folders, CORRUPTION/SEVERITY/CLASS/IMAGE as in ImageNet-C, or data sets
that TFDS has prepared, NAME/CORRUPTION_SEVERITY.
"""

import collections
from collections.abc import Iterable
import dataclasses
import os
import re

import tensorflow as tf
import tensorflow_datasets as tfds

from supcon.config import safe_text
from supcon.data.sources import datasets
from supcon.data.sources import folder
from supcon.data.sources import listing
from supcon.data.sources import prepared
from supcon.data.sources import splits

_TFDS = 'tfds:'
_EXPECTED = (
  f'CORRUPTION/SEVERITY/CLASS/*{{{",".join(listing.COMMON_ENDINGS)}}} with '
  'severities 1, 2, ...'
)


@dataclasses.dataclass(frozen=True)
class Corrupted:
  """The images of an evaluation set under one corruption at one severity."""

  corruption: str
  severity: int
  source: splits.Source

  @property
  def name(self) -> str:
    return f'{self.corruption}/{self.severity}'


def is_of_tfds(name: str) -> bool:
  return name.startswith(_TFDS)


def called(name: str) -> str:
  """Returns a short name of a set of corruptions, for files and titles."""
  name = os.path.basename(name.removeprefix(_TFDS).rstrip('/'))
  return re.sub(r'[^\w.-]+', '_', name)


def find(
  name: str, data_dir: str | None, max_examples: int = 0
) -> list[Corrupted]:
  """Lists the images of every corruption at every severity.

  Args:
    name: A directory, local or gs://; or tfds:NAME.
    data_dir: The directory of TFDS's data sets; None means TFDS's own default.
    max_examples: Maximum number of images of each set; <= 0 means all.

  Returns:
    In the order of the names, and of the severities.

  Raises:
    ValueError: If there are none, the layout is another one, a corruption lacks
      a severity that others have, or one of them lacks classes.
  """
  found = _of_tfds(name, data_dir) if is_of_tfds(name) else _of_folder(name)
  classes = {each.name: {*each.source.class_names} for each in found}
  every = set().union(*classes.values())
  for each, names in classes.items():
    if missing := sorted(every - names):
      raise ValueError(
        f'--corruptions={name}: {each} lacks {len(missing)} of the '
        f'{len(every)} classes of the others ({splits.listed(missing)}); '
        'complete it.'
      )
  return [
    dataclasses.replace(each, source=_first(each.source, max_examples))
    for each in found
  ]


def _first(source, count):
  split = datasets.first(source.evaluation, count)
  return source._replace(train=split, evaluation=split)


def _in_order(found: Iterable[tuple[str, int]]) -> list[tuple[str, int]]:
  """Returns the corruptions and severities in order; checks that all exist.

  Raises:
    ValueError: If a corruption lacks a severity.
  """
  severities = collections.defaultdict(set)
  for corruption, severity in found:
    severities[corruption].add(severity)
  every = sorted(set().union(*severities.values()))
  missing = [
    f'{corruption}/{severity}'
    for corruption in sorted(severities)
    for severity in every
    if severity not in severities[corruption]
  ]
  if missing:
    raise ValueError(
      f'{len(missing)} of {len(severities)} corruptions x {len(every)} '
      f'severities are missing ({splits.listed(missing)})'
    )
  return [(c, s) for c in sorted(severities) for s in every]


# --- Folders ------------------------------------------------------------------


def _of_folder(root):
  if not tf.io.gfile.isdir(root):
    raise ValueError(
      f'--corruptions={root} is not a directory; name one that holds '
      f'{_EXPECTED}, or {_TFDS}NAME for a data set of TFDS.'
    )
  found = []
  corruptions = listing.folders(root)
  for corruption in corruptions:
    names = listing.folders(os.path.join(root, corruption))
    other = [n for n in names if not re.fullmatch(r'[1-9]\d*', n)]
    if other or not names:
      what = os.path.join(corruption, *other[:1])
      raise ValueError(
        f'--corruptions={root} holds {safe_text.printable(what)}'
        f'{"" if other else ", without folders"}; expected {_EXPECTED}.'
      )
    found += [(corruption, int(name)) for name in names]
  if not corruptions:
    raise ValueError(
      f'--corruptions={root} holds no folders; expected {_EXPECTED}.'
    )
  try:
    found = _in_order(found)
  except ValueError as error:
    raise ValueError(
      f'--corruptions={root}: {error}; complete them, or move what is '
      'incomplete elsewhere.'
    ) from error
  result, files = [], {}
  for corruption, severity in found:
    source = folder.load_evaluation(root, f'{corruption}/{severity}')
    # The files mostly have the same names everywhere: those of 75 sets take a
    # third of a gigabyte.
    split = source.evaluation
    split = dataclasses.replace(
      split, files=files.setdefault(split.files, split.files)
    )
    source = source._replace(train=split, evaluation=split)
    result.append(Corrupted(corruption, severity, source))
  return result


# --- TFDS ---------------------------------------------------------------------


def _of_tfds(name, data_dir):
  wanted = name.removeprefix(_TFDS)
  data_dir = data_dir or datasets.default_data_dir()
  parent = os.path.join(data_dir, wanted)
  directories = {}
  for config in prepared.directory_names(parent):
    match = re.fullmatch(r'(.+)_([1-9]\d*)', config)
    directory = match and prepared.find(wanted, config, '*.*.*', data_dir)
    if directory:
      directories[match[1], int(match[2])] = directory
  prepare = (
    'prepare all with: python -c "import tensorflow_datasets as tfds; '
    f"[tfds.builder('{wanted}/' + c, data_dir='{data_dir}')"
    '.download_and_prepare() for c in '
    f"tfds.builder_cls('{wanted}').builder_configs]\""
  )
  if not directories:
    raise ValueError(
      f'--corruptions={name}: {parent} holds no data set '
      f'CORRUPTION_SEVERITY/VERSION; name its parent with --data_dir, or '
      f'{prepare}.'
    )
  try:
    found = _in_order(directories)
  except ValueError as error:
    raise ValueError(
      f'--corruptions={name}: {error} in {parent}; {prepare}.'
    ) from error
  return [
    Corrupted(*each, prepared.load_evaluation(directories[each]))
    for each in found
  ]


def not_prepared(name: str, found: Iterable[Corrupted]) -> list[str]:
  """Returns the corruptions of a data set of TFDS besides those found."""
  if not is_of_tfds(name):
    return []
  try:
    configs = tfds.builder_cls(name.removeprefix(_TFDS)).builder_configs
  except (tfds.core.DatasetNotFoundError, ValueError):
    return []
  known = {re.sub(r'_\d+$', '', config) for config in configs}
  return sorted(known - {each.corruption for each in found})
