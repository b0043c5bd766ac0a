"""Trains, evaluates, exports and uses a supervised contrastive model.

  python main.py --mode=train_then_eval --use_tpu=False --input_fn=digits \
    --data_dir=DIR --model_dir=DIR ...

`--help` lists every flag; scripts/ holds the published settings. Exit codes: 0,
done; 1, stopped early (for example, the loss was not a number); 2, nothing was
started because flags, files or data do not fit; 69, no trainer appeared within
--eval_timeout_secs; 75, a signal ended the job (the same command continues it).
supcon/runs/status_report.py lists the exit codes of --mode=status.
"""

import sys

try:
  from absl import app
  from absl import flags
  from absl import logging
except ImportError as error:
  pip = f'{sys.executable} -m pip install -r requirements.txt'
  sys.exit(f'main.py: error: {error}; run: {pip}')

import hparams_flags
from supcon.compute import installation
from supcon.config import help_page
from supcon.config import safe_text
from supcon.runs import signals
from supcon.runs import terminal

FLAGS = flags.FLAGS
hparams_flags.define()
flags.adopt_module_key_flags(hparams_flags)


def main(argv):
  """Runs the job, unless a signal ends it."""
  try:
    with signals.handled():
      return _main(argv)
  except signals.Interrupted as error:
    signals.answer_with(signals.EXIT_CODE)
    terminal.say(f'main.py: interrupted: {error}')
    return signals.EXIT_CODE


def _main(argv):
  """Reads the flags, checks them, and runs the job."""
  if FLAGS['verbosity'].using_default_value:
    logging.set_verbosity(logging.INFO)
  terminal.shorten()
  try:
    options, params = hparams_flags.read(FLAGS, argv[1:], _load_facts)
    params.check()
    options.check(params)
    if options.mode in ('status', 'compare'):
      return _look(options)
    installation.load()  # Late: wrong flags are reported at once.
  except ValueError as error:
    return _refuse(error)

  from supcon import jobs

  if params.input_data.preprocessing.compile_augmentation:
    terminal.quiet_xla()
  try:
    job = jobs.prepare(options, params)
    job.announce()
  except (ValueError, OSError, jobs.FileError) as error:
    return _refuse(error)
  try:
    job.run()
  except Exception as error:  # pylint: disable=broad-except
    signals.check()  # It may be what some code makes of a signal.
    reason = jobs.reason(error)
    if not reason:
      raise  # An unexpected error.
    logging.debug('Stopped here:', exc_info=True)
    terminal.say(f'main.py: stopped: {safe_text.one_line(reason)}')
    # 69 is EX_UNAVAILABLE of sysexits.h.
    return 69 if isinstance(error, jobs.TrainerGoneError) else 1


def _look(options):
  """Looks at runs without TensorFlow; returns the exit code."""
  if options.mode == 'compare':
    from supcon.reports import comparison_pages

    return comparison_pages.show(options)
  from supcon.runs import status_report

  return status_report.show(options.model_dir)


def _load_facts():
  """Returns the module of what earlier runs tell; loads TensorFlow."""
  installation.load()
  from supcon.training import earlier_runs

  return earlier_runs


def _refuse(error):
  """Reports a user's mistake in one line; --verbosity=1 adds the traceback."""
  signals.check()
  logging.debug('Refused here:', exc_info=True)
  terminal.say(f'main.py: error: {safe_text.one_line(error)}')
  return 2


def parse_flags(argv):
  if {'--help', '--helpfull', '-help', '-h'} & set(argv[1:]):
    sys.exit(terminal.show(help_page.text()))
  try:
    return FLAGS(argv)
  except flags.Error as error:
    sys.exit(_refuse(hparams_flags.explain_parsing(error)))


if __name__ == '__main__':
  try:
    app.run(main, flags_parser=parse_flags)
  except SystemExit as end:
    signals.answer_with(end.code or 0)
    raise
