"""The table of evaluations of a model's outputs for a split."""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from typing import Any, NamedTuple

from supcon.evaluation import accuracy
from supcon.evaluation import calibration
from supcon.evaluation import classes
from supcon.evaluation import few_shot
from supcon.evaluation import geometry
from supcon.evaluation import knn
from supcon.evaluation import model_outputs


class Evaluation(NamedTuple):
  """A kind of evaluation.

  Attributes:
    run: A function from the outputs for a split to {name: value}; values can be
      written as JSON.
    takes: The other outputs that it takes, by the name of the argument: 'index'
      for the training split, 'held_out' for training examples that were not
      trained on; '' for none.
  """

  run: Callable[..., dict[str, Any]]
  takes: str = ''


EVALUATIONS: dict[str, Evaluation] = {
  'accuracy': Evaluation(accuracy.run),
  'calibration': Evaluation(calibration.run, takes='held_out'),
  'classes': Evaluation(classes.run),
  'knn': Evaluation(knn.run, takes='index'),
  'few_shot': Evaluation(few_shot.run, takes='index'),
  'geometry': Evaluation(geometry.run),
}


def run(
  names: Iterable[str],
  outputs: model_outputs.Outputs,
  **others: model_outputs.Outputs,
) -> dict[str, Any]:
  """Runs evaluations by name; returns {'EVALUATION/NAME': value}.

  Args:
    names: Keys of EVALUATIONS.
    outputs: The outputs for the split to evaluate.
    **others: Outputs that evaluations take, by name, such as `index`.

  Raises:
    ValueError: If outputs cannot be evaluated.
  """
  result = {}
  for name in names:
    evaluation = EVALUATIONS[name]
    wanted = {k: v for k, v in others.items() if k == evaluation.takes}
    values = evaluation.run(outputs, **wanted)
    result |= {f'{name}/{key}': value for key, value in values.items()}
  return result


def scalars(values: Mapping[str, Any]) -> dict[str, float]:
  """Returns the values that can be drawn as curves."""
  return {k: v for k, v in values.items() if isinstance(v, float)}
