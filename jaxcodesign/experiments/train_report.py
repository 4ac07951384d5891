"""The report of one training: report.html, report.json, figures, and FAST's telemetry.

report.json      what the page shows, for other programs
telemetry.npz    under FAST: mean bits and passes of each product in each share of
                 the run
"""

from collections.abc import Mapping, Sequence
import io
import json
import math
import pathlib
import statistics
from typing import Any

import jax
from matplotlib.figure import Figure
import numpy as np

from jaxcodesign.data import npz
from jaxcodesign.figures import canvas, page_parts, training
from jaxcodesign.figures.page_parts import Column, picture, section, table, text
from jaxcodesign.runs import board, metrics, origin
from jaxcodesign.runs.disk import files
from jaxcodesign.runs.loop import Result
from jaxcodesign.runs.session import Session
from jaxcodesign.training import fast_method
from jaxcodesign.training.fast_method import FastMethod
from jaxcodesign.training.rounded import describe

TELEMETRY = "telemetry.npz"
_AGAIN = "delete it, and the run's last checkpoint reports again"


def write(session: Session, found: Result, folder: pathlib.Path) -> pathlib.Path:
  """Writes everything about a run that has ended; returns the page.

  Raises:
    OSError: naming the file, the reason and the way out.
  """
  rows = metrics.read(folder)
  result = summary(session, found, rows, folder)
  drawn = {"curves": training.curves(rows, session.job.target)}
  for method, kept in zip(session.functions.methods, found.state.kept):
    drawn |= method.pictures(kept, found.step)
    if isinstance(method, FastMethod):
      _write_telemetry(folder / TELEMETRY, method, kept, found.step)
  (folder / "figures").mkdir(exist_ok=True)
  # The page first: a picture for paper gets a white ground.
  page = render(result, drawn)
  if session.job.run.tensorboard:
    board.show(folder / metrics.BOARD, found.step, drawn)
  for name, figure in drawn.items():
    files.write_atomically(folder / "figures" / f"{name}.png", canvas.png(figure))
  path = folder / "report.json"
  files.write_atomically(path, json.dumps(result, indent=2, allow_nan=False))
  files.write_atomically(folder / "report.html", page)
  return folder / "report.html"


_KINDS = {
  "precision": str,
  "test_accuracy": int | float,
  "passes_share": int | float | None,
  "curve": list,
  "origin": list,
}


def read(folder: pathlib.Path) -> dict[str, Any]:
  """The report.json of a run.

  Raises:
    OSError: If it cannot be opened.
    ValueError: If it is damaged, with its name and the place.
  """
  path = folder / "report.json"
  found = files.read_json(path, way_out=_AGAIN)
  where = next(
    (
      name
      for name, kind in _KINDS.items()
      if not isinstance(found, dict) or not isinstance(found.get(name, ...), kind)
    ),
    None,
  )
  if where is None and not all(map(_is_point, found["curve"])):
    where = "curve"
  if where is None and not all(isinstance(start, dict) for start in found["origin"]):
    where = "origin"
  if where is not None:
    raise ValueError(f"{path} is damaged (at {where}); {_AGAIN}")
  return found


def _is_point(row: Any) -> bool:
  numbers = ("step", "test_accuracy")
  return isinstance(row, dict) and all(
    isinstance(row.get(name), int | float) for name in numbers
  )


def read_telemetry(folder: pathlib.Path) -> dict[str, np.ndarray]:
  """What `write` kept of FAST: "bits" and "passes" [T, P, 3], "names" [P], "steps" [T].

  Raises:
    OSError: If it cannot be opened.
    ValueError: If it is damaged, with its name.
  """
  path = folder / TELEMETRY
  wanted = {"bits": 3, "passes": 3, "names": 1, "steps": 1}
  found = npz.read(path, wanted, way_out=_AGAIN)
  shape = (len(found["steps"]), len(found["names"]), 3)
  shapes = {found["bits"].shape, found["passes"].shape}
  kinds = "".join(found[name].dtype.kind for name in wanted)
  if shapes != {shape} or kinds != "ffUi":
    raise ValueError(f"{path} is damaged (shapes {shapes}, {shape}); {_AGAIN}")
  return found


def _write_telemetry(
  path: pathlib.Path, method: FastMethod, kept: Any, step: int
) -> None:
  assert method.plan is not None
  means = method.ran_at(kept, step)
  file = io.BytesIO()
  np.savez(
    file,
    bits=means[:, :, :3],
    passes=means[:, :, 3:],
    names=np.array(method.plan.names),
    steps=np.array(fast_method.bucket_steps(method.steps)),
  )
  files.write_atomically(path, file.getvalue())


