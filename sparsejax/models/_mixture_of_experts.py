"""The sparsely gated mixture of experts (Shazeer et al. 2017)."""

import math
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.scipy.stats import norm

Array = jax.Array


class Gating(NamedTuple):
  """The decisions of a gate.

  Attributes:
    gates: float32 (..., experts), zero except for the k experts of a token.
    chosen: int32 (..., k), these experts, the best first.
    load: float32 (..., experts), the probability that a token goes to an expert, over
      draws of its noise.
  """

  gates: Array
  chosen: Array
  load: Array


class MixtureOfExperts(nn.Module):
  """A layer of MLPs of which each token is processed by the best k.

  y = sum_i G(x)_i E_i(x),  G = softmax(top_k(H)),
  H_i = (x W_g)_i + N(0, 1) softplus((x W_n)_i),  E_i(x) = gelu(x U_i) D_i

  Noise is only added in training, and 0.01 is added to its scale. An expert takes at
  most ceil(capacity_factor k length / experts) tokens of a sequence, first choices
  before second ones and earlier tokens before later ones. The contribution of a full
  expert is left out, so that the token passes only through the residual connection
  around the layer.

  The experts' kernels are stacked along their first axis: `stacked="experts"` gives one
  budget per expert, and the rule `{"experts": ("model", None, None)}` of
  `config.mesh.rules` shards them over devices. The gate's kernels are small and dense.

  In training, `balance` (CV(importance)^2 + CV(load)^2) is sown into the collection
  "losses": importance is each expert's sum of gates, load the expected number of its
  tokens, and CV the coefficient of variation.

  Attributes:
    num_experts: number of experts, more than `k`.
    hidden: width of each expert's hidden layer.
    k: number of experts per token.
    capacity_factor: capacity over the mean load, above 0.
    balance: weight of both losses; 0.1 in the paper's appendix.

  References:
    Shazeer et al. 2017, "Outrageously large neural networks", equations 1 to 11; the
    capacity is that of Lepikhin et al. 2021 (GShard), with sequences as groups.

  Example:
    >>> layer = MixtureOfExperts(num_experts=4, hidden=32)
    >>> x = jnp.ones((2, 8, 16))
    >>> variables = jax.eval_shape(layer.init, jax.random.key(0), x)
    >>> variables["params"]["up"].shape, variables["params"]["down"].shape
    ((4, 16, 32), (4, 32, 16))
  """

  num_experts: int
  hidden: int
  k: int = 2
  capacity_factor: float = 1.25
  balance: float = 0.1

  @nn.compact
  def __call__(self, x: Array, train: bool = False) -> Array:
    """Maps (n, length, width) to (n, length, width)."""
    experts, width, length = self.num_experts, x.shape[-1], x.shape[-2]
    if not 0 < self.k < experts:
      raise ValueError(
        f"k must be between 1 and num_experts - 1 ({experts - 1}); got {self.k}."
      )
    if not self.capacity_factor > 0:
      raise ValueError(f"capacity_factor must be above 0; got {self.capacity_factor}.")
    fan_in = nn.initializers.lecun_normal(batch_axis=(0,))
    up = self.param("up", fan_in, (experts, width, self.hidden))
    down = self.param("down", fan_in, (experts, self.hidden, width))
    # Zeros, as in the paper, so that every expert starts with the same load.
    zeros = nn.initializers.zeros_init()
    w_gate = self.param("gate", zeros, (width, experts))
    w_noise = self.param("gate_noise", zeros, (width, experts))
    # Routing depends on small differences, so it is computed in float32 in any case.
    wide = x.astype(jnp.float32)
    clean = wide @ w_gate.astype(jnp.float32)
    scale = jax.nn.softplus(wide @ w_noise.astype(jnp.float32)) + 1e-2
    noise = None
    if train:
      noise = jax.random.normal(self.make_rng("dropout"), clean.shape)
    gating = noisy_top_k(clean, scale, noise, self.k)
    # Sow the loss that balances the experts.
    if train:
      axes = tuple(range(x.ndim - 1))
      spread = sum(
        squared_variation(jnp.sum(total, axes)) for total in (gating.gates, gating.load)
      )
      self.sow("losses", "balance", self.balance * spread)
    # Send each token to its experts, apply them to their tokens, and add the outputs
    # back, weighted by the gates.
    capacity = math.ceil(self.capacity_factor * self.k * length / experts)
    capacity = min(capacity, length)
    combine = dispatch(gating, capacity).astype(x.dtype)
    taken = (combine > 0).astype(x.dtype)
    inputs = jnp.einsum("nlec,nld->encd", taken, x)
    hidden = nn.gelu(jnp.einsum("encd,edh->ench", inputs, up.astype(x.dtype)))
    outputs = jnp.einsum("ench,ehd->encd", hidden, down.astype(x.dtype))
    return jnp.einsum("nlec,encd->nld", combine, outputs)


