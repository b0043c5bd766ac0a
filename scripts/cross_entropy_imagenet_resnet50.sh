#!/bin/bash
# Cross-entropy, ResNet-50, ImageNet, AutoAugment. Hardware: 128 TPU v3 cores.
# Published top-1: 78.2 (77.6 with the paper's own code; 200 epochs).
#
# Usage: scripts/cross_entropy_imagenet_resnet50.sh --mode=train_then_eval \
#          --tpu_name=NAME --data_dir=DIR --model_dir=DIR [FLAGS]
# --use_tpu=False for GPU or CPU.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/configs.sh"
run_main "${TPU[@]}" "${RESNET50[@]}" "${IMAGENET[@]}" "${CROSS_ENTROPY[@]}" \
  --batch_size=6144 \
  --augmentation_type=AUTOAUGMENT \
  --stage_1_epochs=200 \
  --stage_1_weight_decay=1e-4 \
  "$@"
