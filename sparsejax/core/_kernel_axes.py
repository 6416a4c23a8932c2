"""The meaning of a kernel's axes: inputs, outputs, taps, and axes that stack layers.

A kernel is a matrix in another shape: each output is a sum over all inputs. In flax,
the query kernel of attention has the shape (d, heads, head_dim), its output kernel
(heads, head_dim, d), and the kernel of a convolution (height, width, in, out); in
torch's order the last one is (out, in, height, width). `input_axes` and `stacked`
declare the axes; by default they follow from paths and shapes, by the rules of
`_axis_conventions`.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sparsejax.core._axis_conventions import (
  bias_of_layer,
  bias_shape,
  known_axes,
  outputs_first,
)
from sparsejax.core._checks import check_callable, check_regex
from sparsejax.core._stacked import budget_shape, stacked_axes
from sparsejax.core._tree import Where, check_where, matches, named_leaves

Array = jax.Array
PyTree = Any


class KernelAxes(NamedTuple):
  """The declared input and output axes of a kernel; all other axes are taps.

  Attributes:
    inputs: the axes that a product sums over, one integer or several.
    outputs: the axes of the product's result, likewise.

  Example:
    >>> import sparsejax as sj
    >>> conv1d = sj.KernelAxes(inputs=1, outputs=2)  # of a kernel (width, in, out)
  """

  inputs: int | tuple[int, ...]
  outputs: int | tuple[int, ...]


Axes = int | tuple[int, ...] | KernelAxes
InputAxes = Mapping[str, Axes] | Callable[[str, Array], Axes | None] | None
Stacked = Where | Mapping[str, int | tuple[int, ...]]


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class LayerAxes:
  """The meaning of the axes of one sparsified leaf; static.

  Attributes:
    path: the path of the leaf, slash-separated.
    shape: the shape of the leaf.
    stacked: the axes that stack layers. These and the others are in increasing order.
    inputs: the axes that a product sums over; empty if they are not known.
    outputs: the axes of the product's result; empty if they are not known.
  """

  path: str
  shape: tuple[int, ...]
  stacked: tuple[int, ...] = ()
  inputs: tuple[int, ...] = ()
  outputs: tuple[int, ...] = ()

  @property
  def known(self) -> bool:
    """True if the input and output axes are known."""
    return bool(self.inputs)

  @property
  def taps(self) -> tuple[int, ...]:
    """The axes that are not inputs or outputs and do not stack layers."""
    others = (*self.stacked, *self.inputs, *self.outputs)
    return tuple(i for i in range(len(self.shape)) if i not in others)

  @property
  def order(self) -> tuple[int, ...]:
    """The permutation of the axes to (stacked, taps, inputs, outputs)."""
    return (*self.stacked, *self.taps, *self.inputs, *self.outputs)

  @property
  def layer(self) -> tuple[int, ...]:
    """The shape of one layer: that of the leaf without the stacked axes."""
    return tuple(n for i, n in enumerate(self.shape) if i not in self.stacked)

  @property
  def matrix(self) -> tuple[int, ...]:
    """The shape (taps ..., inputs, outputs) of a layer; (size,) if axes are unknown."""
    if not self.known:
      return (math.prod(self.layer),)
    taps = (self.shape[i] for i in self.taps)
    return (*taps, self.length(self.inputs), self.length(self.outputs))

  @property
  def budget(self) -> jax.ShapeDtypeStruct:
    """The shape and dtype of the leaf's budget, one number per layer."""
    return jax.ShapeDtypeStruct(budget_shape(self.shape, self.stacked), jnp.int32)

  @property
  def side(self) -> tuple[tuple[int, ...], ...]:
    """The axes of the leaf that make up each axis of `matrix`."""
    return (*((i,) for i in self.taps), self.inputs, self.outputs)

  def length(self, axes: Sequence[int]) -> int:
    """Returns the product of the lengths of some axes."""
    return math.prod(self.shape[i] for i in axes)

  def ordered(self) -> "LayerAxes":
    """Returns the `LayerAxes` of the leaf after a transpose by `order`."""
    place = {axis: i for i, axis in enumerate(self.order)}
    stacked, inputs, outputs = (
      tuple(place[i] for i in axes)
      for axes in (self.stacked, self.inputs, self.outputs)
    )
    shape = tuple(self.shape[i] for i in self.order)
    return LayerAxes(self.path, shape, stacked, inputs, outputs)


def plain_axes(tree: PyTree, budgets: PyTree) -> tuple[LayerAxes, ...]:
  """Returns the axes of plain kernels (stacked ..., taps ..., inputs, outputs).

  The shape of each budget says which axes stack layers.
  """
  out = []
  pairs = zip(named_leaves(tree), jax.tree.leaves(budgets), strict=True)
  for (path, leaf), budget in pairs:
    stacked = stacked_axes(budget)
    rest = [i for i in range(len(leaf.shape)) if i not in stacked]
    sides = ((rest[-2],), (rest[-1],)) if len(rest) > 1 else ((), ())
    out.append(LayerAxes(path, tuple(leaf.shape), stacked, *sides))
  return tuple(out)


