"""Statistics of each layer's inputs: norms and Gram matrices of activations."""

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sparsejax.analysis.jaxpr import evaluate
from sparsejax.core import Where, check_arrays, check_callable, check_flag
from sparsejax.post_training._find_layers import find_layers
from sparsejax.post_training._layers import Layer, Network, product_inputs

PyTree = Any


class InputStatistics(NamedTuple):
  """Sums over all inputs of one layer.

  The axis `groups` has size 1, except for grouped convolutions and products with batch
  axes.

  Attributes:
    count: the number of input vectors: examples times positions.
    squares: float `(groups, inputs)`, the sum of each input's squares.
    gram: float `(groups, inputs, inputs)`, the sum of `x x^T`; None if not computed.
  """

  count: int
  squares: jax.Array
  gram: jax.Array | None

  @property
  def norms(self) -> jax.Array:
    """The L2 norm of each input over all examples, `(groups, inputs)`."""
    return jnp.sqrt(self.squares)

  @property
  def hessian(self) -> jax.Array:
    """The Hessian `(2 / count) sum x x^T` for `sparse_gpt`, shaped as `gram`."""
    if self.gram is None:
      raise ValueError("gram must have been asked for to give a Hessian, got None.")
    count = jnp.maximum(jnp.asarray(self.count, self.gram.dtype), 1)
    return self.gram * (2 / count)


class LayerInfo(NamedTuple):
  """One layer of a function, as found in its program.

  Attributes:
    shape: `(*spatial, inputs, outputs)`, with a leading axis of groups for a product
      with batch axes.
    groups: the number of parallel products, each with its own inputs.
    inputs: the number of products that each output sums.
    outputs: the number of outputs per group.
    uses: the number of products that the weights enter.
    gram_bytes: memory of the layer's Gram matrices in float32, in bytes.
  """

  shape: tuple[int, ...]
  groups: int
  inputs: int
  outputs: int
  uses: int
  gram_bytes: int


def layers(
  apply_fn: Callable[[PyTree, Any], Any],
  params: PyTree,
  inputs: Any,
  where: Where = None,
) -> dict[str, LayerInfo]:
  """Lists the layers of a function: the products that its parameters enter.

  The function is traced, not run, so `params` and `inputs` may be abstract.

  Args:
    apply_fn: `(params, inputs) -> outputs`.
    params: pytree of arrays.
    inputs: one batch.
    where: selects the parameters; see `sj.sparsify`.

  Returns:
    The layers by name, in program order. A name is the parameter's path, followed by
    `[i]` if the parameter contains several layers, such as stacked ones.

  Raises:
    TypeError: an argument has the wrong type.
    ValueError: no selected parameter enters a product, or one cannot be followed to it.

  Example:
    >>> apply_fn = lambda params, x: jax.nn.relu(x @ params["a"]) @ params["b"]
    >>> params = {"a": jnp.ones((3, 5)), "b": jnp.ones((5, 2))}
    >>> for name, layer in layers(apply_fn, params, jnp.ones((4, 3))).items():
    ...   print(name, layer.inputs, layer.outputs, layer.gram_bytes)
    a 3 5 36
    b 5 2 100
  """
  check_callable("apply_fn", apply_fn, "a function of (params, inputs)", 2)
  network = find_layers(apply_fn, params, inputs, where, "layers")
  return {
    layer.name: LayerInfo(
      layer.shape,
      layer.groups,
      layer.inputs,
      layer.outputs,
      len(layer.uses),
      4 * layer.groups * layer.inputs**2,
    )
    for layer in network.layers
  }


