r"""Times compacted networks against the dense ones with their masks multiplied in.

  python scripts/benchmarks/compaction.py --model=lenet300 --density=0.05
  python scripts/benchmarks/compaction.py --model=lenet5 --params=net.npz --masks=m.npz

Three ways to run each: `scan`, 2,000 images one by one inside one `lax.scan`;
`batch128`, 128 images a call, for the compact net with their pixels cut beforehand; and
`call`, one image a call. Rounds take both networks in turn; the best of `--rounds`
counts. Without `--params` the weights are drawn, and the largest magnitudes are kept:
of weights (`--density`), and of whole units (`--units`, the part of each hidden layer's
units that stays). About a minute on two cores.
"""

import pathlib
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

import sparsejax as sj
from sparsejax import models
from sparsejax.analysis import compact, flops
from sparsejax.core.leaves import path_string
from sparsejax.training import results

IMAGES, BATCH = 2000, 128

_MODEL = flags.DEFINE_string("model", "lenet300", "One of `models.MODELS`.")
_PARAMS = flags.DEFINE_string("params", None, "An .npz of arrays by the params' paths.")
_MASKS = flags.DEFINE_string("masks", None, "A file of `sj.save_masks`.")
_DENSITY = flags.DEFINE_float("density", 0.05, "Weights kept of each kernel.", 0, 1)
_UNITS = flags.DEFINE_float("units", 1.0, "Units kept of each hidden layer.", 0, 1)
_ROUNDS = flags.DEFINE_integer("rounds", 20, "Interleaved rounds.", lower_bound=1)
_OUT = flags.DEFINE_string("out", None, "The JSON file to write; none by default.")


def load_params(path: str, like):
  """Fills a tree from an .npz, by slash-separated paths."""
  with np.load(path, allow_pickle=False) as file:
    return jax.tree_util.tree_map_with_path(
      lambda p, leaf: jnp.asarray(file[path_string(p)]).reshape(leaf.shape), like
    )


def prune(params, density: float, units: float):
  """Masks of each kernel's largest magnitudes; of hidden layers whole units first."""
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
  """Compiled ways to run a network, each on its own arguments."""

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


def best(pairs: dict[str, dict[str, Callable]], rounds: int) -> dict:
  """Seconds of the best of interleaved rounds; short calls are repeated in a round."""
  seconds = {}
  for kind in ("scan", "batch128", "call"):
    repeats = 1 if kind == "scan" else 50
    for run in pairs.values():
      jax.block_until_ready(run[kind]())
    for _ in range(rounds):
      for name, run in pairs.items():
        start = time.perf_counter()
        for _ in range(repeats):
          out = run[kind]()
        jax.block_until_ready(out)
        taken = (time.perf_counter() - start) / repeats
        before = seconds.get((name, kind), np.inf)
        seconds[name, kind] = min(before, taken)
  return seconds


def main(argv: list[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f"no arguments but flags; got {argv[1:]}.")
  model = models.create(_MODEL.value)
  images = jnp.asarray(np.random.default_rng(0).random((IMAGES, 28, 28, 1), np.float32))
  params = jax.jit(model.init)(jax.random.key(0), images[:1])["params"]
  if _PARAMS.value:
    params = load_params(_PARAMS.value, params)
  if _MASKS.value:
    masks = sj.load_masks(_MASKS.value, like=params)
  else:
    masks = prune(params, _DENSITY.value, _UNITS.value)
  params = sj.apply_masks(params, masks)
  apply = lambda params, x: model.apply({"params": params}, x)
  small = compact(apply, params, masks, images[:1])
  got, want = small.apply(small.params, images), apply(params, images)
  difference = float(jnp.max(jnp.abs(got - want)))
  for name, (before, now) in small.shapes.items():
    print(f"{name:20}{before!s:>20} -> {now}")
  print(f"largest difference of {IMAGES:,} outputs: {difference:.2g}")

  cut = small.select(images)
  pairs = {
    "dense": calls(apply, params, images, images[:BATCH]),
    "compact": calls(small.apply_pixels, small.params, cut, cut[:BATCH]),
  }
  pairs["compact"]["call"] = calls(small.apply, small.params, images, cut)["call"]
  seconds = best(pairs, _ROUNDS.value)
  case = f"compaction/{_MODEL.value}"
  if not _MASKS.value:
    case += f"/density={_DENSITY.value:g}/units={_UNITS.value:g}"
  rows = [results.row(case, "max_abs_difference", difference)]
  cost = flops(apply, params, masks, images[:1])
  now = flops(small.apply, small.params, None, images[:1])
  rows.append(
    results.row(case, "dense_flops_ratio", cost.dense_flops / now.dense_flops)
  )
  print(f"{'':12}{'dense us':>12}{'compact us':>12}{'speedup':>10}")
  for kind, each in (("scan", IMAGES), ("batch128", 1), ("call", 1)):
    dense, fast = (1e6 * seconds[n, kind] / each for n in ("dense", "compact"))
    print(f"{kind:12}{dense:12.1f}{fast:12.1f}{dense / fast:10.2f}")
    rows.append(results.row(case, f"speedup_{kind}", dense / fast, note="best of each"))
  if _OUT.value:
    results.write_results(_OUT.value, pathlib.Path(_OUT.value).stem, rows)


if __name__ == "__main__":
  app.run(main)
