#!/bin/bash
# SupCon, ResNet-200, ImageNet, Stacked RandAugment. Hardware: 256 TPU v3 cores.
# Published top-1: 81.4 (700 + 90 epochs).
#
# Usage: scripts/supcon_imagenet_resnet200.sh --mode=train_then_eval \
#          --tpu_name=NAME --data_dir=DIR --model_dir=DIR [FLAGS]
# --use_tpu=False for GPU or CPU.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/configs.sh"
run_main "${TPU[@]}" "${RESNET200[@]}" "${IMAGENET[@]}" \
  "${SUPCON_IMAGENET[@]}" \
  --batch_size=4096 \
  --augmentation_type=STACKED_RANDAUGMENT \
  --stage_1_epochs=700 \
  --stage_1_base_learning_rate=0.2 \
  --stage_1_weight_decay=1e-4 \
  "$@"
