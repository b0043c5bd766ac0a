#!/bin/bash
# SupCon, ResNet-101, ImageNet, AutoAugment. Hardware: 128 TPU v3 cores.
# Published top-1 of ResNet-101: 80.2 (here 350 + 90 epochs).
#
# Usage: scripts/supcon_imagenet_resnet101.sh --mode=train_then_eval \
#          --tpu_name=NAME --data_dir=DIR --model_dir=DIR [FLAGS]
# --use_tpu=False for GPU or CPU.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/configs.sh"
run_main "${TPU[@]}" "${RESNET101[@]}" "${IMAGENET[@]}" \
  "${SUPCON_IMAGENET[@]}" \
  --batch_size=4096 \
  --augmentation_type=AUTOAUGMENT \
  --stage_1_epochs=350 \
  --stage_1_base_learning_rate=0.4 \
  --stage_1_weight_decay=1e-4 \
  "$@"
