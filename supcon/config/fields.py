"""One field of the config: default, flag, help and check in one place.

`define` makes the fields of the dataclasses in `hparams` and `run_options`.
`walk` lists them, which is all that flags, `--help`, checks and the compact
string need.
"""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
import dataclasses
import enum
import inspect
import math
import re
from typing import Any, NamedTuple

from supcon.config import safe_text

# Returns what is wrong with a value, as the end of a sentence; None if nothing.
Check = Callable[[Any], str | None]


def define(default: Any, *checks: Check, **spec: Any) -> Any:
  """Defines a field of a dataclass, whose docstring has its help text.

  Args:
    default: The default, which determines the type of the flag; it may be a
      dataclass with fields of its own.
    *checks: Checks of the value. All numbers must be finite besides.
    **spec: What else there is to say. flag: Its name, if it differs from that
      of the field. choices: The values that a string may have. is_path:
      Whether it may start with `~`. For a dataclass, flag and help are prefixes
      for those of its fields. See `hparams` for what hyper-parameters have.
  """
  metadata = {'checks': checks, **spec}
  return dataclasses.field(default=default, metadata=metadata)


class Field(NamedTuple):
  """A field and its value; as a string, what a user would pass.

  Attributes:
    path: Dotted, such as 'stage_1.epochs'.
    flag: Name of the flag that sets it, such as 'stage_1_epochs'.
    help: Text for users.
    value: The value.
    short_name: Name in the compact string, such as 's1te'.
    spec: The rest of what `define` was told.
  """

  path: str
  flag: str
  help: str
  value: Any
  short_name: str
  spec: Mapping[str, Any]

  def __str__(self) -> str:
    value = safe_text.printable(self.text)
    return f'--{self.flag}={value}' if value else f'--{self.flag}'

  @property
  def text(self) -> str:
    """The value as the flag takes it; '' for None."""
    if isinstance(self.value, enum.Enum):
      return self.value.name
    if isinstance(self.value, tuple):
      return ','.join(map(str, self.value))
    return '' if self.value is None else str(self.value)

  @property
  def choices(self) -> tuple[str, ...]:
    """The values that the flag may have; empty if there is no such list."""
    if isinstance(self.value, enum.Enum):
      return tuple(member.name for member in type(self.value))
    return self.spec.get('choices', ())

  def fault(self) -> str | None:
    """Returns what is wrong with the value; None if nothing."""
    values = self.value if isinstance(self.value, tuple) else (self.value,)
    if any(isinstance(x, float) and not math.isfinite(x) for x in values):
      return 'must be a finite number'
    if self.choices and self.text not in self.choices:
      return f'is not one of {", ".join(self.choices)}'
    faults = (check(self.value) for check in self.spec['checks'])
    return next(filter(None, faults), None)


class FieldError(ValueError):
  """The values of some fields do not do, alone or together.

  Attributes:
    fields: The fields.
  """

  def __init__(self, config: Any, paths: str, fault: str):
    """Makes an error that users read as '--FLAG=VALUE and ... FAULT.'.

    Args:
      config: The dataclass that holds the fields.
      paths: Their paths, separated by spaces.
      fault: What is wrong, and what to do.
    """
    self.fields = tuple(find(config, path) for path in paths.split())
    super().__init__(f'{" and ".join(map(str, self.fields))} {fault}.')


def walk(
  config: Any, path: str = '', flag: str = '', text: str = '', short: str = ''
) -> Iterator[Field]:
  """Yields every field of a dataclass, and of those that it holds."""
  texts = _attributes(type(config))
  for field in dataclasses.fields(config):
    value, spec = getattr(config, field.name), field.metadata
    is_part = dataclasses.is_dataclass(value)
    known = (
      path + field.name,
      flag + spec.get('flag', '' if is_part else field.name),
      text + spec.get('help', texts.get(field.name, '')),
      short + spec.get('short_name', ''),
    )
    if is_part:
      yield from walk(value, f'{known[0]}.', *known[1:])
    elif 'checks' in spec:
      yield Field(*known[:3], value, known[3], spec)


def _attributes(dataclass):
  """Returns {field: text} of the section Attributes of a docstring."""
  section = inspect.getdoc(dataclass).partition('Attributes:\n')[2]
  entries = re.findall(r'(?m)^  (\w+): (.*(?:\n    .*)*)', section)
  return {name: ' '.join(text.split()) for name, text in entries}


def find(config: Any, path: str) -> Field:
  """Returns the field at a dotted path."""
  return {field.path: field for field in walk(config)}[path]


def check(config: Any) -> None:
  """Checks every field, then what fields must be to each other.

  A dataclass says the latter by `conflicts()`, which yields pairs: the paths of
  fields below it, separated by spaces; and what is wrong with them.

  Raises:
    FieldError: If something is wrong.
  """
  for field in walk(config):
    if fault := field.fault():
      raise FieldError(config, field.path, fault)
  for prefix, part in _parts(config):
    for paths, fault in getattr(part, 'conflicts', tuple)():
      paths = ' '.join(prefix + path for path in paths.split())
      raise FieldError(config, paths, fault)


def _parts(config, prefix=''):
  yield prefix, config
  for field in dataclasses.fields(config):
    value = getattr(config, field.name)
    if dataclasses.is_dataclass(value):
      yield from _parts(value, f'{prefix}{field.name}.')


# --- Checks -------------------------------------------------------------------


def unless(holds: Callable[[Any], bool], fault: str) -> Check:
  """Returns a check that finds a fault unless a condition holds."""
  return lambda value: None if holds(value) else fault


def up_to(most: int) -> Check:
  fault = f'must be positive, at most {most}'
  return unless(lambda value: 1 <= value <= most, fault)


def one_of(choices: tuple[str, ...]) -> Check:
  fault = f'is not one of {", ".join(choices)}'
  return unless(lambda value: value in choices, fault)


POSITIVE = unless(lambda value: value > 0, 'must be positive')
NOT_NEGATIVE = unless(lambda value: value >= 0, 'must not be negative')
PROBABILITY = unless(
  lambda value: 0 <= value <= 1, 'must be a probability in [0, 1]'
)
