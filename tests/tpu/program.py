"""What a TPU core would run: taken out of a graph, lowered, executed on CPU.

TPUEstimator marks the ops of the cores' program; TensorFlow's own bridge lowers
them to MHLO, as it does for a TPU; and XLA's CPU client runs the result as N
replicas with collectives, infeed and outfeed.

It does not show what a TPU computes in its own arithmetic, nor what the hosts
do around the program.
"""

import functools
import os
import re
import threading
from typing import NamedTuple
from unittest import mock

import numpy as np
import tensorflow as tf
from tensorflow.python import pywrap_mlir

tf1 = tf.compat.v1

# Marks, shapes and places, of which the program is to know nothing.
_DROPPED_ATTRIBUTES = (
  '_tpu_replicate',
  '_class',
  '_output_shapes',
  '_tpu_input_identity',
  '_tpu_output_identity',
  '_has_manual_control_dependencies',
  '_xla_outside_compilation',
  '_XlaSharding',
)

_PASSES = (
  'symbol-dce,func.func(tf-executor-graph-pruning,'
  'tf-executor-to-functional-conversion),tf-promote-var-handles-to-args',
  'tf-functional-control-flow-to-regions,inline,'
  'func.func(tf-drop-while-shape-invariant,canonicalize),sccp,'
  'tf-guarantee-all-funcs-one-use,tf-shape-inference,'
  'tf-tensor-list-ops-decomposition,tf-tensor-array-ops-decomposition,'
  'func.func(tf-device-decompose-resource-ops)',
  # Variables become arguments and results.
  'tf-promote-resources-to-args,symbol-dce,tf-shape-inference',
  'xla-legalize-tf{use-tf2xla-fallback=true device-type=XLA_CPU_JIT},'
  'func.func(canonicalize,cse)',
)

# As many replicas as a program can be run with.
MAX_REPLICAS = 8

_DTYPES = {
  'i1': np.bool_,
  'i32': np.int32,
  'i64': np.int64,
  'bf16': tf.bfloat16.as_numpy_dtype,
  'f32': np.float32,
  'f64': np.float64,
}


def lower(graph: tf.Graph) -> str:
  """Returns the program of the cores as MHLO.

  Raises:
    ValueError: If part of it is nothing that XLA could compile.
  """
  cores = _extract(graph)
  mlir = pywrap_mlir.import_graphdef(
    cores.graph_def,
    'tf-standard-pipeline',
    False,
    input_names=list(cores.inputs),
    input_data_types=['' for _ in cores.inputs],  # Those of the graph.
    input_data_shapes=[
      ','.join(map(str, shape)) for shape in cores.inputs.values()
    ],
    output_names=cores.outputs,
  )
  for passes in _PASSES:
    mlir = tf.mlir.experimental.run_pass_pipeline(
      mlir, passes, show_debug_info=False
    )
  left = sorted(set(re.findall(r'"(tf\.\w+)"', mlir)))
  if left:
    raise ValueError(f'the bridge cannot lower {", ".join(left)} for XLA')
  return mlir


def in_float64(mlir: str) -> str:
  """Returns the same program with float64 wherever it had float32.

  Constants keep the value that they had in float32.
  """

  def wide_bytes(match):
    """Constants in hexadecimal: one value, or the bytes of many."""
    quote, digits, shape = match.groups()
    order = '<' if quote else '>'  # A single one is written as a number.
    values = np.frombuffer(bytes.fromhex(digits), f'{order}f4')
    digits = values.astype(f'{order}f8').tobytes().hex().upper()
    return f'dense<{quote}0x{digits}{quote}> : tensor<{shape}f64>'

  def wide_decimals(match):
    values, shape = match.groups()
    # Printed with nine digits, which say which float32 is meant.
    values = re.sub(
      r'[-+.\dE]+', lambda digits: f'{np.float32(digits[0]):.17E}', values
    )
    return f'dense<{values}> : tensor<{shape}f64>'

  kind = r'> : tensor<((?:\d+x)*)f32>'
  mlir = re.sub(r'dense<("?)0x([0-9A-F]+)"?' + kind, wide_bytes, mlir)
  mlir = re.sub(r'dense<([-+.\dE, \[\]]+)' + kind, wide_decimals, mlir)
  return re.sub(r'(?<=[x<])f32\b', 'f64', mlir)


