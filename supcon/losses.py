"""The losses: supervised contrastive and cross-entropy.

The code reads as if there were one device. Anchors are the samples of this
replica, contrasts are those of the global batch, and only `replicas.gather`
deals with distribution.

Symbols in the comments: b samples here, B in the global batch, V views of each
sample, A anchors, C contrasts, D feature dimensions.
"""

import numpy as np
import tensorflow as tf

from supcon.compute import replicas
from supcon.config import enums

_CHOICES = {
  'contrast_mode': enums.LossContrastMode,
  'summation_location': enums.LossSummationLocation,
  'denominator_mode': enums.LossDenominatorMode,
}

# The class id of a sample that `is_valid` excludes.
_PADDING = -1

# Replaces an excluded logit. It is finite, so that a row of excluded logits
# alone stays free of NaN, and half of the lowest float32, so that a difference
# does not overflow.
_NOTHING = tf.float32.min / 2

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
    class_ids = _positions(local_batch)
  else:
    class_ids, has_class = _class_ids(labels, local_batch, is_valid)
    features = tf.where(has_class[:, None, None], features, np.nan)
  if is_valid is not None:
    features = tf.where(is_valid[:, None, None], features, 0.0)
    class_ids = tf.where(is_valid, class_ids, _PADDING)

  is_positive, is_negative = _pairs(
    class_ids, local_batch, anchor_views, views, positives_cap
  )
  loss = supcon_loss(
    anchors=_views_first(features[:, :anchor_views]),
    contrasts=_views_first(replicas.gather(features)),
    is_positive=is_positive,
    is_negative=is_negative,
    temperature=temperature,
    summation_location=summation_location,
    denominator_mode=denominator_mode,
  )
  if views == 1:  # As published; see the conventions above.
    loss /= tf.squeeze(_count(is_positive), axis=1)
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


def supcon_loss(
  anchors,
  contrasts,
  is_positive,
  is_negative,
  temperature,
  summation_location,
  denominator_mode,
):
  """Contrastive loss of each anchor, given its positives and negatives.

  Equations, conventions and choices are those of `contrastive_loss`. The
  gradient is analytic (first derivatives only). The positives of an anchor
  pull; its denominator pushes back with equal force, divided by softmax:

    dL_i / ds_ij = push_i share_ij - pull_ij,   push_i = sum_j pull_ij.

  This avoids most of the [A, C] matrices that automatic differentiation would
  keep. The formulas need only the peak, log-sum and pooled terms of a row, so
  they also hold if the contrasts come in tiles.

  Args:
    anchors: float32 [A, D].
    contrasts: float32 [C, D].
    is_positive: bool [A, C], false on the anchor itself.
    is_negative: bool [A, C], disjoint from `is_positive`. Contrasts that are
      neither are left out.
    temperature: Python float > 0.
    summation_location: enums.LossSummationLocation.
    denominator_mode: enums.LossDenominatorMode.

  Returns:
    float32 [A], in nats; NaN where `contrastive_loss` says so.
  """
  pool = _POOLS[summation_location]
  one_positive = denominator_mode is enums.LossDenominatorMode.ONE_POSITIVE
  is_contrast = is_positive | is_negative
  # The terms that all denominators of an anchor share.
  if denominator_mode is enums.LossDenominatorMode.ALL:
    is_shared = is_contrast
  else:
    is_shared = is_negative
  has_positives = tf.reduce_any(is_positive, axis=1, keepdims=True)
  # Devices differ in whether a maximum propagates NaN, and the exponential of
  # an infinity may be 0. So NaN and infinities are marked explicitly.
  is_broken = _is_broken(anchors)[:, None] | (
    has_positives
    & tf.reduce_any(
      is_contrast & _is_broken(contrasts)[None], axis=1, keepdims=True
    )
  )

  @tf.custom_gradient
  def loss_of(similarities):
    # Dividing the anchors instead would round once more, which matters for
    # large features.
    logits = similarities / temperature
    share, peak, log_sum = _softmax(logits, is_shared)
    log_ratio = logits - peak - log_sum  # log(exp(s_ij) / shared denominator)
    if one_positive:
      # exp(s) / (exp(s) + D) is the sigmoid of log(exp(s) / D).
      slope = tf.sigmoid(-log_ratio)
      log_ratio = tf.math.log_sigmoid(log_ratio)
    pooled, pooled_gradient = pool(log_ratio, is_positive)
    # Without a shared denominator, a positive has nothing to push against.
    is_defined = tf.not_equal(peak, _NOTHING) & has_positives

    def gradient(upstream):
      upstream = tf.where(is_defined, upstream[:, None], 0.0)
      pull = pooled_gradient(upstream / temperature)
      if one_positive:
        pull *= slope
      push = tf.reduce_sum(pull, axis=1, keepdims=True)
      return push * share - pull

    loss = tf.where(is_defined, -pooled, 0.0)
    return tf.squeeze(tf.where(is_broken, np.nan, loss), axis=1), gradient

  return loss_of(replicas.inner_products(anchors, contrasts))


