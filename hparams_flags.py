"""All flags in one place: name, the field that each sets, help text.

`supcon/config/hparams.py` (what a run computes) and
`supcon/config/run_options.py` (where and how it runs) define the type, default
and check of every field. `define` turns the tables below into absl flags.
`read` turns parsed flags into the two dataclasses.
"""

import enum
import textwrap

from absl import flags

from supcon.config import changes
from supcon.config import hparams
from supcon.config import path_names
from supcon.config import run_options

_RUN_FLAGS = {  # flag = field of RunOptions: help
  'mode': (
    'train: train only. eval: evaluate each new checkpoint of a training job '
    'until the final one. train_then_eval: train, then evaluate and export '
    'once. inspect_data: show training images beside their augmented views, '
    'and profile the input pipeline. export: export the newest checkpoint of '
    '--model_dir. embed: write the embeddings of a split to --output. '
    'predict: classify --images. These three and eval take hyper-parameters '
    'that are not given from hparams.json in --model_dir, if it exists. '
    'status: report on the run in --model_dir, also by the exit code.'
  ),
  'on_nan': (
    'What to do when the loss, a gradient or a batch statistic is NaN or '
    'infinite. That step is never applied. stop: end. rollback: return to the '
    'newest checkpoint and skip the batches since then.'
  ),
  'eval_once': (
    'With --mode=eval: evaluate one checkpoint, the newest or that of '
    '--checkpoint, and exit, whether or not training has finished.'
  ),
  'checkpoint': (
    'With --eval_once: the checkpoint to evaluate, such as DIR/model.ckpt-1000.'
  ),
  'knn_examples': (
    'In an evaluation, measure the embeddings of at most this many images as '
    'well: accuracy of nearest neighbours among as many training images, '
    'alignment, uniformity. This says whether stage 1 learns. It costs one '
    'forward pass of one view of all these images; the rest of an evaluation '
    'takes one of --num_views views of each evaluation image. 0: do not.'
  ),
  'best_metric': (
    'The metric by which best/ in --model_dir holds the best checkpoint: '
    'top_1_accuracy, top_5_accuracy, loss, loss/contrastive_loss, '
    'loss/cross_entropy_loss, knn/kK_tT with K of 1, 10, 20, 100, 200 '
    'neighbours and the temperature T of 0.07, 0.1, such as knn/k20_t0.07; '
    'geometry/alignment, geometry/uniformity.'
  ),
  'accept_new_plan': (
    'Resume a run although its plan has changed (number of training examples, '
    'batch size or length of a stage) so that the newest step falls in '
    'another place. The run keeps its stage and epoch and takes the matching '
    'step.'
  ),
  'max_rollbacks': (
    'Maximum number of rollbacks of a run, over all its restarts; '
    'rollbacks.json in --model_dir lists them.'
  ),
  'deterministic': (
    'On one CPU device or GPU (tested on CPU), make a run that was killed and '
    'restarted equal to an uninterrupted one, bit for bit, on machines of the '
    'same kind.'
  ),
  'model_dir': 'Directory for checkpoints, summaries, results and exports.',
  'force': (
    'Train in --model_dir although another trainer is using it; that trainer '
    'stops.'
  ),
  'data_dir': (
    'TFDS data directory, the parent of imagenet2012/ or cifar10/; defaults '
    'to that of TFDS. With --input_fn=folder, the parent of train/ and val/.'
  ),
  'reference_ckpt': (
    'Checkpoint, training directory, export, or TF-Hub module (path or URL) '
    'to warm-start from, as selected by the --warm_start_* flags. Unless '
    'flags say otherwise, its architecture, image size, crop and whitening '
    'are used as far as they are known. Batch norm runs in inference mode '
    'during training, unless --batch_norm_in_train_mode.'
  ),
  'use_tpu': (
    'Run on the Cloud TPU named by --tpu_name. If False, run on the GPUs of '
    'this machine, or on its CPU if it has none.'
  ),
  'tpu_name': (
    'Name of the Cloud TPU; or its address, grpc://IP:8470; or local, on a '
    'TPU VM.'
  ),
  'tpu_zone': 'Zone of the Cloud TPU; default: that of this machine.',
  'gcp_project': 'Project of the Cloud TPU; default: that of this machine.',
  'master': 'Same as --tpu_name, which it overrides.',
  'num_gpus': (
    'With --use_tpu=False: number of GPUs of this machine to train on; -1 for '
    'all, 0 for the CPU. For several machines see supcon/compute/README.md.'
  ),
  'num_replicas': (
    'Number of virtual CPU devices to train on: slow, for trying out how '
    'several GPUs would behave.'
  ),
  'steps_per_loop': 'Training steps on the TPU between returns to the host.',
  'summary_interval_steps': (
    'Steps between training summaries. If not given, a stage of fewer than '
    '5000 steps gets at least 50 summaries, or one per step.'
  ),
  'save_interval_steps': 'Steps between checkpoints.',
  'max_checkpoints_to_keep': 'Number of recent checkpoints to keep.',
  'keep_checkpoint_interval_secs': (
    'Seconds between checkpoints that are never deleted.'
  ),
  'eval_interval_secs': (
    'In eval mode, minimum seconds between two evaluations while training is '
    'running.'
  ),
  'eval_timeout_secs': (
    'In eval mode, exit with code 69 after this many seconds without a '
    'trainer or a new checkpoint; 0 waits for ever.'
  ),
  'export_formats': (
    'Formats of an export: saved_model, for TensorFlow 2 and TensorFlow '
    'Serving; hub, a TF-Hub module for TensorFlow 1. none: export nothing, '
    'neither after train_then_eval nor after an evaluation.'
  ),
  'export_checkpoints': (
    'In eval mode, which checkpoints to export. best_and_last: each new best '
    'one, whose export is deleted once another is better, and the one of the '
    'last step. all: every evaluated one.'
  ),
  'exports_to_keep': (
    'After an export, delete older ones until this many are left; 0 keeps all.'
  ),
  'output': (
    'embed: the file to write, FILE.npz or FILE.tfrecord. predict: a JSON '
    'file for the predictions that are printed.'
  ),
  'images': (
    'predict: image files or folders of images; may also follow the flags '
    'without --images.'
  ),
  'index': 'predict: an .npz file from --mode=embed to search for neighbours.',
  'neighbours': 'predict: number of most similar examples of --index to show.',
}

