"""The page of a co-design report: one HTML file.

The page refers to nothing outside itself and forbids itself to: its content policy
lets the browser load nothing and run only the script whose hash it names.
"""

from collections.abc import Mapping, Sequence
import json
import math
from typing import Any

from matplotlib.figure import Figure

from jaxcodesign.experiments import storage_page
from jaxcodesign.figures import findings
from jaxcodesign.figures.page_parts import (
  Column,
  document,
  picture,
  scaled,
  section,
  table,
  text,
)


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
      *storage_page.sections(result["storage"], drawn),
      _layers(drawn, found),
      _sensitivities(result, drawn),
      _training(result, drawn),
      _appendix(result),
    ]
  )
  return document(result["name"], body)


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
<p class=note>Co-design report · {text(result["name"])} · {text(result["created"])}
<h1>{text(findings.answer(result))}</h1>
<dl class=tiles>{tiles}</dl>
<p>{text(model["name"])} ({model["parameters"]:,} parameters, {model["macs"]:,}
multiplications an image) on {text(training["dataset"])}: {len(result["costs"])}
designs, made of {len(result["variants"]) - 1} variants and
{len(result["accelerators"])} accelerators, one image at a time. The baseline is
{text(findings.title(base))}. The best design has the least energy-delay product (EDP)
of those that lose at most {100 * findings.ALLOWANCE:g} point of accuracy. Accuracy is
measured on {images:,} test images: its standard error is {100 * deviation:.1f} points.
</header>"""


def _tile(label: str, value: str, note: str) -> str:
  return (
    f"<div><dt>{text(label)}</dt><dd>{text(value)}</dd>"
    f"<dd class=note>{text(note)}</dd></div>"
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
  return section("Accuracy against cost", picture(drawn, "tradeoff", alt, caption))


def _costs(result, found: findings.Findings) -> str:
  variants = {v["name"]: v for v in result["variants"]}
  base, front = found.baseline, found.front
  rows = sorted(result["costs"], key=lambda c: c["edp_js"])
  columns = [
    Column("variant", lambda c: c["variant"]),
    Column("accelerator", lambda c: c["accelerator"]),
    Column("accuracy", lambda c: c["accuracy"], lambda v: f"{v:.1%}"),
    scaled(rows, "edp_js", "J·s", "EDP"),
    Column("/ baseline", lambda c: c["edp_js"] / base["edp_js"], lambda v: f"{v:.3f}"),
    Column("Pareto", lambda c: int(c in front), lambda v: "◆" if v else ""),
    scaled(rows, "energy_j", "J", "energy"),
    scaled(rows, "time_s", "s", "time"),
    Column("cycles", lambda c: c["cycles"], lambda v: f"{v:,.0f}"),
    Column("utilization", lambda c: c["utilization"], lambda v: f"{v:.0%}"),
    scaled(rows, "traffic_bytes", "B", "traffic"),
    Column("weights", lambda c: variants[c["variant"]]["weight"]),
    Column("activations", lambda c: variants[c["variant"]]["activation"]),
  ]
  mark = lambda c: "best" if c is found.best else "base" if c is base else ""
  return section(
    "All designs",
    "<p>Click a heading to sort. ◆ is on the Pareto front of accuracy and EDP; green "
    f"is the best design, grey the baseline ({text(findings.title(base))}).</p>",
    table(rows, columns, mark, "sortable"),
  )


def _matrices(result) -> str:
  product = [Column("layer", lambda r: r["name"]), Column("kind", lambda r: r["kind"])]
  product += _counts("batch", "m", "k", "n", "count", "macs", "parameters")
  vector = [Column("operation", lambda r: r["op"])]
  vector += _counts("elements", "bytes", "count")
  return section(
    "Matrix view",
    "<p>Each layer as the matrix product that an array executes: [m, k] times [k, n], "
    "batch · count times.</p>",
    table(result["layers"], product),
    "<details><summary>element-wise work</summary>"
    f"{table(result['vector_ops'], vector)}</details>",
  )


def _counts(*keys: str) -> list[Column]:
  return [Column(k, lambda r, k=k: r[k], lambda v: f"{v:,}") for k in keys]


def _layers(drawn: Mapping[str, Figure], found: findings.Findings) -> str:
  which = ", ".join(findings.title(c) for c in found.compared)
  return section(
    "Layer by layer",
    picture(
      drawn, "layers", f"Bars of time, energy and utilization of each layer: {which}."
    ),
    picture(
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
  return section(
    "What to improve next",
    "<p>The derivative of log EDP by the logarithm of a property of the accelerator: "
    "at "
    "&minus;1 a property that grows by 1 % lowers the EDP by 1 %, at 0 it does not "
    "matter. The largest are drawn; the tables hold all.</p>",
    picture(drawn, "sensitivities", alt),
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
    f"<details><summary>{text(spec['name'])}: {spec['rows']:g} &times; "
    f"{spec['cols']:g}, {text(spec['dataflow'])}, {spec['area_mm2']:.3g} mm², all "
    f"{len(spec['leaves'])} leaves</summary>"
    f"{table(list(spec['leaves']), columns, style='sortable')}</details>"
  )


def _training(result, drawn: Mapping[str, Figure]) -> str:
  t = result["training"]
  how = "restored from a checkpoint" if t["restored"] else f"{t['seconds']:.0f} s"
  return section(
    "Training",
    f"<p>{t['train_images']:,} training images of {text(t['dataset'])}, {how}; "
    f"{t['test_accuracy']:.1%} of {t['test_images']:,} test images right.</p>",
    picture(drawn, "training", "Lines of training loss and of accuracy by epoch."),
  )


def _appendix(result) -> str:
  packages = sorted(result["versions"].items())
  columns = [Column("package", lambda p: p[0]), Column("version", lambda p: p[1])]
  config = json.dumps(result["config"], indent=2, ensure_ascii=False)
  return section(
    "Reproduce",
    f"<pre>{text(result['command'])}</pre>",
    f"<details><summary>configuration</summary><pre>{text(config)}</pre></details>",
    f"<details><summary>versions</summary>{table(packages, columns)}</details>",
    "<p class=note>The same numbers are in report.json, documented as schema "
    f"{text(result['schema'])} in jaxcodesign.experiments.report.</p>",
  )
