#!/bin/bash
# SimCLR, ResNet-50, CIFAR-10. Hardware: 32 TPU v3 cores.
# Published top-1: 93.6, by the PyTorch implementation; the TensorFlow one is
# slightly below (here 400 + 90 epochs).
#
# Usage: scripts/simclr_cifar10_resnet50.sh --mode=train_then_eval \
#          --tpu_name=NAME --data_dir=DIR --model_dir=DIR [FLAGS]
# --use_tpu=False for GPU or CPU.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/configs.sh"
run_main "${TPU[@]}" "${RESNET50[@]}" "${CIFAR10[@]}" "${SIMCLR[@]}" \
  --batch_size=1024 \
  --temperature=0.5 \
  --stage_1_epochs=400 \
  --stage_1_warmup_epochs=10 \
  --stage_1_optimizer=MOMENTUM \
  --stage_1_base_learning_rate=0.5 \
  --stage_1_learning_rate_decay=COSINE \
  --stage_1_weight_decay=1e-4 \
  --stage_2_epochs=90 \
  --stage_2_warmup_epochs=0 \
  --stage_2_optimizer=MOMENTUM \
  --stage_2_base_learning_rate=0.25 \
  --stage_2_learning_rate_decay=COSINE \
  --stage_2_weight_decay=0 \
  "$@"
