"""Exports a model in the formats that other programs use.

DIRECTORY/TIME/, with the time in seconds since 1970, holds

  saved_model.pb, variables/: the SavedModel, if it is among the formats.
  assets.extra/: labels.txt, and whitening.json if images are whitened.
  hub/: the TF-Hub module, if it is among the formats, with its own labels.txt
    and model_card.md.
  tfhub_module.pb: if that is the only format, so that hub.Module can say where
    the module is.
  model_card.md: a description of the model and its use, for people.
  export.json: the same for programs, with all hyper-parameters.
  labels.txt: the names of the classes, one per line, in the order of the
    logits.

It is written to a temporary directory and renamed when it is complete. Only
tf.io.gfile is used, because DIRECTORY may be on an object store.
"""

from collections.abc import Collection
from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import gc
import os
import pathlib
import re
import subprocess
import time
from typing import Any, NamedTuple
import uuid

from absl import logging
import numpy as np
import tensorflow as tf

import supcon
from supcon.config import run_options
from supcon.runs import model_dirs
from supcon.runs import storage
from supcon.serving import hub_module
from supcon.serving import model_card
from supcon.serving import saved_model
from supcon.serving import trained_models
from supcon.training import checkpoints

FACTS = 'export.json'
CARD = 'model_card.md'
LABELS = 'labels.txt'
WHITENING = 'whitening.json'

_HUB = 'hub'
_ASSETS = 'assets.extra'

_TIME = re.compile(r'[0-9]+')
_TEMPORARY = re.compile(r'temp-([0-9]+)(-.*)?')
_SECONDS_OF_A_DAY = 24 * 60 * 60


class Export(NamedTuple):
  """The paths of an export.

  Attributes:
    path: DIRECTORY/TIME.
    saved_model: The directory of the SavedModel; None without that format.
    hub_module: The directory of the TF-Hub module; None without that format.
  """

  path: str
  saved_model: str | None
  hub_module: str | None


def write(
  model: trained_models.TrainedModel,
  directory: str,
  formats: Sequence[str],
  to_keep: int,
  facts: Mapping[str, Any],
  kept: Collection[str] = (),
) -> Export:
  """Exports a model, and then removes the oldest exports.

  If it is killed at any moment, every directory named by a time is complete.
  (On an object store a directory is renamed file by file: there the new one may
  be incomplete, but earlier ones are complete.) Temporary directories of killed
  processes are removed after a day, when no process can still be writing them.

  Args:
    model: The model.
    directory: The directory of all exports of a run; created if necessary.
    formats: One or more of run_options.EXPORT_FORMATS.
    to_keep: Maximum number of exports to keep; 0 for all. Exports newer than
      this one, and directories whose names are not numbers, are not touched.
    facts: The known facts of the training, such as dataset, train_split,
      eval_split, num_train_examples, num_eval_examples, total_steps, metrics
      {name: float}. Unknown facts are absent.
    kept: See `prune`.

  Raises:
    ValueError: If a format does not exist, or the checkpoint belongs to another
      model.
    tf.errors.OpError: If a file cannot be read or written.
  """
  _check(formats, to_keep)
  begun = time.time()
  card = _card(model, facts)
  aside = os.path.join(directory, f'temp-{int(begun)}-{uuid.uuid4().hex[:8]}')
  tf.io.gfile.makedirs(aside)
  try:
    if 'saved_model' in formats:
      saved_model.write(model, aside)
      _write_assets(model, os.path.join(aside, _ASSETS))
    if 'hub' in formats:
      # The SavedModel's graphs are reference cycles that keep all variables.
      gc.collect()
      hub_module.write(model, os.path.join(aside, _HUB))
      if 'saved_model' not in formats:
        hub_module.write_signpost(aside, _HUB)
    for name, text in _texts(formats, card):
      _write_text(aside, name, text)
    export = _publish(aside, directory, int(begun), formats)
  except BaseException:
    with contextlib.suppress(tf.errors.OpError):
      tf.io.gfile.rmtree(aside)
    raise
  logging.info(
    'exported step %d to %s in %.0f s',
    model.step,
    export.path,
    time.time() - begun,
  )
  prune(directory, export.path, to_keep, kept)
  return export


def describe(
  export: Export, model: trained_models.TrainedModel, facts: Mapping[str, Any]
) -> None:
  """Describes an export anew, with facts that were found since.

  Each file is replaced as a whole.

  Args:
    export: The export.
    model: The model that was exported.
    facts: See `write`.

  Raises:
    tf.errors.OpError: If a file cannot be written.
  """
  formats = [
    name
    for name, path in zip(run_options.EXPORT_FORMATS, export[1:])
    if path is not None
  ]
  directory = model_dirs.ModelDir(export.path)
  for name, text in _texts(formats, _card(model, facts)):
    directory.write(name, text)


def _card(model, facts):
  """Returns the description of a model; checks that its checkpoint fits."""
  with tf.Graph().as_default():
    network = model.build()
    checkpoints.require_same(
      network.variables, [network.name], model.checkpoint
    )
  return model_card.Card(
    model,
    embedding_size=network.encoder.embedding_size,
    num_parameters=sum(
      int(np.prod(variable.shape)) for variable in network.trainable_variables
    ),
    facts=facts,
    version=supcon.__version__,
    commit=commit(),
  )


