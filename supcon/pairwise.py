"""The contrastive loss of anchors against contrasts, a tile at a time.

The loss looks at every pair of an anchor and a contrast, but a matrix of all
pairs, [A, C], would soon be larger than a model. So anchors come in tiles of T,
which meet all contrasts: a matrix [T, C] stays in the cache of a processor, and
a vector per anchor says everything that is needed of the rest. If all anchors
fit into one tile, there is no loop.

Symbols: A anchors, C contrasts, D feature dimensions, T anchors in a tile.
"""

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from supcon.compute import replicas
from supcon.config import enums

# The class of a contrast, and of an anchor, that is padding. They differ, so
# that no anchor is like padding.
_NO_CONTRAST, _NO_ANCHOR = -1, -2

# Replaces an excluded logit. It is finite, so that a row of excluded logits
# alone stays free of NaN, and half of the lowest float32, so that a difference
# does not overflow.
_NOTHING = tf.float32.min / 2

# Values in a matrix [T, C], 16 MiB. Matrix products want large tiles, all else
# wants small ones.
_TILE = 2**22
# Fewer anchors would make the products slow, however many contrasts there are.
_LEAST_ANCHORS = 128
# Matrices [T, C] at a time.
_MATRICES = 6
# Values, 256 MiB, up to which the backward pass finds the slopes of all tiles
# as the forward pass has left them. It is faster than to compute them again.
_MOST_KEPT = 2**26


class Anchors(NamedTuple):
  """Anchors, and what decides who is a positive of theirs.

  Attributes:
    features: float32 [A, D].
    class_ids: int32 [A].
    samples: int32 [A]: the position of the anchor's sample in the global batch.
    columns: int32 [A]: which of the contrasts is the anchor itself.
    ranks_end: int32 [A]: of other samples in its class, those with a smaller
      rank are positives.
    num_positives: float32 [A]; 0 for padding.
    num_negatives: float32 [A].
  """

  features: tf.Tensor
  class_ids: tf.Tensor
  samples: tf.Tensor
  columns: tf.Tensor
  ranks_end: tf.Tensor
  num_positives: tf.Tensor
  num_negatives: tf.Tensor


class Memory(NamedTuple):
  """Features of earlier batches, which are contrasts of this batch, too.

  Attributes:
    features: float32 [K, D], the same on all replicas.
    class_ids: int32 [K]: their classes; negative in an empty slot.
  """

  features: tf.Tensor
  class_ids: tf.Tensor


class Recalled(NamedTuple):
  """What a batch is contrasted with besides itself.

  Attributes:
    keys: float32 [b, V, D], by a slow copy of the model, in place of the batch;
      None: the batch itself.
    memory: Features of earlier batches.
  """

  keys: tf.Tensor | None
  memory: Memory


class Contrasts(NamedTuple):
  """Contrasts: all views of the global batch, then the memory.

  Attributes:
    features: float32 [C, D].
    class_ids: int32 [C].
    is_valid: bool [C], False for padding; None if there is none.
    samples: int32 [C]: the position of the contrast's sample; -1 for memory.
    ranks: int32 [C]: how many samples of its class come before its sample;
      None if that does not matter, because there is no cap.
  """

  features: tf.Tensor
  class_ids: tf.Tensor
  is_valid: tf.Tensor | None
  samples: tf.Tensor
  ranks: tf.Tensor | None

  def followed_by(self, memory):
    """Returns these contrasts and those in a memory."""
    # An empty slot must not be like an anchor that is padding.
    memory_ids = tf.maximum(memory.class_ids, _NO_CONTRAST)
    class_ids = tf.concat([self.class_ids, memory_ids], axis=0)
    return Contrasts(
      features=tf.concat([self.features, memory.features], axis=0),
      class_ids=class_ids,
      is_valid=class_ids >= 0,
      samples=tf.concat([self.samples, tf.fill(memory_ids.shape, -1)], axis=0),
      ranks=None,
    )


