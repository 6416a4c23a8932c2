"""One-shot pruning of a trained network, layer by layer in program order.

A network is run from product to product. Between two layers only the values that later
operations need are kept, for every batch; so each layer's inputs are computed from the
layers before it as they have been pruned, and no operation runs twice but those
of layers that are used in several places.
"""

import functools
import os
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sparsejax.analysis.jaxpr import evaluate
from sparsejax.core import (
  Distribution,
  LayerAxes,
  Where,
  check_callable,
  check_flag,
  check_integer,
  check_number,
)
from sparsejax.core.structures import Structure, density_of
from sparsejax.distributions import (
  check_density,
  check_distribution,
  layer_budgets,
  uniform,
)
from sparsejax.post_training import _files
from sparsejax.post_training._layers import Layer, Network, find_layers
from sparsejax.post_training._methods import (
  METHODS,
  Method,
  Result,
  Score,
  Settings,
  prune_matrix,
)
from sparsejax.post_training._progress import Bar
from sparsejax.post_training._statistics import InputStatistics, Sums, checked, numbered

PyTree = Any


class LayerReport(NamedTuple):
  """One layer's pruning.

  Attributes:
    name: see `layers`.
    live: weights kept.
    size: weights in all.
    masked_error: `||X (w - v)^T||^2 / ||X w^T||^2`, the relative squared error of the
      layer's outputs with the mask alone, before compensation; NaN if not measured.
    error: the same of the weights returned; with `targets="dense"` larger than without,
      for they are fitted to other outputs.
    seconds: statistics and pruning together.
  """

  name: str
  live: int
  size: int
  masked_error: float
  error: float
  seconds: float

  @property
  def density(self) -> float:
    """The fraction kept."""
    return self.live / self.size


class Pruned(NamedTuple):
  """A pruned network.

  Attributes:
    params: like the params given, exactly 0.0 where dead.
    masks: bool arrays (True = live) at the pruned leaves, None elsewhere: for
      `sj.apply_masks`, `sj.with_masks` and `sj.save_masks`.
    report: a `LayerReport` per layer, in program order.
  """

  params: PyTree
  masks: PyTree
  report: tuple[LayerReport, ...]