def _check(formats, to_keep):
  unknown = sorted({*formats} - {*run_options.EXPORT_FORMATS})
  if unknown or not formats:
    found = repr(unknown[0]) if unknown else 'none'
    raise ValueError(
      f'found export format {found}; give one or more of '
      f'{", ".join(run_options.EXPORT_FORMATS)}.'
    )
  if to_keep < 0:
    raise ValueError(
      f'found {to_keep} exports to keep; give a positive number, or 0 to keep '
      'all.'
    )


# ------------------------------------------------------------ what is written


def _write_assets(model, path):
  _write_text(path, LABELS, _labels(model))
  if model.mean is not None:
    whitening = {'mean': list(model.mean), 'std': list(model.std)}
    _write_text(path, WHITENING, storage.to_json(whitening))


def _texts(formats, card):
  """Yields (path in the export, text): the description of the model."""
  saved_model_path = '.' if 'saved_model' in formats else None
  hub_path = _HUB if 'hub' in formats else None
  yield FACTS, storage.to_json(_facts(card, formats))
  yield LABELS, _labels(card.model)
  yield CARD, card.text(saved_model_path, hub_path)
  if hub_path:
    yield os.path.join(_HUB, LABELS), _labels(card.model)
    yield os.path.join(_HUB, CARD), card.text(None, '.')


def _labels(model):
  return ''.join(f'{name}\n' for name in model.class_names)


def _facts(card, formats):
  """Returns the content of export.json."""
  model = card.model
  return {
    'formats': [name for name in run_options.EXPORT_FORMATS if name in formats],
    'checkpoint': os.path.basename(model.checkpoint),
    'global_step': model.step,
    **card.facts,
    'image_size': model.image_size,
    'num_classes': model.num_classes,
    'embedding_size': card.embedding_size,
    'num_parameters': card.num_parameters,
    'mean': model.mean,
    'std': model.std,
    'version': card.version,
    'commit': card.commit,
    'hparams': model.params.to_json(),
    'compact': model.params.serialize(),
  }


def commit() -> str | None:
  """Returns the commit of this code, with '-dirty' if it has changed.

  None if it is not in a git checkout, or git fails.
  """
  root = pathlib.Path(supcon.__file__).resolve().parent.parent
  # Installed code may be inside the checkout of another project.
  if not (root / '.git').exists():
    return None
  command = ('git', 'describe', '--always', '--dirty', '--abbrev=40')
  try:
    done = subprocess.run(
      [*command, '--exclude=*'],
      cwd=root,
      stdin=subprocess.DEVNULL,
      capture_output=True,
      text=True,
      timeout=10,
      check=True,
    )
  except (OSError, subprocess.SubprocessError, UnicodeError):
    return None
  return done.stdout.strip() or None


def _write_text(directory, name, text):
  tf.io.gfile.makedirs(directory)
  with tf.io.gfile.GFile(os.path.join(directory, name), 'w') as file:
    file.write(text)


# ------------------------------------------------------------------- where


def _publish(aside, directory, begun, formats):
  """Renames the temporary directory to the first unused second."""
  second = begun
  while True:
    path = os.path.join(directory, str(second))
    second += 1
    if tf.io.gfile.exists(path):
      continue
    export = Export(
      path,
      saved_model=path if 'saved_model' in formats else None,
      hub_module=os.path.join(path, _HUB) if 'hub' in formats else None,
    )
    try:
      tf.io.gfile.rename(aside, path)
    except (tf.errors.AlreadyExistsError, tf.errors.FailedPreconditionError):
      if not tf.io.gfile.exists(path):
        raise
      continue  # Another process was faster.
    return export


def prune(
  directory: str, newest: str, to_keep: int, kept: Collection[str] = ()
) -> None:
  """Removes the oldest exports, and leftovers of killed ones.

  Args:
    directory: The directory of all exports of a run.
    newest: Path of the newest export that counts; see `write`.
    to_keep: Maximum number of exports to keep; 0 for all.
    kept: Paths of exports to keep in addition.
  """
  now = int(time.time())
  names = [name.rstrip('/') for name in tf.io.gfile.listdir(directory)]
  for name in names:
    match = _TEMPORARY.fullmatch(name)
    if match and int(match[1]) < now - _SECONDS_OF_A_DAY:
      _remove(os.path.join(directory, name))
  if not to_keep:
    return
  last = int(os.path.basename(newest))
  older = [name for name in names if _TIME.fullmatch(name) and int(name) < last]
  older = [name for name in older if os.path.join(directory, name) not in kept]
  older.sort(key=int)
  for name in older[: max(len(older) + 1 - to_keep, 0)]:
    remove(os.path.join(directory, name))


def remove(path: str) -> None:
  """Removes an export if it exists."""
  # A partly removed directory must not look like an export.
  directory, name = os.path.split(path)
  aside = os.path.join(directory, f'temp-{int(time.time())}-{name}')
  with contextlib.suppress(tf.errors.OpError):  # Other processes prune, too.
    tf.io.gfile.rename(path, aside)
    _remove(aside)


def _remove(path):
  with contextlib.suppress(tf.errors.NotFoundError):
    tf.io.gfile.rmtree(path)
