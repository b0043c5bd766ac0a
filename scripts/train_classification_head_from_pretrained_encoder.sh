#!/bin/bash
# Trains a classifier on a frozen, pretrained encoder, ImageNet. Hardware: TPU
# v3, as many cores as the batch needs. Published top-1: none.
#
# Usage: scripts/train_classification_head_from_pretrained_encoder.sh \
#          REFERENCE --mode=train_then_eval \
#          --tpu_name=NAME --data_dir=DIR --model_dir=DIR [FLAGS]
# --use_tpu=False for GPU or CPU.
#
# REFERENCE is a checkpoint, a training directory, an export, or a TF-Hub
# module. --reference_ckpt=REFERENCE among the flags has the same effect. The
# encoder, image size and crop come from the reference, see finetune.sh. For the
# encoders of supcon_imagenet_*.sh add --normalize_embedding=True.
#
# The published script of this name cannot work: a line continuation is missing
# and a flag group is not defined, so nothing is warm-started, stage 1 trains
# the contrastive loss and stage 2 runs its default of 200 epochs. This script
# has the published values except for the group CLASSIFIER_ONLY: the encoder
# comes from REFERENCE and does not change, nor do its batch norm statistics;
# the 90 epochs of stage 1 train the classifier with cross-entropy, and only its
# weights decay; there is no stage 2.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/configs.sh"
require_reference "$@"
run_main "${TPU[@]}" "${IMAGENET_INPUT[@]}" "${SIMCLR[@]}" \
  "${CLASSIFIER_ONLY[@]}" \
  --batch_size=6144 \
  --augmentation_type=SIMCLR \
  --stage_1_epochs=90 \
  --stage_1_optimizer=NESTEROV \
  --stage_1_base_learning_rate=0.1 \
  --stage_1_weight_decay=1e-6 \
  "${REFERENCE_FLAGS[@]}"
