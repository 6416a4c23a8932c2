"""Chooses the fastest program of a sparse network by timing its products.

The choice is made in two stages, both by measurement on this machine:

1. `compact` removes dead units. Every matrix product that is left is timed alone in
   each format: dense, blocks of zeros skipped, compressed sparse rows.
2. The masked network, the compact one, and the compact one with the fastest format of
   each product are timed as a whole. The fastest is the result, so it is never slower
   than the masked network by more than the timing's noise.
"""

import functools
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from sparsejax import ops
from sparsejax.analysis.compaction import compact
from sparsejax.analysis.deployment._csr import CUSTOM_CALLS, csr_product
from sparsejax.analysis.deployment._products import find_products, kernels_of
from sparsejax.analysis.deployment._timing import draw_inputs, time_in_turns
from sparsejax.analysis.jaxpr import evaluate, trace
from sparsejax.core import (
  PyTree,
  apply_masks,
  check_callable,
  check_integer,
  replacing,
)

Array = jax.Array
_FORMATS = ("blocks", "csr")
_SIDES = (128, 64, 32)
_MOST = 0.5  # no format is faster at higher densities
# A format must be faster by this factor than the dense product; noise is below it.
_GAIN = 0.95


class LayerFormat(NamedTuple):
  """The format that was chosen for one product.

  Attributes:
    name: the path of the parameter that is the kernel.
    rows: the number of rows of the product's input, such as the batch size.
    shape: (inputs, outputs) of the kernel after compaction.
    density: the share of its weights that are not zero.
    seconds: the median time of each format that was tried, by name.
    choice: the name of the format: "dense", "csr", or such as "blocks of 64".
  """

  name: str
  rows: int
  shape: tuple[int, int]
  density: float
  seconds: dict[str, float]
  choice: str


class Deployed(NamedTuple):
  """A network for inference, in the fastest of the programs that were timed.

  Attributes:
    apply: `inputs -> outputs`, compiled, with the parameters inside. It takes any batch
      size; the choices were made for that of the example.
    layers: one `LayerFormat` per matrix product of the compact network.
    seconds: the median time of each whole network: "masked" (dense products), "compact"
      and "deployed" (compact, with the formats of `layers`), of those that exist.
    choice: which of them `apply` is.
    example: the shape and dtype of the inputs.
    not_compact: why the network could not be compacted, or None.
  """

  apply: Callable[[Array], Any]
  layers: tuple[LayerFormat, ...]
  seconds: dict[str, float]
  choice: str
  example: jax.ShapeDtypeStruct
  not_compact: str | None

  def table(self) -> str:
    """Formats the choices as a table, one line per product and one per network."""
    rows = [("product", "rows", "kernel", "density", "microseconds", "choice")]
    for layer in self.layers:
      times = ", ".join(f"{name} {1e6 * s:.0f}" for name, s in layer.seconds.items())
      shape = "x".join(map(str, layer.shape))
      row = (layer.name, str(layer.rows), shape, f"{layer.density:.3f}", times)
      rows.append((*row, layer.choice))
    times = ", ".join(f"{name} {1e6 * s:.0f}" for name, s in self.seconds.items())
    batch = str(self.example.shape[0])
    rows.append(("whole network", batch, "", "", times, self.choice))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
      "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
      for row in rows
    )

  def export(self) -> export.Exported:
    """Exports the network for the example's shape, as StableHLO with its parameters.

    Returns:
      A `jax.export.Exported`, for the platform on which `deploy` was called. Its
      `serialize` returns bytes, and its `mlir_module` the text.
    """
    allowed = [export.DisabledSafetyCheck.custom_call(name) for name in CUSTOM_CALLS]
    exporting = export.export(jax.jit(self.apply), disabled_checks=allowed)
    return exporting(self.example)

  def save(self, path: str | os.PathLike) -> None:
    """Writes the exported network to a file, which JAX reads without this library.

    `jax.export.deserialize(bytearray(file.read())).call(inputs)` runs it. If a product
    was stored as "csr", import `jax.experimental.sparse` first, which registers the
    compiled function, and use the same version of jaxlib, because `jax.export` promises
    no compatibility for this function. Needs the package `flatbuffers`
    (`pip install sparsejax[export]`).

    Args:
      path: the file's path; an existing file is replaced atomically.

    Raises:
      OSError: the file cannot be written.
    """
    data = self.export().serialize()
    with replacing(path) as file:
      file.write(data)


