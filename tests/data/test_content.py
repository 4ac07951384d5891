"""Other examples have another content, wherever they lie and however large they are."""

import numpy as np
from PIL import Image
import pytest

from jaxcodesign.data import content
from jaxcodesign.data.image_folder import ImageFolder
from jaxcodesign.data.image_sets import Images
from jaxcodesign.data.sources import ImageSource, TokenSource


def test_digests_tell_values_shapes_and_dtypes_apart():
  x = np.arange(12, dtype=np.float32)
  others = [x + 1, x.reshape(3, 4), x.astype(np.int32), x[::-1]]
  assert len({content.digest(x), *map(content.digest, others)}) == 5
  assert content.digest(x) == content.digest(x.copy())
  assert content.digest(x, 1) != content.digest(x, 2)


def test_of_a_large_array_pieces_count(monkeypatch):
  monkeypatch.setattr(content, "_WHOLE", 1000)
  x = np.zeros(2**22, np.uint8)
  kept = content.digest(x)
  for at in (0, len(x) // 2, -1):
    x[at] = 1
    assert content.digest(x) != kept
    x[at] = 0
  assert content.digest(x[:-1]) != kept


def test_sources_tell_their_examples_not_how_they_are_shown():
  images, labels = np.zeros((4, 2, 2, 1), np.float32), np.arange(4)
  plain = ImageSource(images, labels, classes=4)
  moved = ImageSource(images, labels, classes=4, augment=True, name="other")
  assert plain.content() == moved.content() and plain.content()["examples"] == 4
  wrong = ImageSource(images, labels[::-1], classes=4)
  assert wrong.content()["digest"] != plain.content()["digest"]
  sets = Images(images, labels, images[:2], labels[:2], "few", 4)
  assert sets.content()["test"]["examples"] == 2
  words = TokenSource(np.arange(9), 2)
  assert words.content() != TokenSource(np.arange(9) + 1, 2).content()


def test_a_folder_is_known_by_names_sizes_and_a_sample(tmp_path):
  for name in ("a/1.png", "b/2.png"):
    (tmp_path / name).parent.mkdir()
    Image.new("RGB", (2, 2)).save(tmp_path / name)
  told = lambda: ImageFolder(tmp_path, image=2, classes=2).content()
  first = told()
  assert first["examples"] == 2 and told() == first
  Image.new("RGB", (2, 2), "red").save(tmp_path / "b" / "2.png")
  assert told() != first
  Image.new("RGB", (2, 2)).save(tmp_path / "b" / "2.png")
  assert told() == first
  (tmp_path / "b" / "2.png").rename(tmp_path / "b" / "3.png")
  assert told() != first


def test_a_check_names_what_differs_unless_it_is_accepted_or_unknown():
  old, new = {"train": {"examples": 2}}, {"train": {"examples": 3}}
  with pytest.raises(ValueError, match=r"run was (.|\n)*train\.examples: 2 -> 3"):
    content.check(old, new, "run", accept=False)
  content.check(old, new, "run", accept=True)
  content.check(None, new, "run", accept=False)


def test_differences_of_fields_that_only_one_has():
  assert content.differences({"a": 1}, {"b": 1}) == ["a: 1 -> None", "b: None -> 1"]
  assert content.differences({"a": [1, 2]}, {"a": [1]}) == ["a: [1, 2] -> [1]"]
