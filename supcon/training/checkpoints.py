"""Compares checkpoints with the variables that a model expects in them."""

from collections.abc import Collection
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import dataclasses
import re
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import trackable_object_graph_pb2

from supcon.config import safe_text
from supcon.models import resnet
from supcon.runs import checkpoint_files
from supcon.training import memory

# The key under which TensorFlow 2 stores the mapping from objects and their
# variables to keys.
_OBJECT_GRAPH = '_CHECKPOINTABLE_OBJECT_GRAPH'


class MismatchError(ValueError):
  """A checkpoint of model_dir belongs to another model."""


class NotFiniteError(ValueError):
  """A checkpoint, or one of its outputs, is NaN or infinite."""


# --- What is in a checkpoint --------------------------------------------------


class Entry(NamedTuple):
  """A variable in a checkpoint."""

  key: str  # Its key in the checkpoint; TensorFlow 1 uses its name.
  shape: list[int]
  dtype: tf.DType


@dataclasses.dataclass(frozen=True)
class Index:
  """The variables of a checkpoint.

  Attributes:
    checkpoint: Checkpoint prefix.
    prefix: What precedes their names in the checkpoint, such as 'module/'.
    entries: {name without that prefix: Entry}.
  """

  checkpoint: str
  prefix: str
  entries: Mapping[str, Entry]

  @property
  def shapes(self) -> dict[str, list[int]]:
    return {name: entry.shape for name, entry in self.entries.items()}

  def values(self, names: Iterable[str]) -> Iterator[tuple[str, np.ndarray]]:
    """Yields (name, value) of variables, one by one.

    Raises:
      ValueError: If one cannot be read.
    """
    with _reading(self.checkpoint):
      reader = tf.train.load_checkpoint(self.checkpoint)
    for name in names:
      with _reading(self.checkpoint):
        value = reader.get_tensor(self.entries[name].key)
      yield name, value

  def check_values(self, names: Iterable[str]) -> None:
    """Reads variables, which verifies their checksums.

    Raises:
      ValueError: If one cannot be read.
      NotFiniteError: If one is NaN or infinite.
    """
    names = list(names)
    broken = [
      name
      for name, value in self.values(names)
      if not np.all(np.isfinite(value))
    ]
    if broken:
      raise NotFiniteError(
        f'{self.checkpoint} is NaN or infinite in {len(broken)} of '
        f'{len(names)} variables (the first is {broken[0]}); {_GO_BACK}.'
      )


def index(checkpoint: str, scope: str | None = None) -> Index:
  """Returns the variables of a checkpoint without reading their values.

  Args:
    checkpoint: Checkpoint prefix. The checkpoint was written by TensorFlow 1,
      whose keys are the names of variables, or by TensorFlow 2, which stores
      the names separately.
    scope: Name of a model, such as 'ContrastiveModel'. If given, only variables
      in this scope count, at whatever depth: a TF-Hub module has it below its
      own name. Otherwise all variables count, under their full names.

  Raises:
    ValueError: If the checkpoint cannot be read, or does not hold exactly one
      such model.
  """
  with _reading(checkpoint):
    reader = tf.train.load_checkpoint(checkpoint)
    dtypes = reader.get_variable_to_dtype_map()
    shapes = reader.get_variable_to_shape_map()
    keys = _keys(reader, shapes)
    everything = [
      (name, Entry(key, shapes[key], dtypes[key])) for name, key in keys
    ]
  if scope is None:
    return Index(checkpoint, '', dict(everything))
  prefix = _only_prefix(checkpoint, [name for name, _ in everything], scope)
  entries = {}
  for name, entry in everything:
    if not name.startswith(f'{prefix}{scope}/'):
      continue
    name = name[len(prefix) :]
    if name in entries:
      raise ValueError(
        f'{checkpoint} holds {name} twice, as {entries[name].key} and '
        f'{entry.key}; save the model that is meant alone.'
      )
    entries[name] = entry
  return Index(checkpoint, prefix, entries)


