"""The facts of a run: what its checkpoints were trained with, and on.

What a command asks for is an intention until a checkpoint has been trained
with it. hparams.json holds the facts: at its top the hyper-parameters of the
newest checkpoint, and in `facts` an entry for each change of them since the run
began, with the step after which it holds:

  {"hparams": {...}, "compact": "bs=64,...", "facts": [{"after_step": -1, ...}]}

An entry is written before the first checkpoint to which it applies is saved,
the top of the file after that. So whatever moment a run is killed at, the
entries and the steps of the checkpoints together say what holds, and `Record`
reads them so. Jobs that train nothing write nothing of this.

What may change when a run goes on stands in `changes`, how steps are counted in
`counting`.
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
from supcon.config import safe_text
from supcon.data import whitening
from supcon.data.sources import datasets
from supcon.models import resnet
from supcon.runs import checkpoint_files
from supcon.runs import model_dirs
from supcon.runs import storage_errors
from supcon.training import positions as counting_lib
from supcon.training import stages
from supcon.training import warm_start

EXPORT = 'export.json'  # In an export.

# --- What is known of a checkpoint --------------------------------------------


@dataclasses.dataclass(frozen=True)
class Facts:
  """What a checkpoint was trained with, and on.

  Attributes:
    params: The hyper-parameters.
    counting: What gives its step its place; None where nobody wrote it down.
    train_split: Name of the training split; '' if unknown.
    train_images: Fingerprint of the training examples; '' if unknown.
    evaluation: What the evaluations of the run are of, see evaluated.data_of;
      None if unknown.
    reference: What --reference_ckpt named; '' without.
    data_name: What people call the training data; '' if unknown. Where it lies
      may be called otherwise later, and it is the same run all the same.
  """

  params: hparams.HParams
  counting: counting_lib.Counting | None = None
  train_split: str = ''
  train_images: str = ''
  evaluation: Mapping[str, Any] | None = None
  reference: str = ''
  data_name: str = dataclasses.field(default='', compare=False)

  def plan(self) -> stages.Plan | None:
    """Returns the stages; None if nobody knows on how many examples.

    Raises:
      ValueError: If there can be no such run.
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
        # What follows from these, for people.
        'steps_per_epoch': counting.steps_per_epoch,
        'ends': list(counting.ends),
      }
    return result


class Entry(NamedTuple):
  """An entry of hparams.json.

  Attributes:
    after_step: It applies to checkpoints of later steps.
    facts: What holds for them.
    moved_from: Fingerprint of a checkpoint to which it does not apply: the one
      whose step was counted otherwise; '' if there is none.
  """

  after_step: int
  facts: Facts
  moved_from: str = ''

  def to_json(self):
    result = {'after_step': self.after_step, **self.facts.to_json()}
    return result | ({'moved_from': self.moved_from} if self.moved_from else {})


def _entry(found):
  """Reads an entry; raises what comes of something else."""
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
    entries: In their order; none without a file.
  """

  def __init__(self, model_dir: model_dirs.ModelDir):
    """Reads it.

    Raises:
      ValueError: If it cannot be read, or holds something else.
    """
    try:
      found = model_dir.read_json(model_dirs.HPARAMS)
    except tf.errors.OpError as error:
      raise ValueError(
        f'--model_dir={model_dir.path} cannot be read '
        f'({storage_errors.reason(error)}); name a directory that can.'
      ) from error
    try:
      self.entries = _entries(found)
    except (
      AttributeError,
      LookupError,
      OverflowError,
      TypeError,
      ValueError,
    ) as error:
      raise ValueError(
        f'{model_dir.join(model_dirs.HPARAMS)} holds no hyper-parameters '
        f'({safe_text.one_line(error)}); restore it, or delete it and give all '
        'of them as flags.'
      ) from error

  def find(self, checkpoint: str | None) -> Facts | None:
    """Returns what holds for a checkpoint; None if nobody wrote it down.

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
  if found is None:
    return ()
  if 'facts' in found:
    return tuple(map(_entry, found['facts']))
  # Of a version of this program that wrote down nothing else.
  return (Entry(-1, Facts(hparams.parse(found['compact']))),)


def find(
  model_dir: model_dirs.ModelDir, checkpoint: str | None
) -> Facts | None:
  """Returns what holds for a checkpoint; None if nobody wrote it down.

  Args:
    model_dir: Of the run.
    checkpoint: One of the run, wherever it is kept; None for none.

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
    tf.errors.OpError: If model_dir cannot be looked at.
  """
  directory = model_dirs.ModelDir(model_dir)
  record = Record(directory)
  known = record.entries and record.find(directory.newest())
  return known.params if known else None


