#!/bin/bash
# Named groups of flags. To use: source "$(dirname "$0")/configs.sh"
#
# A published configuration consists of groups and a few values of its own. If a
# flag is given twice, the last value counts. So the user's flags win, because
# every script passes them last. `python main.py --help` explains the flags.
#
# This also defines ROOT, the checkout, and run_main, which executes main.py.
#
# shellcheck disable=SC2034,SC2054  # Used by the scripts; commas inside values.

# CDPATH could redirect a relative cd, and make it print.
ROOT="$(CDPATH='' cd -- "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

# Prints the interpreter: $PYTHON if it is set; otherwise that of the checkout's
# .venv if it exists; otherwise python3.
interpreter() {
  local default_python=python3
  if [[ -x "$ROOT/.venv/bin/python" ]]; then
    default_python="$ROOT/.venv/bin/python"
  fi
  echo "${PYTHON:-$default_python}"
}

# Executes main.py with the given flags.
run_main() {
  exec "$(interpreter)" "$ROOT/main.py" "$@"
}

# Prints a number that identifies the arguments.
checksum_of() {
  local checksum
  checksum="$(printf '%s\n' "$@" | cksum)"
  printf '%08x' "${checksum%% *}"
}

# Stores a script's arguments in REFERENCE_FLAGS. The first one, unless it is a
# flag, becomes --reference_ckpt. Ends the script if there is no reference,
# except for --help.
require_reference() {
  if [[ -n "${1:-}" && "$1" != -* ]]; then
    set -- "--reference_ckpt=$1" "${@:2}"
  fi
  REFERENCE_FLAGS=("$@")
  local flag
  for flag in "$@"; do
    case "$flag" in
      --reference_ckpt=?* | --reference_ckpt | --help*) return 0 ;;
    esac
  done
  echo 'No pretrained encoder is given; usage:' \
    "scripts/${0##*/} REFERENCE [FLAGS], where REFERENCE is a checkpoint, a" \
    'training directory, an export or a TF-Hub module.' >&2
  exit 2
}

# --- Hardware ---------------------------------------------------------------

TPU=(
  --allow_mixed_precision=True
  --defer_blurring=True
)

# --- Encoders ---------------------------------------------------------------

RESNET=(
  --resnet_architecture=RESNET_V1
  --resnet_width=1
)
RESNET50=("${RESNET[@]}" --resnet_depth=50)
RESNET101=("${RESNET[@]}" --resnet_depth=101)
RESNET200=("${RESNET[@]}" --resnet_depth=200)

# --- Data sets, with the encoder stem for their images ----------------------

IMAGENET_INPUT=(
  --input_fn=imagenet
  --shard_per_host=True
  --blur_probability=0.5
  --augmentation_magnitude=1.0
  --label_smoothing=0.05
)

IMAGENET=(
  "${IMAGENET_INPUT[@]}"
  --first_conv_kernel_size=7
  --first_conv_stride=2
  --use_initial_max_pool=True
  --image_size=224
)

CIFAR10=(
  --input_fn=cifar10
  --shard_per_host=False
  --first_conv_kernel_size=3
  --first_conv_stride=1
  --use_initial_max_pool=False
  --image_size=32
  --blur_probability=0
  --apply_whitening=True
  --augmentation_type=SIMCLR
  --augmentation_magnitude=0.5
  --crop_area_range=0.2,1.0
  --use_pytorch_color_jitter=True
  --eval_crop_method=IDENTITY
  --crop_padding=0
  --label_smoothing=0
)

# --- What is trained, and when ----------------------------------------------

# Stage 1 trains encoder and classifier together. There is no stage 2.
CROSS_ENTROPY=(
  --stop_gradient_before_classification_head=False
  --normalize_embedding=False
  --stage_1_contrastive_loss_weight=0.0
  --stage_1_cross_entropy_loss_weight=1.0
  --stage_1_use_encoder_weight_decay=True
  --stage_1_use_projection_head_weight_decay=False
  --stage_1_use_classification_head_weight_decay=True
  --stage_1_update_encoder_batch_norm=True
  --stage_1_base_learning_rate=0.1
  --stage_1_optimizer=NESTEROV
  --stage_2_epochs=0
  --stage_2_warmup_epochs=0
  --stage_2_contrastive_loss_weight=0.0
  --stage_2_cross_entropy_loss_weight=0.0
  --stage_2_use_encoder_weight_decay=False
  --stage_2_use_projection_head_weight_decay=False
  --stage_2_use_classification_head_weight_decay=False
  --stage_2_update_encoder_batch_norm=False
)

# Stage 1 trains encoder and projection head, stage 2 only the classifier.
CONTRASTIVE=(
  --stop_gradient_before_classification_head=True
  --contrast_mode=ALL_VIEWS
  --summation_location=OUTSIDE
  --denominator_mode=ALL
  --use_bias_weight_decay=True
  --stage_1_contrastive_loss_weight=1.0
  --stage_1_cross_entropy_loss_weight=0.0
  --stage_1_use_encoder_weight_decay=True
  --stage_1_use_projection_head_weight_decay=True
  --stage_1_use_classification_head_weight_decay=False
  --stage_1_update_encoder_batch_norm=True
  --stage_2_contrastive_loss_weight=0.0
  --stage_2_cross_entropy_loss_weight=1.0
  --stage_2_use_encoder_weight_decay=False
  --stage_2_use_projection_head_weight_decay=False
  --stage_2_use_classification_head_weight_decay=True
  --stage_2_update_encoder_batch_norm=False
)

