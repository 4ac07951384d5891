"""The page of a co-design report: one HTML file.

The page refers to nothing outside itself and forbids itself to: its content policy
lets the browser load nothing and run only the script whose hash it names.
"""

import base64
from collections.abc import Callable, Mapping, Sequence
import hashlib
import html
import io
import json
import math
import re
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from jaxcodesign.training import canvas, findings

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


def render(result: Mapping[str, Any], drawn: Mapping[str, Figure]) -> str:
  """Returns the page as HTML.

  Args:
    result: What `report.validate` accepts.
    drawn: Figures by name; a section without its figure says so.
  """
  found = findings.find(result)
  body = "\n".join(
    [
      _header(result, found),
      _tradeoff(result, found, drawn),
      _costs(result, found),
      _matrices(result),
      _layers(drawn, found),
      _sensitivities(result, drawn),
      _training(result, drawn),
      _appendix(result),
    ]
  )
  digest = base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()
  return _PAGE.format(
    name=html.escape(result["name"]),
    style=_STYLE,
    script=_SCRIPT,
    digest=digest,
    body=body,
  )


def _header(result: Mapping[str, Any], found: findings.Findings) -> str:
  model, training = result["model"], result["training"]
  share, images = found.reference["accuracy"], training["test_images"]
  deviation = math.sqrt(share * (1 - share) / images)
  base, best = found.baseline, found.best or found.baseline
  tiles = _tile(
    "accuracy",
    f"{best['accuracy']:.1%}",
    f"{found.reference['name']} {share:.1%}, baseline {base['accuracy']:.1%}",
  )
  for key, unit, label in (
    ("energy_j", "J", "energy per image"),
    ("time_s", "s", "time per image"),
    ("edp_js", "J·s", "energy-delay product"),
  ):
    note = f"baseline {findings.quantity(base[key], unit)}"
    if best is not base:
      note = f"{findings.change(best, base, key)}, {note}"
    tiles += _tile(label, findings.quantity(best[key], unit), note)
  return f"""<header>
<p class=note>Co-design report · {_text(result["name"])} · {_text(result["created"])}
<h1>{_text(findings.answer(result))}</h1>
<dl class=tiles>{tiles}</dl>
<p>{_text(model["name"])} ({model["parameters"]:,} parameters, {model["macs"]:,}
multiplications an image) on {_text(training["dataset"])}: {len(result["costs"])}
designs, made of {len(result["variants"]) - 1} quantized variants and
{len(result["accelerators"])} accelerators, one image at a time. The baseline is
{_text(findings.title(base))}. The best design has the least energy-delay product (EDP)
of those that lose at most {100 * findings.ALLOWANCE:g} point of accuracy. Accuracy is
measured on {images:,} test images: its standard error is {100 * deviation:.1f} points.
</header>"""


def _tile(label: str, value: str, note: str) -> str:
  return (
    f"<div><dt>{_text(label)}</dt><dd>{_text(value)}</dd>"
    f"<dd class=note>{_text(note)}</dd></div>"
  )


def _tradeoff(result, found: findings.Findings, drawn: Mapping[str, Figure]) -> str:
  alt = (
    f"Scatter plots of test accuracy against energy and clock cycles of "
    f"{len(result['costs'])} designs. {findings.answer(result)}"
  )
  caption = (
    "Every dot is a variant on an accelerator, up and to the left is better. Named "
    "dots are on the Pareto front: no other design is both more accurate and cheaper."
  )
  return _section("Accuracy against cost", _picture(drawn, "tradeoff", alt, caption))


