"""Ten faults, one of each kind, as tests/soak.sh makes them by the hundred."""

import json
import subprocess
import sys

import pytest

from tests import command


@pytest.mark.slow
def test_survives_ten_faults(tmp_path):
  directory = tmp_path / 'soak'
  done = subprocess.run(
    [
      sys.executable,
      *('-m', 'tests.soak', '--faults=10', '--seed=1'),
      f'--directory={directory}',
    ],
    cwd=command.ROOT,
    stdin=subprocess.DEVNULL,
    capture_output=True,
    text=True,
    timeout=command.TIMEOUT_SECONDS,
  )
  print(done.stdout, done.stderr)
  result = json.loads((directory / 'soak.json').read_text())
  assert result['problems'] == []
  assert done.returncode == 0
  assert sum(result['faults_by_kind'].values()) == 10
  assert len(result['faults_by_kind']) == 10
  assert result['final_weights_equal']
  assert result['bytes_lost'] == 0
  assert result['evaluations_done'] >= result['checkpoints'] > 10
  assert result['evaluations_missed'] == 0
  assert result['evaluations_repeated'] == 0
  # Those that have to end one of the two; a full disk may do so, too.
  assert result['kills_survived'] >= 6
  assert sum(result['restarts'].values()) >= 6
