"""N:M sparsity: n live weights in every group of m along one axis."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from sparsejax.core._checks import check_integer
from sparsejax.core._kernel_axes import LayerAxes
from sparsejax.core._selection import ordered_bits, top_k_masks
from sparsejax.core.structures._base import Structure, in_matrix_order
from sparsejax.core.structures._layout import check_axis, reshape_keeping

Array = jax.Array
PyTree = Any


def n_m(n: int, m: int, axis: int = -2, groups: str = "adjacent") -> Structure:
  """N:M: every group of m weights along an axis holds exactly n live ones.

  density = n / m, group(i) = i // m (adjacent) or i % (length / m) (strided)

  Drop and grow work inside the groups. When k weights of a layer are to stay, every
  group keeps its best floor(k / groups) and the best of what is next in line make up
  the rest: with k = budget - ceil(f * budget) no group loses more than ceil(f * n).
  Growth fills each group to n again. While a schedule comes down from dense, groups
  differ by one weight at most; it never goes below n.

  Every layer has the density n / m: nothing can move between layers (`redistribute`
  is refused), and the distribution is `uniform`. Communication-free on a sharded axis
  if the groups are adjacent and shards hold whole groups; strided groups of a sharded
  axis must be collected.

  Args:
    n: live weights of a group.
    m: weights of a group; divides the axis in every layer. Meant to be small: the
      work grows with m.
    axis: of a layer's kernel as (taps, inputs, outputs), -2 for inputs, along which
      products are summed. Of inputs that have several axes, as in attention's output
      kernel, groups lie along the last one (strided: the first), as they would in the
      matrix.
    groups: "adjacent" or "strided".

  Returns:
    A structure of density n / m.

  Raises:
    TypeError: n, m or axis is not an integer.
    ValueError: not 1 <= n < m; groups is neither; at init: a layer has no such axis, or
      m does not divide it.

  References:
    Zhou et al. 2021, "Learning N:M fine-grained structured sparse neural networks from
    scratch", section 3.

  Example:
    >>> import jax.numpy as jnp, optax, sparsejax as sj
    >>> tx = sj.rigl(optax.sgd(0.1), density=0.5, structure=sj.n_m(2, 4))
    >>> state = tx.init({"kernel": jnp.ones((4, 3))})
    >>> print(sj.masks(state)["kernel"].sum(0))
    [2 2 2]
  """
  check_integer("n", n, 1)
  check_integer("m", m, n + 1)
  check_integer("axis", axis)
  if groups not in ("adjacent", "strided"):
    raise ValueError(f"groups must be 'adjacent' or 'strided', got {groups!r}.")
  return _n_m(n, m, axis, groups == "adjacent")


@functools.cache
def _n_m(n: int, m: int, axis: int, adjacent: bool) -> Structure:
  name = f"n_m({n}, {m}, axis={axis}{'' if adjacent else ', strided'})"

  def grouped(axes: LayerAxes) -> int:
    """The axis of the leaf along which groups lie."""
    return axes.side[axis][-1 if adjacent else 0]

  def check(path: str, axes: LayerAxes) -> None:
    check_axis(name, axis, path, axes)
    if axes.shape[grouped(axes)] % m:
      raise ValueError(
        f"structure must fit every layer: {name} needs a multiple of {m} along axis "
        f"{axis}, got shape {axes.layer} at {path!r}."
      )

  def fit(shapes: dict[str, tuple[int, ...]], budgets: Array) -> Array:
    sizes = [functools.reduce(int.__mul__, shape) for shape in shapes.values()]
    least = jnp.asarray([size // m * n for size in sizes], jnp.int32)
    budgets = jnp.asarray(budgets).astype(jnp.int32)
    return jnp.clip(budgets, least, jnp.asarray(sizes, jnp.int32))

  def ranks(key: Array, at: int) -> Array:
    """The place of each weight in its group, 0 for the best, ties by index."""
    number = key.shape[at] // m
    parts = (number, m) if adjacent else (m, number)
    cut = (*key.shape[:at], *parts, *key.shape[at + 1 :])
    origin = [*range(at), at, None, *range(at + 1, key.ndim)]
    member = at + 1 if adjacent else at
    x = reshape_keeping(key, cut, origin)
    along = tuple(m if i == member else 1 for i in range(x.ndim))
    place = lax.broadcasted_iota(jnp.int32, along, member)
    rank = jnp.zeros_like(x, jnp.int32)
    for j in range(m):
      other = lax.slice_in_dim(x, j, j + 1, axis=member)
      rank += ((other > x) | ((other == x) & (place > j))).astype(jnp.int32)
    back = [*range(at), at, *range(at + 2, x.ndim)]
    return reshape_keeping(rank, key.shape, back)

  @in_matrix_order
  def balanced(
    scores: PyTree, counts: PyTree, where: PyTree, held: PyTree, axes: Any
  ) -> PyTree:
    """The k best, with group counts one apart at most; held ones come first."""

    def split(score, count, candidate, first, layer):
      rows = count.ndim
      key = ordered_bits(score, candidate)
      key = jnp.where(first, ~jnp.zeros_like(key), key)
      number = score.size // (count.size * m)
      every = lax.expand_dims(count // number, range(rows, score.ndim))
      rank = ranks(key, grouped(layer))
      sure, next_ = (rank < every) & (key > 0), (rank == every) & (key > 0)
      return sure, next_, count % number

    leaves, treedef = jax.tree.flatten(scores)
    trees = [treedef.flatten_up_to(t) for t in (counts, where, held, axes)]
    parts = [split(*args) for args in zip(leaves, *trees, strict=True)]
    sure, next_, left = (treedef.unflatten(p) for p in zip(*parts, strict=True))
    first = jax.tree.map(
      lambda s, h: jnp.where(h, jnp.asarray(jnp.inf, s.dtype), s), scores, held
    )
    return jax.tree.map(jnp.logical_or, sure, top_k_masks(first, left, next_))

  def select(scores: PyTree, counts: PyTree, where: PyTree, axes=None) -> PyTree:
    nothing = jax.tree.map(jnp.zeros_like, where)
    return balanced(scores, counts, where, nothing, axes=axes)

  def fill(scores: PyTree, budgets: PyTree, masks: PyTree, before: PyTree, axes=None):
    everything = jax.tree.map(jnp.ones_like, masks)
    return balanced(scores, budgets, everything, masks, axes=axes), budgets

  return Structure(
    name=name,
    check=check,
    unit=None,
    fit=fit,
    select=select,
    keep=select,
    fill=fill,
    density=n / m,
    group=(n, m) if adjacent and axis == -2 else None,
  )
