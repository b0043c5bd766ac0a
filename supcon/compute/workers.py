"""Coordinates several machines that train together.

Each machine runs one worker, with the same command and its own TF_CONFIG, which
is JSON: {"cluster": {"worker": ["host:port", ...]}, "task": {"type": "worker",
"index": 0}}. The first worker is the chief, which writes model_dir; addresses
in "chief" come before those in "worker".
"""

from collections.abc import Mapping
import dataclasses
import json
import os

VARIABLE = 'TF_CONFIG'

_KINDS = ('chief', 'worker')  # In the order of the workers' numbers.


@dataclasses.dataclass(frozen=True)
class Cluster:
  """All workers, and the place of this process among them.

  Attributes:
    jobs: {'chief': addresses, 'worker': addresses}, as 'host:port'.
    kind: 'chief' or 'worker'.
    task: The index among workers of that kind, from 0.
  """

  jobs: Mapping[str, tuple[str, ...]]
  kind: str
  task: int

  @property
  def addresses(self) -> tuple[str, ...]:
    """Returns the addresses of all workers, in the order of their numbers."""
    return tuple(
      address for kind in _KINDS for address in self.jobs.get(kind, ())
    )

  @property
  def index(self) -> int:
    """This worker's number, from 0; the chief has 0."""
    before = self.kind == 'worker' and len(self.jobs.get('chief', ()))
    return before + self.task

  @property
  def others(self) -> dict[int, str]:
    """Returns {number: address} of the other workers."""
    return {
      number: address
      for number, address in enumerate(self.addresses)
      if number != self.index
    }


def read(environment: Mapping[str, str] = os.environ) -> Cluster | None:
  """Returns the workers in TF_CONFIG; None if there is only one.

  Raises:
    ValueError: If TF_CONFIG is malformed.
  """
  text = environment.get(VARIABLE, '').strip()
  if not text:
    return None
  try:
    config = json.loads(text)
    jobs = {
      kind: tuple(addresses)
      for kind, addresses in config.get('cluster', {}).items()
    }
    task = config.get('task', {})
    kind, index = task.get('type', ''), int(task.get('index', 0))
  except (ValueError, TypeError, AttributeError) as error:
    raise ValueError(
      f'{VARIABLE}={text} cannot be read ({error}); expected JSON like '
      '{"cluster": {"worker": ["host0:2222", "host1:2222"]}, '
      '"task": {"type": "worker", "index": 0}}.'
    ) from error
  if not jobs:
    return None
  unknown = sorted({*jobs, kind} - set(_KINDS))
  if unknown:
    raise ValueError(
      f'{VARIABLE} names a {unknown[0]!r}, expected chief or worker only: all '
      'train. To evaluate beside them, run --mode=eval without it.'
    )
  for address in sum(jobs.values(), ()):
    host, _, port = address.rpartition(':')
    if not host or not port.isdigit():
      raise ValueError(
        f'{VARIABLE} has the address {address!r}, expected host:port.'
      )
  if len(jobs.get('chief', ())) > 1:
    raise ValueError(f'{VARIABLE} names several chiefs, expected one.')
  if not 0 <= index < len(jobs.get(kind, ())):
    raise ValueError(
      f'{VARIABLE} says that this is {kind} {index}, but lists '
      f'{len(jobs.get(kind, ()))} of them; the first one is {kind} 0.'
    )
  cluster = Cluster(jobs, kind, index)
  return cluster if cluster.others else None
