"""What earlier runs tell of the hyper-parameters and colors of a command.

They are an earlier run in the same model_dir, and the reference from which
weights are taken: a checkpoint, an export or a module.
"""

from collections.abc import Iterator
import os
import re
from typing import Any

import tensorflow as tf

from supcon.config import enums
from supcon.config import hparams
from supcon.data import whitening
from supcon.models import resnet
from supcon.runs import checkpoint_files
from supcon.runs import model_dirs
from supcon.runs import storage_errors
from supcon.training import facts
from supcon.training import warm_start


def recorded_params(model_dir: str) -> hparams.HParams | None:
  """Returns the hyper-parameters of the newest checkpoint, if they are known.

  Raises:
    ValueError: If hparams.json cannot be read or holds something else.
    tf.errors.OpError: If model_dir cannot be read.
  """
  directory = model_dirs.ModelDir(model_dir)
  record = facts.Record(directory)
  known = record.entries and record.find(directory.newest())
  return known.params if known else None


# --- What is known of a reference ---------------------------------------------

# The hyper-parameters that come with a part taken from a reference: its
# architecture and the preprocessing of its images.
_OF_ENCODER = (
  'architecture.encoder_architecture',
  'architecture.encoder_depth',
  'architecture.encoder_width',
  'architecture.first_conv_kernel_size',
  'architecture.first_conv_stride',
  'architecture.use_initial_max_pool',
  'input_data.preprocessing.image_size',
  'input_data.preprocessing.eval_crop_method',
  'input_data.preprocessing.crop_padding',
  'input_data.preprocessing.apply_whitening',
)
_OF_PROJECTION_HEAD = (
  'architecture.projection_head_layers',
  'architecture.projection_head_use_batch_norm',
  'architecture.projection_head_use_batch_norm_beta',
  'architecture.normalize_projection_head_inputs',
)
_OF_CLASSIFIER = ('architecture.normalize_classifier_inputs',)

# The hyper-parameters that no variable reveals.
_OF_IMAGES = tuple(
  path for path in _OF_ENCODER if path.startswith('input_data.')
)

# Common part of the handles of the published modules, which are all for
# ImageNet; and what is known about their encoders besides the variables.
_PUBLISHED = '/google/supcon/'
_OF_PUBLISHED = {
  'architecture.first_conv_stride': 2,
  'architecture.use_initial_max_pool': True,
  'input_data.preprocessing.image_size': 224,
  'input_data.preprocessing.eval_crop_method': (
    enums.EvalCropMethod.RESIZE_THEN_CROP
  ),
  'input_data.preprocessing.crop_padding': 32,
  'input_data.preprocessing.apply_whitening': False,
}


def taken(
  model_dir: str, reference: str, params: hparams.HParams
) -> dict[str, Any]:
  """Returns the hyper-parameters that training takes from its reference.

  A run that has started has already taken them and no longer needs the
  reference.

  Args:
    model_dir: The model_dir of the training.
    reference: The value of --reference_ckpt.
    params: The hyper-parameters of the training, as far as flags give them.

  Returns:
    {path of a hyper-parameter: value}.

  Raises:
    ValueError: If the reference, or its record, cannot be read.
  """
  try:
    if newest := model_dirs.ModelDir(model_dir).newest():
      known = facts.find(model_dirs.ModelDir(model_dir), newest)
      values = _values(known.params) if known else {}
    else:
      values = of_reference(warm_start.find(reference), reference)
  except tf.errors.OpError as error:
    raise ValueError(
      f'--reference_ckpt={reference} cannot be read '
      f'({storage_errors.reason(error)}); name a checkpoint, export or module '
      'that can.'
    ) from error
  # The colors will be measured here, so those of the reference do not matter.
  is_measured = params.input_data.preprocessing.measure_whitening
  return {
    path: values[path]
    for path in _taken_paths(params.warm_start)
    if path in values
    and not (is_measured and path.endswith('.apply_whitening'))
  }


def of_reference(checkpoint: str, reference: str = '') -> dict[str, Any]:
  """Returns the known facts of a model: {hyper-parameter path: value}.

  Args:
    checkpoint: A checkpoint in a training directory, its best/, an export, or
      the TF-Hub module in an export. The variables of any other checkpoint of
      such an encoder reveal some of the facts.
    reference: The name that the user gave, which identifies published modules.

  Raises:
    ValueError: If a file with the facts is damaged.
    tf.errors.OpError: If it cannot be read.
  """
  if params := _params_of_reference(checkpoint):
    return _values(params)
  shapes = tf.train.load_checkpoint(checkpoint).get_variable_to_shape_map()
  scope = re.compile(r'.*ContrastiveModel/Encoder/')
  found = resnet.describe(
    {scope.sub('', n): s for n, s in shapes.items() if scope.match(n)}
  )
  if not found:
    return {}
  values = {
    'architecture.encoder_architecture': found.architecture,
    'architecture.encoder_depth': found.depth,
    'architecture.encoder_width': float(found.width),
    'architecture.first_conv_kernel_size': found.first_conv_kernel_size,
  }
  return values | (_OF_PUBLISHED if _PUBLISHED in reference else {})


