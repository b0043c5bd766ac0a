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
  """Orders the tests, and leaves those of hub.Module to another environment.

  Files with slow tests come first: otherwise one process is busy with the
  longest of them after all others have ended.

  elsewhere_test.py runs the tests of hub.Module where it is. Without such an
  environment they are skipped.
  """
  slow = {item.path for item in items if item.get_closest_marker('slow')}
  items.sort(key=lambda item: item.path not in slow)
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
