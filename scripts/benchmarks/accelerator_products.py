"""Times block-sparse products on a GPU or TPU: results/execution_<platform>.json.

  python -m scripts.benchmarks.accelerator_products --out=results/execution_gpu.json
  python -m scripts.benchmarks.accelerator_products --quick

Forward and backward pass of x (8192, n) and a kernel (n, n) in bfloat16, for n of 4096
and 8192, blocks of 64 and 128 and densities from 0.05 to 0.5: the Pallas kernels of
`block_dot` against the dense product. Each case also reports both times as multiples of
the device's limit: the larger of the time of its floating-point operations (measured by
a dense product of 8192 x 8192 x 8192) and of its bytes (measured by a copy). Both sides
run alternately; the results are medians over rounds of the ratio within each round.
First each sparse product is compared with the dense one; the script stops if they
differ.

It takes less than ten minutes on one GPU. The last lines name, per block, the largest
density at which the Pallas kernels are faster, which is what `sparsejax.ops` should use
as its limit on that platform. --quick runs one tiny case, also on a CPU (in interpret
mode), and writes nothing.
"""

import functools
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags, logging

import sparsejax as sj
from scripts.benchmarks import timing
from sparsejax.experiments import command_line, results

ROWS = 8192
SIZES = (4096, 8192)
BLOCKS = (64, 128)
DENSITIES = (0.05, 0.1, 0.2, 0.3, 0.5)

_OUT = flags.DEFINE_string("out", "", "The results file.")
_ROUNDS = flags.DEFINE_integer("rounds", 11, "Rounds per case.", lower_bound=1)
_QUICK = flags.DEFINE_bool("quick", False, "One tiny case; writes nothing.")


def draw(seed: int, *shape: int) -> jax.Array:
  """Draws normal numbers in bfloat16 on the device."""
  return jax.random.normal(jax.random.key(seed), shape, jnp.bfloat16)


def sparse_kernel(size: int, block: int, density: float) -> jax.Array:
  """Draws a kernel with the nearest number of live blocks; the others are -0.0."""
  live = np.zeros((size // block, size // block), bool)
  chosen = np.random.default_rng(0).permutation(live.size)
  live.reshape(-1)[chosen[: max(1, round(density * live.size))]] = True
  mask = jnp.repeat(jnp.repeat(jnp.asarray(live), block, 0), block, 1)
  return jnp.where(mask, draw(1, size, size) * size**-0.5, jnp.bfloat16(-0.0))


def with_gradients(product: Any) -> Any:
  """Returns a function that computes a product and both of its gradients."""

  def run(x, kernel, dy):
    y, pull = jax.vjp(product, x, kernel)
    return y, *pull(dy)

  return run


@functools.cache
def operations_per_second(size: int) -> float:
  """Measures the floating-point operations per second of a dense product."""
  x = draw(0, size, size)
  program, _ = timing.compiled(jnp.matmul, x, x)
  seconds = timing.interleaved({"dense": lambda: program(x, x)}, 11)["dense"]
  return 2.0 * size**3 / float(np.median(seconds))


def check(sparse: Any, dense: Any, live: jax.Array) -> None:
  """Raises unless sparse and dense results agree to the precision of bfloat16."""
  y, dx, dw = sparse
  expected = (dense[0], dense[1], jnp.where(live, dense[2], 0))
  for name, a, b in zip(("y", "dx", "dw"), (y, dx, dw), expected, strict=True):
    a, b = a.astype(jnp.float32), b.astype(jnp.float32)
    difference = float(jnp.max(jnp.abs(a - b)) / jnp.max(jnp.abs(b)))
    if not difference < 0.03:
      sys.exit(f"Error: {name} differs from the dense one by {difference:.3g} of it.")


def measure(rows: int, size: int, block: int, density: float) -> list[dict]:
  """Times one case and returns its rows."""
  x, dy = draw(2, rows, size), draw(3, rows, size)
  kernel = sparse_kernel(size, block, density)
  sparse = functools.partial(
    sj.block_dot, block=(block, block), implementation="pallas"
  )
  ways = {"dense": with_gradients(jnp.matmul), "sparse": with_gradients(sparse)}
  programs = {way: timing.compiled(f, x, kernel, dy)[0] for way, f in ways.items()}
  calls = {
    way: functools.partial(program, x, kernel, dy) for way, program in programs.items()
  }
  # `block_dot` takes the dense product above half of the blocks, so its gradient of the
  # kernel may be dense there.
  outputs = {way: call() for way, call in calls.items()}
  check(outputs["sparse"], outputs["dense"], outputs["sparse"][2] != 0)
  taken = timing.interleaved(calls, _ROUNDS.value)
  # The limit: each of the three products reads two operands and writes one result, and
  # of the kernel only its live blocks.
  live = density * size * size
  flops = 3 * 2 * rows * live
  moved = 2.0 * (3 * 2 * rows * size + 2 * live + size * size)
  limit = max(
    flops / operations_per_second(max(SIZES) if not _QUICK.value else size),
    moved / timing.bandwidth(),
  )
  name = f"product/{size}x{size}/batch={rows}/block={block}/density={density}/bfloat16"
  note = f"forward and backward pass; median of {_ROUNDS.value} rounds in turns"
  row = functools.partial(results.row, name, note=note)
  out = [
    row("speedup_over_dense", timing.median_ratio(taken["dense"], taken["sparse"]))
  ]
  for way, seconds in taken.items():
    median = float(np.median(seconds))
    out.append(row(f"{way}_milliseconds", 1e3 * median))
    out.append(row(f"{way}_times_limit", median / limit))
  return out


def main(argv: list[str]) -> None:
  del argv
  logging.set_verbosity(logging.ERROR)
  platform = jax.default_backend()
  if not _QUICK.value and platform == "cpu":
    sys.exit("Error: this needs a GPU or a TPU, got a CPU; try --quick.")
  if not _QUICK.value and not _OUT.value:
    sys.exit("Error: --out must be given, such as results/execution_gpu.json.")
  sizes, blocks, densities, rows = SIZES, BLOCKS, DENSITIES, ROWS
  if _QUICK.value:
    sizes, blocks, densities, rows = (128,), (64,), (0.25,), 32
  found: list[dict] = []
  fastest: dict[int, float] = {}
  cases = [(n, b, d) for n in sizes for b in blocks for d in densities]
  for number, (size, block, density) in enumerate(cases, 1):
    start = time.monotonic()
    found += measure(rows, size, block, density)
    speedup = found[-5]["mean"]
    if speedup > 1:
      fastest[block] = max(fastest.get(block, 0), density)
    print(
      f"[{number}/{len(cases)}] {found[-5]['case']}: {speedup:.2f} times as fast as"
      f" dense ({time.monotonic() - start:.0f} s)",
      flush=True,
    )
    # Written after each case, so that a run that is cut off keeps its results.
    if not _QUICK.value:
      merged = results.merge_with_existing(found, _OUT.value)
      results.write_results(_OUT.value, f"execution_{platform}", merged)
  for block in blocks:
    print(f"Blocks of {block}: faster up to density {fastest.get(block, 0):g}.")


if __name__ == "__main__":
  command_line.run(main)
