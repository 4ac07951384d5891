"""A plausible result of the main job, for tests of reports and figures."""

import numpy as np

LAYERS = [  # name, kind, m, k, n
  ("Conv_0/kernel", "conv", 784, 9, 32),
  ("Conv_1/kernel", "conv", 196, 288, 64),
  ("Conv_2/kernel", "conv", 49, 576, 64),
  ("Dense_0/kernel", "dense", 1, 3136, 64),
  ("Dense_1/kernel", "dense", 1, 64, 10),
]
BUDGETS = [(8, 2), (10, 2), (12, 3), (16, 3), (20, 4), (24, 4)]
LEAVES = {
  "rows": (32.0, -0.61),
  "cols": (32.0, -0.48),
  "clock_hz": (1e9, -0.93),
  "mac.energy_j": (2.3e-13, 0.42),
  "mac.leakage_w": (3.1e-4, 0.06),
  "memories.sram.bytes": (65536.0, -0.21),
  "memories.sram.energy_j_byte": (1.25e-12, 0.27),
  "memories.sram.bandwidth_bytes_s": (6.4e10, -0.17),
  "memories.dram.energy_j_byte": (2e-11, 0.25),
  "memories.dram.bandwidth_bytes_s": (1.28e10, -0.78),
  "vector.lanes": (16.0, -0.034),
  "vector.energy_j": (4e-13, 0.013),
  **{f"spare.leaf_{i}": (1.0, 0.0) for i in range(12)},
  "temperature": (0.0, 0.0),
}


def some_variants():
  """Names, formats, bits and accuracies as a report has them."""
  variants = [
    ("float32", "float32", "float32", 32, None, None, 0.8835),
    *(
      (f"int{b}", f"Fixed {b}", f"Fixed {b}", b, b - 1, b - 1, a)
      for b, a in ((8, 0.8825), (6, 0.874), (4, 0.612))
    ),
    *(
      (f"TQ k={k} s={s}", f"Terms {k}/8", f"top {s}", 8, k / 8, s, a)
      for (k, s), a in zip(BUDGETS, (0.8235, 0.858, 0.8785, 0.881, 0.8825, 0.883))
    ),
  ]
  keys = ["name", "weight", "activation", "weight_bits", "weight_terms"]
  keys += ["activation_terms", "accuracy"]
  return [dict(zip(keys, v)) for v in variants]


def some_storage(layers):
  """The section on sparsity: three ways to hold the weights."""
  return {
    "machine": "int8, 16 x 16 cells, weights stationary",
    "rows": [
      stored("int8", layers, 1.0, 1, 0.8825),
      stored("pruned int8", layers, 0.19, 1, 0.88),
      stored("combined int8", layers, 0.19, 5, 0.878),
    ],
    "packing": [
      {
        **{"layer": layers[1][0], "array": 16},
        **{"kept": ["0110010", "1000100"], "channel": ["0a.", "12z"]},
      }
    ],
  }


def sample(seed=0, layers=LAYERS):
  """A plausible result of the main job."""
  rng = np.random.default_rng(seed)
  macs = [m * k * n for _, _, m, k, n in layers]
  variants = some_variants()
  result = {
    "schema": "jaxcodesign.codesign/2",
    "name": "fashion_codesign",
    "command": "python -m launch.codesign configs/fashion_codesign.py",
    "created": "2025-06-01T12:00:00+00:00",
    "versions": {"jaxcodesign": "0.1.0", "jax": "0.10.2", "numpy": "2.4.6"},
    "config": {"model": {"width": 32}, "seed": seed, "budgets": [8, 10, 12]},
    "model": {"name": "SmallCNN", "parameters": 257_162, "macs": sum(macs)},
    "training": {
      "dataset": "Fashion-MNIST (embedded subset)",
      "train_images": 10_000,
      "test_images": 2_000,
      "restored": False,
      "seconds": 41.7,
      "test_accuracy": 0.8835,
      "history": [epoch(i) for i in range(1, 13)],
    },
    "layers": [
      {
        "name": name,
        "kind": kind,
        **{"batch": 1, "m": m, "k": k, "n": n, "count": 1},
        **{"macs": m * k * n, "parameters": k * n + n},
      }
      for name, kind, m, k, n in layers
    ],
    "vector_ops": [{"op": "max", "elements": 25_088, "bytes": 200_704, "count": 1}],
    "variants": variants,
    "accelerators": [
      {
        **{"name": name, "rows": size, "cols": size, "area_mm2": 2.0},
        **{"dataflow": "ws", "leaves": {k: v for k, (v, _) in LEAVES.items()}},
      }
      for name, size in (("int8", 32), ("bit-serial", 76), ("tMAC", 88))
    ],
    "costs": [
      cost(v, name, layers, rng)
      for v in variants[1:]
      for name in ("int8", "bit-serial", "tMAC")
    ],
  }
  result["storage"] = some_storage(layers)
  result["sensitivities"] = [
    {
      **{"variant": c["variant"], "accelerator": c["accelerator"]},
      **{"leaf": leaf, "value": float(v * rng.uniform(0.6, 1.4))},
    }
    for c in result["costs"]
    for leaf, (_, v) in LEAVES.items()
  ]
  return result


