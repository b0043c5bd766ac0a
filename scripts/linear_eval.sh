#!/bin/bash
# Linear evaluation of a pretrained encoder on any data set: trains only the
# classifier. Hardware: one GPU, or a CPU for a small data set.
# Published top-1: none.
#
# Usage: scripts/linear_eval.sh REFERENCE --input_fn=NAME \
#          --mode=train_then_eval --use_tpu=False --data_dir=DIR --model_dir=DIR \
#          [FLAGS]
#
# REFERENCE: see finetune.sh. The encoder and its batch norm statistics do not
# change. It sees the evaluation crop of every training image, without
# augmentation, so its embeddings are computed only once, and an epoch costs
# almost nothing. --train_on_eval_views=False augments, and recomputes the
# embeddings in every epoch.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/configs.sh"
require_reference "$@"
run_main "${TPU[@]}" "${IMAGENET_INPUT[@]}" "${SUPCON[@]}" \
  "${CLASSIFIER_ONLY[@]}" \
  --normalize_embedding=True \
  --projection_head_layers=128 \
  --train_on_eval_views=True \
  --num_views=1 \
  --batch_size=256 \
  --augmentation_type=IDENTITY \
  --label_smoothing=0 \
  --zero_initialize_classifier=True \
  --stage_1_epochs=90 \
  --stage_1_warmup_epochs=0 \
  --stage_1_optimizer=MOMENTUM \
  --stage_1_base_learning_rate=5.0 \
  --stage_1_learning_rate_decay=COSINE \
  --stage_1_weight_decay=0 \
  "${REFERENCE_FLAGS[@]}"
