"""The N:M structure: n live weights in every group of m along one axis."""

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
  """Keeps exactly n live weights in every group of m weights along an axis.

  density = n / m, group(i) = i // m (adjacent) or i % (length / m) (strided)

  Drop and grow act within the groups. When k weights of a layer are kept, every group
  keeps its floor(k / groups) best. The rest of k is selected from the next best weight
  of each group. So with k = budget - ceil(f * budget) no group loses more than
  ceil(f * n) weights. Growth fills each group to n again. While a schedule decreases
  the density from dense, groups differ by at most one weight and never have fewer than
  n.

  Every layer has the density n / m. Budget cannot be moved between layers
  (`redistribute` is refused), and the distribution is `uniform`. Adjacent groups of a
  sharded axis need no communication if each shard has whole groups. Strided groups of a
  sharded axis are gathered.

  Args:
    n: number of live weights per group.
    m: number of weights per group; it must divide the axis in every layer. The time
      increases with m, which should be small.
    axis: an axis of a layer's kernel as (taps, inputs, outputs): -2 for inputs, which
      products sum over. If the inputs have several axes, as in attention's output
      kernel, weights are grouped along the last of them (strided: the first), as in the
      matrix of the merged axes.
    groups: "adjacent" or "strided".

  Returns:
    A structure with the density n / m.

  Raises:
    TypeError: `n`, `m` or `axis` is not an integer.
    ValueError: not 1 <= n < m, or `groups` is not one of the two. In `init`: a layer
      has no such axis, or m does not divide it.

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
  check_counts(n, m)
  check_integer("axis", axis)
  if groups not in ("adjacent", "strided"):
    raise ValueError(f"groups must be 'adjacent' or 'strided', got {groups!r}.")
  return _n_m(n, m, axis, groups == "adjacent")


def check_counts(n: Any, m: Any) -> None:
  """Raises TypeError or ValueError unless n and m are integers with 1 <= n < m."""
  check_integer("n", n, 1)
  check_integer("m", m)
  if m <= n:
    raise ValueError(f"m must be above n = {n}, got {m}.")


@functools.cache
def _n_m(n: int, m: int, axis: int, adjacent: bool) -> Structure:
  """Makes the structure; cached, because structures are compared by identity."""
  name = f"n_m({n}, {m}, axis={axis}{'' if adjacent else ', strided'})"

  def grouped(axes: LayerAxes) -> int:
    """Returns the axis of the leaf along which weights are grouped."""
    return axes.side[axis][-1 if adjacent else 0]

  def check(path: str, axes: LayerAxes) -> None:
    check_axis(name, axis, path, axes)
    if axes.shape[grouped(axes)] % m:
      raise ValueError(
        f"structure must fit every layer: {name} needs a multiple of {m} along axis "
        f"{axis}, got shape {axes.layer} at {path!r}."
      )

  # Budgets above n per group are kept, for schedules that start from dense.
  def fit(shapes: dict[str, tuple[int, ...]], budgets: Array) -> Array:
    sizes = [functools.reduce(int.__mul__, shape) for shape in shapes.values()]
    least = jnp.asarray([size // m * n for size in sizes], jnp.int32)
    budgets = jnp.asarray(budgets).astype(jnp.int32)
    return jnp.clip(budgets, least, jnp.asarray(sizes, jnp.int32))

  def ranks(key: Array, at: int) -> Array:
    """Ranks each weight in its group, 0 for the best; ties go to the lower index."""
    # Splits the axis into groups and members, and counts the better members of each.
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
    scores: PyTree, counts: PyTree, where: PyTree, kept: PyTree, axes: Any
  ) -> PyTree:
    """Selects k weights with group counts that differ by at most one.

    Weights in `kept` come first, then the highest scores.
    """

    def split(score, count, candidate, first, layer):
      # `every` is the number that each group gets; `next_` marks the next best of each
      # group, from which the remainder of the count is selected.
      rows = count.ndim
      key = ordered_bits(score, candidate)
      key = jnp.where(first, ~jnp.zeros_like(key), key)
      number = score.size // (count.size * m)
      every = lax.expand_dims(count // number, range(rows, score.ndim))
      rank = ranks(key, grouped(layer))
      sure, next_ = (rank < every) & (key > 0), (rank == every) & (key > 0)
      return sure, next_, count % number

    # The remainder goes to kept weights first, and then to the highest scores.
    leaves, treedef = jax.tree.flatten(scores)
    trees = [treedef.flatten_up_to(t) for t in (counts, where, kept, axes)]
    parts = [split(*args) for args in zip(leaves, *trees, strict=True)]
    sure, next_, left = (treedef.unflatten(p) for p in zip(*parts, strict=True))
    first = jax.tree.map(
      lambda s, h: jnp.where(h, jnp.asarray(jnp.inf, s.dtype), s), scores, kept
    )
    return jax.tree.map(jnp.logical_or, sure, top_k_masks(first, left, next_))

  # No weight comes first in `select` and `keep`; in `fill` all live weights do.
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