def deploy(
  apply_fn: Callable[[PyTree, Array], Any],
  params: PyTree,
  masks: PyTree | None,
  example: Any,
  *,
  formats: Sequence[str] = _FORMATS,
  rounds: int = 15,
) -> Deployed:
  """Makes the fastest program of a sparse network, by timing it on this machine.

  program = fastest of masked, compact, and compact with each product's fastest format

  Dead units are removed first; see `compact`, whose operations it needs; a network that
  cannot be compacted is used as it is. Then each product of activations and a kernel is
  timed in three formats: dense; with blocks of zeros skipped (`ops.block_dot`, on CPUs,
  for blocks of 32, 64 and 128); and in compressed sparse rows (CSR, float32 on CPUs).
  The best programs are finally timed as a whole, and the masked network is kept unless
  another one is at least 5 % faster. Convolutions and products inside of loops are
  dense. Run nothing else meanwhile; it takes seconds.

  The fastest format depends on the batch size: deploy the network once per batch size
  that it will serve. The result is for inference; CSR products may have no derivative.

  Args:
    apply_fn: `(params, inputs) -> outputs`, for inference.
    params: pytree of arrays.
    masks: the masks from `sj.masks`, or None if the params are masked already.
    example: inputs (n, ...), or their abstract value; n is the batch size to serve.
    formats: which formats to try besides dense, of "blocks" and "csr". Without "csr" a
      saved file has the compatibility that `jax.export` promises.
    rounds: the number of timings of each program, in turns; their median counts.

  Returns:
    A `Deployed`: the compiled function, the table of the choices, `export` and `save`.

  Raises:
    TypeError: `apply_fn` is not a function, or `rounds` is not an integer.
    ValueError: `formats` has another name, `rounds` is below 1, or `example` is not one
      array with examples along its first axis; masks do not fit the params.

  Example:
    >>> mlp = lambda p, x: jnp.maximum(x @ p["a"], 0.0) @ p["b"]
    >>> params = {"a": jnp.eye(64), "b": jnp.eye(64)}
    >>> net = deploy(mlp, params, None, jnp.ones((8, 64)), rounds=1)
    >>> [(layer.name, layer.shape, layer.density) for layer in net.layers]
    [('a', (64, 64), 0.015625), ('b', (64, 64), 0.015625)]
    >>> bool(jnp.allclose(net.apply(jnp.ones((8, 64))), 1.0))
    True
  """
  check_callable("apply_fn", apply_fn, "a function of (params, inputs)", 2)
  check_integer("rounds", rounds, 1)
  if unknown := sorted(set(formats) - set(_FORMATS)):
    raise ValueError(f"formats must be among {list(_FORMATS)}, got {unknown}.")
  shapes = jax.tree.leaves(example)
  if len(shapes) != 1 or not np.shape(shapes[0]) or not np.shape(shapes[0])[0]:
    raise ValueError(
      "example must be one array with a leading axis of examples, got "
      f"{jax.tree.map(np.shape, example)}."
    )
  dtype = jax.dtypes.canonicalize_dtype(shapes[0].dtype)
  like = jax.ShapeDtypeStruct(np.shape(shapes[0]), dtype)
  params = params if masks is None else apply_masks(params, masks)
  params = jax.tree.map(jnp.asarray, params)

  # The networks to choose from. The base of the sparse formats is the compact one.
  networks: dict[str, Callable] = {"masked": functools.partial(apply_fn, params)}
  base, base_params, not_compact = apply_fn, params, None
  try:
    small = compact(apply_fn, params, None, like)
  except ValueError as e:
    not_compact = str(e)
  else:
    base, base_params = small.apply, small.params
    networks["compact"] = functools.partial(base, base_params)

  # Time each product alone, and put the fastest formats into one network.
  program, _ = trace(base, base_params, like)
  products = find_products(program)
  chosen = []
  for product, (name, kernel) in zip(
    products, kernels_of(program, base_params, products), strict=True
  ):
    # The formats need inputs of the kernel's dtype, and sum to it.
    values = (product.operation.inputs[product.side], product.operation.outputs[0])
    same = all(program.dtypes.get(i) == kernel.dtype for i in values)
    chosen.append(_fastest(name, product.rows, kernel, formats if same else (), rounds))
  if any(layer.choice != "dense" for layer, _ in chosen):
    functions = [function for _, function in chosen]
    networks["deployed"] = _with_formats(base, base_params, functions)

  # Time whole networks, and keep the masked one unless another is clearly faster.
  compiled = {name: jax.jit(network) for name, network in networks.items()}
  seconds = _medians(compiled, like, rounds)
  best = _choose(seconds, "masked")
  layers = tuple(layer for layer, _ in chosen)
  return Deployed(compiled[best], layers, seconds, best, like, not_compact)


