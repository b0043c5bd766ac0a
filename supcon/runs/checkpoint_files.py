"""The files of checkpoints: finds them and checks that they are complete.

TensorFlow trusts the file `checkpoint` and any bytes that it finds. But a
killed run, a full disk or an interrupted copy leaves files that must not be
trusted.
"""

from collections.abc import Sequence
import hashlib
import os
import re
from typing import NamedTuple

from google.protobuf import message
from google.protobuf import text_format
import numpy as np
import tensorflow as tf
from tensorflow.python.training import checkpoint_state_pb2

from supcon.config import path_names
from supcon.config import safe_text
from supcon.runs import storage

# --- Whole or not -------------------------------------------------------------

# Bad bytes cause an OpError, a truncated file an IndexError, an absurd size a
# MemoryError, half a variable a ValueError, and a bad object graph a KeyError.
READING_ERRORS = (
  tf.errors.OpError,
  message.DecodeError,
  LookupError,
  MemoryError,
  ValueError,
  RuntimeError,
)

_CHUNK_BYTES = 2**24
_DATA = re.compile(r'\.data-[0-9]{5}-of-([0-9]{5})')


def damage(checkpoint: str) -> str | None:
  """Checks a checkpoint by reading every value.

  Each variable is stored with a checksum, and so is each block of the index. So
  reading finds anything that is truncated, lost, overwritten or flipped. Files
  that are missing or too short are found before that.

  Args:
    checkpoint: Checkpoint prefix.

  Returns:
    One line about the damage; None if the checkpoint is complete.

  Raises:
    tf.errors.OpError: If the check is impossible: storage denies access, memory
      is too small, or TensorFlow treats the name as a pattern. This says
      nothing about the checkpoint.
  """
  if char := path_names.pattern_in(checkpoint):
    raise tf.errors.InvalidArgumentError(
      None, None, f'{checkpoint} cannot be read because of {char} in its name'
    )
  if missing := _missing_file(checkpoint):
    return f'{missing} is missing'
  what = os.path.basename(f'{checkpoint}.index')
  has_right_size = False
  try:
    reader = tf.train.load_checkpoint(checkpoint)
    shapes = reader.get_variable_to_shape_map()
    dtypes = reader.get_variable_to_dtype_map()
    expected = sum(
      int(np.prod(shape, dtype=np.int64)) * dtypes[name].size
      for name, shape in shapes.items()
      if dtypes[name] != tf.string  # Strings have any length.
    )
    data = files(checkpoint)[:-1]
    found = sum(tf.io.gfile.stat(path).length for path in data)
    if found < expected:
      return f'{found} bytes are left, but the values take {expected}'
    has_right_size = True
    for what in sorted(shapes):
      reader.get_tensor(what)
  except READING_ERRORS as error:
    if isinstance(error, MemoryError) and has_right_size:
      raise tf.errors.ResourceExhaustedError(
        None, None, f'{what} of {checkpoint} does not fit into memory'
      ) from error
    _check_storage(checkpoint)
    return f'{what} cannot be read: {safe_text.one_line(error)}'
  return None


def _check_storage(checkpoint):
  """Reads the raw files of a checkpoint without parsing them.

  This is because the reader of checkpoints does not distinguish kinds of
  errors.

  Raises:
    tf.errors.OpError: If an existing file cannot be read.
  """
  for path in files(checkpoint):
    try:
      with tf.io.gfile.GFile(path, 'rb') as file:
        while file.read(_CHUNK_BYTES):
          pass
    except tf.errors.NotFoundError:
      pass  # It has been deleted in the meantime.


def _missing_file(checkpoint):
  """Returns the name of a missing file; '' if there is none."""
  name = os.path.basename(checkpoint)
  ends = [path[len(checkpoint) :] for path in files(checkpoint)]
  if '.index' not in ends:
    return f'{name}.index'
  counts = {int(match[1]) for match in map(_DATA.fullmatch, ends) if match}
  if not counts:
    return f'{name}.data-00000-of-*'
  # Overwriting a checkpoint with other shards leaves some of the old ones.
  for count in sorted(counts):
    shards = [f'.data-{shard:05}-of-{count:05}' for shard in range(count)]
    missing = [end for end in shards if end not in ends]
    if not missing:
      return ''
  return name + missing[0]


