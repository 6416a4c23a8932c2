"""The random network of a strong ticket: drawing from a seed, masking and running.

A target layer `y = W x` becomes two random layers. Input `i` feeds `n` hidden neurons
`relu(a_ik x_i)` with positive `a`, and, if inputs can be negative, `n` more with
negative `a`. Each is connected to output `j` by `b_ikj`. As `relu(a x) = a x` wherever
it is not 0, the masks `m` select the weight `w_ij ~ sum_k m_ikj a_ik b_ikj` for each
sign of `x_i`. A bias is the weight of an additional input, which is always 1.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from sparsejax.theory._golden_ratio import PHI


class LayerPlan(NamedTuple):
  """The settings that determine the random weights of one target layer."""

  construction: str  # "subset_sum", "pick_one" or "golden_ratio"
  seed: tuple[int, int]  # the network's seed and the layer's index
  inputs: int  # inputs of the target layer, including the constant 1 of its bias
  outputs: int  # outputs of the target layer
  signs: int  # 2 if inputs can be negative, else 1
  bias: bool  # whether the last input is the constant 1
  samples: int  # n, hidden neurons per input and sign
  intervals: int  # k of the golden ratio, else 0
  scale: float  # scale of the second layer's random weights


class LayerTicket(NamedTuple):
  """A plan, and the masks that approximate a target layer with its random weights."""

  plan: LayerPlan
  masks: np.ndarray  # uint8 (signs, inputs, outputs, ceil(n / 8)), packed bits
  weights: np.ndarray  # float64 (signs, inputs, outputs), the resulting weights


def random_weights(
  plan: LayerPlan, sign: int, row: int
) -> tuple[np.ndarray, np.ndarray]:
  """Draws the random weights of one input from the plan's seed.

  `subset_sum`: `a` uniform on (0, 1), `b` on `scale * [-1, 1]`, so that their product
  contains a uniform part. `pick_one`: `a = 1`, `b` uniform. `golden_ratio`: `a = 1`,
  `b` of random sign, `|b| / scale` log-uniform on `(phi^-(k+1), phi^-1]`. For the
  negative sign both are negated.

  Args:
    plan: the layer's plan.
    sign: 0 for positive inputs, 1 for negative ones.
    row: the index of the input.

  Returns:
    `a`, float32 `(n,)`, and `b`, float32 `(n, outputs)`.

  Example:
    >>> plan = LayerPlan("subset_sum", (0, 0), 8, 5, 1, False, 3, 0, 2.0)
    >>> a, b = random_weights(plan, sign=0, row=7)
    >>> a.shape, b.shape, bool((a > 0).all() and (abs(b) <= 2).all())
    ((3,), (3, 5), True)
  """
  rng = np.random.default_rng([*plan.seed, sign, row])
  side = np.float32(-1 if sign else 1)
  shape = (plan.samples, plan.outputs)
  a = np.ones(plan.samples, np.float32)
  if plan.construction == "subset_sum":
    a = 1 - rng.random(plan.samples, np.float32)
  b = 2 * rng.random(shape, np.float32) - 1
  if plan.construction == "golden_ratio":
    power = 1 + np.float32(plan.intervals) * rng.random(shape, np.float32)
    b = np.where(b < 0, np.float32(-1), np.float32(1))
    b = b * np.exp(np.float32(-math.log(PHI)) * power)
  return side * a, side * np.float32(plan.scale) * b


def unpack_masks(layer: LayerTicket, sign: int, row: int) -> np.ndarray:
  """Unpacks the masks of one input's second-layer weights, bool `(n, outputs)`.

  Example:
    >>> plan = LayerPlan("pick_one", (0, 0), 1, 1, 1, False, 3, 0, 1.0)
    >>> masks = np.packbits(np.array([[[[0, 1, 0]]]], bool), axis=-1)
    >>> unpack_masks(LayerTicket(plan, masks, np.zeros((1, 1, 1))), 0, 0).tolist()
    [[False], [True], [False]]
  """
  bits = np.unpackbits(layer.masks[sign, row], axis=-1, count=layer.plan.samples)
  return bits.astype(bool).T


def run_network(layers: Sequence[LayerTicket], x: np.ndarray) -> np.ndarray:
  """Runs the masked random network itself, with its random weights, masks and ReLUs.

  Hidden neurons are computed for one input at a time, so memory is small. The time is
  that of the wide network.

  Args:
    layers: a ticket's layers.
    x: float array `(batch, inputs)`; must not be negative if the first layer's `signs`
      is 1.

  Returns:
    float64 `(batch, outputs)`, before any activation of the last layer.

  Raises:
    ValueError: `x` has negative values, but the network was built without them.

  Example:
    >>> plan = LayerPlan("pick_one", (0, 0), 1, 1, 1, False, 1, 0, 1.0)
    >>> masks = np.full((1, 1, 1, 1), 128, np.uint8)
    >>> layer = LayerTicket(plan, masks, np.zeros((1, 1, 1)))
    >>> a, b = random_weights(plan, 0, 0)
    >>> bool(run_network([layer], np.array([[2.0]]))[0, 0] == 2 * a[0] * b[0, 0])
    True
  """
  x = np.asarray(x, np.float64)
  for number, layer in enumerate(layers):
    plan = layer.plan
    x = (
      _with_constant(x, plan.bias)
      if number == 0
      else _with_constant(np.maximum(x, 0), plan.bias)
    )
    if plan.signs == 1 and x.min() < 0:
      raise ValueError(
        "x must not be negative: the network was built for inputs of one sign, got"
        f" {x.min()}."
      )
    y = np.zeros((len(x), plan.outputs))
    for sign in range(plan.signs):
      for row in range(plan.inputs):
        a, b = random_weights(plan, sign, row)
        hidden = np.maximum(x[:, row : row + 1] * a[None], 0)
        if hidden.any():
          y += hidden @ np.where(unpack_masks(layer, sign, row), b, 0)
    x = y
  return x


def run_effective(layers: Sequence[LayerTicket], x: np.ndarray) -> np.ndarray:
  """Computes the same function as `run_network`, at the target network's cost.

  It uses the weights that result from the masks instead of the random ones.

  Args:
    layers: a ticket's layers.
    x: float array `(batch, inputs)`.

  Returns:
    float64 `(batch, outputs)`; equal to `run_network` up to rounding.

  Example:
    >>> plan = LayerPlan("pick_one", (0, 0), 1, 1, 2, False, 1, 0, 1.0)
    >>> weights = np.array([[[3.0]], [[5.0]]])
    >>> layer = LayerTicket(plan, np.zeros((2, 1, 1, 1), np.uint8), weights)
    >>> run_effective([layer], np.array([[1.0], [-1.0]])).tolist()
    [[3.0], [-5.0]]
  """
  x = np.asarray(x, np.float64)
  for number, layer in enumerate(layers):
    x = _with_constant(x if number == 0 else np.maximum(x, 0), layer.plan.bias)
    y = np.maximum(x, 0) @ layer.weights[0]
    if layer.plan.signs == 2:
      y = y + np.minimum(x, 0) @ layer.weights[1]
    x = y
  return x


def _with_constant(x, bias):
  return np.concatenate([x, np.ones((len(x), 1))], axis=1) if bias else x
