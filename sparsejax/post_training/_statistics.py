"""What enters each layer: norms and Gram matrices of a network's own activations."""

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sparsejax.analysis.jaxpr import evaluate
from sparsejax.core import Where, check_arrays, check_callable, check_flag
from sparsejax.post_training._layers import Layer, Network, find_layers, product_inputs

PyTree = Any


class InputStatistics(NamedTuple):
  """Sums over everything that entered one layer.

  The axis `groups` is 1, but for grouped convolutions and products with batch axes.

  Attributes:
    count: how many inputs were summed: examples times positions.
    squares: float `(groups, inputs)`, the sum of each input's squares.
    gram: float `(groups, inputs, inputs)`, the sum of `x x^T`; None if not asked for.
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
    """`(2 / count) sum x x^T`, as `sparse_gpt` takes it, shaped as `gram`."""
    if self.gram is None:
      raise ValueError("gram must have been asked for to give a Hessian, got None.")
    count = jnp.maximum(jnp.asarray(self.count, self.gram.dtype), 1)
    return self.gram * (2 / count)


class LayerInfo(NamedTuple):
  """One layer of a function, as found in its program.

  Attributes:
    shape: `(*spatial, inputs, outputs)`, with a leading axis of groups where a
      product has batch axes.
    groups: products side by side, each with inputs of its own.
    inputs: how many products each output sums.
    outputs: of each group.
    uses: how many products the weights enter.
    gram_bytes: memory of the layer's Gram matrices in float32.
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

  Nothing is computed; `params` and `inputs` may be abstract.

  Args:
    apply_fn: `(params, inputs) -> outputs`.
    params: pytree of arrays.
    inputs: one batch.
    where: which parameters; see `sj.sparsify`.

  Returns:
    The layers by name, in program order. The name is the parameter's path, followed by
    `[i]` where one parameter holds several layers, as stacked layers do.

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
  """Computes statistics of what enters each layer, over batches of examples.

  squares_i = sum x_i^2,  gram_ij = sum x_i x_j,  over all examples and positions

  A layer is a product or convolution with a selected parameter. The products are read
  off the function's jaxpr, so there is nothing to register: parameters are followed
  through casts, transposes, reshapes, slices, calls, and `scan` over stacked layers;
  all products with the same weights are summed. A convolution's inputs are its patches,
  in the order `(*spatial, channels)`; an attention kernel's are all axes that the
  product contracts.

  Memory: the sums of all layers, `4 * groups * inputs^2` bytes each with `gram` (see
  `layers`), plus one batch's forward pass. Batches are consumed one at a time; the
  function is compiled once. To hold one layer's Gram matrix at a time, use `prune`, or
  call this once per layer with `where`.

  Args:
    apply_fn: `(params, inputs) -> outputs`, such as
      `lambda params, x: model.apply({"params": params}, x)`.
    params: pytree of arrays.
    batches: inputs, one pytree of arrays each, all of the same shapes; may be a
      generator.
    where: which parameters; see `sj.sparsify`. By default kernels, and not embeddings.
    gram: whether to compute Gram matrices.

  Returns:
    `InputStatistics` by the layer's name (see `layers`), in program order, in float32,
    or in float64 where activations are.

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
    raise ValueError("batches must hold at least one batch, got none.")
  names = [layer.name for layer in network.layers]
  return dict(zip(names, totals, strict=True))


def numbered(network: Network, batch: Any) -> dict[int, Any]:
  """The leaves of a batch by their numbers in the program."""
  return dict(zip(network.program.inputs, jax.tree.leaves(batch), strict=True))


class Sums:
  """Sums over one batch of what enters some layers, computed by part of a program.

  Args:
    network: from `find_layers`.
    layers: some of its layers.
    gram: whether to compute Gram matrices.
    at: the index of the operation from which on the program is run.
  """

  def __init__(self, network: Network, layers: tuple[Layer, ...], gram: bool, at: int):
    operations = network.program.operations
    ends = {out for k in layers for use in k.uses for out in operations[use.at].outputs}
    # What follows the last of the products is not computed.
    self.program = network.segment(network.live(at), sorted(ends))
    self.layers, self.gram = layers, gram
    self.counts = [0] * len(layers)
    self._uses = {use.output: (k, use) for k, x in enumerate(layers) for use in x.uses}
    self.add = jax.jit(self._add, donate_argnums=0)

  def start(self, params: list, values: dict[int, Any]) -> list["InputStatistics"]:
    """Statistics of no batch; learns how many inputs one batch has."""

    def of(params, values):
      sums, self.counts = self._of(params, values)
      return sums

    shapes = jax.eval_shape(of, params, values)
    zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)
    return [InputStatistics(0, *zero) for zero in zeros]

  def step(self, totals, params: list, values: dict[int, Any]):
    """Adds one batch; `totals` must not be used again."""
    sums = self.add([tuple(t[1:]) for t in totals], params, values)
    return [
      InputStatistics(t.count + n, *s)
      for t, n, s in zip(totals, self.counts, sums, strict=True)
    ]

  def _add(self, totals, params: list, values: dict[int, Any]):
    return jax.tree.map(jnp.add, totals, self._of(params, values)[0])

  def inputs(self, params: list, values: dict[int, Any]) -> list[tuple[int, Any]]:
    """What enters each use: the layer's number, and `(groups, samples, inputs)`."""

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
      # A loop stacks the inputs of its rounds.
      x = jnp.moveaxis(x, -3, 0).reshape(layer.groups, -1, layer.inputs)
      found.append(
        (k, x.astype(jnp.float64 if x.dtype == jnp.float64 else jnp.float32))
      )
    return found

  def _of(self, params: list, values: dict[int, Any]) -> tuple[list, list[int]]:
    """One batch's sums and counts."""
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
  """Yields `(first batch, batch)`; raises where a batch differs from the first.

  A sequence is checked as a whole before the first batch is given out.
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
  """Shapes and dtypes, such as `{'x': float32[2, 3]}`."""
  text = str(jax.tree.map(lambda a: f"{a.dtype}{list(a.shape)}", tree))
  return text.replace("'", "") if hasattr(tree, "shape") else text


def _check_batch(first: Any, batch: Any, i: int) -> None:
  check_arrays("batches", batch)
  if not jax.tree.leaves(batch) or any(
    math.prod(a.shape) == 0 for a in jax.tree.leaves(batch)
  ):
    raise ValueError(
      f"batches must hold examples, got {_describe(batch)} in batch {i}."
    )
  if _describe(first) != _describe(batch):
    raise ValueError(
      "batches must all have the shapes and dtypes of the first, "
      f"{_describe(first)}, got {_describe(batch)} in batch {i}."
    )
