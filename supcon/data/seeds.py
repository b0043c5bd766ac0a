"""Random numbers as functions of what they are for, and of nothing else."""

import enum

import tensorflow as tf


class Purpose(enum.IntEnum):
  """What randomness is for; purposes share no random numbers."""

  ORDER = 0
  TRAIN_VIEWS = 1
  EVAL_VIEWS = 2
  LABEL_NOISE = 3
  SHARDS = 4
  WINDOW = 5
  CLASS = 6


def key(seed, purpose, turn=0, index=0):
  """Returns int64 [2], another one for all other arguments.

  Args:
    seed: The run's seed, a Python int of 32 bits.
    purpose: A Purpose.
    turn: int64 [], below 2^27: which pass over the data, or the like.
    index: int64 [], below 2^32: of the example, or the like.
  """
  turn, index = tf.cast(turn, tf.int64), tf.cast(index, tf.int64)
  return tf.stack([seed, (purpose * 2**27 + turn) * 2**32 + index])


def scrambled(key):
  """Returns random int64 [2], so that arithmetic on it meets no other key."""
  return tf.random.stateless_uniform([2], key, None, None, tf.int64)
