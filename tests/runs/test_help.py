"""Help of a config: its groups, the fields of one, all fields, each once."""

import pathlib

import pytest

from tests.runs.demo import DEMO, PROG, parse, refused


@pytest.fixture
def demo(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  pathlib.Path("configs").mkdir()
  path = pathlib.Path("configs/demo.py")
  path.write_text(DEMO.lstrip())
  return path


@pytest.fixture
def helped(demo, capsys, monkeypatch):
  """What the program says when it is asked for help."""
  monkeypatch.setenv("COLUMNS", "200")

  def ask(*argv):
    with pytest.raises(SystemExit) as caught:
      parse(demo, *argv)
    assert caught.value.code == 0
    return capsys.readouterr().out

  return ask


def test_help_all_shows_each_field_once_with_its_doc_and_default(helped):
  text = helped("--help-all")
  for part in (
    "--accelerator.memories.N.capacity-bytes  What it holds at once. "
    "(default: 1024, 2.0; N below 2)",  # an Attributes: section
    "Rows of elements. (default: 16.0)",  # a string below the field
    "Width, sign included. (default: 8; N is 0)",  # a comment beside the field
    "Passes over the training images. (default: 10)",
  ):
    assert part in text, part
  assert "activation" not in text and "table" not in text
  assert text.count("--variants.N.name") == 1


def test_help_shows_groups_and_help_of_a_group_its_fields(helped, demo, capsys):
  text = helped("--help")
  for part in ("A demonstration.", "--dry-run", "Folder of all runs", "--limit"):
    assert part in text, part
  assert "  train " in text and "epochs, batch-size" in text
  assert "memories.*" in text and "--train.epochs" not in text
  assert helped("--help", "train").startswith("  --train.epochs  Passes over the")
  for asked in ("accelerator.memories.1", "--accelerator.memories.N"):
    assert helped("--help", asked).count("\n") == 2
  message = refused(capsys, demo, "--help", "trian")
  assert "no group or field trian; nearest: train" in message


def test_help_without_a_config_lists_the_choices_of_the_program(demo, capsys):
  (demo.parent / "other.py").write_text('"""python -m launch.train other.py"""')
  with pytest.raises(SystemExit) as caught:
    parse("--help")
  assert caught.value.code == 0
  text = capsys.readouterr().out
  assert f"usage: {PROG} CONFIG" in text
  assert "demo.py" in text and "other.py" not in text
