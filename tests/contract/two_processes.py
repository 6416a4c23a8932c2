"""One of the processes that `test_layouts.py` starts: `folder`."""

import functools
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import sparsejax as sj
from sparsejax import core
from sparsejax.training.parallel import _distributed as distributed

SHAPES = {"a": (64, 16), "b": (3, 3, 8, 16), "stacked": (8, 16, 8), "bias": (8,)}
LAYOUTS = {
  "data": {},
  "fsdp": {"a": P("data"), "b": P(None, None, None, "data"), "stacked": P("data")},
  "outputs": {
    "a": P(None, "data"),
    "b": P(None, None, None, "data"),
    "stacked": P(None, None, "data"),
  },
}
SGD = optax.sgd(0.1, momentum=0.9)
FIELDS = {"density": 0.3, "update_every": 1, "stacked": "stacked"}
METHODS = {
  "sparse_momentum": lambda: sj.sparse_momentum(SGD, **FIELDS),
  "per_neuron": lambda: sj.sparse_momentum(SGD, **FIELDS, per_neuron=True),
  "rigl_2:4": lambda: sj.rigl(
    SGD, **FIELDS | {"density": 0.5, "structure": sj.n_m(2, 4)}
  ),
  "global_magnitude": lambda: sj.global_magnitude(SGD, **FIELDS, end_step=9),
}


def inputs():
  """Weights and two gradients of one decimal, so that scores tie."""
  rng = np.random.default_rng(0)
  draw = lambda s: rng.normal(size=s).round(1).astype(np.float32)
  return [{name: draw(s) for name, s in SHAPES.items()} for _ in range(3)]


def place(trees, layout=None):
  """Lays trees of parameters out over all devices, or on one if there is no layout."""
  if layout is None:
    return jax.tree.map(jnp.asarray, trees)
  mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))
  return [
    {
      name: jax.device_put(x, NamedSharding(mesh, layout.get(name, P())))
      for name, x in tree.items()
    }
    for tree in trees
  ]


def masks(method, layout=None):
  """The masks and budgets after two updates, still on their devices."""
  params, *gradients = place(inputs(), layout)
  tx = METHODS[method]()

  @jax.jit
  def start(params):
    return tx.init(params)

  @jax.jit
  def step(params, state, grads):
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state

  state = start(params)
  for grads in gradients:
    params, state = step(params, state, grads)
  return sj.masks(state), state.budgets


def main(folder: str) -> None:
  distributed.initialize()
  from jax.experimental import multihost_utils

  assert jax.device_count() == 8
  found = {}
  for method in METHODS:
    for name, layout in LAYOUTS.items():
      got, budgets = masks(method, layout)
      checksum = core.check_replicas(got)
      gather = functools.partial(multihost_utils.process_allgather, tiled=True)
      whole, budgets = gather(got), gather(budgets)
      assert int(core.mask_checksum(whole)) == checksum
      for leaf, mask in whole.items():
        if mask is not None:
          found[f"{method} {name} {leaf}"] = np.asarray(mask)
          found[f"{method} {name} {leaf} budget"] = np.asarray(budgets[leaf])
  # A replica of one process that drifts is found by both.
  mesh = got["a"].sharding.mesh
  whole = np.array(whole["a"])
  whole[0, 0] ^= jax.process_index() == 1
  copies = [jax.device_put(whole, d) for d in jax.local_devices()]
  drifted = jax.make_array_from_single_device_arrays(
    whole.shape, NamedSharding(mesh, P()), copies
  )
  lowest, highest = core.replica_checksums({"a": drifted})
  assert lowest != highest
  np.savez(pathlib.Path(folder) / f"{jax.process_index()}.npz", **found)


if __name__ == "__main__":
  main(sys.argv[1])