@contextlib.contextmanager
def _reading(checkpoint):
  """Turns errors of reading a checkpoint into one-line messages."""
  try:
    yield
  except checkpoint_files.READING_ERRORS as error:
    raise ValueError(
      f'{checkpoint} is damaged or not whole ({safe_text.one_line(error)}); '
      'copy or write it again, or name another checkpoint.'
    ) from error


def _keys(reader, all_keys):
  """Returns (variable name, key) pairs, in the order of the names."""
  if _OBJECT_GRAPH not in all_keys:
    return sorted((key, key) for key in all_keys)
  graph = trackable_object_graph_pb2.TrackableObjectGraph()
  graph.ParseFromString(reader.get_tensor(_OBJECT_GRAPH))
  return sorted(
    (attribute.full_name, attribute.checkpoint_key)
    for node in graph.nodes
    for attribute in node.attributes
    if attribute.full_name
  )


def _only_prefix(checkpoint, names, scope):
  """Returns the prefix before a model's scope in its variables' names."""
  found = set()
  for name in names:
    before, separator, _ = f'/{name}'.rpartition(f'/{scope}/')
    if separator:
      found.add(f'{before[1:]}/' if before else '')
  # Keras optimizers call the slot of X Adam/m/X, so the shorter name is that of
  # the variable itself.
  found = {
    prefix
    for prefix in found
    if not any(f'/{prefix}'.endswith(f'/{other}') for other in found - {prefix})
  }
  if not found:
    kinds = ', '.join(names[:3]) + (', ...' if len(names) > 3 else '')
    raise ValueError(
      f'{checkpoint} is of another family of models: none of its {len(names)} '
      f'variables ({kinds}) is in a {scope}; name a checkpoint, an export or a '
      'TF-Hub module of a supervised contrastive model.'
    )
  if len(found) > 1:
    raise ValueError(
      f'{checkpoint} holds {len(found)} models, under '
      f'{", ".join(sorted(found))}; save the '
      'one that is meant alone.'
    )
  return found.pop()


# --- Comparison ---------------------------------------------------------------


class Comparison(NamedTuple):
  """How a checkpoint differs from a set of variables."""

  missing: list[str]  # Variables that the checkpoint lacks.
  different: list[tuple[str, str, str]]  # (name, there, here).
  extra: list[str]  # In the checkpoint's scopes but not among the variables.

  def describe(self) -> str:
    """Returns the first difference in words; '' if there is none."""
    for name, there, here in self.different:
      return f'{name} has {there} there but {here} in this model'
    if self.missing:
      return f'{self.missing[0]} is not in it'
    if self.extra:
      return f'{self.extra[0]} is in it but not in this model'
    return ''


def compare(
  variables: Iterable[tf.Variable], scopes: Sequence[str], held: Index
) -> Comparison:
  """Compares a checkpoint with variables, by name, shape and type.

  Args:
    variables: The expected variables.
    scopes: Name scopes in which the checkpoint may hold nothing else except
      slots. A deeper network has every variable of a shallower one, so only the
      extra variables tell them apart.
    held: The variables of the checkpoint.
  """
  entries = held.entries
  expected = {v.op.name: v for v in variables}
  different = []
  for name, variable in expected.items():
    if name not in entries:
      continue
    shape, dtype = variable.shape.as_list(), variable.dtype.base_dtype
    there = entries[name]
    if there.shape != shape:
      different.append((name, f'shape {there.shape}', f'shape {shape}'))
    elif there.dtype != dtype:
      different.append((name, f'type {there.dtype.name}', f'type {dtype.name}'))
  return Comparison(
    missing=[name for name in expected if name not in entries],
    different=different,
    extra=[
      name
      for name in sorted(entries)
      if name not in expected
      and name.startswith(tuple(scope + '/' for scope in scopes))
      and not _is_slot(name, entries)
    ],
  )


