"""The facts of a run: what its checkpoints were trained with, and on.

The settings of a command are only intentions until a checkpoint has been
trained with them. hparams.json holds the facts. At its top are the
hyper-parameters of the newest checkpoint. Its `facts` has an entry for each
change since the run began, with the step after which it applies:

  {"hparams": {...}, "compact": "bs=64,...", "facts": [{"after_step": -1, ...}]}

An entry is written before the first checkpoint to which it applies is saved;
the top of the file is written afterwards. So at whatever moment a run is
killed, the entries and the steps of the checkpoints together determine the
facts, and `Record` reads them that way. Jobs that train nothing write nothing
here.

`changes` defines what may change when a run resumes; `positions` defines how
steps are counted.
"""

from collections.abc import Iterator
from collections.abc import Mapping
import dataclasses
import os
import re
from typing import Any, NamedTuple

import tensorflow as tf

from supcon.config import enums
from supcon.config import hparams
from supcon.data import whitening
from supcon.data.sources import datasets
from supcon.models import resnet
from supcon.runs import checkpoint_files
from supcon.runs import model_dirs
from supcon.runs import storage
from supcon.runs import storage_errors
from supcon.training import positions as counting_lib
from supcon.training import stages
from supcon.training import warm_start

EXPORT = 'export.json'  # Name of the file in an export.

# --- What is known of a checkpoint --------------------------------------------


@dataclasses.dataclass(frozen=True)
class Facts:
  """What a checkpoint was trained with, and on.

  Attributes:
    params: The hyper-parameters.
    counting: How its step is counted; None if not recorded.
    train_split: Name of the training split; '' if unknown.
    train_images: Fingerprint of the training examples; '' if unknown.
    evaluation: The data of the run's evaluations, see setup.data_of; None if
      unknown.
    reference: The value of --reference_ckpt; '' if there was none.
    data_name: The usual name of the training data; '' if unknown. The data may
      move to another path later; the run stays the same.
  """

  params: hparams.HParams
  counting: counting_lib.Counting | None = None
  train_split: str = ''
  train_images: str = ''
  evaluation: Mapping[str, Any] | None = None
  reference: str = ''
  data_name: str = dataclasses.field(default='', compare=False)

  def plan(self) -> stages.Plan | None:
    """Returns the stages; None if the number of examples is unknown.

    Raises:
      ValueError: If such a run is impossible.
    """
    if not self.counting:
      return None
    params = self.params.replace('batch_size', self.counting.batch_size)
    for number, epochs in enumerate(self.counting.epochs, start=1):
      params = params.replace(f'stage_{number}.epochs', epochs)
    return stages.plan(params, self.counting.num_examples)

  def to_json(self) -> dict:
    result = {
      'compact': self.params.serialize(),
      'train_split': self.train_split,
      'train_images': self.train_images,
      'evaluation': self.evaluation,
      'reference': self.reference,
      'data_name': self.data_name,
      'plan': None,
    }
    if counting := self.counting:
      result['plan'] = {
        'num_examples': counting.num_examples,
        'batch_size': counting.batch_size,
        'epochs': list(counting.epochs),
        # Derived from the others, for human readers.
        'steps_per_epoch': counting.steps_per_epoch,
        'ends': list(counting.ends),
      }
    return result


class Entry(NamedTuple):
  """An entry of hparams.json.

  Attributes:
    after_step: The entry applies to checkpoints of later steps.
    facts: The facts of those checkpoints.
    moved_from: Fingerprint of a checkpoint to which the entry does not apply,
      because its step was counted in another plan; '' if there is none.
  """

  after_step: int
  facts: Facts
  moved_from: str = ''

  def to_json(self):
    result = {'after_step': self.after_step, **self.facts.to_json()}
    return result | ({'moved_from': self.moved_from} if self.moved_from else {})


def _entry(found):
  """Reads an entry; raises any error if it is malformed."""
  plan = found['plan']
  counting = plan and counting_lib.Counting(
    int(plan['num_examples']),
    int(plan['batch_size']),
    tuple(map(int, plan['epochs'])),
  )
  if counting and not (counting.num_examples > 0 and counting.batch_size > 0):
    raise ValueError(f'there is no plan with {plan}')
  return Entry(
    int(found['after_step']),
    Facts(
      hparams.parse(found['compact']),
      counting,
      str(found['train_split']),
      str(found['train_images']),
      found['evaluation'] and dict(found['evaluation']),
      str(found['reference']),
      str(found.get('data_name', '')),
    ),
    str(found.get('moved_from', '')),
  )