def input_statistics(
  apply_fn: Callable[[PyTree, Any], Any],
  params: PyTree,
  batches: Iterable[Any],
  where: Where = None,
  *,
  gram: bool = True,
) -> dict[str, InputStatistics]:
  """Computes statistics of the inputs of each layer over batches of examples.

  squares_i = sum x_i^2,  gram_ij = sum x_i x_j,  over all examples and positions

  A layer is a product or convolution with a selected parameter. Layers are found in the
  function's jaxpr, so they need not be registered: parameters are followed through
  casts, transposes, reshapes, slices, calls, and `scan` over stacked layers. The sums
  include all products with the same weights. The inputs of a convolution are its
  patches, in the order `(*spatial, channels)`; those of an attention kernel are all
  axes that the product contracts.

  Memory: the sums of all layers, `4 * groups * inputs^2` bytes each with `gram` (see
  `layers`), plus one batch's forward pass. Batches are consumed one at a time, and the
  function is compiled once. To keep only one layer's Gram matrix in memory at a time,
  use `prune`, or call this function once per layer with `where`.

  Args:
    apply_fn: `(params, inputs) -> outputs`, such as
      `lambda params, x: model.apply({"params": params}, x)`.
    params: pytree of arrays.
    batches: one pytree of arrays per batch, all with the same shapes; may be a
      generator.
    where: selects the parameters; see `sj.sparsify`. By default kernels, without
      embeddings; those that enter no product, such as a class token, are left out.
    gram: whether to compute Gram matrices.

  Returns:
    `InputStatistics` by the layer's name (see `layers`), in program order. They are
    float32, or float64 for float64 activations.

  Raises:
    TypeError: an argument has the wrong type.
    ValueError: there are no batches, or their shapes differ; no selected parameter
      enters a product, or one cannot be followed to it (the message names the
      operation).

  Example:
    >>> apply_fn = lambda params, x: jax.nn.relu(x @ params["a"]) @ params["b"]
    >>> params = {"a": jnp.eye(2), "b": jnp.ones((2, 1))}
    >>> batches = [jnp.array([[3.0, -1.0]]), jnp.array([[4.0, 2.0]])]
    >>> statistics = input_statistics(apply_fn, params, batches)
    >>> statistics["a"].norms.tolist()[0][0], statistics["b"].gram.tolist()
    (5.0, [[[25.0, 8.0], [8.0, 4.0]]])
  """
  check_callable("apply_fn", apply_fn, "a function of (params, inputs)", 2)
  check_flag("gram", gram)
  sums: Any = None
  leaves = jax.tree.leaves(params)
  for first, batch in checked(batches):
    if sums is None:
      network = find_layers(apply_fn, params, first, where, "input_statistics")
      sums = Sums(network, network.layers, gram, 0)
      totals = sums.start(leaves, numbered(network, first))
    values = numbered(network, batch)
    totals = sums.step(totals, leaves, values)
  if sums is None:
    raise ValueError("batches must contain at least one batch, got none.")
  names = [layer.name for layer in network.layers]
  return dict(zip(names, totals, strict=True))


def numbered(network: Network, batch: Any) -> dict[int, Any]:
  """Returns the leaves of a batch by their numbers in the program."""
  return dict(zip(network.program.inputs, jax.tree.leaves(batch), strict=True))


