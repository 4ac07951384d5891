"""Imports go downward, heavy packages stay in training/, internals in one folder."""

import ast
import pathlib
import subprocess
import sys

import pytest

PACKAGE = pathlib.Path(__file__).parents[1] / "jaxcodesign"
LAYERS = ["tree", "numerics", "programs", "hardware", "training"]
HEAVY = {"flax", "optax", "orbax", "grain", "rich", "tyro", "matplotlib"}
INTERNALS = ("jax.extend", "jax._src")
DRAWERS = {"utils", "util", "misc", "helpers", "common", "core", "base"}


def imports(source: str, package: str) -> set[str]:
  """Names of every module that `source`, a file of `package`, imports anywhere."""
  found = set()
  for node in ast.walk(ast.parse(source)):
    if isinstance(node, ast.Import):
      found |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      parent = package.split(".")[: len(package.split(".")) - node.level + 1]
      stem = ".".join([*(parent if node.level else []), node.module or ""]).strip(".")
      found |= {stem} | {f"{stem}.{alias.name}" for alias in node.names}
    elif isinstance(node, ast.Attribute):
      found.add(ast.unparse(node))
  return found


def violations(source: str, path: str) -> list[str]:
  """What `source` at `path` (relative to the package) may not import."""
  layer = pathlib.Path(path).parts[0].removesuffix(".py")
  package = ".".join(["jaxcodesign", *pathlib.Path(path).parts[:-1]])
  bad = []
  for name in imports(source, package):
    root, *rest = name.split(".")
    if root in HEAVY and layer != "training":
      bad.append(f"{path} imports {name}: only training/ may")
    known = root == "jaxcodesign" and rest and {rest[0], layer} <= set(LAYERS)
    if known and LAYERS.index(rest[0]) > LAYERS.index(layer):
      bad.append(f"{path} imports {name}, a layer above it")
    internal = any(name == i or name.startswith(i + ".") for i in INTERNALS)
    if internal and not path.startswith("programs/jaxprs/"):
      bad.append(f"{path} imports {name}: only programs/jaxprs/ may")
  return bad


def test_every_file_keeps_its_layer():
  files = sorted(PACKAGE.rglob("*.py"))
  assert len(files) > 10
  bad = [
    v for f in files for v in violations(f.read_text(), str(f.relative_to(PACKAGE)))
  ]
  assert not bad, "\n".join(bad)


@pytest.mark.parametrize(
  ("path", "line"),
  [
    ("numerics/formats/terms.py", "import flax.linen"),
    ("hardware/pricing/cost.py", "from optax import adam"),
    ("programs/rewrite.py", "def f():\n  import orbax.checkpoint"),
    ("numerics/formats/terms.py", "from jaxcodesign.hardware import cost"),
    ("numerics/formats/terms.py", "from ..programs import workload"),
    ("tree.py", "import jaxcodesign.numerics"),
    ("programs/workload.py", "from jax.extend import core"),
    ("hardware/pricing/cost.py", "import jax\njax._src.core.Jaxpr"),
  ],
)
def test_a_broken_layer_is_noticed(path, line):
  assert violations(line, path)


def test_files_are_concepts_of_at_most_400_lines():
  root = PACKAGE.parent
  for folder in ("jaxcodesign", "launch", "configs", "tests"):
    for file in (root / folder).rglob("*.py"):
      assert file.stem not in DRAWERS, f"{file} is a drawer, not a concept"
      assert len(file.read_text().splitlines()) <= 400, f"{file} is over 400 lines"


def test_import_is_light():
  code = """
import sys, time
start = time.perf_counter()
import jax
floor = time.perf_counter() - start
import numpy, chex, einops
start = time.perf_counter()
import jaxcodesign
print((time.perf_counter() - start) / floor)
print([m for m in ("flax", "optax", "orbax", "rich", "tyro", "matplotlib", "equinox")
       if m in sys.modules])
print(len([n for n in dir(jaxcodesign) if not n.startswith("_")]))
"""
  run = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, check=True
  )
  ratio, heavy, names = run.stdout.strip().split("\n")
  assert heavy == "[]" and int(names) <= 20
  # Relative, as the machine may be busy: importing jax takes 0.4 s on a quiet one, so
  # this is the 0.2 s that importing the library may add.
  assert float(ratio) < 0.5
