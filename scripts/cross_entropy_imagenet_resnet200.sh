#!/bin/bash
# Cross-entropy, ResNet-200, ImageNet, Stacked RandAugment. Hardware: 256 TPU v3
# cores. The baseline of supcon_imagenet_resnet200.sh (81.4 there; 700 epochs).
#
# Usage: scripts/cross_entropy_imagenet_resnet200.sh --mode=train_then_eval \
#          --tpu_name=NAME --data_dir=DIR --model_dir=DIR [FLAGS]
# --use_tpu=False for GPU or CPU.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/configs.sh"
run_main "${TPU[@]}" "${RESNET200[@]}" "${IMAGENET[@]}" "${CROSS_ENTROPY[@]}" \
  --batch_size=4096 \
  --augmentation_type=STACKED_RANDAUGMENT \
  --stage_1_epochs=700 \
  --stage_1_weight_decay=1e-4 \
  "$@"
