"""The page that --help prints, and the names of flags in other programs."""

from collections.abc import Iterator
import textwrap

from supcon.config import fields
from supcon.config import hparams
from supcon.config import run_options

# The groups of the page, in the order in which people look for them.
# stage_N_* stands for every field of a stage.
_GROUPS = {
  'What to do': 'mode model_dir data_dir seed force accept_new_plan',
  'Data': (
    'input_fn train_split eval_split num_images num_eval_images '
    'skip_bad_images class_balanced label_noise_prob shard_per_host'
  ),
  'How long, how fast': 'batch_size micro_batch_size stage_N_*',
  'Loss': (
    'use_labels temperature scale_by_temperature contrast_mode '
    'summation_location denominator_mode positives_cap memory_size '
    'memory_momentum label_smoothing use_bias_weight_decay'
  ),
  'Model': (
    'resnet_architecture resnet_depth resnet_width first_conv_kernel_size '
    'first_conv_stride use_initial_max_pool projection_head_layers '
    'use_projection_batch_norm use_projection_batch_norm_beta '
    'normalize_embedding zero_initialize_classifier '
    'stop_gradient_before_projection_head '
    'stop_gradient_before_classification_head use_global_batch_norm '
    'allow_mixed_precision'
  ),
  'Images and views': (
    'image_size num_views augmentation_type augmentation_magnitude '
    'crop_area_range random_flip blur_probability warp_probability '
    'use_pytorch_color_jitter apply_whitening measure_whitening '
    'eval_crop_method crop_padding train_on_eval_views defer_blurring '
    'defer_augmentation compile_augmentation'
  ),
  'Start from another model': (
    'reference_ckpt warm_start_encoder warm_start_projection_head '
    'warm_start_classifier ignore_missing_checkpoint_vars '
    'batch_norm_in_train_mode'
  ),
  'Evaluate': (
    'eval_batch_size eval_once checkpoint corruptions knn_examples '
    'best_metric eval_interval_secs eval_timeout_secs report_examples runs'
  ),
  'Export and use': (
    'export_formats export_checkpoints exports_to_keep output images index '
    'neighbours'
  ),
  'Checkpoints, summaries, long runs': (
    'save_interval_steps max_checkpoints_to_keep '
    'keep_checkpoint_interval_secs summary_interval_steps on_nan '
    'max_rollbacks deterministic'
  ),
  'Devices': (
    'use_tpu num_gpus num_replicas tpu_name tpu_zone gcp_project master '
    'steps_per_loop'
  ),
  'All hyper-parameters at once': 'hparams',
}

# What other programs call a flag: what it is called here.
_OTHER_NAMES = {
  'arch': 'resnet_depth resnet_width resnet_architecture',
  'augment': 'augmentation_type',
  'backbone': 'resnet_depth resnet_width resnet_architecture',
  'bs': 'batch_size',
  'checkpoint_dir': 'model_dir',
  'data': 'input_fn data_dir',
  'dataset': 'input_fn data_dir',
  'epochs': 'stage_1_epochs stage_2_epochs',
  'gpu': 'num_gpus',
  'gpus': 'num_gpus',
  'learning_rate': 'stage_1_base_learning_rate stage_2_base_learning_rate',
  'log_dir': 'model_dir',
  'lr': 'stage_1_base_learning_rate stage_2_base_learning_rate',
  'model': 'resnet_depth resnet_width resnet_architecture',
  'num_epochs': 'stage_1_epochs stage_2_epochs',
  'optimizer': 'stage_1_optimizer stage_2_optimizer',
  'output_dir': 'model_dir',
  'pretrained': 'reference_ckpt warm_start_encoder',
  'temp': 'temperature',
  'train_batch_size': 'batch_size',
  'train_dir': 'model_dir',
  'wd': 'stage_1_weight_decay stage_2_weight_decay',
  'weight_decay': 'stage_1_weight_decay stage_2_weight_decay',
  'workers': 'num_gpus num_replicas',
}


def instead_of(name: str) -> str | None:
  """Returns what to pass instead of another program's flag; None if unknown."""
  name = name.lower().replace('-', '_')
  if name in ('resume', 'restore'):
    return 'leave it out: training continues from the newest checkpoint'
  if names := _OTHER_NAMES.get(name):
    return 'use ' + ' or '.join(f'--{other}' for other in names.split())
  return None


def text() -> str:
  """Returns the page: each flag with its default."""
  known = {f.flag: f for f in (*run_options.FIELDS, *hparams.FIELDS)}
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
    for name in names.split():
      if name == 'stage_N_*':
        for field in fields.walk(hparams.Stage()):
          both = (known[f'stage_{n}_{field.flag}'].text for n in (1, 2))
          default = ', '.join(dict.fromkeys(both))
          lines += _entry(f'stage_N_{field.flag}', default, field)
      else:
        lines += _entry(name, known[name].text, known[name])
  lines += ['', 'Others: --verbosity=1 shows what the libraries say, too.', '']
  return '\n'.join(lines)


def _entry(name, default, field) -> Iterator[str]:
  """Yields the lines of one flag."""
  yield f'  --{name} ({default})' if default else f'  --{name}'
  choices = f' One of: {", ".join(field.choices)}.' if field.choices else ''
  yield from textwrap.wrap(
    field.help + choices, 76, initial_indent=' ' * 6, subsequent_indent=' ' * 6
  )
