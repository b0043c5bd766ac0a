"""Which devices a run finds, and what it says if they are not there."""

import json
import math
import types

import pytest
import tensorflow as tf

from supcon.compute import devices
from supcon.compute import watchdog
from supcon.compute import workers
from supcon.config import fields
from supcon.config import hparams
from supcon.config import run_options
from tests import flag_parsing


@pytest.fixture(autouse=True)
def _graph_mode(monkeypatch):
  monkeypatch.delenv(workers.VARIABLE, raising=False)
  with tf.Graph().as_default():
    yield


@pytest.fixture
def gpus(monkeypatch):
  """Pretends that there are 4 GPUs; returns the list of the visible ones."""
  visible = [
    tf.config.PhysicalDevice(f'/physical_device:GPU:{i}', 'GPU')
    for i in range(4)
  ]

  def list_physical_devices(kind):
    assert kind == 'GPU'
    return list(visible)

  def set_visible_devices(some, kind):
    assert kind == 'GPU'
    visible[:] = some

  monkeypatch.setattr(tf.config, 'list_physical_devices', list_physical_devices)
  monkeypatch.setattr(tf.config, 'set_visible_devices', set_visible_devices)
  monkeypatch.setattr(tf.config, 'get_visible_devices', list_physical_devices)
  monkeypatch.setattr(
    tf.config.experimental,
    'get_device_details',
    lambda gpu: {'compute_capability': (9, 0)},
  )
  return visible


def _options(**changes):
  return run_options.RunOptions(
    **{'mode': 'train', 'model_dir': 'm', 'use_tpu': False, **changes}
  )


def _find(**changes):
  return devices.find(_options(**changes))


def _device_count(found):
  return dict(found.session_config.device_count)


class TestOneMachine:
  def test_the_cpu(self):
    found = _find()
    assert (found.kind, found.num_replicas) == ('CPU device', 1)
    assert found.strategy is None and found.is_chief
    assert found.listen() == ''
    assert found.describe(64) == 'batch 64 on one CPU device'

  def test_virtual_devices(self):
    found = _find(num_replicas=4)
    assert found.num_replicas == 4
    assert found.strategy.num_replicas_in_sync == 4
    assert _device_count(found) == {'CPU': 4, 'GPU': 0}
    assert found.describe(256) == 'batch 256 = 4 CPU devices x 64'

  def test_all_gpus(self, gpus):
    found = _find()
    assert (found.kind, found.num_replicas) == ('GPU', 4)
    assert found.strategy.num_replicas_in_sync == 4
    assert found.describe(256) == 'batch 256 = 4 GPUs x 64'
    assert len(gpus) == 4

  @pytest.mark.parametrize('count', [0, 1, 2])
  def test_some_gpus(self, gpus, count):
    found = _find(num_gpus=count)
    assert found.num_replicas == max(count, 1)
    assert (found.strategy is not None) == (count == 2)
    assert _device_count(found)['GPU'] == count
    assert len(gpus) == count  # The others are left to other processes.

  def test_one_device_evaluates(self, gpus):
    found = _find(mode='eval')
    assert found.num_replicas == 1 and found.strategy is None
    found = _find(mode='eval', num_gpus=0, num_replicas=4)
    assert found.num_replicas == 1 and found.strategy is None
    assert _device_count(found) == {'CPU': 1, 'GPU': 0}

  def test_more_gpus_than_there_are(self, gpus):
    with pytest.raises(ValueError, match='--num_gpus=5 .* 4 GPUs .* at most 4'):
      _find(num_gpus=5)

  def test_virtual_devices_beside_gpus(self, gpus):
    with pytest.raises(ValueError, match='--num_replicas=2 .*--num_gpus=0'):
      _find(num_replicas=2)
    assert _find(num_replicas=2, num_gpus=0).num_replicas == 2