def pair(
  features,
  class_ids,
  is_valid,
  anchor_views,
  positives_cap=-1,
  keys=None,
  memory=None,
):
  """Pairs this replica's samples with the global batch and the memory.

  Args:
    features: float32 [b, V, D].
    class_ids: int32 [b], at least 0.
    is_valid: bool [b], False for padding; None if there is none.
    anchor_views: How many views of each sample are anchors.
    positives_cap: As in `losses.contrastive_loss`; negative with a memory.
    keys: float32 [b, V, D], the contrasts' features; None: those of anchors.
    memory: `Memory`, or None.

  Returns:
    Anchors and Contrasts: the first views of all samples, then their second
    ones, and so on; at last the memory.
  """
  local_batch, views = features.shape[:2]
  global_batch = local_batch * replicas.num_replicas()
  samples = positions(local_batch)
  anchor_ids = class_ids
  if is_valid is not None:
    anchor_ids = tf.where(is_valid, class_ids, _NO_ANCHOR)
    class_ids = tf.where(is_valid, class_ids, _NO_CONTRAST)
  all_ids = replicas.gather(class_ids)
  ranks, sizes = _ranks_and_sizes(all_ids)
  is_contrast = all_ids >= 0
  num_contrasts = views * tf.reduce_sum(tf.cast(is_contrast, tf.int32))

  others = tf.gather(sizes, samples) - 1
  most = global_batch if positives_cap < 0 else positives_cap // views
  num_positives = views * tf.minimum(others, most) + views - 1
  num_positives = tf.where(anchor_ids >= 0, num_positives, 0)
  num_negatives = num_contrasts - views * (others + 1)
  # A sample does not count as one of those that come before another of its
  # class, seen from there.
  rank = tf.gather(ranks, samples)
  anchors = {
    'class_ids': anchor_ids,
    'samples': samples,
    'ranks_end': most + tf.cast(rank <= most, tf.int32),
    'num_positives': tf.cast(num_positives, tf.float32),
    'num_negatives': tf.cast(num_negatives, tf.float32),
  }
  contrasts = Contrasts(
    features=_views_first(replicas.gather(features if keys is None else keys)),
    class_ids=tf.tile(all_ids, [views]),
    is_valid=None if is_valid is None else tf.tile(is_contrast, [views]),
    samples=tf.tile(tf.range(global_batch), [views]),
    ranks=None if positives_cap < 0 else tf.tile(ranks, [views]),
  )
  if memory is not None:
    alike, known = _count_in(memory.class_ids, anchor_ids)
    anchors['num_positives'] += alike
    anchors['num_negatives'] += known - alike
    contrasts = contrasts.followed_by(memory)
  return Anchors(
    features=_views_first(features[:, :anchor_views]),
    columns=tf.concat(
      [view * global_batch + samples for view in range(anchor_views)], axis=0
    ),
    **{name: tf.tile(x, [anchor_views]) for name, x in anchors.items()},
  ), contrasts


def positions(local_batch):
  """Returns int32 [b]: positions of this replica's samples in the batch."""
  return replicas.replica_id() * local_batch + tf.range(local_batch)


def _ranks_and_sizes(class_ids):
  """Returns int32 [B]: how many of a sample's class come before; are there."""
  order = tf.argsort(class_ids, stable=True)
  ordered = tf.gather(class_ids, order)
  begin = tf.searchsorted(ordered, class_ids, side='left')
  end = tf.searchsorted(ordered, class_ids, side='right')
  return tf.math.invert_permutation(order) - begin, end - begin


def _count_in(memory_ids, class_ids):
  """Returns float32 [b]: slots of an anchor's class; and []: slots in use."""
  ordered = tf.sort(memory_ids)
  begin, end = (
    tf.searchsorted(ordered, class_ids, side=side) for side in ('left', 'right')
  )
  known = tf.reduce_sum(tf.cast(memory_ids >= 0, tf.float32))
  return tf.cast(end - begin, tf.float32), known


def _views_first(features):
  """[n, V, D] -> [V * n, D]: the samples' first views, their second, ..."""
  samples, views = features.shape[:2]
  return tf.reshape(tf.transpose(features, [1, 0, 2]), [views * samples, -1])


def _masks(anchors, contrasts):
  """Returns which contrasts are positives, and which negatives: bool [T, C]."""

  def compare(relation, of_anchors, of_contrasts):
    return relation(of_anchors[:, None], of_contrasts[None])

  columns = tf.range(contrasts.features.shape[0])
  is_alike = compare(tf.equal, anchors.class_ids, contrasts.class_ids)
  is_positive = is_alike & compare(tf.not_equal, anchors.columns, columns)
  if contrasts.ranks is not None:
    # In its own sample, every view except the anchor itself is a positive.
    is_own = compare(tf.equal, anchors.samples, contrasts.samples)
    is_first = compare(tf.greater, anchors.ranks_end, contrasts.ranks)
    is_positive &= is_own | is_first
  is_negative = ~is_alike
  if contrasts.is_valid is not None:
    is_negative &= contrasts.is_valid
  return is_positive, is_negative


# --- The loss -----------------------------------------------------------------


