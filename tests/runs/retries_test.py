"""Tests of supcon.runs.retries."""

import pytest
import tensorflow as tf

from supcon.runs import retries

tf1 = tf.compat.v1


def _unavailable(text='GET DIR/file: 503\nin more words'):
  return tf.errors.UnavailableError(None, None, text)


class _Storage:
  """Fails as often as it is told to."""

  def __init__(self, *errors):
    self.errors = list(errors)
    self.calls = 0

  def read(self):
    self.calls += 1
    if self.errors:
      raise self.errors.pop(0)
    return 'contents'


def _retries(**kwargs):
  pauses = []
  return retries.Retries(sleep=pauses.append, **kwargs), pauses


@pytest.mark.parametrize(
  'kind',
  [
    tf.errors.UnavailableError,
    tf.errors.DeadlineExceededError,
    tf.errors.AbortedError,
  ],
)
def test_tries_again_after_pauses_that_double(kind, caplog):
  storage = _Storage(*[kind(None, None, 'GET DIR/file: 503')] * 3)
  attempts, pauses = _retries(first_pause=2.0)
  assert attempts.call('reading DIR/file', storage.read) == 'contents'
  assert pauses == [2, 4, 8]
  assert (attempts.count, storage.calls) == (3, 4)


def test_gives_up_and_says_so():
  error = _unavailable()
  storage = _Storage(*[error] * 9)
  attempts, pauses = _retries(limit=4, first_pause=1.0)
  with pytest.raises(tf.errors.UnavailableError) as raised:
    attempts.call('reading', storage.read)
  assert raised.value is error
  assert (pauses, storage.calls) == ([1, 2, 4], 4)


@pytest.mark.parametrize(
  'error',
  [
    tf.errors.PermissionDeniedError(None, None, 'DIR/file'),
    tf.errors.NotFoundError(None, None, 'DIR/file'),
    tf.errors.ResourceExhaustedError(None, None, 'no space left'),
    tf.errors.DataLossError(None, None, 'DIR/file'),
    ValueError('a mistake'),
  ],
)
def test_what_will_not_pass_is_an_error_at_once(error):
  storage = _Storage(error)
  attempts, pauses = _retries()
  with pytest.raises(type(error)):
    attempts.call('reading', storage.read)
  assert (pauses, storage.calls, attempts.count) == ([], 1, 0)


def test_only_failures_in_a_row_count():
  attempts, pauses = _retries(limit=3, first_pause=1.0)
  for _ in range(4):
    storage = _Storage(_unavailable(), _unavailable())
    attempts.call('reading', storage.read)
  assert pauses == [1, 2] * 4
  assert attempts.count == 8
