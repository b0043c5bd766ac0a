"""Reports, from the command to what it leaves."""

import json
import re
import shutil
import sys
import types

from PIL import Image
import pytest
import tensorflow as tf

from supcon.compute import installation
from supcon.config import hparams
from supcon.config import run_options
from supcon.jobs import report_subject
from supcon.jobs import reporting
from supcon.runs import status
from supcon.training import stages
from tests import command

_FLAGS = {
  **command.DIGITS,
  'stage_1_epochs': 2,
  'stage_1_warmup_epochs': 0,
  'stage_1_optimizer': 'MOMENTUM',
  'stage_1_cross_entropy_loss_weight': 0,
  'stage_2_epochs': 2,
  'stage_2_warmup_epochs': 0,
  'num_images': 300,
  'export_formats': 'saved_model',
  'report_examples': 50000,
}


def _report(model_dir):
  return json.loads((model_dir / 'report' / 'report.json').read_text())


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
  """A training with its report; and copies without stage 2, or damaged."""
  directory = tmp_path_factory.mktemp('reports')
  model, first = directory / 'model', directory / 'stage one'
  places = {'data_dir': directory / 'data', 'model_dir': model}
  train, export = command.run_many(
    [
      {**_FLAGS, **places, 'mode': 'train_then_eval'},
      {'mode': 'export', 'model_dir': model},
    ],
    directory,
    is_small=True,
  )
  assert train.returncode == 0, train.stderr
  damaged = directory / 'damaged'
  shutil.copytree(model, damaged)
  (damaged / 'metrics.csv').write_text('no,table\n1,2\n')
  shutil.copytree(model, first)
  shutil.rmtree(first / 'report')
  shutil.rmtree(first / 'eval')
  for path in (*first.glob('model.ckpt-18.*'), first / 'checkpoint'):
    path.unlink()
  before = command.contents(first)
  look = {**places, 'mode': 'report', 'use_tpu': False}
  jobs = {
    'stage one': {**look, 'model_dir': first, 'report_examples': 50},
    'no run': {**look, 'model_dir': directory / 'nothing'},
    'no examples': {**look, 'report_examples': 0},
    'damaged': {**look, 'model_dir': damaged},
  }
  done = command.run_many(list(jobs.values()), directory)
  return types.SimpleNamespace(
    model=model,
    first=first,
    before=before,
    report=_report(model),
    done={'train': train, 'export': export, **dict(zip(jobs, done))},
  )


def test_a_training_ends_with_a_report(runs):
  done = runs.done['train']
  assert done.returncode == 0, done.stderr
  page = runs.model / 'report' / 'report.html'
  assert re.search(rf'^Report: +{re.escape(str(page))}$', done.stdout, re.M)
  assert page.read_text().endswith('</html>\n')
  assert any('computing the outputs' in line for line in done.log)


def test_its_numbers_are_those_of_the_evaluation(runs):
  metrics = runs.report['metrics']
  result = json.loads((runs.model / 'result.json').read_text())
  for name, other in (
    ('accuracy/top_1', 'top_1_accuracy'),
    ('accuracy/top_5', 'top_5_accuracy'),
    ('calibration/nll', 'loss/cross_entropy_loss'),
  ):
    assert metrics[name] == pytest.approx(result['metrics'][other], rel=1e-5)
  run = runs.report['run']
  assert (run['step'], run['total_steps']) == (18, 18)  # 4 x 300 / 64.
  assert run['num_index_examples'] == 300
  assert run['num_eval_examples'] == result['num_examples'] == 360
  assert 'num_images' in [flag['flag'] for flag in run['changed']]
  # The boundary is where the second stage begins.
  assert [stage['last_step'] for stage in run['stages']] == [9, 18]
  assert {*runs.report['curves']['eval']} >= {'loss', 'top_1_accuracy'}


def test_the_temperature_is_fitted_on_what_was_left_out(runs):
  assert '1,137 training images' in runs.report['scaling']  # 1437 - 300.
  metrics = runs.report['metrics']
  assert metrics['calibration/temperature'] > 0
  assert metrics['calibration/nll_scaled'] != metrics['calibration/nll']


def test_the_model_card_has_its_metrics(runs):
  assert runs.done['export'].returncode == 0, runs.done['export'].stderr
  exports = sorted((runs.model / 'exports').iterdir())
  assert len(exports) == 2  # That of the training, and a later one.
  for export in exports:
    facts = json.loads((export / 'export.json').read_text())
    card = (export / 'model_card.md').read_text()
    for name in ('calibration/ece', 'knn/k20_t0.07', 'few_shot/5_shot'):
      assert facts['metrics'][name] == runs.report['metrics'][name]
      assert f'`{name}` | {facts["metrics"][name]:.6g}' in card
    assert 'top_1_accuracy' in facts['metrics']
    assert 'two differ by' in card


def test_stage_one_alone_is_described_by_its_embeddings(runs):
  done = runs.done['stage one']
  assert done.returncode == 0, done.stderr
  assert done.stdout == f'Report: {runs.first}/report/report.html\n'
  report = _report(runs.first)
  assert 'knn/k20_t0.07' in report['metrics']
  assert not [name for name in report['metrics'] if 'calibration' in name]
  assert report['curves']['train'] and not report['curves']['eval']
  notes = ' '.join(report['notes'])
  assert 'not finished' in notes and 'step 9 of 18' in notes
  assert 'No classifier' in notes
  text = (runs.first / 'report' / 'report.html').read_text()
  assert 'No checkpoint has been evaluated yet' in text


