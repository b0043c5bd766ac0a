"""What a process does when it is told to end: real processes, real signals."""

import contextlib
import os
import pathlib
import random
import signal
import subprocess
import sys
import threading

import pytest
import tensorflow as tf

from supcon.compute import tpu_estimator
from supcon.runs import signals
from supcon.training import run_hooks

tf1 = tf.compat.v1

_ROOT = pathlib.Path(__file__).resolve().parents[2]

# What main.py does, around what a test is about.
_SCRIPT = """
import hashlib, signal, sys, time
sys.path.insert(0, {root!r})
from supcon.runs import signals

def compute():  # In C for minutes, like TensorFlow: no handler is called.
  hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)

try:
  with signals.handled({seconds}):
{body}
except signals.Interrupted as error:
  print('main.py: interrupted:', error, file=sys.stderr)
  sys.exit(signals.EXIT_CODE)
print('done')
"""


_NEVER = 1e6


class _Script:
  """A process that runs a few lines and says when it may be signalled.

  It stands still unless a signal ends it, and time decides nothing: all signals
  that may be the same one are, and its main thread may take as long as it wants
  to, unless a test says otherwise.
  """

  def __init__(self, body, ignored=None, same=_NEVER, patience=_NEVER):
    lines = ''.join(f'    {line}\n' for line in body.splitlines())
    script = _SCRIPT.format(
      root=str(_ROOT),
      seconds=f'same_seconds={same}, patience_seconds={patience}',
      body=lines,
    )
    self._process = subprocess.Popen(
      [sys.executable, '-c', script],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
      # pytest may itself have been started where SIGINT is ignored.
      preexec_fn=lambda: [
        signal.signal(n, signal.SIG_IGN if n == ignored else signal.SIG_DFL)
        for n in (signal.SIGTERM, signal.SIGINT)
      ],
    )
    self.expect('ready')

  def expect(self, line):
    assert self._process.stdout.readline() == f'{line}\n'

  def send(self, number):
    self._process.send_signal(number)

  def send_until_it_ends(self, number):
    """As a signal may be taken for the same one as those before."""
    for _ in range(600):
      self.send(number)
      with contextlib.suppress(subprocess.TimeoutExpired):
        self._process.wait(timeout=0.1)
        return

  def answer(self):
    """Has it read a line."""
    self._process.stdin.write('\n')
    self._process.stdin.flush()

  def wait(self):
    """Returns (exit code, stdout, lines of stderr)."""
    try:
      stdout, stderr = self._process.communicate(timeout=60)
    finally:
      self._process.kill()
    return self._process.returncode, stdout, stderr.splitlines()


_READY = 'print("ready", flush=True)\n'
_SLEEP = _READY + 'time.sleep(600)'
_COMPUTE = _READY + 'compute()'
# Deferred for as long as a test takes, unless a second signal ends it.
_DEFERRED = 'with signals.deferral() as begin:\n  begin()\n  '


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize('body', [_SLEEP, _COMPUTE])
def test_ends_what_is_under_way(number, body):
  script = _Script(body, patience=0.3)
  script.send(number)
  code, stdout, errors = script.wait()
  assert code == 75
  assert stdout == ''
  (line,) = errors
  assert line.startswith(f'main.py: interrupted: {number.name}; ')


def test_cleans_up_in_peace():
  # What is passed on a moment later does not interrupt it a second time.
  script = _Script(
    f'try:\n  {_READY}  time.sleep(600)\nfinally:\n'
    '  print("cleaning", flush=True)\n  input()\n  print("clean")'
  )
  script.send(signal.SIGTERM)
  script.expect('cleaning')
  script.send(signal.SIGTERM)
  script.answer()
  code, stdout, _ = script.wait()
  assert (code, stdout) == (75, 'clean\n')


def test_a_destructor_does_not_swallow_it():
  # Python drops what is raised in one; the thread ends the process then.
  script = _Script(
    'class Slow:\n  def __del__(self):\n    ' + _READY + '    time.sleep(600)\n'
    'Slow()\ntime.sleep(600)',
    patience=0.3,
  )
  script.send(signal.SIGTERM)
  code, stdout, errors = script.wait()
  assert (code, stdout) == (75, '')
  assert len(errors) == 1, errors


def test_an_error_that_comes_of_it_is_no_error():
  script = _Script(
    'try:\n  ' + _READY + '  time.sleep(600)\nexcept BaseException as error:\n'
    '  raise ImportError("half a module") from error'
  )
  script.send(signal.SIGTERM)
  code, _, errors = script.wait()
  assert code == 75
  assert len(errors) == 1


