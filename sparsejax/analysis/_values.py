"""The values of the smaller program: their shapes, and where each is read."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from sparsejax.analysis._facts import Facts
from sparsejax.analysis._program import Operation
from sparsejax.analysis._units import Units

Step = Callable[[dict, dict, int], None]  # of values, parameters, size of the batch


class Values:
  """Reads what is kept of each value, and collects the parameters for that.

  Attributes:
    facts: of the whole program.
    units: settled.
    params: `{name: array}`, of what is kept of the parameters.
    names: of those, by what each was made for.
    stacked: names of those with an axis of rounds, of the loop that is built just now.
  """

  def __init__(self, facts: Facts, units: Units):
    self.facts, self.units = facts, units
    self.params: dict[str, np.ndarray] = {}
    self.names: dict[tuple, str] = {}
    self.stacked: list[str] = []

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
    if extra is not None:
      wide = array.ndim - stacked == 0
      array = (array.reshape(array.shape + (1,) * len(sets)) if wide else array) + extra
      made_of = made_of or ("constant",)
    stacked = stacked or (extra is not None and extra.ndim > len(sets))
    if not made_of and not stacked:
      return lambda env, params, n: array
    key = (value, tuple(map(bytes, sets)), extra is None or like)
    return self.param(made_of[-1] if made_of else "constant", array, key, stacked)

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

  def param(self, path: str, array: np.ndarray, key: tuple, stacked: bool) -> Callable:
    """A parameter of the smaller program, made once for each key."""
    if key not in self.names:
      name, k = path, 2
      while name in self.params:
        name, k = f"{path}_{k}", k + 1
      self.names[key] = name
      self.params[name] = array
      if stacked:
        self.stacked.append(name)
    name = self.names[key]
    return lambda env, params, n: params[name]

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
