"""Constant fan-in (SRigL): all live neurons of a layer have equally many inputs."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from sparsejax.core._checks import check_number
from sparsejax.core._kernel_axes import LayerAxes
from sparsejax.core._reduce import count
from sparsejax.core._selection import ordered_bits, top_k_masks
from sparsejax.core.structures._base import Structure, fit_units, in_matrix_order
from sparsejax.core.structures._fan_in import top_k_along

Array = jax.Array
PyTree = Any
# Shares are rounded to a millionth, as drop fractions are.
_RESOLUTION = 1_000_000


def constant_fan_in(ablation: float | None = None) -> Structure:
  """Gives every live neuron of a layer the same number of inputs.

  k_l = budget_l / neurons_l;  drop: the layer's worst weights, whosever they are;
  grow: each neuron's best dead weights until it has k_l inputs

  A neuron is one entry of the kernel's output axes; for attention's query, one feature
  of one head. Budgets are multiples of the number of neurons, at least one input each.

  With `ablation`, growth first ablates neurons with few salient weights. A weight is
  salient if it survived the drop, or is among the layer's best masked weights, as many
  as were dropped. A neuron with fewer than max(1, ablation * k_l) salient weights loses
  all its weights permanently. The other neurons grow to
  k_l = floor(budget_l / live neurons) inputs. The budget becomes k_l times the number
  of live neurons, at most live neurons - 1 below the old budget. As many neurons stay
  live as are needed to reach the budget.

  Args:
    ablation: share of salient weights below which a neuron is ablated, in (0, 1]; None
      for no ablation.

  Returns:
    A structure. Budgets cannot be redistributed. With ablation it supports only methods
    that grow.

  Raises:
    TypeError: `ablation` is not a number.
    ValueError: `ablation` is outside (0, 1]. In `init`: the inputs and outputs of a
      layer are not known.

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
  """Makes the structure; cached, because structures are compared by identity."""
  name = f"constant_fan_in({'' if ablation is None else f'ablation={ablation}'})"

  def check(path: str, axes: LayerAxes) -> None:
    if not axes.known:
      raise ValueError(
        f"structure must fit every layer: {name} needs two axes or more, got shape "
        f"{axes.layer} at {path!r}."
      )

  def neurons(layer: tuple[int, ...]) -> int:
    return layer[-1]

  # Gives every neuron its budget_l / neurons_l best inputs.
  @in_matrix_order
  def select(scores: PyTree, counts: PyTree, where: PyTree, axes: Any) -> PyTree:
    def best(score, count, candidates, layer):
      k = _as_rows(count // layer.matrix[-1], score)
      return top_k_along(ordered_bits(score, candidates), k, _inputs(layer))

    return jax.tree.map(best, scores, counts, where, axes)

  # Keeps the layer's best weights, whichever neurons they belong to.
  @in_matrix_order
  def keep(scores: PyTree, counts: PyTree, masks: PyTree, axes: Any) -> PyTree:
    return top_k_masks(scores, counts, masks)

  @in_matrix_order
  def fill(scores: PyTree, budgets: PyTree, masks: PyTree, before: PyTree, axes: Any):
    # Neurons without a live weight before the update stay ablated. With ablation, those
    # with too few salient weights are removed too.
    active = jax.tree.map(_any_input, before, axes)
    if ablation is not None:
      # Salient weights survived the drop or are among the best masked weights.
      dead = jax.tree.map(jnp.logical_not, masks)
      dropped = jax.tree.map(lambda b, m: b - count(m, b.ndim), budgets, masks)
      wanted = top_k_masks(scores, dropped, dead)
      salient = jax.tree.map(jnp.logical_or, masks, wanted)
      active = jax.tree.map(
        functools.partial(_survivors, share=ablation), salient, active, budgets, axes
      )

    # The number of inputs per active neuron, k_l.
    def inputs(active, budget, layer):
      number = jnp.maximum(_number(active, budget), 1)
      return jnp.minimum(budget // number, layer.length(_inputs(layer)))

    # Live weights get the largest key and weights of ablated neurons 0, so that each
    # active neuron keeps its live weights and grows its best masked ones.
    def grow(score, mask, active, budget, layer):
      k = _as_rows(inputs(active, budget, layer), mask)
      key = ordered_bits(score)
      key = jnp.where(mask, ~jnp.zeros_like(key), key)
      key = jnp.where(active, key, jnp.zeros_like(key))
      return top_k_along(key, k, _inputs(layer))

    # The new budget, since k_l is rounded down.
    def total(active, budget, layer):
      return _number(active, budget) * inputs(active, budget, layer)

    grown = jax.tree.map(grow, scores, masks, active, budgets, axes)
    return grown, jax.tree.map(total, active, budgets, axes)

  return Structure(
    name=name,
    check=check,
    unit=None,  # a drop leaves neurons with unequal numbers of inputs
    fit=fit_units(neurons),
    select=select,
    keep=keep,
    fill=fill,
    ablates=ablation is not None,
  )


def _survivors(
  salient: Array, active: Array, budget: Array, layer: LayerAxes, share: float
) -> Array:
  """Selects the active neurons with enough salient weights, but not too few neurons."""
  # A neuron needs ceil(share * k) salient weights, computed in integers.
  counts = jnp.sum(salient, _inputs(layer), dtype=jnp.int32, keepdims=True)
  number = _number(active, budget)
  k = budget // jnp.maximum(number, 1)
  with jax.enable_x64(True):
    parts = k.astype(jnp.int64) * jnp.int64(round(share * _RESOLUTION))
    least = -(-parts // jnp.int64(_RESOLUTION))
    least = jnp.maximum(least.astype(jnp.int32), 1)
  # Keeps the neurons with the most salient weights: all that have enough of them, but
  # at least as many as the budget needs with every neuron at full fan-in.
  enough = active & (counts >= _as_rows(least, salient))
  fan_in = layer.length(_inputs(layer))
  stay = jnp.clip(_number(enough, budget), -(-budget // fan_in), number)
  key = jnp.where(active, counts + 1, 0).astype(jnp.uint32)
  return top_k_along(key, _as_rows(stay, salient), layer.outputs)


def _inputs(layer: LayerAxes) -> tuple[int, ...]:
  """Returns the axes that index the inputs of one neuron, taps included."""
  return (*layer.taps, *layer.inputs)


def _any_input(mask: Array, layer: LayerAxes) -> Array:
  return jnp.any(mask, _inputs(layer), keepdims=True)


def _number(neurons: Array, budget: Array) -> Array:
  axes = tuple(range(budget.ndim, neurons.ndim))
  return jnp.sum(neurons, axes, dtype=jnp.int32)


def _as_rows(value: Array, like: Array) -> Array:
  """Appends axes of length 1 to a per-layer array, so that it broadcasts to `like`."""
  return lax.expand_dims(value, range(value.ndim, like.ndim))
