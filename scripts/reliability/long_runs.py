"""Trials with non-finite values, of 100,000 steps, and of 10,000 per optimizer."""

import functools
import pathlib
import resource
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib

import sparsejax as sj

STEPS, EVERY = 60, 3
_SHAPES = {"a": (12, 8), "b": (8, 5)}
_MOMENTUM = optax.sgd(0.05, momentum=0.9)
_PLAIN = optax.sgd(0.05)
_TOTAL = round(0.3 * sum(m * n for m, n in _SHAPES.values()))


def _guarded(inner):
  return optax.apply_if_finite(inner, 2**31 - 1)


def _poisoned(bad, value):
  """Returns drop and grow rules by scores that are not finite at the bad steps."""

  def poison(score):
    def poisoned(inputs):
      here = bad[inputs.step - 1]
      return jax.tree.map(lambda s: jnp.where(here, value, s), score(inputs))

    return poisoned

  return sj.chain(
    sj.drop(poison(sj.magnitude), 0.3),
    sj.redistribute(sj.momentum),
    sj.grow(poison(sj.gradient)),
  )


# The methods under test, with momentum in the optimizer, or ("_own") in the method.
MAKERS: dict[str, Callable] = {
  "rigl": lambda bad, value: sj.rigl(_guarded(_MOMENTUM), 0.3, update_every=EVERY),
  "set": lambda bad, value: sj.sparse_evolution(
    _guarded(_MOMENTUM), 0.3, update_every=EVERY
  ),
  "sparse_momentum": lambda bad, value: sj.sparse_momentum(
    _guarded(_MOMENTUM), 0.3, update_every=EVERY
  ),
  "sparse_momentum_own": lambda bad, value: sj.sparse_momentum(
    _guarded(_PLAIN), 0.3, update_every=EVERY
  ),
  "snfs_own": lambda bad, value: sj.snfs(_guarded(_PLAIN), 0.3, update_every=EVERY),
  "dsr": lambda bad, value: sj.dsr(_guarded(_MOMENTUM), 0.3, update_every=EVERY),
  "scores": lambda bad, value: sj.sparsify(
    _guarded(_MOMENTUM), _poisoned(bad, value), 0.3, update_every=EVERY
  ),
}


def _inside(inner):
  return lambda sparse: sparse(inner)


def _split(kernels):
  label = lambda params: jax.tree.map(
    lambda p: "kernel" if p.ndim > 1 else "other", params
  )
  return optax.partition({"kernel": kernels, "other": optax.adam(0.1)}, label)


def _every_second_step(inner):
  return optax.MultiSteps(inner, every_k_schedule=2).gradient_transformation()


# From a method, `inner -> transformation`, to an optimizer with the method around an
# inner optimizer, or inside another transformation.
OPTIMIZERS: dict[str, Callable] = {
  "momentum": _inside(optax.sgd(0.1, momentum=0.9)),
  "adamw": _inside(optax.adamw(0.01, weight_decay=0.1)),
  "sgd": _inside(optax.sgd(0.1)),
  "nesterov": _inside(optax.sgd(0.1, momentum=0.9, nesterov=True)),
  "adam": _inside(optax.adam(0.01)),
  "lion": _inside(optax.lion(0.01, weight_decay=0.1)),
  "rmsprop": _inside(optax.rmsprop(0.01)),
  "rmsprop_momentum": _inside(optax.rmsprop(0.01, momentum=0.9)),
  "adafactor": _inside(optax.adafactor(0.01, min_dim_size_to_factor=4)),
  "adafactor_momentum": _inside(optax.adafactor(0.01, momentum=0.9)),
  "muon": _inside(optax.contrib.muon(0.01, ns_steps=2, weight_decay=0.1)),
  "clip_decay_sgd": _inside(
    optax.chain(
      optax.clip_by_global_norm(1.0), optax.add_decayed_weights(0.1), optax.sgd(0.1)
    )
  ),
  # With b2 injected, 0.999 would be 1 in bfloat16.
  "inject_hyperparams": _inside(
    optax.inject_hyperparams(optax.adam, static_args=("b1", "b2", "eps"))(0.01)
  ),
  "apply_if_finite": _inside(optax.apply_if_finite(optax.sgd(0.1, momentum=0.9), 3)),
  "multi_steps_inside": _inside(_every_second_step(optax.sgd(0.1, momentum=0.9))),
  "multi_steps_outside": lambda sparse: _every_second_step(
    sparse(optax.sgd(0.1, momentum=0.9))
  ),
  "partition_inside": _inside(_split(optax.sgd(0.1, momentum=0.9))),
  "partition_outside": lambda sparse: _split(sparse(optax.sgd(0.1, momentum=0.9))),
  "chain_outside": lambda sparse: optax.chain(
    optax.clip(1.0), sparse(optax.sgd(0.1, momentum=0.9))
  ),
}


