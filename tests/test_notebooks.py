"""Every notebook runs from top to bottom and is committed without outputs."""

import pathlib

import nbclient
import nbformat
import pytest

ROOT = pathlib.Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
# The kernel's client warns of its own event loop and sockets, not of our code.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_notebook_runs(path):
  book = nbformat.read(path, as_version=4)
  for cell in book.cells:
    if cell.cell_type == "code":
      assert not cell.outputs and cell.execution_count is None, "clear the outputs"
  nbclient.NotebookClient(
    book, timeout=120, resources={"metadata": {"path": str(ROOT)}}
  ).execute()
  figures = sum(
    "image/png" in output.get("data", {})
    for cell in book.cells
    for output in cell.get("outputs", [])
  )
  assert figures >= 3


def test_there_are_notebooks():
  assert NOTEBOOKS
