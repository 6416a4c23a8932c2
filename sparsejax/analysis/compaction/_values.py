"""Values of the smaller program: their shapes, readers and stored parameters."""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from sparsejax.analysis.compaction._constants import Facts
from sparsejax.analysis.compaction._groups import Units
from sparsejax.analysis.jaxpr._program import Operation

Step = Callable[[dict, dict, int], None]  # of values, parameters, size of the batch


class _Use(NamedTuple):
  """One place where a parameter is read, after cutting it to what is kept."""

  key: tuple
  path: str
  array: np.ndarray
  places: np.ndarray  # of its elements in the flat parameter


class Values:
  """Readers of the kept part of each value; collects the parameters that they need.

  Attributes:
    facts: constants and batch axes of the whole program.
    units: groups, after `settle`.
    params: `{name: array}`, the kept parts of the parameters.
    fixed: `{name: array}`, constants that depend on no parameter.
    names: names in both, by the key that each array was made for.
    before: `{name: shape}`, the shape of the whole parameter where several places read
      it.
    stacked: names of the arrays with an axis of iterations, for the loop being built.
  """

  def __init__(self, facts: Facts, units: Units):
    self.facts, self.units = facts, units
    self.params: dict[str, np.ndarray] = {}
    self.fixed: dict[str, np.ndarray] = {}
    self.names: dict[tuple, str] = {}
    self.before: dict[str, tuple[int, ...]] = {}
    self.stacked: list[str] = []
    self._reads: dict[tuple, Callable] = {}
    self._uses: dict[tuple, list[_Use]] = {}

  def shape(self, value: int, n: int) -> tuple[int, ...]:
    """Returns the shape of the kept part of a value, for a batch of n."""
    batch = self.facts.batch[value]
    sizes = [len(kept) for kept in self.units.kept[value]]
    return tuple(n * s if a in batch else s for a, s in enumerate(sizes))

  def empty(self, value: int) -> bool:
    """Returns whether nothing of a value is kept, so that it is not computed."""
    flat = value in self.units.flat and value not in self.units.boxed
    return not flat and any(not len(kept) for kept in self.units.kept[value])

  def read(self, value: int) -> Callable:
    """Returns a reader of a value along its axes: `(env, params, n) -> array`."""
    if value in self.units.flat:
      return lambda env, params, n: env[value].reshape(self.shape(value, n))
    return lambda env, params, n: env[value]

  def constant(self, value: Any, sets, like: int | None = None, extra=None) -> Callable:
    """Returns a reader of a constant, cut to index sets along axes longer than one.

    Args:
      value: a literal or the number of a constant.
      sets: indices of each axis.
      like: the value whose axes these are. Along an axis on which all its units are the
        same, a constant that does not change is stored once.
      extra: array to add.

    Returns:
      `(env, params, n) -> array`.
    """
    array = self.facts.array(value)
    stacked = isinstance(value, int) and value in self.facts.stacked
    made_of = self.facts.paths(value)
    # Cut the constant; if it only rearranges one parameter, cut its element indices in
    # the same way, so that `share` can find equal reads.
    array = self._restrict(np.asarray(array), sets, stacked, like)
    places = None
    if extra is None and len(made_of) == 1:
      places = self.facts.places(value)
    if places is not None:
      places = places[0], self._restrict(places[1], sets, stacked, like)
    # Add a deferred contribution. The sum is then a parameter even if the constant was
    # not.
    if extra is not None:
      wide = array.ndim - stacked == 0
      array = (array.reshape(array.shape + (1,) * len(sets)) if wide else array) + extra
      made_of = made_of or ("constant",)
    stacked = stacked or (extra is not None and extra.ndim > len(sets))
    if not made_of and not stacked:
      return lambda env, params, n: array
    key = (value, tuple(map(bytes, sets)), extra is None or like)
    path = made_of[-1] if made_of else None
    return self.param(path, array, key, stacked, places)

  def _restrict(self, array, sets, stacked, like) -> np.ndarray:
    """Cuts an array to index sets, and to size 1 along axes on which it is constant."""
    if array.ndim - stacked == 0:
      return array
    units = None if like is None else self.units.roots(like)
    for axis, kept in enumerate(sets):
      a = axis + stacked
      if array.shape[a] > 1:
        array = array.take(kept, a)
        alike = (
          units is not None and units.any() and (units == units.take([0], axis)).all()
        )
        first = array.take([0], a) if array.shape[a] else array
        if alike and np.array_equal(np.broadcast_to(first, array.shape), array):
          array = first
    return array

  def param(
    self,
    path: str | None,
    array: np.ndarray,
    key: tuple,
    stacked: bool,
    places: tuple[int, np.ndarray] | None = None,
  ) -> Callable:
    """Returns a reader of a parameter of the smaller program, created once per key.

    Args:
      path: the parameter that it is named after; None for a constant.
      array: its values.
      key: identifies the reader.
      stacked: whether it has an axis of a loop's iterations.
      places: the number of the parameter that it is a part of and, per element, the
        index in the flat parameter; `share` then decides what is stored.

    Returns:
      `(env, params, n) -> array`.
    """
    if key not in self._reads:
      leaf, index = (None, np.zeros(0)) if stacked or places is None else places
      if index.shape == array.shape and 0 < array.size == len(np.unique(index)):
        self._reads[key], self.names[key] = lambda params: None, ""  # until `share`
        use = _Use(key, str(path), array, index)
        self._uses.setdefault((leaf, array.dtype), []).append(use)
      else:
        self._store(path, array, key)
        if stacked:
          self.stacked.append(self.names[key])
    return lambda env, params, n: self._reads[key](params)

  def _store(self, path: str | None, array: np.ndarray, key: tuple) -> str:
    """Stores an array under a free name and makes its reader."""
    first = path or "fixed"
    name, k = first, 2
    while name in self.params or name in self.fixed:
      name, k = f"{first}_{k}", k + 1
    (self.fixed if path is None else self.params)[name] = array
    self.names[key] = name
    self._reads[key] = lambda params: params[name]
    return name

  def share(self) -> None:
    """Stores each parameter that is read in several places once, if that is smaller.

    The reads may permute and cut the parameter differently. Stored is the largest read
    if it contains all others, else the smallest box of the parameter that contains all;
    or, where the box has at least as many elements as the distinct reads together, each
    of those.
    """
    for (leaf, _), uses in self._uses.items():
      shape = self.facts.program.shapes[leaf]
      # Prefer a read that has the parameter's own order of elements.
      uses.sort(key=lambda u: bool(np.any(np.diff(u.places.ravel()) < 0)))
      # Compare the sizes of the distinct reads, and find a read that contains all
      # others.
      sets = {np.sort(u.places, None).tobytes(): u for u in reversed(uses)}
      apart = sum(u.array.size for u in sets.values())
      union = np.unique(np.concatenate([u.places.ravel() for u in uses]))
      whole = [u for u in uses if u.places.size == union.size]
      stores = whole[:1]
      if not whole:
        # There is none: consider the box around all elements that are read.
        array = np.asarray(self.facts.constants[leaf]).astype(uses[0].array.dtype)
        box = np.ix_(*map(np.unique, np.unravel_index(union, shape)))
        places = np.arange(array.size).reshape(shape)[box]
        stores = [_Use(uses[0].key, uses[0].path, array[box], places)]
        if places.size >= apart:
          stores = list(sets.values())
      # Store the arrays and make every read a part of one of them.
      names = [self._store(u.path, u.array, u.key) for u in stores]
      for name, store in zip(names, stores, strict=True):
        if len(uses) > 1 and store.places.ndim == len(shape):
          self.before[name] = shape
        for use in uses:
          if np.isin(use.places, store.places).all():
            self.names[use.key] = name
            self._reads[use.key] = _part(name, store.places, use.places)
    self._uses.clear()
    # Parameters are listed in the order of their first use.
    ordered = {n: self.params[n] for n in self.names.values() if n in self.params}
    self.params.clear()
    self.params.update(ordered)

  def output(self, value: Any) -> Callable:
    """Returns a reader of a result of the program, which may be a constant."""
    if not isinstance(value, int) or self.facts.is_constant(value):
      array = self.facts.array(value)
      array = jnp.asarray(array)
      batch = self.facts.batch[value] if isinstance(value, int) else {}

      def constant(env, params, n):
        shape = tuple(n * s if a in batch else s for a, s in enumerate(array.shape))
        return jnp.broadcast_to(array, shape)

      return constant
    return self.read(value)


