"""Tests of what is chosen for images that nobody has trained on before."""

import dataclasses
import math

import pytest

from supcon.config import hparams
from supcon.config import recipes
from tests import flag_parsing

_DIGITS = recipes.Facts(
  class_sizes=[300] * 10,
  num_eval=360,
  sides=(28, 28, 28),
  is_grey=True,
  flips=False,
  orientation='they are digits',
  num_cores=2,
)
_PATCHES = recipes.Facts(
  class_sizes=[120, 120],
  num_eval=60,
  sides=(64, 64, 64),
  is_grey=False,
  flips=True,
  num_cores=2,
)
_PHOTOS = recipes.Facts(
  class_sizes=[500, 700, 800],
  num_eval=400,
  sides=(224, 333, 3000),
  is_grey=False,
  flips=True,
  num_cores=2,
)


def _on_gpus(facts, count=1):
  return dataclasses.replace(facts, num_gpus=count)


def test_small_grey_digits():
  flags = recipes.choose(_DIGITS, {}).flags
  assert flags['resnet_depth'] == '18' and flags['resnet_width'] == '0.25'
  assert flags['first_conv_kernel_size'] == '3'
  assert flags['first_conv_stride'] == '1'
  assert flags['use_initial_max_pool'] == 'False'
  assert flags['image_size'] == '28'
  assert flags['crop_padding'] == '0'
  assert flags['augmentation_type'] == 'IDENTITY'
  assert flags['random_flip'] == 'False'
  # 3000 images in batches of 128 are 23.4 steps; 22 epochs are 516.
  assert flags['batch_size'] == '128'
  assert flags['stage_1_epochs'] == '22'
  assert flags['stage_2_epochs'] == '5'


def test_patches_of_photographs():
  flags = recipes.choose(_PATCHES, {}).flags
  assert flags['image_size'] == '64'
  assert flags['first_conv_kernel_size'] == '7'
  assert flags['use_initial_max_pool'] == 'True'
  assert flags['augmentation_type'] == 'SIMCLR'
  assert flags['random_flip'] == 'True'


def test_photographs_get_a_resnet_50():
  recipe = recipes.choose(_on_gpus(_PHOTOS), {})
  flags = recipe.flags
  assert flags['resnet_depth'] == '50' and flags['resnet_width'] == '1'
  assert flags['first_conv_kernel_size'] == '7'
  assert flags['first_conv_stride'] == '2'
  assert flags['use_initial_max_pool'] == 'True'
  assert flags['image_size'] == '224' and flags['crop_padding'] == '32'
  assert flags['eval_crop_method'] == 'RESIZE_THEN_CROP'


def test_photographs_on_a_cpu_take_long_and_something_else_is_offered():
  recipe = recipes.choose(_PHOTOS, {})
  assert recipe.flags['resnet_depth'] == '50'
  # 2000 images, 2 views, 3 passes of 8.2e9 operations in 30 epochs, at 140e9
  # operations a second: 5.9 hours, and stage 2.
  assert 5.5 < recipe.seconds / 3600 < 7
  assert 'about 6 hours on 2 CPU cores' in recipe.reasons[3]
  assert '--image_size=64' in recipe.reasons[4]
  short = recipes.choose(_PHOTOS, {'image_size': 64})
  assert short.flags['resnet_depth'] == '18'
  assert 'image_size' not in short.flags
  assert short.seconds < 600
  assert len(short.reasons) == 4


def test_what_is_given_is_not_chosen_and_the_rest_goes_with_it():
  given = {'batch_size': 32, 'stage_1_epochs': 3, 'random_flip': True}
  recipe = recipes.choose(_DIGITS, given)
  assert not set(given) & set(recipe.flags)
  # Stage 2 and the warm-up fit into what was given.
  assert recipe.flags['stage_2_epochs'] == '3'
  assert recipe.flags['stage_1_warmup_epochs'] == '0.25'
  assert 'flips, as you say' in recipe.reasons[2]


def test_says_why_there_are_no_flips():
  assert 'no flips: they are digits' in recipes.choose(_DIGITS, {}).reasons[2]


def test_very_small_images_are_enlarged():
  tiny = dataclasses.replace(_DIGITS, sides=(8, 8, 8))
  assert recipes.choose(tiny, {}).flags['image_size'] == '16'


def test_a_gpu_gets_a_wide_network():
  flags = recipes.choose(_on_gpus(_DIGITS), {}).flags
  assert flags['resnet_width'] == '1' and flags['batch_size'] == '256'


@pytest.mark.parametrize('count', [2, 3, 10, 40, 129, 1000, 10**6])
@pytest.mark.parametrize('gpus', [0, 1, 2])
@pytest.mark.parametrize('side', [1, 28, 64, 100, 500])
@pytest.mark.parametrize('classes', [2, 100])
def test_every_set_gets_a_run_that_fits_it(count, gpus, side, classes):
  sizes = [max(1, count // classes)] * classes
  facts = recipes.Facts(
    class_sizes=sizes,
    num_eval=5,
    sides=(side,) * 3,
    is_grey=False,
    flips=True,
    num_cores=4,
    num_gpus=gpus,
  )
  flags = recipes.choose(facts, {}).flags
  batch_size = int(flags['batch_size'])
  assert 0 < batch_size <= sum(sizes)
  assert batch_size % max(gpus, 1) == 0
  _, params = flag_parsing.parse(
    [f'--{name}={value}' for name, value in flags.items()]
  )
  params.check()
  assert isinstance(params, hparams.HParams)
  # The warm-up leaves steps, see schedules.learning_rate.
  steps_per_epoch = sum(sizes) / batch_size
  stage = params.stage_1
  decay_steps = int((stage.epochs - stage.warmup_epochs) * steps_per_epoch)
  assert decay_steps > 0 and math.isfinite(decay_steps)
