"""Where and how a run happens, as opposed to what it computes.

This module does not use TensorFlow: flags are parsed and checked before
TensorFlow is imported.
"""

import dataclasses
import os
import re

from supcon.config import hparams
from supcon.config import path_names

MODES = (
  'train',
  'eval',
  'train_then_eval',
  'inspect_data',
  'export',
  'embed',
  'predict',
  'status',
)

# What to do if training diverges.
ON_NAN = ('stop', 'rollback')

# Formats of an export: a SavedModel for TensorFlow 2 and TensorFlow Serving,
# and a TF-Hub module for TensorFlow 1.
EXPORT_FORMATS = ('saved_model', 'hub')
# Instead of a format: export nothing.
NO_EXPORT = 'none'

# Which checkpoints an evaluation job exports.
EXPORT_CHECKPOINTS = ('best_and_last', 'all')

TOP_1 = 'top_1_accuracy'
# Metrics of an evaluation of which larger values are better, and of which
# smaller ones are.
_LARGER_IS_BETTER = (
  TOP_1,
  'top_5_accuracy',
  *(f'knn/k{k}_t{t}' for k in (1, 10, 20, 100, 200) for t in (0.07, 0.1)),
)
_SMALLER_IS_BETTER = (
  'loss',
  *(f'loss/{term}_loss' for term in hparams.Stage().loss_weights),
  'geometry/alignment',
  'geometry/uniformity',
)
BEST_METRICS = _LARGER_IS_BETTER + _SMALLER_IS_BETTER
# How the metrics are called that need --knn_examples.
_OF_EMBEDDINGS = ('knn/', 'geometry/')


def is_better(metric: str, value: float, other: float) -> bool:
  """Whether a value of one of `BEST_METRICS` is better than another one."""
  return value > other if metric in _LARGER_IS_BETTER else value < other


# Points per curve if the user does not give the interval between them.
_POINTS_OF_A_STAGE = 50

# Maximum number of virtual CPU devices. A million of them would keep
# TensorFlow busy for ever.
_MOST_REPLICAS = 1024