class Ran(NamedTuple):
  """What is left of a run.

  Attributes:
    variables: {name: [array of each replica]} after it, of what it may change.
    results: [[array of each replica]] of what it returns besides.
    outfed: [step][replica] -> list of arrays that it sent to the host.
  """

  variables: dict
  results: list
  outfed: list


class Executable:
  """A program compiled for N replicas on CPU."""

  def __init__(self, mlir: str, num_replicas: int):
    from jaxlib import xla_client

    self._devices = _client().local_devices()[:num_replicas]
    options = xla_client.CompileOptions()
    options.num_replicas = num_replicas
    options.device_assignment = xla_client.DeviceAssignment.create(
      np.arange(num_replicas).reshape(num_replicas, 1)
    )
    self._executable = _compile(mlir, self._devices, options)
    self._arguments = _arguments(mlir)
    shape = xla_client.Shape
    self._outfeed = shape.tuple_shape(
      [
        shape.array_shape(np.dtype(dtype), sizes)
        for dtype, sizes in _outfeed(mlir)
      ]
    )

  def run(self, variables, infeed):
    """Runs the loop of all steps once.

    Args:
      variables: {name: array} before the first step, alike for all replicas.
      infeed: [step][replica] -> tuple of arrays, in the order of the program.

    Returns:
      A `Ran`.
    """
    steps, count = len(infeed), len(self._devices)
    buffers = self._buffers(variables)
    for step in infeed:
      for device, arrays in zip(self._devices, step):
        device.transfer_to_infeed(tuple(arrays))
    outfed = [[None] * count for _ in range(steps)]

    def receive(index):
      for step in range(steps):
        arrays = self._devices[index].transfer_from_outfeed(self._outfeed)
        outfed[step][index] = [np.asarray(array) for array in arrays]

    # The program waits until what it sends is taken, each replica for itself.
    threads = [
      threading.Thread(target=receive, args=[index], daemon=True)
      for index in range(count)
    ]
    for thread in threads:
      thread.start()
    results = self._executable.execute_sharded(buffers)
    results = results.disassemble_into_single_device_arrays()
    for thread in threads:
      thread.join()
    results = [[np.asarray(array) for array in each] for each in results]
    places = {
      argument.result: argument.name
      for argument in self._arguments
      if argument.result is not None
    }
    return Ran(
      {name: results[place] for place, name in places.items()},
      [each for place, each in enumerate(results) if place not in places],
      outfed,
    )

  def _buffers(self, variables):
    def buffer(argument, index, device):
      value = index if argument.name is None else variables[argument.name]
      value = np.asarray(value, argument.dtype).reshape(argument.shape)
      return _client().buffer_from_pyval(value, device)

    return [
      [buffer(argument, *each) for each in enumerate(self._devices)]
      for argument in self._arguments
    ]


class _Argument(NamedTuple):
  """An argument of a program: a variable, or the number of the replica.

  Attributes:
    name: Of the variable; None for the number of the replica.
    dtype: Of NumPy.
    shape: List of ints.
    result: Which result of the program is its value afterwards, or None.
  """

  name: str | None
  dtype: type
  shape: list
  result: int | None


def _arguments(mlir):
  """Returns the `_Argument`s of a program."""
  (head,) = re.findall(r'func.func @main\((.*)\) -> ', mlir)
  result = []
  for kind, attributes in re.findall(
    r'%arg\d+: tensor<([^>]*)>(?: \{([^}]*)\})?', head
  ):
    name = re.search(r'tf.resource_name = "([^"]*)"', attributes)
    alias = re.search(r'tf.aliasing_output = (\d+)', attributes)
    result.append(
      _Argument(
        name and name[1], *dtype_and_shape(kind), alias and int(alias[1])
      )
    )
  return result


