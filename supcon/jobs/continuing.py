"""Continues a run: what may change, and who records it."""

import dataclasses

from absl import logging

from supcon.config import changes
from supcon.jobs import run_state
from supcon.runs import model_dirs
from supcon.runs import storage
from supcon.training import facts_keeper
from supcon.training import positions


def check_facts(run: run_state.Run) -> None:
  """Checks and logs the changes of a resumed run.

  Raises:
    ValueError: If one is impossible.
  """
  known = run.known
  changes.check(known.params, run.params, run.checkpoint)
  images = run.dataset.train.fingerprint
  if known.train_images and known.train_images != images:
    logging.warning(
      'WARNING: the training images are others now: %s, not %s',
      images,
      known.train_images,
    )
  reference = run.options.reference_ckpt
  if known.reference and known.reference != reference:
    logging.warning(
      'WARNING: --reference_ckpt=%s has no effect: the run has begun, with %s',
      reference,
      known.reference,
    )


def check_place(run: run_state.Run) -> None:
  """Checks that labels keep their meaning, and the newest step its place.

  Raises:
    ValueError: If they do not, or the step would be in another stage or epoch
      and the user has not accepted that.
  """
  changes.check_class_names(
    run.model_dir.class_names(),
    run.dataset.class_names,
    run.model_dir.join(model_dirs.LABELS),
  )
  step, now = run.step, run.facts.counting
  before = _counting_before(run)
  if before and step <= before.last_step:
    if not positions.is_moved(before, now, step):
      return
    if not run.options.accept_new_plan:
      to = positions.moved_step(before, now, step)
      raise ValueError(
        f'{run.checkpoint} is at {positions.place(before, step)}, but '
        f'another plan was given ({positions.what_moves(before, now)}): go '
        'on with the former one, or add --accept_new_plan to go on at '
        f'{positions.place(now, to)}.'
      )
  elif before or step > now.last_step:
    # A checkpoint of an older version, or of the published code, does not
    # record its plan, so it is unknown what has moved.
    plan, says = before or now, 'these flags make'
    if before:
      says = f'{run.model_dir.join(model_dirs.HPARAMS)} tells of'
    raise ValueError(
      f'{run.checkpoint} holds step {step}, but the plan that {says} ends '
      f'with step {plan.last_step} ({plan.num_examples} training examples, '
      f'batch_size {plan.batch_size}, {" + ".join(map(str, plan.epochs))} '
      'epochs); give the flags and the data that it was trained with'
      f'{", or delete the file if it is wrong" if before else ""}.'
    )


def _counting_before(run):
  """Returns how the newest step was counted; None if unknown."""
  if not run.known:
    return None
  return run.known.counting or run.counting_of(run.known.params)


def take_over(run: run_state.Run) -> None:
  """Prepares model_dir for training by this process.

  Raises:
    tf.errors.OpError: If a file cannot be renamed or written.
  """
  run.model_dir.settle(run.options.max_checkpoints_to_keep)
  facts_keeper.settle(run.model_dir)
  before, now = _counting_before(run), run.facts.counting
  step = run.look_again()
  if not before or not positions.is_moved(before, now, step):
    return
  aside = facts_keeper.move(
    run.model_dir, dataclasses.replace(run.known, counting=before), now
  )
  logging.warning(
    'WARNING: another plan was accepted: what was %s is %s%s',
    positions.place(before, step),
    positions.place(now, run.look_again()),
    f'; the former checkpoints are in {aside}' if aside else '',
  )


def keeper(run: run_state.Run) -> facts_keeper.Keeper:
  """Returns the recorder of the facts about this run's checkpoints."""
  return facts_keeper.Keeper(
    run.model_dir, run.facts, files(run, is_new=not run.checkpoint)
  )


def files(run: run_state.Run, is_new: bool) -> dict[str, str | None]:
  """Returns the files besides hparams.json that describe the training.

  Args:
    is_new: Whether nothing was trained before, so that existing files of
      these names are obsolete.

  Returns:
    {name: text}; None means that the file must not exist.
  """
  found = {model_dirs.BAD_IMAGES: None}
  if is_new:
    found[model_dirs.WHITENING] = None
  if is_new or not run.model_dir.has(model_dirs.LABELS):
    names = run.dataset.class_names
    found[model_dirs.LABELS] = ''.join(f'{name}\n' for name in names)
  if run.whitening:
    found[model_dirs.WHITENING] = run.whitening.to_json()
  if run.skipped.found:
    found[model_dirs.BAD_IMAGES] = storage.to_json(run.skipped.found)
  return found
