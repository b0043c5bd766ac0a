"""Starts programs in forks of a process that has imported TensorFlow.

The import takes four seconds, as long as the rest of many a job of the tests.
What follows is as in a process of its own: arguments, environment, directory,
output, signals and exit codes. A test of the start itself needs a real one.
"""

import contextlib
import functools
import json
import os
import pathlib
import runpy
import select
import signal
import socket
import subprocess
import sys

_ROOT = pathlib.Path(__file__).resolve().parent.parent


class Process:
  """A program in a fork; offers what the tests need of subprocess.Popen."""

  def __init__(self, command, cwd, env, stdout, stderr):
    """Starts it, without input.

    Args:
      command: The path of a Python program, and its arguments.
      cwd: Its working directory.
      env: All variables of its environment.
      stdout: An open file.
      stderr: An open file.
    """
    self._end, end = os.pipe()
    umask = os.umask(0)
    os.umask(umask)
    request = [list(map(str, command)), str(cwd), env, umask]
    socket.send_fds(
      _server(),
      [json.dumps(request).encode()],
      [stdout.fileno(), stderr.fileno(), end],
    )
    os.close(end)
    self._returncode = None
    self.pid = self._read()

  def _read(self):
    return int.from_bytes(os.read(self._end, 8), sys.byteorder, signed=True)

  def poll(self) -> int | None:
    """Returns the exit code, minus the signal, or None while it runs."""
    return self._wait(0)

  def wait(self, timeout: float | None = None) -> int:
    """Like `poll`, after the end.

    Raises:
      subprocess.TimeoutExpired: If it runs on for `timeout` seconds.
    """
    code = self._wait(timeout)
    if code is None:
      raise subprocess.TimeoutExpired(str(self.pid), timeout)
    return code

  def _wait(self, timeout):
    if self._returncode is None:
      if not select.select([self._end], [], [], timeout)[0]:
        return None
      self._returncode = self._read()
      os.close(self._end)
    return self._returncode

  def send_signal(self, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
      if self.poll() is None:
        os.kill(self.pid, number)

  def kill(self) -> None:
    self.send_signal(signal.SIGKILL)


@functools.cache
def _server():
  """Starts the process that forks; it ends with this one."""
  ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
  subprocess.Popen(
    [sys.executable, '-m', 'tests.forking', str(its.fileno())],
    cwd=_ROOT,
    pass_fds=[its.fileno()],
    stdin=subprocess.DEVNULL,
    stdout=subprocess.DEVNULL,
  )
  its.close()
  return ours


def _serve(requests):
  """Forks for each request; returns the command in each fork."""
  signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # Nobody waits for keepers.
  while True:
    request, descriptors, _, _ = socket.recv_fds(requests, 2**20, 3)
    if not request:
      sys.exit()
    if os.fork():
      for each in descriptors:
        os.close(each)
      continue
    requests.close()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    stdout, stderr, end = descriptors
    pid = os.fork()
    if pid:
      _keep(pid, end)
    command, directory, environment, umask = json.loads(request)
    os.dup2(stdout, 1)
    os.dup2(stderr, 2)
    for each in descriptors:
      os.close(each)
    os.chdir(directory)
    os.umask(umask)
    os.environ.clear()
    os.environ.update(environment)
    return command


def _keep(pid, end):
  """Tells the id of a child, and its exit code after its end."""

  def tell(number):
    os.write(end, number.to_bytes(8, sys.byteorder, signed=True))

  try:
    tell(pid)
    _, status = os.waitpid(pid, 0)
    tell(os.waitstatus_to_exitcode(status))
  finally:
    os._exit(0)


def main():
  from supcon.compute import installation

  installation.load()
  from supcon import jobs  # noqa: F401  It imports all else.

  command = _serve(socket.socket(fileno=int(sys.argv[1])))
  sys.argv[:] = command
  sys.path[0] = str(pathlib.Path(command[0]).parent)
  runpy.run_path(command[0], run_name='__main__')


if __name__ == '__main__':
  main()
