"""Constant fan-in (SRigL): all live neurons of a layer have as many inputs."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from sparsejax.core.checks import check_number
from sparsejax.core.layerwise import top_k_masks
from sparsejax.core.ordered import ordered_bits
from sparsejax.core.reduce import count
from sparsejax.core.structures.base import Structure, fit_units
from sparsejax.core.structures.fan_in import top_k_along

Array = jax.Array
PyTree = Any
# As drop fractions: shares are resolved to a millionth.
_RESOLUTION = 1_000_000


def constant_fan_in(ablation: float | None = None) -> Structure:
  """Every live neuron of a layer has the same number of inputs.

  k_l = budget_l / neurons_l;  drop: the layer's worst weights, whosever they are;
  grow: each neuron's best dead weights until it has k_l inputs

  Neurons lie along the kernel's last axis (outputs, filters). Budgets are multiples of
  their number, at least one input each.

  With `ablation`, growth first closes the neurons that have come to matter little: a
  weight is salient if it survived the drop or is among the layer's best dead weights,
  as many as were dropped. A neuron with fewer than max(1, ablation * k_l) salient
  weights loses all of them, for good, and the others grow to
  k_l = floor(budget_l / live neurons) inputs. The budget becomes that times the live
  neurons: at most live neurons - 1 weights below what it was. As many neurons stay as
  are needed to hold the budget.

  Args:
    ablation: share of salient weights below which a neuron is closed, in (0, 1]; None
      closes none.

  Returns:
    A structure. With ablation it goes with methods that grow only; budgets cannot be
    redistributed.

  Raises:
    TypeError: ablation is not a number.
    ValueError: ablation is outside (0, 1]; at init: a layer has fewer than two axes.

  References:
    Lasby et al. 2024, "Dynamic sparse training with structured sparsity" (SRigL),
    section 3.1; the paper ablates at 0.3 (convolutions) and 0.95 or less (ViT).

  Example:
    >>> import jax.numpy as jnp, optax, sparsejax as sj
    >>> fan_in = sj.constant_fan_in()
    >>> tx = sj.rigl(optax.sgd(0.1), density=0.5, structure=fan_in)
    >>> state = tx.init({"kernel": jnp.ones((4, 3))})
    >>> print(sj.masks(state)["kernel"].sum(0))
    [2 2 2]
  """
  if ablation is not None:
    rule = "be None or lie in (0, 1]"
    check_number("ablation", ablation, rule, lambda v: 0 < v <= 1)
  return _constant_fan_in(None if ablation is None else float(ablation))


@functools.cache
def _constant_fan_in(ablation: float | None) -> Structure:
  name = f"constant_fan_in({'' if ablation is None else f'ablation={ablation}'})"

  def check(path: str, layer: tuple[int, ...]) -> None:
    if len(layer) < 2:
      raise ValueError(
        f"structure must fit every layer: {name} needs two axes or more, got shape "
        f"{layer} at {path!r}."
      )

  def neurons(layer: tuple[int, ...]) -> int:
    return layer[-1]

  def select(scores: PyTree, counts: PyTree, where: PyTree) -> PyTree:
    def best(score, count, candidates):
      k = _as_rows(count // score.shape[-1], score)
      axes = tuple(range(count.ndim, score.ndim - 1))
      return top_k_along(ordered_bits(score, candidates), k, axes)

    return jax.tree.map(best, scores, counts, where)

  def fill(scores: PyTree, budgets: PyTree, masks: PyTree, before: PyTree):
    active = jax.tree.map(_any_input, before, budgets)
    if ablation is not None:
      dead = jax.tree.map(jnp.logical_not, masks)
      dropped = jax.tree.map(lambda b, m: b - count(m, b.ndim), budgets, masks)
      wanted = top_k_masks(scores, dropped, dead)
      salient = jax.tree.map(jnp.logical_or, masks, wanted)
      active = jax.tree.map(
        functools.partial(_survivors, share=ablation), salient, active, budgets
      )

    def inputs(active, budget, mask):
      fan_in = math.prod(mask.shape[budget.ndim : -1])
      number = jnp.maximum(_number(active, budget), 1)
      return jnp.minimum(budget // number, fan_in)

    def grow(score, mask, active, budget):
      k = _as_rows(inputs(active, budget, mask), mask)
      key = ordered_bits(score)
      key = jnp.where(mask, ~jnp.zeros_like(key), key)
      key = jnp.where(active, key, jnp.zeros_like(key))
      return top_k_along(key, k, tuple(range(budget.ndim, mask.ndim - 1)))

    def total(active, budget, mask):
      return _number(active, budget) * inputs(active, budget, mask)

    grown = jax.tree.map(grow, scores, masks, active, budgets)
    return grown, jax.tree.map(total, active, budgets, masks)

  return Structure(
    name=name,
    check=check,
    unit=None,  # a drop leaves neurons with unequal numbers of inputs
    fit=fit_units(neurons),
    select=select,
    keep=top_k_masks,
    fill=fill,
    ablates=ablation is not None,
  )


def _survivors(salient: Array, active: Array, budget: Array, share: float) -> Array:
  """The active neurons with enough salient weights, and enough neurons."""
  rows = budget.ndim
  axes = tuple(range(rows, salient.ndim - 1))
  counts = jnp.sum(salient, axes, dtype=jnp.int32, keepdims=True)
  number = _number(active, budget)
  k = budget // jnp.maximum(number, 1)
  with jax.enable_x64(True):
    parts = k.astype(jnp.int64) * jnp.int64(round(share * _RESOLUTION))
    least = -(-parts // jnp.int64(_RESOLUTION))
    least = jnp.maximum(least.astype(jnp.int32), 1)
  enough = active & (counts >= _as_rows(least, salient))
  fan_in = math.prod(salient.shape[rows:-1])
  stay = jnp.clip(_number(enough, budget), -(-budget // fan_in), number)
  key = jnp.where(active, counts + 1, 0).astype(jnp.uint32)
  return top_k_along(key, _as_rows(stay, salient), (-1,))


def _any_input(mask: Array, budget: Array) -> Array:
  return jnp.any(mask, tuple(range(budget.ndim, mask.ndim - 1)), keepdims=True)


def _number(neurons: Array, budget: Array) -> Array:
  axes = tuple(range(budget.ndim, neurons.ndim))
  return jnp.sum(neurons, axes, dtype=jnp.int32)


def _as_rows(value: Array, like: Array) -> Array:
  """A number a layer, with as many axes as a tensor that holds the layers."""
  return lax.expand_dims(value, range(value.ndim, like.ndim))
