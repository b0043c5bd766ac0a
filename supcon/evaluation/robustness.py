"""Robustness to common corruptions: mean error, mCE, relative mCE.

Benchmarking Neural Network Robustness to Common Corruptions and Perturbations,
https://arxiv.org/abs/1903.12261, section 3 and table 1.
"""

from collections.abc import Iterable
from collections.abc import Mapping
import re
from typing import Any

import numpy as np

from supcon.evaluation import accuracy
from supcon.evaluation import calibration
from supcon.evaluation import model_outputs

# The 15 corruptions of ImageNet-C, in the order of the paper, with the error of
# AlexNet: the mean over the severities 1 to 5.
# https://github.com/google-research/augmix, imagenet.py
ALEXNET_ERRORS = {
  'gaussian_noise': 0.886428,
  'shot_noise': 0.894468,
  'impulse_noise': 0.922640,
  'defocus_blur': 0.819880,
  'glass_blur': 0.826268,
  'motion_blur': 0.785948,
  'zoom_blur': 0.798360,
  'snow': 0.866816,
  'frost': 0.826572,
  'fog': 0.819324,
  'brightness': 0.564592,
  'contrast': 0.853204,
  'elastic_transform': 0.646056,
  'pixelate': 0.717840,
  'jpeg_compression': 0.606500,
}
# The paper has one decimal of it: 43.5%.
ALEXNET_CLEAN_ERROR = 0.435
# Corruptions that the paper sets apart, for choosing hyper-parameters. They are
# measured, but no mean counts them.
EXTRA = ('gaussian_blur', 'saturate', 'spatter', 'speckle_noise')

_SEVERITIES = (1, 2, 3, 4, 5)
_NUM_CLASSES = 1000


def measure(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
  """Returns {'error', 'ece', 'n'} of a model on one set of images.

  Args:
    logits: float32 [N, C].
    labels: Integers [N], in [0, C).

  Returns:
    The top-1 error; the expected calibration error over 15 bins; N.

  Raises:
    ValueError: If a logit is NaN or infinite.
  """
  embeddings = np.empty([len(labels), 0], np.float32)  # Nothing looks at them.
  outputs = model_outputs.Outputs(labels, logits, embeddings)
  return {
    'error': 1 - accuracy.run(outputs, ks=(1,))['top_1'],
    'ece': calibration.run(outputs)['ece'],
    'n': outputs.num_examples,
  }


def summarize(
  measured: Mapping[tuple[str, int], Mapping[str, float]],
  clean: Mapping[str, float],
  is_imagenet_c: bool,
) -> dict[str, Any]:
  """Returns the means of the measurements of a model.

  With E(c, s) the error under corruption c at severity s, E the error on clean
  images, and A the same of AlexNet,

    CE(c) = sum_s E(c, s) / sum_s A(c, s),
    relative CE(c) = sum_s (E(c, s) - E) / sum_s (A(c, s) - A),

  and mCE and relative mCE are their means over c. They are 1 for AlexNet.

  Args:
    measured: The result of `measure` by (corruption, severity), for each
      corruption at each severity.
    clean: The result of `measure` for the images without corruption.
    is_imagenet_c: Whether AlexNet's errors apply, see `lacks_of_imagenet_c`.

  Returns:
    'mean_error' and 'mean_ece' over all evaluations; 'mce' and 'relative_mce',
    None if AlexNet's errors do not apply; 'clean_error' and 'clean_ece';
    'corruptions' by name, and 'severities' by number (as text, as in JSON),
    with the mean 'error' and 'ece' of each, and of a corruption 'ce' and
    'relative_ce'; 'not_counted', the corruptions that no mean includes. All are
    fractions.
  """
  names = tuple(dict.fromkeys(name for name, _ in measured))
  counted = [name for name in names if name not in EXTRA] or names
  severities = sorted({severity for _, severity in measured})

  def mean(key, some=counted, at=severities):
    return float(np.mean([measured[name, s][key] for name in some for s in at]))

  corruptions = {}
  for name in names:
    error, ce, relative_ce = mean('error', [name]), None, None
    if is_imagenet_c and name in ALEXNET_ERRORS:
      # Both sums are over as many severities.
      ce = error / ALEXNET_ERRORS[name]
      relative_ce = (error - clean['error']) / (
        ALEXNET_ERRORS[name] - ALEXNET_CLEAN_ERROR
      )
    corruptions[name] = {
      'error': error,
      'ece': mean('ece', [name]),
      'ce': ce,
      'relative_ce': relative_ce,
    }

  def mean_of(key):
    if not is_imagenet_c:
      return None
    return float(np.mean([corruptions[name][key] for name in ALEXNET_ERRORS]))

  return {
    'mean_error': mean('error'),
    'mean_ece': mean('ece'),
    'mce': mean_of('ce'),
    'relative_mce': mean_of('relative_ce'),
    'clean_error': clean['error'],
    'clean_ece': clean['ece'],
    'corruptions': corruptions,
    'severities': {
      str(s): {key: mean(key, at=[s]) for key in ('error', 'ece')}
      for s in severities
    },
    'not_counted': [name for name in names if name not in counted],
  }


def lacks_of_imagenet_c(
  measured: Iterable[tuple[str, int]], class_names: Iterable[str]
) -> str:
  """Returns what a set lacks that ImageNet-C has, in words; '' if nothing.

  AlexNet's errors are those on the 1000 classes of ImageNet (others have the
  same corruptions, such as Tiny ImageNet-C), at all severities.

  Args:
    measured: Each (corruption, severity) of the set.
    class_names: Its classes, which ImageNet-C names by their WordNet ids.
  """
  measured, class_names = {*measured}, {*class_names}
  severities = {severity for _, severity in measured}
  missing = [c for c in ALEXNET_ERRORS if (c, 1) not in measured]
  if sum(bool(re.fullmatch(r'n\d{8}', n)) for n in class_names) != _NUM_CLASSES:
    return 'the 1000 classes of ImageNet'
  if severities != {*_SEVERITIES}:
    return 'exactly the severities 1 to 5'
  return ', '.join(missing)
