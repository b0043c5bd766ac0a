"""Plants small slips in the code and counts which ones the tests notice.

  python -m tests.mutants [--only=PATTERN] [--list] [--output=FILE.json]

Not in the default suite: all of them take some 20 minutes of two cores. Each
mutant is a slip that somebody could make: another sign, an edge of the graph
left out, a table with a typo. It is planted in a copy of the tree, alone, and
the tests of its own module are run. A mutant that survives is a test that is
missing, unless it changes nothing that anybody could see.

Tests that are chosen must pass where nothing is planted: they are run so, too,
unless --unplanted=False.

TensorFlow is imported once. Every run is a fork of the process that has done
so, in which nothing of supcon is imported yet.
"""

# ruff: noqa: E501
# (Old texts stand here as they do in the code.)

import argparse
import collections
import json
import os
import pathlib
import re
import shlex
import shutil
import signal
import sys
import tempfile
import time
from typing import NamedTuple

ROOT = pathlib.Path(__file__).resolve().parent.parent

_TIMEOUT_SECONDS = 600.0
_LEFT_OUT = ('.git', '.venv', '__pycache__', '*.pyc', '.pytest_cache')

# Exit codes of pytest. Code that fails when it is imported stops the collection.
_PASSED, _FAILED, _NOT_COLLECTED = 0, 1, 2

# What becomes of a mutant.
CAUGHT = 'caught'
SURVIVED = 'SURVIVED'
BROKEN = 'BROKEN'  # The tests could not be run, or fail without it, too.


class Mutant(NamedTuple):
  """A slip.

  Attributes:
    name: Short, and no other one's.
    file: Below the root of the tree.
    old: Text that stands in the file once.
    new: What stands there instead.
    tests: Arguments of pytest: the files, perhaps -k and names.
    what: What it is, in words.
  """

  name: str
  file: str
  old: str
  new: str
  tests: str
  what: str


# Where things are; what follows speaks of them by these names.
_MAIN = 'main.py'
_LOSSES = 'supcon/losses.py'
_PAIRWISE = 'supcon/pairwise.py'
_REPLICAS = 'supcon/compute/replicas.py'
_LOCKS = 'supcon/runs/locks.py'
_PROCESSES = 'supcon/runs/processes.py'
_RETRIES = 'supcon/runs/retries.py'
_LAYERS = 'supcon/models/layers.py'
_HEADS = 'supcon/models/heads.py'
_RESNET = 'supcon/models/resnet.py'
_CONTRASTIVE = 'supcon/models/contrastive.py'
_STAGES = 'supcon/training/stages.py'
_STEPS = 'supcon/training/steps.py'
_OBJECTIVES = 'supcon/training/objectives.py'
_METRICS = 'supcon/training/metrics.py'
_MODEL_FN = 'supcon/training/model_fn.py'
_POLICIES = 'supcon/data/views/policies.py'
_CROPS = 'supcon/data/views/crops.py'
_PREPROCESSING = 'supcon/data/views/preprocessing.py'
_IMAGE_FILES = 'supcon/data/views/image_files.py'
_FOLDER = 'supcon/data/sources/folder.py'
_LISTING = 'supcon/data/sources/listing.py'
_FROZEN = 'supcon/jobs/fixed_embeddings.py'
_EVALUATION = 'supcon/jobs/evaluation.py'
_TRAINING = 'supcon/jobs/training.py'
_CHANGES = 'supcon/config/changes.py'
_CHECKPOINT_FILES = 'supcon/runs/checkpoint_files.py'
_COUNTING = 'supcon/training/positions.py'
_COLORS = 'supcon/data/views/colors.py'
_FAULTS = 'supcon/data/sources/faults.py'
_IMAGE_OPS = 'supcon/data/views/image_ops.py'
_ORDER = 'supcon/data/order.py'
_SEEDS = 'supcon/data/seeds.py'
_WHITENING = 'supcon/data/whitening.py'
_DEVICES = 'supcon/compute/devices.py'
_FACTS = 'supcon/training/facts.py'
_FACTS_KEEPER = 'supcon/training/facts_keeper.py'
_HPARAMS = 'supcon/config/hparams.py'
_MODEL_DIRS = 'supcon/runs/model_dirs.py'
_EMBEDDINGS = 'supcon/serving/embeddings.py'
_NEIGHBOURS = 'supcon/serving/neighbours.py'
_NEAREST = 'supcon/evaluation/nearest.py'
_MODEL_OUTPUTS = 'supcon/evaluation/model_outputs.py'
_CALIBRATION = 'supcon/evaluation/calibration.py'
_KNN = 'supcon/evaluation/knn.py'
_GEOMETRY = 'supcon/evaluation/geometry.py'
_MCE = 'supcon/evaluation/robustness.py'
_ROBUSTNESS = 'supcon/jobs/robustness.py'
_SIGNALS = 'supcon/runs/signals.py'
_STATUS = 'supcon/runs/status.py'
_COMPARISON = 'supcon/reports/comparison.py'
_RUN_RECORDS = 'supcon/reports/run_records.py'
_HOOKS = 'supcon/training/hooks.py'
_LARS = 'supcon/training/lars.py'
_OPTIMIZERS = 'supcon/training/optimizers.py'
_ROLLBACKS = 'supcon/training/rollbacks.py'
_SCHEDULES = 'supcon/training/schedules.py'
_WORKERS = 'supcon/compute/workers.py'

_OF_MAIN = 'tests/main_signals_test.py'
_OF_LOSSES = 'tests/losses_test.py'
_OF_LOCKS = 'tests/runs/locks_test.py'
_OF_RETRIES = 'tests/runs/retries_test.py'
_OF_SCRIPTS = 'tests/scripts_test.py -k "flags or transfers"'
_OF_LAYERS = 'tests/models/layers_test.py'
_OF_HEADS = 'tests/models/heads_test.py'
_OF_RESNET = 'tests/models/resnet_test.py'
_OF_CONTRASTIVE = 'tests/models/contrastive_test.py'
_OF_STAGES = 'tests/training/stages_test.py'
_OF_STEPS = 'tests/training/steps_test.py'
_OF_MICRO_BATCHES = 'tests/training/several_replicas_test.py -k micro'
_OF_OBJECTIVES = 'tests/training/objectives_test.py'
_OF_METRICS = 'tests/training/metrics_test.py'
_OF_POLICIES = 'tests/data/views/policies_test.py'
_OF_FOLDER = 'tests/data/sources/folder_test.py'
_OF_FROZEN = 'tests/jobs_test.py'

