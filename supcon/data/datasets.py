"""The data sets: what is known of each by name, and what is read from disk.

A data set is a row in a table. Whatever a prepared data set can tell itself
(its sizes, its classes, the shape of its images) is read from it. To add one,
add a row: any TFDS data set with the features 'image' and 'label' will do.

Nothing here uses the network: a data set that is not prepared is an error that
says how to prepare it, save for those that the repository holds itself.
"""

from collections.abc import Callable
import dataclasses
import os

import tensorflow as tf
import tensorflow_datasets as tfds

from supcon.data import digits


@dataclasses.dataclass(frozen=True)
class Info:
  """What must be known of a data set and cannot be read from it.

  Attributes:
    tfds_name: Its name in TFDS.
    version: The versions that will do, such as '5.*.*'; the newest is taken.
    train_split: The split to train on.
    eval_split: The split to evaluate on.
    flips: Whether an image flipped left to right keeps its label.
    mean: Of each channel on the [-1, 1] scale, for whitening. None: unknown.
    std: Likewise the standard deviation.
    prepare: Writes the data set into a data_dir, offline. None: the user must.
    preparation_note: What the user must do before TFDS can prepare it.
  """

  tfds_name: str
  version: str
  train_split: str
  eval_split: str
  flips: bool
  mean: tuple[float, float, float] | None = None
  std: tuple[float, float, float] | None = None
  prepare: Callable[[str], None] | None = None
  preparation_note: str = ''


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
  ),
  'digits': Info(
    tfds_name='digits',
    version='1.*.*',
    train_split='train',
    eval_split='test',
    flips=False,
    prepare=digits.prepare,
  ),
}


@dataclasses.dataclass(frozen=True)
class Dataset:
  """A prepared data set.

  Attributes:
    info: What is known of it by name.
    builder: The TFDS builder that reads it.
    num_train_examples: Training examples in use, after the limit.
    num_eval_examples: Evaluation examples.
    num_classes: Classes.
    class_names: Their names, in the order of the labels.
    image_shape: (height, width) in pixels; None if images differ in size.
  """

  info: Info
  builder: tfds.core.DatasetBuilder
  num_train_examples: int
  num_eval_examples: int
  num_classes: int
  class_names: tuple[str, ...]
  image_shape: tuple[int, int] | None

  def num_examples(self, is_train: bool) -> int:
    return self.num_train_examples if is_train else self.num_eval_examples

  def num_bytes(self, is_train: bool) -> int:
    """Returns roughly how many bytes the encoded examples take."""
    split = self._split_info(is_train)
    return split.num_bytes * self.num_examples(is_train) // split.num_examples

  def records(self, is_train: bool) -> tf.data.Dataset:
    """Returns the examples as stored, in an order that is always the same.

    Args:
      is_train: Training examples (the first `num_train_examples`), or
        evaluation examples.

    Returns:
      A data set of (image, label): string [], the encoded image (JPEG or PNG),
      and int32 [].
    """
    count = self.num_examples(is_train)
    records = self.builder.as_dataset(
      split=f'{self._split_info(is_train).name}[:{count}]',
      shuffle_files=False,
      decoders={'image': tfds.decode.SkipDecoding()},
      read_config=tfds.ReadConfig(try_autocache=False, skip_prefetch=True),
    )
    return records.map(
      lambda record: (record['image'], tf.cast(record['label'], tf.int32))
    )

  def _split_info(self, is_train):
    name = self.info.train_split if is_train else self.info.eval_split
    return self.builder.info.splits[name]


