"""Cases of `execution.py`: deployed networks, and moments of live weights alone."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import sparsejax as sj
from scripts.benchmarks import timing
from sparsejax import analysis, models
from sparsejax.experiments import results

BATCHES = (1, 32, 128, 256)


def deploy_cases(quick: bool, rounds: int) -> timing.Cases:
  """Returns a case per batch size: LeNet-300-100 at 5 % of its weights."""
  found = {}
  for batch in (1, 8) if quick else BATCHES:
    name = f"deploy/lenet300/density=0.05/batch={batch}"
    found[name] = functools.partial(deployed, name, batch, rounds)
  return found


def condensed_cases(quick: bool, rounds: int) -> timing.Cases:
  """Returns a case per kernel shape and structure: AdamW's state under RigL."""
  found = {}
  shapes = ((256, 256),) if quick else ((1024, 1024), (2048, 2048), (4096, 1024))
  for inputs, outputs in shapes:
    for block in (32,) if quick else (128, None):
      unit = f"block={block}" if block else "unstructured"
      name = f"condensed/adamw/{inputs}x{outputs}/{unit}/density=0.1"
      found[name] = functools.partial(
        condensed, name, (inputs, outputs), block, 0.1, rounds
      )
  return found


def deployed(name: str, batch: int, rounds: int) -> list[dict]:
  """Times the masked network against the deployed one, and the dense one."""
  model = models.create("lenet300", 10)
  images = jax.random.normal(jax.random.key(0), (batch, 28, 28, 1))
  params = model.init(jax.random.key(1), images)["params"]
  masks = sj.masks(sj.static_sparse(optax.sgd(0.1), density=0.05).init(params))

  def apply(params: Any, images: jax.Array) -> Any:
    return model.apply({"params": params}, images)

  # A call takes a fraction of a millisecond: more rounds than elsewhere.
  found = analysis.latency(apply, params, masks, images, 10 * rounds)
  net = found.deployed
  layers = ", ".join(f"{x.name}: {x.choice}" for x in net.layers)
  note = f"median of {10 * rounds} rounds in turns; {net.choice} network; {layers}"
  rows = [
    results.row(name, f"speedup_over_{other}", found.speedup(other), note=note)
    for other in ("masked", "dense")
  ]
  for way, seconds in found.seconds.items():
    value = 1e3 * float(np.median(seconds))
    rows.append(results.row(name, f"{way}_milliseconds", value, note=note))
  return rows


def condensed(
  name: str, shape: tuple[int, int], block: int | None, density: float, rounds: int
) -> list[dict]:
  """Compares AdamW's state and step under RigL, condensed and not."""
  structure = sj.block((block, block)) if block else None
  params = {"kernel": jax.random.normal(jax.random.key(0), shape)}
  grads = {"kernel": jax.random.normal(jax.random.key(1), shape)}
  adamw, every = optax.adamw(1e-3), 100
  runs, calls, size = {}, {}, {}
  for way, inner in {"whole": adamw, "condensed": sj.condensed(adamw)}.items():
    tx = sj.rigl(inner, density, update_every=every, structure=structure)

    def step(params, state, grads, due, tx=tx):
      updates, state = tx.update(grads, state, params, update_masks=due)
      return optax.apply_updates(params, updates), state

    start = jax.tree.map(jnp.copy, sj.init(tx, params))
    size[way] = sum(x.nbytes for x in jax.tree.leaves(start[1].inner_state))
    program, _ = timing.compiled(
      step, *start, grads, jnp.asarray(True), donate_argnums=(0, 1)
    )
    runs[way] = start

    def call(due, way=way, program=program):
      runs[way] = program(*runs[way], grads, due)
      return runs[way]

    calls[way] = functools.partial(call, jnp.asarray(False))
    calls[f"{way} update"] = functools.partial(call, jnp.asarray(True))
  taken = timing.interleaved(calls, rounds)
  average = {
    way: ((every - 1) * taken[way] + taken[f"{way} update"]) / every for way in runs
  }
  note = f"the optimizer's step alone, mask updates every {every} steps counted; "
  note += f"median of {rounds} rounds in turns"
  ratio = timing.median_ratio(average["condensed"], average["whole"])
  rows = [
    results.row(name, "state_bytes_ratio", size["condensed"] / size["whole"]),
    results.row(name, "step_time_ratio", ratio, note=note),
  ]
  for way, seconds in average.items():
    value = 1e3 * float(np.median(seconds))
    rows.append(results.row(name, f"{way}_milliseconds", value, note=note))
  return rows