def test_errors_are_errors():
  script = _Script(_READY + 'raise OSError("no space left")')
  code, _, errors = script.wait()
  assert code == 1
  assert errors[-1] == 'OSError: no space left'


@pytest.mark.parametrize('body', [_SLEEP, _COMPUTE])
@pytest.mark.parametrize('is_deferred', [False, True])
def test_a_second_signal_ends_at_once(body, is_deferred):
  first, last = body.splitlines()
  if is_deferred:
    body = f'{_DEFERRED}{first}\n  {last}'
  else:
    # Nothing else would end it.
    body = f'try:\n  {first}\n  time.sleep(600)\nfinally:\n  {last}'
  script = _Script(body, same=0.0)
  script.send(signal.SIGTERM)
  script.send_until_it_ends(signal.SIGINT)
  code, stdout, _ = script.wait()
  assert code == 128 + signal.SIGINT
  assert stdout == ''


def test_what_is_deferred_is_finished():
  script = _Script(
    f'{_DEFERRED}{_READY}'
    '  while not signals.received(): time.sleep(0.01)\n'
    '  time.sleep(0.5)\n'  # Longer than the patience.
    '  print(signals.received())',
    patience=0.2,
  )
  script.send(signal.SIGTERM)
  code, stdout, errors = script.wait()
  assert (code, stdout) == (75, 'True\n')
  assert 'SIGTERM: stopping after this step' in errors[0]
  assert 'interrupted: SIGTERM' in errors[1]


@pytest.mark.parametrize('wait', ['signals.sleep(600)', 'signals.check()'])
def test_what_is_deferred_may_wait_for_signals(wait):
  script = _Script(f'{_DEFERRED}{_READY}  while True: {wait}')
  script.send(signal.SIGTERM)
  assert script.wait()[0] == 75


def test_in_the_background_of_a_shell_only_sigterm_counts():
  script = _Script(_SLEEP, ignored=signal.SIGINT)
  script.send(signal.SIGINT)
  script.send(signal.SIGTERM)
  code, _, errors = script.wait()
  assert code == 75
  assert 'SIGTERM' in errors[0]


def test_sigterm_counts_always():
  script = _Script(_SLEEP, ignored=signal.SIGTERM)
  script.send(signal.SIGTERM)
  assert script.wait()[0] == 75


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_signal_at_the_very_end_changes_nothing(number):
  script = _Script(
    'import atexit\n'
    '@atexit.register\n'
    'def clean_up():\n'
    '  signals.answer_with(3)\n'
    f'  {_READY}  time.sleep(600)\n'
    'sys.exit(3)'
  )
  script.send(number)
  code, _, errors = script.wait()
  assert (code, errors) == (3, [])


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_python_ends_changes_nothing(number):
  # Python has given its handlers up when it clears modules.
  script = _Script(
    'import os\n'
    'class Last:\n'
    '  def __del__(self, read=os.read, out=sys.stdout):\n'
    '    out.write("ready\\n")\n'
    '    out.flush()\n'
    '    read(0, 1)\n'
    'last = Last()\n'
    'sys.exit(3)'
  )
  script.send(number)
  script.answer()
  code, _, errors = script.wait()
  assert (code, errors) == (3, [])


def test_what_was_there_before_is_restored():
  handlers = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
  threads = threading.active_count()
  for _ in range(2):
    with signals.handled():
      assert signal.getsignal(signal.SIGTERM) != handlers[0]
      assert not signals.received()
      signals.check()
    assert handlers == [
      signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)
    ]
    assert signal.set_wakeup_fd(-1) == -1
    assert threading.active_count() == threads
  assert not signals.received()
  signals.check()
  signals.sleep(0.0)


# --- Training -----------------------------------------------------------------


