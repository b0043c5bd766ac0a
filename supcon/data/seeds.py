"""Random numbers as functions of their purpose alone."""

import enum

import tensorflow as tf


class Purpose(enum.IntEnum):
  """The purpose of random numbers; no two purposes share any."""

  ORDER = 0
  TRAIN_VIEWS = 1
  EVAL_VIEWS = 2
  LABEL_NOISE = 3
  SHARDS = 4
  WINDOW = 5
  CLASS = 6


def key(seed, purpose, turn=0, index=0):
  """Returns int64 [2], different for different arguments.

  Args:
    seed: The run's seed, a Python int of 32 bits.
    purpose: A Purpose.
    turn: int64 [], below 2^27, such as the number of the pass over the data.
    index: int64 [], below 2^32, such as the index of the example.
  """
  turn, index = tf.cast(turn, tf.int64), tf.cast(index, tf.int64)
  return tf.stack([seed, (purpose * 2**27 + turn) * 2**32 + index])


def scrambled(key):
  """Returns random int64 [2]; arithmetic on it will not meet another key."""
  return tf.random.stateless_uniform([2], key, None, None, tf.int64)
