"""--mode=status: reports the status of a run in words and as exit code.

It answers at once, because it does not use TensorFlow, unless model_dir is on
an object store.
"""

import sys

from supcon.config import safe_text
from supcon.runs import locks
from supcon.runs import status
from supcon.runs import storage
from supcon.runs import timestamps

# Exit codes for scripts that look after a run: after CAN_CONTINUE the same
# command resumes it.
DONE = 0
FAILED = 1
NO_RUN = 2
RUNNING = 10
CAN_CONTINUE = 11

_CODES = {  # For a process that has recorded how it ended.
  status.DONE: DONE,
  status.STOPPED: FAILED,
  status.FAILED: FAILED,
  status.INTERRUPTED: CAN_CONTINUE,
}

# A process that cannot be checked from here counts as gone after this long
# without news. The lock also provides heartbeats of a trainer.
_SILENCE_SECONDS = 600.0

_UNITS = (('s', 1, 100), ('min', 60, 6000), ('h', 3600, 172800))


def show(model_dir: str) -> int:
  """Prints the status of the run in model_dir.

  Args:
    model_dir: A local directory, or one on an object store.

  Returns:
    The exit code.
  """
  try:
    trainer = status.read(model_dir)
    evaluator = status.read(model_dir, status.EVALUATOR)
    holder = locks.read(model_dir)
  except storage.errors() as error:
    return _refuse(f'cannot be read: {safe_text.for_files(error)}')
  if not trainer and not evaluator:
    return _refuse('holds no status.json: nothing has been trained there.')
  found = trainer or evaluator
  code, news = look_at(found, holder)
  rows = [('state', news), *_rows(found, code == RUNNING)]
  if trainer and evaluator:
    other_code, news = look_at(evaluator, None)
    rows.append(('evaluator', f'{news}; {_who(evaluator)}'))
    if code == DONE and other_code == RUNNING:
      code = RUNNING  # Evaluation still runs.
  for label, text in rows:
    print(f'{label:<12}{safe_text.for_files(text)}')
  return code


def _refuse(reason):
  print(f'main.py: error: --model_dir {reason}', file=sys.stderr)
  return NO_RUN


def look_at(
  found: status.Status, holder: locks.Holder | None
) -> tuple[int, str]:
  """Returns the exit code for a process, and its activity in words.

  Args:
    found: What the process has said of itself.
    holder: Who holds the lock of its model_dir, if it trains there.
  """
  if found.has_ended:
    return _CODES.get(found.state, FAILED), found.state
  silence = timestamps.age(found.updated)
  is_silent = silence is None or silence > _SILENCE_SECONDS
  is_there = found.process.is_there()
  if is_there is None:
    is_there = not is_silent
    if holder and holder.process == found.process:
      is_there = holder.is_alive()
  code = RUNNING if is_there else CAN_CONTINUE
  if is_there and not is_silent:
    return code, found.state
  question = 'is it suspended?' if is_there else 'was it killed?'
  return code, f'{found.state}; no news for {_span(silence)}: {question}'


def _rows(found, is_running):
  """Yields (label, text)."""
  if found.error:
    yield 'reason', found.error
  if found.stage:
    yield 'stage', str(found.stage)
  if found.step is not None:
    text = str(found.step)
    # Do not show a total that the run has already passed.
    if found.total_steps and found.step <= found.total_steps:
      percent = 100 * found.step / found.total_steps
      text += f' of {found.total_steps} ({percent:.1f}%)'
    yield 'step', text
  if is_running and found.images_per_second:
    text = f'{found.images_per_second:.0f} images/s'
    if found.seconds_left is not None:
      text += f', {timestamps.duration(found.seconds_left)} left'
    yield 'speed', text
  if entry := found.last_checkpoint:
    yield 'checkpoint', f'{_step(entry)}: {entry.get("path")}'
  if entry := found.last_evaluation:
    top_1 = entry.get('top_1')
    if isinstance(top_1, float):
      top_1 = f'{100 * top_1:.2f}%'
    on = f' on {entry["data"]}' if isinstance(entry.get('data'), str) else ''
    yield 'evaluation', f'{_step(entry)}: top-1 {top_1}{on}'
  yield (
    'so far',
    f'{found.restarts} restarts, {found.skipped_batches} batches skipped, '
    f'{found.rollbacks} rollbacks, {found.retries} retries',
  )
  yield 'process', f'{_who(found)}, since {found.started}'


def _step(entry):
  """Returns 'step 1000, 2 min ago'."""
  return (
    f'step {entry.get("step")}, {_span(timestamps.age(entry.get("time")))} ago'
  )


def _who(found):
  return (
    f'{found.process}, last heard of {_span(timestamps.age(found.updated))} ago'
  )


def _span(seconds):
  """Returns a time in a suitable unit: '12 min'."""
  if seconds is None:
    return 'an unknown time'
  for name, size, limit in _UNITS:
    if seconds < limit:
      return f'{max(0, seconds) / size:.0f} {name}'
  return f'{seconds / 86400:.0f} days'