class Record:
  """hparams.json of a model_dir.

  Attributes:
    entries: The entries in order; empty if there is no file.
  """

  def __init__(self, model_dir: model_dirs.ModelDir):
    """Reads the file.

    Raises:
      ValueError: If it cannot be read, or holds something else.
    """
    try:
      self.entries = (
        model_dir.read_json(
          model_dirs.HPARAMS,
          _entries,
          what='hyper-parameters',
          remedy='delete it and give all of them as flags',
        )
        or ()
      )
    except tf.errors.OpError as error:
      raise ValueError(
        f'--model_dir={model_dir.path} cannot be read '
        f'({storage_errors.reason(error)}); name a directory that can.'
      ) from error

  def find(self, checkpoint: str | None) -> Facts | None:
    """Returns the facts of a checkpoint; None if they are not recorded.

    Raises:
      tf.errors.OpError: If the checkpoint has to be read, and cannot.
    """
    if not checkpoint:
      return None
    step = checkpoint_files.step_of(checkpoint)
    for entry in reversed(self.entries):
      if entry.after_step < step and not (
        entry.moved_from
        and entry.moved_from == checkpoint_files.fingerprint(checkpoint)
      ):
        return entry.facts
    return None


def _entries(found):
  if 'facts' in found:
    return tuple(map(_entry, found['facts']))
  # The file of an older version of this program, which recorded nothing else.
  return (Entry(-1, Facts(hparams.parse(found['compact']))),)


def find(
  model_dir: model_dirs.ModelDir, checkpoint: str | None
) -> Facts | None:
  """Returns the facts of a checkpoint; None if they are not recorded.

  Args:
    model_dir: The model_dir of the run.
    checkpoint: A checkpoint of the run, in whatever directory; None for none.

  Raises:
    ValueError: If hparams.json cannot be read or holds something else.
    tf.errors.OpError: If the checkpoint has to be read, and cannot.
  """
  if not checkpoint:
    return None
  own = model_dirs.ModelDir(os.path.dirname(checkpoint))
  if own.path != model_dir.path and own.has(model_dirs.HPARAMS):
    model_dir = own
  return Record(model_dir).find(checkpoint)


def recorded_params(model_dir: str) -> hparams.HParams | None:
  """Returns the hyper-parameters of the newest checkpoint, if they are known.

  Raises:
    ValueError: If hparams.json cannot be read or holds something else.
    tf.errors.OpError: If model_dir cannot be read.
  """
  directory = model_dirs.ModelDir(model_dir)
  record = Record(directory)
  known = record.entries and record.find(directory.newest())
  return known.params if known else None


def colors(model_dir: model_dirs.ModelDir, params: hparams.HParams):
  """Returns the colors by which a run whitens, on the scale [-1, 1].

  Args:
    model_dir: The model_dir of the run.
    params: The hyper-parameters that it was trained with.

  Returns:
    Mean and standard deviation, three floats each; (None, None) if it does not
    whiten.

  Raises:
    ValueError: If whitening.json holds something else.
  """
  if not params.input_data.preprocessing.apply_whitening:
    return None, None
  if found := model_dir.read_json(
    model_dirs.WHITENING, whitening.from_json, whitening.IN_WORDS
  ):
    return found.mean, found.std
  return datasets.known_colors(params.input_data.input_fn) or (None, None)


def of_export(known: Facts) -> dict[str, Any]:
  """Returns the known facts of the training, for an export."""
  input_fn = known.params.input_data.input_fn
  result = {
    'dataset': input_fn,
    'data_name': known.data_name or datasets.called(input_fn),
  }
  if known.counting:
    result['train_split'] = known.train_split
    result['num_train_examples'] = known.counting.num_examples
  return result


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
      known = find(model_dirs.ModelDir(model_dir), newest)
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
    known = Record(run).find(checkpoint)
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
      EXPORT, parse, what, 'name a checkpoint'
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
    known = Record(run).find(checkpoint)
    return known and whitening.Statistics(
      *colors(run, known.params), reference=checkpoint
    )

  def parse(found):
    if {'mean', 'std'} <= {*found}:
      colors = {'mean': found['mean'], 'std': found['std']}
      return whitening.from_json({**colors, 'reference': checkpoint})
    return None

  return _of_export(checkpoint, parse, whitening.IN_WORDS)


# --- Going on -----------------------------------------------------------------


def _write(model_dir, shown, entries):
  """Writes hparams.json with `shown` at its top, unless it is up to date."""
  _write_text(
    model_dir,
    model_dirs.HPARAMS,
    storage.to_json(
      {
        'hparams': shown.params.to_json(),
        'compact': shown.params.serialize(),
        'facts': [entry.to_json() for entry in entries],
      }
    ),
  )


def _write_text(model_dir, name, text):
  if model_dir.read(name) != text:
    model_dir.write(name, text)


