"""Shared by all tests: quiet TensorFlow, and no network where asked."""

import os
import socket

from absl import logging
import pytest

from supcon.compute import installation
from tests.serving import elsewhere

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
installation.choose_keras()


@pytest.fixture
def no_network(monkeypatch):
  """Whoever calls another machine fails."""

  def refuse(*args):
    raise AssertionError(f'network access: {args}')

  monkeypatch.setattr(socket.socket, 'connect', refuse)
  monkeypatch.setattr(socket, 'getaddrinfo', refuse)


@pytest.fixture
def warnings(monkeypatch):
  """All warnings that are logged from now on, a list that grows."""
  found = []
  monkeypatch.setattr(
    logging, 'warning', lambda message, *args: found.append(message % args)
  )
  return found


def pytest_collection_modifyitems(config, items):
  """Leaves the tests of hub.Module to an environment that has it.

  elsewhere_test.py has them run there. Without such an environment they are
  skipped.
  """
  concerned = [item for item in items if item.get_closest_marker('hub_module')]
  if not concerned or elsewhere.has_hub_module():
    return
  why_not = elsewhere.why_not()
  if why_not:
    for item in concerned:
      item.add_marker(pytest.mark.skip(why_not))
  else:
    config.hook.pytest_deselected(items=concerned)
    items[:] = [item for item in items if item not in concerned]
