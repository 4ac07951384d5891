"""Machines and what runs on them: arrays to simulate, mappings, prices."""

from typing import TYPE_CHECKING

from jaxcodesign.faces import face

if TYPE_CHECKING:
  from jaxcodesign.hardware import mapping as mapping
  from jaxcodesign.hardware.machines import cells as cells
  from jaxcodesign.hardware.machines import chips as chips
  from jaxcodesign.hardware.machines import energy as energy
  from jaxcodesign.hardware.machines import number_systems as number_systems
  from jaxcodesign.hardware.machines import presets as presets
  from jaxcodesign.hardware.mapping import memory as memory
  from jaxcodesign.hardware.mapping import stored as stored
  from jaxcodesign.hardware.pricing import cost as cost
  from jaxcodesign.hardware.pricing import iteration as iteration_cost
  from jaxcodesign.hardware.pricing import layers as layer_costs
  from jaxcodesign.hardware.pricing import roofline as roofline
  from jaxcodesign.hardware.pricing import verify as verify
  from jaxcodesign.hardware.simulators import activity as activity
  from jaxcodesign.hardware.simulators import bitserial as bitserial
  from jaxcodesign.hardware.simulators import fmac as fmac
  from jaxcodesign.hardware.simulators import peer_scan as peer_scan
  from jaxcodesign.hardware.simulators import peers as peers
  from jaxcodesign.hardware.simulators import systolic as systolic
  from jaxcodesign.hardware.simulators import tmac as tmac

__getattr__, __dir__, __all__ = face(  # pyright: ignore[reportUnsupportedDunderAll]
  __name__,
  activity="simulators.activity",
  bitserial="simulators.bitserial",
  cells="machines.cells",
  chips="machines.chips",
  cost="pricing.cost",
  energy="machines.energy",
  fmac="simulators.fmac",
  iteration_cost="pricing.iteration",
  layer_costs="pricing.layers",
  mapping="mapping",
  memory="mapping.memory",
  number_systems="machines.number_systems",
  peer_scan="simulators.peer_scan",
  peers="simulators.peers",
  presets="machines.presets",
  roofline="pricing.roofline",
  stored="mapping.stored",
  systolic="simulators.systolic",
  tmac="simulators.tmac",
  verify="pricing.verify",
)
