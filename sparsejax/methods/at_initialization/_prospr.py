"""ProsPr: prospect pruning (Alizadeh et al. 2022)."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sparsejax.core import (
  Distribution,
  InputAxes,
  PyTree,
  Stacked,
  Where,
  apply_masks,
  check_arrays,
  check_input_axes,
  check_integer,
  check_number,
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
  prune_by_rounds,
)


def prospr(
  loss_fn: Callable[[PyTree, Any], jax.Array],
  params: PyTree,
  batches: list,
  density: Any,
  *,
  steps: int = 3,
  learning_rate: float = 0.1,
  rounds: int = 1,
  where: Where = None,
  stacked: Stacked = False,
  input_axes: InputAxes = None,
  distribution: Distribution | None = None,
  structure: Structure | None = None,
) -> PyTree:
  """Prunes the weights to which the loss after a few SGD steps is least sensitive.

  w_0 = m w;  w_{t+1} = w_t - learning_rate dL(w_t, B_t)/dw;
  s = |dL(w_T, B_T)/dm| at m = 1;  the best density of all layers

  The derivative goes through the SGD steps: s = |w prod_t (I - learning_rate H_t)
  dL(w_T)/dw|, with a product of a Hessian and a vector per step. So the trainability of
  the pruned network counts, where SNIP, the case of no steps, sees the loss at
  initialization only. All floating-point params are trained in these steps. The
  authors' program also has momentum in them, which is 0 by default, and a first-order
  approximation.

  B_0, B_1 ... are the given batches in turn; with `steps + 1` of them the last one
  measures the loss. The cost is about that of four gradients per step. Activations are
  recomputed step by step, so the memory is that of one step and a copy of the params
  per step. The loss must be twice differentiable.

  Args:
    loss_fn: `(params, batch) -> scalar`.
    params: the params at initialization.
    batches: list of batches of one shape.
    density: fraction of weights kept, in (0, 1].
    steps: the number T of SGD steps, at least 0; 3 is the authors' default.
    learning_rate: of these steps, above 0; 0.1 is the authors' default.
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
    Alizadeh et al. 2022, "Prospect pruning: finding trainable weights at initialization
    using meta-gradients", and the authors' program.

  Example:
    >>> import jax.numpy as jnp, sparsejax as sj
    >>> loss = lambda params, x: jnp.sum((x @ params["kernel"]) ** 2)
    >>> params = {"kernel": jnp.array([[1.0], [-2.0], [0.5]])}
    >>> batches = [jnp.array([[1.0, 1.0, 3.0]])]
    >>> masks = sj.prospr(loss, params, batches, density=0.7, learning_rate=0.01)
    >>> masks["kernel"].ravel()
    Array([False,  True,  True], dtype=bool)
  """
  # Validate everything before the first gradient is computed.
  density = check_selection(density, distribution, structure)
  check_rounds(rounds)
  check_integer("steps", steps, 0)
  check_number("learning_rate", learning_rate, "be above 0", lambda v: 0 < v < np.inf)
  check_batches(batches)
  check_arrays("params", params)
  check_loss(loss_fn, params, batches[0])
  check_stacked(stacked)
  check_input_axes(input_axes)
  chosen = selected(params, where)
  kernels = choose(params, chosen)
  axes = layer_axes(params, chosen, stacked, input_axes)
  floating = [
    jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in jax.tree.leaves(params)
  ]

  # One SGD step on all floating-point leaves.
  @jax.checkpoint
  def sgd(params, batch):
    trained = choose(params, floating)
    grads = jax.grad(lambda w: loss_fn(merge(params, w), batch))(trained)
    moved = jax.tree.map(
      lambda w, g: w - jnp.asarray(learning_rate, w.dtype) * g.astype(w.dtype),
      trained,
      grads,
    )
    return merge(params, moved)

  @jax.jit
  def meta_gradient(weights, batches):
    def prospect(weights):
      trained = merge(params, weights)
      for t in range(steps):
        trained = sgd(trained, batches[t % len(batches)])
      return loss_fn(trained, batches[steps % len(batches)])

    return jax.grad(prospect)(weights)

  def score(masks):
    weights = apply_masks(kernels, masks)
    grads = comparable(meta_gradient(weights, batches))
    return jax.tree.map(lambda w, g: jnp.abs(w * g), comparable(weights), grads)

  return prune_by_rounds(score, kernels, density, rounds, distribution, structure, axes)
