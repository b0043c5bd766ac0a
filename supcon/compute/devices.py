"""The devices that a run computes on, and each one's share of a batch.

`find` finds them before any long work. A replica is a core of a TPU, a GPU, or
a CPU device; the replicas train together on one global batch.
"""

import dataclasses
import functools
import pathlib

import tensorflow as tf

from supcon.compute import hosts
from supcon.compute import tpu_estimator
from supcon.compute import watchdog
from supcon.compute import workers
from supcon.config import fields
from supcon.config import hparams
from supcon.config import run_options
from supcon.config import safe_text

tf1 = tf.compat.v1
cluster_resolver = tf.distribute.cluster_resolver

_CONNECT_SECONDS = 10.0
_GPU = 'GPU'

# The first generation of GPUs that computes in bfloat16 (Ampere), and the names
# that Linux gives to the instructions of CPUs that do: Intel's and AMD's vector
# and matrix instructions, and Arm's.
_BFLOAT16_CAPABILITY = (8, 0)
_BFLOAT16_FLAGS = {'avx512_bf16', 'amx_bf16', 'bf16'}


@dataclasses.dataclass(frozen=True)
class Devices:
  """The devices of a run.

  Attributes:
    kind: Describes a replica in words.
    num_replicas: Number of replicas on all machines.
    session_config: The config of every session of the run.
    resolver: Finds the TPU; None off TPU.
    strategy: Makes GPU or CPU replicas work together; None with a single
      replica, or on TPU.
    cluster: The machines, if there are several; None on TPU, where one process
      serves all hosts.
    has_bfloat16: Whether a replica computes in bfloat16 itself, rather than
      emulating it in float32, at a tenth of the speed.
  """

  kind: str
  num_replicas: int
  session_config: tf1.ConfigProto
  resolver: cluster_resolver.ClusterResolver | None = None
  strategy: tf.distribute.Strategy | None = None
  cluster: workers.Cluster | None = None
  has_bfloat16: bool = False

  @property
  def is_gpu(self) -> bool:
    """Whether a replica is a GPU."""
    return self.kind == _GPU

  @property
  def is_chief(self) -> bool:
    """Whether this is the process that writes model_dir."""
    return self.host.index == 0

  @property
  def host(self) -> hosts.Host:
    """This machine among those that read the data, off TPU."""
    if self.cluster is None:
      return hosts.Host()
    return hosts.Host(self.cluster.index, len(self.cluster.addresses))

  def listen(self) -> str:
    """Returns the address for training sessions; '' for this process.

    With several machines, the first call starts this machine's server, which
    runs until the process ends.

    Raises:
      watchdog.LostWorkerError: If the server cannot be started.
    """
    return self._server.target if self.cluster else ''

  @functools.cached_property
  def _server(self):
    address = self.cluster.addresses[self.cluster.index]
    try:
      server = tf1.train.Server(
        tf.train.ClusterSpec(self.cluster.jobs),
        job_name=self.cluster.kind,
        task_index=self.cluster.task,
        config=self.strategy.update_config_proto(self.session_config),
      )
    except tf.errors.OpError as error:
      raise watchdog.LostWorkerError(
        f'this worker cannot listen at {address} ({error.message}); is another '
        f'process there? {workers.VARIABLE} says where each worker is.'
      ) from error
    return server

  @functools.cached_property
  def watchdog(self) -> watchdog.Watchdog:
    """The watchdog of the other machines."""
    return watchdog.Watchdog(self.cluster.others if self.cluster else {})

  def encoder_dtype(self, allow_mixed_precision: bool) -> tf.DType:
    """Returns the type of the encoder's activations; all else is float32."""
    return (
      tf.bfloat16 if allow_mixed_precision and self.has_bfloat16 else tf.float32
    )

  def image_dtype(self, encoder_dtype: tf.DType) -> tf.DType:
    """Returns the type in which the input pipeline hands over images.

    A TPU receives what its encoder sees, which is half as much to transfer. A
    CPU is slow at single operations in bfloat16, so elsewhere the model casts.
    """
    return encoder_dtype if self.resolver else tf.float32

  def describe_dtype(self, allow_mixed_precision: bool) -> str:
    """Returns a line about the encoder's precision; '' for plain float32."""
    if not allow_mixed_precision:
      return ''
    if self.has_bfloat16:
      return 'the encoder computes in bfloat16, all else in float32'
    return (
      f'the encoder computes in float32: this {self.kind} has no instructions '
      'for the bfloat16 of --allow_mixed_precision, and would emulate it slowly'
    )

  def share(self, batch_size: int) -> int:
    """Returns each replica's part of a global batch."""
    return batch_size // self.num_replicas

  def describe(self, batch_size: int) -> str:
    """Returns 'batch 256 = 4 GPUs x 64'."""
    if self.num_replicas == 1:
      return f'batch {batch_size} on one {self.kind}'
    return (
      f'batch {batch_size} = {self.num_replicas} {self.kind}s x '
      f'{self.share(batch_size)}'
      + (f', on {self.host.count} machines' if self.host.count > 1 else '')
    )