# The kinds of slips that were once found not to be noticed.
_ONCE_UNNOTICED = (
  Mutant(
    'stage_of_the_last_step',
    _EVALUATION,
    'run.plan.stage_that_made(step)',
    'run.plan.stage_at(step)',
    'tests/jobs_test.py',
    "the loss of a stage's last checkpoint is that of the next stage",
  ),
  Mutant(
    'signal_as_foreseen_error',
    _MAIN,
    '    signals.check()  # It may be what some code makes of a signal.\n',
    '',
    _OF_MAIN,
    'a signal that surfaces as a foreseen error ends with 1, not 75',
  ),
  Mutant(
    'embeddings_by_sample',
    _CONTRASTIVE,
    'return self._heads(tf.concat(views, axis=0), len(views), training)',
    'return self._heads(\n'
    '      tf.reshape(x, [-1, x.shape[-1]]), len(views), training\n    )',
    _OF_CONTRASTIVE + ' -k embeddings',
    'embeddings of two views are mixed up with those of other samples',
  ),
  Mutant(
    'restored_nan_is_rolled_back',
    _TRAINING,
    '    if error.step < step:  # It was restored, not trained.\n'
    '      raise error\n',
    '',
    'tests/divergence_main_test.py -k restored',
    'what is NaN in the checkpoint itself leads to a rollback',
  ),
  Mutant(
    'frozen_under_a_strategy',
    _FROZEN,
    'run.devices.strategy is None\n',
    'True\n',
    _OF_FROZEN,
    'embeddings are frozen where several devices train',
  ),
  Mutant(
    'frozen_on_tpu',
    _FROZEN,
    '    and not run.options.use_tpu\n',
    '',
    _OF_FROZEN,
    'embeddings are frozen on TPU',
  ),
  Mutant(
    'frozen_with_augmentation',
    _FROZEN,
    '    and run.params.input_data.preprocessing.train_on_eval_views\n',
    '',
    _OF_FROZEN,
    'embeddings are frozen though the views change',
  ),
  Mutant(
    'frozen_with_batch_norm',
    _FROZEN,
    '    and not run.trains_batch_norm\n',
    '',
    _OF_FROZEN,
    'embeddings are frozen though batch norm sees the batch',
  ),
  Mutant(
    'frozen_with_one_stage',
    _FROZEN,
    'and all(\n',
    'and any(\n',
    _OF_FROZEN,
    'embeddings are frozen though one of the stages trains the encoder',
  ),
  Mutant(
    'frozen_too_large',
    _FROZEN,
    '    and _num_bytes(run) <= MAX_BYTES\n',
    '',
    _OF_FROZEN,
    'embeddings are frozen whatever they take',
  ),
  Mutant(
    'frozen_with_decay',
    _FROZEN,
    'not (stage.weight_decay and stage.use_encoder_weight_decay)',
    'not (stage.weight_decay and not stage.use_encoder_weight_decay)',
    _OF_FROZEN,
    'weight decay of the encoder is overlooked',
  ),
  Mutant(
    'frozen_with_contrastive_loss',
    _FROZEN,
    'stage.contrastive_loss_weight == 0\n    and ',
    '',
    _OF_FROZEN,
    'the contrastive loss is overlooked',
  ),
  Mutant(
    'frozen_without_stop_gradient',
    _FROZEN,
    '    and architecture.stop_gradient_before_classification_head\n',
    '',
    _OF_FROZEN,
    'the gradient of the classifier is overlooked',
  ),
  Mutant(
    'probability_of_imagenet_policy',
    _POLICIES,
    "(('color', 0.4, 7), ('equalize', 0.6, 0))",
    "(('color', 0.6, 7), ('equalize', 0.6, 0))",
    _OF_POLICIES + ' -k "polic or operations"',
    'a probability of the ImageNet policy',
  ),
  Mutant(
    'operation_of_imagenet_policy',
    _POLICIES,
    "(('shear_y', 0.8, 0), ('color', 0.6, 4))",
    "(('shear_x', 0.8, 0), ('color', 0.6, 4))",
    _OF_POLICIES + ' -k "polic or operations"',
    'an operation of the ImageNet policy',
  ),
  Mutant(
    'level_of_cifar_policy',
    _POLICIES,
    "(('rotate', 0.7, 2), ('translate_x', 0.3, 9))",
    "(('rotate', 0.7, 2), ('translate_x', 0.3, 8))",
    _OF_POLICIES + ' -k "polic or operations"',
    'a level of the CIFAR-10 policy',
  ),
  Mutant(
    'order_of_cifar_policy',
    _POLICIES,
    "(('color', 0.9, 9), ('equalize', 0.6, 6))",
    "(('equalize', 0.6, 6), ('color', 0.9, 9))",
    _OF_POLICIES + ' -k "polic or operations"',
    'the order in a pair of the CIFAR-10 policy',
  ),
  Mutant(
    'solarize_of_cifar_policy',
    _POLICIES,
    'augment.solarize, lambda level: 256 - _whole(256)(level)',
    'augment.solarize, _whole(256)',
    _OF_POLICIES + ' -k "polic or operations or strengths"',
    'in the CIFAR-10 policy a higher level inverts less',
  ),
  Mutant(
    'randaugment_operation',
    _POLICIES,
    'Operation(augment.solarize_add, _whole(110)),',
    'Operation(augment.solarize_add, _whole(100)),',
    _OF_POLICIES + ' -k "polic or operations or strengths"',
    'a strength of RandAugment',
  ),
  Mutant(
    'rate_of_finetune',
    'scripts/finetune.sh',
    '--stage_1_base_learning_rate=0.01 ',
    '--stage_1_base_learning_rate=0.1 ',
    _OF_SCRIPTS,
    'the rate of fine-tuning',
  ),
  Mutant(
    'decay_of_finetune',
    'scripts/finetune.sh',
    '--stage_1_weight_decay=1e-4 ',
    '--stage_1_weight_decay=1e-3 ',
    _OF_SCRIPTS,
    'the weight decay of fine-tuning',
  ),
  Mutant(
    'rate_of_linear_eval',
    'scripts/linear_eval.sh',
    '--stage_1_base_learning_rate=5.0 ',
    '--stage_1_base_learning_rate=0.5 ',
    _OF_SCRIPTS,
    'the rate of the linear evaluation',
  ),
  Mutant(
    'group_of_linear_eval',
    'scripts/configs.sh',
    '  --warm_start_encoder=True\n',
    '',
    _OF_SCRIPTS,
    'the encoder of the group CLASSIFIER_ONLY begins at random',
  ),
  Mutant(
    'classifier_begins_larger',
    _HEADS,
    'tf1.initializers.glorot_uniform()',
    'tf1.initializers.he_uniform()',
    _OF_HEADS,
    'the initial distribution of the classifier is another one',
  ),
  Mutant(
    'classifier_begins_normal',
    _HEADS,
    'tf1.initializers.glorot_uniform()',
    'tf1.initializers.glorot_normal()',
    _OF_HEADS,
    'the classifier begins normally distributed',
  ),
  Mutant(
    'dense_begins_larger',
    _HEADS,
    'random_normal(stddev=0.01)',
    'random_normal(stddev=0.02)',
    _OF_HEADS,
    'the initial deviation of the projection head',
  ),
  Mutant(
    'convolution_begins_larger',
    _LAYERS,
    "      'conv2d/kernel',\n"
    '      [kernel_size, kernel_size, in_channels, out_channels],\n'
    '      tf1.initializers.variance_scaling(),\n',
    "      'conv2d/kernel',\n"
    '      [kernel_size, kernel_size, in_channels, out_channels],\n'
    '      tf1.initializers.variance_scaling(2.0),\n',
    _OF_LAYERS,
    'the initial variance of a convolution',
  ),
  Mutant(
    'group_convolution_begins_larger',
    _LAYERS,
    '      [kernel_size, kernel_size, in_channels // groups, out_channels],\n'
    '      tf1.initializers.variance_scaling(),\n',
    '      [kernel_size, kernel_size, in_channels // groups, out_channels],\n'
    "      tf1.initializers.variance_scaling(mode='fan_out'),\n",
    _OF_LAYERS,
    'the initial variance of a grouped convolution',
  ),
  Mutant(
    'gamma_begins_elsewhere',
    _LAYERS,
    "self._gamma = add('gamma', gamma)",
    "self._gamma = add('gamma', 0.0)",
    _OF_LAYERS,
    'gamma begins at 0 everywhere',
  ),
  Mutant(
    'seed_of_the_warp',
    _PREPROCESSING,
    'tf.unstack(chance.warp_seeds),',
    'tf.unstack(chance.policy_seeds),',
    'tests/data/views/preprocessing_test.py -k seeds',
    'the warp takes the seed of the policy',
  ),
  Mutant(
    'nothing_is_the_lowest',
    _PAIRWISE,
    '_NOTHING = tf.float32.min / 2',
    '_NOTHING = tf.float32.min',
    'tests/losses_test.py -k without_negatives',
    'a difference with a masked logit overflows',
  ),
  Mutant(
    'stride_of_bitmaps_in_bytes',
    _IMAGE_FILES,
    'stride = (bits_per_row + 31) // 32 * 4',
    'stride = (bits_per_row + 7) // 8',
    'tests/data/views/image_files_test.py -k "bmp or bit"',
    'rows of a BMP are not padded to 4 bytes',
  ),
  Mutant(
    'stride_of_bitmaps_rounded_down',
    _IMAGE_FILES,
    'stride = (bits_per_row + 31) // 32 * 4',
    'stride = (bits_per_row + 24) // 32 * 4',
    'tests/data/views/image_files_test.py -k "bmp or bit"',
    'rows of a 1-bit BMP whose last 4 bytes hold few pixels are cut',
  ),
  Mutant(
    'order_without_the_class',
    _FOLDER,
    "hashlib.md5(f'{found}/{file}'.encode())",
    'hashlib.md5(file.encode())',
    _OF_FOLDER + ' -k "order or ids"',
    'files of one name in all classes follow one another',
  ),
  Mutant(
    'variance_without_a_floor',
    _LAYERS,
    'tf.maximum(square - tf.square(offset), 0.0)',
    'square - tf.square(offset)',
    _OF_LAYERS,
    'the variance over replicas may be negative',
  ),
  Mutant(
    'pooling_in_bfloat16',
    _RESNET,
    'tf.reduce_mean(tf.cast(x, tf.float32), [1, 2])',
    'tf.cast(tf.reduce_mean(x, [1, 2]), tf.float32)',
    _OF_RESNET + ' -k float32',
    'the mean over places is taken in bfloat16',
  ),
  Mutant(
    'summaries_are_not_flushed',
    _METRICS,
    'return tf.raw_ops.FlushSummaryWriter(writer=writer)',
    'return written',
    _OF_METRICS,
    'training summaries stay in memory',
  ),
  Mutant(
    'powers_change_in_a_bad_step',
    _OPTIMIZERS,
    '    *optimizer._non_slot_variables(),  # pylint: disable=protected-access\n',
    '',
    _OF_STEPS + ' -k "bad_step"',
    "a bad step on TPU moves the powers of Adam's betas",
  ),
  Mutant(
    'measured_after_the_update',
    _MODEL_FN,
    'with tf.control_dependencies(before):',
    'with tf.control_dependencies([]):',
    'tests/training/model_fn_test.py -k "waits or tpu"',
    'nothing has the update wait for what is measured before it',
  ),
  Mutant(
    'kept_after_the_update',
    _MODEL_FN,
    '      before.append(kept)\n',
    '',
    'tests/training/model_fn_test.py -k "waits or tpu"',
    'on TPU the first bad report may be kept after the update, or never',
  ),
  Mutant(
    'read_after_the_update',
    _REPLICAS,
    'with tf.control_dependencies([tf.group(before)]):',
    'with tf.control_dependencies([]):',
    'tests/compute/replicas_test.py -k tpu',
    'on TPU what is kept may be read after the update',
  ),
  Mutant(
    'statistics_after_the_update',
    _STEPS,
    'with tf.control_dependencies([made]):',
    'with tf.control_dependencies([]):',
    _OF_STEPS + ' -k "batch_norm or statistics"',
    'statistics are not part of the step',
  ),
  Mutant(
    'aborted_is_for_good',
    _RETRIES,
    '  tf.errors.AbortedError,\n',
    '',
    _OF_RETRIES,
    'an error that passes counts as one that does not',
  ),
  Mutant(
    'deadline_is_for_good',
    _RETRIES,
    '  tf.errors.DeadlineExceededError,\n',
    '',
    _OF_RETRIES,
    'another error that passes counts as one that does not',
  ),
  Mutant(
    'birth_one_field_early',
    _PROCESSES,
    'state, birth = fields[0], fields[19]',
    'state, birth = fields[0], fields[18]',
    _OF_LOCKS + ' -k "number or dead or birth"',
    'the birth of a process is read from the field before it',
  ),
  Mutant(
    'birth_one_field_late',
    _PROCESSES,
    'state, birth = fields[0], fields[19]',
    'state, birth = fields[0], fields[20]',
    _OF_LOCKS + ' -k "number or dead or birth"',
    'the birth of a process is read from the field after it',
  ),
)

