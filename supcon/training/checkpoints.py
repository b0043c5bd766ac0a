"""Checkpoints against the variables that a model expects of them."""

from collections.abc import Iterable
from collections.abc import Sequence
from typing import NamedTuple

import tensorflow as tf

tf1 = tf.compat.v1


class MismatchError(ValueError):
  """A checkpoint of model_dir is not one of the model that was asked for."""


class Comparison(NamedTuple):
  """How a checkpoint differs from a set of variables."""

  missing: list[str]  # Variables that the checkpoint lacks.
  different: list[tuple[str, list, list]]  # (name, shape there, shape here).
  extra: list[str]  # In the checkpoint's scopes but not among the variables.

  def describe(self) -> str:
    """Returns the first difference in words, or '' if there is none."""
    for name, there, here in self.different:
      return f'{name} has shape {there} there but {here} in this model'
    if self.missing:
      return f'{self.missing[0]} is not in it'
    if self.extra:
      return f'{self.extra[0]} is in it but not in this model'
    return ''


def compare(
  variables: Iterable[tf.Variable], scopes: Sequence[str], checkpoint: str
) -> Comparison:
  """Compares a checkpoint with variables, by name and shape.

  Args:
    variables: What is expected.
    scopes: Name scopes in which the checkpoint may hold nothing else, but for
      slots. A deeper network holds every variable of a shallower one: only what
      is too much tells them apart.
    checkpoint: Checkpoint prefix.
  """
  shapes = tf.train.load_checkpoint(checkpoint).get_variable_to_shape_map()
  expected = {v.op.name: v.shape.as_list() for v in variables}
  return Comparison(
    missing=[name for name in expected if name not in shapes],
    different=[
      (name, shapes[name], shape)
      for name, shape in expected.items()
      if name in shapes and shapes[name] != shape
    ],
    extra=[
      name
      for name in sorted(shapes)
      if name not in expected
      and name.startswith(tuple(scope + '/' for scope in scopes))
      and not _is_slot(name, shapes)
    ],
  )


def require_same(
  variables: Iterable[tf.Variable], scopes: Sequence[str], checkpoint: str
) -> None:
  """Checks that a checkpoint of model_dir is one of this model.

  Raises:
    MismatchError: Names the first variable that differs.
  """
  difference = compare(variables, scopes, checkpoint).describe()
  if difference:
    raise MismatchError(
      f'--model_dir holds {checkpoint} of another architecture or optimizer: '
      f'{difference}. Use the flags that it was trained with, or another '
      '--model_dir.'
    )


def steps_and_paths(model_dir: str) -> dict[int, str]:
  """Returns {global step: checkpoint prefix} of model_dir, oldest first."""
  state = tf.train.get_checkpoint_state(model_dir)
  paths = state.all_model_checkpoint_paths if state else ()
  return {
    step_of(path): path
    for path in sorted(paths, key=step_of)
    if tf1.train.checkpoint_exists(path)
  }


def step_of(checkpoint: str) -> int:
  """Returns the global step in a name such as DIR/model.ckpt-1000."""
  return int(checkpoint.rsplit('-', 1)[-1])


def _is_slot(name, names):
  """Whether a variable's name lies below that of another: KERNEL/Momentum."""
  parts = name.split('/')
  return any('/'.join(parts[:n]) in names for n in range(1, len(parts)))
