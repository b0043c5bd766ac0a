"""Tests of supcon.serving.model_card: what it tells, and that it works."""

import base64
import collections
import dataclasses
import json
import os
import pathlib
import re
import subprocess

import pytest

from supcon.config import hparams
from supcon.serving import model_card
from tests.serving import exported

_CARD = model_card.Card(
  exported.trained_model('SECRET_DIR/model.ckpt-3'),
  embedding_size=32,
  num_parameters=1234567,
  facts={},
  version='1.2.3',
  commit='0123abc-dirty',
)


@pytest.fixture(scope='module', name='cards')
def _cards(export):
  """Returns {directory: text} of those that were exported."""
  return {
    path: (pathlib.Path(path) / 'model_card.md').read_text()
    for path in (export.path, export.hub_module)
  }


def _blocks(text, language):
  return re.findall(f'```{language}\n(.*?)```', text, re.DOTALL)


def _rows(text, head):
  """Returns the cells of the table whose first cell is `head`."""
  lines = iter(text.splitlines())
  rows = []
  for line in lines:
    if line.startswith(f'| {head}'):
      next(lines)
      for row in lines:
        if not row:
          break
        rows.append(
          [cell.strip() for cell in re.split(r'(?<!\\)\|', row)][1:-1]
        )
      return rows
  raise AssertionError(f'no table {head}')


# --- Its examples -------------------------------------------------------------


def _run(cards, export, use, monkeypatch):
  """Runs the examples that use something; returns the variables of each."""
  monkeypatch.chdir(export.path)
  found = []
  for code in _blocks(cards[export.path], 'python'):
    if _use(code) == use:
      found.append(variables := {})
      exec(code, variables)
  return found


def _use(code):
  """Returns what the environment must have to run an example."""
  if 'hub.Module(' in code:
    return 'hub.Module'
  # onnx_test.py runs it.
  if 'onnx' in code:
    return 'ONNX'
  # keras_3_test.py runs it.
  return 'Keras 3' if 'TFSMLayer' in code else 'Keras 2'


def test_no_example_is_left_out(cards, export):
  blocks = _blocks(cards[export.path], 'python')
  assert collections.Counter(map(_use, blocks)) == {
    'Keras 2': 5,
    'hub.Module': 2,
    'Keras 3': 1,
    'ONNX': 2,
  }


def test_examples_of_tensorflow_2_run_as_they_are(cards, export, monkeypatch):
  examples = _run(cards, export, 'Keras 2', monkeypatch)
  loading, keras, by_key, size, frozen = examples
  assert by_key['projection'].shape == [1, 6]
  assert loading['logits'].shape == [1, 10]
  assert loading['embeddings'].shape == [1, 32]
  assert keras['logits'].shape == [1, 10]
  assert len(keras['encoder'].losses) == 3
  for each in (size, frozen):
    assert (each['height'], each['width']) == (exported.SIDE, exported.SIDE)


@pytest.mark.hub_module
def test_examples_of_tensorflow_1_run_as_they_are(cards, export, monkeypatch):
  module, fine_tuning = _run(cards, export, 'hub.Module', monkeypatch)
  for each in (module, fine_tuning):
    assert (each['height'], each['width']) == (exported.SIDE, exported.SIDE)
  assert module['logits'].shape.as_list() == [1, 10]
  assert module['embeddings'].shape.as_list() == [1, 32]
  assert len(fine_tuning['norms']) == 3
  assert fine_tuning['train_op']


def test_each_names_its_own_place_as_seen_from_there(cards, export):
  both, of_module = cards[export.path], cards[export.hub_module]
  assert "tf.saved_model.load('.')" in both
  assert "hub.Module('hub')" in both
  assert "hub.Module('.')" in of_module
  for text in (both, of_module):
    assert os.path.dirname(export.path) not in text
  assert 'saved_model.load' not in of_module
  # hub.Module is asked for the one, and says nothing of the other.
  assert 'It is in `hub`. Of the directory above, the SavedModel' in both
  assert 'Of the directory above' not in of_module
  # Examples aside they say the same.
  assert _blocks(of_module, 'python') == [
    code.replace("'hub'", "'.'") for code in _blocks(both, 'python')[-3:]
  ]
  for head in ('Part', 'Name', 'Training', 'Metric', 'Logit', 'Hyper'):
    assert _rows(of_module, head) == _rows(both, head)


