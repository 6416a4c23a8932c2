"""The uniform, Erdős–Rényi and ERK distributions of live weights over layers."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from sparsejax.core import (
  Distribution,
  LayerAxes,
  apportion,
  check_callable,
  check_integer,
  check_known,
  check_mapping,
  check_scalar,
)

Array = jax.Array
Shapes = dict[str, tuple[int, ...]]


def uniform(shapes: Shapes, density) -> Array:
  """Gives every layer the same density.

  budget_l ~ size_l, summing to round(density * total size)

  Args:
    shapes: the layers' kernel shapes by path.
    density: fraction kept, in (0, 1]; a float or a traced scalar.

  Returns:
    int32 (layers,), in the order of `shapes`. Budgets are rounded by largest remainder,
    with ties to the first layer. Each layer gets at least one weight where the total
    allows it.

  Raises:
    TypeError: `shapes` does not map to tuples of integers, or `density` is not a
      number.
    ValueError: `density` is outside (0, 1], or gives fewer weights than layers; there
      is no layer, or a layer has no weights.

  Example:
    >>> import sparsejax as sj
    >>> sj.uniform({"a": (10, 10), "b": (10, 5)}, 0.1)
    Array([10,  5], dtype=int32)
  """
  _check_shapes(shapes, 0, "uniform")
  return _distribute(sizes_of(shapes), shapes, density)


def erdos_renyi(shapes: Shapes, density) -> Array:
  """Gives layers with many neurons on both sides a lower density (Erdős–Rényi).

  budget_l ~ (n_in + n_out) * taps, that is density_l ~ (n_in + n_out) / (n_in n_out)

  Args:
    shapes: as in `uniform`. The last two axes are n_in and n_out; all axes before them
      are taps. `sparsify` passes shapes in this order for every kernel.
    density: as in `uniform`.

  Returns:
    int32 (layers,). No budget exceeds its layer's size; the excess of a full layer is
    distributed over the others.

  Raises:
    TypeError: as in `uniform`.
    ValueError: as in `uniform`; or the inputs and outputs of a layer are not known.

  References:
    Mocanu et al. 2018, "Scalable training of artificial neural networks with
    adaptive sparse connectivity inspired by network science", eq. 3.

  Example:
    >>> import sparsejax as sj
    >>> sj.erdos_renyi({"a": (100, 100), "b": (100, 10)}, 0.1)
    Array([710, 390], dtype=int32)
  """
  _check_shapes(shapes, 2, "erdos_renyi")
  weights = [sum(_in_out(s)) * int(np.prod(s[:-2])) for s in shapes.values()]
  return _distribute(weights, shapes, density)


def erk(shapes: Shapes, density) -> Array:
  """Extends Erdős–Rényi by the spatial extent of the kernel (ERK).

  budget_l ~ n_in + n_out + height + width

  Args:
    shapes: as in `erdos_renyi`.
    density: as in `uniform`.

  Returns:
    int32 (layers,), as in `erdos_renyi`.

  Raises:
    TypeError: as in `uniform`.
    ValueError: as in `erdos_renyi`.

  References:
    Evci et al. 2020, "Rigging the lottery", section 3.

  Example:
    >>> import sparsejax as sj
    >>> sj.erk({"conv": (3, 3, 8, 8), "dense": (64, 10)}, 0.25)
    Array([ 70, 234], dtype=int32)
  """
  _check_shapes(shapes, 2, "erk")
  weights = [sum(s[:-2]) + sum(_in_out(s)) for s in shapes.values()]
  return _distribute(weights, shapes, density)


def total_budget(shapes: Shapes, density):
  """Returns round(density * total size), at least 1: an int, or int64 if traced."""
  size = sum(sizes_of(shapes))
  if isinstance(density, jax.Array):
    with jax.enable_x64(True):
      scaled = density.astype(jnp.float64) * jnp.float64(size)
      return jnp.clip(
        jnp.round(scaled).astype(jnp.int64), jnp.int64(1), jnp.int64(size)
      )
  check_density(density)
  return max(1, round(float(density) * size))


class _TooFewAxes(ValueError):
  """A shape of too few axes, as that of a kernel whose axes are not known.

  Attributes:
    path: the path of the layer.
    who: the name of the distribution.
  """

  def __init__(self, message: str, path: str, who: str):
    super().__init__(message)
    self.path, self.who = path, who


def layer_budgets(
  distribution: Distribution,
  shapes: Shapes,
  density,
  axes: Sequence[LayerAxes] = (),
) -> Array:
  """Calls a distribution, which may be the user's, and validates its result.

  Args:
    distribution: `(shapes, density) -> budgets`.
    shapes: the layers' kernel shapes by path.
    density: fraction kept.
    axes: those from which `shapes` were made, if known, for the error message.

  Returns:
    int32 (layers,), summing to `total_budget(shapes, density)`. Traced budgets are
    clipped to the layers' sizes and scaled to this sum, by largest remainder.

  Raises:
    TypeError: the result is not an array.
    ValueError: the result is not one integer per layer. For a density that is not
      traced, also: a budget is below 0 or above the layer's size, or the sum differs
      from the total.
  """
  try:
    if isinstance(density, Tracer):
      given, total = distribution(shapes, density), total_budget(shapes, density)
    else:
      # Evaluates the budgets under `jit` too, so that their values can be checked.
      with jax.ensure_compile_time_eval():
        given, total = distribution(shapes, density), total_budget(shapes, density)
  except _TooFewAxes as e:
    # Names the shape of the leaf and what declares its axes.
    leaf = [
      a for a in axes if len(a.layer) > 1 and f"{e.path}/".startswith(f"{a.path}/")
    ]
    check_known(leaf, f"the distribution {e.who}")
    raise
  try:
    budgets = jnp.asarray(given)
  except (TypeError, ValueError):
    raise TypeError(
      f"distribution must return an integer per layer, {len(shapes)} in all, got "
      f"{given!r}."
    ) from None
  if budgets.shape != (len(shapes),) or not jnp.issubdtype(budgets.dtype, jnp.integer):
    raise ValueError(
      f"distribution must return an integer per layer, {len(shapes)} in all, got "
      f"{budgets.dtype}{list(budgets.shape)}."
    )
  sizes = np.asarray(sizes_of(shapes))
  if not isinstance(given, Tracer):
    for path, budget, size in zip(shapes, np.asarray(given), sizes, strict=True):
      if not 0 <= budget <= size:
        raise ValueError(
          f"distribution must give each layer 0 to all of its weights, got {budget} of "
          f"{size} at {path!r}."
        )
  if isinstance(given, Tracer) or isinstance(total, Tracer):
    # Leaves budgets that already sum to the total unchanged.
    budgets = jnp.clip(budgets.astype(jnp.int32), 0, jnp.asarray(sizes, jnp.int32))
    return _apportion(budgets, total, sizes, spread=False)
  found = int(np.asarray(given, np.int64).sum())
  if found != int(total):
    raise ValueError(
      f"distribution must return budgets that sum to {int(total)}, {density} of "
      f"{sizes.sum()} weights, got {found}."
    )
  return budgets.astype(jnp.int32)


def check_distribution(distribution, none: bool = False) -> None:
  """Raises TypeError unless a value is a function of (shapes, density).

  Args:
    distribution: the value to check.
    none: whether None is accepted.
  """
  if distribution is None and none:
    return
  what = "a function of (shapes, density), such as sj.erk"
  check_callable("distribution", distribution, what, 2)


def check_density(density, name: str = "density") -> None:
  """Raises unless a density is a number in (0, 1]; array values are not checked."""
  if isinstance(density, jax.Array):
    check_scalar(name, density)
    return
  if isinstance(density, bool) or not isinstance(density, (int, float, np.number)):
    raise TypeError(f"{name} must be a number in (0, 1], got {density!r}.")
  if not 0 < density <= 1:
    raise ValueError(f"{name} must lie in (0, 1], got {density}.")


def _distribute(weights: list[int], shapes: Shapes, density) -> Array:
  sizes = sizes_of(shapes)
  total = total_budget(shapes, density)
  if isinstance(total, int) and total < len(sizes):
    raise ValueError(
      f"density must leave every layer a weight, got {density}: {total} weights for "
      f"{len(sizes)} layers."
    )
  return _apportion(np.asarray(weights, np.int64), total, np.asarray(sizes, np.int64))


@jax.jit
def _one_each(budgets: Array, others: Array) -> Array:
  """Raises budgets of 0 to 1 and takes the weights from the largest budget.

  Where that is too small to give them, the budgets are `others`.
  """
  empty = budgets == 0
  needed = jnp.sum(empty, dtype=jnp.int32)
  largest = budgets == jnp.max(budgets)
  first = largest & (jnp.cumsum(largest, dtype=jnp.int32) == 1)
  moved = jnp.where(empty, 1, jnp.where(first, budgets - needed, budgets))
  return jnp.where(jnp.max(budgets) > needed, moved, others)


def _apportion(weights, total, sizes, spread: bool = True) -> Array:
  with jax.enable_x64(True):
    total, sizes = jnp.asarray(total), jnp.asarray(sizes)
    budgets = _apportion_jit(jnp.asarray(weights), total, sizes)
    if not spread:
      return budgets
    others = _apportion_after_one_each(budgets, total, sizes)
  return _one_each(budgets, others)


_apportion_jit = jax.jit(apportion)


@jax.jit
def _apportion_after_one_each(budgets: Array, total: Array, sizes: Array) -> Array:
  """Gives each layer one weight, and divides the rest as the budgets are divided."""
  layers = len(budgets)
  more = apportion(jnp.maximum(budgets - 1, 0), total - layers, sizes - 1)
  return jnp.where(total >= layers, more + 1, budgets)


def _check_shapes(shapes: Shapes, rank: int, who: str) -> None:
  check_mapping("shapes", shapes, "from a path to a kernel's shape")
  if not shapes:
    raise ValueError("shapes must contain at least one layer, got an empty mapping.")
  for path, shape in shapes.items():
    if not isinstance(shape, (tuple, list)):
      raise TypeError(f"shapes must be tuples, got {shape!r} for {path!r}.")
    for n in shape:
      check_integer("shapes", n, 1)
    if len(shape) < rank:
      raise _TooFewAxes(
        f"shapes must have {rank} axes or more, got {shape} for {path!r}. Of a kernel "
        "whose inputs and outputs are not known only the size is given: declare them "
        "by input_axes, or what stacks layers by stacked.",
        path,
        who,
      )


def sizes_of(shapes: Shapes) -> list[int]:
  """Returns the number of weights per layer, in the order of `shapes`."""
  return [int(np.prod(shape, dtype=np.int64)) for shape in shapes.values()]


def _in_out(shape: tuple[int, ...]) -> tuple[int, ...]:
  return shape[-2:]
