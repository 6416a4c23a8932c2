"""Times every method against a plain SGD-momentum step, on trees of real networks.

The one compiled program of a method runs in cycles of four steps, of which the last
updates the masks (`update_masks`); a plain step precedes each. If masks are applied in
the forward pass, the step includes computing the weights that the loss would use.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import sparsejax as sj
from scripts.benchmarks import timing, trees
from sparsejax.experiments import results
from sparsejax.training import METHODS, forward_params_fn, method_function

CYCLE = 4
DENSITY = 0.1
# Cycles per tree, fewer for long steps. Times of mask updates scatter by a third.
CYCLES = {"resnet50": 15, "vit_b": 3}
METRICS = ("off_step", "mask_update")


def cases(quick: bool) -> timing.Cases:
  """Returns one case per tree and method, and one per tree for its masks alone."""
  found: timing.Cases = {}
  for tree in list(trees.TREES)[: 1 if quick else None]:
    found[f"masks/{tree}"] = functools.partial(mask_rows, tree, quick)
    for name, method in METHODS.items():
      if name != "dense" and not method.prunes_at_init:
        case = functools.partial(method_rows, tree, name, quick)
        found[f"methods/{tree}/{name}"] = case
  return found


def make(name: str, inner: optax.GradientTransformation) -> Any:
  """Creates a method that updates masks on request, with its own defaults otherwise."""
  function = method_function(name)
  fields = {"update_every": 1000, "end_step": 100_000}
  accepted = inspect.signature(function).parameters
  return function(inner, DENSITY, **{k: v for k, v in fields.items() if k in accepted})


class Stepper:
  """A compiled step that owns its donated state."""

  def __init__(
    self, tx: Any, params: Any, grads: Any, forward_params: Callable | None = None
  ):
    tx = optax.with_extra_args_support(tx)

    def step(params, state, grads, due):
      updates, state = tx.update(grads, state, params, update_masks=due)
      params = optax.apply_updates(params, updates)
      return params, state, forward_params(params, state) if forward_params else None

    self._grads = grads
    # Copy the parameters, because the step donates its arguments.
    self._carry = jax.tree.map(lambda x: x.copy(), params), jax.jit(tx.init)(params)
    self.program, self.compile_seconds = timing.compiled(
      step, *self._carry, grads, jnp.array(False), donate_argnums=(0, 1)
    )

  def __call__(self, due: bool = False) -> Any:
    """Takes a step; returns the arrays to wait for."""
    *carry, forward_params = self.program(*self._carry, self._grads, jnp.array(due))
    self._carry = tuple(carry)
    return carry[0], forward_params


@functools.lru_cache(maxsize=1)
def start(tree: str, quick: bool) -> tuple[Any, Any, Any, Stepper]:
  """Returns parameters, gradients, the inner optimizer and its plain step."""
  shapes = trees.shapes(tree, quick)
  params, grads = trees.drawn(shapes, 0), trees.drawn(shapes, 1)
  inner = optax.sgd(0.1, momentum=0.9)
  return params, grads, inner, Stepper(inner, params, grads)


def method_rows(tree: str, name: str, quick: bool) -> list[dict]:
  """Returns ratios of both kinds of step, compile time, and memory."""
  params, grads, inner, plain = start(tree, quick)
  tx = make(name, inner)
  forward_params = forward_params_fn(name) if METHODS[name].forward else None
  step = Stepper(tx, params, grads, forward_params)
  # Time both kinds of step, each relative to the plain step just before it.
  cycles = 2 if quick else CYCLES[tree]
  ratios: dict[str, list[float]] = {metric: [] for metric in METRICS}
  for cycle in range(cycles + 1):
    for i in range(CYCLE):
      due = i == CYCLE - 1
      base = timing.once(plain)
      taken = timing.once(lambda due=due: step(due))
      if cycle:  # the first one warms up
        ratios[METRICS[due]].append(taken / base)
  numbers = trees.size(trees.shapes(tree, quick))
  rows = []
  for metric in METRICS if METHODS[name].moves else METRICS[:1]:
    note = f"side by side, median of {len(ratios[metric])}; density {DENSITY}"
    if forward_params:
      note += "; forward params included"
    value = float(np.median(ratios[metric]))
    rows.append(
      results.row(f"{metric}/{tree}/{name}", "times_plain_step", value, note=note)
    )
  compile_seconds = step.compile_seconds
  rows.append(results.row(f"compile/{tree}/{name}", "seconds", compile_seconds))
  # Memory per parameter: the state beyond the optimizer's, and XLA's temporary arrays.
  state = _bytes(jax.eval_shape(tx.init, params))
  dense = _bytes(jax.eval_shape(inner.init, params))
  analysis: Any = step.program.memory_analysis()
  for metric, value in (
    ("state_bytes_per_parameter", (state - dense) / numbers),
    ("temporary_bytes_per_parameter", analysis.temp_size_in_bytes / numbers),
  ):
    rows.append(results.row(f"memory/{tree}/{name}", metric, value))
  return rows


def mask_rows(tree: str, quick: bool) -> list[dict]:
  """Returns memory of masks, as bool and packed, and the time of a step."""
  params, grads, inner, _ = start(tree, quick)
  masks = sj.masks(jax.jit(sj.static_sparse(optax.sgd(0.1), DENSITY).init)(params))
  packed = sj.pack(masks)
  sparse = sj.static_sparse(inner, DENSITY)
  steps = {"bools": sparse, "bits": sj.packed_masks(sparse)}
  rounds = 2 if quick else CYCLES[tree]
  seconds = timing.interleaved(
    {name: Stepper(tx, params, grads) for name, tx in steps.items()}, rounds
  )
  case, weights = f"memory/{tree}/masks", sum(m.size for m in jax.tree.leaves(masks))
  return [
    results.row(case, "megabytes", _bytes(masks) / 1e6, note=f"{weights:,} weights"),
    results.row(case, "packed_ratio", _bytes(masks) / _bytes(packed)),
    results.row(
      case,
      "packed_step_ratio",
      timing.median_ratio(seconds["bits"], seconds["bools"]),
      note=f"static_sparse, side by side, median of {rounds}; density {DENSITY}",
    ),
    results.row(case, "parameters_ratio", _bytes(params) / _bytes(masks)),
  ]


def _bytes(tree: Any) -> int:
  return sum(int(np.prod(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))
