"""Tests of comparison: which runs belong together, and what they reach."""

import json
import math

import pytest

from supcon.reports import comparison
from supcon.reports import run_records
from supcon.runs import signals
from tests import made_runs

_TOP_1 = 'top_1_accuracy'


def _compare(path, metric=_TOP_1):
  return comparison.compare(run_records.find([str(path)]), metric)


def _why(found):
  """Returns {name of the directory: why it was left out}."""
  return {run.path.rsplit('/', 1)[-1]: why for run, why in found.left_out}


# --- Numbers ------------------------------------------------------------------


def test_mean_deviation_and_interval():
  found = comparison.summarize([0.97, 0.98, 0.99])
  assert found.n == 3
  assert found.mean == pytest.approx(0.98)
  # sqrt((0.01^2 + 0 + 0.01^2) / (3 - 1)) = 0.01
  assert found.deviation == pytest.approx(0.01)
  # 4.302653 (SciPy: t.ppf(0.975, 2)) * 0.01 / sqrt(3) = 0.0248414
  assert found.low == pytest.approx(0.98 - 0.0248414, abs=1e-7)
  assert found.high == pytest.approx(0.98 + 0.0248414, abs=1e-7)


def test_one_run_has_no_deviation():
  assert comparison.summarize([0.5]) == (0.5, None, None, None, 1)


def test_equal_runs_have_an_interval_of_no_width():
  assert comparison.summarize([0.5, 0.5]) == (0.5, 0.0, 0.5, 0.5, 2)


# scipy.stats.t.ppf(0.975, freedom), SciPy 1.15.3.
@pytest.mark.parametrize(
  'freedom, expected',
  [
    (1, 12.706204736432095),  # tan(0.95 pi / 2)
    (2, 4.302652729696142),
    (3, 3.182446305284263),
    (4, 2.7764451051977987),
    (5, 2.570581835636314),
    (9, 2.2621571628540993),
    (10, 2.2281388519649385),
    (30, 2.0422724563012373),
    (99, 1.9842169515086827),
    (1000, 1.9623390808264074),
  ],
)
def test_student_t_is_that_of_scipy(freedom, expected):
  assert comparison.student_t(freedom) == pytest.approx(expected, rel=1e-9)


def test_student_t_of_another_probability():
  # One degree of freedom is the Cauchy distribution: P(|T| < 1) = 1/2.
  assert comparison.student_t(1, 0.5) == pytest.approx(1.0)
  # scipy.stats.t.ppf(0.995, 4)
  assert comparison.student_t(4, 0.99) == pytest.approx(
    4.604094871415897, rel=1e-9
  )


# --- Groups -------------------------------------------------------------------


def test_runs_that_differ_in_the_seed_alone_are_one_group(tmp_path):
  for seed, top_1 in enumerate((0.9, 0.8)):
    made_runs.finish(tmp_path / f'a{seed}', top_1, t=0.5, seed=seed)
  made_runs.finish(tmp_path / 'b', 0.95, t=0.1, seed=0)
  found = _compare(tmp_path)
  assert found.columns == ['temperature']
  # The best first.
  assert [group.settings['temperature'] for group in found.groups] == [
    '0.1',
    '0.5',
  ]
  assert [run.settings['seed'] for run in found.groups[1].runs] == ['0', '1']
  summary = found.groups[1].summaries[_TOP_1]
  assert (summary.n, summary.mean) == (2, pytest.approx(0.85))
  assert found.left_out == [] and found.notes == []
  assert str(found.data) == 'digits test, 50 images'


def test_only_what_differs_has_a_column(tmp_path):
  made_runs.finish(tmp_path / 'a', 0.5, t=0.5, s1lr=0.1, nv=3)
  made_runs.finish(tmp_path / 'b', 0.5, t=0.5, s1lr=0.2, nv=3)
  assert _compare(tmp_path).columns == ['stage_1_base_learning_rate']


def test_the_smallest_is_best_where_smaller_is_better(tmp_path):
  for t, loss in ((0.1, 3.0), (0.2, 1.0), (0.3, 2.0)):
    made_runs.finish(tmp_path / f'{t}', 0.5, {'loss': loss}, t=t)
  found = _compare(tmp_path, 'loss')
  assert [g.settings['temperature'] for g in found.groups] == [
    '0.2',
    '0.3',
    '0.1',
  ]


