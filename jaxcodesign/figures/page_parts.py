"""What a report's page is made of: sections, tables, pictures, its style and script."""

import base64
from collections.abc import Callable, Mapping, Sequence
import hashlib
import html
import io
import math
import re
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from jaxcodesign.figures import canvas, findings

_THEME = {
  canvas.INK: "--ink",
  canvas.MUTED: "--muted",
  canvas.GRID: "--grid",
  canvas.PAPER: "--paper",
  canvas.BLUE: "--accent",
}


class Column(NamedTuple):
  """One column: its title, the value that sorts it, and how the value is written."""

  title: str
  value: Callable[[Any], Any]
  show: Callable[[Any], str] = str


def document(name: str, body: str, kind: str = "co-design report") -> str:
  """The whole page around a body; its title is of a `kind`."""
  digest = base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()
  return _PAGE.format(
    name=html.escape(name),
    kind=kind,
    style=_STYLE,
    script=_SCRIPT,
    digest=digest,
    body=body,
  )


def section(heading: str, *parts: str) -> str:
  """A heading, as text, and what stands below it, as HTML."""
  return f"<section><h2>{text(heading)}</h2>\n{''.join(parts)}</section>"


def picture(drawn: Mapping[str, Figure], name: str, alt: str, caption: str = "") -> str:
  """The figure of a name, or a note that there is none.

  Args:
    drawn: Figures by name.
    name: Of the one to show.
    alt: What it shows, for those who do not see it.
    caption: Below it.
  """
  if name not in drawn:
    return "<p class=note>Nothing was recorded for this figure.</p>"
  label = f"<figcaption>{text(caption)}</figcaption>" if caption else ""
  svg = _svg(drawn[name], name, text(alt))
  return f"<figure><div class=scroll tabindex=0>{svg}</div>{label}</figure>"


def _svg(figure: Figure, name: str, alt: str) -> str:
  """Draws `figure` with the page's ink, its ids apart from those of other figures."""
  file = io.StringIO()
  figure.savefig(file, format="svg", facecolor="none", metadata={"Date": None})
  svg = file.getvalue()
  svg = svg[svg.index("<svg") :]
  svg = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
  used = dict.fromkeys(re.findall(r'(?:href="|url\()#([\w-]+)', svg))
  new = {old: f"{name}-{i}" for i, old in enumerate(used)}
  rename = lambda m: f' id="{new[m[1]]}"' if m[1] in new else ""
  svg = re.sub(r' id="([^"]*)"', rename, svg)
  svg = re.sub(r'(href="|url\()#([\w-]+)', lambda m: f"{m[1]}#{new[m[2]]}", svg)
  for colour, variable in _THEME.items():
    svg = svg.replace(colour, f"var({variable})")
  return svg.replace("<svg", f'<svg role="img" aria-label="{alt}"', 1)


def table(
  rows: Sequence[Any],
  columns: Sequence[Column],
  mark: Callable[[Any], str] = lambda row: "",
  style: str = "",
) -> str:
  """Rows as HTML.

  Args:
    rows: Anything that the columns read.
    columns: From left to right.
    mark: Class of a row: "best", "base" or "".
    style: "sortable" for headings that sort.
  """
  kinds = [
    "n" if rows and isinstance(c.value(rows[0]), int | float) else "" for c in columns
  ]
  wrap = "<button>{}</button>" if style else "{}"
  heads = "".join(
    f"<th class='{kind}'>{wrap.format(text(c.title))}"
    for c, kind in zip(columns, kinds)
  )
  lines = []
  for row in rows:
    cells = [(c.value(row), c.show, kind) for c, kind in zip(columns, kinds)]
    lines.append(
      f"<tr class='{mark(row)}'>"
      + "".join(
        f"<td class='{kind}' data-v='{text(value)}'>{text(show(value))}"
        for value, show, kind in cells
      )
    )
  body = "\n".join(lines)
  return (
    f"<div class=scroll tabindex=0><table class='{style}'><thead><tr>{heads}</thead>"
    f"<tbody>{body}</tbody></table></div>"
  )


def scaled(rows: Sequence[Any], key: str, unit: str, name: str) -> Column:
  """A column of a quantity of `rows`, all with the prefix of the smallest."""
  # One prefix for the whole column, or its numbers cannot be compared at a glance.
  least = min((r[key] for r in rows if r[key]), default=1.0)
  factor, letter = findings.prefix(least)
  digits = max(0, 2 - math.floor(math.log10(least / factor)))
  write = lambda v: f"{v / factor:,.{digits}f}"
  return Column(f"{name}, {letter}{unit}", lambda r: r[key], write)


