"""Removes dead units: a smaller dense network that computes the same function.

The design, in a compiler's words. `compact` traces the network and passes over the flat
list of its operations a few times; each pass is a file and adds one kind of fact:

    apply_fn, params, example
        |
        |  trace          _program.py    calls inlined, values numbered; at batches of 2
        |                                and 3, which tells the axes of examples
        v
    [ x -> pad -> conv -> add -> relu -> dot -> y ]
        |
        |  constants      _facts.py      what is made of parameters alone is computed
        |  reachability   _reach.py      forward: varies with x; backward: needed by y
        |    by rules     _rules.py      how each primitive passes on such flags
        v
    alive = varies and needed, for each element of each value
        |
        |  groups         _units.py      elements that go together are joined
        |    union-find   _union.py      (an addition joins its operands' channels);
        |                                what is kept of a value is a box: one set of
        |                                indices for each axis
        v
    kept[value] = [indices of axis 0, indices of axis 1, ...]
        |
        |  folding        _removed.py    what removed constants add to sums: into the
        |                                bias, into a channel of constants, or a map
        |  rewrite        _replay.py     each operation again, on what is kept
        |                 _moves.py      slices, pads and concatenations among them
        |                 _values.py     which parameters are stored, and where read
        v
    Compact(apply, params, ...)

A primitive that no rule knows is an error that names it: nothing is guessed.
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
  """A smaller network.

  Attributes:
    apply: `(params, inputs) -> outputs`, for any size of the batch, traceable and
      differentiable as any function of JAX.
    params: `{name: array}`; the names are the paths of the parameters that they are
      parts of (of the last one where several were folded into one), and `constant`
      for what removed units contribute where there was no bias.
    masks: `{name: bool array}`, which entries of the kernels are not zero.
    shapes: `{name of a kernel: (its shape before, its shape now)}`.
    pixels: int array, places in the flattened input that are read, or None for all.
    apply_pixels: `apply` for inputs that `select` has cut already.
  """

  apply: Callable[[Params, jax.Array], Any]
  params: Params
  masks: dict[str, jax.Array]
  shapes: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]
  pixels: np.ndarray | None
  apply_pixels: Callable[[Params, jax.Array], Any]

  def select(self, inputs: jax.Array) -> jax.Array:
    """Cuts inputs (n, ...) to the pixels that are read, (n, pixels), if not to all."""
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

  What does not vary is a constant: a neuron without inputs is `f(bias)`. Its
  contribution is added to the next layer's bias. Where that differs from position to
  position, as behind a border of zeros (SAME padding), one channel of constants carries
  what all removed channels of the same pattern contribute. A map over the positions is
  added instead where that has fewer parameters, and where neither does, the channel
  stays. Both facts and what they imply are read off the jaxpr: there is nothing to
  register. Units that an addition, a loop's layers, a group of a convolution or a
  product of two activations (a head's queries, keys and values; a gated unit) tie
  together go together. Parameters that are made of parameters alone (a batch norm's
  scale over its deviation) are folded into one. A parameter that is read in several
  places, such as an embedding that is the output's kernel too, is stored once.

  The result never has more parameters than the network: where folding would make it
  so, the network is returned as it is.

  Args:
    apply_fn: `(params, inputs) -> outputs`, for inference. Its branches of
      `jax.lax.platform_dependent` are decided here.
    params: pytree of arrays.
    masks: what `sj.masks` gives for it, or None if the params are masked already.
    example: inputs `(n, ...)`, or their abstract value; only shape and dtype are used.
    maps: whether a number for every position may be stored.
    platform: that the result is for, such as "cpu"; None is the default backend.

  Returns:
    `Compact`. Its outputs differ from the original's by rounding alone.

  Raises:
    ValueError: an operation is not understood (named in the message), examples are not
      treated alike, or the masks do not fit.

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

  # Trace, compute constants, and rewrite on what is kept.
  facts, treedef = _facts(apply_fn, params, example, leaves, paths, platform)
  replay = _smallest(facts, leaves, maps)

  # Folding products of parameters can outgrow what removal saves.
  before = sum(np.size(leaf) for leaf in leaves)
  if sum(np.size(array) for array in replay.params.values()) > before:
    return _unchanged(apply_fn, params, leaves, paths)
  small = {name: jnp.asarray(array) for name, array in replay.params.items()}

  def apply_pixels(params: Params, inputs: jax.Array) -> Any:
    return treedef.unflatten(replay(params, inputs))

  def apply(params: Params, inputs: jax.Array) -> Any:
    return apply_pixels(params, select(inputs))

  # What a caller sees: masks and shapes of the kernels, by name.
  flags = {
    name: array != 0 if name in replay.kernels else jnp.ones(array.shape, bool)
    for name, array in small.items()
  }
  shapes = {
    name: (before, tuple(small[name].shape)) for name, before in replay.kernels.items()
  }
  result = Compact(apply, small, flags, shapes, replay.pixels, apply_pixels)
  select = result.select
  return result


def _smallest(facts: Facts, leaves: list, maps: bool) -> Replay:
  """The smaller program; of two ways to treat maps the one with fewer parameters."""
  # Reachability, groups, and what the removed units add to sums.
  reach = Reach(facts)
  units = Units(facts, reach)
  units.settle()
  removed = _bias_folding.contributions(facts, reach, units, leaves)

  # One way: contributions that differ between positions are stored as maps.
  found = [Replay(facts, units, removed)] if maps or not removed.maps else []
  if removed.maps:
    # The other way: units whose contribution would be a map stay. Each that stays may
    # make others stay, and their sums change, until no map is left.
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
  """The network as it is, where every smaller one would have more parameters."""
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
  """Which parameters matter: those of live units, biases included.

  A weight is live if its mask is, its input varies and its output is needed; a bias if
  its unit varies and is needed. That is what NeST counts as parameters, and what
  `sizes` takes as masks. Weights that are live and happen to be zero count.

  Args:
    apply_fn: as for `compact`.
    params: pytree of arrays.
    masks: what `sj.masks` gives for it; None entries, or None, count as dense.
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
  ones = jax.tree.map(lambda p: jnp.ones(p.shape, p.dtype), params)
  leaves, paths = _masked(ones, masks)
  facts, _ = _facts(apply_fn, params, example, leaves, paths, None)
  reach, found = Reach(facts), []
  for number, leaf in zip(facts.program.params, leaves, strict=True):
    need = reach.needed.get(number, np.zeros(leaf.shape, bool))
    found.append(jnp.asarray(need & (np.asarray(leaf) != 0)))
  return jax.tree.structure(params).unflatten(found)


def _masked(params: PyTree, masks: PyTree | None) -> tuple[list, list[str]]:
  params = params if masks is None else apply_masks(params, masks)
  flat = jax.tree_util.tree_leaves_with_path(params)
  return [leaf for _, leaf in flat], [path_string(path) for path, _ in flat]


def _facts(apply_fn, params, example, leaves, paths, platform) -> tuple[Facts, Any]:
  [leaf] = jax.tree.leaves(example)
  batches = [jax.ShapeDtypeStruct((n, *leaf.shape[1:]), leaf.dtype) for n in (2, 3)]
  two, treedef = _program.trace(apply_fn, params, batches[0], platform)
  three, _ = _program.trace(apply_fn, params, batches[1], platform)
  return Facts(two, three, leaves, paths), treedef
