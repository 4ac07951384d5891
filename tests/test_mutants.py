"""The list of mutants fits the tree: each is one change of exactly one function."""

import ast
import json

import pytest

from tests import mutants, near_tests
from tests.mutant_list import MUTANTS, Mutant

CODE, TESTS = mutants.Code(), near_tests.Tests()


def test_every_mutant_changes_exactly_one_function():
  for mutant in MUTANTS:
    path, text = CODE.mutated(mutant)
    before, after = ast.parse(CODE.texts[path]), ast.parse(text)
    assert ast.dump(before) != ast.dump(after), mutant.name


def test_names_are_apart_and_there_are_enough():
  assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS) >= 64


def test_every_mutant_has_tests_that_import_its_module():
  for mutant in MUTANTS:
    near = TESTS.near(CODE.place(mutant)[0], mutant.function, 6)
    assert near and not any(near_tests.HEAVY.search(name) for name in near), mutant.name


def test_tests_named_after_a_module_come_first():
  path, _ = CODE.place(next(m for m in MUTANTS if m.function == "clear_lowest"))
  assert TESTS.near(path, "clear_lowest", 1)[0].endswith("/test_peers.py")


@pytest.mark.parametrize("function", ["nowhere", "choose"])
def test_a_text_that_is_in_no_function_is_told(function):
  with pytest.raises(ValueError, match=f"{function}: why.*no function"):
    CODE.place(Mutant(function, "no such text", "", "why"))


def test_a_text_in_several_functions_is_told():
  with pytest.raises(ValueError, match="not in one"):
    CODE.place(Mutant("simulate", "return", "raise", "why"))


def test_docstrings_do_not_count():
  with pytest.raises(ValueError, match="no function"):
    CODE.place(Mutant("clear_lowest", "One cycle of Pragmatic", "", "why"))


def test_failing_tests_are_read_from_what_pytest_says():
  said = "FAILED tests/a.py::test_b[x - y] - assert 1\nERROR tests/c.py\n1 failed"
  assert mutants.failed(said) == ["tests/a.py::test_b[x - y]", "tests/c.py"]


@pytest.mark.parametrize(("status", "code"), [("caught", 0), ("survived", 1)])
def test_what_was_caught_before_must_be_caught(tmp_path, monkeypatch, status, code):
  name, *_ = [m.name for m in MUTANTS if m.function == "clear_lowest"]
  earlier = tmp_path / "before.json"
  earlier.write_text(json.dumps({"caught": [name]}))
  monkeypatch.setattr(mutants, "run", lambda *_: {name: mutants.Outcome(status)})
  monkeypatch.setattr(mutants, "Code", lambda: CODE)
  monkeypatch.setattr(mutants, "Tests", lambda: TESTS)
  assert mutants.main(["--only", name, "--against", str(earlier)]) == code