def binder(operation: Operation, params: dict) -> Callable:
  """Returns a primitive with its parameters as a function from operands to a list."""
  several = operation.primitive.multiple_results

  def bind(*values):
    values = [jnp.asarray(value) for value in values]
    outputs = operation.primitive.bind(*values, **params)
    return outputs if several else [outputs]

  return bind


def _part(name: str, stored: np.ndarray, wanted: np.ndarray) -> Callable:
  """Returns a reader of part of a stored array, by transposition if possible."""
  if stored.size == wanted.size:
    for order in itertools.permutations(range(stored.ndim)):
      if np.array_equal(stored.transpose(order).ravel(), wanted.ravel()):
        moves = order != tuple(range(stored.ndim))
        return lambda params: (
          params[name].transpose(order) if moves else params[name]
        ).reshape(wanted.shape)
  order = np.argsort(stored, None)
  index = order[np.searchsorted(stored.ravel(), wanted, sorter=order)]
  return lambda params: jnp.take(params[name].reshape(-1), index, mode="clip")


def spread(x: Any, shape: tuple[int, ...]) -> Any:
  """Broadcasts an array along its axes of size one; a scalar along all axes."""
  if np.ndim(x) == 0 or np.shape(x) == shape:
    return jnp.broadcast_to(x, shape)
  return lax.broadcast_in_dim(x, shape, tuple(range(len(shape))))


def take(x: jax.Array, index: np.ndarray, axis: int) -> jax.Array:
  """Returns `x[index]` along an axis, by a slice where possible."""
  size = x.shape[axis]
  if len(index) == size and np.array_equal(index, np.arange(size)):
    return x
  gaps = np.unique(np.diff(index))
  if len(gaps) <= 1 and (not len(gaps) or gaps[0] > 0):
    stride = int(gaps[0]) if len(gaps) else 1
    return lax.slice_in_dim(x, int(index[0]), int(index[-1]) + 1, stride, axis)
  return jnp.take(x, index, axis=axis, mode="clip")
