#!/bin/bash
# SupCon, ResNet-50, CIFAR-10, as the PyTorch code of the paper trains it.
# Published top-1: 96.0 (1000 + 100 epochs). Not run by us.
#
# It is HobbitLong/SupContrast with batches of 1024, a rate of 0.5 that decays
# like a cosine and a temperature of 0.1; then batches of 512 and a rate of 5.
# That code multiplies the loss by temperature / 0.07, as the weight does here.
# Differences: its rate ends at 0.0005 instead of 0; its stage 2 has batches of
# 512 with half the rate, and only crops and mirror images.
#
# Usage: scripts/supcon_cifar10_resnet50_pytorch_recipe.sh \
#          --mode=train_then_eval --use_tpu=False --data_dir=DIR \
#          --model_dir=DIR [FLAGS]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/configs.sh"
run_main "${RESNET50[@]}" "${CIFAR10[@]}" "${SUPCON[@]}" \
  "${CIFAR10_CLASSIFIER[@]}" \
  --batch_size=1024 \
  --use_global_batch_norm=False \
  --normalize_embedding=False \
  --projection_head_layers=2048,128 \
  --scale_by_temperature=False \
  --stage_1_contrastive_loss_weight=1.4285714 \
  --stage_1_epochs=1000 \
  --stage_1_warmup_epochs=10 \
  --stage_1_optimizer=MOMENTUM \
  --stage_1_base_learning_rate=0.125 \
  --stage_1_learning_rate_decay=COSINE \
  --stage_1_weight_decay=1e-4 \
  "$@"
