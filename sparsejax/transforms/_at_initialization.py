"""Masks from scores before training, in one or several rounds."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer

from sparsejax.core import (
  Distribution,
  InputAxes,
  LayerAxes,
  PyTree,
  Stacked,
  Where,
  check_callable,
  check_input_axes,
  check_integer,
  check_stacked,
  choose,
  from_vector,
  layer_axes,
  layer_shapes,
  scores_are_finite,
  selected,
  split_k,
  top_k_masks,
  true_like,
  widened,
)
from sparsejax.core.structures import Structure, density_of
from sparsejax.distributions import (
  check_density,
  check_distribution,
  layer_budgets,
  total_budget,
  uniform,
)
from sparsejax.transforms._start import check_axes, check_structure

Array = jax.Array


def masks_from_scores(
  scores: PyTree,
  density: Any,
  *,
  where: Where = None,
  stacked: Stacked = False,
  input_axes: InputAxes = None,
  distribution: Distribution | None = None,
  structure: Structure | None = None,
) -> PyTree:
  """Returns masks of the largest scores, of the whole network or of each layer.

  masks = the round(density * total size) largest scores

  Magnitude pruning at initialization is `masks_from_scores(jax.tree.map(jnp.abs,
  params), density)`. Among equal scores the first layer, and in a layer the first
  weight, is kept.

  Args:
    scores: tree of floats with the structure of the params.
    density: fraction of weights kept, in (0, 1].
    where: which leaves are sparsified; see `sparsify`.
    stacked: which leaves stack several layers; see `sparsify`.
    input_axes: which axes of a kernel are its inputs; see `sparsify`.
    distribution: sets the budget of each layer; None selects over the whole network at
      once and may leave a layer empty.
    structure: which patterns of live weights are allowed, such as `sj.n_m(2, 4)`. It
      selects layer by layer, so it requires a `distribution`.

  Returns:
    A tree of bool arrays (True = live) at the sparsified leaves, None elsewhere;
    `sj.with_masks` puts it into an optimizer's state.

  Raises:
    TypeError: an argument has the wrong type.
    ValueError: density is outside (0, 1]; no leaf is selected; a score is NaN or +inf;
      the structure does not fit.

  Example:
    >>> import jax.numpy as jnp, sparsejax as sj
    >>> params = {"a": jnp.array([[1.0, -4.0]]), "b": jnp.array([[3.0, 2.0]])}
    >>> sj.masks_from_scores({k: abs(p) for k, p in params.items()}, 0.5)
    {'a': Array([[False,  True]], dtype=bool), 'b': Array([[ True, False]], dtype=bool)}
  """
  density = check_selection(density, distribution, structure)
  check_stacked(stacked)
  check_input_axes(input_axes)
  chosen = selected(scores, where)
  kernels = choose(scores, chosen)
  axes = layer_axes(scores, chosen, stacked, input_axes)
  return prune_by_rounds(
    lambda _: kernels, kernels, density, 1, distribution, structure, axes
  )


def prune_by_rounds(
  score: Callable[[PyTree], PyTree],
  kernels: PyTree,
  density: Any,
  rounds: int,
  distribution: Distribution | None,
  structure: Structure | None,
  axes: Sequence[LayerAxes],
) -> PyTree:
  """Prunes in rounds; a weight that is masked in one round stays masked.

  masks_k = the best density^(k / rounds) by score(masks_{k-1}) among masks_{k-1}

  Args:
    score: `masks -> scores`, trees like `kernels`.
    kernels: tree of the sparsified leaves.
    density: fraction of weights kept, in (0, 1], after the last round.
    rounds: number of pruning rounds.
    distribution: sets the budget of each layer; None selects over the whole network at
      once.
    structure: which patterns of live weights are allowed; see `masks_from_scores`.
    axes: a `LayerAxes` per kernel.

  Returns:
    A tree of bool arrays.

  Raises:
    ValueError: a score is NaN or +inf (not checked under a trace).
  """
  axes = tuple(axes)
  kept = amounts(axes, density, rounds, distribution, structure)
  masks = jax.tree.map(true_like, kernels)
  for step, amount in enumerate(kept):
    # Score the remaining weights and keep the best of them.
    scores = comparable(score(masks))
    check_usable(scores_are_finite(scores, masks), step + 1)
    # The number of weights of a large network needs 64 bits.
    with jax.enable_x64(True):
      masks = _keep_best(scores, jnp.asarray(amount), masks, structure, axes)
  return masks


def amounts(
  axes: Sequence[LayerAxes],
  density: Any,
  rounds: int,
  distribution: Distribution | None,
  structure: Structure | None,
) -> list:
  """Returns the number of weights each round keeps, as totals or budgets (layers,)."""
  shapes = layer_shapes(axes)
  densities = [density ** ((k + 1) / rounds) for k in range(rounds - 1)] + [density]
  if distribution is None:
    return [total_budget(shapes, d) for d in densities]
  budgets = [layer_budgets(distribution, shapes, d, axes) for d in densities]
  if structure is None:
    return budgets
  check_axes(structure, axes)
  return [structure.fit(shapes, b) for b in budgets]


def keep_best(
  scores: PyTree,
  amount: Array,
  live: PyTree,
  structure: Structure | None,
  axes: tuple[LayerAxes, ...],
) -> PyTree:
  """Returns masks of the best live weights: `amount` in total, or per layer.

  Args:
    scores: tree of floats.
    amount: a scalar, the number of weights of the whole network; or budgets (layers,).
    live: tree of bool, the weights to choose from.
    structure: which patterns of live weights are allowed, or None.
    axes: a `LayerAxes` per leaf, which says how many layers, and budgets, it has.

  Returns:
    A tree of bool arrays.
  """
  leaves, treedef = jax.tree.flatten(scores)
  like = [a.budget for a in axes]
  if amount.ndim == 0:
    # All weights compete: each leaf has one budget, also if it stacks layers.
    amount = split_k(leaves, amount, jax.tree.leaves(live))
    like = [jax.ShapeDtypeStruct((), jnp.int32)] * len(leaves)
  budgets = from_vector(amount, treedef.unflatten(like))
  if structure is None:
    return top_k_masks(scores, budgets, live)
  return structure.select(scores, budgets, live, axes=axes)


_keep_best = jax.jit(keep_best, static_argnames="axes")


def comparable(scores: PyTree) -> PyTree:
  """Casts scores to one dtype, float32 or wider, so that layers can be compared."""
  wide = any(leaf.dtype == jnp.float64 for leaf in jax.tree.leaves(scores))
  dtype = jnp.float64 if wide else jnp.float32
  return jax.tree.map(lambda s: s.astype(dtype), scores)


def check_selection(
  density: Any, distribution: Distribution | None, structure: Structure | None
) -> Any:
  """Validates the arguments that set the budgets, and returns the density."""
  check_distribution(distribution, none=True)
  check_structure(structure, density, distribution or uniform)
  if structure is not None and distribution is None:
    raise ValueError(
      f"distribution must be given with the structure {structure.name}, which selects "
      "layer by layer; got None."
    )
  density = density_of(density, structure)
  check_density(density)
  return density


def check_usable(flag: Array, round_: int) -> None:
  """Raises if the scores of a round were NaN or +inf; traced flags pass."""
  if not isinstance(flag, Tracer) and not flag:
    raise ValueError(
      f"scores must be finite, got NaN or +inf in round {round_}: look at the params, "
      "the batches and the loss."
    )


def check_rounds(rounds: int) -> None:
  """Raises unless `rounds` is an integer of at least 1."""
  check_integer("rounds", rounds, 1)


def check_batches(batches: Any) -> None:
  """Raises unless `batches` is a list of at least one batch."""
  # A tuple or an array may be a single batch, whose parts would be taken for batches.
  if not isinstance(batches, list):
    raise TypeError(
      "batches must be a list of batches ([batch] for one), got "
      f"{type(batches).__name__}."
    )
  if not batches:
    raise ValueError("batches must contain at least one batch, got an empty list.")


def check_loss(loss_fn: Any, params: PyTree, batch: Any) -> None:
  """Raises unless a loss maps params and a batch to one float; only traces it."""
  check_callable("loss_fn", loss_fn, "a function of (params, batch)", 2)
  loss = jax.eval_shape(loss_fn, params, batch)
  if getattr(loss, "shape", None) != () or not jnp.issubdtype(loss.dtype, jnp.floating):
    raise ValueError(f"loss_fn must return one float, got {loss}.")


def mean_over_batches(function: Callable[[Any], PyTree], batches: list) -> PyTree:
  """Returns the mean of a function's trees over the batches, float32 or wider."""
  total = jax.tree.map(widened, function(batches[0]))
  for batch in batches[1:]:
    total = jax.tree.map(lambda t, x: t + widened(x), total, function(batch))
  return jax.tree.map(lambda t: t / len(batches), total)
