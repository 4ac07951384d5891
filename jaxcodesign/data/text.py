"""Text as tokens: bytes, or the words of a tokenizer."""

import pathlib

import numpy as np

from jaxcodesign.data import gguf_file
from jaxcodesign.data.cache import expanded


def tokens_of(
  path: str | pathlib.Path,
  tokenizer: str | pathlib.Path | None = None,
  *,
  vocabulary: int | None = None,
) -> np.ndarray:
  """Reads text as tokens.

  Args:
    path: A text file, or a folder of .txt files: in the order of their names, an empty
      line between two.
    tokenizer: GGUF file whose vocabulary to use; None makes each byte a token.
    vocabulary: What tokens must be less than, if given.

  Returns:
    [N] uint8, or int32 of a tokenizer.

  Raises:
    FileNotFoundError: If there is no text or no tokenizer.
    ImportError: If a tokenizer is asked for without its packages.
    ValueError: If a file is empty or not UTF-8 where a tokenizer needs it, or the
      vocabulary too small.
  """
  path = expanded(path)
  files = sorted(path.glob("*.txt")) if path.is_dir() else [path]
  if not files or not files[0].is_file():
    raise FileNotFoundError(f"no text in {path}: name a text file or a folder of .txt")
  joined = b"\n\n".join(file.read_bytes() for file in files)
  if tokenizer is None:
    found = np.frombuffer(joined, np.uint8)
  else:
    found = _encoded(joined, tokenizer, path)
  if not len(found):
    raise ValueError(f"{path} is empty")
  if vocabulary is not None and found.max() >= vocabulary:
    raise ValueError(
      f"{path} holds token {found.max()}, too large for vocabulary={vocabulary}: give "
      "the model 256 words for bytes, or as many as the tokenizer has"
    )
  return found


def _encoded(
  text: bytes, tokenizer: str | pathlib.Path, path: pathlib.Path
) -> np.ndarray:
  with gguf_file.reading(tokenizer) as reader:
    encoder = gguf_file.tokenizer(gguf_file.Fields(reader))
  try:
    return np.array(encoder.encode(text.decode()).ids, np.int32)
  except UnicodeDecodeError as error:
    raise ValueError(
      f"{path} is not UTF-8 ({error}): convert it, or read it as bytes, without a "
      "tokenizer"
    ) from error
