"""Small folders of images, for tests of what a run makes of them."""

import dataclasses

import numpy as np
from PIL import Image

from supcon.config import enums
from supcon.config import hparams

CLASSES = ('ape', 'bee', 'cow')
NUM_COLORED = 30


def color(number):
  """Another one for every number; none is that of a contact sheet's paper."""
  return (8 * number, 255 - 8 * number, 8 * (number % 10))


def colored_image(number):
  """An image of one color and of a size of its own."""
  return np.full([20 + number, 50 - number, 3], color(number), np.uint8)


def write_colored(directory):
  """Writes 30 images of either split; the class is number % 3."""
  for number in range(NUM_COLORED):
    for split in ('train', 'val'):
      path = directory / split / CLASSES[number % 3] / f'{number}.png'
      path.parent.mkdir(parents=True, exist_ok=True)
      Image.fromarray(colored_image(number)).save(path)


def write_photos(directory):
  """Writes 12 images of either split, on which an augmentation shows."""
  rows, columns = np.mgrid[:60, :80]
  for split in ('train', 'val'):
    for i, name in enumerate(CLASSES):
      (directory / split / name).mkdir(parents=True)
      for j in range(4):
        waves = [np.sin(rows / (3 + i + k) + columns / (9 + j)) for k in (0, 1)]
        image = np.stack([*waves, -waves[0]], axis=-1)
        Image.fromarray((image * 100 + 128).astype(np.uint8)).save(
          directory / split / name / f'{j}.png'
        )


def with_whitening(dataset):
  info = dataclasses.replace(
    dataset.info, mean=(0.1, -0.2, 0.3), std=(0.4, 0.5, 0.6)
  )
  return dataclasses.replace(dataset, info=info)


def params(input_data=(), **preprocessing_fields):
  """Returns hyper-parameters of a run on them: crop, resize and flip alone."""
  changed = hparams.HParams(batch_size=8, seed=3)
  fields = {
    'image_size': 16,
    'augmentation_type': enums.AugmentationType.IDENTITY,
    'augmentation_magnitude': 1.0,
    # Compiling takes longer than it saves.
    'compile_augmentation': False,
    **preprocessing_fields,
  }
  for name, value in fields.items():
    changed = changed.replace(f'input_data.preprocessing.{name}', value)
  for name, value in dict(input_data).items():
    changed = changed.replace(f'input_data.{name}', value)
  return changed