def test_request_to_tensorflow_serving(cards, export, tmp_path):
  """Runs the commands with stand-ins for server and client."""
  code, _ = _blocks(cards[export.path], 'sh')
  (tmp_path / 'photo.jpg').write_bytes(photo := bytes(range(256)) * 40)
  stand_ins = """
  tensorflow_model_server() { printf '%s\\n' "$@" > server; }
  curl() { printf '%s\\n' "$@" > client; cat > body; }
  """
  subprocess.run(
    ['bash', '-euc', f'{stand_ins}\n{code}\nwait'], cwd=tmp_path, check=True
  )
  server = (tmp_path / 'server').read_text().splitlines()
  # Versions of a model are numbers below its base path.
  assert f'--model_base_path={tmp_path.parent}' in server
  client = (tmp_path / 'client').read_text()
  assert 'http://localhost:8501/v1/models/supcon:predict' in client
  assert json.loads((tmp_path / 'body').read_text()) == {
    'signature_name': 'serving_bytes',
    'instances': [{'b64': base64.b64encode(photo).decode()}],
  }


# --- What it tells ------------------------------------------------------------


def test_training_and_metrics(cards, export):
  text = cards[export.path]
  assert dict(_rows(text, 'Training')) == {
    'Data': '`Optical Recognition of Handwritten Digits (UCI)`',
    'Data set': '`digits`',
    'Training split': '`train`',
    'Training examples': '`1437`',
    'Evaluation split': '`test`',
    'Evaluation examples': '`360`',
    'Steps': '3 of 40',
  }
  assert dict(_rows(text, 'Metric on 360 examples')) == {
    '`top_1_accuracy`': '0.9125',
    '`loss/cross_entropy_loss`': '0.25',
  }


def test_the_first_lines_say_on_what_it_was_trained(cards, export):
  start = ' '.join(cards[export.path].split('|')[0].split())
  assert (
    'on 1,437 images of `Optical Recognition of Handwritten Digits (UCI)`.'
    in start
  )
  only_name = dataclasses.replace(_CARD, facts={'data_name': 'folder pets'})
  assert 'on\nimages of `folder pets`.' in only_name.text(None, None)
  unnamed = dataclasses.replace(
    _CARD, facts={'data_name': '', 'num_train_examples': 5}
  ).text(None, None)
  assert '\n5 images.' in unnamed
  assert '| Data |' not in unnamed


def test_what_it_is_not_good_for(cards):
  for text in cards.values():
    (section,) = re.findall(r'## What it is not good for\n(.*?)##', text, re.S)
    words = ' '.join(section.split())
    for part in (
      'It knows 10 classes, and names one of them for any image',
      'may mean nothing',
      'The metrics above hold for images like those',
      'has not been calibrated',
      'It sees 12x12 pixels',
      'with those of the same checkpoint alone',
      'for decisions about people',
    ):
      assert part in words
  assert 'Its accuracy was not measured.' in _CARD.text(None, None)


def test_how_to_cite_the_method(cards):
  for text in cards.values():
    (entry,) = _blocks(text, 'bibtex')
    assert entry.startswith('@inproceedings{khosla2020supervised,\n')
    assert entry.count('{') == entry.count('}') == 7
    assert 'title = {Supervised Contrastive Learning},' in entry


def test_without_facts_it_says_so():
  text = _CARD.text(None, '7/hub')
  assert dict(_rows(text, 'Training')) == {'Steps': '3'}
  assert 'Not evaluated.' in text
  assert 'None' not in text


