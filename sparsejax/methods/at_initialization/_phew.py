"""PHEW: paths with higher edge weights (Patil & Dovrolis 2021)."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from sparsejax.core import (
  InputAxes,
  LayerAxes,
  PyTree,
  Where,
  check_arrays,
  check_callable,
  check_input_axes,
  check_integer,
  check_known,
  choose,
  layer_axes,
  layer_shapes,
  selected,
)
from sparsejax.distributions import check_density, total_budget
from sparsejax.methods.at_initialization._synflow import input_maker

# Walks are drawn in batches, and given up after so many steps per weight.
_BATCH = (32, 8192)  # pairs of walks
_STEPS_PER_WEIGHT, _LEAST_STEPS = 200, 100_000


def phew(
  apply_fn: Callable[[PyTree, jax.Array], jax.Array],
  params: PyTree,
  input_shape: Sequence[int] | jax.Array | jax.ShapeDtypeStruct,
  density: Any,
  *,
  seed: int = 0,
  where: Where = None,
  input_axes: InputAxes = None,
) -> PyTree:
  """Keeps the weights on random walks that prefer large weights, without data (PHEW).

  P(i -> j) = |w_ij| / sum_k |w_ik| from inputs to outputs, and likewise backwards;
  live = the weights on the walks, until they are round(density * total size)

  Walks alternate: one starts at a random input and ends at an output, the next starts
  at a random output and goes back. Only the last walk may stop halfway, so that the
  number of live weights is exact. Every other live weight lies on a path of live
  weights from an input to an output: no layer is emptied.

  Units are neurons and channels. A walk through a convolution takes one weight of a
  kernel: from channel i it moves to channel j by tap t with probability
  |w_tij| / sum_tj |w_tij|. A dense layer after a flattened convolution treats the
  positions as taps. The authors' program starts at each input and output in turn, and
  draws such positions uniformly on the way forward.

  The order of the layers is read from the program of `apply_fn`. The sparsified layers
  must form a chain: the inputs of each are the outputs of the one before it, possibly
  at several positions. Leave out shortcuts with weights of their own by `where`. Leaves
  that stack several layers, as under `nn.scan`, are not supported: store each layer in
  a leaf of its own. Walks are drawn on the host, by NumPy; their number grows quickly
  as the density nears 1.

  Args:
    apply_fn: `(params, inputs) -> outputs`, in evaluation mode; it is only traced.
    params: the params at initialization.
    input_shape: shape of the inputs with the batch axis, such as (1, 28, 28, 1); or an
      array or `jax.ShapeDtypeStruct`, as in `synflow`.
    density: fraction of weights kept, in (0, 1].
    seed: seed of the walks, an integer of at least 0.
    where: which leaves are sparsified; see `sparsify`.
    input_axes: which axes of a kernel are its inputs; see `sparsify`.

  Returns:
    A tree of masks like that of `sj.masks`; see `snip` for how to train with them.

  Raises:
    TypeError: an argument has the wrong type; params or density are traced.
    ValueError: an argument is outside its range; no leaf is selected; a weight is not
      finite; the layers do not form a chain; or the walks cannot reach so many weights.

  References:
    Patil & Dovrolis 2021, "PHEW: constructing sparse networks that learn fast and
    generalize well without training data", and the authors' program.

  Example:
    >>> import jax.numpy as jnp, sparsejax as sj
    >>> apply = lambda params, x: x @ params["a"] @ params["b"]
    >>> params = {"a": jnp.array([[0.0, -3.0]]), "b": jnp.array([[4.0], [1.0]])}
    >>> masks = sj.phew(apply, params, (1, 1), density=0.5)
    >>> masks["a"].ravel().tolist(), masks["b"].ravel().tolist()
    ([False, True], [False, True])
  """
  # Validate everything before a walk is drawn.
  check_density(density)
  check_integer("seed", seed, 0)
  check_callable("apply_fn", apply_fn, "a function of (params, inputs)", 2)
  make_inputs = input_maker(input_shape)
  check_arrays("params", params)
  check_input_axes(input_axes)
  if any(isinstance(x, Tracer) for x in (density, *jax.tree.leaves(params))):
    raise TypeError(
      "params and density must be concrete for phew, which draws its walks on the host;"
      " got traced ones: call it outside of jit."
    )
  chosen = selected(params, where)
  axes = layer_axes(params, chosen, False, input_axes)
  check_known(axes, "phew")
  kernels = choose(params, chosen)
  # Bring the layers into the order of the program, each as (taps, units, outputs).
  inputs = jax.eval_shape(lambda: make_inputs(None))
  order = _program_order(apply_fn, params, inputs, axes)
  leaves, treedef = jax.tree.flatten(kernels)
  chain = _chain([_magnitudes(leaves[i], axes[i]) for i in order], axes, order)
  # Walk until enough weights are visited, and bring the masks back into shape.
  total = int(total_budget(layer_shapes(axes), float(density)))
  visited = _visit(chain, total, np.random.default_rng(seed))
  masks: list[Any] = [None] * len(leaves)
  for i, flags in zip(order, visited, strict=True):
    a = axes[i]
    flags = flags.reshape([a.shape[j] for j in a.order])
    masks[i] = jnp.asarray(flags.transpose(np.argsort(a.order)))
  return treedef.unflatten(masks)


class _Link(NamedTuple):
  """The magnitudes of the weights between the units of two adjacent layers.

  Attributes:
    forward: float64 (units, taps, outputs), flat, as cumulative sums.
    backward: float64 (outputs, taps, units), flat, as cumulative sums.
    shape: (taps, units, outputs).
  """

  forward: np.ndarray
  backward: np.ndarray
  shape: tuple[int, int, int]


def _program_order(apply_fn, params, inputs, axes: Sequence[LayerAxes]) -> list[int]:
  """Returns the numbers of the sparsified leaves in the order of their products."""
  numbers = {a.path: i for i, a in enumerate(axes)}
  from sparsejax.analysis.costs import flops  # takes long to import

  used = flops(apply_fn, params, None, inputs).layers
  missing = [path for path in numbers if path not in used]
  if missing:
    raise ValueError(
      "params must have products in apply_fn that phew can walk through, got none of "
      f"{', '.join(missing)}: leave them out by where."
    )
  return [numbers[path] for path in used if path in numbers]


def _magnitudes(kernel: jax.Array, axes: LayerAxes) -> np.ndarray:
  """Returns a kernel's magnitudes as float64 (taps, inputs, outputs)."""
  wide = np.asarray(jnp.asarray(kernel).astype(jnp.float32)).astype(np.float64)
  sides = axes.length(axes.taps), axes.length(axes.inputs), axes.length(axes.outputs)
  return np.abs(wide).transpose(axes.order).reshape(sides)