def supcon_loss(
  anchors,
  contrasts,
  temperature,
  summation_location,
  denominator_mode,
  tile_size=None,
):
  """Contrastive loss of each anchor.

  Equations, conventions and choices are those of `losses.contrastive_loss`. The
  gradient is analytic (first derivatives only). It comes from the slopes of all
  pairs, dL_i / ds_ij, see `_tile`.

  Args:
    anchors: `Anchors`.
    contrasts: `Contrasts`.
    temperature: Python float > 0.
    summation_location: enums.LossSummationLocation.
    denominator_mode: enums.LossDenominatorMode.
    tile_size: The most anchors in a tile, whose slopes are then computed again
      for the backward pass. None: as `_tiling` chooses.

  Returns:
    float32 [A], in nats; NaN where `contrastive_loss` says so.
  """
  num_anchors, num_contrasts = (
    x.features.shape[0] for x in (anchors, contrasts)
  )
  count, size, is_kept = _tiling(num_anchors, num_contrasts, tile_size)

  def in_tiles(x):
    """[A, ...] -> [count, T, ...]; the last tile is filled up with zeros."""
    padding = [[0, count * size - num_anchors]] + [[0, 0]] * (x.shape.rank - 1)
    return tf.reshape(tf.pad(x, padding), [count, size, *x.shape[1:]])

  def from_tiles(array):
    x = array.stack()
    return tf.reshape(x, [count * size, *x.shape[2:]])[:num_anchors]

  def outputs(*shape):
    return tf.TensorArray(
      tf.float32, count, element_shape=shape, clear_after_read=False
    )

  @tf.custom_gradient
  def loss_of(anchor_features, contrast_features):
    tiles = tf.nest.map_structure(
      in_tiles, anchors._replace(features=anchor_features)
    )
    others = contrasts._replace(features=contrast_features)

    def tile(index):
      return _tile(
        tf.nest.map_structure(lambda x: tf.gather(x, index), tiles),
        others,
        temperature,
        _POOLS[summation_location],
        denominator_mode,
      )

    def forward(index, loss, *kept):
      tile_loss, slopes = tile(index)
      kept = [each.write(index, slopes()) for each in kept]
      return loss.write(index, tile_loss), *kept

    kept = [outputs(size, num_contrasts)] if is_kept else []
    loss, *kept = _for_each(count, forward, outputs(size), *kept)
    # This counts as a use. Nobody may ask for a gradient, and then TensorFlow
    # would warn.
    kept = [each.identity() for each in kept]

    def gradient(upstream):
      upstream = in_tiles(upstream / temperature)

      def backward(index, to_anchors, to_contrasts):
        slopes = kept[0].read(index) if kept else tile(index)[1]()
        weight = tf.gather(upstream, index)[:, None]
        to_anchor = replicas.exact_matmul(slopes, contrast_features)
        return (
          to_anchors.write(index, weight * to_anchor),
          to_contrasts
          + replicas.exact_matmul(
            slopes, weight * tf.gather(tiles.features, index), transpose_a=True
          ),
        )

      to_anchors, to_contrasts = _for_each(
        count,
        backward,
        outputs(size, anchor_features.shape[1]),
        tf.zeros_like(contrast_features),
      )
      return from_tiles(to_anchors), to_contrasts

    return from_tiles(loss), gradient

  loss = loss_of(*map(_all_or_nan, (anchors.features, contrasts.features)))
  # Without a shared denominator, a positive has nothing to push against.
  num_shared = anchors.num_negatives
  if denominator_mode is enums.LossDenominatorMode.ALL:
    num_shared += anchors.num_positives
  is_defined = (anchors.num_positives > 0) & (num_shared > 0)
  is_broken = ~tf.reduce_all(tf.math.is_finite(anchors.features), axis=1)
  return tf.where(is_broken, np.nan, tf.where(is_defined, loss, 0.0))


def num_values(num_anchors, num_contrasts):
  """Returns how many values the matrices of `supcon_loss` have at a time."""
  count, size, is_kept = _tiling(num_anchors, num_contrasts)
  return size * num_contrasts * (_MATRICES + count * is_kept)


def tile_shape(num_anchors, num_contrasts):
  """Returns the shape of the largest tensor of `supcon_loss`."""
  return _tiling(num_anchors, num_contrasts)[1], num_contrasts