# Others, from all rooms.
_OTHERS = (
  Mutant(
    'temperature_multiplies',
    _PAIRWISE,
    'logits = similarities / temperature',
    'logits = similarities * temperature',
    'tests/losses_test.py',
    'similarities are multiplied by the temperature',
  ),
  Mutant(
    'loss_over_temperature',
    _LOSSES,
    '    loss *= temperature\n',
    '    loss /= temperature\n',
    'tests/losses_test.py',
    'the loss is divided by the temperature',
  ),
  Mutant(
    'own_view_is_a_positive',
    _PAIRWISE,
    'is_alike & compare(tf.not_equal, anchors.columns, columns)',
    'is_alike',
    'tests/losses_test.py',
    'the anchor is its own positive',
  ),
  Mutant(
    'cap_leaves_out_one',
    _PAIRWISE,
    'tf.cast(rank <= most, tf.int32)',
    'tf.cast(rank < most, tf.int32)',
    'tests/losses_test.py',
    'one positive too few under a cap',
  ),
  Mutant(
    'nothing_pushes',
    _PAIRWISE,
    'return push * share - pull\n',
    'return share - pull\n',
    'tests/losses_test.py',
    'the denominator pushes with a weight of 1',
  ),
  Mutant(
    'slope_of_the_wrong_side',
    _PAIRWISE,
    'slope = tf.sigmoid(-log_ratio)',
    'slope = tf.sigmoid(log_ratio)',
    'tests/losses_test.py',
    'the gradient of ONE_POSITIVE',
  ),
  Mutant(
    'inside_without_the_count',
    _PAIRWISE,
    'peak + (log_sum - tf.math.log(count))',
    'peak + log_sum',
    'tests/losses_test.py',
    'summation INSIDE the log is a sum, not a mean',
  ),
  Mutant(
    'tile_of_the_wrong_weight',
    _PAIRWISE,
    'slopes, weight * tf.gather(tiles.features, index), transpose_a=True',
    'slopes, weight * tf.gather(tiles.features, 0), transpose_a=True',
    'tests/losses_test.py -k tiles',
    'all tiles have the anchors of the first in the gradient',
  ),
  Mutant(
    'own_sample_is_not_special',
    _PAIRWISE,
    'is_positive &= is_own | is_first',
    'is_positive &= is_first',
    'tests/losses_test.py',
    'a cap leaves out other views of the same sample',
  ),
  Mutant(
    'smoothing_over_the_others',
    _LOSSES,
    'label_smoothing / classes',
    'label_smoothing / (classes - 1)',
    'tests/losses_test.py -k cross_entropy',
    'smoothing is shared by the other classes alone',
  ),
  Mutant(
    'divided_again_by_positives',
    _LOSSES,
    '  if views == 1:  # As published',
    '  if views <= 2:  # As published',
    'tests/losses_test.py',
    'two views are treated as a single one',
  ),
  Mutant(
    'padding_is_a_number',
    _LOSSES,
    '    features = tf.where(is_valid[:, None, None], features, 0.0)\n',
    '    pass\n',
    'tests/losses_test.py -k padding',
    'what padding holds reaches the others',
  ),
  Mutant(
    'halves_are_ids',
    _LOSSES,
    '    is_id &= tf.equal(ids, tf.floor(ids))\n',
    '    pass\n',
    'tests/losses_test.py -k "ids or known or nan"',
    'a class id of 1.5 is taken',
  ),
  Mutant(
    'infinite_contrasts_pass',
    _PAIRWISE,
    'return tf.where(is_finite, features, np.nan)',
    'return features',
    'tests/losses_test.py -k "number or nan"',
    'a contrast at -infinity is overlooked',
  ),
  Mutant(
    'gradients_are_summed',
    _REPLICAS,
    '(total(gradient / count), variable)',
    '(total(gradient), variable)',
    'tests/compute/replicas_test.py',
    'the gradient is the sum over replicas',
  ),
  Mutant(
    'mean_is_a_sum',
    _REPLICAS,
    'return sum(x) / num_replicas()',
    'return sum(x)',
    'tests/compute/replicas_test.py',
    'the mean over replicas is a sum',
  ),
  Mutant(
    'gather_spreads_nan',
    _REPLICAS,
    'blocks = tf.where(is_mine, x[tf.newaxis], tf.zeros([], x.dtype))',
    'blocks = x[tf.newaxis] * tf.cast(is_mine, x.dtype)',
    'tests/compute/replicas_test.py',
    'NaN of one replica reaches the blocks of all',
  ),
  Mutant(
    'default_precision',
    _REPLICAS,
    'xla_data_pb2.PrecisionConfig.HIGHEST',
    'xla_data_pb2.PrecisionConfig.DEFAULT',
    'tests/compute/replicas_test.py -k tpu',
    'a TPU multiplies features in bfloat16',
  ),
  Mutant(
    'bad_steps_count',
    _REPLICAS,
    'tf.where(predicate, variable.read_value(), value)',
    'tf.where(predicate, value, variable.read_value())',
    _OF_STEPS + ' -k bad_step',
    'on TPU good steps are taken back',
  ),
  Mutant(
    'steps_are_rounded',
    _SCHEDULES,
    'return int(epoch * self.steps_per_epoch)',
    'return round(epoch * self.steps_per_epoch)',
    'tests/training/schedules_test.py',
    'epochs become steps by rounding to the nearest',
  ),
  Mutant(
    'base_batch',
    _SCHEDULES,
    'BASE_BATCH_SIZE = 256',
    'BASE_BATCH_SIZE = 128',
    'tests/training/schedules_test.py',
    'rates are for another batch',
  ),
  Mutant(
    'warmup_begins_late',
    _SCHEDULES,
    'since_start < warmup_steps, since_start / warmup_steps',
    'since_start < warmup_steps, (since_start + 1) / warmup_steps',
    'tests/training/schedules_test.py',
    'warm-up begins above zero',
  ),
  Mutant(
    'rate_ends_early',
    _SCHEDULES,
    'tf.where(since_warmup > decay_steps, 0.0, factor)',
    'tf.where(since_warmup >= decay_steps, 0.0, factor)',
    'tests/training/schedules_test.py',
    'the rate is 0 a step too early',
  ),
  Mutant(
    'stage_begins_late',
    _SCHEDULES,
    'tf.cast(step >= next_starts, tf.int32)',
    'tf.cast(step > next_starts, tf.int32)',
    'tests/training/schedules_test.py',
    'a stage begins a step too late',
  ),
  Mutant(
    'boundary_counts',
    _SCHEDULES,
    'since_warmup[..., tf.newaxis] > boundaries',
    'since_warmup[..., tf.newaxis] >= boundaries',
    'tests/training/schedules_test.py',
    'a piecewise rate drops at its boundary',
  ),
  Mutant(
    'momentum',
    _OPTIMIZERS,
    '\nMOMENTUM = 0.9\n',
    '\nMOMENTUM = 0.99\n',
    'tests/training/optimizers_test.py',
    'the momentum',
  ),
  Mutant(
    'rmsprop_decay',
    _OPTIMIZERS,
    'RMSPROP_DECAY = 0.9',
    'RMSPROP_DECAY = 0.99',
    'tests/training/optimizers_test.py',
    'the decay of RMSProp',
  ),
  Mutant(
    'no_nesterov',
    _OPTIMIZERS,
    '    use_nesterov=True,\n',
    '',
    'tests/training/optimizers_test.py',
    'Nesterov is plain momentum',
  ),
  Mutant(
    'rmsprop_epsilon',
    _OPTIMIZERS,
    '    epsilon=stage.rmsprop_epsilon,\n',
    '',
    'tests/training/optimizers_test.py',
    'the epsilon of the flag is not used',
  ),
  Mutant(
    'trust_ratio_upside_down',
    _LARS,
    'eta * weight_norm / direction_norm',
    'eta * direction_norm / weight_norm',
    'tests/training/lars_test.py',
    'the trust ratio is turned over',
  ),
  Mutant(
    'lars_of_zero_weights',
    _LARS,
    'tf.logical_and(weight_norm > 0, direction_norm > 0)',
    'direction_norm > 0',
    'tests/training/lars_test.py',
    'a weight of 0 never moves',
  ),
  Mutant(
    'lars_adapts_all',
    _LARS,
    'adapt=whole not in self._unadapted',
    'adapt=True',
    'tests/training/lars_test.py',
    'biases are adapted',
  ),
  Mutant(
    'lars_decays_all',
    _LARS,
    'weight_decay=0.0 if whole in self._undecayed else self._weight_decay',
    'weight_decay=self._weight_decay',
    'tests/training/lars_test.py',
    'batch norm decays',
  ),
  Mutant(
    'lars_without_looking_ahead',
    _LARS,
    'step = momentum * new_velocity + push if use_nesterov else new_velocity',
    'step = new_velocity',
    'tests/training/lars_test.py',
    'LARS with Nesterov does not look ahead',
  ),
  Mutant(
    'zero_weight_counts',
    _OBJECTIVES,
    '    if weight:  # 0 * loss',
    '    if True:  # 0 * loss',
    _OF_OBJECTIVES,
    'a loss of weight 0 is differentiated',
  ),
  Mutant(
    'lars_rate_of_this_step',
    _OPTIMIZERS,
    'lars_rates = plan.learning_rates(step + 1)',
    'lars_rates = plan.learning_rates(step)',
    _OF_STEPS,
    'LARS reads the rate of the step',
  ),
  Mutant(
    'stage_ends_late',
    _STAGES,
    '      if step < stage.stop_step:',
    '      if step <= stage.stop_step:',
    'tests/training/stages_test.py',
    'the last step of a stage is counted to it',
  ),
  Mutant(
    'last_bad_report',
    _STEPS,
    'tf.where(before.is_good, health.report, before.report)',
    'tf.where(health.is_good, before.report, health.report)',
    _OF_STEPS + ' -k first_bad',
    'the last bad report is kept, not the first',
  ),
  Mutant(
    'unreached_are_reached',
    _OPTIMIZERS,
    'if variable.ref() not in reached',
    'if variable.ref() in reached',
    'tests/training/optimizers_test.py -k unreached',
    'the slots that a loss reaches count as unreached',
  ),
  Mutant(
    'biases_always_decay',
    _LAYERS,
    '*(self.biases if include_biases else ())',
    '*self.biases',
    _OF_OBJECTIVES,
    'biases decay whatever the flag says',
  ),
  Mutant(
    'statistics_always_move',
    _STEPS,
    'if not statistics or not stage.update_encoder_batch_norm:',
    'if not statistics:',
    _OF_STEPS,
    'a frozen batch norm moves',
  ),
  Mutant(
    'statistics_of_the_first_micro_batch',
    _STEPS,
    'tf.reduce_mean(values, axis=0)',
    'values[0]',
    _OF_MICRO_BATCHES,
    'moving averages follow one micro-batch alone',
  ),
  Mutant(
    'heads_see_the_whole_batch',
    _STEPS,
    'outputs = model.of_embeddings(embedding, training, num_groups=parts.count)\n  outputs = outputs._replace(',
    'outputs = model.of_embeddings(embedding, training, num_groups=1)\n  outputs = outputs._replace(',
    _OF_MICRO_BATCHES,
    'batch norm of the head uses statistics of all micro-batches',
  ),
  Mutant(
    'keys_in_another_order',
    _STEPS,
    'tf.transpose(projection, [1, 0, 2, 3])',
    'projection',
    'tests/training/memory_test.py',
    'the keys of micro-batches are those of other samples',
  ),
  Mutant(
    'copy_is_not_moved',
    'supcon/training/memory.py',
    '        *(self._copy.keep(moved) if moved else ()),\n',
    '',
    'tests/training/memory_test.py',
    'the slow copy never moves',
  ),
  Mutant(
    'oldest_stay',
    'supcon/training/memory.py',
    'tf.concat([features, memory.features], axis=0)[:size]',
    'tf.concat([memory.features, features], axis=0)[:size]',
    'tests/training/memory_test.py',
    'the oldest features stay in the memory',
  ),
  Mutant(
    'empty_slots_are_negatives',
    'supcon/pairwise.py',
    'is_valid=class_ids >= 0,',
    'is_valid=None,',
    'tests/losses_test.py -k memory',
    'empty slots of a memory are negatives',
  ),
  Mutant(
    'a_new_copy_is_no_copy',
    'supcon/models/momentum.py',
    'momentum = self._momentum * tf.cast(self._has_moved, tf.float32)',
    'momentum = self._momentum',
    'tests/training/memory_test.py',
    'the slow copy starts from zeros',
  ),
  Mutant(
    'gradient_of_the_last_micro_batch',
    _STEPS,
    'total + part for total, part in zip(totals, parts)',
    'part for total, part in zip(totals, parts)',
    'tests/training/micro_batches_test.py',
    'the gradients of micro-batches are not added up',
  ),
  Mutant(
    'no_decay_in_micro_batches',
    _STEPS,
    'total if decay is None else total + decay',
    'total',
    'tests/training/micro_batches_test.py',
    'weights of the encoder do not decay',
  ),
  Mutant(
    'made_by_the_next_stage',
    _STAGES,
    'return self.stage_at(max(step - 1, 0))',
    'return self.stage_at(step)',
    'tests/training/stages_test.py',
    "a stage's last checkpoint counts to the next one",
  ),
  Mutant(
    'broken_step',
    _HOOKS,
    'step = int(global_step_value) - 1',
    'step = int(global_step_value)',
    'tests/training/hooks_test.py',
    'what broke is looked for one step late',
  ),
  Mutant(
    'slots_may_be_broken',
    _HOOKS,
    'if v.dtype.is_floating\n',
    'if v.dtype.is_floating and v.trainable\n',
    'tests/training/hooks_test.py',
    'slots that are NaN are saved',
  ),
  Mutant(
    'last_line_of_a_stage',
    _HOOKS,
    "is_last = values['step'] + 1 >= self._stage.stop_step",
    "is_last = values['step'] >= self._stage.stop_step",
    'tests/training/hooks_test.py',
    'the last line of a stage is left out',
  ),
  Mutant(
    'rollback_after_its_checkpoint',
    _ROLLBACKS,
    'if rollback.checkpoint_step <= step:',
    'if rollback.checkpoint_step < step:',
    'tests/training/rollbacks_test.py',
    'a rollback begins a step too late',
  ),
  Mutant(
    'bad_batch_again',
    _ROLLBACKS,
    '      diverged_step + 1 - checkpoint_step,\n',
    '      diverged_step - checkpoint_step,\n',
    'tests/training/rollbacks_test.py',
    'the batch at which training diverged is taken again',
  ),
  Mutant(
    'until_any_rollback',
    _ROLLBACKS,
    'return min(changes, default=stop_step)',
    'return max(changes, default=stop_step)',
    'tests/training/rollbacks_test.py',
    'of several rollbacks the last one counts',
  ),
  Mutant(
    'one_rank_more',
    _METRICS,
    'tf.logical_and(rank < k, is_number)',
    'tf.logical_and(rank <= k, is_number)',
    'tests/training/metrics_test.py',
    'top-k is top-(k+1)',
  ),
  Mutant(
    'ties_the_other_way',
    _METRICS,
    'classes < labels[:, tf.newaxis]',
    'classes > labels[:, tf.newaxis]',
    'tests/training/metrics_test.py',
    'of equal logits the higher class wins',
  ),
  Mutant(
    'nan_is_right',
    _METRICS,
    'tf.cast(tf.logical_and(rank < k, is_number), tf.float32)',
    'tf.cast(rank < k, tf.float32)',
    'tests/training/metrics_test.py',
    'NaN logits are right answers',
  ),
  Mutant(
    'recorded_one_late',
    _METRICS,
    'tf.equal(step % interval_steps, 0)',
    'tf.equal(step % interval_steps, 1)',
    'tests/training/metrics_test.py',
    'summaries are of the step after the multiples',
  ),
  Mutant(
    'sums_in_float32',
    _METRICS,
    '  values = tf.cast(values, tf.float64)\n  weights = tf.cast(weights, tf.float64)\n',
    '  values = tf.cast(tf.cast(values, tf.float16), tf.float64)\n  weights = tf.cast(weights, tf.float64)\n',
    'tests/training/metrics_test.py',
    'losses are rounded before they are added up',
  ),
  Mutant(
    'eval_loss_of_batches',
    _MODEL_FN,
    'scale = batches / self.num_eval_examples',
    'scale = 1 / global_batch',
    'tests/training/model_fn_test.py',
    'the padding of an evaluation counts',
  ),
  Mutant(
    'eval_sees_batches',
    _MODEL_FN,
    'outputs = self._forward(model, features, training=False)()',
    'outputs = self._forward(model, features, training=True)()',
    'tests/training/model_fn_test.py',
    'an evaluation uses batch statistics',
  ),
  Mutant(
    'labels_always_count',
    _OBJECTIVES,
    'labels=labels if options.use_labels else None',
    'labels=labels',
    'tests/training/model_fn_test.py',
    'SimCLR sees labels',
  ),
  Mutant(
    'smoothing_is_not_passed',
    _OBJECTIVES,
    '    label_smoothing=params.cross_entropy.label_smoothing,\n',
    '',
    'tests/training/model_fn_test.py',
    'label smoothing is not passed on',
  ),
  Mutant(
    'moving_average',
    _LAYERS,
    '_MOVING_AVERAGE_MOMENTUM = 0.9',
    '_MOVING_AVERAGE_MOMENTUM = 0.99',
    'tests/models/layers_test.py',
    'the momentum of batch norm',
  ),
  Mutant(
    'epsilon',
    _LAYERS,
    '_EPSILON = 1e-5',
    '_EPSILON = 1e-3',
    'tests/models/layers_test.py',
    'the epsilon of batch norm',
  ),
  Mutant(
    'padding_at_the_start',
    _LAYERS,
    'start = (kernel_size - 1) // 2',
    'start = kernel_size // 2',
    'tests/models/layers_test.py',
    'an even kernel pads more at the start',
  ),
  Mutant(
    'unbiased_variance',
    _LAYERS,
    'return variance * ((count - 1) / count)',
    'return variance',
    'tests/models/layers_test.py',
    'the moving variance is the unbiased one',
  ),
  Mutant(
    'gradient_without_the_mean',
    _LAYERS,
    'x_gradient = upstream - by_mean - normal * by_variance',
    'x_gradient = upstream - normal * by_variance',
    'tests/models/layers_test.py',
    'the gradient of batch norm over replicas',
  ),
  Mutant(
    'statistics_pass_gradients',
    _LAYERS,
    "self._beta = add('beta', 0.0) if use_beta else None",
    "self._beta = add('beta', 0.0)",
    'tests/models/layers_test.py',
    'there is always a beta',
  ),
  Mutant(
    'head_without_relu',
    _HEADS,
    '      x = tf.nn.relu(x)\n',
    '',
    'tests/models/heads_test.py',
    'the projection head is linear',
  ),
  Mutant(
    'bias_beside_batch_norm',
    _HEADS,
    'use_bias=not use_batch_norm',
    'use_bias=True',
    'tests/models/heads_test.py',
    'a bias stands beside batch norm',
  ),
  Mutant(
    'stride_of_groups',
    _RESNET,
    'stride=1 if index == 0 else 2',
    'stride=1 if index == 1 else 2',
    'tests/models/resnet_test.py tests/models/contrastive_test.py -k "published"',
    'the strides of the groups',
  ),
  Mutant(
    'pool_without_padding',
    _RESNET,
    "tf.nn.max_pool2d(x, 3, 2, 'SAME')",
    "tf.nn.max_pool2d(x, 2, 2, 'SAME')",
    'tests/models/resnet_test.py tests/models/contrastive_test.py -k "published"',
    'the initial pooling',
  ),
  Mutant(
    'logits_of_the_last_view',
    _CONTRASTIVE,
    'first_view = tf.split(classifier_inputs, num_views)[0]',
    'first_view = tf.split(classifier_inputs, num_views)[-1]',
    'tests/models/contrastive_test.py -k "published or logits or view"',
    'logits are of the last view',
  ),
  Mutant(
    'projection_of_any_length',
    _CONTRASTIVE,
    '_by_sample(_unit_length(projection), num_views)',
    '_by_sample(projection, num_views)',
    'tests/models/contrastive_test.py -k "place or embeddings or length or published"',
    'projections are not of unit length',
  ),
  Mutant(
    'classifier_trains_encoder',
    _CONTRASTIVE,
    'return tf.stop_gradient(inputs) if stop_gradient else inputs',
    'return inputs',
    'tests/models/contrastive_test.py -k "gradient or stop"',
    'no gradient is stopped',
  ),
  Mutant(
    'hosts_take_turns',
    _ORDER,
    'share = positions // self.local_batch_size % self.num_shares',
    'share = positions % self.num_shares',
    'tests/data/order_test.py',
    'hosts take other positions of a batch',
  ),
  Mutant(
    'hosts_see_the_same',
    _ORDER,
    'return epoch * self.host.count + self.host.index',
    'return epoch * self.host.count',
    'tests/data/order_test.py',
    'hosts that read everything read it alike',
  ),
  Mutant(
    'class_order_is_fixed',
    _ORDER,
    'turn, rank_of_class)\n',
    '0, rank_of_class)\n',
    'tests/data/order_test.py -k "turns or draws"',
    'a class gives its examples in the same order each time',
  ),
  Mutant(
    'window_from_its_start',
    _ORDER,
    'order[tf.where(is_start, start_rank, 0) :]',
    'order[0:]',
    'tests/data/order_test.py',
    'a run that starts in a window repeats it',
  ),
  Mutant(
    'one_order_for_all_epochs',
    _ORDER,
    'seeds.key(positions.seed, seeds.Purpose.ORDER, this_pass)',
    'seeds.key(positions.seed, seeds.Purpose.ORDER, 0)',
    'tests/data/order_test.py',
    'every epoch has the same order',
  ),
  Mutant(
    'flips_are_rare',
    _PREPROCESSING,
    '_FLIP_PROBABILITY = 0.5',
    '_FLIP_PROBABILITY = 0.4',
    'tests/data/views/preprocessing_test.py -k flip',
    'how often images are flipped',
  ),
  Mutant(
    'jitter_is_always',
    _PREPROCESSING,
    '_JITTER_PROBABILITY = 0.8',
    '_JITTER_PROBABILITY = 1.0',
    'tests/data/views/preprocessing_test.py -k "often or statistics"',
    'how often colors are changed',
  ),
  Mutant(
    'grayscale_is_often',
    _PREPROCESSING,
    '_GRAYSCALE_PROBABILITY = 0.2',
    '_GRAYSCALE_PROBABILITY = 0.3',
    'tests/data/views/preprocessing_test.py -k "often or statistics"',
    'how often images become grey',
  ),
  Mutant(
    'flips_in_spite',
    _PREPROCESSING,
    'if not (flips and settings.random_flip):',
    'if not flips:',
    'tests/data/views/preprocessing_test.py -k flip',
    '--random_flip=False flips',
  ),
  Mutant(
    'further_views_of_evaluation',
    _PREPROCESSING,
    'for index in range(1, settings.num_views)',
    'for index in range(settings.num_views - 1)',
    'tests/data/views/preprocessing_test.py -k further_views',
    'further views of an evaluation are those of other numbers',
  ),
  Mutant(
    'odd_excess',
    _CROPS,
    'center_window(shape, shape - (excess + 1) // 2 * 2)',
    'center_window(shape, shape - excess)',
    'tests/data/views/preprocessing_test.py -k thin',
    'a thin image is cut more on one side',
  ),
  Mutant(
    'blur_reaches_further',
    _IMAGE_OPS,
    'radius = side // 20',
    'radius = side // 10',
    'tests/data/views/image_ops_test.py',
    'the blur reaches further',
  ),
  Mutant(
    'blur_of_one_sigma',
    _IMAGE_OPS,
    'sigmas = low + (high - low) * draws[..., 1]',
    'sigmas = low + high * draws[..., 1]',
    'tests/data/views/image_ops_test.py',
    'the largest blur',
  ),
  Mutant(
    'grey_levels',
    _IMAGE_OPS,
    'tf.saturate_cast((image + 1) * 127.5, tf.uint8)',
    'tf.saturate_cast((image + 1) * 128, tf.uint8)',
    'tests/data/views/image_ops_test.py',
    'the way back to grey levels',
  ),
  Mutant(
    'warp_truncates',
    _IMAGE_OPS,
    'tf.cast(warped + 0.5, tf.uint8)',
    'tf.cast(warped, tf.uint8)',
    'tests/data/views/image_ops_test.py',
    'a warp truncates levels',
  ),
  Mutant(
    'whiten_by_the_wrong',
    _IMAGE_OPS,
    'return (image - mean) / std',
    'return image / std - mean',
    'tests/data/views/image_ops_test.py',
    'whitening',
  ),
  Mutant(
    'torch_contrast_per_channel',
    _COLORS,
    'mean = tf.reduce_mean(_luma(planes), axis=-1, keepdims=True)',
    'mean = tf.reduce_mean(planes, axis=-1, keepdims=True)',
    'tests/data/views/colors_test.py',
    "torchvision's contrast is relative to each channel",
  ),
  Mutant(
    'hue_is_not_bound',
    _COLORS,
    'min(_JITTER_HUE_RANGE * strength, 0.5)',
    '_JITTER_HUE_RANGE * strength',
    'tests/data/views/colors_test.py -k "drawn or draw"',
    'hue turns by more than half a turn',
  ),
  Mutant(
    'luma',
    _COLORS,
    'LUMA = np.float32([0.2989, 0.587, 0.114])',
    'LUMA = np.float32([0.299, 0.587, 0.114])',
    'tests/data/views/colors_test.py -k luma',
    'the weights of the luma',
  ),
  Mutant(
    'rows_upside_down',
    _IMAGE_FILES,
    'tf.cond(height > 0, lambda: rows[::-1], lambda: rows)',
    'tf.cond(height < 0, lambda: rows[::-1], lambda: rows)',
    'tests/data/views/image_files_test.py',
    'a BMP is upside down',
  ),
  Mutant(
    'colors_backwards',
    _IMAGE_FILES,
    'tf.cast(colors[:, 2::-1], tf.uint8)',
    'tf.cast(colors[:, :3], tf.uint8)',
    'tests/data/views/image_files_test.py',
    'a palette is blue, green, red',
  ),
  Mutant(
    'exif_is_skipped',
    _IMAGE_FILES,
    'is_skipped = _may_precede_exif(head[1]) & ~is_exif(head)',
    'is_skipped = _may_precede_exif(head[1])',
    'tests/data/views/image_files_test.py',
    'the orientation is never found',
  ),
  Mutant(
    'hidden_files_are_images',
    _LISTING,
    "if name and not name.startswith('.')",
    'if name',
    'tests/data/sources/folder_test.py',
    'hidden files are read',
  ),
  Mutant(
    'endings_in_capitals',
    _LISTING,
    'return name.lower().endswith(ENDINGS)',
    'return name.endswith(ENDINGS)',
    'tests/data/sources/folder_test.py',
    'IMG_1.JPG is no image',
  ),
  Mutant(
    'bad_ones_at_the_end',
    _FAULTS,
    '  bad.extend(range(expected, split.num_examples))\n',
    '',
    'tests/data/sources/folder_test.py -k bad_images',
    'bad images at the end are overlooked',
  ),
  Mutant(
    'next_to_the_bad_one',
    _FAULTS,
    '    bad.extend(range(expected, position))\n',
    '    bad.extend(range(expected + 1, position))\n',
    'tests/data/sources/folder_test.py -k bad',
    'the first of several bad images is overlooked',
  ),
  Mutant(
    'flat_channel',
    _WHITENING,
    'std=tuple(max(value, 0.5) / 127.5 for value in std)',
    'std=tuple(value / 127.5 for value in std)',
    'tests/data/sources/folder_test.py -k "deviation or colors"',
    'a channel that is the same everywhere has deviation 0',
  ),
  Mutant(
    'whitening_scale',
    _WHITENING,
    'mean=tuple(value / 127.5 - 1 for value in mean)',
    'mean=tuple(value / 127.5 for value in mean)',
    'tests/data/sources/folder_test.py -k "deviation or colors"',
    'the mean is on another scale',
  ),
  Mutant(
    'unknown_labels',
    _EMBEDDINGS,
    'np.any((labels < -1) |',
    'np.any((labels < 0) |',
    'tests/serving/embeddings_test.py',
    'examples of no known class are refused',
  ),
  Mutant(
    'order_of_equals',
    _NEAREST,
    '<< 32 | (start + columns)',
    '<< 32 | (2**32 - 1 - start - columns)',
    'tests/serving/neighbours_test.py',
    'of neighbours that are equally near the last comes first',
  ),
  Mutant(
    'zeros_become_nan',
    _MODEL_OUTPUTS,
    'np.sqrt(np.where(squares > 0, squares, 1))',
    'np.sqrt(squares)',
    'tests/serving/neighbours_test.py',
    'an embedding of zeros becomes NaN',
  ),
  Mutant(
    'other_models_index',
    _NEIGHBOURS,
    'elif self.origin.fingerprint != origin.fingerprint:',
    'elif False:',
    'tests/serving/neighbours_test.py',
    'an index of another model is explained as one of other images',
  ),
  Mutant(
    'too_few_candidates',
    _NEAREST,
    'maxima[:, num_groups - k] - 2 / _STEPS',
    'maxima[:, num_groups - k + 1]',
    'tests/evaluation/nearest_test.py',
    'a bound leaves fewer than k neighbours',
  ),
  Mutant(
    'calibration_bins',
    _CALIBRATION,
    'np.searchsorted(edges[1:], confidence)',
    "np.searchsorted(edges[1:], confidence, 'right')",
    'tests/evaluation/calibration_test.py',
    'the lower edge belongs to a bin',
  ),
  Mutant(
    'relative_mce_without_alexnets_clean_error',
    _MCE,
    'ALEXNET_ERRORS[name] - ALEXNET_CLEAN_ERROR',
    'ALEXNET_ERRORS[name]',
    'tests/evaluation/robustness_test.py',
    'what corruptions add is divided by all of an error of AlexNet',
  ),
  Mutant(
    'extra_corruptions_count',
    _MCE,
    'if name not in EXTRA]',
    'if name]',
    'tests/evaluation/robustness_test.py',
    'the mean error includes the corruptions that are set apart',
  ),
  Mutant(
    'labels_of_corrupted_images_by_position',
    _ROBUSTNESS,
    'evaluation.logits[labels]',
    'labels',
    'tests/jobs_test.py -k Robustness',
    'a set with classes in another order is evaluated wrongly',
  ),
  Mutant(
    'robustness_of_other_weights',
    _ROBUSTNESS,
    "found['fingerprint'] != facts_of_file['fingerprint']",
    "found['fingerprint'] is None",
    'tests/jobs_test.py -k Robustness',
    'what an earlier checkpoint of the same step did is kept',
  ),
  Mutant(
    'votes_without_temperature',
    _KNN,
    'cosines[:, :1]) / temperature',
    'cosines[:, :1]) * temperature',
    'tests/evaluation/knn_test.py',
    'near neighbours weigh the less, the lower the temperature',
  ),
  Mutant(
    'pairs_with_oneself',
    _GEOMETRY,
    'np.fill_diagonal(exponents, 0)',
    'np.fill_diagonal(exponents, 1)',
    'tests/evaluation/geometry_test.py',
    'an example is a pair with itself',
  ),
  Mutant(
    'map_off_center',
    'supcon/reports/embedding_maps.py',
    ' - np.outer(mean, mean)',
    '',
    'tests/reports/embedding_maps_test.py',
    'principal components of embeddings that are not centered',
  ),
  Mutant(
    'names_as_markup',
    'supcon/reports/html_parts.py',
    'html.escape(safe_text.printable(str(value)))',
    'safe_text.printable(str(value))',
    'tests/reports/report_page_test.py',
    'the name of a class is HTML',
  ),
  Mutant(
    'classifier_of_stage_one',
    'supcon/jobs/report_subject.py',
    'stage.start_step < min(',
    'stage.start_step <= min(',
    'tests/report_main_test.py -k logits',
    'a classifier without a step counts as trained',
  ),
  Mutant(
    'incomplete_file',
    _EMBEDDINGS,
    'if self._num_added != self._num_examples:',
    'if self._num_added > self._num_examples:',
    'tests/serving/embeddings_test.py',
    'a file with fewer examples than announced',
  ),
  Mutant(
    'facts_of_the_step_itself',
    _FACTS,
    'if entry.after_step < step and not (',
    'if entry.after_step <= step and not (',
    'tests/training/facts_test.py',
    'an entry holds for the checkpoint before it',
  ),
  Mutant(
    'oldest_facts',
    _FACTS,
    'for entry in reversed(self.entries):',
    'for entry in self.entries:',
    'tests/training/facts_test.py',
    'the first facts of a run hold for ever',
  ),
  Mutant(
    'intention_before_the_save',
    _FACTS_KEEPER,
    '      _write(self._model_dir, self._before, self._entries)\n',
    '      _write(self._model_dir, self._facts, self._entries)\n',
    'tests/training/facts_test.py',
    'hparams.json says what is only intended',
  ),
  Mutant(
    'later_entries_stay',
    _FACTS_KEEPER,
    'entry for entry in record.entries if entry.after_step < self._start',
    'entry for entry in record.entries',
    'tests/training/facts_test.py',
    'entries of checkpoints that were given up stay',
  ),
  Mutant(
    'nothing_is_refused',
    _CHANGES,
    '    if rule.may == May.NOT_CHANGE:\n      raise',
    '    if rule.may == May.MOVE_NOTHING:\n      raise',
    'tests/config/changes_test.py',
    'what must not change may',
  ),
  Mutant(
    'use_is_bound',
    _CHANGES,
    'if rule_of(path).in_use or path in _IN_USE_TOO:',
    'if rule_of(path).in_use:',
    'tests/config/changes_test.py',
    'who uses a model may choose less',
  ),
  Mutant(
    'last_class_is_free',
    _CHANGES,
    'itertools.zip_longest(known, now)',
    'zip(known, now)',
    'tests/config/changes_test.py',
    'another number of classes is overlooked',
  ),
  Mutant(
    'epoch_may_change',
    _COUNTING,
    '    or known.steps_per_epoch != now.steps_per_epoch\n',
    '',
    'tests/training/positions_test.py',
    'another number of steps an epoch moves nothing',
  ),
  Mutant(
    'end_is_beyond',
    _COUNTING,
    'step > now.last_step',
    'step >= now.last_step',
    'tests/training/positions_test.py',
    'a complete run is always moved',
  ),
  Mutant(
    'moved_down',
    _COUNTING,
    'round(epochs * now.steps_per_epoch)',
    'int(epochs * now.steps_per_epoch)',
    'tests/training/positions_test.py',
    'a moved step is rounded down',
  ),
  Mutant(
    'place_at_an_end',
    _COUNTING,
    'if step <= end)',
    'if step < end)',
    'tests/training/positions_test.py',
    'the end of a stage is said to be in the next one',
  ),
  Mutant(
    'stale_is_alive',
    _LOCKS,
    'seconds <= STALE_SECONDS',
    'seconds >= 0',
    'tests/runs/locks_test.py',
    'a trainer of another machine never counts as gone',
  ),
  Mutant(
    'zombies_are_there',
    _PROCESSES,
    "if state in 'ZX'",
    "if state in 'X'",
    'tests/runs/locks_test.py',
    'a zombie holds the lock',
  ),
  Mutant(
    'name_with_parentheses',
    _PROCESSES,
    "rpartition(')')",
    "partition(')')",
    'tests/runs/locks_test.py',
    'the name of a process is taken for its state',
  ),
  Mutant(
    'other_token',
    _LOCKS,
    'elif holder.token != self._token:',
    'elif False:',
    'tests/runs/locks_test.py',
    'a lock that another has taken counts as held',
  ),
  Mutant(
    'removes_what_is_anothers',
    _LOCKS,
    '        self.verify()\n        tf.io.gfile.remove(self._path)',
    '        tf.io.gfile.remove(self._path)',
    'tests/runs/locks_test.py',
    "another trainer's lock is removed",
  ),
  Mutant(
    'birth_does_not_matter',
    _PROCESSES,
    "return birth != '' and self.birth in ('', birth)",
    "return birth != ''",
    'tests/runs/locks_test.py',
    'another process that has the number is taken for the trainer',
  ),
  Mutant(
    'deviation_of_all',
    _COMPARISON,
    'statistics.stdev(values)',
    'statistics.pstdev(values)',
    'tests/reports/comparison_test.py',
    'the deviation of runs is divided by n, not n - 1',
  ),
  Mutant(
    'interval_of_n_degrees',
    _COMPARISON,
    'student_t(n - 1)',
    'student_t(n)',
    'tests/reports/comparison_test.py',
    'the interval has a degree of freedom too many',
  ),
  Mutant(
    'any_step_is_the_last',
    _RUN_RECORDS,
    'if each.step == self.last_step and each.data == data',
    'if each.data == data',
    'tests/reports/comparison_test.py',
    'an evaluation in the middle of a run counts',
  ),
  Mutant(
    'best_is_last',
    _COMPARISON,
    'sign = -1 if run_options',
    'sign = 1 if run_options',
    'tests/reports/comparison_test.py',
    'the worst runs come first',
  ),
  Mutant(
    'every_start_is_a_restart',
    _STATUS,
    'restarts=before.restarts + bool(step and is_left)',
    'restarts=before.restarts + 1',
    'tests/runs/status_test.py',
    'every start counts as a restart',
  ),
  Mutant(
    'signals_are_failures',
    _STATUS,
    '      if not issubclass(kind, Exception):',
    '      if False:',
    'tests/runs/status_test.py',
    'a signal is written down as a failure',
  ),
  Mutant(
    'nan_in_json',
    _STATUS,
    '    return value if is_number else None',
    '    return value',
    'tests/runs/status_test.py',
    'JSON that holds NaN',
  ),
  Mutant(
    'writes_all_the_time',
    _STATUS,
    '    if self.is_due:\n      self.write()',
    '    self.write()',
    'tests/runs/status_test.py',
    'the status is written at every step',
  ),
  Mutant(
    'lost_lock_is_ignored',
    _STATUS,
    '    self._verify()\n',
    '',
    'tests/runs/status_test.py',
    'a trainer that has lost its lock writes',
  ),
  Mutant(
    'pauses',
    _RETRIES,
    'self._first_pause * 2 ** (self._failures - 1)',
    'self._first_pause * 2 ** self._failures',
    'tests/runs/retries_test.py',
    'the first pause is twice as long',
  ),
  Mutant(
    'one_more_try',
    _RETRIES,
    'if self._failures >= self._limit:',
    'if self._failures > self._limit:',
    'tests/runs/retries_test.py',
    'one try more than allowed',
  ),
  Mutant(
    'failures_add_up',
    _RETRIES,
    '        self.succeeded()\n        return result',
    '        return result',
    'tests/runs/retries_test.py',
    'failures that are not in a row add up',
  ),
  Mutant(
    'second_signal_continues',
    _SIGNALS,
    'os._exit(128 + number)',
    'os._exit(EXIT_CODE)',
    'tests/runs/signals_test.py -k "not training"',
    'a second signal says that all is well',
  ),
  Mutant(
    'cleaning_is_interrupted',
    _SIGNALS,
    'if not self.is_deferred and not self._has_raised:',
    'if not self.is_deferred:',
    'tests/runs/signals_test.py -k "not training"',
    'cleaning up is interrupted once more',
  ),
  Mutant(
    'no_patience_while_deferred',
    _SIGNALS,
    '      if self.is_deferred:\n        patient_since = now\n      elif',
    '      if',
    'tests/runs/signals_test.py -k "not training"',
    'a step that takes long is cut off',
  ),
  Mutant(
    'ignored_sigint_counts',
    _SIGNALS,
    'if number == signal.SIGINT and handler in (signal.SIG_IGN, None):',
    'if handler is None:',
    'tests/runs/signals_test.py -k "not training"',
    'Ctrl-C ends what a shell has put into the background',
  ),
  Mutant(
    'errors_of_a_signal',
    _SIGNALS,
    '  except Exception:\n    check()\n    raise\n',
    '  except Exception:\n    raise\n',
    'tests/runs/signals_test.py -k "not training"',
    'an error that comes of a signal counts as an error',
  ),
  Mutant(
    'worker_is_its_own_other',
    _WORKERS,
    'if number != self.index',
    'if True',
    'tests/compute/workers_test.py -k "numbered or chief or machine"',
    'a worker watches itself',
  ),
  Mutant(
    'chief_is_not_counted',
    _WORKERS,
    "before = self.kind == 'worker' and len(self.jobs.get('chief', ()))",
    'before = 0',
    'tests/compute/workers_test.py -k "numbered or chief"',
    'a worker has the number of the chief',
  ),
  Mutant(
    'two_chiefs',
    _WORKERS,
    "if len(jobs.get('chief', ())) > 1:",
    "if len(jobs.get('chief', ())) > 2:",
    'tests/compute/workers_test.py -k "wrong"',
    'two chiefs are accepted',
  ),
  Mutant(
    'cap_of_samples',
    _HPARAMS,
    'if cap > self.batch_size * views:',
    'if cap > self.batch_size:',
    'tests/config/hparams_test.py',
    'a cap of more than half of the views is refused',
  ),
  Mutant(
    'noise_of_zero',
    'supcon/config/fields.py',
    '0 <= value <= 1',
    '0 < value <= 1',
    'tests/config/hparams_test.py',
    'no label noise is refused',
  ),
  Mutant(
    'given_twice',
    'supcon/config/compact_string.py',
    '    if name in values:',
    '    if False:',
    'tests/config/hparams_test.py',
    'a name that is given twice counts as it comes last',
  ),
  Mutant(
    'new_fields_in_old_strings',
    _HPARAMS,
    "        if field.spec['published'] or self.get(field.path) != field.value\n",
    '',
    'tests/config/hparams_test.py',
    'strings hold fields that nobody else knows',
  ),
  Mutant(
    'newest_by_name',
    _CHECKPOINT_FILES,
    "return int(checkpoint.rsplit('-', 1)[-1])",
    "return int(checkpoint.split('-', 1)[-1])",
    'tests/runs/checkpoint_files_test.py',
    'a directory with a hyphen',
  ),
  Mutant(
    'being_written',
    _CHECKPOINT_FILES,
    'if step < newest}',
    '}',
    'tests/runs/checkpoint_files_test.py',
    'checkpoints that are still being written count',
  ),
  Mutant(
    'missing_shard',
    _CHECKPOINT_FILES,
    'missing = [end for end in shards if end not in ends]',
    'missing = [end for end in shards[:1] if end not in ends]',
    'tests/runs/checkpoint_files_test.py',
    'a shard that is missing is overlooked',
  ),
  Mutant(
    'state_is_absolute',
    _CHECKPOINT_FILES,
    'names.append(name if os.path.join(model_dir, name) == path else path)',
    'names.append(path)',
    'tests/runs/checkpoint_files_test.py',
    'a directory that was moved',
  ),
  Mutant(
    'oldest_whole',
    _MODEL_DIRS,
    'for checkpoint in reversed(candidates):',
    'for checkpoint in candidates:',
    'tests/runs/model_dirs_test.py -k "not killed and not continues and not disk"',
    'the oldest checkpoint is taken for the newest',
  ),
  Mutant(
    'read_again_and_again',
    _MODEL_DIRS,
    '    if stamps != before:',
    '    if True:',
    'tests/runs/model_dirs_test.py -k "not killed and not continues and not disk"',
    'a checkpoint is read each time',
  ),
  Mutant(
    'names_end_with_returns',
    _MODEL_DIRS,
    "tuple(line.rstrip('\\r') for line in lines)",
    'tuple(lines)',
    'tests/runs/model_dirs_test.py -k "not killed and not continues and not disk"',
    'a class name ends with a carriage return',
  ),
  Mutant(
    'evaluates_on_all',
    _DEVICES,
    'count = (num_gpus or options.num_replicas) if options.trains else 1',
    'count = num_gpus or options.num_replicas',
    'tests/compute/devices_test.py',
    'an evaluation asks for all devices',
  ),
  Mutant(
    'batches_are_rounded',
    _DEVICES,
    '    if size % count:',
    '    if size < count:',
    'tests/compute/devices_test.py',
    'a batch that cannot be shared out is accepted',
  ),
  Mutant(
    'turns_share_seeds',
    _SEEDS,
    '(purpose * 2**27 + turn) * 2**32 + index',
    '(purpose * 2**27 + turn) + index',
    'tests/data/order_test.py tests/data/inputs_test.py -k "seed or epoch or order or purpose or turn or views"',
    'the next epoch has the seeds of the next example',
  ),
)

