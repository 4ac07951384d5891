"""A sample of `tests.fuzz`: damaged files of every kind are read or refused by name."""

from tests import fuzz, fuzz_files


def test_damaged_files_are_read_or_refused_and_never_a_traceback(tmp_path):
  kinds = fuzz_files.kinds(tmp_path)
  found = {name: fuzz.fuzz(kind, 20, seed=1) for name, kind in kinds.items()}
  assert not {name: f.faults for name, f in found.items() if f.faults}
  assert all(f.read + f.refused == 20 for f in found.values())
  assert sum(f.refused for f in found.values()) > 200


def test_mutations_differ_from_the_file_and_are_the_same_for_a_seed():
  content = b'{"a": [1, {"b": 2}], "c": "text"}'
  some = list(fuzz.mutations(content, 100, seed=3))
  assert some == list(fuzz.mutations(content, 100, seed=3))
  assert len(set(some)) > 60 and content not in some[1::2]