def require_same(
  variables: Iterable[tf.Variable],
  scopes: Sequence[str],
  checkpoint: str,
  optional: Collection[str] = (),
) -> 'Adoption':
  """Checks that a checkpoint of model_dir belongs to this model.

  Args:
    variables: All variables that the checkpoint must hold, under their full
      names.
    scopes: Names of models; see `compare`.
    checkpoint: Checkpoint prefix.
    optional: Names of slots that it may lack, as long as it has others of the
      same kind.

  Returns:
    The sources of the variables' values.

  Raises:
    MismatchError: If the checkpoint cannot be read or belongs to another model.
      The message names the part in which the networks differ, the flags as far
      as variables reveal them, and a variable.
  """
  variables = list(variables)
  shapes = {v.op.name: v.shape.as_list() for v in variables}
  try:
    held = index(checkpoint)
  except ValueError as error:
    raise MismatchError(f'found in --model_dir: {error}') from error
  adopted = adoption(shapes, held)
  entries = {name: held.entries[key] for name, key in adopted.keys.items()}
  held = dataclasses.replace(held, entries={**held.entries, **entries})
  found = compare(variables, scopes, held)
  adopted = adopted._replace(
    initial=[
      name
      for name in adopted.initial
      if name in optional or memory.is_part(name)
    ]
  )
  missing = [name for name in found.missing if name not in adopted.initial]
  difference = found._replace(missing=missing).describe()
  if not difference:
    return adopted
  parts = [
    part
    for scope in scopes
    for part in part_differences(held.shapes, shapes, scope)
  ]
  if not parts:
    raise MismatchError(
      f'--model_dir holds {checkpoint} of another architecture or optimizer: '
      f'{difference}. Use the flags that it was trained with, or another '
      '--model_dir.'
    )
  remedies = [
    f'pass {" ".join(part.flags)}' if part.flags else 'take its data set'
    for part in parts
  ]
  raise MismatchError(
    f'--model_dir holds {checkpoint} of another architecture: '
    f'{in_words(parts)}: {difference}; {" and ".join(remedies)}, or another '
    '--model_dir.'
  )


def require_finite(variables: Iterable[tf.Variable], checkpoint: str) -> None:
  """Checks that the values of variables in a checkpoint are finite.

  Outputs need not reveal NaN: on CPU, a batch norm and its relu are one op,
  which turns NaN into 0.

  Args:
    variables: Variables of the checkpoint, under their full names.
    checkpoint: Checkpoint prefix.

  Raises:
    NotFiniteError: If a value is NaN or infinite.
    ValueError: If one cannot be read.
  """
  index(checkpoint).check_values(v.op.name for v in variables)


def require_finite_outputs(
  outputs: Mapping[str, np.ndarray], checkpoint: str, ids: Sequence[str]
) -> None:
  """Checks that a model's outputs for images are finite.

  Args:
    outputs: {name: float [n, ...]}.
    checkpoint: The checkpoint of the model.
    ids: Names of the n images.

  Raises:
    NotFiniteError: If one is NaN or infinite.
  """
  for name, values in outputs.items():
    is_broken = ~np.isfinite(values.reshape([len(values), -1])).all(axis=1)
    if is_broken.any():
      raise NotFiniteError(
        f'{name} of {ids[np.argmax(is_broken)]} are NaN or infinite by '
        f'{checkpoint}, whose variables are not; {_GO_BACK}.'
      )


_GO_BACK = (
  'its training has diverged: go back to an earlier checkpoint, or train again '
  'at a lower learning rate'
)


def _is_slot(name, names):
  """Whether a name is below that of another variable: KERNEL/Momentum."""
  return bool(_slot(name, names))


def _slot(name, names):
  """Returns 'Momentum' for KERNEL/Momentum; '' if it is not a slot."""
  parts = name.split('/')
  for count in range(1, len(parts)):
    if '/'.join(parts[:count]) in names:
      return '/'.join(parts[count:])
  return ''


# --- What the published code calls otherwise, or does not have ----------------