MUTANTS = (*_ONCE_UNNOTICED, *_OTHERS)


# --- Running ------------------------------------------------------------------


def planted(mutant: Mutant, root: pathlib.Path = ROOT) -> str:
  """Returns the text of the file with the slip.

  Raises:
    ValueError: If the old text does not stand there once.
  """
  text = (root / mutant.file).read_text()
  count = text.count(mutant.old)
  if count != 1:
    raise ValueError(
      f'{mutant.name}: its old text stands {count} times in {mutant.file}, '
      'expected once; bring the list in tests/mutants.py up to date'
    )
  return text.replace(mutant.old, mutant.new)


class Run(NamedTuple):
  """How tests have ended.

  Attributes:
    code: Of pytest; negative for a signal, as that of the time limit.
    seconds: How long they took.
    output: What they printed.
  """

  code: int
  seconds: float
  output: str


def _fork(tree, tests, log):
  """Returns the id of a process that runs tests in a copy of the tree."""
  pid = os.fork()
  if pid:
    return pid
  code = 99
  try:
    os.setsid()
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.chdir(tree)
    sys.path[:] = [
      str(tree),
      *(p for p in sys.path if p not in ('', str(ROOT))),
    ]
    for name in [*sys.modules]:
      if name.split('.')[0] in ('tests', 'supcon'):
        del sys.modules[name]
    import pytest

    flags = ['-c', 'tests/pytest.ini', '--rootdir=.', '-p', 'no:cacheprovider']
    code = int(pytest.main([*flags, '-x', '-q', *shlex.split(tests)]))
  finally:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _left_out(directory, names):
  found = shutil.ignore_patterns(*_LEFT_OUT)(directory, names)
  # What was trained, not the packages of this name.
  is_top = pathlib.Path(directory) == ROOT
  return found | ({'runs'} & {*names} if is_top else set())


