"""Measures the cost of a deep stack of convolutions, as ratios.

Compile time at 10,000 layers against 100, step time at 10,000 against 1,000, gradient
steps against `lax.conv` in a scan, memory of `remat="sqrt"`, and initialization.
"""

import functools
import math
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from scripts.benchmarks import timing
from sparsejax import initializers
from sparsejax.experiments import results
from sparsejax.models import conv_stack

BATCH, SIZE = 16, 7
NOTE = f"batch {BATCH}, {SIZE} x {SIZE} pixels, float32, zero padding"


def shapes(depth: int, channels: int):
  weights = jax.ShapeDtypeStruct((depth, 3, 3, channels, channels), jnp.float32)
  x = jax.ShapeDtypeStruct((BATCH, SIZE, SIZE, channels), jnp.float32)
  return x, weights, jax.ShapeDtypeStruct((depth, channels), jnp.float32)


def compiled(depth: int, channels: int, **options):
  """Compiles a step of gradient descent; returns it with the seconds taken."""

  def step(x, kernel, bias):
    loss = lambda w, b: jnp.sum(conv_stack(x, w, b, **options) ** 2)
    grads = jax.grad(loss, argnums=(0, 1))(kernel, bias)
    return kernel - 1e-9 * grads[0], bias - 1e-9 * grads[1]

  jax.clear_caches()
  started = time.perf_counter()
  program = jax.jit(step).lower(*shapes(depth, channels)).compile()
  return program, time.perf_counter() - started


def operands(depth: int, channels: int):
  init = jax.jit(initializers.delta_orthogonal(stacked=True), static_argnums=1)
  x, weights, bias = shapes(depth, channels)
  kernel = init(jax.random.key(0), weights.shape)
  x = jax.random.normal(jax.random.key(1), x.shape) * depth**-0.5
  return x, kernel, jnp.zeros(bias.shape)


def ratios(programs: dict, rounds: int) -> dict[str, list[float]]:
  """Returns seconds of each `{name: (program, operands)}`, in interleaved rounds."""
  calls = {name: functools.partial(p, *args) for name, (p, args) in programs.items()}
  found = timing.interleaved(calls, rounds)
  return {name: seconds.tolist() for name, seconds in found.items()}


def compile_rows(long: int, rounds: int) -> list[dict]:
  pairs = [(compiled(long, 16)[1], compiled(100, 16)[1]) for _ in range(rounds)]
  case = f"deep_cnn/compile/depth={long}"
  return [
    results.row(case, "seconds", [a for a, _ in pairs], note=NOTE),
    results.row(case, "times_depth_100", [a / b for a, b in pairs], note=NOTE),
  ]


def linearity_rows(long: int, rounds: int) -> list[dict]:
  programs = {}
  for depth in (long, long // 10):
    programs[str(depth)] = compiled(depth, 16)[0], operands(depth, 16)
  found = ratios(programs, rounds)
  tenfold = [
    a / b for a, b in zip(found[str(long)], found[str(long // 10)], strict=True)
  ]
  case = f"deep_cnn/step/depth={long}/channels=16"
  return [
    results.row(case, "seconds", found[str(long)], note=NOTE),
    results.row(case, "times_a_tenth_of_the_depth", tenfold, note=NOTE),
  ]


def speed_rows(rounds: int, depth: int = 100) -> list[dict]:
  rows = []
  for channels in (16, 32):
    args = operands(depth, channels)
    found = ratios(
      {
        name: (compiled(depth, channels, lowering=name)[0], args)
        for name in ("auto", "lax")
      },
      rounds,
    )
    gain = [b / a for a, b in zip(found["auto"], found["lax"], strict=True)]
    case = f"deep_cnn/step/depth={depth}/channels={channels}"
    rows.append(results.row(case, "seconds", found["auto"], note=NOTE))
    rows.append(results.row(case, "speedup_over_lax_conv_in_scan", gain, note=NOTE))
  return rows


def memory_rows(long: int) -> list[dict]:
  """Returns rows of XLA's own account of temporary memory, inputs and outputs aside."""

  def temporary(**options):
    analysis: Any = compiled(long, 16, **options)[0].memory_analysis()
    return analysis.temp_size_in_bytes

  plain, sqrt, lax = (
    temporary(),
    temporary(remat="sqrt"),
    temporary(lowering="lax"),
  )
  # Subtract the gradient, which is as large as the parameters in either case.
  gradient = 4 * sum(math.prod(leaf.shape) for leaf in shapes(long, 16)[1:])
  kept = (sqrt - gradient) / (plain - gradient)
  case = f"deep_cnn/memory/depth={long}/channels=16"
  return [
    results.row(case, "sqrt_remat_ratio_to_plain_beside_gradient", kept, note=NOTE),
    results.row(case, "plain_megabytes", plain / 1e6, note=NOTE),
    results.row(case, "sqrt_remat_ratio_to_plain", sqrt / plain, note=NOTE),
    results.row(case, "plain_ratio_to_lax_conv", plain / lax, note=NOTE),
  ]


def init_rows(long: int, rounds: int) -> list[dict]:
  shape = (long, 3, 3, 16, 16)
  init = jax.jit(initializers.delta_orthogonal(stacked=True), static_argnums=1)
  program = init.lower(jax.random.key(0), shape).compile()
  once = lambda i: timing.once(lambda: program(jax.random.key(i)))
  found = [once(i) for i in range(rounds + 1)][1:]
  w = np.asarray(program(jax.random.key(0))[:, 1, 1], np.float64)
  error = np.abs(w @ w.transpose(0, 2, 1) - np.eye(16)).max()
  case = f"deep_cnn/initialization/{'x'.join(map(str, shape))}"
  return [
    results.row(case, "seconds_after_compilation", found),
    results.row(case, "largest_distance_from_orthogonal", float(error)),
  ]


def cases(quick: bool) -> timing.Cases:
  """Returns one case per question; quick ones have a tenth of the depths."""
  long, rounds = (1000, 1) if quick else (10_000, 2)
  return {
    "deep_cnn/compile": functools.partial(compile_rows, long, rounds),
    "deep_cnn/speed": functools.partial(speed_rows, rounds),
    "deep_cnn/memory": functools.partial(memory_rows, long),
    "deep_cnn/initialization": functools.partial(init_rows, long, rounds),
    "deep_cnn/linearity": functools.partial(linearity_rows, long, rounds),
  }
