"""GraSP (Wang et al. 2020)."""

from collections.abc import Callable
from typing import Any

import jax

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
from sparsejax.scores import hessian_vector_product
from sparsejax.transforms import (
  check_batches,
  check_loss,
  check_rounds,
  check_selection,
  comparable,
  mean_over_batches,
  prune_by_rounds,
)


def grasp(
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
  """Keeps the weights at initialization that preserve the gradient flow most (GraSP).

  s = w (H g), g and H the mean gradient and Hessian; the best density of all layers

  s is the first-order decrease of g^T g / 2 when the weight is removed. Weights whose
  removal increases the gradient norm have negative scores and are pruned first. H g
  takes one forward-over-reverse product per batch, so the loss must not contain a
  `jax.custom_vjp`. H and g are taken over the sparsified leaves only.

  The paper divides the logits by a temperature of 200, which makes the result depend
  less on the scale of the weights. Do this in the loss:
  `lambda params, batch: cross_entropy(model(params, batch) / 200, ...)`.

  Args:
    loss_fn: `(params, batch) -> scalar`, twice differentiable.
    params: the params at initialization.
    batches: list of batches; the paper uses ten images per class.
    density: fraction of weights kept, in (0, 1].
    rounds: number of pruning rounds, as in `snip`; the paper uses 1.
    where: which leaves are sparsified; see `sparsify`.
    stacked: which leaves stack several layers; see `sparsify`.
    input_axes: which axes of a kernel are its inputs; see `sparsify`.
    distribution: sets the budget of each layer; None, the paper's choice, selects over
      the whole network at once.
    structure: which patterns of live weights are allowed; see `masks_from_scores`.

  Returns:
    A tree of masks like that of `sj.masks`; see `snip` for how to train with them.

  Raises:
    TypeError: an argument has the wrong type.
    ValueError: an argument is outside its range; a score is not finite.

  References:
    Wang, Zhang & Grosse 2020, "Picking winning tickets before training by preserving
    gradient flow", eq. 8 and algorithm 1 (whose score is -s, lowest kept).

  Example:
    >>> import jax.numpy as jnp, sparsejax as sj
    >>> loss = lambda params, x: jnp.sum((x @ params["kernel"]) ** 2)
    >>> params = {"kernel": jnp.array([[1.0], [-2.0], [0.5]])}
    >>> masks = sj.grasp(loss, params, [jnp.array([[1.0, 1.0, 3.0]])], density=0.7)
    >>> masks["kernel"].ravel()
    Array([ True, False,  True], dtype=bool)
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

  def loss(weights, batch):
    return loss_fn(merge(params, weights), batch)

  gradient = jax.jit(jax.grad(loss))

  @jax.jit
  def product(weights, vector, batch):
    return hessian_vector_product(lambda w: loss(w, batch), weights, vector)

  # Both g and H g are means over the batches, at the remaining weights; g must be
  # complete before the first product with H.
  def score(masks):
    weights = apply_masks(kernels, masks)
    g = mean_over_batches(lambda batch: gradient(weights, batch), batches)
    g = jax.tree.map(lambda x, w: x.astype(w.dtype), apply_masks(g, masks), weights)
    hg = mean_over_batches(lambda batch: product(weights, g, batch), batches)
    return jax.tree.map(lambda w, h: w * h, comparable(weights), comparable(hg))

  return prune_by_rounds(score, kernels, density, rounds, distribution, structure, axes)