def compare_with_reference(
  checkpoint: str, reference: str, params: hparams.HParams
) -> Iterator[tuple[bool, str]]:
  """Reports how training agrees with its reference, and how it differs.

  Args:
    checkpoint: The checkpoint of the reference.
    reference: The name that the user gave.
    params: The hyper-parameters of the training.

  Yields:
    (Whether it is a warning, a line of text).

  Raises:
    ValueError, tf.errors.OpError: See `of_reference`.
  """
  values = of_reference(checkpoint, reference)
  defaults = hparams.HParams()
  paths = _taken_paths(params.warm_start)

  def shown(paths, values):
    return ', '.join(
      f'{path.rpartition(".")[-1]}={getattr(value, "name", value)}'
      for path, value in ((path, values(path)) for path in paths)
    )

  alike = [p for p in paths if p in values and params.get(p) == values[p]]
  changed = [path for path in alike if values[path] != defaults.get(path)]
  if changed:
    yield False, f'taken from {checkpoint}: {shown(changed, values.get)}'
  if others := [path for path in paths if path in values and path not in alike]:
    yield (
      True,
      f'{shown(others, params.get)} here, but {checkpoint} was trained with '
      f'{shown(others, values.get)}',
    )
  unknown = [p for p in paths if p in _OF_IMAGES and p not in values]
  if unknown:
    yield (
      True,
      f'nothing says how the images of {checkpoint} were made; here it is '
      f'{shown(unknown, params.get)}',
    )


def _taken_paths(params):
  """Returns the paths of the hyper-parameters that come with taken parts."""
  return (
    *(_OF_ENCODER if params.warm_start_encoder else ()),
    *(_OF_PROJECTION_HEAD if params.warm_start_projection_head else ()),
    *(_OF_CLASSIFIER if params.warm_start_classifier else ()),
  )


def _values(params):
  paths = (*_OF_ENCODER, *_OF_PROJECTION_HEAD, *_OF_CLASSIFIER)
  return {path: params.get(path) for path in paths}


def _params_of_reference(checkpoint):
  """Returns the recorded HParams of a model, or None."""
  if run := _run_of(checkpoint):
    known = facts.Record(run).find(checkpoint)
    return known and known.params

  def parse(found):
    return hparams.parse(found['compact']) if 'compact' in found else None

  return _of_export(checkpoint, parse, 'hyper-parameters')


def _run_of(checkpoint):
  """Returns the ModelDir of the run of a checkpoint, or None."""
  directory, name = os.path.split(checkpoint)
  if name == 'variables' or not checkpoint_files.prefix_of(checkpoint):
    return None
  if os.path.basename(directory).startswith(model_dirs.BEST):
    directory = os.path.dirname(directory)
  return model_dirs.ModelDir(directory)


def _of_export(checkpoint, parse, what):
  """Returns what the export.json about a checkpoint tells; None if nothing."""
  directory, name = os.path.split(checkpoint)
  if name != 'variables':  # DIRECTORY/variables/variables or DIRECTORY/hub/...
    return None
  for _ in range(2):
    directory = os.path.dirname(directory)
    found = model_dirs.ModelDir(directory).read_json(
      facts.EXPORT, parse, what, 'name a checkpoint'
    )
    if found is not None:
      return found
  return None


def whitening_of_reference(checkpoint: str) -> whitening.Statistics | None:
  """Returns the whitening of a model's images, if it is known.

  Args:
    checkpoint: A checkpoint in a training directory, its best/, an export, or
      the TF-Hub module in an export.

  Returns:
    None if unknown. A result without mean and deviation means that the images
    were not whitened.

  Raises:
    ValueError: If a file with the facts is damaged.
    tf.errors.OpError: If it cannot be read.
  """
  if run := _run_of(checkpoint):
    known = facts.Record(run).find(checkpoint)
    return known and whitening.Statistics(
      *facts.colors(run, known.params), reference=checkpoint
    )

  def parse(found):
    if {'mean', 'std'} <= {*found}:
      fields = {name: found[name] for name in ('mean', 'std')}
      return whitening.from_json({**fields, 'reference': checkpoint})
    return None

  return _of_export(checkpoint, parse, whitening.IN_WORDS)
