"""What a graph says about the order of its operations."""


def ancestors(op):
  """Returns the operations that run before `op` does."""
  found, waiting = set(), [op]
  while waiting:
    op = waiting.pop()
    before = {*op.control_inputs, *(tensor.op for tensor in op.inputs)}
    waiting.extend(before - found)
    found |= before
  return found
