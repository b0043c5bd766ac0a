"""Initializes variables from a reference: checkpoint, export or module."""

from collections.abc import Sequence
import functools
import http.client
import os
import socket
from typing import NamedTuple

from absl import logging
import tensorflow as tf

from supcon.config import hparams
from supcon.config import safe_text
from supcon.models import contrastive
from supcon.models import layers
from supcon.runs import checkpoint_files
from supcon.training import checkpoints

_EXPORTS = 'exports'  # In a training directory.
_VARIABLES = ('variables/variables', 'hub/variables/variables')  # In an export.
# Files that stand for their directory.
_FILES_OF_DIRECTORIES = ('saved_model.pb', 'tfhub_module.pb', 'checkpoint')

# A server that is silent for this long counts as unreachable.
TIMEOUT_SECONDS = 20.0

# What bad handles, missing servers and modules, damaged archives and unwritable
# caches raise.
_FETCH_ERRORS = (
  OSError,  # Includes errors of tensorflow_hub, urllib and ssl.
  http.client.HTTPException,
  ValueError,
  tf.errors.OpError,
)


# --- Which checkpoint ---------------------------------------------------------


def find(reference: str) -> str:
  """Returns the checkpoint that --reference_ckpt stands for.

  Args:
    reference: One of
      - a checkpoint prefix such as DIR/model.ckpt-100, or one of its files;
      - a training directory, which stands for its newest checkpoint, or without
        one, for the newest of its exports;
      - an export, a directory of exports, or a TF-Hub module in a directory;
      - a handle of a TF-Hub module, http:// or https://, which is downloaded to
        $TFHUB_CACHE_DIR unless it is already there.

  Returns:
    Checkpoint prefix.

  Raises:
    ValueError: If there is no checkpoint.
  """
  if reference.startswith(('http://', 'https://')):
    directory = _fetch(reference)
    where = f'{reference} was fetched to {directory}, which'
  else:
    # The root directory must keep its slash.
    directory = reference.rstrip('/') or reference
    where = reference
  try:
    found = _find_at(directory)
    exists = found or tf.io.gfile.exists(directory)
  except tf.errors.OpError as error:
    raise ValueError(
      f'--reference_ckpt={reference} cannot be looked at '
      f'({safe_text.one_line(error)}); name a checkpoint, export or '
      'module that can be reached from here.'
    ) from error
  if not exists:
    raise ValueError(
      f'--reference_ckpt={where} does not exist; name a checkpoint '
      '(DIR/model.ckpt-STEP), a training directory, an export or a TF-Hub '
      'module (a directory, or https://...).'
    )
  if not found:
    raise ValueError(
      f'--reference_ckpt={where} holds no checkpoint; name a training '
      'directory, an export or a TF-Hub module, unpacked, or a checkpoint '
      '(DIR/model.ckpt-STEP).'
    )
  return found


def _find_at(path):
  """Returns the checkpoint that a path stands for, or None."""
  if checkpoint_files.exists(path):
    return path
  if tf.io.gfile.isdir(path):
    return (
      tf.train.latest_checkpoint(path)
      or _unmarked_checkpoint(path)
      or _of_export(path)
      or _newest_export(path)
      or _newest_export(os.path.join(path, _EXPORTS))
    )
  directory, name = os.path.split(path)
  if name in _FILES_OF_DIRECTORIES and tf.io.gfile.exists(path):
    return _find_at(directory or '.')
  prefix = checkpoint_files.without_ending(path)
  return prefix if checkpoint_files.exists(prefix) else None


def _unmarked_checkpoint(directory):
  """Returns the only checkpoint in a directory without `checkpoint` file.

  Raises:
    ValueError: If there are several.
  """
  prefixes = [
    os.path.join(directory, name.removesuffix('.index'))
    for name in sorted(tf.io.gfile.listdir(directory))
    if name.endswith('.index')
  ]
  if len(prefixes) > 1:
    raise ValueError(
      f'--reference_ckpt={directory} holds {len(prefixes)} checkpoints, but '
      f'does not say which is the newest; name one, such as {prefixes[-1]}.'
    )
  return prefixes[0] if prefixes else None


def _of_export(directory):
  """Returns the variables of an export or a TF-Hub module, or None."""
  for name in _VARIABLES:
    prefix = os.path.join(directory, name)
    if checkpoint_files.exists(prefix):
      return prefix
  return None


def _newest_export(directory):
  """Returns the variables of the newest whole export in DIRECTORY/TIME."""
  if not tf.io.gfile.isdir(directory):
    return None
  names = (name.rstrip('/') for name in tf.io.gfile.listdir(directory))
  times = sorted((n for n in names if n.isdecimal()), key=int, reverse=True)
  found = (_of_export(os.path.join(directory, time)) for time in times)
  return next(filter(None, found), None)


@functools.cache
def _fetch(handle):
  """Returns the directory of a TF-Hub module."""
  try:
    # Imported late, because nothing else here needs it.
    import tensorflow_hub as hub
  # Incompatible versions may raise anything.
  except Exception as error:
    raise ValueError(
      f'--reference_ckpt={handle} cannot be fetched, for tensorflow_hub cannot '
      f'be imported ({safe_text.one_line(error)}); install a version of it '
      f'that goes with TensorFlow {tf.__version__} (from 2.16 on 0.16.1, with '
      'tf_keras) and setuptools<81, or download the module, unpack it and name '
      'its directory.'
    ) from error
  logging.info('fetching %s, unless $TFHUB_CACHE_DIR has it', handle)
  before = socket.getdefaulttimeout()
  socket.setdefaulttimeout(TIMEOUT_SECONDS)
  try:
    return hub.resolve(handle)
  except _FETCH_ERRORS as error:
    raise ValueError(
      f'--reference_ckpt={handle} cannot be fetched '
      f'({safe_text.one_line(error)}); download the module, unpack it and name '
      'its directory, or set TFHUB_CACHE_DIR to a cache that has it.'
    ) from error
  finally:
    socket.setdefaulttimeout(before)