def test_a_metric_that_some_lack_is_not_averaged(tmp_path):
  made_runs.finish(tmp_path / 'a', 0.5, {'knn/k20_t0.07': 0.75}, seed=0)
  made_runs.finish(tmp_path / 'b', 0.5, seed=1)
  (group,) = _compare(tmp_path).groups
  assert {*group.summaries} == {_TOP_1}
  found = _compare(tmp_path, 'knn/k20_t0.07')
  assert _why(found) == {'b': 'knn/k20_t0.07 was not measured'}


def test_what_changed_on_the_way_makes_another_group(tmp_path):
  made_runs.finish(tmp_path / 'a', 0.5, t=0.2)
  made_runs.train(tmp_path / 'b', t=0.1)
  made_runs.record(tmp_path / 'b', after_step=12, t=0.2)
  # Applies to no checkpoint that was evaluated.
  made_runs.record(tmp_path / 'b', after_step=30, t=0.3)
  made_runs.evaluate(tmp_path / 'b', 0.4)
  found = _compare(tmp_path)
  assert [group.settings['temperature'] for group in found.groups] == [
    '0.2',
    '0.1 then 0.2',
  ]


def test_the_last_step_counts_and_not_the_best_one(tmp_path):
  made_runs.train(tmp_path / 'a')
  made_runs.evaluate(tmp_path / 'a', 0.9, step=20)
  made_runs.evaluate(tmp_path / 'a', 0.8)
  (group,) = _compare(tmp_path).groups
  assert group.summaries[_TOP_1].mean == 0.8
  (run,) = group.runs
  data = _compare(tmp_path).data
  # Ten steps are an epoch.
  assert run.evaluation_curve(data, _TOP_1) == [(2.0, 0.9), (3.0, 0.8)]
  assert run.training_curve('loss')[:2] == [(0.0, 1.0), (0.2, 0.33333334)]
  assert run.stage_ends == (2.0,)


def test_equal_seeds_are_noted(tmp_path):
  made_runs.finish(tmp_path / 'a', 0.5, seed=3)
  made_runs.finish(tmp_path / 'b', 0.6, seed=3)
  found = _compare(tmp_path)
  assert len(found.groups) == 1
  assert 'a and ' in found.notes[0] and 'seed, 3' in found.notes[0]


def test_a_result_of_an_older_version_counts(tmp_path):
  made_runs.finish(tmp_path / 'a', 0.5)
  path = tmp_path / 'a' / 'result.json'
  result = json.loads(path.read_text())
  del result['evaluations']
  path.write_text(json.dumps(result))
  assert len(_compare(tmp_path).groups) == 1


def test_what_a_report_measures_of_the_same_checkpoint_counts(tmp_path):
  made_runs.finish(tmp_path / 'a', 0.5, {'fingerprint': 'same'})
  about = {
    'fingerprint': 'same',
    'dataset': 'digits',
    'eval_split': 'test',
    'num_eval_examples': 50,
  }
  metrics = {'calibration/nll': 0.25, 'knn/k1_t0.1': 0.5, 'classes/names': []}
  path = tmp_path / 'a' / 'report' / 'report.json'
  path.parent.mkdir()
  for fingerprint, expected in (('same', 0.25), ('another', None)):
    about['fingerprint'] = fingerprint
    path.write_text(json.dumps({'run': about, 'metrics': metrics}))
    (group,) = _compare(tmp_path).groups
    found = group.summaries.get('calibration/nll')
    assert (found and found.mean) == expected
    assert 'knn/k1_t0.1' not in group.summaries


# --- Runs that are not averaged in --------------------------------------------


