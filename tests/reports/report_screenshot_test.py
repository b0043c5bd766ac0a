"""A test of the report in a real browser, where there is one."""

import io
import shutil
import subprocess

import numpy as np
from PIL import Image
import pytest

from tests import command
from tests.reports import made_report
from tests.reports import report_page_test

_BROWSERS = ('chromium', 'chromium-browser', 'google-chrome', 'chrome')
_FLAGS = (
  '--headless',
  '--no-sandbox',
  '--disable-gpu',
  '--disable-quic',
  '--no-first-run',
  '--disable-background-networking',
  '--disable-component-update',
  '--disable-sync',
  '--hide-scrollbars',
)


def test_a_browser_shows_its_figures(tmp_path):
  browser = next(filter(None, map(shutil.which, _BROWSERS)), None)
  if not browser:
    pytest.skip(f'there is none of {", ".join(_BROWSERS)} to look with')
  report, *_ = made_report.report()
  page, picture = tmp_path / 'report.html', tmp_path / 'report.png'
  page.write_text(report_page_test._page(report))
  subprocess.run(
    [
      browser,
      *_FLAGS,
      f'--user-data-dir={tmp_path / "profile"}',
      f'--screenshot={picture}',
      '--window-size=1000,4000',
      page.as_uri(),
    ],
    capture_output=True,
    timeout=command.TIMEOUT_SECONDS,
    check=True,
  )
  pixels = np.asarray(
    Image.open(io.BytesIO(picture.read_bytes())).convert('RGB')
  )
  assert pixels.shape == (4000, 1000, 3)
  # The text, the classes of the map and the bars of the reliability diagram.
  for color in ((26, 26, 26), (0, 114, 178), (86, 180, 233)):
    assert (pixels == color).all(axis=2).sum() > 100, color