# --- Which variables ----------------------------------------------------------


class _Part(NamedTuple):
  """A part of the model, and whether it comes from the reference."""

  module: layers.Module
  words: str
  flag: str
  is_wanted: bool


def assignment_map(
  model: contrastive.ContrastiveModel,
  chosen: hparams.WarmStart,
  checkpoint: str,
) -> dict[str, tf.Variable]:
  """Returns {key in the reference: variable that starts from it}.

  This is the argument of tf.train.init_from_checkpoint. A key is the name that
  the variable has in the reference or, in checkpoints of TensorFlow 2, the path
  to its object.

  Raises:
    ValueError: If the checkpoint cannot be read, has another architecture, or
      lacks variables and `chosen` does not ignore that.
  """
  held = _index(model, checkpoint)
  parts = [part for part in _parts(model, chosen) if part.is_wanted]
  wanted = [v for part in parts for v in part.module.variables]
  found = checkpoints.compare(
    wanted, [part.module.name for part in parts], held
  )
  if chosen.ignore_missing_checkpoint_vars:
    missing = set(found.missing)
    wanted = [v for v in wanted if v.op.name not in missing]
    found = found._replace(missing=[])
  if any(found):
    raise ValueError(_refusal(model, parts, held, found))
  try:
    held.check_values(v.op.name for v in wanted)
  except ValueError as error:
    raise ValueError(f'--reference_ckpt={error}') from error
  return {held.entries[v.op.name].key: v for v in wanted}


def describe(
  model: contrastive.ContrastiveModel,
  chosen: hparams.WarmStart,
  checkpoint: str,
) -> list[str]:
  """Returns a line for each part of the model about its source.

  Args:
    model: The model.
    chosen: The flags that `assignment_map` has accepted.
    checkpoint: Checkpoint prefix.
  """
  held = _index(model, checkpoint)
  below = f' (names under {held.prefix})' if held.prefix else ''
  lines = []
  for part in _parts(model, chosen):
    variables = part.module.variables if part.is_wanted else []
    taken = [v for v in variables if v.op.name in held.entries]
    missing = [v.op.name for v in variables if v.op.name not in held.entries]
    if not taken:
      why = f', for {checkpoint} has none' if part.is_wanted else ''
      lines.append(f'{part.words}: starts at random{why}')
      continue
    share = f'{len(taken)} of ' if missing else ''
    values = _count(sum(v.shape.num_elements() for v in taken))
    line = (
      f'{part.words}: {share}{len(variables)} variables, {values} values, from '
      f'{checkpoint}{below}'
    )
    if missing:
      line += f'; {len(missing)} start at random: {_first(missing)}'
    lines.append(line)
  return lines


def _parts(model, chosen):
  return (
    _Part(
      model.encoder,
      'encoder',
      '--warm_start_encoder',
      chosen.warm_start_encoder,
    ),
    _Part(
      model.projection_head,
      'projection head',
      '--warm_start_projection_head',
      chosen.warm_start_projection_head,
    ),
    _Part(
      model.classification_head,
      'classifier',
      '--warm_start_classifier',
      chosen.warm_start_classifier,
    ),
  )


def _index(model, checkpoint):
  try:
    return checkpoints.index(checkpoint, model.name)
  except ValueError as error:
    raise ValueError(f'--reference_ckpt={error}') from error


def _refusal(model, parts, held, found):
  """Returns one line about what is wrong and what to do."""
  differences = checkpoints.part_differences(
    held.shapes,
    {v.op.name: v.shape.as_list() for v in model.variables},
    model.name,
  )
  flags = {part.module.name: part.flag for part in parts}
  told = [d for d in differences if d.scope in flags]
  if not told and found.different:
    # A head of the same form still differs if its encoder does.
    told = [d for d in differences if d.scope == model.encoder.name and d.flags]
  if found.missing and not found.different:
    count = sum(len(part.module.variables) for part in parts)
    evidence = (
      f'it lacks {len(found.missing)} of {count} variables, '
      f'{_first(found.missing)}'
    )
  else:
    evidence = found.describe()
  remedy = ' and '.join(
    f'pass {" ".join(d.flags)}' if d.flags else f'drop {flags[d.scope]}'
    for d in told
  )
  remedy = remedy or 'use the flags that it was trained with'
  if not found.different and not found.extra:
    remedy += (
      ', or --ignore_missing_checkpoint_vars to start what it lacks at random'
    )
  what = (
    f'holds {checkpoints.in_words(told)}'
    if told
    else 'is of another architecture'
  )
  return f'--reference_ckpt={held.checkpoint} {what}: {evidence}; {remedy}.'


def _first(names: Sequence[str]) -> str:
  return ', '.join(names[:3]) + (', ...' if len(names) > 3 else '')


def _count(number):
  return f'{number / 1e6:.1f} M' if number >= 1e6 else f'{number:,}'
