"""Many trainings side by side: accuracy, and what accuracy costs on each array.

A comparison's folder has a folder for each system and in it one for each seed, every
one a run of its own. What is compared is read back from these.

  comparison.json   what the page shows, for other programs
"""

from collections.abc import Mapping, Sequence
import json
import pathlib
import statistics
from typing import Any, NamedTuple
import warnings

import jax
from matplotlib.figure import Figure
import numpy as np
from rich.console import Group
from rich.table import Table

from jaxcodesign.data import content
from jaxcodesign.data.content import Content
from jaxcodesign.experiments import to_accuracy, train_report
from jaxcodesign.experiments.systems import Comparison, System
from jaxcodesign.experiments.to_accuracy import Price
from jaxcodesign.figures import canvas, findings, page_parts, training
from jaxcodesign.figures.page_parts import Column, picture, section, text
from jaxcodesign.hardware.machines.number_systems import NumberSystem
from jaxcodesign.hardware.pricing import iteration
from jaxcodesign.hardware.pricing.iteration import Passes
from jaxcodesign.programs.workload import Workload, trace
from jaxcodesign.runs import loop, origin
from jaxcodesign.runs.disk import files
from jaxcodesign.runs.job import TrainJob
from jaxcodesign.training import step

FILE = "comparison.json"


class Run(NamedTuple):
  """One training that has ended.

  Attributes:
    system: Its row of the comparison.
    seed: Of the run.
    result: Its report.json.
    folder: Where it is.
  """

  system: System
  seed: int
  result: dict[str, Any]
  folder: pathlib.Path


def done(
  job: TrainJob, folder: pathlib.Path, data: Content, *, accept_data: bool = False
) -> bool:
  """Whether `folder` holds this training, ended and reported, every file whole.

  Args:
    job: The training.
    folder: Of the run.
    data: What its examples are now.
    accept_data: Whether a run on other ones will do.

  Raises:
    ValueError: If it holds a run of another config or on other data.
  """
  ended = (folder / loop.FINAL).is_file() and (folder / "report.json").is_file()
  if not origin.check(job, folder) or not ended:
    return False
  try:
    final = files.read_json(folder / loop.FINAL, way_out="it is written again")
    train_report.read(folder)
    if (folder / train_report.TELEMETRY).is_file():
      train_report.read_telemetry(folder)
    known = final.get("data") if isinstance(final, dict) else None
  except ValueError as error:
    warnings.warn(f"the run goes on from its last checkpoint: {error}", stacklevel=2)
    return False
  content.check(known, data, folder, accept=accept_data)
  return True


def write(
  config: Comparison,
  folder: pathlib.Path,
  command: str,
  *,
  failed: Mapping[str, str] | None = None,
) -> pathlib.Path:
  """Writes the page, the numbers and the pictures; returns the page.

  Args:
    config: All of whose trainings are done.
    folder: Of the comparison.
    command: That made it.
    failed: Systems that are not in `config` since they could not be trained, and why.

  Raises:
    OSError: naming the file, the reason and the way out.
    ValueError: If a run cannot be priced.
  """
  runs = [_read(system, seed, folder) for system, seed, _ in config.jobs()]
  priced = [r for r in runs if r.system.hardware is not None]
  curves = _curves(priced)
  prices = _prices(config, priced) if priced else {}
  rows = to_accuracy.to_accuracy(curves, prices, config.target)
  result = {
    "name": folder.name,
    "command": command,
    "target": config.target,
    "systems": [_system(system, runs) for system in config.systems],
    "failed": dict(failed or {}),
    "to_accuracy": [row._asdict() for row in rows],
    "runs": [
      {"system": r.system.name, "seed": r.seed}
      | {k: v for k, v in r.result.items() if k not in ("config", "origin")}
      for r in runs
    ],
    "origin": runs[-1].result["origin"],
  }
  drawn = _draw(config, runs)
  if rows:
    drawn["to_accuracy"] = to_accuracy.draw(curves, prices, config.target)
  page = _page(config, result, rows, drawn)
  (folder / "figures").mkdir(exist_ok=True)
  for name, figure in drawn.items():
    files.write_atomically(folder / "figures" / f"{name}.png", canvas.png(figure))
  content = json.dumps(result, indent=2, allow_nan=False)
  files.write_atomically(folder / FILE, content)
  files.write_atomically(folder / "report.html", page)
  return folder / "report.html"


