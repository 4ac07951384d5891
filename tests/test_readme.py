"""What the README shows is run."""

import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_python_of_the_readme_runs(capsys):
  snippets = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
  assert snippets
  names = {"__name__": "readme"}  # a reader goes on where the last snippet ended
  for snippet in snippets:
    exec(compile(snippet, "README.md", "exec"), names)
  said = capsys.readouterr().out
  assert "query" in said and "products" in said and " uJ" in said


@pytest.mark.parametrize("target", re.findall(r"\]\(([^)#:]+)\)", README))
def test_links_of_the_readme_lead_somewhere(target):
  assert (ROOT / target).exists()


def test_commands_of_the_readme_exist():
  targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
  for command in re.findall(r"make (run|test|benchmark|[a-z]+)\b", README):
    assert command in targets, command
  for module in re.findall(r"-m (launch\.[a-z]+)", README):
    assert (ROOT / (module.replace(".", "/") + ".py")).is_file()
  for path in re.findall(r"`((?:jaxcodesign|configs|tests|launch)/[\w./]+)`", README):
    assert (ROOT / path).exists(), path
