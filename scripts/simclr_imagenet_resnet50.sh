#!/bin/bash
# SimCLR, ResNet-50, ImageNet. Hardware: 128 TPU v3 cores.
# Published top-1: 70.2 (here 100 + 90 epochs).
#
# Usage: scripts/simclr_imagenet_resnet50.sh --mode=train_then_eval \
#          --tpu_name=NAME --data_dir=DIR --model_dir=DIR [FLAGS]
# --use_tpu=False for GPU or CPU.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/configs.sh"
run_main "${TPU[@]}" "${RESNET50[@]}" "${IMAGENET[@]}" "${SIMCLR[@]}" \
  --batch_size=6144 \
  --augmentation_type=SIMCLR \
  --temperature=0.1 \
  --stage_1_epochs=100 \
  --stage_1_optimizer=LARS \
  --stage_1_base_learning_rate=0.3 \
  --stage_1_weight_decay=1e-4 \
  --stage_2_epochs=90 \
  --stage_2_optimizer=NESTEROV \
  --stage_2_base_learning_rate=0.1 \
  --stage_2_weight_decay=1e-6 \
  "$@"
