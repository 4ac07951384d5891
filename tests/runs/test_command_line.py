"""A config file becomes a typed run, and a wrong command line one clear line."""

import os
import pathlib
import resource
import sys
import textwrap

import jax
import numpy as np
import pytest

from jaxcodesign import models
from jaxcodesign.runs import command_line, overrides
from jaxcodesign.runs.disk import files
from jaxcodesign.training.config import TrainConfig
from tests.runs.demo import DEMO, PROG, parse, refused


@pytest.fixture
def demo(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  pathlib.Path("configs").mkdir()
  path = pathlib.Path("configs/demo.py")
  path.write_text(DEMO.lstrip())
  return path


def test_without_overrides_the_config_is_the_files_own(demo):
  launch = parse(demo)
  assert launch.config.train == TrainConfig()
  assert (launch.name, launch.path) == ("demo", demo)
  assert (launch.out, launch.dry_run, launch.smoke) == (pathlib.Path("runs"), 0, 0)


def test_the_options_of_every_program(demo):
  launch = parse("--smoke", "--out", "there", demo, "--dry-run")
  assert launch.config.train.epochs == 1 and launch.name == "demo_smoke"
  assert (launch.out, launch.dry_run, launch.smoke) == (pathlib.Path("there"), 1, 1)


@pytest.mark.parametrize(
  ("option", "values", "find", "expected"),
  [
    ("--train.learning-rate", ["1e-4"], lambda c: c.train.learning_rate, 1e-4),
    ("--train.batch_size", ["7"], lambda c: c.train.batch_size, 7),
    ("--model.channels", ["8", "24", "8"], lambda c: c.model.channels, (8, 24, 8)),
    ("--variants.1.name", ["tq"], lambda c: c.variants[1].name, "tq"),
    ("--variants.1.format.budget", ["5"], lambda c: c.variants[1].format.budget, 5),
    ("--formats.0.bits", ["4"], lambda c: c.formats[0].bits, 4),
    ("--accelerator.rows", ["12.5"], lambda c: c.accelerator.rows, np.float32(12.5)),
    (
      "--accelerator.memories.1.capacity-bytes",
      ["9.5"],
      lambda c: c.accelerator.memories[1].capacity_bytes,
      9.5,
    ),
    ("--accelerator.dataflow", ["ws"], lambda c: c.accelerator.dataflow, "ws"),
    ("--limit", ["3"], lambda c: c.limit, 3),
    ("--share", ["0.5"], lambda c: c.share, 0.5),
    ("--keep", [], lambda c: c.keep, True),
    ("--mode", ["SLOW"], lambda c: c.mode.name, "SLOW"),
    ("--folder", ["x/y"], lambda c: c.folder, pathlib.Path("x/y")),
  ],
)
def test_any_field_however_deep_is_overridden_and_nothing_else(
  demo, option, values, find, expected
):
  plain, changed = parse(demo).config, parse(demo, option, *values).config
  found = find(changed)
  assert found == expected and find(plain) != expected
  if isinstance(expected, np.float32):
    assert isinstance(found, jax.Array) and found.dtype == np.float32
  else:
    assert type(found) is type(expected)
  assert changed.activation is jax.nn.relu and len(changed.table) == 3
  top = option.lstrip("-").split(".")[0]
  for name in set(vars(plain)) - {top, "table"}:
    assert repr(getattr(plain, name)) == repr(getattr(changed, name))


@pytest.mark.parametrize(
  ("option", "nearest"),
  [
    ("--train.epoch", "--train.epochs"),
    ("--learning_rate", "--train.learning-rate"),
    ("--variants.7.name", "--variants.0.name"),
    ("--acelerator.rows", "--accelerator.rows"),
    ("--name", "--variants.0.name"),
    ("--smok", "--smoke"),
  ],
)
def test_an_unknown_field_names_the_nearest(demo, capsys, option, nearest):
  message = refused(capsys, demo, option, "3")
  assert "no field --" in message and f"the nearest is {nearest} " in message
  assert message.count("\n") == 1


@pytest.mark.parametrize(
  ("argv", "message"),
  [
    (["--train.epochs", "0.5"], "--train.epochs"),
    (["--train.epochs"], "--train.epochs"),
    (["--accelerator.dataflow", "is"], "'os', 'ws'"),
    (["--formats.0.bits", "0"], "bits=0 must be at least 1"),
    (["--train.warmup", "2"], "warmup must be in [0, 1)"),
    (["surplus"], "unexpected argument 'surplus'"),
  ],
)
def test_a_bad_value_is_refused_with_its_field(demo, capsys, argv, message):
  assert message in refused(capsys, demo, *argv)


def test_a_missing_config_names_the_nearest_and_the_choices(demo, capsys):
  (demo.parent / "other.py").write_text("")
  message = refused(capsys, "configs/dem.py")
  assert "no config file configs/dem.py" in message
  assert "did you mean configs/demo.py?" in message
  assert "demo.py, other.py" in message
  assert "configs/ has: demo.py\n" in refused(capsys)
  assert "CONFIG comes before" in refused(capsys, "--train.epochs", "3", demo)
  assert "there are none in away/" in refused(capsys, "away/x.py")


@pytest.mark.parametrize(
  ("source", "message"),
  [
    ('"""D."""\nimport nothing_of_this_name', r"broken.py:2 raises ModuleNotFound"),
    ('"""D."""\ndef config(:\n', r"(?s)broken.py:2 raises SyntaxError.*\n  def config"),
    ('"""D."""\ndef smoke():\n  return 1\n', r"has no function config\(\)"),
    ('"""D."""\nconfig = 3\n', r"has no function config\(\)"),
    ("def config():\n  ...\ndef smoke():\n  ...\n", "has no docstring"),
  ],
)
def test_a_broken_config_file_is_refused_with_its_line(tmp_path, source, message):
  path = tmp_path / "broken.py"
  path.write_text(source)
  with pytest.raises(command_line.ConfigError, match=message):
    command_line.load(path)


@pytest.mark.parametrize(
  ("argv", "name"),
  [
    ([], "demo"),
    (["--train.epochs", "10"], "demo"),  # as it is
    (["--train.epochs", "3"], "demo_train.epochs-3"),
    (["--smoke", "--variants.1.name", "a b/c"], "demo_smoke_variants.N.name-float,abc"),
    (["--keep", "--limit", "3"], "demo_limit-3_keep-True"),
  ],
)
def test_a_run_that_differs_has_a_folder_of_its_own(demo, argv, name):
  assert parse(demo, *argv).name == name


def test_a_long_difference_is_cut_and_stays_apart(demo):
  names = {parse(demo, "--folder", f"{'x' * 90}{i}").name for i in range(2)}
  assert len(names) == 2 and max(map(len, names)) <= 86


def test_smoke_is_needed_only_where_it_is_asked_for(tmp_path, capsys):
  path = tmp_path / "own.py"
  path.write_text(
    '"""D: python -m launch.train own.py"""\n'
    "from jaxcodesign.training.config import TrainConfig as config\n"
    "def config(made=config()): return made\n"
  )
  assert parse(path).config == TrainConfig()
  assert "has no function smoke(): write one" in refused(capsys, path, "--smoke")
  with pytest.raises(SystemExit):
    command_line.parse([str(path)], prog=PROG, kinds=(models.Cnn,))
  said = capsys.readouterr().err
  assert (
    f"own.py is a TrainConfig, no Cnn; it is run by python -m launch.train {path}"
    in said
  )


@pytest.mark.parametrize(
  ("body", "message"),
  [
    (
      "raise ZeroDivisionError('no rows')",
      "own.py:3 raises ZeroDivisionError: no rows",
    ),
    ("return {'epochs': 3}", "must return a frozen dataclass, not {'epochs': 3}"),
  ],
)
def test_a_config_that_fails_is_refused(tmp_path, capsys, body, message):
  source = f'''
    """D."""
    def config():
      {body}
    def smoke():
      {body}
  '''
  (tmp_path / "own.py").write_text(textwrap.dedent(source).lstrip())
  assert message in refused(capsys, tmp_path / "own.py")


def test_two_files_of_one_name_do_not_mix(tmp_path):
  for i in (1, 2):
    (tmp_path / str(i)).mkdir()
    source = f'"""D."""\ndef config():\n  return {i}\ndef smoke():\n  return -{i}\n'
    (tmp_path / str(i) / "same.py").write_text(source)
  first, second = (command_line.load(tmp_path / str(i) / "same.py") for i in (1, 2))
  assert (first.config(), second.config()) == (1, 2)


def test_a_field_named_as_an_option_of_the_program_is_refused():
  with pytest.raises(
    overrides.ConfigError, match=r"may not have the fields .*'epochs'"
  ):
    overrides.override(TrainConfig(), TrainConfig(), [], prog="p", description="")


def test_field_docs_come_from_the_attributes_section():
  docs = overrides.field_docs(models.Cnn)
  assert docs == {
    "channels": "Output channels of each convolution, in order.",
    "hidden": "Units of the dense layer before the logits.",
  }


def test_a_run_folder_is_made_and_can_be_written(tmp_path):
  folder = command_line.run_folder(tmp_path / "runs", "demo")
  assert folder == tmp_path / "runs" / "demo" and os.listdir(folder) == []
  assert command_line.run_folder(tmp_path / "runs", "demo") == folder


def test_a_run_folder_is_one_program_s_and_goes_if_it_stays_empty(
  tmp_path, monkeypatch
):
  monkeypatch.setattr("jaxcodesign.runs.disk.lock._PATIENCE_S", 0.1)
  own = lambda: command_line.own_folder(tmp_path / "runs", "demo")
  with pytest.raises(ValueError, match="before any work"), own() as folder:
    with pytest.raises(OSError, match="demo is in use by another run"), own():
      pass
    (folder / "FAST" / "seed0").mkdir(parents=True)
    raise ValueError("before any work")
  assert os.listdir(tmp_path) == []
  with own() as folder, command_line.own_folder(tmp_path / "runs", "other"):
    (folder / "FAST").mkdir()
    (folder / "FAST" / "kept").write_text("")
  assert [p.name for p in (tmp_path / "runs").rglob("*")] == ["demo", "FAST", "kept"]


@pytest.mark.parametrize("base", ["/proc", "file"])
def test_a_run_folder_that_cannot_be_written_is_refused_at_once(tmp_path, base):
  (tmp_path / "file").write_text("")
  with pytest.raises(
    OSError, match=r"cannot write .*demo: .*another folder with --out"
  ):
    command_line.run_folder(tmp_path / base, "demo")


@pytest.mark.parametrize("content", ["grüße\r\n", b"\0\xff"])
def test_a_file_is_replaced_whole(tmp_path, content):
  path = tmp_path / "report.html"
  for _ in range(2):
    files.write_atomically(path, content)
  expected = content.encode() if isinstance(content, str) else content
  assert path.read_bytes() == expected
  assert os.listdir(tmp_path) == ["report.html"]


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path):
  path = tmp_path / "report.html"
  files.write_atomically(path, "old")
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
  try:
    with pytest.raises(OSError, match=f"cannot write {path}: .*free some space"):
      files.write_atomically(path, b"\0" * 200_000)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
  assert path.read_text() == "old" and os.listdir(tmp_path) == ["report.html"]


def test_a_config_leaves_no_bytecode_and_is_read_anew(tmp_path, monkeypatch):
  """Bytecode is told apart by seconds and size: an edit may keep both."""
  monkeypatch.setattr(sys, "dont_write_bytecode", False)
  path = tmp_path / "mine.py"
  for seed in (1, 2):
    path.write_text(f'"""Mine."""\ndef config(): return {seed}\nsmoke = config\n')
    os.utime(path, (10**9, 10**9))
    assert command_line.load(path).config() == seed
  assert [p.name for p in tmp_path.iterdir()] == ["mine.py"]
