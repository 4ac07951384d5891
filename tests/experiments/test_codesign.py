"""The stages of the main job agree with each other and with finite differences."""

import dataclasses
import math
import pathlib

import jax
import numpy as np
import pytest

from jaxcodesign import models, tree
from jaxcodesign.data import image_sets
from jaxcodesign.experiments import codesign, networks
from jaxcodesign.experiments.codesign import Variant
from jaxcodesign.hardware.machines import presets
from jaxcodesign.hardware.pricing import cost
from jaxcodesign.numerics.formats import Fixed, Terms
from jaxcodesign.programs.precision import Rule
from jaxcodesign.runs import command_line, origin
from jaxcodesign.training import scores

PATH = pathlib.Path(__file__).parents[2] / "configs" / "fashion_codesign.py"


@pytest.fixture(scope="module")
def config():
  return command_line.load(PATH).smoke()


@pytest.fixture(scope="module")
def images(config):
  return config.data.load()


def as_trained(params):
  return {None: networks.Trained(params, (), 0.0, False, 0.0)}


def test_sensitivities_are_those_of_finite_differences(config, images):
  work = codesign.workload(config, images)
  variant, machine = config.variants[1], config.accelerators[2]
  found = codesign.sensitivities(config, work, variant, machine, {})
  assert set(found) == set(tree.names(machine)) - {"temperature"}
  hot = dataclasses.replace(machine, temperature=config.temperature)
  leaves, structure = jax.tree.flatten(hot)

  def log_edp(index, factor):
    moved = [x * factor if i == index else x for i, x in enumerate(leaves)]
    found = cost.exact(
      work,
      jax.tree.unflatten(structure, moved),
      policy=variant.policy,
      repeats=float(config.stream),
    )
    return math.log(found.edp_js)

  up, down = 1 + 1e-5, 1 - 1e-5
  for i, name in enumerate(tree.names(hot)):
    if name in found:
      slope = (log_edp(i, up) - log_edp(i, down)) / math.log(up / down)
      assert found[name] == pytest.approx(slope, rel=1e-4, abs=1e-7), name


def test_budgets_share_one_compilation(config, images):
  params = codesign.initial(config, images)
  variants = tuple(
    Variant(f"k{k}", (Rule("dense*", Terms(k), Terms(2, group=1)),)) for k in (4, 8, 16)
  )
  config = dataclasses.replace(config, variants=variants)
  traces = []

  @dataclasses.dataclass(frozen=True)
  class Counted(models.Cnn):
    def apply(self, params, images):
      traces.append(images.shape)
      return super().apply(params, images)

  config = dataclasses.replace(config, model=Counted(**vars(config.model)))
  running = codesign.measure(config, as_trained(params), images)
  accuracies = [next(running)[1]]
  first = len(traces)
  accuracies += [accuracy for _, accuracy in running]
  assert first > 0 and len(traces) == first
  assert len(accuracies) == 3 and all(0 <= a <= 1 for a in accuracies)


def test_float_policies_leave_the_accuracy(config, images):
  params = codesign.initial(config, images)
  fine = Variant("int16", (Rule("*", Fixed(16, "channel"), Fixed(16)),))
  config = dataclasses.replace(config, variants=(fine,))
  ((_, accuracy),) = codesign.measure(config, as_trained(params), images)
  exact = scores.evaluate_accuracy(
    config.model.apply, params, images.test_images, images.test_labels
  )
  assert accuracy == pytest.approx(exact, abs=0.002)


def test_config_refuses_what_a_report_could_not_tell_apart(config):
  with pytest.raises(ValueError, match="unique names"):
    dataclasses.replace(config, variants=config.variants * 2)
  with pytest.raises(ValueError, match="accelerators need unique"):
    dataclasses.replace(config, accelerators=())
  with pytest.raises(ValueError, match="temperature=0"):
    dataclasses.replace(config, temperature=0.0)


def test_plain_config_is_json_with_classes():
  found = origin.plain(
    (Variant("a", (Rule("*", Terms(np.int32(3))),)), presets.int8_45nm().dram)
  )
  assert found[0]["is"] == "Variant"
  assert found[0]["policy"][0]["weight"] == {
    "is": "Terms",
    "budget": 3,
    "group": 8,
    "bits": 7,
    "encoding": "naf",
    "share": "tensor",
    "axis": -1,
  }
  assert found[1]["bandwidth_bytes_s"] == 12.8e9


def test_sources_of_images_are_interchangeable():
  kinds = codesign.CodesignConfig.__dataclass_fields__["data"].type
  assert isinstance(image_sets.FashionMnistMini(), kinds)
