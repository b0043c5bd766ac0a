"""Compares the memory of real steps with what footprint expects.

  python -m tests.benchmarks.memory [NAME ...]

Each configuration is trained for two steps in a process of its own, on CPU; its
peak, the maximal resident set, stands beside the estimate. The estimate should
be within 25%, and not above the peak by more: `footprint` refuses what is well
above.
"""

import os
import pathlib
import subprocess
import sys
import tempfile

from supcon.compute import devices
from supcon.training import footprint
from tests import flag_parsing

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent

_SMALL_STEM = {
  'first_conv_kernel_size': 3,
  'first_conv_stride': 1,
  'use_initial_max_pool': False,
}
_R18 = {'resnet_depth': 18, **_SMALL_STEM}
_R50 = {'image_size': 32, **_SMALL_STEM}
_MOMENTUM = {
  'stage_1_optimizer': 'MOMENTUM',
  'stage_2_optimizer': 'MOMENTUM',
}
_STEPS = {  # name: flags
  'r18w25_16_b128': {
    **_R18,
    'batch_size': 128,
    'resnet_width': 0.25,
    'image_size': 16,
  },
  'r18w25_64_b128': {
    **_R18,
    'batch_size': 128,
    'resnet_width': 0.25,
    'image_size': 64,
  },
  'r18_32_b128': {**_R18, 'batch_size': 128, 'image_size': 32},
  'r50_32_b16': {**_R50, 'batch_size': 16},
  'r50_32_b32': {**_R50, 'batch_size': 32},
  'r50_32_b64': {**_R50, 'batch_size': 64},
  'r50_32_b64_bfloat16': {
    **_R50,
    'batch_size': 64,
    'allow_mixed_precision': True,
  },
  'r50_224_b8': {'batch_size': 8},
  'r50_224_b16': {'batch_size': 16},
  'r50_224_b16_momentum': {'batch_size': 16, **_MOMENTUM},
  # Here an evaluation with batches of 128 is what needs most.
  'r50_224_b8_eval': {'batch_size': 8, 'mode': 'train_then_eval'},
}


def main():
  print(f'{"":22} peak, MiB  estimate')
  with tempfile.TemporaryDirectory() as directory:
    for name in sys.argv[1:] or _STEPS:
      flags = {
        'mode': 'train',
        'use_tpu': False,
        'input_fn': 'digits',
        'data_dir': f'{directory}/data',
        'model_dir': f'{directory}/{name}',
        'num_images': 2 * _STEPS[name]['batch_size'],
        'num_eval_images': 256,
        'stage_1_epochs': 1,
        'stage_1_warmup_epochs': 0,
        'stage_2_epochs': 0,
        'augmentation_type': 'IDENTITY',
        'eval_crop_method': 'CROP_THEN_RESIZE',
        'crop_padding': 0,
        'export_formats': 'saved_model',
        **_STEPS[name],
      }
      arguments = [f'--{flag}={value}' for flag, value in flags.items()]
      expected = _estimate(arguments) / 2**20
      peak = _peak(arguments) / 2**20
      print(
        f'{name:22} {peak:9.0f} {expected:9.0f} {expected / peak - 1:+5.0%}',
        flush=True,
      )


def _estimate(arguments):
  """Returns the bytes of the step that needs most."""
  options, params = flag_parsing.parse(arguments)
  steps = [footprint.training_step(params, params.stage_1, 10, 1)]
  if options.evaluates:
    steps.append(footprint.evaluation_step(params, 10, num_views=2))
  room = footprint.Room(None, 1, footprint.PROCESS_BYTES, '')
  is_half = params.input_data.preprocessing.allow_mixed_precision
  size = 2 if is_half and devices.cpu_has_bfloat16() else 4
  return max(room.needs(step._replace(activation_bytes=size)) for step in steps)


def _peak(arguments):
  """Returns the maximal resident set of a training, in bytes."""
  process = subprocess.Popen(
    [sys.executable, str(ROOT / 'main.py'), *arguments],
    stdout=subprocess.DEVNULL,
    stderr=subprocess.DEVNULL,
  )
  _, status, usage = os.wait4(process.pid, 0)
  if status:
    raise SystemExit(f'{" ".join(arguments)}: status {status}')
  return 1024 * usage.ru_maxrss


if __name__ == '__main__':
  main()
