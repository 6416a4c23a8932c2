"""The layers of a network that is a chain, and operations on their masks and units."""

import itertools
import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from sparsejax.analysis.compaction import live_parameters
from sparsejax.core import replicated

Array = jax.Array
PyTree = Any


class Layer(NamedTuple):
  """One kernel of a chain.

  Attributes:
    path: the path of the module in the params' tree, such as `("conv1",)`.
    shape: the shape of its kernel, with inputs on the second-to-last axis and outputs
      on the last.
    inputs: the number of input channels, which are the units of the layer before. A
      dense layer after a convolution has several rows per channel; row r belongs to
      channel r % inputs.
    uses: how often each weight is used per image: the number of output positions.
    norm: the path of the normalization between this layer and the next, or None.
    bias: whether the layer has a bias.
  """

  path: tuple[str, ...]
  shape: tuple[int, ...]
  inputs: int
  uses: int
  norm: tuple[str, ...] | None = None
  bias: bool = True

  @property
  def features(self) -> int:
    """The number of units of the layer's output."""
    return self.shape[-1]

  @property
  def name(self) -> str:
    """The kernel's slash-separated path."""
    return "/".join((*self.path, "kernel"))


def layers(model: nn.Module, image_shape: tuple[int, ...]) -> tuple[Layer, ...]:
  """Finds the layers of a model in the order in which they are called.

  The order of calls does not show which layer feeds which. The traced program is
  therefore checked: with the inputs of one unit and the outputs of another masked in
  each layer, `analysis.live_parameters` must find the same connected weights as the
  chain. Models with skips, branches, gates, shared kernels or a normalization over
  units (LayerNorm) fail this check; use `remove_unreachable` for them.

  Args:
    model: a flax linen module that is a chain of layers: the input of each layer is the
      output of the one before, after activations, pooling, batch normalization or
      flattening.
    image_shape: the shape of one image, such as (28, 28, 1).

  Returns:
    One `Layer` per module with a `kernel`. The model is traced, not run.

  Raises:
    ValueError: a layer has inputs other than the units of the one before, as in a
      residual network, or `analysis.compact` does not support an operation.

  Example:
    >>> from sparsejax import models
    >>> [(l.name, l.inputs, l.uses) for l in layers(models.LeNet5(), (28, 28, 1))][1:3]
    [('conv2/kernel', 20, 64), ('dense1/kernel', 50, 1)]
  """
  calls: list[tuple[tuple[str, ...], tuple[int, ...]]] = []

  def record(next_function, args, kwargs, context):
    out = next_function(*args, **kwargs)
    if context.method_name == "__call__":
      calls.append((context.module.path, getattr(out, "shape", ())))
    return out

  # Trace the model's initialization, and record its modules in the order of calls.
  images = jax.ShapeDtypeStruct((1, *image_shape), "float32")
  with nn.intercept_methods(record):
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
  params = variables["params"]
  # A module with a kernel is a layer. A module with a scale of as many units as the
  # last layer is its normalization.
  found: list[Layer] = []
  for path, out in dict(calls).items():
    if not path:
      continue
    node = params
    for part in path:
      node = node.get(part, {})
    if "kernel" in node:
      shape = node["kernel"].shape
      inputs = found[-1].features if found else shape[-2]
      if shape[-2] % inputs or (len(shape) > 2 and shape[-2] != inputs):
        raise ValueError(
          "model must be a chain of layers, each fed by the one before; got "
          f"{'/'.join(path)!r} with {shape[-2]} inputs after {inputs} units."
        )
      uses = math.prod(out[1:-1])
      found.append(Layer(path, shape, inputs, uses, None, "bias" in node))
    elif "scale" in node and found and node["scale"].shape[-1] == found[-1].features:
      found[-1] = found[-1]._replace(norm=path)
  if not found:
    raise ValueError(f"model must contain a kernel, got {model!r}.")
  _check_connections(model.apply, variables, images, tuple(found))
  return tuple(found)


