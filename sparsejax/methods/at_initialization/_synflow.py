"""SynFlow (Tanaka et al. 2020)."""

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer

from sparsejax.core import (
  Distribution,
  InputAxes,
  LayerAxes,
  PyTree,
  Stacked,
  Where,
  apply_masks,
  check_callable,
  check_input_axes,
  check_integer,
  check_stacked,
  choose,
  layer_axes,
  layer_shapes,
  live_counts,
  merge,
  scores_are_finite,
  selected,
  true_like,
)
from sparsejax.core.structures import Structure
from sparsejax.transforms import amounts, check_rounds, check_selection, keep_best


def synflow(
  apply_fn: Callable[[PyTree, jax.Array], jax.Array],
  params: PyTree,
  input_shape: Sequence[int] | jax.Array | jax.ShapeDtypeStruct,
  density: Any,
  *,
  rounds: int = 100,
  where: Where = None,
  stacked: Stacked = False,
  input_axes: InputAxes = None,
  distribution: Distribution | None = None,
  structure: Structure | None = None,
) -> PyTree:
  """Prunes at initialization without data, by each weight's synaptic flow (SynFlow).

  s = |w dR/dw|,  R = 1^T f(x; |params|);  for k = 1 .. rounds: the best
  density^(k / rounds) of all layers, at the weights that are left

  f is the network with all params, biases included, replaced by their magnitudes. R is
  the sum of its outputs for an input x of ones. In a chain of linear layers with ReLU,
  pooling and additions the scores have the same sum in every layer. The weights of
  small layers therefore score high, and no layer is emptied before it has to be.
  LayerNorm, softmax and differences break this property: their outputs do not grow with
  their inputs, so the layers before them get almost no flow, and whole layers may be
  pruned even at a density of 0.5. A warning then names these layers;
  `distribution=sj.erk` gives every layer a budget.

  R grows or shrinks by a factor per layer and leaves the range of float32 after about
  30 layers. Everything is therefore computed in float64, without setting
  `jax_enable_x64`; 200 layers of 512 units are in range. A model that fixes a dtype of
  its own, such as a recurrent model with a float32 carry, is computed in float32, or
  else in the dtypes of the params. TPUs emulate float64 within the range of float32;
  there, run this function on the CPU (`jax.default_device`).

  Args:
    apply_fn: `(params, inputs) -> outputs`, in evaluation mode: no dropout, and batch
      normalization with its running statistics.
    params: the params at initialization.
    input_shape: shape of the inputs with the batch axis, such as (1, 28, 28, 1). For
      inputs that are not floating point, such as tokens: an array, which is used
      unchanged, or `jax.ShapeDtypeStruct((1, 16), jnp.int32)` for an input of ones.
    density: fraction of weights kept, in (0, 1].
    rounds: number of pruning rounds; a single round empties layers.
    where: which leaves are sparsified; see `sparsify`.
    stacked: which leaves stack several layers; see `sparsify`.
    input_axes: which axes of a kernel are its inputs; see `sparsify`.
    distribution: sets the budget of each layer; None, the paper's choice, selects over
      the whole network at once.
    structure: which patterns of live weights are allowed; see `masks_from_scores`.

  Returns:
    A tree of masks like that of `sj.masks`; see `snip` for how to train with them.

  Raises:
    TypeError: an argument has the wrong type.
    ValueError: an argument is outside its range; no leaf is selected.
    FloatingPointError: R is out of range or zero in some round (not checked under
      `jit`).

  Warns:
    UserWarning: a layer is left without live weights (not checked under `jit`).

  References:
    Tanaka et al. 2020, "Pruning neural networks without any data by iteratively
    conserving synaptic flow", algorithm 1.

  Example:
    >>> import jax.numpy as jnp, sparsejax as sj
    >>> apply = lambda params, x: x @ params["a"] @ params["b"]
    >>> params = {"a": jnp.array([[1.0, -3.0]]), "b": jnp.array([[4.0], [1.0]])}
    >>> masks = sj.synflow(apply, params, (1, 1), density=0.5, rounds=2)
    >>> masks["a"].ravel().tolist(), masks["b"].ravel().tolist()
    ([True, False], [True, False])
  """
  # Validate everything before the flow is computed.
  density = check_selection(density, distribution, structure)
  check_rounds(rounds)
  check_callable("apply_fn", apply_fn, "a function of (params, inputs)", 2)
  make_inputs = input_maker(input_shape)
  check_stacked(stacked)
  check_input_axes(input_axes)
  chosen = selected(params, where)
  axes = layer_axes(params, chosen, stacked, input_axes)
  # How many weights each round keeps, as one array for the scan, and the widest dtype
  # in which the model runs.
  with jax.enable_x64(True):
    kept = amounts(axes, density, rounds, distribution, structure)
    kept = jnp.stack([jnp.asarray(amount) for amount in kept])
    dtype = _widest(apply_fn, params, make_inputs)
    if dtype is None:
      _check_runs(apply_fn, params, make_inputs, input_shape)

    @jax.jit
    def prune(params, kept):
      positive = _magnitudes(params, dtype)
      kernels = choose(positive, chosen)
      inputs = make_inputs(dtype)

      def flow(weights):
        with jax.enable_x64(dtype == jnp.float64):
          return jnp.sum(apply_fn(merge(positive, weights), inputs))

      # Score the remaining weights and keep the best of them. The flag reports whether
      # the scores were finite and not all zero.
      def one_round(masks, amount):
        weights = apply_masks(kernels, masks)
        scores = jax.tree.map(_score, weights, jax.grad(flow)(weights))
        largest = [jnp.max(s) for s in jax.tree.leaves(scores)]
        sound = scores_are_finite(scores, masks) & jnp.any(jnp.stack(largest) > 0)
        return keep_best(scores, amount, masks, structure, axes), sound

      return lax.scan(one_round, jax.tree.map(true_like, kernels), kept)

    # One compiled scan over all rounds; its flags can be read outside of a trace only.
    masks, sound = prune(params, kept)
    if not isinstance(sound, Tracer) and not sound.all():
      held = "float64" if dtype == jnp.float64 else "float32"
      raise FloatingPointError(
        f"params must give a synaptic flow that {held} can hold, got scores that are "
        f"not finite or all zero in round {int(jnp.argmin(sound)) + 1} of {rounds}."
      )
  _warn_of_empty(masks, axes)
  return masks


