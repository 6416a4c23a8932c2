"""GraSP (Wang et al. 2020)."""

from collections.abc import Callable
from typing import Any

import jax

from sparsejax.core import (
  Distribution,
  InputAxes,
  PyTree,
  Where,
  apply_masks,
  check_arrays,
  check_input_axes,
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
  input_axes: InputAxes = None,
  distribution: Distribution | None = None,
  structure: Structure | None = None,
) -> PyTree:
  """Keeps at initialization the weights without which the gradient would flow least.

  s = w (H g), g and H the mean gradient and Hessian; the best density of all layers

  s is what g^T g / 2 loses, to first order, when the weight is removed; weights whose
  removal makes the gradient larger score below zero and go first. H g is one
  forward-over-reverse product a batch, so the loss must not hold a `jax.custom_vjp`;
  H and g are those of the sparsified leaves.

  The paper divides the logits by a temperature of 200, which makes the result depend
  less on the weights' scale; that is the loss's matter:
  `lambda params, batch: cross_entropy(model(params, batch) / 200, ...)`.

  Args:
    loss_fn: `(params, batch) -> scalar`, twice differentiable.
    params: the weights at initialization.
    batches: a list of batches; the paper takes ten images a class.
    density: fraction kept, in (0, 1].
    rounds: how many prunings; 1 is the paper's. More work as in `snip`.
    where: which leaves are sparsified; see `sparsify`.
    input_axes: see `sparsify`.
    distribution: see `masks_from_scores`; None, the paper's, compares over all layers.
    structure: see `masks_from_scores`.

  Returns:
    The masks, as `sj.masks` gives them; see `snip`.

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
  density = check_selection(density, distribution, structure)
  check_rounds(rounds)
  check_batches(batches)
  check_arrays("params", params)
  check_loss(loss_fn, params, batches[0])
  check_input_axes(input_axes)
  chosen = selected(params, where)
  kernels, axes = choose(params, chosen), layer_axes(params, chosen, False, input_axes)

  def loss(weights, batch):
    return loss_fn(merge(params, weights), batch)

  gradient = jax.jit(jax.grad(loss))

  @jax.jit
  def product(weights, vector, batch):
    return hessian_vector_product(lambda w: loss(w, batch), weights, vector)

  def score(masks):
    weights = apply_masks(kernels, masks)
    g = mean_over_batches(lambda batch: gradient(weights, batch), batches)
    g = apply_masks(g, masks)
    hg = mean_over_batches(lambda batch: product(weights, g, batch), batches)
    return jax.tree.map(lambda w, h: w * h, comparable(weights), comparable(hg))

  return prune_by_rounds(score, kernels, density, rounds, distribution, structure, axes)
