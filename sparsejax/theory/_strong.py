"""Strong lottery tickets: pruning of untrained random networks to match a target."""

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from sparsejax.core import check_integer, check_number
from sparsejax.scores import dense_layers
from sparsejax.theory import _golden_ratio, _pick_one, _strong_error, _subset_sum
from sparsejax.theory._strong_network import LayerPlan, LayerTicket, random_weights

CONSTRUCTIONS = ("subset_sum", "pick_one", "golden_ratio")


class StrongTicket(NamedTuple):
  """A pruned random network, and how well it approximates its target."""

  layers: list[LayerTicket]
  max_weight_error: float  # over all weights and biases, both signs
  sup_error_bound: float  # bound over the unit ball, see `sup_error_bound`
  sup_error_found: float  # the largest error found in the unit ball
  overhead: float  # random second-layer weights per target weight
  kept: float  # live second-layer weights per target weight


def approximate(
  target_params: Any,
  eps: float = 0.01,
  delta: float = 0.05,
  construction: str = "subset_sum",
  *,
  samples: int | None = None,
  seed: int = 0,
  signed_inputs: bool = True,
) -> StrongTicket:
  """Prunes a random ReLU network of twice the depth to approximate a given MLP.

  Every weight, biases included, is approximated within `eps` separately. The random
  weights of a layer are scaled by its largest weight. With `N` weights to approximate,
  each may fail with probability `delta / N`, which determines the samples per weight:
  `subset_sum` `1.2 log2(2 / min(eps, delta / N))`, `pick_one` `ln(N / delta) / eps`,
  `golden_ratio` `2 k ln(k N / delta)` with `k = log_phi(1 / eps)` (`eps` in units of
  the layer's scale).

  Args:
    target_params: dense layers `{"kernel": (in, out), "bias": (out,)}` in order, as a
      sequence, or as a mapping whose sorted keys are the order; ReLU between them.
    eps: the allowed error per weight.
    delta: the allowed probability of failure for the whole network.
    construction: "subset_sum" (Pensia et al.), "pick_one" (Malach et al.) or
      "golden_ratio" (Orseau et al.).
    samples: random samples per weight (and sign), at least 2, and at most 40 for
      `subset_sum`; None for as many as `delta` asks for, by the formulas above.
    seed: the seed of the random network.
    signed_inputs: True covers the whole unit ball, with two groups of hidden neurons
      per input of the first layer; False covers its nonnegative part, such as pixels,
      with one group.

  Returns:
    `StrongTicket`. If the samples were insufficient for a weight, `max_weight_error` is
    above `eps`.

  Raises:
    ValueError: an argument is outside its range.

  Example:
    >>> layer = {"kernel": np.array([[0.3, -0.2]]), "bias": np.array([0.1, 0.0])}
    >>> ticket = approximate([layer], eps=0.01)
    >>> ticket.max_weight_error <= 0.01, ticket.layers[0].plan.samples
    (True, 10)

  Reference: Malach et al. (2020), Theorem 2.1; Pensia et al. (2020), Theorem 1; Orseau,
  Hutter and Rivasplata (2020), Theorem 1.
  """
  if not isinstance(target_params, Mapping | list | tuple) or not len(target_params):
    raise ValueError(f"target_params must contain a layer, got {target_params!r}.")
  if construction not in CONSTRUCTIONS:
    raise ValueError(
      f"construction must be one of {CONSTRUCTIONS}, got {construction!r}."
    )
  for name, value in (("eps", eps), ("delta", delta)):
    check_number(name, value, "be in (0, 1)", lambda v: 0 < v < 1)
  if samples is not None:
    check_integer("samples", samples, 2)
    if construction == "subset_sum" and samples > 40:
      raise ValueError(f"samples must be at most 40 for subset_sum, got {samples}.")
  # Treat a bias as one more row of the kernel, and count the weights to approximate.
  target = _matrices(target_params)
  stacked = [
    np.concatenate([kernel, bias[None]]) if bias.any() else kernel
    for kernel, bias in target
  ]
  signs = [2 if signed_inputs and i == 0 else 1 for i in range(len(stacked))]
  problems = sum(s * w.size for s, w in zip(signs, stacked, strict=True))
  # Draw the random weights of each layer and choose their masks.
  layers = []
  for number, (weights, (kernel, _)) in enumerate(zip(stacked, target, strict=True)):
    plan = _plan(
      construction, weights, eps, delta / problems, (seed, number), signs[number]
    )
    if samples is not None:
      plan = plan._replace(samples=int(samples))
    layers.append(_solve(plan._replace(bias=len(weights) > len(kernel)), weights, eps))
  # Measure the errors and the number of random weights.
  error = max(
    float(np.abs(layer.weights - w[None]).max())
    for layer, w in zip(layers, stacked, strict=True)
  )
  size = sum(w.size for w in stacked)
  drawn = sum(layer.weights.size * layer.plan.samples for layer in layers)
  kept = sum(int(np.bitwise_count(layer.masks).sum()) for layer in layers)
  return StrongTicket(
    layers=layers,
    max_weight_error=error,
    sup_error_bound=_strong_error.sup_error_bound(target, layers),
    sup_error_found=_strong_error.empirical_sup_error(target, layers, seed),
    overhead=drawn / size,
    kept=kept / size,
  )