def noisy_top_k(clean: Array, scale: Array, noise: Array | None, k: int) -> Gating:
  """Chooses the experts of each token.

  H = clean + noise scale;  load_i = Phi((clean_i - kth_excluding(H, k, i)) / scale_i)

  with kth_excluding the k-th largest component of H besides i.

  Args:
    clean: float32 (..., experts).
    scale: float32 (..., experts), the noise's standard deviation, above 0.
    noise: float32 (..., experts), or None for none.
    k: number of experts per token, below the number of experts.

  Returns:
    A `Gating`.

  References:
    Shazeer et al. 2017, equations 3 to 5 and 8 to 10.

  Example:
    >>> clean = jnp.array([[2.0, 1.0, 2.0]])
    >>> noisy_top_k(clean, jnp.ones((1, 3)), None, 2).gates
    Array([[0.5, 0. , 0.5]], dtype=float32)
  """
  h = clean if noise is None else clean + noise * scale
  best, order = jax.lax.top_k(h, k + 1)
  chosen = order[..., :k]
  weights = jax.nn.softmax(best[..., :k], axis=-1)
  one_hot = jax.nn.one_hot(chosen, clean.shape[-1], dtype=weights.dtype)
  gates = jnp.sum(weights[..., None] * one_hot, axis=-2)
  inside = jnp.sum(one_hot, axis=-2) > 0
  threshold = jnp.where(inside, best[..., k, None], best[..., k - 1, None])
  return Gating(gates, chosen, norm.cdf((clean - threshold) / scale))


def dispatch(gating: Gating, capacity: int) -> Array:
  """Assigns each token a slot of each of its experts, up to their capacity.

  Args:
    gating: the gating of tokens (n, length).
    capacity: number of slots per expert and group, with n groups.

  Returns:
    float32 (n, length, experts, capacity): a token's gate at its slot, else zero.

  Example:
    >>> gates = jnp.array([[[1.0, 0.0], [1.0, 0.0]]])
    >>> both = Gating(gates, jnp.array([[[0], [0]]]), gates)
    >>> dispatch(both, 1)[0, :, 0, 0]
    Array([1., 0.], dtype=float32)
  """
  n, length, k = gating.chosen.shape
  experts = gating.gates.shape[-1]
  wanted = jax.nn.one_hot(gating.chosen, experts, dtype=jnp.int32)
  # Order the requests: all first choices, then all second ones. A request's slot is the
  # number of earlier requests for the same expert.
  line = jnp.swapaxes(wanted, 1, 2).reshape(n, k * length, experts)
  before = (jnp.cumsum(line, axis=1) - line).reshape(n, k, length, experts)
  place = jnp.swapaxes(before, 1, 2)
  # A slot beyond the capacity is no row of the identity, so `one_hot` returns zeros for
  # it.
  at = jax.nn.one_hot(place, capacity, dtype=jnp.float32)
  at = at * wanted[..., None].astype(jnp.float32)
  return gating.gates[..., None] * jnp.sum(at, axis=2)


def squared_variation(x: Array) -> Array:
  """Returns the squared coefficient of variation: variance over squared mean.

  Args:
    x: floats (experts,).

  Returns:
    A scalar, 0 where all are equal.

  Example:
    >>> squared_variation(jnp.array([1.0, 3.0]))
    Array(0.25, dtype=float32)
  """
  return jnp.var(x) / (jnp.mean(x) ** 2 + 1e-10)
