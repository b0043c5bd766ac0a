"""Whether probabilities are right: NLL, ECE, Brier score, temperature scaling.

On Calibration of Modern Neural Networks, https://arxiv.org/abs/1706.04599.
"""

from typing import Any

import numpy as np

from supcon.evaluation import model_outputs

# The range of temperatures. If all held-out examples are right, the best
# temperature would be 0; if their logits say nothing, infinity.
MIN_TEMPERATURE, MAX_TEMPERATURE = 0.01, 100.0


def run(
  outputs: model_outputs.Outputs,
  held_out: model_outputs.Outputs | None = None,
  num_bins: int = 15,
) -> dict[str, Any]:
  """Measures calibration, before and after temperature scaling.

  Args:
    outputs: The outputs for N examples.
    held_out: The outputs for *training* examples that the model has not been
      trained on, by which the temperature is chosen; None for no scaling.
    num_bins: Number of bins of equal width.

  Returns:
    'nll', the mean negative log-likelihood in nats; 'ece', the expected
    calibration error, over bins (low, high] of the largest probability;
    'brier', the mean over examples of the squared errors summed over classes,
    0 to 2; 'reliability', a list by bin of {'low', 'high', 'count', 'accuracy',
    'confidence'}, the last two None in an empty bin. With `held_out` also
    'temperature', and the others after scaling as 'NAME_scaled'.

  Raises:
    ValueError: If a logit is NaN or infinite.
  """
  result = _measure(outputs, 1.0, num_bins)
  if held_out is not None:
    temperature = fit_temperature(held_out)
    result['temperature'] = temperature
    scaled = _measure(outputs, temperature, num_bins)
    result |= {f'{name}_scaled': value for name, value in scaled.items()}
  return result


def _measure(outputs, temperature, num_bins):
  """Returns the metrics of logits / temperature."""
  nll = brier = 0.0
  edges = np.arange(num_bins + 1) / num_bins
  counts, hits, confidences = np.zeros([3, num_bins])
  for block, logits in outputs.blocks('logits'):
    labels = outputs.labels[block]
    rows = np.arange(len(labels))
    logs = model_outputs.log_softmax(logits.astype(np.float64) / temperature)
    probabilities = np.exp(logs)
    nll -= logs[rows, labels].sum()
    errors = probabilities.copy()
    errors[rows, labels] -= 1
    brier += np.square(errors).sum()
    # From the logits, in which the first of equal ones is the prediction.
    predicted = logits.argmax(axis=1)
    confidence = probabilities[rows, predicted]
    # The first bin whose upper edge is not below the confidence.
    bins = np.searchsorted(edges[1:], confidence).clip(max=num_bins - 1)
    for total, weights in (
      (counts, None),
      (hits, predicted == labels),
      (confidences, confidence),
    ):
      total += np.bincount(bins, weights, num_bins)
  return {
    'nll': float(nll / outputs.num_examples),
    'ece': float(np.abs(hits - confidences).sum() / outputs.num_examples),
    'brier': float(brier / outputs.num_examples),
    'reliability': [
      {
        'low': float(low),
        'high': float(high),
        'count': int(count),
        'accuracy': float(hit / count) if count else None,
        'confidence': float(confidence / count) if count else None,
      }
      for low, high, count, hit, confidence in zip(
        edges, edges[1:], counts, hits, confidences
      )
    ],
  }


def fit_temperature(held_out: model_outputs.Outputs) -> float:
  """Returns the temperature that minimises the NLL, between the bounds.

  The NLL is convex in the inverse temperature, so its slope has one zero, which
  is bisected with steps of Newton's method.

  Args:
    held_out: The outputs for examples that the model was not trained on.

  Raises:
    ValueError: If a logit is NaN or infinite.
  """
  low, high = 1 / MAX_TEMPERATURE, 1 / MIN_TEMPERATURE
  inverse = 1.0
  for _ in range(100):
    slope, curvature = _slope(held_out, inverse)
    if slope > 0:
      high = inverse
    else:
      low = inverse
    step = slope / curvature if curvature > 0 else np.inf
    following = inverse - step
    if not low < following < high:
      following = np.sqrt(low * high)
    if abs(following - inverse) <= 1e-9 * inverse:
      break
    inverse = following
  return float(1 / inverse)


def _slope(outputs, inverse):
  """Returns first and second derivative of the NLL by 1 / temperature."""
  slope = curvature = 0.0
  for block, logits in outputs.blocks('logits'):
    logits = logits.astype(np.float64)
    probabilities = np.exp(model_outputs.log_softmax(logits * inverse))
    means = (probabilities * logits).sum(axis=1)
    own = np.take_along_axis(logits, outputs.labels[block, np.newaxis], axis=1)[
      :, 0
    ]
    slope += (means - own).sum()
    curvature += (
      probabilities * np.square(logits - means[:, np.newaxis])
    ).sum()
  return slope / outputs.num_examples, curvature / outputs.num_examples
