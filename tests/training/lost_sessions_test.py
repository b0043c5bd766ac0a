"""Tests of supcon.training.lost_sessions."""

import pytest
import tensorflow as tf

from supcon.training import lost_sessions

tf1 = tf.compat.v1


def test_a_session_is_not_made_anew_in_silence():
  with tf.Graph().as_default():
    step = tf1.train.get_or_create_global_step()
    increment = step.assign_add(1)
    calls = []

    class Fail(tf1.train.SessionRunHook):
      def before_run(self, run_context):
        calls.append(1)
        if len(calls) == 3:
          raise tf.errors.UnavailableError(None, None, 'busy')

    with pytest.raises(lost_sessions.LostSessionError):
      with tf1.train.MonitoredTrainingSession(
        hooks=[Fail(), lost_sessions.NewSessionHook()]
      ) as session:
        for _ in range(5):
          session.run(increment)
    assert len(calls) == 3
