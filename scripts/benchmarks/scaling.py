r"""Computes memory and traffic of a sparse step, from one device to thousands.

  python -m scripts.benchmarks.scaling --out=results/scaling.json \
    --table=docs/scaling.md

For layers of transformers of 1e9 and 1e11 parameters, the optimizer part of a training
step (`tx.update` and `optax.apply_updates`) is compiled for 8 to 64 virtual devices.
The compiled program reports its memory per device (`memory_analysis`) and the
collectives of a mask update. Nothing is allocated or run. A program has a few layers
and its numbers are multiplied up to the whole network; larger numbers of devices are
extrapolated. Each row says so.
"""

import functools
import pathlib
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import sparsejax as sj
from scripts.site.scaling_page import COMPILED, EXTRAPOLATED, page
from sparsejax.experiments import command_line, results

_OUT = flags.DEFINE_string("out", "results/scaling.json", "The results file to write.")
_TABLE = flags.DEFINE_string("table", "docs/scaling.md", "The page to write.")
_QUICK = flags.DEFINE_bool(
  "quick", False, "Compile the smallest program and write nothing."
)

# One block: attention (4 kernels) and an MLP of four times the width (2 kernels).
SIZES = {"1e9": (2048, 20), "1e11": (12_288, 55)}  # width, blocks: 12 width^2 blocks
# A selection has at most this many passes: 8 bits of 4 bytes of a float32 score, and of
# 4 bytes of the index, where scores tie.
PASSES = 64
GIB = 2**30


def kernels(width: int) -> dict[str, tuple[int, int]]:
  """Returns the kernels of one block, (inputs, outputs)."""
  square = {name: (width, width) for name in ("query", "key", "value", "out")}
  return square | {"up": (width, 4 * width), "down": (4 * width, width)}


def optimizer() -> optax.GradientTransformationExtraArgs:
  """Returns AdamW under sparse momentum, the method that moves the most data."""
  return sj.sparse_momentum(optax.adamw(1e-3), density=0.1, update_every=100)


def step(tx, params, state, grads):
  with jax.numpy_dtype_promotion("standard"):
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state


def abstract(width: int, mesh) -> dict:
  """Returns abstract parameters, sharded over all devices along their inputs."""
  place = NamedSharding(mesh, P("data", None))
  return {
    name: {"kernel": jax.ShapeDtypeStruct(shape, jnp.float32, sharding=place)}
    for name, shape in kernels(width).items()
  }


def compiled(width: int, devices: int):
  """Compiles the optimizer step of one block for a number of devices."""
  mesh = jax.make_mesh(
    (devices,),
    ("data",),
    axis_types=(AxisType.Auto,),
    devices=jax.devices()[:devices],
  )
  tx, params = optimizer(), abstract(width, mesh)
  state = jax.eval_shape(tx.init, params)
  # Moments and masks have the sharding of their weights, as after `init`.
  place, whole = NamedSharding(mesh, P("data", None)), NamedSharding(mesh, P())
  state = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(
      x.shape, x.dtype, sharding=place if len(x.shape) == 2 else whole
    ),
    state,
  )
  run = jax.jit(functools.partial(step, tx), donate_argnums=(0, 1))
  return run.lower(params, state, params).compile()


COLLECTIVE = re.compile(
  r"= (.*?) (all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)"
  r"(?:-start)?\("
)


def traffic(text: str) -> tuple[int, int]:
  """Returns the bytes received by all collectives, and the part that is not reductions.

  Every collective counts as often as a selection may have passes.
  """
  moved = others = 0
  for line in text.splitlines():
    match = COLLECTIVE.search(line)
    if not match:
      continue
    for kind, dims in re.findall(r"\b([a-z]+\d*)\[([\d,]*)\]", match[1]):
      bits = int(re.sub(r"\D", "", kind) or 8)
      moved += bits // 8 * int(np.prod([int(n) for n in dims.split(",") if n]))
    others += match[2] != "all-reduce"
  return PASSES * moved, others


