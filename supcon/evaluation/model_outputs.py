"""A model's outputs for the examples of a split."""

from collections.abc import Iterator
from collections.abc import Sequence
import dataclasses

import numpy as np

# A block of rows has about this many numbers: 16 MiB in float32.
_NUMBERS_AT_A_TIME = 2**22


@dataclasses.dataclass(frozen=True, eq=False)
class Outputs:
  """What a model makes of N examples of C classes.

  The arrays may be `np.memmap`s: they are read block by block.

  Attributes:
    labels: Integers [N], in [0, C).
    logits: float32 [N, C].
    embeddings: float32 [N, D] of any length.
    class_names: The classes, in the order of the labels; empty if unknown.
    ids: The names of the examples; None if they are numbered.
  """

  labels: np.ndarray
  logits: np.ndarray
  embeddings: np.ndarray
  class_names: Sequence[str] = ()
  ids: Sequence[str] | None = None

  def __post_init__(self):
    """Checks shapes and labels.

    Raises:
      ValueError: If they do not match, or there is no example.
    """
    lengths = {
      'labels': len(self.labels),
      'logits': len(self.logits),
      'embeddings': len(self.embeddings),
    }
    if self.ids is not None:
      lengths['ids'] = len(self.ids)
    if len({*lengths.values()}) > 1 or not len(self.labels):
      raise ValueError(f'expected as many examples in each, found {lengths}.')
    is_class = (self.labels >= 0) & (self.labels < self.num_classes)
    if not is_class.all():
      bad = int(np.argmin(is_class))
      raise ValueError(
        f'the label of example {self.name_of(bad)} is {self.labels[bad]}; '
        f'expected 0 to {self.num_classes - 1}, as there are '
        f'{self.num_classes} logits.'
      )

  @property
  def num_examples(self) -> int:
    return len(self.labels)

  @property
  def num_classes(self) -> int:
    return self.logits.shape[1]

  def name_of(self, position: int) -> str:
    """Returns the id of an example, or its position if it has none."""
    return str(position if self.ids is None else self.ids[position])

  def class_of(self, label: int) -> str:
    return self.class_names[label] if self.class_names else str(label)

  def blocks(
    self, name: str, num_rows: int = 0
  ) -> Iterator[tuple[slice, np.ndarray]]:
    """Yields an array block by block.

    Args:
      name: 'logits' or 'embeddings'.
      num_rows: The rows of a block; by default, of about 16 MiB.

    Yields:
      The positions of a block, and its rows, float32 [n, C] or [n, D].

    Raises:
      ValueError: If a value is NaN or infinite; it names the examples.
    """
    array = getattr(self, name)
    num_rows = num_rows or max(1, _NUMBERS_AT_A_TIME // max(array.shape[1], 1))
    for start in range(0, len(array), num_rows):
      rows = np.asarray(array[start : start + num_rows], np.float32)
      is_good = np.isfinite(rows).all(axis=1)
      if not is_good.all():
        bad = start + np.flatnonzero(~is_good)
        more = f' and {len(bad) - 3} more' if len(bad) > 3 else ''
        raise ValueError(
          f'the {name} of example {", ".join(map(self.name_of, bad[:3]))}{more}'
          ' are NaN or infinite; has the training diverged? Use an earlier '
          'checkpoint.'
        )
      yield slice(start, start + len(rows)), rows


def unit(rows: np.ndarray) -> np.ndarray:
  """Returns rows at unit length, of the same type; zeros remain zeros."""
  squares = np.einsum('ij,ij->i', rows, rows, dtype=np.float64)
  lengths = np.sqrt(np.where(squares > 0, squares, 1))
  return rows / lengths[:, np.newaxis].astype(rows.dtype)


def log_softmax(logits: np.ndarray) -> np.ndarray:
  """Returns float64 [N, C], the logarithms of the probabilities."""
  shifted = logits.astype(np.float64)
  shifted -= shifted.max(axis=1, keepdims=True)
  return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
