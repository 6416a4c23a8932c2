"""The step of SGD with momentum that every method's stands beside, and its limit."""

import functools

import methods
import numpy as np
import timing
import trees

from sparsejax.experiments import results


def cases(quick: bool) -> timing.Cases:
  """One a tree."""
  names = list(trees.TREES)[: 1 if quick else None]
  return {f"plain_step/{tree}": functools.partial(rows, tree, quick) for tree in names}


def rows(tree: str, quick: bool) -> list[dict]:
  """Its time, and how many times what memory alone would take."""
  plain = methods.start(tree, quick)[-1]
  rounds = 3 if quick else 21
  own = float(np.median(timing.interleaved({"plain": plain}, rounds)["plain"]))
  # Parameters, momentum and gradients are read, the first two are written.
  limit = 5 * 4 * trees.size(trees.shapes(tree, quick)) / timing.bandwidth()
  note = f"20 bytes a parameter, at {timing.bandwidth() / 1e9:,.0f} GB/s"
  case = f"plain_step/{tree}"
  return [
    results.row(case, "seconds", own, note=f"median of {rounds} rounds"),
    results.row(case, "times_bandwidth_limit", own / limit, note=note),
  ]