def test_runs_that_did_not_end_are_left_out(tmp_path):
  made_runs.finish(tmp_path / 'done', 0.5)
  made_runs.train(tmp_path / 'training', step=12, is_over=False)
  made_runs.evaluate(tmp_path / 'training', 0.25, step=10)
  made_runs.train(
    tmp_path / 'diverged', step=7, error=ValueError('the loss is NaN')
  )
  made_runs.train(tmp_path / 'killed', 9, error=signals.Interrupted('SIGTERM'))
  made_runs.train(tmp_path / 'not_evaluated')
  found = _compare(tmp_path)
  assert [len(group.runs) for group in found.groups] == [1]
  assert _why(found) == {
    'training': 'training, step 12 of 30; top_1_accuracy 25.00% at step 10',
    'diverged': 'stopped, step 7 of 30: the loss is NaN; no evaluation yet',
    'killed': 'interrupted, step 9 of 30; no evaluation yet',
    'not_evaluated': (
      'its last checkpoint was not evaluated; run --mode=eval --eval_once; no '
      'evaluation yet'
    ),
  }


def test_a_finished_run_that_is_trained_further_is_left_out(tmp_path):
  made_runs.train(tmp_path / 'a', step=33, is_over=False, total_steps=40)
  made_runs.evaluate(tmp_path / 'a', 0.5)
  assert 'step 33 of 40' in _why(_compare(tmp_path))['a']


def test_evaluations_on_other_data_are_left_out(tmp_path):
  for name in 'ab':
    made_runs.finish(tmp_path / name, 0.5, seed='ab'.index(name))
  made_runs.train(tmp_path / 'c')
  made_runs.evaluate(tmp_path / 'c', 0.9, split='train')
  # Also evaluated on what the others were.
  made_runs.evaluate(tmp_path / 'b', 0.9, split='train')
  found = _compare(tmp_path)
  assert found.groups[0].summaries[_TOP_1].mean == 0.5
  assert _why(found) == {
    'c': (
      'evaluated on other data: digits train, 50 images (the images of train)'
    )
  }


def test_a_copy_does_not_count_twice(tmp_path):
  made_runs.finish(tmp_path / 'a', 0.5, {'fingerprint': 'same'})
  made_runs.finish(tmp_path / 'b', 0.5, {'fingerprint': 'same'})
  assert _why(_compare(tmp_path)) == {'b': f'a copy of {tmp_path}/a'}


def test_a_metric_that_is_no_number_is_left_out(tmp_path):
  made_runs.finish(tmp_path / 'a', math.nan)
  found = _compare(tmp_path)
  assert _why(found) == {'a': 'its top_1_accuracy is nan'}
  text = json.dumps(comparison.to_json(found), allow_nan=False)
  assert '"top_1_accuracy": null' in text


@pytest.mark.parametrize(
  'name, text',
  [
    ('result.json', '{"metrics": '),
    ('result.json', '[]'),
    ('result.json', '{"metrics": {"top_1_accuracy": 0.5}}'),
    ('result.json', '{"evaluations": [3]}'),
    ('result.json', '[' * 100_000),
    ('report/report.json', '{"run": {}}'),
    ('hparams.json', '{"facts": [{}]}'),
    ('hparams.json', '{"compact": "no_such_name=3"}'),
    ('hparams.json', '\udcff'),
  ],
  ids=range(9),
)
def test_a_damaged_file_is_named(tmp_path, name, text):
  made_runs.finish(tmp_path / 'a', 0.5)
  made_runs.finish(tmp_path / 'b', 0.5)
  (tmp_path / 'a' / 'report').mkdir()
  (tmp_path / 'a' / name).write_text(text, errors='surrogateescape')
  found = _compare(tmp_path)
  assert len(found.groups) == 1
  assert _why(found)['a'].startswith(f'{name} cannot be read (')


# --- Which runs ---------------------------------------------------------------


def test_patterns_directories_and_their_parents_name_runs(tmp_path):
  for name in ('sweep/a', 'sweep/b', 'c'):
    made_runs.finish(tmp_path / name, 0.5)
  (tmp_path / 'sweep' / 'log.txt').write_text('not a run')
  patterns = [tmp_path / 'sweep', tmp_path / 'sw*' / '?', tmp_path / 'c']
  found = run_records.find(map(str, patterns))
  assert [run.path.rsplit('/', 1)[-1] for run in found] == ['a', 'b', 'c']


@pytest.mark.parametrize('name', ['nothing', 'empty', 'no*match'])
def test_a_path_that_leads_to_no_run_is_refused(tmp_path, name):
  (tmp_path / 'empty').mkdir()
  with pytest.raises(ValueError, match='leads to no run'):
    run_records.find([str(tmp_path / name)])