def _check_connections(apply_fn, variables, images, chain: tuple[Layer, ...]) -> None:
  """Raises ValueError unless a program connects its layers as a chain."""
  dense = jax.tree.map(lambda p: np.ones(p.shape, bool), variables)
  kernels = [np.ones(layer.shape, bool) for layer in chain]

  def probe(removed):
    """Masks inputs or outputs of units; compares the program with the chain."""
    masks = [kernel.copy() for kernel in kernels]
    for i, side, unit in removed:
      if side == "into":
        masks[i][..., unit] = False
      else:
        rows = np.arange(chain[i + 1].shape[-2]) % chain[i + 1].inputs == unit
        masks[i + 1][..., rows, :] = False
    tree = dense["params"]
    for layer, mask in zip(chain, masks, strict=True):
      tree = put(tree, layer.path, mask)
    live = live_parameters(apply_fn, variables, {**dense, "params": tree}, images)
    expected = _connected(tree, chain)
    for layer in chain:
      found = np.asarray(get(live["params"], layer.path))
      if not np.array_equal(found, get(expected, layer.path)):
        raise ValueError(
          "model must be a chain of layers, each fed by the one before alone; got a "
          f"program in which {layer.name!r} is connected otherwise (a skip, a branch, "
          "a gate, a shared kernel, or a normalization over units)."
        )

  # In wide layers all probes are made at once, to trace the program only once. In
  # narrow ones they could coincide or disconnect the network, so each is made alone.
  together = []
  for i, layer in enumerate(chain[:-1]):
    # Probe different units in each layer, so that a skip between layers is detected.
    into, out_of = (i, "into", 2 * i), (i, "out of", 2 * i + 1)
    if layer.features > 2 * len(chain):
      together += [into, out_of]
    else:
      units = (2 * i % layer.features, (2 * i + 1) % layer.features)
      probe([(i, "into", units[0])])
      probe([(i, "out of", units[1])])
  probe(together)


def connected(masks: PyTree, chain: tuple[Layer, ...]) -> PyTree:
  """Keeps the connections on paths from the input to the output; see `remove_dead`."""
  # The forward pass removes outputs of units without inputs, the backward pass inputs
  # of units without outputs. Two passes suffice: in the second, no unit that still has
  # outputs loses its inputs.
  for lower, upper in itertools.pairwise(chain):
    masks = cut(masks, upper, source=fan_in(get(masks, lower.path)))
  for lower, upper in reversed(list(itertools.pairwise(chain))):
    target = fan_out(get(masks, upper.path), upper.inputs)
    masks = cut(masks, lower, target=target)
  return masks


_connected = jax.jit(connected, static_argnames="chain")


def cut(
  masks: PyTree,
  layer: Layer,
  source: Array | None = None,
  target: Array | None = None,
) -> PyTree:
  """Removes a layer's connections except those from `source` to `target` units."""
  source = jnp.ones(layer.inputs, bool) if source is None else source
  target = jnp.ones(layer.features, bool) if target is None else target
  mask = get(masks, layer.path) & between(source, target, layer)
  return put(masks, layer.path, mask)


def get(tree: PyTree, path: tuple[str, ...], leaf: str = "kernel") -> Any:
  """Returns the leaf of a layer in a tree like the params."""
  for part in path:
    tree = tree[part]
  return tree[leaf]


def put(tree: PyTree, path: tuple[str, ...], value: Any, leaf: str = "kernel") -> Any:
  """Returns a copy of the tree in which the leaf of a layer is replaced."""
  if not path:
    return {**tree, leaf: value}
  return {**tree, path[0]: put(tree[path[0]], path[1:], value, leaf)}


def by_channel(kernel: Array, inputs: int) -> Array:
  """Reshapes the kernel of any layer to (positions, inputs, features)."""
  return kernel.reshape(-1, inputs, kernel.shape[-1])