class Sums:
  """Sums of the inputs of some layers, computed by part of a program per batch.

  Args:
    network: the network, from `find_layers`.
    layers: the layers to compute statistics of.
    gram: whether to compute Gram matrices.
    at: the index of the first operation to run.
  """

  def __init__(self, network: Network, layers: tuple[Layer, ...], gram: bool, at: int):
    operations = network.program.operations
    ends = {out for k in layers for use in k.uses for out in operations[use.at].outputs}
    # Operations after the last of the products are not run.
    self.program = network.segment(network.live(at), sorted(ends))
    self.layers, self.gram = layers, gram
    self.counts = [0] * len(layers)
    self._uses = {use.output: (k, use) for k, x in enumerate(layers) for use in x.uses}
    self.add = jax.jit(self._add, donate_argnums=0)

  def start(self, params: list, values: dict[int, Any]) -> list["InputStatistics"]:
    """Returns statistics of zero batches, and stores the number of inputs per batch."""

    def of(params, values):
      sums, self.counts = self._of(params, values)
      return sums

    shapes = jax.eval_shape(of, params, values)
    zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)
    return [InputStatistics(0, *zero) for zero in zeros]

  def step(self, totals, params: list, values: dict[int, Any]):
    """Adds one batch to `totals`, which are donated and must not be used again."""
    sums = self.add([tuple(t[1:]) for t in totals], params, values)
    return [
      InputStatistics(t.count + n, *s)
      for t, n, s in zip(totals, self.counts, sums, strict=True)
    ]

  def _add(self, totals, params: list, values: dict[int, Any]):
    return jax.tree.map(jnp.add, totals, self._of(params, values)[0])

  def inputs(self, params: list, values: dict[int, Any]) -> list[tuple[int, Any]]:
    """Returns the inputs of each use: layer index, and `(groups, samples, inputs)`."""

    def visit(operation, operands):
      if not operation.outputs or operation.outputs[0] not in self._uses:
        return None
      _, use = self._uses[operation.outputs[0]]
      return product_inputs(operation, use.side, operands)

    inputs = [values[i] for i in self.program.inputs]
    _, seen = evaluate(self.program, params, inputs, visit)
    found = []
    for operation, x in seen:
      k = self._uses[operation.outputs[0]][0]
      layer = self.layers[k]
      # Loops stack the inputs of their iterations on leading axes.
      x = jnp.moveaxis(x, -3, 0).reshape(layer.groups, -1, layer.inputs)
      found.append(
        (k, x.astype(jnp.float64 if x.dtype == jnp.float64 else jnp.float32))
      )
    return found

  def _of(self, params: list, values: dict[int, Any]) -> tuple[list, list[int]]:
    """Computes the sums and counts of one batch."""
    sums: list[Any] = [None] * len(self.layers)
    counts = [0] * len(self.layers)
    for k, x in self.inputs(params, values):
      new = jnp.sum(x * x, 1), None
      if self.gram:
        new = new[0], jnp.einsum("gsi,gsj->gij", x, x, precision="highest")
      counts[k] += x.shape[1]
      sums[k] = new if sums[k] is None else jax.tree.map(jnp.add, sums[k], new)
    return sums, counts


def checked(batches: Iterable[Any]):
  """Yields `(first batch, batch)`; raises if a batch's shapes differ from the first's.

  A list or tuple is validated as a whole before the first batch is yielded.
  """
  if hasattr(batches, "shape") or isinstance(batches, (dict, str)):
    kind = "array" if hasattr(batches, "shape") else type(batches).__name__
    raise TypeError(
      f"batches must be a sequence of inputs, one per batch, got a single {kind}; put "
      "it into a list."
    )
  try:
    iterator = iter(batches)
  except TypeError:
    raise TypeError(
      f"batches must be a sequence of inputs, one per batch, got {batches!r}."
    ) from None
  if isinstance(batches, (list, tuple)):
    for i, batch in enumerate(batches):
      _check_batch(batches[0], batch, i)
  first = None
  for i, batch in enumerate(iterator):
    if i == 0:
      first = batch
    _check_batch(first, batch, i)
    yield first, batch


def _describe(tree: Any) -> str:
  """Formats shapes and dtypes, such as `{'x': float32[2, 3]}`."""
  text = str(jax.tree.map(lambda a: f"{a.dtype}{list(a.shape)}", tree))
  return text.replace("'", "") if hasattr(tree, "shape") else text


def _check_batch(first: Any, batch: Any, i: int) -> None:
  check_arrays("batches", batch)
  if not jax.tree.leaves(batch) or any(
    math.prod(a.shape) == 0 for a in jax.tree.leaves(batch)
  ):
    raise ValueError(
      f"batches must contain examples, got {_describe(batch)} in batch {i}."
    )
  if _describe(first) != _describe(batch):
    raise ValueError(
      "batches must all have the shapes and dtypes of the first, "
      f"{_describe(first)}, got {_describe(batch)} in batch {i}."
    )
