#!/bin/bash
# SupCon with a memory, ResNet-50, ImageNet: for eight GPUs instead of a TPU pod.
# Published top-1: 79.1 (section 4.1 of the paper: batch 256, a memory of 8192).
# Its code is not public. Its author gives temperature and memory; the rest is
# MoCo v2 (200 + 100 epochs). Not run by us.
#
# Usage: scripts/supcon_memory_imagenet_resnet50.sh --mode=train_then_eval \
#          --use_tpu=False --num_gpus=8 --data_dir=DIR --model_dir=DIR [FLAGS]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/configs.sh"
run_main "${RESNET50[@]}" "${IMAGENET[@]}" "${SUPCON[@]}" "${MOCO[@]}" \
  --memory_size=8192 \
  --temperature=0.07 \
  --label_smoothing=0 \
  --stage_1_epochs=200 \
  --stage_1_base_learning_rate=0.03 \
  --stage_2_epochs=100 \
  --stage_2_base_learning_rate=30 \
  --stage_2_decay_rate=0.1 \
  --stage_2_decay_boundary_epochs=60,80 \
  "$@"
