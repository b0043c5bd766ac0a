"""Tests of footprint: what a step needs, what there is, what fits."""

import math
import types

import pytest

from supcon import pairwise
from supcon.compute import devices
from supcon.config import enums
from supcon.config import hparams
from supcon.training import footprint

_GIB = 2**30
_DEFAULT = hparams.HParams()
_SMALL = _DEFAULT
for _path, _value in {
  'architecture.encoder_depth': 18,
  'architecture.encoder_width': 0.25,
  'architecture.first_conv_kernel_size': 3,
  'architecture.first_conv_stride': 1,
  'architecture.use_initial_max_pool': False,
  'architecture.projection_head_layers': (64,),
  'input_data.preprocessing.image_size': 16,
  'batch_size': 128,
}.items():
  _SMALL = _SMALL.replace(_path, _value)


def _step(params, number=1, num_replicas=1, **changes):
  for path, value in changes.items():
    params = params.replace(path, value)
  stage = params.stages[number - 1]
  return footprint.training_step(params, stage, 10, num_replicas)


def _room(num_bytes=22 * _GIB, num_replicas=1):
  return footprint.Room(num_bytes, num_replicas, 2**29, 'of free memory')


def _error(step, room):
  with pytest.raises(ValueError) as error:
    footprint.check([step], room)
  message = str(error.value)
  assert '\n' not in message
  return message


# --- What a step needs --------------------------------------------------------


def test_the_largest_tensor_is_that_of_the_stem():
  # 2048 x 2 images, 224 / 2 pixels a side, 64 channels: 3.3e9 values.
  assert _step(_DEFAULT).largest() == (4096, 112, 112, 64)
  assert _step(_DEFAULT, num_replicas=4).largest() == (1024, 112, 112, 64)


def test_of_tiny_images_it_is_that_of_the_similarities():
  # All anchors by all contrasts; 2048 x 4 x 4 x 16 is less.
  tiny = 'input_data.preprocessing.image_size'
  step = _step(_SMALL, batch_size=1024, **{tiny: 2})
  assert step.largest() == (2048, 2048)
  mode = 'loss.contrastive.contrast_mode'
  one_view = _step(_SMALL.replace(mode, enums.LossContrastMode.ONE_VIEW))
  assert one_view.anchors_and_contrasts() == (128, 256)


def test_similarities_of_a_large_batch_come_in_tiles():
  # 512 tiles of 128 anchors; 65536 x 65536 would be 16 GiB.
  step = _step(_SMALL, batch_size=32768)
  assert step.anchors_and_contrasts() == (65536, 65536)
  assert pairwise.tile_shape(65536, 65536) == (128, 65536)
  assert pairwise.num_values(65536, 65536) == 6 * 128 * 65536


def test_bytes_are_those_of_activations_weights_and_similarities():
  step = _step(_SMALL)
  activations = step.activations()
  # The stem pads nothing: its stride is 1. A block's convolutions with stride 2
  # pad to 18 x 18.
  largest = 18 * 18 * 16
  assert max(each.size for each in activations) == largest
  values = 256 * (sum(each.size for each in activations) + 2 * largest)
  values += 7 * 256 * 256
  # R18: 11.2 M, of which a quarter of the width leaves 1/16.
  weights = step.num_bytes() / 4 - values
  # Values, gradients and copies, and two slots of RMSPROP in two stages.
  assert weights / 8 == pytest.approx(11.2e6 / 16, rel=0.02)


def test_activations_in_bfloat16_take_half():
  step = _step(_SMALL)
  largest = 18 * 18 * 16
  values = sum(each.size for each in step.activations()) + 2 * largest
  half = step._replace(activation_bytes=2)
  assert step.num_bytes() - half.num_bytes() == 2 * 256 * values


def test_a_memory_holds_features_and_a_copy_of_the_model():
  memory = {'memory.memory_size': 1024, 'memory.memory_momentum': 0.0}
  without, step = _step(_SMALL), _step(_SMALL, **memory)
  assert step.anchors_and_contrasts() == (256, 256 + 1024)
  # Five tensors of 1024 x 64, and six similarity matrices and one of slopes.
  values = 5 * 1024 * 64 + 7 * 256 * 1024
  assert step.num_bytes() - without.num_bytes() == 4 * values
  with_copy = step.replace('memory.memory_momentum', 0.9)
  weights = footprint._num_weights(_SMALL, 10)
  assert with_copy.num_bytes() - step.num_bytes() == 4 * 2 * weights


