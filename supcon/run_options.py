"""Where and how a run happens, as opposed to what it computes.

No TensorFlow in here: flags are parsed and checked before it is imported.
"""

import dataclasses

from supcon import hparams

MODES = ('train', 'eval', 'train_then_eval')


@dataclasses.dataclass(frozen=True)
class RunOptions:
  """One field per flag that is not a hyper-parameter."""

  mode: str = 'train'
  model_dir: str = ''
  data_dir: str | None = None
  reference_ckpt: str = ''
  use_tpu: bool = True
  tpu_name: str | None = None
  tpu_zone: str | None = None
  gcp_project: str | None = None
  master: str | None = None
  steps_per_loop: int = 1000
  summary_interval_steps: int = 100
  save_interval_steps: int = 1000
  max_checkpoints_to_keep: int = 5
  keep_checkpoint_interval_secs: float = 36000000.0
  eval_interval_secs: int = 60

  def check(self, params: hparams.HParams) -> None:
    """Checks all that can be checked without looking at any file.

    Raises:
      ValueError: Names the flag, what was found and what was expected.
    """
    if self.mode not in MODES:
      raise ValueError(f'--mode={self.mode} is not one of {", ".join(MODES)}.')
    if not self.model_dir:
      raise ValueError(
        '--model_dir is empty; name the directory for checkpoints, summaries '
        'and exports.'
      )
    for name in (
      'steps_per_loop',
      'summary_interval_steps',
      'save_interval_steps',
      'max_checkpoints_to_keep',
      'keep_checkpoint_interval_secs',
    ):
      if getattr(self, name) <= 0:
        raise ValueError(f'--{name}={getattr(self, name)} must be positive.')
    if self.eval_interval_secs < 0:
      raise ValueError(
        f'--eval_interval_secs={self.eval_interval_secs} must not be negative.'
      )
    if self.reference_ckpt and not params.warm_start.is_asked_for:
      raise ValueError(
        f'--reference_ckpt={self.reference_ckpt} is given but nothing is to '
        'be taken from it; add --warm_start_encoder, '
        '--warm_start_projection_head or --warm_start_classifier.'
      )
    if params.warm_start.is_asked_for and not self.reference_ckpt:
      raise ValueError(
        'a --warm_start_* flag is on but --reference_ckpt is empty; name the '
        'checkpoint or training directory to start from.'
      )
