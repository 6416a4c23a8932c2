"""Timing of networks in turns, so that other load affects all alike."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_LONG = 1e-3  # seconds; shorter calls are repeated within a round
_REPEATS = 20


def draw_inputs(like: jax.ShapeDtypeStruct) -> jax.Array:
  """Draws inputs to time a program with: normal floats, or integers 0 and 1."""
  rng = np.random.default_rng(0)
  if jnp.issubdtype(like.dtype, jnp.floating):
    return jnp.asarray(rng.normal(size=like.shape), like.dtype)
  return jnp.asarray(rng.integers(2, size=like.shape), like.dtype)


def time_in_turns(
  calls: Mapping[str, Callable[[jax.Array], Any]], inputs: jax.Array, rounds: int
) -> dict[str, np.ndarray]:
  """Times compiled functions of the same inputs, in interleaved rounds.

  Args:
    calls: the functions by name.
    inputs: their argument.
    rounds: the number of rounds. A call shorter than a millisecond is repeated within a
      round, up to 20 times, and the mean counts.

  Returns:
    For each name the seconds of one call in each round, shape (rounds,).
  """
  repeats = {}
  for name, call in calls.items():
    jax.block_until_ready(call(inputs))  # compile
    start = time.perf_counter()
    jax.block_until_ready(call(inputs))
    repeats[name] = min(_REPEATS, 1 + int(_LONG / (time.perf_counter() - start)))
  taken: dict[str, list[float]] = {name: [] for name in calls}
  for _ in range(rounds):
    for name, call in calls.items():
      start = time.perf_counter()
      for _ in range(repeats[name]):
        jax.block_until_ready(call(inputs))
      taken[name].append((time.perf_counter() - start) / repeats[name])
  return {name: np.asarray(seconds) for name, seconds in taken.items()}
