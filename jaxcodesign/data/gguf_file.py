"""GGUF files: fields, and the tokenizer that one holds.

Needs the packages of `jaxcodesign[llm]`: gguf reads the file, tokenizers the text.
"""

from collections.abc import Iterator
import contextlib
import pathlib
from typing import Any

from jaxcodesign.data.cache import expanded


class Refused(ValueError):
  """A sound file that says what is not understood; the message names it."""


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
    reader = gguf.GGUFReader(path)
    if reader.endianess != gguf.GGUFEndian.LITTLE:
      raise Refused("its numbers are big-endian; convert it to little-endian")
    yield reader
  except (ImportError, OSError):
    raise
  except Refused as error:
    raise ValueError(f"{path} cannot be read as a llama: {error}") from error
  # The reader takes sizes, kinds and offsets as the file has them: a damaged one makes
  # numpy and Python raise whatever they have.
  except Exception as error:
    raise ValueError(
      f"{path} is no GGUF file of a llama that can be read "
      f"({type(error).__name__}: {error}); fetch it again"
    ) from error


class Fields:
  """The keys of a file; remembers which were read."""

  def __init__(self, reader: Any):
    self.reader = reader
    self.read: set[str] = set()

  def __call__(self, name: str, *default: Any) -> Any:
    """The content of a key, `default` without one.

    Raises:
      Refused: If there is none, and no default.
    """
    found = self.reader.get_field(name)
    self.read.add(name)
    if found is None and not default:
      raise Refused(f"it has no {name}")
    return default[0] if found is None else found.contents()

  def check(self) -> None:
    """Refuses a file with keys that were not read and are no remarks."""
    left = [n for n in self.reader.fields if n not in self.read]
    left = [n for n in left if not n.startswith(_REMARKS)]
    if left:
      told = ", ".join(f"{n} = {self.reader.get_field(n).contents()}" for n in left[:8])
      raise Refused(f"keys that are not understood: {told}")


# What changes neither numbers nor tokens: names, licences, ids of special tokens, which
# are neither added nor looked for in a text.
_REMARKS = (
  "GGUF.", "general.", "quantize.imatrix.", "tokenizer.chat_template",
  *(f"tokenizer.ggml.{name}" for name in (
    "token_type", "scores", "add_bos_token", "add_eos_token", "add_sep_token",
    "bos_token_id", "eos_token_id", "eot_token_id", "eom_token_id", "unknown_token_id",
    "padding_token_id", "seperator_token_id", "cls_token_id", "mask_token_id",
  )),
)  # fmt: skip
_WORDS = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,%s}|"
  r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def tokenizer(fields: Fields) -> Any:
  """The `tokenizers.Tokenizer` of a file, a byte-level BPE.

  Raises:
    Refused: If it is another, or cuts text into words by a rule that is not known.
  """
  from tokenizers import Tokenizer, decoders, models

  if fields("tokenizer.ggml.model") != "gpt2":
    raise Refused("its tokenizer is no byte-level BPE")
  if fields("tokenizer.ggml.add_space_prefix", False):
    raise Refused("tokenizer.ggml.add_space_prefix is true; texts begin as they are")
  tokens = fields("tokenizer.ggml.tokens")
  merges = [tuple(m.split(" ")) for m in fields("tokenizer.ggml.merges")]
  found = Tokenizer(models.BPE({t: i for i, t in enumerate(tokens)}, merges))
  found.pre_tokenizer = _cut(fields("tokenizer.ggml.pre"))
  found.decoder = decoders.ByteLevel()
  return found


def _cut(rule: str) -> Any:
  """How text is cut into words before any merge, as `tokenizer.ggml.pre` names it."""
  from tokenizers import Regex, pre_tokenizers

  def words(digits: str) -> Any:
    pattern = Regex(_WORDS % digits)
    return pre_tokenizers.Split(pattern, behavior="isolated")

  level = pre_tokenizers.ByteLevel
  rules = {
    "gpt-2": lambda: [level(add_prefix_space=False)],
    # Digits stand alone, the rest is cut as GPT-2 cuts it.
    "smollm": lambda: [pre_tokenizers.Digits(True), level(add_prefix_space=False)],
    "llama-bpe": lambda: [words("3"), level(add_prefix_space=False, use_regex=False)],
    "qwen2": lambda: [words("1"), level(add_prefix_space=False, use_regex=False)],
  }
  if rule not in rules:
    raise Refused(f"tokenizer.ggml.pre is {rule!r}; {', '.join(rules)} are known")
  return pre_tokenizers.Sequence(rules[rule]())
