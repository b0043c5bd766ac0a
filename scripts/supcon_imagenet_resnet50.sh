#!/bin/bash
# SupCon, ResNet-50, ImageNet, AutoAugment. Hardware: 128 TPU v3 cores.
# Published top-1: 78.7 (350 + 90 epochs; 200 + 10 are likely to suffice).
#
# Usage: scripts/supcon_imagenet_resnet50.sh --mode=train_then_eval \
#          --tpu_name=NAME --data_dir=DIR --model_dir=DIR [FLAGS]
# --use_tpu=False for GPU or CPU.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/configs.sh"
run_main "${TPU[@]}" "${RESNET50[@]}" "${IMAGENET[@]}" \
  "${SUPCON_IMAGENET[@]}" \
  --batch_size=6144 \
  --augmentation_type=AUTOAUGMENT \
  --stage_1_epochs=350 \
  --stage_1_base_learning_rate=0.4 \
  --stage_1_weight_decay=1e-3 \
  "$@"