def find(options: run_options.RunOptions) -> Devices:
  """Returns the devices for a run.

  Args:
    options: Checked RunOptions.

  Raises:
    ValueError: If they are not available.
  """
  if options.use_tpu and options.needs_accelerator:
    return _find_tpu(options)
  num_gpus = _num_gpus(options.num_gpus)
  if options.num_replicas > 1 and num_gpus:
    raise ValueError(
      f'--num_replicas={options.num_replicas} is for CPU only, but '
      f'TensorFlow has {num_gpus} GPUs to use; pass --num_gpus=0, or '
      '--num_gpus alone.'
    )
  cluster = workers.read()
  if cluster and options.num_replicas > 1:
    raise ValueError(
      f'--num_replicas={options.num_replicas} is for one machine, but '
      f'{workers.VARIABLE} names {len(cluster.addresses)}; pass one of them.'
    )
  if cluster and not options.trains:
    raise ValueError(
      f'--mode={options.mode} runs on one machine, but {workers.VARIABLE} '
      f'names {len(cluster.addresses)}; unset it.'
    )
  count = (num_gpus or options.num_replicas) if options.trains else 1
  kind, name = (_GPU, '/gpu') if num_gpus else ('CPU device', '/cpu')
  names = [f'{name}:{index}' for index in range(count)]
  config = tf1.ConfigProto(
    allow_soft_placement=True,
    device_count={'GPU': num_gpus, 'CPU': 1 if num_gpus else count},
  )
  has_bfloat16 = _gpus_have_bfloat16() if num_gpus else cpu_has_bfloat16()
  if cluster:
    return Devices(
      kind,
      len(names) * len(cluster.addresses),
      config,
      strategy=tf.distribute.MultiWorkerMirroredStrategy(
        cluster_resolver.SimpleClusterResolver(
          tf.train.ClusterSpec(cluster.jobs),
          task_type=cluster.kind,
          task_id=cluster.task,
          num_accelerators={'GPU': num_gpus},
          rpc_layer='grpc',
        )
      ),
      cluster=cluster,
      has_bfloat16=has_bfloat16,
    )
  strategy = tf.distribute.MirroredStrategy(names) if names[1:] else None
  return Devices(
    kind, len(names), config, strategy=strategy, has_bfloat16=has_bfloat16
  )


def check_batches(
  devices: Devices, options: run_options.RunOptions, params: hparams.HParams
) -> None:
  """Checks that global batches can be divided among the replicas.

  Off TPU one device evaluates, so every evaluation batch is possible.

  Raises:
    ValueError: If a batch is not a multiple of the replicas, or their share of
      it not one of the micro-batch; or if batch norm needs more than a
      micro-batch.
  """
  sizes = {}
  if options.trains:
    sizes['batch_size'] = params.batch_size
  if options.evaluates and devices.resolver:
    sizes['eval_batch_size'] = params.eval.batch_size
  count = devices.num_replicas
  for flag, size in sizes.items():
    if size % count:
      below = size // count * count
      choices = ' or '.join(str(n) for n in (below, below + count) if n)
      raise ValueError(
        f'--{flag}={size} is the batch of all devices together, and not '
        f'divisible by the {count} {devices.kind}s; try {choices}.'
      )
  if options.trains and params.micro_batch_size:
    _check_micro_batches(devices, params)