def _chain(layers, axes: Sequence[LayerAxes], order: list[int]) -> list[_Link]:
  """Links the units of each layer to those of the next."""
  links, before, units = [], "", layers[0].shape[1]
  for layer, i in zip(layers, order, strict=True):
    taps, inputs, outputs = layer.shape
    if not np.isfinite(layer).all():
      raise ValueError(
        f"params must be finite for phew, got NaN or infinity at {axes[i].path!r}."
      )
    if inputs % units:
      raise ValueError(
        f"params must form a chain of layers for phew: {axes[i].path!r} with {inputs} "
        f"inputs follows {before!r} with {units} outputs; leave one out by where."
      )
    # Several inputs per unit are positions, in flattened order; they count as taps.
    layer = layer.reshape(taps * (inputs // units), units, outputs)
    forward, backward = layer.transpose(1, 0, 2), layer.transpose(2, 0, 1)
    links.append(_Link(np.cumsum(forward), np.cumsum(backward), layer.shape))
    before, units = axes[i].path, outputs
  return links


def _visit(chain: list[_Link], total: int, rng: np.random.Generator):
  """Walks until `total` weights are visited; returns flat bool arrays per layer."""
  sizes = [int(np.prod(link.shape)) for link in chain]
  offsets = np.cumsum([0, *sizes])
  visited, found, steps = np.zeros(offsets[-1], bool), 0, 0
  if total == len(visited):
    visited[:], found = True, total
  limit = max(_STEPS_PER_WEIGHT * int(offsets[-1]), _LEAST_STEPS)
  while found < total:
    if steps > limit:
      raise ValueError(
        f"density must be one that the walks reach: they found {found} of {total} "
        f"weights in {steps} steps; the others are zero or very small."
      )
    pairs = int(np.clip((total - found) // (2 * len(chain)), *_BATCH))
    walks = np.stack(
      [
        _walk(chain, offsets, pairs, rng, backward=False),
        _walk(chain, offsets, pairs, rng, backward=True),
      ],
      axis=1,
    )
    # The weights in the order in which the walks, one after another, visit them.
    path = walks[walks >= 0]
    steps += walks.size
    _, first = np.unique(path, return_index=True)
    new = path[np.sort(first)]
    new = new[~visited[new]][: total - found]
    visited[new] = True
    found += len(new)
  return np.split(visited, offsets[1:-1])


def _walk(chain, offsets, walks: int, rng, *, backward: bool) -> np.ndarray:
  """Draws walks; returns the numbers of their weights, int (walks, layers).

  A walk that reaches a unit without any weight ends there; its other numbers are -1.
  """
  numbered = list(zip(chain, offsets[:-1], strict=True))
  steps = numbered[::-1] if backward else numbered
  at = rng.integers(steps[0][0].shape[2 if backward else 1], size=walks)
  going, out = np.ones(walks, bool), []
  for link, offset in steps:
    taps, units, outputs = link.shape
    sums = link.backward if backward else link.forward
    ends = units if backward else outputs
    # Draw an entry of the unit's row by inverting the cumulative sums.
    row = at * (taps * ends)
    low = np.where(row > 0, sums[row - 1], 0.0)
    high = sums[row + taps * ends - 1]
    target = low + rng.random(walks) * (high - low)
    target = np.minimum(target, np.nextafter(high, -np.inf))
    place = np.searchsorted(sums, target, side="right")
    tap, end = np.divmod(np.clip(place - row, 0, taps * ends - 1), ends)
    unit, output = (end, at) if backward else (at, end)
    going &= high > low
    number = offset + (tap * units + unit) * outputs + output
    out.append(np.where(going, number, -1))
    at = end
  return np.stack(out, axis=1)
