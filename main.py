"""Trains, evaluates and exports a supervised contrastive model.

  python main.py --mode=train_then_eval --use_tpu=False --input_fn=digits \
    --data_dir=DIR --model_dir=DIR ...

`--help` lists every flag; scripts/ holds the published settings. Exit codes: 0
done, 1 stopped on the way (a loss that is not a number), 2 nothing was begun
because flags, files or data do not fit.
"""

import logging as python_logging
import os
import sys
import warnings

from absl import app
from absl import flags
from absl import logging

import hparams_flags

FLAGS = flags.FLAGS
hparams_flags.define()
flags.adopt_module_key_flags(hparams_flags)


def main(_):
  """Reads the flags, checks them, and runs the job."""
  _log_short_lines()
  try:
    options, params = hparams_flags.read(FLAGS)
    params.check()
    options.check(params)
  except ValueError as error:
    return _refuse(error)

  # Only now, so that --help and wrong flags are answered at once.
  _quiet_tensorflow()
  from supcon import jobs

  if params.input_data.preprocessing.compile_augmentation:
    _quiet_xla()
  try:
    job = jobs.prepare(options, params)
    job.announce()
  except (ValueError, OSError, jobs.FileError) as error:
    return _refuse(error)
  try:
    job.run()
  except jobs.Stopped as error:
    print(f'main.py: stopped: {error}', file=sys.stderr)
    return 1


def _refuse(error):
  """Reports a user's mistake in one line; --verbosity=1 shows where."""
  logging.debug('Refused here:', exc_info=True)
  print(f'main.py: error: {" ".join(str(error).split())}', file=sys.stderr)
  return 2


def _parse_flags(argv):
  try:
    rest = FLAGS(argv)
    if rest[1:]:
      raise flags.Error(
        f'found {rest[1]!r}, expected flags only, as --name=value.'
      )
  except flags.Error as error:
    sys.exit(_refuse(error))
  return rest


def _log_short_lines():
  """Logs what supcon/ has to say from INFO on, as 'time message'."""
  if FLAGS['verbosity'].using_default_value:
    logging.set_verbosity(logging.INFO)
  handler = logging.get_absl_handler()
  handler.setFormatter(
    python_logging.Formatter('%(asctime)s %(message)s', '%H:%M:%S')
  )
  handler.addFilter(
    lambda record: (
      record.levelno >= python_logging.ERROR
      or logging.level_debug()
      or 'site-packages' not in record.pathname
    )
  )


def _quiet_tensorflow():
  """Hides what TensorFlow says about itself, unless --verbosity=1."""
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
  logger = python_logging.getLogger('tensorflow')
  logger.propagate = False  # absl has the root logger: no line twice.
  if not logging.level_debug():
    logger.setLevel(python_logging.ERROR)
    warnings.filterwarnings('ignore')


def _quiet_xla():
  """Lets XLA say, unheard, what it says once in a process to no logger."""
  import tensorflow.compat.v1 as tf

  stderr = os.dup(2)
  try:
    with open(os.devnull, 'w') as nowhere:
      os.dup2(nowhere.fileno(), 2)
    config = tf.ConfigProto(device_count={'GPU': 0})
    with tf.Graph().as_default(), tf.Session(config=config) as session:
      x = tf.placeholder(tf.float32, [])
      session.run(tf.function(tf.abs, jit_compile=True)(x), {x: 0.0})
  finally:
    os.dup2(stderr, 2)
    os.close(stderr)


if __name__ == '__main__':
  app.run(main, flags_parser=_parse_flags)