class Adoption(NamedTuple):
  """Where to get variables that a checkpoint does not have by name.

  Attributes:
    keys: {variable name: its name in the checkpoint}.
    initial: Names of slots, and of a memory and its slow copy of the model,
      that start at their initial values.
  """

  keys: Mapping[str, str]
  initial: Sequence[str]

  def describe(self, checkpoint: str) -> list[str]:
    """Returns lines for the log."""
    lines = []
    if self.keys:
      names = ', '.join(f'{key} as {name}' for name, key in self.keys.items())
      lines.append(f'{checkpoint} is of the published code: read {names}')
    if any(map(memory.is_part, self.initial)):
      lines.append(f'{checkpoint} has no memory; one begins empty')
    slots = [name for name in self.initial if not memory.is_part(name)]
    if slots:
      some = ', '.join(slots[:3])
      more = len(slots) - 3
      lines.append(
        f'{checkpoint} lacks what an optimizer keeps of variables that no loss '
        f'reached; {len(slots)} start at their initial values: {some}'
        f'{f" and {more} more" if more > 0 else ""}'
      )
    return lines


# Powers of Adam's betas. The published code makes them in a branch of a
# condition: train/cond_1/beta1_power.
_POWER = re.compile(r'(.+/)?(beta[12]_power)(_[0-9]+)?')


def adoption(names: Iterable[str], held: Index) -> Adoption:
  """Finds values for variables that a checkpoint lacks by name.

  The published code has no slots for variables that no loss reaches in a stage.
  This code has slots for every variable. If a checkpoint has such a slot for no
  variable at all, it comes from another optimizer, and the slot counts as
  missing.

  Args:
    names: Names of the variables.
    held: The variables of the checkpoint.
  """
  names = list(names)
  missing = [name for name in names if name not in held.entries]
  slots = {_slot(name, held.entries) for name in held.entries}
  keys = {}
  for stem in ('beta1_power', 'beta2_power'):
    ours = _powers(missing, stem, is_top=True)
    theirs = _powers(held.entries, stem, is_top=False)
    if len(ours) == len(theirs):
      keys.update(zip(ours, theirs))
  initial = [
    name
    for name in missing
    if memory.is_part(name)
    or (slot := _slot(name, set(names)))
    and slot in slots
  ]
  return Adoption(keys, initial)


def _powers(names, stem, is_top):
  """Returns the names of one power of Adam's beta, in stage order."""
  matches = [
    match
    for match in map(_POWER.fullmatch, names)
    if match and match[2] == stem and is_top == (match[1] is None)
  ]
  numbers = {
    match[0]: [int(part) for part in re.findall(r'_([0-9]+)', match[0])]
    for match in matches
  }
  return sorted(numbers, key=numbers.get)


# --- What the networks are ----------------------------------------------------


class PartDifference(NamedTuple):
  """How a part of the network differs between a checkpoint and this run."""

  scope: str  # Scope of the part, such as 'ContrastiveModel/Encoder'.
  there: str  # In the checkpoint: 'a classifier of 1000 classes'.
  here: str  # In this run: 'the data set has 10'.
  flags: list[str]  # Flags that make them equal: '--resnet_depth=101'.


def part_differences(
  there: Mapping[str, Sequence[int]],
  here: Mapping[str, Sequence[int]],
  scope: str,
) -> list[PartDifference]:
  """Returns how two networks differ, as far as their variables show it.

  Args:
    there: {variable name: shape} in a checkpoint.
    here: The same for this run. Parts that this run lacks are not compared.
    scope: Name of the model.
  """
  differences = []
  for part, describe in _PARTS.items():
    part = f'{scope}/{part}'
    own = _below(part, here)
    if own:
      difference = describe(part, _below(part, there), own)
      if difference:
        differences.append(difference)
  return differences


def in_words(parts: Sequence[PartDifference]) -> str:
  """Returns 'A and B, but this run has C and the data set has D'."""
  there, here = (
    ' and '.join(words)
    for words in zip(*((part.there, part.here) for part in parts))
  )
  return f'{there}, but {here}'