class _Pool:
  """Copies of the tree, in each of which one run at a time is made."""

  def __init__(self, directory, size):
    self._trees = []
    for number in range(size):
      tree = pathlib.Path(directory) / f'tree{number}'
      shutil.copytree(ROOT, tree, ignore=_left_out, symlinks=True)
      self._trees.append(tree)

  def run(self, tasks):
    """Yields (task, Run) as they end; a task is (mutant or None, tests)."""
    waiting, running = collections.deque(tasks), {}
    free = list(self._trees)
    while waiting or running:
      while waiting and free:
        task, tree = waiting.popleft(), free.pop()
        mutant, tests = task
        text = None
        if mutant:
          text = (tree / mutant.file).read_text()
          (tree / mutant.file).write_text(planted(mutant, tree))
        pid = _fork(tree, tests, tree.with_suffix('.log'))
        running[pid] = (task, tree, text, time.monotonic())
      time.sleep(0.1)
      for pid, (task, tree, text, begun) in list(running.items()):
        seconds = time.monotonic() - begun
        if seconds > _TIMEOUT_SECONDS:
          os.killpg(pid, signal.SIGKILL)
        found, status = os.waitpid(pid, os.WNOHANG)
        if not found:
          continue
        del running[pid]
        mutant, _ = task
        if mutant:
          # That of the copy: the working tree may have changed meanwhile.
          (tree / mutant.file).write_text(text)
        free.append(tree)
        output = tree.with_suffix('.log').read_text(errors='replace')
        yield task, Run(os.waitstatus_to_exitcode(status), seconds, output)


