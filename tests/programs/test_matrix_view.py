"""The matrix view says what the workload holds, as text and as HTML."""

import html.parser

import jax
import jax.numpy as jnp
import numpy as np

from jaxcodesign import trace
from jaxcodesign.programs import matrix_view


def workload():
  params = {"<b>": np.ones((1000, 4), "f4"), "z": np.ones((4, 2), "f4")}
  fn = lambda p, x: jnp.tanh(x @ p["<b>"]) @ p["z"]
  return trace(fn)(params, jax.ShapeDtypeStruct((3, 1000), jnp.float32))


def test_text_has_one_line_a_product_and_the_total():
  head, rule, first, second, total = workload().table().split("\n")
  assert head.split() == list(matrix_view.HEADER)
  assert len(rule) == max(map(len, (head, first, second))) and set(rule) == {"-"}
  assert first.split() == [
    "<b>", "dot", "forward", "1", "3", "1,000", "4", "1", "12,000"
  ]  # fmt: skip
  assert second.split()[-1] == "24" and second.startswith("z ")
  assert total.startswith("2 products, 12,024 MAC, 4,008 parameters, 12 vector")


def test_numbers_end_in_the_same_column():
  head, _, first, second, _ = workload().table().split("\n")
  assert len(head) == len(first) == len(second)


class Cells(html.parser.HTMLParser):
  def __init__(self, text):
    super().__init__()
    self.cells, self.open = [], []
    self.feed(text)

  def handle_starttag(self, tag, attrs):
    self.open.append(tag)

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    if self.open and self.open[-1] in ("td", "th"):
      self.cells.append(data)


def test_html_is_the_same_table_escaped():
  work = workload()
  page = Cells(work._repr_html_())
  assert not page.open
  assert page.cells[: len(matrix_view.HEADER)] == list(matrix_view.HEADER)
  assert page.cells[len(matrix_view.HEADER)] == "<b>"
  assert "12,000" in page.cells and "<b>" not in work._repr_html_()


def test_a_workload_without_products_has_a_table():
  work = trace(jnp.sin)(np.ones(3, "f4"))
  assert "0 products, 0 MAC" in work.table() and "0 MAC" in work._repr_html_()


def test_floats_are_short():
  assert "0.3333" in matrix_view.grid(("a", "b"), [("x", 1 / 3)])
