"""Top-k accuracy."""

from collections.abc import Sequence

import numpy as np

from supcon.evaluation import model_outputs


def run(
  outputs: model_outputs.Outputs, ks: Sequence[int] = (1, 2, 3, 5, 10)
) -> dict[str, float]:
  """Returns {'top_K': the share of labels among the K largest logits}.

  Among equal logits, that of the lower class counts as larger, as in training
  and in `numpy.argmax`. With K >= C, every label is among the K largest.

  Args:
    outputs: The outputs for N examples.
    ks: The values of K.

  Raises:
    ValueError: If a logit is NaN or infinite.
  """
  ranks = np.zeros([outputs.num_examples], np.int64)
  classes = np.arange(outputs.num_classes)
  for block, logits in outputs.blocks('logits'):
    labels = outputs.labels[block, np.newaxis]
    own = np.take_along_axis(logits, labels, axis=1)
    is_ahead = (logits > own) | ((logits == own) & (classes < labels))
    ranks[block] = is_ahead.sum(axis=1)
  return {f'top_{k}': float(np.mean(ranks < k)) for k in ks}
