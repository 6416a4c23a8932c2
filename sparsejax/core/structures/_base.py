"""The contract of a structure, and what the transforms ask of one."""

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
  """Which sets of weights may be live: a handful of pure functions.

  See `sparsejax.core.structures` for the contract. Compared by identity, so make one
  and keep it: a compiled `init` is found again only for the same object.

  Attributes:
    name: how messages call it.
    check: `(path, axes) -> None`; raises ValueError for a layer it does not fit, whose
      `LayerAxes` it is given.
    unit: `(shape) -> int`: budgets, and what `keep` leaves, are multiples of it; None
      where that does not hold, so that nothing can be moved between layers.
    fit: `(shapes, budgets) -> budgets`: the closest budgets that it can hold.
    select: `(scores, budgets, where, axes) -> masks`: the best of the candidates.
    keep: `(scores, counts, masks, axes) -> masks`: the best of the live ones, what
      `drop` leaves; may lie between two masks of the structure as long as `fill` mends
      it.
    fill: `(scores, budgets, masks, before, axes) -> (masks, budgets)`: wakes the best
      dead weights until the budgets are full; `before` are the masks before the chain.
    density: the only density it can have, or None for any.
    ablates: whether `fill` may close neurons, so that a method must grow.
    group: `(n, m)` where n of every m neighbouring inputs are live, axis -2; else None.
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


def in_matrix_order(function: Callable[..., Any]) -> Callable[..., Any]:
  """Gives a structure's function its trees with axes (stacked, taps, inputs, outputs).

  A transpose moves no shard between devices, which merging axes would; so a side of a
  kernel may still have several axes, which `axes` tells. What the function returns is
  transposed back.

  Args:
    function: `(scores, budgets, *trees, axes) -> masks`, or `(masks, budgets)`, of
      lists with an entry per leaf.

  Returns:
    The same for trees of any containers and order of axes; `axes` are those of plain
    kernels where they are not given.
  """

  @functools.wraps(function)
  def wrapped(scores: PyTree, budgets: PyTree, *trees: PyTree, axes=None):
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
  """A `Structure.fit` for budgets in multiples of a unit, at least one a layer.

  budget_l -> unit_l * n_l: where all layers share one unit the n_l sum to
  round(total / unit), by largest remainder; else n_l = round(budget_l / unit_l).

  Args:
    unit: from a layer's shape to the number of weights in one unit.

  Returns:
    `(shapes, budgets) -> budgets`, int32 (layers,).
  """

  def fit(shapes: Shapes, budgets: Array) -> Array:
    units = [unit(shape) for shape in shapes.values()]
    u = jnp.asarray(units, jnp.int32)
    capacity = jnp.asarray(
      [_size(s) // n for s, n in zip(shapes.values(), units, strict=True)], jnp.int32
    )
    budgets = jnp.asarray(budgets).astype(jnp.int32)
    whole, rest = budgets // u, budgets % u
    nearest = whole + (rest >= u - rest).astype(jnp.int32)
    nearest = jnp.clip(nearest, jnp.minimum(capacity, 1), capacity)
    if len(set(units)) > 1:
      return nearest * u
    with jax.enable_x64(True):
      total = jnp.sum(budgets.astype(jnp.int64))
      total = (total + jnp.int64(units[0] // 2)) // jnp.int64(units[0])
      # One unit a layer first: a layer without any cannot learn.
      spare = jnp.maximum(total - jnp.int64(len(units)), jnp.int64(0))
    ones = jnp.ones_like(capacity)
    more = apportion(jnp.maximum(budgets - u, 0), spare, capacity - ones)
    return (ones + more) * u

  return fit


def common_unit(structure: Structure | None, shapes: Shapes) -> int:
  """In what multiples budget can move between layers: 1 without a structure.

  Args:
    structure: a structure, or None.
    shapes: the layers' shapes by path.

  Returns:
    The unit that all layers share.

  Raises:
    ValueError: layers differ in their units, or the structure fixes each budget.
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
  """The density of a method: its structure's own where it is None.

  Args:
    density: a float, schedule or traced scalar, or None.
    structure: a structure, or None.

  Returns:
    `density`, or the structure's.

  Raises:
    TypeError: structure is not one; density is None and the structure has none.
    ValueError: the density is not the structure's.
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
  """Raises TypeError unless it is a structure."""
  if not isinstance(structure, Structure):
    raise TypeError(
      f"structure must be a Structure, such as sj.n_m(2, 4), got {structure!r}."
    )


def check_fixed(density: Any, structure: Structure) -> None:
  """Raises ValueError unless a density is the only one that a structure can have."""
  fixed = structure.density
  if fixed is None or callable(density):
    return
  if isinstance(density, jax.Array) or not density == fixed:
    raise ValueError(
      f"density must be {fixed} or None for the structure {structure.name}, got "
      f"{density!r}."
    )


def fits_any(structure: Structure, shapes: Shapes) -> None:
  """A `MaskTransform.fits` that refuses no structure."""


def check_fits(transform: Any, structure: Structure, shapes: Shapes) -> None:
  """Raises ValueError where a mask transform and a structure do not go together.

  Args:
    transform: a `MaskTransform`.
    structure: a structure.
    shapes: the layers' shapes by path.

  Raises:
    ValueError: they do not.
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