def files(checkpoint: str) -> list[str]:
  """Returns the files that hold the values of a checkpoint, the index last.

  Only existing files; none if there is no such checkpoint.
  """
  directory, start = os.path.split(checkpoint)
  ends = [
    name[len(start) :] for name in _names(directory) if name.startswith(start)
  ]
  found = [end for end in ends if _DATA.fullmatch(end)]
  found += [end for end in ends if end == '.index']
  return [checkpoint + end for end in found]


def prefix_of(path: str) -> str | None:
  """Returns the checkpoint that a path names: its prefix, or one of its files.

  None if there is no checkpoint, or if its name does not end with a step.
  """
  prefix = without_ending(path)
  return prefix if _STEP.search(prefix) and exists(prefix) else None


def without_ending(path: str) -> str:
  """Returns the prefix of the checkpoint to which a file belongs, by its name.

  Any other path is returned as it is.
  """
  return _ENDING.sub('', path)


def exists(checkpoint: str) -> bool:
  """Whether there is such a checkpoint; an interrupted save has no index."""
  return tf.io.gfile.exists(f'{checkpoint}.index')


class Stamp(NamedTuple):
  """The state of a file; at least one field differs once it has changed."""

  path: str
  length: int
  mtime_nsec: int
  inode: int  # 0 if the file system has none.


def stamp(path: str) -> Stamp | None:
  """Returns the current state of a file; None if it does not exist."""
  try:
    if storage.is_remote(path):
      remote = tf.io.gfile.stat(path)
      return Stamp(path, remote.length, remote.mtime_nsec, 0)
    # For local files, TensorFlow returns times in whole seconds only.
    local = os.stat(path)
  except (FileNotFoundError, tf.errors.NotFoundError):
    return None
  return Stamp(path, local.st_size, local.st_mtime_ns, local.st_ino)


def stamps(checkpoint: str) -> tuple[Stamp | None, ...]:
  """Returns the current state of a checkpoint's files without reading them."""
  return tuple(map(stamp, files(checkpoint)))


def fingerprint(checkpoint: str) -> str:
  """Returns a text that identifies the values of a checkpoint.

  It is computed from the index, which is small and holds the checksum of every
  variable. Saving the same values again gives the same fingerprint.

  Raises:
    tf.errors.OpError: If the index cannot be read.
  """
  with tf.io.gfile.GFile(f'{checkpoint}.index', 'rb') as file:
    return hashlib.sha256(file.read()).hexdigest()[:16]


def copy(checkpoint: str, to: str) -> None:
  """Copies the values of a checkpoint to another prefix, the index last.

  Raises:
    tf.errors.OpError: If a file cannot be read or written.
  """
  for path in files(checkpoint):
    tf.io.gfile.copy(path, to + path[len(checkpoint) :], overwrite=True)


def remove(checkpoint: str) -> None:
  """Removes the values of a checkpoint, the index first."""
  for path in reversed(files(checkpoint)):
    tf.io.gfile.remove(path)


def copy_as_step(checkpoint: str, to: str) -> None:
  """Copies the values of a checkpoint with the step of `to`.

  Args:
    checkpoint: Checkpoint prefix, written by TensorFlow 1.
    to: Another prefix, such as DIR/model.ckpt-20; replaced if it exists.

  Raises:
    tf.errors.OpError: If a file cannot be read or written.
  """
  reader = tf.train.load_checkpoint(checkpoint)
  dtypes = reader.get_variable_to_dtype_map()
  names = sorted(dtypes)
  values = {name: reader.get_tensor(name) for name in names}
  step = values[tf.compat.v1.GraphKeys.GLOBAL_STEP]
  values[tf.compat.v1.GraphKeys.GLOBAL_STEP] = np.full_like(step, step_of(to))
  aside = f'{to}.moved'
  with tf.Graph().as_default(), tf.compat.v1.Session() as session:
    # Placeholders, because a graph with constants is limited to 2 GiB.
    inputs = [tf.compat.v1.placeholder(dtypes[name]) for name in names]
    save = tf.raw_ops.SaveV2(
      prefix=aside,
      tensor_names=names,
      shape_and_slices=[''] * len(names),
      tensors=inputs,
    )
    session.run(save, dict(zip(inputs, (values[name] for name in names))))
  rename(aside, to)


def rename(checkpoint: str, to: str) -> None:
  """Renames the values of a checkpoint to another prefix, the index last."""
  for path in files(checkpoint):
    tf.io.gfile.rename(path, to + path[len(checkpoint) :], overwrite=True)


def _names(directory):
  """Returns the names in a directory; none if it does not exist."""
  try:
    names = tf.io.gfile.listdir(directory or '.')
  except tf.errors.NotFoundError:
    return []
  return sorted(name.rstrip('/') for name in names)


