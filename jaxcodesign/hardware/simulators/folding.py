"""How a product is cut to fit an array, and how long the array takes to fill and drain.

Of the three sizes of [m, k] x [n, k] two lie along rows and columns, the third is time:

  dataflow   rows  columns  time   folds
  os           m      n       k    ceil(m/R) ceil(n/C)
  ws           k      n       m    ceil(k/R) ceil(n/C)
  is           k      m       n    ceil(k/R) ceil(m/C)

A fold of T steps of time takes T cycles and, by accounting,

  "scalesim"   os R + C - 2    ws, is 2R + C - 2: first operand in to last sum made, as
               SCALE-Sim 3.0.0 counts. It leaves out that os results must drain.
  "rtl"        os 2R + C - 1   ws, is 3R + C - 2: first operand in to last result out of
               SCALE-Sim's own Verilog array, run in Verilator. os drains through its R
               rows and an output register; a ws sum takes two cycles to pass a row.

Edge folds take as long as full ones, and folds never overlap.
"""

from typing import Any

from jaxcodesign.hardware.machines.spec import Accounting, Dataflow


def along(dataflow: Dataflow, m: Any, k: Any, n: Any) -> tuple[Any, Any, Any]:
  """The sizes along rows, along columns, and in time."""
  return {"os": (m, n, k), "ws": (k, n, m), "is": (k, m, n)}[dataflow]


def fill(dataflow: Dataflow, accounting: Accounting, rows: Any, cols: Any) -> Any:
  """Cycles of a fold beyond one for every step of its time."""
  if accounting == "scalesim":
    return (rows if dataflow == "os" else 2 * rows) + cols - 2
  return 2 * rows + cols - 1 if dataflow == "os" else 3 * rows + cols - 2
