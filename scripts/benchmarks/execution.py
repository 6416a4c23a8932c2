"""Times sparse execution against dense execution: results/execution.json.

  python -m scripts.benchmarks.execution
  python -m scripts.benchmarks.execution --cases='product/2048x2048.*density=0.1$'

  product       forward and backward pass of one matrix product, `block_dot` against
                `@`; and the forward pass of 8 rows with given live blocks, to serve
  step/mlp2048x3, step/transformer
                a whole training step with its optimizer, SGD with momentum, against
                plain optax on the same dense network; mask updates every 100 steps
                are included, as (99 steps without + 1 with) / 100
  step/conv     forward and backward pass of one 3 x 3 convolution
  deploy        forward pass of a deployed network against the masked one
  condensed     bytes of AdamW's state, and the optimizer's step, by `sj.condensed`
                against the whole state

Both sides run alternately in one process. The results are medians over rounds of ratios
within each round, and the milliseconds of both sides. Run nothing else meanwhile: it
takes about ten minutes on two idle CPU cores. Rows of cases that are not run are left
unchanged in the results file. --quick runs all cases at tiny sizes and writes nothing.
"""

import functools
import itertools
import re
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags, logging

import sparsejax as sj
from scripts import ROOT
from scripts.benchmarks import serving, timing
from sparsejax import models, ops
from sparsejax.experiments import command_line, results

EVERY = 100  # steps from one mask update to the next
METHODS = ("rigl", "sparse_evolution", "sparse_momentum", "static_sparse")

_OUT = flags.DEFINE_string(
  "out", str(ROOT / "results/execution.json"), "The results file to write."
)
_CASES = flags.DEFINE_string(
  "cases", "", "A regular expression of cases; default: all."
)
_ROUNDS = flags.DEFINE_integer("rounds", 15, "Rounds per case.", lower_bound=1)
_QUICK = flags.DEFINE_bool("quick", False, "Run all cases at tiny sizes.")
_LIST = flags.DEFINE_bool("list", False, "Print the names of the cases and stop.")


def cases(quick: bool, rounds: int) -> timing.Cases:
  """Returns a function per case that returns its rows."""
  found = {}
  size, batch = (256, 32) if quick else (2048, 1024)
  blocks = (
    {32: (0.05,)}
    if quick
    else {
      128: (0.05, 0.1, 0.25, 0.35, 0.5, 1.0),
      64: (0.05, 0.1, 0.2, 0.3),
      256: (0.1, 0.25),
    }
  )
  for block, densities in blocks.items():
    for density in densities:
      name = f"product/{size}x{size}/batch={batch}/block={block}/density={density}"
      found[name] = functools.partial(
        product, name, size, batch, block, density, rounds
      )
  size, block = (256, 32) if quick else (4096, 128)
  name = f"product/{size}x{size}/batch=8/block={block}/density=0.1/forward"
  found[name] = functools.partial(
    product, name, size, 8, block, 0.1, 4 * rounds, forward=True
  )
  width, batch, block = (256, 32, 32) if quick else (2048, 1024, 128)
  for density in (0.1,) if quick else (0.1, 0.25):
    for method in METHODS:
      name = f"step/mlp{width}x3/batch={batch}/block={block}/density={density}"
      name += "" if method == "rigl" else f"/{method}"
      make = functools.partial(mlp, width, batch, block)
      found[name] = functools.partial(step, name, make, method, block, density, rounds)
  block = 32 if quick else 64
  name = f"step/transformer/block={block}/density=0.1"
  make = functools.partial(transformer, 64 if quick else 512, 1 if quick else 16, block)
  found[name] = functools.partial(step, name, make, "rigl", block, 0.1, rounds)
  channels, image, batch = (64, 6, 2) if quick else (256, 16, 64)
  for density in (0.1, 0.25):
    name = f"step/conv/3x3/{channels}x{channels}/{image}x{image}/batch={batch}"
    name += f"/block={block}/density={density}"
    found[name] = functools.partial(
      convolution, name, channels, image, batch, block, density, rounds
    )
  found |= serving.deploy_cases(quick, rounds)
  return found | serving.condensed_cases(quick, rounds)