class _Training:
  """An estimator that counts up one weight, and what happened to it.

  Attributes:
    run_count: Steps that were computed.
    saved: Steps that were saved, in order.
  """

  def __init__(self, model_dir, num_replicas=1):
    config = dict(
      model_dir=str(model_dir),
      save_checkpoints_steps=1000,
      session_config=tf1.ConfigProto(device_count={'CPU': num_replicas}),
    )
    self.run_count = 0
    self.saved = []
    if num_replicas == 1:
      self._estimator = tpu_estimator.TPUEstimator(
        lambda features, labels, mode, params: self._model_fn(mode),
        config=tpu_estimator.RunConfig(**config),
        use_tpu=False,
        train_batch_size=1,
      )
    else:
      devices = [f'/cpu:{index}' for index in range(num_replicas)]
      with tf.Graph().as_default():
        strategy = tf.distribute.MirroredStrategy(devices)
      self._estimator = tpu_estimator.Estimator(
        lambda features, labels, mode: self._model_fn(mode).as_estimator_spec(),
        config=tpu_estimator.RunConfig(train_distribute=strategy, **config),
      )

  def when(self, run_count):
    """Called in the main thread after each step."""

  def when_built(self):
    """Called while the graph is built."""

  def when_saved(self, step):
    """Called before a step is saved."""

  def feed(self, step):
    """Returns what to feed."""

  def train(self, max_steps=100_000):
    """Trains until a signal comes, and leaves `hook`."""
    training = self

    class Hook(tf1.train.SessionRunHook):
      def before_run(self, run_context):
        return tf1.train.SessionRunArgs(None, training.feed(training.run_count))

      def after_run(self, run_context, run_values):
        training.run_count += 1
        training.when(training.run_count)

    class Listener(tf1.train.CheckpointSaverListener):
      def before_save(self, session, global_step_value):
        training.saved.append(int(global_step_value))
        training.when_saved(int(global_step_value))

    def input_fn(params=None):
      return tf.data.Dataset.from_tensors((0.0, 0.0)).repeat()

    with tf.Graph().as_default(), signals.deferral() as begin:
      self.hook = run_hooks.StopHook(begin)
      self._estimator.train(
        input_fn,
        max_steps=max_steps,
        hooks=[Hook(), self.hook],
        saving_listeners=[Listener()],
      )

  def checkpoint(self):
    """Returns (step, weight) of the newest one."""
    path = tf.train.latest_checkpoint(self._estimator.model_dir)
    reader = tf.train.load_checkpoint(path)
    return reader.get_tensor('global_step'), reader.get_tensor('weight')

  @tf.autograph.experimental.do_not_convert
  def _model_fn(self, mode):
    self.when_built()
    weight = tf1.get_variable(
      'weight',
      [],
      initializer=tf1.zeros_initializer,
      use_resource=True,
      aggregation=tf1.VariableAggregation.MEAN,
    )
    step = tf1.train.get_or_create_global_step()
    return tpu_estimator.TPUEstimatorSpec(
      mode=mode,
      loss=tf.identity(weight),
      train_op=tf.group(weight.assign_add(1.0), step.assign_add(1)),
    )


def _signal_this_process():
  os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize('num_replicas', [1, 2])
def test_training_saves_the_step_at_which_it_is(tmp_path, num_replicas):
  chance = random.Random(num_replicas)
  training = _Training(tmp_path, num_replicas)
  for _ in range(3):
    done = training.run_count
    delay = chance.uniform(0.0, 0.1)

    def when(run_count, first=done + 1, delay=delay):
      if run_count == first:
        threading.Timer(delay, _signal_this_process).start()

    training.when = when
    with signals.handled(), pytest.raises(signals.Interrupted):
      training.train()
    # Nothing is lost, and nothing is done twice.
    assert training.run_count > done
    assert training.hook.step == training.run_count
    assert training.saved[-1] == training.run_count
    step, weight = training.checkpoint()
    assert step == training.run_count
    assert weight == training.run_count


def test_nothing_is_saved_before_there_is_a_step(tmp_path):
  training = _Training(tmp_path)
  training.when_built = _signal_this_process
  with signals.handled(), pytest.raises(signals.Interrupted):
    training.train()
  assert training.run_count == 0
  assert training.saved == []


def test_a_signal_while_the_last_step_is_saved(tmp_path):
  training = _Training(tmp_path)
  training.when_saved = lambda step: step and _signal_this_process()
  with signals.handled(), pytest.raises(signals.Interrupted):
    training.train(max_steps=3)
  assert training.checkpoint() == (3, 3.0)
  assert training.hook.step is None  # It has not stopped before the end.


def test_without_a_signal_nothing_stops(tmp_path):
  training = _Training(tmp_path)
  with signals.handled():
    training.train(max_steps=3)
  assert training.run_count == 3
  assert training.hook.step is None


def test_workers_stop_if_any_of_them_is_told_to(tmp_path):
  # What main.py's model_fn does, with the vote of another worker.
  training = _Training(tmp_path)
  other = {}

  def build():
    other['ballot'] = tf1.placeholder_with_default(0.0, [])
    training.hook.count((training.hook.ballot() + other['ballot']) / 2)

  training.when_built = build
  training.feed = lambda step: {other['ballot']: float(step == 4)}
  training.train()
  assert training.run_count == training.hook.step == 5
  assert training.checkpoint() == (5, 5.0)