@functools.partial(jax.jit, static_argnames="method")
def poisoned_run(method: str, seed, bad, value, place):
  """Runs training whose loss, gradients, or scores are not finite at the bad steps.

  Args:
    method: a name of `MAKERS`.
    seed: seed of weights and targets.
    bad: bool (STEPS,).
    value: NaN or an infinity.
    place: 0 the loss, 1 one gradient, 2 no gradient (the scores, if any).

  Returns:
    Per step: whether masks, zeros and weights are intact; and how many steps and mask
    updates have been skipped so far.
  """
  tx = MAKERS[method](bad, value)
  keys = jax.random.split(jax.random.key(seed), 4)
  draw = lambda key, shape: jax.random.normal(key, shape)
  params = {n: draw(k, s) for k, (n, s) in zip(keys[:2], _SHAPES.items(), strict=True)}
  targets = {n: draw(k, s) for k, (n, s) in zip(keys[2:], _SHAPES.items(), strict=True)}

  def loss(params, spoilt):
    parts = [jnp.sum((params[n] - targets[n]) ** 2) for n in _SHAPES]
    return sum(parts) * jnp.where(spoilt, value, 1.0)

  def step(carry, spoilt):
    params, state = carry
    grads = jax.grad(loss)(params, spoilt & (place == 0))
    one = grads["a"].at[0, 0].set(value)
    grads["a"] = jnp.where(spoilt & (place == 1), one, grads["a"])
    updates, state = tx.update(grads, state, params)
    params = optax.apply_updates(params, updates)
    skipped = optax.tree.get(state, "total_notfinite"), sj.skipped_updates(state)
    return (params, state), (intact(params, state), *skipped)

  state = tx.init(params)
  start = sj.apply_masks(params, sj.masks(state)), state
  return jax.lax.scan(step, start, bad)[1]


def intact(params: Any, state: sj.SparseState, total: int = _TOTAL) -> jax.Array:
  """Returns whether counts and zeros are exact and weights finite."""
  live = jax.tree.map(lambda m: jnp.sum(m, dtype=jnp.int32), state.masks)
  masks, budgets = jax.tree.leaves(live), jax.tree.leaves(state.budgets)
  counts = [a == b for a, b in zip(masks, budgets, strict=True)]
  zeros, finite = [], []
  kernels = [p for p in jax.tree.leaves(params) if p.ndim > 1]
  for p, mask in zip(kernels, jax.tree.leaves(state.masks), strict=True):
    zeros.append(jnp.all(mask | (p == 0)))
    finite.append(jnp.all(jnp.isfinite(p)))
  return jnp.all(jnp.stack([*counts, *zeros, *finite, sum(masks) == total]))


