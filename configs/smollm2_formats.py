"""SmolLM2-135M after training, in a dozen formats: perplexity on held-back speeches.

  python -m launch.evaluate configs/smollm2_formats.py

Expected on 2 CPU cores: about a quarter of an hour, a second run seconds. The reference
is the file's model (Q4_1, embedding Q8_0) dequantized to float32. The seven matrices of
every block and their activations are rounded; attention scores, the embedding and the
head stay in float32. Needs SmolLM2-135M-Instruct.Q4_1.gguf in $JAXCODESIGN_DATA/smollm2
and the speeches in $JAXCODESIGN_DATA/sotu (default ~/.cache/jaxcodesign), or named by
--network.model and --network.directory, and `pip install 'jaxcodesign[llm]'`.
"""

from jaxcodesign.experiments.codesign import Variant
from jaxcodesign.experiments.language import Method, Prepared, RandomLlama, Speeches
from jaxcodesign.experiments.sweep import SweepConfig
from jaxcodesign.numerics import formats
from jaxcodesign.numerics.formats import Fixed, Format, Terms
from jaxcodesign.programs.precision import Rule

TOKEN = "channel"  # the rows of an activation are tokens, those of a weight outputs
INT4 = Fixed(4, 32)
BUDGETS = ((24, 4), (20, 3), (16, 3), (12, 3), (16, 2))


def config() -> SweepConfig:
  """8 bit, 4 bit three ways, microscaling, term budgets."""
  return SweepConfig(
    network=Speeches(),
    variants=(
      *(uniform(bits) for bits in (8, 7, 6, 5)),
      nearest("int4/32 weights, int8", INT4),
      prepared("int4/32 GPTQ, int8", INT4, "gptq"),
      prepared("int4/32 AWQ, int8", INT4, "awq"),
      everywhere("MXFP8", formats.MXFP8_E4M3),
      everywhere("MXFP6", formats.MXFP6_E2M3),
      everywhere("MXFP4", formats.MXFP4),
      prepared("MXFP4 GPTQ, int8", formats.MXFP4, "gptq"),
      everywhere("MXINT8", formats.MXINT8),
      *(terms(k, s) for k, s in BUDGETS),
    ),
  )


def smoke() -> SweepConfig:
  """The same path in seconds: two small random blocks."""
  return SweepConfig(
    network=RandomLlama(),
    variants=(
      uniform(8),
      prepared("int4 GPTQ", INT4, "gptq"),
      prepared("int4 AWQ", INT4, "awq"),
      terms(12, 3),
    ),
  )


def uniform(bits: int) -> Variant:
  """Integers, a scale for each output and each token."""
  fmt = Fixed(bits, TOKEN)
  return Variant(f"int{bits}", (Rule("blocks/*", fmt, fmt),))


def nearest(name: str, weight: Format) -> Variant:
  """Weights rounded to nearest, activations in 8 bit."""
  return Variant(name, (Rule("blocks/*", weight, Fixed(8, TOKEN)),))


def prepared(name: str, weight: Format, method: Method) -> Prepared:
  """Weights rounded for the activations of other text, activations in 8 bit."""
  return Prepared(
    name,
    (Rule("blocks/*", None, Fixed(8, TOKEN)),),
    method=method,
    weight=weight,
  )


def everywhere(name: str, fmt: Format) -> Variant:
  """One format for weights and activations."""
  return Variant(name, (Rule("blocks/*", fmt, fmt),))


def terms(budget: int, s: int) -> Variant:
  """Term quantization: `budget` terms for 8 weights, `s` for an activation."""
  data = Terms(s, group=1, share=TOKEN)
  return Variant(
    f"TQ {budget}/8 s{s}", (Rule("blocks/*", Terms(budget, share=TOKEN), data),)
  )
