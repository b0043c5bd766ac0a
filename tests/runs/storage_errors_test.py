"""Tests of supcon.runs.storage_errors."""

import errno
import os
import re

import pytest
import tensorflow as tf

from supcon.runs import storage_errors


def test_a_full_disk_is_explained(tmp_path):
  if not os.path.exists('/dev/full'):
    pytest.skip('no /dev/full, which is a disk that is full')
  with pytest.raises(tf.errors.ResourceExhaustedError) as of_tensorflow:
    with tf.io.gfile.GFile('/dev/full', 'w') as file:
      file.write('x' * 2**20)
  assert re.fullmatch(
    r'/dev/full cannot be written \(No space left on device, \d+\.\d MB free\)'
    r'\. Checkpoints saved before are untouched: make room, and start the same '
    r'command again, which continues from the newest one\.',
    storage_errors.explain_failed_write(of_tensorflow.value),
  )
  with pytest.raises(OSError) as of_python:
    with open('/dev/full', 'w') as file:
      file.write('x' * 2**20)
  explanation = storage_errors.explain_failed_write(of_python.value)
  assert 'cannot be written (No space left on device' in explanation


@pytest.mark.parametrize(
  'end',
  [
    '_temp/part-00000-of-00001.data-00000-of-00001.tempstate12597240704',
    '.meta.tmpad97d5cb7e24941a76f777b02de8bb81',
    '.index',
  ],
)
@pytest.mark.parametrize(
  'where',
  [
    '{path}; {reason}',
    "Graph execution error:\n\nDetected at node 'save/SaveV2' defined at (most "
    'recent call last):\n    File "main.py", line 13, in <module>\nNode: '
    "'save/SaveV2'\n{path}; {reason}\n\t [[{{{{node save/SaveV2}}}}]]",
  ],
)
@pytest.mark.parametrize(
  'kind, number, remedy',
  [
    (tf.errors.ResourceExhaustedError, errno.ENOSPC, 'make room'),
    (tf.errors.ResourceExhaustedError, errno.EDQUOT, 'quota raised'),
    (tf.errors.OutOfRangeError, errno.EFBIG, 'ulimit -f'),
    (tf.errors.UnknownError, errno.EIO, 'look after the disk'),
    (tf.errors.PermissionDeniedError, errno.EROFS, 'for writing'),
  ],
)
def test_errors_of_the_saver_are_explained(
  tmp_path, kind, number, remedy, where, end
):
  message = where.format(
    path=f'{tmp_path}/run 1/model.ckpt-20{end}', reason=os.strerror(number)
  )
  explanation = storage_errors.explain_failed_write(kind(None, None, message))
  assert explanation.startswith(
    f'{tmp_path}/run 1/model.ckpt-20 cannot be written ({os.strerror(number)}, '
  )
  assert remedy in explanation
  assert '\n' not in explanation


@pytest.mark.parametrize(
  'error',
  [
    tf.errors.ResourceExhaustedError(None, None, 'OOM when allocating tensor'),
    tf.errors.NotFoundError(None, None, 'a; No such file or directory'),
    FileNotFoundError(errno.ENOENT, 'No such file or directory', 'a'),
    ValueError('No space left on device'),
  ],
)
def test_other_errors_are_not_explained(error):
  assert storage_errors.explain_failed_write(error) is None


def test_what_failed_is_said_without_where_in_the_graph_it_was():
  message = (
    'Error in user-defined function passed to MapDataset:518 transformation '
    'with iterator: Iterator::Root::ParallelMapV2::Zip1:  the label is 2.\n'
    '\t [[{{node Assert}}]]'
  )
  error = tf.errors.InvalidArgumentError(None, None, message)
  assert storage_errors.reason(error) == 'the label is 2'


def test_a_reason_is_one_line():
  busy = tf.errors.UnavailableError(None, None, 'GET DIR/file: 503\nmore words')
  assert storage_errors.reason(busy) == 'GET DIR/file: 503'
  assert storage_errors.reason(RuntimeError('a\nb')) == 'a'