def tables(folder: pathlib.Path) -> Group:
  """Accuracy of every system, and time and energy to the target, for a terminal."""
  result = json.loads((folder / FILE).read_text())
  first = Table(title="after all steps", title_justify="left")
  first.add_column("system")
  for head in ("accuracy", "over seeds", "against the first", "passes of 4 bit"):
    first.add_column(head, justify="right")
  for row in result["systems"]:
    share = row["passes_share"]
    first.add_row(
      page_parts.text(row["name"]),
      f"{row['accuracy']:.2%}",
      ", ".join(f"{x:.2%}" for x in row["accuracies"]),
      f"{row['difference'] * 100:+.2f} points",
      "-" if share is None else f"{share:.1%}",
    )
  rows = [to_accuracy.Row(**row) for row in result["to_accuracy"]]
  if not rows:
    return Group(first)
  names = [row["name"] for row in result["systems"]]
  return Group(first, to_accuracy.table(rows, result["target"], names[:1]))


def _read(system: System, seed: int, folder: pathlib.Path) -> Run:
  inside = folder / system.name / f"seed{seed}"
  return Run(system, seed, train_report.read(inside), inside)


def _system(system: System, runs: Sequence[Run]) -> dict[str, Any]:
  own = [r.result for r in runs if r.system == system]
  base = [r.result["test_accuracy"] for r in runs if r.system == runs[0].system]
  scores = [r["test_accuracy"] for r in own]
  shares = [r["passes_share"] for r in own if r["passes_share"] is not None]
  return {
    "name": system.name,
    "precision": own[0]["precision"],
    "accuracy": statistics.mean(scores),
    "accuracies": scores,
    "difference": statistics.mean(scores) - statistics.mean(base),
    "passes_share": statistics.mean(shares) if shares else None,
  }


def _curves(runs: Sequence[Run]) -> dict[str, dict[int, list[tuple[int, float]]]]:
  found: dict[str, dict[int, list[tuple[int, float]]]] = {}
  for run in runs:
    points = [(row["step"], row["test_accuracy"]) for row in run.result["curve"]]
    found.setdefault(run.system.name, {})[run.seed] = points
  return found


def _prices(config: Comparison, runs: Sequence[Run]) -> to_accuracy.Prices:
  """Of every run: one price, or one for each share of a run whose precision moves."""
  work = workload(config.job)
  found: dict[str, dict[int, Price]] = {}
  for run in runs:
    system = run.system.hardware
    assert system is not None
    if system.adaptive:
      price = _moving(work, system, run.folder)
    else:
      cost = iteration.iteration(work, system)
      price = Price(float(cost.time_s), float(cost.energy_j))
    found.setdefault(run.system.name, {})[run.seed] = price
  return found


def workload(job: TrainJob) -> Workload:
  """The products of one iteration: forward, input gradients, weight gradients."""
  loaded = job.task.load(job.train)
  plain = step.Step(loaded.loss, job.train, 1)
  params = jax.eval_shape(lambda: loaded.init(jax.random.key(0)))
  batch = jax.eval_shape(
    loaded.teach, loaded.frozen, loaded.train.shapes(job.train.batch_size)
  )
  gradient = jax.grad(lambda params, batch: plain.plain(params, batch).loss)
  return trace(gradient)(params, batch)


def _moving(work: Workload, system: NumberSystem, folder: pathlib.Path) -> Price:
  """Prices of each share of a run, from what its products ran at."""
  found = train_report.read_telemetry(folder)
  steps = found["steps"]
  made = (steps > 0) & np.isfinite(found["bits"][:, :, 0]).all(1)
  names = tuple(str(name) for name in found["names"])

  @jax.jit
  @jax.vmap
  def each(bits: jax.Array, passes: jax.Array) -> Any:
    cost = iteration.iteration(
      work, system, passes=Passes(names, bits=bits, mean=passes)
    )
    return cost.time_s, cost.energy_j

  time_s, energy_j = each(found["bits"][made], found["passes"][made])
  return Price(np.asarray(time_s), np.asarray(energy_j), np.cumsum(steps[made]))