@dataclasses.dataclass(frozen=True)
class RunOptions:
  """One field per flag that is not a hyper-parameter."""

  mode: str = 'train'
  model_dir: str = ''
  force: bool = False
  data_dir: str | None = None
  reference_ckpt: str = ''
  use_tpu: bool = True
  tpu_name: str | None = None
  tpu_zone: str | None = None
  gcp_project: str | None = None
  master: str | None = None
  num_gpus: int = -1
  num_replicas: int = 1
  steps_per_loop: int = 1000
  summary_interval_steps: int = 100
  has_summary_interval: bool = False  # Whether the user set it.
  save_interval_steps: int = 1000
  max_checkpoints_to_keep: int = 5
  keep_checkpoint_interval_secs: float = 36000000.0
  eval_interval_secs: int = 60
  eval_timeout_secs: int = 0
  on_nan: str = 'stop'
  eval_once: bool = False
  checkpoint: str = ''
  knn_examples: int = 5000
  best_metric: str = TOP_1
  accept_new_plan: bool = False
  max_rollbacks: int = 3
  deterministic: bool = False
  export_formats: tuple[str, ...] = EXPORT_FORMATS
  export_checkpoints: str = 'best_and_last'
  exports_to_keep: int = 0
  output: str = ''
  images: tuple[str, ...] = ()
  index: str = ''
  neighbours: int = 0

  @property
  def trains(self) -> bool:
    return self.mode in ('train', 'train_then_eval')

  @property
  def evaluates(self) -> bool:
    return self.mode in ('eval', 'train_then_eval')

  @property
  def inspects(self) -> bool:
    return self.mode == 'inspect_data'

  @property
  def uses_trained_model(self) -> bool:
    """Whether the hyper-parameters are those of an existing model."""
    return self.mode in ('export', 'embed', 'predict')

  @property
  def takes_recorded(self) -> bool:
    """Whether unset flags take the values that the model was trained with."""
    return self.uses_trained_model or self.mode == 'eval'

  @property
  def starts_from_reference(self) -> bool:
    """Whether the job trains, so that it may start from --reference_ckpt."""
    trains = self.trains or self.inspects
    return bool(trains and self.reference_ckpt and self.model_dir)

  @property
  def needs_accelerator(self) -> bool:
    """Whether the job computes more than a few images."""
    return self.mode not in ('inspect_data', 'export', 'predict', 'status')

  @property
  def best_metric_neighbours(self) -> int:
    """The training examples that the best metric takes, at least; mostly 0."""
    found = re.match(r'knn/k(\d+)_', self.best_metric)
    return int(found[1]) if found else 0

  def summary_interval(self, stage_steps: int) -> int:
    """Returns the steps between summaries in a stage of `stage_steps`."""
    if self.has_summary_interval:
      return self.summary_interval_steps
    # A short stage gets enough points for a curve, at most one per step.
    most = max(stage_steps // _POINTS_OF_A_STAGE, 1)
    return min(self.summary_interval_steps, most)

  @property
  def formats(self) -> tuple[str, ...]:
    """The formats of an export; empty for no export."""
    return () if self.export_formats == (NO_EXPORT,) else self.export_formats

  @property
  def tpu_address(self) -> str | None:
    """The TPU's name, its grpc address, or 'local'."""
    return self.master or self.tpu_name

  def check(self, params: hparams.HParams) -> None:
    """Checks everything that can be checked without reading files.

    Raises:
      ValueError: Names the flag, what was found and what was expected.
    """
    if self.mode not in MODES:
      raise ValueError(f'--mode={self.mode} is not one of {", ".join(MODES)}.')
    if not self.model_dir:
      raise ValueError(
        '--model_dir is empty; name the directory for checkpoints, summaries '
        'and exports.'
      )
    self.check_paths()
    for name in (
      'steps_per_loop',
      'summary_interval_steps',
      'save_interval_steps',
      'max_checkpoints_to_keep',
      'keep_checkpoint_interval_secs',
    ):
      if not getattr(self, name) > 0:  # NaN fails, too.
        raise ValueError(f'--{name}={getattr(self, name)} must be positive.')
    for name in (
      'eval_interval_secs',
      'eval_timeout_secs',
      'max_rollbacks',
      'knn_examples',
    ):
      if getattr(self, name) < 0:
        raise ValueError(
          f'--{name}={getattr(self, name)} must not be negative.'
        )
    if self.on_nan not in ON_NAN:
      raise ValueError(
        f'--on_nan={self.on_nan} is not one of {", ".join(ON_NAN)}.'
      )
    if not self.takes_recorded:
      self._check_reference(params)
      params.check_reach()
    self._check_use()
    self._check_devices()
    if self.force and not self.trains:
      raise ValueError(
        f'--force has no effect with --mode={self.mode}; it lets a trainer '
        'take --model_dir over from another one.'
      )
    if self.accept_new_plan and not self.trains:
      raise ValueError(
        f'--accept_new_plan has no effect with --mode={self.mode}; it lets a '
        'training go on by another plan.'
      )
    if self.eval_once and self.mode != 'eval':
      raise ValueError(
        f'--eval_once has no effect with --mode={self.mode}; pass --mode=eval.'
      )
    if self.best_metric not in BEST_METRICS:
      raise ValueError(
        f'--best_metric={self.best_metric} is not one of '
        f'{", ".join(BEST_METRICS)}.'
      )
    needed = max(
      self.best_metric_neighbours, self.best_metric.startswith(_OF_EMBEDDINGS)
    )
    if self.knn_examples < needed:
      raise ValueError(
        f'--best_metric={self.best_metric} needs --knn_examples={needed} or '
        f'more, not {self.knn_examples}.'
      )
    if self.checkpoint and not self.eval_once:
      raise ValueError(
        f'--checkpoint={self.checkpoint} has no effect without --mode=eval '
        '--eval_once, which evaluate it.'
      )

  def check_paths(self) -> None:
    """Checks that the paths are usable names.

    Raises:
      ValueError: Names the flag and what is wrong.
    """
    for name in (
      'model_dir',
      'data_dir',
      'reference_ckpt',
      'checkpoint',
      'output',
      'index',
    ):
      path_names.check(name, getattr(self, name) or '')
    for name in ('model_dir', 'reference_ckpt', 'checkpoint'):
      path = getattr(self, name)
      # A URL is downloaded, and the copy is read from somewhere else.
      if not (name == 'reference_ckpt' and '://' in path):
        path_names.check_no_pattern(name, path)

  def _check_reference(self, params):
    if self.reference_ckpt and not params.warm_start.is_asked_for:
      raise ValueError(
        f'--reference_ckpt={self.reference_ckpt} is given but nothing is to '
        'be taken from it; add --warm_start_encoder, '
        '--warm_start_projection_head or --warm_start_classifier.'
      )
    if params.warm_start.is_asked_for and not self.reference_ckpt:
      raise ValueError(
        'a --warm_start_* flag is on but --reference_ckpt is empty; name the '
        'checkpoint, training directory, export or TF-Hub module to start '
        'from.'
      )

  def _check_use(self):
    found = f'--export_formats={",".join(self.export_formats)}'
    unknown = sorted({*self.formats} - {*EXPORT_FORMATS})
    if unknown or not self.export_formats:
      raise ValueError(
        f'{found} must be one or more of {", ".join(EXPORT_FORMATS)}; or '
        f'{NO_EXPORT} alone, for no export.'
      )
    if self.mode == 'export' and not self.formats:
      raise ValueError(
        f'{found} leaves --mode=export nothing to do; name one or more of '
        f'{", ".join(EXPORT_FORMATS)}.'
      )
    if self.export_checkpoints not in EXPORT_CHECKPOINTS:
      raise ValueError(
        f'--export_checkpoints={self.export_checkpoints} is not one of '
        f'{", ".join(EXPORT_CHECKPOINTS)}.'
      )
    for name in ('exports_to_keep', 'neighbours'):
      if getattr(self, name) < 0:
        raise ValueError(
          f'--{name}={getattr(self, name)} must not be negative.'
        )
    if self.mode == 'embed' and not self.output:
      raise ValueError(
        '--mode=embed needs --output=FILE.npz or FILE.tfrecord, the file to '
        'write.'
      )
    if self.images and self.mode != 'predict':
      raise ValueError(
        f'--images={",".join(self.images)} has no effect with '
        f'--mode={self.mode}; pass --mode=predict.'
      )
    if self.mode == 'predict' and not self.images:
      raise ValueError(
        '--mode=predict needs images: --images=FILE,FOLDER,... or their names '
        'after the flags.'
      )
    if self.neighbours and not self.index:
      raise ValueError(
        f'--neighbours={self.neighbours} needs --index=FILE.npz, written by '
        '--mode=embed.'
      )
    if self.index and not self.neighbours:
      raise ValueError(
        f'--index={self.index} has no effect without --neighbours=K.'
      )

  def _check_devices(self):
    if self.num_gpus < -1:
      raise ValueError(
        f'--num_gpus={self.num_gpus} must be 0 or more, or -1 for all.'
      )
    if not 1 <= self.num_replicas <= _MOST_REPLICAS:
      raise ValueError(
        f'--num_replicas={self.num_replicas} must be positive, at most '
        f'{_MOST_REPLICAS}: each is a copy of the model on this CPU.'
      )
    if not self.use_tpu or not self.needs_accelerator:
      return
    if not self.tpu_address:
      raise ValueError(
        '--use_tpu=True, the default, needs --tpu_name=NAME, the address '
        '--tpu_name=grpc://IP:8470, or --tpu_name=local on a TPU VM; to run on '
        'GPUs or on CPU pass --use_tpu=False.'
      )
    for flag, default in (('num_gpus', -1), ('num_replicas', 1)):
      if getattr(self, flag) != default:
        raise ValueError(
          f'--{flag}={getattr(self, flag)} is not for TPUs; leave it out, or '
          'pass --use_tpu=False.'
        )
    if self.tpu_address == 'local':
      return
    for flag, directory in (
      ('model_dir', self.model_dir),
      ('data_dir', self.data_dir or os.environ.get('TFDS_DATA_DIR', '')),
    ):
      if '://' not in directory or directory.startswith('file://'):
        raise ValueError(
          f'--{flag}={directory} is local, but the TPU {self.tpu_address} '
          'reads and writes by itself; name a directory on gs://, or pass '
          '--tpu_name=local on a TPU VM, or --use_tpu=False.'
        )
