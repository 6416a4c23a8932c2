"""Powerpropagation (Schwarz et al. 2021)."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sparsejax.core import (
  Distribution,
  InputAxes,
  Stacked,
  Where,
  check_number,
  check_optimizer,
  check_where,
  is_placeholder,
  selected,
  widened,
)
from sparsejax.core.structures import Structure
from sparsejax.distributions import uniform
from sparsejax.methods._gradual_magnitude import gradual_magnitude


def powerpropagation(
  inner: optax.GradientTransformation,
  density: Any,
  *,
  update_every: int | None = 100,
  start_step: int = 0,
  end_step: int | None = None,
  distribution: Distribution = uniform,
  where: Where = None,
  stacked: Stacked = False,
  input_axes: InputAxes = None,
  seed: Any = 0,
  alpha: float = 2.0,
  initial_density: float = 1.0,
  structure: Structure | None = None,
) -> optax.GradientTransformationExtraArgs:
  """Prunes gradually while large weights learn faster than small ones (Powerprop).

  w = theta |theta|^(alpha - 1);  dL/dtheta = alpha |theta|^(alpha - 1) dL/dw;
  masks_l = the budget_l largest |w| of layer l, at the cubic density of
  `gradual_magnitude`

  The inner optimizer trains theta. Its gradient shrinks with the weight, so small
  weights hardly move, weights gather near zero, and more of them can be pruned. The
  params stay w, in the loss and everywhere else: `power_updates` does the change of
  variables. To combine it with another method, wrap the inner optimizer:
  `sj.top_kast(sj.power_updates(inner), 0.1)`.

  Args:
    inner: any optax optimizer; it updates theta, and its weight decay is that of theta.
      The authors' MNIST notebook uses SGD.
    density: fraction of weights kept, in (0, 1], at the end of the cubic; or a schedule
      `step -> density` that replaces the cubic.
    update_every: steps between mask updates.
    start_step: steps before the schedule of mask updates begins.
    end_step: no mask update after this step; required.
    distribution: sets the budget of each layer, at every density.
    where: which leaves are sparsified and trained through theta; see `sparsify`.
    stacked: which leaves stack several layers; see `sparsify`.
    input_axes: which axes of a kernel are its inputs; see `sparsify`.
    seed: seed of the first masks and of random scores.
    alpha: the power, at least 1; 1 is plain `gradual_magnitude`. The authors' MNIST
      notebook compares 1 to 5.
    initial_density: density at the start of the cubic, in (0, 1].
    structure: which patterns of live weights are allowed; see `sparsify`.

  Returns:
    An optax transformation; see `sparsify`.

  Raises:
    TypeError: an argument has the wrong type.
    ValueError: an argument is outside its range; no leaf is selected; the structure
      does not fit.

  References:
    Schwarz et al. 2021, "Powerpropagation: a sparsity inducing weight
    reparameterisation".

  Example:
    >>> import jax.numpy as jnp, optax, sparsejax as sj
    >>> tx = sj.powerpropagation(optax.sgd(0.1), density=0.25, end_step=1000)
    >>> state = tx.init({"kernel": jnp.ones((8, 8))})
    >>> int(sj.masks(state)["kernel"].sum())
    64
  """
  return gradual_magnitude(
    power_updates(inner, alpha, where),
    density,
    update_every=update_every,
    start_step=start_step,
    end_step=end_step,
    distribution=distribution,
    where=where,
    stacked=stacked,
    input_axes=input_axes,
    seed=seed,
    initial_density=initial_density,
    structure=structure,
  )


def power_updates(
  inner: optax.GradientTransformation, alpha: float = 2.0, where: Where = None
) -> optax.GradientTransformationExtraArgs:
  """Updates weights through their root theta, so that large weights learn faster.

  w = theta |theta|^(alpha - 1);  u = inner(alpha |theta|^(alpha - 1) dL/dw, theta);
  update = (theta + u) |theta + u|^(alpha - 1) - w, and 0 where u = 0

  Params are w, with the usual initialization, before and after every step; theta is
  computed from them in float32 or wider, and so is the state of the inner optimizer.
  The gradient at theta = 0 is zero: a weight that is exactly zero stays zero, so do not
  use it with methods that grow weights from zero (`sj.rigl`).

  Args:
    inner: any optax optimizer.
    alpha: the power, at least 1; see `powerpropagation`.
    where: which leaves are trained through theta; None for kernels, as in `sparsify`.

  Returns:
    An optax transformation with the state of the inner optimizer. Pass it to a sparse
    optimizer as its inner optimizer, or use it alone and prune afterwards.

  Raises:
    TypeError: an argument has the wrong type.
    ValueError: alpha is below 1; in `init`, no leaf is selected.

  References:
    Schwarz et al. 2021, "Powerpropagation: a sparsity inducing weight
    reparameterisation".

  Example:
    >>> import jax.numpy as jnp, optax, sparsejax as sj
    >>> tx = sj.power_updates(optax.sgd(0.25), alpha=2.0)
    >>> params = {"kernel": jnp.array([[4.0, 0.0]])}  # theta = 2, 0
    >>> grads = {"kernel": jnp.array([[1.0, 1.0]])}  # dL/dtheta = 4, 0
    >>> tx.update(grads, tx.init(params), params)[0]  # (2 - 1)^2 - 4
    {'kernel': Array([[-3.,  0.]], dtype=float32)}
  """
  check_optimizer("inner", inner)
  check_number("alpha", alpha, "be at least 1", lambda v: 1 <= v < np.inf)
  check_where("where", where)
  inner = optax.with_extra_args_support(inner)

  def change(function, params, *trees):
    """Applies a function to the leaves that are trained through theta."""
    leaves, treedef = jax.tree.flatten(params)
    columns = [treedef.flatten_up_to(tree) for tree in trees]
    rows = zip(selected(params, where), leaves, *columns, strict=True)
    return treedef.unflatten(function(*row[1:]) if row[0] else row[-1] for row in rows)

  def root(weight):
    wide = widened(weight)
    return jnp.sign(wide) * jnp.abs(wide) ** (1 / alpha)

  def slope(weight, gradient):
    theta = root(weight)
    return alpha * jnp.abs(theta) ** (alpha - 1) * gradient.astype(theta.dtype)

  def moved(weight, update):
    theta = root(weight) + update
    step = theta * jnp.abs(theta) ** (alpha - 1) - weight.astype(theta.dtype)
    return jnp.where(update == 0, jnp.zeros_like(step), step)

  def init_fn(params):
    if is_placeholder(params):
      return inner.init(params)
    return inner.init(change(root, params))

  def update_fn(updates, state, params=None, **extra_args):
    if params is None:
      raise ValueError(
        "params must be passed to update: tx.update(grads, opt_state, params); "
        "got None."
      )
    grads = change(slope, params, updates)
    updates, state = inner.update(grads, state, change(root, params), **extra_args)
    return change(moved, params, updates), state

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)
