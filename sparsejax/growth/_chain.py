"""The layers of a network that is a chain, and the units between them."""

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
    path: of the module in the params' tree, such as `("conv1",)`.
    shape: of its kernel, the inputs on the last axis but one, the outputs on the last.
    inputs: channels that feed it: units of the layer before. A dense layer after a
      convolution has several rows a channel, row r belonging to channel r % inputs.
    uses: how often one image uses each weight: the positions of the output.
    norm: path of the normalization between this layer and the next, or None.
    bias: whether it has one.
  """

  path: tuple[str, ...]
  shape: tuple[int, ...]
  inputs: int
  uses: int
  norm: tuple[str, ...] | None = None
  bias: bool = True

  @property
  def features(self) -> int:
    """Units of the layer's output."""
    return self.shape[-1]

  @property
  def name(self) -> str:
    """The kernel's slash-separated path."""
    return "/".join((*self.path, "kernel"))


def layers(model: nn.Module, image_shape: tuple[int, ...]) -> tuple[Layer, ...]:
  """Finds the layers of a model in the order in which they are called.

  The order of calls does not show what a layer is fed with. So the traced program is
  asked: `analysis.live_parameters` must find the same weights connected as the chain
  does, when each layer lacks a unit's inputs and another's outputs. Skips, branches,
  gates, shared kernels and a normalization over units (LayerNorm) fail that;
  `remove_unreachable` takes any network.

  Args:
    model: a flax linen module whose layers follow one another: each takes what the one
      before gave, after activations, pooling, batch normalization or flattening.
    image_shape: of one image, such as (28, 28, 1).

  Returns:
    A `Layer` for each module that holds a `kernel`. The model is traced, not run.

  Raises:
    ValueError: a layer is not fed by the units of the one before alone, as in a
      residual network; or an operation is not understood by `analysis.compact`.

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

  images = jax.ShapeDtypeStruct((1, *image_shape), "float32")
  with nn.intercept_methods(record):
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
  params = variables["params"]
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
    raise ValueError(f"model must hold a kernel, got {model!r}.")
  _check_connections(model.apply, variables, images, tuple(found))
  return tuple(found)


def _check_connections(apply_fn, variables, images, chain: tuple[Layer, ...]) -> None:
  """Raises ValueError unless a program connects its layers as a chain does."""
  dense = jax.tree.map(lambda p: np.ones(p.shape, bool), variables)
  kernels = [np.ones(layer.shape, bool) for layer in chain]

  def probe(removed):
    """Compares without the connections into some units and out of others."""
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
    expected = connected(tree, chain)
    for layer in chain:
      found = np.asarray(get(live["params"], layer.path))
      if not np.array_equal(found, get(expected, layer.path)):
        raise ValueError(
          "model must be a chain of layers, each fed by the one before alone; got a "
          f"program in which {layer.name!r} is connected otherwise (a skip, a branch, "
          "a gate, a shared kernel, or a normalization over units)."
        )

  together = []
  for i, layer in enumerate(chain[:-1]):
    # Other units in each layer: a skip from one to the next must not hide.
    into, out_of = (i, "into", 2 * i), (i, "out of", 2 * i + 1)
    if layer.features > 2 * len(chain):
      together += [into, out_of]
    else:
      units = (2 * i % layer.features, (2 * i + 1) % layer.features)
      probe([(i, "into", units[0])])
      probe([(i, "out of", units[1])])
  probe(together)


def connected(masks: PyTree, chain: tuple[Layer, ...]) -> PyTree:
  """The connections that lead from the input to the output; see `remove_dead`."""
  # Forwards, what has no inputs; then backwards, what leads nowhere: no unit loses its
  # inputs in the second pass that still has outputs, so two passes are enough.
  for lower, upper in itertools.pairwise(chain):
    masks = cut(masks, upper, source=fan_in(get(masks, lower.path)))
  for lower, upper in reversed(list(itertools.pairwise(chain))):
    target = fan_out(get(masks, upper.path), upper.inputs)
    masks = cut(masks, lower, target=target)
  return masks


def cut(
  masks: PyTree,
  layer: Layer,
  source: Array | None = None,
  target: Array | None = None,
) -> PyTree:
  """The masks without a layer's connections from or to other than these units."""
  source = jnp.ones(layer.inputs, bool) if source is None else source
  target = jnp.ones(layer.features, bool) if target is None else target
  mask = get(masks, layer.path) & between(source, target, layer)
  return put(masks, layer.path, mask)


