"""SNIP (Lee et al. 2019) and its iterative form (de Jorge et al. 2021)."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from sparsejax.core import (
  Distribution,
  InputAxes,
  PyTree,
  Stacked,
  Where,
  apply_masks,
  check_arrays,
  check_input_axes,
  check_stacked,
  choose,
  layer_axes,
  merge,
  selected,
)
from sparsejax.core.structures import Structure
from sparsejax.transforms import (
  check_batches,
  check_loss,
  check_rounds,
  check_selection,
  comparable,
  mean_over_batches,
  prune_by_rounds,
)


def snip(
  loss_fn: Callable[[PyTree, Any], jax.Array],
  params: PyTree,
  batches: list,
  density: Any,
  *,
  rounds: int = 1,
  where: Where = None,
  stacked: Stacked = False,
  input_axes: InputAxes = None,
  distribution: Distribution | None = None,
  structure: Structure | None = None,
) -> PyTree:
  """Prunes the weights at initialization to which the loss is least sensitive (SNIP).

  s = |w dL/dw|, the gradient a mean over the batches; the best density of all layers

  With `rounds > 1` the density falls as density^(k / rounds), and each round recomputes
  the gradient at the remaining weights (Iterative SNIP). That keeps live weights in
  every layer at densities below one percent, where a single round empties some layers.

  Args:
    loss_fn: `(params, batch) -> scalar`.
    params: the params at initialization; the paper asks for variance scaling.
    batches: list of batches; the paper uses one, with about ten images per class.
    density: fraction of weights kept, in (0, 1].
    rounds: number of pruning rounds; the paper uses 1.
    where: which leaves are sparsified; see `sparsify`.
    stacked: which leaves stack several layers; see `sparsify`.
    input_axes: which axes of a kernel are its inputs; see `sparsify`.
    distribution: sets the budget of each layer; None, the paper's choice, selects over
      the whole network at once.
    structure: which patterns of live weights are allowed; see `masks_from_scores`.

  Returns:
    A tree of masks like that of `sj.masks`. To train with them, start from the state
    `sj.with_masks(sj.static_sparse(inner, density).init(params), masks)`.

  Raises:
    TypeError: an argument has the wrong type.
    ValueError: an argument is outside its range; a gradient is not finite.

  References:
    Lee et al. 2019, "SNIP: single-shot network pruning based on connection
    sensitivity", eq. 6. de Jorge et al. 2021, "Progressive skeletonization: trimming
    more fat from a network at initialization" (Iterative SNIP).

  Example:
    >>> import jax.numpy as jnp, sparsejax as sj
    >>> loss = lambda params, x: jnp.sum((x @ params["kernel"]) ** 2)
    >>> params = {"kernel": jnp.array([[1.0], [-2.0], [0.5]])}
    >>> masks = sj.snip(loss, params, [jnp.array([[1.0, 1.0, 3.0]])], density=0.7)
    >>> masks["kernel"].ravel()
    Array([False,  True,  True], dtype=bool)
  """
  # Validate everything before the first gradient is computed.
  density = check_selection(density, distribution, structure)
  check_rounds(rounds)
  check_batches(batches)
  check_arrays("params", params)
  check_loss(loss_fn, params, batches[0])
  check_stacked(stacked)
  check_input_axes(input_axes)
  chosen = selected(params, where)
  kernels = choose(params, chosen)
  axes = layer_axes(params, chosen, stacked, input_axes)

  # Differentiate with respect to the sparsified leaves only.
  @jax.jit
  def gradient(weights, batch):
    return jax.grad(lambda w: loss_fn(merge(params, w), batch))(weights)

  def score(masks):
    weights = apply_masks(kernels, masks)
    grads = mean_over_batches(lambda batch: gradient(weights, batch), batches)
    # Cast to float32 before multiplying: products of 16-bit floats round to equal
    # values where the exact scores differ.
    weights, grads = comparable(weights), comparable(grads)
    return jax.tree.map(lambda w, g: jnp.abs(w * g), weights, grads)

  return prune_by_rounds(score, kernels, density, rounds, distribution, structure, axes)
