"""Growth by the paths of three live weights that connect a masked weight's ends."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from sparsejax.core import (
  LayerAxes,
  MaskTransform,
  PyTree,
  ScoreInputs,
  Topology,
  check_flag,
  check_known,
  plain_axes,
  replicated,
  shard_like,
)
from sparsejax.core.structures import fits_any, in_matrix_order
from sparsejax.scores import sampled
from sparsejax.transforms._grow import grow

Array = jax.Array

_SALT = 0x70617468
_PREDICTORS = ("ch2", "ch3")
# Added to every score, so that weights without a path are drawn at random once no
# others are left. The authors' program adds it only where it is needed.
_LEAST = 1e-5


def grow_by_paths(predictor: str = "ch2", soft: bool = True) -> MaskTransform:
  """Grows masked weights between units that are linked by paths of three live weights.

  ch2: s_uv = sum_z i_z / (1 + e_z);  ch3: s_uv = sum_z 1 / (1 + e_z);
  grown: budget_l - live_l weights drawn in proportion to s, or the best

  A layer is a bipartite graph of inputs u and outputs v; live weights are its links. z
  are the units on the paths of three links from u to v: inputs that are linked to v,
  and outputs that are linked to u. i_z is the number of links of z to units that are
  linked to the other end (internal links), e_z the number of its links elsewhere
  (external links), without the one to its own end. A weight scores high if the units
  around it are already linked to one another and to little else. No gradient and no
  weight is read: only the masks, after what the chain has dropped.

  The cost is that of six products with the layer's kernel at each mask update, O(m^2 n
  + m n^2) for m inputs and n outputs, and m^2 + n^2 floats of temporary memory; taps of
  a convolution count as inputs. Layers are independent. Masks of sharded kernels are
  gathered on every device.

  Args:
    predictor: "ch2" (CH2-L3n, which also counts internal links) or "ch3" (CH3-L3n).
    soft: whether weights are drawn in proportion to their scores, without replacement;
      if False, the best are grown, which soon grows what was just dropped.

  Returns:
    A mask transform; after it every layer has exactly as many live weights as its
    budget. A structure may change the budgets.

  Raises:
    ValueError: predictor is neither of the two; in `init`, the inputs and outputs of a
      kernel are not known.
    TypeError: soft is not a bool.

  References:
    Zhang et al. 2025, "Brain network science modelling of sparse neural networks
    enables Transformers and LLMs to perform as fully connected", eq. 3 and the authors'
    program; CH3-L3 with paths instead of units is that of Zhang et al. 2024,
    "Epitopological learning and Cannistraci-Hebb network shape intelligence".

  Example:
    >>> import sparsejax as sj
    >>> transform = sj.chain(sj.drop(sj.magnitude, 0.3), sj.grow_by_paths())
  """
  if predictor not in _PREDICTORS:
    raise ValueError(
      f"predictor must be one of {list(_PREDICTORS)}, got {predictor!r}."
    )
  check_flag("soft", soft)

  @in_matrix_order
  def scores(masks: PyTree, budgets: PyTree, axes: Any) -> PyTree:
    return jax.tree.map(
      lambda mask, layer: shard_like(_path_scores(mask, layer, predictor), mask),
      masks,
      axes,
    )

  def update(inputs: ScoreInputs, topology: Topology, state: PyTree):
    axes = topology.axes
    axes = plain_axes(topology.masks, topology.budgets) if axes is None else axes
    found = scores(topology.masks, topology.budgets, axes=axes)
    score: Any = lambda _: found
    if soft:
      score = sampled(score)
    inputs = inputs._replace(key=jax.random.fold_in(inputs.key, _SALT))
    return grow(score).update(inputs, topology, state)

  def check(axes):
    check_known(axes, "grow_by_paths")

  return MaskTransform(
    lambda params: (), update, fits_any, check=check, keeps_budgets=True
  )


def _path_scores(mask: Array, layer: LayerAxes, predictor: str) -> Array:
  """Scores every weight of a kernel with axes (stacked, taps, inputs, outputs)."""
  rows = [mask.shape[i] for i in layer.stacked]
  outputs = layer.length(layer.outputs)
  links = replicated(mask).astype(jnp.float32).reshape(*rows, -1, outputs)
  back = jnp.swapaxes(links, -1, -2)
  # Paths through an input z that is linked to v, and through an output z linked to u.
  total = _by_sharing(links, predictor) + jnp.swapaxes(
    _by_sharing(back, predictor), -1, -2
  )
  return (total + jnp.float32(_LEAST)).reshape(mask.shape)


def _by_sharing(links: Array, predictor: str) -> Array:
  """Sums over the units z on the side of u: f(links of z shared with u) links_zv."""
  highest = jax.lax.Precision.HIGHEST
  internal = jnp.matmul(links, jnp.swapaxes(links, -1, -2), precision=highest)  # (u, z)
  degree = jnp.sum(links, axis=-1)
  external = jnp.expand_dims(degree, -2) - internal - 1  # but for the link to v
  numerator = internal if predictor == "ch2" else (internal > 0).astype(jnp.float32)
  share = numerator / (1 + jnp.maximum(external, 0))
  return _exact_product(share, links)


def _exact_product(share: Array, links: Array) -> Array:
  """Multiplies floats of at least 0 by zeros and ones, in any order of summation.

  share = high + low, both whole multiples of a quantum q that depends on the largest
  share: sum_z high_z links_zv < 2^24 q, and so is every sum in float32 exact

  Rounding would depend on how the sum is divided among devices, and ties with it. What
  is left out of a share is about n^2 2^-48 of the largest one, 2^-24 for 4,096 units.
  """
  n = share.shape[-1]
  bits = 24 - max(n - 1, 1).bit_length()  # of each part, so that n of them fit
  _, exponent = jnp.frexp(jnp.max(share, axis=(-2, -1), keepdims=True))
  above = jnp.ldexp(jnp.float32(1), exponent)  # a power of two above every share
  product = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
  quantum = above * jnp.float32(2.0**-bits)
  high = jnp.floor(share / quantum) * quantum
  finer = quantum * jnp.float32(2.0**-bits)
  low = jnp.floor((share - high) / finer) * finer
  return product(high, links) + product(low, links)
