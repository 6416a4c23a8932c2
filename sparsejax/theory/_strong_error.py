"""How far a ticket's network can be from its target, over the whole unit ball."""

from collections.abc import Sequence

import numpy as np

from sparsejax.theory._strong_network import LayerTicket, run_effective

Matrices = Sequence[tuple[np.ndarray, np.ndarray]]  # kernel (in, out), bias (out,)


def run_target(target: Matrices, x: np.ndarray) -> np.ndarray:
  """The target MLP in float64, ReLU between layers.

  Example:
    >>> layer = (np.array([[2.0]]), np.array([1.0]))
    >>> run_target([layer, layer], np.array([[3.0]])).tolist()
    [[15.0]]
  """
  x = np.asarray(x, np.float64)
  for number, (kernel, bias) in enumerate(target):
    x = (x if number == 0 else np.maximum(x, 0)) @ kernel + bias[None]
  return x


def sup_error_bound(target: Matrices, layers: Sequence[LayerTicket]) -> float:
  """A bound on `sup_{|x| <= 1} |f(x) - g(x)|`, Euclidean norms.

  Layer by layer, with `W` the target's and `V` the ticket's kernel, `r` a bound on the
  target's activations and `e` on the error so far:
  `e <- |V| e + |W - V| r + |b - c|`, `r <- |W| r + |b|`; a ReLU lengthens neither. For
  two signs, `|.|` of the pair is the root of the sum of squares.

  Args:
    target: kernels and biases.
    layers: the ticket's.

  Returns:
    The bound. (For tickets of one sign: over the ball's non-negative part.)

  Example:
    >>> from sparsejax.theory._strong_network import LayerPlan
    >>> plan = LayerPlan("pick_one", (0, 0), 1, 1, 1, False, 1, 0, 1.0)
    >>> masks, weights = np.zeros((1, 1, 1, 1), np.uint8), np.full((1, 1, 1), 2.5)
    >>> layer = LayerTicket(plan, masks, weights)
    >>> sup_error_bound([(np.array([[2.0]]), np.zeros(1))], [layer])
    0.5
  """
  radius, error = 1.0, 0.0
  for (kernel, bias), layer in zip(target, layers, strict=True):
    bias_error = 0.0
    weights = layer.weights
    if layer.plan.bias:
      bias_error = float(np.linalg.norm(weights[0, -1] - bias))
      weights = weights[:, :-1]
    norm = float(np.sqrt(sum(np.linalg.norm(w, 2) ** 2 for w in weights)))
    if layer.plan.signs == 1:
      norm = float(np.linalg.norm(weights[0], 2))
    off = float(np.sqrt(sum(np.linalg.norm(w - kernel, 2) ** 2 for w in weights)))
    error = norm * error + off * radius + bias_error
    radius = float(np.linalg.norm(kernel, 2)) * radius + float(np.linalg.norm(bias))
  return error


def empirical_sup_error(
  target: Matrices,
  layers: Sequence[LayerTicket],
  seed: int = 0,
  *,
  points: int = 512,
  steps: int = 30,
) -> float:
  """The largest `|f(x) - g(x)|` found in the unit ball: a lower bound of the supremum.

  Starts from random points and from the directions in which the first layer errs most,
  and climbs: each step goes along a random direction of shrinking length and stays if
  the error grew.

  Args:
    target: kernels and biases.
    layers: the ticket's.
    seed: of the points.
    points: how many climbers.
    steps: how many steps each makes.

  Returns:
    The largest error found.

  Example:
    >>> from sparsejax.theory._strong_network import LayerPlan
    >>> plan = LayerPlan("pick_one", (0, 0), 1, 1, 1, False, 1, 0, 1.0)
    >>> masks, weights = np.zeros((1, 1, 1, 1), np.uint8), np.full((1, 1, 1), 2.5)
    >>> layer = LayerTicket(plan, masks, weights)
    >>> empirical_sup_error([(np.array([[2.0]]), np.zeros(1))], [layer])
    0.5
  """
  rng = np.random.default_rng(seed)
  one_sign = layers[0].plan.signs == 1
  inputs = target[0][0].shape[0]

  def inside(x):
    x = np.abs(x) if one_sign else x
    return x / np.linalg.norm(x, axis=1, keepdims=True)

  def gap(x):
    return np.linalg.norm(run_target(target, x) - run_effective(layers, x), axis=1)

  off = layers[0].weights[:, :inputs] - target[0][0][None]
  worst = np.concatenate([np.linalg.svd(w.T, full_matrices=False)[2][:16] for w in off])
  x = inside(np.concatenate([rng.normal(size=(points, inputs)), worst, -worst]))
  best = gap(x)
  for step in range(steps):
    length = 0.5 * (1 - step / steps) + 0.01
    direction = inside(rng.normal(size=x.shape))
    trial = inside(x + length * direction)
    value = gap(trial)
    better = value > best
    x, best = np.where(better[:, None], trial, x), np.where(better, value, best)
  return float(best.max())
