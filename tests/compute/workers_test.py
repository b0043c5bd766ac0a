"""TF_CONFIG, and how a worker notices that another one is gone."""

import json

import pytest

from supcon.compute import workers

_TWO = {'worker': ['a:1', 'b:2']}


def _read(cluster, kind='worker', index=0):
  config = {'cluster': cluster, 'task': {'type': kind, 'index': index}}
  return workers.read({'TF_CONFIG': json.dumps(config)})


@pytest.mark.parametrize(
  'environment',
  [
    {},
    {'TF_CONFIG': ''},
    {'TF_CONFIG': '{}'},
    # Some platforms name the only machine that there is.
    {
      'TF_CONFIG': '{"cluster": {"worker": ["a:1"]}, '
      '"task": {"type": "worker", "index": 0}}'
    },
  ],
)
def test_one_machine_is_no_cluster(environment):
  assert workers.read(environment) is None


def test_workers_are_numbered_in_their_order():
  for index in (0, 1):
    cluster = _read(_TWO, index=index)
    assert cluster.addresses == ('a:1', 'b:2')
    assert cluster.index == index
    assert cluster.others == {1 - index: ('a:1', 'b:2')[1 - index]}


def test_the_chief_comes_first():
  jobs = {'worker': ['a:1', 'b:2'], 'chief': ['c:3']}
  assert _read(jobs, 'chief').index == 0
  second = _read(jobs, 'worker', 1)
  assert second.addresses == ('c:3', 'a:1', 'b:2')
  assert second.index == 2
  assert second.others == {0: 'c:3', 1: 'a:1'}


@pytest.mark.parametrize(
  'config, words',
  [
    ('{"cluster": ', ['cannot be read', '"worker": ["host0:2222"']),
    ('[]', ['cannot be read']),
    ({'cluster': _TWO}, ["''", 'chief or worker']),
    (
      {'cluster': _TWO, 'task': {'type': 'evaluator'}},
      ["'evaluator'", '--mode=eval'],
    ),
    (
      {'cluster': {**_TWO, 'ps': ['c:3']}, 'task': {'type': 'worker'}},
      ["'ps'"],
    ),
    (
      {'cluster': _TWO, 'task': {'type': 'worker', 'index': 2}},
      ['worker 2', 'lists 2', 'worker 0'],
    ),
    ({'cluster': _TWO, 'task': {'type': 'chief'}}, ['chief 0', 'lists 0']),
    (
      {'cluster': {'worker': ['a', 'b:2']}, 'task': {'type': 'worker'}},
      ["'a'", 'host:port'],
    ),
    (
      {'cluster': {'chief': ['a:1', 'b:2']}, 'task': {'type': 'chief'}},
      ['several chiefs'],
    ),
  ],
)
def test_says_what_is_wrong(config, words):
  text = config if isinstance(config, str) else json.dumps(config)
  with pytest.raises(ValueError) as error:
    workers.read({'TF_CONFIG': text})
  message = str(error.value)
  assert '\n' not in message and message.startswith('TF_CONFIG')
  for word in words:
    assert word in message