def fan_in(mask: Array) -> Array:
  """Returns whether each output unit has a live connection, bool (features,)."""
  return replicated(jnp.any(mask, axis=tuple(range(mask.ndim - 1))))


def fan_out(mask: Array, inputs: int) -> Array:
  """Returns whether each input unit has a live connection, bool (inputs,)."""
  return replicated(jnp.any(by_channel(mask, inputs), axis=(0, 2)))


def live_units(masks: PyTree, chain: tuple[Layer, ...]) -> list[Array]:
  """Finds the live units: those with a live input and a live output.

  Args:
    masks: tree of bool arrays at the kernels, as returned by `sj.masks`.
    chain: the layers, from `layers`.

  Returns:
    One bool array (features,) per layer. Units of the last layer need no live output.
  """
  found = [fan_in(get(masks, layer.path)) for layer in chain]
  for i, layer in enumerate(chain[1:]):
    found[i] = found[i] & fan_out(get(masks, layer.path), layer.inputs)
  return found


def candidates(masks: PyTree, chain: tuple[Layer, ...]) -> PyTree:
  """Finds the connections that may grow: masked ones between two live units.

  Args:
    masks: tree of bool arrays at the kernels, as in `live_units`.
    chain: the layers, from `layers`. All units of the network's input count as live.

  Returns:
    A tree like `masks`, True where a connection may grow.
  """
  units = live_units(masks, chain)
  sources = [jnp.ones(chain[0].inputs, bool), *units[:-1]]
  for layer, source, target in zip(chain, sources, units, strict=True):
    allowed = between(source, target, layer) & ~get(masks, layer.path)
    masks = put(masks, layer.path, allowed)
  return masks


def between(source: Array, target: Array, layer: Layer) -> Array:
  """Marks all connections of a layer between given units.

  Args:
    source: bool (inputs,), the input units.
    target: bool (features,), the output units.
    layer: the layer, from `layers`.

  Returns:
    bool array of the kernel's shape.
  """
  pairs = source[:, None] & target[None, :]
  rows = jnp.tile(pairs, (layer.shape[-2] // layer.inputs, 1))
  return jnp.broadcast_to(rows, layer.shape)


class Size(NamedTuple):
  """The size and cost of a masked chain.

  All fields are int32 scalars, so they must be below 2^31.

  Attributes:
    connections: the number of live weights.
    parameters: the number of live weights and biases of live units; parameters of
      norms are not counted.
    multiply_adds: multiply-adds of one image's forward pass; each is two floating-point
      operations.
  """

  connections: Array
  parameters: Array
  multiply_adds: Array


def size(masks: PyTree, chain: tuple[Layer, ...]) -> Size:
  """Counts live connections, parameters and multiply-adds; can be traced.

  `analysis.flops` and `analysis.sizes` count any model, but on the host.

  Args:
    masks: tree of bool arrays at the kernels, as in `live_units`.
    chain: the layers, from `layers`.

  Returns:
    A `Size`.

  Example:
    >>> chain = (Layer(("a",), (3, 2), 3, 1), Layer(("b",), (2, 1), 2, 1))
    >>> masks = {"a": {"kernel": jnp.ones((3, 2), bool)}}
    >>> masks["b"] = {"kernel": jnp.array([[True], [False]])}
    >>> [int(n) for n in size(masks, chain)]
    [7, 9, 7]
  """
  counts = [jnp.sum(get(masks, layer.path), dtype=jnp.int32) for layer in chain]
  units = live_units(masks, chain)
  biases = [
    jnp.sum(alive, dtype=jnp.int32)
    for layer, alive in zip(chain, units, strict=True)
    if layer.bias
  ]
  uses = [n * layer.uses for n, layer in zip(counts, chain, strict=True)]
  connections = sum(counts[1:], counts[0])
  return Size(connections, sum(biases, connections), sum(uses[1:], uses[0]))
