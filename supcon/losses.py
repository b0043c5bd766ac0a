"""The losses: supervised contrastive and cross-entropy.

The code reads as if there were one device. Anchors are the samples of this
replica, contrasts are those of the global batch, and only `replicas.gather`
deals with distribution.

Symbols in the comments: b samples here, B in the global batch, V views of each
sample, A anchors, C contrasts, D feature dimensions.
"""

import numpy as np
import tensorflow as tf

from supcon import pairwise
from supcon.compute import replicas
from supcon.config import enums

_CHOICES = {
  'contrast_mode': enums.LossContrastMode,
  'summation_location': enums.LossSummationLocation,
  'denominator_mode': enums.LossDenominatorMode,
}

# How far the sum of probabilities may be from 1: bfloat16 rounds.
_SLACK = 0.01

# The largest class id up to which each float type is exact.
_LARGEST_ID = {tf.bfloat16: 2**8, tf.float16: 2**11, tf.float32: 2**24}


def contrastive_loss(
  features,
  labels=None,
  temperature=1.0,
  contrast_mode=enums.LossContrastMode.ALL_VIEWS,
  summation_location=enums.LossSummationLocation.OUTSIDE,
  denominator_mode=enums.LossDenominatorMode.ALL,
  positives_cap=-1,
  scale_by_temperature=True,
  is_valid=None,
  tile_size=None,
  keys=None,
  memory=None,
):
  """Supervised (SupCon) or self-supervised (SimCLR) contrastive loss.

  Eq. 2 (OUTSIDE) and eq. 3 (INSIDE) of https://arxiv.org/abs/2004.11362. With
  s_ij = <z_i, z_j> / temperature, positives P and negatives N of an anchor i:

    OUTSIDE  L_i = -1/|P| sum_p log(exp(s_ip) / D_ip)
    INSIDE   L_i = -log(1/|P| sum_p exp(s_ip) / D_ip)

  where D_ip sums exp(s_ij) over P and N (ALL), over p and N (ONE_POSITIVE) or
  over N (ONLY_NEGATIVES). The positives of an anchor are all views of the
  samples with its label, except the anchor itself. Without labels, they are the
  other views of its own sample. A sample's loss is the mean over its anchors.

  Conventions, where the equations are undefined or the published code differs:
    - An anchor without positives contributes 0.
    - An anchor without negatives contributes 0 under ONLY_NEGATIVES. It also
      does under ONE_POSITIVE, because log(exp(s) / exp(s)) = 0.
    - With a single view, L_i is divided by |P| once more, as in the published
      implementation. With two or more views it is not.
    - Features need not be normalised: loss and first derivatives are finite as
      long as the similarities s_ij fit float32.
    - NaN in, NaN out: features that are NaN or infinite make the loss of their
      own anchor NaN, and the loss of every anchor to which they are a positive
      or a negative (except anchors without positives, which contribute 0).

  Args:
    features: float16, bfloat16 or float32 [batch, views, ...], the samples of
      this replica, usually of unit length. Batch and views must be static; the
      other dimensions are flattened. All arithmetic is in float32.
    labels: The class of each sample: class ids, whole numbers >= 0 of shape
      [batch] or [batch, 1], or one-hot rows [batch, classes], both of any
      numeric dtype. (A single column is read as ids. Read as one-hot rows of a
      single class it would mean the same: all samples are alike.) Every sample
      has exactly one class: multi-hot rows, rows of zeros, soft labels and
      negative ids are invalid. An invalid label raises if its value is known;
      in a graph, the sample counts as NaN. None: each sample is a class of its
      own.
    temperature: Python float > 0.
    contrast_mode: enums.LossContrastMode: whether all views are anchors, or
      the first one only.
    summation_location: enums.LossSummationLocation, see above.
    denominator_mode: enums.LossDenominatorMode, see above.
    positives_cap: How many views of other samples may be positives of an
      anchor, besides its own sample's views; a multiple of the number of views.
      The first samples in the global batch are taken. The rest of the class is
      then in no denominator either. Negative: no limit.
    scale_by_temperature: Whether to multiply the loss by the temperature, which
      makes the gradient norm less dependent on it.
    is_valid: bool or float [batch], or None. Samples with 0 are padding: others
      are not contrasted with them, and their loss is 0, whatever they contain.
    keys: float [batch, views, ...], or None: what the anchors are contrasted
      with instead of each other's `features`: the features of the same samples
      and views by a slowly moving copy of the model (momentum contrast,
      https://arxiv.org/abs/1911.05722). No gradient reaches them. An anchor is
      never contrasted with the key of the same sample and view.
    memory: pairwise.Memory, or None: features of earlier batches. A slot is a
      positive of the anchors with its class and a negative of the others; an
      empty one is neither. Without labels, every slot is a negative. No
      gradient reaches it. With a memory there can be no `positives_cap`.
    tile_size: How many anchors to compare with all contrasts at a time. The
      values do not depend on it, only time and memory: tile_size x contrasts
      instead of anchors x contrasts. None: a size that is fast and keeps the
      memory small, 256 MiB and a few tiles at most.

  Returns:
    float32 [batch], in nats (times temperature if so scaled).

  Raises:
    ValueError: If a shape, a choice, the cap or a label is not as described.
  """
  _check_choices(
    contrast_mode=contrast_mode,
    summation_location=summation_location,
    denominator_mode=denominator_mode,
  )
  features = tf.convert_to_tensor(features)
  local_batch, views = _batch_and_views(features)
  _check_positives_cap(positives_cap, views, local_batch)
  if memory is not None and positives_cap >= 0:
    raise ValueError(
      f'positives_cap={positives_cap} limits the positives in the batch, but '
      'those in a memory have no order; give -1 for no limit.'
    )
  if tile_size is not None and tile_size < 1:
    raise ValueError(
      f'tile_size={tile_size} is no number of anchors; give one from 1 on, or '
      'None to have it chosen.'
    )
  if contrast_mode is enums.LossContrastMode.ALL_VIEWS:
    anchor_views = views
  else:
    anchor_views = 1

  features = tf.reshape(features, [local_batch, views, -1])
  features = tf.cast(features, tf.float32)
  if is_valid is not None:
    is_valid = _with_shape('is_valid', is_valid, [local_batch])
    is_valid = tf.cast(is_valid, tf.bool)
  if labels is None:
    class_ids = pairwise.positions(local_batch)
  else:
    class_ids, has_class = _class_ids(labels, local_batch, is_valid)
    features = tf.where(has_class[:, None, None], features, np.nan)
  if is_valid is not None:
    features = tf.where(is_valid[:, None, None], features, 0.0)

  if keys is not None:
    keys = tf.reshape(tf.convert_to_tensor(keys), features.shape)
    keys = tf.stop_gradient(tf.cast(keys, tf.float32))
    if is_valid is not None:
      keys = tf.where(is_valid[:, None, None], keys, 0.0)
  if memory is not None:
    memory = _for_loss(memory, labels is not None, local_batch)
  anchors, contrasts = pairwise.pair(
    features, class_ids, is_valid, anchor_views, positives_cap, keys, memory
  )
  loss = pairwise.supcon_loss(
    anchors,
    contrasts,
    temperature,
    summation_location,
    denominator_mode,
    tile_size,
  )
  if views == 1:  # As published; see the conventions above.
    loss /= tf.maximum(anchors.num_positives, 1)
  if scale_by_temperature:
    loss *= temperature
  return tf.reduce_mean(tf.reshape(loss, [anchor_views, local_batch]), axis=0)


