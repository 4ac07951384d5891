"""Which test files are near a function: the ones that would notice a change of it."""

import ast
import collections
import pathlib
import re

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE, TESTS = "jaxcodesign", "tests"
# Long, and of whole programs: run only where nothing else is near.
HEAVY = re.compile(
  r"test_(benchmark.*|faults|many_devices|notebooks|configs|readme)\.py"
)


class Tests:
  """Which test files are near which module."""

  def __init__(self, root: pathlib.Path = ROOT):
    self.root = root
    self.modules: dict[str, ast.Module] = {}  # by dotted name
    self.paths: dict[str, str] = {}  # path -> dotted name
    self.faces: set[str] = set()
    for folder in (PACKAGE, "launch"):
      for path in sorted((root / folder).rglob("*.py")):
        short = path.relative_to(root).with_suffix("")
        dotted = ".".join(short.parts).removesuffix(".__init__")
        self.modules[dotted] = ast.parse(path.read_text())
        if path.name == "__init__.py" and "= face(" in path.read_text():
          self.faces.add(dotted)
        self.paths[path.relative_to(root).as_posix()] = dotted
    found = sorted((root / TESTS).rglob("*.py"))
    self.texts = {path: path.read_text() for path in found}
    self.trees = {path: ast.parse(text) for path, text in self.texts.items()}
    self._next = {
      m: {found for _, found in self._imports(t)} for m, t in self.modules.items()
    }
    self._distances: dict[pathlib.Path, dict[str, int]] = {}

  def near(self, path: str, function: str, most: int) -> list[str]:
    """The nearest test files to a function in a module's file, `most` at most.

    A file is nearer the fewer imports lie between, if it is named after the module, if
    it names the method, if it lies in a folder of the same name, the more often it
    names the class or function (of one that no test names all that is public in the
    module).
    """
    module, folders = self.paths[path], path.split("/")
    stem, (word, *method) = module.rpartition(".")[2], function.split(".")
    body = self.modules[module].body
    public = [node.name for node in body if _is_public(node)]
    counted, ranked = re.compile(rf"\b{word}\b"), []
    named = [t for path, t in self.texts.items() if path.name.startswith("test_")]
    if not any(map(counted.search, named)):
      counted = re.compile(rf"\b({'|'.join(public or [stem])})\b")
    for test in self.trees:
      distances = self._from(test)
      if test.name.startswith("test_") and module in distances:
        own, apart = test.stem.removeprefix("test_"), distances[module]
        named = 0 if own in (stem, stem + "s") else 1 if stem in own else 2
        often = len(counted.findall(self.texts[test]))
        silent = not any(f".{name}(" in self.texts[test] for name in method)
        rank = (named + 2 * apart, silent, test.parent.name not in folders, -often)
        ranked.append((*rank, test.relative_to(self.root).as_posix(), apart))
    light = [row for row in ranked if not HEAVY.fullmatch(pathlib.Path(row[-2]).name)]
    rows = sorted(light or ranked)
    # Further away stand whole programs: slow, and seldom of use.
    reach = min((row[-1] for row in rows), default=0) + 1
    return [row[-2] for row in rows if row[-1] <= reach][:most]

  def _from(self, test: pathlib.Path) -> dict[str, int]:
    """Modules that a test file reaches, by the number of modules in between."""
    if test not in self._distances:
      trees = [self.trees[test]]
      trees += [self.trees[path] for path in self._helpers(test)]
      reached = {m: 0 for tree in trees for _, m in self._imports(tree)}
      waiting = collections.deque(reached)
      while waiting:
        module = waiting.popleft()
        # One that defines nothing passes on what it imports.
        passes = not any(map(_is_public, self.modules[module].body))
        apart = reached[module] + (not passes)
        for further in self._next[module]:
          if apart < reached.get(further, 99):
            reached[further] = apart
            waiting.append(further)
      self._distances[test] = reached
    return self._distances[test]

  def _helpers(self, test: pathlib.Path) -> list[pathlib.Path]:
    """Other files among the tests that a test file imports."""
    named = set()
    for node in ast.walk(self.trees[test]):
      if isinstance(node, ast.Import):
        named |= {alias.name for alias in node.names}
      if isinstance(node, ast.ImportFrom):
        named.add(node.module)
    return [path for path in self.trees if path.stem in named and path != test]

  def _imports(self, tree: ast.Module) -> list[tuple[str, str]]:
    """(name, module) of what a file imports, past modules that only pass it on."""
    found = []
    for node in ast.walk(tree):
      if isinstance(node, ast.Import):
        found += [(a.name, a.name) for a in node.names if a.name in self.modules]
      face = _dotted(node.value) if isinstance(node, ast.Attribute) else ""
      if isinstance(node, ast.Attribute) and face in self.faces:
        module = self._source(face, node.attr)
        found.append((node.attr, module))
      if isinstance(node, ast.ImportFrom) and node.module:
        for alias in node.names:
          module = self._source(node.module, alias.name)
          if module in self.modules:
            found.append((alias.asname or alias.name, module))
    # A whole face is all of the library: what is used of it counts.
    return [(name, module) for name, module in found if module not in self.faces]

  def _source(self, module: str, name: str, depth: int = 4) -> str:
    """The module that `from module import name` means in the end."""
    if f"{module}.{name}" in self.modules:
      return f"{module}.{name}"
    if depth and module in self.modules:
      for node in ast.walk(self.modules[module]):  # a face has them in a condition
        named = getattr(node, "names", []) if isinstance(node, ast.ImportFrom) else []
        if any((a.asname or a.name) == name for a in named):
          return self._source(node.module or "", name, depth - 1)
    return module


def _dotted(node: ast.AST) -> str:
  """`a.b.c` as text, "" of what is not names and dots."""
  if isinstance(node, ast.Attribute):
    return f"{_dotted(node.value)}.{node.attr}"
  return node.id if isinstance(node, ast.Name) else ""


def _is_public(node: ast.AST) -> bool:
  """Whether a statement defines a public class or function."""
  kinds = (ast.ClassDef, ast.FunctionDef)
  return isinstance(node, kinds) and not node.name.startswith("_")
