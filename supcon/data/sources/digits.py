"""Handwritten digits: a small real data set in the repository.

It has 1,797 grey images of 8x8 pixels, from E. Alpaydin and C. Kaynak, Optical
Recognition of Handwritten Digits, UCI Machine Learning Repository, 1998,
https://doi.org/10.24432/C50P49, CC BY 4.0; see digits_LICENSE.md.
"""

import contextlib
import io
import pathlib

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

_FILE = pathlib.Path(__file__).with_name('digits.npz')
_MAX_INK = 16  # Values in the file count ink pixels in a 4x4 block.
_TEST_EVERY = 5

_CITATION = """\
@misc{alpaydin1998digits,
  author = {Alpaydin, E. and Kaynak, C.},
  title = {Optical Recognition of Handwritten Digits},
  year = {1998},
  howpublished = {UCI Machine Learning Repository},
  doi = {10.24432/C50P49},
}"""


class Digits(tfds.core.GeneratorBasedBuilder):
  """8x8 images of the digits 0 to 9: 1,437 for training, 360 for testing."""

  VERSION = tfds.core.Version('1.0.0')

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
      builder=self,
      description='Handwritten digits of 13 people, scaled to 8x8 pixels.',
      features=tfds.features.FeaturesDict(
        {
          'image': tfds.features.Image(shape=(8, 8, 3), encoding_format='png'),
          'label': tfds.features.ClassLabel(num_classes=10),
        }
      ),
      supervised_keys=('image', 'label'),
      homepage='https://doi.org/10.24432/C50P49',
      citation=_CITATION,
      license='CC BY 4.0',
    )

  def _split_generators(self, dl_manager):
    del dl_manager  # Nothing is downloaded.
    return {
      'train': self._generate_examples(test=False),
      'test': self._generate_examples(test=True),
    }

  def _generate_examples(self, test):
    for index, (image, label) in enumerate(zip(*arrays())):
      if (index % _TEST_EVERY == 0) == test:
        grey = np.rint(image * (255 / _MAX_INK)).astype(np.uint8)
        yield (
          index,
          {
            'image': np.repeat(grey[:, :, np.newaxis], 3, axis=2),
            'label': int(label),
          },
        )


def arrays():
  """Returns images uint8 [1797, 8, 8] in 0..16 and labels uint8 [1797]."""
  with np.load(_FILE, allow_pickle=False) as file:
    return file['images'], file['labels']


def prepare(data_dir: str) -> None:
  """Writes the data set below `data_dir` unless it exists; seconds, offline.

  Any number of processes may do this at the same time. TFDS writes to a
  directory of its own and renames it. The second process fails to rename, which
  does not matter as long as the first one succeeded.

  Args:
    data_dir: The directory of TFDS's data sets; created if necessary.

  Raises:
    OSError, tf.errors.OpError: If nothing can be written there, or a damaged
      data set is in the way.
  """
  tfds.disable_progress_bar()
  builder = Digits(data_dir=data_dir)
  try:
    # TFDS prints that it downloads, but nothing is downloaded.
    with contextlib.redirect_stdout(io.StringIO()):
      builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(try_download_gcs=False)
      )
  except (OSError, tf.errors.OpError):
    if not builder.is_prepared():
      raise
  if not builder.is_prepared():  # TFDS accepts any directory of that name.
    raise OSError(f'{builder.data_dir} is incomplete, delete it')
