"""A small decoder-only transformer over bytes, dense or with a mixture of experts."""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax

from sparsejax.models._mixture_of_experts import MixtureOfExperts

Array = jax.Array


class Transformer(nn.Module):
  """A causal language model: the logits at each position predict the next token.

  x = E[tokens] + P;  x += attention(norm(x));  x += mlp(norm(x));  logits = norm(x) E^T

  Attention and MLP kernels have no biases and are the layers to make sparse. The
  embedding E, which also computes the logits, the position embedding P and the norms
  stay dense.

  Attributes:
    num_classes: size of the vocabulary; 256 for bytes.
    length: length of the longest sequence.
    depth: number of blocks.
    width: width of the residual stream, a multiple of `heads`.
    heads: number of heads of each attention.
    expansion: width of an MLP's hidden layer over `width`.
    dropout: dropout rate after each attention and MLP.
    num_experts: number of experts of each MLP; 0 for one dense MLP.
    expert_kwargs: other attributes of `MixtureOfExperts`.
    dot_general: the product of each attention and MLP kernel, such as
      `sj.block_dot_general((64, 64))`; not used for experts.

  References:
    Vaswani et al. 2017, "Attention is all you need"; with norms before each part.

  Example:
    >>> import jax, jax.numpy as jnp
    >>> model = Transformer(length=16, depth=1, width=32, heads=2)
    >>> tokens = jnp.zeros((3, 16), jnp.int32)
    >>> logits, _ = jax.eval_shape(model.init_with_output, jax.random.key(0), tokens)
    >>> logits.shape
    (3, 16, 256)
  """

  num_classes: int = 256
  length: int = 64
  depth: int = 2
  width: int = 128
  heads: int = 4
  expansion: int = 4
  dropout: float = 0.0
  num_experts: int = 0
  expert_kwargs: Any = None
  dot_general: Callable[..., Array] = jax.lax.dot_general

  @nn.compact
  def __call__(self, tokens: Array, train: bool = False) -> Array:
    """Maps tokens int32 (n, length) to logits (n, length, num_classes)."""
    if self.width % self.heads:
      raise ValueError(
        f"width must be a multiple of heads ({self.heads}); got {self.width}."
      )
    if tokens.shape[-1] > self.length:
      raise ValueError(
        f"tokens must be at most {self.length} long; got {tokens.shape[-1]}."
      )
    normal = nn.initializers.normal(0.02)
    embed = nn.Embed(self.num_classes, self.width, embedding_init=normal, name="embed")
    places = self.param("place_embedding", normal, (self.length, self.width))
    x = embed(tokens)
    x = x + places[None, : tokens.shape[-1]].astype(x.dtype)
    drop = partial(nn.Dropout(self.dropout), deterministic=not train)
    for i in range(1, self.depth + 1):
      y = nn.LayerNorm(use_bias=False, name=f"attention_norm{i}")(x)
      x = x + drop(_Attention(self.heads, self.dot_general, name=f"attention{i}")(y))
      y = nn.LayerNorm(use_bias=False, name=f"mlp_norm{i}")(x)
      if self.num_experts:
        experts = MixtureOfExperts(
          self.num_experts,
          self.expansion * self.width,
          **(self.expert_kwargs or {}),
          name=f"experts{i}",
        )
        y = experts(y, train)
      else:
        y = _MLP(self.expansion * self.width, self.dot_general, name=f"mlp{i}")(y)
      x = x + drop(y)
    x = nn.LayerNorm(use_bias=False, name="last_norm")(x)
    return embed.attend(x)


class _Attention(nn.Module):
  heads: int
  dot_general: Callable[..., Array]

  @nn.compact
  def __call__(self, x: Array) -> Array:
    width = x.shape[-1]
    dense = partial(nn.Dense, width, use_bias=False, dot_general=self.dot_general)
    parts = (*x.shape[:-1], self.heads, width // self.heads)
    q, k, v = (dense(name=n)(x).reshape(parts) for n in ("query", "key", "value"))
    y = jax.nn.dot_product_attention(q, k, v, is_causal=True)
    return dense(name="out")(y.reshape(x.shape))


class _MLP(nn.Module):
  hidden: int
  dot_general: Callable[..., Array]

  @nn.compact
  def __call__(self, x: Array) -> Array:
    dense = partial(nn.Dense, use_bias=False, dot_general=self.dot_general)
    h = nn.gelu(dense(self.hidden, name="up")(x))
    return dense(x.shape[-1], name="down")(h)