def _fastest(
  name: str, rows: int, kernel: np.ndarray, formats: Sequence[str], rounds: int
) -> tuple[LayerFormat, Callable[[Array], Array] | None]:
  """Returns a `LayerFormat` and the function of its format, which is None for dense."""
  dense = jnp.asarray(kernel)
  functions: dict[str, Callable] = {"dense": lambda x: x @ dense}
  floating = jnp.issubdtype(kernel.dtype, jnp.floating)
  density = float(np.mean(kernel != 0)) if kernel.size else 0.0
  # Formats that can be faster: sparse enough, and supported on this platform.
  if jax.default_backend() == "cpu" and floating and 0 < density <= _MOST:
    if "csr" in formats and kernel.dtype == np.float32:
      functions["csr"] = csr_product(kernel)
    for side in _SIDES if "blocks" in formats else ():
      if not any(n % side for n in kernel.shape):
        grid = (kernel != 0).reshape(len(kernel) // side, side, -1, side)
        live = np.any(grid, axis=(1, 3))
        if live.mean() <= _MOST:
          functions[f"blocks of {side}"] = _blocks(dense, live, side)
  x = jax.ShapeDtypeStruct((rows, len(kernel)), kernel.dtype)
  seconds = {}
  if len(functions) > 1 and x.size:
    compiled = {name: jax.jit(function) for name, function in functions.items()}
    seconds = _medians(compiled, x, rounds)
  choice = _choose(seconds, "dense") if seconds else "dense"
  layer = LayerFormat(name, rows, kernel.shape, density, seconds, choice)
  return layer, None if choice == "dense" else functions[choice]


def _blocks(kernel: Array, live: Any, side: int) -> Callable[[Array], Array]:
  flags = jnp.asarray(live)
  return lambda x: ops.block_dot(x, kernel, (side, side), live=flags)


def _with_formats(base, params, functions) -> Callable[[Array], Any]:
  """Returns a network whose products, in order, use the given functions."""

  def network(inputs: Array) -> Any:
    like = jax.ShapeDtypeStruct(inputs.shape, inputs.dtype)
    program, treedef = trace(base, params, like)
    pairs = zip(find_products(program), functions, strict=True)
    replaced = {p.operation.outputs: (p, f) for p, f in pairs if f is not None}

    def replace(operation, values):
      if operation.outputs not in replaced:
        return None
      product, function = replaced[operation.outputs]
      y = function(product.matrix(values[product.side]))
      dtype = program.dtypes[operation.outputs[0]]
      return [product.result(y).astype(dtype)]

    outputs, _ = evaluate(program, jax.tree.leaves(params), [inputs], replace=replace)
    return treedef.unflatten(outputs)

  return network


def _medians(
  calls: dict[str, Callable], like: jax.ShapeDtypeStruct, rounds: int
) -> dict[str, float]:
  """Returns the median seconds of each function, for random inputs."""
  taken = time_in_turns(calls, draw_inputs(like), rounds)
  return {name: float(np.median(seconds)) for name, seconds in taken.items()}


def _choose(seconds: dict[str, float], default: str) -> str:
  """Returns the fastest name, or the default if that is not clearly slower."""
  best = min(seconds, key=seconds.__getitem__)
  return best if seconds[best] < _GAIN * seconds[default] else default