def rows_of(size: str, width: int, blocks: int, devices: tuple[int, ...]):
  """Compiles one block for each number of devices, and returns rows of the results."""
  block = sum(int(np.prod(shape)) for shape in kernels(width).values())
  total, rows, shares = block * blocks, [], {}
  note = f"{blocks} times one compiled block of {block:,} weights; float32, AdamW"
  for n in devices:
    program = compiled(width, n)
    memory: Any = program.memory_analysis()
    moved, others = traffic(str(program.as_text()))
    if others:
      raise RuntimeError(f"{others} collectives besides reductions on {n} devices.")
    state = memory.argument_size_in_bytes  # params, gradients, moments, masks
    shares[n] = state * n / block, memory.temp_size_in_bytes * n / block, moved
    rows += _rows(size, n, total, shares[n], note)
  spread = max(s[0] for s in shares.values()) / min(s[0] for s in shares.values()) - 1
  for n in EXTRAPOLATED:
    more = (
      f"extrapolated from {devices[-1]} devices (bytes per weight differ by"
      f" {100 * spread:.2g} % from {devices[0]} to {devices[-1]}); {note}"
    )
    rows += _rows(size, n, total, shares[devices[-1]], more)
  return rows


def _rows(size, devices, total, shares, note):
  bytes_, temporary, moved = shares
  case = f"transformer/parameters={size}/devices={devices}"
  live = total * bytes_ / devices
  return [
    results.row(case, "state_gib_per_device", live / GIB, note=note),
    results.row(
      case,
      "state_gib_per_device_1bit_masks",
      (live - total / devices * 7 / 8) / GIB,
      note="masks of one byte per weight replaced by one bit; " + note,
    ),
    results.row(
      case,
      "scratch_gib_per_device",
      total * temporary / devices / GIB,
      note="an upper bound: all blocks at once; " + note,
    ),
    results.row(
      case, "mask_update_bytes_per_tensor", moved / len(kernels(1)), note=note
    ),
    results.row(
      case,
      "gathered_update_bytes_per_tensor",
      4.0 * total / (len(kernels(1)) * _blocks(size)),
      note="what sorting a gathered kernel's float32 scores would bring, to compare",
    ),
  ]


def _blocks(size: str) -> int:
  return SIZES[size][1]


def packing(width: int):
  """Returns the cost of 1-bit masks: a layer's step that unpacks and packs its mask."""
  shape = (width, width)
  like = jax.ShapeDtypeStruct(shape, jnp.float32)
  bits = jax.ShapeDtypeStruct((width, width // 8), jnp.uint8)
  mask = jax.ShapeDtypeStruct(shape, jnp.bool_)

  def from_bytes(mask, update, params):
    return jnp.where(mask, update, -params)

  def from_bits(bits, update, params):
    return jnp.where(sj.unpack(bits, params), update, -params)

  found = {}
  # Compile the masking of one update with either format, and read XLA's cost analysis.
  for name, function, first in (
    ("bytes", from_bytes, mask),
    ("bits", from_bits, bits),
  ):
    program = jax.jit(function).lower(first, like, like).compile()
    cost: Any = program.cost_analysis()
    memory: Any = program.memory_analysis()
    found[name] = (
      cost["bytes accessed"] / np.prod(shape),
      cost.get("flops", 0.0) / np.prod(shape),
      memory.temp_size_in_bytes / np.prod(shape),
    )
  rows = []
  for name, (accessed, operations, temporary) in found.items():
    case = f"masks/{name}"
    rows += [
      results.row(case, "accessed_bytes_per_weight", accessed),
      results.row(case, "operations_per_weight", operations),
      results.row(case, "scratch_bytes_per_weight", temporary),
    ]
  return rows


def main(argv: list[str]) -> None:
  del argv
  jax.config.update("jax_platforms", "cpu")
  jax.config.update("jax_num_cpu_devices", max(COMPILED))
  # Compile the variant for accelerators; that for CPUs counts by columns first.
  lax.platform_dependent = lambda *x, default, **_: default(*x)
  sizes = list(SIZES)[:1] if _QUICK.value else list(SIZES)
  devices = COMPILED[:1] if _QUICK.value else COMPILED
  rows = []
  for i, size in enumerate(sizes):
    print(f"{size} parameters: {i + 1} of {len(sizes)}", flush=True)
    rows += rows_of(size, *SIZES[size], devices)
  rows += packing(SIZES[sizes[0]][0])
  print(page(rows))
  if not _QUICK.value:
    results.write_results(_OUT.value, "scaling", rows)
    pathlib.Path(_TABLE.value).write_text(page(rows))


if __name__ == "__main__":
  command_line.run(main)
