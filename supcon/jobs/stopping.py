"""Why a running job stops."""

import tensorflow as tf

from supcon.compute import watchdog
from supcon.data.sources import faults
from supcon.runs import locks
from supcon.runs import storage_errors
from supcon.training import checkpoints
from supcon.training import hooks
from supcon.training import lost_sessions


class CutShortError(RuntimeError):
  """Training has ended without a checkpoint of its last step."""


class LostCheckpointError(RuntimeError):
  """A checkpoint has changed since its evaluation began."""


class TrainerGoneError(RuntimeError):
  """There is no trainer that could write another checkpoint."""


# Errors that stop a running job and whose message explains why.
_STOPPED = (
  hooks.NanLossError,
  checkpoints.MismatchError,
  checkpoints.NotFiniteError,
  faults.BadExampleError,
  watchdog.LostWorkerError,
  lost_sessions.LostSessionError,
  locks.LockLostError,
  CutShortError,
  LostCheckpointError,
  TrainerGoneError,
)


def why(error: BaseException) -> str:
  """Returns in one line what stopped a job; '' for an unexpected error."""
  if isinstance(error, _STOPPED):
    return str(error)
  if explanation := storage_errors.explain_failed_write(error):
    return explanation
  return (
    storage_errors.reason(error) if isinstance(error, tf.errors.OpError) else ''
  )