# Flags whose values may start with `~` or `~NAME`, a home directory.
_PATH_FLAGS = (
  'model_dir',
  'data_dir',
  'reference_ckpt',
  'checkpoint',
  'output',
  'images',
  'index',
)

_HPARAMS_FLAGS = {  # flag: (field of HParams, help)
  'batch_size': ('batch_size', 'Training examples per step, over all devices.'),
  'eval_batch_size': (
    'eval.batch_size',
    'Examples per evaluation step, over all devices: all cores of a TPU, '
    'otherwise one device.',
  ),
  'seed': (
    'seed',
    'Determines initial weights, order of examples, augmentation and label '
    'noise.',
  ),
  # Data.
  'input_fn': (
    'input_data.input_fn',
    'Data set: imagenet, cifar10 or digits; tfds:NAME[/CONFIG][:VERSION], any '
    'data set that TFDS has prepared; folder, images in '
    '--data_dir/{train,val}/CLASS.',
  ),
  'train_split': (
    'input_data.train_split',
    'Split to train on: a folder (. is --data_dir itself) or a TFDS '
    'expression such as train[:80%], which takes that part of each class of a '
    'folder. Default: train.',
  ),
  'eval_split': (
    'input_data.eval_split',
    'Split to evaluate on. Default: test or validation of a TFDS data set, or '
    'the first of the folders val, validation, test.',
  ),
  'skip_bad_images': (
    'input_data.skip_bad_images',
    'Check every image first, skip those that cannot be decoded, and report '
    'their number. Otherwise the first bad image is an error.',
  ),
  'num_images': (
    'input_data.max_samples',
    'Train on the first this many examples only; 0 for all.',
  ),
  'num_eval_images': (
    'input_data.max_eval_samples',
    'Evaluate on the first this many examples only; 0 for all.',
  ),
  'class_balanced': (
    'input_data.class_balanced',
    'Draw from all classes equally often: an epoch repeats examples of small '
    'classes and omits some of large classes.',
  ),
  'label_noise_prob': (
    'input_data.label_noise_prob',
    'Probability that a training label is replaced by a random one.',
  ),
  'shard_per_host': (
    'input_data.shard_per_host',
    'With several hosts, give each its own slice of every epoch; otherwise '
    'each host reads the whole training split, in its own order.',
  ),
  'allow_mixed_precision': (
    'input_data.preprocessing.allow_mixed_precision',
    'Use bfloat16 images and activations on TPU; no effect elsewhere.',
  ),
  'image_size': (
    'input_data.preprocessing.image_size',
    'Height and width of the network input, in pixels.',
  ),
  'num_views': (
    'input_data.preprocessing.num_views',
    'Views of each image in a batch.',
  ),
  'augmentation_type': (
    'input_data.preprocessing.augmentation_type',
    'Training augmentation after crop and flip. SIMCLR: color jitter, '
    'grayscale, warp, blur. AUTOAUGMENT: the policy of the data set. '
    'RANDAUGMENT: 2 random operations. STACKED_RANDAUGMENT: color jitter, '
    'RandAugment, grayscale, warp, blur. IDENTITY: nothing.',
  ),
  'augmentation_magnitude': (
    'input_data.preprocessing.augmentation_magnitude',
    'SIMCLR, STACKED_RANDAUGMENT: strength of the color jitter, at most 1 '
    '(RandAugment stays at 10). RANDAUGMENT: its magnitude, about 10. '
    'AUTOAUGMENT: no effect. In all of them, 0 or less turns off all '
    'augmentation except crop and flip.',
  ),
  'warp_probability': (
    'input_data.preprocessing.warp_probability',
    'Probability of a smooth random warp, with SIMCLR and STACKED_RANDAUGMENT.',
  ),
  'blur_probability': (
    'input_data.preprocessing.blur_probability',
    'Probability of Gaussian blur, with SIMCLR and STACKED_RANDAUGMENT.',
  ),
  'defer_blurring': (
    'input_data.preprocessing.defer_blurring',
    'Blur on the accelerator instead of in the input pipeline.',
  ),
  'defer_augmentation': (
    'input_data.preprocessing.defer_augmentation',
    'Move as much of the augmentation as possible to the accelerator: images '
    'travel as bytes, and the model does color jitter and grayscale (unless '
    'RandAugment or a warp follows them), whitening and blur. For '
    'accelerators that wait for their input.',
  ),
  'compile_augmentation': (
    'input_data.preprocessing.compile_augmentation',
    'Let XLA compile the color operations of the input pipeline, for speed. '
    'Turn it off if the TensorFlow of the hosts lacks XLA for CPU.',
  ),
  'use_pytorch_color_jitter': (
    'input_data.preprocessing.use_pytorch_color_jitter',
    'Use color jitter as defined by torchvision instead of TensorFlow.',
  ),
  'random_flip': (
    'input_data.preprocessing.random_flip',
    'Mirror half of the training views if that keeps the label (not for '
    'handwritten characters). Turn it off if mirroring changes the labels of '
    'your own data.',
  ),
  'train_on_eval_views': (
    'input_data.preprocessing.train_on_eval_views',
    'Train on the evaluation crop: no random crop, no flip, no augmentation. '
    'The embeddings of a frozen encoder are then computed only once.',
  ),
  'apply_whitening': (
    'input_data.preprocessing.apply_whitening',
    'Subtract the mean and divide by the standard deviation, if the data set '
    'has them (cifar10) or they are measured.',
  ),
  'measure_whitening': (
    'input_data.preprocessing.measure_whitening',
    'With --apply_whitening: measure mean and standard deviation on training '
    'images at the start of a run, and keep them in whitening.json of the '
    'model_dir.',
  ),
  'crop_area_range': (
    'input_data.preprocessing.crop_area_range',
    'Minimum and maximum fraction of the image area in a random crop.',
  ),
  'eval_crop_method': (
    'input_data.preprocessing.eval_crop_method',
    'How an evaluation image is brought to the input size.',
  ),
  'crop_padding': (
    'input_data.preprocessing.crop_padding',
    'Pixels by which the resized image exceeds the evaluation crop.',
  ),
  # Networks.
  'resnet_architecture': (
    'architecture.encoder_architecture',
    'Family of the encoder. TINY, two convolutions, is for trying things out; '
    'depth, width and stem have no effect on it.',
  ),
  'resnet_depth': (
    'architecture.encoder_depth',
    'Layers of the encoder: 18, 34, 50, 101, 152 or 200; RESNEXT starts at 50.',
  ),
  'resnet_width': (
    'architecture.encoder_width',
    'Multiplier of the channels of every layer of the encoder.',
  ),
  'first_conv_kernel_size': (
    'architecture.first_conv_kernel_size',
    'Kernel side of the first convolution: 7 for ImageNet, 3 for CIFAR.',
  ),
  'first_conv_stride': (
    'architecture.first_conv_stride',
    'Stride of the first convolution: 2 for ImageNet, 1 for CIFAR.',
  ),
  'use_initial_max_pool': (
    'architecture.use_initial_max_pool',
    'Use a max pool with stride 2 after the first convolution.',
  ),
  'projection_head_layers': (
    'architecture.projection_head_layers',
    'Sizes of the dense layers of the projection head.',
  ),
  'use_projection_batch_norm': (
    'architecture.projection_head_use_batch_norm',
    'Use batch norm between the layers of the projection head.',
  ),
  'use_projection_batch_norm_beta': (
    'architecture.projection_head_use_batch_norm_beta',
    'Whether these batch norms learn a shift.',
  ),
  'normalize_embedding': (
    (
      'architecture.normalize_projection_head_inputs',
      'architecture.normalize_classifier_inputs',
    ),
    'Scale the embedding to unit length before both heads.',
  ),
  'zero_initialize_classifier': (
    'architecture.zero_initialize_classifier',
    'Start the classifier at zero instead of at random.',
  ),
  'stop_gradient_before_classification_head': (
    'architecture.stop_gradient_before_classification_head',
    'Keep the gradient of the classifier from reaching the encoder.',
  ),
  'stop_gradient_before_projection_head': (
    'architecture.stop_gradient_before_projection_head',
    'Keep the gradient of the projection head from reaching the encoder.',
  ),
  'use_global_batch_norm': (
    'architecture.use_global_batch_norm',
    'Compute batch norm statistics over all devices; the moving variance is '
    'then the biased one.',
  ),
  # Losses.
  'use_labels': (
    'loss.contrastive.use_labels',
    'Treat all views of the same class as positives (SupCon); otherwise only '
    'the views of the same image (SimCLR).',
  ),
  'temperature': ('loss.contrastive.temperature', 'Softmax temperature; > 0.'),
  'contrast_mode': (
    'loss.contrastive.contrast_mode',
    'Which views are anchors: all, or the first view only.',
  ),
  'summation_location': (
    'loss.contrastive.summation_location',
    'Where to sum over positives: outside (eq. 2) or inside (eq. 3) the log.',
  ),
  'denominator_mode': (
    'loss.contrastive.denominator_mode',
    'Positives in the denominator: all, only the one in the numerator, or '
    'none.',
  ),
  'positives_cap': (
    'loss.contrastive.positives_cap',
    'Maximum number of positives besides the views of the same image, a '
    'multiple of the number of views; -1 for no limit.',
  ),
  'scale_by_temperature': (
    'loss.contrastive.scale_by_temperature',
    'Multiply the contrastive loss by the temperature.',
  ),
  'label_smoothing': (
    'loss.cross_entropy.label_smoothing',
    'Label smoothing of the cross-entropy, in [0, 1).',
  ),
  'use_bias_weight_decay': (
    'loss.include_bias_in_weight_decay',
    'Apply weight decay to biases, too.',
  ),
  # Warm start.
  'warm_start_encoder': (
    'warm_start.warm_start_encoder',
    'Initialize the encoder from --reference_ckpt.',
  ),
  'warm_start_projection_head': (
    'warm_start.warm_start_projection_head',
    'Initialize the projection head from --reference_ckpt.',
  ),
  'warm_start_classifier': (
    'warm_start.warm_start_classifier',
    'Initialize the classifier from --reference_ckpt.',
  ),
  'ignore_missing_checkpoint_vars': (
    'warm_start.ignore_missing_checkpoint_vars',
    'Initialize variables that --reference_ckpt lacks at random instead of '
    'stopping.',
  ),
  'batch_norm_in_train_mode': (
    'warm_start.batch_norm_in_train_mode',
    'With --reference_ckpt, keep batch norm in training mode.',
  ),
}