def _outfeed(mlir):
  """Returns (dtype, shape) of each tensor that a step sends to the host."""
  kinds = re.findall(r'"mhlo.outfeed".*: \((.*), !mhlo.token\) ->', mlir)
  if not kinds:
    return []
  (kinds,) = kinds
  return [dtype_and_shape(kind) for kind in re.findall(r'<([^>]*)>', kinds)]


def dtype_and_shape(kind):
  """Returns (dtype of NumPy, list of ints) of a type such as '2x3xf32'."""
  *shape, dtype = kind.split('x')
  return _DTYPES[dtype], [int(size) for size in shape]


class _Cores(NamedTuple):
  """The marked part of a graph, with its surroundings cut off."""

  graph_def: tf1.GraphDef
  inputs: dict  # {name of node: list of ints, its shape}.
  outputs: list  # Names of tensors.


def _extract(graph):
  """Returns the ops that are marked for the cores, a `_Cores`."""
  whole = graph.as_graph_def(add_shapes=True)
  nodes = {node.name: node for node in whole.node}
  marked = {
    name: node for name, node in nodes.items() if '_tpu_replicate' in node.attr
  }
  part = tf1.GraphDef(versions=whole.versions, library=whole.library)
  for function in part.library.function:
    for node in function.node_def:
      _strip(node)
  inputs, outside = {}, {}
  for name, node in marked.items():
    if node.op == 'TPUReplicateMetadata':
      part.node.add(name=name, op='NoOp')
      continue
    inside = []
    for tensor in node.input:
      source = nodes[_node_of(tensor)]
      if source.name in marked:
        inside.append(tensor)
      elif not tensor.startswith('^'):
        inside.append(tensor)
        outside[source.name] = source
    copy = part.node.add()
    copy.CopyFrom(node)
    copy.ClearField('input')
    copy.input.extend(inside)
    _strip(copy)
  for name, node in outside.items():
    if node.op == 'TPUReplicatedInput':
      shape = node.attr['_output_shapes'].list.shape[0]
      copy = part.node.add(name=name, op='Placeholder')
      copy.attr['dtype'].type = node.attr['T'].type
      copy.attr['shape'].shape.CopyFrom(shape)
      inputs[name] = [dimension.size for dimension in shape.dim]
    elif node.op in ('VarHandleOp', 'Const'):
      copy = part.node.add()
      copy.CopyFrom(node)
      _strip(copy)
    else:
      raise ValueError(f'the program takes {name}, a {node.op}, from outside')
  outputs = [
    node.input[0] for node in whole.node if node.op == 'TPUReplicatedOutput'
  ]
  return _Cores(part, inputs, outputs)


def _node_of(tensor):
  return tensor.lstrip('^').split(':')[0]


def _strip(node):
  node.device = ''
  for name in _DROPPED_ATTRIBUTES:
    node.attr.pop(name, None)


# --- XLA's CPU client ---------------------------------------------------------
#
# It comes from jaxlib 0.4.23 beside TensorFlow 2.15, and from jaxlib 0.6.2, the
# last one with an infeed and an outfeed, beside a newer TensorFlow.


@functools.cache
def _client():
  from jaxlib import xla_client

  devices = f'--xla_force_host_platform_device_count={MAX_REPLICAS}'
  flags = f'{os.environ.get("XLA_FLAGS", "")} {devices}'
  jit = xla_client._xla.jax_jit
  if hasattr(jit.global_state(), 'enable_memories'):  # jaxlib 0.4.23.
    # Without JAX, nobody else tells a new thread what it has to know about JAX.
    jit.set_thread_local_state_initialization_callback(lambda: None)
    jit.global_state().enable_memories = False
  with mock.patch.dict(os.environ, XLA_FLAGS=flags):
    return xla_client.make_cpu_client()


def _compile(mlir, devices, options):
  from jaxlib import xla_client

  if not hasattr(_client(), 'compile_and_load'):  # jaxlib 0.4.23.
    return _client().compile(mlir, options)
  return _client().compile_and_load(
    mlir, xla_client.DeviceList(tuple(devices)), options
  )
