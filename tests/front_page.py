"""Draws the picture of the front page.

  scripts/quickstart.sh && .venv/bin/python -m tests.front_page

On the left, examples of the quickstart's training images, whole and as training
sees them; on the right its test images, each as its digit, where the two
principal components of the embeddings put it.
"""

import pathlib
import subprocess
import sys
import tempfile

import numpy as np
from PIL import Image
from PIL import ImageDraw
from PIL import ImageFont

_ROOT = pathlib.Path(__file__).resolve().parent.parent
_QUICKSTART = _ROOT / 'scripts' / 'quickstart.sh'
_MODEL_DIR = _ROOT / 'runs' / 'quickstart'
_PICTURE = _ROOT / 'supcon' / 'reports' / 'front_page.png'

_ROWS = 3  # Of the contact sheet.
_SHEET_ROWS = 16
_TITLES = 0.28  # Height of the titles above them, in rows.
_PAPER = (255, 255, 255)
# Told apart by people with any kind of colour vision, and in print; the digits
# themselves say the rest.
_COLORS = (
  '#000000',
  '#e69f00',
  '#56b4e9',
  '#009e73',
  '#b8a800',
  '#0072b2',
  '#d55e00',
  '#cc79a7',
  '#7f7f7f',
  '#6a3d9a',
)


def main():
  with tempfile.TemporaryDirectory() as name:
    directory = pathlib.Path(name)
    flags = ['--mode=inspect_data', f'--model_dir={directory}']
    subprocess.run([_QUICKSTART, *flags], check=True)
    sheet = Image.open(directory / 'inspect_data' / 'contact_sheet.png')
    sheet = _first_rows(sheet.convert('RGB'))
    output = directory / 'test.npz'
    subprocess.run(
      [
        sys.executable,
        _ROOT / 'main.py',
        '--mode=embed',
        '--use_tpu=False',
        f'--model_dir={_MODEL_DIR}',
        f'--data_dir={_ROOT / "runs" / "data"}',
        f'--output={output}',
      ],
      check=True,
    )
    with np.load(output, allow_pickle=False) as arrays:
      points = _principal_components(arrays['embeddings'])
      labels = arrays['labels']
  scatter = _scatter(points, labels, side=sheet.height)
  picture = Image.new(
    'RGB', (sheet.width + scatter.width, sheet.height), _PAPER
  )
  picture.paste(sheet, (0, 0))
  picture.paste(scatter, (sheet.width, 0))
  picture.save(_PICTURE, optimize=True)
  print(f'{_PICTURE}: {picture.width} x {picture.height}')


def _first_rows(sheet):
  """Returns the titles and first rows of a contact sheet."""
  row = sheet.height / (_TITLES + _SHEET_ROWS)
  height = round((_TITLES + _ROWS) * row)
  return sheet.crop((0, 0, sheet.width, height))


def _principal_components(embeddings):
  """Returns float [N, 2], within [0, 1] each."""
  centered = embeddings - embeddings.mean(axis=0)
  _, _, directions = np.linalg.svd(centered, full_matrices=False)
  points = centered @ directions[:2].T
  points -= points.min(axis=0)
  return points / points.max(axis=0)


def _scatter(points, labels, side):
  image = Image.new('RGB', (side, side), _PAPER)
  draw = ImageDraw.Draw(image)
  font = ImageFont.load_default(size=13)
  margin = 14
  for (x, y), label in zip(points * (side - 2 * margin) + margin, labels):
    draw.text((x, side - y), str(label), _COLORS[label], font=font, anchor='mm')
  return image


if __name__ == '__main__':
  main()