_STAGE_FLAGS = {  # Field of Stage: help; --stage_1_FIELD and --stage_2_FIELD.
  'epochs': 'Length in epochs; 0 skips the stage.',
  'warmup_epochs': 'Epochs of linear warm-up; must be shorter than the stage.',
  'base_learning_rate': (
    'Learning rate for a batch of 256; scaled with the batch size.'
  ),
  'learning_rate_decay': 'How the learning rate decays after the warm-up.',
  'decay_rate': 'EXPONENTIAL, PIECEWISE_LINEAR: factor of each drop.',
  'decay_boundary_epochs': (
    'PIECEWISE_LINEAR: epochs of the drops, counted from the end of the '
    'warm-up.'
  ),
  'epochs_per_decay': 'EXPONENTIAL: epochs between drops.',
  'optimizer': 'Update rule.',
  'update_encoder_batch_norm': 'Update the moving statistics of batch norm.',
  'rmsprop_epsilon': 'RMSPROP: epsilon.',
  'contrastive_loss_weight': 'Weight of the contrastive loss.',
  'cross_entropy_loss_weight': 'Weight of the cross-entropy.',
  'weight_decay': (
    'Coefficient of the weight decay: in the loss, or within LARS.'
  ),
  'use_encoder_weight_decay': 'Apply weight decay to the encoder.',
  'use_projection_head_weight_decay': (
    'Apply weight decay to the projection head.'
  ),
  'use_classification_head_weight_decay': (
    'Apply weight decay to the classifier.'
  ),
}