class ContrastiveLoss(tf.keras.losses.Loss):
  """`contrastive_loss` as a Keras loss: y_true are labels, y_pred features.

  y_true is [batch], [batch, 1] or one-hot [batch, classes]; y_pred is [batch,
  views, ...]. The options are those of `contrastive_loss`; `reduction` and
  `name` are those of Keras. `tf.keras` may be Keras 2 or 3.
  """

  def __init__(
    self,
    temperature=1.0,
    contrast_mode=enums.LossContrastMode.ALL_VIEWS,
    summation_location=enums.LossSummationLocation.OUTSIDE,
    denominator_mode=enums.LossDenominatorMode.ALL,
    positives_cap=-1,
    scale_by_temperature=True,
    reduction='auto',
    name='contrastive_loss',
  ):
    # Only Keras 3 has `ops`. It does not accept Keras 2's name for the default
    # of both.
    if reduction == 'auto' and hasattr(tf.keras, 'ops'):
      reduction = 'sum_over_batch_size'
    super().__init__(reduction=reduction, name=name)
    self._options = {
      'temperature': temperature,
      'contrast_mode': contrast_mode,
      'summation_location': summation_location,
      'denominator_mode': denominator_mode,
      'positives_cap': positives_cap,
      'scale_by_temperature': scale_by_temperature,
    }

  def call(self, y_true, y_pred):
    return contrastive_loss(y_pred, y_true, **self._options)

  def get_config(self):
    """Returns the arguments of `__init__`, enums as their short values."""
    choices = {name: self._options[name].value for name in _CHOICES}
    return {**super().get_config(), **self._options, **choices}

  @classmethod
  def from_config(cls, config):
    choices = {name: _CHOICES[name](config[name]) for name in _CHOICES}
    return cls(**{**config, **choices})


