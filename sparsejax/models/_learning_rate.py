"""Learning rates for networks of any depth, calibrated before the first step."""

import re
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sparsejax.core import (
  check_callable,
  check_mapping,
  check_number,
  check_regex,
  path_string,
)

PyTree = Any

# Images are not centred if the mean image has more than this share of the mean square.
_CENTRED = 0.1


def calibrate_learning_rate(
  loss: Callable[[PyTree, Any], jax.Array],
  params: PyTree,
  batches: Iterable[Any],
  eta: float = 0.3,
  scales: Mapping[str, float] | None = None,
) -> float:
  """Returns the learning rate whose first step reduces the loss by about `eta`.

  lr = eta / mean_b sum_i s_i |g_i(b)|^2

  For a critical network of L layers it is proportional to 1 / L. A few batches are
  enough.

  Args:
    loss: `(params, batch) -> scalar`.
    params: parameters at initialization.
    batches: some minibatches.
    eta: the reduction of the loss by the first step, to first order; 0.3 is safe, 0.5
      often is.
    scales: `{regex: factor}` for paths whose updates are scaled, as for
      `scale_by_path`; 0 leaves a parameter out.

  Returns:
    The learning rate.

  Raises:
    ValueError: eta is not above 0, there is no batch, or the gradient is zero or not
      finite: such a network cannot be trained.

  Example:
    >>> loss = lambda p, x: jnp.sum(p["w"] * x)
    >>> calibrate_learning_rate(loss, {"w": jnp.ones(2)}, [jnp.array([3.0, 4.0])], 0.5)
    0.02
  """
  check_callable("loss", loss, "a function of (params, batch)", 2)
  check_number("eta", eta, "be above 0", lambda v: 0 < v < np.inf)
  factors = path_scales(params, scales or {})

  @jax.jit
  def measure(params, batch):
    grads = jax.grad(loss)(params, batch)
    squares = [
      jnp.float32(s) * jnp.sum(jnp.square(g.astype(jnp.float32)))
      for s, g in zip(factors, jax.tree.leaves(grads), strict=True)
      if s
    ]
    return jnp.sum(jnp.stack(squares))

  found = [float(measure(params, batch)) for batch in batches]
  if not found:
    raise ValueError("batches must contain at least one, got none.")
  mean = float(np.mean(found))
  if not (np.isfinite(mean) and mean > 0):
    raise ValueError(
      f"the gradient's mean square must be above 0 and finite, got {mean}: the network "
      "passes no signal at this depth."
    )
  return float(f"{eta / mean:.4g}")


def scale_by_path(scales: Mapping[str, float]) -> optax.GradientTransformation:
  """Multiplies the updates of each parameter by a factor chosen by its path.

  u_i <- s_i u_i,  s_i the factor of the first expression found in i's path, or 1

  Args:
    scales: `{regex: factor}`; each regex is searched for in slash-separated paths.

  Returns:
    An optax transformation without state, to be chained after an optimizer.

  Raises:
    TypeError: scales is not a mapping from regexes to numbers.
    ValueError: an expression is not a regex, a factor is negative, or (at init) an
      expression matches nothing.

  Example:
    >>> tx = optax.chain(optax.sgd(1.0), scale_by_path({"bias": 0.1}))
    >>> params = {"kernel": jnp.ones(1), "bias": jnp.ones(1)}
    >>> updates, _ = tx.update(params, tx.init(params))
    >>> float(updates["kernel"][0]), round(float(updates["bias"][0]), 3)
    (-1.0, -0.1)
  """
  check_mapping("scales", scales, "from a regex to a factor")
  for pattern, factor in scales.items():
    check_regex("scales", pattern)
    check_number(
      f"scales[{pattern!r}]", factor, "be at least 0", lambda v: 0 <= v < np.inf
    )

  def init(params):
    path_scales(params, scales)
    return optax.EmptyState()

  def update(updates, state, params=None):
    del params
    leaves, treedef = jax.tree.flatten(updates)
    factors = path_scales(updates, scales)
    leaves = [
      u * np.asarray(s, u.dtype) if s != 1 else u
      for u, s in zip(leaves, factors, strict=True)
    ]
    return treedef.unflatten(leaves), state

  return optax.GradientTransformation(init, update)


def path_scales(params: PyTree, scales: Mapping[str, float]) -> list[float]:
  """Returns the factor of each leaf, in flattening order; see `scale_by_path`."""
  paths = [path_string(p) for p, _ in jax.tree_util.tree_leaves_with_path(params)]
  for pattern in scales:
    try:
      found = any(re.search(pattern, path) for path in paths)
    except re.error as e:
      raise ValueError(
        f"scales must be by valid regex, got {pattern!r}: {e}."
      ) from None
    if not found:
      raise ValueError(
        f"scales must match parameters, got {pattern!r} for {', '.join(paths)}."
      )
  return [
    next((float(s) for r, s in scales.items() if re.search(r, path)), 1.0)
    for path in paths
  ]


def check_centred(images: Any) -> float:
  """Warns if images are not centred: networks of 1,000 layers then hardly learn.

  ||mean image||^2 / mean ||image||^2

  Args:
    images: (n, ...), as passed to the network; some dozens, from all classes.

  Returns:
    The share of the mean image, between 0 and 1.

  Example:
    >>> check_centred(np.array([[1.0], [-1.0]]))
    0.0
  """
  images = np.asarray(images, np.float64)
  if images.ndim < 2 or not images.size:
    raise ValueError(f"images must be of shape (n, ...), got {images.shape}.")
  whole = np.mean(images**2)
  share = float(np.mean(images.mean(0) ** 2) / whole) if whole else 0.0
  # Even n images of independent noise have a mean image, with a share of 1 / n.
  if share > _CENTRED + 1 / len(images):
    warnings.warn(
      f"the mean image is {share:.0%} of the images' mean square: take it off first, "
      "for deep networks hardly tell images apart that share so much.",
      stacklevel=2,
    )
  return share