def _draw(config: Comparison, runs: Sequence[Run]) -> dict[str, Figure]:
  drawn = {"accuracy": training.scores(_scores(config, runs))}
  adaptive = [r for r in runs if (r.folder / train_report.TELEMETRY).is_file()]
  chosen = [r for r in adaptive if r.system.hardware is not None] or adaptive
  if chosen:
    found = train_report.read_telemetry(chosen[0].folder)
    names = [str(name) for name in found["names"]]
    drawn["precision"] = training.precision_map(
      found["bits"], names, int(found["steps"].sum())
    )
  return drawn


def _scores(config: Comparison, runs: Sequence[Run]) -> dict[str, list[float]]:
  return {
    s.name: [r.result["test_accuracy"] for r in runs if r.system == s]
    for s in config.systems
  }


def _page(
  config: Comparison,
  result: Mapping[str, Any],
  rows: Sequence[to_accuracy.Row],
  drawn: Mapping[str, Figure],
) -> str:
  first = result["systems"][0]
  note = (
    f"<p>{text(findings.SMOKE)}</p>" if findings.is_smoke(result["command"]) else ""
  )
  parts = [
    f"{note}<h1>{text(result['name'])}: {len(config.systems)} precisions, "
    f"{len(config.seeds)} seeds each</h1>",
    section(
      "Accuracy",
      picture(drawn, "accuracy", "Accuracy of each system and seed"),
      _accuracies(result["systems"], first["name"]),
    ),
  ]
  if rows:
    parts.append(
      section(
        f"Time and energy to {config.target:.1%}",
        picture(
          drawn,
          "to_accuracy",
          "Accuracy against modelled time and energy",
          "Modelled on arrays of one area, see hardware.number_systems; the first "
          "evaluation at or above the target counts.",
        ),
        _to_accuracy(to_accuracy.summarize(rows)),
      )
    )
  if "precision" in drawn:
    parts.append(
      section(
        "Precision over a run",
        picture(
          drawn,
          "precision",
          "Mantissa bits of each tensor over a run",
          "A row is a matrix product, from the input down to the output.",
        ),
      )
    )
  if result["failed"]:
    why = (f"<p>{text(n)}: {text(told)}</p>" for n, told in result["failed"].items())
    parts.append(section("Left out", *why))
  appendix = {"origin": result["origin"], "config": origin.plain(config)}
  parts.append(train_report.appendix(appendix))
  return page_parts.document(result["name"], "\n".join(parts), kind="comparison")


def _accuracies(systems: Sequence[Mapping[str, Any]], first: str) -> str:
  percent = lambda v: "-" if v is None else f"{v:.2%}"
  columns = [
    Column("system", lambda r: r["name"]),
    Column("precision", lambda r: r["precision"]),
    Column("accuracy", lambda r: r["accuracy"], percent),
    Column(
      f"points over {first}", lambda r: r["difference"] * 100, lambda v: f"{v:+.2f}"
    ),
    Column("fMAC passes of fixed 4 bit", lambda r: r["passes_share"], percent),
  ]
  return page_parts.table(systems, columns, style="sortable")


def _to_accuracy(rows: Sequence[to_accuracy.Summary]) -> str:
  number = lambda v: "-" if v is None else f"{v:.4g}"
  mean = lambda pair: pair[0] if pair else None
  columns = [
    Column("system", lambda r: r.system),
    Column("reached", lambda r: f"{r.reached} of {r.seeds}"),
    Column("iterations", lambda r: mean(r.iterations), number),
    Column("time, s", lambda r: mean(r.time_s), number),
    Column("energy, J", lambda r: mean(r.energy_j), number),
  ]
  for name in rows[0].time_over:
    columns += [
      Column(f"time / {name}", lambda r, n=name: r.time_over[n], number),
      Column(f"energy / {name}", lambda r, n=name: r.energy_over[n], number),
    ]
  return page_parts.table(rows, columns, style="sortable")
