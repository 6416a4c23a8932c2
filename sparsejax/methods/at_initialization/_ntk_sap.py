"""NTK-SAP: pruning by the spectrum of the neural tangent kernel (Wang et al. 2023)."""

from collections.abc import Callable, Sequence
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
  check_callable,
  check_input_axes,
  check_integer,
  check_number,
  check_stacked,
  choose,
  layer_axes,
  leaf_keys,
  merge,
  selected,
)
from sparsejax.core.structures import Structure
from sparsejax.methods.at_initialization._synflow import input_maker
from sparsejax.transforms import (
  check_rounds,
  check_selection,
  comparable,
  prune_by_rounds,
)


def ntk_sap(
  apply_fn: Callable[[PyTree, jax.Array], jax.Array],
  params: PyTree,
  input_shape: Sequence[int] | jax.Array | jax.ShapeDtypeStruct,
  density: Any,
  *,
  rounds: int = 20,
  samples: int = 128,
  epsilon: float = 0.01,
  init: Callable[[jax.Array], PyTree] | None = None,
  seed: Any = 0,
  where: Where = None,
  stacked: Stacked = False,
  input_axes: InputAxes = None,
  distribution: Distribution | None = None,
  structure: Structure | None = None,
) -> PyTree:
  """Prunes the weights that matter least to the neural tangent kernel's trace.

  s = |dR/dm|,  R = sum_x |f(x; m w) - f(x; m (w + epsilon n))|^2,  n, x ~ N(0, 1);
  for k = 1 .. rounds: new w, n and x, and the best density^(k / rounds) of all layers

  E R / epsilon^2 is, for small epsilon, the trace of the kernel of the pruned network:
  the sum of its eigenvalues, which decide how fast the network trains. No Jacobian is
  formed. As inputs are noise and weights are drawn anew in every round, the masks fit
  the architecture and not its initial weights: no data is used.

  Each round costs two forward passes and their gradients, of `samples` inputs. The
  authors' script for CIFAR-10 has 20 rounds and five draws of the weights per round;
  here every round has one.

  Args:
    apply_fn: `(params, inputs) -> outputs`, in evaluation mode: no dropout, and batch
      normalization with its running statistics. (The authors first set these to the
      statistics of the noise.)
    params: the params at initialization.
    input_shape: shape of the inputs with the batch axis, such as (1, 28, 28, 1), or an
      array or `jax.ShapeDtypeStruct` of floats. Its first axis is replaced by
      `samples`.
    density: fraction of weights kept, in (0, 1].
    rounds: number of pruning rounds.
    samples: number of random inputs per round.
    epsilon: standard deviation of the perturbation of the weights, above 0; 0.01 is the
      authors' default.
    init: `key -> params`, the initializer of the model. None draws each sparsified
      kernel from a normal distribution with the standard deviation of its given values,
      and keeps the other params.
    seed: seed of inputs, perturbations and weights, an integer of at least 0.
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
    ValueError: an argument is outside its range; inputs are not floating point; a score
      is not finite; `init` gives other params.

  References:
    Wang, Li & Sun 2023, "NTK-SAP: improving neural network pruning by aligning training
    dynamics", and the authors' program.

  Example:
    >>> import jax.numpy as jnp, sparsejax as sj
    >>> apply = lambda params, x: jnp.tanh(x @ params["a"]) @ params["b"]
    >>> params = {"a": jnp.ones((3, 4)), "b": jnp.ones((4, 2))}
    >>> masks = sj.ntk_sap(apply, params, (1, 3), density=0.5, rounds=2)
    >>> sum(int(mask.sum()) for mask in masks.values())
    10
  """
  # Validate everything before the first round.
  density = check_selection(density, distribution, structure)
  check_rounds(rounds)
  check_integer("samples", samples, 1)
  check_integer("seed", seed, 0)
  check_number("epsilon", epsilon, "be above 0", lambda v: 0 < v < np.inf)
  check_callable("apply_fn", apply_fn, "a function of (params, inputs)", 2)
  if init is not None:
    check_callable("init", init, "a function of a key", 1)
  make_inputs = input_maker(input_shape)
  check_arrays("params", params)
  check_stacked(stacked)
  check_input_axes(input_axes)
  chosen = selected(params, where)
  kernels = choose(params, chosen)
  axes = layer_axes(params, chosen, stacked, input_axes)
  inputs = jax.eval_shape(lambda: make_inputs(None))
  if not inputs.shape or not jnp.issubdtype(inputs.dtype, jnp.floating):
    raise ValueError(
      f"input_shape must stand for floats with a batch axis, got {inputs.dtype}"
      f"{list(inputs.shape)}."
    )
  shape = (samples, *inputs.shape[1:])
  initialize = init or (lambda key: merge(params, _like(key, kernels)))
  _check_init(initialize, params)

  # R as a function of the masks, at new weights, perturbations and inputs.
  @jax.jit
  def saliency(masks, key):
    weights_key, noise_key, inputs_key = jax.random.split(key, 3)
    drawn = initialize(weights_key)
    weights, x = (
      choose(drawn, chosen),
      jax.random.normal(inputs_key, shape, inputs.dtype),
    )
    noise = _normal(noise_key, weights)
    moved = jax.tree.map(
      lambda w, n: w + jnp.asarray(epsilon, w.dtype) * n, weights, noise
    )

    def distance(factors):
      outputs = [
        apply_fn(merge(drawn, jax.tree.map(jnp.multiply, factors, w)), x)
        for w in (weights, moved)
      ]
      difference = (outputs[0] - outputs[1]).astype(jnp.float32)
      return jnp.sum(difference**2)

    # The derivative at live weights; masked ones are not selected again.
    factors = jax.tree.map(lambda m, w: m.astype(w.dtype), masks, weights)
    gradients = comparable(jax.grad(distance)(factors))
    return apply_masks(jax.tree.map(jnp.abs, gradients), masks)

  keys = iter(jax.random.split(jax.random.key(seed), rounds))
  return prune_by_rounds(
    lambda masks: saliency(masks, next(keys)),
    kernels,
    density,
    rounds,
    distribution,
    structure,
    axes,
  )


def _normal(key: jax.Array, tree: PyTree) -> PyTree:
  """Draws standard normal trees."""
  leaves, treedef = jax.tree.flatten(tree)
  keys = leaf_keys(key, tree)
  return treedef.unflatten(
    jax.random.normal(k, leaf.shape, leaf.dtype)
    for k, leaf in zip(keys, leaves, strict=True)
  )


def _like(key: jax.Array, kernels: PyTree) -> PyTree:
  """Draws kernels with the standard deviations of the given ones."""
  draws = _normal(key, kernels)
  return jax.tree.map(lambda n, w: n * jnp.std(w).astype(w.dtype), draws, kernels)


def _check_init(init: Callable[[jax.Array], PyTree], params: PyTree) -> None:
  """Raises ValueError unless an initializer gives params of the same shapes."""
  described = lambda tree: jax.tree.map(lambda x: (x.shape, str(x.dtype)), tree)
  got = jax.eval_shape(init, jax.random.key(0))
  if described(got) != described(params):
    raise ValueError(
      f"init must give params like the given ones, got {described(got)}."
    )
