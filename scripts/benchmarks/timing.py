"""How the benchmarks take time: in rounds over all, so that load falls on all alike."""

import functools
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# case -> what measures it and returns its rows.
Cases = dict[str, Callable[[], list[dict]]]


def once(call: Callable[[], Any]) -> float:
  """Seconds of one call, what it returns waited for."""
  start = time.perf_counter()
  jax.block_until_ready(call())
  return time.perf_counter() - start


def interleaved(
  calls: Mapping[str, Callable[[], Any]], rounds: int, warm_up: bool = True
) -> dict[str, np.ndarray]:
  """Seconds of each call in each round; a round before them warms up."""
  seconds: dict[str, list[float]] = {name: [] for name in calls}
  for i in range(rounds + warm_up):
    for name, call in calls.items():
      taken = once(call)
      if i or not warm_up:
        seconds[name].append(taken)
  return {name: np.asarray(s) for name, s in seconds.items()}


def compiled(function: Callable, *args: Any, **kwargs: Any) -> tuple[Any, float]:
  """A function compiled for some arguments, and the seconds that XLA took for it."""
  lowered = jax.jit(function, **kwargs).lower(*args)
  start = time.perf_counter()
  program = lowered.compile()
  return program, time.perf_counter() - start


def median_ratio(values: np.ndarray, others: np.ndarray) -> float:
  """Median over rounds of a ratio taken within each."""
  return float(np.median(values / others))


@functools.cache
def bandwidth() -> float:
  """Bytes a second that the device's memory moves: half a gigabyte read and written."""
  numbers = jnp.zeros(2**27, jnp.float32)
  program, _ = compiled(lambda x: x + 1, numbers)
  seconds = interleaved({"copy": lambda: program(numbers)}, 11)["copy"]
  return 2 * numbers.nbytes / float(np.median(seconds))