def prune(
  apply_fn: Callable[[PyTree, Any], Any],
  params: PyTree,
  batches: Iterable[Any],
  density: float | None = 0.5,
  method: str | Score = "sparse_gpt",
  structure: Structure | None = None,
  distribution: Distribution = uniform,
  where: Where = None,
  *,
  inputs: str = "pruned",
  targets: str = "layer",
  group: str | None = None,
  compensate: bool | None = None,
  damping: float = 0.01,
  block: int = 128,
  measure: bool = True,
  directory: str | os.PathLike | None = None,
  progress: bool = False,
) -> Pruned:
  """Prunes a trained network in one shot, from a few hundred examples.

  Layers are found as `input_statistics` finds them, and pruned in program order. A
  method scores the weights of a layer; the best are kept, and with compensation the
  rest take over what the dropped ones did, in the least squares of the layer's outputs:

  | method | score | compared within | compensates |
  |---|---|---|---|
  | "magnitude" | `abs(w)` | layer | no |
  | "wanda" | `abs(w) norm(x)` | output | no |
  | "ria" | see `ria` | layer | no |
  | "sparse_gpt" | `w^2 / U_ii^2`, in blocks of columns | block of columns | yes |
  | "obs" | cost in OBS's deletion order | layer | yes |

  SparseGPT with a structure other than `n_m` selects by `w^2 / [H^-1]_ii` and
  compensates exactly. "obs" takes `outputs * inputs^3` operations per layer: for small
  layers.

  Memory: one layer's Gram matrix, `4 * groups * inputs^2` bytes (see `layers`), and for
  all batches the values that later operations need at one place in the program, such
  as the residual stream.

  Args:
    apply_fn: `(params, inputs) -> outputs`, such as
      `lambda params, x: model.apply({"params": params}, x)`.
    params: pytree of arrays; float32, bfloat16 or float16 leaves are pruned in float32,
      float64 ones in float64.
    batches: a sequence of inputs, all of the same shapes.
    density: fraction kept of all selected weights, in (0, 1]; None for the structure's.
    method: a name from the table, or `(weights (groups, outputs, inputs),
      InputStatistics) -> scores`, higher = worth more.
    structure: such as `sj.n_m(2, 4)` or `sj.block((4, 4))`. It sees every layer as a
      Dense kernel `(inputs, outputs)`: N:M is N of every M inputs that the product
      sums, whatever the kernel's own axes.
    distribution: `(shapes, density) -> budgets`: `sj.uniform`, `sj.erk`, `owl(...)`, or
      any function whose budgets sum to `round(density * size)`.
    where: which parameters; see `sj.sparsify`.
    inputs: "pruned": each layer's inputs come from the layers before it as pruned;
      "dense": from the dense network.
    targets: what compensation fits the outputs of a layer to: "layer", what its own
      weights make of the same inputs; "dense", what the dense network has there, so
      that each layer also makes up for those pruned before it. Not without
      compensation; runs the dense network beside the pruned one.
    group: weights compared with each other, "layer" or "output"; None for the method's.
      Not for "sparse_gpt" or with a structure.
    compensate: whether the weights kept are compensated; None for the method's own.
    damping: fraction of the mean diagonal added to the Hessian's diagonal.
    block: columns that SparseGPT selects together.
    measure: whether to report errors, which needs Gram matrices for every method.
    directory: where to write each layer once it is pruned; a second call with the same
      arguments resumes from there.
    progress: whether to show a bar on standard error.

  Returns:
    `Pruned`.

  Raises:
    TypeError: an argument has the wrong type.
    ValueError: an argument is outside its range, the structure does not fit a layer,
      budgets do not sum to the promise; as `input_statistics`; or (while layers are
      pruned) a layer's weights or inputs are not finite.

  References:
    Frantar and Alistarh 2023, "SparseGPT"; Sun et al. 2023, "Wanda"; Zhang et al. 2024,
    "RIA"; Frantar and Alistarh 2022, "Optimal brain compression"; Yin et al. 2024,
    "OWL".

  Example:
    >>> import sparsejax as sj
    >>> apply_fn = lambda params, x: jax.nn.relu(x @ params["a"]) @ params["b"]
    >>> keys = jax.random.split(jax.random.key(0), 3)
    >>> params = {
    ...   "a": jax.random.normal(keys[0], (8, 16)),
    ...   "b": jax.random.normal(keys[1], (16, 4)),
    ... }
    >>> batches = [jax.random.normal(keys[2], (64, 8))]
    >>> pruned = prune(apply_fn, params, batches, structure=sj.n_m(2, 4))
    >>> [(layer.name, layer.density) for layer in pruned.report]
    [('a', 0.5), ('b', 0.5)]
    >>> all(layer.error < layer.masked_error for layer in pruned.report)
    True
  """
  # Everything that can be refused is refused here.
  chosen = _method(method, group, compensate, structure)
  density = density_of(density, structure)
  check_density(density)
  check_distribution(distribution)
  check_callable("apply_fn", apply_fn, "a function of (params, inputs)", 2)
  check_number("damping", damping, "be at least 0", lambda v: 0 <= v < float("inf"))
  check_integer("block", block, 1)
  check_flag("measure", measure)
  check_flag("progress", progress)
  if inputs not in ("pruned", "dense"):
    raise ValueError(f"inputs must be 'pruned' or 'dense', got {inputs!r}.")
  if targets not in ("layer", "dense"):
    raise ValueError(f"targets must be 'layer' or 'dense', got {targets!r}.")
  if targets == "dense" and (not chosen.compensates or inputs == "dense"):
    raise ValueError(
      "targets must be 'layer' without compensation and with inputs='dense', got "
      f"{targets!r}."
    )
  batches = [batch for _, batch in checked(batches)]
  if not batches:
    raise ValueError("batches must hold at least one batch, got none.")
  network = find_layers(apply_fn, params, batches[0], where, "prune")
  budgets = _budgets(network.layers, density, distribution, structure)
  settings = Settings(chosen, structure, float(damping), block)
  if directory is not None:
    request = {
      **{"layers": dict(zip([k.name for k in network.layers], budgets, strict=True))},
      **{"method": _name(method), "structure": structure and structure.name},
      **{"group": chosen.group, "compensates": chosen.compensates, "inputs": inputs},
      **{"targets": targets},
      **{"damping": damping, "block": block, "measure": measure},
    }
    _files.prepare(directory, _files.fingerprint((params, batches), request))

  dense = jax.tree.leaves(params)
  leaves, masks = list(dense), {}
  values = [numbered(network, batch) for batch in batches]
  dense_values = values
  bar, report, at = Bar(len(network.layers), progress), [], 0
  for number, (layer, live) in enumerate(zip(network.layers, budgets, strict=True)):
    start = time.monotonic()
    source = leaves if inputs == "pruned" else dense
    first = layer.uses[0].at
    values = _advance(network, source, values, at, first)
    if targets == "dense":
      dense_values = _advance(network, dense, dense_values, at, first)
    at = first
    positions = layer.positions()
    saved = None if directory is None else _files.read_layer(directory, number)
    if saved is not None:
      weights, mask = saved["weights"], saved["mask"]
      known = LayerReport(
        layer.name, int(mask.sum()), mask.size, *saved["figures"].tolist()
      )
    else:
      gram = measure or chosen.reads_gram or chosen.compensates
      statistics = _statistics(network, layer, source, values, gram)
      cross = None
      if targets == "dense":
        cross = _cross(network, layer, (dense, dense_values), (source, values))
      matrix = jnp.asarray(leaves[layer.leaf]).reshape(-1)[positions]
      result = _prune_layer(layer, matrix, statistics, live, settings, cross)
      weights, mask = result.weights, np.asarray(result.mask)
      figures = (
        float(result.masked_error),
        float(result.error),
        time.monotonic() - start,
      )
      known = LayerReport(layer.name, live, layer.size, *figures)
      if directory is not None:
        # NumPy's files know no bfloat16.
        exact = weights.astype(_wide(weights.dtype))
        arrays = {"weights": np.asarray(exact), "mask": mask}
        _files.write_layer(directory, number, {**arrays, "figures": np.array(figures)})
    leaves[layer.leaf] = _replaced(leaves[layer.leaf], positions, weights)
    shape = leaves[layer.leaf].shape
    masks.setdefault(layer.leaf, np.ones(shape, bool)).reshape(-1)[positions] = mask
    report.append(known)
    bar.advance(known, saved is not None)
  treedef = jax.tree.structure(params)
  found = [jnp.asarray(masks[i]) if i in masks else None for i in range(len(leaves))]
  return Pruned(treedef.unflatten(leaves), treedef.unflatten(found), tuple(report))


