"""The data sets: what is known about each by name, and how to open it.

The data sets of the published results are rows in a table. Any other set of
labelled images needs no code: `tfds:NAME` is prepared by TFDS, and `folder` has
a folder of images per class. Everything that a data set can tell (its sizes,
its classes, the shape of its images) is read from it.

Nothing here uses the network. A data set that is not prepared is an error that
says how to prepare it, except for those in the repository itself.
"""

from collections.abc import Callable
import dataclasses
import os

import tensorflow as tf

from supcon.config import path_names
from supcon.data.sources import digits
from supcon.data.sources import folder
from supcon.data.sources import prepared
from supcon.data.sources import splits
from supcon.data.views import policies


@dataclasses.dataclass(frozen=True)
class Info:
  """Facts about a data set that cannot be read from it.

  Attributes:
    tfds_name: Its name in TFDS, NAME or NAME/CONFIG; '' if it is not from TFDS.
    version: The accepted versions, such as '5.*.*'; the newest is taken.
    train_split: The split to train on; '' for the usual one.
    eval_split: The split to evaluate on; '' for the first usual one that
      exists.
    flips: Whether an image mirrored left to right keeps its label.
    mean: The mean of each channel on the [-1, 1] scale, for whitening; None if
      unknown.
    std: The standard deviation of each channel, on the same scale.
    autoaugment_policy: The policy of AUTOAUGMENT.
    prepare: Writes the data set into a data_dir, offline; None if the user must
      prepare it.
    preparation_note: What the user must do before TFDS can prepare it.
    title: Its usual name; '' if that is its name in TFDS.
  """

  tfds_name: str
  version: str
  train_split: str
  eval_split: str
  flips: bool
  mean: tuple[float, float, float] | None = None
  std: tuple[float, float, float] | None = None
  autoaugment_policy: policies.Policy = policies.IMAGENET_POLICY
  prepare: Callable[[str], None] | None = None
  preparation_note: str = ''
  title: str = ''


INFOS = {
  'imagenet': Info(
    tfds_name='imagenet2012',
    version='5.*.*',
    train_split='train',
    eval_split='validation',
    flips=True,
    preparation_note=(
      ', after putting ILSVRC2012_img_train.tar and '
      'ILSVRC2012_img_val.tar into its downloads/manual, see '
      'https://www.tensorflow.org/datasets/catalog/imagenet2012'
    ),
    title='ImageNet (ILSVRC 2012)',
  ),
  'cifar10': Info(
    tfds_name='cifar10',
    version='3.*.*',
    train_split='train',
    eval_split='test',
    flips=True,
    # The published values: 0.4914, 0.4822, 0.4465 and 0.2023, 0.1994,
    # 0.2010 on the [0, 1] scale.
    mean=(-0.0172, -0.0356, -0.107),
    std=(0.4046, 0.3988, 0.402),
    autoaugment_policy=policies.CIFAR10_POLICY,
    title='CIFAR-10',
  ),
  'digits': Info(
    tfds_name='digits',
    version='1.*.*',
    train_split='train',
    eval_split='test',
    flips=False,
    prepare=digits.prepare,
    title='Optical Recognition of Handwritten Digits (UCI)',
  ),
}


FOLDER = 'folder'
_TFDS_PREFIX = 'tfds:'

# Data sets of TFDS in which mirroring changes or destroys a character.
_UNFLIPPED = frozenset(
  (
    'binarized_mnist',
    'cmaterdb',
    'emnist',
    'kmnist',
    'mnist',
    'mnist_corrupted',
    'omniglot',
    'svhn_cropped',
  )
)


@dataclasses.dataclass(frozen=True)
class Dataset:
  """A data set that exists.

  Attributes:
    info: What is known about it by name, with the splits in use.
    train: The training examples in use, after the limit.
    evaluation: The evaluation examples.
    class_names: The classes, in the order of the labels.
    image_shape: (height, width) in pixels; None if images differ in size.
  """

  info: Info
  train: splits.Split
  evaluation: splits.Split
  class_names: tuple[str, ...]
  image_shape: tuple[int, int] | None

  @property
  def num_classes(self) -> int:
    return len(self.class_names)

  @property
  def num_train_examples(self) -> int:
    return self.train.num_examples

  @property
  def num_eval_examples(self) -> int:
    return self.evaluation.num_examples

  def split(self, is_train: bool) -> splits.Split:
    return self.train if is_train else self.evaluation

  def num_examples(self, is_train: bool) -> int:
    return self.split(is_train).num_examples

  def num_bytes(self, is_train: bool) -> int:
    """Returns the approximate size of the encoded examples in bytes."""
    return self.split(is_train).num_bytes

  def records(self, is_train: bool) -> tf.data.Dataset:
    """Returns the examples as stored, always in the same order.

    Args:
      is_train: Whether to return training examples (the first ones, if they are
        limited) or evaluation examples.

    Returns:
      A data set of (image, label): string [], the encoded image (JPEG, PNG, BMP
      or GIF), and int32 [].
    """
    return self.split(is_train).records()