def _costs(result, found: findings.Findings) -> str:
  variants = {v["name"]: v for v in result["variants"]}
  base, front = found.baseline, found.front
  rows = sorted(result["costs"], key=lambda c: c["edp_js"])
  columns = [
    Column("variant", lambda c: c["variant"]),
    Column("accelerator", lambda c: c["accelerator"]),
    Column("accuracy", lambda c: c["accuracy"], lambda v: f"{v:.1%}"),
    _scaled(rows, "edp_js", "J·s", "EDP"),
    Column("/ baseline", lambda c: c["edp_js"] / base["edp_js"], lambda v: f"{v:.3f}"),
    Column("Pareto", lambda c: int(c in front), lambda v: "◆" if v else ""),
    _scaled(rows, "energy_j", "J", "energy"),
    _scaled(rows, "time_s", "s", "time"),
    Column("cycles", lambda c: c["cycles"], lambda v: f"{v:,.0f}"),
    Column("utilization", lambda c: c["utilization"], lambda v: f"{v:.0%}"),
    _scaled(rows, "traffic_bytes", "B", "traffic"),
    Column("weights", lambda c: variants[c["variant"]]["weight"]),
    Column("activations", lambda c: variants[c["variant"]]["activation"]),
  ]
  mark = lambda c: "best" if c is found.best else "base" if c is base else ""
  return _section(
    "All designs",
    "<p>Click a heading to sort. ◆ is on the Pareto front of accuracy and EDP; green "
    f"is the best design, grey the baseline ({_text(findings.title(base))}).</p>",
    _table(rows, columns, mark, "sortable"),
  )


def _matrices(result) -> str:
  product = [Column("layer", lambda r: r["name"]), Column("kind", lambda r: r["kind"])]
  product += _counts("batch", "m", "k", "n", "count", "macs", "parameters")
  vector = [Column("operation", lambda r: r["op"])]
  vector += _counts("elements", "bytes", "count")
  return _section(
    "Matrix view",
    "<p>Each layer as the matrix product that an array executes: [m, k] times [k, n], "
    "batch · count times.</p>",
    _table(result["layers"], product),
    "<details><summary>element-wise work</summary>"
    f"{_table(result['vector_ops'], vector)}</details>",
  )


def _counts(*keys: str) -> list[Column]:
  return [Column(k, lambda r, k=k: r[k], lambda v: f"{v:,}") for k in keys]


def _layers(drawn: Mapping[str, Figure], found: findings.Findings) -> str:
  which = ", ".join(findings.title(c) for c in found.compared)
  return _section(
    "Layer by layer",
    _picture(
      drawn, "layers", f"Bars of time, energy and utilization of each layer: {which}."
    ),
    _picture(
      drawn,
      "energy",
      "Stacked bars of the energy of designs in multipliers, SRAM, DRAM, leakage and "
      "vector work.",
      "Where the energy goes: each accelerator with the baseline's and with its own "
      "best variant.",
    ),
  )


def _sensitivities(result, drawn: Mapping[str, Figure]) -> str:
  alt = "Bars of the largest sensitivities of the energy-delay product, by accelerator."
  return _section(
    "What to improve next",
    "<p>The derivative of log EDP by the logarithm of a property of the accelerator: "
    "at "
    "&minus;1 a property that grows by 1 % lowers the EDP by 1 %, at 0 it does not "
    "matter. The largest are drawn; the tables hold all.</p>",
    _picture(drawn, "sensitivities", alt),
    *(_accelerator(a, result["sensitivities"]) for a in result["accelerators"]),
  )


def _accelerator(spec: Mapping[str, Any], entries: Sequence[Mapping[str, Any]]) -> str:
  own = [e for e in entries if e["accelerator"] == spec["name"]]
  values = {(e["leaf"], e["variant"]): e["value"] for e in own}
  write = lambda v: "" if math.isnan(v) else f"{v:+.4f}".replace("-", "\u2212")
  columns = [
    Column("leaf", lambda leaf: leaf),
    Column("value", lambda leaf: spec["leaves"][leaf], lambda v: f"{v:.4g}"),
    *(
      Column(name, lambda leaf, name=name: values.get((leaf, name), math.nan), write)
      for name in dict.fromkeys(e["variant"] for e in own)
    ),
  ]
  return (
    f"<details><summary>{_text(spec['name'])}: {spec['rows']:g} &times; "
    f"{spec['cols']:g}, {_text(spec['dataflow'])}, {spec['area_mm2']:.3g} mm², all "
    f"{len(spec['leaves'])} leaves</summary>"
    f"{_table(list(spec['leaves']), columns, style='sortable')}</details>"
  )


def _training(result, drawn: Mapping[str, Figure]) -> str:
  t = result["training"]
  how = "restored from a checkpoint" if t["restored"] else f"{t['seconds']:.0f} s"
  return _section(
    "Training",
    f"<p>{t['train_images']:,} training images of {_text(t['dataset'])}, {how}; "
    f"{t['test_accuracy']:.1%} of {t['test_images']:,} test images right.</p>",
    _picture(drawn, "training", "Lines of training loss and of accuracy by epoch."),
  )