def _outcome(run, without):
  if without is not None and without.code != _PASSED:
    return BROKEN
  # What crashes is noticed as well, or has no end, so that it is killed.
  if run.code in (_FAILED, _NOT_COLLECTED) or run.code < 0:
    return CAUGHT
  return SURVIVED if run.code == _PASSED else BROKEN


def _check_list():
  """Returns what is wrong with the list, lines."""
  problems = []
  for mutant in MUTANTS:
    try:
      planted(mutant)
    except (OSError, ValueError) as error:
      problems.append(str(error))
  names = collections.Counter(mutant.name for mutant in MUTANTS)
  problems += [f'{n}: {c} have this name' for n, c in names.items() if c > 1]
  return problems


def main(arguments=None):
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--only', help='those with this pattern in name or file')
  parser.add_argument('--list', action='store_true', help='show and end')
  parser.add_argument('--output', help='write the results here, as JSON')
  parser.add_argument('--processes', type=int, default=2)
  parser.add_argument(
    '--unplanted',
    choices=('True', 'False'),
    default='True',
    help='run the tests without mutants, too',
  )
  options = parser.parse_args(arguments)
  chosen = [
    mutant
    for mutant in MUTANTS
    if not options.only
    or re.search(options.only, f'{mutant.name} {mutant.file}')
  ]
  if options.list:
    for mutant in chosen:
      print(f'{mutant.name:34}{mutant.file:34}{mutant.what}')
    print(f'{len(chosen)} mutants')
    return 0
  if problems := _check_list():
    print('\n'.join(problems), file=sys.stderr)
    return 2
  return _run_all(chosen, options)


