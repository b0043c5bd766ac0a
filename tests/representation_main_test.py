"""--knn_examples and --best_metric, from the command to what they leave."""

import json
import re
import shutil
import types

import numpy as np
import pytest

from supcon.config import run_options
from supcon.data.sources import datasets
from supcon.data.sources import splits
from supcon.evaluation import geometry
from supcon.evaluation import knn
from supcon.jobs import representation
from tests import command
from tests.evaluation import made

_FLAGS = {
  **command.DIGITS,
  'stage_1_epochs': 3,
  'stage_1_warmup_epochs': 0,
  'stage_1_optimizer': 'MOMENTUM',
  'stage_2_epochs': 0,
  'stage_2_warmup_epochs': 0,
  'num_images': 300,
  'save_interval_steps': 7,
  'export_formats': 'none',
  'eval_interval_secs': 0,
  'knn_examples': 150,
  'best_metric': 'knn/k10_t0.1',
}


def _json(path):
  return json.loads(path.read_text())


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
  """Training, all of its checkpoints evaluated, and the newest one embedded."""
  directory = tmp_path_factory.mktemp('representation')
  places = {'data_dir': directory / 'data', 'model_dir': directory / 'model'}
  flags = {**_FLAGS, **places}
  embed = {**flags, 'mode': 'embed'}
  del embed['num_images'], embed['best_metric']
  jobs = {
    'train': {**flags, 'mode': 'train'},
    'eval': {**flags, 'mode': 'eval'},
    'few': {
      **flags,
      'mode': 'eval',
      'eval_once': True,
      'knn_examples': 12,
      'model_dir': directory / 'other copy',
    },
    'off': {
      **flags,
      'mode': 'eval',
      'eval_once': True,
      'knn_examples': 0,
      'best_metric': 'loss',
      'model_dir': directory / 'copy',
    },
    'too few': {**flags, 'mode': 'eval', 'best_metric': 'knn/k200_t0.1'},
    'embed train': {
      **embed,
      'eval_split': 'train[:150]',
      'output': directory / 'train.npz',
    },
    'embed test': {
      **embed,
      'eval_split': 'test[:150]',
      'output': directory / 'test.npz',
    },
  }
  (first,) = command.run_many([jobs.pop('train')], directory, is_small=True)
  assert first.returncode == 0, first.stderr
  for name in ('copy', 'other copy'):
    shutil.copytree(places['model_dir'], directory / name)
  done = dict(
    zip(jobs, command.run_many([*jobs.values()], directory, is_small=True))
  )
  return types.SimpleNamespace(
    directory=directory, model_dir=places['model_dir'], done=done
  )


def _outputs(path):
  with np.load(path) as arrays:
    return made.of_embeddings(arrays['embeddings'], arrays['labels'])


def test_each_checkpoint_is_measured(runs):
  assert runs.done['eval'].returncode == 0, runs.done['eval'].stderr
  found = command.summaries(runs.model_dir / 'eval')
  record = _json(runs.model_dir / 'eval' / 'evaluated.json')
  assert list(record) == ['0', '7', '14']
  names = [f'knn/{tag}' for tag in knn.TAGS if not tag.startswith('k200')]
  names += ['geometry/alignment', 'geometry/uniformity']
  for step, entry in record.items():
    for name in names:
      value = entry['metrics'][name]
      assert found[name][int(step)] == pytest.approx(value, rel=1e-6)
    # There are 150 examples.
    assert not any('k200' in name for name in entry['metrics'])
    # The table has the usual ones.
    row = command.table(runs.model_dir / 'eval' / 'metrics.csv')[int(step)]
    for column, name in (
      ('knn_k20_t0.07', 'knn/k20_t0.07'),
      ('alignment', 'geometry/alignment'),
      ('uniformity', 'geometry/uniformity'),
    ):
      assert float(row[column]) == pytest.approx(
        entry['metrics'][name], rel=1e-5
      )
  # It learns, which the classifier does not show in stage 1.
  assert (
    record['14']['metrics']['knn/k10_t0.1']
    > record['0']['metrics']['knn/k10_t0.1']
  )