def layer_axes(
  params: PyTree,
  chosen: Sequence[bool],
  stacked: Stacked = False,
  input_axes: InputAxes = None,
) -> tuple[LayerAxes, ...]:
  """Returns the axes of the chosen leaves, by the table at the head of this module.

  Args:
    params: any pytree of arrays.
    chosen: one bool per leaf, in flattening order.
    stacked: see `sparsify`.
    input_axes: see `sparsify`.

  Returns:
    A `LayerAxes` per chosen leaf, in flattening order.

  Raises:
    TypeError: an axis is not an integer.
    ValueError: an axis is out of range or named twice; `stacked` contradicts the bias
      in the same module, or selects no chosen leaf; a pattern matches no leaf.

  Example:
    >>> import jax.numpy as jnp
    >>> params = {"query": {"kernel": jnp.ones((64, 8, 8))}}
    >>> [axes] = layer_axes(params, [True])
    >>> axes.inputs, axes.outputs, axes.matrix
    ((0,), (1, 2), (64, 64))
  """
  # What the user declared for each leaf: the axes that stack layers, and its inputs.
  flat = named_leaves(params)
  leaves, paths = dict(flat), [path for path, _ in flat]
  stacks = _stacks(params, paths, [leaf for _, leaf in flat], stacked)
  if stacked is not False and not any(
    c and s is not None for c, s in zip(chosen, stacks, strict=True)
  ):
    raise ValueError(f"stacked must select a leaf that is sparsified, got {stacked!r}.")
  declared = _by_path("input_axes", input_axes, paths, [leaf for _, leaf in flat])
  out = []
  for (path, leaf), is_chosen, stack, axes in zip(
    flat, chosen, stacks, declared, strict=True
  ):
    if not is_chosen:
      continue
    shape = tuple(leaf.shape)
    stack = () if stack is None else _normal("stacked", stack, path, shape)
    if stack and len(shape) - len(stack) < 1:
      raise ValueError(
        f"stacked must select leaves of rank {len(stack) + 1} or more, got shape "
        f"{shape} at {path!r}."
      )
    # Declared axes take precedence; otherwise the table and the bias decide.
    bias = bias_shape(path, leaves)
    _check_stack(path, shape, stack, bias)
    if axes is None:
      inputs, outputs = known_axes(path, shape, stack, bias, leaves)
    else:
      inputs, outputs = _declared(path, shape, stack, axes)
    out.append(LayerAxes(path, shape, stack, inputs, outputs))
  return tuple(out)


def layer_shapes(axes: Sequence[LayerAxes]) -> dict[str, tuple[int, ...]]:
  """Returns the shape (taps ..., inputs, outputs) of each layer by its path.

  Args:
    axes: one `LayerAxes` per leaf.

  Returns:
    dict in the order of the budgets. Row i of a leaf that stacks layers has the path
    `path/i`. The shape is (size,) for a kernel whose axes are not known.
  """
  shapes = {}
  for a in axes:
    rows = np.ndindex(*(a.shape[i] for i in a.stacked))
    shapes.update({"/".join([a.path, *map(str, row)]): a.matrix for row in rows})
  return shapes


def check_known(axes: Sequence[LayerAxes], who: str) -> None:
  """Raises ValueError unless the inputs and outputs of all kernels are known.

  Args:
    axes: one `LayerAxes` per leaf.
    who: the name of what needs them, for the error message.

  Raises:
    ValueError: the axes of a kernel are not known.
  """
  for a in axes:
    if not a.known:
      raise ValueError(
        f"input_axes must say which axes of {a.path!r} are summed over, for {who} must "
        f"know and shape {a.shape} does not tell: pass input_axes={{{a.path!r}: axis}},"
        f" or stacked={{{a.path!r}: axis}} where an axis stacks layers."
      )


def check_input_axes(input_axes: Any) -> None:
  """Raises TypeError or ValueError unless a value is valid as `input_axes`."""
  if input_axes is not None:
    _check_by_path("input_axes", input_axes)


def check_stacked(stacked: Any) -> None:
  """Raises TypeError or ValueError unless a value is valid as `stacked`."""
  if _has_axes(stacked):
    _check_by_path("stacked", stacked)
  else:
    rule = "a tree of bools, a regex, {regex: axis} or a function of (path, leaf)"
    check_where("stacked", stacked, rule)


def _check_by_path(name: str, value: Any) -> None:
  if isinstance(value, Mapping):
    for pattern, axes in value.items():
      check_regex(name, pattern)
      _check_axes(name, axes)
  else:
    check_callable(name, value, "a dict from a regex, or a function of (path, leaf)", 2)


