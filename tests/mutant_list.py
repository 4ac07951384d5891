"""Slips that a person could make, each in one function; `mutants` runs them."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Mutant:
  """One change of one function; no path and no line, so files may move.

  Attributes:
    function: Qualified name, "Class.method"; functions inside it belong to it.
    old: A text in its code; the docstring does not count.
    new: What replaces it.
    why: The slip in words; with the function its name, once in the list.
    nth: Which occurrence of the text, from 1.
    module: A part of the file's path, where several functions have name and text.
  """

  function: str
  old: str
  new: str
  why: str
  nth: int = 1
  module: str = ""

  @property
  def name(self) -> str:
    """How results call it."""
    return f"{self.function}: {self.why}"


M = Mutant

NUMERICS = (
  M("to_integer", "fraction >= 0.5", "fraction > 0.5", "ties go towards zero"),
  M("_straight_through_jvp", "tangents[0]", "tangents[1]", "gradient of the rounding"),
  M("Fixed.limits", "-half), half - 1", "-half), half", "one code too many above"),
  M("span", "jnp.min(x, axis=axis, initial=0)", "jnp.min(x, axis=axis)",
    "an affine range without zero"),
  M("BlockFloat.scale", "(2**self.exponent - 1)", "2**self.exponent",
    "the window is an exponent too deep"),
  M("BlockFloat.elements", "-most, most", "-most - 1, most", "one more negative step"),
  M("BlockFloat.load_scale", "top - half + 1", "top - half", "an exponent too low"),
  M("BlockFloat.refinement", "jnp.abs(fine - coarse * 2.0 ** (high - low))",
    "jnp.maximum(fine - coarse * 2.0 ** (high - low), 0)", "falling ones not counted"),
  M("Microscaling.scale", "1 << (22 - mantissa)", "1 << (23 - mantissa)",
    "the even rule rounds by a whole ulp"),
  M("ScaledBlocks.scale", "(wanted, least, most)", "(wanted, 0, most)",
    "no least scale"),
  M("hashed", "0x7FEB352D) ^ second", "0x7FEB352D)", "one word of the key alone"),
  M("Lfsr.up", "uint32(255) + start)", "uint32(255))", "the key is not used"),
  M("Explicit.up", "2 * draw + 1", "2 * draw", "the fast mode without its half"),
  M("_kept_bits", "rank <= left", "rank < left", "a term of the last plane is lost"),
  M("_plane_counts", "4 if group < 16", "4 if group <= 16",
    "a full group of 16 overflows its field"),
  M("Terms.terms_per_value", "budget / self.group", "budget", "the group has no share"),
  M("NOfM._kept", "other >= lane", "other > lane", "ties stay together"),
  M("_part", "jnp.round(part", "jnp.floor(part", "a density rounds down"),
  M("group_columns", "math.floor(gamma", "math.ceil(gamma", "a conflict too many"),
  M("_scores", "limit - conflicts", "limit + conflicts", "ties by most conflicts"),
  M("_renamed", "np.argsort(order)", "order", "the permutation is not inverted"),
  M("Iterative.densities", "np.arange(self.rounds)", "np.arange(1, self.rounds + 1)",
    "the first round decays already"),
  M("Schedule.check", "self.last >= steps", "self.last > steps", "one past the run"),
  M("_Step._after", "later != self.reverse", "later", "reverse is ignored"),
  M("percentile", "jnp.abs(x), percent", "x, percent", "of signed values"),
  M("smooth", "w ** (1 - strength)", "w**strength", "strength on both sides"),
  M("_gptq", "jnp.argsort(places)]", "places]", "columns stay permuted"),
)  # fmt: skip

PROGRAMS = (
  M("_Counter.vector", "+ site.times", "+ 1", "trip counts of vector work dropped"),
  M("Site.inside", "self.times * step.inner.times", "step.inner.times",
    "an outer loop is forgotten"),
  M("_Counter.branch", "max(tried", "min(tried", "the smallest branch counts"),
  M("gemm_of", "min(uses, right.size)", "uses", "a weight counts in every iteration"),
  M("choose", " and match(gemm.kind, rule.kind)", "", "the kind is ignored"),
  M("operand_formats", 'gemm.kind == "dot"', 'gemm.kind != "dot"',
    "operands of weight gradients exchanged"),
  M("gradient_names", "shape[len(shape) - len(known[t]) :] == known[t]",
    "shape == known[t]", "a batch of gradients has no name"),
  M("_Walk.body", "(*self.loops, index)", "(index,)", "the inner loop's number alone"),
  M("draws", "jax.random.fold_in(key, index)", "key", "iterations share their noise"),
  M("sides", " and (fmt is None or fmt.pointwise or fmt.static)", "",
    "blocks of the forward product in the backward one"),
  M("_same", "fmt.pointwise or fmt.static", "True",
    "one rounding along two contractions"),
  M("_decide", "passes(bits, activation)", "passes(bits, weight)",
    "passes of another operand"),
  M("passes", "-(-bits // CHUNK_BITS)", "bits // CHUNK_BITS", "half a chunk is free"),
  M("Plan.share", "(telemetry[:, 3:] > 0).astype(jnp.float32)",
    "jnp.ones_like(telemetry[:, 3:])", "products that never run are in the share"),
  M("transposed_conv", "offset * numbers.rhs_dilation[i]", "offset",
    "taps lie side by side"),
  M("_group", "jnp.moveaxis(x, 4, 1)", "jnp.moveaxis(x, 4, 2)",
    "groups and images exchanged"),
  M("flipped", "rank > origins[1].rank", "rank >= origins[1].rank",
    "products of activations are swapped"),
  M("_inner", "bodies, devices)", "bodies)", "a shard_map runs once"),
  M("_scan", '"reverse": params["reverse"]', '"reverse": False', "always forwards"),
)  # fmt: skip

HARDWARE = (
  M("_cells", "cols * cycles - busy", "cols * cycles", "working cells are idle too"),
  M("_vector_and_io", "access * wide", "access", "an access moves a byte"),
  M("traffic", "(rounds - 1)", "rounds", "the first sums are read back"),
  M("_off_chip", "kept * once / repeats", "kept * once", "repeats are ignored"),
  M("_off_chip", "a.ifmap.capacity_bytes / 2", "a.ifmap.capacity_bytes",
    "no half is being filled"),
  M("_trace", "jnp.where(continued, broad, 0)", "broad", "sums read at the start"),
  M("_mac", "cyd | first", "cyd", "negation without its one"),
  M("requantize", "(t >= end)", "(t > end)", "a bit that overflows is not seen"),
  M("_simulate", "jnp.sum(jnp.abs(both))", "jnp.sum(both)", "negative terms are idle"),
  M("chunk", "jnp.abs(x) >> at", "x >> at", "bits of a two's complement"),
  M("serve", "jnp.where(stay[j], 0.0, state.halves[j])", "state.halves[j]",
    "an operand that stays waits for a half"),
  M("visit", "(at[1] > 0)", "(at[1] >= 0)", "sums arrive before there are any"),
  M("_passes", "loops.depth[i] > loops.depth[outer]",
    "loops.depth[i] < loops.depth[outer]", "loops inside out"),
  M("_simulated", "bounds.energy_j + (time - bounds.time_s) * watts",
    "bounds.energy_j", "stalls cost no energy"),
  M("executed", "density * columns / s.k", "density", "unpacked zeros multiply"),
  M("n_of_m", "(m - 1).bit_length()", "m.bit_length()", "an index bit too many"),
  M("mx", "(inputs - 1) * cell.lanes", "inputs * cell.lanes", "the first is new too"),
  M("_curve", '["size_kb"] * 1024', '["size_kb"] * 1000', "a KiB of 1000 bytes"),
  M("training_cost", "hours / chips / 24", "hours / 24", "chips run one by one"),
  M("clear_lowest", "31) < offset", "31) <= offset", "a shifter reaches a bit more"),
  M("weight_width", "top + 1", "top", "weights have no sign"),
  M("_as_run", 'g.kind != "dot"', 'g.kind == "dot"', "sides of gradients swapped"),
  M("_Line.convolution", "-(-(high - tall + stride) // stride)",
    "((high - tall) // stride + 1)", "rows round down"),
)  # fmt: skip

TRAINING = (
  M("Step.step", " & state.good", "", "steps after a bad one are good"),
  M("Step._gradients", "jax.random.fold_in(state.key, state.step)", "state.key",
    "steps share their noise"),
  M("_accumulated", "reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1)",
    "reshape(parts, -1, *x.shape[1:])", "parts are runs of the batch"),
  M("_accumulated", "lambda g: g / parts", "lambda g: g", "a sum of gradients"),
  M("FastMethod.keep", 'side="right"', 'side="left"', "a bucket begins a step late"),
  M("_Loop._evaluate", "score >= target", "score > target", "a met target goes on"),
  M("Session.evaluate", "found.loss * found.counted", "found.loss",
    "batches weigh the same"),
  M("Checkpoints._retain", "[-self._keep_last :]", "[: self._keep_last]",
    "the oldest are kept"),
  M("Checkpoints._ranked", "pair[1], pair[0])", "pair[1], -pair[0])",
    "of equal scores the newer one"),
  M("Checkpoints._scores", " - self._damaged", "", "a damaged one may be the best"),
  M("verify", '{**record["files"], **found}', 'record["files"]', "new files not seen"),
  M("swap", "if old.exists():", "if not old.exists():", "the old one stays away"),
  M("batches", "+ rows.start", "", "processes share their draws"),
  M("_draws", "position * blocks", "position", "examples share their draws"),
  M("evaluation", "(indices < len(source))", "(indices <= len(source))",
    "a repetition counts"),
  M("_Order.__init__", "(seed, epoch)", "(seed, 0)", "every epoch in one order"),
  M("ImageSource.batch", "draws[:, 2] < 0.5", "draws[:, 0] < 0.5",
    "mirrored by where it is cut"),
  M("TokenSource.__len__", "(len(self.tokens) - 1)", "len(self.tokens)",
    "the last window has no end"),
  M("_spec", "max(fit, key=lambda i: shape[i])", "fit[0]", "the first axis is split"),
  M("Distributed.resolve", "found.process >= found.processes",
    "found.process > found.processes", "a process too many"),
  M("Interruption._note", "number == signal.SIGINT", "number == signal.SIGTERM",
    "a second interrupt is none"),
  M("_Pruned.update", "masking.apply(masks, grads), masking.apply(masks, params)",
    "grads, params", "masked weights move the optimizer"),
  M("_take", "step == at", "step >= at", "the ticket is taken again"),
  M("Combine.combine", "left * (1 - share)", "1 - share", "a share of the whole"),
  M("cross_entropy", "(log_p.mean() - true)", "log_p.mean()",
    "smoothing adds to the label"),
  M("feature_matching", "jax.lax.stop_gradient(_unit(y))", "_unit(y)",
    "the teacher learns"),
  M("Distill.loss", "(1 - self.alpha) * hard", "hard", "labels count in full"),
  M("Metrics.__init__", 'row["step"] <= step', 'row["step"] < step',
    "the last line is lost"),
  M("_position", ' and (i == 0 or argv[i - 1] != "--out")', "",
    "the folder is taken for the config"),
  M("pareto", "points[i][0] > last[0]", "points[i][0] >= last[0]",
    "a dearer equal is on the front"),
  M("Price.spent", "np.diff(ends)", "ends[1:]", "stretches begin at zero"),
  M("scaled", "min((r[key]", "max((r[key]", "the prefix of the largest"),
)  # fmt: skip

MUTANTS = (*NUMERICS, *PROGRAMS, *HARDWARE, *TRAINING)
