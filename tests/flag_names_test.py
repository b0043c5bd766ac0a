"""Every --flag that code, scripts and guides name exists."""

import re

from supcon.config import hparams
from supcon.config import run_options
from tests import command

_FLAGS = {
  *(field.flag for field in (*run_options.FIELDS, *hparams.FIELDS)),
  *('help', 'helpfull', 'verbosity'),
}
_OTHERS = {
  *('name', 'flag', 'FLAG'),  # Stand for any.
  *('abbrev', 'always', 'dirty', 'exclude'),  # Of git.
  *('dist', 'durations', 'rootdir'),  # Of pytest.
  *('clear', 'upgrade'),  # Of venv and pip.
  *('version', 'zone'),  # Of gcloud.
  *('logdir', 'model_base_path', 'model_name', 'rest_api_port'),
  *('signature_def',),  # Of tf2onnx.
}
# In an f-string, {...} stands for anything; in other text, stage_N for both
# stages, and * for the rest of a name. A name with a hyphen is not ours.
_NAME = re.compile(r'(?<![\w-])--((?:\w|\{[^{}]*\}|\*|-)+)')


def _exists(name):
  pattern = re.sub(r'\{[^{}]*\}|\*', r'\\w*', name)
  pattern = re.sub('^stage_N_', 'stage_[12]_', pattern)
  return any(re.fullmatch(pattern, flag) for flag in _FLAGS)


def _unknown(text):
  named = {name for name in _NAME.findall(text) if '-' not in name}
  return {name for name in named - _OTHERS if not _exists(name)}


def test_flags_that_are_named_exist():
  unknown = {}
  for pattern in (
    '*.py',
    '*.md',
    'supcon/**/*.py',
    'supcon/**/*.md',
    'scripts/*',
  ):
    for path in command.ROOT.glob(pattern):
      if names := _unknown(path.read_text()):
        unknown[str(path)] = names
  assert not unknown


def test_names_that_drift_are_found():
  text = """
    f'--stage_{number}_optimizer={x}', --stage_N_epochs, --warm_start_*, --no-x
    f'--stage_{number}_optimiser={x}', --stage_N_epoch, --bias_weight_decay
  """
  assert _unknown(text) == {
    'stage_{number}_optimiser',
    'stage_N_epoch',
    'bias_weight_decay',
  }
