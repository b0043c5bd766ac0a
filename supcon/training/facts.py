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

from collections.abc import Mapping
import dataclasses
import os
from typing import Any, NamedTuple

import tensorflow as tf

from supcon.config import hparams
from supcon.data import whitening
from supcon.data.sources import datasets
from supcon.runs import checkpoint_files
from supcon.runs import model_dirs
from supcon.runs import storage_errors
from supcon.training import positions as counting_lib
from supcon.training import stages

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
    evaluation: The data of the run's evaluations, see run_state.data_of; None
      if unknown.
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