def _is_broken(features):
  """Returns bool [n]: which rows of float32 [n, D] hold NaN or infinities."""
  return tf.reduce_any(~tf.math.is_finite(features), axis=1)


def _softmax(values, mask):
  """Softmax over the masked entries of each row, with its normaliser.

  Args:
    values: float32 [A, C].
    mask: bool [A, C].

  Returns:
    share: float32 [A, C], 0 outside the mask; uniform where the mask is empty.
    peak: float32 [A, 1], the largest value; `_NOTHING` where the mask is empty.
    log_sum: float32 [A, 1], log of the sum of exp(values - peak).
  """
  masked = tf.where(mask, values, _NOTHING)
  peak = tf.reduce_max(masked, axis=1, keepdims=True)
  share = tf.nn.softmax(masked)
  # The share of the peak is exp(0) / sum, so this saves another exp and sum.
  log_sum = -tf.math.log(tf.reduce_max(share, axis=1, keepdims=True))
  return share, peak, log_sum


def _mean(values, mask):
  """Mean of the masked entries of each row, for summation OUTSIDE the log.

  Args:
    values: float32 [A, C].
    mask: bool [A, C].

  Returns:
    float32 [A, 1], and a function from the gradient with respect to it to the
    gradient with respect to `values`.
  """
  count = _count(mask)
  total = tf.reduce_sum(tf.where(mask, values, 0.0), axis=1, keepdims=True)
  return total / count, lambda upstream: tf.where(mask, upstream / count, 0.0)


def _log_mean_exp(values, mask):
  """Like `_mean`, but log(mean(exp(values))): summation INSIDE the log."""
  share, peak, log_sum = _softmax(values, mask)
  pooled = peak + (log_sum - tf.math.log(_count(mask)))
  return pooled, lambda upstream: upstream * share


_POOLS = {
  enums.LossSummationLocation.OUTSIDE: _mean,
  enums.LossSummationLocation.INSIDE: _log_mean_exp,
}


def _count(mask):
  """Returns float32 [A, 1]: number of true entries per row, at least 1."""
  count = tf.reduce_sum(tf.cast(mask, tf.float32), axis=1, keepdims=True)
  return tf.maximum(count, 1.0)


def _pairs(class_ids, local_batch, anchor_views, views, positives_cap):
  """Determines the positives and the negatives of each anchor.

  It compares samples, [b, B], and repeats the result over the views, which
  takes V^2 times less work than comparing views.

  Args:
    class_ids: int32 [b], or `_PADDING`.
    local_batch: b.
    anchor_views: Number of views that are anchors.
    views: V.
    positives_cap: As in `contrastive_loss`.

  Returns:
    is_positive, is_negative: bool [anchor_views * b, V * B]. Rows and columns
      are in the order of `_views_first`.
    are ordered as `_views_first` does it.
  """
  contrast_ids = replicas.gather(class_ids)[None, :]
  anchor_ids = class_ids[:, None]
  global_batch = local_batch * replicas.num_replicas()
  is_own = tf.equal(_positions(local_batch)[:, None], tf.range(global_batch))
  is_alike = tf.equal(anchor_ids, contrast_ids)
  is_negative = ~is_alike & (tf.not_equal(contrast_ids, _PADDING))
  is_alike &= tf.not_equal(anchor_ids, _PADDING)
  is_other = is_alike & ~is_own
  if positives_cap >= 0:
    rank = tf.cumsum(tf.cast(is_other, tf.int32), axis=1)  # from 1
    is_other &= rank <= positives_cap // views
    is_alike = is_other | (is_alike & is_own)
  # In its own sample, every view except the anchor itself is a positive.
  is_positive = tf.concat(
    [
      tf.concat(
        [
          is_other if view == anchor_view else is_alike for view in range(views)
        ],
        axis=1,
      )
      for anchor_view in range(anchor_views)
    ],
    axis=0,
  )
  return is_positive, tf.tile(is_negative, [anchor_views, views])


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


def _positions(local_batch):
  """Returns int32 [b]: positions of this replica's samples in the batch."""
  return replicas.replica_id() * local_batch + tf.range(local_batch)


def _views_first(features):
  """[n, V, D] -> [V * n, D]: the samples' first views, their second, ..."""
  samples, views = features.shape[:2]
  return tf.reshape(tf.transpose(features, [1, 0, 2]), [views * samples, -1])


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
