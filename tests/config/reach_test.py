"""Tests of reach: what the losses train."""

import pytest

from supcon.config import hparams
from supcon.config import reach

_DEFAULT = hparams.HParams()

_STOP_CLASSIFIER = 'architecture.stop_gradient_before_classification_head'
_STOP_PROJECTION = 'architecture.stop_gradient_before_projection_head'


def _with(*stages, **more):
  """Returns HParams with (contrastive, cross-entropy) weights; None skips."""
  params = _DEFAULT
  for number, weights in enumerate(stages, start=1):
    if weights is None:
      params = params.replace(f'stage_{number}.epochs', 0)
      continue
    for name, weight in zip(('contrastive', 'cross_entropy'), weights):
      params = params.replace(f'stage_{number}.{name}_loss_weight', weight)
  for path, value in more.items():
    path = {'classifier': _STOP_CLASSIFIER, 'projection': _STOP_PROJECTION}.get(
      path, path.replace('__', '.')
    )
    params = params.replace(path, value)
  params.check()
  return params


@pytest.mark.parametrize(
  'params, words',
  [
    # Cross-entropy alone, on an encoder at random that no gradient reaches.
    (
      _with((0, 1), None),
      [
        'stage 1',
        '--stop_gradient_before_classification_head=True keeps the '
        'cross-entropy loss out',
        'Pass --stop_gradient_before_classification_head=False',
        '--warm_start_encoder',
      ],
    ),
    # A second stage would not make up for it.
    (_with((0, 1), (1, 1)), ['stage 1']),
    (
      _with((1, 0), (0, 1), projection=True),
      ['stage 1', 'Pass --stop_gradient_before_projection_head=False'],
    ),
    # Neither of two losses.
    (
      _with((1, 1), None, projection=True),
      ['_projection_head=False or --stop_gradient_before_classification_head='],
    ),
    # Without a stage 1.
    (_with(None, (0, 1)), ['stage 2']),
  ],
)
def test_an_encoder_that_nothing_trains_is_refused(params, words):
  with pytest.raises(ValueError) as error:
    reach.check(params)
  for word in words:
    assert word in str(error.value)
  assert '\n' not in str(error.value)


@pytest.mark.parametrize(
  'params',
  [
    _DEFAULT,
    _with((1, 0), (0, 1)),
    _with((0, 1), None, classifier=False),
    _with((1, 1), None, projection=True, classifier=False),
    _with((1, 1), None),
    # The encoder is another model's.
    _with((0, 1), None, warm_start__warm_start_encoder=True),
    _with((1, 0), None, projection=True, warm_start__warm_start_encoder=True),
    # Skipped are stages without epochs, whatever their losses.
    _with(None, (0, 1), classifier=False),
  ],
)
def test_an_encoder_that_something_trains_is_not(params):
  reach.check(params)


def test_a_memory_that_serves_no_loss_is_refused():
  reach.check(_with((1, 0), (0, 1), memory__memory_size=2048))
  with pytest.raises(ValueError, match='--memory_size=2048 .* no stage has'):
    reach.check(_with((0, 1), None, classifier=False, memory__memory_size=2048))


def test_a_loss_that_trains_its_head_alone_is_told():
  (line,) = reach.oddities(_with((1, 1), (0, 1)))
  assert line.startswith('stage 1: the cross-entropy loss trains the classif')
  assert 'pass --stop_gradient_before_classification_head=False' in line
  (line,) = reach.oddities(
    _with((1, 1), None, projection=True, classifier=False)
  )
  assert line.startswith('stage 1: the contrastive loss trains the projection')
  assert not list(reach.oddities(_with((1, 1), None, classifier=False)))
  assert not list(reach.oddities(_DEFAULT))


def test_weights_that_only_decay_are_told():
  params = _with((1, 0), (0, 1), stage_2__weight_decay=1e-4)
  (line,) = reach.oddities(params)
  assert line.startswith('stage 2: no loss reaches the encoder, but its weight')
  assert '--stage_2_use_encoder_weight_decay=False' in line
  params = params.replace('stage_2.use_encoder_weight_decay', False)
  assert not list(reach.oddities(params))