# Positives are the samples of the same class.
SUPCON=(
  "${CONTRASTIVE[@]}"
  --use_labels=True
  --temperature=0.1
  --scale_by_temperature=True
  --use_projection_batch_norm=False
  --zero_initialize_classifier=False
)

SUPCON_IMAGENET=(
  "${SUPCON[@]}"
  --normalize_embedding=True
  --projection_head_layers=128
  --stage_1_optimizer=LARS
  --stage_2_epochs=90
  --stage_2_optimizer=RMSPROP
  --stage_2_base_learning_rate=0.05
  --stage_2_learning_rate_decay=EXPONENTIAL
  --stage_2_decay_rate=0.97
  --stage_2_epochs_per_decay=0.5
  --stage_2_weight_decay=1e-6
)

# Positives are the other views of the same sample.
SIMCLR=(
  "${CONTRASTIVE[@]}"
  --use_labels=False
  --scale_by_temperature=False
  --normalize_embedding=False
  --projection_head_layers=2048,2048,128
  --use_projection_batch_norm=True
  --zero_initialize_classifier=True
)

# The classifier of CIFAR-10, by the PyTorch code of the paper.
CIFAR10_CLASSIFIER=(
  --stage_2_epochs=100
  --stage_2_warmup_epochs=0
  --stage_2_optimizer=MOMENTUM
  --stage_2_base_learning_rate=2.5
  --stage_2_learning_rate_decay=PIECEWISE_LINEAR
  --stage_2_decay_rate=0.2
  --stage_2_decay_boundary_epochs=60,75,90
  --stage_2_weight_decay=0
)

# Contrasts are also features of earlier batches, by a slow copy of the model:
# what MoCo v2 (arXiv 2003.04297) sets for ImageNet, in both stages.
MOCO=(
  --batch_size=256
  --memory_momentum=0.999
  --normalize_embedding=False
  --projection_head_layers=2048,128
  --scale_by_temperature=False
  --augmentation_type=SIMCLR
  --augmentation_magnitude=0.5
  --use_pytorch_color_jitter=True
  --crop_area_range=0.2,1.0
  --blur_probability=0.5
  --stage_1_warmup_epochs=0
  --stage_1_optimizer=MOMENTUM
  --stage_1_learning_rate_decay=COSINE
  --stage_1_weight_decay=1e-4
  --stage_2_warmup_epochs=0
  --stage_2_optimizer=MOMENTUM
  --stage_2_learning_rate_decay=PIECEWISE_LINEAR
  --stage_2_weight_decay=0
)

# Stage 1 trains only the classifier, on an encoder from --reference_ckpt. This
# group comes after groups that set the same flags. A script that starts from a
# reference sets no flag of the encoder, stem or crop. These come from the
# reference or, if nothing is known about it, from the defaults, those of a
# ResNet-50 for ImageNet. The user's flags override both.
CLASSIFIER_ONLY=(
  --warm_start_encoder=True
  --stage_1_contrastive_loss_weight=0.0
  --stage_1_cross_entropy_loss_weight=1.0
  --stage_1_use_encoder_weight_decay=False
  --stage_1_use_projection_head_weight_decay=False
  --stage_1_use_classification_head_weight_decay=True
  --stage_1_update_encoder_batch_norm=False
  --stage_2_epochs=0
  --stage_2_warmup_epochs=0
)

# --- The main job on the embedded data set ----------------------------------

# Small enough for two CPU cores. ADAM learns in few steps with every seed; with
# MOMENTUM some seeds need twice as long. Crops are the only augmentation, since
# grey digits have no color, and a mirrored digit is not a digit. A projection
# head with one layer has no relu that a large rate could silence for good.
DIGITS=(
  --input_fn=digits
  --shard_per_host=False
  --resnet_architecture=RESNET_V1
  --resnet_depth=18
  --resnet_width=0.25
  --first_conv_kernel_size=3
  --first_conv_stride=1
  --use_initial_max_pool=False
  --projection_head_layers=64
  --image_size=16
  --augmentation_type=IDENTITY
  --crop_area_range=0.5,1.0
  --random_flip=False
  --eval_crop_method=CROP_THEN_RESIZE
  --crop_padding=0
  --batch_size=128
  --eval_batch_size=128
  --stage_1_epochs=60
  --stage_1_warmup_epochs=5
  --stage_1_optimizer=ADAM
  --stage_1_base_learning_rate=0.008
  --stage_1_weight_decay=1e-4
  --stage_2_epochs=10
  --stage_2_warmup_epochs=0
  --stage_2_optimizer=ADAM
  --stage_2_base_learning_rate=0.1
  --save_interval_steps=200
)
