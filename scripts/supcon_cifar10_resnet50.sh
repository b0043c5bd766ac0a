#!/bin/bash
# SupCon, ResNet-50, CIFAR-10. Hardware: 32 TPU v3 cores.
# Published top-1: 96.0, by the PyTorch implementation; the TensorFlow one is
# slightly below (1000 + 100 epochs).
#
# Usage: scripts/supcon_cifar10_resnet50.sh --mode=train_then_eval \
#          --tpu_name=NAME --data_dir=DIR --model_dir=DIR [FLAGS]
# --use_tpu=False for GPU or CPU.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/configs.sh"
run_main "${TPU[@]}" "${RESNET50[@]}" "${CIFAR10[@]}" "${SUPCON[@]}" \
  "${CIFAR10_CLASSIFIER[@]}" \
  --batch_size=4096 \
  --use_global_batch_norm=False \
  --normalize_embedding=False \
  --projection_head_layers=2048,128 \
  --stage_1_epochs=1000 \
  --stage_1_warmup_epochs=10 \
  --stage_1_optimizer=MOMENTUM \
  --stage_1_base_learning_rate=0.5 \
  --stage_1_weight_decay=1e-4 \
  "$@"
