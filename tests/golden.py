"""Finds the reference values of the published implementation.

They are looked for in `$SUPCON_GOLDEN_DIR`, then in `shared/golden` beside the
checkout, then in `tests/golden`, where a lone clone keeps a selection. The
first place that has a file wins, file by file.
"""

import json as json_lib
import os
import pathlib
import zlib

import numpy as np
import pytest

_TESTS = pathlib.Path(__file__).resolve().parent


def _places():
  given = os.environ.get('SUPCON_GOLDEN_DIR')
  if given:
    yield pathlib.Path(given)
  yield _TESTS.parent.parent / 'shared' / 'golden'
  yield _TESTS / 'golden'


def path(name):
  """Returns where reference file `name` is; skips the test if nowhere."""
  for place in _places():
    if (place / name).exists():
      return place / name
  pytest.skip(
    f'reference values {name} not found in any of '
    f'{[str(place) for place in _places()]}; set SUPCON_GOLDEN_DIR',
    allow_module_level=True,
  )


def checkpoint(name):
  """Like `path`, for a checkpoint prefix such as models/x/model.ckpt."""
  index = path(name + '.index')
  return str(index)[: -len('.index')]


def npz(name):
  """Returns the arrays of an .npz file as a dictionary."""
  with np.load(path(name), allow_pickle=False) as arrays:
    return dict(arrays)


def json(name):
  """Returns a .json file; NaN and Infinity are read as floats."""
  return json_lib.loads(path(name).read_text())


def variable(name, shape, salt=0):
  """Returns the value of a model variable by the rule of README.md there."""
  seed = (zlib.crc32(name.encode()) + salt) % 2**32
  x = np.random.RandomState(seed).randn(*shape)
  kind = name.rpartition('/')[-1]
  if kind == 'gamma':
    x = 1 + 0.1 * x
  elif kind == 'moving_variance':
    x = np.exp(0.2 * x)
  elif kind in ('beta', 'moving_mean', 'bias'):
    x = 0.1 * x
  else:
    x = x * np.sqrt(2 / np.prod(shape[:-1]))
  return x.astype(np.float32)
