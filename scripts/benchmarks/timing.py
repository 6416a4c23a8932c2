"""Timing of benchmarks in interleaved rounds, so that load affects all alike."""

import functools
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# Maps each case to the function that measures it and returns its rows.
Cases = dict[str, Callable[[], list[dict]]]


def once(call: Callable[[], Any]) -> float:
  """Returns the seconds of one call, with its result awaited."""
  start = time.perf_counter()
  jax.block_until_ready(call())
  return time.perf_counter() - start


def interleaved(
  calls: Mapping[str, Callable[[], Any]], rounds: int, warm_up: bool = True
) -> dict[str, np.ndarray]:
  """Returns the seconds of each call in each round, after a warm-up round."""
  seconds: dict[str, list[float]] = {name: [] for name in calls}
  for i in range(rounds + warm_up):
    for name, call in calls.items():
      taken = once(call)
      if i or not warm_up:
        seconds[name].append(taken)
  return {name: np.asarray(s) for name, s in seconds.items()}


def compiled(function: Callable, *args: Any, **kwargs: Any) -> tuple[Any, float]:
  """Compiles a function for some arguments; returns it and the seconds taken by XLA."""
  lowered = jax.jit(function, **kwargs).lower(*args)
  start = time.perf_counter()
  program = lowered.compile()
  return program, time.perf_counter() - start


def median_ratio(values: np.ndarray, others: np.ndarray) -> float:
  """Returns the median over rounds of the ratio within each round."""
  return float(np.median(values / others))


@functools.cache
def bandwidth() -> float:
  """Returns the bytes per second of reading and writing half a gigabyte each."""
  numbers = jnp.zeros(2**27, jnp.float32)
  program, _ = compiled(lambda x: x + 1, numbers)
  seconds = interleaved({"copy": lambda: program(numbers)}, 11)["copy"]
  return 2 * numbers.nbytes / float(np.median(seconds))