def cross_entropy_loss(labels, logits, label_smoothing=0.0):
  """Softmax cross-entropy with smoothed labels.

  Args:
    labels: The class of each sample, of any numeric dtype: whole numbers
      [batch] or [batch, 1] from 0 to classes - 1, or rows [batch, classes],
      one-hot or other probabilities that sum to 1. An invalid label raises if
      its value is known; in a graph, the loss of the sample is NaN.
    logits: [batch, classes] of any float dtype; computed in float32.
    label_smoothing: Python float in [0, 1]: the share of each label that is
      spread evenly over all classes, its own included.

  Returns:
    float32 [batch], in nats.

  Raises:
    ValueError: If the shapes do not fit, the smoothing is outside [0, 1], or a
      label is not as described.
  """
  if not 0 <= label_smoothing <= 1:
    raise ValueError(
      f'label_smoothing={label_smoothing} is a share of the label; give a '
      'number in [0, 1].'
    )
  logits = tf.cast(tf.convert_to_tensor(logits), tf.float32)
  batch, classes = logits.shape.with_rank(2)
  labels = _as_labels(labels, batch, _GIVE_TARGETS)

  def read(labels):
    """Returns float32 [batch, classes], and bool [batch], true if valid."""
    if labels.shape.rank == 1 or (labels.shape[1] == 1 and classes > 1):
      ids, is_id = _read_ids(labels)
      return tf.one_hot(ids, classes), is_id & (ids < classes)
    rows = tf.ensure_shape(tf.cast(labels, tf.float32), logits.shape)
    is_sum = tf.abs(tf.reduce_sum(rows, axis=1) - 1) < _SLACK
    return rows, is_sum & (tf.reduce_min(rows, axis=1) >= 0)

  if labels.shape.rank == 2 and labels.shape[1] not in (None, 1, classes):
    raise ValueError(
      f'Found labels of shape {labels.shape} for logits of shape '
      f'{logits.shape}; {_GIVE_TARGETS}.'
    )
  _check_known(labels, None, lambda x: read(x)[1], _GIVE_TARGETS)
  rows, is_label = read(labels)
  rows = rows * (1 - label_smoothing) + label_smoothing / classes
  loss = tf.nn.softmax_cross_entropy_with_logits(labels=rows, logits=logits)
  return tf.where(is_label, loss, np.nan)


def _for_loss(memory, has_labels, local_batch):
  """Returns a memory without gradient; without labels, all slots differ."""
  class_ids = memory.class_ids
  if not has_labels:
    slots = tf.range(class_ids.shape[0]) + local_batch * replicas.num_replicas()
    class_ids = tf.where(class_ids >= 0, slots, class_ids)
  return pairwise.Memory(tf.stop_gradient(memory.features), class_ids)


def _class_ids(labels, local_batch, is_valid):
  """Returns the class of each sample of this replica.

  Args:
    labels: Class ids or one-hot rows, see `contrastive_loss`.
    local_batch: b.
    is_valid: bool [b], or None. The labels of padding are ignored.

  Returns:
    class_ids: int32 [b].
    has_class: bool [b], whether the label is valid.

  Raises:
    ValueError: If the shape is wrong, or a label whose value is known is
      invalid.
  """
  labels = _as_labels(labels, local_batch, _GIVE_CLASSES)
  if labels.shape.rank == 1 or labels.shape[1] == 1:
    read = _read_ids
  else:
    read = _read_rows
  _check_known(labels, is_valid, lambda x: read(x)[1], _GIVE_CLASSES)
  return read(labels)


def _read_ids(ids):
  """Returns class ids [b] or [b, 1] as int32 [b], and which are valid."""
  ids = tf.reshape(ids, [-1])
  is_id = ids >= 0  # False for NaN.
  is_id &= ids <= _LARGEST_ID.get(ids.dtype, tf.int32.max)
  if ids.dtype.is_floating:
    is_id &= tf.equal(ids, tf.floor(ids))
  # An invalid id could equal that of padding.
  return tf.where(is_id, tf.cast(ids, tf.int32), 0), is_id


