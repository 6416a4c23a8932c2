"""One-shot pruning of a trained network, layer by layer in program order.

The network is run from product to product. Between two layers, only the values that
later operations need are kept, for every batch. The inputs of each layer are thus
computed from the layers before it as pruned, and no operation runs twice, except those
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
from sparsejax.post_training._find_layers import find_layers
from sparsejax.post_training._layers import Layer, Network
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
  """The report on one pruned layer.

  Attributes:
    name: the layer's name; see `layers`.
    live: the number of weights kept.
    size: the number of weights.
    masked_error: `||X (w - v)^T||^2 / ||X w^T||^2`, the relative squared error of the
      layer's outputs with the mask alone, before compensation; NaN if not measured.
    error: the relative squared error with the returned weights. With `targets="dense"`
      it is larger, because the weights are then fitted to different outputs.
    seconds: the time for statistics and pruning.
  """

  name: str
  live: int
  size: int
  masked_error: float
  error: float
  seconds: float

  @property
  def density(self) -> float:
    """The fraction of weights kept."""
    return self.live / self.size


class Pruned(NamedTuple):
  """A pruned network.

  Attributes:
    params: a tree like the given params, exactly 0.0 where masked.
    masks: bool arrays (True = live) at the pruned leaves and None elsewhere, for
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

  Layers are found as by `input_statistics` and pruned in program order. A method scores
  the weights of a layer, and those with the highest scores are kept. Methods with
  compensation also change the kept weights, to minimize the squared error of the
  layer's outputs:

  | method | score | compared within | compensates |
  |---|---|---|---|
  | "magnitude" | `abs(w)` | layer | no |
  | "wanda" | `abs(w) norm(x)` | output | no |
  | "ria" | see `ria` | layer | no |
  | "sparse_gpt" | `w^2 / U_ii^2`, in blocks of columns | block of columns | yes |
  | "obs" | cost in OBS's deletion order | layer | yes |

  With a structure other than `n_m`, SparseGPT selects by `w^2 / [H^-1]_ii` and
  compensates exactly. "obs" takes `outputs * inputs^3` operations per layer, so it
  suits small layers.

  Memory: the Gram matrix of one layer, `4 * groups * inputs^2` bytes (see `layers`),
  and, for all batches, the values that later operations need at one point of the
  program, such as the residual stream.

  Args:
    apply_fn: `(params, inputs) -> outputs`, such as
      `lambda params, x: model.apply({"params": params}, x)`.
    params: pytree of arrays. float32, bfloat16 and float16 leaves are pruned in
      float32, float64 leaves in float64.
    batches: a sequence of inputs, all with the same shapes.
    density: fraction of all selected weights to keep, in (0, 1]; None for the
      structure's density.
    method: a name from the table, or a function `(weights (groups, outputs, inputs),
      InputStatistics) -> scores`; higher scores are kept.
    structure: a structure such as `sj.n_m(2, 4)` or `sj.block((4, 4))`. It applies to
      every layer as a Dense kernel `(inputs, outputs)`: N:M keeps N of every M inputs
      that the product sums, whatever the axes of the kernel are.
    distribution: `(shapes, density) -> budgets`: `sj.uniform`, `sj.erk`, `owl(...)`, or
      any function whose budgets sum to `round(density * size)`.
    where: selects the parameters to prune; see `sj.sparsify`. By default kernels,
      without embeddings; those that enter no product, such as a class token, are left
      as they are.
    inputs: "pruned" computes each layer's inputs with the layers before it as pruned,
      "dense" with the dense network.
    targets: the outputs that compensation fits a layer to. "layer": the outputs of its
      dense weights for the same inputs. "dense": its outputs in the dense network, so
      that a layer also compensates for the layers pruned before it; this runs the
      dense network as well, and needs compensation and `inputs="pruned"`.
    group: ranks weights within each "layer" or each "output"; None for the method's
      own. Must be None for "sparse_gpt" and with a structure.
    compensate: whether to compensate the kept weights; None for the method's own.
    damping: fraction of the mean diagonal added to the Hessian's diagonal.
    block: the number of columns that SparseGPT selects together.
    measure: whether to report errors, which needs Gram matrices for every method.
    directory: the directory to write each layer to once it is pruned. A second call
      with the same arguments resumes from it. What functions capture is not compared.
    progress: whether to show a progress bar on standard error.

  Returns:
    `Pruned`.

  Raises:
    TypeError: an argument has the wrong type.
    ValueError: an argument is outside its range; the structure does not fit a layer, or
      fixes densities that the distribution contradicts; budgets do not sum to
      `round(density * size)`, after rounding to a structure's units up to half a unit
      per layer; as for `input_statistics`; or,
      while layers are pruned, a layer's weights or inputs are not finite, or its damped
      Hessian cannot be inverted.

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
  # Validate all arguments before any work is done.
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
    raise ValueError("batches must contain at least one batch, got none.")
  # Find the layers and compute the number of weights that each keeps.
  network = find_layers(apply_fn, params, batches[0], where, "prune")
  budgets = _budgets(network.layers, density, distribution, structure)
  settings = Settings(chosen, structure, float(damping), block)
  # Prepare the directory; it must not contain layers of a different pruning.
  if directory is not None:
    request = {
      **{"layers": dict(zip([k.name for k in network.layers], budgets, strict=True))},
      **{"method": _name(method), "structure": structure and structure.name},
      **{"group": chosen.group, "compensates": chosen.compensates, "inputs": inputs},
      **{"targets": targets},
      **{"damping": damping, "block": block, "measure": measure},
      **{"network": _files.describe_function(apply_fn, params, batches[0])},
    }
    _files.prepare(directory, _files.fingerprint((params, batches), request))

  # Prune layer by layer. `values` holds, per batch, the values of the program at the
  # current layer, computed from the leaves pruned so far or from the dense ones.
  dense = jax.tree.leaves(params)
  leaves, masks = list(dense), {}
  values = [numbered(network, batch) for batch in batches]
  dense_values = values
  bar, report, at = Bar(len(network.layers), progress), [], 0
  for number, (layer, live) in enumerate(zip(network.layers, budgets, strict=True)):
    start = time.monotonic()
    # Run the network from the previous layer to the first use of this one.
    source = leaves if inputs == "pruned" else dense
    first = layer.uses[0].at
    values = _advance(network, source, values, at, first)
    if targets == "dense":
      dense_values = _advance(network, dense, dense_values, at, first)
    at = first
    # Read the layer if an earlier call has written it; otherwise prune it.
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
        # .npz files have no bfloat16, so write a wider dtype, which is exact.
        exact = weights.astype(_wide(weights.dtype))
        arrays = {"weights": np.asarray(exact), "mask": mask}
        _files.write_layer(directory, number, {**arrays, "figures": np.array(figures)})
    # Write the layer's weights and mask to their positions in the parameter, which may
    # contain several layers.
    leaves[layer.leaf] = _replaced(leaves[layer.leaf], positions, weights)
    shape = leaves[layer.leaf].shape
    masks.setdefault(layer.leaf, np.ones(shape, bool)).reshape(-1)[positions] = mask
    report.append(known)
    bar.advance(known, saved is not None)
  treedef = jax.tree.structure(params)
  found = [jnp.asarray(masks[i]) if i in masks else None for i in range(len(leaves))]
  return Pruned(treedef.unflatten(leaves), treedef.unflatten(found), tuple(report))