def _name(method: str | Score) -> str:
  return method if isinstance(method, str) else getattr(method, "__name__", "function")


def _method(method, group, compensate, structure) -> Method:
  """The method with the caller's choices."""
  if isinstance(method, str):
    if method not in METHODS:
      raise ValueError(
        f"method must be one of {list(METHODS)} or a function, got {method!r}."
      )
    chosen = METHODS[method]
  else:
    check_callable("method", method, "a name or a function of (weights, statistics)", 2)
    chosen = Method(method, "layer", False, False)
  if group is not None:
    if group not in ("layer", "output"):
      raise ValueError(f"group must be 'layer' or 'output', got {group!r}.")
    if chosen.score is None or structure is not None:
      raise ValueError(
        "group must be None for sparse_gpt and with a structure, which decide whom to "
        f"compare, got {group!r}."
      )
    chosen = chosen._replace(group=group)
  if compensate is not None:
    check_flag("compensate", compensate)
    if chosen.score is None and not compensate:
      raise ValueError("compensate must be True for sparse_gpt, got False.")
    chosen = chosen._replace(compensates=bool(compensate))
  return chosen


def _budgets(layers, density, distribution, structure) -> list[int]:
  """Live weights of each layer, checked to sum to what the density promises."""
  shapes = {layer.name: layer.shape for layer in layers}
  budgets = np.asarray(layer_budgets(distribution, shapes, density))
  if structure is not None:
    # As `select` will see them.
    seen = {
      k.name: (k.inputs, k.outputs)
      if k.groups == 1
      else (k.groups, k.inputs, k.outputs)
      for k in layers
    }
    for name, shape in seen.items():
      rank = len(shape)
      structure.check(name, LayerAxes(name, shape, (), (rank - 2,), (rank - 1,)))
    budgets = np.asarray(structure.fit(seen, jnp.asarray(budgets)))
  for layer, budget in zip(layers, budgets, strict=True):
    if budget < 1:
      raise ValueError(
        f"distribution must leave every layer a weight, got 0 at {layer.name!r}."
      )
  return [int(budget) for budget in budgets]


