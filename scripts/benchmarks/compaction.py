"""Times compacted networks against the dense networks with masks applied.

Each network runs in three ways: `scan`, 2,000 images one by one inside one `lax.scan`;
`batch128`, 128 images per call, already reduced to the pixels that the compact network
reads; and `call`, one image per call. Rounds alternate between the networks, and the
best round counts. The table also has the speed-ups that the sparse momentum paper
estimates.
"""

import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import sparsejax as sj
from sparsejax import models
from sparsejax.analysis.compaction import compact
from sparsejax.analysis.costs import estimated_speedups, flops
from sparsejax.experiments import results

Cases = dict[str, Callable[[], list[dict]]]

IMAGES, BATCH = 2000, 128
KINDS = {
  "scan": "one by one in a scan",
  "batch128": "128 per call",
  "call": "one per call",
}
# Model, weights kept of each kernel, units kept of each hidden layer.
DRAWN = (
  ("lenet300", 0.05, 1.0),
  ("lenet300", 0.05, 0.25),
  ("lenet5", 0.05, 1.0),
  ("lenet5", 0.05, 0.25),
)


def prune(params, density: float, units: float):
  """Masks each kernel by magnitude; of hidden layers, whole units first."""
  kernels = [k for k in jax.tree.leaves(params) if k.ndim > 1]
  masks = {}
  for name, layer in params.items():
    kernel = layer["kernel"]
    mask = jnp.ones(kernel.shape, bool)
    if kernel is not kernels[-1] and units < 1:
      norms = jnp.sum(jnp.abs(kernel), tuple(range(kernel.ndim - 1)))
      mask &= sj.top_k_mask(norms, round(units * len(norms)))
    scores = jnp.where(mask, jnp.abs(kernel), -jnp.inf)
    mask = sj.top_k_mask(scores, max(1, round(density * float(jnp.sum(mask)))))
    masks[name] = {"kernel": mask, "bias": None}
  return masks


def calls(apply: Callable, params, images, batch) -> dict[str, Callable]:
  """Returns compiled ways to run a network, each with its arguments bound."""

  @jax.jit
  def scan(params, images):
    step = lambda _, image: (None, jnp.argmax(apply(params, image[None])))
    return jax.lax.scan(step, None, images)[1]

  once = jax.jit(apply)
  return {
    "scan": lambda: scan(params, images),
    "batch128": lambda: once(params, batch),
    "call": lambda: once(params, images[:1]),
  }


def best(pairs: dict[str, dict[str, Callable]], rounds: int, repeats: int) -> dict:
  """Returns the seconds of the best of interleaved rounds of repeated calls."""
  seconds = {}
  for kind in KINDS:
    again = 1 if kind == "scan" else repeats
    for run in pairs.values():
      jax.block_until_ready(run[kind]())
    for _ in range(rounds):
      for name, run in pairs.items():
        start = time.perf_counter()
        for _ in range(again):
          out = run[kind]()
        jax.block_until_ready(out)
        taken = (time.perf_counter() - start) / again
        before = seconds.get((name, kind), np.inf)
        seconds[name, kind] = min(before, taken)
  return seconds


def drawn(name: str, density: float, units: float) -> tuple[Callable, Any, Any, Any]:
  """Draws a network with random weights: `(apply, params, masks, image shape)`."""
  shape = (28, 28, 1)
  model = models.create(name)
  params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, *shape)))["params"]
  apply = lambda params, x: model.apply({"params": params}, x)
  return apply, params, prune(params, density, units), shape


def measure(
  case: str,
  apply: Callable,
  params: Any,
  masks: Any,
  images: jax.Array,
  *,
  rounds: int,
  repeats: int = 20,
) -> list[dict]:
  """Returns rows of one network: estimated and measured speed-ups, and errors."""
  params = sj.apply_masks(params, masks)
  small = compact(apply, params, masks, images[:1])
  got, want = small.apply(small.params, images), apply(params, images)
  rows = [
    results.row(
      case,
      "max_abs_difference",
      float(jnp.max(jnp.abs(got - want))),
      note=f"of {len(images):,} images' outputs, {jnp.max(jnp.abs(want)):.1f} at most",
    )
  ]
  cost = flops(apply, params, masks, images[:1])
  now = flops(small.apply, small.params, None, images[:1])
  rows.append(
    results.row(case, "dense_flops_ratio", cost.dense_flops / now.dense_flops)
  )
  estimate = estimated_speedups(apply, params, masks, images[:BATCH])
  note = f"from multiply-adds, nothing timed; activations of {BATCH} images"
  for metric in ("empty_channels", "optimal_sparse"):
    value = getattr(estimate, metric)
    rows.append(results.row(case, f"estimated_speedup_{metric}", value, note=note))
  cut = small.select(images)
  pairs = {
    "dense": calls(apply, params, images[:IMAGES], images[:BATCH]),
    "compact": calls(small.apply_pixels, small.params, cut[:IMAGES], cut[:BATCH]),
  }
  pairs["compact"]["call"] = calls(small.apply, small.params, images, cut)["call"]
  seconds = best(pairs, rounds, repeats)
  for kind, text in KINDS.items():
    ratio = seconds["dense", kind] / seconds["compact", kind]
    note = f"measured: {text}, best of {rounds} rounds in turn"
    rows.append(results.row(case, f"speedup_{kind}", ratio, note=note))
  return rows


def cases(quick: bool) -> Cases:
  """Returns one case per random network."""
  found: Cases = {}
  for name, density, units in DRAWN[:1] if quick else DRAWN:
    case = f"compaction/{name}/density={density:g}/units={units:g}"
    found[case] = functools.partial(drawn_rows, case, name, density, units, quick)
  return found


def drawn_rows(
  case: str, name: str, density: float, units: float, quick: bool
) -> list[dict]:
  """Returns rows of a network with random weights, on random images."""
  return random_rows(case, *drawn(name, density, units), quick)


def random_rows(case, apply, params, masks, shape, quick: bool) -> list[dict]:
  """Returns rows of a given network, on random images."""
  count = BATCH if quick else IMAGES
  images = np.random.default_rng(0).random((count, *shape), np.float32)
  rounds = 1 if quick else 8
  return measure(case, apply, params, masks, jnp.asarray(images), rounds=rounds)
