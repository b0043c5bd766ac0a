"""The machines that read."""

from typing import NamedTuple


class Host(NamedTuple):
  """One of the machines that read."""

  index: int = 0
  count: int = 1