# --- Those of a directory -----------------------------------------------------

STATE = 'checkpoint'  # The file in which TensorFlow names the newest one.

# The names under which training saves checkpoints, as a regular expression.
NAME = r'model\.ckpt-[0-9]+'
_STEP = re.compile(r'-([0-9]+)\Z')
_ENDING = re.compile(r'\.(index|meta|data-\d+-of-\d+)\Z')

# Temporary files of an interrupted save, which nothing reads.
_LEFTOVER = re.compile(
  rf'{NAME}_temp'
  rf'|(checkpoint|graph\.pbtxt|{NAME}\.meta)\.tmp[0-9a-f]{{32}}'
)


class State(NamedTuple):
  """The content of the file `checkpoint`.

  Attributes:
    newest: The checkpoint from which TensorFlow continues; None if unknown.
    paths: All checkpoints that TensorFlow deletes as they get old, including
      `newest`.
    problem: What is wrong with the file; '' if nothing is, or if it does not
      exist.
  """

  newest: str | None = None
  paths: tuple[str, ...] = ()
  problem: str = ''


def read_state(model_dir: str) -> State:
  """Returns the content of the file `checkpoint` in a directory.

  Raises:
    tf.errors.OpError: If storage denies access.
  """
  state = checkpoint_state_pb2.CheckpointState()
  try:
    with tf.io.gfile.GFile(os.path.join(model_dir, STATE), 'rb') as file:
      text_format.Parse(file.read().decode(), state)
  except tf.errors.NotFoundError:
    return State()
  except (text_format.ParseError, ValueError) as error:
    return State(problem=safe_text.one_line(error))
  paths = (*state.all_model_checkpoint_paths, state.model_checkpoint_path)
  for path in paths:
    if not _STEP.search(path):
      return State(problem=f'it names {path!r}, expected NAME-STEP')
  paths = tuple(os.path.join(model_dir, path) for path in paths)
  return State(newest=paths[-1], paths=tuple(dict.fromkeys(paths)))


def state_text(model_dir: str, paths: Sequence[str]) -> str:
  """Returns the text to write to the file `checkpoint`.

  Args:
    model_dir: The directory of the file.
    paths: Checkpoint prefixes, the newest last.
  """
  names = []
  for path in paths:
    name = os.path.basename(path)
    # Relative, so that the directory can be moved.
    names.append(name if os.path.join(model_dir, name) == path else path)
  state = checkpoint_state_pb2.CheckpointState(
    model_checkpoint_path=names[-1], all_model_checkpoint_paths=names
  )
  return text_format.MessageToString(state)


def on_disk(model_dir: str) -> list[str]:
  """Returns the prefixes of the checkpoints in a directory, oldest first.

  Files without an index are an interrupted save, not a checkpoint.
  """
  starts = [
    name.removesuffix('.index')
    for name in _names(model_dir)
    if name.endswith('.index')
  ]
  return sorted(
    (os.path.join(model_dir, s) for s in starts if re.fullmatch(NAME, s)),
    key=step_of,
  )


def leftovers(model_dir: str) -> list[str]:
  """Returns the temporary files of interrupted saves in a directory."""
  return [
    os.path.join(model_dir, name)
    for name in _names(model_dir)
    if _LEFTOVER.fullmatch(name)
  ]


def steps_and_paths(model_dir: str) -> dict[int, str]:
  """Returns {global step: checkpoint prefix} of model_dir, oldest first.

  Besides the checkpoints in the file `checkpoint`, it includes older ones that
  are kept for ever. Newer ones are still being written, or the run has returned
  to an older one; they count only if that file is unusable.
  """
  state = read_state(model_dir)
  found = {step_of(path): path for path in on_disk(model_dir)}
  listed = [
    path for path in state.paths if path in found.values() or exists(path)
  ]
  if state.newest in listed:
    newest = step_of(state.newest)
    found = {step: path for step, path in found.items() if step < newest}
  found |= {step_of(path): path for path in listed}
  return dict(sorted(found.items()))


def path_of(model_dir: str, step: int) -> str:
  """Returns the prefix of the checkpoint that training saves at a step."""
  return os.path.join(model_dir, f'model.ckpt-{step}')


def step_of(checkpoint: str) -> int:
  """Returns the global step in a name such as DIR/model.ckpt-1000."""
  return int(checkpoint.rsplit('-', 1)[-1])
