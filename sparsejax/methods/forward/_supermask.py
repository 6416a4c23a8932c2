"""Masks learned through scores: edge-popup, and straight-through movement pruning."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from sparsejax.core import (
  Distribution,
  InputAxes,
  PyTree,
  Stacked,
  Where,
  align,
  check_arrays,
  check_flag,
  check_input_axes,
  check_key,
  check_known,
  check_stacked,
  choose,
  layer_axes,
  leaf_keys,
  selected,
)
from sparsejax.distributions import uniform
from sparsejax.transforms import masks_from_scores


def supermask(
  params: PyTree,
  scores: PyTree,
  density: Any,
  *,
  stacked: Stacked = False,
  distribution: Distribution | None = uniform,
  absolute: bool = True,
) -> PyTree:
  """Masks weights by learned scores, with straight-through gradients (edge-popup).

  e = w where |s| is among the best of its layer, else 0;
  dL/ds := sign(s) w dL/de everywhere,  dL/dw = dL/de where live, else 0

  Edge-popup differentiates with respect to the scores only: the weights never change,
  bit for bit, so a trained network can be stored as its seed and a packed mask. It
  becomes movement pruning with `absolute=False` (the largest s are kept, and
  dL/ds := w dL/de), scores that start at zero, and both weights and scores trained: a
  score then sums -w dL/dw over the steps.

  Args:
    params: any pytree of arrays.
    scores: the tree of scores from `init_scores`.
    density: fraction of weights kept, in (0, 1]; may be traced, such as the value of a
      schedule.
    stacked: which leaves stack several layers; see `sparsify`.
    distribution: sets the budget of each layer; None selects over the whole network at
      once.
    absolute: whether weights are ranked by |s|; otherwise by s.

  Returns:
    The effective weights, a tree like `params` with the same dtypes; leaves without a
    score are unchanged.

  Raises:
    TypeError: density is not a number, or `stacked` has the wrong type.
    ValueError: density is outside (0, 1]; the structures differ; `stacked` selects no
      leaf with a score.

  References:
    Ramanujan et al. 2020, "What's hidden in a randomly weighted neural network?", eq. 4
    to 6 (their code takes |s|). Sanh et al. 2020, "Movement pruning", section 3.

  Example:
    >>> import jax.numpy as jnp, sparsejax as sj
    >>> params = {"kernel": jnp.array([[5.0, 6.0, 7.0, 8.0]])}
    >>> scores = {"kernel": jnp.array([[0.1, -0.4, 0.3, 0.2]])}
    >>> sj.supermask(params, scores, 0.5)["kernel"]
    Array([[0., 6., 7., 0.]], dtype=float32)
  """
  masks = supermask_masks(
    scores, density, stacked=stacked, distribution=distribution, absolute=absolute
  )
  leaves, treedef = jax.tree.flatten(params)
  out = []
  for w, s, m in zip(leaves, align(params, scores), align(params, masks), strict=True):
    if s is not None:
      w = _gated(w, (jnp.abs(s) if absolute else s).astype(w.dtype), m)
    out.append(w)
  return treedef.unflatten(out)


def supermask_masks(
  scores: PyTree,
  density: Any,
  *,
  stacked: Stacked = False,
  distribution: Distribution | None = uniform,
  absolute: bool = True,
) -> PyTree:
  """Returns the masks given by learned scores.

  m = |s| among the best of its layer

  Args:
    scores: as in `supermask`.
    density: as in `supermask`.
    stacked: as in `supermask`.
    distribution: as in `supermask`.
    absolute: as in `supermask`.

  Returns:
    A tree of masks like that of `sj.masks`: bool arrays at the leaves with scores.

  Raises:
    TypeError: as in `supermask`.
    ValueError: as in `supermask`.

  Example:
    >>> import jax.numpy as jnp, sparsejax as sj
    >>> scores = {"kernel": jnp.array([[0.1, -0.4, 0.3, 0.2]]), "bias": None}
    >>> sj.supermask_masks(scores, 0.5)["kernel"]
    Array([[False,  True,  True, False]], dtype=bool)
  """
  check_arrays("scores", scores)
  check_flag("absolute", absolute)
  scores = jax.tree.map(lax.stop_gradient, scores)
  values = jax.tree.map(jnp.abs, scores) if absolute else scores
  return masks_from_scores(
    values,
    density,
    where=lambda path, leaf: True,
    stacked=stacked,
    distribution=distribution,
  )


def init_scores(
  params: PyTree,
  key: jax.Array,
  where: Where = None,
  *,
  stacked: Stacked = False,
  input_axes: InputAxes = None,
) -> PyTree:
  """Draws the initial scores of edge-popup.

  s ~ U[-1 / sqrt(fan_in), 1 / sqrt(fan_in))  (Kaiming uniform with a = sqrt(5))

  Args:
    params: any pytree of arrays.
    key: a PRNG key; each leaf uses a separate key derived from it.
    where: which leaves are sparsified; see `sparsify`.
    stacked: which leaves stack several layers; see `sparsify`.
    input_axes: which axes of a kernel are its inputs; see `sparsify`. fan_in is inputs
      times taps.

  Returns:
    A tree like `params` with arrays of the shapes and dtypes of the sparsified leaves,
    None elsewhere.

  Raises:
    TypeError: `where` has the wrong type or selects a leaf that is not floating point.
    ValueError: no leaf is selected, or the inputs of a leaf are not known.

  Example:
    >>> import jax, jax.numpy as jnp, sparsejax as sj
    >>> scores = sj.init_scores({"kernel": jnp.ones((4, 3))}, jax.random.key(0))
    >>> bool(jnp.all(jnp.abs(scores["kernel"]) <= 0.5))
    True
  """
  check_key("key", key)
  check_stacked(stacked)
  check_input_axes(input_axes)
  chosen = selected(params, where)
  axes = layer_axes(params, chosen, stacked, input_axes)
  check_known(axes, "init_scores")
  kernels = choose(params, chosen)
  leaves, treedef = jax.tree.flatten(kernels)
  scores = []
  for leaf, leaf_key, a in zip(leaves, leaf_keys(key, kernels), axes, strict=True):
    bound = float(a.length((*a.taps, *a.inputs))) ** -0.5
    draw = jax.random.uniform(leaf_key, leaf.shape, jnp.float32, -bound, bound)
    scores.append(draw.astype(leaf.dtype))
  return treedef.unflatten(scores)


# The derivative with respect to the score is the weight, at masked entries too: the
# backward pass treats the mask as if it were the score.
@jax.custom_jvp
def _gated(weight, score, mask):
  return jnp.where(mask, weight, jnp.zeros_like(weight))


@_gated.defjvp
def _gated_jvp(primals, tangents):
  weight, _, mask = primals
  d_weight, d_score, _ = tangents
  through = jnp.where(mask, d_weight, jnp.zeros_like(weight))
  return _gated(*primals), through + weight * d_score
