"""Exports in a process of TensorFlow 1, as main.py does.

python -m tests.serving.exporting CHECKPOINT DIRECTORY [hang]

Prints what exports.write returns, as JSON. With `hang` it stops in the middle
of writing, says so, and waits to be killed.
"""

import json
import os
import sys
import time

import tensorflow as tf

from supcon.serving import exports
from supcon.serving import hub_module
from tests.serving import exported

tf1 = tf.compat.v1


def _hang(model, path):
  del model
  tf.io.gfile.makedirs(path)
  with open(os.path.join(path, 'saved_model.pb'), 'w') as file:
    file.write('half')
  print('hanging', flush=True)
  time.sleep(600)


def main(checkpoint, directory, how=''):
  tf1.disable_v2_behavior()
  tf1.enable_v2_tensorshape()
  if how == 'hang':
    hub_module.write = _hang
  export = exports.write(
    exported.trained_model(checkpoint),
    directory,
    ('saved_model', 'hub'),
    0,
    exported.FACTS,
  )
  assert not tf.executing_eagerly()
  print(json.dumps(export._asdict()))


if __name__ == '__main__':
  main(*sys.argv[1:])
