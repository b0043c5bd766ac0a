"""The files of checkpoints: which there are, whether they are whole.

TensorFlow believes the file `checkpoint` and whatever bytes it finds. A run
that was killed, a disk that was full or a copy that was cut short leave files
that must not be believed.
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

# --- Whole or not -------------------------------------------------------------

# Bad bytes are an OpError, a file that ends too early an IndexError, an absurd
# size a MemoryError, half a variable a ValueError, what an object graph invents
# a KeyError.
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
  """Reads every value of a checkpoint.

  Each variable is stored with a checksum, and so are the blocks of the index:
  whatever was cut, lost, overwritten or flipped is found by reading. Files that
  are missing or too short are found before that.

  Args:
    checkpoint: Checkpoint prefix.

  Returns:
    What is wrong, in one line; None if the checkpoint is whole.

  Raises:
    tf.errors.OpError: If nobody can look: the storage does not let anybody,
      memory is too small, or TensorFlow takes the name for a pattern. That
      says nothing about the checkpoint.
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
      if dtypes[name] != tf.string  # Of any length.
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
  """Reads the files of a checkpoint as they are, without looking into them.

  The reader of checkpoints does not tell one kind of error from another.

  Raises:
    tf.errors.OpError: If there is a file that cannot be read.
  """
  for path in files(checkpoint):
    try:
      with tf.io.gfile.GFile(path, 'rb') as file:
        while file.read(_CHUNK_BYTES):
          pass
    except tf.errors.NotFoundError:
      pass  # Somebody has deleted it by now.


def _missing_file(checkpoint):
  """Returns the name of a file that is missing; '' if all are there."""
  name = os.path.basename(checkpoint)
  ends = [path[len(checkpoint) :] for path in files(checkpoint)]
  if '.index' not in ends:
    return f'{name}.index'
  counts = {int(match[1]) for match in map(_DATA.fullmatch, ends) if match}
  if not counts:
    return f'{name}.data-00000-of-*'
  # What was written over a checkpoint of other shards leaves some of those.
  for count in sorted(counts):
    shards = [f'.data-{shard:05}-of-{count:05}' for shard in range(count)]
    missing = [end for end in shards if end not in ends]
    if not missing:
      return ''
  return name + missing[0]


def files(checkpoint: str) -> list[str]:
  """Returns the files that hold the values of a checkpoint, the index last.

  Only those that are there; none if there is no such checkpoint.
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

  None if there is none, or its name does not end with a step.
  """
  prefix = re.sub(r'\.(index|meta|data-\d+-of-\d+)$', '', path)
  if not _STEP.search(prefix) or not tf.io.gfile.exists(f'{prefix}.index'):
    return None
  return prefix


class Stamp(NamedTuple):
  """A file as it was at a time; once it has changed, one of these has."""

  path: str
  length: int
  mtime_nsec: int
  inode: int  # 0 where there is none.


def stamp(path: str) -> Stamp | None:
  """Returns what a file is now; None if it is not there."""
  try:
    if '://' in path:
      remote = tf.io.gfile.stat(path)
      return Stamp(path, remote.length, remote.mtime_nsec, 0)
    # Of local files TensorFlow knows only the second.
    local = os.stat(path)
  except (FileNotFoundError, tf.errors.NotFoundError):
    return None
  return Stamp(path, local.st_size, local.st_mtime_ns, local.st_ino)


def stamps(checkpoint: str) -> tuple[Stamp | None, ...]:
  """Returns what the files of a checkpoint are now; they are not read."""
  return tuple(map(stamp, files(checkpoint)))


def fingerprint(checkpoint: str) -> str:
  """Returns what tells the values of a checkpoint from others.

  The index holds the checksum of every variable, and is small. The same values,
  saved again, have the same fingerprint.

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
  """Copies the values of a checkpoint, but for the step, which is that of `to`.

  Args:
    checkpoint: Checkpoint prefix, written by TensorFlow 1.
    to: Another one, such as DIR/model.ckpt-20; replaced if it is there.

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
    # Not constants: no graph may be larger than 2 GiB.
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
  """Gives the values of a checkpoint another prefix, the index last."""
  for path in files(checkpoint):
    tf.io.gfile.rename(path, to + path[len(checkpoint) :], overwrite=True)


def _names(directory):
  """Returns the names in a directory; none if it is not there."""
  try:
    names = tf.io.gfile.listdir(directory or '.')
  except tf.errors.NotFoundError:
    return []
  return sorted(name.rstrip('/') for name in names)


# --- Those of a directory -----------------------------------------------------

STATE = 'checkpoint'  # The file in which TensorFlow keeps what is newest.

_NAME = re.compile(r'model\.ckpt-[0-9]+')
_STEP = re.compile(r'-([0-9]+)\Z')

# What a save that was cut short leaves aside. Nobody reads it.
_LEFTOVER = re.compile(
  r'model\.ckpt-[0-9]+_temp'
  r'|(checkpoint|graph\.pbtxt|model\.ckpt-[0-9]+\.meta)\.tmp[0-9a-f]{32}'
)


class State(NamedTuple):
  """What the file `checkpoint` says.

  Attributes:
    newest: The checkpoint from which TensorFlow continues; None if unknown.
    paths: All that TensorFlow deletes as they get old, `newest` among them.
    problem: What is wrong with the file; '' if nothing is, or it is not there.
  """

  newest: str | None = None
  paths: tuple[str, ...] = ()
  problem: str = ''


def read_state(model_dir: str) -> State:
  """Returns what the file `checkpoint` of a directory says.

  Raises:
    tf.errors.OpError: If the storage does not let anybody look.
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
  """Returns what the file `checkpoint` is to hold.

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

  What has no index is none, but a save that was cut short.
  """
  starts = [
    name.removesuffix('.index')
    for name in _names(model_dir)
    if name.endswith('.index')
  ]
  return sorted(
    (os.path.join(model_dir, s) for s in starts if _NAME.fullmatch(s)),
    key=step_of,
  )


def leftovers(model_dir: str) -> list[str]:
  """Returns what saves that were cut short have left aside in a directory."""
  return [
    os.path.join(model_dir, name)
    for name in _names(model_dir)
    if _LEFTOVER.fullmatch(name)
  ]


def steps_and_paths(model_dir: str) -> dict[int, str]:
  """Returns {global step: checkpoint prefix} of model_dir, oldest first.

  Besides those that the file `checkpoint` lists there may be older ones that
  are kept for ever. Newer ones are still being written, or somebody has gone
  back to an older one; they count only where that file is of no use.
  """
  state = read_state(model_dir)
  found = {step_of(path): path for path in on_disk(model_dir)}
  listed = [
    path
    for path in state.paths
    if path in found.values() or tf.io.gfile.exists(f'{path}.index')
  ]
  if state.newest in listed:
    newest = step_of(state.newest)
    found = {step: path for step, path in found.items() if step < newest}
  found |= {step_of(path): path for path in listed}
  return dict(sorted(found.items()))


def step_of(checkpoint: str) -> int:
  """Returns the global step in a name such as DIR/model.ckpt-1000."""
  return int(checkpoint.rsplit('-', 1)[-1])
