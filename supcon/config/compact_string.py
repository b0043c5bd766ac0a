"""The syntax of the compact string of hyper-parameters, `bs=64,phl=[64,32]`."""

from collections.abc import Iterator
from collections.abc import Mapping
import enum
import re
from typing import Any


def write(values: Mapping[str, Any]) -> str:
  """Returns the string of {short name: value}; `read` reads it back."""
  return ','.join(
    f'{name}={_to_string(value)}' for name, value in values.items()
  )


def read(text: str, defaults: Mapping[str, Any]) -> dict[str, Any]:
  """Reads a string into {short name: value}.

  Args:
    text: Comma-separated NAME=VALUE. Lists are in brackets, strings with commas
      in double quotes.
    defaults: {short name: default} of all that may be named.

  Raises:
    ValueError: If the string is malformed, a name is unknown or given twice, or
      a value is not of the type of its default.
  """
  values = {}
  for name, value in _assignments(text):
    if name not in defaults:
      raise ValueError(
        f'unknown hyper-parameter {name!r}; expected one of '
        f'{", ".join(defaults)}.'
      )
    if name in values:
      raise ValueError(f'{name!r} is given twice; give it once.')
    try:
      values[name] = convert(value, defaults[name])
    except ValueError as error:
      raise ValueError(f'{name}={value}: {error}') from error
  return values


def convert(value: Any, default: Any) -> Any:
  """Converts a string, or list of strings, to the type of a field's default.

  Args:
    value: A string, a list of strings, or a value that already has the type.
    default: The field's default, which determines the type. An enum is looked
      up by its abbreviation.

  Raises:
    ValueError: If `value` cannot be read as that type.
  """
  if isinstance(default, tuple):
    items = [value] if isinstance(value, str) else value
    return tuple(convert(item, default[0]) for item in items)
  if not isinstance(value, (str, list, tuple)):
    return value
  if not isinstance(value, str):
    raise ValueError(f'expected a single value, found {",".join(value)}')
  if isinstance(default, bool):
    return _to_bool(value)
  try:
    return type(default)(value)
  except ValueError:
    expected = type(default).__name__
    if isinstance(default, enum.Enum):
      expected = 'one of ' + ', '.join(
        f'{m.value} ({m.name})' for m in type(default)
      )
    raise ValueError(f'{value!r} is not {expected}') from None


_ASSIGNMENT = re.compile(
  r'\s*(?P<name>\w+)=(?:\[(?P<list>[^\]]*)\]|"(?P<quoted>[^"]*)"|(?P<bare>[^,\[]*))'
  r'(?:,|$)'
)


def _assignments(text: str) -> Iterator[tuple[str, str | list[str]]]:
  """Yields (name, string or list of strings) from a compact string."""
  position = 0
  while position < len(text):
    match = _ASSIGNMENT.match(text, position)
    if not match:
      raise ValueError(
        f'cannot read {text[position:]!r}; expected NAME=VALUE, '
        'comma-separated, lists in brackets.'
      )
    position = match.end()
    if match['list'] is not None:
      yield match['name'], [item.strip() for item in match['list'].split(',')]
    elif match['quoted'] is not None:
      yield match['name'], match['quoted']
    else:
      yield match['name'], match['bare']


def _to_bool(value):
  words = {'true': True, 'false': False}
  if value.lower() in words:
    return words[value.lower()]
  try:
    return bool(int(value))
  except ValueError:
    raise ValueError(f'{value!r} is not true, false, 1 or 0') from None


def _to_string(value):
  if isinstance(value, bool):
    return str(int(value))
  if isinstance(value, enum.Enum):
    return value.value
  if isinstance(value, tuple):
    return '[' + ','.join(_to_string(item) for item in value) + ']'
  if isinstance(value, str):
    return f'"{value}"' if set(value) & set(',[') else value
  return repr(value)