def non_finite(folder: pathlib.Path) -> Callable[[int], dict[str, Any]]:
  """Returns trials of `poisoned_run`: masks intact, and every event counted."""

  def trial(number: int) -> dict[str, Any]:
    rng = np.random.default_rng([5, number])
    method = list(MAKERS)[number % len(MAKERS)]
    place = 2 if method == "scores" else int(rng.integers(2))
    value = rng.choice([np.nan, np.inf] if place == 2 else [np.nan, np.inf, -np.inf])
    bad = np.zeros(STEPS, bool)
    # The last third has no bad steps: mask updates must resume there.
    bad[rng.choice(2 * STEPS // 3, 8, replace=False)] = True
    run = poisoned_run(method, number, bad, np.float32(value), place)
    good, steps, updates = jax.device_get(run)
    due = np.arange(1, STEPS + 1) % EVERY == 0
    counted = {
      # The gradient of a masked weight is masked before the optimizer gets it.
      0: steps[-1] == bad.sum(),
      1: steps[-1] <= bad.sum(),
      2: updates[-1] == (bad & due).sum(),
    }[place]
    again = updates[-1] == updates[2 * STEPS // 3]
    return {
      "ok": bool(good.all() and counted and again),
      "method": method,
      "value": str(value),
      "steps_skipped": int(steps[-1]),
      "mask_updates_skipped": int(updates[-1]),
    }

  return trial


def soak(steps: int) -> Callable[[pathlib.Path], Callable[[int], dict[str, Any]]]:
  """Returns trials of many steps called from Python, with a mask update every ten."""

  def make(folder: pathlib.Path):
    return lambda number: _soak(steps)

  return make


def _soak(steps: int) -> dict[str, Any]:
  shapes = {"w1": (8, 16), "w2": (16, 4)}
  keys = jax.random.split(jax.random.key(0), 3)
  params = {
    n: jax.random.normal(k, s)
    for k, (n, s) in zip(keys[:2], shapes.items(), strict=True)
  }
  total = round(0.25 * sum(m * n for m, n in shapes.values()))
  inner = optax.adam(1e-3)
  tx = sj.sparse_momentum(inner, 0.25, update_every=10, drop_fraction=0.2)
  # Count compilations: the function body runs once per trace.
  traces = 0

  @functools.partial(jax.jit, donate_argnums=(0, 1, 2))
  def step(params, state, exact, key):
    nonlocal traces
    traces += 1
    x = jax.random.normal(jax.random.fold_in(key, state.count), (4, 8))

    def loss(p):
      hidden = jnp.tanh(x @ p["w1"])
      return jnp.mean((hidden @ p["w2"] - jnp.sum(x, 1, keepdims=True)) ** 2)

    updates, state = tx.update(jax.grad(loss)(params), state, params)
    params = optax.apply_updates(params, updates)
    sparse: Any = state
    return params, state, exact + intact(params, sparse, total).astype(jnp.int32)

  state = tx.init(params)
  exact, start = jnp.int32(0), 0.0
  for i in range(steps):
    params, state, exact = step(params, state, exact, keys[2])
    # Memory is measured from a tenth of the steps on, after caches have filled.
    if i + 1 == steps // 10:
      jax.block_until_ready(exact)
      start = _memory()
    if (i + 1) % (steps // 10) == 0:
      now = _memory()
      print(
        f"soak {i + 1:,}/{steps:,}: {int(exact):,} exact, {now:.0f} MiB",
        file=sys.stderr,
      )
  grown = _memory() - start
  return {
    "ok": int(exact) == steps and traces == 1 and grown < 16,
    "steps": steps,
    "steps_exact": int(exact),
    "compilations": traces,
    "memory_growth_mib": round(grown, 2),
    "live_arrays": len(jax.live_arrays()),
  }


def _memory() -> float:
  """Returns the resident memory in MiB."""
  pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
  return pages * resource.getpagesize() / 2**20


def drift(steps: int) -> Callable[[pathlib.Path], Callable[[int], dict[str, Any]]]:
  """Returns trials of many steps, for exact zeros and counts with each optimizer."""
  cases = [(name, dtype) for dtype in ("float32", "bfloat16") for name in OPTIMIZERS]

  def trial(number: int) -> dict[str, Any]:
    name, dtype = cases[number]
    tx = OPTIMIZERS[name](
      lambda inner: sj.rigl(inner, 0.3, update_every=10, drop_fraction=0.2)
    )
    good, count = drifted(tx, jnp.dtype(dtype), steps)
    return {"ok": good, "optimizer": name, "dtype": dtype, "steps": count}

  return lambda folder: trial


def drifted(tx: optax.GradientTransformation, dtype: Any, steps: int):
  """Trains in one compiled loop; returns whether zeros and counts are exact."""
  keys = jax.random.split(jax.random.key(0), 3)
  kernels = zip(keys, _SHAPES.items(), strict=False)
  params = {n: jax.random.normal(k, s).astype(dtype) for k, (n, s) in kernels}
  params["bias"] = jnp.zeros(5, dtype)

  def body(i, carry):
    params, state = carry
    x = jax.random.normal(jax.random.fold_in(keys[2], i), (4, 12)).astype(dtype)

    def loss(p):
      out = jnp.tanh(x @ p["a"]) @ p["b"] + p["bias"][None]
      return jnp.mean((out - jnp.ones_like(out)) ** 2)

    updates, state = tx.update(jax.grad(loss)(params), state, params)
    return optax.apply_updates(params, updates), state

  @jax.jit
  def train(params, state):
    return jax.lax.fori_loop(0, steps, body, (params, state))

  params, state = train(params, tx.init(params))
  is_sparse = lambda node: isinstance(node, sj.SparseState)
  leaves = jax.tree.leaves(state, is_leaf=is_sparse)
  [sparse] = [s for s in leaves if is_sparse(s)]
  kernels = {n: params[n] for n in _SHAPES}
  masks = sj.masks(state)
  sparse = sparse._replace(masks={n: masks[n] for n in _SHAPES})
  return bool(intact(kernels, sparse)), int(sparse.count)
