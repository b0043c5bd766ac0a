"""Ends training where TensorFlow would silently create another session.

The new session would repeat examples, and TensorFlow would try without limit.
"""

import tensorflow as tf

from supcon.runs import retries
from supcon.runs import storage_errors


class Saver(tf.compat.v1.train.Saver):
  """Saves and restores checkpoints, with retries.

  TensorFlow itself neither waits nor counts: if the error occurs while a
  session is created, it starts again without end.
  """

  def __init__(self, attempts: retries.Retries, **kwargs):
    super().__init__(**kwargs)
    self._attempts = attempts

  def save(self, sess, save_path, *args, **kwargs):
    return self._call(
      f'saving {save_path}',
      lambda: super(Saver, self).save(sess, save_path, *args, **kwargs),
    )

  def restore(self, sess, save_path):
    return self._call(
      f'restoring {save_path}',
      lambda: super(Saver, self).restore(sess, save_path),
    )

  def _call(self, what, function):
    try:
      return self._attempts.call(what, function)
    except retries.TRANSIENT_ERRORS as error:
      raise LostSessionError(
        f'{what}: {storage_errors.reason(error)}'
      ) from error


class NewSessionHook(tf.compat.v1.train.SessionRunHook):
  """Ends training if TensorFlow would silently create another session.

  If storage fails for a moment, TensorFlow creates a new session and restores
  the newest checkpoint, without limit. But its input would start where this
  call of train() started, and so repeat examples. So the error is passed on to
  the caller, which knows the next batch.
  """

  def __init__(self):
    self._has_begun = False

  def after_create_session(self, session, coord):
    if self._has_begun:
      raise LostSessionError('storage or a device was gone for a moment')
    self._has_begun = True


class LostSessionError(RuntimeError):
  """Storage or a device failed, and the session with it.

  It is not a TensorFlow error, because TensorFlow would create another session.
  """
