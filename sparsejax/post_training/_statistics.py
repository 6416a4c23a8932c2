"""What enters each layer: norms and Gram matrices of a network's own activations."""

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sparsejax.analysis._program import Program, evaluate
from sparsejax.core.checks import check_callable, check_flag
from sparsejax.core.leaves import Where, check_arrays
from sparsejax.post_training._layers import (
  Layer,
  find_layers,
  product_inputs,
  segment,
)

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
    """`(2 / count) sum x x^T`, as `lottery.sparse_gpt` takes it, shaped as `gram`."""
    if self.gram is None:
      raise ValueError("gram must have been asked for to give a Hessian, got None.")
    return self.gram * jnp.asarray(2 / max(self.count, 1), self.gram.dtype)


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
  for first, batch in checked(batches):
    if sums is None:
      network = find_layers(apply_fn, params, first, where, "input_statistics")
      sums = Sums(network.program, network.layers, gram)
      totals = jax.tree.map(
        lambda a: jnp.zeros(a.shape, a.dtype),
        jax.eval_shape(sums.of, jax.tree.leaves(params), jax.tree.leaves(first)),
      )
      leaves, times = jax.tree.leaves(params), 0
    totals = sums.add(totals, leaves, jax.tree.leaves(batch))
    times += 1
  if sums is None:
    raise ValueError("batches must hold at least one batch, got none.")
  return {
    layer.name: InputStatistics(sums.counts[layer.name] * times, *total)
    for layer, total in zip(network.layers, totals, strict=True)
  }


class Sums:
  """Sums over one batch of what enters some layers, computed by part of a program."""

  def __init__(self, program: Program, layers: tuple[Layer, ...], gram: bool):
    targets = dict.fromkeys(
      out for layer in layers for use in layer.uses for out in _outputs(program, use)
    )
    # What follows the last of the products is not computed.
    self.program = _upto(program, list(targets))
    self.layers, self.gram = layers, gram
    self.counts: dict[str, int] = {}
    self.of = self._of
    self.add = jax.jit(self._add, donate_argnums=0)

  def _of(self, params: list, inputs: list) -> list[tuple]:
    """One batch's sums."""
    uses = {
      use.output: (k, use) for k, layer in enumerate(self.layers) for use in layer.uses
    }

    def visit(operation, values):
      if not operation.outputs or operation.outputs[0] not in uses:
        return None
      _, use = uses[operation.outputs[0]]
      return product_inputs(operation, use.side, values)

    _, seen = evaluate(self.program, params, inputs, visit)
    sums: list[Any] = [None] * len(self.layers)
    self.counts = dict.fromkeys([layer.name for layer in self.layers], 0)
    for operation, x in seen:
      k = uses[operation.outputs[0]][0]
      layer = self.layers[k]
      # A loop stacks the inputs of its rounds.
      x = jnp.moveaxis(x, -3, 0).reshape(layer.groups, -1, layer.inputs)
      self.counts[layer.name] += x.shape[1]
      x = x.astype(jnp.float64 if x.dtype == jnp.float64 else jnp.float32)
      squares = jnp.sum(x * x, 1)
      product = None
      if self.gram:
        product = jnp.einsum("gsi,gsj->gij", x, x, precision="highest")
      old = sums[k]
      if old is not None:
        squares = squares + old[0]
        product = None if product is None else product + old[1]
      sums[k] = (squares, product)
    return sums

  def _add(self, totals, params: list, inputs: list):
    return jax.tree.map(jnp.add, totals, self._of(params, inputs))


def _outputs(program: Program, use) -> tuple[int, ...]:
  return program.operations[use.at].outputs


def _upto(program: Program, targets: list[int]) -> Program:
  return segment(program, program.inputs, targets)._replace(inputs=program.inputs)


def checked(batches: Iterable[Any]):
  """Yields `(first batch, batch)`; raises where a batch differs from the first.

  A sequence is checked as a whole before the first batch is given out.
  """
  if hasattr(batches, "shape") or isinstance(batches, (dict, str)):
    kind = type(batches).__name__
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


def _check_batch(first: Any, batch: Any, i: int) -> None:
  check_arrays("batches", batch)
  describe = lambda tree: jax.tree.map(lambda a: f"{a.dtype}{list(a.shape)}", tree)
  if not jax.tree.leaves(batch) or any(
    math.prod(a.shape) == 0 for a in jax.tree.leaves(batch)
  ):
    raise ValueError(f"batches must hold examples, got {describe(batch)} in batch {i}.")
  if describe(first) != describe(batch):
    raise ValueError(
      "batches must all have the shapes and dtypes of the first, "
      f"{describe(first)}, got {describe(batch)} in batch {i}."
    )
