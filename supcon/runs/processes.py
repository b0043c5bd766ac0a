"""Processes, of this machine and of others, and whether they still run."""

import dataclasses
import functools
import os
import socket


@dataclasses.dataclass(frozen=True)
class Process:
  """A process of this machine or of another one.

  Attributes:
    host: Name of the machine.
    pid: Its number there.
    space: Names what gives out these numbers: a container, or the machine from
      start to shutdown. '' if unknown.
    birth: When it began, in ticks since then; '' if unknown.
  """

  host: str
  pid: int
  space: str = ''
  birth: str = ''

  def is_there(self) -> bool | None:
    """Returns whether it runs, None if that cannot be seen from here."""
    here = this_process()
    if self.host != here.host or self.space not in ('', here.space):
      return None
    if not here.birth:  # No /proc.
      return _exists(self.pid)
    birth = _birth(self.pid)
    # Another process may have its number by now.
    return birth != '' and self.birth in ('', birth)

  def __str__(self):
    # The name may come from somebody else's file.
    return f'process {self.pid} on {ascii(self.host)[1:-1]}'


def this_process() -> Process:
  pid = os.getpid()
  return Process(socket.gethostname(), pid, _space(), _birth(pid))


@functools.cache
def _space():
  try:
    with open('/proc/sys/kernel/random/boot_id') as file:
      return f'{file.read().strip()} {os.readlink("/proc/self/ns/pid")}'
  except OSError:
    return ''


def _birth(pid):
  """Returns when a process began; '' if it is not there, or has no /proc."""
  try:
    with open(f'/proc/{pid}/stat') as file:
      # After the name, which stands in parentheses and may hold some itself.
      fields = file.read().rpartition(')')[2].split()
  except OSError:
    return ''
  state, birth = fields[0], fields[19]
  return '' if state in 'ZX' else birth  # What is left of one that has ended.


def _exists(pid):
  try:
    os.kill(pid, 0)
  except ProcessLookupError:
    return False
  except PermissionError:
    return True
  return True