def hparams_flags():
  """Returns {flag: (paths of the fields that it sets, help)}."""
  table = {}
  for flag, (fields, text) in _HPARAMS_FLAGS.items():
    table[flag] = ((fields,) if isinstance(fields, str) else fields, text)
  for number in (1, 2):
    for field, text in _STAGE_FLAGS.items():
      table[f'stage_{number}_{field}'] = (
        (f'stage_{number}.{field}',),
        f'Stage {number}. {text}',
      )
  return table


def table_of_changes() -> str:
  """Returns the table for supcon/runs/README.md of what may change."""
  flag_of = _flag_of()
  lines = ['| what | may it change? | |', '|---|---|---|']
  for rule in changes.RULES:
    names = []
    for what in rule.what:
      flag = flag_of.get(changes.expand(what)[0])
      is_of_stage = what.startswith('stage_N.')
      if flag and is_of_stage:
        flag = flag.replace('stage_1', 'stage_N')
      names.append(f'`--{flag}`' if flag else what)
    what = ', '.join(dict.fromkeys(names))
    lines.append(f'| {what} | {rule.may.value} | {rule.why} |')
  return '\n'.join(lines) + '\n'


def _flag_of():
  """Returns {path of a field: its flag}."""
  return {
    path: flag for flag, (paths, _) in hparams_flags().items() for path in paths
  }


