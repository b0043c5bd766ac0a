"""The machines that read the data."""

from typing import NamedTuple


class Host(NamedTuple):
  """One of the machines that read the data."""

  index: int = 0
  count: int = 1
