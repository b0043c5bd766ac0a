"""Tests of finding the corrupted copies of an evaluation set."""

import pytest

from supcon.data.sources import corruptions


def _write(root, *paths):
  for path in paths:
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b'Nobody looks into it.')


def test_folders_are_found_in_order(tmp_path):
  _write(
    tmp_path,
    *(
      f'{corruption}/{severity}/{name}/1.png'
      for corruption in ('snow', 'fog')
      for severity in (10, 9)
      for name in ('dog', 'cat')
    ),
    'notes.txt',
    '.cache/x.png',
  )
  found = corruptions.find(str(tmp_path), None)
  assert [(each.corruption, each.severity) for each in found] == [
    *(('fog', 9), ('fog', 10), ('snow', 9), ('snow', 10))
  ]
  assert [each.name for each in found[:2]] == ['fog/9', 'fog/10']
  for each in found:
    assert each.source.class_names == ('cat', 'dog')
    split = each.source.evaluation
    assert split.num_examples == 2
    assert split.where(0).startswith(f'{tmp_path}/{each.name}/')
    assert split.example_id(0).startswith(f'{each.name}/')
    # 75 sets of 50,000 names are those of one.
    assert split.files is found[0].source.evaluation.files


def test_sets_may_be_limited(tmp_path):
  _write(tmp_path, *(f'fog/{s}/cat/{n}.png' for s in (1, 2) for n in range(5)))
  for count, expected in ((3, 3), (9, 5), (0, 5)):
    found = corruptions.find(str(tmp_path), None, count)
    assert [e.source.evaluation.num_examples for e in found] == 2 * [expected]


@pytest.mark.parametrize(
  'paths, words',
  [
    ([], ['holds no folders', 'CORRUPTION/SEVERITY/CLASS']),
    (['fog/1.png'], ['fog, without folders']),
    (['fog/1/1.png'], ['fog/1', 'no folders of classes', '1 images']),
    (['fog/light/cat/1.png'], ['holds fog/light', 'CORRUPTION/SEVERITY']),
    (['fog/0/cat/1.png'], ['holds fog/0']),
    (
      ['fog/1/cat/1.png', 'fog/2/cat/1.png', 'ice/1/cat/1.png'],
      ['1 of 2 corruptions x 2 severities', 'ice/2'],
    ),
    (
      ['fog/1/cat/1.png', 'fog/1/dog/1.png', 'fog/2/dog/1.png'],
      ['fog/2 lacks 1 of the 2 classes', 'cat'],
    ),
    (['fog/1/cat/1.txt'], ['fog/1/cat holds no images']),
  ],
)
def test_another_layout_is_refused(tmp_path, paths, words):
  _write(tmp_path, *paths)
  with pytest.raises(ValueError) as raised:
    corruptions.find(str(tmp_path), None)
  for word in words:
    assert word in str(raised.value)
  assert '\n' not in str(raised.value)


def test_missing_severities_of_tfds_are_named(tmp_path):
  for config in ('fog_1', 'fog_2', 'snow_1'):
    _write(tmp_path, f'some_corrupted/{config}/1.0.0/dataset_info.json')
  # An unfinished one, and something else.
  _write(tmp_path, 'some_corrupted/snow_2/1.0.0/x', 'some_corrupted/readme')
  with pytest.raises(ValueError) as raised:
    corruptions.find('tfds:some_corrupted', str(tmp_path))
  for word in ('snow/2', '1 of 2 corruptions x 2', 'download_and_prepare'):
    assert word in str(raised.value)


def test_tfds_knows_what_is_not_prepared():
  found = [
    corruptions.Corrupted(name, 1, None)
    for name in ('brightness', 'fog', 'snow')
  ]
  missing = corruptions.not_prepared('tfds:cifar10_corrupted', found)
  assert len(missing) == 19 - 3 and 'frost' in missing
  assert not corruptions.not_prepared('tfds:of_my_own', found)
  assert not corruptions.not_prepared('/data/cifar10_corrupted', found)


@pytest.mark.parametrize(
  'name, expected',
  [
    ('tfds:cifar10_corrupted', 'cifar10_corrupted'),
    ('/data/ImageNet-C/', 'ImageNet-C'),
    ('gs://bucket/my set', 'my_set'),
  ],
)
def test_sets_have_short_names(name, expected):
  assert corruptions.called(name) == expected