def explain(error: BaseException) -> str:
  """Returns the text of an error, with flags in place of fields."""
  flag_of = _flag_of()
  parts = getattr(error, 'parts', None) or [str(error)]
  return ''.join(
    f'--{flag_of[part]}' if isinstance(part, hparams.Field) else part
    for part in parts
  )


def define(values: flags.FlagValues = flags.FLAGS) -> None:
  """Defines every flag in `values`, with the defaults of the dataclasses."""
  defaults = run_options.RunOptions()
  for flag, text in _RUN_FLAGS.items():
    if flag == 'mode':
      flags.DEFINE_enum(
        flag, defaults.mode, run_options.MODES, text, flag_values=values
      )
    else:
      _define(values, flag, getattr(defaults, flag), text)
  flags.DEFINE_string(
    'hparams',
    None,
    'All hyper-parameters as one compact string, such as bs=64,d=18 (see '
    'supcon/config/hparams.py); it replaces all hyper-parameter flags.',
    flag_values=values,
  )
  params = hparams.HParams()
  for flag, (fields, text) in hparams_flags().items():
    _define(values, flag, params.get(fields[0]), text)


def read(values: flags.FlagValues, arguments=(), load_facts=None):
  """Returns (RunOptions, HParams) of parsed flags, not yet checked.

  For flags that are not given, --mode may take the value from the model in
  --model_dir, and training may take it from its --reference_ckpt.

  Args:
    values: The parsed flags.
    arguments: Positional arguments, which are more --images.
    load_facts: A function that returns the module supcon.training.facts, which
      reads the values of earlier runs; None takes the defaults instead.

  Raises:
    ValueError: If an item of a list, --hparams or the record of an earlier run
      cannot be read, or if there are arguments although the mode takes no
      images.
  """
  options = _read_options(values, arguments)
  if values['hparams'].value is not None:
    return options, hparams.parse(values['hparams'].value)
  params = recorded = None
  if load_facts and options.takes_recorded and options.model_dir:
    params = recorded = load_facts().recorded_params(options.model_dir)
  params = params or hparams.HParams()
  for flag, (fields, _) in hparams_flags().items():
    if recorded and not values[flag].present:
      continue
    value = values[flag].value
    for field in fields:
      default = params.get(field)
      try:
        if isinstance(default, enum.Enum):
          converted = type(default)[value]
        else:
          converted = hparams.convert(value, default)
      except ValueError as error:
        raise ValueError(f'--{flag}: {error}') from error
      params = params.replace(field, converted)
  takes = options.starts_from_reference and params.warm_start.is_asked_for
  if load_facts and takes:
    options.check_paths()
    taken = load_facts().taken(
      options.model_dir, options.reference_ckpt, params
    )
    flag_of = _flag_of()
    for field, value in taken.items():
      if not values[flag_of[field]].present:
        params = params.replace(field, value)
  return options, params


