"""The values of the smaller program: their shapes, and where each is read."""

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
  """One place where a parameter is read, after cuts."""

  key: tuple
  path: str
  array: np.ndarray
  places: np.ndarray  # of its elements in the flat parameter


class Values:
  """Reads what is kept of each value, and collects the parameters for that.

  Attributes:
    facts: of the whole program.
    units: settled.
    params: `{name: array}`, of what is kept of the parameters.
    fixed: `{name: array}`, of constants that are made of no parameter.
    names: of both, by what each was made for.
    before: `{name: shape}`, of the whole parameter where several places read one.
    stacked: names of those with an axis of rounds, of the loop that is built just now.
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
    """What is kept of a value, for a batch of n."""
    batch = self.facts.batch[value]
    sizes = [len(kept) for kept in self.units.kept[value]]
    return tuple(n * s if a in batch else s for a, s in enumerate(sizes))

  def empty(self, value: int) -> bool:
    """Whether nothing is kept of a value, so that it is not computed."""
    flat = value in self.units.flat and value not in self.units.boxed
    return not flat and any(not len(kept) for kept in self.units.kept[value])

  def read(self, value: int) -> Callable:
    """A value along its axes."""
    if value in self.units.flat:
      return lambda env, params, n: env[value].reshape(self.shape(value, n))
    return lambda env, params, n: env[value]

  def constant(self, value: Any, sets, like: int | None = None, extra=None) -> Callable:
    """A constant, restricted to index sets where it is not repeated along the axis.

    Args:
      value: a literal or the number of a constant.
      sets: indices of each axis.
      like: the value whose axes these are; along an axis on which its units are alike
        the constant is stored once if it does not change there.
      extra: added to it.

    Returns:
      `(env, params, n) -> array`.
    """
    array = self.facts.array(value)
    stacked = isinstance(value, int) and value in self.facts.stacked
    made_of = self.facts.paths(value)
    array = self._restrict(np.asarray(array), sets, stacked, like)
    places = None
    if extra is None and len(made_of) == 1:
      places = self.facts.places(value)
    if places is not None:
      places = places[0], self._restrict(places[1], sets, stacked, like)
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
    """A parameter of the smaller program, made once for each key.

    Args:
      path: that it is named by; None for a constant that is no parameter.
      array: its values.
      key: what it is made for.
      stacked: whether it has an axis of a loop's rounds.
      places: the parameter that it is a part of and, for each element, the index in
        its flat array; then `share` decides what is stored.

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

    What the places read may be permuted and cut differently. Stored is the largest if
    it holds all others, or the part of the parameter that holds all; or, where that
    would be larger than they are together, one of each.
    """
    for (leaf, _), uses in self._uses.items():
      shape = self.facts.program.shapes[leaf]
      # As the parameter has them, if any place reads it so.
      uses.sort(key=lambda u: bool(np.any(np.diff(u.places.ravel()) < 0)))
      sets = {np.sort(u.places, None).tobytes(): u for u in reversed(uses)}
      apart = sum(u.array.size for u in sets.values())
      union = np.unique(np.concatenate([u.places.ravel() for u in uses]))
      whole = [u for u in uses if u.places.size == union.size]
      stores = whole[:1]
      if not whole:
        array = np.asarray(self.facts.constants[leaf]).astype(uses[0].array.dtype)
        box = np.ix_(*map(np.unique, np.unravel_index(union, shape)))
        places = np.arange(array.size).reshape(shape)[box]
        stores = [_Use(uses[0].key, uses[0].path, array[box], places)]
        if places.size >= apart:
          stores = list(sets.values())
      names = [self._store(u.path, u.array, u.key) for u in stores]
      for name, store in zip(names, stores, strict=True):
        if len(uses) > 1 and store.places.ndim == len(shape):
          self.before[name] = shape
        for use in uses:
          if np.isin(use.places, store.places).all():
            self.names[use.key] = name
            self._reads[use.key] = _part(name, store.places, use.places)
    self._uses.clear()
    ordered = {n: self.params[n] for n in self.names.values() if n in self.params}
    self.params.clear()
    self.params.update(ordered)

  def output(self, value: Any) -> Callable:
    """A result of the program, which may be a constant."""
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
  """A primitive with its parameters: a function of its operands, to a list."""
  several = operation.primitive.multiple_results

  def bind(*values):
    values = [jnp.asarray(value) for value in values]
    outputs = operation.primitive.bind(*values, **params)
    return outputs if several else [outputs]

  return bind


def _part(name: str, stored: np.ndarray, wanted: np.ndarray) -> Callable:
  """Reads elements of a stored parameter: transposed if that is all, else gathered."""
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
  """Repeats an array along its axes of size one; a scalar along all."""
  if np.ndim(x) == 0 or np.shape(x) == shape:
    return jnp.broadcast_to(x, shape)
  return lax.broadcast_in_dim(x, shape, tuple(range(len(shape))))


def take(x: jax.Array, index: np.ndarray, axis: int) -> jax.Array:
  """`x[index]` along an axis, as a slice where it is one."""
  size = x.shape[axis]
  if len(index) == size and np.array_equal(index, np.arange(size)):
    return x
  gaps = np.unique(np.diff(index))
  if len(gaps) <= 1 and (not len(gaps) or gaps[0] > 0):
    stride = int(gaps[0]) if len(gaps) else 1
    return lax.slice_in_dim(x, int(index[0]), int(index[-1]) + 1, stride, axis)
  return jnp.take(x, index, axis=axis, mode="clip")