def _normal(seed: int, *shape: int) -> jax.Array:
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def _sparse_kernel(shape: tuple[int, ...], block: int, density: float) -> jax.Array:
  """Draws a kernel with the nearest number of live blocks; masked entries are -0.0."""
  *taps, inputs, outputs = shape
  live = np.zeros((*taps, inputs // block, outputs // block), bool)
  chosen = np.random.default_rng(0).permutation(live.size)
  live.reshape(-1)[chosen[: max(1, round(density * live.size))]] = True
  mask = np.kron(live, np.ones((block, block))) > 0
  return jnp.where(mask, _normal(1, *shape), -0.0)


def _compare(name: str, calls: dict[str, Any], rounds: int, note: str) -> list[dict]:
  """Returns rows of two calls, `dense` and `sparse`."""
  taken = timing.interleaved(calls, rounds)
  note = f"median of {rounds} rounds in turns; {note}"
  ratio = timing.median_ratio(taken["dense"], taken["sparse"])
  rows = [results.row(name, "speedup_over_dense", ratio, note=note)]
  for way, seconds in taken.items():
    value = 1e3 * float(np.median(seconds))
    rows.append(results.row(name, f"{way}_milliseconds", value, note=note))
  return rows


def product(
  name: str,
  size: int,
  batch: int,
  block: int,
  density: float,
  rounds: int,
  forward: bool = False,
) -> list[dict]:
  """Times one product of x (batch, size) and a kernel (size, size)."""
  x, dy = _normal(2, batch, size), _normal(3, batch, size)
  kernel = _sparse_kernel((size, size), block, density)
  pair = (block, block)
  if forward:
    live = ops.live_blocks(kernel, pair)
    ways = {
      "dense": lambda x, w, dy: x @ w,
      "sparse": lambda x, w, dy: sj.block_dot(x, w, pair, live=live),
    }
    note = "forward pass, live blocks given"
  else:
    ways = {
      "dense": _with_gradients(lambda x, w: x @ w),
      "sparse": _with_gradients(lambda x, w: sj.block_dot(x, w, pair)),
    }
    note = "forward and backward pass"
  programs = {way: timing.compiled(f, x, kernel, dy)[0] for way, f in ways.items()}
  calls = {
    way: functools.partial(program, x, kernel, dy) for way, program in programs.items()
  }
  return _compare(name, calls, rounds, note)


def _with_gradients(function):
  def run(x, kernel, dy):
    y, pull = jax.vjp(function, x, kernel)
    return y, *pull(dy)

  return run


def convolution(
  name: str,
  channels: int,
  image: int,
  batch: int,
  block: int,
  density: float,
  rounds: int,
) -> list[dict]:
  """Times one 3 x 3 convolution, forward and backward."""
  x = _normal(2, batch, image, image, channels)
  dy = _normal(3, batch, image, image, channels)
  kernel = _sparse_kernel((3, 3, channels, channels), block, density)
  both = {
    "dense": jax.lax.conv_general_dilated,
    "sparse": sj.block_conv_general_dilated((block, block)),
  }
  calls = {}
  for way, conv in both.items():
    apply = functools.partial(
      conv,
      window_strides=(1, 1),
      padding="SAME",
      dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    program, _ = timing.compiled(_with_gradients(apply), x, kernel, dy)
    calls[way] = functools.partial(program, x, kernel, dy)
  return _compare(name, calls, rounds, "forward and backward pass, against lax")


def mlp(width: int, batch: int, block: int):
  """Builds an MLP with three hidden layers of one width; its last layer is dense."""
  inputs, classes = width // 2, 10
  widths = (inputs, width, width, width)
  params = {
    f"layer{i}": {
      "kernel": _normal(i, a, b) * np.float32((2 / a) ** 0.5),
      "bias": jnp.zeros(b),
    }
    for i, (a, b) in enumerate(itertools.pairwise(widths))
  }
  params["head"] = {
    "kernel": _normal(9, width, classes) * np.float32(width**-0.5),
    "bias": jnp.zeros(classes),
  }
  data = (_normal(4, batch, inputs), jnp.arange(batch) % classes)

  def loss(params, data, sparse):
    x, labels = data
    for i in range(3):
      layer = params[f"layer{i}"]
      kernel = layer["kernel"]
      x = sj.block_dot(x, kernel, (block, block)) if sparse else x @ kernel
      x = jax.nn.relu(x + layer["bias"])
    logits = x @ params["head"]["kernel"] + params["head"]["bias"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

  return params, data, loss, r"layer\d/kernel"


def transformer(width: int, sequences: int, block: int):
  """Builds a byte transformer of two blocks, for sequences of 64 bytes."""
  kwargs: dict[str, Any] = {"width": width, "depth": 2, "heads": 8, "length": 64}
  dot = sj.block_dot_general((block, block))
  nets = (
    models.create("transformer", 256, **kwargs),
    models.create("transformer", 256, dot_general=dot, **kwargs),
  )
  tokens = jnp.asarray(np.random.default_rng(0).integers(256, size=(sequences, 65)))
  params = nets[0].init(jax.random.key(0), tokens[:, :-1])["params"]

  def loss(params, tokens, sparse):
    logits: Any = nets[sparse].apply({"params": params}, tokens[:, :-1])
    return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()

  return params, tokens, loss, None


def step(
  name: str, make, method: str, block: int, density: float, rounds: int
) -> list[dict]:
  """Times a whole training step; the sparse network uses block products."""
  params, data, loss, where = make()
  inner = optax.sgd(0.01, momentum=0.9)
  tx = getattr(sj, method)(
    inner,
    density,
    update_every=EVERY,
    where=where,
    structure=sj.block((block, block)),
  )

  # Compile a plain optax step and a sparse step whose products skip masked blocks. When
  # masks are updated, the gradients of all weights are needed.
  def dense(params, state, data):
    grads = jax.grad(loss)(params, data, False)
    updates, state = inner.update(grads, state, params)
    return optax.apply_updates(params, updates), state

  def sparse(params, state, data, due):
    def marked(params):
      return loss(sj.mark_dead(params, state, due), data, True)

    updates, state = tx.update(
      jax.grad(marked)(params), state, params, update_masks=due
    )
    return optax.apply_updates(params, updates), state

  state = tx.init(params)
  runs = {
    "dense": [params, inner.init(params)],
    "sparse": [sj.apply_masks(params, sj.masks(state)), state],
  }
  runs = jax.tree.map(jnp.copy, runs)
  due, not_due = jnp.asarray(True), jnp.asarray(False)
  programs = {
    "dense": jax.jit(dense, donate_argnums=(0, 1))
    .lower(*runs["dense"], data)
    .compile(),
    "sparse": jax.jit(sparse, donate_argnums=(0, 1))
    .lower(*runs["sparse"], data, due)
    .compile(),
  }

  # Run a dense step, a sparse step and a sparse step with a mask update in turns.
  def call(way, *flag):
    runs[way] = list(programs[way](*runs[way], data, *flag))
    return runs[way]

  taken = timing.interleaved(
    {
      "dense": lambda: call("dense"),
      "sparse": lambda: call("sparse", not_due),
      "update": lambda: call("sparse", due),
    },
    rounds,
  )
  # Average the sparse step over one period of mask updates.
  ours = ((EVERY - 1) * taken["sparse"] + taken["update"]) / EVERY
  note = f"SGD with momentum; by {method}, mask updates every {EVERY} steps counted; "
  note += f"median of {rounds} rounds in turns"
  rows = [
    results.row(
      name, "speedup_over_dense", timing.median_ratio(taken["dense"], ours), note=note
    )
  ]
  for way, seconds in taken.items():
    value = 1e3 * float(np.median(seconds))
    rows.append(results.row(name, f"{way}_milliseconds", value, note=note))
  return rows


def main(argv: list[str]) -> None:
  del argv
  logging.set_verbosity(logging.ERROR)
  found = cases(_QUICK.value, 1 if _QUICK.value else _ROUNDS.value)
  chosen = [name for name in found if re.search(_CASES.value, name)]
  if not chosen:
    sys.exit(f"Error: --cases must match a case; got {_CASES.value!r}.")
  if _LIST.value:
    print("\n".join(chosen))
    return
  rows = []
  for number, name in enumerate(chosen, 1):
    start = time.monotonic()
    rows += found[name]()
    key = "; ".join(f"{r['metric']} {r['mean']:.3g}" for r in rows if r["case"] == name)
    seconds = time.monotonic() - start
    print(f"[{number}/{len(chosen)}] {name}: {key} ({seconds:.0f} s)", flush=True)
  if _QUICK.value:
    return
  results.write_results(
    _OUT.value, "execution", results.merge_with_existing(rows, _OUT.value)
  )
  print(f"Wrote {_OUT.value}.")


if __name__ == "__main__":
  command_line.run(main)
