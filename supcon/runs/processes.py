"""Identifies processes on any machine, and tells whether they still run."""

import dataclasses
import functools
import os
import socket


@dataclasses.dataclass(frozen=True)
class Process:
  """A process on this machine or another one.

  Attributes:
    host: Name of the machine.
    pid: Its number on that machine.
    space: Identifies the scope of these numbers: a container, or a machine
      between start and shutdown. '' if unknown.
    birth: Its start time, in ticks since the start of that scope; '' if
      unknown.
  """

  host: str
  pid: int
  space: str = ''
  birth: str = ''

  def is_there(self) -> bool | None:
    """Returns whether it runs; None if this machine cannot tell."""
    here = this_process()
    if self.host != here.host or self.space not in ('', here.space):
      return None
    if not here.birth:  # No /proc.
      return _exists(self.pid)
    birth = birth_of(self.pid)
    # Another process may have the same number by now.
    return birth != '' and self.birth in ('', birth)

  def __str__(self):
    # The name may come from a file written by somebody else.
    return f'process {self.pid} on {ascii(self.host)[1:-1]}'


def this_process() -> Process:
  pid = os.getpid()
  return Process(socket.gethostname(), pid, _space(), birth_of(pid))


@functools.cache
def _space():
  try:
    with open('/proc/sys/kernel/random/boot_id') as file:
      return f'{file.read().strip()} {os.readlink("/proc/self/ns/pid")}'
  except OSError:
    return ''


def birth_of(pid):
  """Returns the start time of a process; '' without process or /proc."""
  try:
    with open(f'/proc/{pid}/stat') as file:
      # After the name, which is in parentheses and may itself contain some.
      fields = file.read().rpartition(')')[2].split()
  except OSError:
    return ''
  state, birth = fields[0], fields[19]
  return '' if state in 'ZX' else birth  # Z and X: the process has ended.


def _exists(pid):
  try:
    os.kill(pid, 0)
  except ProcessLookupError:
    return False
  except PermissionError:
    return True
  return True
