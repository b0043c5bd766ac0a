"""Counts what a training step sends between TPU cores, and what its loss holds.

  python -m tests.benchmarks.scaling

For each number of cores it builds the whole training graph of a published
script without a TPU, lowers it with TensorFlow's own bridge, and reads every
figure off the result: nothing is assumed of the model. Each core keeps the
share of the batch that the script is meant to give it.

Of a collective of S bytes (operand or result, the larger) among n cores, each
core sends, whatever the number of hops,

  all-to-all             (n - 1) / n S
  all-reduce, in a ring  2 (n - 1) / n S

and nothing for a sum of constants, which XLA computes beforehand. What a
collective is for follows from the program: all-to-alls gather, sums that other
collectives depend on are batch norm's, forward or backward, and the rest are
gradients, with the few numbers that a step reports. ResNet-50 sends 3,840
numbers fewer than it has parameters: as many as its shortcuts have beta's, of
which the main branches have the same gradients.

The memory of the loss is that of its matrices [anchors of a core, contrasts of
all] which a matrix product reads or writes, the similarities and their
gradient, and of the features before and after each all-to-all, as if all lived
at once. What lies between the matrices is element-wise, and left to XLA to
fuse.
"""

import argparse
import json
import logging
import os
import pathlib
import time

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
logging.getLogger('tensorflow').setLevel(logging.ERROR)

from tests.tpu import program  # noqa: E402
from tests.tpu import scripts  # noqa: E402
from tests.tpu import traffic  # noqa: E402

_CORES = '8,32,128,512,2048'
_CORE_MEMORY = 16 * 2**30  # Of a TPU v3.
_SCRIPT = 'supcon_imagenet_resnet50'
_HEADER = (
  '  cores   batch |  gather  batch norm  gradients  MB/step |'
  '  similarities     loss holds  of 16 GiB | build'
)


def measure(script, num_cores):
  """Returns the figures of a script on so many cores, for JSON."""
  start = time.perf_counter()
  mlir = program.lower(scripts.training_graph(script, num_cores))
  collectives = traffic.collectives(mlir)
  memory = traffic.loss_memory(mlir)
  result = {
    'num_cores': num_cores,
    'batch_size': scripts.params(script, num_cores).batch_size,
    'collectives': {},
    'seconds_to_build': time.perf_counter() - start,
  }
  for purpose in traffic.Purpose:
    its_own = [each for each in collectives if each.purpose is purpose]
    result['collectives'][purpose.value] = {
      'number': len(its_own),
      'bytes': sum(each.size for each in its_own),
      'bytes_sent': round(sum(each.bytes_sent for each in its_own)),
    }
  if memory:
    result['loss'] = {
      'anchors': memory.anchors,
      'contrasts': memory.contrasts,
      'dtype': memory.dtype.name,
      'bytes_of_similarities': memory.matrix,
      'number_of_such_matrices': memory.num_matrices,
      'bytes_of_gathered_features': memory.gathered,
      'bytes': memory.total,
      'share_of_core': memory.total / _CORE_MEMORY,
    }
  return result


def row(figures):
  """Returns a line of the table."""
  sent = [
    figures['collectives'][purpose.value]['bytes_sent'] / 1e6
    for purpose in (
      traffic.Purpose.GATHER,
      traffic.Purpose.BATCH_NORM,
      traffic.Purpose.GRADIENTS,
    )
  ]
  line = (
    f'{figures["num_cores"]:7d} {figures["batch_size"]:7d} |'
    f' {sent[0]:7.2f} {sent[1]:11.3f} {sent[2]:10.2f} {sum(sent):8.2f} |'
  )
  loss = figures.get('loss')
  if loss:
    shape = f'{loss["anchors"]} x {loss["contrasts"]}'
    line += (
      f' {shape:>13} {loss["bytes"] / 1e6:12.1f} MB'
      f' {loss["share_of_core"]:9.3%}'
    )
  else:
    line += f' {"no such loss":>40}'
  return f'{line} | {figures["seconds_to_build"]:3.0f} s'


def _numbers_of_cores(text):
  numbers = [int(each) for each in text.split(',')]
  if any(number < 4 or number % 4 for number in numbers):
    raise argparse.ArgumentTypeError(
      f'{text!r} has a number that is no multiple of 4, the cores of a host'
    )
  return numbers


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument(
    '--cores',
    type=_numbers_of_cores,
    default=_CORES,
    metavar='N,N,...',
    help='multiples of 4 (default: %(default)s)',
  )
  parser.add_argument('--script', choices=scripts.NAMES, default=_SCRIPT)
  parser.add_argument(
    '--output', type=pathlib.Path, metavar='FILE', help='write JSON as well'
  )
  args = parser.parse_args()

  print(f'{args.script}: stage 1, per core and step (MB = 10^6 bytes)')
  print(_HEADER, flush=True)
  results = []
  for num_cores in args.cores:
    results.append(measure(args.script, num_cores))
    print(row(results[-1]), flush=True)
  if args.output:
    args.output.write_text(json.dumps({args.script: results}, indent=2) + '\n')


if __name__ == '__main__':
  main()