def test_values_are_those_of_the_embeddings(runs):
  for name in ('embed train', 'embed test'):
    assert runs.done[name].returncode == 0, runs.done[name].stderr
  index, outputs = (
    _outputs(runs.directory / name) for name in ('train.npz', 'test.npz')
  )
  metrics = _json(runs.model_dir / 'eval' / 'evaluated.json')['14']['metrics']
  for tag, value in knn.run(outputs, index).items():
    if not tag.startswith('k200'):
      assert metrics[f'knn/{tag}'] == pytest.approx(value, abs=1.01 / 150)
  for name, value in geometry.run(outputs).items():
    assert metrics[f'geometry/{name}'] == pytest.approx(value, abs=1e-4)


def test_the_log_says_whether_it_learns(runs):
  lines = [line for line in runs.done['eval'].log if 'embeddings of ' in line]
  assert len(lines) == 3
  for line in lines:
    assert re.fullmatch(
      r'embeddings of 150 images, among those of 150 training images: accuracy '
      r'of 20 nearest neighbours \d\.\d{4}, alignment \d\.\d{4}, uniformity '
      r'-\d\.\d{4}',
      line,
    )


def test_the_best_one_is_that_of_the_chosen_metric(runs):
  record = _json(runs.model_dir / 'eval' / 'evaluated.json')
  values = {
    int(step): entry['metrics']['knn/k10_t0.1']
    for step, entry in record.items()
  }
  best = max(values, key=values.get)
  assert _json(runs.model_dir / 'best' / 'best.json')['step'] == best
  assert (
    runs.done['eval']
    .log[-1]
    .startswith(
      f'the best: step {best}, knn/k10_t0.1 {values[best]:.4f}, top-1 '
    )
  )
  # Without an evaluation before, the first one is the best.
  assert _json(runs.directory / 'copy' / 'best' / 'best.json')['step'] == 14


def test_it_can_be_switched_off(runs):
  assert runs.done['off'].returncode == 0, runs.done['off'].stderr
  metrics = _json(runs.directory / 'copy' / 'result.json')['metrics']
  assert not any(name.startswith(('knn', 'geometry')) for name in metrics)
  assert not any('embeddings of' in line for line in runs.done['off'].log)


def test_few_examples_give_few_neighbours(runs):
  assert runs.done['few'].returncode == 0, runs.done['few'].stderr
  metrics = _json(runs.directory / 'other copy' / 'result.json')['metrics']
  assert {name for name in metrics if name.startswith('knn/')} == {
    'knn/k1_t0.07',
    'knn/k1_t0.1',
    'knn/k10_t0.07',
    'knn/k10_t0.1',
  }


def test_too_few_for_the_metric_are_refused(runs):
  done = runs.done['too few']
  assert done.returncode == 2
  assert done.log[-1].endswith(
    '--best_metric=knn/k200_t0.1 needs --knn_examples=200 or more, not 150.'
  )


# --- In detail ----------------------------------------------------------------


def test_fewer_training_examples_than_neighbours_are_refused():
  options = run_options.RunOptions(best_metric='knn/k200_t0.07')
  run = types.SimpleNamespace(
    options=options, dataset=types.SimpleNamespace(num_train_examples=199)
  )
  with pytest.raises(ValueError, match='needs 200 training examples'):
    representation.check(run)
  run.dataset.num_train_examples = 200
  representation.check(run)


def test_the_metrics_to_choose_from_are_those_of_an_evaluation(runs):
  metrics = _json(runs.model_dir / 'eval' / 'evaluated.json')['14']['metrics']
  of_200 = {f'knn/{tag}' for tag in knn.TAGS if tag.startswith('k200')}
  assert {*run_options.BEST_METRICS} == {*metrics, *of_200}


def test_which_value_is_better():
  assert run_options.is_better('knn/k1_t0.07', 0.5, 0.4)
  assert run_options.is_better('loss/contrastive_loss', 0.4, 0.5)
  assert not run_options.is_better('top_1_accuracy', 0.5, 0.5)


def test_a_subset_of_records_is_the_first_of_them(tmp_path):
  # TFDS has shuffled them.
  split = datasets.load('digits', str(tmp_path)).train
  assert representation.subset(split, 10**6) is split
  some = representation.subset(split, 3)
  assert [some.example_id(i) for i in range(3)] == [
    'train/0',
    'train/1',
    'train/2',
  ]


def test_a_subset_of_files_has_images_of_all_classes():
  split = types.SimpleNamespace(
    num_examples=10,
    storage=lambda: splits.Files(None, None),
    select=lambda positions: positions,
  )
  assert representation.subset(split, 4) == [0, 2, 5, 7]