def _matrices(params):
  """Returns kernels and biases in float64; a missing bias is replaced by zeros."""
  target = []
  for layer in dense_layers(params):
    kernel = np.asarray(layer["kernel"], np.float64)
    bias = np.asarray(layer.get("bias", np.zeros(kernel.shape[1])), np.float64)
    target.append((kernel, bias))
  return target


def _plan(construction, weights, eps, delta, seed, signs):
  largest = max(float(np.abs(weights).max()), eps)
  intervals = 0
  if construction == "subset_sum":
    scale = 2 * largest  # targets are in half the samples' range
    samples = _subset_sum.samples_needed(min(eps / scale, 0.5), delta)
  elif construction == "pick_one":
    scale = largest + eps  # the window around the largest target is inside the range
    samples = _pick_one.samples_needed(min(eps / scale, 0.5), delta)
  else:
    scale = largest
    relative = min(eps / scale, 0.5)
    intervals = _golden_ratio.intervals_needed(relative)
    samples = _golden_ratio.samples_needed(relative, delta, signed=True)
  return LayerPlan(
    construction=construction,
    seed=seed,
    inputs=weights.shape[0],
    outputs=weights.shape[1],
    signs=signs,
    bias=False,
    samples=samples,
    intervals=intervals,
    scale=scale,
  )


def _solve(plan: LayerPlan, weights: np.ndarray, eps: float) -> LayerTicket:
  """Draws the random weights of each input and selects from them, one by one."""
  bytes_needed = math.ceil(plan.samples / 8)
  masks = np.zeros((plan.signs, *weights.shape, bytes_needed), np.uint8)
  chosen = np.zeros((plan.signs, *weights.shape))
  for sign, row in _inputs(plan):
    a, b = random_weights(plan, sign, row)
    products = (a[:, None] * b.astype(np.float64)).T  # (outputs, n)
    cut = _cut(plan, products, weights[row], eps)
    masks[sign, row] = np.packbits(cut, axis=-1)
    chosen[sign, row] = np.where(cut, products, 0).sum(1)
  return LayerTicket(plan, masks, chosen)


def _inputs(plan: LayerPlan) -> Iterator[tuple[int, int]]:
  return ((sign, row) for sign in range(plan.signs) for row in range(plan.inputs))


def _cut(plan, products, targets, eps):
  if plan.construction == "subset_sum":
    return _subset_sum.staged_subset_sum(products, targets, eps)
  if plan.construction == "pick_one":
    return _pick_one.pick_one(products, targets)
  return _golden_ratio.golden_ratio(
    products / plan.scale, targets / plan.scale, plan.intervals
  )