def load(
  name: str, data_dir: str | None, max_train_examples: int = 0
) -> Dataset:
  """Opens a prepared data set.

  Args:
    name: A key of `INFOS`.
    data_dir: Where TFDS keeps its data sets, local or gs://. None means TFDS's
      own default: $TFDS_DATA_DIR, else ~/tensorflow_datasets.
    max_train_examples: Uses only so many training examples; <= 0 means all.

  Returns:
    The data set.

  Raises:
    ValueError: If the name is unknown, the directory or the data set in it is
      not there, a split is missing, or it holds no images with class labels.
  """
  if name not in INFOS:
    raise ValueError(
      f'--input_fn={name} is unknown; choose one of {", ".join(INFOS)}.'
    )
  info = INFOS[name]
  data_dir = os.path.expanduser(data_dir or _default_data_dir())
  prepared = _prepared_dir(info, data_dir)
  if not prepared and info.prepare:
    prepared = _prepare(info, data_dir)
  if not prepared:
    raise ValueError(_not_prepared(info, data_dir))

  builder = tfds.builder_from_directory(prepared)
  for split in (info.train_split, info.eval_split):
    if split not in builder.info.splits:
      raise ValueError(
        f'{prepared} has the splits {list(builder.info.splits)}, but not '
        f'{split!r}; prepare it again.'
      )
  image = _feature(builder, 'image', tfds.features.Image)
  label = _feature(builder, 'label', tfds.features.ClassLabel)
  train_examples = builder.info.splits[info.train_split].num_examples
  if max_train_examples > 0:
    train_examples = min(train_examples, max_train_examples)
  height, width = image.shape[:2]
  return Dataset(
    info=info,
    builder=builder,
    num_train_examples=train_examples,
    num_eval_examples=builder.info.splits[info.eval_split].num_examples,
    num_classes=label.num_classes,
    class_names=tuple(label.names),
    image_shape=(height, width) if height and width else None,
  )


def _default_data_dir():
  return os.environ.get('TFDS_DATA_DIR', '~/tensorflow_datasets')


def _prepared_dir(info, data_dir):
  """Returns the directory of the newest version that will do, or None."""
  parent = os.path.join(data_dir, info.tfds_name)
  versions = [
    tfds.core.Version(name)
    for name in _directory_names(parent)
    if tfds.core.Version.is_valid(name)
    # Without it nothing can be read, as where a copy has not finished.
    and tf.io.gfile.exists(os.path.join(parent, name, 'dataset_info.json'))
  ]
  versions = [version for version in versions if version.match(info.version)]
  return os.path.join(parent, str(max(versions))) if versions else None


def _directory_names(directory):
  if not tf.io.gfile.isdir(directory):
    return []
  # Object stores mark a directory by a trailing slash.
  return [name.rstrip('/') for name in tf.io.gfile.listdir(directory)]


def _prepare(info, data_dir):
  try:
    info.prepare(data_dir)
  except (OSError, tf.errors.OpError) as error:
    reason = str(error).splitlines()[0]
    raise ValueError(
      f'cannot write {info.tfds_name} into --data_dir={data_dir} ({reason}); '
      'name a directory that can be written.'
    ) from error
  return _prepared_dir(info, data_dir)


def _not_prepared(info, data_dir):
  """Returns the message for a data set that the user has to prepare."""
  wanted = f'{info.tfds_name}:{info.version}'
  if not tf.io.gfile.isdir(data_dir):
    found = 'does not exist'
  else:
    others = _directory_names(os.path.join(data_dir, info.tfds_name))
    found = f'holds no {wanted}'
    if others:
      found += f', only {", ".join(sorted(others))}'
  return (
    f'--data_dir={data_dir} {found}; name the directory that has {wanted}, '
    'or prepare it with: python -c "import tensorflow_datasets as tfds; '
    f"tfds.builder('{wanted}', data_dir='{data_dir}').download_and_prepare()"
    f'"{info.preparation_note}.'
  )


def _feature(builder, name, expected):
  feature = dict(builder.info.features).get(name)
  if not isinstance(feature, expected):
    found = type(feature).__name__ if feature else 'missing'
    raise ValueError(
      f'{builder.data_dir}: feature {name!r} is {found}, but must be a '
      f'tfds.features.{expected.__name__}; use a data set of labelled images.'
    )
  return feature