def _read_rows(rows):
  """Returns the classes of one-hot rows, int32 [b], and which are valid."""
  # NaN anywhere makes the sum NaN.
  is_one_hot = tf.equal(tf.reduce_sum(rows, axis=1), 1)
  is_one_hot &= tf.equal(tf.reduce_max(rows, axis=1), 1)
  is_one_hot &= tf.reduce_min(rows, axis=1) >= 0
  class_ids = tf.argmax(rows, axis=1, output_type=tf.int32)
  if rows.shape[1] is not None:
    return class_ids, is_one_hot
  # The number of columns may be known only when the graph runs.
  is_ids = tf.equal(tf.shape(rows)[1], 1)
  ids, is_id = _read_ids(tf.reduce_max(rows, axis=1))
  return tf.where(is_ids, ids, class_ids), tf.where(is_ids, is_id, is_one_hot)


_GIVE_CLASSES = (
  'give each sample one class, by its id, a whole number from 0 on, [batch] or '
  '[batch, 1], or by a one-hot row, [batch, classes]'
)
_GIVE_TARGETS = (
  'give each sample a class that has a logit, by its id, [batch] or [batch, 1],'
  ' or a row of probabilities that sum to 1, [batch, classes]'
)


def _as_labels(labels, batch, remedy):
  """Returns labels, [batch] or [batch, ...], in a type for all devices."""
  labels = tf.convert_to_tensor(labels)
  is_number = labels.dtype.is_floating or labels.dtype.is_integer
  if not is_number and not labels.dtype.is_bool:
    raise ValueError(f'Found labels of type {labels.dtype.name}; {remedy}.')
  shape = labels.shape
  if shape.rank not in (1, 2) or not shape[:1].is_compatible_with([batch]):
    raise ValueError(
      f'Found labels of shape {shape} for {batch} samples; {remedy}.'
    )
  if labels.dtype.is_floating:
    return labels
  is_wide = labels.dtype in (tf.uint32, tf.int64, tf.uint64)
  return tf.cast(labels, tf.int64 if is_wide else tf.int32)


def _check_known(labels, is_valid, is_right, remedy):
  """Checks labels whose values are known before the graph runs.

  Args:
    labels: [b] or [b, classes].
    is_valid: bool [b], or None.
    is_right: Function from labels to bool [b].
    remedy: What to do about an invalid label, for the message.

  Raises:
    ValueError: If `is_right` is false for a valid sample.
  """
  values = tf.get_static_value(labels)
  matters = True if is_valid is None else tf.get_static_value(is_valid)
  if values is None or matters is None:
    return
  with tf.__internal__.eager_context.eager_mode():
    wrong = np.flatnonzero(matters & ~is_right(tf.constant(values)).numpy())
  if not len(wrong):
    return
  label = values[wrong[0]].reshape([-1])
  if len(label) == 1:
    found = f'is {label[0]}'
  else:
    found = f'sums to {label.sum()}, and its largest entry is {label.max()}'
  raise ValueError(f'Row {wrong[0]} of labels {found}; {remedy}.')


def _check_choices(**choices):
  for name, choice in choices.items():
    if not isinstance(choice, _CHOICES[name]):
      raise ValueError(
        f'{name}={choice!r} is no member of enums.{_CHOICES[name].__name__}; '
        f'choose one of {[member.name for member in _CHOICES[name]]}.'
      )


def _batch_and_views(features):
  shape = features.shape
  if shape.rank is None or shape.rank < 3 or None in shape[:2].as_list():
    raise ValueError(
      f'Found features of shape {shape}, expected [batch, views, ...] with '
      'static batch and views; give a single view as [batch, 1, dims].'
    )
  return shape[:2].as_list()


def _check_positives_cap(positives_cap, views, local_batch):
  if positives_cap < 0:
    return
  if positives_cap % views:
    raise ValueError(
      f'positives_cap={positives_cap} is no multiple of the {views} views; '
      f'try {positives_cap // views * views}, or -1 for no limit.'
    )
  most = local_batch * replicas.num_replicas() * views
  if positives_cap > most:
    raise ValueError(
      f'positives_cap={positives_cap} exceeds the {most} views of the global '
      f'batch; try {most}, or -1 for no limit.'
    )


def _with_shape(name, value, shape):
  value = tf.convert_to_tensor(value)
  if not value.shape.is_compatible_with(shape):
    raise ValueError(
      f'Found {name} of shape {value.shape}, expected {tf.TensorShape(shape)}; '
      'give one entry per sample.'
    )
  return value