class Keeper:
  """Records the facts of the checkpoints that a trainer saves.

  The trainer calls it where training begins, and before and after each save.
  """

  def __init__(
    self,
    model_dir: model_dirs.ModelDir,
    facts: Facts,
    files: Mapping[str, str | None],
  ):
    """Makes a keeper without writing anything.

    Args:
      model_dir: The model_dir of the run.
      facts: The facts of the checkpoints to come.
      files: {name: text} of other files that describe the training; None for
        files that must not exist.
    """
    self._model_dir = model_dir
    self._facts = facts
    self._files = files
    self.begin(None)

  def begin(self, checkpoint: str | None) -> None:
    """Sets the checkpoint that training resumes from; None for a new run."""
    self._is_kept = False
    self._start = -1
    self._before, self._entries = None, ()
    if checkpoint:
      self._start = checkpoint_files.step_of(checkpoint)
      record = Record(self._model_dir)
      self._before = record.find(checkpoint)
      # Entries of later steps belong to checkpoints that no longer count.
      self._entries = tuple(
        entry for entry in record.entries if entry.after_step < self._start
      )
    if self._before != self._facts:
      self._entries += (Entry(self._start, self._facts),)

  def before_save(self, step: int) -> None:
    """Writes the facts of a checkpoint that is about to be saved."""
    if self._is_kept or step <= self._start:
      return
    if self._start < 0:
      # No checkpoint exists yet for which these could be wrong.
      self._write_files()
      _write(self._model_dir, self._facts, self._entries)
    elif self._before:
      _write(self._model_dir, self._before, self._entries)

  def after_save(self, step: int) -> None:
    """Writes the facts of a checkpoint that was saved."""
    if self._is_kept or step <= self._start:
      return
    _write(self._model_dir, self._facts, self._entries)
    self._write_files()
    self._is_kept = True

  def _write_files(self):
    for name, text in self._files.items():
      if text is not None:
        _write_text(self._model_dir, name, text)
      elif self._model_dir.has(name):
        tf.io.gfile.remove(self._model_dir.join(name))


def settle(model_dir: model_dirs.ModelDir) -> None:
  """Brings the top of hparams.json up to date with the newest checkpoint.

  A trainer calls this, because an earlier one may have been killed between two
  writes.
  """
  checkpoint = model_dir.newest()
  if not checkpoint:
    return
  record = Record(model_dir)
  known = record.find(checkpoint)
  if not known or not known.counting:
    return  # Written by an older version.
  shown = model_dir.read_json(model_dirs.HPARAMS)
  if shown.get('compact') != known.params.serialize():
    _write(model_dir, known, record.entries)


def move(
  model_dir: model_dirs.ModelDir, known: Facts, now: counting_lib.Counting
) -> str | None:
  """Renumbers the newest checkpoint to its step in another plan.

  The checkpoints of the former plan move to a directory of their own, which is
  a model_dir like any other. If this is killed at any moment, the newest
  checkpoint is complete and the recorded facts are true of it.

  Args:
    model_dir: The model_dir of the run; the caller is its trainer.
    known: The facts of the newest checkpoint.
    now: How its step is to be counted.

  Returns:
    The directory of the former checkpoints; None if the step stays the same.
  """
  checkpoint = model_dir.newest()
  step = checkpoint_files.step_of(checkpoint)
  moved = counting_lib.moved_step(known.counting, now, step)
  to = checkpoint_files.path_of(model_dir.path, moved)
  facts = dataclasses.replace(known, counting=now)
  if to == checkpoint:
    _write(model_dir, known, [Entry(-1, facts)])
    return None
  aside = model_dirs.ModelDir(model_dir.unused(model_dirs.FORMER_PLANS))
  tf.io.gfile.makedirs(aside.path)
  for name in (
    model_dirs.HPARAMS,
    model_dirs.LABELS,
    model_dirs.WHITENING,
    model_dirs.BAD_IMAGES,
  ):
    if (text := model_dir.read(name)) is not None:
      aside.write(name, text)

  def put_aside(path):
    # Copied, not renamed: renaming several files could stop halfway.
    checkpoint_files.copy(path, aside.join(os.path.basename(path)))
    checkpoint_files.remove(path)

  for path in checkpoint_files.on_disk(model_dir.path):
    if path != checkpoint:
      put_aside(path)
  checkpoint_files.copy_as_step(checkpoint, to)
  # Written before the checkpoint that it describes counts, and without effect
  # on the checkpoint before.
  _write(
    model_dir,
    known,
    [
      Entry(-1, known),
      Entry(-1, facts, moved_from=checkpoint_files.fingerprint(checkpoint)),
    ],
  )
  model_dir.write(
    checkpoint_files.STATE, checkpoint_files.state_text(model_dir.path, [to])
  )
  put_aside(checkpoint)
  aside.write(
    checkpoint_files.STATE,
    checkpoint_files.state_text(
      aside.path, checkpoint_files.on_disk(aside.path)
    ),
  )
  return aside.path
