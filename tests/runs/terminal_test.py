"""What stands on a terminal, and in a file instead."""

import os
import subprocess
import sys

from tests import command

_SCRIPT = """
import sys
sys.path.insert(0, {root!r})
from absl import app, logging
from supcon.runs import terminal

def main(argv):
  logging.set_verbosity(logging.INFO)
  terminal.shorten()
  progress = {{'is_progress': True}}
  logging.info('begin')
  logging.info('step 1 of 3 with more', extra=progress)
  logging.info('step 2 of 3', extra=progress)
  logging.info('between')
  logging.info('step 3 of 3', extra=progress)
  terminal.say('main.py: stopped')
  terminal.say('end')

app.run(main)
"""


def _run(stderr):
  subprocess.run(
    [sys.executable, '-c', _SCRIPT.format(root=str(command.ROOT))],
    stderr=stderr,
    check=True,
    env={**os.environ, 'COLUMNS': '24'},
  )


def test_on_a_terminal_progress_is_one_line():
  ours, theirs = os.openpty()
  _run(theirs)
  written = os.read(ours, 10_000).decode()
  # What a terminal keeps of a line is what follows the last \r; \x1b[K clears
  # what was there. It has 24 columns, 9 of which the time takes.
  first, second, third, last = written.removesuffix('\r\n').split('\r\n')
  assert first[9:] == 'begin'
  start, *parts = second.split('\r')
  assert start == ''
  assert [part[9:] for part in parts[:2]] == [
    'step 1 of 3 wi\x1b[K',
    'step 2 of 3\x1b[K',
  ]
  assert parts[2].startswith('\x1b[K') and parts[2].endswith(' between')
  assert third.split('\r')[-1] == '\x1b[Kmain.py: stopped'
  assert last == 'end'


def test_in_a_file_every_line_stands(tmp_path):
  with (tmp_path / 'log').open('w') as file:
    _run(file)
  lines = (tmp_path / 'log').read_text().splitlines()
  assert [line[9:] for line in lines[:5]] == [
    'begin',
    'step 1 of 3 with more',
    'step 2 of 3',
    'between',
    'step 3 of 3',
  ]
  assert lines[5:] == ['main.py: stopped', 'end']


def test_of_threads_only_those_that_nobody_hears():
  script = """
import sys, threading
sys.path.insert(0, {root!r})
from supcon.runs import terminal

def fail():
  raise RuntimeError(threading.current_thread().name)

terminal.quiet_tensorflow()
for name in ('EventLoggerThread', 'another'):
  thread = threading.Thread(target=fail, name=name)
  thread.start()
  thread.join()
"""
  run = subprocess.run(
    [sys.executable, '-c', script.format(root=str(command.ROOT))],
    capture_output=True,
    text=True,
    check=True,
  )
  assert run.stderr.count('Traceback') == 1
  assert run.stderr.endswith('RuntimeError: another\n')
