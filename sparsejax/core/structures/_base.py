"""The type of a structure, and helpers and checks that use structures."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from sparsejax.core._budgets import apportion
from sparsejax.core._kernel_axes import LayerAxes, plain_axes

Array = jax.Array
PyTree = Any
Shapes = dict[str, tuple[int, ...]]


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, eq=False)
class Structure:
  """A restriction on the sets of weights that may be live, as pure functions.

  See `sparsejax.core.structures` for the contract. Structures are compared by identity.
  Make one and use it again, because a compiled `init` is found in the cache only for
  the same object.

  Attributes:
    name: the name in error messages.
    check: `(path, axes) -> None`; raises ValueError for a layer that the structure does
      not fit, given its `LayerAxes`.
    unit: `(shape) -> int`: budgets, and the counts after `keep`, are multiples of it.
      None if they are not; then budget cannot be moved between layers.
    fit: `(shapes, budgets) -> budgets`: the closest budgets that the structure can
      satisfy.
    select: `(scores, budgets, where, axes) -> masks`: selects the best candidates.
    keep: `(scores, counts, masks, axes) -> masks`: selects the best live weights, for
      `drop`. The result may violate the structure if `fill` restores it.
    fill: `(scores, budgets, masks, before, axes) -> (masks, budgets)`: grows the best
      masked weights until the budgets are reached; `before` are the masks before the
      chain.
    density: the only density that the structure can have, or None for any.
    ablates: whether `fill` may ablate neurons, which a method must support by growing.
    group: `(n, m)` if n of every m adjacent inputs (axis -2) are live; else None.
    block: `(bi, bo)` if inputs and outputs are live in blocks of this size; else None.
  """

  name: str
  check: Callable[[str, LayerAxes], None]
  unit: Callable[[tuple[int, ...]], int] | None
  fit: Callable[[Shapes, Array], Array]
  select: Callable[..., PyTree]
  keep: Callable[..., PyTree]
  fill: Callable[..., tuple[PyTree, PyTree]]
  density: float | None = None
  ablates: bool = False
  group: tuple[int, int] | None = None
  block: tuple[int, int] | None = None


def in_matrix_order(function: Callable[..., Any]) -> Callable[..., Any]:
  """Wraps a function so that its arrays have axes (stacked, taps, inputs, outputs).

  Arrays are transposed before the function and back after it. Unlike merging axes, a
  transpose needs no communication between devices. So inputs and outputs may still have
  several axes each, which `axes` lists.

  Args:
    function: `(scores, budgets, *trees, axes) -> masks`, or `(masks, budgets)`, on
      lists with one entry per leaf.

  Returns:
    The same function for trees of any containers and order of axes. Without `axes`, the
    kernels' axes are taken to be (stacked, taps, inputs, outputs).
  """

  @functools.wraps(function)
  def wrapped(scores: PyTree, budgets: PyTree, *trees: PyTree, axes=None):
    # Budgets get one axis per stacked axis of the leaf, without the axes of length 1.
    axes = plain_axes(scores, budgets) if axes is None else axes
    treedef = jax.tree.structure(scores)
    numbers, budgets_def = jax.tree.flatten(budgets)
    rows = [
      b.reshape([a.shape[i] for i in a.stacked])
      for b, a in zip(numbers, axes, strict=True)
    ]
    first, *others = (
      [_transpose(x, a.order) for x, a in zip(jax.tree.leaves(t), axes, strict=True)]
      for t in (scores, *trees)
    )
    result = function(first, rows, *others, axes=[a.ordered() for a in axes])
    # Masks get their order of axes back, and budgets their shapes.
    masks, given = result if isinstance(result, tuple) else (result, None)
    masks = treedef.unflatten(
      _transpose(m, tuple(a.order.index(i) for i in range(m.ndim)))
      for m, a in zip(masks, axes, strict=True)
    )
    if given is None:
      return masks
    given = [n.reshape(b.shape) for n, b in zip(given, numbers, strict=True)]
    return masks, budgets_def.unflatten(given)

  return wrapped


def _transpose(x: Array, order: tuple[int, ...]) -> Array:
  return x if order == tuple(range(x.ndim)) else jnp.transpose(x, order)


def fit_units(unit: Callable[[tuple[int, ...]], int]):
  """Makes a `Structure.fit` that rounds budgets to units, at least one per layer.

  budget_l -> unit_l * n_l: where all layers share one unit the n_l sum to
  round(total / unit), by largest remainder; else n_l = round(budget_l / unit_l).

  Args:
    unit: a function from a layer's shape to the number of weights in one unit.

  Returns:
    `(shapes, budgets) -> budgets`, int32 (layers,).
  """

  def fit(shapes: Shapes, budgets: Array) -> Array:
    units = [unit(shape) for shape in shapes.values()]
    u = jnp.asarray(units, jnp.int32)
    capacity = jnp.asarray(
      [_size(s) // n for s, n in zip(shapes.values(), units, strict=True)], jnp.int32
    )
    # With units of different sizes, each budget is rounded on its own.
    budgets = jnp.asarray(budgets).astype(jnp.int32)
    whole, rest = budgets // u, budgets % u
    nearest = whole + (rest >= u - rest).astype(jnp.int32)
    nearest = jnp.clip(nearest, jnp.minimum(capacity, 1), capacity)
    if len(set(units)) > 1:
      return nearest * u
    # With one unit for all, the total is rounded to units, which are then divided.
    with jax.enable_x64(True):
      total = jnp.sum(budgets.astype(jnp.int64))
      total = (total + jnp.int64(units[0] // 2)) // jnp.int64(units[0])
      # Each layer gets one unit first, because a layer without weights cannot learn.
      spare = jnp.maximum(total - jnp.int64(len(units)), jnp.int64(0))
    ones = jnp.ones_like(capacity)
    more = apportion(jnp.maximum(budgets - u, 0), spare, capacity - ones)
    return (ones + more) * u

  return fit


def common_unit(structure: Structure | None, shapes: Shapes) -> int:
  """Returns the unit in which budget can be moved between all layers.

  Args:
    structure: a structure, or None.
    shapes: the layers' shapes by path.

  Returns:
    The number of weights in a unit of every layer; 1 without a structure.

  Raises:
    ValueError: the layers have different units, or the structure has none.
  """
  if structure is None:
    return 1
  if structure.unit is None:
    raise ValueError(
      "redistribute must be free to move budget between layers, which the structure "
      f"{structure.name} is not; leave it out of the chain."
    )
  units = {path: structure.unit(shape) for path, shape in shapes.items()}
  if len(set(units.values())) > 1:
    raise ValueError(
      "redistribute must move budget between layers in units of one size, got the "
      f"structure {structure.name} with units of {units} weights; leave it out of the "
      "chain."
    )
  return next(iter(units.values()))


def density_of(density: Any, structure: Structure | None) -> Any:
  """Returns the density of a method, which its structure may fix.

  Args:
    density: a float, schedule or traced scalar, or None.
    structure: a structure, or None.

  Returns:
    `density`, or the density of the structure if that is None.

  Raises:
    TypeError: `structure` is not a `Structure`; or `density` is None and the structure
      fixes none.
    ValueError: `density` differs from the density that the structure fixes.
  """
  if structure is not None:
    check_type(structure)
  if structure is None or structure.density is None:
    if density is None:
      raise TypeError("density must be a number in (0, 1], got None.")
    return density
  if density is None:
    return structure.density
  check_fixed(density, structure)
  return density


def check_type(structure: Any) -> None:
  """Raises TypeError unless a value is a `Structure`."""
  if not isinstance(structure, Structure):
    raise TypeError(
      f"structure must be a Structure, such as sj.n_m(2, 4), got {structure!r}."
    )


def check_fixed(density: Any, structure: Structure) -> None:
  """Raises ValueError unless a density is the one that the structure fixes, if any.

  Schedules, which are functions, are not checked.
  """
  fixed = structure.density
  if fixed is None or callable(density):
    return
  if isinstance(density, jax.Array) or not density == fixed:
    raise ValueError(
      f"density must be {fixed} or None for the structure {structure.name}, got "
      f"{density!r}."
    )


def fits_any(structure: Structure, shapes: Shapes) -> None:
  """Accepts every structure; for `MaskTransform.fits`."""


def check_fits(transform: Any, structure: Structure, shapes: Shapes) -> None:
  """Raises ValueError if a mask transform does not support a structure.

  Args:
    transform: a `MaskTransform`.
    structure: a structure.
    shapes: the layers' shapes by path.

  Raises:
    ValueError: the transform does not support the structure for these layers.
  """
  if transform.fits is None:
    name = getattr(transform.update, "__qualname__", repr(transform.update))
    raise ValueError(
      "structure must be None for a mask transform that does not know structures (its "
      f"`fits` is None): got {structure.name} with {name.split('.')[0]}."
    )
  transform.fits(structure, shapes)


def _size(shape: tuple[int, ...]) -> int:
  size = 1
  for n in shape:
    size *= n
  return size