def _read_options(values, arguments):
  fields = {}
  for flag in _RUN_FLAGS:
    value = values[flag].value
    fields[flag] = tuple(value) if isinstance(value, list) else value
  if arguments and fields['mode'] != 'predict':
    raise ValueError(
      f'found {arguments[0]!r}, expected flags only, as --name=value.'
    )
  fields['images'] += tuple(arguments)
  for flag in _PATH_FLAGS:
    try:
      fields[flag] = _expanded(fields[flag])
    except ValueError as error:
      raise ValueError(f'--{flag}={error}') from error
  fields['has_summary_interval'] = values['summary_interval_steps'].present > 0
  return run_options.RunOptions(**fields)


def _expanded(value):
  if isinstance(value, tuple):
    return tuple(map(path_names.expanded, value))
  return value and path_names.expanded(value)


def _define(values, flag, default, text):
  if isinstance(default, enum.Enum):
    flags.DEFINE_enum(
      flag,
      default.name,
      [member.name for member in type(default)],
      text,
      case_sensitive=False,
      flag_values=values,
    )
  elif isinstance(default, tuple):
    items = [str(item) for item in default]
    flags.DEFINE_list(flag, items, text, flag_values=values)
  else:
    _DEFINERS[type(default)](flag, default, text, flag_values=values)