def _encoder_difference(scope, there_shapes, here_shapes):
  if not there_shapes:
    return PartDifference(scope, 'no encoder', 'this run has one', [])
  there, here = resnet.describe(there_shapes), resnet.describe(here_shapes)
  if not there or not here or there == here:
    return None
  is_other_stem = there.first_conv_kernel_size != here.first_conv_kernel_size

  def words(encoder):
    stem = f' and a first convolution of {encoder.first_conv_kernel_size}'
    return (
      f'{encoder.architecture.name} of depth {encoder.depth} and width '
      f'{encoder.width:.10g}{stem if is_other_stem else ""}'
    )

  def flags(encoder):
    return {
      'resnet_architecture': encoder.architecture.name,
      'resnet_depth': encoder.depth,
      'resnet_width': f'{encoder.width:.10g}',
      'first_conv_kernel_size': encoder.first_conv_kernel_size,
    }

  to_pass = _to_pass(flags(there), flags(here))
  if is_other_stem:
    # No variable shows these, and they differ between the published stems.
    to_pass.append('and its --first_conv_stride and --use_initial_max_pool')
  return PartDifference(
    scope,
    f'the encoder {words(there)}',
    f'this run has {words(here)}',
    to_pass,
  )


def _projection_head_difference(scope, there_shapes, here_shapes):
  if not there_shapes:
    return PartDifference(scope, 'no projection head', 'this run has one', [])
  there_words, there = _projection_head(there_shapes)
  here_words, here = _projection_head(here_shapes)
  if there == here:
    return None
  return PartDifference(
    scope,
    f'a projection head of {there_words}',
    f'this run has one of {here_words}',
    _to_pass(there, here),
  )


_NORMS = {  # (Has gammas, has betas): (description, flags).
  (False, False): (
    'without batch norm',
    {'use_projection_batch_norm': False},
  ),
  (True, True): (
    'with batch norm',
    {
      'use_projection_batch_norm': True,
      'use_projection_batch_norm_beta': True,
    },
  ),
  (True, False): (
    'with batch norm without beta',
    {
      'use_projection_batch_norm': True,
      'use_projection_batch_norm_beta': False,
    },
  ),
}


def _projection_head(shapes):
  """Describes a projection head in words and as {flag: value}."""
  names = ['dense', *(f'dense_{index}' for index in range(1, len(shapes)))]
  kernels = [f'{name}/kernel' for name in names]
  sizes = ','.join(str(shapes[k][-1]) for k in kernels if k in shapes)
  words, flags = sizes, {'projection_head_layers': sizes}
  if ',' in sizes:  # Batch norm needs two layers.
    has_norm = 'batch_normalization/gamma' in shapes
    has_beta = has_norm and 'batch_normalization/beta' in shapes
    norm_words, norm_flags = _NORMS[has_norm, has_beta]
    words, flags = f'{words} {norm_words}', {**flags, **norm_flags}
  return words, flags


def _classifier_difference(scope, there_shapes, here_shapes):
  if not there_shapes:
    return PartDifference(scope, 'no classifier', 'this run has one', [])
  there, here = (
    shapes.get('dense/bias', [None])[-1]
    for shapes in (there_shapes, here_shapes)
  )
  if there is None or here is None or there == here:
    return None
  return PartDifference(
    scope, f'a classifier of {there} classes', f'the data set has {here}', []
  )


_PARTS = {  # Scope in a ContrastiveModel: how to compare it.
  'Encoder': _encoder_difference,
  'ProjectionHead': _projection_head_difference,
  'ClassificationHead': _classifier_difference,
}


def _below(scope, shapes):
  """Returns the shapes within a scope, by their names in it."""
  start = f'{scope}/'
  return {
    name[len(start) :]: shape
    for name, shape in shapes.items()
    if name.startswith(start)
  }


def _to_pass(there, here):
  """Returns the flags that turn this run's network into the other one."""
  return [
    f'--{flag}={value}'
    for flag, value in there.items()
    if here.get(flag) != value
  ]
