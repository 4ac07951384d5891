"""A report for people: every number is there, names are escaped, colours inherited."""

import dataclasses
from html.parser import HTMLParser
import re

import jax
import jax.numpy as jnp
import pytest

from jaxcodesign.hardware.machines import presets
from jaxcodesign.hardware.pricing import cost
from jaxcodesign.programs.workload import Gemm, VectorOp, Workload

WORK = Workload(
  (Gemm("", "<b>w</b> & co", 1, 64, 64, 32), Gemm("", "head", 1, 8, 32, 10)),
  (VectorOp("max", 640, 640),),
)


@pytest.fixture(scope="module")
def report():
  return cost.exact(WORK, presets.int8_45nm(8, 8))


class Seen(HTMLParser):
  """Cells of a page and widths of its bars; fails on tags that do not match."""

  def __init__(self):
    super().__init__()
    self.open, self.cells, self.widths = [], [], []

  def handle_starttag(self, tag, attrs):
    if tag == "br":
      return
    self.open.append(tag)
    if tag in ("td", "th"):
      self.cells.append("")
    wide = re.search(r"width:([\d.]+)%", dict(attrs).get("style") or "")
    if wide:
      self.widths.append(float(wide[1]))

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    if self.open[-1] in ("td", "th"):
      self.cells[-1] += data


def test_the_table_holds_every_product_and_the_totals(report):
  lines = report.table().splitlines()
  assert len(lines) == 6 and max(map(len, lines)) < 140
  assert lines[2].startswith("<b>w</b> & co") and lines[3].startswith("head")
  time, energy = (float(x) for x in lines[3].split()[1:3])
  assert time == pytest.approx(report.product_time_s[1] * 1e6, rel=1e-3)
  assert energy == pytest.approx(report.product_energy_j[1] * 1e6, rel=1e-3)
  shares = [int(x) for x in re.findall(r"(\d+)%", lines[2])[-4:]]
  wanted = [
    round(100 * report.product_parts_j[p][0] / report.product_energy_j[0])
    for p in ("mac", "sram", "dram", "leakage")
  ]
  assert shares == wanted
  assert f"{report.time_s * 1e6:,.2f} us" in lines[4]
  assert f"{report.idle_j / report.energy_j:.1%} of the energy in idle" in lines[5]


def test_the_page_is_well_formed_escaped_and_to_scale(report):
  page = report._repr_html_()
  seen = Seen()
  seen.feed(page)
  assert not seen.open and "<b>" not in page
  assert seen.cells[6] == "<b>w</b> & co" and seen.cells[12] == "head"
  # Each row: time, four parts of the energy, utilization.
  first, second = seen.widths[:6], seen.widths[6:]
  assert max(first[0], second[0]) == 100
  slower = report.product_time_s[1] / report.product_time_s[0]
  assert second[0] / first[0] == pytest.approx(slower, rel=1e-3)
  longest = max(sum(first[1:5]), sum(second[1:5]))
  assert longest == pytest.approx(100, abs=0.05)
  assert first[5] == pytest.approx(100 * report.product_utilization[0], abs=0.01)
  for part in ("mac", "sram", "dram", "leakage", "vector"):
    assert f"{part} {report.parts_j[part] / report.energy_j:.1%}" in page


def test_the_page_leaves_ground_and_ink_to_its_surroundings(report):
  page = report._repr_html_()
  assert set(re.findall(r"(?<![-\w])color:([^;\"]+)", page)) == {"inherit"}
  grounds = set(re.findall(r"background:([^;\"]+)", page))
  # Beside transparent: colours of bars, and their half-transparent track.
  assert "transparent" in grounds and "#8884" in grounds
  assert not grounds & {"#fff", "#ffffff", "white", "#000", "black"}


def test_reports_that_are_no_single_design_say_so():
  rows = jnp.array([8.0, 16.0])
  price = lambda r: cost.evaluate(
    WORK, dataclasses.replace(presets.int8_45nm(), rows=r)
  )
  many = jax.jit(jax.vmap(price))(rows)
  with pytest.raises(ValueError, match="traced or of many designs"):
    many.table()
  one = jax.tree.map(lambda x: x[1], many)
  assert "head" in one.table()
