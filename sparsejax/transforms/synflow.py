"""SynFlow (Tanaka et al. 2020)."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import Tracer

from sparsejax.core.checks import check_callable, check_integer
from sparsejax.core.layerwise import usable
from sparsejax.core.leaves import Where, choose, merge, selected
from sparsejax.core.masks import apply_masks
from sparsejax.core.random import true_like
from sparsejax.core.structures.base import Structure
from sparsejax.core.types import Distribution, PyTree
from sparsejax.transforms.at_initialization import (
  amounts,
  check_rounds,
  check_selection,
  keep_best,
)


def synflow(
  apply_fn: Callable[[PyTree, jax.Array], jax.Array],
  params: PyTree,
  input_shape: Sequence[int],
  density: Any,
  *,
  rounds: int = 100,
  where: Where = None,
  distribution: Distribution | None = None,
  structure: Structure | None = None,
) -> PyTree:
  """Prunes at initialization without data, and empties no layer before it must.

  s = |w dR/dw|,  R = 1^T f(1; |params|);  for k = 1 .. rounds: the best
  density^(k / rounds) of all layers, at the weights that are left

  f is the network with all its params, biases too, replaced by their magnitudes, and R
  the sum of its outputs for an input of ones. A layer's scores sum to the same total in
  every layer of a chain, so a small layer's weights score high and it is pruned last.

  R grows or shrinks by a factor a layer: it passes float32's range at some 30 layers.
  All is computed in float64, without `jax_enable_x64` being set; 200 layers of 512
  units are in range. A model that fixes its own dtype must be built with another for
  this call, and TPUs, which emulate float64 within float32's range, must leave it to
  the CPU (`jax.default_device`).

  Args:
    apply_fn: `(params, inputs) -> outputs`, in evaluation mode: no dropout, batch
      normalization by its running statistics.
    params: the weights at initialization.
    input_shape: of the inputs, the batch axis included: (1, 28, 28, 1).
    density: fraction kept, in (0, 1].
    rounds: how many prunings; one shot (1) empties layers.
    where: which leaves are sparsified; see `sparsify`.
    distribution: see `masks_from_scores`; None, the paper's, compares over all layers.
    structure: see `masks_from_scores`.

  Returns:
    The masks, as `sj.masks` gives them; see `snip`.

  Raises:
    TypeError: an argument has the wrong type.
    ValueError: an argument is outside its range; no leaf is selected.
    FloatingPointError: R is out of range or zero in some round (not seen under `jit`).

  References:
    Tanaka et al. 2020, "Pruning neural networks without any data by iteratively
    conserving synaptic flow", algorithm 1.

  Example:
    >>> import jax.numpy as jnp, sparsejax as sj
    >>> apply = lambda params, x: x @ params["a"] @ params["b"]
    >>> params = {"a": jnp.array([[1.0, -3.0]]), "b": jnp.array([[4.0], [1.0]])}
    >>> masks = sj.synflow(apply, params, (1, 1), density=0.5, rounds=2)
    >>> masks["a"].ravel().tolist(), masks["b"].ravel().tolist()
    ([True, False], [True, False])
  """
  density = check_selection(density, distribution, structure)
  check_rounds(rounds)
  check_callable("apply_fn", apply_fn, "a function of (params, inputs)", 2)
  if not isinstance(input_shape, (tuple, list)):
    raise TypeError(f"input_shape must be a tuple of integers, got {input_shape!r}.")
  for n in input_shape:
    check_integer("input_shape", n, 1)
  chosen = selected(params, where)
  with jax.enable_x64(True):
    ladder = amounts(choose(params, chosen), density, rounds, distribution, structure)
    ladder = jnp.stack([jnp.asarray(amount) for amount in ladder])

    @jax.jit
    def prune(params, ladder):
      positive = jax.tree.map(_magnitude, params)
      kernels = choose(positive, chosen)
      inputs = jnp.ones(tuple(input_shape), jnp.float64)

      def flow(weights):
        return jnp.sum(apply_fn(merge(positive, weights), inputs))

      def one_round(masks, amount):
        weights = apply_masks(kernels, masks)
        scores = jax.tree.map(jnp.multiply, weights, jax.grad(flow)(weights))
        largest = [jnp.max(s) for s in jax.tree.leaves(scores)]
        sound = usable(scores, masks) & jnp.any(jnp.stack(largest) > 0)
        return keep_best(scores, amount, masks, structure), sound

      return lax.scan(one_round, jax.tree.map(true_like, kernels), ladder)

    masks, sound = prune(params, ladder)
    if not isinstance(sound, Tracer) and not sound.all():
      raise FloatingPointError(
        "params must give a synaptic flow that float64 can hold, got scores that are "
        f"not finite or all zero in round {int(jnp.argmin(sound)) + 1} of {rounds}."
      )
  return masks


def _magnitude(leaf: jax.Array) -> jax.Array:
  floating = jnp.issubdtype(leaf.dtype, jnp.floating)
  return jnp.abs(leaf).astype(jnp.float64) if floating else leaf