def input_maker(given: Any) -> Callable[[Any], jax.Array]:
  """Returns a function `dtype -> inputs` for an `input_shape` argument.

  The inputs are ones, unless `input_shape` is an array whose dtype is not floating.
  """
  if hasattr(given, "shape") and hasattr(given, "dtype"):
    if jnp.issubdtype(given.dtype, jnp.floating):
      return input_maker(tuple(given.shape))
    if isinstance(given, jax.ShapeDtypeStruct):
      return lambda dtype: jnp.ones(given.shape, given.dtype)
    return lambda dtype: jnp.asarray(given)
  if not isinstance(given, (tuple, list)):
    raise TypeError(f"input_shape must be a tuple of integers, got {given!r}.")
  for n in given:
    check_integer("input_shape", n, 1)
  return lambda dtype: jnp.ones(tuple(given), dtype or jnp.float32)


def _widest(apply_fn, params, make_inputs) -> Any:
  """Returns the first of float64, float32 and None in which the model can be traced.

  None stands for the params' own dtypes.
  """
  for dtype in (jnp.float64, jnp.float32):
    with jax.enable_x64(dtype == jnp.float64):
      try:
        jax.eval_shape(
          lambda p, dtype=dtype: apply_fn(_magnitudes(p, dtype), make_inputs(dtype)),
          params,
        )
      except (
        TypeError,
        ValueError,
      ):  # two dtypes, in a carry or under strict promotion
        continue
      return dtype
  return None


def _check_runs(apply_fn, params, make_inputs, input_shape) -> None:
  """Raises TypeError if the model does not take the floating-point ones of a shape."""
  with jax.enable_x64(False):
    inputs = make_inputs(None)
    try:
      jax.eval_shape(lambda p: apply_fn(_magnitudes(p, None), inputs), params)
    except (TypeError, ValueError) as e:
      if not jnp.issubdtype(inputs.dtype, jnp.floating):
        raise
      raise TypeError(
        f"input_shape must give inputs that apply_fn takes, got {input_shape!r}, which "
        f"stands for ones of {inputs.dtype}; for tokens pass "
        f"jax.ShapeDtypeStruct({tuple(inputs.shape)}, jnp.int32) or an array. apply_fn "
        f"raised: {e}"
      ) from e


def _magnitudes(params: PyTree, dtype: Any) -> PyTree:
  """Returns |params|, cast to a dtype if given; non-float leaves are unchanged."""

  def magnitude(leaf):
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
      return leaf
    return jnp.abs(leaf).astype(dtype or leaf.dtype)

  return jax.tree.map(magnitude, params)


def _score(weight: jax.Array, gradient: jax.Array) -> jax.Array:
  """Returns |w dR/dw|; before a difference or a softmax dR/dw may be negative."""
  return jnp.abs(weight.astype(jnp.float64) * gradient.astype(jnp.float64))


def _warn_of_empty(masks: PyTree, axes: Sequence[LayerAxes]) -> None:
  """Warns about layers without live weights, by name; traced masks are skipped."""
  leaves, treedef = jax.tree.flatten(masks)
  if any(isinstance(mask, Tracer) for mask in leaves):
    return
  live = np.asarray(live_counts(masks, treedef.unflatten(a.budget for a in axes)))
  layers = layer_shapes(axes).items()
  empty = [
    path
    for (path, shape), n in zip(layers, live, strict=True)
    if math.prod(shape) and not n
  ]
  if empty:
    warnings.warn(
      f"synflow leaves no live weight in {', '.join(empty)}: give each layer its "
      "weights by distribution=sj.erk, or raise the density.",
      stacklevel=3,
    )