def _advance(network: Network, params, values, at: int, to: int):
  """Computes, for every batch, the values that operations from `to` on need."""
  if to == at:
    return values
  program = network.segment(network.live(at), network.live(to))

  @jax.jit
  def run(params, values):
    return evaluate(program, params, [values[i] for i in program.inputs])[0]

  new = []
  for batch in values:
    inputs = {i: batch[i] for i in program.inputs}
    new.append(dict(zip(program.outputs, run(params, inputs), strict=True)))
  return new


def _statistics(network: Network, layer: Layer, params, values, gram: bool):
  """What enters one layer, over all batches."""
  sums = Sums(network, (layer,), gram, layer.uses[0].at)
  inputs = [{i: batch[i] for i in sums.program.inputs} for batch in values]
  totals = sums.start(params, inputs[0])
  for batch in inputs:
    totals = sums.step(totals, params, batch)
  return totals[0]


def _cross(network: Network, layer: Layer, dense, pruned) -> jax.Array:
  """The sum of `x y^T` of what enters a layer in two networks, over all batches."""
  sums = Sums(network, (layer,), False, layer.uses[0].at)

  @jax.jit
  def of(one, two):
    pairs = zip(sums.inputs(*one), sums.inputs(*two), strict=True)
    product = functools.partial(jnp.einsum, "gsi,gsj->gij", precision="highest")
    return sum(product(x, y) for (_, x), (_, y) in pairs)

  total: Any = 0
  for one, two in zip(dense[1], pruned[1], strict=True):
    pick = lambda values: {i: values[i] for i in sums.program.inputs}
    total = total + of((dense[0], pick(one)), (pruned[0], pick(two)))
  return total


def _prune_layer(
  layer, matrix, statistics: InputStatistics, live, settings, cross
) -> Result:
  """Prunes a layer; raises where its numbers, before or after, are not finite."""
  for what, array in (("weights", matrix), ("inputs", statistics.squares)):
    if not bool(jnp.all(jnp.isfinite(array))):
      raise ValueError(
        f"{what} of every layer must be finite, got NaN or infinity at {layer.name!r}."
      )
  dtype, wide = matrix.dtype, _wide(matrix.dtype)
  # `count` is data, not part of the compiled program.
  statistics = statistics._replace(count=jnp.asarray(statistics.count, wide))
  result = prune_matrix(matrix.astype(wide), statistics, live, settings, cross)
  kept = int(np.count_nonzero(result.mask))
  if kept != live or not bool(jnp.all(jnp.isfinite(result.weights))):
    raise ValueError(
      "the Hessian of every layer must be invertible once damped, got "
      f"{kept} of {live} weights, or not finite ones, at {layer.name!r}: raise damping "
      f"above {settings.damping}, or give more batches."
    )
  return result._replace(weights=result.weights.astype(dtype))


def _wide(dtype):
  return jnp.float64 if dtype == jnp.float64 else jnp.float32


@jax.jit
def _replaced(leaf, positions, weights):
  flat = leaf.reshape(-1).at[positions.reshape(-1)]
  return flat.set(weights.reshape(-1).astype(leaf.dtype)).reshape(leaf.shape)
