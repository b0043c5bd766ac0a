"""Times the input pipeline against its floor and the published design.

  python -m tests.benchmarks.input

Photographs: 500x375 JPEGs of about 80 kB, nothing cached, two views of 224,
batches of 64. Against each augmentation stand the floor (decode once, two
random crops, bilinear resize, batch, nothing else) and the design of the
published pipeline (see published_input.py). CIFAR-10: images of 32x32 in
memory, two views.

All pipelines live in one process and take turns, so that a busy machine slows
all. Figures are medians over the turns, of examples per second and of the
milliseconds that one core works on an example, which suffer less from what else
the machine does; ratios are medians of those of each turn: compare ratios.
--output writes all of it as JSON.
"""

import argparse
import functools
import json
import os
import pathlib
import sys
import time

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402

from supcon.config import enums  # noqa: E402
from supcon.config import hparams  # noqa: E402
from supcon.data import inputs  # noqa: E402
from supcon.data import seeds  # noqa: E402
from supcon.data.views import image_ops  # noqa: E402
from supcon.data.views import policies  # noqa: E402
from supcon.data.views import preprocessing  # noqa: E402
from supcon.reports import pipeline_costs  # noqa: E402
from tests.benchmarks import published_input  # noqa: E402

_VIEWS = 2
# Where colors are changed: in the pipeline, or in the model.
_PLACES = {'': {}, ', deferred': {'defer_augmentation': True}}
_KINDS = (
  enums.AugmentationType.SIMCLR,
  enums.AugmentationType.AUTOAUGMENT,
  enums.AugmentationType.STACKED_RANDAUGMENT,
)


# ------------------------------------------------------------------- images


