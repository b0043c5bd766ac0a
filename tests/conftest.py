"""Shared by all tests: quiet TensorFlow, and no network where asked."""

import os
import socket

import pytest

from supcon import installation

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
installation.choose_keras()


@pytest.fixture
def no_network(monkeypatch):
  """Whoever calls another machine fails."""

  def refuse(*args):
    raise AssertionError(f'network access: {args}')

  monkeypatch.setattr(socket.socket, 'connect', refuse)
  monkeypatch.setattr(socket, 'getaddrinfo', refuse)
