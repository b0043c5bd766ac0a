"""Time and memory of a step in micro-batches or with a memory.

  python -m tests.benchmarks.micro_batches [--depth=18 --batch=256 --micro=32]

SupCon with momentum, in two views of random pixels. Both steps take turns in
one process, so that a busy machine slows both; the ratio is that of the
medians. Gradient caching embeds twice, so 4/3 is expected, and at most 1.4.

The memory is that of processes of their own, after two steps, above that of a
batch of 1: the batch in one pass, a batch as large as a micro-batch, and the
batch in micro-batches, which should take 5% more than the second, plus images,
embeddings and similarities of the whole batch.

  python -m tests.benchmarks.micro_batches --image_size=224 --depth=50 \\
    --batch=1024 --micro=32 --alone

makes one step in micro-batches, and prints its time and its peak memory beside
the estimate of footprint.

  python -m tests.benchmarks.micro_batches --depth=50 --batch=64 --micro=0 \\
    --memory_size=65536

compares steps with a memory of features: of the model itself, and of its slow
copy, which embeds once more: 4/3 of the time at most.
"""

import argparse
import dataclasses
import os
import pathlib
import re
import subprocess
import sys
import time

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')

import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402

from supcon.config import enums  # noqa: E402
from supcon.config import hparams  # noqa: E402
from supcon.training import footprint  # noqa: E402
from supcon.training import stages  # noqa: E402
from tests import model_functions  # noqa: E402

tf1 = tf.compat.v1

_VIEWS, _CLASSES = 2, 10
_MIB = 2**20


def _params(args, batch, micro, memory=None):
  architecture = hparams.Architecture(
    encoder_depth=args.depth, use_global_batch_norm=False
  )
  if args.image_size < 64:
    architecture = dataclasses.replace(
      architecture,
      first_conv_kernel_size=3,
      first_conv_stride=1,
      use_initial_max_pool=False,
    )
  stage = hparams.Stage(
    epochs=1, warmup_epochs=0.0, optimizer=enums.Optimizer.MOMENTUM
  )
  return hparams.HParams(
    batch_size=batch,
    micro_batch_size=micro,
    memory=memory or hparams.Memory(),
    architecture=architecture,
    stage_1=stage,
    stage_2=dataclasses.replace(stage, epochs=0),
    input_data=hparams.InputData(
      preprocessing=hparams.Preprocessing(
        image_size=args.image_size,
        augmentation_type=enums.AugmentationType.IDENTITY,
      )
    ),
  )


class Step:
  """A training step, in a graph and a session of its own."""

  def __init__(self, params):
    batch = params.batch_size
    side = params.input_data.preprocessing.image_size
    plan = stages.plan(params, batch)
    function = model_functions.make(params, plan, plan.stages[0], _CLASSES)
    with tf.Graph().as_default() as graph:
      tf1.set_random_seed(0)
      shape = [batch, _VIEWS, side, side, 3]
      images = tf.random.stateless_uniform(shape, [0, 0], -1.0, 1.0)
      spec = function.train({'images': images}, tf.range(batch) % _CLASSES)
      self._fetches = [spec.loss, spec.train_op]
      self._session = tf1.Session(graph=graph)
      self._session.run(tf1.global_variables_initializer())

  def __call__(self):
    """Returns the loss before the step, and the seconds that it took."""
    start = time.perf_counter()
    loss, _ = self._session.run(self._fetches)
    return loss, time.perf_counter() - start


def _times(args):
  steps = {'one pass': Step(_params(args, args.batch, 0))}
  if args.micro:
    steps['micro-batches'] = Step(_params(args, args.batch, args.micro))
  for momentum in (0.0, args.memory_momentum) if args.memory_size else ():
    memory = hparams.Memory(args.memory_size, momentum)
    name = f'momentum {momentum:g}'
    steps[name] = Step(_params(args, args.batch, 0, memory))
  seconds = {name: [] for name in steps}
  for repeat in range(args.repeats + 1):
    for name, step in steps.items():
      loss, duration = step()
      print(f'  {name:14} loss {loss:.5f}  {duration:.2f} s', flush=True)
      if repeat:  # The first step allocates.
        seconds[name].append(duration)
  whole, *others = (np.median(each) for each in seconds.values())
  print(f'time    {whole:.2f} s in one pass')
  for name, other in zip([*seconds][1:], others):
    print(f'        {other:.2f} s, {name}: ratio {other / whole:.2f}')


def _memory(args):
  peaks = [
    _peak_of(args, *sizes)
    for sizes in (
      (1, 0),
      (args.batch, 0),
      (args.micro, 0),
      (args.batch, args.micro),
    )
  ]
  least, whole, micro, parts = peaks
  print(
    f'memory  {whole - least:.0f} MiB in one pass, {parts - least:.0f} in '
    f'micro-batches, {micro - least:.0f} for a batch of {args.micro} '
    f'(above the {least:.0f} MiB of a batch of 1)'
  )


def _peak_of(args, batch, micro):
  """Returns the peak memory of a process that makes two steps, in MiB."""
  command = [sys.executable, '-m', 'tests.benchmarks.micro_batches']
  command += [f'--depth={args.depth}', f'--image_size={args.image_size}']
  command += [f'--batch={batch}', f'--micro={micro}', '--alone', '--repeats=1']
  output = subprocess.run(command, check=True, capture_output=True, text=True)
  print(f'  {output.stdout.splitlines()[-1]}', flush=True)
  return int(output.stdout.split('peak')[1].split()[0])


def _alone(args):
  memory = hparams.Memory(args.memory_size, args.memory_momentum)
  params = _params(args, args.batch, args.micro, memory)
  needed = footprint.training_step(params, params.stage_1, _CLASSES, 1)
  room = footprint.Room(None, 1, footprint.PROCESS_BYTES, '')
  step = Step(params)
  for _ in range(args.repeats + 1):
    loss, seconds = step()
    print(f'  loss {loss:.5f}  {seconds:.1f} s', flush=True)
  # The maximal resident set of getrusage would include that of the parent.
  status = pathlib.Path('/proc/self/status').read_text()
  peak = int(re.search(r'VmHWM:\s*(\d+) kB', status)[1]) // 1024
  print(
    f'batch {args.batch}, micro-batches of {args.micro or args.batch}, memory '
    f'of {args.memory_size}: peak {peak} MiB, estimate '
    f'{room.needs(needed) // _MIB} MiB, {_VIEWS * args.batch / seconds:.1f} '
    'images/s'
  )


def main():
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--depth', type=int, default=18)
  parser.add_argument('--image_size', type=int, default=32)
  parser.add_argument('--batch', type=int, default=256)
  parser.add_argument('--micro', type=int, default=32)
  parser.add_argument('--memory_size', type=int, default=0)
  parser.add_argument('--memory_momentum', type=float, default=0.999)
  parser.add_argument('--repeats', type=int, default=3)
  parser.add_argument('--alone', action='store_true')
  args = parser.parse_args()
  tf1.disable_v2_behavior()  # As in main.py: the loops are of another kind.
  tf1.enable_v2_tensorshape()
  if args.alone:
    _alone(args)
    return
  _times(args)
  if args.micro:
    _memory(args)


if __name__ == '__main__':
  main()
