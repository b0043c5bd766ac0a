"""Trains the rest of a run, stage by stage."""

import contextlib
import functools

from absl import logging

from supcon.compute import watchdog
from supcon.config import hparams
from supcon.config import run_options
from supcon.data import inputs
from supcon.data.sources import faults
from supcon.jobs import announcing
from supcon.jobs import checked_runs
from supcon.jobs import continuing
from supcon.jobs import evaluation
from supcon.jobs import fixed_embeddings
from supcon.jobs import meeting
from supcon.jobs import reporting
from supcon.jobs import stopping
from supcon.runs import event_files
from supcon.runs import locks
from supcon.runs import log_files
from supcon.runs import model_dirs
from supcon.runs import retries
from supcon.runs import signals
from supcon.runs import status
from supcon.training import estimators
from supcon.training import hooks
from supcon.training import lost_sessions
from supcon.training import rollbacks
from supcon.training import run_hooks


class Train:
  """--mode=train; and train_then_eval, which also evaluates and exports."""

  def __init__(self, options: run_options.RunOptions, params: hparams.HParams):
    self._run = checked_runs.prepare(options, params)
    if options.deterministic:
      self._check_deterministic()
    self._meeting = meeting.Meeting(self._run)
    self._rollbacks = rollbacks.Rollbacks(self._run.model_dir)
    self._retries = retries.Retries(sleep=signals.sleep, tell=self._count_retry)
    # Only the chief has these.
    self._lock: locks.Lock | None = None
    self._writer: status.Writer | None = None

  def _check_deterministic(self):
    devices = self._run.devices
    if self._run.options.use_tpu or devices.strategy is not None:
      raise ValueError(
        '--deterministic holds on one CPU device or GPU; leave it out, or use '
        '--use_tpu=False with one device (--num_gpus=1 or --num_gpus=0).'
      )

  def announce(self) -> None:
    """Locks model_dir, and logs what the job will do.

    Raises:
      ValueError: If another trainer is running, or nothing can be written.
      tf.errors.OpError: If a file cannot be read or written.
    """
    run = self._run
    # Without retries, for writers that write every few seconds and so try again
    # by themselves.
    quick = model_dirs.ModelDir(run.model_dir.path)
    with contextlib.ExitStack() as stack:
      if run.devices.is_chief:
        self._lock = stack.enter_context(
          locks.acquire(quick, run.options.force)
        )
        stack.enter_context(
          log_files.keep(run.model_dir.join(log_files.TRAINER))
        )
        continuing.take_over(run)
        self._writer = stack.enter_context(
          status.Writer(quick, verify=self._lock.verify, explain=stopping.why)
        )
        self._writer.begin(status.TRAINING, run.step, run.plan.total_steps)
      announcing.announce(run)
      self._held = stack.pop_all()  # Until the end of run().

  def run(self) -> None:
    """Trains, then evaluates with --mode=train_then_eval.

    Raises:
      hooks.NanLossError: If the loss is no longer a number.
      checkpoints.NotFiniteError: If an evaluated checkpoint or its metrics are
        NaN or infinite.
      faults.BadExampleError: If an image cannot be decoded.
      watchdog.LostWorkerError: If another machine has gone.
      locks.LockLostError: If another trainer has taken model_dir over.
      signals.Interrupted: If a signal came.
    """
    with self._held:
      with self._meeting.together():
        self._train()
      if self._run.options.evaluates and self._run.devices.is_chief:
        self._evaluate()

  def _evaluate(self):
    self._writer.write(state=status.EVALUATING)
    newest = self._run.checkpoint
    result = self._retries.call(
      f'evaluating {newest}', lambda: evaluation.evaluate(self._run, newest)
    )
    self._writer.update(last_evaluation=evaluation.last_evaluation(result))
    report = reporting.after_training(self._run, result)
    evaluation.summarize(self._run, result, report)

  def _train(self):
    """Trains the rest of the plan, stage by stage."""
    run = self._run
    if run.devices.is_chief:
      self._keeper = continuing.keeper(run)
    if run.devices.cluster:
      self._meeting.begin()
    step = run.look_again()
    if step:
      logging.info(
        'model_dir holds step %d of %d: %s',
        step,
        run.plan.total_steps,
        'training continues there'
        if step < run.plan.total_steps
        else 'nothing is left to train',
      )
    make_input_fn = None
    while step < run.plan.total_steps:
      make_input_fn = make_input_fn or self._input_fns()
      stage = run.plan.stage_at(step)
      try:
        step = self._train_from(step, stage, make_input_fn)
      except hooks.NanLossError as error:
        if run.devices.is_chief:
          self._write_table(error.step)  # Include the last steps.
        step = self._roll_back(error)
      except (
        lost_sessions.LostSessionError,
        *retries.TRANSIENT_ERRORS,
      ) as error:
        step = self._try_again(step, error)
      if step < stage.start_step:
        make_input_fn = None  # Its embeddings may be out of date.
    if self._rollbacks.count:
      logging.warning(
        'WARNING: %d batches were skipped in %d rollbacks; %s lists them',
        self._rollbacks.num_skipped,
        self._rollbacks.count,
        run.model_dir.join(rollbacks.FILE),
      )
    run.skipped.report('train', run.dataset, run.output)

  def _train_from(self, step, stage, make_input_fn):
    """Trains while stage and data are continuous; returns the step reached.

    Raises:
      hooks.NanLossError: If a step could not be applied.
      lost_sessions.LostSessionError, tf.errors.OpError: If storage failed.
      stopping.CutShortError: If the last step was not saved.
      signals.Interrupted: If a signal came.
    """
    run = self._run
    stop_step = self._rollbacks.until(step, stage.stop_step)
    logging.info('stage %d: steps %d to %d', stage.number, step, stop_step)
    with faults.naming(run.dataset.train), signals.deferral() as defer:
      function, stop_hook = run.model_fn(stage), run_hooks.StopHook(defer)
      own_hooks, listeners = [stop_hook], []
      if run.devices.cluster:
        function.stop_hook = stop_hook
      if run.devices.is_chief:
        own_hooks += [
          run_hooks.StatusHook(
            self._writer, run.plan, stage, logs=run.options.use_tpu
          ),
          function.speed_hook,
        ]
        self._keeper.begin(run.checkpoint)
        listeners += [
          run_hooks.SaveListener(
            self._lock, self._writer, run.model_dir.path, self._keeper
          ),
          run_hooks.TableListener(self._write_table),
        ]
      # Workers that have finished may end as they like once everything is
      # saved.
      with contextlib.suppress(watchdog.EndedWorkerError):
        estimators.train(
          run.options,
          run.devices,
          function,
          make_input_fn(step + self._rollbacks.offset(step)),
          batch_size=run.params.batch_size,
          seed=run.params.seed,
          max_steps=stop_step,
          attempts=self._retries,
          hooks=own_hooks,
          listeners=listeners,
        )
      reached = stop_step if stop_hook.step is None else stop_hook.step
      self._check_saved(reached)
      if run.devices.cluster:
        self._meeting.wait_for_checkpoint(reached)
      if stop_hook.step is not None:
        # Signals are still deferred here: the others may still be saving.
        self._meeting.part()
        raise signals.interruption(
          f'step {reached} of {run.plan.total_steps} is saved'
        )
    return reached

  def _write_table(self, until):
    """Writes metrics.csv from the summaries of all steps before `until`."""
    model_dir, plan = self._run.model_dir, self._run.plan
    rows = event_files.read(model_dir.join(model_dirs.TRAIN))
    text = event_files.table(
      {step: row for step, row in rows.items() if step < until},
      event_files.TRAINING_COLUMNS,
      lambda step: (step / plan.steps_per_epoch, plan.stage_at(step).number),
    )
    model_dir.write(model_dirs.METRICS, text)

  def _check_saved(self, step):
    """Checks that training has reached its last step.

    Raises:
      stopping.CutShortError: If it has not. TensorFlow mistakes some errors for
        the end of the data, such as a file that exceeds a size limit.
    """
    newest = self._run.look_again()
    if self._run.devices.is_chief and newest < step:
      raise stopping.CutShortError(
        f'training ended before step {step}, and the newest checkpoint is that '
        f'of step {newest}; check the storage of '
        f'{self._run.model_dir.path} and its limits, then start the same '
        'command again.'
      )

  def _try_again(self, begun, error):
    """Returns the step of the newest checkpoint, after a pause.

    Raises:
      Exception: `error`, if it has occurred too often, or if there are other
        workers, which have already lost this one.
    """
    if self._run.devices.cluster:
      raise error
    step = self._run.look_again()
    if step > begun:
      self._retries.succeeded()
    self._retries.wait(f'training from step {step} on', error)
    return step

  def _input_fns(self):
    """Returns a function that makes training's input function from a batch."""
    run = self._run
    if fixed_embeddings.is_worth_it(run):
      return fixed_embeddings.Embeddings(run).input_fn
    return functools.partial(
      inputs.train_input_fn,
      run.dataset,
      run.params,
      run.devices.image_dtype(run.dtype),
    )

  def _roll_back(self, error):
    """Returns the newest checkpoint's step; the batches since are skipped.

    Raises:
      hooks.NanLossError: If rollbacks are off or used up.
    """
    run, options = self._run, self._run.options
    others_go_on = run.devices.cluster and isinstance(
      error, hooks.BrokenVariableError
    )
    if options.on_nan == 'stop' or others_go_on:
      raise error
    if self._rollbacks.count >= options.max_rollbacks:
      raise hooks.NanLossError(
        f'{error.reason}; {self._rollbacks.count} rollbacks have been made, as '
        f'many as --max_rollbacks={options.max_rollbacks} allows',
        error.step,
      ) from error
    step = run.look_again()
    if error.step < step:  # It was restored, not trained.
      raise error
    rollback = self._rollbacks.add(
      step, error.step, error.reason, is_written=run.devices.is_chief
    )
    if run.devices.is_chief:
      self._tell_rollbacks()
    logging.warning('WARNING: %s', error.reason)
    logging.warning(
      'WARNING: rollback %d of at most %d: back to step %d, without the %d '
      'batches of steps %d to %d',
      self._rollbacks.count,
      options.max_rollbacks,
      step,
      rollback.skipped,
      step,
      error.step,
    )
    return step

  def _tell_rollbacks(self):
    self._writer.write(
      rollbacks=self._rollbacks.count,
      skipped_batches=self._rollbacks.num_skipped,
    )

  def _count_retry(self):
    if self._writer:
      self._writer.add(retries=1)
