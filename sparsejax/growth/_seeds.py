"""Seeds: the small sparse networks from which growth starts."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sparsejax.core import top_k_mask
from sparsejax.growth._chain import Layer, between

Array = jax.Array
PyTree = Any


@functools.partial(jax.jit, static_argnames=("model_shape", "width_ratio", "density"))
def seed(
  model_shape: tuple[Layer, ...], width_ratio: float, density: float, key: Array
) -> PyTree:
  """Draws the masks of a small sparse network inside a larger one.

  width_l = round(width_ratio features_l) in hidden layers;
  live_l = round(density connections between those units)

  Every hidden unit has at least one input and one output, and every output unit at
  least one input. The other live connections are random. Weights are not drawn here;
  see `sj.rescale` for their scale. Biases need no mask, because unused units have no
  outputs.

  Args:
    model_shape: the layers, from `growth.layers`; their widths are the capacity.
    width_ratio: fraction of the hidden units in use, in (0, 1]; 0.4 turns
      LeNet-300-100 into LeNet-120-40.
    density: fraction of the connections between used units that is live, in (0, 1].
    key: a PRNG key.

  Returns:
    A tree with a bool array (True = live) at each kernel, for `sj.with_masks` and
    `sj.apply_masks`.

  Raises:
    ValueError: an argument is outside its range, or the density is too small to connect
      every unit of a layer.

  References:
    Dai, Yin & Jha 2017 (arXiv 1711.02017), section 3.2 and table 2's seeds.

  Example:
    >>> chain = (Layer(("a",), (8, 10), 8, 1), Layer(("b",), (10, 2), 10, 1))
    >>> masks = seed(chain, 0.5, 0.5, jax.random.key(0))
    >>> int(masks["a"]["kernel"].sum()), int(masks["b"]["kernel"].sum())
    (20, 5)
  """
  _check(width_ratio, density)
  widths = [max(1, round(width_ratio * layer.features)) for layer in model_shape]
  widths[-1] = model_shape[-1].features
  masks: PyTree = {}
  source = model_shape[0].inputs
  for i, (layer, width) in enumerate(zip(model_shape, widths, strict=True)):
    positions = int(np.prod(layer.shape[:-1])) // layer.inputs
    cover_inputs = source if i else 0  # pixels of the input need not be connected
    least = max(cover_inputs, width)
    live = round(density * positions * source * width)
    if live < least:
      raise ValueError(
        f"density must leave a connection to every unit, {least} in {layer.name!r}; "
        f"got {density} of {positions * source * width}: {live}."
      )
    mask = _draw(
      jax.random.fold_in(key, i), layer, positions, source, width, live, bool(i)
    )
    _insert(masks, layer, mask)
    source = width
  return masks


def _draw(key, layer, positions, source, width, live, cover_inputs):
  """Draws a mask of `live` connections that covers the first units of both sides."""
  draw, rows, columns, place = jax.random.split(key, 4)
  n = max(source, width) if cover_inputs else width
  # Pair the units of both sides in random orders, repeating those of the smaller side.
  # These n pairs connect every unit; a score of 2 puts them before all random scores.
  row = jax.random.permutation(rows, source)[np.arange(n) % source]
  column = jax.random.permutation(columns, width)[np.arange(n) % width]
  position = jax.random.randint(place, (n,), 0, positions)
  shape = (positions, layer.inputs, layer.features)
  scores = jax.random.uniform(draw, shape).at[position, row, column].set(2.0)
  there = between(
    jnp.arange(layer.inputs) < source, jnp.arange(layer.features) < width, layer
  )
  return top_k_mask(scores.reshape(layer.shape), live, there)


def _insert(tree: dict, layer: Layer, mask: Array) -> None:
  for part in layer.path:
    tree = tree.setdefault(part, {})
  tree["kernel"] = mask


def _check(width_ratio: float, density: float) -> None:
  for name, value in (("width_ratio", width_ratio), ("density", density)):
    if not 0 < value <= 1:
      raise ValueError(f"{name} must be in (0, 1], got {value}.")