def _appendix(result) -> str:
  packages = sorted(result["versions"].items())
  columns = [Column("package", lambda p: p[0]), Column("version", lambda p: p[1])]
  config = json.dumps(result["config"], indent=2, ensure_ascii=False)
  return _section(
    "Reproduce",
    f"<pre>{_text(result['command'])}</pre>",
    f"<details><summary>configuration</summary><pre>{_text(config)}</pre></details>",
    f"<details><summary>versions</summary>{_table(packages, columns)}</details>",
    "<p class=note>The same numbers are in report.json, documented as schema "
    f"{_text(result['schema'])} in jaxcodesign.training.report.</p>",
  )


def _section(heading: str, *parts: str) -> str:
  return f"<section><h2>{_text(heading)}</h2>\n{''.join(parts)}</section>"


def _picture(
  drawn: Mapping[str, Figure], name: str, alt: str, caption: str = ""
) -> str:
  if name not in drawn:
    return "<p class=note>Nothing was recorded for this figure.</p>"
  label = f"<figcaption>{_text(caption)}</figcaption>" if caption else ""
  picture = _svg(drawn[name], name, _text(alt))
  return f"<figure><div class=scroll tabindex=0>{picture}</div>{label}</figure>"


def _svg(figure: Figure, name: str, alt: str) -> str:
  """Draws `figure` with the page's ink, its ids apart from those of other figures."""
  file = io.StringIO()
  figure.savefig(file, format="svg", facecolor="none", metadata={"Date": None})
  text = file.getvalue()
  text = text[text.index("<svg") :]
  text = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
  used = dict.fromkeys(re.findall(r'(?:href="|url\()#([\w-]+)', text))
  new = {old: f"{name}-{i}" for i, old in enumerate(used)}
  rename = lambda m: f' id="{new[m[1]]}"' if m[1] in new else ""
  text = re.sub(r' id="([^"]*)"', rename, text)
  text = re.sub(r'(href="|url\()#([\w-]+)', lambda m: f"{m[1]}#{new[m[2]]}", text)
  for colour, variable in _THEME.items():
    text = text.replace(colour, f"var({variable})")
  return text.replace("<svg", f'<svg role="img" aria-label="{alt}"', 1)


def _table(
  rows: Sequence[Any],
  columns: Sequence[Column],
  mark: Callable[[Any], str] = lambda row: "",
  style: str = "",
) -> str:
  kinds = [
    "n" if rows and isinstance(c.value(rows[0]), int | float) else "" for c in columns
  ]
  wrap = "<button>{}</button>" if style else "{}"
  heads = "".join(
    f"<th class='{kind}'>{wrap.format(_text(c.title))}"
    for c, kind in zip(columns, kinds)
  )
  lines = []
  for row in rows:
    cells = [(c.value(row), c.show, kind) for c, kind in zip(columns, kinds)]
    lines.append(
      f"<tr class='{mark(row)}'>"
      + "".join(
        f"<td class='{kind}' data-v='{_text(value)}'>{_text(show(value))}"
        for value, show, kind in cells
      )
    )
  body = "\n".join(lines)
  return (
    f"<div class=scroll tabindex=0><table class='{style}'><thead><tr>{heads}</thead>"
    f"<tbody>{body}</tbody></table></div>"
  )


def _scaled(rows: Sequence[Any], key: str, unit: str, name: str) -> Column:
  # One prefix for the whole column, or its numbers cannot be compared at a glance.
  least = min((r[key] for r in rows if r[key]), default=1.0)
  factor, letter = findings.prefix(least)
  digits = max(0, 2 - math.floor(math.log10(least / factor)))
  write = lambda v: f"{v / factor:,.{digits}f}"
  return Column(f"{name}, {letter}{unit}", lambda r: r[key], write)


def _text(value: Any) -> str:
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
 style-src 'unsafe-inline'; script-src 'sha256-{digest}'; base-uri 'none'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{name}: co-design report</title>
<style>{style}</style>
</head>
<body>
{body}
<script>{script}</script>
</body>
</html>
"""
