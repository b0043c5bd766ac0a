"""What a lowered program sends between its cores, and what its loss holds.

Read off the MHLO of `program.lower`, with jaxlib's own parser of it.
"""

import enum
import functools
import operator
from typing import NamedTuple

import numpy as np

from tests.tpu import program


class Purpose(enum.Enum):
  """What a collective is for, as its place in the program tells."""

  GATHER = 'gather'  # An all-to-all: features, there and back, and labels.
  BATCH_NORM = 'batch norm'  # A sum on which another collective depends.
  # A sum on which none does. So are the few numbers that a step reports.
  GRADIENTS = 'gradients'
  CONSTANTS = 'constants'  # A sum of constants, which XLA computes beforehand.


# What a core sends in a group of n, in units of (n - 1) / n of the larger of
# operand and result. A ring reduces first and then spreads, 1 each; all others
# send to each core what is its own, or pass it on.
_UNITS = {
  'mhlo.all_gather': 1,
  'mhlo.all_reduce': 2,
  'mhlo.all_to_all': 1,
  'mhlo.cross-replica-sum': 2,
  'mhlo.reduce_scatter': 1,
}


class Collective(NamedTuple):
  """A collective op.

  Attributes:
    name: Of the op, such as 'mhlo.all_to_all'.
    purpose: A `Purpose`.
    size: Bytes of its operand or result, whichever is larger.
    group_size: How many cores take part.
  """

  name: str
  purpose: Purpose
  size: int
  group_size: int

  @property
  def bytes_sent(self):
    """What one core sends each time, a float."""
    if self.purpose is Purpose.CONSTANTS:
      return 0.0
    return _UNITS[self.name] * self.size * (1 - 1 / self.group_size)


class LossMemory(NamedTuple):
  """What the contrastive loss holds in a core.

  Attributes:
    anchors: Number of this core's.
    contrasts: Number of all cores'.
    dtype: Of the similarities, and of what is multiplied for them.
    matrix: Bytes of one matrix [anchors, contrasts] of it.
    num_matrices: How many of these the products read and write: they have to
      be somewhere, whereas XLA may fuse what lies between them.
    gathered: Bytes of all operands and results of the float all-to-alls.
  """

  anchors: int
  contrasts: int
  dtype: np.dtype
  matrix: int
  num_matrices: int
  gathered: int

  @property
  def total(self):
    """Bytes of it all, if nothing shares its place with anything else."""
    return self.num_matrices * self.matrix + self.gathered


def collectives(mlir: str) -> list[Collective]:
  """Returns the collectives of a program, in its order.

  Those in a loop count once, as in one of its steps.

  Raises:
    ValueError: If there is one of unknown cost.
  """
  module = _parse(mlir)
  found = []  # Of (op, bits of the collectives that it depends on).
  _find_collectives(module.body, {}, found)
  is_needed = functools.reduce(operator.or_, (bits for _, bits in found), 0)
  return [
    Collective(
      op.name,
      _purpose(op, bool(is_needed >> index & 1)),
      max(_num_bytes(value) for value in (*op.operands, *op.results)),
      np.array(op.attributes['replica_groups']).shape[1],
    )
    for index, (op, _) in enumerate(found)
  ]


def loss_memory(mlir: str) -> LossMemory | None:
  """Returns the `LossMemory` of a program, None if it has no similarities."""
  module = _parse(mlir)
  ops = list(_all_ops(module.body))
  # The similarities, their gradient to anchors, and that to contrasts.
  products = [
    op
    for op in ops
    if op.name == 'mhlo.dot_general'
    and str(op.attributes['precision_config']).count('HIGHEST') == 2
  ]
  if not products:
    return None
  (similarities,) = products[0].results
  dtype, (anchors, contrasts) = _dtype_and_shape(similarities)
  matrices = {
    value
    for op in products
    for value in (*op.operands, *op.results)
    if value.type == similarities.type
  }
  gathered = [
    _num_bytes(value)
    for op in ops
    if op.name == 'mhlo.all_to_all'
    for value in (*op.operands, *op.results)
    if _dtype_and_shape(value)[0] is dtype
  ]
  return LossMemory(
    anchors,
    contrasts,
    np.dtype(dtype),
    _num_bytes(similarities),
    len(matrices),
    sum(gathered),
  )


def _find_collectives(block, upstream, found):
  """Appends those of a block to `found`, see there.

  Args:
    block: Of MLIR.
    upstream: {value: bits of the collectives that it depends on}, extended.
    found: List of (op, bits).

  Returns:
    Bits of all that the block depends on and holds.
  """
  whole = 0
  for view in block.operations:
    op = view.operation
    bits = 0
    for value in op.operands:
      bits |= upstream.get(value, 0)
    # What a loop hands on to its next step is no dependence within a step.
    for region in op.regions:
      for inner in region:
        bits |= _find_collectives(inner, upstream, found)
    if op.name in _UNITS:
      found.append((op, bits))
      bits |= 1 << (len(found) - 1)
    elif {'replica_groups', 'source_target_pairs'} & {
      attribute.name for attribute in op.attributes
    }:
      raise ValueError(
        f'found {op.name}, expected one of {", ".join(_UNITS)}; add to that '
        'table what it sends'
      )
    for value in op.results:
      upstream[value] = bits
    whole |= bits
  return whole


def _purpose(op, is_needed):
  if op.name == 'mhlo.all_to_all':
    return Purpose.GATHER
  (operand,) = op.operands
  if getattr(operand.owner, 'name', None) == 'mhlo.constant':
    return Purpose.CONSTANTS
  return Purpose.BATCH_NORM if is_needed else Purpose.GRADIENTS


def _all_ops(block):
  for view in block.operations:
    yield view.operation
    for region in view.operation.regions:
      for inner in region:
        yield from _all_ops(inner)


def _dtype_and_shape(value):
  return program.dtype_and_shape(str(value.type)[len('tensor<') : -1])


def _num_bytes(value):
  dtype, shape = _dtype_and_shape(value)
  return np.dtype(dtype).itemsize * int(np.prod(shape))


def _parse(mlir):
  from jaxlib.mlir import ir
  from jaxlib.mlir._mlir_libs import register_jax_dialects
  from jaxlib.mlir.dialects import mhlo

  registry = ir.DialectRegistry()
  register_jax_dialects.register_dialects(registry)
  context = ir.Context()
  context.append_dialect_registry(registry)
  mhlo.register_mhlo_dialect(context)
  context.load_all_available_dialects()
  return ir.Module.parse(mlir, context)
