"""Measures whether an encoder tells classes apart, without its classifier.

The loss of stage 1 says little about that, and there is no classifier yet. So
each evaluation also classifies images by their nearest neighbours among
training images, and measures how the embeddings lie on the sphere. A part of
the images is enough to see whether training helps.
"""

from absl import logging
import numpy as np

from supcon.config import safe_text
from supcon.data.sources import faults
from supcon.data.sources import splits
from supcon.evaluation import model_outputs
from supcon.evaluation import registry
from supcon.jobs import outputs
from supcon.jobs import run_state
from supcon.training import checkpoints

_EVALUATIONS = ('knn', 'geometry')


def check(run: run_state.Run) -> None:
  """Checks that there are enough training examples for --best_metric.

  Raises:
    ValueError: If there are fewer than it compares with.
  """
  needed = run.options.best_metric_neighbours
  if needed and run.dataset.num_train_examples < needed:
    raise ValueError(
      f'--best_metric={run.options.best_metric} needs {needed} training '
      f'examples, but there are {run.dataset.num_train_examples}; choose '
      'another metric.'
    )


def measure(run: run_state.Run, checkpoint: str) -> dict[str, float]:
  """Measures a checkpoint on at most --knn_examples images of each split.

  This computes the embeddings of one view of these images, in one pass.

  Args:
    run: The run, as the checkpoint was trained.
    checkpoint: Checkpoint prefix.

  Returns:
    {'knn/...', 'geometry/...': value}, see supcon/evaluation; empty if
    --knn_examples is 0.

  Raises:
    checkpoints.NotFiniteError: If an output is NaN or infinite.
    faults.BadExampleError: If an image cannot be decoded.
  """
  count = run.options.knn_examples
  if not count:
    return {}
  train = subset(run.dataset.train, count)
  if run.options.mode == 'eval' and run.params.input_data.skip_bad_images:
    train = faults.without(train, faults.find(train))
  queries = subset(run.dataset.evaluation, count)
  both = splits.Joined((train, queries))
  with faults.naming(train, queries):
    batches = list(
      outputs.compute(
        run.options,
        run.devices,
        run.trained_model(checkpoint),
        run.dataset,
        both,
        run.dtype,
      )
    )
  arrays = {
    name: np.concatenate([batch[name] for batch in batches])
    for name in ('labels', 'logits', 'embeddings')
  }
  checkpoints.require_finite_outputs(
    {name: arrays[name] for name in ('logits', 'embeddings')},
    checkpoint,
    [safe_text.printable(both.example_id(i)) for i in range(both.num_examples)],
  )
  index, evaluated = (
    model_outputs.Outputs(**{name: x[part] for name, x in arrays.items()})
    for part in (
      slice(train.num_examples),
      slice(train.num_examples, both.num_examples),
    )
  )
  found = registry.run(_EVALUATIONS, evaluated, index=index)
  logging.info(
    'embeddings of %d images, among those of %d training images: %s',
    evaluated.num_examples,
    index.num_examples,
    ', '.join(
      f'{title} {found[name]:.4f}'
      for name, title in (
        ('knn/k20_t0.07', 'accuracy of 20 nearest neighbours'),
        ('geometry/alignment', 'alignment'),
        ('geometry/uniformity', 'uniformity'),
      )
      if name in found
    ),
  )
  return found


def subset(split: splits.Split, count: int) -> splits.Split:
  """Returns at most `count` examples of a split.

  Files can be read in any order, and are sorted by class: they are taken at
  equal distances. Records are stored in random order: the first are taken.
  """
  if count >= split.num_examples:
    return split
  if isinstance(split.storage(), splits.Files):
    return split.select([i * split.num_examples // count for i in range(count)])
  return split.select(range(count))
