"""Gauss-Hermite quadrature of means over normal variables, in float64."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Activation = Callable[[jax.Array], jax.Array]

# An even number has no node at 0, where relu has its kink.
_NODES = 200
_NODES_2D = 80


def averages(activation: Activation, q: float, power: int = 1) -> tuple[float, float]:
  """Computes E[phi(sqrt(q) z)^2] and E[phi'(sqrt(q) z)^(2 power)], z ~ N(0, 1)."""
  with jax.ensure_compile_time_eval(), jax.enable_x64(True):
    first, second = _averages(activation)(float(q), int(power))
    return float(first), float(second)


def iterate(
  activation: Activation,
  q: float,
  weight_variance: float,
  bias_variance: float,
  layers: int,
) -> float:
  """Maps q to weight_variance E[phi(sqrt(q) z)^2] + bias_variance, `layers` times."""
  with jax.ensure_compile_time_eval(), jax.enable_x64(True):
    args = (float(q), float(weight_variance), float(bias_variance), int(layers))
    return float(_iterate(activation)(*args))


def pair(activation: Activation, q: float, c: float) -> tuple[float, float]:
  """Computes E[phi phi] and E[phi' phi'] at inputs of variance q and correlation c."""
  with jax.ensure_compile_time_eval(), jax.enable_x64(True):
    first, second = _pairs(activation)(float(q), float(c))
    return float(first), float(second)


def _nodes(n: int) -> tuple[np.ndarray, np.ndarray]:
  """Returns the nodes and weights of a mean over N(0, 1)."""
  x, w = np.polynomial.hermite_e.hermegauss(n)
  return x, w / w.sum()


@functools.lru_cache(maxsize=32)
def _averages(activation: Activation) -> Any:
  x, w = _nodes(_NODES)
  slope = jax.vmap(jax.grad(lambda u: activation(u)))

  @jax.jit
  def averages(q, power):
    u = jnp.sqrt(q) * x
    return jnp.sum(w * activation(u) ** 2), jnp.sum(w * slope(u) ** (2 * power))

  return averages


@functools.lru_cache(maxsize=32)
def _iterate(activation: Activation) -> Any:
  x, w = _nodes(_NODES)

  @jax.jit
  def iterate(q, weight_variance, bias_variance, layers):
    def layer(_, q):
      return weight_variance * jnp.sum(w * activation(jnp.sqrt(q) * x) ** 2) + (
        bias_variance
      )

    return jax.lax.fori_loop(0, layers, layer, q)

  return iterate


@functools.lru_cache(maxsize=32)
def _pairs(activation: Activation) -> Any:
  x, w = _nodes(_NODES_2D)
  slope = jax.vmap(jax.vmap(jax.grad(lambda u: activation(u))))
  a, b = np.broadcast_to(x[:, None], (x.size,) * 2), np.broadcast_to(x, (x.size,) * 2)
  weight = np.outer(w, w)

  @jax.jit
  def pairs(q, c):
    u, v = jnp.sqrt(q) * a, jnp.sqrt(q) * (c * a + jnp.sqrt((1 - c) * (1 + c)) * b)
    values = activation(u) * activation(v), slope(u) * slope(v)
    return tuple(jnp.sum(weight * value) for value in values)

  return pairs
