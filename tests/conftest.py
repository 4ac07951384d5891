"""Eight host devices, jax at its strictest, and two ways to compile.

`make test` runs pytest twice: with JAXCODESIGN_TESTS=exact the tests of EXACT, which
claim bits across programs, compiled as users do; with quick all others, without LLVM's
optimizer and XLA's fusion emitters: compiling takes a sixth of the time, and most of a
test is compiling. With newest all that is asked for is compiled so: `make test-newest`
shows that a newer jax runs and gives the same numbers, not its optimizer. A plain
`pytest` runs everything, compiled as users do.
"""

import gc
import importlib.metadata
import os
import pathlib

# Half of what imports take, and a sixth of what tests do, is the collector otherwise.
gc.set_threshold(200_000, 20, 100)
QUICK = "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
if importlib.metadata.version("jaxlib").startswith("0.10."):
  QUICK += " --xla_cpu_use_fusion_emitters=false"  # unknown, and fatal, to later ones
os.environ["XLA_FLAGS"] = (
  os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)
ROOT = pathlib.Path(__file__).parents[1]
PART = os.environ.get("JAXCODESIGN_TESTS")
if PART in ("quick", "newest"):
  os.environ["XLA_FLAGS"] += f" {QUICK}"
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import hypothesis
import jax
import pytest

# What is claimed to the bit is shown under the optimizer that users have.
EXACT = (
  "tests/numerics/formats/",
  "tests/numerics/sparsity/",
  "tests/programs/test_backward.py",
  "tests/programs/test_fast",
  "tests/programs/test_gradients.py",
  "tests/programs/test_im2col.py",
  "tests/programs/test_materialize.py",
  "tests/programs/test_operands.py",
  "tests/programs/test_quantize.py",
  "tests/programs/test_rewrite.py",
  "tests/programs/test_sharding.py",
  "tests/hardware/simulators/test_fmac",
  "tests/hardware/simulators/test_systolic_compiled.py",
  "tests/models/test_imagenet_resnet.py::test_a_block_begins",
)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
# A first example compiles: hypothesis' deadline would time the compiler.
hypothesis.settings.register_profile("jaxcodesign", deadline=None, max_examples=30)
hypothesis.settings.load_profile("jaxcodesign")


@pytest.fixture(scope="module", autouse=True)
def _room():
  """Forgets compiled programs where a worker has grown: two share a small machine."""
  yield
  pages = pathlib.Path("/proc/self/statm")
  if pages.exists() and int(pages.read_text().split()[1]) * 4096 > 6e9:
    jax.clear_caches()


def pytest_ignore_collect(collection_path):
  """Leaves the files of the other part alone: importing them all takes a while."""
  if collection_path.suffix != ".py":
    return None
  name = collection_path.relative_to(ROOT).as_posix()
  single = any(test.startswith(f"{name}::") for test in EXACT)
  return (not single and _elsewhere(name)) or None


def pytest_collection_modifyitems(items):
  """Leaves out what was asked for by name, too; whole programs, the longest, go first.

  A worker that is done takes over half of what another one has left: at the end that
  should be short tests.
  """
  items[:] = [item for item in items if not _elsewhere(item.nodeid)]
  items.sort(key=lambda item: item.nodeid.count("/"))


def _elsewhere(name: str) -> bool:
  """Whether a test is of the other part."""
  return PART in ("exact", "quick") and name.startswith(EXACT) != (PART == "exact")
