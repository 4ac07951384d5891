"""A result is refused, written, read back and summed up as its schema promises."""

import copy
import errno
import html.parser
import io
import os
import re
import threading

import hypothesis
from hypothesis import strategies as st
import numpy as np
import pytest
import rich.console

from jaxcodesign.experiments import page, report, schema
from jaxcodesign.figures import findings
from tests.experiments.results import sample


@pytest.fixture(scope="module")
def result():
  return sample()


@pytest.fixture(scope="module")
def written(result, tmp_path_factory):
  return report.write(result, tmp_path_factory.mktemp("runs") / "sample")


def changed(result, path, value):
  """A copy of `result` with another value at `path`, or with none if that is `...`."""
  *parents, last = path
  copied = inner = copy.deepcopy(result)
  for key in parents:
    inner = inner[key]
  if value is ...:
    del inner[last]
  else:
    inner[last] = value
  return copied


def test_a_written_report_is_complete_and_reads_back(result, written):
  files = {str(f.relative_to(written.parent)) for f in written.parent.rglob("*.*")}
  names = (
    "tradeoff",
    "layers",
    "energy",
    "sensitivities",
    "training",
    "storage",
    "packing",
  )
  assert files == {"report.html", "report.json", *(f"figures/{n}.png" for n in names)}
  assert report.read(written.parent / "report.json") == result


@pytest.mark.parametrize(
  ("path", "value", "said"),
  [
    (["schema"], "jaxcodesign.codesign/9", "result.schema is"),
    (["costs", 3, "energy_j"], ..., "result.costs[3].energy_j is missing"),
    (["costs", 3, "energy_j"], float("nan"), "result.costs[3].energy_j ("),
    (["costs", 3, "energy_j"], 1.0, "result.costs[3].edp_js is"),
    (["costs", 3, "energy_parts_j", "dram"], 1.0, "result.costs[3].energy_j is"),
    (["costs", 3, "time_s"], np.float32(1), "(numpy.float32)"),
    (["costs", 3, "variant"], "int9", "result.costs[3].variant is 'int9'"),
    (["costs", 3, "layers", 0, "name"], "x", "result.costs[3].layers does not"),
    (["costs"], [], "result.costs must be a list with entries"),
    (["layers", 1, "m"], 1.5, "result.layers[1].m ("),
    (["layers", 1, "m"], True, "result.layers[1].m ("),
    (["model"], 7, "result.model must be a mapping"),
    (["variants", 2, "accuracy"], 88.2, "result.variants[2].accuracy ("),
    (["variants", 2, "name"], "int8", "result.variants[2].name repeats 'int8'"),
    (["accelerators", 0, "leaves", "rows"], "32", "accelerators[0].leaves.rows ("),
    (["sensitivities", 9, "leaf"], "x", "result.sensitivities[9].leaf is 'x'"),
    (["storage", "rows", 1, "title"], "int8", "rows[1].title repeats 'int8'"),
    (["storage", "rows", 1, "edp_js"], 1.0, "result.storage.rows[1].edp_js is"),
    (["storage", "rows", 0, "layers"], [], "rows[0].layers must be a list with"),
    (["config", "rate"], float("inf"), "result.config cannot be written"),
    (["training", "speed"], 1, "result.training.speed is not in report.SCHEMA"),
  ],
)
def test_a_wrong_result_is_refused_by_its_path(result, tmp_path, path, value, said):
  with pytest.raises(ValueError, match=re.escape(said)):
    report.write(changed(result, path, value), tmp_path / "run")
  assert not list(tmp_path.iterdir())


def test_every_field_is_documented():
  def fields(spec):
    if isinstance(spec, schema.Field):
      return [spec]
    if isinstance(spec, schema.Named):
      return [spec.each]
    parts = spec if isinstance(spec, list) else spec.values()
    return [field for part in parts for field in fields(part)]

  assert all(field.meaning for field in fields(report.SCHEMA))