def colors(model_dir: model_dirs.ModelDir, params: hparams.HParams):
  """Returns by what a run whitens images, on the scale [-1, 1].

  Args:
    model_dir: Of the run.
    params: What it was trained with.

  Returns:
    Mean and standard deviation, each three floats; (None, None) if it does not.

  Raises:
    ValueError: If whitening.json holds something else.
  """
  if not params.input_data.preprocessing.apply_whitening:
    return None, None
  if found := whitening.read(model_dir.join(model_dirs.WHITENING)):
    return found.mean, found.std
  return datasets.known_colors(params.input_data.input_fn) or (None, None)


def of_export(known: Facts) -> dict[str, Any]:
  """Returns what an export says of a training, as far as it is known."""
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

# What a part that is taken from a reference takes with it: its architecture,
# and how its images were made.
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

# What no variable tells.
_OF_IMAGES = tuple(
  path for path in _OF_ENCODER if path.startswith('input_data.')
)

# Part of the handles of the published modules, all of them for ImageNet, and
# what besides their variables is known of their encoders.
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
  """Returns what a training takes from its reference besides variables.

  A run that has begun has taken it, and does not need the reference any more.

  Args:
    model_dir: Of the training.
    reference: What --reference_ckpt names.
    params: The hyper-parameters of the training, as far as its flags say them.

  Returns:
    {path of a hyper-parameter: value}.

  Raises:
    ValueError: If the reference, or what was written down of it, cannot be
      read.
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
  # To be measured here: what they were there, is of no use.
  is_measured = params.input_data.preprocessing.measure_whitening
  return {
    path: values[path]
    for path in _taken_paths(params.warm_start)
    if path in values
    and not (is_measured and path.endswith('.apply_whitening'))
  }


def of_reference(checkpoint: str, reference: str = '') -> dict[str, Any]:
  """Returns what is known of a model: {path of a hyper-parameter: value}.

  Args:
    checkpoint: Of a training directory, its best/, an export, or the TF-Hub
      module in an export; or any other one of such an encoder, whose variables
      tell a part.
    reference: How it was named, which tells published modules.

  Raises:
    ValueError: If what should say it is damaged.
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
  """Says in what a training is like its reference, and in what it is not.

  Args:
    checkpoint: That of the reference.
    reference: How it was named.
    params: The hyper-parameters of the training.

  Yields:
    Whether it is a warning, and a line.

  Raises:
    ValueError, tf.errors.OpError: As `of_reference`.
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
  """Returns the paths of what the parts that are taken take with them."""
  return (
    *(_OF_ENCODER if params.warm_start_encoder else ()),
    *(_OF_PROJECTION_HEAD if params.warm_start_projection_head else ()),
    *(_OF_CLASSIFIER if params.warm_start_classifier else ()),
  )


def _values(params):
  paths = (*_OF_ENCODER, *_OF_PROJECTION_HEAD, *_OF_CLASSIFIER)
  return {path: params.get(path) for path in paths}


def _params_of_reference(checkpoint):
  """Returns the HParams that are written down of a model, or None."""
  if run := _run_of(checkpoint):
    known = Record(run).find(checkpoint)
    return known and known.params
  for path, found in _exports_of(checkpoint):
    if 'compact' in found:
      try:
        return hparams.parse(found['compact'])
      except (TypeError, ValueError) as error:
        raise ValueError(
          f'{path} holds no hyper-parameters ({safe_text.one_line(error)}); '
          'restore it, or name a checkpoint.'
        ) from error
  return None


def _run_of(checkpoint):
  """Returns the ModelDir that a checkpoint of a run is of; else None."""
  directory, name = os.path.split(checkpoint)
  if name == 'variables' or not checkpoint_files.prefix_of(checkpoint):
    return None
  if os.path.basename(directory).startswith(model_dirs.BEST):
    directory = os.path.dirname(directory)
  return model_dirs.ModelDir(directory)


def _exports_of(checkpoint):
  """Yields the path and the contents of each export.json that speaks of it."""
  directory, name = os.path.split(checkpoint)
  if name != 'variables':  # DIRECTORY/variables/variables, or in its hub/.
    return
  for _ in range(2):
    directory = os.path.dirname(directory)
    found = model_dirs.ModelDir(directory).read_json(EXPORT)
    if isinstance(found, dict):
      yield os.path.join(directory, EXPORT), found


def whitening_of_reference(checkpoint: str) -> whitening.Statistics | None:
  """Returns by what the images of a model were whitened, if that is known.

  Args:
    checkpoint: Of a training directory, its best/, an export, or the TF-Hub
      module in an export.

  Returns:
    None if nothing says whether they were. Without mean and deviation: they
    were not.

  Raises:
    ValueError: If what should say it is damaged.
    tf.errors.OpError: If it cannot be read.
  """
  if run := _run_of(checkpoint):
    return _whitening_of_run(run, checkpoint)
  for path, found in _exports_of(checkpoint):
    if {'mean', 'std'} <= {*found}:
      return _whitening_of_export(path, found, checkpoint)
  return None


def _whitening_of_export(path, found, checkpoint):
  try:
    colors = [
      found[name] and tuple(map(float, found[name])) for name in ('mean', 'std')
    ]
  except (TypeError, ValueError) as error:
    raise ValueError(
      f'{path} holds no mean and deviation ({safe_text.one_line(error)}); '
      'restore it, or name a checkpoint.'
    ) from error
  return whitening.Statistics(*colors, reference=checkpoint)


def _whitening_of_run(directory, checkpoint):
  known = Record(directory).find(checkpoint)
  if not known:
    return None
  colors_of_run = colors(directory, known.params)
  return whitening.Statistics(*colors_of_run, reference=checkpoint)


# --- Going on -----------------------------------------------------------------


def _write(model_dir, shown, entries):
  """Writes hparams.json, with `shown` at its top, unless it is there so."""
  _write_text(
    model_dir,
    model_dirs.HPARAMS,
    model_dirs.to_json(
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
  """Keeps the facts of the checkpoints that a trainer saves.

  To be told where training begins, and of each save, before and after.
  """

  def __init__(
    self,
    model_dir: model_dirs.ModelDir,
    facts: Facts,
    files: Mapping[str, str | None],
  ):
    """Makes a keeper, which writes nothing by itself.

    Args:
      model_dir: Of the run.
      facts: Of what is going to be trained.
      files: {name: text} of other files that say what the checkpoints were
        trained with; None where there shall be none.
    """
    self._model_dir = model_dir
    self._facts = facts
    self._files = files
    self.begin(None)

  def begin(self, checkpoint: str | None) -> None:
    """Says from which checkpoint training goes on; None for a new run."""
    self._is_kept = False
    self._start = -1
    self._before, self._entries = None, ()
    if checkpoint:
      self._start = checkpoint_files.step_of(checkpoint)
      record = Record(self._model_dir)
      self._before = record.find(checkpoint)
      # Those of later steps are of checkpoints that do not count any more.
      self._entries = tuple(
        entry for entry in record.entries if entry.after_step < self._start
      )
    if self._before != self._facts:
      self._entries += (Entry(self._start, self._facts),)

  def before_save(self, step: int) -> None:
    """Writes what will hold for a checkpoint that is about to be saved."""
    if self._is_kept or step <= self._start:
      return
    if self._start < 0:
      # Nothing is there of which these could say what does not hold.
      self._write_files()
      _write(self._model_dir, self._facts, self._entries)
    elif self._before:
      _write(self._model_dir, self._before, self._entries)

  def after_save(self, step: int) -> None:
    """Writes what holds for a checkpoint that was saved."""
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
  """Has the top of hparams.json say what holds for the newest checkpoint.

  For a trainer: one before it may have been killed between two writings.
  """
  checkpoint = model_dir.newest()
  if not checkpoint:
    return
  record = Record(model_dir)
  known = record.find(checkpoint)
  if not known or not known.counting:
    return  # It is of an older version.
  shown = model_dir.read_json(model_dirs.HPARAMS)
  if shown.get('compact') != known.params.serialize():
    _write(model_dir, known, record.entries)


def move(
  model_dir: model_dirs.ModelDir, known: Facts, now: counting_lib.Counting
) -> str | None:
  """Gives the newest checkpoint the step that it has in another plan.

  The checkpoints of the former plan go into a directory of their own, which is
  a model_dir like any other. Whenever this is killed, the newest checkpoint is
  whole, and what is written down holds for it.

  Args:
    model_dir: Of the run; the caller is its trainer.
    known: What holds for the newest checkpoint.
    now: How its step is to be counted.

  Returns:
    The directory of the former checkpoints; None if the step stays the same.
  """
  checkpoint = model_dir.newest()
  step = checkpoint_files.step_of(checkpoint)
  moved = counting_lib.moved_step(known.counting, now, step)
  to = model_dir.join(f'model.ckpt-{moved}')
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
    # Not renamed: of several files that might be done in part.
    checkpoint_files.copy(path, aside.join(os.path.basename(path)))
    checkpoint_files.remove(path)

  for path in checkpoint_files.on_disk(model_dir.path):
    if path != checkpoint:
      put_aside(path)
  checkpoint_files.copy_as_step(checkpoint, to)
  # Before the checkpoint that it is about counts, and not of the one before.
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