_DEFINERS = {
  bool: flags.DEFINE_boolean,
  int: flags.DEFINE_integer,
  float: flags.DEFINE_float,
  str: flags.DEFINE_string,
  type(None): flags.DEFINE_string,
}

# --- Help ---------------------------------------------------------------------

_STAGES = 'stages'  # Stands for --stage_1_FIELD and --stage_2_FIELD.

# The groups that --help prints, in the order in which people look for them.
_GROUPS = {
  'What to do': [
    'mode',
    'model_dir',
    'data_dir',
    'seed',
    'force',
    'accept_new_plan',
  ],
  'Data': [
    'input_fn',
    'train_split',
    'eval_split',
    'num_images',
    'num_eval_images',
    'skip_bad_images',
    'class_balanced',
    'label_noise_prob',
    'shard_per_host',
  ],
  'How long, how fast': ['batch_size', _STAGES],
  'Loss': [
    'use_labels',
    'temperature',
    'scale_by_temperature',
    'contrast_mode',
    'summation_location',
    'denominator_mode',
    'positives_cap',
    'label_smoothing',
    'use_bias_weight_decay',
  ],
  'Model': [
    'resnet_architecture',
    'resnet_depth',
    'resnet_width',
    'first_conv_kernel_size',
    'first_conv_stride',
    'use_initial_max_pool',
    'projection_head_layers',
    'use_projection_batch_norm',
    'use_projection_batch_norm_beta',
    'normalize_embedding',
    'zero_initialize_classifier',
    'stop_gradient_before_projection_head',
    'stop_gradient_before_classification_head',
    'use_global_batch_norm',
    'allow_mixed_precision',
  ],
  'Images and views': [
    'image_size',
    'num_views',
    'augmentation_type',
    'augmentation_magnitude',
    'crop_area_range',
    'random_flip',
    'blur_probability',
    'warp_probability',
    'use_pytorch_color_jitter',
    'apply_whitening',
    'measure_whitening',
    'eval_crop_method',
    'crop_padding',
    'train_on_eval_views',
    'defer_blurring',
    'defer_augmentation',
    'compile_augmentation',
  ],
  'Start from another model': [
    'reference_ckpt',
    'warm_start_encoder',
    'warm_start_projection_head',
    'warm_start_classifier',
    'ignore_missing_checkpoint_vars',
    'batch_norm_in_train_mode',
  ],
  'Evaluate': [
    'eval_batch_size',
    'eval_once',
    'checkpoint',
    'knn_examples',
    'best_metric',
    'eval_interval_secs',
    'eval_timeout_secs',
  ],
  'Export and use': [
    'export_formats',
    'export_checkpoints',
    'exports_to_keep',
    'output',
    'images',
    'index',
    'neighbours',
  ],
  'Checkpoints, summaries, long runs': [
    'save_interval_steps',
    'max_checkpoints_to_keep',
    'keep_checkpoint_interval_secs',
    'summary_interval_steps',
    'on_nan',
    'max_rollbacks',
    'deterministic',
  ],
  'Devices': [
    'use_tpu',
    'num_gpus',
    'num_replicas',
    'tpu_name',
    'tpu_zone',
    'gcp_project',
    'master',
    'steps_per_loop',
  ],
  'All hyper-parameters at once': ['hparams'],
}

