"""Estimates the speed-ups reported by the sparse momentum paper; nothing is timed."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sparsejax.analysis.jaxpr import _program
from sparsejax.core import apply_masks

PyTree = Any


class Estimates(NamedTuple):
  """Estimated speed-ups over the dense network, and the measurements per layer."""

  empty_channels: float  # dense products without the channels that are empty
  optimal_sparse: float  # products of live weights and activations alone
  layers: list[dict[str, float]]  # in order of computation


def estimated_speedups(
  apply_fn: Callable[[PyTree, Any], Any],
  params: PyTree,
  masks: PyTree | None,
  inputs: jax.Array,
) -> Estimates:
  """Estimates speed-ups as the reference does, with multiply-adds instead of seconds.

  empty channels: sum_l C_l / sum_l C_l (1 - e_w) (1 - e_a)
  optimal sparse: sum_l C_l / sum_l C_l d_w d_a

  C_l is a layer's dense multiply-adds, e_w the fraction of its input channels without a
  live weight, e_a the fraction that is zero for all inputs, d_w and d_a the densities
  of its weights and of its input. The paper reports these figures for convolutions. For
  a network that really runs faster, use `compact`.

  Args:
    apply_fn: `(params, inputs) -> outputs`.
    params: pytree of arrays.
    masks: the masks from `sj.masks`, or None if the params are masked already.
    inputs: (n, ...), the inputs over which activations are measured.

  Returns:
    `Estimates`; a layer has `multiply_adds`, `empty_weight_channels`,
    `empty_activation_channels`, `weight_density`, `activation_density`.

  Raises:
    ValueError: the masks do not fit, or there is no product with parameters.

  Example:
    >>> w = jnp.array([[1.0, 1.0], [0.0, 0.0]])
    >>> estimated_speedups(lambda w, x: x @ w, w, None, jnp.ones((1, 2)))[:2]
    (2.0, 2.0)

  Reference: Dettmers and Zettlemoyer (2019), table 3; `SparseSpeedupBench`.
  """
  params = params if masks is None else apply_masks(params, masks)
  # Tracing for an unknown platform selects `lax` convolutions, not the rewritten form
  # that is used on CPUs.
  program, _ = _program.trace(apply_fn, params, inputs, platform="other")
  varies = _program.varying(program)

  # Evaluate the network and measure every product of one activation with one kernel.
  def visit(operation, values):
    sides = [
      k for k, i in enumerate(operation.inputs) if isinstance(i, int) and i in varies
    ]
    if operation.name not in ("conv_general_dilated", "dot_general") or len(sides) != 1:
      return None
    x, w = values[sides[0]], values[1 - sides[0]]
    x_axes, w_axes, count = _channels(operation, sides[0], x.shape, w.shape)
    live_x, live_w = x != 0, w != 0
    over = lambda flags, axes: jnp.any(
      flags, tuple(a for a in range(flags.ndim) if a not in axes)
    )
    part = lambda flags: jnp.mean(flags.astype(jnp.float32))
    empty = [1 - part(over(live_w, w_axes)), 1 - part(over(live_x, x_axes))]
    return jnp.stack([jnp.float32(count), *empty, part(live_w), part(live_x)])

  run = jax.jit(
    lambda leaves, x: [r for _, r in _program.evaluate(program, leaves, [x], visit)[1]]
  )
  found = run(jax.tree.leaves(params), inputs)
  # Inside a loop a measurement has a leading axis of iterations: one row per layer.
  rows = [np.asarray(r, np.float64).reshape(-1, 5) for r in found]
  if not rows:
    raise ValueError("apply_fn must multiply its inputs with parameters, got none.")
  table = np.concatenate(rows)
  cost, empty_w, empty_a, dense_w, dense_a = table.T
  ratio = lambda rest: float(cost.sum() / max(np.sum(cost * rest), 1e-30))
  names = (
    *("multiply_adds", "empty_weight_channels", "empty_activation_channels"),
    *("weight_density", "activation_density"),
  )
  return Estimates(
    ratio((1 - empty_w) * (1 - empty_a)),
    ratio(dense_w * dense_a),
    [dict(zip(names, map(float, row), strict=True)) for row in table],
  )


def _channels(operation, side, x, w) -> tuple[tuple, tuple, float]:
  """Returns the input channel axes of both operands, and multiply-adds per example."""
  p = operation.params
  if operation.name == "dot_general":
    axes = p["dimension_numbers"][0]
    free = np.prod(w) / np.prod([w[a] for a in axes[1 - side]])
    return tuple(axes[side]), tuple(axes[1 - side]), float(np.prod(x) * free / x[0])
  dims = p["dimension_numbers"]
  strides = np.prod(p["window_strides"])
  pixels = np.prod([x[a] for a in dims.lhs_spec[2:]]) / strides
  return (dims.lhs_spec[1],), (dims.rhs_spec[1],), float(pixels * np.prod(w))