def test_tensorboard_gets_embeddings_and_pictures(runs):
  directory = runs.model / 'report'
  # 360 images are 19 rows of up to 19.
  assert Image.open(directory / 'sprites.png').size == (19 * 32, 19 * 32)
  header, *lines = (directory / 'metadata.tsv').read_text().splitlines()
  assert header == 'class\tpredicted\tresult\texample' and len(lines) == 360
  hits = sum('\tright\ttest/' in line for line in lines)
  assert hits / 360 == pytest.approx(runs.report['metrics']['accuracy/top_1'])
  checkpoint = tf.train.latest_checkpoint(str(directory))
  ((name, shape),) = tf.train.list_variables(checkpoint)
  assert (name, shape[0]) == ('embeddings', 360)
  # Without a classifier there is nothing to predict.
  header, *lines = (runs.first / 'report/metadata.tsv').read_text().splitlines()
  assert header == 'class\texample' and len(lines) == 50


def test_looking_changes_nothing_of_a_run(runs):
  after = command.contents(runs.first)
  new = {name for name in after if name not in runs.before}
  (events,) = {name for name in new if name.endswith('.report')}
  assert new - {events} == {
    f'report/{name}'
    for name in (
      'report.html',
      'report.json',
      'checkpoint',
      'embeddings-9.data-00000-of-00001',
      'embeddings-9.index',
      'events.out.tfevents.0000000000.projector',
      'metadata.tsv',
      'projector_config.pbtxt',
      'sprites.png',
    )
  }
  assert {name: after[name] for name in runs.before} == runs.before


def test_a_limit_of_examples_is_kept_and_told(runs):
  report = _report(runs.first)
  assert report['run']['num_index_examples'] == 50
  assert report['run']['num_eval_examples'] == 50
  assert '50 of 360 images of test' in ' '.join(report['notes'])
  assert 'knn/k100_t0.1' not in report['metrics']


@pytest.mark.parametrize(
  'name, words',
  [
    ('no run', ['holds no checkpoint']),
    ('no examples', ['--report_examples=0']),
    ('damaged', ['metrics.csv', 'is no table of metrics']),
  ],
)
def test_mistakes_end_in_one_line(runs, name, words):
  done = runs.done[name]
  assert done.returncode == 2
  line = done.stderr.splitlines()[-1]
  assert line.startswith('main.py: error: ') and 'Traceback' not in done.stderr
  assert all(word in line for word in words), line


class TestWithoutMatplotlib:
  @pytest.fixture(autouse=True)
  def _without(self, monkeypatch):
    for name in [n for n in sys.modules if n.split('.')[0] == 'matplotlib']:
      monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, 'matplotlib', None)

  def test_a_report_is_refused_with_what_to_install(self, tmp_path):
    options = run_options.RunOptions(mode='report', model_dir=str(tmp_path))
    with pytest.raises(
      installation.InstallationError, match='matplotlib.*; run: '
    ):
      reporting.Report(options, hparams.HParams())

  def test_a_training_is_only_warned(self, warnings):
    run = types.SimpleNamespace(options=run_options.RunOptions())
    assert reporting.after_training(run, {}) is None
    (line,) = warnings
    assert 'no report' in line and '; run: ' in line


def test_without_examples_no_training_makes_a_report(warnings):
  options = run_options.RunOptions(report_examples=0)
  run = types.SimpleNamespace(options=options)
  assert reporting.after_training(run, {}) is None
  assert not warnings


def _subject(step, path='', **changes):
  params = hparams.HParams(batch_size=10)
  for name, value in {
    'stage_1.epochs': 2,
    'stage_1.warmup_epochs': 0,
    'stage_1.cross_entropy_loss_weight': 0.0,
    'stage_2.epochs': 1,
    'stage_2.warmup_epochs': 0,
    **changes,
  }.items():
    params = params.replace(name, value)
  plan = stages.plan(params, 100)  # Stage 1 ends at step 20, stage 2 at 30.
  return report_subject.Subject(
    *[None] * 2,
    model=types.SimpleNamespace(step=step),
    dataset=None,
    model_dir=types.SimpleNamespace(path=path),
    known=types.SimpleNamespace(plan=lambda: plan, params=params),
    dtype=None,
    records=None,
  )


@pytest.mark.parametrize(
  'step, changes, expected',
  [
    (20, {}, False),
    (21, {}, True),
    (0, {'stage_1.cross_entropy_loss_weight': 1.0}, False),
    (1, {'stage_1.cross_entropy_loss_weight': 1.0}, True),
    (0, {'warm_start.warm_start_classifier': True}, True),
  ],
)
def test_logits_count_once_a_step_has_trained_the_classifier(
  step, changes, expected
):
  assert _subject(step, **changes).has_classifier == expected


@pytest.mark.parametrize(
  'state, words', [('training', 'still training'), ('stopped', 'not finished')]
)
def test_an_unfinished_run_is_told(tmp_path, state, words, monkeypatch):
  found = status.Status(state=state)
  monkeypatch.setattr(status, 'read', lambda path: found)
  subject = _subject(20, str(tmp_path))
  split = types.SimpleNamespace(num_examples=5, name='x')
  dataset = types.SimpleNamespace(train=split, evaluation=split)
  subject.__dict__['dataset'] = dataset
  first, *_ = report_subject.notes(
    subject, {'index': split, 'evaluation': split}
  )
  assert words in first and 'step 20 of 30' in first