def get(tree: PyTree, path: tuple[str, ...], leaf: str = "kernel") -> Any:
  """The leaf of a layer in a tree like the params'."""
  for part in path:
    tree = tree[part]
  return tree[leaf]


def put(tree: PyTree, path: tuple[str, ...], value: Any, leaf: str = "kernel") -> Any:
  """The tree with another leaf for a layer; the old one is left as it is."""
  if not path:
    return {**tree, leaf: value}
  return {**tree, path[0]: put(tree[path[0]], path[1:], value, leaf)}


def by_channel(kernel: Array, inputs: int) -> Array:
  """A kernel as (positions, inputs, features), whatever kind of layer it is of."""
  return kernel.reshape(-1, inputs, kernel.shape[-1])


def fan_in(mask: Array) -> Array:
  """Whether each unit of the output has a live connection: bool (features,)."""
  return replicated(jnp.any(mask, axis=tuple(range(mask.ndim - 1))))


def fan_out(mask: Array, inputs: int) -> Array:
  """Whether each unit of the input has a live connection: bool (inputs,)."""
  return replicated(jnp.any(by_channel(mask, inputs), axis=(0, 2)))


def live_units(masks: PyTree, chain: tuple[Layer, ...]) -> list[Array]:
  """Which units are there: those with a live input and a live output.

  Args:
    masks: tree of bool arrays at the kernels, as `sj.masks` gives it.
    chain: of `layers`.

  Returns:
    For each layer bool (features,); the last layer's units need no output.
  """
  found = [fan_in(get(masks, layer.path)) for layer in chain]
  for i, layer in enumerate(chain[1:]):
    found[i] = found[i] & fan_out(get(masks, layer.path), layer.inputs)
  return found


def candidates(masks: PyTree, chain: tuple[Layer, ...]) -> PyTree:
  """Where a connection may grow: dormant, and between two units that are there.

  Args:
    masks: as in `live_units`.
    chain: of `layers`. All units of its input count as there.

  Returns:
    A tree like `masks`.
  """
  units = live_units(masks, chain)
  sources = [jnp.ones(chain[0].inputs, bool), *units[:-1]]
  for layer, source, target in zip(chain, sources, units, strict=True):
    allowed = between(source, target, layer) & ~get(masks, layer.path)
    masks = put(masks, layer.path, allowed)
  return masks


def between(source: Array, target: Array, layer: Layer) -> Array:
  """The connections of a layer between chosen units.

  Args:
    source: bool (inputs,).
    target: bool (features,).
    layer: of `layers`.

  Returns:
    bool array of the kernel's shape.
  """
  pairs = source[:, None] & target[None, :]
  rows = jnp.tile(pairs, (layer.shape[-2] // layer.inputs, 1))
  return jnp.broadcast_to(rows, layer.shape)


class Size(NamedTuple):
  """What a masked chain holds and costs; int32 scalars, so each below 2^31.

  Attributes:
    connections: live weights.
    parameters: live weights and the biases of live units; norms have none here.
    multiply_adds: of one image's forward pass; two floating-point operations each.
  """

  connections: Array
  parameters: Array
  multiply_adds: Array


def size(masks: PyTree, chain: tuple[Layer, ...]) -> Size:
  """Counts what is live, traceably.

  `analysis.flops` and `analysis.sizes` count any model, on the host.

  Args:
    masks: as in `live_units`.
    chain: of `layers`.

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
