"""Errors of a strong ticket's network over the unit ball: a bound and a search."""

from collections.abc import Sequence

import numpy as np

from sparsejax.theory._strong_network import LayerTicket, run_effective

Matrices = Sequence[tuple[np.ndarray, np.ndarray]]  # kernel (in, out), bias (out,)


def run_target(target: Matrices, x: np.ndarray) -> np.ndarray:
  """Runs the target MLP in float64, with ReLU between layers.

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
  """Computes a bound on `sup_{|x| <= 1} |f(x) - g(x)|`, in Euclidean norms.

  Layer by layer, with `W` the target's and `V` the ticket's kernel, `r` a bound on the
  target's activations and `e` on the error so far:
  `e <- |V| e + |W - V| r + |b - c|`, `r <- |W| r + |b|`; a ReLU increases neither. For
  two signs, `|.|` of the pair is the root of the sum of squares.

  Args:
    target: kernels and biases.
    layers: the ticket's layers.

  Returns:
    The bound. For tickets of one sign, it holds over the ball's nonnegative part.

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
  """Searches the unit ball for the largest `|f(x) - g(x)|`, by random hill climbing.

  The result is a lower bound of the supremum. The search starts from random points and
  from the directions in which the error of the first layer is largest. Each step moves
  in a random direction, by a decreasing length, and is kept if the error increases.

  Args:
    target: kernels and biases.
    layers: the ticket's layers.
    seed: the seed of the points and directions.
    points: the number of random starting points.
    steps: the number of steps per starting point.

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
