"""Speed-ups of the networks of scripts/reproduce/nest by removing their dead units."""

import json
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from scripts.benchmarks import compaction
from scripts.reproduce import networks
from sparsejax import growth
from sparsejax.training import data

# Names of the metrics in scripts/benchmarks/compaction.py, and their names here.
METRICS = {
  "max_abs_difference": "max_abs_difference",
  "speedup_scan": "speedup_batch1",
  "speedup_batch128": "speedup_batch128",
  "speedup_call": "speedup_call",
}


def in_full_widths(
  network: networks.Network, widths: tuple[int, ...]
) -> tuple[Callable, Any, Any]:
  """Returns `(apply, params, masks)` of the same function in the paper's widths."""
  narrow, shape = network.module, network.image_shape
  wide: Any = narrow.clone(features=widths)
  chains = growth.layers(narrow, shape), growth.layers(wide, shape)
  variables = jax.eval_shape(wide.init, jax.random.key(0), jnp.zeros((1, *shape)))

  def widen(tree):
    zeros = lambda old, new: jnp.zeros(new.shape, old.dtype)
    dead = jax.tree.map(
      lambda old, new: None if old is None else zeros(old, new),
      tree,
      variables["params"],
      is_leaf=lambda x: x is None,
    )
    return growth.carry_over(tree, dead, *chains)

  apply = lambda params, x: wide.apply({"params": params}, x)
  return apply, widen(network.params), widen(network.masks)


def rows(
  case: str, folder: pathlib.Path, milestone: int, widths: tuple[int, ...]
) -> list[dict]:
  """Returns rows of one network on the test images, against the dense widths."""
  network = networks.load(folder, milestone)
  config = json.loads((folder / "config.json").read_text())
  test = data.load(config["dataset"], config["data_dir"]).test
  images = jnp.asarray(test.images, jnp.float32) / 255  # as inputs "unit" has them
  dense = in_full_widths(network, widths)
  found = compaction.measure(case, *dense, images, rounds=20)
  return [r | {"metric": METRICS[m]} for r in found if (m := r["metric"]) in METRICS]
