"""Tests of what a simple classifier says of mirrored images."""

import io

import numpy as np
from PIL import Image
import pytest
import tensorflow as tf

from supcon.data.sources import digits
from supcon.data.sources import folder
from supcon.data.sources import orientation

_SIDE = 12


def _noise(count, seed=0):
  """Smooth pictures that are as probable as their mirror images."""
  random = np.random.RandomState(seed)
  frequencies = np.fft.fftfreq(_SIDE)
  smooth = (0.05 + np.hypot(*np.meshgrid(frequencies, frequencies))) ** -1.5
  spectrum = np.fft.fft2(random.randn(count, _SIDE, _SIDE)) * smooth
  pictures = np.real(np.fft.ifft2(spectrum))
  return pictures / pictures.std()


def _labels(count, num_classes):
  return np.arange(count) * 7 // 3 % num_classes


_RAMP = np.linspace(-1, 1, _SIDE)


def _letters(count):
  """b, d, p and q as strokes, in a little noise; each mirrors another one."""
  letter = np.zeros([_SIDE, _SIDE])
  letter[:, 1:3] = 1  # The stem of a b, on the left.
  letter[7:11, 3:9] = 1  # Its bowl, at the bottom.
  four = np.stack([letter, letter[:, ::-1], letter[::-1], letter[::-1, ::-1]])
  labels = _labels(count, 4)
  return four[labels] + 0.3 * _noise(count), labels


def test_digits_lose_their_class():
  images, labels = digits.arrays()
  found = orientation.of_images(images[:500], labels[:500])
  assert found.matters
  assert found.upright > 0.85 and found.mirrored < 0.5
  assert 'of 500 images' in found.finding()
  assert '--random_flip=False' in found.advice()


def test_mirrored_letters_are_other_letters():
  found = orientation.of_images(*_letters(100))
  assert found.matters
  # b becomes d, d becomes b, p becomes q, q becomes p.
  assert found.upright == 1 and found.mirrored == 0


def test_classes_that_differ_from_top_to_bottom_keep_theirs():
  labels = _labels(300, 2)
  images = _noise(300) + labels[:, np.newaxis, np.newaxis] * _RAMP[:, None]
  found = orientation.of_images(images, labels)
  assert found.upright > 0.9 and found.mirrored > 0.9
  assert not found.matters
  assert found.finding() == found.advice() == ''


def test_nothing_is_said_where_nothing_can_be_told():
  found = orientation.of_images(_noise(300), _labels(300, 2))
  assert not found.matters


def test_symmetric_classes_are_never_taken_for_others():
  # Differences that chance makes: 100 sets of few images in four classes.
  bump = np.cos(2 * _RAMP)
  for seed in range(100):
    labels = np.random.RandomState(seed).randint(0, 4, 100)
    images = _noise(100, seed) + 0.5 * labels[:, None, None] * bump
    assert not orientation.of_images(images, labels).matters, seed


@pytest.mark.parametrize('count', [1, orientation.MIN_IMAGES - 1])
def test_a_few_images_say_nothing(count):
  assert not orientation.of_images(*_letters(count)).matters


def test_one_class_says_nothing():
  images, labels = _letters(100)
  assert not orientation.of_images(images, 0 * labels).matters


def test_brightness_and_contrast_do_not_count():
  images, labels = _letters(100)
  random = np.random.RandomState(0)
  changed = images * random.uniform(1, 9, [100, 1, 1])
  changed += random.uniform(-99, 99, [100, 1, 1])
  before = orientation.of_images(images, labels)
  assert orientation.of_images(changed, labels) == before


def _split(directory, images, labels, size, kind):
  for number, (image, label) in enumerate(zip(images, labels)):
    low, high = image.min(), image.max()
    grey = (255 * (image - low) / (high - low)).astype(np.uint8)
    path = directory / 'train' / f'class {label}' / f'{number}.{kind}'
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(grey).resize((size, size)).save(path)
  return folder.load(str(directory), 'train', 'train').train


@pytest.mark.parametrize('size, kind', [(28, 'png'), (28, 'jpg'), (400, 'jpg')])
def test_looks_at_files(tmp_path, size, kind):
  # 400 pixels are decoded at an eighth of their size: 50.
  split = _split(tmp_path, *_letters(60), size, kind)
  assert orientation.of_split(split).matters


def test_bad_files_are_left_to_others(tmp_path):
  split = _split(tmp_path, *_letters(60), 28, 'png')
  for path in (tmp_path / 'train' / 'class 1').iterdir():
    path.write_bytes(b'no image')
  found = orientation.of_split(split)
  assert found.num_images == 45  # Of four classes of 15, three.
  for path in (tmp_path / 'train').rglob('*.png'):
    path.write_bytes(b'no image')
  assert orientation.of_split(split).num_images == 0


def test_few_of_large_files_are_decoded(tmp_path, monkeypatch):
  split = _split(tmp_path, *_letters(60), 28, 'png')
  monkeypatch.setattr(orientation, 'MAX_BYTES', split.num_bytes * 5 // 6)
  assert orientation.of_split(split).num_images in (49, 50)
  monkeypatch.setattr(orientation, 'MAX_BYTES', split.num_bytes // 2)
  assert not orientation.of_split(split).matters


@pytest.mark.parametrize('side', [191, 192, 400])
def test_large_jpegs_are_decoded_small(side):
  picture = np.full([side, side + 8, 3], 200, np.uint8)
  file = io.BytesIO()
  Image.fromarray(picture).save(file, 'JPEG')
  with tf.Graph().as_default(), tf.compat.v1.Session() as session:
    image = session.run(orientation.decode_small(tf.constant(file.getvalue())))
  assert len(image) == (side if side < 192 else side // 8)
  assert image.min() >= 198 and image.max() <= 202