def test_slots_are_those_of_the_optimizers():
  rmsprop = _step(_DEFAULT).num_bytes()
  momentum = _DEFAULT
  for number in (1, 2):
    path = f'stage_{number}.optimizer'
    momentum = momentum.replace(path, enums.Optimizer.MOMENTUM)
  # One slot instead of two, in each stage, of 28 M values.
  assert (rmsprop - _step(momentum).num_bytes()) / 8 == pytest.approx(
    23.5e6 + 2048 * 2048 + 2048 * 128 + 10 * 2048, rel=0.01
  )
  assert {*footprint._SLOTS} == {*enums.Optimizer}


def test_micro_batches_hold_the_activations_of_one():
  whole, part = _step(_SMALL, batch_size=1024), _step(_SMALL, batch_size=32)
  step = _step(_SMALL, batch_size=1024, micro_batch_size=32)
  # 2048 images and six tensors like their embeddings of 128 values, the
  # similarities of the whole batch, and the sum of the gradients.
  values = 2048 * (16 * 16 * 3 + 6 * 128)
  values += pairwise.num_values(2048, 2048) - pairwise.num_values(64, 64)
  values += footprint._num_weights(_SMALL, 10)
  assert step.num_bytes() == part.num_bytes() + 4 * values
  assert step.num_bytes() < whole.num_bytes() / 2
  # They are those of a replica: 512 = 16 x 32.
  replica = step._replace(num_replicas=2)
  assert (step.num_micro_batches, replica.num_micro_batches) == (32, 16)
  # The images of the batch are all there.
  assert _step(_DEFAULT, batch_size=1024, micro_batch_size=1).largest() == (
    2048,
    224,
    224,
    3,
  )


def test_what_reaches_no_encoder_keeps_no_activations():
  first, second = _step(_DEFAULT), _step(_DEFAULT, number=2)
  assert first.is_kept and not second.is_kept
  assert second.num_bytes() < first.num_bytes() / 4
  joint = _DEFAULT.replace(
    'architecture.stop_gradient_before_classification_head', False
  )
  assert _step(joint, number=2).is_kept


def test_embeddings_are_computed_in_batches_of_an_evaluation():
  path = 'input_data.preprocessing.train_on_eval_views'
  step = _step(_DEFAULT.replace(path, True), number=2)
  assert (step.path, step.batch_size) == ('eval.batch_size', 128)
  assert _step(_DEFAULT.replace(path, True)).batch_size == 2048


# --- Whether it fits ----------------------------------------------------------


def test_the_default_configuration_is_refused_with_a_batch_that_fits():
  step = _step(_DEFAULT)
  message = _error(step, _room())
  assert message.startswith('--batch_size=2048 with --image_size=224 makes a ')
  assert '4096 x 112 x 112 x 64 values' in message
  assert 'needs about' in message and '22.0 GiB of free memory' in message
  assert message.endswith(
    'try --batch_size=64, or --micro_batch_size=64 with '
    '--use_global_batch_norm=False, or a smaller --image_size.'
  )
  assert not footprint.problem(step.replace('batch_size', 64), _room(), 1.0)
  assert footprint.problem(step.replace('batch_size', 128), _room(), 1.0)


def test_a_micro_batch_that_is_too_large_is_refused_with_one_that_fits():
  local = _DEFAULT.replace('architecture.use_global_batch_norm', False)
  message = _error(_step(local, micro_batch_size=256), _room())
  assert message.endswith(
    'try --batch_size=64 --micro_batch_size=0, or --micro_batch_size=64, or a '
    'smaller --image_size.'
  )
  for size, is_refused in ((128, True), (64, False)):
    step = _step(local, micro_batch_size=size)
    assert bool(footprint.problem(step, _room(), 1.0)) == is_refused


def test_a_tensor_is_refused_where_nobody_knows_the_memory():
  message = _error(_step(_DEFAULT), _room(None))
  assert 'values' in message and 'needs about' not in message
  # 2^31 / (2 x 112 x 112 x 64) = 1337.5
  for size, is_too_large in ((1338, True), (1337, False)):
    assert (math.prod((size, 2, 112, 112, 64)) > 2**31) == is_too_large
    step = _step(_DEFAULT, batch_size=size)
    assert bool(footprint.problem(step, _room(None))) == is_too_large


def test_only_what_is_well_above_is_refused():
  step, room = _step(_SMALL), _room()
  needs = room.needs(step)
  for share, is_refused in ((0.79, True), (0.81, False)):
    room = _room(int(share * needs))
    assert bool(footprint.problem(step, room)) == is_refused


def test_a_batch_that_fits_is_a_multiple_of_the_replicas():
  # On one host, all replicas are in the same memory.
  step = _step(_DEFAULT.replace('batch_size', 1536), num_replicas=3)
  assert 'try --batch_size=96, ' in _error(step, _room(num_replicas=3))
  # Each GPU has its own.
  assert 'try --batch_size=192, ' in _error(step, _room())


