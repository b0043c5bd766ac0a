"""Where and how a run happens, as opposed to what it computes.

This module does not use TensorFlow: flags are parsed and checked before
TensorFlow is imported.
"""

from collections.abc import Iterator
import dataclasses
import os
import re
from typing import Any

from supcon.config import fields
from supcon.config import hparams
from supcon.config import path_names
from supcon.config import reach

MODES = (
  'train',
  'eval',
  'train_then_eval',
  'inspect_data',
  'export',
  'embed',
  'predict',
  'report',
  'robustness',
  'status',
  'compare',
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


def _path(default: str | None, *checks: fields.Check) -> Any:
  """Defines a field for one path; `images` holds several."""
  checks = (path_names.control_fault, *checks)
  return fields.define(default, *checks, is_path=True)


@dataclasses.dataclass(frozen=True)
class RunOptions:
  """One field per flag that is not a hyper-parameter.

  Attributes:
    mode: train: train only. eval: evaluate each new checkpoint of a training
      job until the final one. train_then_eval: train, then evaluate and export
      once. inspect_data: show training images beside their augmented views, and
      profile the input pipeline. export: export the newest checkpoint of
      --model_dir. embed: write the embeddings of a split to --output. predict:
      classify --images. report: write a page about the run in --model_dir.
      robustness: measure the error on --corruptions. These five and eval take
      hyper-parameters that are not given from hparams.json in --model_dir, if
      it exists. status: report on the run in --model_dir, also by the exit
      code. compare: show --runs side by side, those that differ in the seed
      alone as one row.
    model_dir: Directory for checkpoints, summaries, results and exports.
    force: Train in --model_dir although another trainer is using it; that
      trainer stops.
    data_dir: TFDS data directory, the parent of imagenet2012/ or cifar10/;
      defaults to that of TFDS. With --input_fn=folder, the parent of train/ and
      val/.
    reference_ckpt: Checkpoint, training directory, export, or TF-Hub module
      (path or URL) to warm-start from, as selected by the --warm_start_* flags.
      Unless flags say otherwise, its architecture, image size, crop and
      whitening are used as far as they are known. Batch norm runs in inference
      mode during training, unless --batch_norm_in_train_mode.
    use_tpu: Run on the Cloud TPU named by --tpu_name. If False, run on the GPUs
      of this machine, or on its CPU if it has none.
    tpu_name: Name of the Cloud TPU; or its address, grpc://IP:8470; or local,
      on a TPU VM.
    tpu_zone: Zone of the Cloud TPU; default: that of this machine.
    gcp_project: Project of the Cloud TPU; default: that of this machine.
    master: Same as --tpu_name, which it overrides.
    num_gpus: With --use_tpu=False: number of GPUs of this machine to train on;
      -1 for all, 0 for the CPU. For several machines see
      supcon/compute/README.md.
    num_replicas: Number of virtual CPU devices to train on: slow, for trying
      out how several GPUs would behave.
    steps_per_loop: Training steps on the TPU between returns to the host.
    summary_interval_steps: Steps between training summaries. If not given, a
      stage of fewer than 5000 steps gets at least 50 summaries, or one per
      step.
    save_interval_steps: Steps between checkpoints.
    max_checkpoints_to_keep: Number of recent checkpoints to keep.
    keep_checkpoint_interval_secs: Seconds between checkpoints that are never
      deleted.
    eval_interval_secs: In eval mode, minimum seconds between two evaluations
      while training is running.
    eval_timeout_secs: In eval mode, exit with code 69 after this many seconds
      without a trainer or a new checkpoint; 0 waits for ever.
    on_nan: What to do when the loss, a gradient or a batch statistic is NaN or
      infinite. That step is never applied. stop: end. rollback: return to the
      newest checkpoint and skip the batches since then.
    eval_once: With --mode=eval: evaluate one checkpoint, the newest or that of
      --checkpoint, and exit, whether or not training has finished.
    checkpoint: With --eval_once, or robustness: the checkpoint to evaluate,
      such as DIR/model.ckpt-1000, instead of the newest one.
    corruptions: robustness: a folder CORRUPTION/SEVERITY/CLASS/IMAGE, such as
      ImageNet-C; or tfds:NAME for what TFDS has prepared in --data_dir, such as
      tfds:cifar10_corrupted.
    knn_examples: In an evaluation, measure the embeddings of at most this many
      images as well: accuracy of nearest neighbours among as many training
      images, alignment, uniformity. This says whether stage 1 learns. It costs
      one forward pass of one view of all these images; the rest of an
      evaluation takes one of --num_views views of each evaluation image. 0: do
      not.
    best_metric: The metric by which best/ in --model_dir holds the best
      checkpoint, and by which compare ranks runs: top_1_accuracy,
      top_5_accuracy, loss, loss/contrastive_loss, loss/cross_entropy_loss,
      knn/kK_tT with K of 1, 10, 20, 100, 200 neighbours and the temperature T
      of 0.07, 0.1, such as knn/k20_t0.07; geometry/alignment,
      geometry/uniformity.
    report_examples: A report looks at no more than this many images of the
      training split, and of the evaluation split. train_then_eval ends with a
      report, unless this is 0.
    accept_new_plan: Resume a run although its plan has changed (number of
      training examples, batch size or length of a stage) so that the newest
      step falls in another place. The run keeps its stage and epoch and takes
      the matching step.
    max_rollbacks: Maximum number of rollbacks of a run, over all its restarts;
      rollbacks.json in --model_dir lists them.
    deterministic: On one CPU device or GPU (tested on CPU), make a run that was
      killed and restarted equal to an uninterrupted one, bit for bit, on
      machines of the same kind.
    export_formats: Formats of an export: saved_model, for TensorFlow 2 and
      TensorFlow Serving; hub, a TF-Hub module for TensorFlow 1. none: export
      nothing, neither after train_then_eval nor after an evaluation.
    export_checkpoints: In eval mode, which checkpoints to export.
      best_and_last: each new best one, whose export is deleted once another is
      better, and the one of the last step. all: every evaluated one.
    exports_to_keep: After an export, delete older ones until this many are
      left; 0 keeps all.
    output: embed: the file to write, FILE.npz or FILE.tfrecord. predict: a JSON
      file for the predictions that are printed. compare: a directory for
      comparison.html, .csv, .md and .json; nothing is written without it.
    images: predict: image files or folders of images; may also follow the flags
      without --images.
    index: predict: an .npz file from --mode=embed to search for neighbours.
    neighbours: predict: number of most similar examples of --index to show.
    runs: compare: directories of runs, directories of such directories, or
      shell patterns for either.
    compact: All hyper-parameters as one compact string, such as bs=64,d=18 (see
      supcon/config/hparams.py); it replaces all hyper-parameter flags.
  """

  mode: str = fields.define('train', choices=MODES)
  model_dir: str = _path('', path_names.pattern_fault)
  force: bool = fields.define(False)
  data_dir: str | None = _path(None)
  # A URL is downloaded, and the copy is read from somewhere else.
  reference_ckpt: str = _path(
    '', lambda path: None if '://' in path else path_names.pattern_fault(path)
  )
  use_tpu: bool = fields.define(True)
  tpu_name: str | None = fields.define(None)
  tpu_zone: str | None = fields.define(None)
  gcp_project: str | None = fields.define(None)
  master: str | None = fields.define(None)
  num_gpus: int = fields.define(
    -1,
    fields.unless(
      lambda count: count >= -1, 'must be 0 or more, or -1 for all'
    ),
  )
  # A million of them would keep TensorFlow busy for ever.
  num_replicas: int = fields.define(1, fields.up_to(1024))
  steps_per_loop: int = fields.define(1000, fields.POSITIVE)
  summary_interval_steps: int = fields.define(100, fields.POSITIVE)
  save_interval_steps: int = fields.define(1000, fields.POSITIVE)
  max_checkpoints_to_keep: int = fields.define(5, fields.POSITIVE)
  keep_checkpoint_interval_secs: float = fields.define(
    36000000.0, fields.POSITIVE
  )
  eval_interval_secs: int = fields.define(60, fields.NOT_NEGATIVE)
  eval_timeout_secs: int = fields.define(0, fields.NOT_NEGATIVE)
  on_nan: str = fields.define('stop', fields.one_of(ON_NAN))
  eval_once: bool = fields.define(False)
  checkpoint: str = _path('', path_names.pattern_fault)
  corruptions: str = _path('')
  knn_examples: int = fields.define(5000, fields.NOT_NEGATIVE)
  best_metric: str = fields.define(TOP_1, fields.one_of(BEST_METRICS))
  report_examples: int = fields.define(50000, fields.NOT_NEGATIVE)
  accept_new_plan: bool = fields.define(False)
  max_rollbacks: int = fields.define(3, fields.NOT_NEGATIVE)
  deterministic: bool = fields.define(False)
  export_formats: tuple[str, ...] = fields.define(
    EXPORT_FORMATS,
    fields.unless(
      lambda formats: (
        formats == (NO_EXPORT,) or {*formats} <= {*EXPORT_FORMATS} and formats
      ),
      f'must be one or more of {", ".join(EXPORT_FORMATS)}; or {NO_EXPORT} '
      'alone, for no export',
    ),
  )
  export_checkpoints: str = fields.define(
    'best_and_last', fields.one_of(EXPORT_CHECKPOINTS)
  )
  exports_to_keep: int = fields.define(0, fields.NOT_NEGATIVE)
  output: str = _path('')
  images: tuple[str, ...] = fields.define((), is_path=True)
  index: str = _path('')
  neighbours: int = fields.define(0, fields.NOT_NEGATIVE)
  runs: tuple[str, ...] = fields.define((), is_path=True)
  compact: str | None = fields.define(None, flag='hparams')
  has_summary_interval: bool = False  # Whether the user set it.

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
    return self.mode in (
      'export',
      'embed',
      'predict',
      'report',
      'robustness',
    )

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
    return self.mode not in (
      'inspect_data',
      'export',
      'predict',
      'status',
      'compare',
    )

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
    fields.check(self)
    if self.takes_recorded:
      return
    if self.reference_ckpt and not params.warm_start.is_asked_for:
      raise fields.FieldError(
        self,
        'reference_ckpt',
        'is given but nothing is to be taken from it; add '
        '--warm_start_encoder, --warm_start_projection_head or '
        '--warm_start_classifier',
      )
    if params.warm_start.is_asked_for and not self.reference_ckpt:
      raise fields.FieldError(
        self,
        'reference_ckpt',
        'is empty but a --warm_start_* flag is on; name the checkpoint, '
        'training directory, export or TF-Hub module to start from',
      )
    reach.check(params)

  def conflicts(self) -> Iterator[tuple[str, str]]:
    """Yields the paths of fields that do not fit together, and why."""
    mode = f'has no effect with --mode={self.mode}'
    if not self.model_dir and self.mode != 'compare':
      yield (
        'model_dir',
        'is empty; name the directory for checkpoints, summaries and exports',
      )
    if self.runs and self.mode != 'compare':
      yield 'runs', f'{mode}; pass --mode=compare'
    if self.mode == 'compare' and not self.runs:
      yield 'mode', 'needs --runs=DIR,DIR,..., the directories of the runs'
    if self.force and not self.trains:
      yield (
        'force',
        f'{mode}; it lets a trainer take --model_dir over from another one',
      )
    if self.accept_new_plan and not self.trains:
      yield 'accept_new_plan', f'{mode}; it lets a training change its plan'
    if self.eval_once and self.mode != 'eval':
      yield 'eval_once', f'{mode}; pass --mode=eval'
    measures_robustness = self.mode == 'robustness'
    if self.checkpoint and not (self.eval_once or measures_robustness):
      yield (
        'checkpoint',
        'has no effect without --mode=eval --eval_once, which evaluate it, or '
        '--mode=robustness',
      )
    if self.corruptions and not measures_robustness:
      yield 'corruptions', f'{mode}; pass --mode=robustness'
    if measures_robustness and not self.corruptions:
      yield (
        'mode',
        'needs --corruptions=DIRECTORY or tfds:NAME, the corrupted images',
      )
    needed = max(
      self.best_metric_neighbours, self.best_metric.startswith(_OF_EMBEDDINGS)
    )
    if self.knn_examples < needed:
      yield (
        'best_metric',
        f'needs --knn_examples={needed} or more, not {self.knn_examples}',
      )
    if self.mode == 'export' and not self.formats:
      yield (
        'mode export_formats',
        'leave nothing to do; name one or more formats of '
        f'{", ".join(EXPORT_FORMATS)}',
      )
    if self.mode == 'report' and not self.report_examples:
      yield 'report_examples', 'leaves nothing to report on; leave it out'
    if self.mode == 'embed' and not self.output:
      yield (
        'mode',
        'needs --output=FILE.npz or FILE.tfrecord, the file to write',
      )
    if self.images and self.mode != 'predict':
      yield 'images', f'{mode}; pass --mode=predict'
    if self.mode == 'predict' and not self.images:
      yield (
        'mode',
        'needs images: --images=FILE,FOLDER,... or their names after the flags',
      )
    if self.neighbours and not self.index:
      yield 'neighbours', 'needs --index=FILE.npz, written by --mode=embed'
    if self.index and not self.neighbours:
      yield 'index', 'has no effect without --neighbours=K'
    if self.use_tpu and self.needs_accelerator:
      yield from self._conflicts_on_tpu()

  def _conflicts_on_tpu(self):
    if not self.tpu_address:
      yield (
        'use_tpu',
        'is the default and needs --tpu_name=NAME, the address '
        '--tpu_name=grpc://IP:8470, or --tpu_name=local on a TPU VM; to run on '
        'GPUs or on CPU pass --use_tpu=False',
      )
    for name, default in (('num_gpus', -1), ('num_replicas', 1)):
      if getattr(self, name) != default:
        yield name, 'is not for TPUs; leave it out, or pass --use_tpu=False'
    if self.tpu_address == 'local':
      return
    for name, directory in (
      ('model_dir', self.model_dir),
      ('data_dir', self.data_dir or os.environ.get('TFDS_DATA_DIR', '')),
    ):
      if '://' not in directory or directory.startswith('file://'):
        yield (
          name,
          f'is local, but the TPU {self.tpu_address} reads and writes by '
          'itself; name a directory on gs://, or pass --tpu_name=local on a '
          'TPU VM, or --use_tpu=False',
        )


# Every option with its default.
FIELDS = tuple(fields.walk(RunOptions()))
