"""Tests of what is found out about a directory of images."""

import io

import numpy as np
from PIL import Image
import pytest

from supcon.data.sources import datasets
from supcon.data.sources import survey


def _encoded(size=(8, 8), color=(90, 90, 90), kind='PNG'):
  file = io.BytesIO()
  Image.new('RGB', size, color).save(file, kind)
  return file.getvalue()


_PNG = _encoded()


def _write(directory, *names, data=_PNG):
  for name in names:
    path = directory / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def _mistakes(directory):
  layout = survey.layout_of(str(directory))
  assert isinstance(layout, survey.Layout), layout
  return survey.mistakes_in(str(directory), layout)


# ------------------------------------------------------------------- layout


@pytest.mark.parametrize(
  'names, train, evaluation, is_parted',
  [
    (('train/cat/1.png', 'val/cat/1.png'), 'train', 'val', False),
    (('train/cat/1.png', 'test/cat/1.png'), 'train', 'test', False),
    (('train/cat/1.png',), 'train[:80%]', 'train[80%:]', True),
    (('cat/1.png', 'dog/1.png'), '.[:80%]', '.[80%:]', True),
  ],
)
def test_finds_where_the_images_are(
  tmp_path, names, train, evaluation, is_parted
):
  _write(tmp_path, *names)
  expected = survey.Layout(train, evaluation, is_parted)
  assert survey.layout_of(str(tmp_path)) == expected


def test_what_the_user_says_counts(tmp_path):
  _write(tmp_path, 'a/cat/1.png', 'val/cat/1.png')
  path = str(tmp_path)
  assert survey.layout_of(path, 'a') == survey.Layout('a', 'val', False)
  assert survey.layout_of(path, 'a', 'b') == survey.Layout('a', 'b', False)
  assert 'name the part to evaluate on' in survey.layout_of(path, 'a[:50%]')


def test_says_what_is_no_directory_of_classes(tmp_path):
  _write(tmp_path, 'a.png', 'b.png')
  assert 'is not there' in survey.layout_of(str(tmp_path / 'none'))
  assert 'is a file' in survey.layout_of(str(tmp_path / 'a.png'))
  says = survey.layout_of(str(tmp_path))
  assert '2 images, but no folders' in says and 'CLASS/*.png' in says
  _write(tmp_path, 'val/cat/1.png')
  assert 'none to train on' in survey.layout_of(str(tmp_path))


# ----------------------------------------------------------------- mistakes


def test_what_is_in_order_has_no_mistakes(tmp_path):
  _write(tmp_path, 'cat/1.png', 'cat/2.png', 'dog/1.png')
  assert _mistakes(tmp_path) == []


def test_all_mistakes_are_found_at_once(tmp_path):
  _write(tmp_path, 'train/cat/1.png', 'train/cat/notes.txt', 'train/dog/1.png')
  _write(tmp_path, 'val/cat/1.jpg')
  _write(tmp_path, 'train/owl/notes.txt', 'train/bird/small/1.png')
  _write(tmp_path, 'val/cow/1.png', 'train/a\nb/1.png')
  _write(tmp_path, 'train/caf\u00e9/1.png', 'val/cafe\u0301/1.png')
  mistakes = _mistakes(tmp_path)
  assert all('\n' not in mistake for mistake in mistakes)
  odd, empty, nested, unknown, alike = mistakes
  assert 'cannot be written in one line: a\\nb;' in odd
  assert empty.endswith('): owl; add some, or delete the folders.')
  assert 'instead of images: bird;' in nested
  assert ': cafe\u0301, cow; those there are' in unknown
  assert "'cafe\\u0301' and 'caf\\xe9'" in alike


def test_one_class_is_nothing_to_tell_apart(tmp_path):
  _write(tmp_path, 'train/cat/1.png', 'train/cat/2.png')
  (mistake,) = _mistakes(tmp_path)
  assert 'one class only, cat' in mistake


def test_a_long_list_is_cut(tmp_path):
  _write(tmp_path, 'cat/1.png', 'dog/1.png')
  _write(tmp_path, *(f'{i}/x.txt' for i in range(8)))
  (mistake,) = _mistakes(tmp_path)
  assert '0, 1, 2, 3, 4 and 3 more' in mistake


def test_a_split_that_is_not_there(tmp_path):
  _write(tmp_path, 'train/cat/1.png', 'train/dog/1.png')
  layout = survey.layout_of(str(tmp_path), 'train', 'other')
  (mistake,) = survey.mistakes_in(str(tmp_path), layout)
  assert 'other is not there' in mistake and 'holds train' in mistake


# -------------------------------------------------------------------- looks


def _looked_at(directory):
  dataset = datasets.load('folder', str(directory), eval_split='train')
  return survey.look_at(dataset.train), survey.class_sizes(dataset)


def test_sizes_and_classes(tmp_path):
  _write(tmp_path, 'train/cat/1.png', data=_encoded((30, 20)))
  _write(tmp_path, 'train/cat/2.jpg', data=_encoded((400, 500), kind='JPEG'))
  _write(tmp_path, 'train/dog/1.png', data=_encoded((25, 90)))
  images, sizes = _looked_at(tmp_path)
  # Of the shorter sides 20, 400 and 25.
  assert images.sides == (20, 25, 400)
  assert sizes == [2, 1]
  assert images.is_grey


def test_one_image_with_a_color_is_not_grey(tmp_path):
  _write(tmp_path, 'train/cat/1.png', 'train/cat/2.png')
  _write(tmp_path, 'train/dog/1.png', data=_encoded(color=(90, 90, 140)))
  assert not _looked_at(tmp_path)[0].is_grey


def test_grey_jpegs_are_grey(tmp_path):
  noise = np.random.RandomState(0).randint(0, 256, (32, 32)).astype(np.uint8)
  path = tmp_path / 'train' / 'cat'
  path.mkdir(parents=True)
  Image.fromarray(noise).convert('RGB').save(path / '1.jpg', quality=50)
  assert _looked_at(tmp_path)[0].is_grey


def test_bad_images_are_passed_over(tmp_path):
  _write(tmp_path, 'train/cat/1.png', 'train/dog/1.png')
  _write(tmp_path, 'train/cat/2.png', data=b'no image')
  assert _looked_at(tmp_path)[0].sides == (8, 8, 8)