def test_where_no_batch_fits_images_are_to_be_smaller():
  step = _step(_SMALL, **{'input_data.preprocessing.image_size': 4096})
  message = _error(step, _room(2 * _GIB))
  assert 'no batch fits; try --image_size=512, a stem for large' in message
  assert '--first_conv_stride=2 --use_initial_max_pool=True' in message


def test_what_is_not_sure_is_told(warnings):
  step, little = _step(_SMALL), _room(2**28)
  footprint.check([step], little, is_sure=False)
  (line,) = warnings
  assert 'WARNING: a step needs about' in line
  # A tensor that is too large stays so.
  with pytest.raises(ValueError, match='values'):
    footprint.check([_step(_DEFAULT)], little, is_sure=False)


def test_an_evaluation_names_its_own_batch():
  params = _DEFAULT.replace('eval.batch_size', 4096)
  step = footprint.evaluation_step(params, 10, num_views=2)
  message = _error(step, _room())
  assert message.startswith('--eval_batch_size=4096 with --image_size=224 ')
  assert 'try --eval_batch_size=' in message


# --- What there is ------------------------------------------------------------


def _write(root, files):
  for path, text in files.items():
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text)
  return footprint.host_bytes(str(root))


_FREE = 'MemTotal: 9000 kB\nMemAvailable:  4000 kB\nSwapFree: 96 kB\n'


def test_a_host_has_what_is_free_and_its_swap(tmp_path):
  assert _write(tmp_path, {'proc/meminfo': _FREE}) == 4096 * 1024


def test_nobody_tells_elsewhere(tmp_path):
  assert footprint.host_bytes(str(tmp_path)) is None


@pytest.mark.parametrize('path', ['a/b', 'elsewhere'])
def test_control_groups_of_version_2_count(tmp_path, path):
  # 3000 - 1000 + 500 + 300, of the parent; a/b itself has no limit.
  files = {
    'proc/meminfo': _FREE,
    'proc/self/cgroup': f'0::/{path}\n',
    'sys/fs/cgroup/a/b/memory.max': 'max\n',
    'sys/fs/cgroup/a/b/memory.current': '7\n',
  }
  top = 'sys/fs/cgroup/' + ('a/' if path == 'a/b' else '')
  files |= {
    f'{top}memory.max': '3000\n',
    f'{top}memory.current': '1000\n',
    f'{top}memory.stat': 'inactive_file 500\nactive_file 300\nanon 200\n',
  }
  assert _write(tmp_path, files) == 2800


def test_control_groups_of_version_1_count(tmp_path):
  files = {
    'proc/meminfo': _FREE,
    'proc/self/cgroup': '5:cpu,cpuacct:/x\n4:memory:/a\n0::/\n',
    'sys/fs/cgroup/memory/a/memory.limit_in_bytes': '3000\n',
    'sys/fs/cgroup/memory/a/memory.usage_in_bytes': '2900\n',
    'sys/fs/cgroup/memory/a/memory.stat': 'total_inactive_file 5\nrss 9\n',
    # What the kernel says where there is no limit.
    'sys/fs/cgroup/memory/memory.limit_in_bytes': '9223372036854771712\n',
    'sys/fs/cgroup/memory/memory.usage_in_bytes': '4000\n',
  }
  assert _write(tmp_path, files) == 105


def test_this_host_has_something():
  assert footprint.host_bytes() is None or footprint.host_bytes() > 2**20


def _devices(kind, num_replicas, resolver=None):
  return devices.Devices(kind, num_replicas, None, resolver=resolver)


def test_replicas_of_a_cpu_share_its_memory(monkeypatch):
  monkeypatch.setattr(footprint, 'host_bytes', lambda: 1000)
  room = footprint.room(_devices('CPU device', 4))
  assert (room.num_bytes, room.num_replicas) == (1000, 4)
  assert room.overhead > 2**28


def test_a_gpu_has_what_tensorflow_says(monkeypatch):
  found = [
    types.SimpleNamespace(device_type=kind, memory_limit=limit)
    for kind, limit in (('CPU', 1), ('GPU', 90), ('GPU', 80))
  ]
  monkeypatch.setattr(
    footprint.device_lib, 'list_local_devices', lambda _: found
  )
  room = footprint.room(_devices('GPU', 2))
  assert (room.num_bytes, room.num_replicas, room.overhead) == (80, 1, 0)

  def fail(_):
    raise RuntimeError('as the test asks')

  monkeypatch.setattr(footprint.device_lib, 'list_local_devices', fail)
  assert footprint.room(_devices('GPU', 2)).num_bytes is None


def test_of_a_tpu_nothing_is_checked():
  assert footprint.room(_devices('TPU core', 8, resolver=object())) is None
