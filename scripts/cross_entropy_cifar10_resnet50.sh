#!/bin/bash
# Cross-entropy, ResNet-50, CIFAR-10. Hardware: 32 TPU v3 cores.
# Published top-1: 95.0, by the PyTorch implementation; the TensorFlow one is
# slightly below (here 1000 epochs).
#
# Usage: scripts/cross_entropy_cifar10_resnet50.sh --mode=train_then_eval \
#          --tpu_name=NAME --data_dir=DIR --model_dir=DIR [FLAGS]
# --use_tpu=False for GPU or CPU.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/configs.sh"
run_main "${TPU[@]}" "${RESNET50[@]}" "${CIFAR10[@]}" "${CROSS_ENTROPY[@]}" \
  --batch_size=1024 \
  --stage_1_epochs=1000 \
  --stage_1_weight_decay=5e-4 \
  "$@"
