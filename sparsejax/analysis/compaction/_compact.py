"""Removes dead units: a smaller dense network that computes the same function.

The design follows a compiler's. `compact` traces the network into a flat list of
operations and runs a few analysis passes over the list. Each pass is one file and adds
one kind of fact:

    apply_fn, params, example
        |
        |  trace          jaxpr/_program.py    inlines calls and numbers the values;
        |                                      traced at batch sizes 2 and 3, which
        |                                      shows the batch axes
        v
    [ x -> pad -> conv -> add -> relu -> dot -> y ]
        |
        |  constants      _constants.py        computes all values that depend on
        |                                      parameters alone
        |  reachability   _reachability.py     forward: varies with x;
        |                                      backward: needed by y
        |    rules        _rules.py            how each primitive propagates the flags
        v
    alive = varies and needed, for each element of each value
        |
        |  groups         _groups.py           joins the elements that can only be
        |                                      removed together (an addition joins the
        |                                      channels of its operands)
        |    union-find   _union_find.py
        v
    kept[value] = [indices of axis 0, indices of axis 1, ...]
        |
        |  bias folding   _bias_folding.py     adds what the removed constants
        |                                      contributed: to the bias, to channels of
        |                                      constants, or as a map over positions
        |  rewrite        _rewrite.py          emits each operation on the kept indices
        |    moves        _rewrite_moves.py    slices, pads and concatenations
        |    values       _values.py           which parameters are stored, and where
        |                                      each is read
        v
    Compact(apply, params, ...)

A primitive without a rule raises an error that names it; nothing is guessed.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sparsejax.analysis.compaction import _bias_folding
from sparsejax.analysis.compaction._constants import Facts
from sparsejax.analysis.compaction._groups import Units
from sparsejax.analysis.compaction._reachability import Reach
from sparsejax.analysis.compaction._rewrite import Replay
from sparsejax.analysis.jaxpr import _program
from sparsejax.core import apply_masks, path_string

PyTree = Any
Params = dict[str, jax.Array]


class Compact(NamedTuple):
  """A smaller network that computes the same function.

  Attributes:
    apply: `(params, inputs) -> outputs`, for any batch size; traceable and
      differentiable like any JAX function.
    params: `{name: array}`. A name is the path of the parameter that the array is a
      part of (the last one where several were folded into one), or `constant` for what
      removed units contribute where there was no bias.
    masks: `{name: bool array}`. For kernels, which entries are not zero; all True
      elsewhere.
    shapes: `{name of a kernel: (shape before, shape now)}`.
    pixels: int array, the indices of the flattened input that are read, or None for
      all.
    apply_pixels: `apply` for inputs that `select` has already reduced.
  """

  apply: Callable[[Params, jax.Array], Any]
  params: Params
  masks: dict[str, jax.Array]
  shapes: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]
  pixels: np.ndarray | None
  apply_pixels: Callable[[Params, jax.Array], Any]

  def select(self, inputs: jax.Array) -> jax.Array:
    """Reduces inputs (n, ...) to the pixels that are read, (n, pixels).

    Inputs of a network that reads all pixels are returned as they are.
    """
    if self.pixels is None:
      return inputs
    return inputs.reshape(len(inputs), -1)[:, self.pixels]


def compact(
  apply_fn: Callable[[PyTree, jax.Array], Any],
  params: PyTree,
  masks: PyTree | None,
  example: Any,
  *,
  maps: bool = True,
  platform: str | None = None,
) -> Compact:
  """Removes dead inputs, neurons, channels and feature maps.

  alive = varies and needed: an element varies if the input reaches it over weights that
  are not zero, and is needed if it reaches the output so.

  An element that does not vary is a constant: a neuron without inputs is `f(bias)`. Its
  contribution is added to the next layer's bias. If the contribution differs between
  positions, as next to a zero border (SAME padding), one channel of constants carries
  the contribution of all removed channels with the same pattern. A map over the
  positions is added instead if it needs fewer parameters; if neither is smaller, the
  channel stays.

  Both flags and their consequences are read from the jaxpr, so nothing has to be
  registered. Units that cannot be removed alone are removed together: those joined by
  an addition, by the layers of a loop, by a group of a convolution, or by a product of
  two activations (a head's queries, keys and values; a gated unit). Parameters computed
  from parameters alone (a batch norm's scale over its deviation) are folded into one. A
  parameter that is read in several places, such as an embedding that is also the output
  kernel, is stored once.

  The result never has more parameters than the network: if folding would exceed them,
  the network is returned unchanged.

  Args:
    apply_fn: `(params, inputs) -> outputs`, for inference. Branches of
      `jax.lax.platform_dependent` are resolved at this call.
    params: pytree of arrays.
    masks: the masks from `sj.masks`, or None if the params are masked already.
    example: inputs `(n, ...)`, or their abstract value; only shape and dtype are used.
    maps: whether a contribution may be stored as one number per position.
    platform: the platform that the result is for, such as "cpu"; None is the default
      backend.

  Returns:
    `Compact`. Its outputs differ from the original's by rounding only.

  Raises:
    ValueError: an operation has no rule (the message names it), the examples of a batch
      are not treated alike, or the masks do not fit.

  Example:
    >>> mlp = lambda p, x: jnp.maximum(x @ p["a"] + p["b"][None], 0.0) @ p["c"]
    >>> params = {"a": jnp.eye(3), "b": jnp.ones(3), "c": jnp.ones((3, 2))}
    >>> masks = {"a": jnp.eye(3, dtype=bool).at[2].set(False), "b": None, "c": None}
    >>> small = compact(mlp, params, masks, jnp.ones((1, 3)))
    >>> small.shapes
    {'a': ((3, 3), (2, 2)), 'c': ((3, 2), (2, 2))}
    >>> small.pixels.tolist(), small.params["constant"].tolist()  # relu(1) of the third
    ([0, 1], [[1.0]])
    >>> small.apply(small.params, jnp.ones((1, 3))).tolist()
    [[5.0, 5.0]]
  """
  leaves, paths = _masked(params, masks)
  if jax.tree.structure(example).num_leaves != 1 or not np.shape(example):
    raise ValueError(
      "example must be one array with a leading axis of examples, got "
      f"{jax.tree.map(np.shape, example)}."
    )

  # Trace the network, compute its constants, and build the smallest program that
  # computes the same outputs from the kept elements.
  facts, treedef = _facts(apply_fn, params, example, leaves, paths, platform)
  replay = _smallest(facts, leaves, maps)

  # Folding multiplies parameters together and can add more than removal saves; the
  # network is then returned unchanged.
  before = sum(np.size(leaf) for leaf in leaves)
  if sum(np.size(array) for array in replay.params.values()) > before:
    return _unchanged(apply_fn, params, leaves, paths)
  arrays = {name: np.array(array) for name, array in replay.params.items()}
  small = jax.device_put(arrays)  # unlike `jnp.asarray`, compiles nothing

  def apply_pixels(params: Params, inputs: jax.Array) -> Any:
    return treedef.unflatten(replay(params, inputs))

  def apply(params: Params, inputs: jax.Array) -> Any:
    return apply_pixels(params, select(inputs))

  # Report masks and shapes by parameter name. Only kernels can have zeros inside; all
  # other parameters count as live.
  flags = jax.device_put(
    {
      name: array != 0 if name in replay.kernels else np.ones(array.shape, bool)
      for name, array in arrays.items()
    }
  )
  shapes = {
    name: (before, tuple(small[name].shape)) for name, before in replay.kernels.items()
  }
  result = Compact(apply, small, flags, shapes, replay.pixels, apply_pixels)
  select = result.select
  return result


def _smallest(facts: Facts, leaves: list, maps: bool) -> Replay:
  """Builds the smaller program, with or without maps, by its number of parameters."""
  # Find the live elements, the groups that are kept because of them, and what the
  # removed units contributed to sums.
  reach = Reach(facts)
  units = Units(facts, reach)
  units.settle()
  removed = _bias_folding.contributions(facts, reach, units, leaves)

  # First variant: contributions that differ between positions are stored as maps.
  found = [Replay(facts, units, removed)] if maps or not removed.maps else []
  if removed.maps:
    # Second variant: the units whose contribution would be a map are kept. Keeping one
    # can force others to be kept and changes the remaining sums, so repeat until no map
    # is left.
    units = units.fork()
    units.settle()
    while removed.maps:
      for operand in set(removed.maps.values()):
        elements = _bias_folding.removed_elements(facts, reach, units, operand)
        units.keep(operand, elements)
      units.settle()
      removed = _bias_folding.contributions(facts, reach, units, leaves)
    found.append(Replay(facts, units, removed))
  return min(found, key=lambda replay: sum(a.size for a in replay.params.values()))


def _unchanged(apply_fn, params, leaves, paths) -> Compact:
  """Returns the network itself as a `Compact`, when no smaller program was found."""
  treedef, path_of = jax.tree.structure(params), list(paths)

  def apply(params: Params, inputs: jax.Array) -> Any:
    return apply_fn(treedef.unflatten([params[path] for path in path_of]), inputs)

  arrays = dict(zip(paths, map(jnp.asarray, leaves), strict=True))
  flags = {
    path: array != 0 if array.ndim > 1 else jnp.ones(array.shape, bool)
    for path, array in arrays.items()
  }
  shapes = {path: (a.shape, a.shape) for path, a in arrays.items() if a.ndim > 1}
  return Compact(apply, arrays, flags, shapes, None, apply)


def live_parameters(
  apply_fn: Callable[[PyTree, jax.Array], Any],
  params: PyTree,
  masks: PyTree | None,
  example: Any,
) -> PyTree:
  """Returns which parameters belong to live units, biases included.

  A weight is live if its mask is True, its input varies and its output is needed; a
  bias is live if its unit varies and is needed. NeST counts parameters in this way, and
  `sizes` accepts the result as masks. A live weight whose value happens to be zero
  counts.

  Args:
    apply_fn: as for `compact`.
    params: pytree of arrays.
    masks: the masks from `sj.masks`; None entries, or None, count as dense.
    example: as for `compact`.

  Returns:
    A bool array for every leaf of `params`.

  Raises:
    ValueError: as for `compact`.

  Example:
    >>> mlp = lambda p, x: jnp.maximum(x @ p["a"] + p["b"][None], 0.0) @ p["c"]
    >>> params = {"a": jnp.eye(3), "b": jnp.ones(3), "c": jnp.ones((3, 2))}
    >>> masks = {"a": jnp.eye(3, dtype=bool).at[2].set(False), "b": None, "c": None}
    >>> live = live_parameters(mlp, params, masks, jnp.ones((1, 3)))
    >>> live["b"].tolist(), live["c"].sum(1).tolist()
    ([True, True, False], [2, 2, 0])
  """
  # Analyze the masks themselves: with random weights, which do not cancel, only a mask
  # makes an entry zero.
  rng = np.random.default_rng(0)

  def draw(p):
    if not jnp.issubdtype(p.dtype, jnp.inexact):
      return np.ones(p.shape, p.dtype)
    return rng.uniform(1.0, 2.0, p.shape).astype(p.dtype)

  drawn = jax.tree.map(draw, params)
  drawn = drawn if masks is None else jax.jit(apply_masks)(drawn, masks)
  leaves, paths = _masked(drawn, None)
  facts, _ = _facts(apply_fn, params, example, leaves, paths, None)
  reach, found = Reach(facts), []
  for number, leaf in zip(facts.program.params, leaves, strict=True):
    need = reach.needed.get(number, np.zeros(leaf.shape, bool))
    found.append(jax.device_put(need & (np.asarray(leaf) != 0)))
  return jax.tree.structure(params).unflatten(found)


def _masked(params: PyTree, masks: PyTree | None) -> tuple[list, list[str]]:
  """Returns the masked leaves of `params` and their paths."""
  params = params if masks is None else apply_masks(params, masks)
  flat = jax.tree_util.tree_leaves_with_path(params)
  return [leaf for _, leaf in flat], [path_string(path) for path, _ in flat]


def _facts(apply_fn, params, example, leaves, paths, platform) -> tuple[Facts, Any]:
  """Traces the function at batch sizes 2 and 3 and computes its constants."""
  [leaf] = jax.tree.leaves(example)
  batches = [jax.ShapeDtypeStruct((n, *leaf.shape[1:]), leaf.dtype) for n in (2, 3)]
  two, treedef = _program.trace(apply_fn, params, batches[0], platform)
  three, _ = _program.trace(apply_fn, params, batches[1], platform)
  return Facts(two, three, leaves, paths), treedef