def stored(title, layers, density, factor, accuracy):
  """A row of the section on sparsity: `factor` fewer columns, tiles and cycles."""
  rows = [
    {
      **{"name": name, "columns": k / factor, "tiles": -(-k // 16 // factor)},
      **{"cycles": m * k * n / factor / 256, "utilization": 0.9 * density * factor},
    }
    for name, _, m, k, n in layers
  ]
  cycles = sum(row["cycles"] for row in rows)
  return {
    **{"title": title, "density": density, "accuracy": accuracy, "layers": rows},
    **{"tiles": sum(r["tiles"] for r in rows), "cycles": cycles, "area_mm2": 0.4},
    **{"utilization": 0.9 * density * factor, "time_s": cycles / 5e8},
    **{"energy_j": 3e-6, "edp_js": 3e-6 * cycles / 5e8},
  }


def epoch(i):
  return {
    **{"epoch": i, "loss": 0.18 + 0.75 * 0.7**i, "seconds": 3.4},
    **{"train_accuracy": 0.945 - 0.25 * 0.7**i, "test_accuracy": 0.8835 - 0.2 * 0.6**i},
  }


def cost(variant, accelerator, layers, rng):
  """Cycles per product and energy per cycle that favour each array's own variants."""
  terms = variant["weight_terms"] * variant["activation_terms"]
  bits = variant["weight_bits"]
  macs, steps, joules = {
    "int8": (1024, 1.0, 2.3e-13),
    "bit-serial": (5776, bits, 4.5e-14 * bits),
    "tMAC": (7744, max(terms, 1.0), 2.6e-14 * max(terms, 1.0)),
  }[accelerator]
  parts, rows = [], []
  for name, _, m, k, n in layers:
    used = float(rng.uniform(0.85, 0.95)) * (min(1, k / macs**0.5) if m > 1 else 0.08)
    cycles = m * k * n * steps / macs / used
    dram, sram = k * n * bits / 8, 3.0 * (m * k + k * n)
    energy = m * k * n * joules + 1.25e-12 * sram + 2e-11 * dram
    parts.append((m * k * n * joules, 1.25e-12 * sram, 2e-11 * dram))
    rows.append(
      {
        **{"name": name, "time_s": cycles / 1e9, "energy_j": energy, "cycles": cycles},
        **{"utilization": used, "sram_bytes": sram, "dram_bytes": dram},
      }
    )
  time = sum(r["time_s"] for r in rows)
  split = dict(zip(("mac", "sram", "dram"), np.sum(parts, 0).tolist()))
  split |= {"leakage": 3e-3 * time, "vector": 1.1e-7}
  energy = sum(split.values())
  return {
    **{"variant": variant["name"], "accelerator": accelerator},
    **{"accuracy": variant["accuracy"], "time_s": time, "energy_j": energy},
    **{"edp_js": energy * time, "cycles": time * 1e9, "utilization": 0.61},
    "traffic_bytes": sum(r["sram_bytes"] + r["dram_bytes"] for r in rows),
    **{"energy_parts_j": split, "layers": rows},
  }
