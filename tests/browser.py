"""Looks at pages with a real browser, where there is one."""

import pathlib
import shutil
import subprocess

import numpy as np
from PIL import Image
import pytest

from tests import command

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


def screenshot(
  url: str, directory: pathlib.Path, width: int, height: int, *flags: str
) -> np.ndarray:
  """Returns a picture of a page, uint8 [height, width, 3].

  Without a browser the test is skipped.

  Args:
    url: The page.
    directory: For the picture and the browser's files.
    width: In pixels.
    height: In pixels.
    *flags: More flags of the browser.
  """
  browser = next(filter(None, map(shutil.which, _BROWSERS)), None)
  if not browser:
    pytest.skip(f'there is none of {", ".join(_BROWSERS)} to look with')
  picture = directory / 'screenshot.png'
  subprocess.run(
    [
      browser,
      *_FLAGS,
      *flags,
      f'--user-data-dir={directory / "profile"}',
      f'--screenshot={picture}',
      f'--window-size={width},{height}',
      url,
    ],
    capture_output=True,
    timeout=command.TIMEOUT_SECONDS,
    check=True,
  )
  return np.asarray(Image.open(picture).convert('RGB'))