class TestSeveralMachines:
  @pytest.fixture(autouse=True)
  def _second_of_two(self, monkeypatch):
    cluster = {'worker': ['localhost:1', 'localhost:2']}
    task = {'type': 'worker', 'index': 1}
    monkeypatch.setenv(
      workers.VARIABLE, json.dumps({'cluster': cluster, 'task': task})
    )

  def test_each_has_its_part(self):
    found = _find()
    assert found.num_replicas == found.strategy.num_replicas_in_sync == 2
    assert found.host == (1, 2)
    assert not found.is_chief
    assert found.describe(8) == 'batch 8 = 2 CPU devices x 4, on 2 machines'

  def test_gpus_of_all(self, gpus):
    found = _find(num_gpus=3)
    assert found.num_replicas == found.strategy.num_replicas_in_sync == 6

  def test_refuses_virtual_devices(self):
    with pytest.raises(ValueError, match='--num_replicas=2 .* TF_CONFIG'):
      _find(num_replicas=2)

  def test_refuses_to_evaluate(self):
    with pytest.raises(ValueError, match='--mode=eval .* TF_CONFIG .* unset'):
      _find(mode='eval')


# --- Precision ----------------------------------------------------------------


@pytest.mark.parametrize(
  'line, has_bfloat16',
  [
    ('flags\t\t: fpu avx512f avx512_bf16 sse', True),  # AMD Zen 4, Intel.
    ('flags\t\t: fpu amx_bf16 amx_tile', True),  # Intel Sapphire Rapids.
    ('Features\t: fp asimd bf16 i8mm', True),  # Arm.
    ('flags\t\t: fpu avx2 avx512f not_bf16', False),
  ],
)
def test_linux_says_whether_a_cpu_has_bfloat16(tmp_path, line, has_bfloat16):
  path = tmp_path / 'cpuinfo'
  path.write_text(f'processor\t: 0\n{line}\n')
  assert devices.cpu_has_bfloat16(str(path)) is has_bfloat16
  assert not devices.cpu_has_bfloat16(str(tmp_path / 'absent'))


def test_a_cpu_computes_in_bfloat16_if_it_can():
  assert _find().has_bfloat16 == devices.cpu_has_bfloat16()


@pytest.mark.parametrize('capability', [(7, 5), (8, 0), (9, 0)])
def test_gpus_since_ampere_compute_in_bfloat16(gpus, monkeypatch, capability):
  monkeypatch.setattr(
    tf.config.experimental,
    'get_device_details',
    lambda gpu: {'compute_capability': capability},
  )
  assert _find(num_gpus=1).has_bfloat16 == (capability >= (8, 0))


@pytest.mark.parametrize('has_bfloat16', [True, False])
def test_bfloat16_is_used_where_it_is_allowed_and_fast(has_bfloat16):
  found = devices.Devices('GPU', 1, None, has_bfloat16=has_bfloat16)
  assert found.encoder_dtype(False) == tf.float32
  assert not found.describe_dtype(False)
  dtype = tf.bfloat16 if has_bfloat16 else tf.float32
  assert found.encoder_dtype(True) == dtype
  assert f'the encoder computes in {dtype.name}' in found.describe_dtype(True)


@pytest.mark.parametrize('resolver', [None, object()])
def test_only_a_tpu_is_given_images_in_bfloat16(resolver):
  found = devices.Devices('TPU core', 1, None, resolver, has_bfloat16=True)
  dtype = tf.bfloat16 if resolver else tf.float32
  assert found.image_dtype(tf.bfloat16) == dtype
  assert found.image_dtype(tf.float32) == tf.float32


# --- Batches ------------------------------------------------------------------


def _check(options, count, kind='GPU', resolver=None, **batches):
  found = devices.Devices(kind, count, None, resolver=resolver)
  params = hparams.HParams()
  for path, size in batches.items():
    params = params.replace(path.replace('__', '.'), size)
  devices.check_batches(found, options, params)