def _name(method: str | Score) -> str:
  """Names a method, so that other functions have another name."""
  if isinstance(method, str):
    return method
  if isinstance(method, functools.partial):
    return f"{_name(method.func)}, args={method.args}, kwargs={method.keywords}"
  name = getattr(method, "__name__", "function")
  code = getattr(method, "__code__", None)
  return name if code is None else f"{name} {_files.checksum_of_code(code):08x}"


def _method(method, group, compensate, structure) -> Method:
  """Returns the method with the caller's choices applied, after validating them."""
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
  """Computes the number of live weights of each layer, and validates them."""
  fixed = None if structure is None else structure.density
  if structure is not None and fixed is not None and distribution is not uniform:
    raise ValueError(
      f"distribution must be uniform under the structure {structure.name}, which fixes "
      f"every layer's density, got {distribution!r}."
    )
  shapes = {layer.name: layer.shape for layer in layers}
  budgets = np.asarray(layer_budgets(distribution, shapes, density))
  if structure is not None:
    total = int(budgets.sum(dtype=np.int64))
    # Use the shapes that the structure's selection gets.
    shapes = {
      k.name: (k.inputs, k.outputs)
      if k.groups == 1
      else (k.groups, k.inputs, k.outputs)
      for k in layers
    }
    for name, shape in shapes.items():
      rank = len(shape)
      structure.check(name, LayerAxes(name, shape, (), (rank - 2,), (rank - 1,)))
    budgets = np.asarray(structure.fit(shapes, jnp.asarray(budgets)))
    # Rounding to units may change the total, but no more: a layer's least is one unit,
    # however low the density. Structures without a unit are rounded per output.
    unit = structure.unit or (lambda shape: shape[-1])
    found = int(budgets.sum(dtype=np.int64))
    if 2 * abs(found - total) > sum(map(unit, shapes.values())):
      raise ValueError(
        f"density must be reached, up to half a unit per layer, by budgets that fit "
        f"the structure {structure.name}: it asks for {total} weights, got {found}."
      )
  for layer, budget in zip(layers, budgets, strict=True):
    if budget < 1:
      raise ValueError(
        f"distribution must leave every layer a weight, got 0 at {layer.name!r}."
      )
  return [int(budget) for budget in budgets]


def _advance(network: Network, params, values, at: int, to: int):
  """Computes, for every batch, the values that operations `to` and later need."""
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
  """Computes the statistics of one layer's inputs over all batches."""
  sums = Sums(network, (layer,), gram, layer.uses[0].at)
  inputs = [{i: batch[i] for i in sums.program.inputs} for batch in values]
  totals = sums.start(params, inputs[0])
  for batch in inputs:
    totals = sums.step(totals, params, batch)
  return totals[0]


def _cross(network: Network, layer: Layer, dense, pruned) -> jax.Array:
  """Sums `x y^T` over all batches, of a layer's inputs x, y in two networks."""
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
  """Prunes a layer; raises ValueError if its arrays or its result are not finite."""
  for what, array in (("weights", matrix), ("inputs", statistics.squares)):
    if not bool(jnp.all(jnp.isfinite(array))):
      raise ValueError(
        f"{what} of every layer must be finite, got NaN or infinity at {layer.name!r}."
      )
  dtype, wide = matrix.dtype, _wide(matrix.dtype)
  # Pass `count` as an array, so that a different count does not compile again.
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
