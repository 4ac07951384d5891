"""A systolic array that fills and drains, as a page to play: one HTML file.

The page holds the spans of every cell, not pictures: any cycle is drawn from them. It
refers to nothing outside itself, and its content policy forbids it to.
"""

import base64
from collections.abc import Mapping
import hashlib
import html
import json
import string

from jaxcodesign.figures.array import STATES
from jaxcodesign.hardware.simulators.activity import NAMES, Fold


def render(folds: Mapping[str, Fold], title: str) -> str:
  """Returns the page: a slider and a play button over all folds on one clock.

  Args:
    folds: Name -> fold.
    title: Of the page.
  """
  data = {
    "names": NAMES,
    "colours": STATES,
    "folds": [_fold(name, fold) for name, fold in folds.items()],
  }
  # "</script>" in a name would end the script.
  script = _SCRIPT.replace("DATA", json.dumps(data).replace("<", "\\u003c"))
  digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
  return string.Template(_PAGE).substitute(
    title=html.escape(title), digest=digest, script=script
  )


def _fold(name: str, fold: Fold) -> dict[str, object]:
  rows, cols = fold.spans[0].first.shape
  return {
    "name": name,
    "rows": rows,
    "cols": cols,
    "cycles": fold.cycles,
    "spans": [[s.first.ravel().tolist(), s.end.ravel().tolist()] for s in fold.spans],
    "cells": fold.cells().tolist(),
  }


_SCRIPT = """
const data = DATA;
const last = Math.max(...data.folds.map(f => f.cycles)) - 1;
const slider = document.getElementById("cycle"), play = document.getElementById("play");
const said = document.getElementById("said"), place = document.getElementById("folds");
const dark = matchMedia("(prefers-color-scheme: dark)");
const ink = name => getComputedStyle(document.body).getPropertyValue(name);
const colour = state => state ? data.colours[state] : ink("--well");
slider.max = last;

for (const fold of data.folds) {
  const box = document.createElement("figure"), name = document.createElement("h2");
  name.textContent = fold.name;
  fold.array = document.createElement("canvas");
  fold.curve = document.createElement("canvas");
  fold.note = document.createElement("figcaption");
  box.append(name, fold.array, fold.note, fold.curve);
  place.append(box);
}
for (const state of data.names.keys()) {
  if (!data.folds.some(f => f.cells[state].some(n => n > 0))) continue;
  const item = document.createElement("li"), patch = document.createElement("i");
  patch.style.background = state ? data.colours[state] : "var(--well)";
  item.append(patch, data.names[state]);
  document.getElementById("legend").append(item);
}

function sized(canvas, width, height) {
  const scale = devicePixelRatio || 1;
  canvas.style.width = width + "px"; canvas.style.height = height + "px";
  canvas.width = width * scale; canvas.height = height * scale;
  const pen = canvas.getContext("2d");
  pen.scale(scale, scale);
  return pen;
}

function state(fold, cell, cycle) {
  for (const [i, [first, end]] of fold.spans.entries())
    if (first[cell] <= cycle && cycle < end[cell]) return i + 1;
  return 0;
}

function drawArray(fold, cycle) {
  const side = 320 / Math.max(fold.rows, fold.cols), gap = side > 5 ? side * 0.12 : 0;
  const pen = sized(fold.array, side * fold.cols, side * fold.rows);
  for (let i = 0; i < fold.rows; i++) for (let j = 0; j < fold.cols; j++) {
    pen.fillStyle = colour(state(fold, i * fold.cols + j, cycle));
    pen.fillRect(j * side, i * side, side - gap, side - gap);
  }
}

function drawCurve(fold, cycle) {
  const width = 320, height = 90, pen = sized(fold.curve, width, height);
  const step = width / (last + 1), tall = (height - 14) / (fold.rows * fold.cols);
  for (let t = 0; t < fold.cycles; t++) {
    let floor = height - 14;
    for (const s of [1, 2, 3]) {
      pen.fillStyle = colour(s);
      const high = fold.cells[s][t] * tall;
      pen.fillRect(t * step, floor - high, step + 0.3, high);
      floor -= high;
    }
  }
  pen.fillStyle = ink("--ink");
  pen.fillRect(0, height - 14, width, 1);
  pen.fillRect(Math.min((cycle + 0.5) * step, width - 1.5), 0, 1.5, height - 14);
  pen.font = "11px system-ui, sans-serif";
  pen.fillText("0", 0, height - 2);
  pen.textAlign = "right";
  pen.fillText("cycle " + (last + 1).toLocaleString("en"), width, height - 2);
}

function show(cycle) {
  slider.value = cycle;
  said.textContent = "cycle " + cycle.toLocaleString("en");
  for (const fold of data.folds) {
    drawArray(fold, cycle);
    drawCurve(fold, cycle);
    const busy = cycle < fold.cycles ? fold.cells[2][cycle] : 0;
    const total = fold.rows * fold.cols;
    fold.note.textContent = cycle < fold.cycles
      ? busy.toLocaleString("en") + " of " + total.toLocaleString("en") + " cells ("
        + Math.round(100 * busy / total) + " %) multiply"
      : "done after " + fold.cycles.toLocaleString("en") + " cycles";
  }
}

let started = null;
function run(now) {
  if (started === null) return;
  const cycle = Math.floor((now - started) / 1000 * Math.max(12, last / 12));
  show(Math.min(cycle, last));
  if (cycle < last) requestAnimationFrame(run); else stop();
}
function stop() { started = null; play.textContent = "Play"; }
play.onclick = () => {
  if (started !== null) return stop();
  const from = +slider.value >= last ? 0 : +slider.value;
  started = performance.now() - from * 1000 / Math.max(12, last / 12);
  play.textContent = "Pause";
  requestAnimationFrame(run);
};
slider.oninput = () => { stop(); show(+slider.value); };
dark.onchange = () => show(+slider.value);
show(Math.floor(last / 3));
"""

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none';
 style-src 'unsafe-inline'; script-src 'sha256-$digest'; img-src data:">