class TestBatches:
  @pytest.mark.parametrize(
    'size, count, choices',
    [(100, 8, 'try 96 or 104'), (3, 4, 'try 4'), (2049, 128, '2048 or 2176')],
  )
  def test_training_batch(self, size, count, choices):
    with pytest.raises(ValueError) as error:
      _check(_options(), count, batch_size=size)
    assert f'--batch_size={size}' in str(error.value)
    assert f'{count} GPUs' in str(error.value)
    assert choices in str(error.value)

  def test_divisible(self):
    _check(_options(), 8, batch_size=64)

  @pytest.mark.parametrize(
    'size, sizes', [(100, '64 or 128'), (300, '256'), (3, '2 or 4')]
  )
  def test_micro_batches_divide_the_share_of_a_device(self, size, sizes):
    with pytest.raises(fields.FieldError) as error:
      _check(_options(), 8, batch_size=2048, micro_batch_size=size)
    assert str(error.value) == (
      f'--micro_batch_size={size} does not divide the 256 samples that a GPU '
      f'gets of each batch; try {sizes}.'
    )

  def test_micro_batches_exclude_global_batch_norm(self):
    batches = dict(batch_size=64, micro_batch_size=4)
    with pytest.raises(fields.FieldError) as error:
      _check(_options(), 8, **batches)
    message = str(error.value)
    assert message.startswith('--micro_batch_size=4 ')
    assert 'pass --use_global_batch_norm=False, ' in message
    _check(_options(), 8, **batches, architecture__use_global_batch_norm=False)
    _check(_options(), 16, **batches)  # A single one in each device.
    _check(_options(mode='eval'), 8, **batches)

  def test_what_is_not_used_is_not_checked(self):
    _check(_options(mode='eval'), 8, batch_size=100)
    # One GPU evaluates.
    _check(
      _options(mode='train_then_eval'), 8, batch_size=64, eval__batch_size=100
    )

  @pytest.mark.parametrize('mode', ['eval', 'train_then_eval'])
  def test_evaluation_batch_on_tpu(self, mode):
    with pytest.raises(ValueError, match='--eval_batch_size=100 .*96 or 104'):
      _check(
        _options(mode=mode),
        8,
        'TPU core',
        resolver=_Resolver(),
        batch_size=64,
        eval__batch_size=100,
      )


# --- TPU ----------------------------------------------------------------------


class _Resolver:
  """A TPU of 2 hosts x 4 cores, at addresses that nobody has."""

  def __init__(self, hosts=('10.0.0.1:8470', '10.0.0.2:8470'), cores=8):
    self._hosts, self._cores = hosts, cores

  def cluster_spec(self):
    return tf.train.ClusterSpec({'worker': self._hosts} if self._hosts else {})

  def get_tpu_system_metadata(self):
    return types.SimpleNamespace(num_cores=self._cores)


_REMOTE = dict(
  use_tpu=True,
  tpu_name='a-tpu',
  tpu_zone='a-zone',
  gcp_project='a-project',
  model_dir='gs://bucket/m',
  data_dir='gs://bucket/d',
)


@pytest.fixture
def resolve(monkeypatch):
  """Replaces the resolver; returns what it was asked for."""
  asked = []

  def use(resolver, answers=True):
    def make(**kwargs):
      asked.append(kwargs)
      if isinstance(resolver, Exception):
        raise resolver
      return resolver

    monkeypatch.setattr(devices.cluster_resolver, 'TPUClusterResolver', make)
    monkeypatch.setattr(watchdog, 'is_there', lambda *_: answers)
    return asked

  return use


