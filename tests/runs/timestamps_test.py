import pytest

from supcon.runs import timestamps


@pytest.mark.parametrize(
  'seconds, text',
  [
    (0, '0:00'),
    (0.5, '0:01'),
    (2.5, '0:03'),
    (59.4, '0:59'),
    (59.5, '1:00'),
    (754, '12:34'),
    (3600 + 62, '1:01:02'),
    (90 * 3600, '90:00:00'),
  ],
)
def test_a_duration_is_that_of_a_clock(seconds, text):
  assert timestamps.duration(seconds) == text
