"""Parts of a page in HTML, which is XML as well."""

import base64
from collections.abc import Iterable
from collections.abc import Sequence
import html
from typing import Any
import urllib.parse

from supcon.config import safe_text

STYLE = """
body { color: #1a1a1a; font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto;
  max-width: 62rem; padding: 0 1rem; }
h1 { font-size: 1.6rem; margin-bottom: 0; }
h2 { border-bottom: 1px solid #ccc; font-size: 1.2rem; margin-top: 2.2rem; }
h3 { font-size: 1rem; margin-bottom: .3rem; }
p { max-width: 46rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums;
  margin: .6rem 0; }
th, td { border-bottom: 1px solid #e4e4e4; overflow-wrap: anywhere;
  padding: .2rem 1.2rem .2rem 0; text-align: left; vertical-align: top; }
th { font-weight: 600; }
td.n, th.n { overflow-wrap: normal; text-align: right; white-space: nowrap; }
.faint { color: #595959; }
.notes { background: #fff6df; border-left: 4px solid #e69f00;
  padding: .4rem 1rem; }
.head { display: flex; flex-wrap: wrap; gap: .5rem 2.5rem; margin: 1rem 0; }
.head b { display: block; font-size: 1.5rem; }
.plot { display: block; height: auto; max-width: 100%; }
.metrics td:first-child { white-space: nowrap; }
.tiles { display: flex; flex-wrap: wrap; gap: .8rem; margin-bottom: .8rem; }
figure { font-size: 12px; line-height: 1.3; margin: 0; width: 6.2rem; }
figure img { border: 1px solid #ccc; display: block; height: 72px;
  image-rendering: pixelated; width: 72px; }
figcaption { overflow-wrap: anywhere; }
.query { border-right: 1px solid #ccc; }
.query img { border: 2px solid #000; }
@media print {
  body { font-size: 10pt; margin: 0; max-width: none; }
  figure, tr, .plot, .head { break-inside: avoid; }
  h2, h3, section > p { break-after: avoid; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
}
"""


class Number(str):
  """Text that stands on the right of its column."""


class Markup(str):
  """HTML, to be taken as it is."""


def table(head: Sequence[Any], rows: Iterable[Sequence[Any]]) -> str:
  """Returns a table; without a head if that is empty.

  Args:
    head: The titles of the columns.
    rows: The cells of each row: integers, Number, Markup, or any other text.
  """
  lines = [_row('th', head)] if head else []
  lines += [_row('td', row) for row in rows]
  return f'<table>{"".join(lines)}</table>\n'


def _row(tag, cells):
  found = []
  for cell in cells:
    cell = Number(f'{cell:,}') if isinstance(cell, int) else cell
    kind = ' class="n"' if isinstance(cell, Number) else ''
    content = cell if isinstance(cell, Markup) else text(cell)
    found.append(f'<{tag}{kind}>{content}</{tag}>')
  return f'<tr>{"".join(found)}</tr>\n'


def text(value: Any) -> str:
  """Returns any text as HTML: escaped, and without control characters."""
  return html.escape(safe_text.printable(str(value)))


def link(path: str) -> Markup:
  """Returns a link to a path relative to the page."""
  target = html.escape(urllib.parse.quote(path))
  return Markup(f'<a href="{target}">{text(path)}</a>')


def data(kind: str, content: bytes) -> str:
  """Returns an image as the source of an <img>; kind: 'png', 'svg+xml'."""
  return f'data:image/{kind};base64,{base64.b64encode(content).decode()}'
