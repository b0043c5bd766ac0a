"""All flags: the fields of the config, as absl flags.

`supcon/config/hparams.py` (what a run computes) and
`supcon/config/run_options.py` (where and how it runs) hold the name, type,
default, help and check of each. `define` turns them into absl flags; `read`
turns parsed flags into the two dataclasses.
"""

import contextlib
import enum

from absl import flags

from supcon.config import compact_string
from supcon.config import fields
from supcon.config import help_page
from supcon.config import hparams
from supcon.config import path_names
from supcon.config import run_options

_DEFINERS = {
  bool: flags.DEFINE_boolean,
  int: flags.DEFINE_integer,
  float: flags.DEFINE_float,
  str: flags.DEFINE_string,
  type(None): flags.DEFINE_string,
}


def define(values: flags.FlagValues = flags.FLAGS) -> None:
  """Defines every flag in `values`, with the defaults of the dataclasses."""
  # A flag may set two fields.
  by_flag = {f.flag: f for f in (*run_options.FIELDS, *hparams.FIELDS)}
  for flag, field in by_flag.items():
    if field.choices:
      flags.DEFINE_enum(
        flag,
        field.text,
        field.choices,
        field.help,
        case_sensitive=isinstance(field.value, str),
        flag_values=values,
      )
    elif isinstance(field.value, tuple):
      flags.DEFINE_list(flag, field.text, field.help, flag_values=values)
    else:
      definer = _DEFINERS[type(field.value)]
      definer(flag, field.value, field.help, flag_values=values)


def read(values: flags.FlagValues, arguments=(), load_facts=None):
  """Returns (RunOptions, HParams) of parsed flags, not yet checked.

  For flags that are not given, --mode may take the value from the model in
  --model_dir, and training may take it from its --reference_ckpt.

  Args:
    values: The parsed flags.
    arguments: Positional arguments, which are more --images.
    load_facts: A function that returns the module supcon.training.earlier_runs,
      which reads the values of earlier runs; None takes the defaults instead.

  Raises:
    ValueError: If an item of a list, --hparams or the record of an earlier run
      cannot be read, or if there are arguments although the mode takes no
      images.
  """
  options = _read_options(values, arguments)
  if options.compact is not None:
    with _naming('hparams: '):
      return options, hparams.parse(options.compact)
  params = recorded = None
  if load_facts and options.takes_recorded and options.model_dir:
    params = recorded = load_facts().recorded_params(options.model_dir)
  params = params or hparams.HParams()
  for field in hparams.FIELDS:
    if values[field.flag].present or not recorded:
      with _naming(f'{field.flag}: '):
        value = _converted(values[field.flag].value, field.value)
        params = params.replace(field.path, value)
  takes = options.starts_from_reference and params.warm_start.is_asked_for
  if load_facts and takes:
    fields.check(options)
    taken = load_facts().taken(
      options.model_dir, options.reference_ckpt, params
    )
    for path, value in taken.items():
      if not values[params.field(path).flag].present:
        params = params.replace(path, value)
  return options, params


def _read_options(values, arguments):
  if arguments and values['mode'].value != 'predict':
    raise ValueError(
      f'found {arguments[0]!r}, expected flags only, as --name=value.'
    )
  found = {}
  for field in run_options.FIELDS:
    value = values[field.flag].value
    if isinstance(value, list):
      value = tuple(value)
    if field.path == 'images':
      value += tuple(arguments)
    if field.spec.get('is_path') and value:
      with _naming(f'{field.flag}='):
        value = _expanded(value)
    found[field.path] = value
  found['has_summary_interval'] = values['summary_interval_steps'].present > 0
  return run_options.RunOptions(**found)


def _expanded(value):
  if isinstance(value, tuple):
    return tuple(map(path_names.expanded, value))
  return path_names.expanded(value)


def _converted(value, default):
  if isinstance(default, enum.Enum):
    return type(default)[value]
  return compact_string.convert(value, default)


@contextlib.contextmanager
def _naming(flag):
  """Puts a flag before what is said to be wrong with its value."""
  try:
    yield
  except ValueError as error:
    raise ValueError(f'--{flag}{error}') from error


def explain_parsing(error: flags.Error) -> str:
  """Returns what is wrong with the flags and what to use instead."""
  if isinstance(error, flags.UnrecognizedFlagError):
    if instead := help_page.instead_of(error.flagname):
      return f'--{error.flagname} is no flag here; {instead}.'
  return str(error)