def _check_axes(name: str, axes: Any) -> None:
  if isinstance(axes, KernelAxes):
    for part in axes:
      _check_axes(name, part)
    return
  parts = axes if isinstance(axes, (tuple, list)) else (axes,)
  for axis in parts:
    if isinstance(axis, bool) or not isinstance(axis, (int, np.integer)):
      raise TypeError(f"{name} must be axes, an integer or several, got {axes!r}.")
  if not parts:
    raise ValueError(f"{name} must name at least one axis, got {axes!r}.")


def _has_axes(stacked: Any) -> bool:
  """Returns whether `stacked` is a dict {regex: axis}, and not a tree of bools."""
  if not isinstance(stacked, Mapping):
    return False
  values = list(stacked.values())
  return any(
    isinstance(v, (int, np.integer, tuple, list)) and not isinstance(v, bool)
    for v in values
  ) and not any(isinstance(v, Mapping) for v in values)


def _stacks(params, paths, leaves, stacked) -> list:
  """Returns the stacked axes of each leaf as the user gave them, None for no axes.

  True, which the user may give instead of axes, stands for axis 0.
  """
  if stacked is False:
    return [None] * len(paths)
  if _has_axes(stacked):
    return _by_path("stacked", stacked, paths, leaves)
  if callable(stacked):
    given = [stacked(path, leaf) for path, leaf in zip(paths, leaves, strict=True)]
    flags = [isinstance(g, (bool, np.bool_)) for g in given]
    axes = [
      (0 if g else None) if flag else g for g, flag in zip(given, flags, strict=True)
    ]
    for axis in axes:
      if axis is not None:
        _check_axes("stacked", axis)
    return axes
  return [0 if flag else None for flag in matches(params, stacked, "stacked")]


def _by_path(name: str, given: Any, paths: list[str], leaves: list) -> list:
  """Evaluates a dict from regexes (the first match counts) or a function per leaf."""
  if given is None:
    return [None] * len(paths)
  if isinstance(given, Mapping):
    for pattern in given:
      if not any(re.search(pattern, path) for path in paths):
        raise ValueError(
          f"{name} must name leaves, got {pattern!r}, which matches none of {paths}."
        )
    hits = ([a for p, a in given.items() if re.search(p, path)] for path in paths)
    return [found[0] if found else None for found in hits]
  found = [given(path, leaf) for path, leaf in zip(paths, leaves, strict=True)]
  for axes in found:
    if axes is not None:
      _check_axes(name, axes)
  return found


def _normal(name: str, axes: Any, path: str, shape: tuple[int, ...]) -> tuple[int, ...]:
  """Returns axes as an increasing tuple of non-negative integers."""
  parts = axes if isinstance(axes, (tuple, list)) else (axes,)
  for axis in parts:
    if not -len(shape) <= axis < len(shape):
      raise ValueError(
        f"{name} must name axes of the leaf, got {axis} for shape {shape} at {path!r}."
      )
  found = tuple(sorted(int(axis) % len(shape) for axis in parts))
  if len(set(found)) < len(found):
    raise ValueError(f"{name} must name an axis once, got {axes!r} at {path!r}.")
  return found


def _declared(path, shape, stack, axes):
  if isinstance(axes, KernelAxes):
    inputs = _normal("input_axes", axes.inputs, path, shape)
    outputs = _normal("input_axes", axes.outputs, path, shape)
  else:
    inputs = _normal("input_axes", axes, path, shape)
    outputs = tuple(i for i in range(len(shape)) if i not in (*inputs, *stack))
  named = (*stack, *inputs, *outputs)
  if not outputs or len(set(named)) < len(named):
    raise ValueError(
      f"input_axes must leave an axis for outputs, and name none twice or one that "
      f"stacks layers, got {axes!r} for shape {shape} at {path!r}, stacked along "
      f"{stack}."
    )
  return inputs, outputs


def _check_stack(path, shape, stack, bias) -> None:
  """Raises ValueError if the bias shows that another axis stacks the layers."""
  if len(stack) != 1 or bias is None or len(bias) < 2:
    return

  first = outputs_first(path)

  def fits(axis):
    rest = bias_of_layer(bias, shape, (axis,))
    layer = shape[:axis] + shape[axis + 1 :]
    if rest is None:
      return False
    return rest == (layer[: len(rest)] if first else layer[-len(rest) :])

  others = [axis for axis in range(len(shape)) if fits(axis)]
  if others and not fits(stack[0]):
    raise ValueError(
      f"stacked must name the axis that stacks layers, got {stack[0]} at {path!r}, "
      f"whose kernel {shape} and bias {bias} stack them along {others[0]}: pass "
      f"stacked={{{path!r}: {others[0]}}}."
    )
