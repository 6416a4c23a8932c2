r"""What a mask update costs: selection alone, and every method on a ResNet-50 tree.

  python scripts/benchmarks/selection.py --out=results/benchmarks.json

All is measured side by side in one process, the rounds interleaved, medians reported.
On two quiet CPU cores it takes about five minutes.
"""

import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags

import sparsejax as sj
from sparsejax.training import results

_OUT = flags.DEFINE_string("out", None, "The JSON file to write; none by default.")
_ROUNDS = flags.DEFINE_integer("rounds", 9, "Interleaved rounds.")
_SIZE = flags.DEFINE_integer("size", 10_000_000, "Scores of the selection alone.")
_METHODS = ("sparse_momentum", "rigl", "sparse_evolution", "static_sparse")


def resnet50() -> dict:
  """The shapes of ResNet-50's 54 kernels, its norms and its biases."""
  tree, channels = {}, 64

  def conv(name, *shape):
    tree[name] = {"kernel": shape}
    tree[f"{name}_norm"] = {"scale": shape[-1:], "bias": shape[-1:]}

  conv("stem", 7, 7, 3, 64)
  for stage, (blocks, width) in enumerate([(3, 64), (4, 128), (6, 256), (3, 512)]):
    for block in range(blocks):
      name = f"stage{stage}_block{block}"
      conv(f"{name}_a", 1, 1, channels, width)
      conv(f"{name}_b", 3, 3, width, width)
      conv(f"{name}_c", 1, 1, width, 4 * width)
      if block == 0:
        conv(f"{name}_shortcut", 1, 1, channels, 4 * width)
      channels = 4 * width
  tree["head"] = {"kernel": (2048, 1000), "bias": (1000,)}
  return tree


def drawn(shapes: dict, seed: int) -> dict:
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda s: jnp.asarray(rng.normal(0, 0.05, s).astype(np.float32)),
    shapes,
    is_leaf=lambda s: isinstance(s, tuple),
  )


def interleaved(calls: dict, rounds: int) -> dict[str, np.ndarray]:
  """Seconds of each call, in rounds over all of them; the first round warms up."""
  seconds = {name: [] for name in calls}
  for i in range(rounds + 1):
    for name, call in calls.items():
      start = time.perf_counter()
      jax.block_until_ready(call())
      if i:
        seconds[name].append(time.perf_counter() - start)
  return {name: np.asarray(s) for name, s in seconds.items()}


def selection(size: int, rounds: int) -> list[dict]:
  scores = jax.random.normal(jax.random.key(0), (size // 1000, 1000))
  k, host = size // 10, np.asarray(scores).ravel()
  ours = jax.jit(sj.top_k_mask)
  by_sort = jax.jit(lambda s: s >= jnp.sort(s, axis=None)[-k])
  seconds = interleaved(
    {
      "ours": lambda: ours(scores, k),
      "numpy.partition": lambda: np.partition(host, size - k),
    },
    rounds,
  ) | interleaved({"jnp.sort": lambda: by_sort(scores)}, 2)
  ms = {name: float(np.median(s)) for name, s in seconds.items()}
  print(f"selection of a tenth of {size:,} floats, seconds: {ms}")
  case = f"selection/n={size:.0e}".replace("e+0", "e")
  return [
    results.row(case, "seconds", ms["ours"]),
    results.row(case, "times_numpy_partition", ms["ours"] / ms["numpy.partition"]),
    results.row(case, "speedup_over_jnp_sort", ms["jnp.sort"] / ms["ours"]),
  ]


def stepper(tx, params, grads, **kwargs):
  """A compiled step that keeps its own donated state, and how long it compiled."""

  def step(params, state, grads):
    updates, state = tx.update(grads, state, params, **kwargs)
    return optax.apply_updates(params, updates), state

  carry = jax.tree.map(jnp.array, params), tx.init(params)
  lowered = jax.jit(step, donate_argnums=(0, 1)).lower(*carry, grads)
  start = time.perf_counter()
  compiled = lowered.compile()
  seconds = time.perf_counter() - start

  def call():
    nonlocal carry
    carry = compiled(*carry, grads)
    return carry[0]

  return call, seconds


def methods(rounds: int) -> list[dict]:
  params, grads = drawn(resnet50(), 0), drawn(resnet50(), 1)
  inner = optax.sgd(0.1, momentum=0.9)
  plain, _ = stepper(inner, params, grads)
  table, off, on = [], {"plain": plain}, {"plain": plain}
  for name in _METHODS:
    tx = getattr(sj, name)(inner, 0.1, update_every=10**6)
    off[name], seconds = stepper(tx, params, grads)
    table.append(results.row(f"compile/resnet50/{name}", "seconds", seconds))
    print(f"{name}: compiled in {seconds:.1f} s", flush=True)
    if name != "static_sparse":
      on[name], _ = stepper(tx, params, grads, update_masks=True)
  for case, calls, n in (("off_step", off, 2 * rounds), ("mask_update", on, rounds)):
    seconds = interleaved(calls, n)
    for name in list(calls)[1:]:
      ratio = float(np.median(seconds[name] / seconds["plain"]))
      print(f"{case}/resnet50/{name}: {ratio:.2f} times a plain SGD-momentum step")
      table.append(results.row(f"{case}/resnet50/{name}", "times_plain_step", ratio))
  return table


def main(argv):
  del argv
  rows = selection(_SIZE.value, _ROUNDS.value) + methods(_ROUNDS.value)
  if _OUT.value:
    results.write_results(_OUT.value, "benchmarks", rows)


if __name__ == "__main__":
  app.run(main)
