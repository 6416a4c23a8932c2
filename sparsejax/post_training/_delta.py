"""Sparse fine-tuning: a sparse change of a trained network that stays as it is."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from sparsejax.core import (
  Distribution,
  PyTree,
  Stacked,
  Where,
  check_arrays,
  check_callable,
  check_integer,
  check_stacked,
)
from sparsejax.core.structures import Structure
from sparsejax.distributions import uniform
from sparsejax.scores import (
  accumulated_magnitude,
  empirical_fisher_diagonal,
  magnitude,
  signed_gradient,
)
from sparsejax.transforms import (
  Fraction,
  accumulate,
  chain,
  drop,
  fraction_rule,
  grow,
  masks_from_scores,
  sparsify,
)


def with_delta(base: PyTree, delta: PyTree) -> PyTree:
  """Adds a delta to a trained network.

  w = base + delta where delta != 0, else base, bit for bit

  Call it inside the loss, `loss(with_delta(base, delta), batch)`, and differentiate
  with respect to the delta: it is what an optimizer trains, and starts at zero.

  Args:
    base: the params of the trained network, any pytree of arrays; leaves that are not
      floating point are returned unchanged.
    delta: a tree of the same structure and shapes; its dtype may be wider.

  Returns:
    The weights, in the dtypes of `base`. de/d(delta) is 1 everywhere, so that a sparse
    optimizer sees the gradients of weights that it may grow.

  Raises:
    TypeError: a leaf is not an array.
    ValueError: the structures or shapes differ.

  Example:
    >>> import jax.numpy as jnp
    >>> base = {"kernel": jnp.array([[1.0, 2.0]])}
    >>> with_delta(base, {"kernel": jnp.array([[0.0, 0.5]])})
    {'kernel': Array([[1. , 2.5]], dtype=float32)}
  """
  check_arrays("base", base)
  check_arrays("delta", delta)
  if jax.tree.structure(base) != jax.tree.structure(delta):
    raise ValueError(
      f"delta must have the structure of base, {jax.tree.structure(base)}, got "
      f"{jax.tree.structure(delta)}."
    )
  for w, d in zip(jax.tree.leaves(base), jax.tree.leaves(delta), strict=True):
    if w.shape != d.shape:
      raise ValueError(f"delta must have the shapes of base, {w.shape}, got {d.shape}.")
  return jax.tree.map(
    lambda w, d: _added(w, d) if jnp.issubdtype(w.dtype, jnp.floating) else w,
    base,
    delta,
  )


# The sum alone would turn -0.0 into +0.0. The gradient passes where delta is 0, too.
@jax.custom_jvp
def _added(base, delta):
  wide = max(base.dtype, delta.dtype, key=lambda dtype: jnp.finfo(dtype).bits)
  total = base.astype(wide) + delta.astype(wide)
  return jnp.where(delta == 0, base, total.astype(base.dtype))


@_added.defjvp
def _added_jvp(primals, tangents):
  base, delta = primals
  total = tangents[0] + tangents[1].astype(base.dtype)
  return _added(base, delta), total


def fish_masks(
  example_loss: Callable[[PyTree, Any], jax.Array],
  base: PyTree,
  examples: Any,
  density: Any,
  *,
  where: Where = ".*",
  stacked: Stacked = False,
  distribution: Distribution | None = None,
  structure: Structure | None = None,
  batch_size: int = 32,
) -> PyTree:
  """Selects the weights to fine-tune by their Fisher information (FISH mask).

  s = mean_i (dL_i/dw)^2;  masks = the round(density * size) largest s

  L_i is the loss of one labelled example of the new task (the empirical Fisher). The
  authors always select all weights of the new output layer, within the same budget.
  Train a delta under these masks, which never change:

      tx = sj.static_sparse(optax.adam(1e-3), density, where=".*")
      state = sj.with_masks(tx.init(delta), masks)

  Args:
    example_loss: `(params, example) -> scalar`, the loss of one example.
    base: the params of the trained network.
    examples: pytree whose leaves have the examples along axis 0; the authors use 1024
      for GLUE and 256 for CIFAR-10.
    density: fraction of weights that may change, in (0, 1]; the paper uses 0.005.
    where: which leaves may change; ".*", the default, for all, biases and embeddings
      included; see `sparsify`.
    stacked: which leaves stack several layers; see `sparsify`.
    distribution: sets the budget of each leaf; None, the paper's choice, lets all
      weights compete.
    structure: which patterns are allowed; see `masks_from_scores`.
    batch_size: how many examples' gradients are in memory at a time.

  Returns:
    A tree of bool arrays (True = may change), None at leaves outside `where`.

  Raises:
    TypeError: an argument has the wrong type.
    ValueError: an argument is outside its range; there are no examples; a gradient is
      not finite.

  References:
    Sung, Nair & Raffel 2021, "Training neural networks with fixed sparse masks", and
    the authors' program.

  Example:
    >>> import jax.numpy as jnp
    >>> loss = lambda params, x: jnp.sum(params["w"] * x)  # dL/dw = x
    >>> x = jnp.array([[1.0, -3.0, 0.5, 0.0], [2.0, 1.0, 0.5, 0.0]])
    >>> fish_masks(loss, {"w": jnp.zeros(4)}, x, density=0.5)
    {'w': Array([ True,  True, False, False], dtype=bool)}
  """
  check_callable("example_loss", example_loss, "a function of (params, example)", 2)
  check_arrays("base", base)
  check_arrays("examples", examples)
  check_integer("batch_size", batch_size, 1)
  check_stacked(stacked)
  if not jax.tree.leaves(examples):
    raise ValueError("examples must hold at least one array, got an empty tree.")
  scores = empirical_fisher_diagonal(
    example_loss, base, examples, batch_size=batch_size
  )
  return masks_from_scores(
    scores,
    density,
    where=where,
    stacked=stacked,
    distribution=distribution,
    structure=structure,
  )


def spiel(
  inner: optax.GradientTransformation,
  density: Any,
  *,
  update_every: int | None = 100,
  start_step: int = 0,
  end_step: int | None = None,
  distribution: Distribution = uniform,
  where: Where = ".*",
  stacked: Stacked = False,
  seed: Any = 0,
  drop_fraction: Fraction = 0.2,
  structure: Structure | None = None,
) -> optax.GradientTransformationExtraArgs:
  """Trains a sparse delta whose weights are dropped and regrown (SpIEL-AG).

  drop(|delta|, drop_fraction) > grow(|sum of dL/dw since the last mask update|)

  The params of this optimizer are the delta, which starts at zero; compute the loss
  with `with_delta(base, delta)`. A dropped weight returns to its value in the base, and
  a grown one starts from it. The number of weights that differ from the base is at most
  the budget after every step. The first masks are random; `sj.with_masks` starts from
  others, such as those of `fish_masks`. The authors' program begins with the largest
  gradients of the first few steps.

  Gradients are summed over all steps since the last mask update, for all weights, so
  their memory is dense; the authors' program, for language models, sums a few steps
  before a mask update, for candidates for growth only.

  Args:
    inner: any optax optimizer of the delta; weight decay pulls the weights to the base.
    density: fraction of weights that may differ from the base, in (0, 1].
    update_every: steps between mask updates.
    start_step: steps before the schedule of mask updates begins.
    end_step: no mask update after this step; None for no limit.
    distribution: sets the budget of each leaf.
    where: which leaves of the delta are sparse; ".*", the default, for all. Others are
      trained densely; see `sparsify`.
    stacked: which leaves stack several layers; see `sparsify`.
    seed: seed of the first masks.
    drop_fraction: fraction of the delta's live weights that are replaced at a mask
      update: a float or a schedule; the authors decay it linearly from 0.2 to 0.
    structure: which patterns of live weights are allowed; see `sparsify`.

  Returns:
    An optax transformation; see `sparsify`.

  Raises:
    TypeError: an argument has the wrong type.
    ValueError: an argument is outside its range; the structure does not fit.

  References:
    Ansell et al. 2024, "Scaling sparse fine-tuning to large language models", with
    accumulated gradients, and the authors' program.

  Example:
    >>> import jax.numpy as jnp, optax, sparsejax as sj
    >>> delta = {"kernel": jnp.zeros((8, 8)), "bias": jnp.zeros(8)}
    >>> state = spiel(optax.adam(1e-3), density=0.125).init(delta)
    >>> int(sj.masks(state)["kernel"].sum()), int(sj.masks(state)["bias"].sum())
    (8, 1)
  """
  changes = chain(
    drop(magnitude, fraction_rule(drop_fraction, "drop_fraction")),
    grow(accumulated_magnitude),
  )
  return sparsify(
    inner,
    accumulate(signed_gradient, changes, reset=True),
    density,
    update_every=update_every,
    start_step=start_step,
    end_step=end_step,
    distribution=distribution,
    where=where,
    stacked=stacked,
    seed=seed,
    mask_gradients=True,
    structure=structure,
  )
