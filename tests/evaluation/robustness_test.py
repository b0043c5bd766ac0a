"""Tests of mean error, mCE and relative mCE."""

import numpy as np
import pytest

from supcon.evaluation import robustness

_ALL = tuple((c, s) for c in robustness.ALEXNET_ERRORS for s in range(1, 6))
_IMAGENET = [f'n{number:08d}' for number in range(1000)]


def _measured(errors, ece=0.0):
  return {key: {'error': e, 'ece': ece, 'n': 4} for key, e in errors.items()}


def _summary(errors, clean=0.25, is_imagenet_c=False):
  clean = {'error': clean, 'ece': 0.01, 'n': 4}
  return robustness.summarize(_measured(errors), clean, is_imagenet_c)


def test_error_and_ece_of_one_set():
  # Sure of class 0, then of class 1, each with a probability of 1: one of the
  # four is right. The only bin has accuracy 1/4 and confidence 1.
  logits = np.float32([[99, 0], [0, 99], [0, 99], [99, 0]])
  found = robustness.measure(logits, np.array([0, 0, 0, 1]))
  assert found == {'error': 0.75, 'ece': pytest.approx(0.75), 'n': 4}


def test_means_over_severities_and_corruptions():
  errors = {
    ('fog', 1): 0.1,
    ('fog', 2): 0.3,
    ('snow', 1): 0.5,
    ('snow', 2): 0.9,
  }
  found = _summary(errors)
  # (0.1 + 0.3) / 2, (0.5 + 0.9) / 2; (0.1 + 0.5) / 2, (0.3 + 0.9) / 2.
  assert found['corruptions']['fog']['error'] == pytest.approx(0.2)
  assert found['corruptions']['snow']['error'] == pytest.approx(0.7)
  assert found['severities']['1']['error'] == pytest.approx(0.3)
  assert found['severities']['2']['error'] == pytest.approx(0.6)
  assert found['mean_error'] == pytest.approx(0.45)
  assert found['clean_error'] == 0.25
  assert found['mce'] is None and found['relative_mce'] is None


def test_ece_of_a_severity_is_the_mean_over_corruptions():
  measured = {
    ('fog', 1): {'error': 0.0, 'ece': 0.1, 'n': 4},
    ('snow', 1): {'error': 0.0, 'ece': 0.2, 'n': 4},
  }
  found = robustness.summarize(measured, {'error': 0, 'ece': 0}, False)
  assert found['severities']['1']['ece'] == pytest.approx(0.15)
  assert found['mean_ece'] == pytest.approx(0.15)


def test_alexnet_has_an_mce_of_one():
  errors = {(c, s): robustness.ALEXNET_ERRORS[c] for c, s in _ALL}
  found = _summary(errors, robustness.ALEXNET_CLEAN_ERROR, True)
  assert found['mce'] == pytest.approx(1)
  assert found['relative_mce'] == pytest.approx(1)


def test_mce_is_relative_to_alexnet():
  # Always wrong under fog, always right elsewhere; a fifth wrong at severity 5
  # of snow.
  errors = {key: float(key[0] == 'fog') for key in _ALL}
  errors['snow', 5] = 0.2
  found = _summary(errors, 0.0, True)
  # Snow: sums of 0.2 and of 5 x 0.866816. Fog: 5 and 5 x 0.819324.
  snow, fog = 0.2 / (5 * 0.866816), 1 / 0.819324
  assert found['corruptions']['snow']['ce'] == pytest.approx(snow)
  assert found['corruptions']['fog']['ce'] == pytest.approx(fog)
  assert found['mce'] == pytest.approx((snow + fog) / 15)
  # 0.2 of 5 x (0.866816 - 0.435), 1 of 0.819324 - 0.435.
  snow, fog = 0.2 / (5 * 0.431816), 1 / 0.384324
  assert found['relative_mce'] == pytest.approx((snow + fog) / 15)


def test_relative_mce_counts_what_corruptions_add():
  # As bad on clean images as on others.
  found = _summary(dict.fromkeys(_ALL, 0.3), 0.3, True)
  assert found['relative_mce'] == pytest.approx(0)
  # 0.1 more, under brightness that AlexNet adds 0.564592 - 0.435 to.
  errors = {key: 0.4 if key[0] == 'brightness' else 0.3 for key in _ALL}
  found = _summary(errors, 0.3, True)
  assert found['relative_mce'] == pytest.approx(0.1 / 0.129592 / 15)


# Top-1 accuracy and CE in %, as others report them for the ResNet-50 of
# torchvision.
_RESNET_50 = {
  'gaussian_noise': (29.29, 79.77),
  'impulse_noise': (23.81, 82.58),
  'defocus_blur': (38.75, 74.71),
  'glass_blur': (26.79, 88.61),
  'frost': (38.14, 74.84),
  'fog': (45.83, 66.11),
  'brightness': (68.02, 56.64),
  'contrast': (39.06, 71.43),
  'elastic_transform': (45.25, 84.75),
}


def test_corruption_errors_are_those_that_others_report():
  errors = {(c, s): 1 - _RESNET_50.get(c, (0, 0))[0] / 100 for c, s in _ALL}
  found = _summary(errors, is_imagenet_c=True)['corruptions']
  for name, (_, ce) in _RESNET_50.items():
    assert 100 * found[name]['ce'] == pytest.approx(ce, abs=0.02), name


def test_extra_corruptions_are_not_counted():
  errors = dict.fromkeys(_ALL, 0.5)
  errors |= {('saturate', s): 1.0 for s in range(1, 6)}
  found = _summary(errors, is_imagenet_c=True)
  assert found['mean_error'] == 0.5
  assert found['severities']['1']['error'] == 0.5
  assert found['corruptions']['saturate']['error'] == 1
  assert found['corruptions']['saturate']['ce'] is None
  assert found['not_counted'] == ['saturate']
  # Alone they count.
  assert _summary({('saturate', 1): 1.0})['mean_error'] == 1


@pytest.mark.parametrize(
  'keys, class_names, lacks',
  [
    (_ALL, _IMAGENET, ''),
    ((*_ALL, *(('saturate', s) for s in range(1, 6))), _IMAGENET, ''),
    # Tiny ImageNet-C, and CIFAR-10.
    (_ALL, _IMAGENET[:200], '1000 classes'),
    (_ALL, [str(n) for n in range(1000)], '1000 classes'),
    ([key for key in _ALL if key[1] < 5], _IMAGENET, 'severities 1 to 5'),
    ([key for key in _ALL if key[0] != 'fog'], _IMAGENET, 'fog'),
  ],
)
def test_what_is_imagenet_c(keys, class_names, lacks):
  found = robustness.lacks_of_imagenet_c(keys, class_names)
  assert lacks in found and bool(lacks) == bool(found)


def test_broken_logits_are_an_error():
  logits = np.float32([[0, np.nan]])
  with pytest.raises(ValueError, match='NaN'):
    robustness.measure(logits, np.array([0]))