def load(
  name: str,
  data_dir: str | None,
  max_train_examples: int = 0,
  train_split: str = '',
  eval_split: str = '',
  max_eval_examples: int = 0,
) -> Dataset:
  """Opens a data set.

  Args:
    name: A key of `INFOS`; or tfds:NAME[/CONFIG][:VERSION]; or folder.
    data_dir: The directory of TFDS's data sets, or the parent of the folders of
      the splits, local or gs://. None means TFDS's own default: $TFDS_DATA_DIR,
      or else ~/tensorflow_datasets.
    max_train_examples: Maximum number of training examples; <= 0 means all.
    train_split: The split to train on; '' for the usual one.
    eval_split: The split to evaluate on; '' for the usual one.
    max_eval_examples: Maximum number of evaluation examples; <= 0 means all.

  Returns:
    The data set.

  Raises:
    ValueError: If the name is unknown, the directory, the data set or a split
      does not exist, or the data set holds no images with class labels.
  """
  info = _info(name)
  info = dataclasses.replace(
    info,
    train_split=train_split or info.train_split,
    eval_split=eval_split or info.eval_split,
  )
  if info.tfds_name:
    directory = _prepared_dir(info, data_dir or default_data_dir())
    source = prepared.load(directory, info.train_split, info.eval_split)
  else:
    source = folder.load(data_dir, info.train_split, info.eval_split)

  train = first(source.train, max_train_examples)
  evaluation = first(source.evaluation, max_eval_examples)
  return Dataset(
    info=dataclasses.replace(
      info, train_split=train.name, eval_split=evaluation.name
    ),
    train=train,
    evaluation=evaluation,
    class_names=source.class_names,
    image_shape=source.image_shape,
  )


def called(name: str, data_dir: str | None = None) -> str:
  """Returns the usual name of a data set.

  Args:
    name: See `load`.
    data_dir: For folders of images, the directory whose last component is the
      name: a whole path says more about a machine than about images.
  """
  if name == FOLDER:
    directory = os.path.basename((data_dir or '').rstrip('/'))
    return f'folder {directory}' if directory else ''
  info = _info(name)
  return info.title or f'{info.tfds_name} (TensorFlow Datasets)'


def is_unvetted(name: str) -> bool:
  """Whether the images are known to the user alone."""
  return name not in INFOS


def known_colors(name: str):
  """Returns (mean, std) of a data set on the [-1, 1] scale; None if unknown."""
  info = _info(name)
  return (info.mean, info.std) if info.mean else None


def of_split(split: splits.Split) -> Dataset:
  """Returns a data set of images without labels, only for looking at."""
  return Dataset(
    info=Info(
      tfds_name='',
      version='',
      train_split=split.name,
      eval_split=split.name,
      flips=False,
    ),
    train=split,
    evaluation=split,
    class_names=(),
    image_shape=None,
  )


def first(split: splits.Split, count: int) -> splits.Split:
  """Returns the first `count` examples; all of them if `count` <= 0."""
  if not 0 < count < split.num_examples:
    return split
  return split.select(range(count))


def _info(name):
  """Returns the row of a name, or makes one for a name without a row."""
  if name in INFOS:
    return INFOS[name]
  if name == FOLDER:
    return Info(
      tfds_name='', version='', train_split='', eval_split='', flips=True
    )
  wanted, _, version = name.removeprefix(_TFDS_PREFIX).partition(':')
  if not name.startswith(_TFDS_PREFIX) or not wanted.strip('/'):
    raise ValueError(
      f'--input_fn={name} is unknown; choose one of {", ".join(INFOS)}, '
      f'{_TFDS_PREFIX}NAME[/CONFIG][:VERSION] for what TFDS has prepared, or '
      f'{FOLDER} for folders of images.'
    )
  version = version or '*.*.*'
  if not _is_version_pattern(version):
    raise ValueError(
      f'--input_fn={name}: {version!r} is not a version; expected one '
      'such as 3.0.2 or 3.*.*.'
    )
  for info in INFOS.values():
    if info.tfds_name == wanted:
      return dataclasses.replace(info, version=version)
  return Info(
    tfds_name=wanted,
    version=version,
    train_split='',
    eval_split='',
    flips=wanted.split('/')[0] not in _UNFLIPPED,
  )


def _is_version_pattern(text):
  parts = text.split('.')
  return len(parts) == 3 and all(p == '*' or p.isdigit() for p in parts)


def default_data_dir() -> str:
  """Returns the directory in which TFDS looks for data sets by itself."""
  return os.path.expanduser(
    os.environ.get('TFDS_DATA_DIR', '~/tensorflow_datasets')
  )


def _prepared_dir(info, data_dir):
  """Returns the directory of a data set; prepares it if it can."""
  name, _, config = info.tfds_name.partition('/')
  directory = prepared.find(name, config, info.version, data_dir)
  if not directory and info.prepare:
    # TFDS finds files that it writes by a pattern, but reads any path.
    if fault := path_names.pattern_fault(data_dir):
      raise ValueError(f'--data_dir={data_dir} {fault}.')
    try:
      info.prepare(data_dir)
    except (OSError, tf.errors.OpError) as error:
      reason = str(error).splitlines()[0]
      raise ValueError(
        f'cannot write {info.tfds_name} into --data_dir={data_dir} ({reason}); '
        'name a directory that can be written.'
      ) from error
    directory = prepared.find(name, config, info.version, data_dir)
  if not directory:
    raise ValueError(
      prepared.not_prepared(
        f'{info.tfds_name}:{info.version}',
        data_dir,
        os.path.join(data_dir, name, config),
        info.preparation_note,
      )
    )
  return directory