def text(value: Any) -> str:
  """Anything as text that HTML shows as it is."""
  return html.escape(str(value))


_STYLE = """
:root { color-scheme: light dark; --ink: #1b1f25; --muted: #5c6571; --grid: #d8dce2;
  --paper: #fefefe; --well: #f4f6f8; --best: #dff3ea; --accent: #0072b2; }
@media screen and (prefers-color-scheme: dark) { :root { --ink: #e6e9ee;
  --muted: #a0a9b5; --grid: #363d47; --paper: #15181d; --well: #1e2329;
  --best: #12392b; --accent: #4ea3e0; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2.5rem 1.25rem 4rem; max-width: 66rem;
  background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { font-size: clamp(1.35rem, 1rem + 1.6vw, 1.8rem); line-height: 1.25;
  margin: .4em 0 .9em; max-width: 32em; text-wrap: balance; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 3rem 0 .5rem; padding-top: .9rem;
  border-top: 1px solid var(--grid); }
p, figcaption { max-width: 46rem; margin: .5rem 0; overflow-wrap: anywhere; }
.note, figcaption { color: var(--muted); font-size: .875rem; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(11.5rem, 1fr));
  gap: .75rem; margin: 0 0 1.25rem; }
.tiles div { background: var(--well); border-radius: 8px; padding: .8rem 1rem; }
dt { font-size: .875rem; color: var(--muted); }
dd { margin: 0; font-size: 1.6rem; font-weight: 600; line-height: 1.3; }
dd.note { font-weight: 400; font-size: .8125rem; }
figure { margin: 1rem 0 1.5rem; }
.scroll { overflow: auto; max-width: 100%; }
figure svg { display: block; width: 100%; min-width: 44rem; height: auto; }
table { border-collapse: collapse; font-size: .875rem; white-space: nowrap;
  font-variant-numeric: tabular-nums; }
div.scroll:has(table) { max-height: 34rem; border: 1px solid var(--grid);
  border-radius: 8px; width: fit-content; }
th, td { text-align: left; padding: .32rem .6rem; }
th { position: sticky; top: 0; background: var(--well); font-weight: 600; }
tbody tr + tr td { border-top: 1px solid var(--grid); }
.n { text-align: right; }
.best td { background: var(--best); font-weight: 600; }
.base td { background: var(--well); }
th button { all: unset; cursor: pointer; }
th button:hover { color: var(--accent); }
th button:focus-visible, summary:focus-visible { outline: 2px solid var(--accent); }
th[aria-sort=ascending] button::after { content: " ↑"; }
th[aria-sort=descending] button::after { content: " ↓"; }
details { margin: .6rem 0; }
summary { cursor: pointer; padding: .2rem 0; overflow-wrap: anywhere; }
pre { background: var(--well); border-radius: 8px; padding: .8rem 1rem; overflow: auto;
  max-height: 34rem; font: .8125rem/1.5 ui-monospace, "DejaVu Sans Mono", monospace; }
@media print { body { max-width: none; padding: 0; font-size: 10pt; }
  .scroll, div.scroll:has(table), pre { overflow: visible; max-height: none; }
  table { font-size: 7.5pt; } th, td { padding: .15rem .3rem; } th { position: static; }
  figure, tr, .tiles { break-inside: avoid; } h2 { break-after: avoid; }
  figure svg { min-width: 0; } * { print-color-adjust: exact; } }
"""
_SCRIPT = """
for (const button of document.querySelectorAll("th button")) button.onclick = () => {
  const head = button.closest("th"), body = head.closest("table").tBodies[0];
  const sign = head.ariaSort === "ascending" ? -1 : 1;
  for (const other of head.parentNode.cells) other.ariaSort = null;
  head.ariaSort = sign > 0 ? "ascending" : "descending";
  const value = row => row.cells[head.cellIndex].dataset.v;
  const compare = (x, y) => head.className === "n" ? (x - y) || 0
    : x.localeCompare(y, undefined, {numeric: true});
  body.append(...[...body.rows].sort((a, b) => sign * compare(value(a), value(b))));
};
"""
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none';
 style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{digest}';
 base-uri 'none'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{name}: {kind}</title>
<style>{style}</style>
</head>
<body>
{body}
<script>{script}</script>
</body>
</html>
"""
