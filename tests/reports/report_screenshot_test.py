"""A test of the report in a real browser, where there is one."""

from tests import browser
from tests.reports import made_report


def test_a_browser_shows_its_figures(tmp_path):
  report, *_ = made_report.report()
  page = tmp_path / 'report.html'
  page.write_text(made_report.page(report))
  pixels = browser.screenshot(page.as_uri(), tmp_path, 1000, 4000)
  assert pixels.shape == (4000, 1000, 3)
  # The text, the classes of the map and the bars of the reliability diagram.
  for color in ((26, 26, 26), (0, 114, 178), (86, 180, 233)):
    assert (pixels == color).all(axis=2).sum() > 100, color