def _run_all(mutants, options):
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
  os.environ['PYTHONDONTWRITEBYTECODE'] = '1'
  sys.dont_write_bytecode = True
  # As supcon.compute.installation chooses it, which must not be imported yet.
  os.environ.setdefault('TF_USE_LEGACY_KERAS', '1')
  import numpy  # noqa: F401
  import pytest  # noqa: F401
  import tensorflow as tf  # noqa: F401

  begun = time.monotonic()
  tasks = [(mutant, mutant.tests) for mutant in mutants]
  if options.unplanted == 'True':
    tests = dict.fromkeys(mutant.tests for mutant in mutants)
    tasks = [(None, each) for each in tests] + tasks
  unplanted, results = {}, []
  with tempfile.TemporaryDirectory(prefix='mutants_') as directory:
    for (mutant, tests), run in _Pool(directory, options.processes).run(tasks):
      if mutant is None:
        unplanted[tests] = run
        if run.code != _PASSED:
          print(f'these do not pass by themselves: {tests}\n{run.output}')
        continue
      outcome = _outcome(run, unplanted.get(tests))
      if outcome == BROKEN:
        print(run.output[-2000:])
      print(f'{outcome:10}{run.seconds:6.1f} s  {mutant.name}', flush=True)
      results.append(
        {
          'name': mutant.name,
          'file': mutant.file,
          'what': mutant.what,
          'outcome': outcome,
          'seconds': round(run.seconds, 1),
        }
      )
  seconds = time.monotonic() - begun
  _show(results, seconds)
  if options.output:
    summary = {'seconds': round(seconds), 'mutants': results}
    pathlib.Path(options.output).write_text(json.dumps(summary, indent=2))
  return int(any(result['outcome'] != CAUGHT for result in results))


def _show(results, seconds):
  by_file = collections.defaultdict(collections.Counter)
  for result in results:
    by_file[result['file']][result['outcome']] += 1
  print(f'\n{"file":36}caught  of')
  for file, counts in sorted(by_file.items()):
    print(f'{file:36}{counts[CAUGHT]:6}{counts.total():4}')
  total = collections.Counter(result['outcome'] for result in results)
  print(
    f'{total[CAUGHT]} of {len(results)} caught '
    f'({total[CAUGHT] / max(len(results), 1):.1%}), {total[SURVIVED]} '
    f'survived, {total[BROKEN]} broken, in {seconds / 60:.1f} min'
  )
  for result in results:
    if result['outcome'] != CAUGHT:
      print(f'{result["outcome"]}: {result["name"]}: {result["what"]}')


if __name__ == '__main__':
  sys.exit(main())