# Names of flags in other programs.
_OTHER_NAMES = {
  'arch': ('resnet_depth', 'resnet_width', 'resnet_architecture'),
  'augment': ('augmentation_type',),
  'backbone': ('resnet_depth', 'resnet_width', 'resnet_architecture'),
  'bs': ('batch_size',),
  'checkpoint_dir': ('model_dir',),
  'data': ('input_fn', 'data_dir'),
  'dataset': ('input_fn', 'data_dir'),
  'epochs': ('stage_1_epochs', 'stage_2_epochs'),
  'gpu': ('num_gpus',),
  'gpus': ('num_gpus',),
  'learning_rate': ('stage_1_base_learning_rate', 'stage_2_base_learning_rate'),
  'log_dir': ('model_dir',),
  'lr': ('stage_1_base_learning_rate', 'stage_2_base_learning_rate'),
  'model': ('resnet_depth', 'resnet_width', 'resnet_architecture'),
  'num_epochs': ('stage_1_epochs', 'stage_2_epochs'),
  'optimizer': ('stage_1_optimizer', 'stage_2_optimizer'),
  'output_dir': ('model_dir',),
  'pretrained': ('reference_ckpt', 'warm_start_encoder'),
  'temp': ('temperature',),
  'train_batch_size': ('batch_size',),
  'train_dir': ('model_dir',),
  'wd': ('stage_1_weight_decay', 'stage_2_weight_decay'),
  'weight_decay': ('stage_1_weight_decay', 'stage_2_weight_decay'),
  'workers': ('num_gpus', 'num_replicas'),
}


def explain_parsing(error: flags.Error) -> str:
  """Returns what is wrong with the flags and what to use instead."""
  if not isinstance(error, flags.UnrecognizedFlagError):
    return str(error)
  name = error.flagname.lower().replace('-', '_')
  if name in ('resume', 'restore'):
    instead = 'leave it out: training continues from the newest checkpoint'
  elif name in _OTHER_NAMES:
    names = [f'--{other}' for other in _OTHER_NAMES[name]]
    instead = f'use {" or ".join(names)}'
  else:
    return str(error)
  return f'--{error.flagname} is no flag here; {instead}.'


def help_text(values: flags.FlagValues = flags.FLAGS) -> str:
  """Returns the page that --help prints: each flag with its default."""
  table = {**_RUN_FLAGS, 'hparams': values['hparams'].help}
  for flag, (_, text) in hparams_flags().items():
    table[flag] = text
  lines = [
    'Trains, evaluates, exports and uses a supervised contrastive model.',
    '',
    '  python main.py --mode=train_then_eval --use_tpu=False \\',
    '    --input_fn=digits --data_dir=DIR --model_dir=DIR ...',
    '',
    'scripts/ holds settings that work; README.md says what to expect. N is 1',
    '(the encoder is trained) or 2 (the classifier).',
  ]
  for title, names in _GROUPS.items():
    lines += ['', f'{title}:']
    for name in names:
      if name == _STAGES:
        for field, text in _STAGE_FLAGS.items():
          defaults = [
            _default_text(values[f'stage_{number}_{field}'])
            for number in (1, 2)
          ]
          both = ', '.join(dict.fromkeys(defaults))
          choices = values[f'stage_1_{field}'].parser
          lines += _entry(f'stage_N_{field}', both, choices, text)
      else:
        flag = values[name]
        lines += _entry(name, _default_text(flag), flag.parser, table[name])
  lines += ['', 'Others: --verbosity=1 shows what the libraries say, too.', '']
  return '\n'.join(lines)


def _default_text(flag):
  value = flag.default
  return ','.join(map(str, value)) if isinstance(value, list) else str(value)


def _entry(name, default, parser, text):
  """Returns the lines of one flag."""
  head = f'  --{name}' + (
    f' ({default})' if default not in ('', 'None') else ''
  )
  values = getattr(parser, 'enum_values', ())
  if values:
    text = f'{text} One of: {", ".join(values)}.'
  return [
    head,
    *textwrap.wrap(text, 76, initial_indent=' ' * 6, subsequent_indent=' ' * 6),
  ]