def _tiling(num_anchors, num_contrasts, tile_size=None):
  """Returns the number of tiles, T, and whether their slopes are kept."""
  most = tile_size or max(_TILE // num_contrasts, _LEAST_ANCHORS)
  count = -(-num_anchors // most)
  is_kept = tile_size is None and num_anchors * num_contrasts <= _MOST_KEPT
  return count, -(-num_anchors // count), count == 1 or is_kept


def _for_each(count, body, *state):
  """Returns the state after state = body(index, *state) for each index."""
  if count == 1:
    return body(0, *state)
  return tf.while_loop(
    lambda index, *_: index < count,
    lambda index, *state: (index + 1, *body(index, *state)),
    (0, *state),
    parallel_iterations=1,  # Tiles that are computed at once take more memory.
  )[1:]


def _all_or_nan(features):
  """Returns features [n, D] with NaN in all of a row that is not finite.

  Then all its similarities are NaN, where those to an infinity might be
  -infinity, whose exponential is 0.
  """
  is_finite = tf.reduce_all(tf.math.is_finite(features), axis=1, keepdims=True)
  return tf.where(is_finite, features, np.nan)


def _tile(anchors, contrasts, temperature, pool, denominator_mode):
  """The loss of some anchors, and its gradient.

  The positives of an anchor pull; its denominator pushes back with equal force,
  divided by softmax:

    dL_i / ds_ij = push_i share_ij - pull_ij,   push_i = sum_j pull_ij.

  This avoids most of the matrices that automatic differentiation would keep.

  Args:
    anchors: `Anchors`, T of them.
    contrasts: `Contrasts`.
    temperature: As in `supcon_loss`.
    pool: One of `_POOLS`.
    denominator_mode: As in `supcon_loss`.

  Returns:
    The loss, float32 [T], and a function that returns the slopes, float32
    [T, C]. Both have no meaning, but finite slopes, for an anchor without
    positives or without a shared denominator.
  """
  is_positive, is_negative = _masks(anchors, contrasts)
  # The terms that all denominators of an anchor share.
  is_shared = is_negative
  if denominator_mode is enums.LossDenominatorMode.ALL:
    is_shared |= is_positive
  similarities = replicas.exact_matmul(
    anchors.features, contrasts.features, transpose_b=True
  )
  # Dividing the anchors instead would round once more, which matters for
  # large features.
  logits = similarities / temperature
  share, peak, log_sum = _softmax(logits, is_shared)
  log_ratio = logits - peak - log_sum  # log(exp(s_ij) / shared denominator)
  one_positive = denominator_mode is enums.LossDenominatorMode.ONE_POSITIVE
  if one_positive:
    # exp(s) / (exp(s) + D) is the sigmoid of log(exp(s) / D).
    slope = tf.sigmoid(-log_ratio)
    log_ratio = tf.math.log_sigmoid(log_ratio)
  num_positives = tf.maximum(anchors.num_positives, 1)[:, None]
  pooled, pull_of_pool = pool(log_ratio, is_positive, num_positives)

  def slopes():
    pull, push = pull_of_pool(), 1.0
    if one_positive:
      pull *= slope
      push = tf.reduce_sum(pull, axis=1, keepdims=True)
    return push * share - pull

  return -tf.squeeze(pooled, axis=1), slopes


def _softmax(values, mask):
  """Softmax over the masked entries of each row, with its normaliser.

  Args:
    values: float32 [T, C].
    mask: bool [T, C].

  Returns:
    share: float32 [T, C], 0 outside the mask; uniform where the mask is empty.
    peak: float32 [T, 1], the largest value; `_NOTHING` where the mask is empty.
    log_sum: float32 [T, 1], log of the sum of exp(values - peak). It is NaN if
      a masked value is, whether or not a maximum propagates NaN on a device.
  """
  masked = tf.where(mask, values, _NOTHING)
  peak = tf.reduce_max(masked, axis=1, keepdims=True)
  share = tf.nn.softmax(masked)
  # The share of the peak is exp(0) / sum, so this saves another exp and sum.
  log_sum = -tf.math.log(tf.reduce_max(share, axis=1, keepdims=True))
  return share, peak, log_sum


def _mean(values, mask, count):
  """Mean of the masked entries of each row, for summation OUTSIDE the log.

  Args:
    values: float32 [T, C].
    mask: bool [T, C].
    count: float32 [T, 1]: the number of masked entries, at least 1.

  Returns:
    float32 [T, 1], and a function that returns its gradient with respect to
    `values`, [T, C].
  """
  total = tf.reduce_sum(tf.where(mask, values, 0.0), axis=1, keepdims=True)
  return total / count, lambda: tf.where(mask, 1 / count, 0.0)


def _log_mean_exp(values, mask, count):
  """Like `_mean`, but log(mean(exp(values))): summation INSIDE the log."""
  share, peak, log_sum = _softmax(values, mask)
  return peak + (log_sum - tf.math.log(count)), lambda: share


_POOLS = {
  enums.LossSummationLocation.OUTSIDE: _mean,
  enums.LossSummationLocation.INSIDE: _log_mean_exp,
}