<link rel="icon" href="data:,">
<title>$title</title>
<style>
:root { color-scheme: light dark; --ink: #1b1f25; --muted: #5c6571; --grid: #d8dce2;
  --paper: #fefefe; --well: #eceff3; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ee; --muted: #a0a9b5;
  --grid: #363d47; --paper: #15181d; --well: #262c34; } }
body { margin: 0 auto; max-width: 72rem; padding: 1.5rem; background: var(--paper);
  color: var(--ink); font: 1rem/1.5 system-ui, sans-serif; }
h1 { font-size: 1.35rem; } h2 { font-size: 1rem; margin: 0 0 .5rem; }
.clock { display: flex; gap: 1rem; align-items: center; }
input { flex: 1; accent-color: #0072b2; }
button { font: inherit; min-width: 5.5rem; padding: .3rem .9rem; border-radius: 6px;
  border: 1px solid var(--grid); background: var(--well); color: var(--ink);
  cursor: pointer; }
output { min-width: 8rem; font-variant-numeric: tabular-nums; }
#folds { display: flex; flex-wrap: wrap; gap: 2rem; margin: 1.2rem 0; }
figure { margin: 0; } canvas { display: block; }
figcaption { color: var(--muted); font-size: .875rem; margin: .5rem 0;
  font-variant-numeric: tabular-nums; }
ul { list-style: none; display: flex; flex-wrap: wrap; gap: 1.2rem; padding: 0; }
li i { display: inline-block; width: 1.1em; height: 1.1em; margin-right: .45em;
  vertical-align: -.15em; border: 1px solid var(--grid); border-radius: 3px; }
</style></head><body>
<h1>$title</h1>
<div class="clock"><button id="play" type="button">Play</button>
<input id="cycle" type="range" min="0" value="0" aria-label="clock cycle">
<output id="said" for="cycle"></output></div>
<div id="folds"></div>
<ul id="legend"></ul>
<script>$script</script>
</body></html>
"""
