"""Makes what runs leave in their model_dir, without training.

The files are written by the program's own writers. A made run has 100 training
examples and 2 + 1 epochs of 10 steps each.
"""

import contextlib

from supcon.config import hparams
from supcon.jobs import evaluation_records
from supcon.runs import event_files
from supcon.runs import model_dirs
from supcon.runs import status
from supcon.training import facts
from supcon.training import facts_keeper
from supcon.training import positions

LAST_STEP = 30
_STAGE_END = 20


def train(
  path,
  step=LAST_STEP,
  error=None,
  is_over=True,
  total_steps=LAST_STEP,
  **params,
):
  """Makes a run that has trained up to a step.

  Args:
    path: Its model_dir.
    step: The step that it has reached.
    error: The exception that ended it; None if there was none.
    is_over: Whether it has ended.
    total_steps: Where it ends according to its status.
    **params: Hyper-parameters: {short name: text}.
  """
  record(path, **params)
  model_dir = model_dirs.ModelDir(str(path))
  curve = {
    each: {'loss': 1 / (each + 1), 'top_1_accuracy': each / LAST_STEP}
    for each in range(0, step, 2)
  }
  text = event_files.table(
    curve,
    event_files.TRAINING_COLUMNS,
    lambda each: (each / 10, 1 if each < _STAGE_END else 2),
  )
  model_dir.write(model_dirs.METRICS, text)
  writer = status.Writer(model_dir, explain=str)
  writer.begin(status.TRAINING, 0, total_steps)
  writer.write(step=step)
  if is_over:
    with contextlib.suppress(type(error)), writer:
      if error:
        raise error


def record(path, after_step=None, **params):
  """Writes hparams.json: the first entry, or one for steps after another."""
  model_dir = model_dirs.ModelDir(str(path))
  compact = ','.join(f'{name}={value}' for name, value in params.items())
  known = facts.Facts(
    hparams.parse(f'bs=10,{compact}'),
    positions.Counting(100, 10, (2, 1)),
    train_images='all 100',
  )
  if after_step is None:
    path.mkdir(parents=True)
    keeper = facts_keeper.Keeper(model_dir, known, {})
    keeper.before_save(0)
    keeper.after_save(0)
    return
  found = model_dir.read_json(model_dirs.HPARAMS)
  found['facts'].append(facts.Entry(after_step, known).to_json())
  model_dir.write_json(model_dirs.HPARAMS, found)


def evaluate(
  path, top_1, step=LAST_STEP, split='test', fingerprint='', **metrics
):
  """Adds an evaluation to result.json.

  Args:
    path: The model_dir.
    top_1: The accuracy, in [0, 1].
    step: The step of the checkpoint.
    split: The split of the data set `digits`.
    fingerprint: That of the checkpoint; by default none is like another.
    **metrics: Further metrics.
  """
  evaluated = {
    'metrics': {'top_1_accuracy': top_1, **metrics},
    'global_step': step,
    'total_steps': LAST_STEP,
    'num_examples': 50,
    'dataset': 'digits',
    'split': split,
    'fingerprint': fingerprint or f'{path} {step}',
    'data': {'images': f'the images of {split}'},
  }
  evaluation_records.keep_result(
    model_dirs.ModelDir(str(path)),
    evaluated,
    {'checkpoint': f'{path}/model.ckpt-{step}', **evaluated},
    is_last=True,
  )


def finish(path, top_1, metrics=(), **params):
  """Makes a run that was trained and evaluated to its end."""
  train(path, **params)
  evaluate(path, top_1, **dict(metrics))