class TestTpu:
  def test_finds_its_cores(self, resolve):
    asked = resolve(_Resolver())
    found = _find(**_REMOTE)
    assert asked == [{'tpu': 'a-tpu', 'zone': 'a-zone', 'project': 'a-project'}]
    assert (found.kind, found.num_replicas) == ('TPU core', 8)
    assert found.is_chief
    assert found.describe(64) == 'batch 64 = 8 TPU cores x 8'

  def test_a_local_one(self, resolve):
    asked = resolve(_Resolver(hosts=()))
    assert _find(use_tpu=True, tpu_name='local').num_replicas == 8
    assert asked[0]['tpu'] == 'local'

  def test_master_overrides_the_name(self, resolve):
    asked = resolve(_Resolver())
    _find(**{**_REMOTE, 'master': 'grpc://10.0.0.1:8470'})
    assert asked[0]['tpu'] == 'grpc://10.0.0.1:8470'

  @pytest.mark.parametrize(
    'resolver, answers, words',
    [
      # What the client raises without a network, or for an unknown name.
      (OSError('<urlopen error: Name or service\nnot known>'), True, 'urlopen'),
      (
        RuntimeError('TPU a-tpu is not yet ready. Wait.'),
        True,
        'not yet ready',
      ),
      (_Resolver(), False, 'nobody answers at 10.0.0.1:8470'),
      (_Resolver(cores=0), True, 'no TPU core'),
    ],
  )
  def test_says_why_it_is_not_there(self, resolve, resolver, answers, words):
    resolve(resolver, answers)
    with pytest.raises(ValueError) as error:
      _find(**_REMOTE)
    message = str(error.value)
    assert '\n' not in message
    for word in ("'a-tpu'", words, '--tpu_zone', '--use_tpu=False'):
      assert word in message

  def test_a_machine_without_a_tpu(self):
    with pytest.raises(ValueError, match="'local' cannot .* no TPU core"):
      _find(use_tpu=True, tpu_name='local')

  def test_inspection_needs_none(self):
    assert _find(**{**_REMOTE, 'mode': 'inspect_data'}).num_replicas == 1


# --- What flags alone tell ----------------------------------------------------


@pytest.mark.parametrize(
  'flags, words',
  [
    ({}, ['--use_tpu=True', '--tpu_name', '--use_tpu=False']),
    (
      {'tpu_name': 't'},
      ['--model_dir=m is local', 'gs://', '--tpu_name=local'],
    ),
    ({'tpu_name': 't', 'model_dir': 'gs://m'}, ['--data_dir is local']),
    (
      {'tpu_name': 't', 'model_dir': 'gs://m', 'data_dir': 'file:///d'},
      ['--data_dir=file:///d is local'],
    ),
    ({'master': 'grpc://1.2.3.4:8470'}, ['--model_dir=m is local', '1.2.3.4']),
    ({'tpu_name': 'local', 'num_gpus': 2}, ['--num_gpus=2', 'TPU']),
    ({'tpu_name': 'local', 'num_replicas': 2}, ['--num_replicas=2', 'TPU']),
    ({'use_tpu': False, 'num_gpus': -2}, ['--num_gpus=-2']),
    ({'use_tpu': False, 'num_replicas': 0}, ['--num_replicas=0']),
    (
      {'use_tpu': False, 'keep_checkpoint_interval_secs': math.nan},
      ['--keep_checkpoint_interval_secs=nan', 'finite'],
    ),
    ({'use_tpu': False, 'num_replicas': 1025}, ['--num_replicas=1025', '1024']),
  ],
)
def test_wrong_flags(monkeypatch, flags, words):
  monkeypatch.delenv('TFDS_DATA_DIR', raising=False)
  arguments = {'model_dir': 'm', **flags}
  options, params = flag_parsing.parse(
    [f'--{name}={value}' for name, value in arguments.items()]
  )
  with pytest.raises(ValueError) as error:
    options.check(params)
  for word in words:
    assert word in str(error.value)


@pytest.mark.parametrize(
  'flags',
  [
    {'tpu_name': 'local', 'model_dir': 'm'},
    {'tpu_name': 't', 'model_dir': 'gs://m', 'data_dir': 'gs://d'},
    {'model_dir': 'm', 'mode': 'inspect_data'},
    {'model_dir': 'm', 'use_tpu': False, 'num_gpus': 0, 'num_replicas': 2},
  ],
)
def test_right_flags(flags):
  options, params = flag_parsing.parse(
    [f'--{name}={value}' for name, value in flags.items()]
  )
  options.check(params)