def test_every_hyper_parameter_and_which_were_changed():
  rows = _rows(_CARD.text(None, None), 'Hyper-parameter')
  assert [row[0] for row in rows] == [
    f'`{entry.path}`' for entry in hparams.FIELDS
  ]
  changed = {
    path: (value, default) for path, value, default, mark in rows if mark
  }
  assert changed == {
    '`architecture.encoder_depth`': ('`18`', '`50`'),
    '`architecture.encoder_width`': ('`0.0625`', '`1.0`'),
    '`architecture.projection_head_layers`': ('`32,6`', '`2048,128`'),
    '`stage_1.epochs`': ('`0`', '`700`'),
    '`stage_1.weight_decay`': ('`0.5`', '`0.0`'),
    '`stage_2.epochs`': ('`20`', '`200`'),
    '`stage_2.weight_decay`': ('`0.01`', '`0.0`'),
    # Those of Stage(), which are stage 1's.
    '`stage_2.base_learning_rate`': ('`0.3`', '`0.05`'),
    '`stage_2.rmsprop_epsilon`': ('`1.0`', '`0.001`'),
    '`stage_2.contrastive_loss_weight`': ('`1.0`', '`0.0`'),
    '`stage_2.cross_entropy_loss_weight`': ('`0.0`', '`1.0`'),
    '`input_data.preprocessing.image_size`': ('`12`', '`224`'),
    '`input_data.preprocessing.augmentation_type`': (
      '`SIMCLR`',
      '`AUTOAUGMENT`',
    ),
    '`input_data.preprocessing.crop_padding`': ('`4`', '`32`'),
  }


def test_architecture_input_and_output():
  text = _CARD.text('7', None)
  assert dict(_rows(text, 'Part')) == {
    'Encoder': 'ResNet V1 18, width 0.0625',
    'First convolution': 'kernel 7, stride 2, max pooling',
    'Images': '12x12 pixels, RGB',
    'Embedding': '32 numbers',
    'Projection head': 'layers of 32, 6 numbers',
    'Classifier': 'linear, 10 classes',
    'Trainable parameters': '1,234,567',
  }
  shapes = {name: shape for name, shape, _ in _rows(text, 'Name')}
  assert shapes == {
    '`logits`': '[N, 10]',
    '`unnormalized_embeddings`': '[N, 32]',
    '`normalized_embeddings`, `embeddings`': '[N, 32]',
    '`projection`': '[N, 6]',
  }
  assert 'float32 [N, 12, 12, 3], RGB in [0, 1]' in text
  assert 'mean is (-0.125, 0, 0.25),\nthe standard' in text
  assert 'deviation (0.5, 0.25, 1).' in text
  plain = dataclasses.replace(_CARD.model, mean=None, std=None)
  plain = dataclasses.replace(_CARD, model=plain).text('7', None)
  assert 'They are not whitened.' in plain
  # By which the regularization losses are scaled.
  assert 'scaled: by 0.01,' in ' '.join(text.split())


def test_code_and_licence():
  text = _CARD.text(None, None)
  assert 'version 1.2.3 of the code, commit 0123abc-dirty.' in text
  assert 'Apache License 2.0' in text
  assert 'licence of the data, which is yours to check' in ' '.join(
    text.split()
  )
  unknown = dataclasses.replace(_CARD, commit=None)
  assert 'version 1.2.3 of the code.' in unknown.text(None, None)


def test_nothing_of_where_it_was_trained(cards, monkeypatch, checkpoint):
  monkeypatch.setenv('SUPCON_TEST_TOKEN', 'hunter2')
  text = _CARD.text('7', '7/hub')
  assert 'SECRET_DIR' not in text
  assert 'hunter2' not in text
  for card in cards.values():
    assert os.path.dirname(checkpoint) not in card


# --- Names that people have chosen --------------------------------------------


def _with_classes(*names):
  model = dataclasses.replace(_CARD.model, class_names=names)
  return dataclasses.replace(_CARD, model=model).text(None, None)


def test_names_cannot_break_out_of_their_cell():
  text = _with_classes(
    'a|b', 'two\nlines', '`code` <b>', '[x](http://y)', '', '\x1b[31mred'
  )
  assert _rows(text, 'Logit') == [
    ['0', '`a\\|b`'],
    ['1', '`two lines`'],
    ['2', "`'code' <b>`"],
    ['3', '`[x](http://y)`'],
    ['4', ''],
    ['5', '`[31mred`'],
  ]
  facts = {'dataset': 'x|y\n# z'}
  text = dataclasses.replace(_CARD, facts=facts).text(None, None)
  assert _rows(text, 'Training')[0] == ['Data set', '`x\\|y # z`']


def test_long_names_and_long_lists_are_cut():
  text = _with_classes('n' * 200, *(f'class {n}' for n in range(999)))
  rows = _rows(text, 'Logit')
  assert len(rows) == 20
  assert rows[0] == ['0', f'`{"n" * 77}...`']
  assert 'And 980 more: see labels.txt.' in text
  assert 'more: see' not in _with_classes(*(f'{n}' for n in range(20)))
