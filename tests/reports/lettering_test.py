"""Tests of words in pictures."""

import sys

import numpy as np
import pytest

from supcon.reports import lettering


def test_words_are_ink_on_paper():
  ink = lettering.line('lo', 100)
  assert ink.dtype == np.float32 and ink.min() == 0 and ink.max() > 0.9
  # More ink, and wider, the more letters there are.
  more = lettering.line('lolo', 100)
  assert more.shape[0] == ink.shape[0]
  assert more.shape[1] > ink.shape[1]
  assert more.sum() > 1.5 * ink.sum()


def test_a_long_text_is_cut():
  text = lettering.line('w' * 1000, 100)
  assert 80 < text.shape[1] <= 100
  assert lettering.line('', 100).shape == (text.shape[0], 1)


@pytest.mark.parametrize(
  'text, shown',
  [
    ('a\nb', r'a\nb'),
    # The font has neither accents nor other alphabets.
    ('\u00dcber', 'Uber'),
    ('\u732b', r'\u732b'),
  ],
)
def test_what_cannot_be_shown_is_written_otherwise(text, shown):
  np.testing.assert_array_equal(
    lettering.line(text, 100), lettering.line(shown, 100)
  )


def test_there_are_no_words_without_pillow(monkeypatch):
  monkeypatch.setitem(sys.modules, 'PIL', None)
  assert lettering.line('lo', 100) is None
