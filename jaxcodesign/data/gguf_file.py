"""GGUF files: fields, and the tokenizer that one holds.

Needs the packages of `jaxcodesign[llm]`: gguf reads the file, tokenizers the text.
"""

from collections.abc import Iterator
import contextlib
import pathlib
from typing import Any

from jaxcodesign.data.cache import expanded


@contextlib.contextmanager
def reading(path: str | pathlib.Path) -> Iterator[Any]:
  """A `gguf.GGUFReader` of `path`; what goes wrong inside names the file.

  Raises:
    FileNotFoundError: Naming the file.
    ImportError: If the packages are missing.
    ValueError: If the file is no GGUF file of a llama with a byte-level BPE.
  """
  path = expanded(path)
  if not path.is_file():
    raise FileNotFoundError(
      f"no model {path}: put the GGUF file there, name another with --network.model, "
      "or set $JAXCODESIGN_DATA to the folder of all data"
    )
  try:
    import gguf
  except ImportError as error:
    raise ImportError(
      "reading GGUF files needs more packages: pip install 'jaxcodesign[llm]'"
    ) from error
  try:
    yield gguf.GGUFReader(path)
  except (ImportError, OSError):
    raise
  # The reader takes sizes, kinds and offsets as the file has them: a damaged one makes
  # numpy and Python raise whatever they have.
  except Exception as error:
    raise ValueError(
      f"{path} is no GGUF file of a llama that can be read "
      f"({type(error).__name__}: {error}); fetch it again"
    ) from error


def field(reader: Any, name: str) -> Any:
  """The content of a field.

  Raises:
    KeyError: If there is none.
  """
  found = reader.get_field(name)
  if found is None:
    raise KeyError(f"it has no {name}")
  return found.contents()


def tokenizer(reader: Any) -> Any:
  """The `tokenizers.Tokenizer` of a file, a byte-level BPE."""
  from tokenizers import Tokenizer, decoders, models, pre_tokenizers

  if field(reader, "tokenizer.ggml.model") != "gpt2":
    raise ValueError("its tokenizer is no byte-level BPE")
  tokens = field(reader, "tokenizer.ggml.tokens")
  merges = [tuple(m.split(" ")) for m in field(reader, "tokenizer.ggml.merges")]
  found = Tokenizer(models.BPE({t: i for i, t in enumerate(tokens)}, merges))
  # The "smollm" rule: digits stand alone, the rest is cut as GPT-2 cuts it.
  found.pre_tokenizer = pre_tokenizers.Sequence(
    [pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
  )
  found.decoder = decoders.ByteLevel()
  return found