def summary(
  session: Session,
  found: Result,
  rows: Sequence[Mapping[str, Any]],
  folder: pathlib.Path,
) -> dict[str, Any]:
  """What the page shows, as JSON."""
  number = lambda x: x if math.isfinite(x) else None
  rates = [r["examples_per_s"] for r in rows if r.get("examples_per_s")]
  waits = [r["input_wait"] for r in rows if r.get("input_wait") is not None]
  sizes = [leaf.size for leaf in jax.tree.leaves(session.state.params)]
  result: dict[str, Any] = {
    "name": folder.name,
    "data": session.loaded.train.name,
    "precision": describe(session.job.train.precision, session.job.train.dtype),
    "parameters": sum(sizes),
    "examples": [len(session.loaded.train), len(session.loaded.test)],
    "status": found.status,
    "step": found.step,
    "steps": found.steps,
    "test_loss": number(found.loss),
    "test_accuracy": number(found.score),
    "digest": found.digest,
    "examples_per_s": statistics.median(rates) if rates else None,
    "input_wait": statistics.median(waits) if waits else None,
    "passes": None,
    "passes_share": None,
    "curve": [
      {k: r[k] for k in ("step", "test_loss", "test_accuracy")}
      for r in rows
      if "test_accuracy" in r
    ],
    "mesh": {k: int(v) for k, v in session.mesh.shape.items()},
    "config": origin.plain(session.job),
    "origin": origin.origin(folder),
  }
  for method, kept in zip(session.functions.methods, found.state.kept):
    result |= method.told(kept, found.step)
  return result


def render(result: Mapping[str, Any], drawn: Mapping[str, Figure]) -> str:
  """The page of a run as HTML."""
  ends = {"finished": "all steps", "target": "target reached"}
  tiles = [
    ("test accuracy", _percent(result["test_accuracy"]), ends[result["status"]]),
    ("steps", f"{result['step']:,}", f"of {result['steps']:,}"),
    ("parameters", f"{result['parameters']:,}", result["precision"]),
  ]
  if result["examples_per_s"]:
    wait = f"{result['input_wait']:.1%} of the time waiting for data"
    tiles.append(("examples a second", f"{result['examples_per_s']:,.0f}", wait))
  if result["passes"] is not None:
    share = f"{result['passes_share']:.1%} of fixed 4-bit"
    tiles.append(("fMAC passes", f"{result['passes']:.3g}", share))
  head = (
    f"<h1>{text(result['name'])}: training on {text(result['data'])}</h1>"
    f"<dl class=tiles>{''.join(map(_tile, tiles))}</dl>"
  )
  parts = [head, section("Curves", picture(drawn, "curves", "Loss and accuracy"))]
  if "precision" in drawn:
    parts.append(
      section(
        "Precision",
        picture(
          drawn,
          "precision",
          "Mantissa bits of each tensor over the run",
          "A row is a matrix product, from the input down to the output.",
        ),
      )
    )
  parts += [section("Evaluations", _evaluations(result)), appendix(result)]
  return page_parts.document(result["name"], "\n".join(parts), kind="training report")


def _tile(tile: tuple[str, str, str]) -> str:
  label, value, note = map(text, tile)
  return f"<div><dt>{label}</dt><dd>{value}</dd><dd class=note>{note}</dd></div>"


def _percent(share: float | None) -> str:
  return "none" if share is None else f"{share:.2%}"


def _evaluations(result: Mapping[str, Any]) -> str:
  columns = [
    Column("step", lambda r: r["step"], lambda v: f"{v:,}"),
    Column("test loss", lambda r: r["test_loss"], lambda v: f"{v:.4f}"),
    Column("test accuracy", lambda r: r["test_accuracy"], _percent),
  ]
  return table(result["curve"], columns, style="sortable")


def appendix(result: Mapping[str, Any]) -> str:
  """The config and every start of the run."""
  starts = result["origin"]
  command = f"<pre>{text(starts[-1]['command'])}</pre>" if starts else ""
  config = json.dumps(result["config"], indent=2)
  return section(
    "Where this comes from",
    command,
    f"<details><summary>Starts, versions, devices</summary>"
    f"<pre>{text(json.dumps(starts, indent=2))}</pre></details>",
    f"<details><summary>Config</summary><pre>{text(config)}</pre></details>",
  )
