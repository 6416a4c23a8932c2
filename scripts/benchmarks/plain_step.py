"""Times the plain step of SGD with momentum, and compares it with memory bandwidth."""

import functools

import numpy as np

from scripts.benchmarks import methods, timing, trees
from sparsejax.experiments import results


def cases(quick: bool) -> timing.Cases:
  """Returns one case per tree."""
  names = list(trees.TREES)[: 1 if quick else None]
  return {f"plain_step/{tree}": functools.partial(rows, tree, quick) for tree in names}


def rows(tree: str, quick: bool) -> list[dict]:
  """Returns the time of a step, and its ratio to that of the memory traffic."""
  plain = methods.start(tree, quick)[-1]
  rounds = 3 if quick else 21
  own = float(np.median(timing.interleaved({"plain": plain}, rounds)["plain"]))
  # A step reads parameters, momentum and gradients, and writes the first two.
  limit = 5 * 4 * trees.size(trees.shapes(tree, quick)) / timing.bandwidth()
  note = f"20 bytes a parameter, at {timing.bandwidth() / 1e9:,.0f} GB/s"
  case = f"plain_step/{tree}"
  return [
    results.row(case, "seconds", own, note=f"median of {rounds} rounds"),
    results.row(case, "times_bandwidth_limit", own / limit, note=note),
  ]