def _check_micro_batches(devices, params):
  share, size = devices.share(params.batch_size), params.micro_batch_size
  if share % size:
    divisors = [n for n in range(1, share + 1) if share % n == 0]
    sizes = [n for n in divisors if n < size][-1:]
    sizes += [n for n in divisors if n > size][:1]
    raise fields.FieldError(
      params,
      'micro_batch_size',
      f'does not divide the {share} samples that a {devices.kind} gets of each '
      f'batch; try {" or ".join(map(str, sizes))}',
    )
  if size < share and params.architecture.use_global_batch_norm:
    raise fields.FieldError(
      params,
      'micro_batch_size',
      'computes one micro-batch after the other, so batch norm cannot have the '
      'statistics of all of them, which --use_global_batch_norm=True asks for; '
      'pass --use_global_batch_norm=False, and the statistics are those of '
      f'{size} samples',
    )


def _num_gpus(wanted):
  """Returns the number of GPUs to use; hides the others from this process."""
  found = tf.config.list_physical_devices('GPU')
  if wanted < 0:
    wanted = len(found)
  if wanted > len(found):
    raise ValueError(
      f'--num_gpus={wanted} is more than the {len(found)} GPUs that TensorFlow '
      f'can use here; pass at most {len(found)}, 0 being the CPU.'
    )
  if wanted < len(found):
    tf.config.set_visible_devices(found[:wanted], 'GPU')
  return wanted


def _find_tpu(options):
  """Returns the cores of the TPU that the options name."""
  tpu_estimator.check_tpu()
  name = options.tpu_address
  try:
    resolver = cluster_resolver.TPUClusterResolver(
      tpu=name, zone=options.tpu_zone, project=options.gcp_project
    )
    num_cores = count_cores(resolver)
  # The clients that it uses have no common error class.
  except Exception as error:
    raise ValueError(
      f'TPU {name!r} cannot be reached ({_first_sentence(error)}); check '
      '--tpu_name, --tpu_zone and --gcp_project and that it is up, or pass '
      '--use_tpu=False.'
    ) from error
  return Devices(
    'TPU core',
    num_cores,
    # Several sessions may use the same TPU.
    tf1.ConfigProto(allow_soft_placement=True, isolate_session_state=True),
    resolver=resolver,
    has_bfloat16=True,
  )


def cpu_has_bfloat16(cpuinfo: str = '/proc/cpuinfo') -> bool:
  """Returns whether Linux lists instructions for bfloat16 in this file."""
  try:
    words = pathlib.Path(cpuinfo).read_text(encoding='utf-8').split()
  except OSError:  # Another system than Linux.
    return False
  return not _BFLOAT16_FLAGS.isdisjoint(words)


def _gpus_have_bfloat16():
  details = map(
    tf.config.experimental.get_device_details,
    tf.config.get_visible_devices('GPU'),
  )
  return all(
    each.get('compute_capability', (0, 0)) >= _BFLOAT16_CAPABILITY
    for each in details
  )


def count_cores(resolver: cluster_resolver.TPUClusterResolver) -> int:
  """Returns the number of cores of a TPU, on all its hosts.

  Raises:
    OSError: If a host does not answer; TensorFlow itself would try for hours.
    ValueError: If there is no core.
  """
  hosts = resolver.cluster_spec().as_dict().get('worker', [])  # Local: none.
  for address in hosts:
    if not watchdog.is_there(address, _CONNECT_SECONDS):
      raise OSError(f'nobody answers at {address}')
  num_cores = resolver.get_tpu_system_metadata().num_cores
  if not num_cores:
    raise ValueError('TensorFlow finds no TPU core there')
  return num_cores


def _first_sentence(error):
  text = safe_text.one_line(error)
  return text.split('. ')[0].rstrip('.')