def photograph(height, width, seed):
  """Something as smooth, as colored and as noisy as a photograph, uint8."""
  random = np.random.RandomState(seed)
  image = np.zeros([height, width, 3], np.float32)
  # Natural images have about as much contrast at each scale.
  for scale in (2, 4, 8, 16, 32, 64, 128):
    shape = [height // scale + 2, width // scale + 2]
    grey = random.normal(size=[*shape, 1])
    color = random.normal(size=[*shape, 3])
    layer = (grey + 0.4 * color) * min(scale / 32, 1)
    image += tf.image.resize(layer, [height, width], 'bicubic').numpy()
  image = 127 + 45 * image + random.normal(scale=3, size=image.shape)
  return np.clip(image, 0, 255).astype(np.uint8)


def jpegs(count, height=375, width=500, num_bytes=72_000):
  """Encoded photographs, each in the quality that takes about so many bytes."""
  encoded = []
  for seed in range(count):
    image = photograph(height, width, seed)
    encoded.append(
      min(
        (
          tf.io.encode_jpeg(image, quality=quality).numpy()
          for quality in range(60, 100, 3)
        ),
        key=lambda code: abs(len(code) - num_bytes),
      )
    )
  return encoded


def pngs(count):
  return [
    tf.io.encode_png(photograph(32, 32, seed)).numpy() for seed in range(count)
  ]


# ---------------------------------------------------------------- pipelines


def _batches(encoded, views, batch_size):
  """Batches of what `views` makes of (encoded image, its number)."""
  examples = tf.data.Dataset.from_tensor_slices(encoded).repeat().enumerate()
  examples = examples.map(
    lambda index, encoded: views(encoded, index),
    num_parallel_calls=tf.data.AUTOTUNE,
  )
  return _prefetched(examples.batch(batch_size, drop_remainder=True))


def _prefetched(batches):
  options = tf.data.Options()
  options.deterministic = True
  # One call per core. What is tuned is also buffered, and made ahead while
  # others have their turn.
  options.autotune.enabled = False
  return batches.prefetch(1).with_options(options)


def _floor(encoded, index, side):
  """Decode once, two random crops, bilinear resize."""
  del index
  image = tf.io.decode_image(encoded, channels=3, expand_animations=False)
  image.set_shape([None, None, 3])
  views = []
  for _ in range(_VIEWS):
    crop = published_input.random_crop(image)
    views.append(tf.compat.v1.image.resize(crop, [side, side]))
  return tuple(views)


def _decode_only(encoded, index):
  del index
  return tf.io.decode_image(encoded, channels=3, expand_animations=False)[0, 0]


def _published(encoded, index, kind, side):
  del index
  image = tf.io.decode_image(encoded, channels=3, expand_animations=False)
  image.set_shape([None, None, 3])
  views = [published_input.view(image, kind, side) for _ in range(_VIEWS)]
  return tf.concat(views, axis=-1)


def _published_cached(image, index, kind, side):
  """The published pipeline caches what is decoded."""
  del index
  views = [published_input.view(image, kind, side) for _ in range(_VIEWS)]
  return tf.concat(views, axis=-1)


def our_batches(encoded, kind, side, batch_size, **fields):
  params = hparams.Preprocessing(
    augmentation_type=kind,
    augmentation_magnitude=0.5,
    image_size=side,
    num_views=_VIEWS,
    **fields,
  )
  mean, std = (-0.0172, -0.0356, -0.107), (0.4046, 0.3988, 0.402)

  def views(index, encoded):
    key = seeds.key(0, seeds.Purpose.TRAIN_VIEWS, 0, index)
    return preprocessing.train_views(
      encoded, seeds.scrambled(key), params, True, policies.IMAGENET_POLICY
    )

  examples = tf.data.Dataset.from_tensor_slices(encoded).repeat().enumerate()
  examples = examples.map(views, num_parallel_calls=tf.data.AUTOTUNE)
  finish = functools.partial(
    preprocessing.finish_on_host,
    settings=params,
    mean=mean,
    std=std,
    dtype=tf.float32,
  )
  if params.defer_augmentation:
    finish = None
  return _prefetched(inputs.in_batches(examples, batch_size, finish))


def photograph_pipelines(encoded, batch_size):
  """name -> data set of batches."""
  make = functools.partial(_batches, encoded, batch_size=batch_size)
  pipelines = {
    'decode only': make(_decode_only),
    'floor': make(functools.partial(_floor, side=224)),
  }
  for kind in _KINDS:
    arguments = dict(kind=kind, side=224)
    pipelines[f'published {kind.name}'] = make(
      functools.partial(_published, **arguments)
    )
    for name, fields in _PLACES.items():
      pipelines[f'{kind.name}{name}'] = our_batches(
        encoded, batch_size=batch_size, **arguments, **fields
      )
  return pipelines


def cifar10_pipelines(encoded, batch_size):
  make = functools.partial(_batches, batch_size=batch_size)
  arguments = dict(kind=enums.AugmentationType.SIMCLR, side=32)
  decoded = np.stack([image_ops.decode(each) for each in encoded])
  return {
    'published SIMCLR': make(
      decoded, functools.partial(_published_cached, **arguments)
    ),
    **{
      f'SIMCLR{name}': our_batches(
        decoded, batch_size=batch_size, **arguments, **fields
      )
      for name, fields in _PLACES.items()
    },
  }


# ------------------------------------------------------------------ measure


def measure(pipelines, batch_size, batches_per_turn, turns):
  """Returns name -> [turns, 2]: seconds and seconds of one core per example."""
  iterators = {}
  for name, pipeline in pipelines.items():
    iterators[name] = iter(pipeline)
    next(iterators[name])
  seconds = {name: [] for name in pipelines}
  for _ in range(turns):
    for name, iterator in iterators.items():
      for _ in range(2):  # What was made ahead.
        next(iterator)
      start = np.array([time.perf_counter(), time.process_time()])
      for _ in range(batches_per_turn):
        next(iterator)
      end = np.array([time.perf_counter(), time.process_time()])
      seconds[name].append((end - start) / (batch_size * batches_per_turn))
      # It fills its buffers before another one has its turn.
      pipeline_costs.wait_until_idle()
    print('.', end='', flush=True)
  print()
  return {name: np.array(each) for name, each in seconds.items()}


def table(seconds):
  """Prints the medians, and returns them."""
  rows = []
  for name, each in seconds.items():
    wall, core = np.median(each, axis=0)
    row = {
      'pipeline': name,
      'images_per_second': 1 / wall,
      'core_milliseconds': 1000 * core,
    }
    references = {
      'floor': 'floor',
      'published': f'published {name.split(",")[0]}',
    }
    for label, reference in references.items():
      if reference in seconds and reference != name:
        ratios = np.median(seconds[reference] / each, axis=0)
        row[f'times_{label}'], row[f'core_times_{label}'] = map(float, ratios)
    rows.append(row)
  print(
    f'{"":30} {"images/s":>9} {"x floor":>8} {"x published":>12} '
    f'{"ms of a core":>14} {"x floor":>8} {"x published":>12}'
  )
  for row in rows:
    ratios = [
      f'{row[key]:.2f}' if key in row else ''
      for key in (
        'times_floor',
        'times_published',
        'core_times_floor',
        'core_times_published',
      )
    ]
    print(
      f'{row["pipeline"]:30} {row["images_per_second"]:9.0f} {ratios[0]:>8} '
      f'{ratios[1]:>12} {row["core_milliseconds"]:14.3f} {ratios[2]:>8} '
      f'{ratios[3]:>12}'
    )
  return rows


def main():
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--turns', type=int, default=5)
  parser.add_argument('--batches', type=int, default=6)
  parser.add_argument('--only', choices=['photographs', 'cifar10'])
  parser.add_argument('--output', help='a .json file')
  args = parser.parse_args()
  results = {}
  if args.only in (None, 'photographs'):
    encoded = jpegs(64)
    kilobytes = np.mean([len(each) for each in encoded]) / 1000
    print(f'500x375 JPEG of {kilobytes:.0f} kB, {_VIEWS} views of 224')
    seconds = measure(
      photograph_pipelines(encoded, 64), 64, args.batches, args.turns
    )
    results['photographs'] = table(seconds)
  if args.only in (None, 'cifar10'):
    print(f'CIFAR-10, cached, {_VIEWS} views of 32')
    seconds = measure(
      cifar10_pipelines(pngs(512), 256), 256, args.batches * 2, args.turns
    )
    results['cifar10'] = table(seconds)
  if args.output:
    pathlib.Path(args.output).write_text(json.dumps(results, indent=2) + '\n')


if __name__ == '__main__':
  main()
