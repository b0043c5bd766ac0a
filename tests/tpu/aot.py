"""Compiles a program with the TPU's own compiler, without a TPU.

  DIR/bin/python tests/tpu/aot.py FILE TOPOLOGY

FILE is a serialized HloModuleProto, TOPOLOGY for instance v3:2x2, 2 x 2 chips
of two cores. It runs in the environment of make_aot_environment.sh, where there
is no TensorFlow, and prints JSON:

  topology, device, num_cores
  compiled     Whether; if not, `error` says why, and no more follows.
  seconds      Of the compilation.
  memory       {part: bytes} of each core: arguments (the variables), outputs,
               aliased (outputs that take the place of arguments), temporaries,
               code; and the total, aliased ones counted once.
  collectives  [{name, dtype, number, bytes}]: number of instructions, and
               bytes of all their results of this type; each in a loop counts
               once.
  products     [{result, operands}]: types of the matrix products of highest
               precision, those of the contrastive loss.

The status is 1 if the program does not compile.
"""

import argparse
import collections
import json
import math
import os
import pathlib
import re
import sys
import time

# There is no TPU to be found, and nobody to be asked for one.
os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')
os.environ.setdefault('JAX_PLATFORMS', 'cpu')

from jax._src.interpreters import mlir  # noqa: E402
from jax.experimental import topologies  # noqa: E402
from jaxlib import _jax  # noqa: E402
from jaxlib import xla_client  # noqa: E402
from jaxlib.mlir import ir  # noqa: E402
import numpy as np  # noqa: E402

_COLLECTIVES = (
  'all-gather',
  'all-reduce',
  'all-to-all',
  'collective-permute',
  'reduce-scatter',
)
_BYTES = {'bf16': 2, 'f32': 4, 'f64': 8, 'pred': 1, 's32': 4, 's64': 8}

# '%name = type opcode(operands), attributes'; types hold upper-case letters and
# parentheses of layouts, and comments.
_INSTRUCTION = re.compile(
  r'^\s*(?:ROOT )?%(\S+) = (.+?) ([a-z][a-z0-9-]*)\((.*)$', re.MULTILINE
)
_ARRAY = re.compile(r'\b([a-z]+\d*)\[([\d,]*)\]')


def compile_for(topology, program):
  """Compiles for all cores of a topology.

  Args:
    topology: Such as 'v3:2x2'.
    program: Bytes of an HloModuleProto.

  Returns:
    A dictionary as described at the top of this file.
  """
  devices = topologies.get_topology_desc(
    platform='tpu', topology_name=topology
  ).devices
  result = {
    'topology': topology,
    'device': devices[0].device_kind,
    'num_cores': len(devices),
  }
  options = xla_client.CompileOptions()
  options.num_replicas = len(devices)
  options.num_partitions = 1
  options.device_assignment = xla_client.DeviceAssignment.create(
    np.arange(len(devices)).reshape(-1, 1)
  )
  text = _jax.mlir.xla_computation_to_mlir_module(
    xla_client.XlaComputation(program)
  )
  start = time.perf_counter()
  try:
    with mlir.make_ir_context():
      executable = devices[0].client.compile(
        ir.Module.parse(text), xla_client.DeviceList(tuple(devices)), options
      )
  except xla_client.XlaRuntimeError as error:
    return {**result, 'compiled': False, 'error': str(error)}
  (module,) = executable.hlo_modules()
  return {
    **result,
    'compiled': True,
    'seconds': round(time.perf_counter() - start, 1),
    'memory': _memory(executable.get_compiled_memory_stats()),
    **_contents(module.to_string()),
  }


def _memory(stats):
  parts = {
    'arguments': stats.argument_size_in_bytes,
    'outputs': stats.output_size_in_bytes,
    'aliased': stats.alias_size_in_bytes,
    'temporaries': stats.temp_size_in_bytes,
    'code': stats.generated_code_size_in_bytes,
  }
  return {**parts, 'total': sum(parts.values()) - 2 * parts['aliased']}


def _contents(text):
  """Returns collectives and products of a compiled program."""
  instructions = _INSTRUCTION.findall(text)
  types = {name: kind for name, kind, _, _ in instructions}
  numbers, sizes = collections.Counter(), collections.Counter()
  products = []
  for _, kind, opcode, rest in instructions:
    opcode = opcode.removesuffix('-start')
    arrays = _ARRAY.findall(kind)
    if opcode in _COLLECTIVES:
      numbers.update({(opcode, dtype) for dtype, _ in arrays})
      for dtype, shape in arrays:
        count = math.prod(int(size) for size in shape.split(',') if size)
        sizes[opcode, dtype] += _BYTES[dtype] * count
    elif 'operand_precision={highest,highest}' in rest:
      operands = re.findall(r'%([^\s,)]+)', rest.partition(')')[0])
      products.append(
        {
          'result': _plain(kind),
          'operands': [_plain(types[operand]) for operand in operands],
        }
      )
  return {
    'collectives': [
      {
        'name': name,
        'dtype': dtype,
        'number': number,
        'bytes': sizes[name, dtype],
      }
      for (name, dtype), number in numbers.items()
    ],
    'products': products,
  }


def _plain(kind):
  """Returns a type without its layout: 'f32[96,128]'."""
  return _ARRAY.search(kind)[0]


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('file', type=pathlib.Path)
  parser.add_argument('topology')
  args = parser.parse_args()
  result = compile_for(args.topology, args.file.read_bytes())
  json.dump(result, sys.stdout, indent=2)
  print()
  sys.exit(not result['compiled'])


if __name__ == '__main__':
  main()