def test_an_unwritable_folder_is_one_clear_error(result, tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises(OSError, match=r"another folder.*file") as caught:
    report.write(result, tmp_path / "file" / "run")
  assert caught.value.errno == errno.ENOTDIR


def test_a_full_disk_leaves_the_earlier_report_whole(result, tmp_path, monkeypatch):
  (tmp_path / "report.json").write_text("earlier")
  calls = []

  def fsync(file):
    calls.append(file)
    if len(calls) > 3:
      raise OSError(errno.ENOSPC, "No space left on device")

  monkeypatch.setattr(os, "fsync", fsync)
  with pytest.raises(OSError, match="No space left on device; free space") as caught:
    report.write(result, tmp_path)
  assert caught.value.errno == errno.ENOSPC
  assert not list(tmp_path.rglob("*.tmp")) and not (tmp_path / "report.html").exists()
  assert (tmp_path / "report.json").read_text() == "earlier"


def test_a_report_that_is_none_is_named(tmp_path):
  (tmp_path / "report.json").write_text('{"schema": "jaxco')
  with pytest.raises(ValueError, match=r"report\.json is not a report"):
    report.read(tmp_path / "report.json")


class Elements(html.parser.HTMLParser):
  """Collects what a browser would see as elements."""

  def __init__(self, text):
    super().__init__()
    self.elements, self.text = [], ""
    self.feed(text)

  def handle_starttag(self, tag, attrs):
    self.elements.append((tag, dict(attrs)))

  def handle_data(self, data):
    self.text += data


def test_the_page_stands_alone(written):
  text = written.read_text("utf-8")
  elements = Elements(text).elements
  links = [v for _, a in elements for k, v in a.items() if k in ("src", "xlink:href")]
  assert all(link.startswith(("#", "data:image/png;base64,")) for link in links)
  assert any(link.startswith("#") for link in links)
  assert not {"link", "img", "iframe", "base", "a"} & {tag for tag, _ in elements}
  assert "url(h" not in text and "@import" not in text
  ids = [a["id"] for _, a in elements if "id" in a]
  assert len(ids) == len(set(ids))
  pictures = [a for tag, a in elements if tag == "svg"]
  assert len(pictures) == 7 and all(a["aria-label"] for a in pictures)


def test_no_name_becomes_markup():
  evil = "<script>alert('x')</script>\"]]>--><b onclick=y>$\\frac{[bold]{}"
  result = sample(layers=[(evil, evil, 4, 4, 4), ("$x", "層", 4, 4, 4)])
  renamed = lambda name: evil if name == "TQ k=12 s=3" else name
  for group in ("variants", "accelerators", "costs", "sensitivities"):
    for entry in result[group]:
      for key in ("name", "variant"):
        if key in entry:
          entry[key] = renamed(entry[key])
  for key in ("name", "command", "created"):
    result[key] = evil
  result["versions"] = {evil: evil}
  result["config"] = {evil: [evil]}
  result["training"]["dataset"] = result["model"]["name"] = evil
  report.validate(result)
  elements = Elements(text := page.render(result, report.draw(result)))
  assert [tag for tag, _ in elements.elements].count("script") == 1
  assert not [a for tag, a in elements.elements if tag == "b" or "onclick" in a]
  assert text.count("alert('x')") == 0 and evil in elements.text
  console = rich.console.Console(file=(shown := io.StringIO()), width=300)
  console.print(report.terminal_table(result))
  assert evil in shown.getvalue()


def test_sections_without_data_say_so_and_leave_no_stale_figure(result, tmp_path):
  stale = tmp_path / "figures" / "training.png"
  stale.parent.mkdir()
  stale.write_bytes(b"")
  empty = changed(result, ["training", "history"], [])
  empty |= {"sensitivities": [], "vector_ops": []}
  text = report.write(empty, tmp_path).read_text("utf-8")
  assert text.count("Nothing was recorded for this figure") == 2
  assert not stale.exists()


def test_the_section_on_sparsity_is_there_where_a_variant_is_sparse(result):
  text = page.render(result, report.draw(result))
  assert "Sparsity, paid out on the array" in text
  shown = Elements(text).text
  for word in ("combined int8", "5.00\u00d7", "utilization", "every layer"):
    assert word in shown, word
  result = changed(result, ["storage", "rows"], [])
  result["storage"]["packing"] = []
  drawn = report.draw(result)
  assert not {"storage", "packing"} & drawn.keys()
  assert "Sparsity, paid" not in page.render(result, drawn)


def test_two_threads_write_the_same_bytes(result, written, tmp_path):
  threads = [
    threading.Thread(target=report.write, args=(result, tmp_path / str(i)))
    for i in range(2)
  ]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  for file in written.parent.rglob("*.*"):
    name = file.relative_to(written.parent)
    for i in range(2):
      assert (tmp_path / str(i) / name).read_bytes() == file.read_bytes(), name


def test_the_terminal_table_is_short_and_marks_the_front(result):
  console = rich.console.Console(file=(shown := io.StringIO()), width=80)
  console.print(report.terminal_table(result))
  lines = shown.getvalue().splitlines()
  assert len(lines) <= 14 and max(map(len, lines)) <= 80
  assert sum("baseline" in line for line in lines) == 1
  marked = {tuple(line.split()[:3]) for line in lines[:-3] if line.endswith("◆")}
  front = {
    tuple(f"{c['variant']} {c['accelerator']}".split()[:3])
    for c in findings.find(result).front
  }
  assert marked and marked <= front


small = st.tuples(st.integers(0, 4), st.integers(0, 4))


@hypothesis.given(st.lists(small | st.tuples(st.floats(0, 1), st.floats(0, 1))))
def test_the_front_is_what_nothing_beats(points):
  beats = lambda p, q: p[0] >= q[0] and p[1] <= q[1] and p != q
  expected = {i for i, q in enumerate(points) if not any(beats(p, q) for p in points)}
  front = report.pareto(points)
  assert set(front) == expected and len(front) == len(expected)
  assert [points[i][1] for i in front] == sorted(points[i][1] for i in front)


def test_the_best_design_is_on_the_front_and_within_the_allowance(result):
  found = findings.find(result)
  assert found.best in found.front and found.best is found.chosen["tMAC"]
  assert found.best["accuracy"] >= 0.8835 - findings.ALLOWANCE
  others = [c for c in result["costs"] if c["edp_js"] < found.best["edp_js"]]
  assert others and all(c["accuracy"] < 0.8735 for c in others)
  ratio = found.baseline["edp_js"] / found.best["edp_js"]
  assert f"{ratio:.3g}\u00d7 less" in findings.answer(result)


def test_a_loss_of_exactly_the_allowance_is_within_it(result):
  exact = changed(result, ["variants", 0, "accuracy"], 0.884)
  assert findings.find(exact).best["accuracy"] < 0.884 - 0.001
  for c in exact["costs"]:
    c["accuracy"] = 0.874 if c["variant"] == "int4" else 0.5
  assert findings.find(exact).best["variant"] == "int4"


def test_answers_without_a_better_design(result):
  none = changed(result, ["variants", 0, "accuracy"], 0.99)
  assert findings.answer(none).startswith("No design stays within 1 point of float32")
  alone = {**result, "costs": [findings.find(result).baseline]}
  assert findings.answer(alone).startswith("Nothing beats int8 on the int8 array")
