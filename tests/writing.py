"""Writes checkpoints to be tested."""

import tensorflow as tf


def write(prefix, shapes):
  """Writes a checkpoint of zeros; returns its prefix.

  Args:
    prefix: A pathlib.Path.
    shapes: {name: shape}.
  """
  return write_values(prefix, {n: tf.zeros(s) for n, s in shapes.items()})


def write_values(prefix, values):
  """Writes a checkpoint of {name: value}; returns its prefix."""
  prefix.parent.mkdir(parents=True, exist_ok=True)
  tf.raw_ops.SaveV2(
    prefix=str(prefix),
    tensor_names=list(values),
    shape_and_slices=[''] * len(values),
    tensors=list(values.values()),
  )
  return str(prefix)
