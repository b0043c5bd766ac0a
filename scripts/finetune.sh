#!/bin/bash
# Fine-tunes a pretrained encoder with a new classifier on any data set.
# Hardware: one GPU; or a TPU with --tpu_name and a larger batch. Published
# top-1: none.
#
# Usage: scripts/finetune.sh REFERENCE --input_fn=NAME \
#          --mode=train_then_eval --use_tpu=False --data_dir=DIR --model_dir=DIR \
#          [FLAGS]
#
# REFERENCE is a checkpoint, a training directory, an export, or a TF-Hub module
# (a directory or a URL). The whole network is trained with cross-entropy at a
# small learning rate; the new classifier has as many outputs as the data set
# has classes. Architecture, stem, image size, crop and whitening come from the
# reference, as far as they are known; your flags override them.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/configs.sh"
require_reference "$@"
run_main "${TPU[@]}" "${IMAGENET_INPUT[@]}" "${CROSS_ENTROPY[@]}" \
  --warm_start_encoder=True \
  --batch_norm_in_train_mode=True \
  --batch_size=256 \
  --augmentation_type=IDENTITY \
  --label_smoothing=0 \
  --zero_initialize_classifier=True \
  --stage_1_epochs=30 \
  --stage_1_warmup_epochs=1 \
  --stage_1_base_learning_rate=0.01 \
  --stage_1_learning_rate_decay=COSINE \
  --stage_1_weight_decay=1e-4 \
  "${REFERENCE_FLAGS[@]}"
