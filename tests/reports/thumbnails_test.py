"""Tests of small pictures of examples."""

import numpy as np
import pytest

from supcon.data.sources import datasets
from supcon.reports import thumbnails
from tests.data import pictures


@pytest.fixture(name='split', scope='module')
def _split(tmp_path_factory):
  directory = tmp_path_factory.mktemp('colored')
  pictures.write_colored(directory)
  return datasets.load('folder', str(directory)).evaluation


def test_each_is_the_example_at_its_position(split):
  positions = [7, 0, 29, 7]
  found = thumbnails.read(split, positions, side=10)
  assert found.shape == (4, 10, 10, 3) and found.dtype == np.uint8
  for position, image in zip(positions, found):
    name = split.example_id(position).rsplit('/', 1)[1]
    number = int(name.removesuffix('.png'))
    assert image[5, 5].tolist() == list(pictures.color(number))


def test_the_whole_image_fits_into_the_square(split):
  numbers = [
    int(split.example_id(n).rsplit('/', 1)[1].removesuffix('.png'))
    for n in range(split.num_examples)
  ]
  # Number 0 is 20 high and 50 wide: with a side of 10, 4 rows in the middle.
  (image,) = thumbnails.read(split, [numbers.index(0)], side=10)
  is_paper = (image == thumbnails.PAPER).all(axis=(1, 2))
  assert is_paper.tolist() == [True] * 3 + [False] * 4 + [True] * 3


def test_of_no_position_there_is_none(split):
  assert thumbnails.read(split, [], side=4).shape == (0, 4, 4, 3)
