#!/bin/bash
# SupCon with a memory, ResNet-50, CIFAR-10: for one or two GPUs.
# Published top-1: 96.1 (1000 epochs), by the PyTorch code
# zhangyifei01/MoCo-v2-SupContrast, whose stage 1 this follows. It classifies
# with a rate of 1.0; epochs of stage 2 are those of the other scripts here. Not
# run by us.
#
# Usage: scripts/supcon_memory_cifar10_resnet50.sh --mode=train_then_eval \
#          --use_tpu=False --data_dir=DIR --model_dir=DIR [FLAGS]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/configs.sh"
run_main "${RESNET50[@]}" "${CIFAR10[@]}" "${SUPCON[@]}" "${MOCO[@]}" \
  --memory_size=4096 \
  --temperature=0.2 \
  --stage_1_epochs=1000 \
  --stage_1_base_learning_rate=0.12 \
  --stage_2_epochs=100 \
  --stage_2_base_learning_rate=1 \
  --stage_2_decay_rate=0.2 \
  --stage_2_decay_boundary_epochs=60,75,90 \
  "$@"
